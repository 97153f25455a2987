/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "basic/macro.h"

/* Closes fd if it is one, keeps errno. Always gives -EBADF, for `fd = safe_close(fd)`. */
int safe_close(int fd);
void close_many(int *fds, size_t n);

static inline void closep(int *fd) {
        safe_close(*fd);
}

#define _cleanup_close_ _cleanup_(closep)

/* Reads up to max bytes of a file whole, adds a NUL, which *ret_size does not count. -E2BIG if there is more. */
int read_fd_all(int fd, size_t max, char **ret, size_t *ret_size);
int read_file_all(const char *path, size_t max, char **ret, size_t *ret_size);

/* Writes all or fails. For files and blocking fds. */
int loop_write(int fd, const void *p, size_t n);
int loop_pwrite(int fd, const void *p, size_t n, uint64_t at);

/* unix(7) address; -ENAMETOOLONG when the path does not fit. Gives the length in *ret_len. */
int sockaddr_un_set(struct sockaddr_un *ret, socklen_t *ret_len, const char *path);
/* A listening non-blocking close-on-exec socket at path (mode as the umask says); a stale socket there is replaced. */
int unix_listen(const char *path, int type);
/* Connects without waiting: a full backlog is -EAGAIN, nobody listening -ECONNREFUSED. Gives a non-blocking fd. */
int unix_connect(const char *path, int type);

/* One datagram on a SEQPACKET socket with up to SCM_FDS_MAX fds. Never waits, never raises SIGPIPE. 0, or -errno. */
#define SCM_FDS_MAX 250
int send_with_fds(int sock, const void *p, size_t n, const int *fds, size_t n_fds);
/* Receives one datagram; fds come close-on-exec. Gives its size (0: end of file), -EAGAIN, -EMSGSIZE when it did not fit,
 * -EBADMSG when fds were lost. On error no fd is left open. *n_fds goes in as the room in fds, out as their number. */
ssize_t recv_with_fds(int sock, void *p, size_t n, int *fds, size_t *n_fds);

/* What a fd from somebody else is. A writable file is a regular one, not to append and not opened with O_PATH. */
bool fd_is_unix_socket(int fd, int type, bool listening);
bool fd_is_writable_file(int fd);

/* A file without a name that holds these bytes. */
int memfd_new(const char *name, const void *p, size_t n);
