/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <stdio.h>
#include <systemd/sd-event.h>

#include "basic/log.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "bus/systemd.h"

#define DESTINATION "org.freedesktop.systemd1"
#define MANAGER_PATH "/org/freedesktop/systemd1"
#define MANAGER "org.freedesktop.systemd1.Manager"
#define UNIT_PREFIX "/org/freedesktop/systemd1/unit"

#define CALL_TIMEOUT_USEC (10 * USEC_PER_SEC)
#define JOB_TIMEOUT_USEC (20 * USEC_PER_SEC)
#define RESEND_USEC (50 * USEC_PER_MSEC)

/* PID 1 runs jobs when it has no message to read. If it were told of all scopes at once, it would make none before it had read of the last,
 * and then all would wait for the kernel to move the first process. One that takes longer than a turn waits for something else. */
#define TURNS_MAX 4U
#define TURN_USEC (100 * USEC_PER_MSEC)
#define SCOPE_TASKS_MAX UINT64_C(16384)

#define COUNTERS_MAX 32U

struct UnitWatch {
        Systemd *systemd;
        char *path;
        unit_hint_cb cb;
        void *userdata;
        UnitWatch *next;
};

typedef enum CallType { CALL_SCOPE, CALL_PROPERTY, CALL_DONE, CALL_COUNTERS } CallType;

struct SystemdCall {
        Systemd *systemd;
        CallType type;
        sd_bus_slot *slot;
        SystemdCall *next;      /* in systemd->scopes, for CALL_SCOPE; in systemd->counters_wait, for CALL_COUNTERS */

        ScopeParams params;     /* CALL_SCOPE */
        char *job;              /* its path; NULL until PID 1 has answered */
        bool with_pidfd;
        bool carries_slice;     /* and PID 1 has not answered yet */
        bool waits;             /* for one that does */
        bool queued, has_turn;  /* for a turn; PID 1 is about it */
        bool resent;            /* asked for more than once */
        sd_event_source *timer, *turn, *resend;
        SystemdCall *check;     /* is it running after all? which one is it? */

        char *path;             /* CALL_COUNTERS */

        const char *unit;       /* CALL_DONE: of systemd_set_transient() */
        int (*append)(sd_bus_message *m, void *userdata);
        void *append_userdata;

        union {
                systemd_done_cb done;
                unit_property_cb property;
                unit_counters_cb counters;
        } cb;
        void *userdata;
};

struct Systemd {
        sd_bus *bus;
        sd_bus_slot *slots[5];
        UnitWatch *watches;
        SystemdCall *scopes;
        SystemdCall *counters_wait, *counters_wait_last;
        unsigned n_turns;       /* of `scopes`, those that have one */
        sd_event_source *next_turn;
        unsigned n_counters;    /* questions for counters that PID 1 has not answered */
        int has_pidfds;         /* does StartTransientUnit take PIDFDs (systemd >= 255)? <0: not asked yet */
};

static void counters_over(SystemdCall *c);

static void turn_over(SystemdCall *c);

SystemdCall *systemd_call_free(SystemdCall *c) {
        if (!c)
                return NULL;

        if (c->type == CALL_COUNTERS)
                counters_over(c);

        for (SystemdCall **i = &c->systemd->scopes; *i; i = &(*i)->next)
                if (*i == c) {
                        *i = c->next;
                        break;
                }
        turn_over(c);
        systemd_call_free(c->check);
        sd_bus_slot_unref(c->slot);
        sd_event_source_disable_unref(c->timer);
        sd_event_source_disable_unref(c->turn);
        sd_event_source_disable_unref(c->resend);
        free(c->job);
        free(c->path);
        free(c);
        return NULL;
}
DEFINE_TRIVIAL_CLEANUP_FUNC(SystemdCall *, systemd_call_free);

static SystemdCall *call_new(Systemd *s, CallType type, void *userdata) {
        SystemdCall *c = new(SystemdCall, 1);

        if (c)
                *c = (SystemdCall) { .systemd = s, .type = type, .userdata = userdata };
        return c;
}

