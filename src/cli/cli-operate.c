/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <stdio.h>
#include <systemd/sd-event.h>

#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-create.h"
#include "cli/cli-error.h"
#include "cli/cli-operate.h"

/* How often a VM that is being removed is looked at, besides the signal that it has gone. */
#define REMOVE_POLL_USEC USEC_PER_SEC

typedef struct Operations Operations;

/* What is done to one VM: GetVM, the call itself, and for a removal the wait for its end. */
typedef struct Operation {
        Operations *all;
        const char *name;
        char *path;
        sd_bus_slot *slot;
        sd_event_source *timer;
        bool sent;              /* the VM's own method; from there on the daemon works without us */
        bool replied, gone;
        bool done;
} Operation;

struct Operations {
        const Args *args;
        sd_event *event;
        sd_bus *bus;
        sd_bus_slot *removed_slot;
        Operation *operations;
        size_t n, n_done;
        bool failed;
        int signal;
};

static const char *const methods[_VERB_MAX] = {
        [VERB_CREATE] = "CreateVM",
        [VERB_START] = "Start",
        [VERB_STOP] = "Stop",
        [VERB_KILL] = "Kill",
        [VERB_REBOOT] = "Reboot",
        [VERB_RESET] = "Reset",
        [VERB_PAUSE] = "Pause",
        [VERB_RESUME] = "Resume",
        [VERB_REMOVE] = "Remove",
};

static void operations_done(Operations *all) {
        for (size_t i = 0; i < all->n; i++) {
                free(all->operations[i].path);
                sd_bus_slot_unref(all->operations[i].slot);
                sd_event_source_unref(all->operations[i].timer);
        }
        free(all->operations);
        sd_bus_slot_unref(all->removed_slot);
        sd_bus_flush_close_unref(all->bus);
        sd_event_unref(all->event);
}

static void operation_finish(Operation *o, bool failed) {
        Operations *all = o->all;

        if (o->done)
                return;

        o->done = true;
        o->timer = sd_event_source_disable_unref(o->timer);
        all->failed |= failed;
        if (++all->n_done == all->n)
                sd_event_exit(all->event, 0);
}

static void operation_fail(Operation *o, const sd_bus_error *error, int r) {
        say_bus_error(o->name, o->all->args->verb, error, r);
        operation_finish(o, true);
}

static int append_flag(sd_bus_message *m, const char *key, bool on) {
        return on ? sd_bus_message_append(m, "{sv}", key, "b", true) : 0;
}

static int append_options(sd_bus_message *m, const Args *a) {
        bool blocks = a->verb == VERB_REMOVE || !a->no_block; /* Remove itself never waits for the end */
        int r;

        r = sd_bus_message_open_container(m, 'a', "{sv}");
        if (r >= 0)
                r = append_flag(m, "start", a->start);
        if (r >= 0)
                r = append_flag(m, "no-block", !blocks);
        if (r >= 0)
                r = append_flag(m, "force", a->force);
        if (r >= 0 && a->timeout_set)
                r = sd_bus_message_append(m, "{sv}", "timeout-usec", "t", a->timeout_usec);
        return r < 0 ? r : sd_bus_message_close_container(m);
}

/* Sends with no time-out: a start or stop may take as long as it takes. */
static int operation_send(Operation *o, sd_bus_message *m, sd_bus_message_handler_t handler) {
        o->slot = sd_bus_slot_unref(o->slot);
        return sd_bus_call_async(o->all->bus, &o->slot, m, handler, o, UINT64_MAX);
}

static void look_later(Operation *o);

typedef struct Removal {
        bool removing, blocked;
        char *why;
} Removal;

static void removal_done(Removal *v) {
        free(v->why);
}

