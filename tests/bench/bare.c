/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/exec-protocol.h"
#include "basic/string-util.h"
#include "bed.h"

/* A VMM without vmunit: the same program with the same guest, started and asked by as little as can do it. QEMU gets the command line that
 * vmunit gives it, with descriptors set up in the same way; the others are told by their API what to run. */

#define ARGS_MAX 256
#define FILES_MAX 32
#define FIRST_FILE 4            /* 3 is the listening socket of the API */
#define DIRECTORY "/run/vmunit-bench"
#define ANSWER_MSEC 30000

struct Bare {
        const char *backend;
        char program[PATH_MAX];
        char *argv[ARGS_MAX + 1];
        char *files[FILES_MAX];
        size_t n_files;
        char dir[64], socket[96];
        int watch;              /* it makes its socket itself, in a directory that is watched; below 0: it is given one that listens */
        pid_t pid;
        int pidfd, api, in, out;
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
                /* by a name that is there behind walls alone */
                if (!startswith(arg, EXEC_FILES "/"))
                        b->argv[n++] = strdup(arg);
                else if (asprintf(&b->argv[n++], "/proc/self/fd/%s", arg + strlen(EXEC_FILES "/")) < 0)
                        die("no memory");
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

static void copy_qemu(Bare *b, int pid) {
        read_argv(b, pid);
        b->n_files = count_files(b);
        for (size_t i = 0; i < b->n_files; i++) {
                char what[32];

                snprintf(what, sizeof(what), "fd/%zu", FIRST_FILE + i);
                b->files[i] = link_of(pid, what);
        }
}

static void set_argv(Bare *b, const char *const *words) {
        for (size_t n = 0; words[n]; n++)
                b->argv[n] = strdup(words[n]);
}

static int watch_directory(const Bare *b) {
        int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

        if (fd < 0 || inotify_add_watch(fd, b->dir, IN_CREATE) < 0)
                die("%s: %m", b->dir);
        return fd;
}

Bare *bare_of(const char *backend, int pid) {
        static unsigned count;
        Bare *b = new0(Bare, 1);
        char *program = link_of(pid, "exe");

        b->backend = backend;
        snprintf(b->program, sizeof(b->program), "%s", program);
        free(program);
        snprintf(b->dir, sizeof(b->dir), DIRECTORY "/%u", count++);
        snprintf(b->socket, sizeof(b->socket), "%s/api", b->dir);
        if ((mkdir(DIRECTORY, 0700) < 0 && errno != EEXIST) || (mkdir(b->dir, 0700) < 0 && errno != EEXIST))
                die("%s: %m", b->dir);

        /* For all starts, since the end of an inotify waits for the kernel as long as a start takes. */
        b->watch = streq(backend, "firecracker") ? watch_directory(b) : -EBADF;
        if (streq(backend, "qemu"))
                copy_qemu(b, pid);
        else if (streq(backend, "firecracker"))
                set_argv(b, (const char *const []) { "firecracker", "--id", "bench", "--api-sock", b->socket,
                                                     "--log-path", "/proc/self/fd/2", "--level", "Error", NULL });
        else
                set_argv(b, (const char *const []) { "cloud-hypervisor", "--api-socket", "fd=3", NULL });
        return b;
}

static int try_socket(const Bare *b, bool listening) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        strcpy(sa.sun_path, b->socket);
        if (fd < 0 || (listening ? bind(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0 || listen(fd, 1) < 0 :
                                   connect(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0)) {
                close(fd);
                return -errno;
        }
        return fd;
}

static int get_socket(const Bare *b, bool listening) {
        int fd = try_socket(b, listening);

        if (fd < 0)
                die("%s: %s", b->socket, strerror(-fd));
        return fd;
}

/* The VMM's own socket: it comes, and a little later somebody listens there. */
static int await_socket(const Bare *b) {
        struct pollfd p = { .fd = b->watch, .events = POLLIN };
        int fd;

        if (poll(&p, 1, ANSWER_MSEC) != 1)
                die("the bare VMM makes no socket");
        while ((fd = try_socket(b, false)) == -ECONNREFUSED)
                ;
        if (fd < 0)
                die("%s: %s", b->socket, strerror(-fd));
        return fd;
}

static _Noreturn void run(const Bare *b, int listener, int in, int out) {
        int files[FILES_MAX], n = listener < 0 ? 3 : FIRST_FILE + (int) b->n_files;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        for (size_t i = 0; i < b->n_files; i++) {
                int fd = open(b->files[i], O_RDWR | O_CLOEXEC);

                if (fd < 0)
                        fd = open(b->files[i], O_RDONLY | O_CLOEXEC);
                files[i] = fcntl(fd, F_DUPFD_CLOEXEC, 100);
        }
        if (listener >= 0)
                listener = fcntl(listener, F_DUPFD_CLOEXEC, 100);
        if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 || (listener >= 0 && dup2(listener, 3) < 0))
                _exit(126);
        for (size_t i = 0; i < b->n_files; i++)
                if (dup2(files[i], FIRST_FILE + (int) i) < 0)
                        _exit(126);
        (void) close_range((unsigned) n, ~0U, 0);
        execv(b->program, b->argv);
        _exit(127);
}

static void say(const Bare *b, const char *text) {
        if (send(b->api, text, strlen(text), MSG_NOSIGNAL) < 0)
                die("the bare VMM's API: %m");
}

/* Reads until there is this text. */
static void hear(const Bare *b, const char *text, char *buffer, size_t size) {
        size_t n = 0;

        while (n < size - 1) {
                struct pollfd p = { .fd = b->api, .events = POLLIN };
                ssize_t k;

                if (poll(&p, 1, ANSWER_MSEC) <= 0)
                        die("the bare VMM does not say %s", text);
                k = recv(b->api, buffer + n, size - 1 - n, 0);
                if (k <= 0)
                        die("the bare VMM has ended before it said %s", text);
                n += (size_t) k;
                buffer[n] = 0;
                if (strstr(buffer, text))
                        return;
        }
        die("the bare VMM says too much");
}

static void boot_qemu(const Bare *b) {
        char buffer[16384];

        hear(b, "\"QMP\"", buffer, sizeof(buffer));
        say(b, "{\"execute\":\"qmp_capabilities\"}\n");
        hear(b, "\"return\"", buffer, sizeof(buffer));
        say(b, "{\"execute\":\"cont\"}\n");
        hear(b, "\"RESUME\"", buffer, sizeof(buffer));
}

static void put(const Bare *b, const char *path, const char *body) {
        char request[1024], answer[4096];

        snprintf(request, sizeof(request), "PUT %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %zu\r\n\r\n%s", path,
                 *body ? "Content-Type: application/json\r\n" : "", strlen(body), body);
        say(b, request);
        hear(b, "\r\n\r\n", answer, sizeof(answer));
        if (!startswith(answer, "HTTP/1.1 204"))
                die("the bare VMM refuses %s: %s", path, answer);
}

static void boot_firecracker(const Bare *b) {
        char machine[64], source[512];

        snprintf(machine, sizeof(machine), "{\"vcpu_count\":1,\"mem_size_mib\":%u}", BED_MEMORY_MB);
        snprintf(source, sizeof(source), "{\"kernel_image_path\":\"%s\",\"boot_args\":\"console=ttyS0\"}", bed_kernel());
        put(b, "/machine-config", machine);
        put(b, "/boot-source", source);
        put(b, "/actions", "{\"action_type\":\"InstanceStart\"}");
}

static void boot_cloud_hypervisor(const Bare *b) {
        char config[512];

        snprintf(config, sizeof(config),
                 "{\"cpus\":{\"boot_vcpus\":1,\"max_vcpus\":1},\"memory\":{\"size\":%u},\"payload\":{\"kernel\":\"%s\"},"
                 "\"serial\":{\"mode\":\"Tty\"},\"console\":{\"mode\":\"Off\"}}", BED_MEMORY_MB << 20, bed_kernel());
        put(b, "/api/v1/vm.create", config);
        put(b, "/api/v1/vm.boot", "");
}

static void spawn(Bare *b, int listener) {
        int in[2], out[2];

        if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
                die("pipe: %m");
        b->pid = fork();
        if (b->pid < 0)
                die("fork: %m");
        if (b->pid == 0)
                run(b, listener, in[0], out[1]);
        b->pidfd = (int) syscall(SYS_pidfd_open, b->pid, 0);
        close(in[0]);
        close(out[1]);
        b->in = in[1];
        b->out = out[0];
}

static void forget_events(const Bare *b) {
        char buffer[4096];

        while (read(b->watch, buffer, sizeof(buffer)) > 0)
                ;
}

double bare_start(Bare *b) {
        double begin;
        int fd = -EBADF;

        (void) unlink(b->socket);
        forget_events(b);
        begin = now_ms();
        if (b->watch < 0)
                fd = get_socket(b, true);
        spawn(b, fd);
        b->api = b->watch < 0 ? get_socket(b, false) : await_socket(b);
        close(fd);

        if (streq(b->backend, "qemu"))
                boot_qemu(b);
        else if (streq(b->backend, "firecracker"))
                boot_firecracker(b);
        else
                boot_cloud_hypervisor(b);
        return now_ms() - begin;
}

double bare_kill(Bare *b) {
        struct pollfd p = { .fd = b->pidfd, .events = POLLIN };
        double begin = now_ms(), end;

        if (kill(b->pid, SIGKILL) < 0 || poll(&p, 1, ANSWER_MSEC) != 1)
                die("the bare VMM does not die");
        end = now_ms();
        (void) waitpid(b->pid, NULL, 0);
        close(b->pidfd);
        close(b->api);
        close(b->in);
        close(b->out);
        return end - begin;
}
