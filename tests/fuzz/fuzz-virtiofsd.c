/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "vmm/passt-plan.h"
#include "vmm/vhost-user.h"
#include "vmm/virtiofsd-plan.h"

#include "fuzz.h"

/* What a virtiofsd that was taken over answers on vhost-user, in whatever pieces; and what it, or a passt, calls its version. */

static const uint8_t right[] = { 1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0 };

static bool is_right(const uint8_t *data, size_t size) {
        return size >= 20 && memcmp(data, right, 4) == 0 && (data[4] & 4) && memcmp(data + 8, right + 8, 4) == 0;
}

static int answer(const uint8_t *data, size_t size, size_t piece, bool ends) {
        VhostUserAnswer a = {};
        int pair[2], r = 0;

        fuzz_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
        fuzz_assert(vhost_user_ask(pair[0]) == 0 && vhost_user_read(&a, pair[0]) == 0);
        for (size_t done = 0, n; r == 0 && done < size; done += n) {
                n = MIN(piece, size - done);
                fuzz_assert(write(pair[1], data + done, n) == (ssize_t) n);
                r = vhost_user_read(&a, pair[0]);
                fuzz_assert(a.n <= sizeof(a.bytes) && (r == 0) == (a.n < sizeof(a.bytes)));
        }
        if (ends && r == 0) {
                /* what was not read yet would be an error of its own */
                fuzz_assert(recv(pair[1], (char[64]) {}, 64, 0) > 0 && shutdown(pair[1], SHUT_WR) == 0);
                r = vhost_user_read(&a, pair[0]);
        }
        close_many(pair, 2);
        return r;
}

static void check_version(const char *line) {
        VirtiofsdVersion v;
        unsigned day;

        if (virtiofsd_parse_version(line, &v))
                fuzz_assert(strpbrk(line, "0123456789"));
        fuzz_assert(!passt_parse_version(line, &day) || strncmp(line, "passt ", 6) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_free_ char *line = fuzz_string(data, size);
        int want = size < 20 ? 0 : is_right(data, size) ? 1 : -EBADMSG;

        fuzz_assert(answer(data, size, SIZE_MAX, false) == want);
        fuzz_assert(answer(data, size, 3, false) == want);
        fuzz_assert(answer(data, size, 3, true) == (want == 0 ? -EPIPE : want));
        check_version(line);
        return 0;
}