/* Watches */

int systemd_watch_unit(Systemd *s, const char *unit, unit_hint_cb cb, void *userdata, UnitWatch **ret) {
        _cleanup_free_ UnitWatch *w = NULL;
        int r;

        w = new(UnitWatch, 1);
        if (!w)
                return -ENOMEM;
        *w = (UnitWatch) { .systemd = s, .cb = cb, .userdata = userdata, .next = s->watches };

        r = sd_bus_path_encode(UNIT_PREFIX, unit, &w->path);
        if (r < 0)
                return r;

        s->watches = w;
        *ret = TAKE_PTR(w);
        return 0;
}

UnitWatch *unit_watch_free(UnitWatch *w) {
        if (!w)
                return NULL;

        for (UnitWatch **i = &w->systemd->watches; *i; i = &(*i)->next)
                if (*i == w) {
                        *i = w->next;
                        break;
                }
        free(w->path);
        free(w);
        return NULL;
}

/* path NULL: all. A hint only asks questions, so no watch goes while the list is walked. */
static void give_hints(Systemd *s, const char *path) {
        for (UnitWatch *w = s->watches; w; w = w->next)
                if (!path || streq(w->path, path))
                        w->cb(w->userdata);
}

static int on_properties_changed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        give_hints(userdata, sd_bus_message_get_path(m));
        return 0;
}

static int on_unit_removed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const char *path;

        if (sd_bus_message_read(m, "so", NULL, &path) >= 0)
                give_hints(userdata, path);
        return 0;
}

/* Scopes */

static int send_in_turn(SystemdCall *c);
static int send_start(SystemdCall *c);

static void slice_answered(SystemdCall *c, bool made);

static void scope_done(SystemdCall *c, const sd_bus_error *error) {
        systemd_done_cb cb = c->cb.done;

        c->cb.done = NULL;
        slice_answered(c, !error);
        turn_over(c);
        if (cb)
                cb(c->userdata, error);
}

static void scope_failed(SystemdCall *c, const char *name, const char *message) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        sd_bus_error_setf(&e, name, "%s: %s", c->params.scope, message);
        scope_done(c, &e);
}

static SystemdCall *find_slice_call(const SystemdCall *of, bool waits) {
        for (SystemdCall *c = of->systemd->scopes; c; c = c->next)
                if (c != of && c->params.slice_made == of->params.slice_made && (waits ? c->waits : c->carries_slice))
                        return c;
        return NULL;
}

/* If it was refused, the next one brings the slice along, and the rest waits for that. */
static void slice_answered(SystemdCall *c, bool made) {
        SystemdCall *w;

        if (!c->carries_slice)
                return;
        c->carries_slice = false;
        *c->params.slice_made = made;
        while ((w = find_slice_call(c, true)) && (made || !find_slice_call(c, false))) {
                int r;

                r = send_in_turn(w);
                if (r < 0)
                        scope_failed(w, VMUNIT_ERROR_BACKEND_FAILED, strerror(-r));
        }
}

static int on_job_removed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Systemd *s = userdata;
        const char *job, *unit, *result;

        if (sd_bus_message_read(m, "uoss", NULL, &job, &unit, &result) < 0)
                return 0;

        for (SystemdCall *c = s->scopes; c; c = c->next) {
                if (!c->cb.done || c->queued || c->waits || !(c->job ? streq(c->job, job) : c->resent && streq(c->params.scope, unit)))
                        continue;
                if (streq(result, "done"))
                        scope_done(c, NULL);
                else
                        scope_failed(c, VMUNIT_ERROR_BACKEND_FAILED, "systemd could not start the scope");
                return 0;
        }

        /* Asked for by a daemon that died meanwhile: nobody else would clear what is left of it. */
        if (streq(result, "failed") && startswith(unit, "vmunit-") && endswith(unit, ".scope"))
                systemd_reset_failed(s, unit);
        return 0;
}

