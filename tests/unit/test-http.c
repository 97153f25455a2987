/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "bus/http.h"

#include "tap.h"

/* The client against servers in processes of their own, most of which do what no server should. */

#define DEADLINE_USEC (20 * USEC_PER_SEC)
#define SOON_USEC (150 * USEC_PER_MSEC)

static char directory[] = "/tmp/test-http.XXXXXX";

static uint64_t now_usec(clockid_t id) {
        struct timespec t;

        clock_gettime(id, &t);
        return (uint64_t) t.tv_sec * USEC_PER_SEC + (uint64_t) t.tv_nsec / 1000;
}

/* The server */

typedef struct Served {
        unsigned n_connections, n_requests, n_closed;   /* the last: those that the client has closed first */
        volatile bool may, done;                        /* of serve_when_told() */
        size_t size;
        char log[32 * 1024];                            /* what has come, as it came */
} Served;

typedef struct Server Server;

struct Server {
        char path[64];
        pid_t pid;
        Served *served;
        bool (*serve)(Server *s, int fd);               /* true: the connection goes on */
        const char *text;
        size_t size;
        bool keep;
};

static void say_n(int fd, const char *p, size_t n) {
        while (n > 0) {
                ssize_t k = send(fd, p, n, MSG_NOSIGNAL);

                if (k < 0)
                        return;
                p += k;
                n -= (size_t) k;
        }
}

static void say(int fd, const char *s) {
        say_n(fd, s, strlen(s));
}

static void wait_for_hangup(Server *s, int fd) {
        char c;

        while (recv(fd, &c, 1, 0) > 0)
                ;
        s->served->n_closed++;
}

/* Reads one request into the log. False at the end of the connection. */
static bool take_request(Server *s, int fd) {
        Served *served = s->served;
        char *begin, *end, *length;
        size_t want = sizeof served->log;

        if (served->size > 4096)
                served->size = 0;
        begin = served->log + served->size;
        while ((size_t) (served->log + served->size - begin) < want && served->size < sizeof served->log - 1) {
                ssize_t n = recv(fd, served->log + served->size, sizeof served->log - 1 - served->size, 0);

                if (n <= 0)
                        return false;
                served->size += (size_t) n;
                served->log[served->size] = 0;
                end = strstr(begin, "\r\n\r\n");
                if (!end)
                        continue;
                length = strstr(begin, "Content-Length: ");
                want = (size_t) (end + 4 - begin) + (length && length < end ? strtoul(length + 16, NULL, 10) : 0);
        }
        served->n_requests++;
        return true;
}

static void __attribute__((__noreturn__)) server_main(Server *s, int listener) {
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
                struct pollfd p = { .fd = listener, .events = POLLIN };
                int fd;

                (void) poll(&p, 1, -1);
                fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                if (fd < 0)
                        continue;
                s->served->n_connections++;
                while (take_request(s, fd) && s->serve(s, fd))
                        ;
                close(fd);
        }
}

static void server_start(Server *s, bool (*serve)(Server *s, int fd), const char *text, size_t size, bool keep) {
        static unsigned number;
        int listener;

        *s = (Server) { .serve = serve, .text = text, .size = size, .keep = keep };
        snprintf(s->path, sizeof s->path, "%s/%u", directory, number++);
        s->served = mmap(NULL, sizeof(Served), PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0);
        listener = unix_listen(s->path, SOCK_STREAM);
        if (listener < 0 || s->served == MAP_FAILED)
                abort();
        fflush(stdout);
        s->pid = fork();
        if (s->pid == 0)
                server_main(s, listener);
        close(listener);
}

static void server_stop(Server *s) {
        (void) kill(s->pid, SIGKILL);
        (void) waitpid(s->pid, NULL, 0);
        (void) unlink(s->path);
        (void) munmap(s->served, sizeof(Served));
}

/* What servers do */

static bool serve_text(Server *s, int fd) {
        say_n(fd, s->text, s->size);
        if (s->keep)
                wait_for_hangup(s, fd);
        return false;
}

static bool serve_hello(Server *s, int fd) {
        say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        return true;
}

/* The text, which may be empty, when it may */
static bool serve_when_told(Server *s, int fd) {
        while (!s->served->may)
                (void) poll(NULL, 0, 1);
        say_n(fd, s->text, s->size);
        (void) shutdown(fd, SHUT_RDWR);
        s->served->done = true;
        return false;
}

/* The text, then `unit` (after its first "|") again and again until the client has had enough. */
static bool serve_endless(Server *s, int fd) {
        const char *unit = strchr(s->text, '|') + 1;
        static char chunk[64 * 1024];
        size_t n = strlen(unit), size = sizeof chunk / n * n;

        for (size_t i = 0; i < size; i++)
                chunk[i] = unit[i % n];
        say_n(fd, s->text, (size_t) (unit - 1 - s->text));
        while (send(fd, chunk, size, MSG_NOSIGNAL) > 0)
                ;
        s->served->n_closed++;
        return false;
}

