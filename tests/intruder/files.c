/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Names: files, directories, devices of the host */

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "intruder.h"

static int try_open(const char *path, int flags) {
        return outcome(open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600));
}

static int reads(const char *path) {
        return try_open(path, O_RDONLY);
}

/* listmount(2) of all there are, statmount(2) of the first of them */
static int mounts(const char *what) {
        struct { uint32_t size, spare; uint64_t mount, param; } request = { .size = 24, .mount = UINT64_MAX };
        uint64_t first = 0;
        char told[4096];
        long n;

        n = syscall(NR_LISTMOUNT, &request, &first, 1, 0);
        if (*what == 'l')
                return outcome(n);
        request.mount = first;
        request.param = 2; /* STATMOUNT_MNT_BASIC */
        return outcome(syscall(NR_STATMOUNT, &request, told, sizeof(told), 0));
}

static int writes(const char *path) {
        return try_open(path, O_WRONLY);
}

static int makes(const char *path) {
        int r = try_open(path, O_WRONLY | O_CREAT | O_EXCL);

        if (r == 0)
                (void) unlink(path);
        return r;
}

static int makes_directory(const char *path) {
        int r = outcome(mkdir(path, 0700));

        if (r == 0)
                (void) rmdir(path);
        return r;
}

/* Something must be in it. */
static int lists(const char *path) {
        DIR *d = opendir(path);
        struct dirent *de;

        if (!d)
                return -errno;
        while ((de = readdir(d)))
                if (de->d_name[0] != '.')
                        return 0;
        return -ENODATA;
}

/* Up from the root, from the working directory, and from all that is open */
static int climbs(const char *path) {
        char up[256] = "", at[512];

        for (int i = 0; i < 32; i++)
                strcat(up, "../");
        (void) snprintf(at, sizeof(at), "%s%s", up, path + 1);
        if (reads(at) == 0)
                return 0;
        for (int fd = 0; fd < 1024; fd++)
                if (openat(fd, at, O_RDONLY | O_CLOEXEC) >= 0)
                        return 0;
        return -ENOENT;
}

static int makes_node(const char *path) {
        static const char *const directories[] = { "/dev", "/", "/vm", "/tmp", "/run", "/share", NULL };
        int r = -ENOENT;

        for (const char *const *d = directories; *d && r != 0; d++) {
                char at[256];

                (void) snprintf(at, sizeof(at), "%s/vmunit-test-node", *d);
                r = outcome(mknod(at, (path[0] == 'b' ? S_IFBLK : S_IFCHR) | 0600, path[0] == 'b' ? makedev(7, 0) : makedev(1, 11)));
                if (r == 0)
                        (void) unlink(at);
        }
        return r;
}

/* Wherever it may write: more than the little that its sockets take */
static int fills(const char *kind) {
        static const char *const directories[] = { "/vm", "/run", "/tmp", "/dev", "/dev/shm", "/", "/files", "/etc", "/usr", "/var/tmp", NULL };
        static char block[64 * 1024];
        size_t written = 0;

        for (const char *const *d = directories; *d; d++)
                for (unsigned i = 0; i < (kind[0] == 'b' ? 1U : 300U); i++) {
                        char at[256];
                        int fd;

                        (void) snprintf(at, sizeof(at), "%s/vmunit-test-%u", *d, i);
                        fd = open(at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                        if (fd < 0)
                                continue;
                        if (kind[0] != 'b')
                                written++;
                        for (ssize_t n = 1; kind[0] == 'b' && n > 0 && written < 4 * 1024 * 1024; written += (size_t) n)
                                n = write(fd, block, sizeof(block)), n = n < 0 ? 0 : n;
                        close(fd);
                }
        for (const char *const *d = directories; *d; d++)
                for (unsigned i = 0; i < 300; i++) {
                        char at[256];

                        (void) snprintf(at, sizeof(at), "%s/vmunit-test-%u", *d, i);
                        (void) unlink(at);
                }
        return written >= (kind[0] == 'b' ? 1024U * 1024U : 300U) ? 0 : -ENOSPC;
}

static int handle(const char *path) {
        union { struct file_handle h; char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ]; } u = { .h.handle_bytes = MAX_HANDLE_SZ };
        const char *own;
        int mount, disk = own_disk(&own);

        if (name_to_handle_at(AT_FDCWD, path, &u.h, &mount, 0) < 0 && name_to_handle_at(disk, "", &u.h, &mount, AT_EMPTY_PATH) < 0)
                return -errno;
        return outcome(open_by_handle_at(disk, &u.h, O_RDONLY | O_CLOEXEC));
}