static void on_scope_checked(void *userdata, const char *value, const sd_bus_error *error) {
        SystemdCall *c = userdata;

        c->check = systemd_call_free(c->check);
        if (value && streq(value, "running"))
                scope_done(c, NULL);
        else if (value && streq(value, "failed"))
                scope_failed(c, VMUNIT_ERROR_BACKEND_FAILED, "systemd could not start the scope");
}

static int on_resend(sd_event_source *source, uint64_t usec, void *userdata) {
        SystemdCall *c = userdata;
        int r;

        c->resend = sd_event_source_disable_unref(c->resend);
        c->resent = true;
        r = send_start(c);
        if (r < 0)
                scope_failed(c, VMUNIT_ERROR_BACKEND_FAILED, strerror(-r));
        return 0;
}

/* PID 1 left the bus before it answered (daemon-reexec). Whether it still did what it was asked for is not known, so it is asked again;
 * that may be before it is back, or known to be away. */
static bool is_lost(const sd_bus_error *e) {
        return sd_bus_error_has_names(e, SD_BUS_ERROR_NO_REPLY, SD_BUS_ERROR_SERVICE_UNKNOWN, SD_BUS_ERROR_NAME_HAS_NO_OWNER,
                                      "org.freedesktop.DBus.Error.Spawn.ChildExited");
}

/* A reload or re-execution of PID 1 may have swallowed the signal of a job's end. */
static void check_scopes(Systemd *s) {
        for (SystemdCall *c = s->scopes; c; c = c->next)
                if (c->cb.done && c->job && !c->check)
                        (void) systemd_get(s, c->params.scope, "Unit", "SubState", on_scope_checked, c, &c->check);
}

static int on_reloading(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Systemd *s = userdata;
        int active;

        if (sd_bus_message_read(m, "b", &active) >= 0 && !active) {
                check_scopes(s);
                give_hints(s, NULL);
        }
        return 0;
}

static void subscribe(Systemd *s) {
        (void) sd_bus_call_method_async(s->bus, NULL, DESTINATION, MANAGER_PATH, MANAGER, "Subscribe", NULL, NULL, NULL);
}

static int on_name_owner_changed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Systemd *s = userdata;
        const char *new_owner;

        if (sd_bus_message_read(m, "sss", NULL, NULL, &new_owner) >= 0 && !isempty(new_owner)) {
                subscribe(s);
                check_scopes(s);
                give_hints(s, NULL);
        }
        return 0;
}

/* m: mknod(2), by which the process that is put there makes them in its view, before or after */
static int append_devices(sd_bus_message *m, char *const *devices) {
        int r;

        r = sd_bus_message_append(m, "(sv)", "DevicePolicy", "s", "closed");
        if (r >= 0)
                r = sd_bus_message_open_container(m, 'r', "sv");
        if (r >= 0)
                r = sd_bus_message_append(m, "s", "DeviceAllow");
        if (r >= 0)
                r = sd_bus_message_open_container(m, 'v', "a(ss)");
        if (r >= 0)
                r = sd_bus_message_open_container(m, 'a', "(ss)");
        for (char *const *d = devices; r >= 0 && d && *d; d++)
                r = sd_bus_message_append(m, "(ss)", *d, "rwm");
        for (unsigned i = 0; r >= 0 && i < 3; i++)
                r = sd_bus_message_close_container(m);
        return r;
}

static int append_scope(sd_bus_message *m, const SystemdCall *c) {
        const ScopeParams *p = &c->params;
        const char *before = p->before ?: "vmunit-guests.service"; /* once more does no harm */
        int r;

        r = sd_bus_message_append(m, "(sv)(sv)(sv)(sv)(sv)(sv)(sv)(sv)",
                                  "Description", "s", p->description,
                                  "Slice", "s", p->slice,
                                  "CollectMode", "s", "inactive",
                                  "OOMPolicy", "s", "kill",
                                  "TasksMax", "t", SCOPE_TASKS_MAX,
                                  "KillSignal", "i", SIGCONT,
                                  "TimeoutStopUSec", "t", p->timeout_stop_usec,
                                  "Before", "as", 2, "vmunit-guests.service", before);
        if (r >= 0)
                r = append_devices(m, p->devices);
        if (r < 0)
                return r;
        if (c->with_pidfd)
                return sd_bus_message_append(m, "(sv)", "PIDFDs", "ah", 1, p->pidfd);
        return sd_bus_message_append(m, "(sv)", "PIDs", "au", 1, (uint32_t) p->pid);
}

