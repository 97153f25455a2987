/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Prints, while vmunit is built, a filter of system calls that vmunit-exec loads: what libseccomp makes of these lists.
 * make-filter vmm: for VMMs. make-filter virtiofsd: it goes into a chroot, and then loads a stricter one of its own. make-filter passt: it
 * builds a sandbox of its own, and then does the same. */

#include <errno.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* None of them has a use for these, and each has been the way out of some sandbox. On a ring requests go past this filter: of any kind of
 * socket, of AF_VSOCK, too. Of asynchronous requests (io_setup) the host has a number, which one could take for itself. */
static const char *const denied[] = {
        "acct", "add_key", "adjtimex", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module", "fanotify_init",
        "fanotify_mark", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_cancel", "io_destroy", "io_getevents",
        "io_pgetevents", "io_setup", "io_submit", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp",
        "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "memfd_secret", "mount_setattr", "move_mount", "mq_getsetattr",
        "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "nfsservctl",
        "open_by_handle_at", "open_tree", "perf_event_open", "personality", "pidfd_getfd", "process_madvise", "process_vm_readv",
        "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key", "semctl", "semget", "semop",
        "semtimedop", "setdomainname", "sethostname", "setns", "settimeofday", "shmat", "shmctl", "shmdt", "shmget", "stime",
        "swapoff", "swapon", "syslog", "uselib", "userfaultfd", "vhangup", "vmsplice",
};

/* What else a virtiofsd has no use for; and all not for unshare(2) and clone(2) with the flags below */
static const char *const denied_to_virtiofsd[] = { "mount", "pivot_root", "umount", "umount2" };
/* What else a VMM has no use for. To the kernel it is the owner of an image that is shown to it
 * by an idmapped mount, and so could make of it, on the host's disk, a program that others run with the owner's rights. */
static const char *const denied_to_vmms[] = {
        "chmod", "chown", "chroot", "fchmod", "fchmodat", "fchown", "fchownat", "fremovexattr", "fsetxattr", "lchown", "link", "linkat",
        "lremovexattr", "lsetxattr", "mknod", "mknodat", "mount", "pivot_root", "removexattr", "setxattr", "umount", "umount2",
};
/* Younger than some libseccomp. All architectures have these numbers. fchmodat2, setxattrat, removexattrat, file_setattr: as above */
static const int numbers_denied_to_vmms[] = { 452, 463, 466, 469 };
/* open_tree_attr; and statmount, listmount: what mountinfo tells, of the host's paths, without a /proc */
static const int denied_numbers[] = { 467, 457, 458 };
/* TIOCSTI, TIOCLINUX: what is typed at a terminal. FS_IOC_SETFLAGS, and its 32-bit twin, FS_IOC_FSSETXATTR: as above */
static const unsigned long ioctls[] = { 0x5412, 0x541c, 0x40086602, 0x40046602, 0x401c5820 };
static const unsigned long namespaces[] = {
        CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET,
};

/* Those that a passt shuts itself in by. A network of its own would have rules of nftables, and who makes them is at parts of the kernel where
 * ways out are found year after year. */
#define PASST_NAMESPACES (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID)

#define N(array) (sizeof(array) / sizeof(*(array)))

static scmp_filter_ctx filter;

static void must(int r) {
        if (r >= 0)
                return;
        fprintf(stderr, "Cannot make the filter: %s\n", strerror(-r));
        exit(EXIT_FAILURE);
}

/* A call, or one with all of these arguments */
#define DENY(error, nr) must(seccomp_rule_add(filter, SCMP_ACT_ERRNO(error), nr, 0))
#define DENY_IF(error, nr, ...) \
        must(seccomp_rule_add(filter, SCMP_ACT_ERRNO(error), nr, N(((struct scmp_arg_cmp[]) { __VA_ARGS__ })), __VA_ARGS__))
/* The kernel looks at 32 bits alone. */
#define IS(value) SCMP_CMP_MASKED_EQ, 0xffffffffUL, value
#define HAS(bits) SCMP_CMP_MASKED_EQ, bits, bits

static void deny_namespaces(unsigned long allowed) {
        for (size_t i = 0; i < N(namespaces); i++) {
                if (namespaces[i] & allowed)
                        continue;
                DENY_IF(EPERM, SCMP_SYS(unshare), SCMP_A0(HAS(namespaces[i])));
                DENY_IF(EPERM, SCMP_SYS(clone), SCMP_A0(HAS(namespaces[i])));
        }
        DENY_IF(EPERM, SCMP_SYS(unshare), SCMP_A0(HAS(CLONE_NEWTIME))); /* which clone(2) does not know: there it is part of a signal's number */
}

