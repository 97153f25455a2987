/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>

#include "basic/fd-util.h"
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "vmm/vmm.h"

#include "heard.h"
#include "tap.h"

/* The operations against a played QEMU: what the real one does seldom, or never. */

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define DEADLINE_USEC (10 * USEC_PER_SEC)

typedef struct Fake {
        Heard heard;
        sd_event *event;
        int listener, peer;
        char input[16384];
        size_t n_input;
        char log[1024];                 /* names of the commands, in their order */
        const char *status, *running;   /* what query-status says; the second with its key */
        const char *fail;               /* this command fails */
        const char *mute;               /* this one is not answered */
        const char *before, *before_event; /* before the reply to this command comes that */
} Fake;

static char directory[] = "/tmp/test-qemu-ops.XXXXXX", path[64];

static void say(Fake *f, const char *s) {
        (void) send(f->peer, s, strlen(s), MSG_NOSIGNAL);
}

static void answer(Fake *f, json_object *o) {
        const char *name = json_get_string(o, "execute", "");
        _cleanup_free_ char *reply = NULL;
        int id = (int) json_get_int(o, "id", 0);

        snprintf(f->log + strlen(f->log), sizeof f->log - strlen(f->log), "%s ", name);
        if (streq_ptr(f->before, name))
                say(f, f->before_event);
        if (streq_ptr(f->mute, name))
                return;
        if (streq_ptr(f->fail, name))
                reply = strjoinf("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no %s\"}, \"id\": %d}\r\n", name, id);
        else if (streq(name, "query-status"))
                reply = strjoinf("{\"return\": {\"status\": \"%s\"%s}, \"id\": %d}\r\n", f->status, strempty(f->running), id);
        else if (streq(name, "query-blockstats"))
                reply = strjoinf("{\"return\": [1, {}, {\"node-name\": \"disk-../x\", \"stats\": {\"rd_bytes\": 1}}, {\"node-name\": \"firmware\"}, "
                                 "{\"node-name\": \"disk-a\", \"stats\": {\"rd_bytes\": -1, \"wr_bytes\": \"x\", \"rd_operations\": 7}}], \"id\": %d}\r\n", id);
        else
                reply = strjoinf("{\"return\": {}, \"id\": %d}\r\n", id);
        say(f, reply);
}

static void turn(Fake *f) {
        char *end;
        ssize_t n;

        (void) sd_event_run(f->event, USEC_PER_MSEC);
        n = recv(f->peer, f->input + f->n_input, sizeof f->input - f->n_input, MSG_DONTWAIT);
        if (n > 0)
                f->n_input += (size_t) n;
        while ((end = memchr(f->input, '\n', f->n_input))) {
                _cleanup_json_ json_object *o = NULL;

                *end = 0;
                o = json_tokener_parse(f->input);
                f->n_input -= (size_t) (end + 1 - f->input);
                answer(f, o);
                memmove(f->input, end + 1, f->n_input);
        }
}

#define wait_for(f, condition)                                          \
        ({                                                              \
                uint64_t _end = now_usec() + DEADLINE_USEC;             \
                while (!(condition) && now_usec() < _end)               \
                        turn(f);                                        \
                (condition);                                            \
        })

static void fake_start(Fake *f, const char *status) {
        struct pollfd p;

        *f = (Fake) { .listener = unix_listen(path, SOCK_STREAM), .status = status, .heard.free_on = _VMM_EVENT_MAX };
        p = (struct pollfd) { .fd = f->listener, .events = POLLIN };
        if (f->listener < 0 || sd_event_new(&f->event) < 0 || qemu_ops.connect(f->event, directory, on_event, &f->heard, &f->heard.vmm) < 0 ||
            poll(&p, 1, 1000) != 1)
                abort();
        f->peer = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC|SOCK_NONBLOCK);
        say(f, GREETING);
}

static void fake_up(Fake *f, const char *status) {
        fake_start(f, status);
        if (!wait_for(f, f->heard.n[VMM_EVENT_CONNECTED]))
                abort();
        f->log[0] = 0;
}

