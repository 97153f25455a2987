/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Opens files and makes processes for a daemon that may do neither. One request a connection; no state but the connections
 * and the children, each of which may be lost at any time: a helper lives by its control socket, not by this. */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

#include "basic/fd-util.h"
#include "basic/log.h"
#include "basic/process-util.h"
#include "basic/string-util.h"
#include "launch/launch.h"

#define LISTEN_FD 3 /* the first that PID 1 passes on, see sd_listen_fds(3) */
#define CONNECTIONS_MAX 1024U
#define OPENS_MAX 4U    /* files of an owner that are opened at a time, or hang for good: what hangs in a file system can't be killed */
#define SLOW_SEC 1      /* … which shows so long after their client has left */
#define WAITING_MAX 128U /* of an owner, behind some that may hang */
#define TICK_MSEC 200   /* while some wait */
#define OPEN_SEC 20     /* what an open may take at most; who asks waits for less */

typedef struct Connection {
        struct Connection *next;
        int fd;                 /* -EBADF: closed, the child is still to be reaped */
        size_t slot;            /* where it is polled; 0: nowhere */
        uint32_t type;          /* 0: no request yet */
        bool waits;             /* its request stays in the socket until its owner's turn has come */
        uid_t uid;              /* of OPEN */
        pid_t child;
        time_t since;           /* CLOCK_MONOTONIC: the request, or when the client has left */
} Connection;

typedef struct Launcher {
        int signals;
        bool resting;           /* accept() failed for lack of something: pause */
        time_t looked;          /* when those who wait were last looked at */
        size_t n_open;
        Connection *connections;
        Config *config;
        const char *root, *exec_path;
} Launcher;

static time_t now_sec(void) {
        struct timespec ts;

        return clock_gettime(CLOCK_MONOTONIC, &ts) < 0 ? 0 : ts.tv_sec;
}

static void connection_close(Launcher *l, Connection *c) {
        if (c->fd >= 0) {
                l->n_open--;
                c->since = now_sec();
        }
        c->fd = safe_close(c->fd);
}

/* An open of this owner has ended: the one who waits longest is next. */
static void wake_next(Launcher *l, uid_t uid) {
        Connection *last = NULL;

        for (Connection *c = l->connections; c; c = c->next)
                if (c->waits && c->uid == uid)
                        last = c;
        if (last)
                last->waits = false;
}

static void connection_free(Launcher *l, Connection *c) {
        Connection **p = &l->connections;

        while (*p != c)
                p = &(*p)->next;
        *p = c->next;
        if (c->type == LAUNCH_OPEN)
                wake_next(l, c->uid);
        connection_close(l, c);
        free(c);
}

/* A helper's pid stays taken until the daemon has closed the connection: it gives the number to PID 1. */
static bool connection_reap(Launcher *l, Connection *c) {
        if ((c->type == LAUNCH_START && c->fd >= 0) || (c->child > 0 ? waitpid(c->child, NULL, WNOHANG) != c->child : c->fd >= 0))
                return false;
        connection_free(l, c);
        return true;
}

/* The client has left. */
static void connection_hangup(Launcher *l, Connection *c) {
        if (c->child > 0 && c->type != LAUNCH_START && (c->type != LAUNCH_PROBE || kill(-c->child, SIGKILL) < 0))
                (void) kill(c->child, SIGKILL);
        connection_close(l, c);
        (void) connection_reap(l, c);
}

/* A program that is asked for its version may have started others: all of it goes with us. */
static void run_probe(Launcher *l, Request *r) {
        (void) setpgid(0, 0);
        probe_run(3, r, l->config);
        if (getpgrp() == getpid())
                (void) kill(0, SIGKILL);
}

static void run_worker(Launcher *l, Connection *c, Request *r, pid_t parent) {
        int fds[2] = { c->fd, r->n_fds > 0 ? r->fds[0] : -EBADF };

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (getppid() != parent)
                return;
        reset_signals();

        /* Whoever waits for the end of another connection must not wait for this. */
        if (place_fds(fds, r->n_fds > 0 ? 2 : 1) < 0)
                return;
        r->fds = (const int[]) { 4 };
        if (c->type == LAUNCH_OPEN) {
                (void) alarm(OPEN_SEC);
                open_run(3, r);
        } else if (c->type == LAUNCH_PROBE)
                run_probe(l, r);
        else if (c->type == LAUNCH_VSOCK)
                vsock_run(3, r);
        else
                loop_run(3, r);
}

