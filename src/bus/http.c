/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/epoll.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "bus/curl-load.h"
#include "bus/http.h"

#define HEADER_LINES_MAX 256U
#define BUFFER_SIZE 4096L               /* a request under way has one */
#define BACKLOG_RETRY_USEC (20 * USEC_PER_MSEC)

typedef struct Multi Multi;
typedef struct Request Request;

/* What all that use the same loop share. */
struct Multi {
        Multi *next;
        unsigned n_ref;         /* its users; another one while callbacks run, so that they may free the last */
        sd_event *event;
        sd_event_source *timer;
        CURLM *handle;
};

struct Request {
        Request *next;
        Http *http;
        char *method, *url, *body;
        uint64_t deadline;      /* CLOCK_MONOTONIC */
        http_cb cb;
        void *userdata;

        CURL *easy;             /* when it is under way */
        int fd;                 /* its socket then, libcurl's; -EBADF: none yet */
        int error;              /* why a callback of ours ended it */
        bool head_done;
        size_t head_size;
        unsigned head_lines;
        char *answer;
        size_t answer_size, answer_allocated;
};

struct Http {
        Multi *multi;
        char *path;
        bool freeing;
        Request *queue;         /* oldest first; only that is under way */
        size_t n_queue;
        /* Both are there while there are requests */
        sd_event_source *start;
        sd_event_source *timer; /* next deadline, or when to try again to connect */
        uint64_t retry_at;
};

static Multi *multis;
/* To all requests */
static struct curl_slist *headers_json, *headers_none;

/* The shared half: libcurl's sockets and its timer in our loop */

static void multi_turn(Multi *m, curl_socket_t fd, int what);

static int on_socket_io(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        /* What is wrong with a socket shows when it is read. */
        multi_turn(userdata, fd, (revents & ~(uint32_t) EPOLLOUT ? CURL_CSELECT_IN : 0) | (revents & EPOLLOUT ? CURL_CSELECT_OUT : 0));
        return 0;
}

static int on_curl_timer(sd_event_source *s, uint64_t usec, void *userdata) {
        multi_turn(userdata, CURL_SOCKET_TIMEOUT, 0);
        return 0;
}

/* Never fails, for libcurl would give up all requests: a socket that can't be watched costs that request its time. */
static int on_curl_socket(CURL *c, curl_socket_t fd, int what, void *userdata, void *socket) {
        sd_event_source *s = socket;
        Multi *m = userdata;
        uint32_t events;

        if (what == CURL_POLL_REMOVE) {
                sd_event_source_disable_unref(s);
                (void) curl.multi_assign(m->handle, fd, NULL);
                return 0;
        }

        events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
        if (s)
                (void) sd_event_source_set_io_events(s, events);
        else if (sd_event_add_io(m->event, &s, fd, events, on_socket_io, m) >= 0 &&
                 curl.multi_assign(m->handle, fd, s) != CURLM_OK)
                sd_event_source_disable_unref(s);
        return 0;
}

static int on_curl_timeout(CURLM *c, long msec, void *userdata) {
        Multi *m = userdata;

        if (msec < 0)
                return sd_event_source_set_enabled(m->timer, SD_EVENT_OFF) < 0 ? -1 : 0;
        if (sd_event_source_set_time_relative(m->timer, (uint64_t) msec * USEC_PER_MSEC) < 0)
                return -1;
        return sd_event_source_set_enabled(m->timer, SD_EVENT_ONESHOT) < 0 ? -1 : 0;
}

/* Once a process, and never given back. */
static int init_headers(void) {
        /* A server that is asked to say that it wants the body makes it wait for that. */
        if (!headers_none)
                headers_none = curl.slist_append(NULL, "Expect:");
        if (headers_none && !headers_none->next)
                (void) curl.slist_append(headers_none, "Content-Type:");
        if (!headers_json)
                headers_json = curl.slist_append(NULL, "Expect:");
        if (headers_json && !headers_json->next)
                (void) curl.slist_append(headers_json, "Content-Type: application/json");
        return headers_none && headers_none->next && headers_json && headers_json->next ? 0 : -ENOMEM;
}

