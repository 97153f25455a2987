/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stands for a VMM: does what its first argument says. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "fake-vmm.h"

/* What looks for leaks traces the process, which the filter of system calls denies. */
__attribute__((__visibility__("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) {
        return "detect_leaks=0";
}

static void put(int fd, const char *p, size_t n) {
        while (n > 0) {
                ssize_t k = write(fd, p, n);

                if (k <= 0)
                        exit(9);
                p += k;
                n -= (size_t) k;
        }
}

static void say(const char *s) {
        put(1, s, strlen(s));
}

static void list_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        struct dirent *de;
        char line[300];

        while ((de = readdir(d)))
                if (de->d_name[0] != '.' && atoi(de->d_name) != dirfd(d)) {
                        (void) snprintf(line, sizeof(line), "%s%s ", de->d_name,
                                        fcntl(atoi(de->d_name), F_GETFD) & FD_CLOEXEC ? "!" : "");
                        say(line);
                }
        closedir(d);
        say("end\n");
}

static void spew(unsigned long n) {
        char buf[4096];

        for (unsigned long i = 0; i < n;) {
                size_t k = 0;

                for (; k < sizeof(buf) && i < n; k++, i++)
                        buf[k] = pattern(i);
                put(1, buf, k);
        }
}

static void echo(void) {
        char c;

        put(2, "last words\n", 11);
        say(isatty(0) && isatty(1) ? "TTY\n" : "READY\n");
        while (read(0, &c, 1) == 1 && c != 'q')
                put(1, &c, 1);
}

static void on_usr1(int sig) {
        say("USR1\n");
}

static void leave_child(void) {
        char line[32];
        pid_t pid = fork();

        if (pid == 0)
                for (;;)
                        pause();
        (void) snprintf(line, sizeof(line), "%d\n", (int) pid);
        say(line);
}

/* What a program tries that has been taken over; each line: what, and the errno, 0 if it went well */
static void tell(const char *what, long result) {
        char line[64];

        (void) snprintf(line, sizeof(line), "%s=%d\n", what, result < 0 ? errno : 0);
        say(line);
}

static void list(const char *path) {
        DIR *d = opendir(path);
        struct dirent *de;
        unsigned n = 0;
        char line[300];

        while (d && (de = readdir(d)))
                n += de->d_name[0] != '.';
        if (d)
                closedir(d);
        (void) snprintf(line, sizeof(line), "%s: %u\n", path, n);
        say(line);
}

static void attack(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/run/dbus/system_bus_socket" };
        char line[64];
        int fd;

        (void) snprintf(line, sizeof(line), "ids=%d,%d pid=%d parent=%d\n", (int) getuid(), (int) getgid(), (int) getpid(), (int) getppid());
        say(line);
        fd = open("/share/made", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        tell("make", fd);
        tell("set-user-id", fchmod(fd, 04755));
        tell("give-away", fchown(fd, 1, 1));
        tell("read-others", open("/share/others", O_RDONLY | O_CLOEXEC));
        tell("device", mknod("/share/null", S_IFCHR | 0666, makedev(1, 3)));
        tell("root", open("/made", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
        tell("usr", open("/usr/made", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
        tell("shadow", open("/etc/shadow", O_RDONLY | O_CLOEXEC));
        tell("out", open("/share/../../etc/shadow", O_RDONLY | O_CLOEXEC));
        tell("core-pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY | O_CLOEXEC));
        tell("memory", open("/dev/mem", O_RDONLY | O_CLOEXEC));
        tell("ptrace", ptrace(PTRACE_TRACEME, 0, NULL, NULL));
        tell("host-process", kill(2, 0));
        tell("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
        tell("bpf", syscall(SYS_bpf, 0, NULL, 0));
        tell("keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
        tell("setns", setns(fd, 0));
        tell("move-mount", syscall(SYS_move_mount, -1, "/", -1, "/", 0));
        tell("mount", mount("tmpfs", "/proc", "tmpfs", 0, NULL));
        tell("umount", umount2("/proc", MNT_DETACH));
        tell("pivot-root", syscall(SYS_pivot_root, "/share", "/share"));
        tell("user-namespace", unshare(CLONE_NEWUSER));
        tell("mount-namespace", unshare(CLONE_NEWNS));
        tell("own-files", unshare(CLONE_FS)); /* which it does in each thread */
        tell("clone3", syscall(SYS_clone3, NULL, 0));
        tell("inet", socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        tell("netlink", socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
        tell("vsock", socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
        tell("bus", connect(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), (struct sockaddr *) &address, sizeof(address)));
        tell("priority", setpriority(PRIO_PROCESS, 0, -20));
        list("/");
        list("/dev");
        list("/sys/class/net");
        say("end\n");
}

static void version(const char *self) {
        char path[4096], line[32];
        FILE *f;

        if (!strstr(self, "hang")) {
                say("Fake\tVMM 1.0\nsecond line\n");
                return;
        }

        (void) snprintf(path, sizeof(path), "%s.pid", self);
        f = fopen(path, "we");
        (void) snprintf(line, sizeof(line), "%d\n", (int) getpid());
        if (f) {
                (void) fputs(line, f);
                (void) fclose(f);
        }
        for (;;)
                pause();
}

int main(int argc, char *argv[]) {
        const char *mode = argc > 1 ? argv[1] : "", *value = argc > 2 ? argv[2] : "0";

        (void) signal(SIGUSR1, on_usr1);
        if (strcmp(mode, "attack") == 0)
                attack();
        else if (strcmp(mode, "--version") == 0)
                version(argv[0]);
        else if (strcmp(mode, "fds") == 0)
                list_fds();
        else if (strcmp(mode, "exit") == 0)
                return atoi(value);
        else if (strcmp(mode, "signal") == 0) {
                (void) signal(atoi(value), SIG_DFL);
                (void) raise(atoi(value));
        } else if (strcmp(mode, "spew") == 0)
                spew(strtoul(value, NULL, 10));
        else if (strcmp(mode, "child") == 0) {
                leave_child();
                return 4;
        } else if (strcmp(mode, "echo") == 0)
                echo();
        else
                for (say("READY\n");;)
                        pause();
        return 0;
}
