/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fault.h"
#include "basic/json-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/message-ids.h"
#include "core/share.h"
#include "core/vm-private.h"

/* A VM's live side: what its VMM says, how it ends, and how a daemon that comes back finds it again. */

/* Doubled with each try in vain, for one whose socket is gone may live for months */
#define RECONNECT_USEC (2 * USEC_PER_SEC)
#define RECONNECT_MAX_USEC (60 * USEC_PER_SEC)
/* Each is a write, and a VMM can say as many as it likes. */
#define NOTES_MAX 20U
#define NOTES_USEC (10 * USEC_PER_SEC)
#define FLIPS_MAX 10U
#define FLIPS_USEC (5 * USEC_PER_SEC)

#define SHARE_CAUSE "virtiofsd-crashed:" /* what the run file says of a VM that is ended for that, with the share's tag */

const char *vm_backend_title(const VM *vm) {
        return vm->ops ? vm->ops->title : "the VMM";
}

void vm_describe_exit(VM *vm, char *buf, size_t size) {
        const Run *r = vm->run;

        if (!r || !r->exit_known)
                snprintf(buf, size, "%s has ended", vm_backend_title(vm));
        else if (WIFSIGNALED(r->status))
                snprintf(buf, size, "%s was killed by signal %d (SIG%s)", vm_backend_title(vm), WTERMSIG(r->status),
                         sigabbrev_np(WTERMSIG(r->status)) ?: "?");
        else
                snprintf(buf, size, "%s exited with status %d", vm_backend_title(vm), WEXITSTATUS(r->status));
}

bool vm_has_process(const VM *vm) {
        return (vm->run && run_has_process(vm->run)) || shares_living(vm);
}

bool vm_hangs(const VM *vm, char *buf, size_t size) {
        const Share *share = shares_living(vm);

        if (vm->run && run_has_process(vm->run))
                (void) snprintf(buf, size, "%s can't be ended: process %d hangs in the kernel", vm_backend_title(vm), (int) vm->run->pid);
        else if (share)
                (void) snprintf(buf, size, "%s %s: its %s can't be ended: process %d in %s hangs in the kernel", share_title(share),
                                share->tag, share_program(share), (int) share->run->pid, share->scope);
        return vm_has_process(vm);
}

/* What a death means when nobody asked for it */

static VMMEvent death_cause(VM *vm) {
        _cleanup_free_ char *output = NULL;

        if (vm->last_event != _VMM_EVENT_MAX)
                return vm->last_event;
        if (!vm->run->exit_known || !vm->ops)
                return _VMM_EVENT_MAX;
        if (vm_get_last_output(vm, &output) < 0)
                return _VMM_EVENT_MAX;
        return vm->ops->exit_cause(vm->run->status, output);
}

/* One that can't go on, or says by its status that it could not: by itself, or for want of a share to which it connects. */
static bool has_given_up(VM *vm, VMMEvent cause) {
        const Run *r = vm->run;

        if (!vm->ops || !vm->ops->connects_shares)
                return false;
        return cause == VMM_EVENT_FAILED ||
                (cause == _VMM_EVENT_MAX && r->exit_known && WIFEXITED(r->status) && WEXITSTATUS(r->status) != 0);
}

/* The tag of the share for whose virtiofsd it has ended, or NULL */
static const char *share_of_end(VM *vm, VMMEvent cause) {
        const Share *share = has_given_up(vm, cause) ? shares_crashed(vm) : NULL;

        return startswith(vm->run->end_cause, SHARE_CAUSE) ?: share ? share->tag : NULL;
}

static void vm_show_death(VM *vm) {
        VMMEvent cause = death_cause(vm);
        const char *share = share_of_end(vm, cause);

        if (share) {
                (void) vm_transition(vm, TRANSITION_VIRTIOFSD_CRASHED, INTENT_KEEP, "The virtiofsd of its share %s has died", share);
                return;
        }
        switch (cause) {
        case VMM_EVENT_GUEST_SHUTDOWN:
                (void) vm_transition(vm, TRANSITION_GUEST_SHUTDOWN, false, "The guest has powered off");
                break;
        case VMM_EVENT_GUEST_RESET:
                (void) vm_transition(vm, TRANSITION_GUEST_REBOOT, false, "The guest has rebooted, which ends %s",
                                     vm_backend_title(vm));
                break;
        case VMM_EVENT_GUEST_PANICKED:
                (void) vm_transition(vm, TRANSITION_GUEST_PANICKED, INTENT_KEEP, "The guest's kernel has panicked");
                break;
        case VMM_EVENT_EXITED:
                (void) vm_transition(vm, TRANSITION_VMM_EXITED, false, "%s has ended in good order", vm_backend_title(vm));
                break;
        case VMM_EVENT_FAILED:
                (void) vm_transition(vm, TRANSITION_VMM_FAILED, INTENT_KEEP, "%s could not go on running the guest",
                                     vm_backend_title(vm));
                break;
        default:
                (void) vm_transition(vm, TRANSITION_VMM_CRASHED, INTENT_KEEP, "%s has died unexpectedly",
                                     vm_backend_title(vm));
        }
}