static int fork_worker(Launcher *l, Connection *c, Request *r) {
        pid_t self = getpid(), pid;

        pid = fork();
        if (pid < 0)
                return -errno;
        if (pid == 0) {
                run_worker(l, c, r, self);
                _exit(EXIT_SUCCESS);
        }
        c->child = pid;
        return 0;
}

/* Whether another file of this owner may be opened: -EAGAIN later, -EBUSY not at all. Not more than OPENS_MAX of its opens are ever
 * under way, so not more can be left behind. */
static int may_open(Launcher *l, uid_t uid) {
        size_t running = 0, slow = 0, hung = 0, waiting = 0;
        time_t now = now_sec();

        for (Connection *c = l->connections; c; c = c->next) {
                bool runs = c->type == LAUNCH_OPEN && c->child > 0 && c->uid == uid, is_slow = runs && now - c->since > SLOW_SEC;

                running += runs;
                slow += is_slow;
                hung += is_slow && c->fd < 0;
                waiting += c->waits && c->uid == uid;
        }
        if (hung >= OPENS_MAX || (slow >= OPENS_MAX && waiting >= WAITING_MAX))
                return -EBUSY;
        return running >= OPENS_MAX ? -EAGAIN : 0;
}

/* What the request that comes next needs to begin: 0, or as above. */
static int ask_turn(Launcher *l, Connection *c) {
        OpenRequest q;

        if (recv(c->fd, &q, sizeof(q), MSG_PEEK | MSG_DONTWAIT) != sizeof(q) || q.header.type != LAUNCH_OPEN)
                return 0;
        c->uid = q.uid;
        return may_open(l, c->uid);
}

static int dispatch(Launcher *l, Connection *c, Request *r) {
        const LaunchHeader *h = r->header;
        pid_t pid;

        if (r->size < sizeof(*h) || h->magic != LAUNCH_MAGIC || h->size != r->size || h->reserved != 0)
                return -EBADMSG;

        c->type = h->type;
        c->since = now_sec();
        switch (h->type) {
        case LAUNCH_PROBE:
                if (probe_waits(r))
                        return fork_worker(l, c, r);
                probe_run(c->fd, r, l->config);
                return 0;
        case LAUNCH_OPEN:
        case LAUNCH_VSOCK:
        case LAUNCH_LOOP:
                return fork_worker(l, c, r);
        case LAUNCH_START:
                pid = start_run(c->fd, r, l->config, l->exec_path);
                c->child = MAX(pid, 0);
                return MIN(pid, 0);
        default:
                return -EBADMSG;
        }
}

static void connection_request(Launcher *l, Connection *c) {
        static _Alignas(8) char buffer[LAUNCH_MESSAGE_MAX];
        int fds[SCM_FDS_MAX], r, turn = ask_turn(l, c);
        size_t n_fds = SCM_FDS_MAX;
        ssize_t n;

        c->waits = turn == -EAGAIN;
        if (c->waits)
                return;
        n = recv_with_fds(c->fd, buffer, sizeof(buffer), fds, &n_fds);
        if (n == -EAGAIN)
                return;
        if (n <= 0)
                r = (int) n;
        else {
                Request q = { .header = (LaunchHeader *) buffer, .size = (size_t) n, .fds = fds, .n_fds = n_fds, .refused = turn, .root = l->root };
                r = dispatch(l, c, &q);
                close_many(fds, n_fds);
        }

        if (r == -EBADMSG || r == -EMSGSIZE)
                log_warning_errno(r, "Refused a request that is not of the protocol");
        if (r < 0 || n == 0)
                connection_hangup(l, c);
}

static void accept_connection(Launcher *l) {
        _cleanup_close_ int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct ucred cred;
        socklen_t size = sizeof(cred);
        Connection *c;

        if (fd < 0) {
                l->resting = errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;
                return;
        }
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0 || cred.uid != 0) {
                log_warning("Refused a client that is not root");
                return;
        }
        c = new(Connection, 1);
        if (!c)
                return;
        *c = (Connection) { .next = l->connections, .fd = TAKE_FD(fd) };
        l->connections = c;
        l->n_open++;
}

