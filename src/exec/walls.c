/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "basic/cap-util.h"
#include "basic/fd-util.h"
#include "exec/loopback.h"
#include "exec/walls.h"

/* Where the new root is made, out of the way of nobody: this mount namespace is our own. */
#define ROOT "/tmp"

static int clone_tree(const char *path) {
        int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

        return fd < 0 ? -errno : fd;
}

static int place_tree(int tree, const char *at) {
        return move_mount(tree, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH) < 0 ? -errno : 0;
}

static int place_read_only(int tree, const char *at) {
        struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, .propagation = MS_PRIVATE };

        return mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0 ? -errno : place_tree(tree, at);
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

/* One that is not in /usr: that file alone, and nothing beside it */
static int show_program(int program, const char *path) {
        char at[PATH_MAX];
        int fd;

        if (program < 0)
                return 0;
        if (snprintf(at, sizeof(at), ROOT "%s", path) >= (int) sizeof(at))
                return -ENAMETOOLONG;
        for (char *p = strchr(at + strlen(ROOT "/"), '/'); p; p = strchr(p + 1, '/')) {
                *p = 0;
                if (mkdir(at, 0755) < 0 && errno != EEXIST)
                        return -errno;
                *p = '/';
        }
        fd = open(at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
        if (fd < 0)
                return -errno;
        safe_close(fd);
        return place_read_only(program, at);
}

static int make_devices(void) {
        static const struct { const char *path; unsigned minor; } devices[] = {
                { ROOT "/dev/null", 3 }, { ROOT "/dev/zero", 5 }, { ROOT "/dev/full", 7 },
                { ROOT "/dev/random", 8 }, { ROOT "/dev/urandom", 9 },
        };

        if (mkdir(ROOT "/dev", 0755) < 0)
                return -errno;
        for (size_t i = 0; i < ELEMENTSOF(devices); i++)
                if (mknod(devices[i].path, S_IFCHR | 0666, makedev(1, devices[i].minor)) < 0 || chmod(devices[i].path, 0666) < 0)
                        return -errno;
        return 0;
}

static int place_share(const Walls *w) {
        char target[64];

        (void) snprintf(target, sizeof(target), ROOT "%s", w->target);
        return mkdir(target, 0755) < 0 ? -errno : place_tree(w->tree, target);
}

/* In /tmp passt makes the empty directory that becomes its root. */
#define RESOLV_CONF_MAX 4096U
static int place_network(const WallsNetwork *n) {
        _cleanup_close_ int fd = -EBADF;
        off_t start = 0;

        if (mkdir(ROOT "/tmp", 0755) < 0 || mkdir(ROOT "/etc", 0755) < 0)
                return -errno;
        fd = open(ROOT "/etc/resolv.conf", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
        return fd < 0 || sendfile(fd, n->resolv_conf, &start, RESOLV_CONF_MAX) < 0 ? -errno : 0;
}

static int fill_root(const Walls *w, int usr, int program) {
        int r;

        if (mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,nr_inodes=64,mode=0755") < 0)
                return -errno;
        r = show_usr(usr);
        if (r >= 0)
                r = show_program(program, w->program);
        if (r >= 0)
                r = make_devices();
        if (r < 0)
                return r;
        if (mkdir(ROOT "/proc", 0555) < 0)
                return -errno;
        return w->network ? place_network(w->network) : place_share(w);
}

static int change_root(void) {
        if (chdir(ROOT) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
                return -errno;
        return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0 ? -errno : 0;
}

int walls_build(const Walls *w) {
        /* Of the host's namespace: a mount of another one can't be taken. */
        _cleanup_close_ int usr = clone_tree("/usr"), program = -EBADF;
        int r;

        if (usr < 0)
                return usr;
        if (strncmp(w->program, "/usr/", 5) != 0) {
                program = clone_tree(w->program);
                if (program < 0)
                        return program;
        }
        if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (w->network ? 0 : CLONE_NEWNET)) < 0)
                return -errno;
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return -errno;
        r = fill_root(w, usr, program);
        return r < 0 ? r : change_root();
}

pid_t walls_fork(void) {
        struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };

        return (pid_t) syscall(SYS_clone3, &args, sizeof(args));
}

static const struct sock_filter filter_vmm[] = {
#include "exec/filter-vmm.h"
};

static const struct sock_filter filter_virtiofsd[] = {
#include "exec/filter-virtiofsd.h"
};

static const struct sock_filter filter_passt[] = {
#include "exec/filter-passt.h"
};

static int load_filter(const struct sock_filter *filter, size_t n) {
        struct sock_fprog program = { .len = (unsigned short) n, .filter = (struct sock_filter *) filter };

        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0 ? -errno : 0;
}

int walls_filter_vmm(void) {
        return load_filter(filter_vmm, ELEMENTSOF(filter_vmm));
}

static int become(uid_t id) {
        return prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0 ?
                -errno : 0;
}

/* Passt itself goes on to a user namespace of its own, when it listens. */
static int enter_network(const WallsNetwork *n) {
        int r;

        r = loopback_shut(n->resolver);
        if (r >= 0)
                r = become(n->id);
        if (r >= 0)
                r = n->low_ports ? cap_set_ambient(CAP_NET_BIND_SERVICE) : cap_set(0);
        return r < 0 ? r : load_filter(filter_passt, ELEMENTSOF(filter_passt));
}

int walls_enter(const Walls *w) {
        if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 || unshare(CLONE_NEWCGROUP) < 0)
                return -errno;
        if (w->network)
                return enter_network(w->network);
        if (setgroups(0, NULL) < 0 || setns(w->userns, CLONE_NEWUSER) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
                return -errno;
        return load_filter(filter_virtiofsd, ELEMENTSOF(filter_virtiofsd));
}
