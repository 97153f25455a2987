/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <netinet/in.h>
#include <sys/un.h>

#include "fake-vmm.h"
#include "launch-bed.h"

#define LOG_MAX (64U * 1024U)
#define ID (VM_IDS_BASE + 14)

typedef struct Vm {
        LaunchCall *call;
        Helper *helper;
        int fds[_HELPER_FD_MAX];
        int started, start_error, pidfd;
        pid_t pid;
        int forked, ended, failed, event_error; /* counts, but for event_error */
        ExecEvent event;
        int vmm_pidfd;
        pid_t vmm_pid;
        StartKind kind;
        ShareRequest share;
        VMMRequest vmm;
        uint32_t which;
} Vm;

static void on_start(void *userdata, int error, pid_t pid, int pidfd, uint32_t which) {
        Vm *vm = userdata;

        vm->started++;
        vm->start_error = error;
        vm->which = which;
        vm->pid = pid;
        vm->pidfd = pidfd;
}

static void on_event(void *userdata, const ExecEvent *ev, int pidfd, int error) {
        Vm *vm = userdata;

        if (!ev) {
                vm->failed++;
                vm->event_error = error;
                return;
        }
        vm->event = *ev;
        if (ev->type == EXEC_FORKED) {
                vm->forked++;
                vm->vmm_pidfd = pidfd;
                vm->vmm_pid = ev->pid;
        } else
                vm->ended++;
}

static void vm_prepare(Vm *vm) {
        *vm = (Vm) { .pidfd = -EBADF, .vmm_pidfd = -EBADF, .vmm.id = ID };
        must(helper_new(loop, on_event, vm, &vm->helper, &vm->fds[HELPER_FD_CONTROL]) == 0);
        vm->fds[HELPER_FD_EXEC] = unix_listen(bed_path("exec"), SOCK_SEQPACKET);
        vm->fds[HELPER_FD_EXIT] = create_fresh(bed_path("exit"));
        vm->fds[HELPER_FD_CONSOLE_LOG] = create_fresh(bed_path("console.log"));
        vm->fds[HELPER_FD_LAST_OUTPUT] = create_fresh(bed_path("last-output"));
        for (size_t i = 0; i < _HELPER_FD_MAX; i++)
                must(vm->fds[i] >= 0);
}

static int vm_launch(Vm *vm, Program program, char *const *argv, const int *fds, size_t n_fds) {
        StartParams p = {
                .program = program,
                .kind = vm->kind,
                .argv = argv,
                .fds = fds,
                .n_fds = n_fds,
                .console_log_max = LOG_MAX,
                .share = vm->share,
        };
        int r;

        if (vm->kind != START_SHARE)
                p.vmm = vm->vmm;
        for (size_t i = 0; i < n_fds && vm->kind != START_SHARE; i++)
                p.vmm.shown[i] = p.vmm.shown[i] ?: EXEC_SHOWN_NOT;
        memcpy(p.helper_fds, vm->fds, sizeof(p.helper_fds));
        r = launch_start(loop, &p, PATIENCE, on_start, vm, &vm->call);
        close_many(vm->fds, _HELPER_FD_MAX);
        if (r < 0)
                return r;
        run_until(&vm->started, 1);
        return vm->start_error;
}

static void vm_fork(Vm *vm) {
        must(helper_fork(vm->helper) == 0);
        while (vm->forked + vm->ended == 0)
                must(sd_event_run(loop, PATIENCE) > 0);
        if (vm->ended > 0)
                printf("# %s: %s\n", vm->event.stage, strerror(-vm->event.error));
        must(vm->forked == 1);
}

static void vm_go(Vm *vm) {
        must(helper_go(vm->helper) == 0);
        run_until(&vm->ended, 1);
}

#define ARGV(...) ((char *[]) { (char *) "fake", __VA_ARGS__, NULL })

static void vm_run(Vm *vm, char *const *argv, const int *fds, size_t n_fds) {
        vm_prepare(vm);
        must(vm_launch(vm, PROGRAM_QEMU, argv, fds, n_fds) == 0);
        vm_fork(vm);
        vm_go(vm);
        if (vm->event.type != EXEC_DONE)
                printf("# %s: %s\n", vm->event.stage, strerror(-vm->event.error));
        must(vm->event.type == EXEC_DONE);
}

/* Whatever still runs is killed, the VMM by the death of its parent. */
static void vm_free(Vm *vm) {
        vm->helper = helper_free(vm->helper);
        if (vm->pidfd >= 0) {
                (void) pidfd_kill(vm->pidfd, SIGKILL);
                ok(dies(vm->pidfd), "the helper has ended");
        }
        if (vm->vmm_pidfd >= 0)
                ok(dies(vm->vmm_pidfd), "the VMM has ended");
        vm->call = launch_call_free(vm->call);
        safe_close(vm->pidfd);
        safe_close(vm->vmm_pidfd);
        close_many(vm->fds, _HELPER_FD_MAX);
}

static bool log_is(const char *file, const char *want) {
        char *text;
        size_t n;
        bool is;

        must(ring_read(bed_path(file), LOG_MAX, &text, &n) == 0);
        is = n == strlen(want) && memcmp(text, want, n) == 0;
        free(text);
        return is;
}

static bool status_has(pid_t pid, const char *line) {
        char path[64], *text = NULL;
        bool has;

        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
        has = read_file_all(path, 64 * 1024, &text, NULL) == 0 && strstr(text, line);
        free(text);
        return has;
}