/* 100 MB that are announced, or not */
static bool serve_huge(Server *s, int fd) {
        static char chunk[1000 * 1000];

        say_n(fd, s->text, s->size);
        for (unsigned i = 0; i < 100; i++)
                say_n(fd, chunk, sizeof chunk);
        return false;
}

/* Hangs at "/hang" alone; says the path to all others. */
static bool serve_path(Server *s, int fd) {
        char text[200], *last = s->served->log, *next, *end;

        while ((next = strstr(last + 1, "GET /")))
                last = next;
        end = strchr(last + 4, ' ');
        if (startswith(last + 4, "/hang ")) {
                wait_for_hangup(s, fd);
                return false;
        }
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%.*s",
                 (int) (end - last - 4), (int) (end - last - 4), last + 4);
        say(fd, text);
        return true;
}

/* The client */

typedef struct Answers {
        sd_event *event;
        Http *http, *other;
        unsigned n;
        int error;
        unsigned status;
        char body[256];
        size_t size;
        char order[512];
        uint64_t at;
        int r;
        const char *path;
} Answers;

static void on_answer(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;

        a->n++;
        a->error = error;
        a->status = status;
        a->size = size;
        snprintf(a->body, sizeof a->body, "%s", body ?: "(none)");
        snprintf(a->order + strlen(a->order), sizeof a->order - strlen(a->order), "%s ", error < 0 ? strerrorname_np(-error) : a->body);
        a->at = now_usec(CLOCK_MONOTONIC);
}

static void on_answer_free(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;

        on_answer(a, error, status, body, size);
        a->http = http_free(a->http);
}

static void on_answer_free_other(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;

        on_answer(a, error, status, body, size);
        a->other = http_free(a->other);
}

static void on_answer_again(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;

        on_answer(a, error, status, body, size);
        a->r = http_request(a->http, "GET", "/again", NULL, DEADLINE_USEC, on_answer, a);
}

static void on_answer_anew(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;

        on_answer_free(a, error, status, body, size);
        if (http_new(a->event, a->path, &a->http) < 0)
                abort();
        a->r = http_request(a->http, "GET", "/anew", NULL, DEADLINE_USEC, on_answer, a);
}

static void start(Answers *a, const char *path) {
        *a = (Answers) { .path = path };
        if (sd_event_new(&a->event) < 0 || http_new(a->event, path, &a->http) < 0)
                abort();
}

static void stop(Answers *a) {
        http_free(a->http);
        sd_event_unref(a->event);
}

#define turn_until(a, condition)                                                        \
        ({                                                                              \
                uint64_t _end = now_usec(CLOCK_MONOTONIC) + DEADLINE_USEC;              \
                while (!(condition) && now_usec(CLOCK_MONOTONIC) < _end)                \
                        (void) sd_event_run((a)->event, 10 * USEC_PER_MSEC);            \
                (condition);                                                            \
        })

static void get(Answers *a, const char *path) {
        if (http_request(a->http, "GET", path, NULL, DEADLINE_USEC, on_answer, a) < 0)
                abort();
}

static unsigned count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        unsigned n = 0;

        while (readdir(d))
                n++;
        closedir(d);
        return n;
}

/* Tests */

static void test_requests(void) {
        Server s;
        Answers a;

        server_start(&s, serve_hello, NULL, 0, true);
        start(&a, s.path);
        get(&a, "/api/v1/vm.info?x=1&y=../z");
        is_int(a.n, 0, "no callback from within http_request()");
        ok(turn_until(&a, a.n == 1), "GET");
        is_str(s.served->log, "GET /api/v1/vm.info?x=1&y=../z HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", "… as it was sent");
        is_int(a.error, 0, "… answered");
        is_int(a.status, 200, "… with a status");
        is_int(a.size, 5, "… and a body");
        is_str(a.body, "hello", "… of these bytes");

        s.served->size = 0;
        is_int(http_request(a.http, "PUT", "/x", "{\"a\": 1}", DEADLINE_USEC, on_answer, &a), 0, "PUT");
        ok(turn_until(&a, a.n == 2), "… is answered");
        is_str(s.served->log, "PUT /x HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Type: application/json\r\n"
               "Content-Length: 8\r\n\r\n{\"a\": 1}", "… as it was sent");
        s.served->size = 0;
        is_int(http_request(a.http, "PUT", "/x", NULL, DEADLINE_USEC, on_answer, &a), 0, "PUT without a body");
        ok(turn_until(&a, a.n == 3), "… is answered");
        is_str(s.served->log, "PUT /x HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 0\r\n\r\n", "… has its length");
        s.served->size = 0;
        is_int(http_request(a.http, "PATCH", "/x", NULL, DEADLINE_USEC, NULL, NULL), 0, "PATCH, and nobody to tell");
        ok(turn_until(&a, s.served->n_requests == 4), "… comes to the server");
        ok(startswith(s.served->log, "PATCH /x HTTP/1.1\r\n") && strstr(s.served->log, "\r\nContent-Length: 0\r\n"), "… with its length");
        s.served->size = 0;
        is_int(http_request(a.http, "DELETE", "/x", NULL, DEADLINE_USEC, on_answer, &a), 0, "DELETE");
        ok(turn_until(&a, a.n == 4), "… is answered");
        ok(startswith(s.served->log, "DELETE /x HTTP/1.1\r\n"), "… as it was sent");

        is_int(http_request(a.http, "GET", "x", NULL, DEADLINE_USEC, on_answer, &a), -EINVAL, "a path without a slash");
        is_int(http_request(a.http, "GET", "/x y", NULL, DEADLINE_USEC, on_answer, &a), -EINVAL, "… with a blank");
        is_int(http_request(a.http, "GET", "/x\r\nA: b", NULL, DEADLINE_USEC, on_answer, &a), -EINVAL, "… of two lines");
        is_int(http_request(a.http, "GET /", "/x", NULL, DEADLINE_USEC, on_answer, &a), -EINVAL, "a method that is none");
        is_int(http_request(a.http, "", "/x", NULL, DEADLINE_USEC, on_answer, &a), -EINVAL, "no method");
        stop(&a);
        is_int(a.n, 4, "… and no callback");
        server_stop(&s);
}

