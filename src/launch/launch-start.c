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
#include "launch/launch-show.h"
#include "launch/launch.h"

_Static_assert(VMM_FDS_MAX + _HELPER_FD_MAX == SCM_FDS_MAX, "one message");
#define ARGUMENTS_MAX 1024U
#define CONSOLE_LOG_SIZE_MIN 4096U
#define CONSOLE_LOG_SIZE_MAX (UINT64_C(1) << 30)

/* To build the walls, none of which the program behind them keeps on the host; of a VMM also to take all out of its bounding set */
#define WALLS_RIGHTS (CAP_BIT(CAP_SYS_ADMIN) | CAP_BIT(CAP_SETUID) | CAP_BIT(CAP_SETGID) | CAP_BIT(CAP_MKNOD))
#define VMM_RIGHTS (WALLS_RIGHTS | CAP_BIT(CAP_SETPCAP))

/* As it was when it was opened: the server of a FUSE, which may never answer, is not asked. */
static mode_t type_of(int fd) {
        int flags = fcntl(fd, F_GETFL);
        struct statx st;

        if (flags < 0 || (flags & O_PATH) || statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0)
                return 0;
        return st.stx_mode & S_IFMT;
}

/* What a VMM may be given, and shown as far as it was opened: files, disks, the listening socket of its API, the FIFO where it tells of itself, and connections to its
 * virtiofsds. */
static bool is_vmm_fd(int fd, char shown) {
        int access = fcntl(fd, F_GETFL) & O_ACCMODE;
        mode_t type = type_of(fd);

        if (shown == EXEC_SHOWN_DIRECTORY)
                return type == S_IFDIR;
        if (shown == EXEC_SHOWN_WRITE ? access != O_RDWR : shown != EXEC_SHOWN_NOT && access == O_WRONLY)
                return false;
        return type == S_IFREG || type == S_IFBLK || type == S_IFIFO || fd_is_unix_socket(fd, SOCK_STREAM, true) ||
                fd_is_unix_socket(fd, SOCK_STREAM, false);
}

/* What a passt is given: the lines of its /etc/resolv.conf, where it says that it is ready, and its guest's end */
static bool are_network_fds(const int *fds, size_t n) {
        return n == 3 && type_of(fds[0]) == S_IFREG && (fcntl(fds[0], F_GETFL) & O_ACCMODE) != O_WRONLY && type_of(fds[1]) == S_IFIFO &&
                fd_is_unix_socket(fds[2], SOCK_STREAM, false);
}

/* A virtiofsd's: its share, opened as its owner, for O_PATH proves no right to what is in it, then the socket on which it waits for a VMM */
static bool is_share_fd(int fd, size_t i) {
        return i == 0 ? type_of(fd) == S_IFDIR : fd_is_unix_socket(fd, SOCK_STREAM, true);
}

static bool fds_valid(const Request *r, size_t n_vmm, StartKind kind, const char *shown) {
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
                if (share ? !is_share_fd(r->fds[_HELPER_FD_MAX + i], i) : !is_vmm_fd(r->fds[_HELPER_FD_MAX + i], shown[i]))
                        return false;
        return !share || n_vmm > 0;
}

/* A VMM has an even one, what stands beside it the odd one after that. */
static bool id_valid(uint32_t id, bool vmm) {
        return id > VM_IDS_BASE && id < VM_IDS_BASE + SHARE_IDS && (id - VM_IDS_BASE) % 2 == !vmm;
}

/* One id of the VMs' block for a user's, all of the next block for root's */
static bool share_valid(const ShareRequest *s) {
        if (s->readonly > 1 || s->reserved != 0)
                return false;
        if (s->count == SHARE_IDS)
                return s->base == VM_IDS_BASE + SHARE_IDS && s->uid == 0 && s->gid == 0;
        return s->count == 1 && id_valid(s->base, false) && s->uid != 0 &&
                s->uid != (uint32_t) -1 && s->gid != (uint32_t) -1;
}

