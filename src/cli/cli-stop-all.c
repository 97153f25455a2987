/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>
#include <systemd/sd-event.h>

#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-json.h"
#include "cli/cli-stop-all.h"

/* All VMs are stopped, by the daemon, or, where none runs, by `vmunitd --stop-all`. Nothing here activates the daemon: while the host
 * shuts down, the service manager would refuse to start it. */

#define PROGRAM SBINDIR "/vmunitd"
#define PARALLEL_MAX 16U
/* How long a daemon may take to come, to go or to give its lock back */
#define PATIENCE_USEC (30 * USEC_PER_SEC)
/* … and when it is not even there: systemd starts none while it stops a scope, which is ordered after the daemon */
#define START_PATIENCE_USEC (3 * USEC_PER_SEC)
#define PAUSE_USEC (200 * USEC_PER_MSEC)
/* How often what still runs is asked again, when another call was in the way */
#define ROUNDS_MAX 25U

#define SYSTEMD "org.freedesktop.systemd1"
#define DAEMON_UNIT_PATH "/org/freedesktop/systemd1/unit/vmunitd_2eservice"

typedef struct StopAll StopAll;

typedef struct Target {
        StopAll *all;
        char *name, *path;
        uint64_t started;               /* UINT64_MAX: it is still starting, or is about to */
        sd_bus_slot *slot;
} Target;

struct StopAll {
        sd_event *event;
        sd_bus *bus;
        Target *targets;
        size_t n, n_sent, under_way;
        bool lost;                      /* the daemon */
        bool again;                     /* another operation was in the way of a stop */
};

static void stop_all_done(StopAll *s) {
        for (size_t i = 0; i < s->n; i++) {
                sd_bus_slot_unref(s->targets[i].slot);
                free(s->targets[i].name);
                free(s->targets[i].path);
        }
        free(s->targets);
        sd_bus_flush_close_unref(s->bus);
        sd_event_unref(s->event);
}

bool daemon_is_lost(const char *error) {
        static const char *const names[] = { "NoReply", "Disconnected", "NameHasNoOwner", "ServiceUnknown", "Timeout", "TimedOut" };
        const char *name = startswith(error, "org.freedesktop.DBus.Error.");

        if (!name)
                return startswith(error, "org.freedesktop.systemd1.") != NULL;
        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                if (streq(name, names[i]))
                        return true;
        return startswith(name, "Spawn.") != NULL;
}

static bool reply_is_lost(const sd_bus_error *error, int r) {
        if (sd_bus_error_is_set(error))
                return daemon_is_lost(error->name);
        return r == -ENOTCONN || r == -ECONNRESET || r == -ETIMEDOUT || r == -EPIPE;
}

/* Which VMs run, in the order in which they are stopped */

static int get_objects(sd_bus *bus, json_object **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = sd_bus_message_new_method_call(bus, &m, BUS_NAME, ROOT_PATH, OBJECT_MANAGER_INTERFACE, "GetManagedObjects");
        if (r >= 0)
                r = sd_bus_message_set_auto_start(m, false);
        if (r >= 0)
                r = sd_bus_call(bus, m, UINT64_MAX, &error, &reply);
        if (r < 0)
                return reply_is_lost(&error, r) ? -EHOSTDOWN : say_bus_error("vmunit", VERB_STOP_ALL, &error, r);

        r = json_from_message(reply, ret);
        return r < 0 ? say_bad_reply("vmunit", r) : 0;
}

static bool is_removing(json_object *vm) {
        return streq(json_get_string(vm, "State", ""), "Removing");
}

static bool runs(json_object *vm) {
        const char *state = json_get_string(vm, "State", "");

        return streq(state, "Starting") || streq(state, "Running") || streq(state, "Paused") || streq(state, "Stopping") ||
                json_get_int(vm, "LeaderPID", 0) != 0;
}

/* One that waits to be started would run soon. */
static bool is_planned(json_object *vm) {
        return json_get_int(vm, "RestartAtUSec", 0) != 0;
}

static int compare_targets(const void *a, const void *b) {
        const Target *x = a, *y = b;

        return x->started > y->started ? -1 : x->started < y->started;
}

static int add_target(StopAll *s, const char *path, json_object *vm) {
        bool began = runs(vm) && !streq(json_get_string(vm, "State", ""), "Starting");
        Target *t = s->targets + s->n;

        *t = (Target) {
                .all = s,
                .name = strdup(json_get_string(vm, "Name", "?")),
                .path = strdup(path),
                .started = began ? (uint64_t) json_get_int(vm, "StartedUSec", 0) : UINT64_MAX,
        };
        s->n++;
        return t->name && t->path ? 0 : -ENOMEM;
}

