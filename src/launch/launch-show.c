/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "basic/fd-util.h"
#include "basic/open-util.h"
#include "basic/string-util.h"
#include "launch/launch-show.h"
#include "launch/launch-tree.h"

#define MOUNTINFO_MAX (16U * 1024U * 1024U)

/* The last one made, for files most often have the same owner */
typedef struct Map {
        int userns;
        uint32_t uid, gid;
} Map;

/* As it was when it was opened: the server of a FUSE, which may never answer, is not asked. */
static int look_at(int fd, struct statx *ret) {
        return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS | STATX_MNT_ID, ret) < 0 ? -errno : 0;
}

/* Most often nobody but the user who has mounted it may use it, whatever the modes say. statfs(2) would ask its server. */
static bool is_on_fuse(const struct statx *st) {
        _cleanup_free_ char *text = NULL;
        char id[24];
        const char *line, *type;

        if (read_file_all("/proc/self/mountinfo", MOUNTINFO_MAX, &text, NULL) < 0)
                return true;
        (void) snprintf(id, sizeof(id), "\n%" PRIu64 " ", (uint64_t) st->stx_mnt_id);
        line = strncmp(text, id + 1, strlen(id + 1)) == 0 ? text : strstr(text, id);
        type = line ? strstr(line, " - ") : NULL;
        return !type || strncmp(type + 3, "fuse", 4) == 0;
}

static bool others_may(const struct statx *st, ExecShown how) {
        mode_t want = S_IROTH | (how == EXEC_SHOWN_WRITE ? S_IWOTH : 0);

        return (st->stx_mode & want) == want && !is_on_fuse(st);
}

static int show_mapped(int fd, const struct statx *st, ExecShown how, uint32_t id, Map *map) {
        int tree;

        if (map->userns < 0 || map->uid != st->stx_uid || map->gid != st->stx_gid) {
                safe_close(map->userns);
                *map = (Map) { .userns = userns_new(st->stx_uid, st->stx_gid, id, 1), .uid = st->stx_uid, .gid = st->stx_gid };
        }
        tree = map->userns < 0 ? map->userns : tree_open(fd, map->userns, how != EXEC_SHOWN_WRITE);
        /* Of a file without a mount, or with a map already, or on a host without user namespaces */
        return tree == -EINVAL || tree == -EPERM || tree == -EUSERS ? -EMEDIUMTYPE : tree;
}

/* ROOT RUN_VMS_DIR /VM/NAME */
static bool is_daemons(const char *root, const char *path, const char *name) {
        char dir[PATH_MAX];
        int n = snprintf(dir, sizeof(dir), "%s" RUN_VMS_DIR "/", strempty(root));
        const char *slash;

        if (n < 0 || (size_t) n >= sizeof(dir) || strncmp(path, dir, (size_t) n) != 0)
                return false;
        slash = strchr(path + n, '/');
        return slash && slash > path + n && streq(slash + 1, name);
}

/* The daemon's, whose mounts are not ours: the same by its name here, which is to be one of two, and leads over no link. */
static int show_daemons(int fd, const struct statx *st, const char *root) {
        struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS };
        _cleanup_close_ int here = -EBADF;
        char link[64], path[PATH_MAX];
        struct statx there;
        ssize_t n;
        int r;

        (void) snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        n = readlink(link, path, sizeof(path) - 1);
        if (n < 0)
                return -errno;
        path[n] = 0;
        if (!is_daemons(root, path, S_ISDIR(st->stx_mode) ? VMM_SHARES : VMM_EVENTS))
                return -EINVAL;
        here = (int) syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
        if (here < 0)
                return -errno;
        r = look_at(here, &there);
        if (r < 0)
                return r;
        if (there.stx_ino != st->stx_ino || there.stx_dev_major != st->stx_dev_major || there.stx_dev_minor != st->stx_dev_minor)
                return -ESTALE;
        return tree_open(here, -EBADF, S_ISDIR(st->stx_mode));
}

static int duplicate(int fd) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

        return copy < 0 ? -errno : copy;
}

static int show_one(int fd, ExecShown how, uint32_t id, const char *root, Map *map) {
        struct statx st;
        int r;

        r = look_at(fd, &st);
        if (r < 0)
                return r;
        if ((how == EXEC_SHOWN_DIRECTORY) != (S_ISDIR(st.stx_mode) != 0))
                return -EINVAL;
        if (S_ISFIFO(st.stx_mode) || S_ISDIR(st.stx_mode))
                return show_daemons(fd, &st, root);
        if (S_ISBLK(st.stx_mode)) { /* its node in the view is one of its own, where a lock tells nobody */
                r = lock_image(fd, how == EXEC_SHOWN_WRITE);
                return r < 0 ? -EBUSY : duplicate(fd);
        }
        if (!S_ISREG(st.stx_mode))
                return -EINVAL;
        if (how == EXEC_SHOWN_COPY && st.stx_nlink == 0)
                return duplicate(fd); /* a memfd has no mount to be shown */
        r = others_may(&st, how) ? tree_open(fd, -EBADF, how != EXEC_SHOWN_WRITE) : show_mapped(fd, &st, how, id, map);
        return r < 0 && how == EXEC_SHOWN_COPY ? duplicate(fd) : r;
}

int show_open(const VMMRequest *vmm, const char *root, const int *fds, size_t n_fds, int *ret_fds, size_t *ret_n, uint32_t *ret_which) {
        Map map = { .userns = -EBADF };
        size_t n = 0;
        int r = 0;

        for (size_t i = 0; r >= 0 && i < n_fds; i++) {
                if (vmm->shown[i] == EXEC_SHOWN_NOT)
                        continue;
                r = show_one(fds[i], (ExecShown) vmm->shown[i], vmm->id, root, &map);
                if (r >= 0)
                        ret_fds[n++] = r;
                else
                        *ret_which = (uint32_t) i;
        }
        safe_close(map.userns);
        if (r < 0) {
                close_many(ret_fds, n);
                return r;
        }
        *ret_n = n;
        return 0;
}
