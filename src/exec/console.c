/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>

#include "basic/fd-util.h"
#include "exec/console.h"

#define CHUNK 16384U
#define PIPE_MAX (1024U * 1024U) /* the most that a pipe holds, fs.pipe-max-size */

static void client_remove(Console *c, size_t i) {
        safe_close(c->clients[i].fd);
        c->n_clients--;
        memmove(c->clients + i, c->clients + i + 1, (c->n_clients - i) * sizeof(ConsoleClient));
}

static void answer(int fd, int32_t error, int stream) {
        (void) send_with_fds(fd, &error, sizeof(error), &stream, stream >= 0);
}

static void broadcast(Console *c, const char *p, size_t n) {
        for (size_t i = c->n_clients; i-- > 0;) {
                if (c->clients[i].asking)
                        continue;
                /* A reader that is slow loses bytes: nobody waits for it. */
                if (send(c->clients[i].fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN && errno != EINTR)
                        client_remove(c, i);
        }
}

/* One chunk of the VMM's output. False when there is none now; the pipe is closed at its end. */
static bool take_output(Console *c, int *pipe, Ring *ring) {
        static char chunk[CHUNK];
        ssize_t n;

        if (*pipe < 0)
                return false;
        n = read(*pipe, chunk, sizeof(chunk));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return false;
        if (n <= 0) {
                *pipe = safe_close(*pipe);
                return false;
        }

        ring_append(ring, chunk, (size_t) n);
        if (ring == &c->log)
                broadcast(c, chunk, (size_t) n);
        return true;
}

static void give_input(Console *c) {
        ssize_t n = write(c->in, c->input + c->input_begin, c->input_end - c->input_begin);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n < 0) /* nobody reads it any more */
                c->input_begin = c->input_end;
        else
                c->input_begin += (size_t) n;
        if (c->input_begin == c->input_end)
                c->input_begin = c->input_end = 0;
}

static void take_input(Console *c, size_t i, short revents) {
        ssize_t n;

        if (c->input_end > 0) /* another client was first */
                return;
        n = recv(c->clients[i].fd, c->input, sizeof(c->input), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                if (revents & (POLLHUP | POLLERR))
                        client_remove(c, i);
                return;
        }
        if (n < 0 || (n == 0 && (revents & (POLLHUP | POLLERR)))) {
                client_remove(c, i);
                return;
        }
        if (n == 0) {
                c->clients[i].deaf = true;
                return;
        }
        c->input_end = (size_t) n;
        give_input(c);
}

static int open_stream(ConsoleClient *client) {
        _cleanup_close_ int connection = client->fd;
        int pair[2];

        client->fd = -EBADF;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
                answer(connection, -errno, -EBADF);
                return -errno;
        }
        client->fd = pair[0];
        client->asking = false;
        answer(connection, 0, pair[1]);
        safe_close(pair[1]);
        return 0;
}

static void answer_vsock(int fd) {
        _cleanup_close_ int stream = unix_connect(EXEC_VSOCK, SOCK_STREAM);

        answer(fd, MIN(stream, 0), stream);
}

static void take_request(Console *c, size_t i) {
        ConsoleClient *client = c->clients + i;
        ExecRequest request;
        ssize_t n;

        n = recv_with_fds(client->fd, &request, sizeof(request), NULL, NULL);
        if (n == -EAGAIN)
                return;
        if (n == sizeof(request) && request.type == EXEC_REQUEST_CONSOLE) {
                if (open_stream(client) < 0)
                        client_remove(c, i);
                return;
        }
        if (n == sizeof(request) && request.type == EXEC_REQUEST_SOCKETS && c->sockets >= 0)
                answer(client->fd, 0, c->sockets);
        else if (n == sizeof(request) && request.type == EXEC_REQUEST_LIFE)
                answer(client->fd, 0, c->life);
        else if (n == sizeof(request) && request.type == EXEC_REQUEST_VSOCK && c->sockets >= 0)
                answer_vsock(client->fd);
        else if (n != 0)
                answer(client->fd, -EBADMSG, -EBADF);
        client_remove(c, i);
}