static Multi *multi_unref(Multi *m) {
        if (!m || --m->n_ref > 0)
                return NULL;

        for (Multi **p = &multis; *p; p = &(*p)->next)
                if (*p == m) {
                        *p = m->next;
                        break;
                }
        if (m->handle)
                (void) curl.multi_cleanup(m->handle);
        sd_event_source_disable_unref(m->timer);
        sd_event_unref(m->event);
        free(m);
        return NULL;
}
DEFINE_TRIVIAL_CLEANUP_FUNC(Multi *, multi_unref);

static bool multi_set_options(Multi *m) {
        return curl.multi_setopt(m->handle, CURLMOPT_SOCKETFUNCTION, on_curl_socket) == CURLM_OK &&
                curl.multi_setopt(m->handle, CURLMOPT_SOCKETDATA, m) == CURLM_OK &&
                curl.multi_setopt(m->handle, CURLMOPT_TIMERFUNCTION, on_curl_timeout) == CURLM_OK &&
                curl.multi_setopt(m->handle, CURLMOPT_TIMERDATA, m) == CURLM_OK &&
                curl.multi_setopt(m->handle, CURLMOPT_PIPELINING, (long) CURLPIPE_NOTHING) == CURLM_OK;
}

static int multi_new(sd_event *e, Multi **ret) {
        _cleanup_(multi_unrefp) Multi *m = NULL;
        int r;

        r = curl_load();
        if (r < 0)
                return r;
        r = init_headers();
        if (r < 0)
                return r;

        m = new(Multi, 1);
        if (!m)
                return -ENOMEM;
        *m = (Multi) {
                .n_ref = 1,
                .event = sd_event_ref(e),
        };
        r = sd_event_add_time(e, &m->timer, CLOCK_MONOTONIC, USEC_INFINITY, 1, on_curl_timer, m);
        if (r < 0)
                return r;
        m->handle = curl.multi_init();
        if (!m->handle || !multi_set_options(m))
                return -ENOMEM;

        m->next = multis;
        multis = m;
        *ret = TAKE_PTR(m);
        return 0;
}

static int multi_get(sd_event *e, Multi **ret) {
        for (Multi *m = multis; m; m = m->next)
                if (m->event == e) {
                        m->n_ref++;
                        *ret = m;
                        return 0;
                }
        return multi_new(e, ret);
}

/* A request */

static void request_stop(Request *q) {
        if (!q->easy)
                return;
        (void) curl.multi_remove_handle(q->http->multi->handle, q->easy);
        curl.easy_cleanup(q->easy);
        q->easy = NULL;
        q->fd = -EBADF;
}

static Request *request_free(Request *q) {
        if (!q)
                return NULL;

        request_stop(q);
        free(q->method);
        free(q->url);
        free(q->body);
        free(q->answer);
        free(q);
        return NULL;
}
DEFINE_TRIVIAL_CLEANUP_FUNC(Request *, request_free);

static bool words_valid(const char *method, const char *path) {
        if (!*method || path[0] != '/')
                return false;
        for (const char *p = method; *p; p++)
                if (*p < 'A' || *p > 'Z')
                        return false;
        for (const char *p = path; *p; p++)
                if (*p <= ' ' || *p >= 0x7f || *p == '#')
                        return false;
        return true;
}

static int request_new(Http *h, const char *method, const char *path, const char *body, Request **ret) {
        _cleanup_(request_freep) Request *q = NULL;

        if (!words_valid(method, path))
                return -EINVAL;

        q = new(Request, 1);
        if (!q)
                return -ENOMEM;
        *q = (Request) {
                .http = h,
                .fd = -EBADF,
                .method = strdup(method),
                .url = strjoinf("http://localhost%s", path),
                .body = body ? strdup(body) : NULL,
        };
        if (!q->method || !q->url || (body && !q->body))
                return -ENOMEM;

        *ret = TAKE_PTR(q);
        return 0;
}

