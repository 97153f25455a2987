/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdio.h>

#include "api/api-internal.h"
#include "api/authorize.h"
#include "api/methods.h"
#include "api/peers.h"
#include "api/wire.h"
#include "basic/name-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "bus/polkit.h"

/* A user's calls that wait keep their messages in memory. */
#define WAITING_MAX 64

/* How many questions polkit has at once. The bus allows so many calls to be under way for the daemon as a whole, which needs some for other
 * things than people who think about their passwords. */
#define ASKED_MAX 24
#define ASKED_BY_USER_MAX 4
#define DIALOGUES_MAX 40
#define DIALOGUES_BY_USER_MAX 4

/* A call that polkit is asked about. When it has answered, everything is looked up again: the VM may be gone, or another's. */
typedef struct Authorization Authorization;
struct Authorization {
        Authorization *next;
        Api *api;
        sd_bus_message *message;
        const Method *method;
        uid_t caller;
        bool interactive;
        Subject subject;
        Right asked;            /* the subject's right, then maybe the lesser one */
        PolkitAnswer first;     /* when it is the lesser one: the answer to the other */
        PolkitCheck *check;     /* NULL: its turn has not come */
};

static const char *const actions[_RIGHT_MAX] = {
        [RIGHT_CREATE] = "org.vmunit1.create",
        [RIGHT_MANAGE] = "org.vmunit1.manage",
        [RIGHT_CONSOLE] = "org.vmunit1.console",
        [RIGHT_HOST_RESOURCES] = "org.vmunit1.host-resources",
        [RIGHT_INSPECT] = "org.vmunit1.inspect",
        [RIGHT_CONFIGURE] = "org.vmunit1.configure",
};

void subject_done(Subject *s) {
        free(s->vm);
        free(s->unit);
        free(s->why);
}

int subject_set_vm(Subject *s, const char *name, uid_t owner) {
        s->owner = owner;
        s->vm = strdup(name);
        s->unit = vm_scope_name(name);
        return s->vm && s->unit ? 0 : -ENOMEM;
}

static int subject_of_vm(Subject *s, const VM *vm, uid_t caller) {
        if (vm->rec.owner == caller)
                s->right = RIGHT_NONE;
        memcpy(s->id, vm->rec.id, sizeof(s->id));
        return subject_set_vm(s, vm->rec.name, vm->rec.owner);
}

/* Who must be asked what about a call of somebody who is not root */
static int subject_get(const Method *method, sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error) {
        int r = 0;

        *s = (Subject) { .right = method->right };
        if (streq(method->interface, API_VM_INTERFACE))
                r = subject_of_vm(s, object, caller);
        else if (streq(method->interface, API_JOB_INTERFACE))
                r = subject_of_vm(s, ((Job *) object)->vm, caller);
        if (r >= 0 && method->examine)
                r = method->examine(m, object, caller, s, error);
        return r < 0 ? r : sd_bus_message_rewind(m, true);
}

static bool subject_is_same(const Subject *a, const Subject *b) {
        return a->right == b->right && a->lesser == b->lesser && a->owner == b->owner && streq(a->id, b->id) && streq_ptr(a->vm, b->vm);
}

/* Refusals */

static int refuse(const Authorization *a, const char *name, const char *sentence, sd_bus_error *error) {
        const Subject *s = &a->subject;

        return sd_bus_error_setf(error, name, "%s%s%s (%s, verb %s%s%s)", strempty(s->vm), s->vm ? ": " : "", sentence,
                                 actions[s->right], a->method->verb, s->why ? "; " : "", strempty(s->why));
}

static int refuse_for(const Authorization *a, PolkitAnswer answer, sd_bus_error *error) {
        switch (answer) {
        case POLKIT_WANTS_PASSWORD:
                return refuse(a, SD_BUS_ERROR_INTERACTIVE_AUTHORIZATION_REQUIRED,
                              a->interactive ? "This takes a password, and there is no polkit agent to ask for it" :
                                            "This takes a password, and the call does not allow to ask for it", error);
        case POLKIT_CALLER_ENDED:
                return refuse(a, SD_BUS_ERROR_ACCESS_DENIED,
                              "The process that connected to the bus has ended, so polkit can't tell whose session this is", error);
        case POLKIT_FAILED:
                return refuse(a, SD_BUS_ERROR_ACCESS_DENIED, "polkit can't decide on this; the journal may say why", error);
        case POLKIT_UNREACHABLE:
                return refuse(a, SD_BUS_ERROR_ACCESS_DENIED, "polkit, which decides on this, can't be asked", error);
        default:
                return refuse(a, SD_BUS_ERROR_ACCESS_DENIED, "polkit does not allow you this", error);
        }
}

