/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "vmm/http-vmm.h"
#include "vmm/vmm.h"

#include "fuzz.h"

/* What a VMM writes to its FIFO: what is handed on are objects and the word that there was none, in the order and number in which a slow reader gets them too. */

#define RECORDS_MAX 4096

typedef struct Seen {
        VMMStream *stream;
        unsigned n, free_after;
        size_t members[RECORDS_MAX];
} Seen;

static void on_object(void *userdata, json_object *o) {
        Seen *s = userdata;

        fuzz_assert(!o || json_object_is_type(o, json_type_object));
        if (s->n < RECORDS_MAX)
                s->members[s->n] = o ? (size_t) json_object_object_length(o) : SIZE_MAX;
        if (++s->n == s->free_after)
                s->stream = vmm_stream_free(s->stream);
}

/* In pieces of that many bytes */
static void feed(Seen *seen, sd_event *e, const char *separator, const uint8_t *data, size_t size, size_t piece) {
        int fd;

        fuzz_assert(vmm_stream_new(e, ".", separator, on_object, seen, &seen->stream) >= 0);
        fd = open(VMM_EVENTS, O_WRONLY|O_NONBLOCK|O_CLOEXEC);
        fuzz_assert(fd >= 0);
        for (size_t done = 0, n; done < size && seen->stream; done += n) {
                n = MIN(piece, size - done);
                fuzz_assert(write(fd, data + done, n) == (ssize_t) n);
                vmm_stream_drain(seen->stream);
        }
        close(fd);
        vmm_stream_drain(seen->stream);
        seen->stream = vmm_stream_free(seen->stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static Seen whole, bytes, freed;
        static sd_event *e;

        if (!e) {
                fuzz_assert(sd_event_new(&e) >= 0);
                fuzz_assert(mkfifo(VMM_EVENTS, 0600) >= 0 || errno == EEXIST);
        }
        for (const char *const *separator = (const char *const[]) { "\n", "\n\n", NULL }; *separator; separator++) {
                whole = bytes = freed = (Seen) {};
                freed.free_after = 2;
                feed(&whole, e, *separator, data, size, 32 * 1024);
                feed(&bytes, e, *separator, data, size, size > 2048 ? 1000 : 3);
                feed(&freed, e, *separator, data, size, 32 * 1024);
                fuzz_assert(whole.n == bytes.n && memcmp(whole.members, bytes.members, sizeof whole.members) == 0);
                fuzz_assert(freed.n == MIN(whole.n, 2U));
        }
        return 0;
}
