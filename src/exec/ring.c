/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fd-util.h"
#include "exec/ring.h"

static bool write_header(Ring *r) {
        return loop_pwrite(r->fd, &r->header, sizeof(r->header), 0) >= 0;
}

void ring_init(Ring *r, int fd, uint64_t size) {
        *r = (Ring) { .fd = fd, .header = { .magic = RING_MAGIC, .size = size } };
        (void) write_header(r);
}

static bool write_wrapped(Ring *r, const char *p, size_t n, uint64_t position) {
        uint64_t at = position % r->header.size;
        size_t first = (size_t) MIN((uint64_t) n, r->header.size - at);

        return loop_pwrite(r->fd, p, first, sizeof(RingHeader) + at) >= 0 &&
               loop_pwrite(r->fd, p + first, n - first, sizeof(RingHeader)) >= 0;
}

void ring_append(Ring *r, const char *p, size_t n) {
        RingHeader *h = &r->header;
        size_t skip = n > h->size ? (size_t) (n - h->size) : 0;

        /* Old bytes are about to go: readers must know before, also when this process dies half way. */
        if (h->total + n > h->size) {
                h->pending = MAX(h->pending, (uint32_t) n);
                if (!write_header(r))
                        return;
        }

        if (!write_wrapped(r, p + skip, n - skip, h->total + skip))
                return;
        h->total += n;
        h->pending -= MIN(h->pending, (uint32_t) n);
        (void) write_header(r);
}
