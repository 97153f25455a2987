/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <sys/stat.h>
#include <time.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/qmp.h"

#include "tap.h"

/* The client against a server that the test itself plays, on a real socket, in one thread. */

#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n"
#define DEADLINE_USEC (10 * USEC_PER_SEC)

typedef struct Fixture {
        sd_event *event;
        QMP *qmp;
        int listener, peer;
        char received[8192];    /* by the server */
        size_t n_received;

        unsigned n_ready, n_events, n_replies;
        char last_event[64], last_message[2048];
        int64_t last_value;
        int last_reply, disconnected;
        bool free_in_ready, free_in_event, free_in_disconnected, drain_in_event;
} Fixture;

static char directory[] = "/tmp/test-qmp.XXXXXX", path[64];

static uint64_t now_usec(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * USEC_PER_SEC + (uint64_t) t.tv_nsec / 1000;
}

static void on_ready(void *userdata) {
        Fixture *f = userdata;

        f->n_ready++;
        if (f->free_in_ready)
                f->qmp = qmp_free(f->qmp);
}

static void on_event(void *userdata, const char *name, json_object *data) {
        Fixture *f = userdata;

        f->n_events++;
        snprintf(f->last_event, sizeof f->last_event, "%s", name);
        f->last_value = json_get_int(data, "value", -1);
        if (f->drain_in_event)
                qmp_drain(f->qmp);
        if (f->free_in_event)
                f->qmp = qmp_free(f->qmp);
}

static void on_disconnected(void *userdata, int error) {
        Fixture *f = userdata;

        f->disconnected = error;
        if (f->free_in_disconnected)
                f->qmp = qmp_free(f->qmp);
}

static const QMPHandlers handlers = { .ready = on_ready, .event = on_event, .disconnected = on_disconnected };

static void on_reply(void *userdata, int error, json_object *result, const char *message) {
        Fixture *f = userdata;

        f->n_replies++;
        f->last_reply = error;
        f->last_value = json_get_int(result, "value", -1);
        snprintf(f->last_message, sizeof f->last_message, "%s", strempty(message));
}

static void on_reply_free(void *userdata, int error, json_object *result, const char *message) {
        Fixture *f = userdata;

        on_reply(userdata, error, result, message);
        f->qmp = qmp_free(f->qmp);
}

static void fixture_start(Fixture *f) {
        *f = (Fixture) { .listener = unix_listen(path, SOCK_STREAM), .peer = -EBADF };
        if (f->listener < 0 || sd_event_new(&f->event) < 0 || qmp_connect(f->event, path, &handlers, f, &f->qmp) < 0)
                abort();
}

static void fixture_accept(Fixture *f) {
        struct pollfd p = { .fd = f->listener, .events = POLLIN };

        if (poll(&p, 1, 1000) != 1)
                abort();
        f->peer = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC|SOCK_NONBLOCK);
}

static void fixture_stop(Fixture *f) {
        qmp_free(f->qmp);
        safe_close(f->peer);
        safe_close(f->listener);
        sd_event_unref(f->event);
}

/* One turn of the client, then what it has sent is taken. */
static void turn(Fixture *f, uint64_t wait_usec) {
        ssize_t n;

        (void) sd_event_run(f->event, wait_usec);
        if (f->peer < 0)
                return;
        n = recv(f->peer, f->received + f->n_received, sizeof f->received - 1 - f->n_received, MSG_DONTWAIT);
        if (n > 0)
                f->n_received += (size_t) n;
        f->received[f->n_received] = 0;
}

#define turn_until(f, condition)                                                        \
        ({                                                                              \
                uint64_t _end = now_usec() + DEADLINE_USEC;                             \
                while (!(condition) && now_usec() < _end)                               \
                        turn((f), 10 * USEC_PER_MSEC);                                  \
                (condition);                                                            \
        })

/* Sends all, turning the client the while; ends early when it has hung up. Gives how much went. */
static size_t say_n(Fixture *f, const char *s, size_t n) {
        size_t done = 0;
        uint64_t end = now_usec() + DEADLINE_USEC;

        while (done < n && !f->disconnected && now_usec() < end) {
                ssize_t k = send(f->peer, s + done, n - done, MSG_NOSIGNAL|MSG_DONTWAIT);

                if (k > 0)
                        done += (size_t) k;
                else if (errno != EAGAIN)
                        break;
                if (k <= 0)
                        turn(f, USEC_PER_MSEC);
        }
        return done;
}