/* The last words of a VMM that failed are an entry of their own, for they are not vmunit's. */
void vm_log_last_words(VM *vm) {
        _cleanup_free_ char *output = NULL, *field = NULL, *id = NULL, *unit = NULL;

        if (vm_get_last_output(vm, &output) < 0 || !*output)
                return;
        field = strjoinf("VMUNIT_VM=%s", vm->rec.name);
        id = strjoinf("VMUNIT_VM_ID=%s", vm->rec.id);
        unit = strjoinf("OBJECT_SYSTEMD_UNIT=%s", vm->scope);
        if (!field || !id || !unit)
                return;
        log_full_fields(LOG_NOTICE, 0,
                        ((const char *[]) { "SYSLOG_IDENTIFIER=vmunit-vmm", "MESSAGE_ID=" MESSAGE_VM_OUTPUT, field, id,
                                            unit, NULL }), "%s", output);
}

static bool is_live_state(VMState s) {
        return s == VM_RUNNING || s == VM_PAUSED;
}

static const char *const end_causes[_VMM_EVENT_MAX] = {
        [VMM_EVENT_GUEST_SHUTDOWN] = "guest-shutdown",
        [VMM_EVENT_GUEST_RESET] = "guest-reset",
        [VMM_EVENT_GUEST_PANICKED] = "guest-panicked",
        [VMM_EVENT_FAILED] = "vmm-failed",
};

/* Its exit status will not tell why, if this daemon ends before it does. */
static void note_end_cause(VM *vm, const char *prefix, const char *why) {
        int r;

        if (vm->run->end_cause[0])
                return;
        snprintf(vm->run->end_cause, sizeof(vm->run->end_cause), "%s%s", prefix, why);
        r = run_write_file(vm->run, vm->manager->boot_id);
        if (r < 0 && r != -ESRCH)
                vm_log(vm, LOG_WARNING, "can't note why it is ended, should vmunitd end: %s", strerror(-r));
}

void vm_put_down(VM *vm, VMMEvent why) {
        const Share *share = has_given_up(vm, why) ? shares_crashed(vm) : NULL;

        if (share) {
                vm_put_down_for_share(vm, share->tag);
                return;
        }
        vm->last_event = why;
        note_end_cause(vm, "", strempty(end_causes[why]));
        run_kill(vm->run);
}

void vm_put_down_for_share(VM *vm, const char *tag) {
        note_end_cause(vm, SHARE_CAUSE, tag);
        run_kill(vm->run);
}

static void vm_died_unasked(VM *vm) {
        if (relaunch_died(vm, death_cause(vm)))
                return;
        call_end(vm, VMUNIT_ERROR_NOT_RUNNING, "the VM has ended");
        update_end(vm, VMUNIT_ERROR_NOT_RUNNING, "the VM has ended; update it now");
        vm_show_death(vm);
}

static bool on_awaits(void *userdata) {
        VM *vm = userdata;

        return is_live_state(vm->rec.state) && !start_owns_run(vm) && !startswith(vm->run->end_cause, SHARE_CAUSE) && has_given_up(vm, death_cause(vm)) &&
                shares_undecided(vm);
}

/* Its last event, unread as yet, says why it ended. */
static void drain(VM *vm) {
        if (vm->vmm)
                vm->ops->drain(vm->vmm);
}

/* Its exit status will tell nothing but that. */
static void on_killed(void *userdata) {
        VM *vm = userdata;

        if (start_owns_run(vm)) /* which tells it with the status */
                return;
        drain(vm);
        vm_emit_changed(vm, "LeaderPID", NULL);
        if (is_live_state(vm->rec.state) && !on_awaits(vm))
                vm_died_unasked(vm);
}

