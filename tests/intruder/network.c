/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Sockets: services of the host, its network, and address families that know no namespaces */

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "intruder.h"

static int connects(int fd, const struct sockaddr *sa, socklen_t n) {
        struct pollfd p = { .fd = fd, .events = POLLOUT };
        int error = 0;
        socklen_t size = sizeof(error);

        if (fd < 0)
                return -errno;
        if (connect(fd, sa, n) == 0)
                return 0;
        if (errno != EINPROGRESS)
                return -errno;
        if (poll(&p, 1, 5000) != 1 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
                return -ETIMEDOUT;
        return -error;
}

/* Of whatever type it is; one that says EPROTOTYPE is there. */
static int connects_unix(const char *path) {
        static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
        struct sockaddr_un sa = { .sun_family = AF_UNIX };
        int r = -EPROTOTYPE;

        (void) snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
        for (size_t i = 0; r == -EPROTOTYPE && i < 3; i++)
                r = connects(socket(AF_UNIX, types[i] | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), (struct sockaddr *) &sa, sizeof(sa));
        return r;
}

static int connects_abstract(const char *name) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX };

        (void) snprintf(sa.sun_path + 1, sizeof(sa.sun_path) - 1, "%s", name);
        return connects(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), (struct sockaddr *) &sa,
                        (socklen_t) (offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)));
}

static int connects_inet(const char *address) {
        struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons((uint16_t) fact_number("port")) };

        (void) inet_pton(AF_INET, address, &sa.sin_addr);
        return connects(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), (struct sockaddr *) &sa, sizeof(sa));
}

static int connects_inet6(const char *address) {
        struct sockaddr_in6 sa = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t) fact_number("port")) };

        (void) inet_pton(AF_INET6, address, &sa.sin6_addr);
        return connects(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), (struct sockaddr *) &sa, sizeof(sa));
}

/* Without an answer there is no knowing but that the kernel has a way to there. */
static int sends_datagram(const char *address) {
        struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons((uint16_t) fact_number("port")) };
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        (void) inet_pton(AF_INET, address, &sa.sin_addr);
        return outcome(sendto(fd, "x", 1, 0, (struct sockaddr *) &sa, sizeof(sa)));
}

static int has_interface(const char *arg) {
        struct ifreq r = { .ifr_name = "lo" };
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        if (ioctl(fd, SIOCGIFFLAGS, &r) < 0)
                return -errno;
        return r.ifr_flags & IFF_UP ? 0 : -ENETDOWN;
}

static int raises_interface(const char *arg) {
        struct ifreq r = { .ifr_name = "lo" };
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        if (ioctl(fd, SIOCGIFFLAGS, &r) < 0)
                return -errno;
        r.ifr_flags |= IFF_UP;
        return outcome(ioctl(fd, SIOCSIFFLAGS, &r));
}

static int opens(int family, int type, int protocol) {
        return outcome(socket(family, type | SOCK_CLOEXEC, protocol));
}

static int netlink_route(const char *arg) { return opens(AF_NETLINK, SOCK_RAW, 0); }
static int netlink_events(const char *arg) { return opens(AF_NETLINK, SOCK_RAW, 15); }
static int netlink_audit(const char *arg) { return opens(AF_NETLINK, SOCK_RAW, 9); }
static int netlink_filter(const char *arg) { return opens(AF_NETLINK, SOCK_RAW, 12); }
/* To open one loads it. Who is asked about connections (BPF) is not asked about these. */
static int sctp(const char *arg) { return opens(AF_INET, SOCK_STREAM, IPPROTO_SCTP); }
static int udplite(const char *arg) { return opens(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE); }
static int mptcp(const char *arg) { return opens(AF_INET, SOCK_STREAM, IPPROTO_MPTCP); }
static int mptcp6(const char *arg) { return opens(AF_INET6, SOCK_STREAM, IPPROTO_MPTCP); }
static int sequenced(const char *arg) { return opens(AF_INET, SOCK_SEQPACKET, 0); }
static int packets(const char *arg) { return opens(AF_PACKET, SOCK_RAW, htons(3)); }
static int raw(const char *arg) { return opens(AF_INET, SOCK_RAW, IPPROTO_TCP); }
static int raw6(const char *arg) { return opens(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6); }
static int vsock(const char *arg) { return opens(AF_VSOCK, SOCK_STREAM, 0); }
static int ciphers(const char *arg) { return opens(38 /* AF_ALG */, SOCK_SEQPACKET, 0); }
static int xdp(const char *arg) { return opens(44 /* AF_XDP */, SOCK_RAW, 0); }