static int removal_read(sd_bus_message *m, Removal *v) {
        const char *key, *text;
        int r;

        r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
                r = sd_bus_message_read_basic(m, 's', &key);
                if (r < 0)
                        break;
                if (!startswith(key, "State") || streq(key, "StateSinceUSec"))
                        r = sd_bus_message_skip(m, "v");
                else
                        r = sd_bus_message_read(m, "v", "s", &text);
                if (r < 0)
                        break;

                if (streq(key, "State"))
                        v->removing = streq(text, "Removing");
                else if (streq(key, "StateReason"))
                        v->blocked = streq(text, "blocked");
                else if (streq(key, "StateMessage"))
                        r = free_and_strdup(&v->why, text);
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
        }
        return r;
}

static int on_properties(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        _cleanup_(removal_done) Removal v = {};
        Operation *o = userdata;

        if (sd_bus_message_is_method_error(m, SD_BUS_ERROR_UNKNOWN_OBJECT) ||
            sd_bus_message_is_method_error(m, SD_BUS_ERROR_UNKNOWN_METHOD))
                operation_finish(o, false);
        else if (sd_bus_message_is_method_error(m, NULL) || removal_read(m, &v) < 0)
                look_later(o); /* the daemon is away for a moment, and goes on with the removal when it is back */
        else if (!v.removing)
                operation_finish(o, false); /* a new VM of the same name */
        else if (v.blocked) {
                say(o->name, "its removal is blocked: %s", isempty(v.why) ? "the daemon gave no reason" : v.why);
                say(o->name, "vmunitd goes on trying; `vmunit status %s` shows how far it is", o->name);
                operation_finish(o, true);
        } else
                look_later(o);
        return 0;
}

static int look(Operation *o) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(o->all->bus, &m, BUS_NAME, o->path, PROPERTIES_INTERFACE, "GetAll");
        if (r >= 0)
                r = sd_bus_message_append(m, "s", VM_INTERFACE);
        if (r >= 0)
                r = operation_send(o, m, on_properties);
        if (r < 0)
                operation_fail(o, NULL, r);
        return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Operation *o = userdata;

        return o->done ? 0 : look(o);
}

static void look_later(Operation *o) {
        int r;

        o->timer = sd_event_source_disable_unref(o->timer);
        r = sd_event_add_time_relative(o->all->event, &o->timer, CLOCK_MONOTONIC, REMOVE_POLL_USEC, 0, on_timer, o);
        if (r < 0)
                operation_fail(o, NULL, r);
}

static int on_removed(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        Operations *all = userdata;
        const char *path;

        if (sd_bus_message_read(m, "o", &path) < 0)
                return 0;

        for (size_t i = 0; i < all->n; i++) {
                Operation *o = all->operations + i;

                if (!o->path || !streq(o->path, path))
                        continue;
                o->gone = true;
                if (o->replied)
                        operation_finish(o, false);
        }
        return 0;
}

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        const sd_bus_error *error = sd_bus_message_get_error(m);
        Operation *o = userdata;

        if (error) {
                operation_fail(o, error, -sd_bus_message_get_errno(m));
                return 0;
        }

        o->replied = true;
        if (o->all->args->verb == VERB_REMOVE && !o->all->args->no_block && !o->gone)
                return look(o);
        operation_finish(o, false);
        return 0;
}

static int operation_call(Operation *o) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        const Args *a = o->all->args;
        int r;

        r = sd_bus_message_new_method_call(o->all->bus, &m, BUS_NAME, o->path, VM_INTERFACE, methods[a->verb]);
        if (r >= 0)
                r = append_options(m, a);
        if (r >= 0)
                r = operation_send(o, m, on_reply);
        o->sent = r >= 0;
        return r;
}

static int on_vm(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        const sd_bus_error *error = sd_bus_message_get_error(m);
        Operation *o = userdata;
        const char *path;
        int r;

        if (error) {
                operation_fail(o, error, -sd_bus_message_get_errno(m));
                return 0;
        }

        r = sd_bus_message_read(m, "o", &path);
        if (r >= 0)
                r = free_and_strdup(&o->path, path);
        if (r >= 0)
                r = operation_call(o);
        if (r < 0)
                operation_fail(o, NULL, r);
        return 0;
}

