/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "vmm/http-vmm.h"
#include "vmm/vmm.h"

#include "heard.h"
#include "tap.h"

/* The operations against a played Cloud Hypervisor: what the real one does seldom, or never, or only in other versions. */

#define CH cloud_hypervisor_ops
#define DEADLINE_USEC (20 * USEC_PER_SEC)
#define BIG (8U * 1024U * 1024U)

typedef struct Fake {
        Heard heard;
        sd_event *event;
        int listener, peer, fifo;
        char input[16384];
        size_t n_input;
        char log[4096];                 /* the calls, in their order */
        const char *state;              /* what vm.info says */
        const char *call, *answer;      /* this call is answered so; NULL: not at all */
        const char *events;             /* are told before that */
        bool endless;                   /* the answer has no end */
        size_t unsent;
} Fake;

static char directory[] = "/tmp/test-ch-ops.XXXXXX", sock[64], fifo[64];

static void tell(Fake *f, const char *text) {
        if (write(f->fifo, text, strlen(text)) < 0)
                f->heard.error = -errno;
}

#define EVENT(source, name, properties) \
        "{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 98095\n  },\n  \"source\": \"" source "\",\n  \"event\": \"" name "\",\n" \
        "  \"properties\": " properties "\n}\n\n"
#define BOOTED EVENT("vm", "booted", "null")
#define PAUSING EVENT("vm", "pausing", "null")
#define PAUSED EVENT("vm", "paused", "null")
#define RESUMED EVENT("vm", "resumed", "null")
#define REBOOTED EVENT("vm", "rebooted", "null")
#define PANIC EVENT("guest", "panic", "{\n    \"event\": \"panic\"\n  }")
#define ENDED EVENT("vm", "shutdown", "null") EVENT("vm", "deleted", "null") EVENT("vmm", "shutdown", "null")

#define HEAD "Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
#define NO_CONTENT "HTTP/1.1 204 \r\n" HEAD "\r\n"

/* An answer with this status and body */
static char *http(unsigned status, const char *body) {
        return strjoinf("HTTP/1.1 %u \r\n" HEAD "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body),
                        body);
}

static void say(Fake *f, const char *s) {
        (void) send(f->peer, s, strlen(s), MSG_NOSIGNAL);
}

static void answer(Fake *f, const char *call) {
        _cleanup_free_ char *body = NULL, *text = NULL;

        snprintf(f->log + strlen(f->log), sizeof f->log - strlen(f->log), "%s ", call);
        if (f->call && streq(f->call, call)) {
                if (f->events)
                        tell(f, f->events);
                if (f->answer)
                        say(f, f->answer);
                f->unsent = f->endless ? BIG : 0;
        } else if (streq(call, "vm.info")) {
                body = strjoinf("{\"config\":{},\"state\":\"%s\",\"memory_actual_size\":1}", f->state);
                text = http(200, body);
                say(f, text);
        } else
                say(f, NO_CONTENT);
}

/* The one request of a connection, once it is whole: the last part of its path. */
static char *take_request(Fake *f) {
        char *end = memmem(f->input, f->n_input, "\r\n\r\n", 4), *length, *path;
        size_t size = 0;

        f->input[f->n_input] = 0;
        if (!end)
                return NULL;
        length = strcasestr(f->input, "\r\ncontent-length:");
        if (length && length < end)
                size = strtoul(length + 17, NULL, 10);
        if (f->n_input < (size_t) (end + 4 - f->input) + size)
                return NULL;
        path = strstr(f->input, "/api/v1/");
        return path ? strndup(path + 8, strcspn(path + 8, " ")) : strdup("?");
}

static void serve(Fake *f) {
        static char rubbish[16384];
        _cleanup_free_ char *request = NULL;
        ssize_t n;

        if (f->peer < 0) {
                f->peer = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC|SOCK_NONBLOCK);
                f->n_input = 0;
                f->unsent = 0;
        }
        if (f->peer < 0)
                return;
        if (f->unsent > 0) {
                memset(rubbish, 'x', sizeof rubbish);
                n = send(f->peer, rubbish, sizeof rubbish, MSG_NOSIGNAL|MSG_DONTWAIT);
                f->unsent -= n > 0 ? MIN((size_t) n, f->unsent) : 0;
        }
        n = recv(f->peer, f->input + f->n_input, sizeof f->input - 1 - f->n_input, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
                f->peer = safe_close(f->peer);
                return;
        }
        f->n_input += (size_t) MAX(n, 0);
        request = n > 0 ? take_request(f) : NULL;
        if (request)
                answer(f, request);
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