/* Some versions of libcurl forget close-on-exec. */
static curl_socket_t on_open_socket(void *userdata, curlsocktype purpose, struct curl_sockaddr *a) {
        Request *q = userdata;
        int fd = socket(a->family, a->socktype|SOCK_CLOEXEC|SOCK_NONBLOCK, a->protocol);

        if (fd < 0)
                q->error = -errno;
        q->fd = fd;
        return fd < 0 ? CURL_SOCKET_BAD : fd;
}

/* Also for what comes before the real head (status 1xx) and after a body in chunks. */
static size_t on_header(char *p, size_t size, size_t n, void *userdata) {
        Request *q = userdata;

        n *= size;
        q->head_size += n;
        if (q->head_size > HTTP_HEAD_MAX || ++q->head_lines > HEADER_LINES_MAX) {
                q->error = -EMSGSIZE;
                return 0;
        }

        if (n >= 5 && memcmp(p, "HTTP/", 5) == 0)
                q->head_done = false;
        else if (p[0] == '\r' || p[0] == '\n')
                q->head_done = true;
        return n;
}

static int answer_reserve(Request *q, size_t need) {
        size_t most = HTTP_BODY_MAX + 1, twice = MIN(2 * q->answer_allocated, most), want = MAX(need, twice);
        char *p;

        if (need <= q->answer_allocated)
                return 0;
        p = realloc(q->answer, want);
        if (!p)
                return -ENOMEM;
        q->answer = p;
        q->answer_allocated = want;
        return 0;
}

static size_t on_body(char *p, size_t size, size_t n, void *userdata) {
        Request *q = userdata;

        n *= size;
        q->error = n > HTTP_BODY_MAX - q->answer_size ? -EMSGSIZE : answer_reserve(q, q->answer_size + n + 1);
        if (q->error < 0)
                return n + 1;

        memcpy(q->answer + q->answer_size, p, n);
        q->answer_size += n;
        q->answer[q->answer_size] = 0;
        return n;
}

#define SET(c, option, value) (curl.easy_setopt((c), CURLOPT_##option, (value)) == CURLE_OK)

static bool set_bounds(CURL *c) {
        return SET(c, PROTOCOLS_STR, "http") && SET(c, HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1) && SET(c, NOSIGNAL, 1L) &&
                SET(c, PROXY, "") && SET(c, NETRC, (long) CURL_NETRC_IGNORED) && SET(c, FOLLOWLOCATION, 0L) &&
                SET(c, HTTP_CONTENT_DECODING, 0L) && SET(c, HTTP09_ALLOWED, 0L) && SET(c, PATH_AS_IS, 1L) &&
                SET(c, MAXFILESIZE_LARGE, (curl_off_t) HTTP_BODY_MAX) && SET(c, BUFFERSIZE, BUFFER_SIZE) &&
                /* A second try on a new connection, as libcurl makes it for one used before, may do a thing twice. */
                SET(c, FRESH_CONNECT, 1L) && SET(c, FORBID_REUSE, 1L);
}

static bool set_callbacks(CURL *c, Request *q) {
        return SET(c, PRIVATE, q) && SET(c, OPENSOCKETFUNCTION, on_open_socket) && SET(c, OPENSOCKETDATA, q) &&
                SET(c, HEADERFUNCTION, on_header) && SET(c, HEADERDATA, q) && SET(c, WRITEFUNCTION, on_body) && SET(c, WRITEDATA, q);
}

static bool set_request(CURL *c, Request *q) {
        bool sends = q->body || streq(q->method, "PUT") || streq(q->method, "PATCH");

        return SET(c, UNIX_SOCKET_PATH, q->http->path) && SET(c, URL, q->url) &&
                (!sends || (SET(c, POSTFIELDS, q->body ?: "") && SET(c, POSTFIELDSIZE, (long) strlen(strempty(q->body))))) &&
                SET(c, CUSTOMREQUEST, q->method) && SET(c, HTTPHEADER, q->body ? headers_json : headers_none);
}

