/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#include "basic/fd-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"

#define PID_FS_MAGIC_NUMBER 0x50494446 /* linux/magic.h: PID_FS_MAGIC, not in older headers */

/* linux/pidfd.h as of 6.15; older headers lack it */
struct pidfd_info {
        uint64_t mask;
        uint64_t cgroupid;
        uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
        int32_t exit_code;
};
#define PIDFD_INFO_CREDS_BIT (UINT64_C(1) << 1)
#define PIDFD_INFO_EXIT_BIT (UINT64_C(1) << 3)
#define PIDFD_GET_INFO_IOCTL _IOWR(0xFF, 11, struct pidfd_info)

int pidfd_open_pid(pid_t pid) {
        int fd = (int) syscall(SYS_pidfd_open, pid, 0);

        return fd < 0 ? -errno : fd;
}

int pidfd_kill(int pidfd, int sig) {
        return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0 ? -errno : 0;
}

bool pidfd_dead(int pidfd) {
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return poll(&p, 1, 0) > 0 && (p.revents & POLLIN);
}

int pidfd_get_pid(int pidfd, pid_t *ret) {
        _cleanup_free_ char *path = NULL, *text = NULL;
        const char *p;
        int r, pid;

        path = strjoinf("/proc/self/fdinfo/%d", pidfd);
        if (!path)
                return -ENOMEM;
        r = read_file_all(path, 4096, &text, NULL);
        if (r < 0)
                return r;

        p = startswith(text, "Pid:\t") ?: strstr(text, "\nPid:\t");
        if (!p || sscanf(p, p == text + 5 ? "%d" : "\nPid:\t%d", &pid) != 1)
                return -EBADF;
        if (pid <= 0)
                return -ESRCH;
        *ret = pid;
        return 0;
}

/* A file of /proc/PID */
static int read_of(pid_t pid, const char *file, char **ret) {
        _cleanup_free_ char *path = strjoinf("/proc/%d/%s", (int) pid, file);
        int r;

        if (!path)
                return -ENOMEM;
        r = read_file_all(path, 64 * 1024, ret, NULL);
        return r == -ENOENT ? -ESRCH : r;
}

int pid_euid(pid_t pid, uid_t *ret) {
        _cleanup_free_ char *text = NULL;
        unsigned euid;
        const char *p;
        int r;

        r = read_of(pid, "status", &text);
        if (r < 0)
                return r;
        p = strstr(text, "\nUid:\t");
        if (!p || sscanf(p, "\nUid: %*u %u", &euid) != 1)
                return -EBADMSG;
        *ret = euid;
        return 0;
}

int pidfd_get_euid(int pidfd, uid_t *ret) {
        struct pidfd_info info = { .mask = PIDFD_INFO_CREDS_BIT };
        pid_t pid;
        int r;

        if (ioctl(pidfd, PIDFD_GET_INFO_IOCTL, &info) >= 0 && info.mask & PIDFD_INFO_CREDS_BIT)
                *ret = info.euid;
        else {
                r = pidfd_get_pid(pidfd, &pid);
                if (r >= 0)
                        r = pid_euid(pid, ret);
                if (r < 0)
                        return r;
        }
        /* While it lives its number is nobody else's. */
        return pidfd_dead(pidfd) ? -ESRCH : 0;
}

uint64_t pidfd_inode(int pidfd) {
        struct statfs sfs;
        struct stat st;

        if (fstatfs(pidfd, &sfs) < 0 || sfs.f_type != PID_FS_MAGIC_NUMBER || fstat(pidfd, &st) < 0)
                return 0;
        return st.st_ino;
}

int pidfd_exit_status(int pidfd, int *ret_status) {
        struct pidfd_info info = { .mask = PIDFD_INFO_EXIT_BIT };

        if (ioctl(pidfd, PIDFD_GET_INFO_IOCTL, &info) < 0)
                return -EOPNOTSUPP;
        if (!(info.mask & PIDFD_INFO_EXIT_BIT))
                return -EAGAIN;
        *ret_status = info.exit_code;
        return 0;
}

/* A field of /proc/PID/stat, proc_pid_stat(5), from the third on. buf: as much of what stands there as it takes */
static int pid_stat_field(pid_t pid, int number, char *buf, size_t size) {
        _cleanup_free_ char *text = NULL;
        char *p;
        int r;

        r = read_of(pid, "stat", &text);
        if (r < 0)
                return r;

        /* The command's name may contain anything, so count from the last parenthesis: field 3 stands behind it. */
        p = strrchr(text, ')');
        for (int field = 2; p && field < number; field++)
                p = strchr(p + 1, ' ');
        if (!p)
                return -EBADMSG;
        (void) snprintf(buf, size, "%s", p + 1);
        return 0;
}

int pid_start_time(pid_t pid, uint64_t *ret) {
        char buf[32];
        int r;

        r = pid_stat_field(pid, 22, buf, sizeof(buf));
        if (r < 0)
                return r;
        *ret = strtoull(buf, NULL, 10);
        return 0;
}

bool pid_killed(pid_t pid) {
        _cleanup_free_ char *text = NULL;
        const char *p;

        if (read_of(pid, "status", &text) < 0)
                return false;
        /* Those of a thread alone go when it takes them; these stay. */
        p = strstr(text, "\nShdPnd:\t");
        return p && strtoull(p + strlen("\nShdPnd:\t"), NULL, 16) & (1U << (SIGKILL - 1));
}

bool pid_stopped(pid_t pid) {
        char state[2];

        return pid_stat_field(pid, 3, state, sizeof(state)) >= 0 && strchr("Tt", state[0]);
}

int pid_cgroup(pid_t pid, char **ret) {
        _cleanup_free_ char *text = NULL;
        char *p, *e;
        int r;

        r = read_of(pid, "cgroup", &text);
        if (r < 0)
                return r;

        p = startswith(text, "0::") ? text : strstr(text, "\n0::");
        if (!p)
                return -ENODATA;
        p = strchr(p, '/');
        if (!p)
                return -EBADMSG;
        e = strchr(p, '\n');
        p = e ? strndup(p, (size_t) (e - p)) : strdup(p);
        if (!p)
                return -ENOMEM;
        *ret = p;
        return 0;
}

int read_boot_id(char ret[static 37]) {
        _cleanup_free_ char *text = NULL;
        size_t n;
        int r;

        r = read_file_all("/proc/sys/kernel/random/boot_id", 64, &text, &n);
        if (r < 0)
                return r;
        if (n < 36)
                return -EBADMSG;
        memcpy(ret, text, 36);
        ret[36] = 0;
        return 0;
}