static void fake_stop(Fake *f) {
        heard_free(&f->heard);
        safe_close(f->peer);
        safe_close(f->listener);
        sd_event_unref(f->event);
}

static void test_connect(void) {
        static const struct {
                const char *name;
                VMMState state;
        } table[] = {
                { "prelaunch", VMM_STATE_NOT_STARTED }, { "running", VMM_STATE_RUNNING }, { "paused", VMM_STATE_PAUSED },
                { "io-error", VMM_STATE_IO_ERROR }, { "shutdown", VMM_STATE_SHUTDOWN }, { "internal-error", VMM_STATE_FAILED },
                { "guest-panicked", VMM_STATE_FAILED }, { "suspended", VMM_STATE_PAUSED }, { "watchdog", VMM_STATE_PAUSED },
                { "debug", VMM_STATE_PAUSED }, { "inmigrate", VMM_STATE_PAUSED }, { "postmigrate", VMM_STATE_PAUSED },
                { "finish-migrate", VMM_STATE_PAUSED }, { "save-vm", VMM_STATE_PAUSED }, { "restore-vm", VMM_STATE_PAUSED },
                { "colo", VMM_STATE_PAUSED }, { "preconfig", VMM_STATE_NOT_STARTED }, { "dreaming", VMM_STATE_UNKNOWN },
                { "", VMM_STATE_UNKNOWN },
        };
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                fake_start(&f, table[i].name);
                ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]), "connected");
                is_int(f.heard.state, table[i].state, "… %s", table[i].name);
                is_str(f.log, "qmp_capabilities set-action query-status ", "… after it was set right");
                fake_stop(&f);
        }

        fake_start(&f, "running");
        f.fail = "query-status";
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "no state, no connection");
        is_int(f.heard.error, -EBADMSG, "… for a bad answer");
        is_int(qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard), -ENOTCONN, "… and no call after it");
        is_int(qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard), -ENOTCONN, "… of any kind");
        is_int(qemu_ops.counters(f.heard.vmm, on_counters, &f.heard), -ENOTCONN, "… at all");
        qemu_ops.drain(f.heard.vmm);
        is_int(f.heard.n[VMM_EVENT_CONNECTED], 0, "… and it never was one");
        fake_stop(&f);

        fake_start(&f, "running");
        f.fail = "set-action";
        ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED]), "an older QEMU without set-action is one");
        fake_stop(&f);

        fake_start(&f, "running");
        f.before = "query-status";
        f.before_event = "{\"event\": \"STOP\"}\n{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n";
        ok(wait_for(&f, f.heard.n[VMM_EVENT_CONNECTED] || f.heard.n[VMM_EVENT_GUEST_SHUTDOWN]), "a shutdown before the state is known");
        is_int(f.heard.n[VMM_EVENT_GUEST_SHUTDOWN], 1, "… is told");
        fake_stop(&f);

        for (VMMEvent e = VMM_EVENT_CONNECTED; e <= VMM_EVENT_DISCONNECTED; e += VMM_EVENT_DISCONNECTED) {
                fake_start(&f, "running");
                f.heard.free_on = e;
                if (e == VMM_EVENT_DISCONNECTED)
                        say(&f, "garbage\n");
                ok(wait_for(&f, !f.heard.vmm), "freed in event %d", e);
                fake_stop(&f);
        }
}

