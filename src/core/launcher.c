/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <limits.h>

#include "basic/fd-util.h"
#include "core/launcher.h"
#include "core/packet-call.h"

struct LaunchCall {
        PacketCall *packet;
        LaunchType type;
        union {
                launch_open_cb open;
                launch_start_cb start;
                launch_probe_cb probe;
                launch_vsock_cb vsock;
                launch_loop_cb loop;
        } cb;
        void *userdata;
};

static const char *socket_path = LAUNCH_SOCKET;

void launch_set_socket(const char *path) {
        socket_path = path ?: LAUNCH_SOCKET;
}

LaunchCall *launch_call_free(LaunchCall *c) {
        if (!c)
                return NULL;
        packet_call_free(c->packet);
        free(c);
        return NULL;
}

/* Gives -EBADMSG unless it is the answer of this type, with `error` and with a fd just where there is success. */
static int check_answer(LaunchType type, const void *data, size_t size, size_t want, int32_t error, bool wants_fd,
                        size_t n_fds) {
        const LaunchHeader *h = data;

        if (size != want || h->magic != LAUNCH_MAGIC || h->type != type || h->size != size || error > 0 ||
            n_fds != (wants_fd && error == 0))
                return -EBADMSG;
        return error;
}

static int32_t answer_error(const void *data, size_t size, size_t offset) {
        int32_t error = 0;

        if (size >= offset + sizeof(error))
                memcpy(&error, (const char *) data + offset, sizeof(error));
        return error;
}

static void on_open(LaunchCall *c, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        OpenReply reply = {};

        if (error == 0)
                error = check_answer(c->type, data, size, sizeof(reply),
                                     answer_error(data, size, offsetof(OpenReply, error)), true, n_fds);
        if (error < 0)
                close_many(fds, n_fds);
        else
                memcpy(&reply, data, sizeof(reply));
        c->cb.open(c->userdata, error, error < 0 ? -EBADF : fds[0], error < 0 ? NULL : &reply);
}

static void on_start(LaunchCall *c, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        StartReply reply = {};
        uint32_t which = 0;

        if (error == 0)
                error = check_answer(c->type, data, size, sizeof(reply),
                                     answer_error(data, size, offsetof(StartReply, error)), true, n_fds);
        if (error == -EMEDIUMTYPE || error == -EBUSY)
                which = (uint32_t) answer_error(data, size, offsetof(StartReply, fd));
        if (error == 0) {
                memcpy(&reply, data, sizeof(reply));
                if (reply.pid <= 1)
                        error = -EBADMSG;
        }
        if (error < 0)
                close_many(fds, n_fds);
        c->cb.start(c->userdata, error, error < 0 ? 0 : reply.pid, error < 0 ? -EBADF : fds[0], which);
}

static void on_probe(LaunchCall *c, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        ProbeReply reply = {};

        /* An error is in the answer, which tells of the devices all the same. */
        if (error == 0)
                error = check_answer(c->type, data, size, sizeof(reply), 0, false, n_fds);
        close_many(fds, n_fds);
        if (error == 0) {
                memcpy(&reply, data, sizeof(reply));
                reply.path[sizeof(reply.path) - 1] = 0;
                reply.version[sizeof(reply.version) - 1] = 0;
                error = reply.error > 0 ? -EBADMSG : reply.error;
                c->cb.probe(c->userdata, error, &reply);
        } else
                c->cb.probe(c->userdata, error, NULL);
}

static void on_vsock(LaunchCall *c, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        if (error == 0)
                error = check_answer(c->type, data, size, sizeof(VSockReply),
                                     answer_error(data, size, offsetof(VSockReply, error)), true, n_fds);
        if (error < 0)
                close_many(fds, n_fds);
        c->cb.vsock(c->userdata, error, error < 0 ? -EBADF : fds[0]);
}

static void on_loop(LaunchCall *c, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        if (error == 0)
                error = check_answer(c->type, data, size, sizeof(LoopReply), answer_error(data, size, offsetof(LoopReply, error)), true,
                                     n_fds);
        if (error < 0)
                close_many(fds, n_fds);
        c->cb.loop(c->userdata, error, error < 0 ? -EBADF : fds[0]);
}

static void on_packet(void *userdata, int error, const void *data, size_t size, int *fds, size_t n_fds) {
        LaunchCall *c = userdata;

        switch (c->type) {
        case LAUNCH_OPEN:
                on_open(c, error, data, size, fds, n_fds);
                break;
        case LAUNCH_START:
                on_start(c, error, data, size, fds, n_fds);
                break;
        case LAUNCH_PROBE:
                on_probe(c, error, data, size, fds, n_fds);
                break;
        case LAUNCH_VSOCK:
                on_vsock(c, error, data, size, fds, n_fds);
                break;
        case LAUNCH_LOOP:
                on_loop(c, error, data, size, fds, n_fds);
                break;
        }
}

