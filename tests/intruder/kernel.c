/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* System calls that have been the way out of sandboxes. Where they would harm the host their arguments are such that they can do nothing but be
 * allowed; that the kernel gets to see them shows by another errno. */

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/acct.h>
#include <sys/fanotify.h>
#include <sys/io.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/quota.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/swap.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <time.h>

#include "intruder.h"

#define NOWHERE "/vmunit-test-nowhere"

/* Namespaces and mounts */

static int leaves(int flag) {
        return outcome(unshare(flag));
}

static int unshare_user(const char *arg) { return leaves(CLONE_NEWUSER); }
static int unshare_mounts(const char *arg) { return leaves(CLONE_NEWNS); }
static int unshare_pids(const char *arg) { return leaves(CLONE_NEWPID); }
static int unshare_network(const char *arg) { return leaves(CLONE_NEWNET); }
static int unshare_ipc(const char *arg) { return leaves(CLONE_NEWIPC); }
static int unshare_uts(const char *arg) { return leaves(CLONE_NEWUTS); }
static int unshare_cgroup(const char *arg) { return leaves(CLONE_NEWCGROUP); }
static int unshare_time(const char *arg) { return leaves(CLONE_NEWTIME); }
/* Whose root it would be, and so may ask more of the kernel than anybody else */
static int unshare_user_network(const char *arg) { return leaves(CLONE_NEWUSER | CLONE_NEWNET); }

/* The high half of the flags is none of clone(2)'s business. */
static int clone_user(const char *arg) {
        long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);

        if (pid == 0)
                _exit(0);
        return outcome(pid);
}

static int clone_high(const char *arg) {
        long pid = syscall(SYS_clone, 0xffffffff00000000UL | CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);

        if (pid == 0)
                _exit(0);
        return outcome(pid);
}

static int clone3_user(const char *arg) {
        struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
        long pid = syscall(NR_CLONE3, &args, sizeof(args));

        if (pid == 0)
                _exit(0);
        return outcome(pid);
}

static int enters(const char *path) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        return outcome(setns(fd, 0));
}

static int enters_process(const char *arg) {
        return outcome(setns((int) syscall(SYS_pidfd_open, fact_number("bystander"), 0), CLONE_NEWUTS));
}

static int mounts_tmpfs(const char *arg) {
        return outcome(mount("tmpfs", "/dev", "tmpfs", 0, NULL));
}

static int mounts_proc(const char *arg) {
        return outcome(mount("proc", "/dev", "proc", 0, NULL));
}

static int binds(const char *arg) {
        return outcome(mount("/", "/dev", NULL, MS_BIND, NULL));
}