static int append_slice(sd_bus_message *m, const ScopeParams *p) {
        int r;

        r = sd_bus_message_open_container(m, 'r', "sa(sv)");
        if (r < 0)
                return r;
        r = sd_bus_message_append(m, "s", p->slice);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(m, 'a', "(sv)");
        if (r < 0)
                return r;
        r = sd_bus_message_append(m, "(sv)(sv)(sv)(sv)(sv)(sv)",
                                  "Description", "s", p->slice_description,
                                  "StopWhenUnneeded", "b", true,
                                  "CPUAccounting", "b", true,
                                  "MemoryAccounting", "b", true,
                                  "TasksAccounting", "b", true,
                                  "IOAccounting", "b", true);
        if (r < 0)
                return r;
        if (p->append_slice) {
                r = p->append_slice(m, p->append_userdata);
                if (r < 0)
                        return r;
        }
        r = sd_bus_message_close_container(m);
        if (r < 0)
                return r;
        return sd_bus_message_close_container(m);
}

static int new_start_message(SystemdCall *c, sd_bus_message **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(c->systemd->bus, &m, DESTINATION, MANAGER_PATH, MANAGER, "StartTransientUnit");
        if (r < 0)
                return r;
        r = sd_bus_message_append(m, "ss", c->params.scope, "fail");
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(m, 'a', "(sv)");
        if (r < 0)
                return r;
        r = append_scope(m, c);
        if (r < 0)
                return r;
        r = sd_bus_message_close_container(m);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(m, 'a', "(sa(sv))");
        if (r < 0)
                return r;
        if (c->carries_slice) {
                r = append_slice(m, &c->params);
                if (r < 0)
                        return r;
        }
        r = sd_bus_message_close_container(m);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(m);
        return 0;
}

/* Found out by the error's name: systemd before 255 knows no PIDFDs. */
static bool is_unknown_property(const sd_bus_error *e) {
        return sd_bus_error_has_names(e, SD_BUS_ERROR_PROPERTY_READ_ONLY, SD_BUS_ERROR_UNKNOWN_PROPERTY);
}

static int on_start_reply(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        SystemdCall *c = userdata;
        const sd_bus_error *e = sd_bus_message_get_error(m);
        const char *job;
        int r;

        c->slot = sd_bus_slot_unref(c->slot);

        if (e && c->with_pidfd && is_unknown_property(e)) {
                c->systemd->has_pidfds = false;
                r = send_start(c);
                if (r < 0)
                        scope_failed(c, VMUNIT_ERROR_BACKEND_FAILED, strerror(-r));
                return 0;
        }
        if (e && is_lost(e) && sd_event_add_time_relative(sd_bus_get_event(c->systemd->bus), &c->resend, CLOCK_MONOTONIC,
                                                          RESEND_USEC, 0, on_resend, c) >= 0)
                return 0;
        if (e && c->resent && sd_bus_error_has_name(e, "org.freedesktop.systemd1.UnitExists") &&
            systemd_get(c->systemd, c->params.scope, "Unit", "SubState", on_scope_checked, c, &c->check) >= 0)
                return 0;
        if (e) {
                scope_done(c, e);
                return 0;
        }

        if (c->with_pidfd)
                c->systemd->has_pidfds = true;
        if (sd_bus_message_read(m, "o", &job) < 0 || free_and_strdup(&c->job, job) < 0)
                scope_failed(c, VMUNIT_ERROR_BACKEND_FAILED, "no job in systemd's answer");
        else
                slice_answered(c, true);
        return 0;
}

