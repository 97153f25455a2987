/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bus/error-names.h"
#include "core/vm-private.h"

/* Reboot and Reset of a VM whose VMM can't do it in the same process: Running, Stopping, Starting, Running, with no Stopped between.
 * While it is Stopping the record says by restart_at that it is to be started again, so a daemon that comes back goes on. */

/* What the guest's own end looks like, as against a crash */
static bool ended_in_order(VMMEvent cause) {
        return cause == VMM_EVENT_GUEST_SHUTDOWN || cause == VMM_EVENT_GUEST_RESET || cause == VMM_EVENT_EXITED;
}

/* Also of a VMM that reboots by itself: its guest may have gone down before it was told to stay. */
bool relaunch_died(VM *vm, VMMEvent cause) {
        if (vm->rec.state != VM_RUNNING || !vm->job || vm->job->call != CALL_REBOOT || vm->call_waits || !ended_in_order(cause))
                return false;

        vm->call_timer = sd_event_source_disable_unref(vm->call_timer);
        vm->reboot_resumes = false;
        return vm_transition(vm, TRANSITION_RELAUNCH, INTENT_KEEP, "The guest has shut down for its reboot") >= 0;
}

bool relaunch_found(VM *vm, VMMEvent cause) {
        if (vm->rec.state != VM_RUNNING || !ended_in_order(cause) || !reboot_ended_in_time(vm))
                return false;
        return vm_transition(vm, TRANSITION_RELAUNCH, INTENT_KEEP, "The guest has shut down for its reboot") >= 0;
}

int relaunch_reset(VM *vm) {
        int r;

        r = vm_transition(vm, TRANSITION_RELAUNCH, INTENT_KEEP, "%s is replaced, for it can't reset the guest", vm_backend_title(vm));
        if (r >= 0)
                run_kill(vm->run);
        return r;
}

bool relaunch_pending(const VM *vm) {
        return vm->rec.state == VM_STOPPING && vm->rec.restart_at > 0;
}

static void relaunch_failed(VM *vm, int error) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        (void) write_error(error, &e);
        (void) vm_transition(vm, TRANSITION_STOPPED, INTENT_KEEP, "The guest has shut down, and it could not be started again");
        if (vm->job)
                job_finish(vm->job, &e, false);
}

void relaunch_run_gone(VM *vm) {
        _cleanup_(job_freep) Job *j = NULL;
        int r = 0;

        if (vm->manager->starts_nothing) {
                (void) vm_transition(vm, TRANSITION_STOPPED, INTENT_KEEP, "The guest has shut down");
                return;
        }
        if (!vm->job) /* this daemon has taken over */
                r = job_new(vm, CALL_REBOOT, 0, NULL, NULL, &j);
        if (r >= 0)
                r = start_begin_again(vm);
        if (r < 0)
                relaunch_failed(vm, r);
        else if (j)
                job_begin(TAKE_PTR(j));
}
