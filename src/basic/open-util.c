/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <stdio.h>

#include "basic/fd-util.h"
#include "basic/open-util.h"

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

/* QEMU's own locks are on bytes from 100 on, and each of its readers would see a reader there. */
int lock_image(int fd, bool write) {
        struct flock lock = { .l_type = write ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET, .l_len = write ? 0 : 1 };

        if (fcntl(fd, F_OFD_SETLK, &lock) < 0 && (errno == EAGAIN || errno == EACCES))
                return -EAGAIN;
        return 0;
}

/* What it is is found out before it is opened: to open a tape or a FIFO does something already. */
int open_checked(const char *path, bool write, bool directory, struct stat *ret_st) {
        _cleanup_close_ int fd = -EBADF, real = -EBADF;
        char self[64];
        int r;

        fd = open(path, O_PATH | O_CLOEXEC);
        if (fd < 0 || fstat(fd, ret_st) < 0)
                return -errno;
        r = check_kind(ret_st->st_mode, directory);
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
