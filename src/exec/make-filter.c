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
/* TIOCSTI, TIOCLINUX: what is typed at a terminal. FS_IOC_SETFLAGS, and its 32-bit twin, FS_IOC_FSSETXATTR: as above. All of loop devices,
 * which want no right: one would stay behind. The kernel looks at 32 bits alone. */
static const unsigned long ioctls[][2] = { { 0x5412, ~0U }, { 0x541c, ~0U }, { 0x40086602, ~0U }, { 0x40046602, ~0U }, { 0x401c5820, ~0U },
                                           { 0x4c00, 0xffffff00U } };
static const unsigned long namespaces[] = {
        CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET,
};

/* Those that a passt shuts itself in by. A network of its own would have rules of nftables, and who makes them is at parts of the kernel where
 * ways out are found year after year. */
#define PASST_NAMESPACES (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID)

#define N(array) (sizeof(array) / sizeof(*(array)))

static int deny_namespaces(scmp_filter_ctx f, unsigned long allowed) {
        int r = 0;

        for (size_t i = 0; r >= 0 && i < N(namespaces); i++) {
                if (namespaces[i] & allowed)
                        continue;
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(unshare), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, namespaces[i], namespaces[i]));
                if (r >= 0)
                        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
                                             SCMP_A0(SCMP_CMP_MASKED_EQ, namespaces[i], namespaces[i]));
        }
        if (r >= 0) /* which clone(2) does not know: there it is part of a signal's number */
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(unshare), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_NEWTIME, CLONE_NEWTIME));
        return r;
}

static int deny_numbers(scmp_filter_ctx f, const int numbers[], size_t n) {
        int r = 0;

        for (size_t i = 0; r >= 0 && i < n; i++)
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), numbers[i], 0);
        return r;
}

static int deny_ioctls(scmp_filter_ctx f) {
        int r = 0;

        for (size_t i = 0; r >= 0 && i < N(ioctls); i++)
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, ioctls[i][1], ioctls[i][0]));
        return r;
}

static int deny(scmp_filter_ctx f, const char *const names[], size_t n) {
        for (size_t i = 0; i < n; i++) {
                int r, nr = seccomp_syscall_resolve_name(names[i]);

                if (nr == __NR_SCMP_ERROR) /* newer than this libseccomp, or of another architecture */
                        continue;
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), nr, 0);
                if (r < 0 && r != -EDOM)
                        return r;
        }
        return 0;
}

static int print_filter(scmp_filter_ctx f) {
        struct sock_filter i;
        FILE *t = tmpfile();
        int r;

        if (!t)
                return -errno;
        r = seccomp_export_bpf(f, fileno(t));
        if (r < 0)
                return r;
        rewind(t);
        while (fread(&i, sizeof(i), 1, t) == 1)
                printf("{ 0x%02x, %u, %u, 0x%08x },\n", i.code, i.jt, i.jf, i.k);
        fclose(t);
        return 0;
}

/* Neither protocols with higher numbers (SCTP, UDP-Lite, MPTCP), for which modules are loaded, and which do not ask loopback.c's programs; nor
 * sockets of packets, which may be SCTP, too */
static int deny_protocols(scmp_filter_ctx f, int family, int highest) {
        int r;

        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPROTONOSUPPORT), SCMP_SYS(socket), 2, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t) family, 0),
                             SCMP_A2(SCMP_CMP_GT, (scmp_datum_t) highest, 0));
        return r < 0 ? r : seccomp_rule_add(f, SCMP_ACT_ERRNO(EPROTONOSUPPORT), SCMP_SYS(socket), 2,
                                            SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t) family, 0),
                                            SCMP_A1(SCMP_CMP_MASKED_EQ, SOCK_SEQPACKET & ~SOCK_STREAM, SOCK_SEQPACKET & ~SOCK_STREAM));
}

/* AF_UNIX, AF_INET and AF_INET6 are the lowest in use; AF_VSOCK, which is in no namespace, is among the others. A passt is in the host's
 * network, where all can speak to abstract sockets, and has no use for IPv6. */
static int deny_sockets(scmp_filter_ctx f, bool vmm, bool passt) {
        int highest = passt ? AF_NETLINK : vmm ? AF_INET6 : AF_UNIX, r;

        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_GT, (scmp_datum_t) highest, 0));
        for (int family = 0; r >= 0 && passt && family < highest; family++)
                if (family != AF_INET)
                        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1,
                                             SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t) family, 0));
        if (r >= 0 && (vmm || passt))
                r = deny_protocols(f, AF_INET, IPPROTO_UDP);
        if (r >= 0 && (vmm || passt))
                r = deny_protocols(f, highest, vmm ? IPPROTO_UDP : NETLINK_ROUTE);
        if (r >= 0 && passt) /* by which it would be 127.0.0.1 to who hears it */
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(setsockopt), 2, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffffUL, IPPROTO_IP),
                                     SCMP_A2(SCMP_CMP_MASKED_EQ, 0xffffffffUL, IP_MULTICAST_IF));
        return r;
}

static int fill(scmp_filter_ctx f, bool vmm, bool passt) {
        int r;

        r = deny(f, denied, N(denied));
        if (r >= 0)
                r = vmm ? deny(f, denied_to_vmms, N(denied_to_vmms)) : passt ? 0 : deny(f, denied_to_virtiofsd, N(denied_to_virtiofsd));
        if (r >= 0)
                r = deny_numbers(f, denied_numbers, N(denied_numbers));
        if (r >= 0 && vmm)
                r = deny_numbers(f, numbers_denied_to_vmms, N(numbers_denied_to_vmms));
        if (r >= 0)
                r = deny_namespaces(f, passt ? PASST_NAMESPACES : 0);
        if (r >= 0 && vmm)
                r = deny_ioctls(f);
        if (r >= 0 && vmm) /* whoever opens an image that is leased has to wait */
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffffUL, 1024 /* F_SETLEASE */));
        if (r >= 0) /* libc falls back on clone, whose flags can be looked at */
                r = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
        return r < 0 ? r : deny_sockets(f, vmm, passt);
}

int main(int argc, char *argv[]) {
        scmp_filter_ctx f = seccomp_init(SCMP_ACT_ALLOW);
        int r;

        if (!f || argc != 2)
                return EXIT_FAILURE;
        (void) seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        r = fill(f, strcmp(argv[1], "vmm") == 0, strcmp(argv[1], "passt") == 0);
        if (r >= 0)
                r = print_filter(f);
        seccomp_release(f);
        if (r < 0)
                fprintf(stderr, "Cannot make the filter: %s\n", strerror(-r));
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