static int send_start(SystemdCall *c) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        c->with_pidfd = c->systemd->has_pidfds != 0 && c->params.pidfd >= 0;
        c->carries_slice = c->params.slice_made && !*c->params.slice_made;
        r = new_start_message(c, &m);
        if (r < 0)
                return r;
        return sd_bus_call_async(c->systemd->bus, &c->slot, m, on_start_reply, c, CALL_TIMEOUT_USEC);
}

/* The next is asked for by the loop: this may be the end of all that is under way. */
static void turn_over(SystemdCall *c) {
        if (!c->has_turn)
                return;
        c->has_turn = false;
        c->systemd->n_turns--;
        (void) sd_event_source_set_enabled(c->systemd->next_turn, SD_EVENT_ONESHOT);
}

static int on_job_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        scope_failed(userdata, VMUNIT_ERROR_TIMEOUT, "systemd's job to start it has not ended in time");
        return 0;
}

static int on_turn_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        turn_over(userdata);
        return 0;
}

static int send_in_turn(SystemdCall *c) {
        sd_event *e = sd_bus_get_event(c->systemd->bus);
        Systemd *s = c->systemd;
        int r;

        c->queued = s->n_turns >= TURNS_MAX;
        c->waits = !c->queued && c->params.slice_made && !*c->params.slice_made && find_slice_call(c, false);
        if (c->queued || c->waits)
                return 0;
        r = sd_event_add_time_relative(e, &c->timer, CLOCK_MONOTONIC, JOB_TIMEOUT_USEC, 0, on_job_timeout, c);
        if (r >= 0)
                r = sd_event_add_time_relative(e, &c->turn, CLOCK_MONOTONIC, TURN_USEC, USEC_PER_MSEC, on_turn_timeout, c);
        if (r < 0)
                return r;
        c->has_turn = true;
        s->n_turns++;
        return send_start(c);
}

/* The list begins with the last that came. */
static SystemdCall *first_queued(Systemd *s) {
        SystemdCall *first = NULL;

        for (SystemdCall *c = s->scopes; c; c = c->next)
                if (c->queued)
                        first = c;
        return first;
}

static int on_next_turn(sd_event_source *source, void *userdata) {
        Systemd *s = userdata;
        SystemdCall *c;

        while (s->n_turns < TURNS_MAX && (c = first_queued(s))) {
                int r = send_in_turn(c);

                if (r < 0)
                        scope_failed(c, VMUNIT_ERROR_BACKEND_FAILED, strerror(-r));
        }
        return 0;
}

int systemd_start_scope(Systemd *s, const ScopeParams *p, systemd_done_cb cb, void *userdata, SystemdCall **ret) {
        _cleanup_(systemd_call_freep) SystemdCall *c = NULL;
        int r;

        c = call_new(s, CALL_SCOPE, userdata);
        if (!c)
                return -ENOMEM;
        c->params = *p;
        c->cb.done = cb;
        c->next = s->scopes;
        s->scopes = c;

        r = send_in_turn(c);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(c);
        return 0;
}

/* Properties */

static int read_variant(sd_bus_message *m, char **ret) {
        const char *contents, *text = NULL;
        char type;
        int r, b;

        r = sd_bus_message_peek_type(m, &type, &contents);
        if (r < 0)
                return r;
        r = sd_bus_message_enter_container(m, 'v', contents);
        if (r < 0)
                return r;

        if (streq(contents, "ay")) {
                const uint8_t *bytes;
                size_t n;

                r = sd_bus_message_read_array(m, 'y', (const void **) &bytes, &n);
                if (r < 0)
                        return r;
                *ret = calloc(n * 2 + 1, 1);
                for (size_t i = 0; *ret && i < n; i++)
                        sprintf(*ret + 2 * i, "%02x", bytes[i]);
                return *ret ? 0 : -ENOMEM;
        }

        if (streq(contents, "as")) {
                _cleanup_strv_free_ char **l = NULL;

                r = sd_bus_message_read_strv(m, &l);
                if (r < 0)
                        return r;
                *ret = strv_join(l, " ");
                return *ret ? 0 : -ENOMEM;
        }

        if (streq(contents, "b")) {
                r = sd_bus_message_read(m, "b", &b);
                text = b ? "yes" : "no";
        } else
                r = sd_bus_message_read(m, "s", &text);
        if (r < 0)
                return r;
        *ret = strdup(text);
        return *ret ? 0 : -ENOMEM;
}

