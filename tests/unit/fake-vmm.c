/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stands for a VMM: does what its first argument says. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fake-vmm.h"

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
        char line[16];

        for (int fd = 0; fd < 1024; fd++) {
                int flags = fcntl(fd, F_GETFD);

                if (flags < 0)
                        continue;
                (void) snprintf(line, sizeof(line), "%d%s ", fd, flags & FD_CLOEXEC ? "!" : "");
                say(line);
        }
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
        say(!isatty(0) || !isatty(1) ? "READY\n" : tcgetpgrp(0) == getpgrp() ? "TTY\n" : "somebody else's TTY\n");
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

static void tell_ids(void) {
        char line[64];

        (void) snprintf(line, sizeof(line), "ids=%d,%d pid=%d parent=%d\n", (int) getuid(), (int) getgid(), (int) getpid(), (int) getppid());
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
        int fd;

        tell_ids();
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

static long reads(const char *path) {
        char c;
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        return fd < 0 ? -1 : read(fd, &c, 1);
}

static long writes(const char *path) {
        int fd = open(path, O_WRONLY | O_CLOEXEC);

        return fd < 0 ? -1 : write(fd, "w", 1);
}

static long listens(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        strcpy(address.sun_path, path);
        return bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 ? -1 : listen(fd, 1);
}

static long connects(uint16_t port) {
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        return fd < 0 ? -1 : connect(fd, (struct sockaddr *) &address, sizeof(address));
}

/* The same of a VMM, whose fds 3… are shown to it: a kernel to copy, one to read, a disk, one to read, a directory of sockets */
static void attack_vmm(uint16_t port) {
        struct stat st;
        int fd;

        tell_ids();
        tell("directory-fd", fcntl(7, F_GETFD));
        tell("reads-copy", reads("/files/3"));
        tell("writes-copy", writes("/files/3"));
        tell("reads-kernel", reads("/files/4"));
        tell("writes-kernel", writes("/files/4"));
        tell("reads-disk", reads("/files/5"));
        tell("writes-disk", writes("/files/5"));
        tell("writes-read-only-disk", writes("/files/6"));
        tell("removes-disk", unlink("/files/5"));
        fd = open("/files/5", O_RDWR | O_CLOEXEC);
        tell("owns-disk", fstat(fd, &st) == 0 && st.st_uid == getuid() ? 0 : -1);
        tell("fchmod", fchmod(fd, 04777));
        tell("chmod", chmod("/files/5", 04777));
        tell("fchmodat2", syscall(452, AT_FDCWD, "/files/5", 04777, 0));
        tell("fchown", fchown(fd, 0, 0));
        tell("setxattr", setxattr("/files/5", "user.x", "y", 1, 0));
        tell("set-flags", ioctl(fd, 0x40086602, &(int) { 16 }));
        tell("link", link("/files/5", "/vm/disk"));
        tell("directory", access("/files/7", X_OK));
        tell("listens", listens("/vm/api"));
        tell("mknod", mknod("/vm/null", S_IFCHR | 0666, makedev(1, 3)));
        tell("executes", access("/vm", W_OK));
        tell("kvm", open("/dev/kvm", O_RDWR | O_CLOEXEC));
        tell("vhost-vsock", open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC));
        tell("proc", access("/proc", F_OK));
        tell("sys", access("/sys", F_OK));
        tell("shadow", open("/etc/shadow", O_RDONLY | O_CLOEXEC));
        tell("out", open("/files/7/../../../../etc/shadow", O_RDONLY | O_CLOEXEC));
        tell("makes", open("/made", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
        tell("host-process", kill(2, 0));
        tell("host-port", connects(port));
        tell("namespace", unshare(CLONE_NEWUSER));
        tell("mount", mount("none", "/vm", "tmpfs", 0, NULL));
        tell("chroot", chroot("/vm"));
        tell("setuid", setuid(0));
        tell("ring", syscall(SYS_io_uring_setup, 1, NULL));
        tell("ptrace", ptrace(PTRACE_TRACEME, 0, NULL, NULL));
        tell("netlink", socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
        tell("vsock", socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
        tell("queue", syscall(SYS_mq_open, "q", O_CREAT, 0600, NULL));
        tell("limit", setrlimit(RLIMIT_NPROC, &(struct rlimit) { RLIM_INFINITY, RLIM_INFINITY }));
        tell("core", setrlimit(RLIMIT_CORE, &(struct rlimit) { 1, 1 }));
        list("/");
        list("/dev");
        list("/files");
        say("end\n");
}

/* Leaves what leads elsewhere where its sockets are, and writes as much as it can. */
static _Noreturn void make_sockets(void) {
        static char block[4096];
        int fd;

        (void) listens("/vm/api");
        (void) !symlink("/run/dbus/system_bus_socket", "/vm/link");
        fd = open("/vm/big", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        for (unsigned i = 0; i < 1024; i++)
                if (write(fd, block, sizeof(block)) != sizeof(block)) {
                        tell("full", -1);
                        break;
                }
        say("READY\n");
        for (;;)
                pause();
}

static void version(const char *self) {
        char path[4096], pid[16] = "";
        FILE *f;

        if (!strstr(self, "hang")) {
                say(getuid() == 0 ? "of root" : "Fake\tVMM 1.0\nsecond line\n");
                return;
        }

        if (fork() > 0)
                for (;;)
                        pause();
        (void) snprintf(path, sizeof(path), "%s.pid", self);
        f = fopen(path, "we");
        if (f && readlink("/proc/self", pid, sizeof(pid) - 1) > 0) /* as the host knows it */
                (void) fprintf(f, "%s\n", pid);
        if (f)
                (void) fclose(f);
        for (;;)
                pause();
}

static void __attribute__((__noreturn__)) close_life(void) {
        (void) close_range(3, ~0U, 0);
        (void) kill(getpid(), SIGKILL); /* which does nothing to the first of a PID namespace */
        say("READY\n");
        for (;;)
                pause();
}

int main(int argc, char *argv[]) {
        volatile int *volatile nowhere = NULL;
        const char *mode = argc > 1 ? argv[1] : "", *value = argc > 2 ? argv[2] : "0";

        (void) signal(SIGUSR1, on_usr1);
        if (strcmp(mode, "attack") == 0)
                attack();
        else if (strcmp(mode, "attack-vmm") == 0)
                attack_vmm((uint16_t) atoi(value));
        else if (strcmp(mode, "sockets") == 0)
                make_sockets();
        else if (strcmp(mode, "--version") == 0)
                version(argv[0]);
        else if (strcmp(mode, "fds") == 0)
                list_fds();
        else if (strcmp(mode, "exit") == 0)
                return atoi(value);
        else if (strcmp(mode, "fault") == 0)
                *nowhere = 1;
        else if (strcmp(mode, "abort") == 0)
                abort();
        else if (strcmp(mode, "spew") == 0)
                spew(strtoul(value, NULL, 10));
        else if (strcmp(mode, "child") == 0) {
                leave_child();
                return 4;
        } else if (strcmp(mode, "close-life") == 0)
                close_life();
        else if (strcmp(mode, "echo") == 0)
                echo();
        else
                for (say("READY\n");;)
                        pause();
        return 0;
}