static void test_order(void) {
        int status;
        Vm vm;

        vm_prepare(&vm);
        is_int(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "exit", (char *) "3"), NULL, 0), 0, "start");
        check(vm.pid > 1 && vm.pidfd >= 0 && vm.forked == 0);
        vm_fork(&vm);
        check(vm.vmm_pid > 1 && !pidfd_dead(vm.vmm_pidfd));
        is_int(helper_read_exit(bed_path("exit"), &status), -ENODATA, "no status so far");
        vm_go(&vm);
        is_int(vm.event.type, EXEC_DONE, "executed");
        ok(dies(vm.pidfd), "the helper ends after the VMM");
        is_int(helper_read_exit(bed_path("exit"), &status), 0, "it has left a status");
        ok(WIFEXITED(status) && WEXITSTATUS(status) == 3, "exit 3");
        ok(kill(vm.pid, 0) == 0, "not reaped while the connection is open");
        vm.call = launch_call_free(vm.call);
        ok(eventually(kill(vm.pid, 0) < 0), "reaped when it is closed");
        is_int(vm.failed, 0, "no word after the last");
        vm_free(&vm);
}

/* One that is dead and must stay, since its connection is open, hides nobody else's end. */
static void test_reaped_beside_another(void) {
        Vm dead, vm;

        vm_run(&dead, ARGV((char *) "exit"), NULL, 0);
        ok(dies(dead.pidfd), "one helper has ended");
        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        vm.call = launch_call_free(vm.call);
        must(pidfd_kill(vm.vmm_pidfd, SIGKILL) == 0);
        ok(dies(vm.pidfd), "another one ends, whose connection was closed while it ran");
        ok(eventually(kill(vm.pid, 0) < 0), "it is reaped");
        ok(kill(dead.pid, 0) == 0, "the first is not");
        vm_free(&vm);
        vm_free(&dead);
}

/* It is the first of its PID namespace, to which none of its own signals do anything but those of its faults. */
static void test_status(const char *mode, int sig, const char *name) {
        int status;
        Vm vm;

        vm_run(&vm, ARGV((char *) mode), NULL, 0);
        if (sig == SIGKILL)
                must(pidfd_kill(vm.vmm_pidfd, SIGKILL) == 0);
        ok(dies(vm.pidfd), "the helper ends");
        is_int(helper_read_exit(bed_path("exit"), &status), 0, "a status");
        ok(WIFSIGNALED(status) && WTERMSIG(status) == sig, "killed by %s", name);
        vm_free(&vm);
}

static void test_daemon_gone(void) {
        Vm vm;
        int status;

        vm_prepare(&vm);
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "wait"), NULL, 0) == 0);
        vm.helper = helper_free(vm.helper);
        ok(dies(vm.pidfd), "gone before fork: the helper ends");
        vm_free(&vm);

        vm_prepare(&vm);
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "wait"), NULL, 0) == 0);
        vm_fork(&vm);
        vm.helper = helper_free(vm.helper);
        ok(dies(vm.pidfd) && dies(vm.vmm_pidfd), "gone between fork and go: nothing is left");
        ok(log_is("console.log", ""), "nothing was executed");
        is_int(helper_read_exit(bed_path("exit"), &status), -ENODATA, "nothing ended");
        vm_free(&vm);

        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        vm.helper = helper_free(vm.helper);
        vm.call = launch_call_free(vm.call);
        ok(eventually(log_is("console.log", "READY\n")), "gone after go: the console goes on");
        launcher_kill(SIGTERM);
        launcher_start();
        must(pidfd_kill(vm.pidfd, SIGTERM) == 0 && pidfd_kill(vm.pidfd, SIGHUP) == 0);
        must(pidfd_kill(vm.vmm_pidfd, SIGUSR1) == 0);
        ok(eventually(log_is("console.log", "READY\nUSR1\n")), "it lives on without daemon and launcher, after SIGTERM");
        must(pidfd_kill(vm.vmm_pidfd, SIGTERM) == 0 && pidfd_kill(vm.vmm_pidfd, SIGUSR1) == 0);
        ok(eventually(log_is("console.log", "READY\nUSR1\nUSR1\n")), "SIGTERM does nothing to a VMM that does not handle it");
        must(pidfd_kill(vm.vmm_pidfd, SIGKILL) == 0);
        ok(dies(vm.vmm_pidfd) && dies(vm.pidfd), "SIGKILL ends the VMM, and so the helper");
        is_int(helper_read_exit(bed_path("exit"), &status), 0, "which leaves a status");
        vm_free(&vm);
}

static void test_garbage_on_control(void) {
        Vm vm;

        vm_prepare(&vm);
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "wait"), NULL, 0) == 0);
        must(helper_go(vm.helper) == 0);
        run_until(&vm.failed, 1);
        is_int(vm.event_error, -EPIPE, "go before fork: the end");
        ok(dies(vm.pidfd), "of the helper");
        vm_free(&vm);
}

static void test_helper_killed(void) {
        Vm vm;

        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        (void) eventually(log_is("console.log", "READY\n"));
        must(pidfd_kill(vm.pidfd, SIGKILL) == 0);
        ok(dies(vm.vmm_pidfd), "the helper is killed: the VMM dies");
        vm_free(&vm);
}