/* The kernel names who has ended, for there may be a thousand helpers; but one whose pid is kept it names for ever. */
static void reap_children(Launcher *l) {
        struct signalfd_siginfo si;
        Connection *c, *next;
        siginfo_t ended;

        while (read(l->signals, &si, sizeof(si)) > 0)
                ;
        do {
                ended.si_pid = 0;
                (void) waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT);
                for (c = l->connections; c && c->child != ended.si_pid;)
                        c = c->next;
        } while (ended.si_pid > 0 && c && connection_reap(l, c));
        for (c = ended.si_pid > 0 ? l->connections : NULL; c; c = next) {
                next = c->next;
                (void) connection_reap(l, c);
        }
}

/* By now it may be that the turn of those who wait will not come. */
static void look_again(Launcher *l) {
        time_t now = now_sec();

        for (Connection *c = now == l->looked ? NULL : l->connections; c; c = c->next)
                c->waits = false;
        l->looked = now;
}

enum { POLL_SIGNALS, POLL_LISTENER, POLL_CONNECTIONS };

static void run_once(Launcher *l) {
        static struct pollfd p[POLL_CONNECTIONS + CONNECTIONS_MAX];
        bool deaf = l->resting || l->n_open >= CONNECTIONS_MAX, waiting = false;
        size_t n = POLL_CONNECTIONS;

        p[POLL_SIGNALS] = (struct pollfd) { .fd = l->signals, .events = POLLIN };
        p[POLL_LISTENER] = (struct pollfd) { .fd = deaf ? -1 : LISTEN_FD, .events = POLLIN };
        for (Connection *c = l->connections; c; c = c->next) {
                c->slot = c->fd < 0 ? 0 : n++;
                if (c->slot > 0)
                        p[c->slot] = (struct pollfd) { .fd = c->fd, .events = c->waits ? 0 : POLLIN };
                waiting |= c->waits;
        }

        if (poll(p, n, l->resting || waiting ? TICK_MSEC : -1) < 0)
                return;
        l->resting = false;

        for (Connection *c = l->connections, *next; c; c = next) {
                next = c->next;
                if (c->slot == 0 || !p[c->slot].revents)
                        continue;
                if (c->type == 0 && !c->waits)
                        connection_request(l, c);
                else
                        connection_hangup(l, c);
        }
        if (p[POLL_SIGNALS].revents)
                reap_children(l);
        if (p[POLL_LISTENER].revents)
                accept_connection(l);
        if (waiting)
                look_again(l);
}

/* As sd_listen_fds(3) finds it out: what has root's rights does without libsystemd and all the libraries that this brings, which each fork
 * would have to take along. */
static bool is_socket_activated(void) {
        const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");

        return pid && n && strtoul(pid, NULL, 10) == (unsigned long) getpid() && streq(n, "1") &&
               fd_is_unix_socket(LISTEN_FD, SOCK_SEQPACKET, true) && fcntl(LISTEN_FD, F_SETFD, FD_CLOEXEC) >= 0 &&
               fcntl(LISTEN_FD, F_SETFL, O_NONBLOCK) >= 0;
}

static int prepare(Launcher *l) {
        sigset_t mask;
        int r;

        if (!is_socket_activated())
                return log_error_errno(-EINVAL, "Needs to be started by vmunit-launch.socket");
        r = config_load(l->root, &l->config);
        if (r < 0)
                return log_error_errno(r, "Cannot read the configuration");
        log_set_max_level(l->config->log_level);

        r = start_prepare();
        if (r < 0)
                return log_error_errno(r, "Cannot prepare for helpers");
        sigemptyset(&mask);
        sigaddset(&mask, SIGCHLD);
        (void) sigprocmask(SIG_BLOCK, &mask, NULL);
        l->signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
        return l->signals < 0 ? log_error_errno(-errno, "Cannot watch signals") : 0;
}

/* For tests: where to look for the configuration, and the helper */
int main(int argc, char *argv[]) {
        Launcher l = {
                .root = argc == 3 ? argv[1] : NULL,
                .exec_path = argc == 3 ? argv[2] : LIBEXECDIR "/vmunit-exec",
        };

        log_init(NULL);
        if (prepare(&l) < 0)
                return EXIT_FAILURE;
        for (;;)
                run_once(&l);
}
