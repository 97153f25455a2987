/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "exec/view.h"

/* Where the new root is made, out of the way of nobody: this mount namespace is our own. */
#define ROOT "/tmp"
#define ROOT_SIZE (64U * 1024U)

/* Of a kernel or an initramfs that can't be shown as it is: it is held in memory. */
#define COPY_MAX (512U * 1024U * 1024U)

static int clone_tree(const char *path) {
        int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);

        return fd < 0 ? -errno : fd;
}

int view_take(View *v, const Walls *w) {
        v->usr = clone_tree("/usr");
        if (v->usr < 0)
                return v->usr;
        if (strncmp(w->program, "/usr/", 5) != 0) {
                v->program = clone_tree(w->program);
                if (v->program < 0)
                        return v->program;
        }
        return 0;
}

void view_done(View *v) {
        close_many((int[]) { v->usr, v->program }, 2);
        *v = VIEW_NONE;
}

static int place_tree(int tree, const char *at) {
        return move_mount(tree, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH) < 0 ? -errno : 0;
}

static int place_read_only(int tree, const char *at) {
        struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, .propagation = MS_PRIVATE };

        return mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0 ? -errno : place_tree(tree, at);
}

/* Programs and libraries: what /usr has */
static int show_usr(int usr) {
        static const char *const links[] = { "bin", "sbin", "lib", "lib32", "lib64", "libx32" };
        int r;

        if (mkdir(ROOT "/usr", 0755) < 0)
                return -errno;
        r = place_read_only(usr, ROOT "/usr");
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(links); i++) {
                char path[32], to[32];

                (void) snprintf(path, sizeof(path), ROOT "/%s", links[i]);
                (void) snprintf(to, sizeof(to), "usr/%s", links[i]);
                if (symlink(to, path) < 0)
                        r = -errno;
        }
        return r;
}

static int make_file(const char *at) {
        int fd = open(at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);

        return fd < 0 ? -errno : fd;
}

/* One that is not in /usr: that file alone, and nothing beside it */
static int show_program(int file, const char *path) {
        char at[PATH_MAX];
        int fd;

        if (file < 0)
                return 0;
        if (snprintf(at, sizeof(at), ROOT "%s", path) >= (int) sizeof(at))
                return -ENAMETOOLONG;
        for (char *p = strchr(at + strlen(ROOT "/"), '/'); p; p = strchr(p + 1, '/')) {
                *p = 0;
                if (mkdir(at, 0755) < 0 && errno != EEXIST)
                        return -errno;
                *p = '/';
        }
        fd = make_file(at);
        if (fd < 0)
                return fd;
        safe_close(fd);
        return place_read_only(file, at);
}

/* The mode, too, for umask(2) takes of it. */
static int make_node(const char *path, mode_t mode, dev_t device) {
        return mknod(path, mode, device) < 0 || chmod(path, mode & 07777) < 0 ? -errno : 0;
}

/* Whoever comes to it is the VM, which so needs not own it. */
static int copy_device(const char *path) {
        char at[64];
        struct stat st;

        (void) snprintf(at, sizeof(at), ROOT "%s", path);
        if (stat(path, &st) < 0)
                return -errno;
        return S_ISCHR(st.st_mode) ? make_node(at, S_IFCHR | 0666, st.st_rdev) : -ENODEV;
}

static int make_devices(const Walls *w) {
        static const struct { const char *path; unsigned minor; } devices[] = {
                { ROOT "/dev/null", 3 }, { ROOT "/dev/zero", 5 }, { ROOT "/dev/full", 7 },
                { ROOT "/dev/random", 8 }, { ROOT "/dev/urandom", 9 },
        };
        int r = 0;

        if (mkdir(ROOT "/dev", 0755) < 0)
                return -errno;
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(devices); i++)
                r = make_node(devices[i].path, S_IFCHR | 0666, makedev(1, devices[i].minor));
        if (r >= 0 && !w->is_share && !w->network)
                r = make_node(ROOT EXEC_STDERR, S_IFIFO | 0666, 0);
        if (r >= 0 && (w->rights & EXEC_KVM))
                r = copy_device("/dev/kvm");
        if (r >= 0 && (w->rights & EXEC_VHOST_VSOCK))
                r = copy_device("/dev/vhost-vsock");
        return r;
}

/* The VM's files */

static int copy_file(int from, const char *at, off_t size) {
        _cleanup_close_ int to = make_file(at);
        off_t offset = 0;

        if (to < 0)
                return to;
        while (offset < size) {
                ssize_t n = sendfile(to, from, &offset, (size_t) (size - offset));

                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -EIO; /* it shrinks */
        }
        return 0;
}

static int show_tree(int tree, const char *at, bool directory) {
        int fd;

        if (directory)
                return mkdir(at, 0755) < 0 ? -errno : place_tree(tree, at);
        fd = make_file(at);
        if (fd < 0)
                return fd;
        safe_close(fd);
        return place_tree(tree, at);
}

