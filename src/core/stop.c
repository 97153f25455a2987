/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>

#include "basic/fault.h"
#include "basic/log.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/vm-private.h"

/* Stop: power button, then after a time-out the VMM's own orderly end, then SIGKILL. Kill: SIGKILL. Both end when the VM's units
 * are gone. */

/* How long the VMM may take to flush its disks and end */
#define QUIT_TIMEOUT_USEC (5 * USEC_PER_SEC)
#ifdef FAULT_INJECTION
#define KILL_TIMEOUT_USEC (2 * USEC_PER_SEC)
#else
#define KILL_TIMEOUT_USEC VM_KILL_TIMEOUT_USEC
#endif
/* How long a guest is waited for whose share is dead */
#define SHARE_LOST_USEC (10 * USEC_PER_SEC)
/* … and one that has not been asked, as far as is known, where there is no other limit */
#define UNHEARD_USEC (20 * USEC_PER_SEC)

typedef enum StopPhase { PHASE_BUTTON, PHASE_QUIT, PHASE_KILL } StopPhase;

struct Stop {
        VM *vm;
        StopPhase phase;
        bool was_killed;        /* an Error, before it was asked for: it has only to go */
        bool kill;              /* asked for by Kill */
        bool forced;
        bool pressed;           /* the button */
        bool asked;             /* and the VMM did not refuse to, */
        bool heard;             /* but said that it was */
        uint64_t until_usec;    /* CLOCK_MONOTONIC: the button's time-out, USEC_INFINITY: none */
        sd_event_source *timer;
};

Stop *stop_free(Stop *s) {
        if (!s)
                return NULL;

        sd_event_source_disable_unref(s->timer);
        free(s);
        return NULL;
}

static void stop_phase(Stop *s, StopPhase phase);

static void stop_gave_up(Stop *s, const char *why) {
        VM *vm = s->vm;
        Job *j = vm->job;
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        sd_bus_error_setf(&e, VMUNIT_ERROR_TIMEOUT, "%s: %s", vm->rec.name, why);
        vm->stop = stop_free(s);
        (void) vm_transition(vm, TRANSITION_STOP_FAILED, INTENT_KEEP, "%s", why);
        if (j)
                job_finish(j, &e, false);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Stop *s = userdata;
        char why[512];

        if (run_has_process(s->vm->run) && s->phase < PHASE_KILL) {
                s->forced = true;
                stop_phase(s, s->phase + 1);
        } else if (vm_hangs(s->vm, why, sizeof(why)))
                stop_gave_up(s, why);
        /* else its units are on their way */
        return 0;
}

static void stop_set_timer(Stop *s, uint64_t until_usec) {
        int r;

        s->timer = sd_event_source_disable_unref(s->timer);
        if (until_usec == USEC_INFINITY)
                return;
        r = sd_event_add_time(s->vm->manager->event, &s->timer, CLOCK_MONOTONIC, until_usec, 0, on_timer, s);
        if (r == -ESTALE) /* the loop has ended: the next daemon goes on */
                return;
        if (r < 0) {
                vm_log(s->vm, LOG_WARNING, "no timer, so it is ended the hard way: %s", strerror(-r));
                run_kill(s->vm->run);
        }
}

static uint64_t from_now(Stop *s, uint64_t usec) {
        uint64_t now = 0;

        (void) sd_event_now(s->vm->manager->event, CLOCK_MONOTONIC, &now);
        return usec >= USEC_INFINITY - now ? USEC_INFINITY : now + usec;
}

/* For as long as asked for; not for ever where the guest may never hear of it. */
static void stop_wait(Stop *s) {
        stop_set_timer(s, s->until_usec == USEC_INFINITY && !s->heard ? from_now(s, UNHEARD_USEC) : s->until_usec);
}

/* Replies carry the VM, for the stop may be over by then. */
static void on_quit(void *userdata, int error, const char *message) {
        VM *vm = userdata;

        if (error < 0 && error != -EPIPE && error != -ECANCELED && vm->stop && vm->stop->phase == PHASE_QUIT)
                stop_phase(vm->stop, PHASE_KILL);
}

/* Lost most often for its end; and one that hangs for a while may obey when it goes on. */
static bool may_be_pressed(int error) {
        return error == -EPIPE || error == -ECANCELED || error == -ETIMEDOUT;
}

