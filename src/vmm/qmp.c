/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/epoll.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/qmp.h"
#include "vmm/vmm-object.h"

#define READ_SIZE (64U * 1024U)
#define PENDING_MAX 256U

typedef struct Pending Pending;

struct Pending {
        Pending *next;
        int64_t id;
        uint64_t deadline;      /* CLOCK_MONOTONIC */
        qmp_reply_cb cb;
        void *userdata;
};

typedef enum QMPState {
        QMP_GREETING,
        QMP_READY,
        QMP_CLOSED,
} QMPState;

struct QMP {
        unsigned n_ref;         /* a second one is held while handlers run, so that they may free */
        bool reading;
        QMPState state;

        sd_event *event;
        sd_event_source *io, *timer;
        int fd;
        const QMPHandlers *handlers;
        void *userdata;

        char *input;
        size_t input_size, input_allocated;
        char *output;
        size_t output_size, output_allocated;

        Pending *pending;       /* oldest first */
        size_t n_pending;
        int64_t last_id;
};

static QMP *qmp_unref(QMP *q) {
        if (--q->n_ref > 0)
                return NULL;

        free(q->input);
        free(q->output);
        sd_event_unref(q->event);
        free(q);
        return NULL;
}

static void qmp_unrefp(QMP **q) {
        qmp_unref(*q);
}

static QMP *qmp_ref(QMP *q) {
        q->n_ref++;
        return q;
}

/* Takes a command out of the list and answers it. */
static void pending_complete(QMP *q, Pending **link, int error, json_object *result, const char *message) {
        _cleanup_free_ Pending *p = *link;

        *link = p->next;
        q->n_pending--;
        if (p->cb)
                p->cb(p->userdata, error, result, message);
}

static void qmp_close(QMP *q, int error) {
        q->state = QMP_CLOSED;
        q->io = sd_event_source_disable_unref(q->io);
        q->timer = sd_event_source_disable_unref(q->timer);
        q->fd = safe_close(q->fd);
        while (q->pending)
                pending_complete(q, &q->pending, error, NULL, NULL);
}

QMP *qmp_free(QMP *q) {
        bool again;

        if (!q)
                return NULL;

        again = !q->handlers; /* in a callback of its end: the others run now */
        q->handlers = NULL;
        qmp_close(q, -ECANCELED);
        return again ? NULL : qmp_unref(q);
}

void qmp_give_up(QMP *q, int error) {
        _cleanup_(qmp_unrefp) _unused_ QMP *ref = qmp_ref(q);

        if (q->state == QMP_CLOSED)
                return;

        qmp_close(q, -EPIPE);
        if (q->handlers)
                q->handlers->disconnected(q->userdata, error);
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata);

static uint64_t next_deadline(QMP *q) {
        uint64_t t = USEC_INFINITY;

        for (Pending *p = q->pending; p; p = p->next)
                t = MIN(t, p->deadline);
        return t;
}

static int rearm(QMP *q) {
        uint64_t t = next_deadline(q);
        int r;

        if (!q->timer)
                return t == USEC_INFINITY ? 0 :
                        sd_event_add_time(q->event, &q->timer, CLOCK_MONOTONIC, t, 50 * USEC_PER_MSEC, on_timer, q);
        if (t == USEC_INFINITY)
                return sd_event_source_set_enabled(q->timer, SD_EVENT_OFF);

        r = sd_event_source_set_time(q->timer, t);
        return r < 0 ? r : sd_event_source_set_enabled(q->timer, SD_EVENT_ONESHOT);
}

static Pending **find_expired(QMP *q, uint64_t now) {
        for (Pending **p = &q->pending; *p; p = &(*p)->next)
                if ((*p)->deadline <= now)
                        return p;
        return NULL;
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata) {
        QMP *q = userdata;
        _cleanup_(qmp_unrefp) _unused_ QMP *ref = qmp_ref(q);
        Pending **p;

        /* From the start after each, for a handler may have changed the list. What it has added is not due yet. */
        while (q->state != QMP_CLOSED && (p = find_expired(q, usec)))
                pending_complete(q, p, -ETIMEDOUT, NULL, NULL);

        return q->state == QMP_CLOSED ? 0 : rearm(q);
}

/* Writing */

static int qmp_flush(QMP *q) {
        while (q->output_size > 0) {
                ssize_t n = send(q->fd, q->output, q->output_size, MSG_NOSIGNAL|MSG_DONTWAIT);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && errno != EAGAIN)
                        q->output_size = 0; /* Reading tells the end, after the last that there is to read. */
                if (n < 0)
                        break;
                q->output_size -= (size_t) n;
                memmove(q->output, q->output + n, q->output_size);
        }

        return sd_event_source_set_io_events(q->io, EPOLLIN | (q->output_size > 0 ? EPOLLOUT : 0));
}