static void say(Fixture *f, const char *s) {
        (void) say_n(f, s, strlen(s));
}

static void handshake(Fixture *f) {
        fixture_start(f);
        fixture_accept(f);
        say(f, GREETING);
        if (!turn_until(f, strstr(f->received, "qmp_capabilities")))
                abort();
        say(f, "{\"return\": {}, \"id\": 1}\r\n");
        if (!turn_until(f, f->n_ready == 1))
                abort();
        f->n_received = 0;
        f->received[0] = 0;
}

static void test_handshake(void) {
        Fixture f;

        fixture_start(&f);
        is_int(qmp_command(f.qmp, "quit", NULL, USEC_PER_SEC, on_reply, &f), -ENOTCONN, "no command before the greeting");
        turn(&f, 0);
        is_int(f.disconnected, 0, "a connection that nobody has accepted yet is none that has ended");
        fixture_accept(&f);

        for (const char *p = GREETING; *p; p++) {
                say_n(&f, p, 1);
                turn(&f, 0);
        }
        ok(turn_until(&f, strchr(f.received, '\n')), "a greeting in single bytes is answered");
        is_str(f.received, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n", "… with qmp_capabilities");
        is_int(f.n_ready, 1, "… and is ready, for what follows is answered after it");
        say(&f, "{\"return\": {}, \"id\": 1}\n");
        turn(&f, 0);
        is_int(f.n_ready, 1, "… once");
        is_int(f.disconnected, 0, "… and stays connected");
        fixture_stop(&f);
}

static void test_bad_greetings(void) {
        static const struct {
                const char *text;
                int error;
        } table[] = {
                { "hello\r\n",                                  -EBADMSG },
                { "{\"event\": \"STOP\"}\n",                    -EBADMSG },
                { "{\"QMP\": 1}\n",                             -EBADMSG },
                { "[]\n",                                       -EBADMSG },
                { "null\n",                                     -EBADMSG },
                { "{\"QMP\": {}} x\n",                          -EBADMSG },
                { "{\"QMP\": {}\n",                             -EBADMSG },
                { "{\"QMP\": {\"a\": \"\xff\xfe\"}}\n",         -EBADMSG },
                { "SSH-2.0-OpenSSH_9.2p1\n",                    -EBADMSG },
                { GREETING "{\"error\": {\"desc\": \"no\"}, \"id\": 1}\n", -EBADMSG },
                { GREETING "{}\n",                              -EBADMSG },
        };

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                Fixture f;

                fixture_start(&f);
                fixture_accept(&f);
                say(&f, table[i].text);
                turn_until(&f, f.disconnected);
                is_int(f.disconnected, table[i].error, "not a monitor: case %zu", i);
                is_int(f.n_ready, startswith(table[i].text, GREETING) != NULL, "… and ready only after a greeting");
                fixture_stop(&f);
        }
}