static void on_button(void *userdata, int error, const char *message) {
        VM *vm = userdata;

        if (error == 0)
                (void) FAULT_POINT("stop.pressed", FAULT_VMM, vm_leader_pid(vm));
        if (!vm->stop || vm->stop->phase != PHASE_BUTTON || may_be_pressed(error))
                return;
        if (error == 0) {
                vm->stop->heard = true;
                stop_wait(vm->stop);
                return;
        }
        vm_log(vm, LOG_WARNING, "the power button can't be pressed: %s", message ?: strerror(-error));
        vm->stop->asked = false;
        vm->stop->forced = true;
        stop_phase(vm->stop, PHASE_QUIT);
}

/* Once: a second press does something else in some guests. */
static void press_button(VM *vm) {
        int r;

        if (vm->stop->pressed)
                return;
        vm->stop->pressed = vm->stop->asked = true;
        r = FAULT_POINT("stop.button", FAULT_FAILS | FAULT_HANGS | FAULT_VMM, vm_leader_pid(vm));
        if (r == 0)
                r = vm->ops->power_button(vm->vmm, on_button, vm);
        if (r < 0)
                on_button(vm, r, NULL);
}

static void ask_guest(VM *vm);

static void on_resumed(void *userdata, int error, const char *message) {
        VM *vm = userdata;

        if (!vm->stop || vm->stop->phase != PHASE_BUTTON || !vm_is_connected(vm))
                return;
        if (error == -ETIMEDOUT) /* its button is of no use before */
                ask_guest(vm);
        else if (error < 0)
                on_button(vm, error, message);
        else
                press_button(vm);
}

/* A paused guest hears no button. */
static void ask_guest(VM *vm) {
        int r;

        if (vm->vmm_state == VMM_STATE_RUNNING) {
                press_button(vm);
                return;
        }
        r = FAULT_POINT("stop.resume", FAULT_FAILS | FAULT_HANGS | FAULT_VMM, vm_leader_pid(vm));
        if (r == 0)
                r = vm->ops->resume(vm->vmm, on_resumed, vm);
        if (r < 0)
                on_button(vm, r, NULL);
}

/* Without a connection, for the daemon has just come back, say, the time runs already, and stop_connected() goes on. */
static void stop_button(Stop *s) {
        stop_wait(s);
        job_set_stage(s->vm->job, "power-button", -1);
        if (vm_is_connected(s->vm))
                ask_guest(s->vm);
        else if (!s->vm->vmm && vm_is_alive(s->vm))
                vm_try_connect(s->vm);
}

void stop_connected(VM *vm) {
        if (!vm->stop || vm->stop->phase != PHASE_BUTTON)
                return;
        stop_wait(vm->stop);
        ask_guest(vm);
}

static void stop_quit(Stop *s) {
        VM *vm = s->vm;
        int r;

        stop_set_timer(s, from_now(s, QUIT_TIMEOUT_USEC));
        job_set_stage(vm->job, "quit", -1);
        r = FAULT_POINT("stop.quit", FAULT_FAILS | FAULT_HANGS | FAULT_VMM, vm_leader_pid(vm));
        if (r == FAULT_HANG)
                return;
        /* Those that have an orderly end come to it by SIGTERM, too. To the others, the first of a PID namespace each, that does nothing. */
        if (!vm->ops->quit)
                stop_phase(s, PHASE_KILL);
        else if (r < 0 || !vm_is_connected(vm) || vm->ops->quit(vm->vmm, on_quit, vm) < 0)
                (void) pidfd_kill(vm->run->pidfd, SIGTERM);
}

static void stop_kill(Stop *s) {
        stop_set_timer(s, from_now(s, KILL_TIMEOUT_USEC));
        job_set_stage(s->vm->job, "kill", -1);
        if (FAULT_POINT("stop.kill", FAULT_HANGS | FAULT_VMM, vm_leader_pid(s->vm)) == 0)
                run_kill(s->vm->run);
}

static void stop_phase(Stop *s, StopPhase phase) {
        s->phase = phase;
        if (phase == PHASE_BUTTON)
                stop_button(s);
        else if (phase == PHASE_QUIT)
                stop_quit(s);
        else
                stop_kill(s);
}

