/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/stat.h>

#include "basic/fd-util.h"
#include "core/helper.h"
#include "core/packet-call.h"

struct Helper {
        int fd;
        sd_event_source *io;
        helper_event_cb cb;
        void *userdata;
};

Helper *helper_free(Helper *h) {
        if (!h)
                return NULL;
        sd_event_source_disable_unref(h->io);
        safe_close(h->fd);
        free(h);
        return NULL;
}

static bool event_valid(ExecEvent *ev, size_t n_fds) {
        ev->stage[sizeof(ev->stage) - 1] = 0;
        switch (ev->type) {
        case EXEC_FORKED:
                return n_fds == 1 && ev->pid > 1;
        case EXEC_DONE:
                return n_fds == 0;
        case EXEC_FAILED:
                return n_fds == 0 && ev->error < 0;
        default:
                return false;
        }
}

/* The callback may free h: it is always the last thing. */
static int on_event(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Helper *h = userdata;
        ExecEvent ev;
        int pidfd = -EBADF;
        size_t n_fds = 1;
        ssize_t n;

        n = recv_with_fds(fd, &ev, sizeof(ev), &pidfd, &n_fds);
        if (n == -EAGAIN)
                return 0;
        if (n == sizeof(ev) && event_valid(&ev, n_fds)) {
                if (ev.type != EXEC_FORKED)
                        h->io = sd_event_source_disable_unref(h->io);
                h->cb(h->userdata, &ev, pidfd, 0);
                return 0;
        }

        if (n >= 0)
                safe_close(pidfd);
        h->io = sd_event_source_disable_unref(h->io);
        h->cb(h->userdata, NULL, -EBADF, n == 0 || n == -ECONNRESET ? -EPIPE : n < 0 ? (int) n : -EBADMSG);
        return 0;
}

int helper_new(sd_event *e, helper_event_cb cb, void *userdata, Helper **ret, int *ret_fd) {
        _cleanup_(helper_freep) Helper *h = NULL;
        _cleanup_close_ int theirs = -EBADF;
        int pair[2], r;

        h = new(Helper, 1);
        if (!h)
                return -ENOMEM;
        *h = (Helper) { .fd = -EBADF, .cb = cb, .userdata = userdata };

        /* The helper's end blocks, ours never does (MSG_DONTWAIT). */
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        h->fd = pair[0];
        theirs = pair[1];
        r = sd_event_add_io(e, &h->io, h->fd, EPOLLIN, on_event, h);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(h);
        *ret_fd = TAKE_FD(theirs);
        return 0;
}

static int helper_say(Helper *h, char word) {
        return send_with_fds(h->fd, &word, 1, NULL, 0);
}

int helper_fork(Helper *h) {
        return helper_say(h, EXEC_FORK);
}

int helper_go(Helper *h) {
        return helper_say(h, EXEC_GO);
}

struct HelperCall {
        PacketCall *packet;
        helper_console_cb cb;
        void *userdata;
};

HelperCall *helper_call_free(HelperCall *c) {
        if (!c)
                return NULL;
        packet_call_free(c->packet);
        free(c);
        return NULL;
}

static void on_console(void *userdata, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        HelperCall *c = userdata;
        int32_t answer = 0;

        if (error == 0 && size != sizeof(answer))
                error = -EBADMSG;
        if (error == 0) {
                memcpy(&answer, data, sizeof(answer));
                error = answer > 0 || n_fds != (answer == 0) ? -EBADMSG : answer;
        }
        if (error < 0)
                close_many(fds, n_fds);
        c->cb(c->userdata, error, error < 0 ? -EBADF : fds[0]);
}