static void exec_fails(Program program, int want, const char *name) {
        int status;
        Vm vm;

        vm_prepare(&vm);
        must(vm_launch(&vm, program, ARGV((char *) "x"), NULL, 0) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        is_int(vm.event.type, EXEC_FAILED, "%s is told", name);
        is_int(vm.event.error, want, "its errno");
        is_str(vm.event.stage, "execve", "where it happened");
        ok(dies(vm.pidfd) && dies(vm.vmm_pidfd), "nothing is left");
        is_int(helper_read_exit(bed_path("exit"), &status), -ENODATA, "no status");
        vm_free(&vm);
}

static void test_rights(void) {
        Vm vm;

        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        (void) eventually(log_is("console.log", "READY\n"));
        for (const char *const *s = (const char *const[]) { "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
                     "CapBnd:\t0000000000000000\n", "CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
                     "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "SigIgn:\t0000000000000000\n", "SigBlk:\t0000000000000000\n",
                     "Umask:\t0000\n", "Groups:\t \n",
                     "Uid:\t1000013838\t1000013838\t1000013838\t1000013838\nGid:\t1000013838\t1000013838\t1000013838\t1000013838\n",
                     NULL }; *s; s++)
                ok(status_has(vm.vmm_pid, *s), "VMM: %.*s", (int) strcspn(*s, "\n"), *s);
        for (const char *const *s = (const char *const[]) { "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
                     "CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Name:\tvmunit-exec\n", NULL }; *s; s++)
                ok(status_has(vm.pid, *s), "helper: %.*s", (int) strcspn(*s, "\n"), *s);
        ok(getpgid(vm.vmm_pid) == vm.vmm_pid && getsid(vm.vmm_pid) == vm.vmm_pid, "a session of its own");
        vm_free(&vm);
}

static void test_fds(void) {
        int api = unix_listen(bed_path("api"), SOCK_STREAM), file = create_fresh(bed_path("disk"));
        Vm vm;

        vm_run(&vm, ARGV((char *) "fds"), (int[]) { api, file, file }, 3);
        ok(dies(vm.pidfd), "the end");
        ok(log_is("console.log", "0 1 2 3 4 5 1000 end\n"), "just the fds it was given, and that of its life");
        vm_free(&vm);

        vm_run(&vm, ARGV((char *) "fds"), NULL, 0);
        ok(dies(vm.pidfd), "the end");
        ok(log_is("console.log", "0 1 2 1000 end\n"), "and none where none were given");
        vm_free(&vm);
        safe_close(api);
        safe_close(file);
}

static void is_refused(const char *what, size_t which, int fd, const int *vmm, size_t n) {
        Vm vm;

        vm_prepare(&vm);
        if (which < _HELPER_FD_MAX) {
                safe_close(vm.fds[which]);
                vm.fds[which] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        }
        is_int(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "wait"), vmm, n), -EINVAL, "refused: %s", what);
        is_int(vm.pidfd, -EBADF, "no helper");
        vm_free(&vm);
}

static void test_bad_start(void) {
        int pair[2], datagrams, file = create_fresh(bed_path("f")), ro = open(bed_path("f"), O_RDONLY | O_CLOEXEC),
            dir = open(bed, O_RDONLY | O_CLOEXEC), path = open(bed_path("f"), O_PATH | O_CLOEXEC),
            listening = unix_listen(bed_path("s"), SOCK_STREAM), null = open("/dev/null", O_RDWR | O_CLOEXEC),
            append = open(bed_path("f"), O_WRONLY | O_APPEND | O_CLOEXEC);
        Vm vm;

        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        is_refused("control that is a file", HELPER_FD_CONTROL, file, NULL, 0);
        is_refused("control that is a stream", HELPER_FD_CONTROL, pair[0], NULL, 0);
        is_refused("exec that does not listen", HELPER_FD_EXEC, pair[0], NULL, 0);
        is_refused("exec that is a stream", HELPER_FD_EXEC, listening, NULL, 0);
        is_refused("exit to read", HELPER_FD_EXIT, ro, NULL, 0);
        is_refused("exit that is a device", HELPER_FD_EXIT, null, NULL, 0);
        is_refused("a log to read", HELPER_FD_CONSOLE_LOG, ro, NULL, 0);
        is_refused("a log that appends", HELPER_FD_CONSOLE_LOG, append, NULL, 0);
        is_refused("last output that is a directory", HELPER_FD_LAST_OUTPUT, dir, NULL, 0);
        is_refused("a VMM's directory", _HELPER_FD_MAX, -EBADF, &dir, 1);
        is_refused("a VMM's path", _HELPER_FD_MAX, -EBADF, &path, 1);
        is_refused("a VMM's device", _HELPER_FD_MAX, -EBADF, &null, 1);
        datagrams = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        is_refused("a VMM's socket of datagrams", _HELPER_FD_MAX, -EBADF, &datagrams, 1);
        safe_close(datagrams);

        vm_prepare(&vm);
        is_int(vm_launch(&vm, PROGRAM_QEMU, (char *[]) { (char *) "", NULL }, NULL, 0), -EINVAL, "refused: no name");
        vm_free(&vm);
        vm_prepare(&vm);
        is_int(vm_launch(&vm, PROGRAM_QEMU, (char *[]) { NULL }, NULL, 0), -EINVAL, "refused: no arguments");
        vm_free(&vm);
        vm_prepare(&vm);
        is_int(vm_launch(&vm, (Program) 3, ARGV((char *) "x"), NULL, 0), -EINVAL, "refused: no such program");
        vm_free(&vm);
        close_many((int[]) { pair[0], pair[1], file, ro, dir, path, listening, null, append }, 9);
}

