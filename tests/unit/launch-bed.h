/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A real vmunit-launch with a socket, a configuration and programs of its own, and a loop to drive it from. */

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "core/helper.h"
#include "core/launcher.h"
#include "tap.h"

#define PATIENCE (20 * USEC_PER_SEC)

static char bed[64], bed_socket[128];
static sd_event *loop;
static pid_t launcher = -1;
static int bed_listener = -EBADF;

static inline _Noreturn void bail(const char *what) {
        printf("Bail out! %s: %s\n", what, strerror(errno));
        exit(1);
}

#define must(condition)                         \
        do {                                    \
                if (!(condition))               \
                        bail(#condition);       \
        } while (0)

static inline const char *bed_path(const char *name) {
        static char paths[8][256];
        static unsigned k;
        char *p = paths[k++ % ELEMENTSOF(paths)];

        (void) snprintf(p, sizeof(paths[0]), "%s/%s", bed, name);
        return p;
}

static inline void bed_write(const char *name, const char *text, mode_t mode) {
        int fd = open(bed_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        must(fd >= 0 && loop_write(fd, text, strlen(text)) == 0 && fchmod(fd, mode) == 0);
        safe_close(fd);
}

static inline void bed_mkdir(const char *name) {
        must(mkdir(bed_path(name), 0711) == 0 || errno == EEXIST);
}

/* Where the daemon keeps what it shows a VMM */
#define BED_VMS "run/vmunit/vms"

static inline const char *bed_vm(const char *name) {
        static const char *const dirs[] = { "run", "run/vmunit", BED_VMS, BED_VMS "/vm" };
        char path[128];

        for (size_t i = 0; i < ELEMENTSOF(dirs); i++)
                bed_mkdir(dirs[i]);
        (void) snprintf(path, sizeof(path), BED_VMS "/vm/%s", name);
        return bed_path(path);
}

static inline void bed_copy(const char *from, const char *name) {
        char *text = NULL;
        size_t n = 0;
        int fd;

        must(read_file_all(from, 64 * 1024 * 1024, &text, &n) == 0);
        fd = open(bed_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
        must(fd >= 0 && loop_write(fd, text, n) == 0);
        safe_close(fd);
        free(text);
}

static inline void launcher_start(void) {
        char pid[16];

        launcher = fork();
        must(launcher >= 0);
        if (launcher > 0)
                return;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        (void) snprintf(pid, sizeof(pid), "%d", (int) getpid());
        (void) setenv("LISTEN_PID", pid, 1);
        (void) setenv("LISTEN_FDS", "1", 1);
        if (bed_listener == 3)
                (void) fcntl(3, F_SETFD, 0);
        else
                (void) dup2(bed_listener, 3);
        (void) execl(getenv("VMUNIT_LAUNCH"), "vmunit-launch", bed, getenv("VMUNIT_EXEC"), NULL);
        _exit(127);
}

static inline void launcher_kill(int sig) {
        must(kill(launcher, sig) == 0 && waitpid(launcher, NULL, 0) == launcher);
}

static inline void bed_setup(void) {
        char conf[1024];

        if (!getenv("VMUNIT_LAUNCH") || !getenv("VMUNIT_EXEC") || !getenv("FAKE_VMM") || getuid() != 0) {
                skip("vmunit-launch", "needs root and the programs' paths in the environment");
                exit(done_testing());
        }

        strcpy(bed, "/tmp/vmunit-test-XXXXXX");
        must(mkdtemp(bed) && chmod(bed, 0755) == 0);
        must(mkdir(bed_path("etc"), 0755) == 0 && mkdir(bed_path("etc/vmunit"), 0755) == 0);
        bed_copy(getenv("FAKE_VMM"), "fake-vmm");
        bed_copy(getenv("FAKE_VMM"), "hang-vmm");
        bed_write("garbage", "not a program\n", 0755);
        (void) snprintf(conf, sizeof(conf), "[VMUnit]\nQEMU=%s/fake-vmm\nCloudHypervisor=%s/hang-vmm\nFirecracker=%s/garbage\nVirtioFSD=%s/fake-vmm\n",
                        bed, bed, bed, bed);
        bed_write("etc/vmunit/vmunit.conf", conf, 0644);

        (void) snprintf(bed_socket, sizeof(bed_socket), "%s/launch.sock", bed);
        bed_listener = unix_listen(bed_socket, SOCK_SEQPACKET);
        must(bed_listener >= 0);
        launch_set_socket(bed_socket);
        must(sd_event_new(&loop) >= 0);
        launcher_start();
}

static inline void bed_teardown(void) {
        launcher_kill(SIGTERM);
        loop = sd_event_unref(loop);
        bed_listener = safe_close(bed_listener);
        (void) rm_rf(bed);
}

static inline uint64_t now_usec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / 1000;
}

static inline void run_until(const int *flag, int value) {
        uint64_t end = now_usec() + PATIENCE;

        while (*flag < value) {
                must(sd_event_run(loop, 100 * USEC_PER_MSEC) >= 0);
                if (now_usec() > end) {
                        errno = ETIMEDOUT;
                        bail("nothing came from the loop");
                }
        }
}

/* Waits, bounded, for what another process does. */
#define eventually(condition)                                           \
        ({                                                              \
                uint64_t _end = now_usec() + PATIENCE;                  \
                bool _is;                                               \
                while (!(_is = (condition)) && now_usec() < _end)       \
                        (void) poll(NULL, 0, 2);                        \
                _is;                                                    \
        })

static inline bool dies(int pidfd) {
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return poll(&p, 1, (int) (PATIENCE / 1000)) == 1;
}

static inline unsigned count_fds(pid_t pid) {
        char path[64];
        unsigned n = 0;
        DIR *d;

        (void) snprintf(path, sizeof(path), "/proc/%d/fd", (int) pid);
        d = opendir(path);
        while (d && readdir(d))
                n++;
        if (d)
                (void) closedir(d);
        return n;
}
