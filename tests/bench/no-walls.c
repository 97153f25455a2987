/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exec/walls.h"

/* vmunit-exec without walls, for tests/bench/walls: the names that a VMM is given behind them lead to the same here, in a box that has one VM.
 * Nothing else may ever be linked with this. */

static int make_name(unsigned fd) {
        char name[32], target[32];

        (void) snprintf(name, sizeof(name), EXEC_FILES "/%u", fd);
        (void) snprintf(target, sizeof(target), "/proc/self/fd/%u", fd);
        return symlink(target, name) < 0 && errno != EEXIST ? -errno : 0;
}

static int empty_sockets(void) {
        static const char *const names[] = { "api", "vsock" };
        char path[PATH_MAX];

        for (size_t i = 0; i < ELEMENTSOF(names); i++) {
                (void) snprintf(path, sizeof(path), EXEC_SOCKETS_DIR "/%s", names[i]);
                (void) unlink(path);
        }
        return open(EXEC_SOCKETS_DIR, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

int walls_build(Walls *w, const char **ret_what) {
        int r = 0;

        *ret_what = "its names";
        (void) umask(0);
        (void) mkdir(EXEC_FILES, 0755);
        (void) mkdir(EXEC_SOCKETS_DIR, 0755);
        for (unsigned fd = 3; r >= 0 && w->shown[fd - 3]; fd++)
                r = make_name(fd);
        (void) unlink(EXEC_STDERR);
        if (r < 0 || mkfifo(EXEC_STDERR, 0666) < 0)
                return r < 0 ? r : -errno;
        if (w->rights & EXEC_SOCKETS)
                w->sockets = empty_sockets();
        return w->rights & EXEC_SOCKETS && w->sockets < 0 ? -errno : 0;
}

pid_t walls_fork(void) {
        return fork();
}

int walls_enter(const Walls *w, const char **ret_what) {
        return 0;
}
