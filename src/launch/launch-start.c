/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>

#include "basic/cap-util.h"
#include "basic/exec-protocol.h"
#include "basic/fd-util.h"
#include "basic/pidfd-util.h"
#include "basic/process-util.h"
#include "basic/program-util.h"
#include "launch/launch-share.h"
#include "launch/launch.h"

#define VMM_FDS_MAX (SCM_FDS_MAX - _HELPER_FD_MAX)
#define ARGUMENTS_MAX 1024U
#define CONSOLE_LOG_SIZE_MIN 4096U
#define CONSOLE_LOG_SIZE_MAX (UINT64_C(1) << 30)

/* A VMM that is root's: it opens its kernel by /proc/self/fd, also where the file is not root's. */
#define VMM_RIGHTS CAP_BIT(CAP_DAC_READ_SEARCH)

/* To build the walls of a virtiofsd, which keeps none of them outside of its user namespace, or of a passt, which keeps none */
#define WALLS_RIGHTS (CAP_BIT(CAP_SYS_ADMIN) | CAP_BIT(CAP_SETUID) | CAP_BIT(CAP_SETGID) | CAP_BIT(CAP_MKNOD))

/* What a VMM may be given: files, disks, the listening socket of its API, the FIFO where it tells of itself, and connections to its
 * virtiofsds. */
static bool is_vmm_fd(int fd) {
        struct stat st;
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0 || (flags & O_PATH) || fstat(fd, &st) < 0)
                return false;
        return S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) || S_ISFIFO(st.st_mode) || fd_is_unix_socket(fd, SOCK_STREAM, true) ||
                fd_is_unix_socket(fd, SOCK_STREAM, false);
}

/* What a passt is given: the lines of its /etc/resolv.conf, where it says that it is ready, and its guest's end */
static bool are_network_fds(const int *fds, size_t n) {
        struct stat st;
        int flags;

        if (n != 3 || fstat(fds[0], &st) < 0 || !S_ISREG(st.st_mode) || fstat(fds[1], &st) < 0 || !S_ISFIFO(st.st_mode))
                return false;
        flags = fcntl(fds[0], F_GETFL);
        return flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) != O_WRONLY && fd_is_unix_socket(fds[2], SOCK_STREAM, false);
}

/* Opened as its owner: O_PATH proves no right to what is in it. */
static bool is_directory(int fd) {
        struct stat st;
        int flags = fcntl(fd, F_GETFL);

        return flags >= 0 && !(flags & O_PATH) && fstat(fd, &st) >= 0 && S_ISDIR(st.st_mode);
}

/* A virtiofsd's: its share, then the socket on which it waits for a VMM */
static bool is_share_fd(int fd, size_t i) {
        return i == 0 ? is_directory(fd) : fd_is_unix_socket(fd, SOCK_STREAM, true);
}

static bool fds_valid(const Request *r, size_t n_vmm, StartKind kind) {
        bool share = kind == START_SHARE;

        if (n_vmm > VMM_FDS_MAX || r->n_fds != _HELPER_FD_MAX + n_vmm)
                return false;
        if (!fd_is_unix_socket(r->fds[HELPER_FD_CONTROL], SOCK_SEQPACKET, 0) ||
            !fd_is_unix_socket(r->fds[HELPER_FD_EXEC], SOCK_SEQPACKET, 1) ||
            !fd_is_writable_file(r->fds[HELPER_FD_EXIT]) ||
            !fd_is_writable_file(r->fds[HELPER_FD_CONSOLE_LOG]) ||
            !fd_is_writable_file(r->fds[HELPER_FD_LAST_OUTPUT]))
                return false;
        if (kind == START_NETWORK)
                return are_network_fds(r->fds + _HELPER_FD_MAX, n_vmm);
        for (size_t i = 0; i < n_vmm; i++)
                if (share ? !is_share_fd(r->fds[_HELPER_FD_MAX + i], i) : !is_vmm_fd(r->fds[_HELPER_FD_MAX + i]))
                        return false;
        return !share || n_vmm > 0;
}

static bool id_valid(uint32_t id) {
        return id > VM_IDS_BASE && id < VM_IDS_BASE + SHARE_IDS;
}

/* One id of the VMs' block for a user's, all of the next block for root's */
static bool share_valid(const ShareRequest *s) {
        if (s->readonly > 1 || s->reserved != 0)
                return false;
        if (s->count == SHARE_IDS)
                return s->base == VM_IDS_BASE + SHARE_IDS && s->uid == 0 && s->gid == 0;
        return s->count == 1 && id_valid(s->base) && s->uid != 0 &&
                s->uid != (uint32_t) -1 && s->gid != (uint32_t) -1;
}

static bool network_valid(const NetworkRequest *n) {
        return id_valid(n->id) && n->low_ports <= 1 && n->reserved == 0 && (n->resolver == 0 || ntohl(n->resolver) >> 24 == 127);
}

static bool argv_valid(const char *argv, size_t size) {
        size_t n = 0;

        if (size == 0 || !argv[0] || argv[size - 1])
                return false;
        for (size_t i = 0; i < size; i++)
                n += !argv[i];
        return n <= ARGUMENTS_MAX;
}

