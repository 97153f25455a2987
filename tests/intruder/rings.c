/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a filter of system calls does not see: requests on an io_uring(7) */

#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "intruder.h"

/* Of newer kernels' headers */
enum { OP_SENDMSG = 9, OP_CONNECT = 16, OP_OPENAT = 18, OP_RENAMEAT = 35, OP_UNLINKAT = 36, OP_MKDIRAT = 37, OP_SYMLINKAT = 38, OP_LINKAT = 39,
       OP_FSETXATTR = 41, OP_SOCKET = 45 };

/* One request, and what came of it */
static int ask(struct io_uring_sqe request) {
        struct io_uring_params p = {};
        int fd = (int) syscall(SYS_io_uring_setup, 1, &p);
        struct io_uring_sqe *sqes;
        uint32_t *tail, *head;
        char *sq, *cq;

        if (fd < 0)
                return -errno;
        sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(uint32_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
        cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
        sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
        if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
                return -errno;

        sqes[0] = request;
        ((uint32_t *) (sq + p.sq_off.array))[0] = 0;
        tail = (uint32_t *) (sq + p.sq_off.tail);
        __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
        if (syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
                return -errno;
        head = (uint32_t *) (cq + p.cq_off.head);
        return ((struct io_uring_cqe *) (cq + p.cq_off.cqes))[*head & *(uint32_t *) (cq + p.cq_off.ring_mask)].res;
}

static int done(int result) {
        return result < 0 ? result : 0;
}

static uint64_t pointer(const void *p) {
        return (uint64_t) (uintptr_t) p;
}

static int has_ring(const char *arg) {
        return done(ask((struct io_uring_sqe) { .opcode = IORING_OP_NOP }));
}

static int opens(const char *path) {
        return done(ask((struct io_uring_sqe) { .opcode = OP_OPENAT, .fd = AT_FDCWD, .addr = pointer(path), .open_flags = O_RDONLY }));
}

static int makes(const char *path) {
        int r = done(ask((struct io_uring_sqe) { .opcode = OP_MKDIRAT, .fd = AT_FDCWD, .addr = pointer(path), .len = 0700 }));

        if (r == 0)
                (void) rmdir(path);
        return r;
}

static int links(const char *at) {
        const char *path;
        int fd = own_disk(&path), r;

        if (fd < 0)
                return fd;
        r = done(ask((struct io_uring_sqe) { .opcode = OP_LINKAT, .fd = path ? AT_FDCWD : fd, .addr = pointer(path ?: ""),
                                             .len = (uint32_t) AT_FDCWD, .off = pointer(at), .open_flags = path ? 0 : AT_EMPTY_PATH }));
        if (r == 0)
                (void) unlink(at);
        return r;
}

static int sets_attribute(const char *name, const void *value, uint32_t n) {
        const char *path;
        int fd = own_disk(&path);

        return fd < 0 ? fd : done(ask((struct io_uring_sqe) { .opcode = OP_FSETXATTR, .fd = fd, .addr = pointer(name), .len = n, .off = pointer(value) }));
}

static int attribute(const char *name) {
        return sets_attribute(name, "x", 1);
}

static int acl(const char *arg) {
        static const uint16_t entries[] = { 2, 0,  0x01, 7, 0xffff, 0xffff,  0x02, 7, 65534, 0,  0x04, 0, 0xffff, 0xffff,
                                            0x10, 7, 0xffff, 0xffff,  0x20, 7, 0xffff, 0xffff };

        return sets_attribute("system.posix_acl_access", entries, sizeof(entries));
}

static int opens_socket(int family, int type) {
        return done(ask((struct io_uring_sqe) { .opcode = OP_SOCKET, .fd = family, .off = (uint64_t) type }));
}

static int netlink(const char *arg) { return opens_socket(AF_NETLINK, SOCK_RAW); }
static int packet(const char *arg) { return opens_socket(AF_PACKET, SOCK_RAW); }
static int vsock(const char *arg) { return opens_socket(AF_VSOCK, SOCK_STREAM); }
static int ciphers(const char *arg) { return opens_socket(38 /* AF_ALG */, SOCK_SEQPACKET); }

static int connects(const char *path) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX };

        (void) snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
        return done(ask((struct io_uring_sqe) { .opcode = OP_CONNECT, .fd = socket(AF_UNIX, SOCK_STREAM, 0), .addr = pointer(&sa), .off = sizeof(sa) }));
}

const Attempt ring_attempts[] = {
        { "ring", has_ring, NULL },
        { "ring-shadow", opens, "/etc/shadow" },
        { "ring-victims-disk", opens, "@victim-disk" },
        { "ring-make-directory", makes, "/vmunit-test-ring" },
        { "ring-write-usr", makes, "/usr/vmunit-test-ring" },
        { "ring-link", links, "/tmp/intruder/ring-linked" },
        { "ring-attribute", attribute, "user.vmunit-test" },
        { "ring-attribute-security", attribute, "security.vmunit-test" },
        { "ring-acl", acl, NULL },
        { "ring-netlink", netlink, NULL },
        { "ring-packet", packet, NULL },
        { "ring-vsock", vsock, NULL },
        { "ring-ciphers", ciphers, NULL },
        { "ring-connect-system-bus", connects, "/run/dbus/system_bus_socket" },
        {},
};