static int request_start(Request *q) {
        q->easy = curl.easy_init();
        if (!q->easy)
                return -ENOMEM;
        if (!set_bounds(q->easy) || !set_callbacks(q->easy, q) || !set_request(q->easy, q))
                return -ENOMEM;
        return curl.multi_add_handle(q->http->multi->handle, q->easy) == CURLM_OK ? 0 : -ENOMEM;
}

/* -EAGAIN: nothing was sent, because too many wait for the server to accept them. connect() says that at once, but libcurl takes it
 * for "wait", and notices only later that there is no connection. */
static int connect_result(CURLcode code, long number) {
        if (code == CURLE_SEND_ERROR)
                return number == ENOTCONN ? -EAGAIN : -EPIPE;
        return number == 0 || number == ENOTCONN || number == EINPROGRESS ? -EAGAIN : (int) -number;
}

static int request_result(Request *q, CURLcode code, unsigned *ret_status) {
        long status = 0, number = 0;

        if (q->error < 0)
                return q->error;
        (void) curl.easy_getinfo(q->easy, CURLINFO_RESPONSE_CODE, &status);
        (void) curl.easy_getinfo(q->easy, CURLINFO_OS_ERRNO, &number);

        switch ((int) code) {
        case CURLE_OK:
                if (!q->head_done)
                        return -EPIPE;
                if (status < 200)
                        return -EBADMSG;
                *ret_status = (unsigned) status;
                return 0;
        case CURLE_COULDNT_CONNECT:
        case CURLE_SEND_ERROR:
                return connect_result(code, number);
        case CURLE_GOT_NOTHING:
        case CURLE_PARTIAL_FILE:
                return -EPIPE;
        case CURLE_RECV_ERROR: /* of the socket, or of what came through it */
                return number ? -EPIPE : -EBADMSG;
        case CURLE_FILESIZE_EXCEEDED:
        case CURLE_OUT_OF_MEMORY: /* libcurl before 8.6 says so of a header line that is too long */
        case 100: /* CURLE_TOO_LARGE, since then */
                return -EMSGSIZE;
        default:
                return -EBADMSG;
        }
}

/* The queue */