static void fake_start(Fake *f, const char *state) {
        (void) unlink(fifo);
        if (mkfifo(fifo, 0600) < 0)
                abort();
        *f = (Fake) {
                .listener = unix_listen(sock, SOCK_STREAM),
                .fifo = open(fifo, O_RDWR|O_CLOEXEC|O_NONBLOCK),
                .peer = -EBADF,
                .state = state,
                .heard.free_on = _VMM_EVENT_MAX,
        };
        if (f->listener < 0 || f->fifo < 0 || sd_event_new(&f->event) < 0 ||
            CH.connect(f->event, directory, on_event, &f->heard, &f->heard.vmm) < 0)
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

/* Waits until the loop has handled what was told it. */
static void settle(Fake *f) {
        unsigned n = f->heard.n_replies;

        if (CH.power_button(f->heard.vmm, on_reply, &f->heard) < 0 || !wait_for(f, f->heard.n_replies > n))
                abort();
}

/* For the name of a test: on one line */
static const char *shown(const char *s) {
        static char text[100];

        snprintf(text, sizeof text, "%s", s);
        for (char *p = text; *p; p++)
                if (*p == '\n' || *p == '\r' || *p == '#')
                        *p = ' ';
        return text;
}

static void test_connect(void) {
        static const struct {
                const char *name;
                VMMState state;
        } table[] = {
                { "Created", VMM_STATE_NOT_STARTED }, { "Running", VMM_STATE_RUNNING }, { "Paused", VMM_STATE_PAUSED },
                { "Shutdown", VMM_STATE_SHUTDOWN }, { "BreakPoint", VMM_STATE_UNKNOWN }, { "", VMM_STATE_UNKNOWN },
        };
        static const struct {
                unsigned status;
                const char *body;
                int error; /* 0: there is no VM */
        } answers[] = {
                { 404, "[\"Error from API\",\"The VM info is not available\",\"VM is not created\"]", 0 },
                { 500, "[\"Error from API\",\"The VM info is not available\",\"VM is not created\"]", 0 },
                { 500, "Error from API: The VM info is not available: VM is not created", 0 },
                { 500, "The VM info is not available: VM is not created", 0 },
                { 200, "VM is not created", -EBADMSG },
                { 404, "[\"Not Found\"]", -EBADMSG },
                { 500, "[\"Error from API\",\"The VM info is not available\",\"VM is migrating\"]", -EBADMSG },
                { 500, "[\"Error from API\",\"API response receive error\",\"receiving on a closed channel\"]", -EPIPE },
                { 500, "sending on a closed channel", -EPIPE },
                { 503, "{ \"error\": \"Too many open connections\" }", -EBADMSG },
                { 200, "", -EBADMSG },
                { 200, "{\"state\":7}", -EBADMSG },
                { 200, "[\"state\",\"Running\"]", -EBADMSG },
                { 200, "{\"state\":\"Running\"", -EBADMSG },
                { 200, "{\"state\":\"Run\xff\"}", -EBADMSG },
        };
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                fake_start(&f, table[i].name);
                ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]), "connected");
                is_int(f.heard.state, table[i].state, "… %s", table[i].name);
                is_str(f.log, "vm.info ", "… by one question");
                fake_stop(&f);
        }

        for (size_t i = 0; i < ELEMENTSOF(answers); i++) {
                _cleanup_free_ char *text = http(answers[i].status, answers[i].body);

                fake_start(&f, "Running");
                f.call = "vm.info";
                f.answer = text;
                ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED] || f.heard.n[VMM_EVENT_DISCONNECTED]), "%u %s", answers[i].status, answers[i].body);
                is_int(f.heard.n[VMM_EVENT_CONNECTED], answers[i].error == 0, "… is an answer, or none");
                if (answers[i].error == 0)
                        is_int(f.heard.state, VMM_STATE_NOT_STARTED, "… no VM yet");
                else {
                        is_int(f.heard.error, answers[i].error, "… and says why");
                        is_int(CH.pause(f.heard.vmm, on_reply, &f.heard), -ENOTCONN, "… and no call after it");
                        is_int(CH.boot(f.heard.vmm, "{}", on_reply, &f.heard), -ENOTCONN, "… of any kind");
                        is_int(CH.counters(f.heard.vmm, on_counters, &f.heard), -ENOTCONN, "… at all");
                        CH.drain(f.heard.vmm);
                }
                fake_stop(&f);
                is_int(f.heard.n_replies, 0, "… nor is one answered");
        }
}

static void test_channels(void) {
        sd_event *e = NULL;
        VMM *v = NULL;

        if (sd_event_new(&e) < 0)
                abort();
        (void) unlink(fifo);
        is_int(CH.connect(e, directory, on_event, NULL, &v), -ENOENT, "no FIFO, no connection");
        if (write_file_atomic(fifo, BOOTED, false) < 0)
                abort();
        is_int(CH.connect(e, directory, on_event, NULL, &v), -EBADMSG, "… nor with a file in its place");
        sd_event_unref(e);
}

