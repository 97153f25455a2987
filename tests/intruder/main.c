/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* In the place of a VMM or of another program behind walls: tries what must not work, and prints what did. Run by root outside of them, it shows
 * that each attempt is one. What it knows of the host stands behind the program, in its own file: see test-intruder.py. */

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "intruder.h"

#define FACTS "\nFACTS OF THE HOST\n"
#define FACTS_MAX (64U * 1024U)
#define PATIENCE_SEC 20
#define QEMU "/usr/bin/qemu-system-x86_64"

/* What a child says of an attempt that has no errno */
enum { HUNG = 250, KILLED, NAMESAKE };

pid_t starter;

static char facts[FACTS_MAX + 1];
static int out = STDOUT_FILENO;
static bool outside, brief; /* brief: one line on standard error, of what worked */

static void read_facts(const char *program) {
        int fd = open(program, O_RDONLY | O_CLOEXEC);
        static char end[FACTS_MAX + 1];
        const char *begin;
        struct stat st;
        ssize_t n = 0;

        if (fd >= 0 && fstat(fd, &st) == 0)
                n = pread(fd, end, FACTS_MAX, st.st_size > FACTS_MAX ? st.st_size - FACTS_MAX : 0);
        close(fd);
        begin = n > 0 ? memmem(end, (size_t) n, FACTS, strlen(FACTS)) : NULL;
        if (begin)
                memcpy(facts, begin + strlen(FACTS) - 1, (size_t) (end + n - begin) - strlen(FACTS) + 1);
}

const char *fact(const char *key) {
        static char value[4096];
        char line[128];
        const char *p;

        (void) snprintf(line, sizeof(line), "\n%s=", key);
        p = strstr(facts, line);
        if (!p)
                return "";
        p += strlen(line);
        (void) snprintf(value, sizeof(value), "%.*s", (int) strcspn(p, "\n"), p);
        return value;
}

int fact_number(const char *key) {
        return atoi(fact(key));
}

/* What was given is known by its size, which no other file has. */

static bool is_given(int fd, int size) {
        struct stat st;

        return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == size;
}