/* *ret_waits: what is being killed for its removal still runs. */
static int find_targets(StopAll *s, bool *ret_waits) {
        _cleanup_json_ json_object *objects = NULL;
        int r;

        r = get_objects(s->bus, &objects);
        if (r < 0)
                return r;
        s->targets = new0(Target, (size_t) json_object_object_length(objects) + 1);
        if (!s->targets)
                return say_oom();

        *ret_waits = false;
        json_object_object_foreach(objects, path, interfaces) {
                json_object *vm;

                if (!json_object_object_get_ex(interfaces, VM_INTERFACE, &vm))
                        continue;
                if (is_removing(vm))
                        *ret_waits |= runs(vm);
                else if ((runs(vm) || is_planned(vm)) && add_target(s, path, vm) < 0)
                        return say_oom();
        }
        qsort(s->targets, s->n, sizeof(Target), compare_targets);
        return 0;
}

/* A round of stops */

static void send_more(StopAll *s);

static void target_finish(Target *t) {
        StopAll *s = t->all;

        t->slot = sd_bus_slot_unref(t->slot);
        s->under_way--;
        send_more(s);
}

static int on_reason(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        Target *t = userdata;
        const char *reason;

        if (!sd_bus_message_is_method_error(m, NULL) && sd_bus_message_read(m, "v", "s", &reason) >= 0 &&
            streq(reason, "stop-forced"))
                say(t->name, "the guest did not shut down in time, so it was forced");
        target_finish(t);
        return 0;
}

static int call(Target *t, sd_bus_message *m, sd_bus_message_handler_t handler) {
        int r;

        t->slot = sd_bus_slot_unref(t->slot);
        r = sd_bus_message_set_auto_start(m, false);
        return r < 0 ? r : sd_bus_call_async(t->all->bus, &t->slot, m, handler, t, UINT64_MAX);
}

static int ask_for_reason(Target *t) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(t->all->bus, &m, BUS_NAME, t->path, PROPERTIES_INTERFACE, "Get");
        if (r >= 0)
                r = sd_bus_message_append(m, "ss", VM_INTERFACE, "StateReason");
        return r < 0 ? r : call(t, m, on_reason);
}

static void stop_failed(Target *t, const sd_bus_error *error, int r) {
        if (reply_is_lost(error, r))
                t->all->lost = true;
        else if (sd_bus_error_has_name(error, "org.vmunit1.Error.Busy") || sd_bus_error_has_name(error, "org.vmunit1.Error.Canceled"))
                t->all->again = true;
        else if (!sd_bus_error_has_name(error, SD_BUS_ERROR_UNKNOWN_OBJECT)) /* it was removed meanwhile */
                say_bus_error(t->name, VERB_STOP_ALL, error, r);
}

static int on_stopped(sd_bus_message *m, void *userdata, sd_bus_error *ret_error) {
        const sd_bus_error *error = sd_bus_message_get_error(m);
        Target *t = userdata;

        if (!error && ask_for_reason(t) >= 0)
                return 0;
        if (error)
                stop_failed(t, error, -sd_bus_message_get_errno(m));
        target_finish(t);
        return 0;
}

static int send_stop(Target *t) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(t->all->bus, &m, BUS_NAME, t->path, VM_INTERFACE, "Stop");
        if (r >= 0)
                r = sd_bus_message_append(m, "a{sv}", 1, "keep-intent", "b", true);
        return r < 0 ? r : call(t, m, on_stopped);
}

static void send_more(StopAll *s) {
        while (!s->lost && s->n_sent < s->n && s->under_way < PARALLEL_MAX) {
                Target *t = s->targets + s->n_sent++;
                int r;

                r = send_stop(t);
                if (r < 0)
                        stop_failed(t, NULL, r);
                else
                        s->under_way++;
        }
        if (s->lost || s->under_way == 0)
                (void) sd_event_exit(s->event, 0);
}

static int run_round(StopAll *s) {
        int r;

        r = sd_event_new(&s->event);
        if (r >= 0)
                r = sd_bus_attach_event(s->bus, s->event, 0);
        if (r >= 0) {
                send_more(s);
                r = sd_event_loop(s->event); /* its end closes the connection */
        }
        if (r < 0)
                say("vmunit", "cannot wait for vmunitd: %s", strerror(-r));
        return r < 0 ? r : s->lost ? -EHOSTDOWN : 0;
}

static void take_a_break(void) {
        (void) nanosleep(&(struct timespec) { .tv_nsec = PAUSE_USEC * 1000 }, NULL);
}