static void on_died(void *userdata) {
        VM *vm = userdata;

        (void) FAULT_POINT("exit.seen", 0, 0);
        drain(vm);
        if (start_owns_run(vm)) {
                start_run_died(vm);
                return;
        }
        vm_emit_changed(vm, "LeaderPID", NULL);
        /* Else the exit status has to tell what it was. */
        if (is_live_state(vm->rec.state) && !on_awaits(vm) &&
            ((vm->ops && vm->ops->tells_end && (vm->vmm || vm->heard_all)) || vm->last_event != _VMM_EVENT_MAX))
                vm_died_unasked(vm);
}

void vm_set_exit(VM *vm) {
        const Run *r = vm->run;

        vm->rec.exit_known = r->exit_known;
        vm->rec.exit_code = r->exit_known && WIFEXITED(r->status) ? WEXITSTATUS(r->status) : 0;
        vm->rec.exit_signal = r->exit_known && WIFSIGNALED(r->status) ? WTERMSIG(r->status) : 0;
        vm_emit_changed(vm, "ExitCode", "ExitSignal", "ExitKnown", NULL);
}

static void vm_tell_exit(VM *vm) {
        _cleanup_json_ json_object *d = json_object_new_object();
        char text[128];

        vm_set_exit(vm);
        vm_describe_exit(vm, text, sizeof(text));
        if (d && vm->rec.exit_known) {
                json_object_object_add(d, "exit-code", json_object_new_int(vm->rec.exit_code));
                json_object_object_add(d, "exit-signal", json_object_new_int(vm->rec.exit_signal));
        }
        vm_write_exit(vm, d, text);
}

static void on_status(void *userdata) {
        VM *vm = userdata;

        if (start_owns_run(vm)) {
                start_run_status(vm);
                return;
        }
        if (!vm->run->dead)
                return;

        vm_tell_exit(vm);
        if (is_live_state(vm->rec.state))
                vm_died_unasked(vm);
        else if (vm->call_waits)
                call_end(vm, VMUNIT_ERROR_NOT_RUNNING, "the VM has ended");
        if (vm->rec.state == VM_ERROR)
                vm_log_last_words(vm);
        vm_end_run(vm);
}

/* A stop by the host's shutdown does not end the intent to run, as one by an administrator does. */
static void on_system_state(void *userdata, const char *value, const sd_bus_error *error) {
        bool shutdown = value && streq(value, "stopping");
        VM *vm = userdata;

        vm->stop_query = systemd_call_free(vm->stop_query);
        vm_log(vm, LOG_INFO, shutdown ? "systemd stops its scope: the host shuts down" : "systemd stops its scope");
        if (start_owns_run(vm))
                (void) start_cancel(vm, CALL_STOP, shutdown, NULL, NULL);
        else if (is_live_state(vm->rec.state) || vm_get_condition(vm) == CONDITION_ERROR_ALIVE)
                (void) vm_stop(vm, 0, VM_STOP_TIMEOUT_DEFAULT, shutdown, NULL, NULL, NULL);
}

void vm_stop_asked(VM *vm) {
        if (vm->stop_query)
                return;
        if (systemd_get_manager(vm->manager->systemd, "SystemState", on_system_state, vm, &vm->stop_query) < 0)
                on_system_state(vm, NULL, NULL);
}

static void on_stop_asked(void *userdata) {
        vm_stop_asked(userdata);
}

static void on_gone(void *userdata) {
        VM *vm = userdata;
        bool oom = streq(vm->run->result, "oom-kill");

        if (vm->start) {
                start_run_gone(vm);
                return;
        }

        vm->clean = true;
        vm->slice_left = vm->run->slice_left;
        vm->run = run_free(vm->run);
        if (oom && vm->rec.state == VM_ERROR)
                (void) vm_transition(vm, TRANSITION_OOM_KILL, INTENT_KEEP, "It was killed for want of memory");

        if (vm->stop)
                stop_run_gone(vm);
        else if (vm->rec.state == VM_REMOVING)
                remove_run_gone(vm);
        else if (relaunch_pending(vm))
                relaunch_run_gone(vm);
}

static const RunHandler run_handler = {
        .killed = on_killed,
        .died = on_died,
        .status = on_status,
        .awaits = on_awaits,
        .stop_asked = on_stop_asked,
        .gone = on_gone,
};

