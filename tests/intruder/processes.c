/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Other processes, own rights, own limits, and what was inherited */

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>

#include "intruder.h"

#define PROCESSES 1500          /* more than a VMM may have */

/* Others. Those that it tries are the host's; none is hurt where it may. */

static int signals(const char *who) {
        return fact_number(who) <= 0 ? -EINVAL : outcome(kill(fact_number(who), 0));
}

static int signals_parent(const char *arg) {
        return starter <= 0 ? -ESRCH : outcome(kill(starter, 0));
}

static int signals_all(const char *arg) {
        return outcome(kill(-1, 0));
}

static int queues_signal(const char *arg) {
        siginfo_t si = { .si_code = SI_QUEUE };

        return outcome(syscall(SYS_rt_sigqueueinfo, fact_number("bystander"), SIGCONT, &si));
}

static int session_of(const char *who) {
        return outcome(getsid(fact_number(who)));
}

static int traces(const char *arg) {
        return outcome(ptrace(PTRACE_SEIZE, fact_number("bystander"), NULL, NULL));
}

static int is_traced(const char *arg) {
        return outcome(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
}

/* Of no bytes: the process is found and may be looked at. */
static int reads_memory(const char *arg) {
        return outcome(process_vm_readv(fact_number("bystander"), NULL, 0, NULL, 0, 0));
}

static int writes_memory(const char *arg) {
        return outcome(process_vm_writev(fact_number("bystander"), NULL, 0, NULL, 0, 0));
}

static int names(const char *who) {
        return outcome(syscall(SYS_pidfd_open, fact_number(who), 0));
}

static int takes_fd(const char *arg) {
        return outcome(syscall(NR_PIDFD_GETFD, syscall(SYS_pidfd_open, fact_number("bystander"), 0), 0, 0));
}

static int advises(const char *arg) {
        struct iovec v = { .iov_base = (void *) 4096, .iov_len = 4096 };
        int r = outcome(syscall(NR_PROCESS_MADVISE, syscall(SYS_pidfd_open, fact_number("bystander"), 0), &v, 1, MADV_COLD, 0));

        return r == -ENOMEM ? 0 : r;
}

static int compares(const char *arg) {
        pid_t other = fact_number("bystander");

        return outcome(syscall(SYS_kcmp, other, other, KCMP_FILES, 0, 0));
}

static int limits_other(const char *arg) {
        struct rlimit l;

        return outcome(prlimit(fact_number("bystander"), RLIMIT_CORE, NULL, &l));
}

static int places_other(const char *arg) {
        cpu_set_t set;

        return sched_getaffinity(fact_number("bystander"), sizeof(set), &set) < 0 ? -errno
                                                                               : outcome(sched_setaffinity(fact_number("bystander"), sizeof(set), &set));
}

static int slows_other(const char *arg) {
        return outcome(setpriority(PRIO_PROCESS, (id_t) fact_number("bystander"), 0));
}

static int groups_other(const char *arg) {
        return outcome(getpgid(fact_number("bystander")));
}

/* Itself */

static int hurries(const char *arg) {
        return outcome(setpriority(PRIO_PROCESS, 0, -20));
}

static int is_real_time(const char *arg) {
        struct sched_param p = { .sched_priority = 1 };

        return outcome(sched_setscheduler(0, SCHED_FIFO, &p));
}

static int has_disk_first(const char *arg) {
        return outcome(syscall(SYS_ioprio_set, 1, 0, 1 << 13));
}

static int becomes_root(const char *arg) {
        return outcome(setresuid(0, 0, 0));
}

static int becomes_roots_group(const char *arg) {
        return outcome(setresgid(0, 0, 0));
}

static int becomes_next(const char *arg) {
        return outcome(setresuid(getuid() + 2, getuid() + 2, getuid() + 2));
}

static int takes_groups(const char *arg) {
        return outcome(setgroups(1, (gid_t[]) { 6 }));
}

static int takes_file_id(const char *arg) {
        (void) syscall(SYS_setfsuid, 65534);
        return syscall(SYS_setfsuid, -1) == 65534 ? 0 : -EPERM;
}

static int takes_capabilities(const char *arg) {
        struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct d[2] = { { .effective = 1U << CAP_DAC_OVERRIDE, .permitted = 1U << CAP_DAC_OVERRIDE } };

        return outcome(syscall(SYS_capset, &h, d));
}

static int has_capabilities(const char *arg) {
        struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct d[2] = {};

        if (syscall(SYS_capget, &h, d) < 0)
                return -errno;
        return d[0].permitted | d[1].permitted | d[0].effective | d[0].inheritable ? 0 : -EPERM;
}

static int has_bounding_set(const char *arg) {
        for (unsigned long i = 0; i < 64; i++)
                if (prctl(PR_CAPBSET_READ, i, 0, 0, 0) == 1)
                        return 0;
        return -EPERM;
}

static int has_root(const char *arg) {
        return getuid() == 0 || geteuid() == 0 || getgid() == 0 || getegid() == 0 ? 0 : -EPERM;
}

static int has_groups(const char *arg) {
        return getgroups(0, NULL) > 0 ? 0 : -EPERM;
}

static int may_gain(const char *arg) {
        return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 ? 0 : -EPERM;
}

/* A copy of this program that is root's and set-user-id: it exits with 0 if it is root. */
static int runs_set_user_id(const char *path) {
        int status;
        pid_t pid;

        /* For root it is nothing to become root. */
        if (getuid() == 0 && setresuid(65534, 65534, 65534) < 0)
                return -errno;
        pid = fork();
        if (pid == 0) {
                (void) execl(path, path, "--root", NULL);
                _exit(1);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
                return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

/* Limits */

static int raises(int resource) {
        struct rlimit l;

        if (getrlimit(resource, &l) < 0)
                return -errno;
        if (l.rlim_max == RLIM_INFINITY) /* so much already */
                return 0;
        l.rlim_cur = ++l.rlim_max;
        return outcome(setrlimit(resource, &l));
}

static int raises_core(const char *arg) { return raises(RLIMIT_CORE); }
static int raises_processes(const char *arg) { return raises(RLIMIT_NPROC); }
static int raises_files(const char *arg) { return raises(RLIMIT_NOFILE); }
static int raises_locked(const char *arg) { return raises(RLIMIT_MEMLOCK); }
static int raises_queues(const char *arg) { return raises(RLIMIT_MSGQUEUE); }

static int locks_memory(const char *arg) {
        size_t n = 256 * 1024 * 1024;
        void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (p == MAP_FAILED)
                return -errno;
        return outcome(syscall(SYS_mlock2, p, n, 1 /* what is touched */));
}

static int swells_pipe(const char *arg) {
        int p[2];

        return pipe(p) < 0 ? -errno : outcome(fcntl(p[0], F_SETPIPE_SZ, 8 * 1024 * 1024));
}

static int forks_many(const char *arg) {
        int gate[2], n = 0, error = 0;
        char c;

        if (pipe(gate) < 0)
                return -errno;
        for (; n < PROCESSES; n++) {
                pid_t pid = fork();

                if (pid < 0) {
                        error = errno;
                        break;
                }
                if (pid == 0) {
                        close(gate[1]);
                        (void) !read(gate[0], &c, 1);
                        _exit(0);
                }
        }
        close(gate[1]);
        while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
                ;
        return n == PROCESSES ? 0 : -error;
}

/* What was left open, or told, by whoever started it */

static int has_directory(const char *arg) {
        struct stat st;

        for (int fd = 0; fd < 1024; fd++)
                if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
                        return 0;
        return -EBADF;
}

static int is_told(const char *arg) {
        for (char **e = environ; *e; e++)
                if (strncmp(*e, "PATH=", 5) != 0)
                        return 0;
        return -ENODATA;
}

/* A terminal of its own, if it has none: what is typed there, others read. */
static int types_ahead(const char *arg) {
        int fd = 0;

        if (!isatty(0)) {
                fd = posix_openpt(O_RDWR | O_NOCTTY);
                if (fd < 0 || unlockpt(fd) < 0)
                        return -errno;
                fd = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY);
        }
        return outcome(ioctl(fd, TIOCSTI, "x"));
}

static int types_ahead_high(const char *arg) {
        int fd = isatty(0) ? 0 : posix_openpt(O_RDWR | O_NOCTTY);

        return outcome(syscall(SYS_ioctl, fd, 0xdeadbeef00000000UL | TIOCSTI, "x"));
}

/* So that it dumps no guest's memory */
static int dumps_core(const char *arg) {
        struct rlimit l;

        return getrlimit(RLIMIT_CORE, &l) == 0 && l.rlim_max > 0 ? 0 : -EPERM;
}

const Attempt process_attempts[] = {
        { "signal-daemon", signals, "daemon" },
        { "signal-launcher", signals, "launcher" },
        { "signal-victim", signals, "victim" },
        { "signal-bystander", signals, "bystander" },
        { "signal-parent", signals_parent, NULL },
        { "signal-all", signals_all, NULL },
        { "signal-queue", queues_signal, NULL },
        { "session-of-daemon", session_of, "daemon" },
        { "group-of-bystander", groups_other, NULL },
        { "ptrace", traces, NULL },
        { "ptrace-me", is_traced, NULL },
        { "memory-read", reads_memory, NULL },
        { "memory-write", writes_memory, NULL },
        { "pidfd-daemon", names, "daemon" },
        { "pidfd-victim", names, "victim" },
        { "pidfd-take", takes_fd, NULL },
        { "memory-advise", advises, NULL },
        { "compare", compares, NULL },
        { "limits-of-other", limits_other, NULL },
        { "processors-of-other", places_other, NULL },
        { "priority-of-other", slows_other, NULL },
        { "priority", hurries, NULL },
        { "real-time", is_real_time, NULL },
        { "disk-priority", has_disk_first, NULL },
        { "root", becomes_root, NULL },
        { "root-group", becomes_roots_group, NULL },
        { "other-vms-id", becomes_next, NULL },
        { "groups", takes_groups, NULL },
        { "file-id", takes_file_id, NULL },
        { "capabilities", takes_capabilities, NULL },
        { "has-capabilities", has_capabilities, NULL },
        { "has-bounding-set", has_bounding_set, NULL },
        { "has-root", has_root, NULL },
        { "has-groups", has_groups, NULL },
        { "new-privileges", may_gain, NULL },
        { "set-user-id", runs_set_user_id, "/usr/bin/vmunit-test-set-user-id" },
        { "limit-core", raises_core, NULL },
        { "limit-processes", raises_processes, NULL },
        { "limit-files", raises_files, NULL },
        { "limit-locked", raises_locked, NULL },
        { "limit-queues", raises_queues, NULL },
        { "lock-memory", locks_memory, NULL },
        { "pipe-size", swells_pipe, NULL },
        { "fork-bomb", forks_many, NULL },
        { "directory", has_directory, NULL },
        { "environment", is_told, NULL },
        { "type-ahead", types_ahead, NULL },
        { "type-ahead-high-bits", types_ahead_high, NULL },
        { "core-dump", dumps_core, NULL },
        {},
};