/* The datagram itself is wrong. */
static int raw_start(StartRequest *q, size_t size, Vm *vm, size_t n_fds) {
        struct timeval tv = { .tv_sec = 20 };
        struct sockaddr_un sa;
        StartReply reply;
        socklen_t len;
        ssize_t n;
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

        q->header = (LaunchHeader) { .magic = LAUNCH_MAGIC, .type = LAUNCH_START, .size = (uint32_t) size };
        must(sockaddr_un_set(&sa, &len, bed_socket) == 0 && connect(fd, (struct sockaddr *) &sa, len) == 0);
        (void) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
        must(send_with_fds(fd, q, size, vm->fds, n_fds) == 0);
        n = recv(fd, &reply, sizeof(reply), 0);
        safe_close(fd);
        return n == sizeof(reply) ? reply.error : -EPIPE;
}

static void test_raw_start(void) {
        union { StartRequest q; char bytes[sizeof(StartRequest) + 4]; } u = {
                .q = { .program = PROGRAM_QEMU, .console_log_max = LOG_MAX, .argv_size = 4, .vmm.id = ID },
        };
        const size_t all = sizeof(u.bytes);
        Vm vm;

        vm_prepare(&vm);
        memcpy(u.q.argv, "a\0b", 4);
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX - 1), -EINVAL, "too few fds");
        is_int(raw_start(&u.q, all, &vm, 0), -EINVAL, "no fds");
        u.q.n_fds = 1;
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX), -EINVAL, "fewer than it says");
        u.q.n_fds = UINT32_MAX - 2;
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX), -EINVAL, "a number that wraps");
        u.q.n_fds = 0;
        u.q.argv_size = 5;
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX), -EINVAL, "arguments longer than the datagram");
        u.q.argv_size = 4;
        is_int(raw_start(&u.q, all - 1, &vm, _HELPER_FD_MAX), -EINVAL, "cut off");
        is_int(raw_start(&u.q, sizeof(LaunchHeader), &vm, _HELPER_FD_MAX), -EINVAL, "a header alone");
        u.q.argv[3] = 'x';
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX), -EINVAL, "no end of the arguments");
        u.q.argv[3] = 0;
        u.q.console_log_max = 1;
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX), -EINVAL, "a log too small");
        u.q.console_log_max = UINT64_MAX;
        is_int(raw_start(&u.q, all, &vm, _HELPER_FD_MAX), -EINVAL, "a log too large");
        vm_free(&vm);
}

typedef struct Opened {
        int done, error, fd;
} Opened;

static void on_console(void *userdata, int error, int fd) {
        *(Opened *) userdata = (Opened) { .done = 1, .error = error, .fd = fd };
}

static int opened_by(typeof(helper_open_console) *f) {
        HelperCall *call;
        Opened o = {};

        must(f(loop, bed_path("exec"), PATIENCE, on_console, &o, &call) == 0);
        run_until(&o.done, 1);
        helper_call_free(call);
        return o.error < 0 ? o.error : o.fd;
}

static int open_console(void) {
        return opened_by(helper_open_console);
}

static bool hangs_up(int fd, int timeout_ms) {
        struct pollfd p = { .fd = fd };

        return poll(&p, 1, timeout_ms) == 1 && p.revents == POLLHUP;
}

static void test_life(const char *mode, bool closes) {
        Vm vm;
        int fd;

        vm_run(&vm, ARGV((char *) mode), NULL, 0);
        must(eventually(log_is("console.log", "READY\n")));
        fd = opened_by(helper_open_life);
        ok(hangs_up(fd, 0) == closes, "who %s it", closes ? "closes its life's fd is seen to have closed" : "keeps its life's fd keeps");
        ok(!pid_killed(vm.vmm_pid) && !pidfd_dead(vm.vmm_pidfd), "but not taken for killed, also if it has tried that itself");
        must(pidfd_kill(vm.pidfd, SIGSTOP) == 0 && pidfd_kill(vm.vmm_pidfd, SIGKILL) == 0); /* so that nobody takes its status away */
        ok(hangs_up(fd, (int) (PATIENCE / 1000)) && pid_killed(vm.vmm_pid), "one that was killed is");
        safe_close(fd);
        vm_free(&vm);
}

static bool reads(int fd, const char *want) {
        char got[64] = {};
        size_t n = 0;

        while (n < strlen(want)) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                ssize_t k = poll(&p, 1, (int) (PATIENCE / 1000)) == 1 ? read(fd, got + n, strlen(want) - n) : 0;

                if (k <= 0)
                        break;
                n += (size_t) k;
        }
        return memcmp(got, want, strlen(want)) == 0;
}

static bool ends(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        char c[4096];
        ssize_t n;

        do
                n = poll(&p, 1, (int) (PATIENCE / 1000)) == 1 ? read(fd, c, sizeof(c)) : -1;
        while (n > 0);
        return n == 0;
}