void vm_end_run(VM *vm) {
        vm_disconnect(vm);
        shares_end(vm);
        if (vm->run)
                run_end(vm->run);
        if (vm->stop)
                stop_run_ends(vm);
}

/* The VMM's API */

/* How many times this one is; more than max: one too many for now */
static unsigned budget_take(VM *vm, Budget *b, uint64_t usec) {
        uint64_t now = 0;

        (void) sd_event_now(vm->manager->event, CLOCK_MONOTONIC, &now);
        if (b->n == 0 || now - b->since_usec >= usec)
                *b = (Budget) { .since_usec = now };
        return ++b->n;
}

static void show_state(VM *vm, VMMState state);

static int on_settle(sd_event_source *source, uint64_t usec, void *userdata) {
        VM *vm = userdata;

        vm->settle = sd_event_source_disable_unref(vm->settle);
        if (!vm->start && vm_is_alive(vm))
                show_state(vm, vm->vmm_state);
        return 0;
}

/* Of a VMM that goes to and fro all the time only the state in which it is at last is shown, a little later. */
static bool may_flip(VM *vm) {
        unsigned n = budget_take(vm, &vm->flips, FLIPS_USEC);

        if (n <= FLIPS_MAX)
                return true;
        if (n == FLIPS_MAX + 1 && !vm->job) /* what was asked for is shown with the answer */
                vm_log(vm, LOG_WARNING, "%s pauses and resumes the guest more often than can be shown", vm_backend_title(vm));
        if (!vm->settle && sd_event_add_time(vm->manager->event, &vm->settle, CLOCK_MONOTONIC,
                                             vm->flips.since_usec + FLIPS_USEC, 0, on_settle, vm) < 0)
                return true;
        return false;
}

static void on_running(VM *vm) {
        if (vm->rec.state == VM_PAUSED && !may_flip(vm))
                return;
        if (vm->rec.state == VM_PAUSED)
                (void) vm_transition(vm, TRANSITION_RESUMED, INTENT_KEEP, "The guest goes on");
        else if (vm->rec.state == VM_ERROR || vm->rec.state == VM_STOPPED)
                (void) vm_transition(vm, TRANSITION_FOUND_RUNNING, INTENT_KEEP, "%s", "");
}

static const char *why_paused(const VM *vm) {
        return vm->vmm && vm->ops->why ? vm->ops->why(vm->vmm) : NULL;
}

static void on_paused(VM *vm, VMTransition t) {
        if (vm->rec.state == VM_RUNNING && !may_flip(vm))
                return;
        if (vm->rec.state == VM_RUNNING && t == TRANSITION_IO_ERROR)
                (void) vm_transition(vm, t, INTENT_KEEP, "A disk error has stopped the guest; Resume tries again");
        else if (vm->rec.state == VM_RUNNING)
                (void) vm_transition(vm, t, INTENT_KEEP, "%s", why_paused(vm) ?: "The guest is paused");
        else if (vm->rec.state == VM_ERROR || vm->rec.state == VM_STOPPED)
                (void) vm_transition(vm, TRANSITION_FOUND_PAUSED, INTENT_KEEP, "%s", "");
}

static void show_state(VM *vm, VMMState state) {
        if (state == VMM_STATE_RUNNING)
                on_running(vm);
        else if (state == VMM_STATE_PAUSED)
                on_paused(vm, TRANSITION_PAUSED);
        else if (state == VMM_STATE_IO_ERROR)
                on_paused(vm, TRANSITION_IO_ERROR);
}

/* After (re)connecting: the state as the VMM says. */
static void on_connected(VM *vm, VMMState state) {
        switch (state) {
        case VMM_STATE_RUNNING:
                on_running(vm);
                (void) reboot_connected(vm, state);
                break;
        case VMM_STATE_NOT_STARTED:
                if (reboot_connected(vm, state))
                        break;
                if (!vm->ops->reboot) { /* somebody else has taken its guest away */
                        vm_put_down(vm, VMM_EVENT_FAILED);
                        break;
                }
                __attribute__((__fallthrough__));
        case VMM_STATE_PAUSED:
                on_paused(vm, TRANSITION_PAUSED);
                break;
        case VMM_STATE_IO_ERROR:
                on_paused(vm, TRANSITION_IO_ERROR);
                break;
        case VMM_STATE_SHUTDOWN:
                if (!reboot_connected(vm, state))
                        vm_put_down(vm, VMM_EVENT_GUEST_SHUTDOWN);
                break;
        case VMM_STATE_FAILED:
                vm_put_down(vm, VMM_EVENT_FAILED);
                break;
        case VMM_STATE_UNKNOWN:
                break;
        }
}