/* Neither the API nor HTTP */
static void test_bad_servers(void) {
        static const struct {
                const char *answer;
                bool endless, closes;
                int error;
        } table[] = {
                { "\x00\xff garbage", false, true, -EPIPE },
                { "SSH-2.0-OpenSSH_9.2\r\n", false, true, -EBADMSG },
                { "HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"state\":", false, true, -EPIPE },
                { "HTTP/1.1 20", false, true, -EPIPE },
                { "HTTP/1.1 200 \r\nContent-Length: 100000000\r\n\r\n", true, false, -EMSGSIZE },
                { "HTTP/1.1 200 \r\nConnection: close\r\n\r\n", true, false, -EMSGSIZE },
                { "HTTP/1.1 200 \r\nX: ", true, false, -EMSGSIZE },
        };
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                fake_start(&f, "Running");
                f.call = "vm.info";
                f.answer = table[i].answer;
                f.endless = table[i].endless;
                if (table[i].closes) {
                        (void) wait_for(&f, strstr(f.log, "vm.info"));
                        shutdown(f.peer, SHUT_RDWR);
                }
                ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "a server that says %s", shown(table[i].answer));
                ok(f.heard.error == table[i].error || f.heard.error == -EBADMSG, "… is none: %s", strerror(-f.heard.error));
                fake_stop(&f);
        }

        fake_start(&f, "Running");
        f.listener = safe_close(f.listener);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "nobody listens");
        is_int(f.heard.error, -EPIPE, "… which is the end of a connection");
        fake_stop(&f);

        fake_start(&f, "Running");
        f.call = "vm.info";
        (void) CH.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "nobody answers");
        is_int(f.heard.error, -ETIMEDOUT, "… in time");
        is_int(f.heard.n_replies, 1, "… and the boot behind it is answered");
        ok(f.heard.last_reply < 0, "… with an error");
        fake_stop(&f);
        is_int(f.heard.n_replies, 1, "… once");
}

/* Exactly these, in the words of all versions */
static void test_idempotence(void) {
#define CHAIN "[\"Error from API\",\"The VM could not be paused\",\"Cannot pause VM\",\"Failed to pause migratable component\",\"Invalid transition: "
        static const struct {
                bool resume;
                unsigned status;
                const char *body;
                bool good;
        } table[] = {
                { false, 500, "VmPause(Pause(MigratableError(Pause(Invalid transition: InvalidStateTransition(Paused, Paused)))))", true },
                { false, 500, "Cannot pause VM: Failed to pause migratable component: Invalid transition: InvalidStateTransition(Paused, Paused)", true },
                { false, 500, "Error from API: The VM could not be paused: Cannot pause VM: Failed to pause migratable component: Invalid transition: InvalidStateTransition(Paused, Paused)", true },
                { false, 500, CHAIN "InvalidStateTransition(Paused, Paused)\"]", true },
                { true, 500, "Cannot resume VM: Failed to resume migratable component: Invalid transition: InvalidStateTransition(Running, Running)", true },
                { true, 500, "[\"Error from API\",\"The VM could not resume\",\"Cannot resume VM\",\"Failed to resume migratable component\",\"Invalid transition: InvalidStateTransition(Running, Running)\"]", true },

                { false, 500, CHAIN "InvalidStateTransition(Running, Running)\"]", false },
                { false, 500, CHAIN "InvalidStateTransition(Created, Paused)\"]", false },
                { false, 500, CHAIN "InvalidStateTransition(Paused,Paused)\"]", false },
                { false, 400, CHAIN "InvalidStateTransition(Paused, Paused)\"]", false },
                { false, 404, CHAIN "InvalidStateTransition(Paused, Paused)\"]", false },
                { false, 503, CHAIN "InvalidStateTransition(Paused, Paused)\"]", false },
                { false, 500, "[\"Error from API\",\"The VM could not be paused\",\"VM is not running\"]", false },
                { false, 500, "", false },
                { true, 500, CHAIN "InvalidStateTransition(Paused, Paused)\"]", false },
                { true, 500, CHAIN "InvalidStateTransition(Created, Running)\"]", false },
                { true, 404, CHAIN "InvalidStateTransition(Running, Running)\"]", false },
                { true, 500, "[\"Error from API\",\"The VM could not resume\",\"VM is not running\"]", false },
        };
#undef CHAIN
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_free_ char *text = http(table[i].status, table[i].body), *words = http_vmm_words(table[i].body, strlen(table[i].body));

                fake_up(&f, table[i].resume ? "Running" : "Paused");
                f.call = table[i].resume ? "vm.resume" : "vm.pause";
                f.answer = text;
                f.events = table[i].resume ? EVENT("vm", "resuming", "null") : PAUSING;
                (void) (table[i].resume ? CH.resume : CH.pause)(f.heard.vmm, on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "%s, answered %u %s", f.call, table[i].status, table[i].body);
                is_int(f.heard.last_reply, table[i].good ? 0 : -EREMOTEIO, "… is %s", table[i].good ? "done already" : "refused");
                is_str(f.heard.last_message, table[i].good ? "" : strempty(words), "… in its words");
                ok(startswith(f.log, f.call) && strlen(f.log) == strlen(f.call) + 1, "… and nothing else was asked: %s", f.log);
                is_int(f.heard.n[VMM_EVENT_PAUSED] + f.heard.n[VMM_EVENT_RUNNING], 0, "… nor told");
                fake_stop(&f);
        }
}

