/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

#include "basic/fd-util.h"
#include "basic/open-util.h"
#include "basic/process-util.h"
#include "basic/program-util.h"
#include "basic/user-util.h"
#include "launch/launch.h"

static int open_request(const Request *r, struct stat *ret_st) {
        const OpenRequest *q = (const OpenRequest *) r->header;
        size_t room = r->size - MIN(r->size, sizeof(*q)), length;
        int fd, k;

        if (r->refused < 0)
                return r->refused;
        if (r->n_fds > 0 || room == 0 || (q->flags & ~(unsigned) _LAUNCH_OPEN_ALL) ||
            ((q->flags & LAUNCH_OPEN_DIRECTORY) && q->flags != LAUNCH_OPEN_DIRECTORY))
                return -EINVAL;
        length = strnlen(q->path, room);
        if (length >= PATH_MAX)
                return -ENAMETOOLONG;
        if (length + 1 != room || q->path[0] != '/')
                return -EINVAL;

        k = become_user(q->uid);
        if (k < 0)
                return k;
        /* A change of ids has cleared it. */
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        fd = open_checked(q->path, q->flags & LAUNCH_OPEN_WRITE, q->flags & LAUNCH_OPEN_DIRECTORY, ret_st);
        k = fd >= 0 && (q->flags & LAUNCH_OPEN_LOCK) ? lock_image(fd, q->flags & LAUNCH_OPEN_WRITE) : 0;
        if (k < 0)
                safe_close(fd);
        return k < 0 ? k : fd;
}

void open_run(int sock, const Request *r) {
        struct stat st = {};
        int fd = open_request(r, &st);
        OpenReply reply = {
                .header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_OPEN, .size = sizeof(reply) },
                .error = MIN(fd, 0),
        };

        if (fd >= 0) {
                reply.mode = st.st_mode;
                reply.gid = getgid();
                reply.size = (uint64_t) st.st_size;
                reply.dev = st.st_dev;
                reply.ino = st.st_ino;
                reply.head_size = (uint32_t) MAX(pread(fd, reply.head, sizeof(reply.head), 0), 0);
        }
        (void) send_with_fds(sock, &reply, sizeof(reply), &fd, fd >= 0);
        safe_close(fd);
}

static int try_device(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

        return fd < 0 ? -errno : 0;
}

bool probe_waits(const Request *r) {
        return r->size == sizeof(ProbeRequest) && ((const ProbeRequest *) r->header)->want_version;
}

void probe_run(int sock, const Request *r, const Config *config) {
        const ProbeRequest *q = (const ProbeRequest *) r->header;
        ProbeReply reply = { .header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_PROBE, .size = sizeof(reply) } };
        char path[PATH_MAX];
        struct stat st;

        if (r->n_fds > 0 || r->size != sizeof(*q) || q->want_version > 1)
                reply.error = -EINVAL;
        else
                reply.error = program_find(config, q->program, path, &st);
        if (reply.error == 0 && strlen(path) >= sizeof(reply.path))
                reply.error = -ENAMETOOLONG;

        if (reply.error == 0) {
                strcpy(reply.path, path);
                reply.mtime_usec = (uint64_t) st.st_mtim.tv_sec * USEC_PER_SEC + (uint64_t) st.st_mtim.tv_nsec / 1000;
                if (q->want_version)
                        reply.error = program_version(path, reply.version, sizeof(reply.version));
        }
        reply.kvm_error = try_device("/dev/kvm");
        reply.vhost_vsock_error = try_device("/dev/vhost-vsock");
        (void) send_with_fds(sock, &reply, sizeof(reply), NULL, 0);
}

static int vsock_connect(const Request *r) {
        const VSockRequest *q = (const VSockRequest *) r->header;
        _cleanup_close_ int fd = -EBADF;

        if (r->n_fds > 0 || r->size != sizeof(*q) || q->cid <= VMADDR_CID_HOST || q->cid == VMADDR_CID_ANY)
                return -EINVAL;
        fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = q->cid, .svm_port = q->port };
        if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

void vsock_run(int sock, const Request *r) {
        VSockReply reply = { .header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_VSOCK, .size = sizeof(reply) } };
        _cleanup_close_ int fd = vsock_connect(r);

        reply.error = MIN(fd, 0);
        (void) send_with_fds(sock, &reply, sizeof(reply), &fd, fd >= 0);
}