static int ask(sd_event *e, const char *path, ExecRequestType type, uint64_t timeout_usec, helper_console_cb cb, void *userdata,
               HelperCall **ret) {
        ExecRequest q = { .type = type };
        _cleanup_free_ HelperCall *c = NULL;
        int r;

        c = new(HelperCall, 1);
        if (!c)
                return -ENOMEM;
        *c = (HelperCall) { .cb = cb, .userdata = userdata };
        r = packet_call_new(e, path, &q, sizeof(q), NULL, 0, timeout_usec, on_console, c, &c->packet);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

int helper_open_console(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata,
                        HelperCall **ret) {
        return ask(e, path, EXEC_REQUEST_CONSOLE, timeout_usec, cb, userdata, ret);
}

int helper_open_sockets(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata, HelperCall **ret) {
        return ask(e, path, EXEC_REQUEST_SOCKETS, timeout_usec, cb, userdata, ret);
}

int helper_open_vsock(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata, HelperCall **ret) {
        return ask(e, path, EXEC_REQUEST_VSOCK, timeout_usec, cb, userdata, ret);
}

int helper_open_life(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata, HelperCall **ret) {
        return ask(e, path, EXEC_REQUEST_LIFE, timeout_usec, cb, userdata, ret);
}

int helper_read_exit(const char *path, int *ret_status) {
        _cleanup_free_ char *text = NULL;
        ExitRecord record;
        size_t n;
        int r;

        r = read_file_all(path, 2 * sizeof(record), &text, &n);
        if (r == -ENOENT || (r == 0 && n == 0))
                return -ENODATA;
        if (r < 0)
                return r == -E2BIG ? -EBADMSG : r;
        if (n != sizeof(record))
                return -EBADMSG;
        memcpy(&record, text, sizeof(record));
        if (record.magic != EXIT_RECORD_MAGIC)
                return -EBADMSG;
        *ret_status = record.status;
        return 0;
}

/* Twice the same: not half of a header that was just being written. */
static int read_header(int fd, RingHeader *ret) {
        RingHeader a, b;

        for (unsigned i = 0; i < 100; i++) {
                ssize_t n = pread(fd, &a, sizeof(a), 0), m = pread(fd, &b, sizeof(b), 0);

                if (n < 0 || m < 0)
                        return -errno;
                if (n == 0)
                        return -ENODATA;
                if (n != sizeof(a) || m != n || memcmp(&a, &b, sizeof(a)) != 0)
                        continue;
                if (a.magic != RING_MAGIC || a.size == 0 || a.size > INT32_MAX || a.pending > INT32_MAX ||
                    a.total > INT64_MAX)
                        return -EBADMSG;
                *ret = a;
                return 0;
        }
        return -EBADMSG;
}

static uint64_t first_good(const RingHeader *h) {
        return h->total + h->pending > h->size ? h->total + h->pending - h->size : 0;
}

/* Bytes of the file that are not there (a disk was full) come as they are in the buffer: zero. */
static int read_range(int fd, const RingHeader *h, uint64_t begin, char *p) {
        while (begin < h->total) {
                uint64_t at = begin % h->size, n = MIN(h->total - begin, h->size - at);
                ssize_t k = pread(fd, p, n, (off_t) (sizeof(*h) + at));

                if (k < 0 && errno == EINTR)
                        continue;
                if (k < 0)
                        return -errno;
                if (k == 0)
                        k = (ssize_t) n;
                begin += (uint64_t) k;
                p += k;
        }
        return 0;
}

int ring_read(const char *path, uint64_t max, char **ret, size_t *ret_size) {
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *p = NULL;
        RingHeader h = { .size = 1 }, after;
        uint64_t begin, skip;
        int r;

        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0 && errno != ENOENT)
                return -errno;
        r = fd < 0 ? -ENODATA : read_header(fd, &h);
        if (r < 0 && r != -ENODATA)
                return r;

        begin = first_good(&h);
        begin = MAX(begin, h.total > max ? h.total - max : 0);
        begin = MIN(begin, h.total);
        p = calloc(h.total - begin + 1, 1);
        if (!p)
                return -ENOMEM;
        if (begin < h.total) {
                r = read_range(fd, &h, begin, p);
                if (r < 0 || (r = read_header(fd, &after)) < 0)
                        return r;

                /* What was overwritten meanwhile is not ours to give. */
                skip = MAX(first_good(&after), begin) - begin;
                skip = MIN(skip, h.total - begin);
                memmove(p, p + skip, h.total - begin - skip + 1);
                begin += skip;
        }

        *ret_size = h.total - begin;
        *ret = TAKE_PTR(p);
        return 0;
}
