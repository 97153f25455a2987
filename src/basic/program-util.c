/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#include "basic/cap-util.h"
#include "basic/fd-util.h"
#include "basic/launch-protocol.h"
#include "basic/process-util.h"
#include "basic/program-util.h"
#include "basic/string-util.h"

#if defined(__aarch64__)
#define QEMU_SYSTEM "qemu-system-aarch64"
#else
#define QEMU_SYSTEM "qemu-system-x86_64"
#endif

#define VERSION_TIMEOUT_MSEC 5000

static const char *const program_names[_PROGRAM_MAX][2] = {
        [PROGRAM_QEMU] = { QEMU_SYSTEM, "qemu-kvm" },
        [PROGRAM_CLOUD_HYPERVISOR] = { "cloud-hypervisor" },
        [PROGRAM_FIRECRACKER] = { "firecracker" },
        [PROGRAM_VIRTIOFSD] = { "virtiofsd" },
        [PROGRAM_PASST] = { "passt" },
};

static const char *const program_dirs[] = { "/usr/local/bin", "/usr/bin", "/usr/local/libexec", "/usr/libexec", "/usr/lib/qemu" };

/* Only root may change what stands there. Of a directory that all may write to (/tmp) others cannot take root's away. */
static bool is_roots(const struct stat *st) {
        return st->st_uid == 0 && (!(st->st_mode & 022) || (S_ISDIR(st->st_mode) && (st->st_mode & S_ISVTX)));
}

static int check_path(const char *path, struct stat *ret_st) {
        char part[PATH_MAX];

        for (const char *p = path; p; p = strchr(p + 1, '/')) {
                size_t n = MAX((size_t) (p - path), (size_t) 1);

                memcpy(part, path, n);
                part[n] = 0;
                if (stat(part, ret_st) < 0)
                        return -errno;
                if (!is_roots(ret_st))
                        return -EPERM;
        }

        if (stat(path, ret_st) < 0)
                return -errno;
        if (!is_roots(ret_st))
                return -EPERM;
        return S_ISREG(ret_st->st_mode) && (ret_st->st_mode & S_IXOTH) ? 0 : -EACCES; /* no VM's uid is its owner's */
}

static int check_program(const char *path, char ret_path[static PATH_MAX], struct stat *ret_st) {
        int r;

        if (path[0] != '/')
                return -EINVAL;
        if (!realpath(path, ret_path))
                return -errno;
        r = check_path(path, ret_st);
        return r < 0 ? r : check_path(ret_path, ret_st);
}

int program_paths(const Config *config, uint32_t program, char ***ret) {
        _cleanup_strv_free_ char **paths = NULL;
        int r = 0;

        if (program >= _PROGRAM_MAX)
                return -EINVAL;
        if (config->program[program])
                r = strv_extend(&paths, config->program[program]);
        for (size_t n = 0; !config->program[program] && n < 2 && program_names[program][n]; n++)
                for (size_t d = 0; r >= 0 && d < ELEMENTSOF(program_dirs); d++)
                        r = strv_extendf(&paths, "%s/%s", program_dirs[d], program_names[program][n]);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(paths);
        return 0;
}

int program_find(const Config *config, uint32_t program, char ret_path[static PATH_MAX], struct stat *ret_st) {
        _cleanup_strv_free_ char **paths = NULL;
        int r;

        r = program_paths(config, program, &paths);
        if (r < 0)
                return r;
        STRV_FOREACH(path, paths) {
                r = check_program(*path, ret_path, ret_st);
                if (r != -ENOENT)
                        return r;
        }
        return -ENOENT;
}

static _Noreturn void run_version(const char *path, int out) {
        char *argv[] = { (char *) path, (char *) "--version", NULL };
        char *env[] = { (char *) "PATH=/usr/local/bin:/usr/bin:/bin", (char *) "LC_ALL=C", NULL };
        int null = open("/dev/null", O_RDWR | O_CLOEXEC), program;

        if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(null, 2) < 0 || place_fds(NULL, 0) < 0)
                _exit(127);
        program = open(path, O_PATH | O_CLOEXEC);
        if (program < 0 || cap_bounding_set(0) < 0 || become_id(VM_IDS_BASE) < 0 || cap_confine(0) < 0)
                _exit(127);
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* last, for a change of ids would undo it */
        reset_signals();
        (void) execve(path, argv, env);
        (void) fcntl(program, F_SETFD, 0); /* a script is read by that name */
        (void) execveat(program, "", argv, env, AT_EMPTY_PATH); /* below a directory that is root's alone */
        _exit(127);
}

static int64_t now_msec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* The first line, as much as fits; the rest is not waited for. */
static int read_line(int fd, char *ret, size_t size) {
        int64_t deadline = now_msec() + VERSION_TIMEOUT_MSEC;
        size_t n = 0;

        while (n < size - 1 && !memchr(ret, '\n', n)) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                int64_t left = deadline - now_msec();
                ssize_t k;

                if (left <= 0 || poll(&p, 1, (int) left) == 0)
                        return -ETIME;
                k = read(fd, ret + n, size - 1 - n);
                if (k < 0 && errno == EINTR)
                        continue;
                if (k <= 0)
                        break;
                n += (size_t) k;
        }

        ret[n] = 0;
        ret[strcspn(ret, "\n")] = 0;
        for (char *c = ret; *c; c++)
                if (!isprint((unsigned char) *c))
                        *c = '?';
        return 0;
}

int program_version(const char *path, char *ret, size_t size) {
        int p[2], r;
        pid_t pid;

        if (pipe2(p, O_CLOEXEC) < 0)
                return -errno;
        (void) unshare(CLONE_NEWPID); /* whom it starts ends with it */
        pid = fork();
        if (pid == 0)
                run_version(path, p[1]);
        r = pid < 0 ? -errno : 0;
        safe_close(p[1]);
        if (pid > 0) {
                r = read_line(p[0], ret, size);
                if (r >= 0 && !ret[0])
                        r = -ENODATA;
                (void) kill(pid, SIGKILL);
        }
        safe_close(p[0]);
        return r;
}
