/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

#include "basic/fd-util.h"
#include "basic/log.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/polkit.h"

#define DESTINATION "org.freedesktop.PolicyKit1"
#define AUTHORITY_PATH "/org/freedesktop/PolicyKit1/Authority"
#define AUTHORITY "org.freedesktop.PolicyKit1.Authority"

#define FLAG_INTERACTIVE UINT32_C(1)

/* Somebody has to be found, who has to find the password. */
#define DIALOGUE_TIMEOUT_USEC (5 * 60 * USEC_PER_SEC)
#define ANSWER_TIMEOUT_USEC (10 * USEC_PER_SEC)

struct PolkitCheck {
        sd_bus *bus;
        sd_bus_slot *answer;
        int pidfd;              /* the caller's process */
        char id[32];            /* to cancel it by: ours alone, for polkit tells callers apart */
        bool dialogue;          /* may be open */
        polkit_cb cb;
        void *userdata;
};

static void cancel_dialogue(PolkitCheck *c) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        bool open = c->dialogue && sd_bus_is_ready(c->bus) > 0;

        c->dialogue = false;
        /* A polkit that would have to be started for it has none open. */
        if (open && sd_bus_message_new_method_call(c->bus, &m, DESTINATION, AUTHORITY_PATH, AUTHORITY, "CancelCheckAuthorization") >= 0 &&
            sd_bus_message_set_auto_start(m, false) >= 0 && sd_bus_message_append(m, "s", c->id) >= 0)
                (void) sd_bus_send(c->bus, m, NULL);
}

PolkitCheck *polkit_check_free(PolkitCheck *c) {
        if (!c)
                return NULL;
        cancel_dialogue(c);
        sd_bus_slot_unref(c->answer);
        sd_bus_unref(c->bus);
        safe_close(c->pidfd);
        free(c);
        return NULL;
}

/* Anybody's call may meet it: the journal hears of it once, until polkit answers again. */
static PolkitAnswer note(const sd_bus_error *error) {
        static bool told;
        bool failed = error && startswith(error->name, DESTINATION), unknown = failed && strstr(strempty(error->message), "not registered");

        if (failed && !unknown) { /* such as of who has left */
                log_debug("polkit does not answer a question: %s", error->message ?: error->name);
                return POLKIT_FAILED;
        }
        if (unknown && !told)
                log_warning("polkit does not know vmunit's actions, so all is refused that needs it: org.vmunit1.policy is not where polkit looks");
        else if (error && !told)
                log_warning("polkit can't be asked, so all is refused that needs it: %s", error->message ?: error->name);
        told = error;
        return failed ? POLKIT_FAILED : POLKIT_UNREACHABLE;
}

static PolkitAnswer read_answer(const PolkitCheck *c, sd_bus_message *m) {
        int authorized, challenge;

        if (sd_bus_message_enter_container(m, 'r', "bba{ss}") < 0 || sd_bus_message_read(m, "bb", &authorized, &challenge) < 0)
                return POLKIT_UNREACHABLE;
        if (pidfd_dead(c->pidfd))
                return POLKIT_CALLER_ENDED;
        return authorized ? POLKIT_ALLOWED : challenge ? POLKIT_WANTS_PASSWORD : POLKIT_REFUSED;
}

static int on_answer(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        const sd_bus_error *error = sd_bus_message_get_error(m);
        PolkitCheck *c = userdata;

        if (error) {
                PolkitAnswer answer = note(error);

                cancel_dialogue(c); /* which was open for too long, if polkit is still there */
                c->cb(c->userdata, answer);
                return 0;
        }
        (void) note(NULL);
        c->dialogue = false;
        c->cb(c->userdata, read_answer(c, m));
        return 0;
}

static int append_details(sd_bus_message *m, const char *const *details) {
        int r;

        r = sd_bus_message_open_container(m, 'a', "{ss}");
        for (; r >= 0 && details && details[0]; details += 2)
                r = sd_bus_message_append(m, "{ss}", details[0], details[1]);
        return r < 0 ? r : sd_bus_message_close_container(m);
}

static int ask(PolkitCheck *c, const char *caller, const char *action, const char *const *details) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(c->bus, &m, DESTINATION, AUTHORITY_PATH, AUTHORITY, "CheckAuthorization");
        if (r >= 0)
                r = sd_bus_message_append(m, "(sa{sv})s", "system-bus-name", 1, "name", "s", caller, action);
        if (r >= 0)
                r = append_details(m, details);
        if (r >= 0)
                r = sd_bus_message_append(m, "us", c->dialogue ? FLAG_INTERACTIVE : 0, c->id);
        if (r < 0)
                return r;
        return sd_bus_call_async(c->bus, &c->answer, m, on_answer, c, c->dialogue ? DIALOGUE_TIMEOUT_USEC : ANSWER_TIMEOUT_USEC);
}

int polkit_check(sd_bus_message *call, int pidfd, const char *action, const char *const *details, bool interactive, polkit_cb cb,
                 void *userdata, PolkitCheck **ret) {
        static uint64_t last_id;
        _cleanup_(polkit_check_freep) PolkitCheck *c = NULL;
        const char *caller = sd_bus_message_get_sender(call);
        int r;

        if (!caller)
                return -EBADMSG;
        if (pidfd < 0 || pidfd_dead(pidfd))
                return -ESRCH;
        c = new(PolkitCheck, 1);
        if (!c)
                return -ENOMEM;
        *c = (PolkitCheck) { .bus = sd_bus_ref(sd_bus_message_get_bus(call)), .pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 3), .cb = cb, .userdata = userdata };
        if (c->pidfd < 0)
                return -errno;
        (void) snprintf(c->id, sizeof(c->id), "vmunit-%" PRIu64, ++last_id);

        c->dialogue = interactive;
        r = ask(c, caller, action, details);
        if (r < 0) {
                c->dialogue = false; /* nothing to cancel */
                return r;
        }
        *ret = TAKE_PTR(c);
        return 0;
}