static int remounts(const char *arg) {
        return outcome(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
}

static int unmounts(const char *arg) {
        return outcome(umount2("/dev", MNT_DETACH));
}

static int pivots(const char *arg) {
        int r = outcome(syscall(SYS_pivot_root, NOWHERE, NOWHERE));

        return r == -ENOENT ? 0 : r;
}

static int changes_root(const char *arg) {
        return outcome(chroot("/"));
}

static int opens_file_system(const char *arg) {
        return outcome(syscall(NR_FSOPEN, "tmpfs", 0));
}

static int picks_file_system(const char *arg) {
        return outcome(syscall(NR_FSPICK, AT_FDCWD, "/dev", 0));
}

static int clones_tree(const char *arg) {
        return outcome(syscall(NR_OPEN_TREE, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */));
}

/* By this one as by that one. To open wants no right. */
static int opens_tree_attr(const char *arg) {
        return outcome(syscall(NR_OPEN_TREE_ATTR, AT_FDCWD, "/", 0, NULL, 0));
}

/* -ENOENT: it went as far as to look for it. */
static int moves_mount(const char *arg) {
        int r = outcome(syscall(NR_MOVE_MOUNT, AT_FDCWD, NOWHERE, AT_FDCWD, NOWHERE, 0));

        return r == -ENOENT ? 0 : r;
}

static int sets_mount(const char *arg) {
        uint64_t attr[4] = { 0 };
        int r = outcome(syscall(NR_MOUNT_SETATTR, AT_FDCWD, NOWHERE, 0, attr, sizeof(attr)));

        return r == -ENOENT || r == 0 ? 0 : r;
}

/* The kernel itself */

static int loads_bpf(const char *arg) {
        return outcome(syscall(SYS_bpf, 0, (uint32_t[16]) { 2 /* array */, 4, 4, 1 }, 64));
}

static int opens_perf(const char *arg) {
        uint64_t attr[16] = { [0] = 1 /* software */ | UINT64_C(128) << 32 };

        return outcome(syscall(SYS_perf_event_open, attr, 0, -1, -1, 0));
}

static int loads_module(const char *arg) {
        return outcome(syscall(SYS_init_module, "", 0, ""));
}

static int loads_module_file(const char *arg) {
        return outcome(syscall(SYS_finit_module, -1, "", 0));
}

static int unloads_module(const char *arg) {
        return outcome(syscall(SYS_delete_module, "vmunit_test", O_NONBLOCK));
}

/* Of no segments: it unloads what was not loaded */
static int loads_kernel(const char *arg) {
        int r = outcome(syscall(SYS_kexec_load, 0, 0, NULL, 0x7f));

        return r == -EINVAL ? 0 : r;
}

static int loads_kernel_file(const char *arg) {
        int r = outcome(syscall(SYS_kexec_file_load, -1, -1, 0, "", 0x7f));

        return r == -EINVAL || r == -EBADF ? 0 : r;
}

/* With magic numbers that are none */
static int reboots(const char *arg) {
        int r = outcome(syscall(SYS_reboot, 1, 2, 3, NULL));

        return r == -EINVAL ? 0 : r;
}

static int sets_clock(const char *arg) {
        struct timespec ts = { .tv_nsec = -1 };
        int r = outcome(syscall(SYS_clock_settime, CLOCK_REALTIME, &ts));

        return r == -EINVAL ? 0 : r;
}

static int sets_time(const char *arg) {
        struct timeval tv = { .tv_usec = -1 };
        int r = outcome(syscall(SYS_settimeofday, &tv, NULL));

        return r == -EINVAL ? 0 : r;
}

static int adjusts_clock(const char *arg) {
        return outcome(syscall(SYS_adjtimex, &(struct timex) { .modes = 0 }));
}

static int sets_host_name(const char *arg) {
        return outcome(sethostname("taken-over", 10));
}

static int sets_domain_name(const char *arg) {
        return outcome(setdomainname("taken-over", 10));
}

static int swaps_on(const char *arg) {
        int r = outcome(swapon(NOWHERE, 0));

        return r == -ENOENT ? 0 : r;
}

static int swaps_off(const char *arg) {
        int r = outcome(swapoff(NOWHERE));

        return r == -ENOENT ? 0 : r;
}

static int accounts(const char *arg) {
        int r = outcome(acct(NOWHERE));

        return r == -ENOENT ? 0 : r;
}

static int asks_quota(const char *arg) {
        int r = outcome(quotactl(QCMD(Q_SYNC, USRQUOTA), NULL, 0, NULL));

        return r == -EPERM ? r : 0;
}

static int reads_log(const char *arg) {
        return outcome(klogctl(10 /* its size */, NULL, 0));
}

static int opens_ports(const char *arg) {
        return outcome(ioperm(0x80, 1, 0));
}

static int raises_io_level(const char *arg) {
        return outcome(iopl(0));
}

static int sets_personality(const char *arg) {
        return outcome(personality(ADDR_NO_RANDOMIZE));
}

static int faults_memory(const char *arg) {
        return outcome(syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* user mode alone */));
}

static int hides_memory(const char *arg) {
        return outcome(syscall(NR_MEMFD_SECRET, 0));
}

static int splices_memory(const char *arg) {
        struct iovec v = { .iov_base = (void *) "x", .iov_len = 1 };
        int p[2];

        return pipe(p) < 0 ? -errno : outcome(vmsplice(p[1], &v, 1, 0));
}

static int watches_files(const char *arg) {
        return outcome(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID, O_RDONLY));
}

static int adds_key(const char *arg) {
        return outcome(syscall(SYS_add_key, "user", "vmunit-test", "x", 1, -1 /* the thread's */));
}

static int asks_key(const char *arg) {
        int r = outcome(syscall(SYS_request_key, "user", "vmunit-test", NULL, -1));

        return r == -ENOKEY ? 0 : r;
}

static int joins_keyring(const char *arg) {
        return outcome(syscall(SYS_keyctl, 1 /* join a session */, NULL));
}

static int hangs_up(const char *arg) {
        return setsid() < 0 && errno != EPERM ? -errno : outcome(syscall(SYS_vhangup));
}

/* System V's, and POSIX's queues: those of the host */

