/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The VMM's parent in its scope. It waits for the daemon's word to fork and to execute, then holds the console, and writes
 * the VMM's exit status. It lives as long as the VMM; the VMM dies with it. */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

#include "basic/cap-util.h"
#include "basic/fd-util.h"
#include "basic/pidfd-util.h"
#include "basic/process-util.h"
#include "exec/console.h"
#include "exec/walls.h"

typedef struct Vmm {
        char *program;
        char **argv;
        const char *shown;      /* ExecShown of each of its own fds, */
        int n_fds, first_fd;    /* as they came, */
        int end_fd;             /* and the end of all that came */
        bool tty;
        int standard_input;     /* not the console, but this; or -EBADF */
        int in, out, err;       /* its ends of the pipes, or of the terminal */
        int sync;               /* the child's end: `go` comes in, an error goes out, execve(2) closes it */
        int life;               /* becomes EXEC_FD_LIFE */
} Vmm;

static Walls walls = { .sockets = -EBADF, .tree = -EBADF, .userns = -EBADF };

static void say(uint32_t type, pid_t pid, int error, const char *stage, int pidfd) {
        ExecEvent ev = { .type = type, .pid = pid, .error = error };

        (void) snprintf(ev.stage, sizeof(ev.stage), "%s", stage);
        (void) send_with_fds(EXEC_FD_CONTROL, &ev, sizeof(ev), &pidfd, pidfd >= 0);
}

static _Noreturn void fail(int error, const char *stage) {
        say(EXEC_FAILED, 0, error, stage, -EBADF);
        _exit(EXIT_FAILURE);
}

/* Anything but the word that is due, end of file above all, ends us, and by PR_SET_PDEATHSIG the child. */
static void wait_for(char word) {
        char got[2];
        ssize_t n;

        do
                n = recv(EXEC_FD_CONTROL, got, sizeof(got), 0);
        while (n < 0 && errno == EINTR);
        if (n != 1 || got[0] != word)
                _exit(EXIT_FAILURE);
}

static char **read_argv(void) {
        char *text, *end, **argv;
        struct stat st;
        size_t n = 0;

        if (fstat(EXEC_FD_ARGV, &st) < 0 || st.st_size <= 0)
                return NULL;
        text = mmap(NULL, (size_t) st.st_size, PROT_READ, MAP_PRIVATE, EXEC_FD_ARGV, 0);
        if (text == MAP_FAILED)
                return NULL;
        end = text + st.st_size;
        if (end[-1])
                return NULL;

        for (char *p = text; p < end; p += strlen(p) + 1)
                n++;
        argv = new0(char *, n + 1);
        n = 0;
        for (char *p = text; argv && p < end; p += strlen(p) + 1)
                argv[n++] = p;
        return argv;
}

/* 0-2 are the pipes, 3… the VMM's own, but for directories, which it knows by their names alone; the one after them is `sync`; nothing else
 * stays but EXEC_FD_LIFE, unless the limit of fds is too low for that. */
static int arrange_fds(Vmm *v) {
        int end = 3 + v->n_fds, sync;

        sync = fcntl(v->sync, F_DUPFD_CLOEXEC, v->first_fd + v->n_fds);
        if (sync < 0 || dup2(v->in, 0) < 0 || dup2(v->out, 1) < 0 || dup2(v->err, 2) < 0)
                return -errno;
        for (int i = 0; i < v->n_fds; i++)
                if (v->shown[i] == EXEC_SHOWN_DIRECTORY)
                        safe_close(3 + i);
                else if (dup2(v->first_fd + i, 3 + i) < 0)
                        return -errno;
        if (dup3(sync, end, O_CLOEXEC) < 0)
                return -errno;
        v->sync = end;
        (void) dup2(v->life, EXEC_FD_LIFE);
        return close_range((unsigned) end + 1, EXEC_FD_LIFE - 1, 0) < 0 || close_range(EXEC_FD_LIFE + 1, ~0U, 0) < 0 ? -errno : 0;
}

/* Told to go by a parent that lives still */
static bool may_go(int sync) {
        char go;

        return recv(sync, &go, 1, 0) == 1 && recv(sync, &go, 1, MSG_DONTWAIT) < 0;
}