/* What is under way */

static Authorization *authorization_free(Authorization *a) {
        if (!a)
                return NULL;
        for (Authorization **i = &a->api->authorizations; *i; i = &(*i)->next)
                if (*i == a) {
                        *i = a->next;
                        break;
                }
        polkit_check_free(a->check);
        subject_done(&a->subject);
        message_release(a->message);
        free(a);
        return NULL;
}
DEFINE_TRIVIAL_CLEANUP_FUNC(Authorization *, authorization_free);

/* As the bus does it for a call that is answered at once */
static void answer_error(sd_bus_message *m, int r, const sd_bus_error *error) {
        if (sd_bus_error_is_set(error))
                message_sent(m, reply_error(m, error));
        else if (r < 0)
                message_sent(m, sd_bus_reply_method_errno(m, r, NULL));
}

static bool asks_for_lesser(const Authorization *a) {
        return a->asked != a->subject.right;
}

/* Nobody is asked for a second password, which gives less. */
static bool may_ask_people(const Authorization *a) {
        return a->interactive && !asks_for_lesser(a);
}

static int find_object(const Authorization *a, void **ret, sd_bus_error *error) {
        const char *path = sd_bus_message_get_path(a->message);
        int r;

        if (streq(a->method->interface, API_MANAGER_INTERFACE)) {
                *ret = a->api->manager;
                return 0;
        }
        r = streq(a->method->interface, API_VM_INTERFACE) ?
                vm_object_find(a->api->bus, path, API_VM_INTERFACE, a->api, ret, error) :
                job_object_find(a->api->bus, path, API_JOB_INTERFACE, a->api, ret, error);
        return r == 0 ? sd_bus_error_setf(error, SD_BUS_ERROR_UNKNOWN_OBJECT, "Unknown object '%s'.", path) : r;
}

static int go_on(const Authorization *a, PolkitAnswer answer, sd_bus_error *error) {
        _cleanup_(subject_done) Subject now = {};
        void *object;
        int r;

        r = sd_bus_message_rewind(a->message, true);
        if (r >= 0)
                r = find_object(a, &object, error);
        if (r < 0)
                return r;
        if (answer != POLKIT_ALLOWED)
                return a->method->otherwise ? a->method->otherwise(a->message, object, error) :
                        refuse_for(a, asks_for_lesser(a) ? a->first : answer, error);

        r = subject_get(a->method, a->message, object, a->caller, &now, error);
        if (r < 0)
                return r;
        if (!subject_is_same(&a->subject, &now))
                return refuse(a, VMUNIT_ERROR_BUSY, "It was changed while polkit was asked; try again", error);
        return asks_for_lesser(a) ? a->method->reduced(a->message, object, error) : a->method->handler(a->message, object, error);
}

static void settle(Authorization *a, PolkitAnswer answer) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = go_on(a, answer, &error);
        answer_error(a->message, r, &error);
        authorization_free(a);
}

static void ask_more(Api *api);

static void on_answer(void *userdata, PolkitAnswer answer) {
        Authorization *a = userdata;
        Api *api = a->api;

        if ((answer == POLKIT_REFUSED || answer == POLKIT_WANTS_PASSWORD) && a->subject.lesser != RIGHT_NONE && !asks_for_lesser(a)) {
                a->first = answer;
                a->asked = a->subject.lesser;
                a->check = polkit_check_free(a->check);
        } else
                settle(a, answer);
        ask_more(api);
}

static bool too_many(const Api *api, uid_t caller) {
        size_t n = 0;

        for (const Authorization *a = api->authorizations; a; a = a->next)
                n += a->caller == caller;
        return n >= WAITING_MAX;
}

static int ask(Authorization *a) {
        const Subject *s = &a->subject;
        char owner[16];

        (void) snprintf(owner, sizeof(owner), "%" PRIu32, (uint32_t) s->owner);
        return polkit_check(a->message, peer_pidfd(sd_bus_message_get_sender(a->message)), actions[a->asked],
                            (const char *[]) { "verb", a->method->verb, s->vm ? "vm" : NULL, s->vm, "owner", owner, "unit", s->unit, NULL },
                            may_ask_people(a), on_answer, a, &a->check);
}