/* Asked for before QEMU has said a word */
static void test_early_boot(void) {
        Fake f;

        fake_start(&f, "prelaunch");
        f.before = "cont";
        f.before_event = "{\"event\": \"RESUME\"}\n";
        is_int(qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard), 0, "boot at once");
        is_int(qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard), -EBUSY, "… not twice");
        ok(wait_for(&f, f.heard.n_replies == 1), "… is answered");
        is_int(f.heard.last_reply, 0, "… well");
        is_int(f.heard.n[VMM_EVENT_CONNECTED], 1, "… after it was connected");
        is_int(f.heard.n[VMM_EVENT_RUNNING], 1, "… and runs");
        is_str(f.log, "qmp_capabilities set-action query-status cont ", "… with nothing between");
        fake_stop(&f);

        /* It obeys and is silent: the state says that the guest does not run. */
        fake_start(&f, "prelaunch");
        (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 1), "a boot without effect");
        is_int(f.heard.last_reply, -EIO, "… has failed");
        fake_stop(&f);

        for (unsigned i = 0; i < 3; i++) {
                static const char *const commands[] = { "qmp_capabilities", "query-status", "cont" };

                fake_start(&f, "prelaunch");
                f.fail = commands[i];
                (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
                ok(wait_for(&f, f.heard.n_replies == 1), "%s fails", commands[i]);
                ok(f.heard.last_reply < 0, "… and so does the boot");
                fake_stop(&f);
                is_int(f.heard.n_replies, 1, "… once");
        }

        fake_start(&f, "prelaunch");
        f.peer = safe_close(f.peer);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "a connection that has ended");
        is_int(qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard), -ENOTCONN, "… boots nothing");
        fake_stop(&f);

        fake_start(&f, "prelaunch");
        (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
        heard_free(&f.heard);
        is_int(f.heard.last_reply, -ECANCELED, "freed with a boot put off");
        is_int(f.heard.n_replies, 1, "… which is told once");
        fake_stop(&f);
}

/* What stands, and nobody has paused it */
static void test_why(void) {
        Fake f;

        fake_up(&f, "running");
        ok(!qemu_ops.why(f.heard.vmm), "one that runs has no reason to stand");
        f.status = "suspended";
        say(&f, "{\"event\": \"SUSPEND\"}\n");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_PAUSED]), "a guest that falls asleep stands");
        ok(strstr(strempty(qemu_ops.why(f.heard.vmm)), "sleeps"), "… and why is told");
        f.log[0] = 0;
        f.before = "system_wakeup";
        f.before_event = "{\"event\": \"WAKEUP\"}\n";
        f.status = "running";
        (void) qemu_ops.resume(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "it is woken");
        is_int(f.heard.last_reply, 0, "… and runs");
        ok(strstr(f.log, "system_wakeup ") && !strstr(f.log, "cont "), "… by the command for that");
        is_int(f.heard.n[VMM_EVENT_RUNNING], 1, "… which is told");
        ok(!qemu_ops.why(f.heard.vmm), "… and why it stood is no more");
        f.status = "suspended";
        say(&f, "{\"event\": \"SUSPEND\"}\n");
        (void) wait_for(&f, f.heard.n[VMM_EVENT_PAUSED] == 2);
        f.status = "running";
        say(&f, "{\"event\": \"WAKEUP\"}\n");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_RUNNING] == 2), "a guest that wakes by itself runs");
        f.status = "paused";
        say(&f, "{\"event\": \"STOP\"}\n");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_PAUSED] == 3) && !qemu_ops.why(f.heard.vmm), "a pause is only a pause");
        fake_stop(&f);

        fake_up(&f, "running");
        f.status = "dreaming";
        f.running = ", \"running\": false";
        say(&f, "{\"event\": \"STOP\"}\n");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_PAUSED]), "of a status that is not known yet QEMU says whether the guest runs");
        ok(qemu_ops.why(f.heard.vmm), "… and it is told that no more is known");
        f.running = ", \"running\": true";
        say(&f, "{\"event\": \"STOP\"}\n");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_RUNNING]), "… or that it does");
        fake_stop(&f);
}

