/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/vmm.h"

#include "heard.h"
#include "tap.h"

/* The operations against a played Firecracker: what the real one does seldom, or never. */

#define FC firecracker_ops
#define DEADLINE_USEC (20 * USEC_PER_SEC)

typedef struct Fake {
        Heard heard;
        sd_event *event;
        int listener, peer, fifo;
        char log[4096];                 /* the calls, in their order */
        const char *state;
        const char *call;               /* this one is answered so: */
        const char *answer;             /* NULL: not at all */
        const char *metrics;            /* are written before that */
} Fake;

static char directory[] = "/tmp/test-fc-ops.XXXXXX", sock[64], fifo[64];

static char *http(unsigned status, const char *body) {
        return strjoinf("HTTP/1.1 %u \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Length: %zu\r\n\r\n%s", status,
                        strlen(body), body);
}

#define NO_CONTENT "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"

static void say(Fake *f, const char *s) {
        (void) send(f->peer, s, strlen(s), MSG_NOSIGNAL);
}

static void answer(Fake *f, const char *call) {
        _cleanup_free_ char *body = NULL, *text = NULL;

        snprintf(f->log + strlen(f->log), sizeof f->log - strlen(f->log), "%s ", call);
        if (streq_ptr(f->call, call)) {
                if (f->metrics && write(f->fifo, f->metrics, strlen(f->metrics)) < 0)
                        abort();
                if (f->answer)
                        say(f, f->answer);
        } else if (streq(call, "/")) {
                body = strjoinf("{\"id\": \"x\", \"state\": \"%s\"}", f->state);
                text = http(200, body);
                say(f, text);
        } else
                say(f, NO_CONTENT);
}

/* Its requests are short and come in one piece. The last word of each tells which one it is. */
static void serve(Fake *f) {
        static const char *const words[] = { "Paused", "Resumed", "SendCtrlAltDel", "FlushMetrics" };
        char request[4096];
        ssize_t n;

        if (f->peer < 0)
                f->peer = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC|SOCK_NONBLOCK);
        if (f->peer < 0)
                return;
        n = recv(f->peer, request, sizeof request - 1, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN))
                f->peer = safe_close(f->peer);
        if (n <= 0)
                return;
        request[n] = 0;
        for (size_t i = 0; i < ELEMENTSOF(words); i++)
                if (strstr(request, words[i])) {
                        answer(f, words[i]);
                        return;
                }
        answer(f, startswith(request, "GET / ") ? "/" : "?");
}

static void turn(Fake *f) {
        (void) sd_event_run(f->event, USEC_PER_MSEC);
        serve(f);
}

#define wait_for(f, condition)                                          \
        ({                                                              \
                uint64_t _end = now_usec() + DEADLINE_USEC;             \
                while (!(condition) && now_usec() < _end)               \
                        turn(f);                                        \
                (condition);                                            \
        })

static void fake_prepare(Fake *f, const char *state) {
        (void) unlink(fifo);
        (void) unlink(sock);
        if (mkfifo(fifo, 0600) < 0)
                abort();
        *f = (Fake) {
                .listener = -EBADF,
                .fifo = open(fifo, O_RDWR|O_CLOEXEC|O_NONBLOCK),
                .peer = -EBADF,
                .state = state,
                .heard.free_on = _VMM_EVENT_MAX,
        };
        if (f->fifo < 0 || sd_event_new(&f->event) < 0)
                abort();
}

static void fake_start(Fake *f, const char *state) {
        fake_prepare(f, state);
        f->listener = unix_listen(sock, SOCK_STREAM);
        if (f->listener < 0 || FC.connect(f->event, directory, on_event, &f->heard, &f->heard.vmm) < 0)
                abort();
}

static void fake_up(Fake *f, const char *state) {
        fake_start(f, state);
        if (!wait_for(f, f->heard.n[VMM_EVENT_CONNECTED]))
                abort();
        f->log[0] = 0;
}

static void fake_stop(Fake *f) {
        heard_free(&f->heard);
        safe_close(f->peer);
        safe_close(f->listener);
        safe_close(f->fifo);
        sd_event_unref(f->event);
}