/* One dialogue at a time of a client: an agent on a terminal can't do more, and a password may be good for the next, too. */
static bool has_its_turn(const Api *api, const Authorization *a) {
        bool people = may_ask_people(a);
        size_t n = 0, n_user = 0;

        for (const Authorization *b = api->authorizations; b; b = b->next) {
                if (!b->check || may_ask_people(b) != people)
                        continue;
                if (people && streq(sd_bus_message_get_sender(a->message), sd_bus_message_get_sender(b->message)))
                        return false;
                n++;
                n_user += b->caller == a->caller;
        }
        return n < (people ? DIALOGUES_MAX : ASKED_MAX) && n_user < (people ? DIALOGUES_BY_USER_MAX : ASKED_BY_USER_MAX);
}

static void ask_more(Api *api) {
        Authorization *a = api->authorizations;
        int r;

        while (a) {
                Authorization *next = a->next;

                r = a->check || !has_its_turn(api, a) ? 0 : ask(a);
                if (r == -ESRCH)
                        settle(a, POLKIT_CALLER_ENDED);
                else if (r < 0) {
                        answer_error(a->message, r, NULL);
                        authorization_free(a);
                }
                a = next;
        }
}

/* In the order in which they came */
static void append(Api *api, Authorization *a) {
        Authorization **end = &api->authorizations;

        while (*end)
                end = &(*end)->next;
        *end = a;
}

/* Takes what is in the subject. Gives 1: the call is answered later. */
static int authorize(Api *api, const Method *method, sd_bus_message *m, uid_t caller, Subject *s, sd_bus_error *error) {
        _cleanup_(authorization_freep) Authorization *a = NULL;
        int r;

        if (too_many(api, caller))
                return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "%d of your calls wait for polkit already", WAITING_MAX);
        a = new(Authorization, 1);
        if (!a)
                return -ENOMEM;
        *a = (Authorization) {
                .api = api,
                .message = message_hold(m, true),
                .method = method,
                .caller = caller,
                .interactive = !method->otherwise && sd_bus_message_get_allow_interactive_authorization(m) > 0,
                .subject = *s,
                .asked = s->right,
        };
        *s = (Subject) {};
        r = has_its_turn(api, a) ? ask(a) : 0;
        if (r == -ESRCH)
                return go_on(a, POLKIT_CALLER_ENDED, error);
        if (r < 0)
                return r;
        append(api, TAKE_PTR(a));
        return 1;
}

static int call_method(Api *api, const char *interface, sd_bus_message *m, void *object, sd_bus_error *error) {
        const Method *method = method_find(interface, sd_bus_message_get_member(m));
        _cleanup_(subject_done) Subject s = {};
        uid_t caller;
        int r;

        if (!method)
                return -EINVAL;
        if (!method->always) {
                r = peer_check_calls(m, error);
                if (r < 0)
                        return r;
        }
        if (method->right == RIGHT_NONE)
                return method->handler(m, object, error);
        r = caller_uid(m, &caller);
        if (r < 0)
                return r;
        if (caller == 0)
                return method->handler(m, object, error);

        r = subject_get(method, m, object, caller, &s, error);
        if (r < 0)
                return wire_error(error, r);
        if (s.right == RIGHT_NONE)
                return method->handler(m, object, error);
        return authorize(api, method, m, caller, &s, error);
}

int manager_method(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Manager *manager = userdata;

        return call_method(manager->observer_userdata, API_MANAGER_INTERFACE, m, manager, error);
}

int vm_method(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        VM *vm = userdata;

        return call_method(vm->manager->observer_userdata, API_VM_INTERFACE, m, vm, error);
}

int job_method(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Job *j = userdata;

        return call_method(j->vm->manager->observer_userdata, API_JOB_INTERFACE, m, j, error);
}

void authorizations_drop(Api *api, const char *name) {
        Authorization *a = api->authorizations;

        while (a) {
                Authorization *next = a->next;

                if (streq(sd_bus_message_get_sender(a->message), name))
                        authorization_free(a);
                a = next;
        }
        ask_more(api);
}

void authorizations_end(Api *api) {
        static const sd_bus_error ends = SD_BUS_ERROR_MAKE_CONST(VMUNIT_ERROR_CANCELED, "vmunitd ends; nothing was done");

        while (api->authorizations) {
                message_sent(api->authorizations->message, reply_error(api->authorizations->message, &ends));
                authorization_free(api->authorizations);
        }
}
