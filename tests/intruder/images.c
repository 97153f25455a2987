/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The VM's own disk and kernel: whoever may write to an image must not be able to make a program of the owner's of it, or keep others
 * from it. */

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "intruder.h"

static int set_mode(const char *arg) {
        const char *path;
        int fd = own_disk(&path), r;

        if (fd < 0)
                return fd;
        r = outcome(fchmod(fd, 04755));
        if (r < 0 && path)
                r = outcome(chmod(path, 04755));
        if (r < 0 && path)
                r = outcome(fchmodat(AT_FDCWD, path, 04755, 0));
        return r;
}

static int set_mode2(const char *arg) {
        const char *path;
        int fd = own_disk(&path);

        return fd < 0 ? fd : outcome(syscall(NR_FCHMODAT2, fd, "", 0755, AT_EMPTY_PATH));
}

static int set_kernels_mode(const char *arg) {
        const char *path;
        int fd = own_kernel(&path);

        return fd < 0 ? fd : outcome(fchmod(fd, 04755));
}

static int set_owner(const char *arg) {
        const char *path;
        int fd = own_disk(&path), r;

        if (fd < 0)
                return fd;
        r = outcome(fchown(fd, 65534, (gid_t) -1));
        if (r < 0)
                r = outcome(fchownat(fd, "", (uid_t) -1, 65534, AT_EMPTY_PATH));
        return r < 0 && path ? outcome(lchown(path, 65534, 65534)) : r;
}

static int set_attribute(const char *name) {
        const char *path;
        int fd = own_disk(&path), r;

        if (fd < 0)
                return fd;
        r = outcome(fsetxattr(fd, name, "x", 1, 0));
        return r < 0 && path ? outcome(setxattr(path, name, "x", 1, 0)) : r;
}

/* u::rwx,u:65534:rwx,g::---,m::rwx,o::rwx */
static int set_acl(const char *arg) {
        static const uint16_t acl[] = { 2, 0,  0x01, 7, 0xffff, 0xffff,  0x02, 7, 65534, 0,  0x04, 0, 0xffff, 0xffff,
                                        0x10, 7, 0xffff, 0xffff,  0x20, 7, 0xffff, 0xffff };
        const char *path;
        int fd = own_disk(&path);

        return fd < 0 ? fd : outcome(fsetxattr(fd, "system.posix_acl_access", acl, sizeof(acl), 0));
}

static int set_attribute_at(const char *arg) {
        struct { uint64_t value; uint32_t size, flags; } args = { (uint64_t) (uintptr_t) "x", 1, 0 };
        const char *path;
        int fd = own_disk(&path);

        return fd < 0 ? fd : outcome(syscall(NR_SETXATTRAT, fd, "", AT_EMPTY_PATH, "trusted.vmunit-test", &args, sizeof(args)));
}

/* Of the kinds that a file system may have */
static int set_flags(const char *arg) {
        const char *path;
        int fd = own_disk(&path);
        unsigned long flags = 0;

        if (fd < 0)
                return fd;
        if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
                flags = 0;
        flags |= FS_NODUMP_FL;
        return outcome(ioctl(fd, FS_IOC_SETFLAGS, &flags));
}

static int set_flags_extended(const char *arg) {
        struct fsxattr x = {};
        const char *path;
        int fd = own_disk(&path);

        if (fd < 0)
                return fd;
        (void) ioctl(fd, FS_IOC_FSGETXATTR, &x);
        x.fsx_xflags |= FS_XFLAG_NODUMP;
        return outcome(ioctl(fd, FS_IOC_FSSETXATTR, &x));
}

/* The disk may be a loop device, which needs no right to be told such things. */
static int tell_loop(const char *what) {
        unsigned long request = strcmp(what, "clear") == 0 ? LOOP_CLR_FD : strcmp(what, "change") == 0 ? LOOP_CHANGE_FD : LOOP_SET_STATUS64;
        struct loop_info64 info = {};
        const char *path;
        int fd = own_disk(&path);

        if (fd < 0)
                return fd;
        return outcome(request == LOOP_SET_STATUS64 ? ioctl(fd, request, &info) : ioctl(fd, request, fd));
}

static int link_to(const char *at) {
        const char *path;
        int fd = own_disk(&path), r;

        if (fd < 0)
                return fd;
        r = outcome(linkat(fd, "", AT_FDCWD, at, AT_EMPTY_PATH));
        if (r < 0 && path)
                r = outcome(link(path, at));
        if (r == 0)
                (void) unlink(at);
        return r;
}

/* Others' open to write would have to wait for it. */
static int lease(const char *arg) {
        const char *path;
        int fd = own_kernel(&path);

        return fd < 0 ? fd : outcome(fcntl(fd, F_SETLEASE, F_RDLCK));
}

static int remove_disk(const char *arg) {
        char away[4096];
        const char *path;
        int fd = own_disk(&path), r;

        if (fd < 0 || !path)
                return -ENOENT;
        (void) snprintf(away, sizeof(away), "%s.away", path);
        r = outcome(rename(path, away));
        if (r == 0)
                (void) rename(away, path);
        return r;
}

static int remount(const char *arg) {
        const char *path;
        int fd = own_kernel(&path);

        if (fd < 0)
                return fd;
        return outcome(syscall(NR_OPEN_TREE, fd, "", 1 /* OPEN_TREE_CLONE */ | AT_EMPTY_PATH));
}

const Attempt image_attempts[] = {
        { "image-open-tree", remount, NULL },
        { "image-link", link_to, "/tmp/intruder/linked" },
        { "image-remove", remove_disk, NULL },
        { "image-lease", lease, NULL },
        { "image-flags", set_flags, NULL },
        { "image-flags-extended", set_flags_extended, NULL },
        { "image-attribute", set_attribute, "user.vmunit-test" },
        { "image-attribute-security", set_attribute, "security.vmunit-test" },
        { "image-attribute-trusted", set_attribute, "trusted.vmunit-test" },
        { "image-attribute-at", set_attribute_at, NULL },
        { "image-acl", set_acl, NULL },
        { "image-loop-clear", tell_loop, "clear" },
        { "image-loop-change", tell_loop, "change" },
        { "image-loop-status", tell_loop, "status" },
        { "image-mode2", set_mode2, NULL },
        { "image-mode", set_mode, NULL },
        { "image-mode-of-kernel", set_kernels_mode, NULL },
        { "image-owner", set_owner, NULL },
        {},
};