static int say_what_runs(const StopAll *s) {
        for (size_t i = 0; i < s->n; i++)
                say(s->targets[i].name, "it still runs; `vmunit kill %s` ends it at once", s->targets[i].name);
        if (s->n == 0)
                say("vmunit", "a VM that is being removed still runs; `vmunit list` shows it");
        return -EBUSY;
}

/* 0: none runs any more; -EHOSTDOWN: there is no daemon; another: some can't be stopped. It has said why. */
static int stop_by_daemon(void) {
        bool again = true;

        for (unsigned round = 0;; round++) {
                _cleanup_(stop_all_done) StopAll s = {};
                bool waits = false;
                int r;

                r = bus_connect(&s.bus);
                if (r >= 0)
                        r = find_targets(&s, &waits);
                if (r < 0 || (s.n == 0 && !waits))
                        return r;
                if (!again || round >= ROUNDS_MAX)
                        return say_what_runs(&s);

                if (s.n > 0)
                        r = run_round(&s);
                if (r < 0)
                        return r;
                again = s.again || waits || round == 0; /* some may have been started meanwhile */
                if (s.again || waits)
                        take_a_break();
        }
}

/* Without a daemon */

static int get_property(sd_bus *bus, const char *path, const char *interface, const char *property, char **ret) {
        return sd_bus_get_property_string(bus, SYSTEMD, path, interface, property, NULL, ret);
}

/* What systemd is about to do with the daemon: "start", "stop", "restart"…, "" for nothing. */
static int get_daemon_job(sd_bus *bus, char **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        const char *path;
        uint32_t id;
        int r;

        r = sd_bus_get_property(bus, SYSTEMD, DAEMON_UNIT_PATH, SYSTEMD ".Unit", "Job", NULL, &reply, "(uo)");
        if (r >= 0)
                r = sd_bus_message_read(reply, "(uo)", &id, &path);
        if (r < 0)
                return r;
        if (id == 0 || get_property(bus, path, SYSTEMD ".Job", "JobType", ret) < 0)
                *ret = strdup("");
        return *ret ? 0 : -ENOMEM;
}

/* How long it is worth waiting for a daemon that is not on the bus now */
static uint64_t patience(void) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *active = NULL, *sub = NULL, *job = NULL;
        bool restarts;

        if (bus_connect(&bus) < 0 || get_property(bus, DAEMON_UNIT_PATH, SYSTEMD ".Unit", "ActiveState", &active) < 0 ||
            get_property(bus, DAEMON_UNIT_PATH, SYSTEMD ".Unit", "SubState", &sub) < 0 || get_daemon_job(bus, &job) < 0)
                return 0;

        restarts = startswith(sub, "auto-restart") != NULL;
        if (!restarts && (streq(active, "active") || streq(active, "reloading") || streq(active, "activating")))
                return PATIENCE_USEC;
        /* With a stop ahead an automatic restart never comes. */
        return !streq(job, "stop") && (restarts || !isempty(job)) ? START_PATIENCE_USEC : 0;
}

/* -EAGAIN: a daemon holds the lock. */
static int stop_by_program(void) {
        char *const argv[] = { (char *) PROGRAM, (char *) "--stop-all", NULL };
        int status, r;
        pid_t pid;

        fflush(NULL);
        r = posix_spawn(&pid, PROGRAM, NULL, NULL, argv, environ);
        if (r > 0) {
                say("vmunit", "no vmunitd runs, and " PROGRAM " can't be executed: %s", strerror(r));
                return -r;
        }
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        if (WIFEXITED(status) && WEXITSTATUS(status) == EX_TEMPFAIL)
                return -EAGAIN;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

static uint64_t monotonic_now(void) {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / 1000;
}

/* waited_usec: for a daemon, so far. -EAGAIN: one may come, or holds the lock. */
static int stop_once(uint64_t waited_usec) {
        int r;

        r = stop_by_daemon();
        if (r != -EHOSTDOWN)
                return r;
        if (waited_usec < patience())
                return -EAGAIN;
        return stop_by_program();
}

int verb_stop_all(const Args *a) {
        uint64_t since;
        int r;

        if (geteuid() != 0) {
                say("vmunit", "only root may stop all VMs: try sudo");
                return -EPERM;
        }

        since = monotonic_now();
        for (;;) {
                uint64_t begin = monotonic_now();

                r = stop_once(begin - since);
                if (r != -EAGAIN)
                        return r;
                if (monotonic_now() - begin > USEC_PER_SEC) /* it was there for a while */
                        since = monotonic_now();
                else if (begin - since > 2 * PATIENCE_USEC) {
                        say("vmunit", "a vmunitd holds /run/vmunit/lock and is not on the bus: `systemctl status vmunitd`");
                        return r;
                }
                take_a_break();
        }
}