static void deny_numbers(const int numbers[], size_t n) {
        for (size_t i = 0; i < n; i++)
                DENY(EPERM, numbers[i]);
}

static void deny(const char *const names[], size_t n) {
        for (size_t i = 0; i < n; i++) {
                int r, nr = seccomp_syscall_resolve_name(names[i]);

                if (nr == __NR_SCMP_ERROR) /* newer than this libseccomp, or of another architecture */
                        continue;
                r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), nr, 0);
                must(r == -EDOM ? 0 : r);
        }
}

static void print_filter(void) {
        struct sock_filter i;
        FILE *t = tmpfile();

        must(t ? seccomp_export_bpf(filter, fileno(t)) : -errno);
        rewind(t);
        while (fread(&i, sizeof(i), 1, t) == 1)
                printf("{ 0x%02x, %u, %u, 0x%08x },\n", i.code, i.jt, i.jf, i.k);
        fclose(t);
}

/* Neither protocols with higher numbers (SCTP, UDP-Lite, MPTCP), for which modules are loaded, and which do not ask loopback.c's programs; nor
 * sockets of packets, which may be SCTP, too */
static void deny_protocols(int family, int highest) {
        DENY_IF(EPROTONOSUPPORT, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_EQ, family, 0), SCMP_A2(SCMP_CMP_GT, highest, 0));
        DENY_IF(EPROTONOSUPPORT, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_EQ, family, 0), SCMP_A1(HAS(SOCK_SEQPACKET & ~SOCK_STREAM)));
}

/* AF_UNIX, AF_INET and AF_INET6 are the lowest in use; AF_VSOCK, which is in no namespace, is among the others. A passt is in the host's
 * network, where all can speak to abstract sockets, and has no use for IPv6. */
static void deny_sockets(bool vmm, bool passt) {
        int highest = passt ? AF_NETLINK : vmm ? AF_INET6 : AF_UNIX;

        DENY_IF(EAFNOSUPPORT, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_GT, highest, 0));
        for (int family = 0; passt && family < highest; family++)
                if (family != AF_INET)
                        DENY_IF(EAFNOSUPPORT, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_EQ, family, 0));
        if (vmm || passt) {
                deny_protocols(AF_INET, IPPROTO_UDP);
                deny_protocols(highest, vmm ? IPPROTO_UDP : NETLINK_ROUTE);
        }
        if (passt) /* by which it would be 127.0.0.1 to who hears it */
                DENY_IF(EPERM, SCMP_SYS(setsockopt), SCMP_A1(IS(IPPROTO_IP)), SCMP_A2(IS(IP_MULTICAST_IF)));
}

static void fill(bool vmm, bool passt) {
        deny(denied, N(denied));
        deny_numbers(denied_numbers, N(denied_numbers));
        deny_namespaces(passt ? PASST_NAMESPACES : 0);
        DENY(ENOSYS, SCMP_SYS(clone3)); /* libc falls back on clone, whose flags can be looked at */
        deny_sockets(vmm, passt);
        if (!vmm && !passt)
                deny(denied_to_virtiofsd, N(denied_to_virtiofsd));
        if (!vmm)
                return;
        deny(denied_to_vmms, N(denied_to_vmms));
        deny_numbers(numbers_denied_to_vmms, N(numbers_denied_to_vmms));
        for (size_t i = 0; i < N(ioctls); i++)
                DENY_IF(EPERM, SCMP_SYS(ioctl), SCMP_A1(IS(ioctls[i])));
        /* All of loop devices, which want no right: one would stay behind. */
        DENY_IF(EPERM, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffff00UL, 0x4c00));
        DENY_IF(EPERM, SCMP_SYS(fcntl), SCMP_A1(IS(1024 /* F_SETLEASE */))); /* whoever opens an image that is leased has to wait */
}

int main(int argc, char *argv[]) {
        filter = seccomp_init(SCMP_ACT_ALLOW);
        if (!filter || argc != 2)
                return EXIT_FAILURE;
        (void) seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        fill(strcmp(argv[1], "vmm") == 0, strcmp(argv[1], "passt") == 0);
        print_filter();
        seccomp_release(filter);
        return EXIT_SUCCESS;
}