static bool is_root(int fd) {
        struct ucred cred;
        socklen_t size = sizeof(cred);

        return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) == 0 && cred.uid == 0;
}

/* Streams stay; of those who only connected the oldest has to go. */
static bool make_room(Console *c) {
        if (c->n_clients < CONSOLE_CLIENTS_MAX)
                return true;
        for (size_t i = 0; i < c->n_clients; i++)
                if (c->clients[i].asking) {
                        answer(c->clients[i].fd, -EBUSY, -EBADF);
                        client_remove(c, i);
                        return true;
                }
        return false;
}

static void accept_client(Console *c) {
        int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
                c->resting = errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;
                return;
        }
        if (!is_root(fd))
                safe_close(fd);
        else if (!make_room(c)) {
                answer(fd, -EBUSY, -EBADF);
                safe_close(fd);
        } else
                c->clients[c->n_clients++] = (ConsoleClient) { .fd = fd, .asking = true };
}

enum { POLL_VMM, POLL_OUT, POLL_ERR, POLL_IN, POLL_LISTENER, POLL_CLIENTS };

static size_t fill(Console *c, struct pollfd *p, int pidfd) {
        bool full = c->input_end > 0;

        p[POLL_VMM] = (struct pollfd) { .fd = pidfd, .events = POLLIN };
        p[POLL_OUT] = (struct pollfd) { .fd = c->out, .events = POLLIN };
        p[POLL_ERR] = (struct pollfd) { .fd = c->err, .events = POLLIN };
        p[POLL_IN] = (struct pollfd) { .fd = full ? c->in : -1, .events = POLLOUT };
        p[POLL_LISTENER] = (struct pollfd) { .fd = c->resting ? -1 : c->listener, .events = POLLIN };

        /* While the VMM takes no input clients are not looked at at all, else one that hung up would wake us for ever. */
        for (size_t i = 0; i < c->n_clients; i++)
                p[POLL_CLIENTS + i] = (struct pollfd) {
                        .fd = full && !c->clients[i].asking ? -1 : c->clients[i].fd,
                        .events = c->clients[i].deaf ? 0 : POLLIN,
                };
        return POLL_CLIENTS + c->n_clients;
}

static void serve_clients(Console *c, const struct pollfd *p, size_t n) {
        for (size_t i = n; i-- > 0;) {
                if (!p[i].revents)
                        continue;
                if (c->clients[i].asking)
                        take_request(c, i);
                else if (c->clients[i].deaf)
                        client_remove(c, i);
                else
                        take_input(c, i, p[i].revents);
        }
}

static void drain(Console *c, int *pipe, Ring *ring) {
        /* Whoever else writes there may go on for ever; the VMM's bytes are no more than the pipe holds. */
        for (unsigned i = 0; i < PIPE_MAX / CHUNK * 4 && take_output(c, pipe, ring); i++)
                ;
}

void console_run(Console *c, int pidfd) {
        struct pollfd p[POLL_CLIENTS + CONSOLE_CLIENTS_MAX];

        for (;;) {
                size_t n = fill(c, p, pidfd);
                int timeout = c->resting ? 100 : -1;

                c->resting = false;
                if (poll(p, n, timeout) < 0)
                        continue;
                if (p[POLL_VMM].revents)
                        break;
                if (p[POLL_IN].revents)
                        give_input(c);
                serve_clients(c, p + POLL_CLIENTS, n - POLL_CLIENTS);
                if (p[POLL_OUT].revents)
                        take_output(c, &c->out, &c->log);
                if (p[POLL_ERR].revents)
                        take_output(c, &c->err, &c->last_output);
                if (p[POLL_LISTENER].revents)
                        accept_client(c);
        }

        drain(c, &c->out, &c->log);
        drain(c, &c->err, &c->last_output);
}