static int on_property_reply(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error own = SD_BUS_ERROR_NULL;
        _cleanup_free_ char *value = NULL;
        SystemdCall *c = userdata;
        const sd_bus_error *e = sd_bus_message_get_error(m);
        int r;

        if (!e) {
                r = read_variant(m, &value);
                if (r < 0) {
                        sd_bus_error_set_errno(&own, r);
                        e = &own;
                }
        }
        c->cb.property(c->userdata, value, e);
        return 0;
}

static int get_property(Systemd *s, const char *path, const char *interface, const char *property, unit_property_cb cb,
                        void *userdata, SystemdCall **ret) {
        _cleanup_(systemd_call_freep) SystemdCall *c = NULL;
        int r;

        c = call_new(s, CALL_PROPERTY, userdata);
        if (!c)
                return -ENOMEM;
        c->cb.property = cb;

        r = sd_bus_call_method_async(s->bus, &c->slot, DESTINATION, path, "org.freedesktop.DBus.Properties", "Get",
                                     on_property_reply, c, "ss", interface, property);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(c);
        return 0;
}

int systemd_get(Systemd *s, const char *unit, const char *interface, const char *property, unit_property_cb cb,
                void *userdata, SystemdCall **ret) {
        _cleanup_free_ char *path = NULL, *full = NULL;
        int r;

        r = sd_bus_path_encode(UNIT_PREFIX, unit, &path);
        if (r < 0)
                return r;
        full = strjoinf("org.freedesktop.systemd1.%s", interface);
        if (!full)
                return -ENOMEM;
        return get_property(s, path, full, property, cb, userdata, ret);
}

int systemd_get_manager(Systemd *s, const char *property, unit_property_cb cb, void *userdata, SystemdCall **ret) {
        return get_property(s, MANAGER_PATH, MANAGER, property, cb, userdata, ret);
}

static int on_done_reply(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        SystemdCall *c = userdata;

        c->cb.done(c->userdata, sd_bus_message_get_error(m));
        return 0;
}

/* Properties of a transient unit. It is addressed by its InvocationID, for by its name PID 1 would load it anew when it has just gone. */

static void set_failed(SystemdCall *c, int r, const sd_bus_error *e) {
        _cleanup_(sd_bus_error_free) sd_bus_error own = SD_BUS_ERROR_NULL;

        if (!e) {
                sd_bus_error_set_errno(&own, r);
                e = &own;
        }
        c->cb.done(c->userdata, e);
}

static int new_set_message(SystemdCall *c, const char *invocation_id, sd_bus_message **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        r = sd_bus_path_encode(UNIT_PREFIX, invocation_id, &path);
        if (r >= 0)
                r = sd_bus_message_new_method_call(c->systemd->bus, &m, DESTINATION, path, "org.freedesktop.systemd1.Unit",
                                                   "SetProperties");
        if (r >= 0)
                r = sd_bus_message_append(m, "b", true);
        if (r >= 0)
                r = sd_bus_message_open_container(m, 'a', "(sv)");
        if (r >= 0)
                r = c->append(m, c->append_userdata);
        if (r >= 0)
                r = sd_bus_message_close_container(m);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(m);
        return 0;
}

static void on_set_invocation(void *userdata, const char *value, const sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        SystemdCall *c = userdata;
        int r = isempty(value) ? -ESRCH : 0;

        if (r >= 0)
                r = new_set_message(c, value, &m);
        if (r >= 0)
                r = sd_bus_call_async(c->systemd->bus, &c->slot, m, on_done_reply, c, CALL_TIMEOUT_USEC);
        if (r < 0)
                set_failed(c, r, error);
}