static _Noreturn void run_vmm(Vmm *v) {
        struct { int32_t error; char stage[28]; } bad = {};
        const char *what;

        bad.error = walls_enter(&walls, &what);
        if (bad.error == 0) {
                what = "fds";
                bad.error = arrange_fds(v);
        }
        if (bad.error == 0) {
                reset_signals();
                (void) setsid();
                (void) ioctl(STDIN_FILENO, TIOCSCTTY, 0); /* else Cloud Hypervisor before v42 fails at its guest's second boot */
                /* Last, for a change of ids or capabilities would undo it. */
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
                if (!may_go(v->sync))
                        _exit(EXIT_FAILURE);

                execv(v->program, v->argv);
                bad.error = -errno;
                what = "execve";
        }
        (void) snprintf(bad.stage, sizeof(bad.stage), "%s", what);
        (void) send(v->sync, &bad, sizeof(bad), MSG_NOSIGNAL);
        _exit(127);
}

/* ours: which end is kept, non-blocking for this process alone */
static int make_pipe(int *ret_ours, int *ret_theirs, int ours) {
        int p[2];

        if (pipe2(p, O_CLOEXEC) < 0 || fcntl(p[ours], F_SETFL, O_NONBLOCK) < 0)
                return -errno;
        *ret_ours = p[ours];
        *ret_theirs = p[!ours];
        return 0;
}

/* For a VMM that reads its console from nothing but a terminal: raw, so it sends no signals. Our end is non-blocking. */
static int make_tty(Console *c, Vmm *v) {
        struct termios raw;

        c->out = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
        if (c->out < 0 || unlockpt(c->out) < 0)
                return -errno;
        v->in = ioctl(c->out, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (v->in < 0 || tcgetattr(v->in, &raw) < 0)
                return -errno;
        cfmakeraw(&raw);
        if (tcsetattr(v->in, TCSANOW, &raw) < 0)
                return -errno;
        v->out = fcntl(v->in, F_DUPFD_CLOEXEC, 3);
        c->in = fcntl(c->out, F_DUPFD_CLOEXEC, 3);
        return v->out < 0 || c->in < 0 ? -errno : 0;
}

/* Standard error has a name for a VMM that wants one. */
static int make_stderr(Console *c, Vmm *v) {
        if (walls.is_share || walls.network)
                return make_pipe(&c->err, &v->err, 0);
        c->err = open(EXEC_STDERR, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        v->err = c->err < 0 ? -EBADF : open(EXEC_STDERR, O_WRONLY | O_CLOEXEC);
        return v->err < 0 ? -errno : 0;
}

static int make_pipes(Console *c, Vmm *v) {
        int r;

        r = make_pipe(&c->in, &v->in, 1);
        return r < 0 ? r : make_pipe(&c->out, &v->out, 0);
}

static pid_t fork_vmm(Vmm *v, Console *c, int *ret_sync, int *ret_pidfd) {
        int sync[2], r;
        pid_t pid;

        r = make_stderr(c, v);
        if (r >= 0)
                r = make_pipe(&c->life, &v->life, 0);
        if (r < 0)
                fail(r, "pipe");
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync) < 0)
                fail(-errno, "socketpair");

        if (v->standard_input >= 0) {
                safe_close(v->in);
                v->in = v->standard_input;
        }
        v->sync = sync[1];
        pid = walls_fork();
        if (pid < 0)
                fail(-errno, "a PID namespace");
        if (pid == 0)
                run_vmm(v);

        *ret_pidfd = pidfd_open_pid(pid);
        if (*ret_pidfd < 0)
                fail(*ret_pidfd, "pidfd_open");
        close_many((int[]) { v->in, v->out, v->err, v->sync, v->life, EXEC_FD_ARGV }, 6);
        for (int fd = EXEC_FD_VMM; fd < v->end_fd; fd++) /* that of a node stays: another device could get its number, while the VMM lives */
                if (fd < walls.first_shown || (fcntl(fd, F_GETFL) & O_PATH))
                        safe_close(fd);
        *ret_sync = sync[0];
        return pid;
}

static void execute(pid_t pid, int sync) {
        struct { int32_t error; char stage[28]; } bad;
        ssize_t n;

        if (send(sync, "g", 1, MSG_NOSIGNAL) < 0)
                fail(-ECHILD, "go");
        do
                n = recv(sync, &bad, sizeof(bad), 0);
        while (n < 0 && errno == EINTR);
        if (n == sizeof(bad)) {
                bad.stage[sizeof(bad.stage) - 1] = 0;
                fail(bad.error, bad.stage);
        }
        safe_close(sync);
        say(EXEC_DONE, pid, 0, "", -EBADF);
        safe_close(EXEC_FD_CONTROL);
}