/* Also where the state is known to be another */
static void test_idempotence_failed(void) {
        _cleanup_free_ char *text = http(500, "InvalidStateTransition(Paused, Paused)");
        Fake f;

        fake_up(&f, "Running");
        tell(&f, PANIC);
        (void) wait_for(&f, f.heard.n[VMM_EVENT_GUEST_PANICKED]);
        f.call = "vm.pause";
        f.answer = text;
        (void) CH.pause(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "paused after its guest's panic, and paused again");
        is_int(f.heard.last_reply, 0, "… is done already");
        is_str(f.log, "vm.pause ", "… without another question");
        is_int(f.heard.n[VMM_EVENT_PAUSED], 0, "… and it stays failed");
        fake_stop(&f);
}

/* Its guest has ended, and so will it. */
static void test_ending(void) {
        _cleanup_free_ char *text = http(500, "[\"Error from API\",\"API request send error\",\"sending on a closed channel\"]");
        Fake f;

        for (unsigned i = 0; i < 4; i++) {
                fake_up(&f, i == 1 ? "Paused" : "Running");
                f.call = ((const char *[]) { "vm.pause", "vm.info", "vm.power-button", "vm.counters" })[i];
                f.answer = text;
                if (i == 0)
                        (void) CH.pause(f.heard.vmm, on_reply, &f.heard);
                else if (i == 1)
                        (void) CH.resume(f.heard.vmm, on_reply, &f.heard);
                else if (i == 2)
                        (void) CH.power_button(f.heard.vmm, on_reply, &f.heard);
                else
                        (void) CH.counters(f.heard.vmm, on_counters, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "%s of one that ends is answered", f.call);
                is_int(f.heard.last_reply, -EPIPE, "… as by one that has ended");
                fake_stop(&f);
        }
}

/* An answer of success, and what the state says about it */
static void test_success(void) {
        static const struct {
                const char *call, *events, *state;
                int reply;
                const char *log;
        } table[] = {
                { "vm.pause", PAUSING PAUSED, "Running", 0, "vm.pause " },
                { "vm.pause", "", "Paused", 0, "vm.pause vm.info " },
                { "vm.pause", PAUSING, "Running", -EIO, "vm.pause vm.info " },
                { "vm.pause", "garbage\n\n", "Paused", 0, "vm.pause vm.info vm.info " }, /* the first may be older than the answer */
                { "vm.pause", PAUSED RESUMED, "Running", -EIO, "vm.pause vm.info " },
                { "vm.pause", "", "Elsewhere", -EIO, "vm.pause vm.info " },
        };
        _cleanup_free_ char *refusal = http(500, "[\"no\"]");
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                fake_up(&f, "Running");
                f.call = table[i].call;
                f.answer = NO_CONTENT;
                f.events = table[i].events;
                f.state = table[i].state;
                (void) CH.pause(f.heard.vmm, on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "pause: '%s', then %s", shown(table[i].events), table[i].state);
                is_int(f.heard.last_reply, table[i].reply, "… is what it is %s", f.heard.last_message);
                is_str(f.log, table[i].log, "… after these calls");
                if (table[i].reply == 0)
                        is_int(f.heard.state, VMM_STATE_PAUSED, "… paused");
                fake_stop(&f);
        }

        fake_up(&f, "Running");
        f.call = "vm.info";
        f.answer = refusal;
        (void) CH.pause(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "the state is refused");
        is_int(f.heard.last_reply, -EBADMSG, "… so nobody knows");
        fake_stop(&f);

        fake_up(&f, "Running");
        (void) CH.quit(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "quit");
        is_int(f.heard.last_reply, 0, "… is answered");
        f.call = "vmm.shutdown";
        f.answer = NULL;
        f.events = ENDED;
        (void) CH.quit(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_SHUTDOWN]), "… or says that it ends");
        shutdown(f.peer, SHUT_RDWR);
        ok(wait_for(&f, f.heard.n_replies == 2), "… and hangs up");
        is_int(f.heard.last_reply, 0, "… which is as good");
        fake_stop(&f);
}

