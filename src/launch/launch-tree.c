/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "basic/fd-util.h"
#include "launch/launch-tree.h"

/* Who holds a new user namespace open until it has its maps */
static _Noreturn void hold_userns(int ready, int done) {
        char c = 0;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (unshare(CLONE_NEWUSER) < 0)
                c = (char) (errno == ENOSPC ? EUSERS : errno); /* user.max_user_namespaces=, no disk */
        (void) !write(ready, &c, 1);
        (void) !read(done, &c, 1);
        _exit(EXIT_SUCCESS);
}

static int write_map(pid_t pid, const char *name, uint32_t inside, uint32_t outside, uint32_t count) {
        _cleanup_close_ int fd = -EBADF;
        char path[64], map[48];

        (void) snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, name);
        (void) snprintf(map, sizeof(map), "%" PRIu32 " %" PRIu32 " %" PRIu32, inside, outside, count);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        return fd < 0 ? -errno : loop_write(fd, map, strlen(map));
}

static int open_userns(pid_t pid) {
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%d/ns/user", (int) pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

static int fill_userns(pid_t pid, int ready, uint32_t uid, uint32_t gid, uint32_t outside, uint32_t count) {
        char c;
        int r;

        if (read(ready, &c, 1) != 1)
                return -EIO;
        if (c != 0)
                return -c;
        r = write_map(pid, "uid_map", uid, outside, count);
        if (r >= 0)
                r = write_map(pid, "gid_map", gid, outside, count);
        return r < 0 ? r : open_userns(pid);
}

int userns_new(uint32_t uid, uint32_t gid, uint32_t outside, uint32_t count) {
        _cleanup_close_ int ready_read = -EBADF, ready_write = -EBADF, done_read = -EBADF, done_write = -EBADF;
        int ready[2], done[2], r;
        pid_t pid;

        if (pipe2(ready, O_CLOEXEC) < 0)
                return -errno;
        ready_read = ready[0];
        ready_write = ready[1];
        if (pipe2(done, O_CLOEXEC) < 0)
                return -errno;
        done_read = done[0];
        done_write = done[1];

        pid = fork();
        if (pid < 0)
                return -errno;
        if (pid == 0) {
                safe_close(done_write);
                hold_userns(ready_write, done_read);
        }
        ready_write = safe_close(ready_write);
        r = fill_userns(pid, ready_read, uid, gid, outside, count);
        done_write = safe_close(done_write);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
        return r;
}

int tree_open(int fd, int map_fd, bool readonly) {
        struct mount_attr attr = {
                .attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (map_fd >= 0 ? MOUNT_ATTR_IDMAP : 0) | (readonly ? MOUNT_ATTR_RDONLY : 0),
                .propagation = MS_PRIVATE, /* else what the host mounts below it later would come along, as it is */
                .userns_fd = (uint64_t) MAX(map_fd, 0),
        };
        _cleanup_close_ int tree = -EBADF;

        tree = open_tree(fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (tree < 0)
                return -errno;
        if (mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
                return errno == EINVAL && map_fd >= 0 ? -EMEDIUMTYPE : -errno;
        return TAKE_FD(tree);
}
