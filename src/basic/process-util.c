/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "basic/fd-util.h"
#include "basic/process-util.h"

void reset_signals(void) {
        sigset_t none;

        for (int s = 1; s < _NSIG; s++)
                (void) signal(s, SIG_DFL);
        sigemptyset(&none);
        (void) sigprocmask(SIG_SETMASK, &none, NULL);
}

static void write_self(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd >= 0)
                (void) loop_write(fd, text, strlen(text));
}

void reset_process(void) {
        struct rlimit limit = {};

        (void) umask(022);
        (void) setsid();
        (void) chdir("/");
        (void) setpriority(PRIO_PROCESS, 0, 0);
        write_self("/proc/self/oom_score_adj", "0");

        /* A core dump would be the guest's memory; the limit does not bind where core_pattern is a pipe. */
        (void) setrlimit(RLIMIT_CORE, &limit);
        write_self("/proc/self/coredump_filter", "0");
        if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
                limit.rlim_cur = limit.rlim_max;
                (void) setrlimit(RLIMIT_NOFILE, &limit);
        }
}

int place_fds(const int *fds, size_t n) {
        int high[512];

        if (n > ELEMENTSOF(high))
                return -E2BIG;

        /* First out of the way of each other */
        for (size_t i = 0; i < n; i++) {
                high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3 + (int) n);
                if (high[i] < 0)
                        return -errno;
        }
        for (size_t i = 0; i < n; i++)
                if (dup2(high[i], 3 + (int) i) < 0)
                        return -errno;
        return close_range(3 + (unsigned) n, ~0U, 0) < 0 ? -errno : 0;
}

int become_user(uid_t uid) {
        struct passwd *pw;

        if (uid == 0)
                return 0;
        if (uid == (uid_t) -1)
                return -EINVAL;

        errno = 0;
        pw = getpwuid(uid);
        if (!pw)
                return errno > 0 ? -errno : -ESRCH;
        if (initgroups(pw->pw_name, pw->pw_gid) < 0 || setresgid(pw->pw_gid, pw->pw_gid, pw->pw_gid) < 0 ||
            setresuid(uid, uid, uid) < 0)
                return -errno;
        return 0;
}