static void test_connect(void) {
        static const struct {
                const char *name;
                VMMState state;
        } table[] = {
                { "Not started", VMM_STATE_NOT_STARTED }, { "Running", VMM_STATE_RUNNING }, { "Paused", VMM_STATE_PAUSED },
        };
        static const struct {
                unsigned status;
                const char *body;
        } bad[] = { { 200, "" }, { 200, "{\"state\":7}" }, { 200, "{\"state\":\"Elsewhere\"}" }, { 400, "{\"fault_message\":\"no\"}" } };
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                fake_start(&f, table[i].name);
                ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]), "connected");
                is_int(f.heard.state, table[i].state, "… %s", table[i].name);
                is_str(f.log, "/ ", "… by one question");
                fake_stop(&f);
        }
        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                _cleanup_free_ char *text = http(bad[i].status, bad[i].body);

                fake_start(&f, "Running");
                f.call = "/";
                f.answer = text;
                (void) FC.boot(f.heard.vmm, "{}", on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "%u %s", bad[i].status, bad[i].body);
                is_int(f.heard.error, -EBADMSG, "… is no state");
                is_int(f.heard.n_replies, 1, "… and the boot has failed");
                is_int(FC.pause(f.heard.vmm, on_reply, &f.heard), -ENOTCONN, "… and no call after it");
                fake_stop(&f);
                is_int(f.heard.n_replies, 1, "… nor is one answered");
        }

        fake_prepare(&f, "Running");
        if (FC.connect(f.event, directory, on_event, &f.heard, &f.heard.vmm) < 0)
                abort();
        for (unsigned i = 0; i < 20; i++)
                turn(&f);
        is_int(f.heard.n[VMM_EVENT_CONNECTED] + f.heard.n[VMM_EVENT_DISCONNECTED], 0, "one that makes its socket later");
        f.listener = unix_listen(sock, SOCK_STREAM);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]), "… is waited for");
        fake_stop(&f);
}

static void test_boot(void) {
        Fake f;

        fake_start(&f, "Not started");
        (void) FC.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        (void) wait_for(&f, strlen(f.log) > 3);
        is_int(f.heard.n_replies, 0, "a boot is not done before the guest runs");
        is_int(FC.boot(f.heard.vmm, "{}", on_reply, &f.heard), -EBUSY, "… nor twice at once");
        f.state = "Running";
        ok(wait_for(&f, f.heard.n_replies), "… and then it is");
        is_int(f.heard.last_reply, 0, "… well");
        is_int(f.heard.n[VMM_EVENT_RUNNING], 1, "… and told");
        fake_stop(&f);

        fake_start(&f, "Paused");
        (void) FC.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "a guest that does not run when it should");
        is_int(f.heard.last_reply, -EIO, "… has not booted");
        fake_stop(&f);

        fake_start(&f, "Not started");
        (void) FC.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        heard_free(&f.heard);
        is_int(f.heard.last_reply, -ECANCELED, "freed with a boot under way");
        is_int(f.heard.n_replies, 1, "… which is told once");
        fake_stop(&f);
}

static void test_calls(void) {
        static const struct {
                unsigned status;
                const char *body, *words;
        } table[] = {
                { 400, "{\"fault_message\":\"The requested operation is not supported\"}", "The requested operation is not supported" },
                { 500, "{\"error\":\"x\"}", "{\"error\":\"x\"}" },
                { 400, "{\"fault_message\":", "{\"fault_message\":" },
                { 400, "", "" },
        };
        Fake f;

        fake_up(&f, "Running");
        (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 1) && f.heard.last_reply == 0 && f.heard.state == VMM_STATE_PAUSED, "pause");
        (void) FC.resume(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 2) && f.heard.last_reply == 0 && f.heard.state == VMM_STATE_RUNNING, "resume");
        (void) FC.power_button(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 3) && f.heard.last_reply == 0 && f.heard.n[VMM_EVENT_POWER_BUTTON] == 1, "button");
        is_str(f.log, "Paused Resumed SendCtrlAltDel ", "… and nothing else is asked");
        f.call = "Paused";
        f.answer = NULL;
        (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, strstr(f.log, "Del Paused ")), "a pause");
        f.state = "Paused";
        shutdown(f.peer, SHUT_RDWR);
        ok(wait_for(&f, f.heard.n_replies == 4), "… that is not answered");
        is_int(f.heard.last_reply, -EPIPE, "… has failed");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_PAUSED] == 2), "… and may be done all the same");
        fake_stop(&f);

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_free_ char *text = http(table[i].status, table[i].body);

                fake_up(&f, "Running");
                f.call = "Paused";
                f.answer = text;
                (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "%u %s", table[i].status, table[i].body);
                is_int(f.heard.last_reply, -EREMOTEIO, "… is a refusal");
                is_str(f.heard.last_message, table[i].words, "… in its words");
                is_int(f.heard.n[VMM_EVENT_PAUSED], 0, "… and no pause");
                fake_stop(&f);
        }
}

