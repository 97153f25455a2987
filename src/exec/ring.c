/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <unistd.h>

#include "exec/ring.h"

static bool write_at(int fd, const void *p, size_t n, uint64_t at) {
        while (n > 0) {
                ssize_t k = pwrite(fd, p, n, (off_t) at);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k <= 0)
                        return false;
                p = (const char *) p + k;
                n -= (size_t) k;
                at += (uint64_t) k;
        }
        return true;
}

static bool write_header(Ring *r) {
        return write_at(r->fd, &r->header, sizeof(r->header), 0);
}

void ring_init(Ring *r, int fd, uint64_t size) {
        *r = (Ring) { .fd = fd, .header = { .magic = RING_MAGIC, .size = size } };
        (void) write_header(r);
}

static bool write_wrapped(Ring *r, const char *p, size_t n, uint64_t position) {
        uint64_t at = position % r->header.size;
        size_t first = (size_t) MIN((uint64_t) n, r->header.size - at);

        return write_at(r->fd, p, first, sizeof(RingHeader) + at) &&
               write_at(r->fd, p + first, n - first, sizeof(RingHeader));
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