static void on_set_transient(void *userdata, const char *value, const sd_bus_error *error) {
        SystemdCall *c = userdata;
        int r = value ? 0 : -EIO;

        c->check = systemd_call_free(c->check);
        if (r >= 0 && !streq(value, "yes"))
                r = -EADDRINUSE;
        if (r >= 0)
                r = systemd_get(c->systemd, c->unit, "Unit", "InvocationID", on_set_invocation, c, &c->check);
        if (r < 0)
                set_failed(c, r, error);
}

int systemd_set_transient(Systemd *s, const char *unit, int (*append)(sd_bus_message *m, void *userdata), void *append_userdata,
                          systemd_done_cb cb, void *userdata, SystemdCall **ret) {
        _cleanup_(systemd_call_freep) SystemdCall *c = NULL;
        int r;

        c = call_new(s, CALL_DONE, userdata);
        if (!c)
                return -ENOMEM;
        c->cb.done = cb;
        c->unit = unit;
        c->append = append;
        c->append_userdata = append_userdata;
        r = systemd_get(s, unit, "Unit", "Transient", on_set_transient, c, &c->check);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

static const char *const counter_names[] = {
        "CPUUsageNSec", "MemoryCurrent", "TasksCurrent", "IOReadBytes", "IOWriteBytes",
};

/* One entry of the dictionary; what is not a counter of ours, or not known (2^64-1), is passed over. */
static int read_counter(sd_bus_message *m, UnitCounter *counters, size_t *n) {
        const char *name;
        uint64_t value;
        int r;

        r = sd_bus_message_read(m, "s", &name);
        if (r < 0)
                return r;
        for (size_t i = 0; i < ELEMENTSOF(counter_names); i++)
                if (streq(name, counter_names[i])) {
                        r = sd_bus_message_read(m, "v", "t", &value);
                        if (r >= 0 && value != UINT64_MAX)
                                counters[(*n)++] = (UnitCounter) { counter_names[i], value };
                        return r;
                }
        return sd_bus_message_skip(m, "v");
}

static int on_counters_reply(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        UnitCounter counters[ELEMENTSOF(counter_names)];
        const sd_bus_error *e = sd_bus_message_get_error(m);
        SystemdCall *c = userdata;
        size_t n = 0;
        int r = -1;

        if (!e)
                r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r >= 0 && n < ELEMENTSOF(counters)) {
                r = sd_bus_message_enter_container(m, 'e', "sv");
                if (r <= 0)
                        break;
                r = read_counter(m, counters, &n);
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
        }
        c->cb.counters(c->userdata, counters, n, e);
        return 0;
}

static int counters_ask(SystemdCall *c) {
        int r;

        r = sd_bus_call_method_async(c->systemd->bus, &c->slot, DESTINATION, c->path, "org.freedesktop.DBus.Properties", "GetAll",
                                     on_counters_reply, c, "s", "org.freedesktop.systemd1.Slice");
        if (r >= 0)
                c->systemd->n_counters++;
        return r;
}

static void counters_unwait(SystemdCall *c) {
        Systemd *s = c->systemd;

        s->counters_wait_last = NULL;
        for (SystemdCall **i = &s->counters_wait; *i; i = &(*i)->next) {
                if (*i == c)
                        *i = c->next;
                if (!*i)
                        break;
                s->counters_wait_last = *i;
        }
        c->next = NULL;
}

/* What waits has a deadline of its own at its callers, who are not told if it could not even be asked. */
static void counters_over(SystemdCall *c) {
        Systemd *s = c->systemd;

        if (!c->slot) {
                counters_unwait(c);
                return;
        }
        s->n_counters--;
        while (s->counters_wait && s->n_counters < COUNTERS_MAX) {
                SystemdCall *next = s->counters_wait;

                counters_unwait(next);
                (void) counters_ask(next);
        }
}