static int on_reconnect(sd_event_source *source, uint64_t usec, void *userdata) {
        VM *vm = userdata;

        vm->reconnect = sd_event_source_disable_unref(vm->reconnect);
        if (!vm->vmm && vm_is_alive(vm))
                vm_try_connect(vm);
        return 0;
}

static uint64_t reconnect_delay(unsigned n_tries) {
        uint64_t delay = RECONNECT_USEC;

        for (unsigned i = 0; i < n_tries && delay < RECONNECT_MAX_USEC; i++)
                delay *= 2;
        return MIN(delay, RECONNECT_MAX_USEC);
}

static void reconnect_later(VM *vm) {
        uint64_t delay = reconnect_delay(vm->n_reconnects);
        int r;

        vm->n_reconnects++;
        vm->reconnect = sd_event_source_disable_unref(vm->reconnect);
        r = sd_event_add_time_relative(vm->manager->event, &vm->reconnect, CLOCK_MONOTONIC, delay, 0, on_reconnect, vm);
        if (r < 0)
                vm_log(vm, LOG_ERR, "no timer for the next connection: %s", strerror(-r));
}

/* Told once, with the first try that could not do better. */
static void not_connected(VM *vm, int error) {
        vm_log(vm, vm->n_reconnects == 1 ? LOG_WARNING : LOG_DEBUG,
               "%s can't be reached (%s); it runs on, and is tried again from time to time", vm_backend_title(vm), strerror(-error));
        reconnect_later(vm);
}

void vm_try_connect(VM *vm) {
        int r;

        r = vm_connect(vm);
        if (r < 0)
                not_connected(vm, r);
}

/* Most often its process is about to end. If it is not, another connection may do better. */
static void on_disconnected(VM *vm, int error) {
        vm_disconnect(vm);
        vm->heard_all = error == -EPIPE;
        not_connected(vm, error);
}

/* What changes no state, and what a VMM can say as often as it likes */
static void vm_note(VM *vm, const char *type, const char *sentence) {
        unsigned n = budget_take(vm, &vm->notes, NOTES_USEC);

        if (n <= NOTES_MAX)
                vm_add_event(vm, type, NULL, "%s", sentence);
        else if (n == NOTES_MAX + 1)
                vm_log(vm, LOG_WARNING, "%s tells of more than can be kept for now", vm_backend_title(vm));
}

static void on_vmm_event(void *userdata, VMMEvent event, VMMState state, int error) {
        VM *vm = userdata;
        bool rebooting = vm->job && vm->job->call == CALL_REBOOT;

        vm->vmm_state = state;
        if (vm->start) {
                if (event == VMM_EVENT_GUEST_SHUTDOWN || event == VMM_EVENT_GUEST_PANICKED)
                        vm->last_event = event;
                start_vmm_event(vm, event, state, error);
                return;
        }

        switch (event) {
        case VMM_EVENT_CONNECTED:
                vm_log(vm, vm->n_reconnects > 1 ? LOG_NOTICE : LOG_DEBUG, "%s answers", vm_backend_title(vm));
                vm->n_reconnects = 0;
                on_connected(vm, state);
                stop_connected(vm);
                call_connected(vm);
                break;
        case VMM_EVENT_RUNNING:
                if (rebooting)
                        reboot_runs(vm);
                else
                        on_running(vm);
                break;
        case VMM_EVENT_PAUSED:
                if (!rebooting)
                        on_paused(vm, TRANSITION_PAUSED);
                break;
        case VMM_EVENT_IO_ERROR:
                on_paused(vm, TRANSITION_IO_ERROR);
                break;
        case VMM_EVENT_POWER_BUTTON:
                reboot_pressed(vm);
                vm_note(vm, "power-button", "The power button was pressed");
                break;
        case VMM_EVENT_GUEST_RESET:
                vm->last_event = _VMM_EVENT_MAX;
                shares_reset(vm);
                vm_note(vm, "guest-reset", "The guest was reset");
                break;
        case VMM_EVENT_GUEST_GONE:
                if (!vm_is_alive(vm))
                        break;
                vm_log(vm, LOG_INFO, "%s hangs since its guest has ended, and is killed", vm_backend_title(vm));
                vm_put_down(vm, VMM_EVENT_GUEST_RESET);
                break;
        case VMM_EVENT_GUEST_SHUTDOWN:
                vm->last_event = event; /* also in a reboot: what belongs to that is not told */
                break;
        case VMM_EVENT_GUEST_PANICKED:
                vm_put_down(vm, event);
                break;
        case VMM_EVENT_FAILED:
                vm_put_down(vm, event);
                break;
        case VMM_EVENT_EXITED:
                vm->last_event = event;
                break;
        case VMM_EVENT_SHUTDOWN:
                /* by a signal from outside, or by our own stop: the process's end says the rest */
                break;
        case VMM_EVENT_DISCONNECTED:
                on_disconnected(vm, error);
                break;
        case _VMM_EVENT_MAX:
                break;
        }
}