static void test_stops(void) {
        static const struct {
                const char *status;
                VMMEvent event;
        } table[] = {
                { "paused", VMM_EVENT_PAUSED }, { "io-error", VMM_EVENT_IO_ERROR }, { "internal-error", VMM_EVENT_FAILED },
                { "guest-panicked", VMM_EVENT_GUEST_PANICKED },
        };
        Fake f;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                fake_up(&f, "running");
                f.status = table[i].status;
                say(&f, "{\"event\": \"STOP\"}\n{\"event\": \"STOP\"}\n");
                ok(wait_for(&f, f.heard.n[table[i].event]), "STOP and %s", f.status);
                (void) wait_for(&f, strstr(f.log, "query-status query-status "));
                turn(&f);
                is_int(f.heard.n[table[i].event], 1, "… once");
                fake_stop(&f);
        }

        fake_up(&f, "io-error");
        f.before = "cont";
        f.before_event = "{\"event\": \"RESUME\"}\n";
        f.status = "running";
        (void) qemu_ops.resume(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "resume after a disk error");
        is_int(f.heard.last_reply, 0, "… works");
        is_int(f.heard.n[VMM_EVENT_RUNNING], 1, "… with its event");
        fake_stop(&f);
}

static void test_calls(void) {
        Fake f;

        fake_up(&f, "prelaunch");
        (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies), "`cont` was obeyed, but QEMU does not run");
        is_int(f.heard.last_reply, -EIO, "… is no success");
        f.fail = "cont";
        (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 2), "`cont` is refused");
        is_int(f.heard.last_reply, -EREMOTEIO, "… is no success");
        is_str(f.heard.last_message, "no cont", "… and says why");
        f.fail = "query-status";
        (void) qemu_ops.pause(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 3), "the state is refused");
        is_int(f.heard.last_reply, -EREMOTEIO, "… is no success");
        f.fail = NULL;

        (void) qemu_ops.counters(f.heard.vmm, on_counters, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 4), "counters that make no sense");
        is_int(f.heard.n_counters, 1, "… are passed over");
        is_str(f.heard.counters[0].name, "a.ReadOps", "… but one");

        f.mute = "quit";
        (void) qemu_ops.quit(f.heard.vmm, on_reply, &f.heard);
        (void) qemu_ops.counters(f.heard.vmm, on_counters, &f.heard);
        ok(wait_for(&f, strstr(f.log, "quit")), "quit");
        say(&f, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": false, \"reason\": \"host-qmp-quit\"}}\n");
        shutdown(f.peer, SHUT_RDWR);
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "… ends without an answer");
        is_int(f.heard.n_replies, 6, "… both calls are answered");
        is_int(f.heard.n[VMM_EVENT_SHUTDOWN], 1, "… and the reason told");
        fake_stop(&f);
}

static void test_given_up(void) {
        Fake f;

        fake_up(&f, "running");
        f.mute = "stop";
        (void) qemu_ops.pause(f.heard.vmm, on_reply, &f.heard);
        (void) qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard);
        (void) qemu_ops.counters(f.heard.vmm, on_counters, &f.heard);
        heard_free(&f.heard);
        is_int(f.heard.n_replies, 3, "freeing answers all calls");
        is_int(f.heard.last_reply, -ECANCELED, "… with ECANCELED");
        fake_stop(&f);

        /* QEMU does not say what it does, so the connection is given up, and who waits for another call frees all. */
        fake_start(&f, "prelaunch");
        f.fail = "query-status";
        f.mute = "cont";
        f.heard.free_on_reply = true;
        (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
        ok(wait_for(&f, !f.heard.vmm), "freed in the reply to a call that is given up");
        is_int(f.heard.n_replies, 1, "… which comes once");
        is_int(f.heard.last_reply, -EPIPE, "… with EPIPE, for it was not freed yet");
        is_int(f.heard.n[VMM_EVENT_DISCONNECTED], 0, "… and nothing after it");
        fake_stop(&f);

        fake_start(&f, "running");
        f.fail = "query-status";
        (void) wait_for(&f, strstr(f.log, "qmp_capabilities"));
        is_int(qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard), 0, "a reboot before the first answer");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_DISCONNECTED]), "… which is a bad one");
        is_int(f.heard.n_replies, 1, "… ends with it");
        is_int(f.heard.last_reply, -EPIPE, "… as one that has lost its connection");
        fake_stop(&f);

        for (unsigned i = 0; i < 2; i++) {
                fake_start(&f, "prelaunch");
                f.fail = "query-status";
                f.mute = "cont";
                f.heard.free_on_reply = true;
                (void) qemu_ops.boot(f.heard.vmm, NULL, on_reply, &f.heard);
                (void) wait_for(&f, strstr(f.log, "query-status") || f.heard.n_replies);
                if (f.heard.vmm && i == 1)
                        shutdown(f.peer, SHUT_RDWR);
                for (unsigned k = 0; f.heard.vmm && k < 3; k++)
                        (void) qemu_ops.power_button(f.heard.vmm, on_reply, &f.heard);
                (void) wait_for(&f, !f.heard.vmm);
                is_int(f.heard.n_replies, 4, "freed in the first of four replies, %s", i ? "hung up" : "given up");
                is_int(f.heard.last_reply, -ECANCELED, "… the others have ECANCELED");
                is_int(f.heard.n_late, 0, "… before it is freed");
                fake_stop(&f);
        }
}