static int stop_new(VM *vm, Stop **ret) {
        Stop *s;
        int r;

        r = FAULT_POINT("stop.begin", FAULT_FAILS, 0);
        if (r < 0)
                return r;
        s = new(Stop, 1);
        if (!s)
                return -ENOMEM;
        *s = (Stop) { .vm = vm, .until_usec = USEC_INFINITY };
        *ret = s;
        return 0;
}

static uint64_t timeout_or_default(const VM *vm, uint64_t timeout_usec) {
        return timeout_usec == VM_STOP_TIMEOUT_DEFAULT ? vm->definition->stop_timeout_usec : timeout_usec;
}

static void stop_go(Stop *s, uint64_t timeout_usec) {
        s->until_usec = from_now(s, timeout_usec);
        s->forced = timeout_usec == 0;
        if (s->kill || !vm_is_alive(s->vm))
                stop_phase(s, PHASE_KILL);
        else
                stop_phase(s, s->forced ? PHASE_QUIT : PHASE_BUTTON);
}

/* What can fail comes first, then the transition, then what can't. */
int stop_begin(VM *vm, VMCall call, uid_t caller, uint64_t timeout_usec, int intent, done_cb cb, void *userdata) {
        _cleanup_(stop_freep) Stop *s = NULL;
        _cleanup_(job_freep) Job *j = NULL;
        bool was_killed = vm->rec.state == VM_ERROR && vm->run && vm->run->killed;
        int r;

        r = job_new(vm, call, caller, cb, userdata, &j);
        if (r >= 0)
                r = stop_new(vm, &s);
        if (r >= 0 && (vm->rec.state != VM_STOPPING || relaunch_pending(vm)))
                r = vm_transition(vm, TRANSITION_STOP, intent, "%s", "");
        if (r < 0)
                return r;

        vm_overtake(vm);
        job_begin(TAKE_PTR(j));
        stop_free(vm->stop);
        vm->stop = TAKE_PTR(s);
        vm->stop->kill = call == CALL_KILL;
        vm->stop->was_killed = was_killed;
        stop_go(vm->stop, timeout_or_default(vm, timeout_usec));
        return 1;
}

void stop_shorten(VM *vm, uint64_t timeout_usec) {
        Stop *s = vm->stop;
        uint64_t until = from_now(s, timeout_or_default(vm, timeout_usec));

        if (s->phase == PHASE_BUTTON && until < s->until_usec) {
                s->until_usec = until;
                stop_set_timer(s, until);
        }
}

void stop_run_ends(VM *vm) {
        vm->stop->phase = PHASE_KILL;
        stop_set_timer(vm->stop, from_now(vm->stop, VM_KILL_TIMEOUT_USEC));
}

void stop_share_lost(VM *vm) {
        stop_shorten(vm, SHARE_LOST_USEC);
}

static const char *end_sentence(const VM *vm, VMTransition t) {
        if (vm->stop->was_killed)
                return "";
        if (t == TRANSITION_KILLED)
                return "It was killed";
        if (t == TRANSITION_STOP_FORCED)
                return vm->stop->asked ? "The guest did not shut down, so its VMM was ended" :
                                         "The guest was not asked to shut down; its VMM was ended";
        if (vm->last_event == VMM_EVENT_GUEST_RESET)
                return "The guest has shut down";
        if (!vm->rec.exit_known || vm->rec.exit_code != 0 || vm->rec.exit_signal != 0)
                return "Its VMM has died while it was being stopped";
        return "The guest has shut down";
}

void stop_run_gone(VM *vm) {
        Stop *s = vm->stop;
        VMTransition t = s->was_killed ? TRANSITION_STOPPED : s->kill ? TRANSITION_KILLED : s->forced ? TRANSITION_STOP_FORCED : TRANSITION_STOPPED;
        const char *sentence = end_sentence(vm, t);
        Job *j = vm->job;

        (void) FAULT_POINT("stop.units-gone", 0, 0);
        vm->stop = stop_free(s);
        if (vm->rec.state == VM_STOPPING)
                (void) vm_transition(vm, t, INTENT_KEEP, "%s", sentence);
        if (j)
                job_finish(j, NULL, false);
}