static void rearm(Http *h) {
        uint64_t t = h->retry_at;

        for (Request *q = h->queue; q; q = q->next)
                t = MIN(t, q->deadline);
        (void) sd_event_source_set_time(h->timer, t);
        (void) sd_event_source_set_enabled(h->timer, t == USEC_INFINITY ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

/* Brings the sources in line with the queue. */
static void schedule(Http *h) {
        h->retry_at = USEC_INFINITY;
        if (!h->queue) {
                h->start = sd_event_source_disable_unref(h->start);
                h->timer = sd_event_source_disable_unref(h->timer);
                return;
        }
        if (!h->queue->easy)
                (void) sd_event_source_set_enabled(h->start, SD_EVENT_ONESHOT);
        rearm(h);
}

/* Connects again a little later; only the deadline ends that. */
static void retry(Request *q) {
        Http *h = q->http;
        uint64_t now;

        request_stop(q);
        if (sd_event_now(h->multi->event, CLOCK_MONOTONIC, &now) >= 0)
                h->retry_at = now + BACKLOG_RETRY_USEC;
        rearm(h);
}

/* Takes a request out of the queue and answers it. Afterwards nothing of the Http may be touched: it may be gone. */
static void complete(Request **link, int error, unsigned status) {
        _cleanup_(request_freep) Request *q = *link;
        Http *h = q->http;

        *link = q->next;
        h->n_queue--;
        request_stop(q);
        q->http = NULL;
        if (!h->freeing)
                schedule(h);
        if (q->cb)
                q->cb(q->userdata, error, status, error < 0 ? NULL : strempty(q->answer), error < 0 ? 0 : q->answer_size);
}

static void multi_turn(Multi *m, curl_socket_t fd, int what) {
        _cleanup_(multi_unrefp) _unused_ Multi *ref = m;
        int n;

        m->n_ref++;
        (void) curl.multi_socket_action(m->handle, fd, what, &n);
        for (CURLMsg *message; (message = curl.multi_info_read(m->handle, &n));) {
                unsigned status = 0;
                Request *q = NULL;
                int r;

                if (message->msg != CURLMSG_DONE || curl.easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &q) != CURLE_OK)
                        continue;
                r = request_result(q, message->data.result, &status);
                if (r == -EAGAIN)
                        retry(q);
                else
                        complete(&q->http->queue, r, status);
        }
}

void http_drain(Http *h) {
        Request *q = h ? h->queue : NULL;
        char c;

        if (q && q->easy && q->fd >= 0 && recv(q->fd, &c, 1, MSG_PEEK|MSG_DONTWAIT) == 1)
                multi_turn(h->multi, q->fd, CURL_CSELECT_IN);
}

static int on_start(sd_event_source *s, void *userdata) {
        Http *h = userdata;
        int r;

        if (!h->queue || h->queue->easy)
                return 0;
        r = request_start(h->queue);
        if (r < 0)
                complete(&h->queue, r, 0);
        else
                multi_turn(h->multi, CURL_SOCKET_TIMEOUT, 0); /* what libcurl has just set its timer for */
        return 0;
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata) {
        Http *h = userdata;

        /* One at a time: if more are due, the timer is too. */
        for (Request **p = &h->queue; *p; p = &(*p)->next)
                if ((*p)->deadline <= usec) {
                        complete(p, -ETIMEDOUT, 0);
                        return 0;
                }
        schedule(h);
        return 0;
}

static int add_sources(Http *h) {
        int r;

        if (!h->timer) {
                r = sd_event_add_time(h->multi->event, &h->timer, CLOCK_MONOTONIC, USEC_INFINITY, 10 * USEC_PER_MSEC, on_timer, h);
                if (r < 0)
                        return r;
        }
        return h->start ? 0 : sd_event_add_defer(h->multi->event, &h->start, on_start, h);
}

int http_request(Http *h, const char *method, const char *path, const char *body, uint64_t timeout_usec, http_cb cb, void *userdata) {
        _cleanup_(request_freep) Request *q = NULL;
        Request **end = &h->queue;
        uint64_t now;
        int r;

        if (h->freeing)
                return -ECANCELED;
        if (h->n_queue >= HTTP_PENDING_MAX)
                return -ENOBUFS;
        r = request_new(h, method, path, body, &q);
        if (r < 0)
                return r;
        r = sd_event_now(h->multi->event, CLOCK_MONOTONIC, &now);
        if (r < 0)
                return r;
        r = add_sources(h);
        if (r < 0)
                return r;

        q->deadline = timeout_usec >= USEC_INFINITY - now ? USEC_INFINITY : now + timeout_usec;
        q->cb = cb;
        q->userdata = userdata;
        while (*end)
                end = &(*end)->next;
        *end = TAKE_PTR(q);
        if (h->n_queue++ == 0)
                schedule(h);
        else
                rearm(h);
        return 0;
}

int http_new(sd_event *e, const char *path, Http **ret) {
        _cleanup_(http_freep) Http *h = NULL;
        struct sockaddr_un address;
        socklen_t size;
        int r;

        r = sockaddr_un_set(&address, &size, path);
        if (r < 0)
                return r;
        h = new(Http, 1);
        if (!h)
                return -ENOMEM;
        *h = (Http) { .path = strdup(path), .retry_at = USEC_INFINITY };
        if (!h->path)
                return -ENOMEM;
        r = multi_get(e, &h->multi);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(h);
        return 0;
}

Http *http_free(Http *h) {
        bool again;

        if (!h)
                return NULL;

        again = h->freeing; /* in one of these callbacks: the others run now */
        h->freeing = true;
        h->start = sd_event_source_disable_unref(h->start);
        h->timer = sd_event_source_disable_unref(h->timer);
        while (h->queue)
                complete(&h->queue, -ECANCELED, 0);
        if (again)
                return NULL;
        multi_unref(h->multi);
        free(h->path);
        free(h);
        return NULL;
}