static void test_console(void) {
        int a, b;
        Vm vm;

        vm_run(&vm, ARGV((char *) "echo"), NULL, 0);
        ok(eventually(log_is("console.log", "READY\n")), "output before any client is in the log");
        ok(eventually(log_is("last-output", "last words\n")), "standard error is in the last output");
        a = open_console();
        b = open_console();
        check(a >= 0 && b >= 0);
        must(write(a, "one", 3) == 3);
        ok(reads(a, "one") && reads(b, "one"), "both get what the first wrote");
        must(write(b, "two", 3) == 3);
        ok(reads(a, "two") && reads(b, "two"), "and the second");
        must(shutdown(a, SHUT_WR) == 0 && write(b, "three", 5) == 5);
        ok(reads(a, "three"), "who writes no more still reads");
        safe_close(a);
        must(write(b, "q", 1) == 1);
        ok(ends(b), "end of file with the VMM");
        ok(dies(vm.pidfd), "the end");
        ok(log_is("console.log", "READY\nonetwothree"), "the log has it all");
        safe_close(b);
        vm_free(&vm);
}

static void test_tty(void) {
        Vm vm;
        int a;

        vm_prepare(&vm);
        vm.kind = START_TTY;
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "echo"), NULL, 0) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        ok(eventually(log_is("console.log", "TTY\n")), "a VMM that wants a terminal has one for itself, which adds nothing");
        ok(eventually(log_is("last-output", "last words\n")), "standard error is none");
        a = open_console();
        must(write(a, "one\n\3", 5) == 5);
        ok(reads(a, "one\n\3"), "bytes go through as they are, once");
        must(write(a, "q", 1) == 1);
        ok(ends(a), "end of file with the VMM");
        ok(dies(vm.pidfd), "the end");
        ok(log_is("console.log", "TTY\none\n\3"), "the log has it all");
        safe_close(a);
        vm_free(&vm);
}

/* Owner and ids of a user's virtiofsd */
#define OWNER 12345U
#define SHARE_OF_USER { .base = VM_IDS_BASE + 7, .count = 1, .uid = OWNER, .gid = OWNER }

static int open_share(void) {
        int fd;

        must(mkdir(bed_path("share"), 0700) == 0 || errno == EEXIST);
        bed_write("share/others", "secret\n", 0600);
        (void) unlink(bed_path("share/made"));
        must(chown(bed_path("share"), OWNER, OWNER) == 0);
        fd = open(bed_path("share"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        must(fd >= 0);
        return fd;
}

static int launch_share(Vm *vm, ShareRequest share, char *const *argv) {
        int fd = open_share(), r;

        vm_prepare(vm);
        vm->kind = START_SHARE;
        vm->share = share;
        r = vm_launch(vm, PROGRAM_VIRTIOFSD, argv, &fd, 1);
        safe_close(fd);
        return r;
}

static bool log_has(const char *line) {
        char *text = NULL;
        size_t n;
        bool found;

        must(ring_read(bed_path("console.log"), LOG_MAX, &text, &n) == 0);
        found = memmem(text, n, line, strlen(line));
        free(text);
        return found;
}

/* What a virtiofsd could do that its guest has taken over */
static void test_walls(void) {
        static const char *const lines[] = {
                "ids=0,0 pid=1 parent=0\n",
                "make=0\n", "set-user-id=0\n", "give-away=22\n", "read-others=13\n", "device=1\n",
                "root=30\n", "usr=30\n", "shadow=2\n", "out=2\n", "core-pattern=13\n", "memory=2\n",
                "ptrace=1\n", "host-process=3\n", "reboot=1\n", "bpf=1\n", "keyctl=1\n", "setns=1\n", "move-mount=1\n", "clone3=38\n",
                "mount=1\n", "umount=1\n", "pivot-root=1\n", "user-namespace=1\n", "mount-namespace=1\n", "own-files=0\n",
                "inet=97\n", "netlink=97\n", "vsock=97\n", "bus=2\n", "priority=13\n",
                "/: 11\n", "/dev: 5\n", "/sys/class/net: 0\n",
        };
        struct stat st = {};
        Vm vm;

        must(launch_share(&vm, (ShareRequest) SHARE_OF_USER, ARGV((char *) "attack")) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        is_int(vm.event.type, EXEC_DONE, "behind walls a program runs");
        ok(dies(vm.pidfd), "and ends");
        for (size_t i = 0; i < ELEMENTSOF(lines); i++)
                ok(log_has(lines[i]), "%.*s", (int) strlen(lines[i]) - 1, lines[i]);
        ok(stat(bed_path("share/made"), &st) == 0 && st.st_uid == OWNER && st.st_gid == OWNER, "what it made is its owner's");
        vm_free(&vm);
}

static int listen_tcp(uint16_t *ret_port) {
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t n = sizeof(address);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        must(bind(fd, (struct sockaddr *) &address, sizeof(address)) == 0 && listen(fd, 5) == 0 &&
             getsockname(fd, (struct sockaddr *) &address, &n) == 0);
        *ret_port = ntohs(address.sin_port);
        return fd;
}

static int open_owned(const char *name, int flags) {
        int fd;

        bed_write(name, "text of it\n", 0600);
        fd = open(bed_path(name), flags | O_CLOEXEC);
        must(fd >= 0 && chown(bed_path(name), OWNER, OWNER) == 0);
        return fd;
}

static int open_shares(void) {
        const char *path = bed_vm(VMM_SHARES);
        int fd;

        must(mkdir(path, 0711) == 0 || errno == EEXIST);
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        must(fd >= 0);
        return fd;
}

static bool is_as_before(const char *name) {
        struct stat st;

        return stat(bed_path(name), &st) == 0 && st.st_uid == OWNER && st.st_gid == OWNER && (st.st_mode & 07777) == 0600;
}

/* What a VMM could do that its guest has taken over */
static void test_walls_of_vmm(void) {
        static const char *const lines[] = {
                "ids=1000013838,1000013838 pid=1 parent=0\n",
                "reads-copy=0\n", "writes-copy=13\n", "reads-kernel=0\n", "writes-kernel=30\n", "reads-disk=0\n", "writes-disk=0\n",
                "writes-read-only-disk=30\n", "removes-disk=30\n", "owns-disk=0\n", "fchmod=1\n", "chmod=1\n", "fchmodat2=1\n", "fchown=1\n",
                "setxattr=1\n", "set-flags=1\n", "link=1\n", "directory-fd=9\n", "directory=0\n", "listens=0\n", "mknod=1\n",
                "executes=0\n", "vhost-vsock=2\n", "proc=2\n", "sys=2\n", "shadow=2\n", "out=2\n", "makes=30\n", "host-process=3\n",
                "host-port=101\n", "namespace=1\n", "mount=1\n", "chroot=1\n", "setuid=1\n", "ring=1\n", "ptrace=1\n", "netlink=97\n",
                "vsock=97\n", "queue=1\n", "limit=1\n", "core=1\n", "/: 11\n", "/files: 5\n", "end\n",
        };
        int fds[] = { memfd_new("copy", "text", 4), open_owned("kernel", O_RDONLY), open_owned("disk", O_RDWR),
                      open_owned("read-only", O_RDONLY), open_shares() };
        bool kvm = access("/dev/kvm", R_OK | W_OK) == 0;
        char port_text[8];
        uint16_t port;
        int tcp = listen_tcp(&port);
        Vm vm;

        (void) snprintf(port_text, sizeof(port_text), "%u", port);
        vm_prepare(&vm);
        memcpy(vm.vmm.shown, "ccwrd", 5);
        vm.vmm.rights = EXEC_SOCKETS | (kvm ? EXEC_KVM : 0);
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "attack-vmm", port_text), fds, ELEMENTSOF(fds)) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        is_int(vm.event.type, EXEC_DONE, "behind walls a VMM runs %s %s", vm.event.stage, strerror(-vm.event.error));
        ok(dies(vm.pidfd), "and ends");
        for (size_t i = 0; i < ELEMENTSOF(lines); i++)
                ok(log_has(lines[i]), "%.*s", (int) strlen(lines[i]) - 1, lines[i]);
        ok(log_has(kvm ? "kvm=0\n" : "kvm=2\n"), "KVM if there is");
        ok(log_has(kvm ? "/dev: 7\n" : "/dev: 6\n"), "and no other device");
        ok(is_as_before("disk") && is_as_before("kernel") && is_as_before("read-only"), "on disk all belongs to whom it did");
        close_many(fds, ELEMENTSOF(fds));
        safe_close(tcp);
        vm_free(&vm);
}

/* Where a VMM makes its sockets it may put what it likes; who connects there is led nowhere. */
static void test_sockets(void) {
        char path[64];
        Vm vm;
        int fd;

        vm_prepare(&vm);
        vm.vmm.rights = EXEC_SOCKETS;
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "sockets"), NULL, 0) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        (void) eventually(log_has("READY\n"));
        fd = opened_by(helper_open_sockets);
        ok(fd >= 0, "the directory of its sockets %d", MIN(fd, 0));
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d/api", fd);
        safe_close(unix_connect(path, SOCK_STREAM));
        ok(access(path, F_OK) == 0, "has its socket");
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d/link", fd);
        is_int(unix_connect(path, SOCK_STREAM), -ELOOP, "its link is not followed");
        ok(log_has("full=28\n"), "it can't fill the host's memory");
        safe_close(fd);
        vm_free(&vm);

        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        is_int(opened_by(helper_open_sockets), -EBADMSG, "one that makes none has no directory for them");
        vm_free(&vm);
}