static void test_counters(void) {
        unsigned taken = 0;
        Fake f;

        fake_up(&f, "Running");
        f.call = "FlushMetrics";
        f.answer = NO_CONTENT;
        f.metrics = "{\"block\": {\"read_bytes\": 9}, \"block_a\": {\"read_bytes\": 4, \"write_bytes\": -1, \"read_count\": \"x\"},"
                    " \"block_../x\": {\"read_bytes\": 4}, \"block_\": {}}\nrubbish\n";
        for (unsigned i = 1; i < 3; i++) {
                uint64_t again = now_usec() + USEC_PER_SEC + 10 * USEC_PER_MSEC;

                f.log[0] = 0;
                f.heard.n_replies = 0;
                for (unsigned k = 1; k < 6; k++) {
                        (void) FC.counters(f.heard.vmm, on_counters, &f.heard);
                        if (k > 2)
                                ok(wait_for(&f, f.heard.n_replies == k), "counters");
                }
                is_int(f.heard.n_counters, 1, "… of one disk, what makes sense");
                is_str(f.heard.counters[0].name, "a.ReadBytes", "… by its name");
                is_int(f.heard.counters[0].value, 4 * i, "… are added up");
                if (now_usec() < again)
                        is_str(f.log, "FlushMetrics ", "… and asked for once a second");
                while (now_usec() < again)
                        turn(&f);
        }
        f.answer = NULL;
        f.metrics = NULL;
        f.heard.n_replies = 0;
        for (unsigned i = 0; i < 1000; i++)
                taken += FC.counters(f.heard.vmm, on_counters, &f.heard) == 0;
        ok(taken > 0 && taken < 20, "of a thousand that want counters at once some are asked for: %u", taken);
        is_int(FC.power_button(f.heard.vmm, on_reply, &f.heard), 0, "… and other calls are taken");
        fake_stop(&f);
        is_int(f.heard.n_replies, taken + 1, "… and all are answered in the end");
}

/* Requests that meet a guest's reset make the real one hang. */
static void test_quiet(void) {
        Fake f;

        fake_up(&f, "Running");
        f.call = "Paused";
        f.answer = NULL;
        (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
        (void) FC.power_button(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, strstr(f.log, "Paused")), "a pause that is not answered");
        shutdown(f.peer, SHUT_RDWR);
        ok(wait_for(&f, f.heard.n_replies == 2), "… and a button");
        (void) FC.counters(f.heard.vmm, on_counters, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 3), "… after which there are counters");
        is_str(f.log, "Paused SendCtrlAltDel ", "… and nothing is asked for");
        fake_stop(&f);
}

static sem_t named, leave;

static void *named_thread(void *name) {
        (void) prctl(PR_SET_NAME, name);
        sem_post(&named);
        sem_wait(&leave);
        return NULL;
}