static int validate(const Request *r) {
        static const ShareRequest no_share;
        static const NetworkRequest no_network;
        const StartRequest *q = (const StartRequest *) r->header;
        bool share, network;

        if (r->size < sizeof(*q) || q->argv_size != r->size - sizeof(*q) || q->kind >= _START_KIND_MAX ||
            q->console_log_max < CONSOLE_LOG_SIZE_MIN || q->console_log_max > CONSOLE_LOG_SIZE_MAX)
                return -EINVAL;
        share = q->kind == START_SHARE;
        network = q->kind == START_NETWORK;
        if (share != (q->program == PROGRAM_VIRTIOFSD) || network != (q->program == PROGRAM_PASST) ||
            (share ? !share_valid(&q->share) : memcmp(&q->share, &no_share, sizeof(no_share)) != 0) ||
            (network ? !network_valid(&q->network) : memcmp(&q->network, &no_network, sizeof(no_network)) != 0))
                return -EINVAL;
        return argv_valid(q->argv, q->argv_size) && fds_valid(r, q->n_fds, q->kind) ? 0 : -EINVAL;
}

static uint64_t helper_rights(const StartRequest *q) {
        switch (q->kind) {
        case START_SHARE:
                return WALLS_RIGHTS;
        case START_NETWORK:
                return WALLS_RIGHTS | (q->network.low_ports ? CAP_BIT(CAP_NET_BIND_SERVICE) : 0);
        default:
                return VMM_RIGHTS;
        }
}

/* What vmunit-exec has of the fds that come along */
static size_t n_of_helper(const StartRequest *q) {
        return q->kind == START_SHARE ? 1 : q->kind == START_NETWORK ? 2 : 0;
}

static _Noreturn void run_helper(const char *exec_path, const char *program, const StartRequest *q, const int *fds, size_t n) {
        static const char *const kinds[] = { [START_PIPES] = "pipes", [START_TTY] = "tty", [START_SHARE] = "share",
                                             [START_NETWORK] = "network" };
        char log_max[24], n_fds[12], id[12], resolver[12];
        char *argv[] = { (char *) "vmunit-exec", (char *) program, log_max, n_fds, (char *) kinds[q->kind],
                         q->kind == START_NETWORK ? id : NULL, (char *) (q->network.low_ports ? "low-ports" : "-"), resolver, NULL };
        char *env[] = { (char *) "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", NULL };
        int null, r;

        (void) snprintf(log_max, sizeof(log_max), "%" PRIu64, q->console_log_max);
        (void) snprintf(n_fds, sizeof(n_fds), "%" PRIu32, q->n_fds - (uint32_t) n_of_helper(q));
        (void) snprintf(id, sizeof(id), "%" PRIu32, q->network.id);
        (void) snprintf(resolver, sizeof(resolver), "%" PRIu32, q->network.resolver);

        reset_process();
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        r = null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 ? -errno : 0;
        if (r == 0)
                r = place_fds(fds, n);
        if (r == 0)
                r = cap_confine(helper_rights(q));
        if (r == 0) {
                reset_signals();
                (void) execve(exec_path, argv, env);
                r = -errno;
        }

        /* The daemon sees the end of the control socket. The log's own fd is gone. */
        (void) dprintf(2, "<3>Cannot execute %s: %s\n", exec_path, strerror(-r));
        _exit(EXIT_FAILURE);
}

static int start_helper(const Request *r, const Config *config, const char *exec_path, pid_t *ret_pid) {
        const StartRequest *q = (const StartRequest *) r->header;
        _cleanup_close_ int argv_fd = -EBADF, tree = -EBADF, userns = -EBADF;
        int fds[SCM_FDS_MAX + 2], k;
        size_t n = 0, first = _HELPER_FD_MAX;
        char program[PATH_MAX];
        struct stat st;
        pid_t pid;

        k = validate(r);
        if (k < 0)
                return k;
        k = program_find(config, q->program, program, &st);
        if (k < 0)
                return k;
        argv_fd = memfd_new("argv", q->argv, q->argv_size);
        if (argv_fd < 0)
                return argv_fd;

        /* In the order of EXEC_FD_* */
        for (; n < _HELPER_FD_MAX; n++)
                fds[n] = r->fds[n];
        fds[n++] = argv_fd;
        if (q->kind == START_SHARE) {
                k = share_open(r->fds[first++], &q->share, &tree, &userns);
                if (k < 0)
                        return k;
                fds[n++] = tree;
                fds[n++] = userns;
        }
        for (; first < r->n_fds; first++)
                fds[n++] = r->fds[first];

        pid = fork();
        if (pid < 0)
                return -errno;
        if (pid == 0)
                run_helper(exec_path, program, q, fds, n);
        *ret_pid = pid;
        return pidfd_open_pid(pid);
}

pid_t start_run(int sock, const Request *r, const Config *config, const char *exec_path) {
        StartReply reply = { .header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_START, .size = sizeof(reply) } };
        _cleanup_close_ int pidfd = -EBADF;
        pid_t pid = 0;
        int k;

        pidfd = start_helper(r, config, exec_path, &pid);
        reply.error = MIN(pidfd, 0);
        reply.pid = pidfd < 0 ? 0 : pid;
        k = send_with_fds(sock, &reply, sizeof(reply), &pidfd, pidfd >= 0);

        /* Nobody knows of it: it must not stay. */
        if (pid > 0 && (k < 0 || pidfd < 0))
                (void) kill(pid, SIGKILL);
        return pid > 0 ? pid : reply.error;
}