static void test_bad_vmm(void) {
        int file = create_fresh(bed_path("f")), dir = open_shares();
        static const struct {
                VMMRequest vmm;
                bool directory;
                const char *name;
        } tests[] = {
                { { .id = 0 }, false, "root" },
                { { .id = 1000 }, false, "a user" },
                { { .id = VM_IDS_BASE }, false, "the block's own id" },
                { { .id = VM_IDS_BASE + 15 }, false, "a virtiofsd's id" },
                { { .id = VM_IDS_BASE + SHARE_IDS }, false, "an id behind the block" },
                { { .id = ID, .rights = _EXEC_RIGHTS_ALL + 1 }, false, "a right that is none" },
                { { .id = ID, .shown = "x" }, false, "shown in a way that is none" },
                { { .id = ID, .shown = "-r" }, false, "a fd too many" },
                { { .id = ID, .shown = "d" }, false, "a file as a directory" },
                { { .id = ID, .shown = "r" }, true, "a directory as a file" },
        };
        Vm vm;

        for (size_t i = 0; i < ELEMENTSOF(tests); i++) {
                vm_prepare(&vm);
                vm.vmm = tests[i].vmm;
                is_int(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "wait"), tests[i].directory ? &dir : &file, 1), -EINVAL, "refused: %s",
                       tests[i].name);
                vm_free(&vm);
        }
        safe_close(file);
        safe_close(dir);
}