static void test_boot(void) {
        static const char *const body = "[\"Error from API\",\"The VM could not boot\",\"Cannot open kernel file\",\"No such \x1b[31mfile\"]";
        _cleanup_free_ char *refusal = http(500, body);
        Fake f;

        fake_start(&f, "Created");
        f.call = "vm.boot";
        f.answer = NO_CONTENT;
        f.events = EVENT("vm", "booting", "null") BOOTED;
        is_int(CH.boot(f.heard.vmm, "{\"a\": 1}", on_reply, &f.heard), 0, "boot at once");
        ok(wait_for(&f, f.heard.n_replies), "… is answered");
        is_int(f.heard.last_reply, 0, "… well");
        is_int(f.heard.n[VMM_EVENT_CONNECTED], 1, "… after it was connected");
        is_int(f.heard.n[VMM_EVENT_RUNNING], 1, "… and runs");
        is_str(f.log, "vm.info vm.create vm.boot ", "… with nothing between");
        fake_stop(&f);

        /* Its word that it has booted is not yet the end of the boot. */
        fake_up(&f, "Created");
        f.call = "vm.boot";
        f.events = BOOTED;
        (void) CH.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_RUNNING]), "it says that it has booted");
        is_int(f.heard.n_replies, 0, "… and has not answered");
        shutdown(f.peer, SHUT_RDWR);
        ok(wait_for(&f, f.heard.n_replies), "… then it is gone");
        is_int(f.heard.last_reply, -EPIPE, "… and so is the boot");
        fake_stop(&f);

        for (unsigned i = 0; i < 2; i++) {
                fake_up(&f, "Created");
                f.call = i == 0 ? "vm.create" : "vm.boot";
                f.answer = refusal;
                (void) CH.boot(f.heard.vmm, "{}", on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "%s fails", f.call);
                is_int(f.heard.last_reply, -EREMOTEIO, "… and the boot with it");
                is_str(f.heard.last_message, "Error from API: The VM could not boot: Cannot open kernel file: No such \\x1b[31mfile", "… in its words");
                is_str(f.log, i == 0 ? "vm.create " : "vm.create vm.boot ", "… and nothing is tried again");
                fake_stop(&f);
        }

        /* It obeys and does not boot. */
        fake_up(&f, "Created");
        (void) CH.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "a boot without effect");
        is_int(f.heard.last_reply, -EIO, "… has failed");
        fake_stop(&f);

        fake_start(&f, "Created");
        (void) CH.boot(f.heard.vmm, "{}", on_reply, &f.heard);
        heard_free(&f.heard);
        is_int(f.heard.last_reply, -ECANCELED, "freed with a boot put off");
        is_int(f.heard.n_replies, 1, "… which is told once");
        fake_stop(&f);
}

static void test_words(void) {
        static const struct {
                unsigned status;
                const char *body, *words;
        } table[] = {
                { 500, "[\"a\",\"b\"]", "a: b" },
                { 400, "{ \"error\": \"Invalid request.\nAll previous unanswered requests will be dropped.\" }",
                  "{ \"error\": \"Invalid request.\nAll previous unanswered requests will be dropped.\" }" },
                { 500, "VmPause(\x1b[31m)", "VmPause(\\x1b[31m)" },
                { 500, "", "" },
                { 418, "[]", "[]" },
                { 302, "elsewhere", "elsewhere" },
        };
        static char lots[20001];
        _cleanup_free_ char *long_answer = NULL;
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_free_ char *text = http(table[i].status, table[i].body);

                fake_up(&f, "Running");
                f.call = "vm.power-button";
                f.answer = text;
                (void) CH.power_button(f.heard.vmm, on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "%u %s", table[i].status, shown(table[i].body));
                is_int(f.heard.last_reply, -EREMOTEIO, "… is a refusal");
                is_str(f.heard.last_message, table[i].words, "… in its words");
                is_int(f.heard.n[VMM_EVENT_POWER_BUTTON], 0, "… and no button was pressed");
                fake_stop(&f);
        }

        memset(lots, 'w', sizeof lots - 1);
        long_answer = http(500, lots);
        fake_up(&f, "Running");
        f.call = "vm.power-button";
        f.answer = long_answer;
        (void) CH.power_button(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies) && strlen(f.heard.last_message) > 500 && strlen(f.heard.last_message) < 2000, "many words are cut short: %zu",
           strlen(f.heard.last_message));
        fake_stop(&f);
}

/* As many as are parsed, of which few are told */
static void test_many_words(void) {
        _cleanup_free_ char *many = NULL, *words = NULL, *none = http_vmm_words("[\"\"]", 4);
        size_t size = 0;
        FILE *file = open_memstream(&many, &size);

        fputs("[\"first\"", file);
        for (unsigned i = 0; i < 60000; i++)
                fputs(",\"\"", file);
        fputs(",{},\"last\"]", file);
        fclose(file);
        words = http_vmm_words(many, size);
        ok(words && startswith(words, "first") && strlen(words) < 2000, "60,000 words");
        is_str(strempty(none), "[\"\"]", "an empty word says less than its quotes");
}