/* A body that waits for nothing, even where libcurl would ask for leave to send it. */
static void test_big_request(void) {
        _cleanup_free_ char *body = malloc(20001);
        Server s;
        Answers a;

        memset(body, 'x', 20000);
        body[20000] = 0;
        server_start(&s, serve_hello, NULL, 0, true);
        start(&a, s.path);
        (void) http_request(a.http, "PUT", "/big", body, DEADLINE_USEC, on_answer, &a);
        ok(turn_until(&a, a.n == 1) && a.status == 200, "a big request");
        ok(!strstr(s.served->log, "Expect") && strstr(s.served->log, "\r\nContent-Length: 20000\r\n"), "… asks nobody first");
        ok(endswith(s.served->log, body), "… and comes whole");
        stop(&a);
        server_stop(&s);
}

#define OK_HEAD "HTTP/1.1 200 OK\r\n"
#define TOO_MANY "{ \"error\": \"Too many open connections\" }"
#define BAD_JSON "{ \"error\": \"no\nAll previous unanswered requests will be dropped.\" }"

typedef struct Case {
        const char *name, *text;
        bool keep;
        int error;
        unsigned status;
        const char *body;
} Case;

static const Case cases[] = {
        { "a body, kept open",    OK_HEAD "Content-Length: 5\r\n\r\nhello", true, 0, 200, "hello" },
        { "a body, closed",       OK_HEAD "Content-Length: 5\r\nConnection: close\r\n\r\nhello", false, 0, 200, "hello" },
        { "a body till the end",  OK_HEAD "\r\nhello", false, 0, 200, "hello" },
        { "HTTP/1.0",             "HTTP/1.0 200 OK\r\n\r\nhello", false, 0, 200, "hello" },
        { "lines of \\n alone",   "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", true, 0, 200, "hello" },
        { "204",                  "HTTP/1.1 204 \r\nServer: x\r\nConnection: keep-alive\r\n\r\n", true, 0, 204, "" },
        { "204 with a length",    "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true, 0, 204, "" },
        { "no length, no body",   OK_HEAD "Content-Length: 0\r\n\r\n", true, 0, 200, "" },
        { "400",                  "HTTP/1.1 400 \r\nContent-Length: 67\r\n\r\n" BAD_JSON, true, 0, 400, BAD_JSON },
        { "404 of JSON",          "HTTP/1.1 404 \r\nContent-Length: 13\r\n\r\n[\"Not Found\"]", true, 0, 404, "[\"Not Found\"]" },
        { "503 without reason",   "HTTP/1.1 503\r\nContent-Length: 40\r\n\r\n" TOO_MANY, false, 0, 503, TOO_MANY },
        { "401 wants a password", "HTTP/1.1 401 \r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n", true, 0, 401, "" },
        { "302 is not followed",  "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", true, 0, 302, "" },
        { "100, then 200",        "HTTP/1.1 100 Continue\r\n\r\n" OK_HEAD "Content-Length: 2\r\n\r\nok", true, 0, 200, "ok" },
        { "packed, left as it is", OK_HEAD "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", true, 0, 200, "\x1f\x8b" },
        { "chunks",               OK_HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nA: b\r\n\r\n", true, 0, 200, "hello" },
        { "more than its length", OK_HEAD "Content-Length: 2\r\n\r\nhello", true, 0, 200, "he" },

        { "nothing",              "", false, -EPIPE },
        { "half a version",       "HTT", false, -EPIPE },
        { "half a status",        "HTTP/1.1 2", false, -EPIPE },
        { "half a header",        OK_HEAD "Content-Len", false, -EPIPE },
        { "half a head",          OK_HEAD "Content-Length: 5\r\n", false, -EPIPE },
        { "a head alone",         OK_HEAD "Content-Length: 5\r\n\r\n", false, -EPIPE },
        { "half a body",          OK_HEAD "Content-Length: 5\r\n\r\nhel", false, -EPIPE },
        { "half of the chunks",   OK_HEAD "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", false, -EPIPE },
        { "half a chunk",         OK_HEAD "Transfer-Encoding: chunked\r\n\r\n9\r\nhel", false, -EPIPE },
        { "100 and no more",      "HTTP/1.1 100 Continue\r\n\r\n", false, -EPIPE },

        { "another protocol",     "SSH-2.0-OpenSSH_9.2p1\r\n", true, -EBADMSG },
        { "zeros",                NULL, true, -EBADMSG },
        { "an empty line",        "\r\n\r\n", true, -EBADMSG },
        { "JSON",                 "{\"QMP\": {}}\r\n", true, -EBADMSG },
        { "HTTP/9.9",             "HTTP/9.9 200 OK\r\n\r\n", true, -EBADMSG },
        { "a status of letters",  "HTTP/1.1 abc OK\r\n\r\n", true, -EBADMSG },
        { "101",                  "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", false, -EPIPE },
        { "chunks of no size",    OK_HEAD "Transfer-Encoding: chunked\r\n\r\nzz\r\nhel\r\n", true, -EBADMSG },

        { "a length of 100 MB",   OK_HEAD "Content-Length: 104857600\r\n\r\nx", true, -EMSGSIZE },
        { "a length of 1 MiB + 1", OK_HEAD "Content-Length: 1048577\r\n\r\nx", true, -EMSGSIZE },
        { "a length of 10^29",    OK_HEAD "Content-Length: 99999999999999999999999999999\r\n\r\nx", true, -EMSGSIZE },

        { "less than its length", OK_HEAD "Content-Length: 7\r\n\r\nhello", true, -ETIMEDOUT },
        { "half a head, and then nothing", OK_HEAD "Content-Le", true, -ETIMEDOUT },
        { "a body without an end", OK_HEAD "\r\nhello", true, -ETIMEDOUT },
};

static void test_answers(void) {
        for (const Case *c = cases; c < cases + ELEMENTSOF(cases); c++) {
                Answers a;
                Server s;

                server_start(&s, serve_text, c->text ?: "\0\0\0\0\0\0\0\n", c->text ? strlen(c->text) : 8, c->keep);
                start(&a, s.path);
                (void) http_request(a.http, "GET", "/", NULL, c->error == -ETIMEDOUT ? SOON_USEC : DEADLINE_USEC, on_answer, &a);
                turn_until(&a, a.n > 0);
                is_int(a.error, c->error, "%s", c->name);
                is_int(a.status, c->status, "… its status");
                is_str(a.body, c->body ?: "(none)", "… its body");
                is_int(a.size, c->body ? strlen(c->body) : 0, "… its size");
                stop(&a);
                is_int(a.n, 1, "… once");
                if (c->keep)
                        for (uint64_t end = now_usec(CLOCK_MONOTONIC) + DEADLINE_USEC; !s.served->n_closed && now_usec(CLOCK_MONOTONIC) < end;)
                                (void) poll(NULL, 0, 1);
                ok(!c->keep || s.served->n_closed == 1, "… and the connection is closed");
                is_int(s.served->n_requests, 1, "… and the request was sent once");
                server_stop(&s);
        }
}

/* NUL bytes are bytes; and one byte after the other is an answer too. */
static bool serve_slowly(Server *s, int fd) {
        static const char text[] = OK_HEAD "Content-Length: 3\r\n\r\na\0b";

        for (size_t i = 0; i < sizeof text - 1; i++) {
                say_n(fd, text + i, 1);
                (void) poll(NULL, 0, 1);
        }
        return true;
}

static void test_bytes(void) {
        Server s;
        Answers a;

        server_start(&s, serve_slowly, NULL, 0, true);
        start(&a, s.path);
        get(&a, "/");
        ok(turn_until(&a, a.n == 1), "a slow answer");
        is_int(a.size, 3, "… with a NUL in it");
        is_int(a.status, 200, "… and a status");
        stop(&a);
        server_stop(&s);
}

static void test_too_much(void) {
        static const struct {
                const char *name, *text;
                int error;
        } table[] = {
                { "a body without an end",              OK_HEAD "\r\n|x", -EMSGSIZE },
                { "chunks without an end",              OK_HEAD "Transfer-Encoding: chunked\r\n\r\n|1\r\nx\r\n", -EMSGSIZE },
                { "header lines without an end",        OK_HEAD "|A: b\r\n", -EMSGSIZE },
                { "a header line without an end",       OK_HEAD "A: |x", -EMSGSIZE },
                { "a status line without an end",       "HTTP/1.1 200 |x", -EMSGSIZE },
                { "status 100 without an end",          "|HTTP/1.1 100 Continue\r\n\r\n", -EMSGSIZE },
                { "trailers without an end",            OK_HEAD "Transfer-Encoding: chunked\r\n\r\n0\r\n|A: b\r\n", -EMSGSIZE },
                { "a chunk's words without an end",     OK_HEAD "Transfer-Encoding: chunked\r\n\r\n1;|x", -ETIMEDOUT },
                { "empty lines without an end",         "|\r\n", -EBADMSG },
        };

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                uint64_t begin = now_usec(CLOCK_MONOTONIC);
                struct mallinfo2 before, after;
                struct rusage u;
                Server s;
                Answers a;

                server_start(&s, serve_endless, table[i].text, strlen(table[i].text), false);
                start(&a, s.path);
                before = mallinfo2();
                (void) http_request(a.http, "GET", "/", NULL, table[i].error == -ETIMEDOUT ? SOON_USEC : DEADLINE_USEC, on_answer, &a);
                turn_until(&a, a.n == 1);
                is_int(a.error, table[i].error, "%s, in %llu ms", table[i].name,
                       (unsigned long long) (now_usec(CLOCK_MONOTONIC) - begin) / 1000);
                after = mallinfo2();
                ok(after.uordblks < before.uordblks + 64 * 1024, "… and no memory kept");
                stop(&a);
                server_stop(&s);
                (void) getrusage(RUSAGE_SELF, &u);
                printf("# at most %ld KiB so far\n", u.ru_maxrss);
        }
}

static void test_huge(void) {
        static const char length[] = OK_HEAD "Content-Length: 100000000\r\n\r\n", none[] = OK_HEAD "\r\n";
        Server huge[2], s;
        Answers a[3];

        server_start(&huge[0], serve_huge, length, sizeof length - 1, false);
        server_start(&huge[1], serve_huge, none, sizeof none - 1, false);
        server_start(&s, serve_hello, NULL, 0, true);
        start(&a[0], huge[0].path);
        start(&a[1], huge[1].path);
        start(&a[2], s.path);
        for (unsigned i = 0; i < 3; i++)
                get(&a[i], "/");
        ok(turn_until(&a[0], a[0].n == 1), "100 MB");
        is_int(a[0].error, -EMSGSIZE, "… are too long");
        ok(turn_until(&a[1], a[1].n == 1), "100 MB of unknown length");
        is_int(a[1].error, -EMSGSIZE, "… are too long");
        ok(turn_until(&a[2], a[2].n == 1 && a[2].error == 0), "… and another server is answered");
        for (unsigned i = 0; i < 3; i++)
                stop(&a[i]);
        server_stop(&huge[0]);
        server_stop(&huge[1]);
        server_stop(&s);
}

/* The greatest answer that fits, and the smallest that does not. */
static void test_bound(void) {
        static char text[HTTP_BODY_MAX + 100];

        for (unsigned i = 0; i < 4; i++) {
                size_t want = HTTP_BODY_MAX + i % 2;
                int n = i < 2 ? snprintf(text, sizeof text, OK_HEAD "\r\n") :
                                snprintf(text, sizeof text, OK_HEAD "Content-Length: %zu\r\n\r\n", want);
                Server s;
                Answers a;

                memset(text + n, 'y', want);
                server_start(&s, serve_text, text, (size_t) n + want, false);
                start(&a, s.path);
                get(&a, "/");
                turn_until(&a, a.n == 1);
                is_int(a.error, i % 2 ? -EMSGSIZE : 0, "a body of %zu bytes, %s", want, i < 2 ? "closed" : "with its length");
                is_int(a.size, i % 2 ? 0 : want, "… all of it");
                stop(&a);
                server_stop(&s);
        }
}

static void test_nobody(void) {
        char path[100], longer[200];
        Http *h = NULL;
        Answers a;

        snprintf(path, sizeof path, "%s/nobody", directory);
        start(&a, path);
        get(&a, "/");
        is_int(a.n, 0, "no socket: nothing happens at once");
        ok(turn_until(&a, a.n == 1), "no socket");
        is_int(a.error, -ENOENT, "… is ENOENT");
        close(unix_listen(path, SOCK_STREAM));
        get(&a, "/");
        get(&a, "/");
        ok(turn_until(&a, a.n == 3), "nobody listens");
        is_int(a.error, -ECONNREFUSED, "… is ECONNREFUSED");
        (void) unlink(path);
        memset(longer, 'x', sizeof longer - 1);
        longer[sizeof longer - 1] = 0;
        is_int(http_new(a.event, longer, &h), -ENAMETOOLONG, "a path that no socket can have");
        stop(&a);
        ok(!http_free(NULL), "http_free(NULL)");
}

/* A full backlog: it is waited for, and no request lost or sent twice. */
static void test_backlog(void) {
        struct sockaddr_un address;
        char path[100], buffer[1000] = "";
        int listener, waiting, fd = -EBADF;
        ssize_t n = 0;
        socklen_t size;
        Answers a;

        snprintf(path, sizeof path, "%s/full", directory);
        (void) sockaddr_un_set(&address, &size, path);
        listener = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, 0);
        if (bind(listener, (struct sockaddr *) &address, size) < 0 || listen(listener, 0) < 0)
                abort();
        waiting = unix_connect(path, SOCK_STREAM);

        start(&a, path);
        (void) http_request(a.http, "GET", "/1", NULL, SOON_USEC, on_answer, &a);
        ok(turn_until(&a, a.n == 1), "a full backlog");
        is_int(a.error, -ETIMEDOUT, "… ends with the deadline");
        get(&a, "/2");
        for (unsigned i = 0; i < 5; i++)
                (void) sd_event_run(a.event, 10 * USEC_PER_MSEC);
        is_int(a.n, 1, "… the next waits");
        close(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
        ok(turn_until(&a, fd >= 0 || (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0), "… comes when there is room");
        ok(turn_until(&a, n > 0 || (n = recv(fd, buffer, sizeof buffer - 1, MSG_DONTWAIT)) > 0), "… is sent");
        ok(startswith(buffer, "GET /2 "), "… it and no other");
        say(fd, OK_HEAD "Content-Length: 2\r\n\r\nok");
        ok(turn_until(&a, a.n == 2), "… and answered");
        is_str(a.body, "ok", "… with this");
        stop(&a);
        close(fd);
        close(waiting);
        close(listener);
        (void) unlink(path);
}

static void test_order(void) {
        char path[32], want[512] = "";
        unsigned n = 0;
        Server s;
        Answers a;

        server_start(&s, serve_path, NULL, 0, true);
        start(&a, s.path);
        for (unsigned i = 0; i < 20; i++) {
                snprintf(path, sizeof path, "/%u", i);
                get(&a, path);
                snprintf(want + strlen(want), sizeof want - strlen(want), "%s ", path);
        }
        ok(turn_until(&a, a.n == 20), "20 requests");
        is_str(a.order, want, "… in order");
        for (char *p = s.served->log; (p = strstr(p, "GET /")); p++)
                n++;
        is_int(n, 20, "… each sent once");

        for (n = 0; http_request(a.http, "GET", "/x", NULL, DEADLINE_USEC, on_answer, &a) >= 0; n++)
                ;
        is_int(n, HTTP_PENDING_MAX, "only so many may wait");
        is_int(http_request(a.http, "GET", "/x", NULL, DEADLINE_USEC, on_answer, &a), -ENOBUFS, "… the next is refused");
        ok(turn_until(&a, a.n == 20 + n), "… and they are answered");
        stop(&a);
        server_stop(&s);
}

/* One that hangs holds up those behind it for its time alone, and theirs counts as well. */
static void test_deadlines(void) {
        uint64_t begin, cpu, iterations, iteration;
        Server s;
        Answers a;

        server_start(&s, serve_path, NULL, 0, true);
        start(&a, s.path);
        begin = now_usec(CLOCK_MONOTONIC);
        (void) http_request(a.http, "GET", "/hang", NULL, 3 * SOON_USEC, on_answer, &a);
        (void) http_request(a.http, "GET", "/short", NULL, SOON_USEC, on_answer, &a);
        (void) http_request(a.http, "GET", "/patient", NULL, USEC_INFINITY, on_answer, &a);
        cpu = now_usec(CLOCK_PROCESS_CPUTIME_ID);
        (void) sd_event_get_iteration(a.event, &iterations);
        ok(turn_until(&a, a.n == 1), "one that waits behind another");
        is_int(a.error, -ETIMEDOUT, "… has its own time");
        ok(a.at - begin >= SOON_USEC, "… after %llu ms", (unsigned long long) (a.at - begin) / 1000);
        ok(turn_until(&a, a.n == 2), "the other");
        is_int(a.error, -ETIMEDOUT, "… has its time too");
        ok(a.at - begin >= 3 * SOON_USEC, "… after %llu ms", (unsigned long long) (a.at - begin) / 1000);
        (void) sd_event_get_iteration(a.event, &iteration);
        ok(iteration - iterations < 150, "… in %llu turns of the loop, %llu us of CPU", (unsigned long long) (iteration - iterations),
           (unsigned long long) (now_usec(CLOCK_PROCESS_CPUTIME_ID) - cpu));
        ok(turn_until(&a, a.n == 3), "the last");
        is_str(a.body, "/patient", "… is answered");
        ok(!strstr(s.served->log, "/short"), "… and the one without time was never sent");
        stop(&a);
        server_stop(&s);
}

static void test_many(void) {
        Server s[20];
        Answers a[20];
        sd_event *e;
        uint64_t begin;
        unsigned n = 0;

        (void) sd_event_new(&e);
        for (unsigned i = 0; i < ELEMENTSOF(s); i++) {
                server_start(&s[i], serve_path, NULL, 0, true);
                a[i] = (Answers) { .event = e };
                if (http_new(e, s[i].path, &a[i].http) < 0)
                        abort();
        }
        begin = now_usec(CLOCK_MONOTONIC);
        for (unsigned i = 0; i < ELEMENTSOF(s); i++)
                for (unsigned j = 0; j < 5; j++)
                        (void) http_request(a[i].http, "GET", i == 7 ? "/hang" : "/x", NULL, i == 7 ? 600 * USEC_PER_SEC : DEADLINE_USEC,
                                            on_answer, &a[i]);
        turn_until(&a[0], ({ n = 0; for (unsigned i = 0; i < ELEMENTSOF(s); i++) n += a[i].n; n == 95; }));
        is_int(n, 95, "20 servers of which one hangs: all others have answered after %llu ms",
               (unsigned long long) (now_usec(CLOCK_MONOTONIC) - begin) / 1000);
        is_int(a[7].n, 0, "… and that one has not");
        for (unsigned i = 0; i < ELEMENTSOF(s); i++)
                http_free(a[i].http);
        is_str(a[7].order, "ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED ", "freeing answers what is pending");
        for (unsigned i = 0; i < ELEMENTSOF(s); i++)
                server_stop(&s[i]);
        sd_event_unref(e);
}

static void on_canceled(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;

        on_answer(a, error, status, body, size);
        a->r = http_request(a->http, "GET", "/", NULL, DEADLINE_USEC, on_answer, a);
        ok(!http_free(a->http), "… freed again in the callback");
        is_int(a->n, 2, "… which has answered the other by then");
}

static void test_free(void) {
        Server s;
        Answers a;

        server_start(&s, serve_path, NULL, 0, true);
        start(&a, s.path);
        (void) http_request(a.http, "GET", "/1", NULL, DEADLINE_USEC, on_answer_free, &a);
        get(&a, "/2");
        get(&a, "/3");
        ok(turn_until(&a, !a.http), "freed in an answer");
        is_str(a.order, "/1 ECANCELED ECANCELED ", "… each callback once");
        stop(&a);

        start(&a, s.path);
        (void) http_request(a.http, "GET", "/hang", NULL, SOON_USEC, on_answer_free, &a);
        get(&a, "/2");
        ok(turn_until(&a, !a.http), "freed when the time is over");
        is_str(a.order, "ETIMEDOUT ECANCELED ", "… each callback once");
        stop(&a);

        start(&a, s.path);
        (void) http_request(a.http, "GET", "/1", NULL, DEADLINE_USEC, on_canceled, &a);
        get(&a, "/2");
        http_free(a.http);
        is_str(a.order, "ECANCELED ECANCELED ", "… before anything was sent");
        is_int(a.r, -ECANCELED, "… and takes no request");
        a.http = NULL;
        stop(&a);

        start(&a, s.path);
        (void) http_request(a.http, "GET", "/1", NULL, DEADLINE_USEC, on_answer_again, &a);
        ok(turn_until(&a, a.n == 2), "a request from an answer");
        is_str(a.order, "/1 /again ", "… is answered");
        stop(&a);

        start(&a, s.path);
        (void) http_request(a.http, "GET", "/1", NULL, DEADLINE_USEC, on_answer_anew, &a);
        get(&a, "/2");
        ok(turn_until(&a, a.n == 3), "freed and made anew in an answer");
        is_str(a.order, "/1 ECANCELED /anew ", "… and that works");
        stop(&a);

        start(&a, s.path);
        s.served->size = 0;
        s.served->log[0] = 0;
        get(&a, "/hang");
        ok(turn_until(&a, strstr(s.served->log, "/hang")), "a request under way");
        a.http = http_free(a.http);
        is_int(a.error, -ECANCELED, "… freed");
        stop(&a);
        server_stop(&s);
}

/* Two whose answers come in the same turn: the first callback frees the other. And nobody: then both fail in the same turn. */
static void test_free_other(void) {
        for (unsigned i = 0; i < 2; i++) {
                char path[100];
                Server s[2];
                Answers a;

                for (unsigned j = 0; j < 2; j++)
                        server_start(&s[j], serve_hello, NULL, 0, true);
                snprintf(path, sizeof path, "%s/nobody", directory);
                start(&a, i ? path : s[0].path);
                if (http_new(a.event, i ? path : s[1].path, &a.other) < 0)
                        abort();
                (void) http_request(a.http, "GET", "/", NULL, DEADLINE_USEC, on_answer_free_other, &a);
                (void) http_request(a.other, "GET", "/", NULL, DEADLINE_USEC, on_answer_free, &a);
                while (i == 0 && s[0].served->n_requests + s[1].served->n_requests < 2 && a.n == 0)
                        (void) sd_event_run(a.event, USEC_PER_MSEC);
                (void) poll(NULL, 0, 20);
                ok(turn_until(&a, a.n == 2), "one frees the other, %s", i ? "which fails" : "which is answered");
                ok(!a.http + !a.other >= 1, "… and it is gone");
                http_free(a.other);
                stop(&a);
                server_stop(&s[0]);
                server_stop(&s[1]);
        }
}

/* What has come is told without a turn of the loop; that nothing has come is left to the loop. */
static void test_drain(void) {
        static const char *const texts[] = { "HTTP/1.1 204 \r\n\r\n", "" };

        http_drain(NULL);
        for (unsigned i = 0; i < ELEMENTSOF(texts); i++) {
                Server s;
                Answers a;

                server_start(&s, serve_when_told, texts[i], strlen(texts[i]), false);
                start(&a, s.path);
                http_drain(a.http);
                get(&a, "/");
                http_drain(a.http);
                ok(turn_until(&a, s.served->n_requests == 1), "a request that is not answered yet");
                http_drain(a.http);
                is_int(a.n, 0, "… as nothing has come");
                s.served->may = true;
                while (!s.served->done)
                        (void) poll(NULL, 0, 1);
                http_drain(a.http);
                is_int(a.n, *texts[i] ? 1 : 0, "… then %s", *texts[i] ? "its answer" : "its end alone");
                ok(turn_until(&a, a.n == 1), "… which the loop has told at last");
                is_int(a.error, *texts[i] ? 0 : -EPIPE, "… as it was");
                stop(&a);
                server_stop(&s);
        }
}

static void test_two_loops(void) {
        Server s;
        Answers a, b;

        server_start(&s, serve_path, NULL, 0, true);
        start(&a, s.path);
        start(&b, s.path);
        get(&a, "/a");
        get(&b, "/b");
        ok(turn_until(&b, b.n == 1), "two loops");
        is_int(a.n, 0, "… of which one does not turn");
        ok(turn_until(&a, a.n == 1), "… and then does");
        is_str(a.body, "/a", "… each with its own");
        stop(&a);
        stop(&b);
        server_stop(&s);
}

static void test_cost(void) {
        static Http *many[1000];
        struct mallinfo2 before, after;
        uint64_t begin;
        unsigned fds;
        Server s;
        Answers a;

        server_start(&s, serve_hello, NULL, 0, true);
        start(&a, s.path);
        get(&a, "/");
        turn_until(&a, a.n == 1);
        before = mallinfo2();
        fds = count_fds();
        for (unsigned i = 0; i < ELEMENTSOF(many); i++)
                if (http_new(a.event, s.path, &many[i]) < 0)
                        abort();
        after = mallinfo2();
        ok(after.uordblks - before.uordblks < 512 * ELEMENTSOF(many), "one more costs %zu bytes",
           (after.uordblks - before.uordblks) / ELEMENTSOF(many));
        for (unsigned i = 0; i < ELEMENTSOF(many); i++)
                (void) http_request(many[i], "GET", "/", NULL, DEADLINE_USEC, on_answer, &a);
        (void) turn_until(&a, a.n == 1 + ELEMENTSOF(many));
        is_int(a.n, 1 + ELEMENTSOF(many), "… all may ask at once");
        after = mallinfo2();
        ok(after.uordblks - before.uordblks < 512 * ELEMENTSOF(many), "… and cost %zu bytes afterwards",
           (after.uordblks - before.uordblks) / ELEMENTSOF(many));
        is_int(count_fds(), fds, "… and no file descriptor");
        for (unsigned i = 0; i < ELEMENTSOF(many); i++)
                http_free(many[i]);

        begin = now_usec(CLOCK_MONOTONIC);
        for (unsigned i = 0; i < 500; i++) {
                a.n = 0;
                get(&a, "/");
                turn_until(&a, a.n == 1);
        }
        printf("# a request takes %llu us\n", (unsigned long long) (now_usec(CLOCK_MONOTONIC) - begin) / 500);
        stop(&a);
        server_stop(&s);
}

int main(void) {
        unsigned fds;

        if (!mkdtemp(directory))
                return 1;
        test_requests();
        fds = count_fds();
        test_big_request();
        test_answers();
        test_bytes();
        test_too_much();
        test_huge();
        test_bound();
        test_nobody();
        test_backlog();
        test_order();
        test_deadlines();
        test_many();
        test_free();
        test_free_other();
        test_drain();
        test_two_loops();
        test_cost();
        is_int(count_fds(), fds, "no file descriptor is left open");
        (void) rmdir(directory);
        return done_testing();
}
