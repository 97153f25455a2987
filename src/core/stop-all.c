/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/log.h"
#include "core/vm-private.h"

/* The host shuts down, and no daemon runs: what `vmunit stop-all` asks of a daemon is done here without one. */

#define PARALLEL_MAX 16U
/* How long what still runs when all stops have ended (a start that was cut off is being killed, a VMM did not answer yet) may take */
#define REST_USEC (20 * USEC_PER_SEC)
#define REST_LOOK_USEC (200 * USEC_PER_MSEC)

typedef struct StopAll {
        Manager *manager;
        void (*done)(void *userdata, bool none_runs);
        void *userdata;
        sd_event_source *kick, *timer;
        uint64_t until_usec;            /* CLOCK_MONOTONIC: of the rest; 0: not begun */
        size_t under_way;
} StopAll;

static bool runs(const VM *vm) {
        return vm_is_alive(vm) || vm->start;
}

static void stop_next(StopAll *s);

static int on_kick(sd_event_source *source, void *userdata) {
        stop_next(userdata);
        return 0;
}

/* From the loop, for a stop that is refused at once must not recurse. */
static void kick(StopAll *s) {
        s->kick = sd_event_source_disable_unref(s->kick);
        if (sd_event_add_defer(s->manager->event, &s->kick, on_kick, s) < 0)
                log_oom();
}

static void on_stopped(void *userdata, const sd_bus_error *error) {
        StopAll *s = userdata;

        if (error)
                log_warning("%s", error->message);
        s->under_way--;
        kick(s);
}

/* The one that began last of those not asked yet */
static VM *find_next(StopAll *s) {
        VM *last = NULL;

        for (VM *vm = s->manager->vms; vm; vm = vm->next)
                if (runs(vm) && vm->rec.state != VM_REMOVING && !vm->asked_to_stop && (!last || vm->rec.started > last->rec.started))
                        last = vm;
        return last;
}

static int on_look(sd_event_source *source, uint64_t usec, void *userdata) {
        StopAll *s = userdata;

        s->timer = sd_event_source_disable_unref(s->timer);
        stop_next(s);
        return 0;
}

/* When all stops have ended: what runs all the same is asked again for a while. False: no more of that. */
static bool look_at_rest(StopAll *s) {
        uint64_t now;
        bool any = false;

        for (VM *vm = s->manager->vms; vm; vm = vm->next) {
                any |= runs(vm);
                vm->asked_to_stop = false;
        }
        if (!any || sd_event_now(s->manager->event, CLOCK_MONOTONIC, &now) < 0)
                return false;
        if (s->until_usec == 0)
                s->until_usec = now + REST_USEC;
        return now < s->until_usec && sd_event_add_time_relative(s->manager->event, &s->timer, CLOCK_MONOTONIC, REST_LOOK_USEC,
                                                                0, on_look, s) >= 0;
}

static void stop_all_end(StopAll *s) {
        bool none_runs = true;

        s->kick = sd_event_source_disable_unref(s->kick);
        s->timer = sd_event_source_disable_unref(s->timer);
        for (VM *vm = s->manager->vms; vm; vm = vm->next)
                if (runs(vm)) {
                        vm_log(vm, LOG_ERR, "it still runs, and can't be stopped");
                        none_runs = false;
                }
        s->done(s->userdata, none_runs);
        free(s);
}

static void stop_next(StopAll *s) {
        VM *vm;

        while (s->under_way < PARALLEL_MAX && (vm = find_next(s))) {
                _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
                int r;

                vm->asked_to_stop = true;
                r = vm_stop(vm, 0, VM_STOP_TIMEOUT_DEFAULT, true, on_stopped, s, &error);
                if (r > 0)
                        s->under_way++;
                else if (r < 0 && s->until_usec == 0)
                        log_warning("%s", error.message ?: strerror(-r));
        }
        if (s->under_way > 0)
                return;

        if (!look_at_rest(s))
                stop_all_end(s);
}

int manager_stop_all(Manager *m, void (*done)(void *userdata, bool none_runs), void *userdata) {
        StopAll *s;

        s = new(StopAll, 1);
        if (!s)
                return -ENOMEM;
        *s = (StopAll) { .manager = m, .done = done, .userdata = userdata };
        kick(s);
        return 0;
}

void manager_end_stops(Manager *m) {
        for (VM *vm = m->vms; vm; vm = vm->next)
                if (vm->stop && vm->run && vm->run->dead && vm->run->status_told)
                        stop_run_gone(vm);
}