static bool network_valid(const NetworkRequest *n) {
        return n->id > NETWORK_IDS_BASE && n->id < NETWORK_IDS_BASE + SHARE_IDS && n->low_ports <= 1 && n->reserved == 0 &&
               (n->resolver == 0 || ntohl(n->resolver) >> 24 == 127);
}

/* How each fd of a VMM is shown, and nothing behind them; others' are not. */
static bool vmm_valid(const VMMRequest *v, size_t n_fds, bool vmm) {
        static const char letters[] = { EXEC_SHOWN_NOT, EXEC_SHOWN_COPY, EXEC_SHOWN_READ, EXEC_SHOWN_WRITE, EXEC_SHOWN_DIRECTORY };

        if (n_fds > VMM_FDS_MAX || (v->rights & ~(uint32_t) _EXEC_RIGHTS_ALL) || v->reserved[0] || v->reserved[1] || v->reserved[2])
                return false;
        for (size_t i = 0; i < VMM_FDS_MAX; i++)
                if (!vmm || i >= n_fds ? v->shown[i] != 0 : !memchr(letters, v->shown[i], sizeof(letters)))
                        return false;
        if (!vmm)
                return v->id == 0 && v->rights == 0;
        return id_valid(v->id, true);
}

static bool argv_valid(const char *argv, size_t size) {
        size_t n = 0;

        if (size == 0 || !argv[0] || argv[size - 1])
                return false;
        for (size_t i = 0; i < size; i++)
                n += !argv[i];
        return n <= ARGUMENTS_MAX;
}

int start_validate(const Request *r) {
        static const ShareRequest no_share;
        static const NetworkRequest no_network;
        const StartRequest *q = (const StartRequest *) r->header;
        bool share, network;

        if (r->size < sizeof(*q) || q->argv_size != r->size - sizeof(*q) || q->program >= _PROGRAM_MAX || q->kind >= _START_KIND_MAX ||
            q->console_log_max < CONSOLE_LOG_SIZE_MIN || q->console_log_max > CONSOLE_LOG_SIZE_MAX)
                return -EINVAL;
        share = q->kind == START_SHARE;
        network = q->kind == START_NETWORK;
        if (share != (q->program == PROGRAM_VIRTIOFSD) || network != (q->program == PROGRAM_PASST) ||
            (share ? !share_valid(&q->share) : memcmp(&q->share, &no_share, sizeof(no_share)) != 0) ||
            (network ? !network_valid(&q->network) : memcmp(&q->network, &no_network, sizeof(no_network)) != 0))
                return -EINVAL;
        return argv_valid(q->argv, q->argv_size) && vmm_valid(&q->vmm, q->n_fds, !share && !network) &&
                fds_valid(r, q->n_fds, q->kind, q->vmm.shown) ? 0 : -EINVAL;
}

static bool oom_score;