static void test_replies(void) {
        Fixture f;

        handshake(&f);
        is_int(qmp_command(f.qmp, "one", NULL, USEC_INFINITY, on_reply, &f), 0, "a command");
        is_int(f.n_replies, 0, "… is not answered from within");
        ok(turn_until(&f, strchr(f.received, '\n')), "… goes out");
        is_str(f.received, "{\"execute\":\"one\",\"id\":2}\n", "… as one line");

        say(&f, "{\"event\": \"RESUME\", \"data\": {\"value\": 5}, \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n");
        ok(turn_until(&f, f.n_events == 1), "an event between command and reply");
        is_str(f.last_event, "RESUME", "… by its name");
        is_int(f.last_value, 5, "… with its data");
        is_int(f.n_replies, 0, "… is no reply");

        say(&f, "{\"return\": {\"value\": 7}, \"id\": 2}\r\n");
        ok(turn_until(&f, f.n_replies == 1), "the reply");
        is_int(f.last_reply, 0, "… is success");
        is_int(f.last_value, 7, "… with its result");
        say(&f, "{\"return\": {\"value\": 8}, \"id\": 2}\r\n{\"return\": {}, \"id\": 77}\r\n{\"return\": {}}\r\n"
                "{\"return\": {}, \"id\": \"2\"}\r\n\r\n{\"event\": \"STOP\"}\r\n");
        ok(turn_until(&f, f.n_events == 2), "replies that nobody waits for are passed over");
        is_int(f.n_replies, 1, "… a second one to a command too");

        for (unsigned i = 0; i < 3; i++)
                (void) qmp_command(f.qmp, "queued", json_tokener_parse("{\"a\": [1, \"x,y\"]}"), USEC_INFINITY, on_reply, &f);
        ok(turn_until(&f, strstr(f.received, "\"id\":5,") && endswith(f.received, "\n")), "three at once");
        ok(strstr(f.received, "{\"execute\":\"queued\",\"id\":3,\"arguments\":{\"a\":[1,\"x,y\"]}}\n") != NULL, "with arguments");
        say(&f, "{\"return\": {\"value\": 5}, \"id\": 5}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u0007 way\"}, \"id\": 3}\n");
        ok(turn_until(&f, f.n_replies == 3), "replies out of order");
        is_int(f.last_reply, -EREMOTEIO, "an error reply");
        is_str(f.last_message, "no\\x07 way", "… with QEMU's words, made harmless");
        shutdown(f.peer, SHUT_RDWR);
        ok(turn_until(&f, f.disconnected), "the other side goes");
        is_int(f.disconnected, -EPIPE, "… which is EPIPE");
        is_int(f.n_replies, 4, "… and fails the command that was under way");
        is_int(f.last_reply, -EPIPE, "… with EPIPE");
        is_int(qmp_command(f.qmp, "late", json_object_new_object(), USEC_PER_SEC, on_reply, &f), -ENOTCONN, "no command after that");
        fixture_stop(&f);
}

static void test_deadlines(void) {
        uint64_t begin = now_usec();
        Fixture f;

        handshake(&f);
        (void) qmp_command(f.qmp, "slow", NULL, 100 * USEC_PER_MSEC, on_reply, &f);
        (void) qmp_command(f.qmp, "patient", NULL, USEC_INFINITY, on_reply, &f);
        ok(turn_until(&f, f.n_replies == 1), "a command that has no answer ends");
        is_int(f.last_reply, -ETIMEDOUT, "… with ETIMEDOUT");
        ok(now_usec() - begin >= 100 * USEC_PER_MSEC, "… not before its time");
        is_int(f.disconnected, 0, "… and the connection goes on");
        say(&f, "{\"return\": {\"value\": 1}, \"id\": 2}\n{\"return\": {\"value\": 2}, \"id\": 3}\n");
        ok(turn_until(&f, f.n_replies == 2), "the other is answered");
        is_int(f.last_value, 2, "… and the late reply passed over");

        (void) qmp_command(f.qmp, "again", NULL, 50 * USEC_PER_MSEC, on_reply_free, &f);
        ok(turn_until(&f, f.n_replies == 3), "a later deadline works too");
        ok(!f.qmp, "freed in the callback of a deadline");
        fixture_stop(&f);
}