static int output_append(QMP *q, const char *s) {
        size_t n = strlen(s), need = q->output_size + n + 1;

        if (need > QMP_OUTPUT_MAX)
                return -ENOBUFS;
        if (need > q->output_allocated) {
                char *p = realloc(q->output, need);

                if (!p)
                        return -ENOMEM;
                q->output = p;
                q->output_allocated = need;
        }

        memcpy(q->output + q->output_size, s, n);
        q->output[q->output_size + n] = '\n';
        q->output_size = need;
        return 0;
}

/* The message as text; takes arguments over. */
static int make_command(int64_t id, const char *command, json_object *arguments, json_object **ret) {
        _cleanup_json_ json_object *o = json_object_new_object(), *a = arguments;
        json_object *name = json_object_new_string(command), *number = json_object_new_int64(id);

        if (!o || json_object_object_add(o, "execute", name) < 0 || json_object_object_add(o, "id", number) < 0)
                return -ENOMEM;
        if (a) {
                if (json_object_object_add(o, "arguments", a) < 0)
                        return -ENOMEM;
                a = NULL;
        }

        *ret = TAKE_PTR(o);
        return 0;
}

static int pending_add(QMP *q, int64_t id, uint64_t timeout_usec, qmp_reply_cb cb, void *userdata) {
        Pending **end = &q->pending, *p;
        uint64_t now;
        int r;

        r = sd_event_now(q->event, CLOCK_MONOTONIC, &now);
        if (r < 0)
                return r;

        p = new(Pending, 1);
        if (!p)
                return -ENOMEM;
        *p = (Pending) {
                .id = id,
                .deadline = timeout_usec >= USEC_INFINITY - now ? USEC_INFINITY : now + timeout_usec,
                .cb = cb,
                .userdata = userdata,
        };

        while (*end)
                end = &(*end)->next;
        *end = p;
        q->n_pending++;
        return 0;
}

static int qmp_send(QMP *q, const char *command, json_object *arguments, uint64_t timeout_usec, qmp_reply_cb cb, void *userdata) {
        _cleanup_json_ json_object *o = NULL;
        size_t before = q->output_size;
        const char *text;
        int r;

        r = make_command(q->last_id + 1, command, arguments, &o);
        if (r < 0)
                return r;

        text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
        if (!text)
                return -ENOMEM;
        if (q->n_pending >= PENDING_MAX)
                return -ENOBUFS;

        r = output_append(q, text);
        if (r < 0)
                return r;
        r = pending_add(q, q->last_id + 1, timeout_usec, cb, userdata);
        if (r < 0) {
                q->output_size = before;
                return r;
        }
        q->last_id++;

        /* The command is on its way from here; without a timer it can at worst wait for its answer. */
        (void) rearm(q);
        (void) qmp_flush(q);
        return 0;
}

int qmp_command(QMP *q, const char *command, json_object *arguments, uint64_t timeout_usec, qmp_reply_cb cb, void *userdata) {
        if (q->state != QMP_READY) {
                json_object_put(arguments);
                return -ENOTCONN;
        }

        return qmp_send(q, command, arguments, timeout_usec, cb, userdata);
}

/* Reading */

static void on_capabilities(void *userdata, int error, json_object *result, const char *message) {
        QMP *q = userdata;

        if (error < 0 && q->state == QMP_READY)
                qmp_give_up(q, error == -EREMOTEIO ? -EBADMSG : error);
}

/* Commands are answered in their order, so what follows the first need not wait for its answer. */
static int handle_greeting(QMP *q, json_object *o) {
        int r;

        if (!json_object_is_type(json_get(o, "QMP"), json_type_object))
                return -EBADMSG;

        r = qmp_send(q, "qmp_capabilities", NULL, VMM_TIMEOUT_USEC, on_capabilities, q);
        if (r < 0)
                return r;
        q->state = QMP_READY;
        q->handlers->ready(q->userdata);
        return 0;
}

static int handle_reply(QMP *q, json_object *o) {
        json_object *error = json_get(o, "error"), *result = NULL;
        _cleanup_free_ char *words = NULL;
        int64_t id = json_get_int(o, "id", -1);
        const char *desc;
        Pending **p;

        if (!error && !json_object_object_get_ex(o, "return", &result))
                return -EBADMSG;

        /* One that nobody waits for: it came too late. */
        for (p = &q->pending; *p && (*p)->id != id; p = &(*p)->next)
                ;
        if (!*p)
                return 0;

        if (error) {
                desc = json_get_string(error, "desc", "no reason given");
                words = vmm_words(desc, strlen(desc));
        }
        pending_complete(q, p, error ? -EREMOTEIO : 0, result, words);
        return 0;
}