static void test_bounds(void) {
        unsigned n = 0;
        Fake f;

        fake_up(&f, "running");
        f.mute = "query-blockstats";
        for (unsigned i = 0; i < 1000; i++)
                n += qemu_ops.counters(f.heard.vmm, on_counters, &f.heard) == 0;
        ok(n > 0 && n < 20, "of a thousand that want counters at once some are asked for: %u", n);
        is_int(qemu_ops.power_button(f.heard.vmm, on_reply, &f.heard), 0, "… and other calls are made");
        ok(wait_for(&f, f.heard.n_replies == 1), "… and answered");
        fake_stop(&f);
        is_int(f.heard.n_replies, n + 1, "… and so are they in the end");

        for (unsigned i = 0; i < 4; i++) {
                fake_up(&f, "paused");
                f.heard.free_on_reply = true;
                (void) (i == 3 ? qemu_ops.counters(f.heard.vmm, on_counters, &f.heard) :
                        (i == 0 ? qemu_ops.pause : i == 1 ? qemu_ops.power_button : qemu_ops.reboot)(f.heard.vmm, on_reply, &f.heard));
                f.fail = i == 2 ? "system_powerdown" : NULL;
                ok(wait_for(&f, !f.heard.vmm), "freed in reply %u", i);
                is_int(f.heard.n_replies, 1, "… which comes once");
                fake_stop(&f);
        }
}

