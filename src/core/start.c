/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "basic/fault.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share.h"
#include "core/start-private.h"

/* How a start goes through its steps, fails, is cancelled, and what it does with news of the VMM meanwhile. */

int start_error(Start *s, int r, const char *name, const char *format, ...) {
        char text[2 * 4096 + 512];
        va_list ap;

        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        if (sd_bus_error_is_set(&s->error))
                return r;
        if (streq(name, VMUNIT_ERROR_NOT_SUPPORTED)) /* begins with the path in the definition */
                sd_bus_error_set(&s->error, name, text);
        else
                sd_bus_error_setf(&s->error, name, "%s: %s", s->vm->rec.name, text);
        return r;
}

int start_errno(Start *s, int r, const char *what) {
        if (r == -ENOSPC || r == -EDQUOT)
                return start_error(s, r, VMUNIT_ERROR_NO_SPACE, "%s: no space left: make room in /run and /var/lib/vmunit", what);
        return start_error(s, r, VMUNIT_ERROR_BACKEND_FAILED, "%s: %s", what, strerror(-r));
}

void start_failed(Start *s, int r, const char *what) {
        (void) start_errno(s, r, what);
        start_fail(s);
}


Start *start_free(Start *s) {
        sd_bus_error e = DAEMON_ENDS_ERROR;

        if (!s)
                return NULL;

        systemd_call_free(s->call);
        start_undo_launch(s);
        start_undo_open(s);
        start_undo_files(s);
        sd_event_source_disable_unref(s->kick);
        sd_event_source_disable_unref(s->deadline);
        launch_plan_free(s->plan);
        waiters_tell(&s->cancel_waiters, &e);
        sd_bus_error_free(&s->error);
        free(s->description);
        strv_free(s->devices);
        free(s->opens);
        free(s);
        return NULL;
}

static void start_succeeded(Start *s) {
        VM *vm = s->vm;
        Job *j = vm->job;

        vm->start = NULL;
        vm->slice_left = false;
        (void) vm_transition(vm, TRANSITION_STARTED, INTENT_KEEP, "%s", "");
        if (vm->rec.start_from == VM_RUNNING)
                vm_add_event(vm, "rebooted", NULL, "The guest was rebooted, with a new %s", vm_backend_title(vm));
        start_free(s);
        job_finish(j, NULL, false);
}

#ifdef FAULT_INJECTION
static void list_steps(fault_list_cb cb) {
        for (unsigned i = 0; i < n_start_steps; i++) {
                unsigned vmm = i > START_STEP_FORK ? FAULT_VMM : 0;
                char name[64];

                snprintf(name, sizeof(name), "start.%s.before", start_steps[i].name);
                cb(name, FAULT_FAILS | FAULT_HANGS | vmm);
                snprintf(name, sizeof(name), "start.%s.waiting", start_steps[i].name);
                if (start_steps[i].waits)
                        cb(name, vmm);
                snprintf(name, sizeof(name), "start.%s.after", start_steps[i].name);
                cb(name, FAULT_FAILS | FAULT_HANGS | (i >= START_STEP_FORK ? FAULT_VMM : 0));
        }
}

FAULT_TABLE(fault_steps, list_steps);
#endif

/* Whether the step goes on */
static bool start_passes(Start *s, const char *when) {
        int r = FAULT_POINT_NAMED("start", start_steps[s->step].name, when, vm_leader_pid(s->vm));

        s->hung = r > 0;
        if (r < 0)
                start_failed(s, r, "fault"); /* which may free it */
        return r == 0;
}

static void start_run_steps(Start *s) {
        while (s->step < n_start_steps) {
                int r;

                job_set_stage(s->vm->job, start_steps[s->step].name, (double) s->step / n_start_steps);
                if (!start_passes(s, "before"))
                        return;
                r = start_steps[s->step].act(s);
                if (r < 0) {
                        start_fail(s);
                        return;
                }
                if (r == STEP_WAITS) {
                        (void) start_passes(s, "waiting");
                        return;
                }
                if (!start_passes(s, "after"))
                        return;
                s->step++;
        }
        start_succeeded(s);
}