static void test_free(void) {
        Fixture f;

        handshake(&f);
        (void) qmp_command(f.qmp, "a", NULL, USEC_INFINITY, on_reply, &f);
        (void) qmp_command(f.qmp, "b", NULL, USEC_INFINITY, on_reply, &f);
        f.qmp = qmp_free(f.qmp);
        is_int(f.n_replies, 2, "freeing answers what is pending");
        is_int(f.last_reply, -ECANCELED, "… with ECANCELED");
        is_int(f.disconnected, 0, "… and calls no other handler");
        fixture_stop(&f);

        handshake(&f);
        (void) qmp_command(f.qmp, "a", NULL, USEC_INFINITY, on_reply_free, &f);
        (void) qmp_command(f.qmp, "b", NULL, USEC_INFINITY, on_reply, &f);
        f.qmp = qmp_free(f.qmp);
        is_int(f.n_replies, 2, "freed once more in a callback of its end: each callback once");
        fixture_stop(&f);

        handshake(&f);
        (void) qmp_command(f.qmp, "a", NULL, USEC_INFINITY, on_reply_free, &f);
        (void) qmp_command(f.qmp, "b", NULL, USEC_INFINITY, on_reply, &f);
        say(&f, "{\"return\": {}, \"id\": 2}\n{\"event\": \"STOP\"}\n{\"return\": {}, \"id\": 3}\n");
        ok(turn_until(&f, !f.qmp), "freed in a reply");
        is_int(f.n_replies, 2, "… each callback once");
        is_int(f.n_events, 0, "… and no event after it");
        fixture_stop(&f);

        handshake(&f);
        f.free_in_event = true;
        say(&f, "{\"event\": \"STOP\"}\n{\"event\": \"STOP\"}\n");
        ok(turn_until(&f, !f.qmp), "freed in an event");
        is_int(f.n_events, 1, "… which was the last");
        fixture_stop(&f);

        handshake(&f);
        f.free_in_disconnected = true;
        (void) qmp_command(f.qmp, "a", NULL, USEC_INFINITY, on_reply, &f);
        say(&f, "garbage\n");
        ok(turn_until(&f, !f.qmp), "freed in disconnected()");
        is_int(f.n_replies, 1, "… after the command's callback");
        is_int(f.last_reply, -EPIPE, "… with EPIPE");
        fixture_stop(&f);

        handshake(&f);
        (void) qmp_command(f.qmp, "a", NULL, USEC_INFINITY, on_reply_free, &f);
        (void) qmp_command(f.qmp, "b", NULL, USEC_INFINITY, on_reply, &f);
        f.peer = safe_close(f.peer);
        ok(turn_until(&f, !f.qmp), "freed in a callback when the connection ends");
        is_int(f.n_replies, 2, "… each callback once");
        is_int(f.disconnected, 0, "… and no disconnected() after it");
        fixture_stop(&f);

        fixture_start(&f);
        fixture_accept(&f);
        f.free_in_ready = true;
        say(&f, GREETING "{\"return\": {}, \"id\": 1}\n{\"event\": \"STOP\"}\n");
        ok(turn_until(&f, !f.qmp), "freed in ready()");
        fixture_stop(&f);
        ok(qmp_free(NULL) == NULL, "qmp_free(NULL)");
}

static void test_half_close(void) {
        Fixture f;

        handshake(&f);
        say(&f, "{\"event\": \"SHUTDOWN\"}\n{\"event\": \"cut");
        shutdown(f.peer, SHUT_WR);
        ok(turn_until(&f, f.disconnected), "a half close ends it");
        is_int(f.n_events, 1, "… after what was whole");
        is_int(f.disconnected, -EPIPE, "… with EPIPE");
        fixture_stop(&f);

        /* Unread bytes in a socket that is closed make its peer see ECONNRESET. */
        handshake(&f);
        (void) qmp_command(f.qmp, "unread", NULL, USEC_INFINITY, NULL, NULL);
        (void) send(f.peer, "{\"event\": \"SHUTDOWN\"}\n", 22, MSG_NOSIGNAL);
        f.peer = safe_close(f.peer);
        qmp_drain(f.qmp);
        is_int(f.n_events, 1, "drain() handles the last event");
        is_int(f.disconnected, -EPIPE, "… and a reset as any other end");
        qmp_drain(f.qmp);
        ok(true, "drain() after the end does nothing");
        fixture_stop(&f);

        handshake(&f);
        f.drain_in_event = true;
        say(&f, "{\"event\": \"STOP\"}\n{\"event\": \"STOP\"}\n");
        ok(turn_until(&f, f.n_events == 2), "drain() from within a handler is harmless");
        fixture_stop(&f);
}