int vm_connect(VM *vm) {
        int r;

        if (!vm->ops)
                return -EOPNOTSUPP;
        vm->last_event = _VMM_EVENT_MAX;
        vm->heard_all = false;
        r = vm->ops->connect(vm->manager->event, vm->run_dir, on_vmm_event, vm, &vm->vmm);
        if (r >= 0)
                vm->vmm->pid = vm->run->pid;
        return r;
}

bool vm_is_connected(const VM *vm) {
        return vm->vmm && vm->vmm_state != VMM_STATE_UNKNOWN;
}

void vm_disconnect(VM *vm) {
        VMM *v = TAKE_PTR(vm->vmm);

        vm->vmm_state = VMM_STATE_UNKNOWN;
        vm->n_buttons = 0;
        if (v)
                v->ops->free(v);
}

/* Takeover */

int vm_new_run(VM *vm) {
        int r;

        r = run_new(vm->manager->event, vm->manager->systemd, &run_handler, vm, &vm->run);
        if (r < 0)
                return r;
        vm->n_reconnects = 0;
        vm->run->scope = vm->scope;
        vm->run->slice = vm->slice;
        vm->run->run_dir = vm->run_dir;
        vm->run->numbers = (VMNumbers) { .seq = vm->rec.seq, .slot = vm->rec.slot };
        vm->run->n_others = &vm->n_share_runs;
        vm->slice_made = false;
        return 0;
}

static int find_shares(VM *vm) {
        int r, k;

        r = shares_find(vm);
        for (size_t i = 0; r >= 0 && i < vm->n_shares; i++) {
                r = share_new_run(vm->shares + i);
                if (r < 0)
                        return r;
                k = run_find(vm->shares[i].run, vm->manager->boot_id);
                vm->shares[i].run->dead = k < 0;
                vm->shares[i].unborn = k == -ENOENT;
        }
        return r;
}

int vm_find_run(VM *vm) {
        int r;

        r = vm_new_run(vm);
        if (r >= 0)
                r = find_shares(vm);
        return r < 0 ? r : run_find(vm->run, vm->manager->boot_id);
}

/* Nobody waits for it any more, but a restart policy and a reboot go on, and what is to run after a boot of the host is not forgotten. */
static void start_interrupted(VM *vm) {
        const Config *c = vm->manager->config;
        bool by_itself = vm->rec.restart_count > 0 || vm->rec.start_from == VM_RUNNING;

        (void) vm_transition(vm, start_ends_in_error(vm, by_itself) ? TRANSITION_RESTART_FAILED : TRANSITION_START_FAILED,
                             by_itself ? INTENT_KEEP : false, "vmunitd was interrupted while it started");
        if (by_itself && vm->rec.restart_at == 0 && vm->definition->restart_policy == RESTART_NO &&
            vm->rec.restart_count < vm->definition->restart_max)
                (void) restart_plan_start(vm, now_realtime() + c->restart_usec, vm->rec.restart_count);
}

static int found_alive(VM *vm) {
        vm_log(vm, LOG_INFO, "found again, PID %d", (int) vm->run->pid);
        if (!vm->ops) { /* the database was older than this run */
                vm->ops = vmm_ops(backend_from_string(vm->run->backend));
                if (vm->ops)
                        (void) free_and_strdup(&vm->rec.backend, vm->run->backend);
        }
        if (!vm->ops) {
                run_kill(vm->run);
                return 0;
        }
        if (vm->run->helper_dead)
                run_kill(vm->run); /* as when its parent dies before our eyes */
        vm->slice_made = true;
        shares_take_over(vm);
        if (vm->manager->connects)
                vm_try_connect(vm);

        switch (vm->rec.state) {
        case VM_STARTING:
                run_kill(vm->run); /* before it is written that nothing runs */
                start_interrupted(vm);
                break;
        case VM_STOPPING:
                if (!relaunch_pending(vm))
                        return stop_begin(vm, CALL_STOP, 0, VM_STOP_TIMEOUT_DEFAULT, INTENT_KEEP, NULL, NULL);
                run_kill(vm->run);
                break;
        default:
                return reboot_take_over(vm);
        }
        return 0;
}

