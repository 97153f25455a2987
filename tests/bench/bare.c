/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "bed.h"

/* A VMM without vmunit: the command line of one that vmunit runs, its descriptors set up in the same way. */

#define ARGS_MAX 256
#define FILES_MAX 32
#define FIRST_FILE 4            /* 3 is the listening socket of QMP */
#define SOCKET "/run/vmunit-bench.qmp"

struct Bare {
        char program[PATH_MAX];
        char *argv[ARGS_MAX + 1];
        char *files[FILES_MAX];
        size_t n_files;
        pid_t pid;
        int pidfd, qmp, in, out;
};

static void read_argv(Bare *b, int pid) {
        char path[64], *arg = NULL;
        size_t n = 0, size = 0;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
        f = fopen(path, "re");
        if (!f)
                die("%s: %m", path);
        while (n < ARGS_MAX && getdelim(&arg, &size, 0, f) > 0)
                b->argv[n++] = strdup(arg);
        fclose(f);
        free(arg);
}

static char *link_of(int pid, const char *what) {
        char path[64], target[PATH_MAX];
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/%d/%s", pid, what);
        n = readlink(path, target, sizeof(target) - 1);
        if (n < 0)
                die("%s: %m", path);
        target[n] = 0;
        return strdup(target);
}

/* The files that it was given are those that its command line names. */
static size_t count_files(const Bare *b) {
        size_t n = 0;

        for (char *const *a = b->argv; *a; a++)
                for (unsigned fd = FIRST_FILE; fd < FIRST_FILE + FILES_MAX; fd++) {
                        char by_path[32], by_set[32];

                        snprintf(by_path, sizeof(by_path), "/proc/self/fd/%u", fd);
                        snprintf(by_set, sizeof(by_set), "fd=%u,set=", fd);
                        if (streq(*a, by_path) || startswith(*a, by_set))
                                n = MAX(n, (size_t) (fd - FIRST_FILE + 1));
                }
        return n;
}

Bare *bare_of(int pid) {
        Bare *b = new0(Bare, 1);
        char *program = link_of(pid, "exe");

        snprintf(b->program, sizeof(b->program), "%s", program);
        free(program);
        read_argv(b, pid);
        b->n_files = count_files(b);
        for (size_t i = 0; i < b->n_files; i++) {
                char what[32];

                snprintf(what, sizeof(what), "fd/%zu", FIRST_FILE + i);
                b->files[i] = link_of(pid, what);
        }
        return b;
}

static int unix_socket(bool listening) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX, .sun_path = SOCKET };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (listening)
                (void) unlink(SOCKET);
        if (fd < 0 || (listening ? bind(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0 || listen(fd, 1) < 0 :
                                   connect(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0))
                die("%s: %m", SOCKET);
        return fd;
}

static _Noreturn void run(const Bare *b, int listener, int in, int out) {
        int files[FILES_MAX];

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        for (size_t i = 0; i < b->n_files; i++) {
                int fd = open(b->files[i], O_RDWR | O_CLOEXEC);

                if (fd < 0)
                        fd = open(b->files[i], O_RDONLY | O_CLOEXEC);
                files[i] = fcntl(fd, F_DUPFD_CLOEXEC, 100);
        }
        listener = fcntl(listener, F_DUPFD_CLOEXEC, 100);
        if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 || dup2(listener, 3) < 0)
                _exit(126);
        for (size_t i = 0; i < b->n_files; i++)
                if (dup2(files[i], FIRST_FILE + (int) i) < 0)
                        _exit(126);
        (void) close_range((unsigned) (FIRST_FILE + b->n_files), ~0U, 0);
        execv(b->program, b->argv);
        _exit(127);
}

static void say(const Bare *b, const char *command) {
        if (send(b->qmp, command, strlen(command), MSG_NOSIGNAL) < 0)
                die("QMP: %m");
}

/* Reads until there is this text. */
static void hear(const Bare *b, const char *text) {
        char buffer[16384];
        size_t n = 0;

        while (n < sizeof(buffer) - 1) {
                struct pollfd p = { .fd = b->qmp, .events = POLLIN };
                ssize_t k;

                if (poll(&p, 1, 30000) <= 0)
                        die("the bare VMM does not say %s", text);
                k = recv(b->qmp, buffer + n, sizeof(buffer) - 1 - n, 0);
                if (k <= 0)
                        die("the bare VMM has ended before it said %s", text);
                n += (size_t) k;
                buffer[n] = 0;
                if (strstr(buffer, text))
                        return;
        }
        die("the bare VMM says too much");
}

double bare_start(Bare *b) {
        double begin = now_ms();
        int in[2], out[2], listener;

        if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
                die("pipe: %m");
        listener = unix_socket(true);
        b->pid = fork();
        if (b->pid < 0)
                die("fork: %m");
        if (b->pid == 0)
                run(b, listener, in[0], out[1]);
        b->pidfd = (int) syscall(SYS_pidfd_open, b->pid, 0);
        b->qmp = unix_socket(false);
        close(listener);
        close(in[0]);
        close(out[1]);
        b->in = in[1];
        b->out = out[0];

        hear(b, "\"QMP\"");
        say(b, "{\"execute\":\"qmp_capabilities\"}\n");
        hear(b, "\"return\"");
        say(b, "{\"execute\":\"cont\"}\n");
        hear(b, "\"RESUME\"");
        return now_ms() - begin;
}

double bare_kill(Bare *b) {
        struct pollfd p = { .fd = b->pidfd, .events = POLLIN };
        double begin = now_ms(), end;

        if (kill(b->pid, SIGKILL) < 0 || poll(&p, 1, 30000) != 1)
                die("the bare VMM does not die");
        end = now_ms();
        (void) waitpid(b->pid, NULL, 0);
        close(b->pidfd);
        close(b->qmp);
        close(b->in);
        close(b->out);
        return end - begin;
}