void start_continue(Start *s) {
        if (s->failing || s->hung || !start_passes(s, "after"))
                return;
        s->step++;
        start_run_steps(s);
}

/* The words of a VMM that died while it started, for the caller alone. */
static void start_tell_death(Start *s) {
        _cleanup_free_ char *output = NULL;
        char how[128];

        vm_describe_exit(s->vm, how, sizeof(how));
        (void) vm_get_last_output(s->vm, &output);
        (void) start_error(s, -EIO, VMUNIT_ERROR_BACKEND_FAILED, "%s while it started%s%s", how, isempty(output) ? "" : ": ",
                           strempty(output));
}

bool start_ends_in_error(const VM *vm, bool by_itself) {
        return by_itself || vm->rec.start_from != VM_STOPPED;
}

static void start_rolled_back(Start *s) {
        VM *vm = s->vm;
        Job *j = vm->job;

        vm->start = NULL;
        (void) rm_rf(vm->run_dir); /* where no run has begun, nobody else has */
        if (vm->rec.state == VM_REMOVING)
                sd_bus_error_setf(&s->error, VMUNIT_ERROR_CANCELED, "%s: it is being removed", vm->rec.name);
        else if (s->canceled) {
                (void) vm_transition(vm, s->canceled_by == CALL_STOP ? TRANSITION_START_STOPPED : TRANSITION_START_KILLED,
                                     s->keep_intent ? INTENT_KEEP : false, "Its start was canceled");
                if (!sd_bus_error_is_set(&s->error)) /* else it had failed by itself, just before */
                        sd_bus_error_setf(&s->error, VMUNIT_ERROR_CANCELED, "%s: its start was canceled by %s", vm->rec.name,
                                          vm_call_to_string(s->canceled_by));
        } else {
                (void) vm_transition(vm, start_ends_in_error(vm, vm->by_itself) ? TRANSITION_RESTART_FAILED : TRANSITION_START_FAILED,
                                     vm->by_itself ? INTENT_KEEP : false,
                                     "The start failed at the step '%s'; it was rolled back", start_steps[s->step].name);
        }

        job_finish(j, &s->error, s->canceled);
        waiters_tell(&s->cancel_waiters, NULL);
        start_free(s);
        if (vm->rec.state == VM_REMOVING)
                (void) remove_begin(vm);
}

/* What a step that hangs waits for, where that is known */
static void describe_wait(Start *s, char *buf, size_t size) {
        const Share *share = NULL;

        if (s->step == START_STEP_CLEAR)
                (void) vm_hangs(s->vm, buf, size);
        else if (s->step == START_STEP_SHARES)
                share = shares_waited_for(s->vm);
        else if (s->step > START_STEP_EXEC)
                share = shares_connected_last(s->vm);
        if (share)
                (void) snprintf(buf, size, "no answer from the %s of %s", share_program(share), share->tag);
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *userdata) {
        Start *s = userdata;
        char why[512] = "";

        describe_wait(s, why, sizeof(why));
        (void) start_error(s, -ETIMEDOUT, VMUNIT_ERROR_TIMEOUT, "did not run within %" PRIu64 " s; it hung in the step '%s'%s%s",
                           s->vm->manager->config->start_timeout_usec / USEC_PER_SEC, start_steps[s->step].name, why[0] ? ": " : "", why);
        start_fail(s);
        return 0;
}