static void test_events(void) {
        static const struct {
                const char *text;
                unsigned paused, running, reset, panicked, info;
                VMMState state;
        } table[] = {
                { PAUSED, 1, 0, 0, 0, 0, VMM_STATE_PAUSED },
                { PAUSED RESUMED PAUSED, 2, 1, 0, 0, 0, VMM_STATE_PAUSED },
                { PAUSED PAUSED, 1, 0, 0, 0, 0, VMM_STATE_PAUSED },
                { PAUSING EVENT("vm", "resuming", "null") EVENT("vm", "rebooting", "null") EVENT("vm", "booting", "null"), 0, 0, 0, 0, 0, 0 },
                { REBOOTED REBOOTED, 0, 0, 2, 0, 0, VMM_STATE_RUNNING },
                { PANIC PANIC, 0, 0, 0, 1, 0, VMM_STATE_FAILED },
                { PANIC RESUMED PAUSED, 0, 0, 0, 1, 0, VMM_STATE_FAILED },
                { EVENT("guest", "panic", "{\"event\": \"crash_loaded\"}") EVENT("guest", "panic", "{\"event\": \"unknown_event\"}")
                  EVENT("guest", "panic", "null") EVENT("guest", "panic", "[1]"), 0, 0, 0, 0, 0, 0 },
                { EVENT("virtio-device", "paused", "null") EVENT("vm", "PAUSED", "null") EVENT("", "", "7"), 0, 0, 0, 0, 0, 0 },
                { "{\"source\": [\"vm\"], \"event\": {\"paused\": 1}}\n\n{}\n\n", 0, 0, 0, 0, 0, 0 },
                { "garbage\n\n" PAUSED, 1, 1, 0, 0, 1, VMM_STATE_RUNNING }, /* …, as the answer says in the end */
                { "\n\n\n\n\n\n\n\n", 0, 0, 0, 0, 1, 0 },
                { "{\"source\": \"vm\", \"event\": \"pau\n\n", 0, 0, 0, 0, 1, 0 },
                { "\xff\xfe{[[[[[[\n\n" REBOOTED, 0, 0, 1, 0, 1, VMM_STATE_RUNNING },
                { "[\"vm\", \"paused\"]\n\n7\n\n", 0, 0, 0, 0, 1, 0 },
        };
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                unsigned asked = 0;

                fake_up(&f, "Running");
                tell(&f, table[i].text);
                (void) wait_for(&f, f.heard.n[VMM_EVENT_PAUSED] >= table[i].paused && f.heard.n[VMM_EVENT_RUNNING] >= table[i].running &&
                                f.heard.n[VMM_EVENT_GUEST_RESET] >= table[i].reset && f.heard.n[VMM_EVENT_GUEST_PANICKED] >= table[i].panicked &&
                                (!table[i].info || strstr(f.log, "vm.info")));
                settle(&f);
                for (const char *p = f.log; (p = strstr(p, "vm.info")); p++)
                        asked++;
                is_int(f.heard.n[VMM_EVENT_PAUSED], table[i].paused, "event %zu: paused", i);
                is_int(f.heard.n[VMM_EVENT_RUNNING], table[i].running, "… runs");
                is_int(f.heard.n[VMM_EVENT_GUEST_RESET], table[i].reset, "… reset");
                is_int(f.heard.n[VMM_EVENT_GUEST_PANICKED], table[i].panicked, "… panic");
                ok(table[i].info ? asked > 0 : asked == 0, "… and asked for the state where something was lost");
                if (table[i].state)
                        is_int(f.heard.state, table[i].state, "… its state");
                fake_stop(&f);
        }
}

/* What was told while nobody was there must not be taken for news of the state. */
static void test_old_events(void) {
        Fake f;

        (void) unlink(fifo);
        fake_start(&f, "Running");
        tell(&f, BOOTED PAUSED RESUMED REBOOTED PAUSED RESUMED);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]), "connected with news that are old");
        is_int(f.heard.state, VMM_STATE_RUNNING, "… the state is what the answer says");
        is_int(f.heard.n[VMM_EVENT_PAUSED] + f.heard.n[VMM_EVENT_RUNNING], 0, "… and they are no events");
        is_int(f.heard.n[VMM_EVENT_GUEST_RESET], 1, "… but the reset");
        fake_stop(&f);

        fake_start(&f, "Running");
        tell(&f, PANIC);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_GUEST_PANICKED]), "a panic is news however old");
        is_int(f.heard.n[VMM_EVENT_CONNECTED], 1, "… told after the connection");
        is_int(f.heard.state, VMM_STATE_FAILED, "… as a failure");
        fake_stop(&f);

        fake_start(&f, "Running");
        tell(&f, ENDED);
        f.call = "vm.info";
        (void) wait_for(&f, strstr(f.log, "vm.info"));
        ok(wait_for(&f, f.heard.n[VMM_EVENT_SHUTDOWN]), "its end is told");
        shutdown(f.peer, SHUT_RDWR);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "… and then it is gone");
        is_int(f.heard.error, -EPIPE, "… as any end");
        fake_stop(&f);
}

/* Whoever listens has other things to do as well. */
static void test_floods(void) {
        static char chunk[8192];
        size_t sum = 0;
        Fake f;

        memset(chunk, 'x', sizeof chunk - 1);
        fake_up(&f, "Running");
        while (sum < BIG) {
                ssize_t n = write(f.fifo, chunk, sizeof chunk - 1);

                sum += n > 0 ? (size_t) n : 0;
                turn(&f);
        }
        for (uint64_t end = now_usec() + DEADLINE_USEC; !f.heard.n[VMM_EVENT_PAUSED] && now_usec() < end; turn(&f))
                tell(&f, "\n\n" PAUSED); /* until it fits in */
        ok(f.heard.n[VMM_EVENT_PAUSED], "8 MiB without an end, then an event");
        settle(&f);
        is_int(f.heard.last_reply, 0, "… and calls are answered");
        fake_stop(&f);

        fake_up(&f, "Running");
        for (unsigned i = 0; i < 20000; i++) {
                tell(&f, i % 2 ? RESUMED : PAUSED);
                if (i % 50 == 0)
                        turn(&f);
        }
        settle(&f);
        is_int(f.heard.last_reply, 0, "20,000 events, and calls are answered");
        fake_stop(&f);
}