static int operation_begin(Operation *o) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(o->all->bus, &m, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "GetVM");
        if (r >= 0)
                r = sd_bus_message_append(m, "s", o->name);
        return r < 0 ? r : operation_send(o, m, on_vm);
}

static int create_begin(Operation *o, const char *definition) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(o->all->bus, &m, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "CreateVM");
        if (r >= 0)
                r = sd_bus_message_append(m, "ss", o->name, definition);
        if (r >= 0)
                r = append_options(m, o->all->args);
        if (r >= 0)
                r = operation_send(o, m, on_reply);
        o->sent = r >= 0;
        return r;
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata) {
        Operations *all = userdata;

        for (size_t i = 0; i < all->n; i++) {
                const Operation *o = all->operations + i;

                if (o->done)
                        continue;
                if (o->sent)
                        say(o->name, "no longer waiting, but its %s goes on; `vmunit status %s` shows it",
                            verb_to_string(all->args->verb), o->name);
                else
                        say(o->name, "interrupted; nothing was done");
        }
        all->signal = (int) si->ssi_signo;
        return sd_event_exit(all->event, 0);
}

static int add_signal(Operations *all, int signo) {
        return sd_event_add_signal(all->event, NULL, signo | SD_EVENT_SIGNAL_PROCMASK, on_signal, all);
}

static int operations_setup(Operations *all) {
        int r;

        r = sd_event_new(&all->event);
        if (r >= 0)
                r = sd_bus_attach_event(all->bus, all->event, 0);
        if (r >= 0 && all->args->verb == VERB_REMOVE && !all->args->no_block)
                r = sd_bus_match_signal_async(all->bus, &all->removed_slot, BUS_NAME, ROOT_PATH,
                                              OBJECT_MANAGER_INTERFACE, "InterfacesRemoved", on_removed, NULL, all);
        if (r >= 0)
                r = add_signal(all, SIGINT);
        if (r >= 0)
                r = add_signal(all, SIGTERM);
        return r;
}

static int operations_run(Operations *all, const char *definition) {
        int r;

        r = operations_setup(all);
        if (r < 0) {
                say("vmunit", "cannot start: %s", strerror(-r));
                return r;
        }

        for (size_t i = 0; i < all->n; i++) {
                Operation *o = all->operations + i;

                r = definition ? create_begin(o, definition) : operation_begin(o);
                if (r == -EINVAL) {
                        say(o->name, "%s is not UTF-8 text", definition ? "the definition or the name" : "the name");
                        operation_finish(o, true);
                } else if (r < 0)
                        operation_fail(o, NULL, r);
        }

        r = sd_event_loop(all->event);
        if (r < 0)
                say("vmunit", "cannot wait for vmunitd: %s", strerror(-r));
        return r;
}

/* SIGINT and SIGTERM end us as they would anybody, only a sentence later. */
static void die_by_signal(int signo) {
        sigset_t s;

        if (signo == 0)
                return;

        fflush(NULL);
        signal(signo, SIG_DFL);
        sigemptyset(&s);
        sigaddset(&s, signo);
        sigprocmask(SIG_UNBLOCK, &s, NULL);
        raise(signo);
}

int operate(const Args *a) {
        _cleanup_(operations_done) Operations all = { .args = a };
        _cleanup_free_ char *definition = NULL;
        int r;

        if (a->verb == VERB_CREATE) {
                r = definition_from_args(a, &definition);
                if (r < 0)
                        return r;
        }

        r = bus_connect_asking(a, &all.bus);
        if (r < 0)
                return r;

        all.n = definition ? 1 : a->n_names;
        all.operations = new0(Operation, all.n);
        if (!all.operations) {
                all.n = 0;
                return say_oom();
        }
        for (size_t i = 0; i < all.n; i++)
                all.operations[i] = (Operation) { .all = &all, .name = a->names[i] };

        r = operations_run(&all, definition);
        die_by_signal(all.signal);
        return r < 0 ? r : all.failed ? -EIO : 0;
}