/* From here on nothing here is worth a right. It has the child's uid, or the kernel would not kill that when this process ends; the child,
 * whose PID namespace it is not in, does not reach here. */
static int drop_rights(void) {
        int r;

        r = become_id(walls.id);
        if (r >= 0 && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
                r = -errno;
        return r < 0 ? r : cap_set(0);
}

static void write_exit(pid_t pid) {
        ExitRecord record = { .magic = EXIT_RECORD_MAGIC };

        while (waitpid(pid, &record.status, 0) < 0)
                if (errno != EINTR)
                        return;
        (void) loop_write(EXEC_FD_EXIT, &record, sizeof(record));
}

static size_t count_shown(const char *shown) {
        size_t n = 0;

        for (; *shown; shown++)
                n += *shown != EXEC_SHOWN_NOT;
        return n;
}

/* A virtiofsd's fds begin with its share and the user namespace that it is root of; after a VMM's come those that are shown to it. */
static void find_fds(Vmm *v, bool share) {
        v->first_fd = EXEC_FD_VMM + (share || walls.network ? 2 : 0);
        walls.first_shown = v->first_fd + v->n_fds;
        v->end_fd = walls.first_shown + (int) count_shown(v->shown);
        walls.is_share = share;
        walls.tree = EXEC_FD_VMM;
        walls.target = EXEC_SHARE;
        walls.userns = EXEC_FD_VMM + 1;
}

/* Those of a passt with its /etc/resolv.conf and its standard input */
static WallsNetwork network_walls = { .resolv_conf = EXEC_FD_VMM };

static void read_network(Vmm *v, char *const *args) {
        network_walls.low_ports = strcmp(args[0], "low-ports") == 0;
        network_walls.resolver = (uint32_t) strtoul(args[1], NULL, 10);
        walls.network = &network_walls;
        v->standard_input = EXEC_FD_VMM + 1;
}

int main(int argc, char *argv[]) {
        static Console c;
        const char *what;
        int sync, pidfd, r;
        pid_t pid;
        Vmm v;

        if (argc != 7 && argc != 8)
                return EXIT_FAILURE;
        v = (Vmm) { .program = argv[1], .shown = argv[3], .n_fds = (int) strlen(argv[3]), .argv = read_argv(), .standard_input = -EBADF };
        v.tty = strcmp(argv[4], "tty") == 0;
        walls.program = v.program;
        walls.shown = v.shown;
        walls.id = (uint32_t) strtoul(argv[5], NULL, 10);
        if (argc == 8)
                read_network(&v, argv + 6);
        else
                walls.rights = (uint32_t) strtoul(argv[6], NULL, 10);
        find_fds(&v, strcmp(argv[4], "share") == 0);
        if (!v.argv)
                fail(-EINVAL, "argv");

        /* The end of the VMM is the end of this process, not a signal to the whole scope. */
        for (const int *s = (const int[]) { SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE, 0 }; *s; s++)
                (void) signal(*s, SIG_IGN);
        c.listener = EXEC_FD_EXEC;
        ring_init(&c.log, EXEC_FD_CONSOLE_LOG, strtoull(argv[2], NULL, 10));
        ring_init(&c.last_output, EXEC_FD_LAST_OUTPUT, LAST_OUTPUT_MAX);

        r = v.tty ? make_tty(&c, &v) : make_pipes(&c, &v); /* of the host's terminals */
        if (r < 0)
                fail(r, v.tty ? "terminal" : "pipe");
        r = walls_build(&walls, &what); /* while PID 1 makes the scope */
        if (r < 0)
                fail(r, what);
        c.sockets = walls.sockets;
        wait_for(EXEC_FORK);
        pid = fork_vmm(&v, &c, &sync, &pidfd);
        say(EXEC_FORKED, pid, 0, "", pidfd);
        wait_for(EXEC_GO);

        r = drop_rights();
        if (r < 0)
                fail(r, "drop rights");

        execute(pid, sync);
        console_run(&c, pidfd);
        write_exit(pid);
        _exit(EXIT_SUCCESS);
}
