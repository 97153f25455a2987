/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <sys/random.h>

#include "basic/fault.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "core/vm-private.h"

/* Restart policies: exponential back-off with jitter and a bound, a budget of tries, forgotten after a VM ran well for a while. What is
 * planned is a fact in the record (RestartAtUSec, RestartCount), so it survives the daemon; any transition ends it. */

/* Whether a death of this kind is one that the policy restarts. */
static bool policy_covers(RestartPolicy policy, VMTransition t) {
        switch (t) {
        case TRANSITION_VMM_CRASHED:
        case TRANSITION_OOM_KILL:
        case TRANSITION_GUEST_PANICKED:
        case TRANSITION_VMM_FAILED:
        case TRANSITION_VIRTIOFSD_CRASHED:
        case TRANSITION_RESTART_FAILED:
                return policy != RESTART_NO;
        case TRANSITION_GUEST_SHUTDOWN:
        case TRANSITION_GUEST_REBOOT:
        case TRANSITION_VMM_EXITED:
                return policy == RESTART_ALWAYS;
        default:
                return false;
        }
}

bool restart_keeps_intent(const VM *vm, VMTransition t) {
        return policy_covers(vm->definition->restart_policy, t);
}

/* first * 2^count, at most max, give or take a fifth: VMs that died together need not come back together. */
uint64_t restart_delay(uint64_t first, uint64_t max, unsigned count, uint32_t random) {
        uint64_t delay = first;

        for (unsigned i = 0; i < count && delay < max; i++)
                delay *= 2;
        delay = MIN(delay, max);
        return delay - delay / 5 + delay * 2 / 5 / 1000 * (random % 1000);
}

static uint64_t random_delay(const Config *c, unsigned count) {
        uint32_t random = 500;

        (void) getrandom(&random, sizeof(random), GRND_NONBLOCK);
        return restart_delay(c->restart_usec, c->restart_max_delay_usec, count, random);
}

static uint64_t boottime_now(const VM *vm) {
        uint64_t now = 0;

        (void) sd_event_now(vm->manager->event, CLOCK_BOOTTIME, &now);
        return now;
}

/* How long it has run by a clock that nobody sets; of one that has ended while no daemon was there only the times of day are known. */
static uint64_t ran_usec(const VM *vm, uint64_t until) {
        uint64_t now = boottime_now(vm);

        if (vm->run && vm->run->start_usec > 0)
                return now > vm->run->start_usec ? now - vm->run->start_usec : 0;
        return until > vm->rec.started ? until - vm->rec.started : 0;
}

void restart_plan(const VM *vm, VMTransition t, VMRecord *next) {
        const Config *c = vm->manager->config;
        bool ran_well;

        if (t == TRANSITION_OOM_KILL) /* only tells more of a death that was judged already */
                return;
        next->restart_at = t == TRANSITION_RELAUNCH ? next->state_since : 0;
        if (!next->intent || !policy_covers(vm->definition->restart_policy, t))
                return;

        ran_well = t != TRANSITION_RESTART_FAILED && vm->rec.started > 0 &&
                   ran_usec(vm, next->state_since) >= c->restart_reset_usec;
        if (ran_well)
                next->restart_count = 0;
        if (next->restart_count >= vm->definition->restart_max) {
                char *message = strjoinf("%s; it was restarted %u times in a row, which is the limit", next->message,
                                         next->restart_count);

                if (message) {
                        free(next->message);
                        next->message = message;
                }
                return;
        }
        next->restart_at = next->state_since + random_delay(c, next->restart_count);
}

/* The event loop puts timers that have elapsed in no order, and after a boot it matters. */
static VM *first_planned(VM *vm) {
        uint64_t now = boottime_now(vm);
        VM *first = vm;

        for (VM *v = vm->manager->vms; v; v = v->next)
                if (v->restart_timer && v->restart_due <= now && v->rec.restart_at > 0 && v->rec.restart_at < first->rec.restart_at)
                        first = v;
        return first;
}