/* A name first: there it may be the file's owner. */
static int find_given(const char *what, int flags, const char **ret_path) {
        static char path[4096];
        char key[64];
        int size, fd;

        (void) snprintf(key, sizeof(key), "%s-size", what);
        size = fact_number(key);
        for (int i = 3; i < 256; i++) {
                (void) snprintf(path, sizeof(path), "/files/%d", i);
                fd = open(path, flags | O_CLOEXEC);
                if (fd >= 0 && is_given(fd, size)) {
                        *ret_path = path;
                        return fd;
                }
                close(fd);
        }
        *ret_path = NULL;
        for (fd = 3; fd < 256; fd++)
                if (is_given(fd, size))
                        return fd;
        (void) snprintf(path, sizeof(path), "%s", fact(what));
        *ret_path = path;
        fd = open(path, flags | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

int own_disk(const char **ret_path) {
        return find_given("disk", O_RDWR, ret_path);
}

int own_kernel(const char **ret_path) {
        return find_given("kernel", O_RDONLY, ret_path);
}

static const char *argument(const char *arg) {
        static char text[4096];
        char key[64];
        size_t n;

        if (!arg || arg[0] != '@')
                return arg;
        n = strcspn(arg + 1, "/");
        (void) snprintf(key, sizeof(key), "%.*s", (int) n, arg + 1);
        (void) snprintf(text, sizeof(text), "%s%s", fact(key), arg + 1 + n);
        return text;
}

/* Nothing that is tried outside stays, mounts and names above all. */
static int go_outside(void) {
        return unshare(CLONE_NEWNS | CLONE_NEWUTS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ? -errno : 0;
}

/* In a PID namespace of its own it may have the number that one of those has whom it is to find. */
static bool is_namesake(pid_t pid) {
        return pid == fact_number("daemon") || pid == fact_number("launcher") || pid == fact_number("victim") || pid == fact_number("bystander");
}

static int try_one(const Attempt *a) {
        pid_t pid;
        int status;

        while (waitpid(-1, NULL, WNOHANG) > 0) /* what the last one has left behind to the first process */
                ;
        pid = fork();
        if (pid < 0)
                return HUNG;
        if (pid == 0) {
                if (is_namesake(getpid()))
                        _exit(NAMESAKE);
                if (outside && go_outside() < 0)
                        _exit(HUNG);
                /* One that hangs has not worked; the parent may be nobody's to kill it. */
                (void) signal(SIGALRM, SIG_DFL);
                (void) alarm(PATIENCE_SEC);
                _exit(-a->run(argument(a->arg)) & 0xff);
        }
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return HUNG;
        if (WIFEXITED(status))
                return WEXITSTATUS(status) == NAMESAKE ? try_one(a) : WEXITSTATUS(status);
        return WTERMSIG(status) == SIGALRM ? HUNG : KILLED;
}

static void print_fds(void) {
        int n = 0;

        for (int fd = 0; fd < 65536; fd++)
                n += (fd != out || out == STDOUT_FILENO) && fcntl(fd, F_GETFD) >= 0;
        dprintf(out, "FDS %d\n", n);
}

static void try_all(void) {
        static const Attempt *const lists[] = { file_attempts, image_attempts, kernel_attempts, network_attempts, process_attempts, ring_attempts };
        unsigned n = 0;

        for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
                for (const Attempt *a = lists[i]; a->name; a++, n++) {
                        int r = try_one(a);

                        if (brief && (r == 0 || r == HUNG))
                                dprintf(STDERR_FILENO, " %s", a->name);
                        else if (!brief)
                                dprintf(out, "ATTEMPT %s %s\n", a->name,
                                        r == 0 ? "worked" : r == HUNG ? "hung" : r == KILLED ? "killed" : strerrorname_np(r) ?: "strange");
                }
        dprintf(brief ? STDERR_FILENO : out, brief ? " OF %u\n" : "ATTEMPTS %u\n", n);
}

/* The version that the daemon asks for, by the program's name: those of the VMMs that this stands for are far apart. */
static int print_version(const char *program) {
        static const struct { const char *name, *version; } versions[] = {
                { "firecracker", "Firecracker v1.12.1" },
                { "cloud-hypervisor", "cloud-hypervisor v53.0.0" },
                { "virtiofsd", "virtiofsd version 7.2.22" },
                { "passt", "passt 0.0~git20230309.7c7625d-1" },
        };

        for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
                if (strstr(program, versions[i].name))
                        return puts(versions[i].version) < 0;
        return puts("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)") < 0;
}

/* Memory of its own, and of nobody's who could be blamed for it, each as much as it was told; says when it has all of it. */
static int fill_memory(size_t n) {
        static const char *const kinds[] = { "anonymous", "memfd" };
        pid_t pids[2];
        bool all = true;

        for (size_t i = 0; i < 2; i++) {
                (void) dprintf(STDERR_FILENO, "FILLS %s\n", kinds[i]);
                pids[i] = fork();
                if (pids[i] == 0) {
                        int fd = i == 0 ? -1 : memfd_create("fill", MFD_CLOEXEC);
                        char *p;

                        if (fd >= 0 && ftruncate(fd, (off_t) n) < 0)
                                _exit(EXIT_FAILURE);
                        p = mmap(NULL, n, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
                        if (p == MAP_FAILED)
                                _exit(EXIT_FAILURE);
                        memset(p, 0xff, n);
                        _exit(EXIT_SUCCESS);
                }
        }
        for (size_t i = 0; i < 2; i++) {
                int status = -1;

                all = pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i] && status == 0 && all;
        }
        return all && dprintf(STDERR_FILENO, "FILLED\n") > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char *argv[]) {
        const char *program = (const char *) getauxval(AT_EXECFN);

        outside = argc == 2 && strcmp(argv[1], "--outside") == 0;
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "--version") == 0)
                        return print_version(program);
                if (strcmp(argv[i], "--root") == 0)
                        return geteuid() != 0;
                /* A VM that others try to reach is a real one. */
                if (strncmp(argv[i], "guest=victim", strlen("guest=victim")) == 0)
                        return execv(QEMU, argv);
        }
        read_facts(program);
        starter = getppid();
        if (fact_number("fill-mib") > 0)
                return fill_memory((size_t) fact_number("fill-mib") << 20);
        if (strstr(program, "virtiofsd"))
                out = open("/share/results", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        brief = strstr(program, "passt");
        print_fds();
        try_all();
        return EXIT_SUCCESS;
}
