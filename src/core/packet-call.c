/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>

#include "basic/fd-util.h"
#include "core/packet-call.h"

#define RETRY_USEC (2 * USEC_PER_MSEC)

struct PacketCall {
        int fd;
        sd_event_source *io, *deadline, *retry;
        packet_cb cb;
        void *userdata;

        /* Kept only while the listener's backlog is full */
        char *path;
        void *request;
        size_t size;
        int *fds;
        size_t n_fds;
};

static void packet_call_forget_request(PacketCall *c) {
        c->retry = sd_event_source_disable_unref(c->retry);
        close_many(c->fds, c->n_fds);
        free(TAKE_PTR(c->path));
        free(TAKE_PTR(c->request));
        free(TAKE_PTR(c->fds));
        c->n_fds = 0;
}

PacketCall *packet_call_free(PacketCall *c) {
        if (!c)
                return NULL;
        packet_call_forget_request(c);
        sd_event_source_disable_unref(c->io);
        sd_event_source_disable_unref(c->deadline);
        safe_close(c->fd);
        free(c);
        return NULL;
}

/* The callback may free c: nothing of it is touched after. */
static void packet_call_finish(PacketCall *c, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        packet_call_forget_request(c);
        c->io = sd_event_source_disable_unref(c->io);
        c->deadline = sd_event_source_disable_unref(c->deadline);
        c->cb(c->userdata, error, data, size, fds, n_fds);
}

static int on_answer(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        PacketCall *c = userdata;
        char buffer[PACKET_ANSWER_MAX];
        int fds[4];
        size_t n_fds = ELEMENTSOF(fds);
        ssize_t n;

        n = recv_with_fds(fd, buffer, sizeof(buffer), fds, &n_fds);
        if (n == -ECONNRESET) /* told once, and before an answer to a request that was not read */
                n = recv_with_fds(fd, buffer, sizeof(buffer), fds, &n_fds);
        if (n == -EAGAIN)
                return 0;
        if (n == 0 || n == -ECONNRESET)
                n = -EPIPE;
        if (n < 0)
                packet_call_finish(c, (int) n, NULL, 0, NULL, 0);
        else
                packet_call_finish(c, 0, buffer, (size_t) n, fds, n_fds);
        return 0;
}

static int on_deadline(sd_event_source *s, uint64_t usec, void *userdata) {
        packet_call_finish(userdata, -ETIMEDOUT, NULL, 0, NULL, 0);
        return 0;
}

/* -EAGAIN: the backlog is full */
static int packet_call_send(PacketCall *c, sd_event *e, const char *path, const void *request, size_t size,
                            const int *fds, size_t n_fds) {
        _cleanup_close_ int fd = -EBADF;
        int r;

        fd = unix_connect(path, SOCK_SEQPACKET);
        if (fd < 0)
                return fd;
        r = send_with_fds(fd, request, size, fds, n_fds);
        if (r < 0)
                return r;
        r = sd_event_add_io(e, &c->io, fd, EPOLLIN, on_answer, c);
        if (r < 0)
                return r;
        c->fd = TAKE_FD(fd);
        return 0;
}

static int on_retry(sd_event_source *s, uint64_t usec, void *userdata) {
        PacketCall *c = userdata;
        int r;

        r = packet_call_send(c, sd_event_source_get_event(s), c->path, c->request, c->size, c->fds, c->n_fds);
        if (r == -EAGAIN) {
                r = sd_event_source_set_time_relative(s, RETRY_USEC);
                if (r >= 0)
                        r = sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
        } else if (r >= 0)
                packet_call_forget_request(c);

        if (r < 0)
                packet_call_finish(c, r, NULL, 0, NULL, 0);
        return 0;
}

static int packet_call_retry(PacketCall *c, sd_event *e, const char *path, const void *request, size_t size,
                             const int *fds, size_t n_fds) {
        c->path = strdup(path);
        c->request = malloc(size);
        c->fds = new(int, n_fds + 1);
        if (!c->path || !c->request || !c->fds)
                return -ENOMEM;
        memcpy(c->request, request, size);
        c->size = size;

        for (; c->n_fds < n_fds; c->n_fds++) {
                c->fds[c->n_fds] = fcntl(fds[c->n_fds], F_DUPFD_CLOEXEC, 3);
                if (c->fds[c->n_fds] < 0)
                        return -errno;
        }
        return sd_event_add_time_relative(e, &c->retry, CLOCK_MONOTONIC, RETRY_USEC, 1, on_retry, c);
}

static int packet_call_set_deadline(PacketCall *c, sd_event *e, uint64_t timeout_usec) {
        int r;

        if (timeout_usec == USEC_INFINITY)
                return 0;
        r = sd_event_add_time_relative(e, &c->deadline, CLOCK_MONOTONIC, timeout_usec, USEC_PER_MSEC, on_deadline, c);
        if (r < 0)
                return r;
        /* An answer that is there counts, however late the loop comes to it. */
        return sd_event_source_set_priority(c->deadline, SD_EVENT_PRIORITY_NORMAL + 1);
}

int packet_call_new(sd_event *e, const char *path, const void *request, size_t size, const int *fds, size_t n_fds,
                    uint64_t timeout_usec, packet_cb cb, void *userdata, PacketCall **ret) {
        _cleanup_(packet_call_freep) PacketCall *c = NULL;
        int r;

        c = new(PacketCall, 1);
        if (!c)
                return -ENOMEM;
        *c = (PacketCall) { .fd = -EBADF, .cb = cb, .userdata = userdata };

        r = packet_call_set_deadline(c, e, timeout_usec);
        if (r < 0)
                return r;
        r = packet_call_send(c, e, path, request, size, fds, n_fds);
        if (r == -EAGAIN)
                r = packet_call_retry(c, e, path, request, size, fds, n_fds);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(c);
        return 0;
}