static int on_restart(sd_event_source *source, uint64_t usec, void *userdata) {
        VM *vm = userdata, *first;

        first = first_planned(vm);
        if (first != vm) {
                restart_arm(vm);
                vm = first;
        }
        vm->restart_timer = sd_event_source_disable_unref(vm->restart_timer);
        if (vm->rec.restart_at == 0 || vm->start)
                return 0;
        (void) FAULT_POINT("restart.due", 0, 0);
        vm_log(vm, LOG_INFO, "restarting, try %u of %u", vm->rec.restart_count + 1, vm->definition->restart_max);
        vm_start_by_itself(vm, vm->rec.restart_count + 1);
        return 0;
}

/* No plan lies further ahead. */
static uint64_t longest_delay(const Manager *m) {
        const Config *c = m->config;
        uint64_t max = c->restart_max_delay_usec, policy = max > USEC_INFINITY / 2 ? USEC_INFINITY : max + max / 5,
                 boot = c->on_boot_delay_usec > USEC_INFINITY / (m->n_vms + 1) ? USEC_INFINITY : c->on_boot_delay_usec * m->n_vms;

        boot = MAX(boot, policy);
        return MAX(boot, (uint64_t) START_AGAIN_USEC);
}

/* A plan is a time of day, so that it outlives the daemon. When it comes is told by a clock that nobody sets, from the moment on in which it was
 * made, or found; and where somebody has set the clock back meanwhile, a day of waiting is none. */
static void set_due(VM *vm) {
        uint64_t now = now_realtime(), at = vm->rec.restart_at;

        if (vm->restart_due_of == at)
                return;
        vm->restart_due_of = at;
        vm->restart_due = boottime_now(vm) + (at > now ? MIN(at - now, longest_delay(vm->manager)) : 0);
}

void restart_arm(VM *vm) {
        int r;

        vm->restart_timer = sd_event_source_disable_unref(vm->restart_timer);
        set_due(vm);
        if (vm->rec.restart_at == 0 || vm->manager->starts_nothing || relaunch_pending(vm))
                return;
        r = sd_event_add_time(vm->manager->event, &vm->restart_timer, CLOCK_BOOTTIME, vm->restart_due, 0, on_restart, vm);
        if (r < 0)
                vm_log(vm, LOG_ERR, "no timer for its restart: %s", strerror(-r));
}

int restart_plan_start(VM *vm, uint64_t at, unsigned count) {
        VMRecord next;
        int r;

        r = vm_record_copy(&vm->rec, &next);
        if (r < 0)
                return r;
        next.intent = true;
        next.restart_at = at;
        next.restart_count = count;
        memcpy(next.boot_id, vm->manager->boot_id, sizeof(next.boot_id)); /* or it would be a plan of the last boot */
        r = vm_write_record(vm, &next, 0);
        vm_record_done(&next);
        if (r < 0)
                return r;

        vm->rec.intent = true;
        vm->rec.restart_at = at;
        vm->rec.restart_count = count;
        memcpy(vm->rec.boot_id, vm->manager->boot_id, sizeof(vm->rec.boot_id));
        restart_arm(vm);
        vm_emit_changed(vm, "RestartAtUSec", "RestartCount", NULL);
        return 0;
}

int restart_cancel(VM *vm, bool keep_intent) {
        bool intent = keep_intent && vm->rec.intent;
        int r;

        if (vm->rec.restart_at == 0 && vm->rec.intent == intent)
                return 0;
        /* What was asked for holds in any case; the store follows. */
        vm->rec.restart_at = 0;
        vm->rec.intent = intent;
        r = vm_save(vm);
        if (r < 0)
                vm_set_unsaved(vm, r);
        restart_arm(vm);
        vm_emit_changed(vm, "RestartAtUSec", NULL);
        return 0;
}
