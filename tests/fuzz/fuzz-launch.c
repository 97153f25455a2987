/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/stat.h>

#include "basic/exec-protocol.h"
#include "basic/fd-util.h"
#include "launch/launch.h"

#include "fuzz.h"

/* What a daemon that was taken over asks the launcher to start: a request that is right, changed in some places, with whatever fds. What is taken
 * has to be within what the launcher may do. */

#define ARGUMENTS "vmm\0-x"

enum { FILE_BOTH, FILE_READ, FILE_PATH, FIFO, DIRECTORY, PACKETS, PACKETS_LISTENING, STREAM, STREAM_LISTENING, _THINGS };

static int things[_THINGS];

static void make_things(void) {
        int packets[2], stream[2];

        fuzz_assert(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0);
        fuzz_assert(mkfifo("fifo", 0600) == 0 || errno == EEXIST);
        things[FILE_BOTH] = open("file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        things[FILE_READ] = open("file", O_RDONLY | O_CLOEXEC);
        things[FILE_PATH] = open("file", O_PATH | O_CLOEXEC);
        things[FIFO] = open("fifo", O_RDWR | O_CLOEXEC);
        things[DIRECTORY] = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        things[PACKETS] = packets[0];
        things[PACKETS_LISTENING] = unix_listen("packets", SOCK_SEQPACKET);
        things[STREAM] = stream[0];
        things[STREAM_LISTENING] = unix_listen("stream", SOCK_STREAM);
        for (size_t i = 0; i < _THINGS; i++)
                fuzz_assert(things[i] >= 0);
}

static size_t right_request(StartRequest *q, bool share, int *fds) {
        static const uint8_t helper[] = { PACKETS, PACKETS_LISTENING, FILE_BOTH, FILE_BOTH, FILE_BOTH };
        size_t n = 0;

        *q = (StartRequest) {
                .program = share ? PROGRAM_VIRTIOFSD : PROGRAM_QEMU,
                .kind = share ? START_SHARE : START_PIPES,
                .n_fds = 2,
                .console_log_max = 65536,
                .argv_size = sizeof(ARGUMENTS),
        };
        if (share)
                q->share = (ShareRequest) { .base = VM_IDS_BASE + 7, .count = 1, .uid = 1000, .gid = 1000 };
        else {
                q->vmm.id = VM_IDS_BASE + 8;
                q->vmm.shown[0] = q->vmm.shown[1] = EXEC_SHOWN_NOT;
        }
        memcpy(q->argv, ARGUMENTS, sizeof(ARGUMENTS));
        for (; n < sizeof(helper); n++)
                fds[n] = things[helper[n]];
        fds[n++] = things[share ? DIRECTORY : FILE_READ];
        fds[n++] = things[STREAM_LISTENING];
        return n;
}

static bool is_vms(uint32_t id) {
        return id > VM_IDS_BASE && id < VM_IDS_BASE + SHARE_IDS;
}

static void check_taken(const StartRequest *q, size_t size, size_t n_fds) {
        bool share = q->program == PROGRAM_VIRTIOFSD, network = q->program == PROGRAM_PASST;

        fuzz_assert(q->program < _PROGRAM_MAX && share == (q->kind == START_SHARE) && network == (q->kind == START_NETWORK));
        fuzz_assert(q->kind < _START_KIND_MAX && q->n_fds + _HELPER_FD_MAX == n_fds && q->argv_size == size - sizeof(*q));
        fuzz_assert(q->argv_size > 0 && q->argv[0] && !q->argv[q->argv_size - 1]);
        if (share) {
                bool one = q->share.count == 1;

                fuzz_assert(one ? is_vms(q->share.base) && q->share.base % 2 != VM_IDS_BASE % 2 : q->share.count == SHARE_IDS && q->share.base == VM_IDS_BASE + SHARE_IDS);
                fuzz_assert(one == (q->share.uid != 0) && q->share.uid != UINT32_MAX && q->share.gid != UINT32_MAX);
        } else
                fuzz_assert(q->share.base == 0 && q->share.count == 0 && q->share.uid == 0 && q->share.gid == 0);
        if (share || network)
                fuzz_assert(q->vmm.id == 0 && q->vmm.rights == 0);
        else {
                fuzz_assert(is_vms(q->vmm.id) && q->vmm.id % 2 == VM_IDS_BASE % 2 && !(q->vmm.rights & ~(uint32_t) _EXEC_RIGHTS_ALL));
                fuzz_assert(strnlen(q->vmm.shown, VMM_FDS_MAX) == q->n_fds);
        }
        fuzz_assert(network ? q->network.id > NETWORK_IDS_BASE && q->network.id < NETWORK_IDS_BASE + SHARE_IDS :
                               q->network.id == 0 && q->network.low_ports == 0);
}

/* Bytes: which of the two; by how many bytes it is longer or shorter; how many fds are others, each with its place and kind; then places and what
 * stands there. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static _Alignas(8) char bytes[sizeof(StartRequest) + 256];
        StartRequest *q = (StartRequest *) bytes;
        size_t n = sizeof(*q) + sizeof(ARGUMENTS), n_fds;
        int fds[64], r;
        char *exact;

        if (size < 3)
                return 0;
        if (things[0] == 0)
                make_things();
        memset(bytes, 0, sizeof(bytes));
        for (size_t i = 0; i < 64; i++)
                fds[i] = things[FILE_READ];
        n_fds = right_request(q, data[0] & 1, fds);
        n = n + data[1] % 32U - MIN(n, (size_t) (data[0] >> 1));
        for (size_t others = data[2] % 16, i = 0; i < others && size >= 5; i++, data += 2, size -= 2) {
                n_fds = MAX(n_fds, (size_t) data[3] % 16);
                fds[data[3] % 16] = things[data[4] % _THINGS];
        }
        for (data += 3, size -= 3; size >= 6; data += 6, size -= 6) {
                size_t at = (data[0] | (size_t) data[1] << 8) % (sizeof(bytes) - 4);

                memcpy(bytes + at, data + 2, 4);
        }
        if (size > 0 && n >= sizeof(*q)) /* said of itself as it is, or not */
                q->argv_size = (uint32_t) (n - sizeof(*q));

        exact = malloc(n); /* so that what stands behind it is noticed */
        fuzz_assert(exact);
        memcpy(exact, bytes, n);
        r = start_validate(&(Request) { .header = (LaunchHeader *) exact, .size = n, .fds = fds, .n_fds = n_fds });
        fuzz_assert(r == 0 || r == -EINVAL);
        if (r == 0)
                check_taken((StartRequest *) exact, n, n_fds);
        free(exact);
        return 0;
}