static void flood(const char *what, size_t mib, const char *prefix, const char *unit, int error) {
        static char chunk[64 * 1024];
        size_t k = strlen(unit), sent = 0, n = sizeof chunk / k * k;
        clock_t begin = clock();
        struct mallinfo2 before, after;
        Fixture f;

        for (size_t i = 0; i < n; i++)
                chunk[i] = unit[i % k];

        handshake(&f);
        before = mallinfo2();
        say(&f, prefix);
        while (!f.disconnected && sent < mib * 1024 * 1024) {
                size_t done = say_n(&f, chunk, n);

                sent += done;
                if (done < n)
                        break;
        }
        if (error)
                turn_until(&f, f.disconnected);
        after = mallinfo2();
        is_int(f.disconnected, error, "%s: %zu KiB taken", what, sent / 1024);
        ok(after.uordblks < before.uordblks + 2 * QMP_LINE_MAX, "… and no memory kept");
        ok(clock() - begin < 10 * CLOCKS_PER_SEC, "… in %ld ms of a processor", (long) (clock() - begin) / (CLOCKS_PER_SEC / 1000));
        if (!error) {
                f.n_events = 0;
                say(&f, "\n{\"event\": \"STOP\"}\n");
                ok(turn_until(&f, streq(f.last_event, "STOP")), "… and it works afterwards");
        }
        fixture_stop(&f);
}

static void test_floods(void) {
        char deep[200];

        flood("an endless line", 100, "", "x", -EMSGSIZE);
        flood("an endless string", 100, "{\"event\": \"", "A", -EMSGSIZE);
        flood("endless blanks", 100, "", " ", -EMSGSIZE);
        flood("endless empty lines", 100, "", "\r\n", 0);
        flood("endless events", 16, "", "{\"event\": \"STOP\", \"data\": {}}\r\n", 0);
        flood("endless late replies", 16, "", "{\"return\": [], \"id\": 1}\r\n", 0);

        memset(deep, '[', sizeof deep - 1);
        deep[sizeof deep - 1] = 0;
        for (unsigned i = 0; i < 3; i++) {
                Fixture f;
                _cleanup_free_ char *many = malloc(300000);
                char *p = stpcpy(many, "{\"return\": [");

                handshake(&f);
                if (i == 0)
                        p = stpcpy(p, deep);
                else
                        for (unsigned j = 0; j < 90000; j++)
                                p = stpcpy(p, i == 1 ? "{}," : "1,");
                stpcpy(p, "1]}\n");
                say(&f, many);
                ok(turn_until(&f, f.disconnected), "a message too %s is refused", i == 0 ? "deep" : "rich");
                is_int(f.disconnected, i == 0 ? -EBADMSG : -EMSGSIZE, "… by its name");
                fixture_stop(&f);
        }
}

/* The server does not read: what the client says is kept, within bounds, and goes out whole later. */
static void test_slow_server(void) {
        static char text[16 * 1024];
        unsigned n = 0, lines = 0;
        size_t i;
        Fixture f;
        int r;

        memset(text, 'y', sizeof text - 1);
        handshake(&f);
        do {
                json_object *o = json_object_new_object();

                json_object_object_add(o, "text", json_object_new_string(text));
                r = qmp_command(f.qmp, "long", o, USEC_INFINITY, on_reply, &f);
                n += r >= 0;
        } while (r >= 0 && n < 1000);
        is_int(r, -ENOBUFS, "a full socket and buffer: refused after %u commands", n);

        for (uint64_t end = now_usec() + DEADLINE_USEC; lines < n && now_usec() < end;) {
                f.n_received = 0;
                turn(&f, USEC_PER_MSEC);
                for (i = 0; i < f.n_received; i++)
                        lines += f.received[i] == '\n';
        }
        is_int(lines, n, "all of them come out");
        say(&f, "{\"return\": {}, \"id\": 2}\n");
        ok(turn_until(&f, f.n_replies == 1), "and are answered");
        fixture_stop(&f);
}

int main(void) {
        QMP *q = NULL;
        sd_event *e = NULL;

        if (!mkdtemp(directory) || sd_event_new(&e) < 0)
                return 1;
        snprintf(path, sizeof path, "%s/qmp", directory);

        is_int(qmp_connect(e, path, &handlers, NULL, &q), -ENOENT, "no socket");
        ok(!q, "… gives no object");
        sd_event_unref(e);

        test_handshake();
        test_bad_greetings();
        test_replies();
        test_deadlines();
        test_free();
        test_half_close();
        test_floods();
        test_slow_server();

        (void) unlink(path);
        (void) rmdir(directory);
        return done_testing();
}