static void test_down(void) {
        _cleanup_free_ char *refusal = http(500, "[\"Error from API\",\"The VM could not reboot\",\"Cannot open kernel file\"]");
        Fake f;

        fake_up(&f, "Running");
        f.state = "Created";
        tell(&f, EVENT("vm", "shutdown", "null"));
        ok(wait_for(&f, strstr(f.log, "vmm.shutdown")), "without its VM it has no more to do");
        is_int(f.heard.n[VMM_EVENT_GUEST_SHUTDOWN], 1, "… and the guest is down");
        fake_stop(&f);

        fake_up(&f, "Running");
        tell(&f, EVENT("vm", "shutdown", "null") EVENT("vm", "deleted", "null") EVENT("vm", "booting", "null") BOOTED);
        ok(wait_for(&f, strstr(f.log, "vm.info")), "one that was shut down and booted again");
        settle(&f);
        is_int(f.heard.n[VMM_EVENT_GUEST_SHUTDOWN] + f.heard.n[VMM_EVENT_FAILED], 0, "… runs");
        fake_stop(&f);

        fake_up(&f, "Running");
        f.state = "Created";
        f.call = "vm.reboot";
        f.answer = refusal;
        (void) CH.reset(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_FAILED]), "a reset that leaves no VM is a failure");
        is_int(f.heard.last_reply, -EREMOTEIO, "… which is told");
        is_int(f.heard.state, VMM_STATE_FAILED, "… for good");
        fake_stop(&f);

        fake_up(&f, "Running");
        f.call = "vm.reboot";
        f.answer = NO_CONTENT;
        f.events = EVENT("vm", "rebooting", "null") REBOOTED REBOOTED;
        (void) CH.reset(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "a reset by us and one by the guest");
        is_int(f.heard.n[VMM_EVENT_GUEST_RESET], 1, "… are told apart");
        tell(&f, REBOOTED);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_GUEST_RESET] == 2), "… and what comes later is the guest's");
        f.events = REBOOTED;
        (void) CH.reset(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 2), "… and then one by us again");
        is_int(f.heard.n[VMM_EVENT_GUEST_RESET], 2, "… is ours");
        fake_stop(&f);
}

static void test_counters(void) {
        static const char *const bodies[] = {
                "{}", "[]", "{\"disk-a\":7,\"disk-../x\":{\"read_bytes\":1},\"net-a\":{\"read_bytes\":1},\"disk-\":{},\"__rng\":{}}",
        };
        unsigned taken = 0;
        char *big = NULL;
        size_t size = 0;
        FILE *file;
        Fake f;

        fake_up(&f, "Running");
        f.call = "vm.counters";
        for (size_t i = 0; i < ELEMENTSOF(bodies); i++) {
                _cleanup_free_ char *text = http(200, bodies[i]);

                f.answer = text;
                f.heard.n_replies = 0;
                (void) CH.counters(f.heard.vmm, on_counters, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "counters %s", bodies[i]);
                is_int(f.heard.last_reply, 0, "… are answered");
                is_int(f.heard.n_counters, 0, "… with none");
        }

        for (unsigned i = 0; i < 2; i++) {
                _cleanup_free_ char *text = i == 0 ? http(200, "{\"disk-a\"") : http(500, "[\"no\"]");

                f.answer = text;
                f.heard.n_replies = 0;
                (void) CH.counters(f.heard.vmm, on_counters, &f.heard);
                ok(wait_for(&f, f.heard.n_replies), "counters that are none");
                is_int(f.heard.last_reply, i == 0 ? -EBADMSG : -EREMOTEIO, "… are an error");
        }

        file = open_memstream(&big, &size);
        fputs("{\"disk-a\":{\"read_bytes\":-1,\"write_bytes\":\"x\",\"read_ops\":7,\"write_ops\":18446744073709551615}", file);
        for (unsigned i = 0; i < 1000; i++)
                fprintf(file, ",\"disk-d%u\":{\"read_bytes\":%u,\"write_bytes\":2,\"read_ops\":3,\"write_ops\":4}", i, i);
        fputs("}", file);
        fclose(file);
        f.answer = http(200, big);
        f.heard.n_replies = 0;
        (void) CH.counters(f.heard.vmm, on_counters, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "a thousand disks");
        ok(f.heard.n_counters > 100 && f.heard.n_counters <= 256, "… are more than are taken: %zu", f.heard.n_counters);
        ok(streq(f.heard.counters[0].name, "a.ReadOps") && f.heard.counters[0].value == 7, "… what makes no sense is passed over");
        free((char *) f.answer);
        f.answer = NULL;
        free(big);
        fake_stop(&f);

        /* Anybody may ask for them. */
        fake_up(&f, "Running");
        f.call = "vm.counters";
        for (unsigned i = 0; i < 1000; i++)
                taken += CH.counters(f.heard.vmm, on_counters, &f.heard) == 0;
        ok(taken > 0 && taken < 20, "of a thousand that want counters at once some are asked for: %u", taken);
        is_int(CH.power_button(f.heard.vmm, on_reply, &f.heard), 0, "… and other calls are taken");
        fake_stop(&f);
        is_int(f.heard.n_replies, taken + 1, "… and all are answered in the end");
}