static void test_gone(void) {
        uint64_t until;
        pthread_t t;
        Fake f;

        fake_up(&f, "Running");
        f.heard.vmm->pid = getpid();
        sem_init(&named, 0, 0);
        sem_init(&leave, 0, 0);
        if (pthread_create(&t, NULL, named_thread, (char *) "fc_vcpu 0") != 0)
                abort();
        sem_wait(&named);
        (void) prctl(PR_SET_NAME, "fc_api");
        f.call = "Paused";
        f.answer = NULL;
        (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
        until = now_usec() + 500 * USEC_PER_MSEC;
        while (now_usec() < until)
                turn(&f);
        is_int(f.heard.n[VMM_EVENT_GUEST_GONE], 0, "one that is silent, and has CPUs");
        sem_post(&leave);
        pthread_join(t, NULL);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_GUEST_GONE]), "… and none any more: its guest has gone");
        fake_stop(&f);

        fake_up(&f, "Running");
        f.heard.vmm->pid = getpid();
        f.heard.free_on = VMM_EVENT_GUEST_GONE;
        f.call = "FlushMetrics";
        f.answer = NULL;
        (void) FC.counters(f.heard.vmm, on_counters, &f.heard);
        ok(wait_for(&f, !f.heard.vmm), "freed when it has gone");
        is_int(f.heard.n_replies, 1, "… all calls are answered");
        fake_stop(&f);
        (void) prctl(PR_SET_NAME, "test");
}

static void test_freeing(void) {
        static const VMMEvent freeing[] = {
                VMM_EVENT_CONNECTED, VMM_EVENT_PAUSED, VMM_EVENT_RUNNING, VMM_EVENT_POWER_BUTTON, VMM_EVENT_DISCONNECTED,
        };
        _cleanup_free_ char *bad = http(200, "?");
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(freeing); i++) {
                fake_start(&f, "Running");
                f.heard.free_on = freeing[i];
                (void) FC.boot(f.heard.vmm, "{}", on_reply, &f.heard);
                if (freeing[i] == VMM_EVENT_DISCONNECTED) {
                        f.call = "/";
                        f.answer = bad;
                } else
                        (void) wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED] && f.heard.n_replies);
                if (f.heard.vmm && freeing[i] != VMM_EVENT_DISCONNECTED) {
                        (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
                        (void) FC.resume(f.heard.vmm, on_reply, &f.heard);
                        (void) FC.power_button(f.heard.vmm, on_reply, &f.heard);
                        (void) FC.counters(f.heard.vmm, on_counters, &f.heard);
                }
                ok(wait_for(&f, !f.heard.vmm), "freed in event %d", freeing[i]);
                is_int(f.heard.n_replies, freeing[i] == VMM_EVENT_CONNECTED || freeing[i] == VMM_EVENT_DISCONNECTED ? 1 : 5, "… all calls are answered");
                is_int(f.heard.n_late, 0, "… before it is freed");
                turn(&f);
                fake_stop(&f);
        }

        for (unsigned i = 0; i < 4; i++) {
                int (*const calls[])(VMM *, vmm_reply_cb, void *) = { FC.pause, FC.resume, FC.power_button };

                fake_up(&f, "Running");
                f.heard.free_on_reply = true;
                (void) (i == 3 ? FC.counters(f.heard.vmm, on_counters, &f.heard) : calls[i](f.heard.vmm, on_reply, &f.heard));
                (void) FC.pause(f.heard.vmm, on_reply, &f.heard);
                (void) FC.resume(f.heard.vmm, on_reply, &f.heard);
                ok(wait_for(&f, !f.heard.vmm), "freed in reply %u", i);
                is_int(f.heard.n_replies, 3, "… the others are answered");
                is_int(f.heard.last_reply, -ECANCELED, "… with ECANCELED");
                is_int(f.heard.n_late, 0, "… before it is freed");
                turn(&f);
                fake_stop(&f);
        }
}

int main(void) {
        _cleanup_free_ char *remove = NULL;

        signal(SIGPIPE, SIG_IGN);
        if (!mkdtemp(directory))
                return 1;
        snprintf(sock, sizeof sock, "%s/api", directory);
        snprintf(fifo, sizeof fifo, "%s/" VMM_EVENTS, directory);

        test_connect();
        test_boot();
        test_calls();
        test_counters();
        test_quiet();
        test_gone();
        test_freeing();

        remove = strjoinf("rm -r '%s'", directory);
        if (!remove || system(remove) != 0)
                printf("# %s stays\n", directory);
        return done_testing();
}