/* A bus lets us wait for 128 answers at a time, which starts need as well. */
int systemd_get_counters(Systemd *s, const char *slice, unit_counters_cb cb, void *userdata, SystemdCall **ret) {
        _cleanup_(systemd_call_freep) SystemdCall *c = NULL;
        int r;

        c = call_new(s, CALL_COUNTERS, userdata);
        if (!c)
                return -ENOMEM;
        c->cb.counters = cb;
        r = sd_bus_path_encode(UNIT_PREFIX, slice, &c->path);
        if (r < 0)
                return r;

        if (s->n_counters < COUNTERS_MAX) {
                r = counters_ask(c);
                if (r < 0)
                        return r;
        } else {
                if (s->counters_wait_last)
                        s->counters_wait_last->next = c;
                else
                        s->counters_wait = c;
                s->counters_wait_last = c;
        }
        *ret = TAKE_PTR(c);
        return 0;
}

void systemd_kill_unit(Systemd *s, const char *unit, int sig) {
        (void) sd_bus_call_method_async(s->bus, NULL, DESTINATION, MANAGER_PATH, MANAGER, "KillUnit", NULL, NULL, "ssi",
                                        unit, "all", (int32_t) sig);
}

void systemd_stop_unit(Systemd *s, const char *unit) {
        (void) sd_bus_call_method_async(s->bus, NULL, DESTINATION, MANAGER_PATH, MANAGER, "StopUnit", NULL, NULL, "ss",
                                        unit, "replace");
}

void systemd_reset_failed(Systemd *s, const char *unit) {
        (void) sd_bus_call_method_async(s->bus, NULL, DESTINATION, MANAGER_PATH, MANAGER, "ResetFailedUnit", NULL, NULL,
                                        "s", unit);
}

Systemd *systemd_free(Systemd *s) {
        if (!s)
                return NULL;

        while (s->watches)
                unit_watch_free(s->watches);
        for (size_t i = 0; i < ELEMENTSOF(s->slots); i++)
                sd_bus_slot_unref(s->slots[i]);
        sd_event_source_disable_unref(s->next_turn);
        sd_bus_unref(s->bus);
        free(s);
        return NULL;
}

int systemd_new(sd_bus *bus, Systemd **ret) {
        _cleanup_(systemd_freep) Systemd *s = NULL;
        int r;

        s = new(Systemd, 1);
        if (!s)
                return -ENOMEM;
        *s = (Systemd) { .bus = sd_bus_ref(bus), .has_pidfds = -1 };
        r = sd_event_add_defer(sd_bus_get_event(bus), &s->next_turn, on_next_turn, s);
        if (r < 0)
                return r;
        r = sd_event_source_set_enabled(s->next_turn, SD_EVENT_OFF);
        if (r < 0)
                return r;

        const struct {
                const char *rule;
                sd_bus_message_handler_t handler;
        } matches[] = {
                { "type='signal',sender='" DESTINATION "',path='" MANAGER_PATH "',interface='" MANAGER "',member='JobRemoved'",
                  on_job_removed },
                { "type='signal',sender='" DESTINATION "',path='" MANAGER_PATH "',interface='" MANAGER "',member='UnitRemoved'",
                  on_unit_removed },
                { "type='signal',sender='" DESTINATION "',path='" MANAGER_PATH "',interface='" MANAGER "',member='Reloading'",
                  on_reloading },
                /* Scopes alone: each start of a scope makes PID 1 tell of all units that have to do with it. Each change of a
                 * scope is told for this interface as well, and of a slice UnitRemoved is enough. */
                { "type='signal',sender='" DESTINATION "',path_namespace='" UNIT_PREFIX
                  "',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',arg0='" DESTINATION ".Scope'",
                  on_properties_changed },
                { "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus',interface='org.freedesktop.DBus',"
                  "member='NameOwnerChanged',arg0='" DESTINATION "'",
                  on_name_owner_changed },
        };

        for (size_t i = 0; i < ELEMENTSOF(matches); i++) {
                r = sd_bus_add_match_async(bus, &s->slots[i], matches[i].rule, matches[i].handler, NULL, s);
                if (r < 0)
                        return r;
        }
        subscribe(s);

        *ret = TAKE_PTR(s);
        return 0;
}