static int show_vms(int fd, ExecShown how, unsigned number) {
        int flags = fcntl(fd, F_GETFL);
        struct stat st;
        char at[32];

        (void) snprintf(at, sizeof(at), ROOT EXEC_FILES "/%u", number);
        if (flags < 0)
                return -errno;
        if (flags & O_PATH)
                return show_tree(fd, at, how == EXEC_SHOWN_DIRECTORY);
        if (fstat(fd, &st) < 0)
                return -errno;
        if (S_ISBLK(st.st_mode))
                return make_node(at, S_IFBLK | (how == EXEC_SHOWN_WRITE ? 0666 : 0444), st.st_rdev);
        return how == EXEC_SHOWN_COPY ? copy_file(fd, at, st.st_size) : -EINVAL;
}

/* What the copies take */
static int add_copies(const Walls *w, uint64_t *size) {
        int fd = w->first_shown;
        struct stat st;

        for (const char *s = w->shown; *s; s++) {
                if (*s == EXEC_SHOWN_NOT)
                        continue;
                if (*s == EXEC_SHOWN_COPY && !(fcntl(fd, F_GETFL) & O_PATH)) {
                        if (fstat(fd, &st) < 0)
                                return -errno;
                        if (st.st_size > COPY_MAX)
                                return -EFBIG;
                        *size += ((uint64_t) st.st_size + 4095) & ~UINT64_C(4095);
                }
                fd++;
        }
        return 0;
}

/* No link that it makes there leads who connects to its sockets to others of the host. */
static int make_sockets(Walls *w) {
        _cleanup_close_ int fs = fsopen("tmpfs", FSOPEN_CLOEXEC), tree = -EBADF;
        char id[16];
        int r;

        (void) snprintf(id, sizeof(id), "%" PRIu32, w->id);
        if (fs < 0 || fsconfig(fs, FSCONFIG_SET_STRING, "size", "256k", 0) < 0 ||
            fsconfig(fs, FSCONFIG_SET_STRING, "nr_inodes", "64", 0) < 0 ||
            fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0711", 0) < 0 ||
            fsconfig(fs, FSCONFIG_SET_STRING, "uid", id, 0) < 0 || fsconfig(fs, FSCONFIG_SET_STRING, "gid", id, 0) < 0 ||
            fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
                return -errno;
        tree = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW);
        if (tree < 0 || mkdir(ROOT EXEC_SOCKETS_DIR, 0755) < 0)
                return -errno;
        r = place_tree(tree, ROOT EXEC_SOCKETS_DIR);
        if (r >= 0)
                w->sockets = TAKE_FD(tree);
        return r;
}

static int fill_vms(Walls *w) {
        int fd = w->first_shown, r = 0;
        unsigned number = 3;

        if (mkdir(ROOT EXEC_FILES, 0755) < 0)
                return -errno;
        for (const char *s = w->shown; r >= 0 && *s; s++, number++)
                if (*s != EXEC_SHOWN_NOT)
                        r = show_vms(fd++, (ExecShown) *s, number);
        return r >= 0 && (w->rights & EXEC_SOCKETS) ? make_sockets(w) : r;
}

static int fill_shares(const Walls *w) {
        char target[64];

        (void) snprintf(target, sizeof(target), ROOT "%s", w->target);
        return mkdir(target, 0755) < 0 ? -errno : place_tree(w->tree, target);
}

/* In /tmp passt makes the empty directory that becomes its root. */
#define RESOLV_CONF_MAX 4096U
static int fill_network(const WallsNetwork *n) {
        _cleanup_close_ int fd = -EBADF;
        off_t start = 0;

        if (mkdir(ROOT "/tmp", 0755) < 0 || mkdir(ROOT "/etc", 0755) < 0)
                return -errno;
        fd = make_file(ROOT "/etc/resolv.conf");
        return fd < 0 || sendfile(fd, n->resolv_conf, &start, RESOLV_CONF_MAX) < 0 ? -errno : 0;
}

/* What is the program's kind's own */
static int fill_root(Walls *w) {
        if (!w->is_share && !w->network)
                return fill_vms(w);
        if (mkdir(ROOT "/proc", 0555) < 0)
                return -errno;
        return w->network ? fill_network(w->network) : fill_shares(w);
}

static int mount_root(const Walls *w) {
        uint64_t size = ROOT_SIZE;
        char options[64];
        int r;

        r = add_copies(w, &size);
        if (r < 0)
                return r;
        (void) snprintf(options, sizeof(options), "size=%" PRIu64 ",nr_inodes=512,mode=0755", size);
        return mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NOEXEC, options) < 0 ? -errno : 0;
}

static int change_root(void) {
        if (chdir(ROOT) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
                return -errno;
        return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0 ? -errno : 0;
}

int view_enter(const View *v, Walls *w) {
        int r;

        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return -errno;
        r = mount_root(w);
        if (r >= 0)
                r = show_usr(v->usr);
        if (r >= 0)
                r = show_program(v->program, w->program);
        if (r >= 0)
                r = make_devices(w);
        if (r >= 0)
                r = fill_root(w);
        return r < 0 ? r : change_root();
}