static int own_program(const char *arg) {
        return writes(fact("program"));
}

/* The size of what is left over would be wrong. */
static int own_kernel_to_write(const char *arg) {
        const char *path;
        int fd = own_kernel(&path);
        char byte;

        if (fd < 0 || pread(fd, &byte, 1, 0) != 1)
                return -errno;
        if (pwrite(fd, &byte, 1, 0) == 1)
                return 0;
        return path ? writes(path) : -errno;
}

const Attempt file_attempts[] = {
        { "read-shadow", reads, "/etc/shadow" },
        { "read-passwd", reads, "/etc/passwd" },
        { "read-machine-id", reads, "/etc/machine-id" },
        { "read-vmunit-conf", reads, "/etc/vmunit/vmunit.conf" },
        { "climb-to-shadow", climbs, "/etc/shadow" },
        { "read-database", reads, "/var/lib/vmunit/vmunit.db" },
        { "write-database", writes, "/var/lib/vmunit/vmunit.db" },
        { "list-state", lists, "/var/lib/vmunit" },
        { "list-run", lists, "/run/vmunit" },
        { "read-victims-run-file", reads, "@victim-run/run" },
        { "write-victims-exit", writes, "@victim-run/exit" },
        { "read-victims-console", reads, "@victim-state/console.log" },
        { "read-victims-output", reads, "@victim-state/last-output" },
        { "read-victims-disk", reads, "@victim-disk" },
        { "write-victims-disk", writes, "@victim-disk" },
        { "write-own-exit", writes, "@own-run/exit" },
        { "write-own-run-file", writes, "@own-run/run" },
        { "list-home", lists, "@home" },
        { "list-tmp", lists, "/tmp" },
        { "list-var", lists, "/var" },
        { "list-run-systemd", lists, "/run/systemd" },
        { "list-etc", lists, "/etc" },
        { "write-usr", makes, "/usr/bin/vmunit-test" },
        { "write-lib", makes, "/usr/lib/vmunit-test" },
        { "write-root", makes, "/vmunit-test" },
        { "write-dev", makes, "/dev/vmunit-test" },
        { "write-units", makes, "/run/systemd/system/vmunit-test.service" },
        { "write-cron", makes, "/etc/vmunit-test" },
        { "make-directory", makes_directory, "/vmunit-test" },
        { "write-own-program", own_program, NULL },
        { "write-own-kernel", own_kernel_to_write, NULL },
        { "open-by-handle", handle, "/etc/shadow" },
        { "fill-bytes", fills, "bytes" },
        { "fill-files", fills, "files" },
        { "proc-self", reads, "/proc/self/status" },
        { "proc-environ-of-1", reads, "/proc/1/environ" },
        { "proc-root-of-1", lists, "/proc/1/root" },
        { "proc-memory", writes, "/proc/self/mem" },
        { "proc-fds-of-bystander", lists, "@bystander-proc/fd" },
        { "proc-mounts", reads, "/proc/self/mountinfo" },
        { "list-mounts", mounts, "list" },
        { "tell-of-mounts", mounts, "tell" },
        { "proc-core-pattern", writes, "/proc/sys/kernel/core_pattern" },
        { "proc-sysrq", writes, "/proc/sysrq-trigger" },
        { "proc-keys", reads, "/proc/keys" },
        { "sys-kernel", lists, "/sys/kernel" },
        { "sys-block", lists, "/sys/class" },
        { "cgroup-list", lists, "/sys/fs/cgroup" },
        { "cgroup-leave", writes, "/sys/fs/cgroup/cgroup.procs" },
        { "cgroup-victims-kill", writes, "@victim-cgroup/cgroup.kill" },
        { "cgroup-victims-freeze", writes, "@victim-cgroup/cgroup.freeze" },
        { "device-mem", reads, "/dev/mem" },
        { "device-log", writes, "/dev/kmsg" },
        { "device-disk", reads, "@block-device" },
        { "device-tty", reads, "/dev/tty" },
        { "device-terminals", reads, "/dev/ptmx" },
        { "device-fuse", reads, "@fuse-device" },
        { "device-tun", reads, "@tun-device" },
        { "device-loop", reads, "@loop-device" },
        { "device-shm", lists, "/dev" "/shm" },
        { "make-device", makes_node, "character" },
        { "make-disk", makes_node, "block" },
        {},
};
