/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "basic/fd-util.h"

int safe_close(int fd) {
        if (fd >= 0) {
                int saved = errno;

                (void) close(fd);
                errno = saved;
        }
        return -EBADF;
}

void close_many(int *fds, size_t n) {
        for (size_t i = 0; i < n; i++)
                fds[i] = safe_close(fds[i]);
}

int read_fd_all(int fd, size_t max, char **ret, size_t *ret_size) {
        _cleanup_free_ char *buf = NULL;
        size_t size = 0, room = 0;

        for (;;) {
                ssize_t n;

                if (size + 1 >= room) {
                        char *t;

                        room = MAX(room * 2, (size_t) 4096);
                        t = realloc(buf, room);
                        if (!t)
                                return -ENOMEM;
                        buf = t;
                }

                n = read(fd, buf + size, room - size - 1);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                size += (size_t) n;
                if (size > max)
                        return -E2BIG;
        }

        buf[size] = 0;
        *ret = TAKE_PTR(buf);
        if (ret_size)
                *ret_size = size;
        return 0;
}

int read_file_all(const char *path, size_t max, char **ret, size_t *ret_size) {
        _cleanup_close_ int fd = -EBADF;

        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0)
                return -errno;
        return read_fd_all(fd, max, ret, ret_size);
}

int loop_write(int fd, const void *p, size_t n) {
        const char *c = p;

        while (n > 0) {
                ssize_t k = write(fd, c, n);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k < 0)
                        return -errno;
                c += k;
                n -= (size_t) k;
        }
        return 0;
}

int loop_pwrite(int fd, const void *p, size_t n, uint64_t at) {
        for (const char *c = p; n > 0;) {
                ssize_t k = pwrite(fd, c, n, (off_t) at);

                if (k < 0 && errno == EINTR)
                        continue;
                if (k <= 0)
                        return k < 0 ? -errno : -EIO;
                c += k;
                n -= (size_t) k;
                at += (uint64_t) k;
        }
        return 0;
}

int sockaddr_un_set(struct sockaddr_un *ret, socklen_t *ret_len, const char *path) {
        size_t l = strlen(path);

        if (l >= sizeof(ret->sun_path))
                return -ENAMETOOLONG;

        *ret = (struct sockaddr_un) { .sun_family = AF_UNIX };
        memcpy(ret->sun_path, path, l);
        *ret_len = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + l + 1);
        return 0;
}

int unix_listen(const char *path, int type) {
        _cleanup_close_ int fd = -EBADF;
        struct sockaddr_un sa;
        socklen_t len;
        int r;

        r = sockaddr_un_set(&sa, &len, path);
        if (r < 0)
                return r;
        if (unlink(path) < 0 && errno != ENOENT)
                return -errno;

        fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        if (bind(fd, (struct sockaddr *) &sa, len) < 0 || listen(fd, SOMAXCONN) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int unix_connect(const char *path, int type) {
        _cleanup_close_ int fd = -EBADF;
        struct sockaddr_un sa;
        socklen_t len;
        int r;

        r = sockaddr_un_set(&sa, &len, path);
        if (r < 0)
                return r;

        fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        if (connect(fd, (struct sockaddr *) &sa, len) < 0)
                return -errno;
        return TAKE_FD(fd);
}

union fd_control {
        struct cmsghdr hdr;
        char buf[CMSG_SPACE(sizeof(int) * SCM_FDS_MAX)];
};

int send_with_fds(int sock, const void *p, size_t n, const int *fds, size_t n_fds) {
        union fd_control control;
        struct iovec iov = { .iov_base = (void *) p, .iov_len = n };
        struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t k;

        if (n_fds > SCM_FDS_MAX)
                return -E2BIG;
        if (n_fds > 0) {
                struct cmsghdr *c;

                memset(&control, 0, sizeof(control));
                mh.msg_control = &control;
                mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                c = CMSG_FIRSTHDR(&mh);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
        }

        do
                k = sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (k < 0 && errno == EINTR);
        if (k < 0)
                return -errno;
        return (size_t) k == n ? 0 : -EIO;
}

static void take_fds(struct msghdr *mh, int *fds, size_t room, size_t *n_fds, bool *lost) {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
                size_t k;

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;

                k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < k; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                        if (*n_fds < room)
                                fds[(*n_fds)++] = fd;
                        else {
                                safe_close(fd);
                                *lost = true;
                        }
                }
        }
}

ssize_t recv_with_fds(int sock, void *p, size_t n, int *fds, size_t *n_fds) {
        union fd_control control;
        struct iovec iov = { .iov_base = p, .iov_len = n };
        struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control) };
        size_t room = n_fds ? *n_fds : 0, got = 0;
        bool lost = false;
        ssize_t k;

        do
                k = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        while (k < 0 && errno == EINTR);
        if (k < 0)
                return -errno;

        take_fds(&mh, fds, room, &got, &lost);
        if ((mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || lost || (k == 0 && got > 0)) { /* no bytes are the end to who asks */
                close_many(fds, got);
                return mh.msg_flags & MSG_TRUNC ? -EMSGSIZE : -EBADMSG;
        }

        if (n_fds)
                *n_fds = got;
        return k;
}

static int socket_option(int fd, int option) {
        int value;
        socklen_t n = sizeof(value);

        return getsockopt(fd, SOL_SOCKET, option, &value, &n) < 0 ? -errno : value;
}

bool fd_is_unix_socket(int fd, int type, bool listening) {
        return socket_option(fd, SO_DOMAIN) == AF_UNIX && socket_option(fd, SO_TYPE) == type &&
               socket_option(fd, SO_ACCEPTCONN) == listening;
}

bool fd_is_writable_file(int fd) {
        struct stat st;
        int flags = fcntl(fd, F_GETFL);

        return flags >= 0 && !(flags & (O_PATH | O_APPEND)) && (flags & O_ACCMODE) != O_RDONLY &&
               fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

int memfd_new(const char *name, const void *p, size_t n) {
        _cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC);
        int r;

        if (fd < 0)
                return -errno;
        r = loop_write(fd, p, n);
        return r < 0 ? r : TAKE_FD(fd);
}
