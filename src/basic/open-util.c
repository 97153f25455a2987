/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "basic/fd-util.h"
#include "basic/open-util.h"
#include "basic/string-util.h"

#define MOUNTINFO_MAX (16U * 1024U * 1024U)

static int check_kind(mode_t mode, bool directory) {
        switch (mode & S_IFMT) {
        case S_IFDIR:
                return directory ? 0 : -EISDIR;
        case S_IFREG:
        case S_IFBLK:
                return directory ? -ENOTDIR : 0;
        case S_IFIFO:
                return -ESPIPE;
        case S_IFSOCK:
                return -ENXIO;
        case S_IFCHR:
                return -ENOTBLK;
        default:
                return -EINVAL;
        }
}

/* Type, source and options of the file system that is mounted by this number, proc_pid_mountinfo(5) */
static const char *find_mount(char *mountinfo, uint64_t id) {
        char *rest = NULL;

        for (char *line = strtok_r(mountinfo, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
                if (strtoull(line, NULL, 10) == id)
                        return strstr(line, " - ");
        return NULL;
}

/* Users mount none of type virtiofs, which has no such option. */
static int fuse_is_roots(int fd) {
        _cleanup_free_ char *mountinfo = NULL;
        const char *mount;
        struct statx stx;
        int r;

        if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &stx) < 0)
                return -errno;
        r = read_file_all("/proc/self/mountinfo", MOUNTINFO_MAX, &mountinfo, NULL);
        if (r < 0)
                return r;
        mount = find_mount(mountinfo, stx.stx_mnt_id);
        return mount && (startswith(mount, " - virtiofs ") || strstr(strrchr(mount, ' '), ",user_id=0,"));
}

/* Even to close a file may wait for ever for the program that serves it, which must not be a user's: others are to close it, too. What
 * /proc shows of "self" is the opener's, not the owner's. */
static int check_file_system(int fd) {
        struct statfs sfs;
        int r;

        if (fstatfs(fd, &sfs) < 0)
                return -errno;
        if (sfs.f_type == PROC_SUPER_MAGIC)
                return -EMEDIUMTYPE;
        if (sfs.f_type != FUSE_SUPER_MAGIC)
                return 0;
        r = fuse_is_roots(fd);
        return r < 0 ? r : r > 0 ? 0 : -EREMOTE;
}

/* QEMU's own locks are on bytes from 100 on, and each of its readers would see a reader there. */
int lock_image(int fd, bool write) {
        struct flock lock = { .l_type = write ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET, .l_len = write ? 0 : 1 };

        if (fcntl(fd, F_OFD_SETLK, &lock) < 0 && (errno == EAGAIN || errno == EACCES))
                return -EAGAIN;
        return 0;
}

/* Links like those in /proc/PID/fd lead to what the opener has open, and past directories that the owner may not search. */
static int open_path(const char *path) {
        struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS };
        int fd = (int) syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));

        return fd < 0 ? -errno : fd;
}

/* What it is is found out before it is opened: to open a tape or a FIFO does something already. */
int open_checked(const char *path, bool write, bool directory, struct stat *ret_st) {
        _cleanup_close_ int fd = -EBADF, real = -EBADF;
        char self[64];
        int r;

        fd = open_path(path);
        if (fd < 0)
                return fd;
        if (fstat(fd, ret_st) < 0)
                return -errno;
        r = check_kind(ret_st->st_mode, directory);
        if (r >= 0)
                r = check_file_system(fd);
        if (r < 0)
                return r;

        (void) snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
        real = open(self, (write ? O_RDWR : O_RDONLY) | (directory ? O_DIRECTORY : 0) |
                                  O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (real < 0 || fstat(real, ret_st) < 0 || fcntl(real, F_SETFL, 0) < 0)
                return -errno;

        if (S_ISBLK(ret_st->st_mode)) {
                ret_st->st_size = lseek(real, 0, SEEK_END);
                if (ret_st->st_size < 0 || lseek(real, 0, SEEK_SET) < 0)
                        return -errno;
        }
        return TAKE_FD(real);
}