static void test_reboot(void) {
        static const char *const steps[] = { "set-action", "system_powerdown", "system_reset", "cont" };
        Fake f;

        for (size_t i = 0; i <= ELEMENTSOF(steps); i++) {
                fake_up(&f, "running");
                f.fail = i < ELEMENTSOF(steps) ? steps[i] : NULL;
                (void) qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard);
                (void) wait_for(&f, f.heard.n_replies || strstr(f.log, "system_powerdown "));
                say(&f, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n{\"event\": \"STOP\"}\n");
                (void) wait_for(&f, f.heard.n_replies || strstr(f.log, "system_reset "));
                say(&f, "{\"event\": \"RESET\", \"data\": {\"guest\": false, \"reason\": \"host-qmp-system-reset\"}}\n");
                f.before = "cont";
                f.before_event = "{\"event\": \"RESUME\"}\n";
                ok(wait_for(&f, f.heard.n_replies == 1), "reboot, %s fails", f.fail ?: "nothing");
                is_int(f.heard.last_reply, f.fail ? -EREMOTEIO : 0, "… %s", f.heard.last_message);
                fake_stop(&f);
        }

        fake_up(&f, "running");
        (void) qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard);
        (void) wait_for(&f, strstr(f.log, "system_powerdown "));
        say(&f, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n");
        (void) wait_for(&f, strstr(f.log, "system_reset "));
        qemu_ops.reboot_cancel(f.heard.vmm);
        f.before = "cont";
        f.before_event = "{\"event\": \"RESUME\"}\n";
        say(&f, "{\"event\": \"RESET\", \"data\": {\"guest\": false, \"reason\": \"host-qmp-system-reset\"}}\n");
        ok(wait_for(&f, f.heard.n_replies == 1), "given up when the guest is down: it comes up");
        is_int(f.heard.last_reply, -ECANCELED, "… for nobody");
        f.heard.n_replies = 0;
        f.fail = "system_powerdown";
        (void) qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard);
        ok(wait_for(&f, f.heard.n_replies == 1), "and the next reboot");
        is_int(f.heard.last_reply, -EREMOTEIO, "… is one of its own");
        fake_stop(&f);

        fake_up(&f, "running");
        (void) qemu_ops.reboot_pressed(f.heard.vmm, on_reply, &f.heard);
        (void) wait_for(&f, strstr(f.log, "query-status set-action "));
        turn(&f);
        say(&f, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n{\"event\": \"STOP\"}\n");
        ok(wait_for(&f, strstr(f.log, "system_reset ")), "the button was pressed by another: QEMU stays all the same");
        f.before = "cont";
        f.before_event = "{\"event\": \"RESUME\"}\n";
        say(&f, "{\"event\": \"RESET\", \"data\": {\"guest\": false, \"reason\": \"host-qmp-system-reset\"}}\n");
        ok(wait_for(&f, f.heard.n_replies == 1) && f.heard.last_reply == 0, "… and reboots");
        ok(!strstr(f.log, "system_powerdown "), "… without a second press");
        fake_stop(&f);

        fake_up(&f, "running");
        (void) qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard);
        (void) wait_for(&f, strstr(f.log, "system_powerdown "));
        say(&f, "{\"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"pause\"}}\n");
        ok(wait_for(&f, f.heard.n_replies == 1), "a guest that panics on its way down ends the reboot");
        is_int(f.heard.last_reply, -EIO, "… as a failure");
        is_int(f.heard.n[VMM_EVENT_GUEST_PANICKED], 1, "… and is told");
        fake_stop(&f);

        /* The guest goes down when the reboot has just been given up, and QEMU still stays. */
        fake_up(&f, "running");
        (void) qemu_ops.reboot(f.heard.vmm, on_reply, &f.heard);
        (void) wait_for(&f, strstr(f.log, "system_powerdown "));
        f.status = "shutdown";
        f.before = "set-action";
        f.before_event = "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n{\"event\": \"STOP\"}\n";
        turn(&f);
        qemu_ops.reboot_cancel(f.heard.vmm);
        ok(wait_for(&f, strstr(f.log, "quit ")), "a guest down in the moment of giving up: QEMU is told to go");
        is_int(f.heard.last_reply, -ECANCELED, "… the reboot is canceled");
        is_int(f.heard.n[VMM_EVENT_GUEST_SHUTDOWN], 1, "… and the shutdown told");
        qemu_ops.reboot_cancel(f.heard.vmm);
        fake_stop(&f);
}

static void test_resets(void) {
        Fake f;

        fake_up(&f, "running");
        for (unsigned i = 0; i < 3; i++)
                say(&f, "{\"event\": \"RESET\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n");
        say(&f, "{\"event\": \"POWERDOWN\"}\n{\"event\": \"WATCHDOG\", \"data\": {}}\n");
        ok(wait_for(&f, f.heard.n[VMM_EVENT_POWER_BUTTON]), "three resets of one reboot");
        is_int(f.heard.n[VMM_EVENT_GUEST_RESET], 1, "… are one");
        fake_stop(&f);
}

int main(void) {
        if (!mkdtemp(directory))
                return 1;
        snprintf(path, sizeof path, "%s/qmp", directory);

        test_connect();
        test_early_boot();
        test_why();
        test_why();
        test_stops();
        test_calls();
        test_given_up();
        test_bounds();
        test_reboot();
        test_resets();

        (void) unlink(path);
        (void) rmdir(directory);
        return done_testing();
}