/* Nothing but the kernel can end what is left. When it does, the VM's run is gone. */
static void start_gave_up(Start *s, const char *why) {
        VM *vm = s->vm;
        Job *j = vm->job;

        vm->start = NULL;
        (void) start_error(s, -ETIMEDOUT, VMUNIT_ERROR_TIMEOUT, "%s", why);
        if (vm->rec.state == VM_STARTING)
                (void) vm_transition(vm, TRANSITION_STOP_FAILED, INTENT_KEEP, "%s", why);
        job_finish(j, &s->error, s->canceled);
        waiters_tell(&s->cancel_waiters, &s->error);
        start_free(s);
        if (vm->rec.state == VM_REMOVING)
                (void) remove_begin(vm);
}

static int on_rollback_late(sd_event_source *source, uint64_t usec, void *userdata);

static void start_watch_rollback(Start *s) {
        VM *vm = s->vm;

        s->deadline = sd_event_source_disable_unref(s->deadline);
        if (sd_event_add_time_relative(vm->manager->event, &s->deadline, CLOCK_MONOTONIC, VM_KILL_TIMEOUT_USEC, 0, on_rollback_late, s) < 0)
                vm_log(vm, LOG_WARNING, "no timer for the start's rollback");
}

/* PID 1 may have to be waited for, also without an end. */
static int on_rollback_late(sd_event_source *source, uint64_t usec, void *userdata) {
        Start *s = userdata;
        char why[512];

        if (!s->scope_pending && vm_hangs(s->vm, why, sizeof(why)))
                start_gave_up(s, why);
        else
                start_watch_rollback(s);
        return 0;
}

static void start_anew(Start *s);

void start_end_run(Start *s) {
        if (s->vm->run)
                run_end(s->vm->run);
        else if (s->again && !s->canceled)
                start_anew(s);
        else
                start_rolled_back(s);
}

/* What was in the way is gone, with all that this start had made. */
static void start_anew(Start *s) {
        s->again = s->failing = false;
        s->deadline = sd_event_source_disable_unref(s->deadline);
        s->step = 0;
        s->vmm_forked = s->invocation_known = s->asked_again = s->told_to_execute = s->executed = s->connected = s->booted = s->version_asked = false;
        s->kernel = (FileHead) {};
        sd_bus_error_free(&s->error);
        s->n_fds = s->n_share_fds = 0;
        free(TAKE_PTR(s->opens));
        free(TAKE_PTR(s->description));
        if (sd_event_add_time_relative(s->vm->manager->event, &s->deadline, CLOCK_MONOTONIC,
                                       s->vm->manager->config->start_timeout_usec, 0, on_deadline, s) < 0)
                vm_log(s->vm, LOG_WARNING, "no timer for the start");
        start_run_steps(s);
}

void start_fail(Start *s) {
        VM *vm = s->vm;

        if (s->failing)
                return;
        s->failing = true;
        s->deadline = sd_event_source_disable_unref(s->deadline);
        if (sd_bus_error_is_set(&s->error) && !s->canceled && !s->again)
                vm_log(vm, LOG_ERR, "can't start: step '%s'", start_steps[s->step].name);

        for (unsigned i = s->step + 1; i-- > 0;)
                if (start_steps[i].undo)
                        start_steps[i].undo(s);

        job_set_stage(vm->job, "rollback", -1);
        start_watch_rollback(s);
        if (s->scope_pending)
                run_kill(vm->run); /* else PID 1 would make the scope when all is thought to be over */
        else
                start_end_run(s);
}

void start_run_died(VM *vm) {
        Start *s = vm->start;

        /* What it wrote last is complete when its parent has ended. */
        if (!s->failing)
                s->deadline = sd_event_source_disable_unref(s->deadline);
}

void start_run_status(VM *vm) {
        Start *s = vm->start;

        if (vm->run->dead)
                vm_set_exit(vm);
        if (s->failing)
                return;
        if (vm->run->dead && shares_blamed(vm))
                return;
        if (vm->run->dead) {
                start_tell_death(s);
                vm_log_last_words(vm);
        } else
                (void) start_error(s, -EIO, VMUNIT_ERROR_BACKEND_FAILED, "the VMM's parent has died");
        start_fail(s);
}