/* A state may be that of after the end, shown before its status was known. */
static bool exit_is_told(VM *vm) {
        Store *s = vm->manager->store;
        bool ran = is_live_state(vm->rec.state) || vm->rec.state == VM_STOPPING;
        LastStep step;

        if (!ran && !vm->run->exit_known && store_usage_is_open(s, vm->rec.id) <= 0)
                return true;
        if (store_last_step(s, vm->rec.id, &step) < 0)
                return false;
        return step == LAST_STEP_EXITED || (!ran && step != LAST_STEP_RUNNING);
}

void vm_found_exit(VM *vm) {
        _cleanup_free_ char *path = strjoinf("%s/exit", vm->run_dir);

        if (path && helper_read_exit(path, &vm->run->status) >= 0)
                vm->run->exit_known = true;
        if (!exit_is_told(vm))
                vm_tell_exit(vm);
}

static void found_cause(VM *vm) {
        for (VMMEvent e = 0; e < _VMM_EVENT_MAX; e++)
                if (end_causes[e] && streq(end_causes[e], vm->run->end_cause))
                        vm->last_event = e;
}

static void found_dead(VM *vm) {
        vm->run->dead = true;
        found_cause(vm);

        switch (vm->rec.state) {
        case VM_STARTING:
                start_interrupted(vm);
                break;
        case VM_STOPPING:
                vm_found_exit(vm);
                if (relaunch_pending(vm))
                        break;
                if (!shares_living(vm) || stop_begin(vm, CALL_STOP, 0, VM_STOP_TIMEOUT_DEFAULT, INTENT_KEEP, NULL, NULL) < 0)
                        (void) vm_transition(vm, TRANSITION_STOPPED, INTENT_KEEP, "It has stopped while vmunitd was away");
                break;
        case VM_RUNNING:
        case VM_PAUSED:
                vm_found_exit(vm);
                if (!relaunch_found(vm, death_cause(vm)))
                        vm_show_death(vm);
                if (vm->rec.state == VM_ERROR)
                        vm_log_last_words(vm);
                break;
        default:
                /* An Error or a Stopped whose VMM lived on, or whose end was only half told */
                vm_found_exit(vm);
                break;
        }
        vm->run->status_told = true;
        vm_end_run(vm);
}

static bool other_boot(const VM *vm) {
        return vm->rec.boot_id[0] && !streq(vm->rec.boot_id, vm->manager->boot_id);
}

int vm_take_over(VM *vm) {
        int r;

        if (vm->rec.restart_at > 0 && other_boot(vm)) {
                vm->rec.restart_at = 0; /* what is to run after a boot is told by OnBoot= */
                (void) vm_write_record(vm, &vm->rec, 0);
        }
        restart_arm(vm);
        if (vm->rec.state == VM_REMOVING)
                return remove_begin(vm);
        if (other_boot(vm) && vm->rec.state != VM_ERROR && vm->rec.state != VM_STOPPED)
                return vm_transition(vm, TRANSITION_HOST_REBOOT, INTENT_KEEP, "The host was rebooted");

        (void) FAULT_POINT("takeover.before", 0, 0);
        r = vm_find_run(vm);
        if (r < 0 && r != -ENOENT && r != -ESRCH && r != -EXDEV)
                return r; /* that tells nothing of the VM */
        if (r == -ENOENT && vm->rec.state == VM_STOPPED && access(vm->run_dir, F_OK) < 0) {
                vm->run = run_free(vm->run); /* as it should be */
                return 0;
        }
        (void) FAULT_POINT("takeover.found", FAULT_VMM, vm_leader_pid(vm));
        if (r < 0)
                found_dead(vm);
        else {
                r = found_alive(vm);
                if (r < 0)
                        return r;
        }
        (void) FAULT_POINT("takeover.after", FAULT_VMM, vm_leader_pid(vm));
        return 0;
}