static int vsock_host(const char *arg) {
        struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 22 };
        int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        return fd < 0 ? -errno : connects(fd, (struct sockaddr *) &sa, sizeof(sa));
}

/* To be somebody else to whom it speaks */
static int forges_credentials(const char *arg) {
        union { struct cmsghdr h; char bytes[CMSG_SPACE(sizeof(struct ucred))]; } u = {
                .h = { .cmsg_len = CMSG_LEN(sizeof(struct ucred)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS },
        };
        struct iovec v = { .iov_base = (void *) "x", .iov_len = 1 };
        struct msghdr mh = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof(u) };
        struct ucred root = { .pid = getpid(), .uid = 1, .gid = 1 };
        int pair[2];

        memcpy(CMSG_DATA(&u.h), &root, sizeof(root));
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
                return -errno;
        return outcome(sendmsg(pair[0], &mh, 0));
}

const Attempt network_attempts[] = {
        { "connect-system-bus", connects_unix, "/run/dbus/system_bus_socket" },
        { "connect-systemd", connects_unix, "/run/systemd/private" },
        { "connect-notify", connects_unix, "/run/systemd/notify" },
        { "connect-journal", connects_unix, "/run/systemd/journal/socket" },
        { "connect-journal-stdout", connects_unix, "/run/systemd/journal/stdout" },
        { "connect-syslog", connects_unix, "/dev/log" },
        { "connect-launcher", connects_unix, "/run/vmunit-launch.sock" },
        { "connect-victims-api", connects_unix, "@victim-run/qmp" },
        { "connect-victims-helper", connects_unix, "@victim-run/exec" },
        { "connect-own-helper", connects_unix, "@own-run/exec" },
        { "connect-abstract", connects_abstract, "@abstract" },
        { "connect-127.0.0.1", connects_inet, "127.0.0.1" },
        { "connect-127.0.0.2", connects_inet, "127.0.0.2" },
        { "connect-0.0.0.0", connects_inet, "0.0.0.0" },
        { "connect-host", connects_inet, "@host-address" },
        { "connect-::1", connects_inet6, "::1" },
        { "connect-mapped", connects_inet6, "::ffff:127.0.0.1" },
        { "datagram-127.0.0.1", sends_datagram, "127.0.0.1" },
        { "datagram-host", sends_datagram, "@host-address" },
        { "interface-up", has_interface, NULL },
        { "interface-raise", raises_interface, NULL },
        { "socket-netlink", netlink_route, NULL },
        { "socket-netlink-events", netlink_events, NULL },
        { "socket-netlink-audit", netlink_audit, NULL },
        { "socket-netlink-filter", netlink_filter, NULL },
        { "socket-sctp", sctp, NULL },
        { "socket-udplite", udplite, NULL },
        { "socket-mptcp", mptcp, NULL },
        { "socket-mptcp6", mptcp6, NULL },
        { "socket-sequenced", sequenced, NULL },
        { "socket-packet", packets, NULL },
        { "socket-raw", raw, NULL },
        { "socket-raw6", raw6, NULL },
        { "socket-vsock", vsock, NULL },
        { "socket-vsock-host", vsock_host, NULL },
        { "socket-ciphers", ciphers, NULL },
        { "socket-xdp", xdp, NULL },
        { "socket-forged", forges_credentials, NULL },
        {},
};