static int shares_memory(const char *arg) {
        return outcome(shmget((key_t) fact_number("ipc-key"), 0, 0));
}

static int queues(const char *arg) {
        return outcome(msgget((key_t) fact_number("ipc-key"), IPC_CREAT | 0600));
}

static int counts(const char *arg) {
        return outcome(semget((key_t) fact_number("ipc-key"), 1, IPC_CREAT | 0600));
}

static int opens_queue(const char *arg) {
        return outcome(mq_open("/vmunit-test", O_RDONLY | O_CREAT, 0600, NULL));
}

static int takes_requests(const char *arg) {
        unsigned long context = 0;

        return outcome(syscall(SYS_io_setup, 1, &context));
}

/* Doors of other architectures, to which no list of numbers is the same. What they are asked for is harmless. */

static int calls_32_bits(const char *arg) {
#if defined(__x86_64__)
        long r = 20; /* getpid */

        __asm__ volatile("int $0x80" : "+a"(r) : : "memory", "r8", "r9", "r10", "r11");
        return r > 0 ? 0 : (int) r;
#else
        return -ENOSYS;
#endif
}

static int calls_x32(const char *arg) {
        return outcome(syscall(0x40000000 | SYS_getppid));
}

const Attempt kernel_attempts[] = {
        { "unshare-user", unshare_user, NULL },
        { "unshare-mounts", unshare_mounts, NULL },
        { "unshare-pids", unshare_pids, NULL },
        { "unshare-network", unshare_network, NULL },
        { "unshare-ipc", unshare_ipc, NULL },
        { "unshare-uts", unshare_uts, NULL },
        { "unshare-cgroup", unshare_cgroup, NULL },
        { "unshare-time", unshare_time, NULL },
        { "unshare-user-network", unshare_user_network, NULL },
        { "clone-user", clone_user, NULL },
        { "clone-high-bits", clone_high, NULL },
        { "clone3-user", clone3_user, NULL },
        { "setns-mounts", enters, "@bystander-proc/ns/mnt" },
        { "setns-own", enters, "/proc/self/ns/uts" },
        { "setns-process", enters_process, NULL },
        { "mount-tmpfs", mounts_tmpfs, NULL },
        { "mount-proc", mounts_proc, NULL },
        { "mount-bind", binds, NULL },
        { "mount-writable", remounts, NULL },
        { "umount", unmounts, NULL },
        { "pivot-root", pivots, NULL },
        { "chroot", changes_root, NULL },
        { "fsopen", opens_file_system, NULL },
        { "fspick", picks_file_system, NULL },
        { "open-tree", clones_tree, NULL },
        { "open-tree-attr", opens_tree_attr, NULL },
        { "move-mount", moves_mount, NULL },
        { "mount-setattr", sets_mount, NULL },
        { "bpf", loads_bpf, NULL },
        { "perf", opens_perf, NULL },
        { "module", loads_module, NULL },
        { "module-file", loads_module_file, NULL },
        { "module-unload", unloads_module, NULL },
        { "kexec", loads_kernel, NULL },
        { "kexec-file", loads_kernel_file, NULL },
        { "reboot", reboots, NULL },
        { "clock-set", sets_clock, NULL },
        { "time-set", sets_time, NULL },
        { "clock-adjust", adjusts_clock, NULL },
        { "host-name", sets_host_name, NULL },
        { "domain-name", sets_domain_name, NULL },
        { "swap-on", swaps_on, NULL },
        { "swap-off", swaps_off, NULL },
        { "accounting", accounts, NULL },
        { "quota", asks_quota, NULL },
        { "kernel-log", reads_log, NULL },
        { "io-ports", opens_ports, NULL },
        { "io-level", raises_io_level, NULL },
        { "personality", sets_personality, NULL },
        { "userfaultfd", faults_memory, NULL },
        { "secret-memory", hides_memory, NULL },
        { "vmsplice", splices_memory, NULL },
        { "fanotify", watches_files, NULL },
        { "key-add", adds_key, NULL },
        { "key-request", asks_key, NULL },
        { "key-session", joins_keyring, NULL },
        { "hang-up", hangs_up, NULL },
        { "ipc-memory", shares_memory, NULL },
        { "ipc-queue", queues, NULL },
        { "ipc-semaphore", counts, NULL },
        { "ipc-posix-queue", opens_queue, NULL },
        { "aio", takes_requests, NULL },
        { "calls-32-bits", calls_32_bits, NULL },
        { "calls-x32", calls_x32, NULL },
        {},
};