static int handle_message(QMP *q, json_object *o) {
        const char *event;

        if (q->state == QMP_GREETING)
                return handle_greeting(q, o);

        event = json_get_string(o, "event", NULL);
        if (!event)
                return handle_reply(q, o);
        if (q->state == QMP_READY)
                q->handlers->event(q->userdata, event, json_get(o, "data"));
        return 0;
}

static int handle_line(QMP *q, const char *line, size_t n) {
        _cleanup_json_ json_object *o = NULL;
        int r;

        while (n > 0 && (line[n - 1] == '\r' || line[n - 1] == ' '))
                n--;
        if (n == 0)
                return 0;

        r = json_parse_bounded(line, n, &o);
        if (r < 0)
                return r;
        return json_object_is_type(o, json_type_object) ? handle_message(q, o) : -EBADMSG;
}

/* Handles the whole lines that there are; `from` is where bytes not seen before begin. */
static int handle_input(QMP *q, size_t from) {
        size_t start = 0;
        int r = 0;

        while (r >= 0 && q->state != QMP_CLOSED) {
                char *end = memchr(q->input + from, '\n', q->input_size - from);

                if (!end)
                        break;
                from = (size_t) (end + 1 - q->input);
                r = handle_line(q, q->input + start, (size_t) (end - q->input) - start);
                start = from;
        }

        q->input_size -= start;
        memmove(q->input, q->input + start, q->input_size);
        if (r >= 0 && q->input_size >= QMP_LINE_MAX)
                r = -EMSGSIZE;
        return r;
}

/* Room for what comes next. Gives back what a long message took. */
static int input_reserve(QMP *q) {
        size_t want = q->input_size == 0 ? READ_SIZE / 16 : MIN(q->input_size + READ_SIZE, (size_t) QMP_LINE_MAX);
        char *p;

        if (want <= q->input_allocated && (q->input_size > 0 || q->input_allocated <= READ_SIZE))
                return 0;

        p = realloc(q->input, want);
        if (!p)
                return -ENOMEM;
        q->input = p;
        q->input_allocated = want;
        return 0;
}

/* Reads once. Gives the number of bytes, 0 when there are none now or the connection has ended. */
static size_t qmp_read(QMP *q) {
        size_t before = q->input_size;
        ssize_t n;
        int r;

        r = input_reserve(q);
        if (r < 0) {
                qmp_give_up(q, r);
                return 0;
        }

        n = recv(q->fd, q->input + before, q->input_allocated - before, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n <= 0) {
                qmp_give_up(q, n == 0 || errno == ECONNRESET ? -EPIPE : -errno);
                return 0;
        }

        q->input_size += (size_t) n;
        q->reading = true;
        r = handle_input(q, before);
        q->reading = false;
        if (r < 0) {
                qmp_give_up(q, r);
                return 0;
        }
        return (size_t) n;
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        QMP *q = userdata;
        _cleanup_(qmp_unrefp) _unused_ QMP *ref = qmp_ref(q);

        if (revents & EPOLLOUT)
                (void) qmp_flush(q);
        if (revents & ~(uint32_t) EPOLLOUT)
                qmp_read(q);
        return 0;
}

void qmp_drain(QMP *q) {
        _cleanup_(qmp_unrefp) _unused_ QMP *ref = qmp_ref(q);

        /* From within a handler: the reader above it goes on afterwards. */
        for (size_t n = 1, sum = 0; !q->reading && q->state != QMP_CLOSED && n > 0 && sum < QMP_DRAIN_MAX; sum += n)
                n = qmp_read(q);
}

int qmp_connect(sd_event *e, const char *path, const QMPHandlers *handlers, void *userdata, QMP **ret) {
        _cleanup_(qmp_freep) QMP *q = NULL;
        int r;

        q = new(QMP, 1);
        if (!q)
                return -ENOMEM;
        *q = (QMP) {
                .n_ref = 1,
                .event = sd_event_ref(e),
                .fd = unix_connect(path, SOCK_STREAM),
                .handlers = handlers,
                .userdata = userdata,
        };
        if (q->fd < 0)
                return q->fd;

        r = sd_event_add_io(e, &q->io, q->fd, EPOLLIN, on_io, q);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(q);
        return 0;
}