static void test_freeing(void) {
        static const VMMEvent freeing[] = {
                VMM_EVENT_CONNECTED, VMM_EVENT_PAUSED, VMM_EVENT_GUEST_RESET, VMM_EVENT_GUEST_PANICKED, VMM_EVENT_SHUTDOWN,
                VMM_EVENT_DISCONNECTED, VMM_EVENT_POWER_BUTTON, VMM_EVENT_GUEST_SHUTDOWN,
        };
        _cleanup_free_ char *bad = http(200, "?");
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(freeing); i++) {
                fake_start(&f, "Running");
                f.heard.free_on = freeing[i];
                if (freeing[i] == VMM_EVENT_DISCONNECTED) {
                        f.call = "vm.info";
                        f.answer = bad;
                } else {
                        f.call = "vm.pause";
                        f.answer = NO_CONTENT;
                        f.events = freeing[i] == VMM_EVENT_GUEST_SHUTDOWN ? EVENT("vm", "shutdown", "null") : PAUSED REBOOTED PANIC ENDED;
                        (void) wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]);
                        if (freeing[i] == VMM_EVENT_GUEST_SHUTDOWN)
                                f.state = "Created";
                }
                if (f.heard.vmm) {
                        (void) CH.power_button(f.heard.vmm, on_reply, &f.heard);
                        (void) CH.pause(f.heard.vmm, on_reply, &f.heard);
                        (void) CH.counters(f.heard.vmm, on_counters, &f.heard);
                }
                ok(wait_for(&f, !f.heard.vmm), "freed in event %d", freeing[i]);
                is_int(f.heard.n_replies, f.heard.n[VMM_EVENT_CONNECTED] && freeing[i] == VMM_EVENT_CONNECTED ? 0 : 3, "… all calls are answered");
                is_int(f.heard.n_late, 0, "… before it is freed");
                turn(&f);
                fake_stop(&f);
        }

        for (unsigned i = 0; i < 6; i++) {
                int (*const calls[])(VMM *, vmm_reply_cb, void *) = { CH.pause, CH.power_button, CH.reset, CH.quit };

                fake_up(&f, "Paused");
                f.heard.free_on_reply = true;
                f.answer = bad;
                f.call = i == 0 ? "vm.info" : NULL;
                (void) (i == 4 ? CH.counters(f.heard.vmm, on_counters, &f.heard) : i == 5 ? CH.boot(f.heard.vmm, "{}", on_reply, &f.heard) :
                        calls[i](f.heard.vmm, on_reply, &f.heard));
                (void) CH.resume(f.heard.vmm, on_reply, &f.heard);
                ok(wait_for(&f, !f.heard.vmm), "freed in reply %u", i);
                is_int(f.heard.n_replies, 2, "… the other is answered");
                is_int(f.heard.last_reply, -ECANCELED, "… with ECANCELED");
                is_int(f.heard.n_late, 0, "… before it is freed");
                turn(&f);
                fake_stop(&f);
        }

        fake_start(&f, "Running");
        f.heard.free_on_reply = true;
        f.call = "vm.info";
        f.answer = bad;
        for (unsigned i = 0; i < 3; i++)
                (void) CH.power_button(f.heard.vmm, on_reply, &f.heard);
        (void) CH.counters(f.heard.vmm, on_counters, &f.heard);
        ok(wait_for(&f, !f.heard.vmm), "freed in the first of four replies, given up");
        is_int(f.heard.n_replies, 4, "… all are answered");
        is_int(f.heard.last_reply, -ECANCELED, "… the others with ECANCELED");
        is_int(f.heard.n_late, 0, "… before it is freed");
        is_int(f.heard.n[VMM_EVENT_DISCONNECTED], 0, "… and nothing is told afterwards");
        fake_stop(&f);
}

int main(void) {
        _cleanup_free_ char *remove = NULL;

        signal(SIGPIPE, SIG_IGN);
        if (!mkdtemp(directory))
                return 1;
        snprintf(sock, sizeof sock, "%s/api", directory);
        snprintf(fifo, sizeof fifo, "%s/" VMM_EVENTS, directory);

        test_channels();
        test_connect();
        test_bad_servers();
        test_idempotence();
        test_idempotence_failed();
        test_ending();
        test_success();
        test_boot();
        test_words();
        test_many_words();
        test_events();
        test_old_events();
        test_floods();
        test_down();
        test_counters();
        test_freeing();

        remove = strjoinf("rm -r '%s'", directory);
        if (!remove || system(remove) != 0)
                printf("# %s stays\n", directory);
        return done_testing();
}
