/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"

int mkdir_ok(const char *path, unsigned mode) {
        struct stat st;

        if (mkdir(path, mode) >= 0)
                return 0;
        if (errno != EEXIST)
                return -errno;
        if (lstat(path, &st) < 0)
                return -errno;
        return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

/* Not what is mounted there, for that is somebody else's: -EBUSY. (openat2() is shut by RestrictSUIDSGID=.) */
static int open_dir_at(int parent, const char *name) {
        _cleanup_close_ int fd = -EBADF;
        struct statx st;

        fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || statx(fd, "", AT_EMPTY_PATH, 0, &st) < 0)
                return -errno;
        return st.stx_attributes & STATX_ATTR_MOUNT_ROOT ? -EBUSY : TAKE_FD(fd);
}

static int remove_at(int parent, const char *name);

/* Takes fd over. */
static int remove_content(int fd) {
        DIR *d = fdopendir(fd);
        int r = 0;

        if (!d) {
                r = -errno;
                safe_close(fd);
                return r;
        }
        for (struct dirent *e; r >= 0 && (errno = 0, e = readdir(d));)
                if (!streq(e->d_name, ".") && !streq(e->d_name, ".."))
                        r = remove_at(fd, e->d_name);
        closedir(d);
        return r;
}

static int remove_at(int parent, const char *name) {
        int fd, r;

        if (unlinkat(parent, name, 0) >= 0 || errno == ENOENT)
                return 0;
        if (errno != EISDIR && errno != EPERM)
                return -errno;

        fd = open_dir_at(parent, name);
        if (fd == -ENOTDIR) /* the unlink was really refused */
                return -EPERM;
        if (fd < 0)
                return fd;
        r = remove_content(fd);
        if (r >= 0 && unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
                r = -errno;
        return r;
}

int rm_rf(const char *path) {
        const char *name = strrchr(path, '/');
        _cleanup_free_ char *dir = NULL;
        _cleanup_close_ int fd = -EBADF;

        if (!name || !name[1])
                return -EINVAL;
        dir = strndup(path, (size_t) (name + 1 - path));
        if (!dir)
                return -ENOMEM;
        fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        return remove_at(fd, name + 1);
}

int rm_content(const char *path) {
        int fd = open_dir_at(AT_FDCWD, path);

        if (fd < 0)
                return fd == -ENOENT ? 0 : fd;
        return remove_content(fd);
}

int create_fresh(const char *path) {
        int fd;

        if (unlink(path) < 0 && errno != ENOENT)
                return -errno;
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        return fd < 0 ? -errno : fd;
}

int write_file_atomic(const char *path, const char *content, bool sync) {
        _cleanup_free_ char *tmp = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        tmp = strjoinf("%s.new", path);
        if (!tmp)
                return -ENOMEM;

        fd = create_fresh(tmp);
        if (fd < 0)
                return fd;

        r = loop_write(fd, content, strlen(content));
        if (r >= 0 && sync && fsync(fd) < 0)
                r = -errno;
        if (r >= 0 && rename(tmp, path) < 0)
                r = -errno;
        if (r < 0)
                (void) unlink(tmp);
        return r;
}