void start_run_gone(VM *vm) {
        Start *s = vm->start;

        vm->clean = true;
        vm->slice_left = vm->run->slice_left;
        vm->run = run_free(vm->run);
        if (s->again && !s->canceled)
                start_anew(s);
        else if (s->failing)
                start_rolled_back(s);
        else
                start_continue(s); /* it was the last run's */
}

static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Start *s = userdata;

        start_failed(s, -EPIPE, "the VMM has closed the connection to its API");
        return 0;
}

int start_hung_up(Start *s) {
        s->deadline = sd_event_source_disable_unref(s->deadline);
        return sd_event_add_time_relative(s->vm->manager->event, &s->deadline, CLOCK_MONOTONIC, VM_DEATH_SHOWS_USEC, 0,
                                          on_grace_over, s);
}

static void start_disconnected(Start *s, int error) {
        VM *vm = s->vm;

        vm_disconnect(vm);
        if (vm->run->dead || (error == -EPIPE && start_hung_up(s) >= 0))
                return;
        if (error == -ETIMEDOUT)
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "%s does not answer", vm_backend_title(vm));
        else
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "%s answers what can't be understood: %s",
                                   vm_backend_title(vm), strerror(-error));
        start_fail(s);
}

void start_vmm_event(VM *vm, VMMEvent event, VMMState state, int error) {
        Start *s = vm->start;

        if (s->failing)
                return;
        if (event == VMM_EVENT_CONNECTED && !s->connected) {
                s->connected = true;
                start_continue(s);
        } else if (event == VMM_EVENT_DISCONNECTED)
                start_disconnected(s, error);
}

static int on_kick(sd_event_source *source, void *userdata) {
        Start *s = userdata;

        s->kick = sd_event_source_disable_unref(s->kick);
        if (!s->failing)
                start_run_steps(s);
        return 0;
}

bool start_owns_run(const VM *vm) {
        return vm->start && (vm->start->step > 0 || vm->start->failing);
}

static int begin(VM *vm, bool reboot) {
        Start *s;
        int r;

        s = new(Start, 1);
        if (!s)
                return -ENOMEM;
        *s = (Start) {
                .vm = vm,
                .error = SD_BUS_ERROR_NULL,
                .exec_fd = -EBADF,
                .control_fd = -EBADF,
                .exit_fd = -EBADF,
                .console_fd = -EBADF,
                .output_fd = -EBADF,
        };

        /* The first step runs from the loop, so that whoever asked knows of the job before it can have ended. */
        r = sd_event_add_defer(vm->manager->event, &s->kick, on_kick, s);
        if (r >= 0)
                r = sd_event_add_time_relative(vm->manager->event, &s->deadline, CLOCK_MONOTONIC,
                                               vm->manager->config->start_timeout_usec, 0, on_deadline, s);
        if (r >= 0)
                r = vm_transition(vm, reboot ? TRANSITION_REBOOT : TRANSITION_START, true, "%s", "");
        if (r < 0) {
                start_free(s);
                return r;
        }

        vm->start = s;
        return 0;
}

int start_begin(VM *vm) {
        return begin(vm, false);
}

int start_begin_again(VM *vm) {
        return begin(vm, true);
}

void start_drop_waiters(VM *vm, waiter_gone gone, void *context) {
        waiters_drop(&vm->start->cancel_waiters, gone, context);
}

int start_cancel(VM *vm, VMCall by, bool keep_intent, done_cb cb, void *userdata) {
        Start *s = vm->start;
        int r;

        r = waiter_add(&s->cancel_waiters, cb, userdata);
        if (r < 0)
                return r;

        /* Kill is stronger than Stop, and what failed by itself just now is canceled all the same. */
        if (!s->canceled || by != CALL_STOP)
                s->canceled_by = by;
        s->keep_intent = keep_intent && (!s->canceled || s->keep_intent);
        s->canceled = true;
        vm->job->cancelable = false;
        start_fail(s);
        return 1;
}