int start_prepare(void) {
        int r;

        r = oom_score_adjusted();
        oom_score = r != 0;
        return r < 0 ? r : no_memory_in_core_dumps();
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

/* Whose uid a program has on the host */
static uint32_t id_of(const StartRequest *q) {
        return q->kind == START_SHARE ? q->share.base : q->kind == START_NETWORK ? q->network.id : q->vmm.id;
}

static _Noreturn void run_helper(const char *exec_path, const char *program, const StartRequest *q, const int *fds, size_t n) {
        static const char *const kinds[] = { [START_PIPES] = "pipes", [START_TTY] = "tty", [START_SHARE] = "share",
                                             [START_NETWORK] = "network" };
        char log_max[24], shown[VMM_FDS_MAX + 1] = {}, id[12], rights[12], resolver[12];
        char *argv[] = { (char *) "vmunit-exec", (char *) program, log_max, shown, (char *) kinds[q->kind], id,
                         q->kind != START_NETWORK ? rights : (char *) (q->network.low_ports ? "low-ports" : "-"),
                         q->kind == START_NETWORK ? resolver : NULL, NULL };
        char *env[] = { (char *) "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", NULL };
        int null, r;

        (void) snprintf(log_max, sizeof(log_max), "%" PRIu64, q->console_log_max);
        memcpy(shown, q->vmm.shown, VMM_FDS_MAX);
        if (n_of_helper(q) > 0)
                memset(shown, EXEC_SHOWN_NOT, q->n_fds - n_of_helper(q));
        (void) snprintf(id, sizeof(id), "%" PRIu32, id_of(q));
        (void) snprintf(rights, sizeof(rights), "%" PRIu32, q->vmm.rights);
        (void) snprintf(resolver, sizeof(resolver), "%" PRIu32, q->network.resolver);

        reset_process(oom_score);
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

/* In the order of EXEC_FD_*; made: those of them that are not the request's */
typedef struct HelperFds {
        int fds[2 * SCM_FDS_MAX], made[SCM_FDS_MAX + 3];
        size_t n, n_made;
} HelperFds;

static void helper_fds_done(HelperFds *h) {
        close_many(h->made, h->n_made);
}

static void add_made(HelperFds *h, int fd) {
        h->fds[h->n++] = h->made[h->n_made++] = fd;
}

static int add_share(HelperFds *h, const StartRequest *q, int dir_fd) {
        int tree, userns, r;

        r = share_open(dir_fd, &q->share, &tree, &userns);
        if (r < 0)
                return r;
        add_made(h, tree);
        add_made(h, userns);
        return 0;
}

static int add_shown(HelperFds *h, const Request *r, uint32_t *ret_which) {
        const StartRequest *q = (const StartRequest *) r->header;
        int shown[VMM_FDS_MAX], k;
        size_t n;

        k = show_open(&q->vmm, r->root, r->fds + _HELPER_FD_MAX, q->n_fds, shown, &n, ret_which);
        for (size_t i = 0; k >= 0 && i < n; i++)
                add_made(h, shown[i]);
        return k;
}

static int gather_fds(HelperFds *h, const Request *r, uint32_t *ret_which) {
        const StartRequest *q = (const StartRequest *) r->header;
        size_t first = _HELPER_FD_MAX;
        int fd, k = 0;

        memcpy(h->fds, r->fds, _HELPER_FD_MAX * sizeof(int));
        h->n = _HELPER_FD_MAX;
        fd = memfd_new("argv", q->argv, q->argv_size);
        if (fd < 0)
                return fd;
        add_made(h, fd);
        if (q->kind == START_SHARE)
                k = add_share(h, q, r->fds[first++]);
        for (; k >= 0 && first < r->n_fds; first++)
                h->fds[h->n++] = r->fds[first];
        return k >= 0 && n_of_helper(q) == 0 ? add_shown(h, r, ret_which) : k;
}

static int start_helper(const Request *r, const Config *config, const char *exec_path, pid_t *ret_pid, uint32_t *ret_which) {
        const StartRequest *q = (const StartRequest *) r->header;
        _cleanup_(helper_fds_done) HelperFds h = {};
        char program[PATH_MAX];
        struct stat st;
        pid_t pid;
        int k;

        k = start_validate(r);
        if (k >= 0)
                k = program_find(config, q->program, program, &st);
        if (k >= 0)
                k = gather_fds(&h, r, ret_which);
        if (k < 0)
                return k;

        pid = vfork(); /* it changes nothing of ours on its way to execve(2) */
        if (pid < 0)
                return -errno;
        if (pid == 0)
                run_helper(exec_path, program, q, h.fds, h.n);
        *ret_pid = pid;
        return pidfd_open_pid(pid);
}

pid_t start_run(int sock, const Request *r, const Config *config, const char *exec_path) {
        StartReply reply = { .header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_START, .size = sizeof(reply) } };
        _cleanup_close_ int pidfd = -EBADF;
        pid_t pid = 0;
        int k;

        pidfd = start_helper(r, config, exec_path, &pid, &reply.fd);
        reply.error = MIN(pidfd, 0);
        reply.pid = pidfd < 0 ? 0 : pid;
        k = send_with_fds(sock, &reply, sizeof(reply), &pidfd, pidfd >= 0);

        /* Nobody knows of it: it must not stay. */
        if (pid > 0 && (k < 0 || pidfd < 0))
                (void) kill(pid, SIGKILL);
        return pid > 0 ? pid : reply.error;
}