static void test_readonly_share(void) {
        ShareRequest share = SHARE_OF_USER;
        Vm vm;

        share.readonly = 1;
        must(launch_share(&vm, share, ARGV((char *) "attack")) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        ok(dies(vm.pidfd) && log_has("make=30\n"), "a share that is read-only");
        vm_free(&vm);
}

static void test_bad_share(void) {
        static const struct {
                ShareRequest share;
                const char *name;
        } tests[] = {
                { { .base = VM_IDS_BASE + 7, .count = 1 }, "root as the owner of one id" },
                { { .base = 0, .count = SHARE_IDS }, "ids of the host" },
                { { .base = VM_IDS_BASE, .count = 1, .uid = OWNER, .gid = OWNER }, "the block's own id" },
                { { .base = VM_IDS_BASE + SHARE_IDS, .count = 1, .uid = OWNER, .gid = OWNER }, "an id behind the block" },
                { { .base = VM_IDS_BASE + SHARE_IDS, .count = SHARE_IDS, .uid = OWNER }, "all ids for a user" },
                { { .base = VM_IDS_BASE + 7, .count = 2, .uid = OWNER, .gid = OWNER }, "two ids" },
                { { .base = VM_IDS_BASE + 7, .count = 1, .uid = OWNER, .gid = OWNER, .readonly = 2 }, "a flag that is none" },
        };
        Vm vm;

        for (size_t i = 0; i < ELEMENTSOF(tests); i++) {
                is_int(launch_share(&vm, tests[i].share, ARGV((char *) "attack")), -EINVAL, "refused: %s", tests[i].name);
                vm_free(&vm);
        }
}

static void test_slow(void) {
        char *text, *want;
        uint64_t t = now_usec();
        const unsigned long total = 10UL * 1024 * 1024;
        size_t n, i;
        int a, status;
        Vm vm;

        vm_prepare(&vm);
        must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "spew", (char *) "10485760"), NULL, 0) == 0);
        vm_fork(&vm);
        vm_go(&vm);
        a = open_console(); /* may come late; it never reads */
        ok(dies(vm.pidfd), "10 MiB with a client that never reads");
        printf("# %llu ms\n", (unsigned long long) (now_usec() - t) / 1000);
        must(helper_read_exit(bed_path("exit"), &status) == 0);
        is_int(status, 0, "the VMM was not hindered");
        must(ring_read(bed_path("console.log"), UINT64_MAX, &text, &n) == 0);
        is_int(n, LOG_MAX, "the log is full, no more");
        want = text;
        for (i = 0; i < n && want[i] == pattern(total - n + i); i++)
                ;
        is_int(i, n, "it has exactly the newest bytes");
        free(text);
        must(ring_read(bed_path("console.log"), 100, &text, &n) == 0);
        ok(n == 100 && text[99] == pattern(total - 1), "a part of it is the end");
        free(text);
        safe_close(a);
        vm_free(&vm);
}

static unsigned long long cpu_ticks(pid_t pid) {
        char path[64], *text = NULL, *p;
        unsigned long long u = 0, s = 0;

        (void) snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        must(read_file_all(path, 4096, &text, NULL) == 0);
        p = strrchr(text, ')');
        must(p && sscanf(p, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &u, &s) == 2);
        free(text);
        return u + s;
}

/* The VMM reads no input: nobody else is hindered, nobody spins. */
static void test_full_input(void) {
        static char many[65536];
        unsigned long long before;
        int a, b;
        Vm vm;

        memset(many, 'x', sizeof(many));
        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        (void) eventually(log_is("console.log", "READY\n"));
        a = open_console();
        b = open_console();
        for (unsigned i = 0; i < 2000 && send(a, many, sizeof(many), MSG_DONTWAIT) > 0; i++)
                (void) poll(NULL, 0, 0);
        safe_close(a);
        before = cpu_ticks(vm.pid);
        must(pidfd_kill(vm.vmm_pidfd, SIGUSR1) == 0);
        ok(reads(b, "USR1\n"), "output comes while the input is full");
        a = open_console();
        check(a >= 0);
        for (unsigned i = 0; i < 50; i++)
                (void) poll(NULL, 0, 2);
        ok(cpu_ticks(vm.pid) - before < 5, "nothing spins");
        safe_close(a);
        safe_close(b);
        vm_free(&vm);
}

static int connect_exec(void) {
        int fd = unix_connect(bed_path("exec"), SOCK_SEQPACKET);

        while (fd == -EAGAIN) {
                (void) poll(NULL, 0, 1);
                fd = unix_connect(bed_path("exec"), SOCK_SEQPACKET);
        }
        must(fd >= 0);
        return fd;
}

static int ask(const void *p, size_t n, const int *fds, size_t n_fds) {
        struct pollfd q = { .fd = connect_exec(), .events = POLLIN };
        int32_t answer = 0;
        ssize_t k;

        must(send_with_fds(q.fd, p, n, fds, n_fds) == 0 && poll(&q, 1, (int) (PATIENCE / 1000)) == 1);
        k = recv(q.fd, &answer, sizeof(answer), 0);
        safe_close(q.fd);
        return k == sizeof(answer) ? answer : -EPIPE;
}

