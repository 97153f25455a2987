/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <grp.h>
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

static int write_self(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        return fd < 0 ? -errno : loop_write(fd, text, strlen(text));
}

int oom_score_adjusted(void) {
        _cleanup_close_ int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
        char text[8];
        ssize_t n;

        if (fd < 0)
                return -errno;
        n = read(fd, text, sizeof(text));
        return n < 0 ? -errno : n != 2 || text[0] != '0';
}

int no_memory_in_core_dumps(void) {
        return write_self("/proc/self/coredump_filter", "0");
}

void reset_process(bool oom_score) {
        struct rlimit limit = {};

        (void) umask(022);
        (void) setsid();
        (void) chdir("/");
        (void) setpriority(PRIO_PROCESS, 0, 0);
        if (oom_score)
                (void) write_self("/proc/self/oom_score_adj", "0");

        (void) setrlimit(RLIMIT_CORE, &limit);
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

int lower_limit(int resource, uint64_t limit) {
        struct rlimit l;

        if (getrlimit(resource, &l) < 0)
                return -errno;
        l.rlim_cur = l.rlim_max = MIN(l.rlim_max, (rlim_t) limit);
        return setrlimit(resource, &l) < 0 ? -errno : 0;
}

int become_id(uid_t id) {
        return setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0 ? -errno : 0;
}