/* header: the begin of a request of this size, which is filled in here */
static int launch_call_new(sd_event *e, LaunchType type, LaunchHeader *header, size_t size, const int *fds, size_t n_fds,
                           uint64_t timeout_usec, const LaunchCall *template, LaunchCall **ret) {
        LaunchCall *c;
        int r;

        *header = (LaunchHeader) { .magic = LAUNCH_MAGIC, .type = type, .size = (uint32_t) size };
        c = new(LaunchCall, 1);
        if (!c)
                return -ENOMEM;
        *c = *template;
        c->type = type;

        r = packet_call_new(e, socket_path, header, size, fds, n_fds, timeout_usec, on_packet, c, &c->packet);
        if (r < 0) {
                free(c);
                return r;
        }
        *ret = c;
        return 0;
}

int launch_open(sd_event *e, const char *path, uid_t uid, unsigned flags, uint64_t timeout_usec, launch_open_cb cb,
                void *userdata, LaunchCall **ret) {
        size_t n = strlen(path) + 1, size = sizeof(OpenRequest) + n;
        _cleanup_free_ OpenRequest *q = NULL;

        if (n > PATH_MAX)
                return -ENAMETOOLONG;
        q = malloc(size);
        if (!q)
                return -ENOMEM;
        *q = (OpenRequest) { .uid = uid, .flags = flags };
        memcpy(q->path, path, n);
        return launch_call_new(e, LAUNCH_OPEN, &q->header, size, NULL, 0, timeout_usec,
                               &(LaunchCall) { .cb.open = cb, .userdata = userdata }, ret);
}

static int make_start(char *const *argv, StartRequest **ret, size_t *ret_size) {
        size_t argv_size = 0;
        StartRequest *q;
        char *p;

        for (char *const *a = argv; *a; a++)
                argv_size += strlen(*a) + 1;
        if (argv_size > LAUNCH_MESSAGE_MAX - sizeof(*q))
                return -E2BIG;
        q = malloc(sizeof(*q) + argv_size);
        if (!q)
                return -ENOMEM;
        *q = (StartRequest) { .argv_size = (uint32_t) argv_size };
        p = q->argv;
        for (char *const *a = argv; *a; a++)
                p = stpcpy(p, *a) + 1;
        *ret = q;
        *ret_size = sizeof(*q) + argv_size;
        return 0;
}

int launch_start(sd_event *e, const StartParams *p, uint64_t timeout_usec, launch_start_cb cb, void *userdata, LaunchCall **ret) {
        _cleanup_free_ StartRequest *q = NULL;
        int fds[SCM_FDS_MAX], r;
        size_t size = 0;

        if (p->n_fds > SCM_FDS_MAX - _HELPER_FD_MAX)
                return -E2BIG;
        memcpy(fds, p->helper_fds, sizeof(p->helper_fds));
        if (p->n_fds > 0)
                memcpy(fds + _HELPER_FD_MAX, p->fds, p->n_fds * sizeof(int));

        r = make_start(p->argv, &q, &size);
        if (r < 0)
                return r;
        q->program = p->program;
        q->n_fds = (uint32_t) p->n_fds;
        q->kind = p->kind;
        q->console_log_max = p->console_log_max;
        q->share = p->share;
        q->network = p->network;
        q->vmm = p->vmm;
        return launch_call_new(e, LAUNCH_START, &q->header, size, fds, _HELPER_FD_MAX + p->n_fds, timeout_usec,
                               &(LaunchCall) { .cb.start = cb, .userdata = userdata }, ret);
}

int launch_probe(sd_event *e, Program program, bool want_version, uint64_t timeout_usec, launch_probe_cb cb,
                 void *userdata, LaunchCall **ret) {
        ProbeRequest q = { .program = program, .want_version = want_version };

        return launch_call_new(e, LAUNCH_PROBE, &q.header, sizeof(q), NULL, 0, timeout_usec,
                               &(LaunchCall) { .cb.probe = cb, .userdata = userdata }, ret);
}

int launch_vsock(sd_event *e, uint32_t cid, uint32_t port, uint64_t timeout_usec, launch_vsock_cb cb, void *userdata,
                 LaunchCall **ret) {
        VSockRequest q = { .cid = cid, .port = port };

        return launch_call_new(e, LAUNCH_VSOCK, &q.header, sizeof(q), NULL, 0, timeout_usec,
                               &(LaunchCall) { .cb.vsock = cb, .userdata = userdata }, ret);
}

int launch_loop(sd_event *e, int image_fd, bool readonly, uint64_t timeout_usec, launch_loop_cb cb, void *userdata, LaunchCall **ret) {
        LoopRequest q = { .readonly = readonly };

        return launch_call_new(e, LAUNCH_LOOP, &q.header, sizeof(q), &image_fd, 1, timeout_usec,
                               &(LaunchCall) { .cb.loop = cb, .userdata = userdata }, ret);
}