static void test_bad_requests(void) {
        int idle[300], consoles[64], extra, null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        ExecRequest q = { .type = 77 };
        Vm vm;

        vm_run(&vm, ARGV((char *) "echo"), NULL, 0);
        is_int(ask(&q, sizeof(q), NULL, 0), -EBADMSG, "an unknown request");
        q.type = EXEC_REQUEST_CONSOLE;
        is_int(ask(&q, 2, NULL, 0), -EBADMSG, "half a request");
        is_int(ask("much too long", 13, NULL, 0), -EBADMSG, "too long a request");
        is_int(ask(&q, sizeof(q), &null, 1), -EBADMSG, "a request with a fd");

        for (size_t i = 0; i < ELEMENTSOF(idle); i++)
                idle[i] = connect_exec();
        consoles[0] = open_console();
        ok(consoles[0] >= 0, "300 who only connect hinder nobody");
        close_many(idle, ELEMENTSOF(idle));
        for (size_t i = 1; i < ELEMENTSOF(consoles); i++) {
                consoles[i] = open_console();
                must(consoles[i] >= 0);
        }
        extra = open_console();
        is_int(extra, -EBUSY, "there is an end of consoles");
        must(write(consoles[63], "x", 1) == 1);
        ok(eventually(log_is("console.log", "READY\nx")), "all works on");
        safe_close(consoles[5]);
        must(write(consoles[63], "y", 1) == 1);
        ok(eventually((extra = open_console()) >= 0), "one that leaves makes room");
        safe_close(extra);
        consoles[5] = -EBADF;
        close_many(consoles, ELEMENTSOF(consoles));
        safe_close(null);
        vm_free(&vm);
}

/* What the VMM leaves behind goes with its namespace. */
static void test_leftover(void) {
        int status;
        Vm vm;

        vm_run(&vm, ARGV((char *) "child"), NULL, 0);
        ok(dies(vm.pidfd), "a child of the VMM that holds the pipes keeps nobody waiting");
        must(helper_read_exit(bed_path("exit"), &status) == 0);
        is_int(WEXITSTATUS(status), 4, "the VMM's status");
        ok(log_is("console.log", "2\n"), "it was in the VMM's PID namespace");
        vm_free(&vm);
}

static void test_files(void) {
        RingHeader h = { .magic = RING_MAGIC, .size = 8, .total = 11, .pending = 0 };
        char *text;
        size_t n;
        int status;

        bed_write("exit", "garbage", 0600);
        is_int(helper_read_exit(bed_path("exit"), &status), -EBADMSG, "no record");
        bed_write("exit", "garbage of 8 and more", 0600);
        is_int(helper_read_exit(bed_path("exit"), &status), -EBADMSG, "too long for a record");
        is_int(helper_read_exit(bed_path("nothing"), &status), -ENODATA, "no file");
        is_int(ring_read(bed_path("nothing"), 10, &text, &n), 0, "no ring is an empty one");
        is_int(n, 0, "without bytes");
        free(text);
        bed_write("ring", "garbage that is longer than a header", 0600);
        is_int(ring_read(bed_path("ring"), 10, &text, &n), -EBADMSG, "no ring");

        for (unsigned pending = 0; pending < 12; pending += 3) {
                int fd = create_fresh(bed_path("ring"));

                h.pending = pending;
                must(write(fd, &h, sizeof(h)) == sizeof(h) && write(fd, "ijkdefgh", 8) == 8);
                safe_close(fd);
                must(ring_read(bed_path("ring"), 100, &text, &n) == 0);
                is_str(text, pending == 0 ? "defghijk" : pending == 3 ? "ghijk" : pending == 6 ? "jk" : "",
                       "a ring with %u bytes half written", pending);
                free(text);
        }
}

static void show_cost(void) {
        char path[64], *text = NULL, *p;
        uint64_t t, best = UINT64_MAX;
        Vm vm;

        for (unsigned i = 0; i < 20; i++) {
                vm_prepare(&vm);
                t = now_usec();
                must(vm_launch(&vm, PROGRAM_QEMU, ARGV((char *) "wait"), NULL, 0) == 0);
                best = MIN(best, now_usec() - t);
                vm_free(&vm);
        }
        vm_run(&vm, ARGV((char *) "wait"), NULL, 0);
        (void) eventually(log_is("console.log", "READY\n"));
        (void) snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int) vm.pid);
        if (read_file_all(path, 4096, &text, NULL) == 0 && (p = strstr(text, "\nPss:")))
                printf("# START best %u us; helper %.*s\n", (unsigned) best, (int) strcspn(p + 1, "\n"), p + 1);
        free(text);
        vm_free(&vm);
}

int main(void) {
        unsigned before, launchers;
        Vm vm;

        bed_setup();
        vm_run(&vm, ARGV((char *) "exit"), NULL, 0);
        vm_free(&vm);
        before = count_fds(getpid());

        test_order();
        test_reaped_beside_another();
        test_status("wait", SIGKILL, "SIGKILL");
        test_status("fault", SIGSEGV, "SIGSEGV");
        test_status("abort", SIGSEGV, "abort(), which shows as SIGSEGV");
        test_life("wait", false);
        test_life("close-life", true);
        test_daemon_gone();
        test_garbage_on_control();
        launchers = count_fds(launcher);
        test_helper_killed();
        exec_fails(PROGRAM_FIRECRACKER, -ENOEXEC, "ENOEXEC");
        test_rights();
        test_fds();
        test_bad_start();
        test_raw_start();
        test_console();
        test_tty();
        test_walls();
        test_walls_of_vmm();
        test_sockets();
        test_bad_vmm();
        test_readonly_share();
        test_bad_share();
        test_slow();
        test_full_input();
        test_bad_requests();
        test_leftover();
        test_files();
        show_cost();

        is_int(count_fds(getpid()), before, "no fd is left open");
        ok(eventually(count_fds(launcher) <= launchers), "nor in the launcher");
        bed_teardown();
        return done_testing();
}
