/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>

#include "basic/fault.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share.h"
#include "core/vm-private.h"

/* Pause, Resume, Reset, Reboot: one call to the VMM each. A reboot waits for the guest as long as a stop would. Where the VMM's API
 * does not answer yet, for the daemon has just come back, say, they wait for it, and so does a Start of an Error whose VMM lives. */

#define CONNECT_TIMEOUT_USEC (5 * USEC_PER_SEC)

void call_finish(VM *vm, const char *error_name, const char *message, bool canceled) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        Job *j = vm->job;

        vm->call_timer = sd_event_source_disable_unref(vm->call_timer);
        vm->call_waits = false;
        if (j->call == CALL_REBOOT)
                reboot_forget(vm);
        if (error_name)
                sd_bus_error_setf(&e, error_name, "%s: %s", vm->rec.name, message);
        job_finish(j, error_name ? &e : NULL, canceled);
}

static bool is_call(const Job *j) {
        return j && (j->call == CALL_PAUSE || j->call == CALL_RESUME || j->call == CALL_RESET || j->call == CALL_REBOOT);
}

void call_end(VM *vm, const char *error_name, const char *message) {
        if (!is_call(vm->job) && !vm->call_waits)
                return;
        if (vm->job->call == CALL_REBOOT && !vm->call_waits)
                reboot_cancel(vm);
        call_finish(vm, error_name, message, streq(error_name, VMUNIT_ERROR_CANCELED));
}

/* What the VMM has confirmed; its event may have told it already. */
static void call_show(VM *vm, VMCall call) {
        if (call == CALL_PAUSE && vm->rec.state == VM_RUNNING)
                (void) vm_transition(vm, TRANSITION_PAUSED, INTENT_KEEP, "The guest is paused");
        else if (call == CALL_RESUME && vm->rec.state == VM_PAUSED)
                (void) vm_transition(vm, TRANSITION_RESUMED, INTENT_KEEP, "The guest goes on");
        else if (call == CALL_REBOOT)
                vm_add_event(vm, "rebooted", NULL, "The guest was rebooted");
}

static int on_still_alive(sd_event_source *source, uint64_t usec, void *userdata) {
        call_finish(userdata, VMUNIT_ERROR_BACKEND_FAILED, "the connection to its VMM was lost", false);
        return 0;
}

static void call_disconnected(VM *vm) {
        vm->call_timer = sd_event_source_disable_unref(vm->call_timer);
        if (sd_event_add_time_relative(vm->manager->event, &vm->call_timer, CLOCK_MONOTONIC, VM_DEATH_SHOWS_USEC, 0, on_still_alive,
                                       vm) < 0)
                on_still_alive(NULL, 0, vm);
}

void call_reply(void *userdata, int error, const char *message) {
        VM *vm = userdata;
        int r;

        /* Overtaken, or the VMM's death will tell */
        if (!is_call(vm->job) || error == -ECANCELED)
                return;

        r = FAULT_POINT_NAMED("call", vm_call_to_string(vm->job->call), "after", vm_leader_pid(vm));
        if (r != 0 && error == 0)
                error = r;
        if (error == -EPIPE)
                call_disconnected(vm);
        else if (error == -ETIMEDOUT)
                call_finish(vm, VMUNIT_ERROR_TIMEOUT, "its VMM did not answer in time", false);
        else if (error < 0)
                call_finish(vm, VMUNIT_ERROR_BACKEND_FAILED, message ?: strerror(-error), false);
        else if (error == 0) {
                if (vm->job->call == CALL_RESET)
                        shares_reset(vm);
                call_show(vm, vm->job->call);
                call_finish(vm, NULL, NULL, false);
        }
}

#ifdef FAULT_INJECTION
static void list_calls(fault_list_cb cb) {
        static const VMCall calls[] = { CALL_PAUSE, CALL_RESUME, CALL_RESET, CALL_REBOOT };
        static const char *const when[] = { "before", "waiting", "after" };

        for (size_t i = 0; i < ELEMENTSOF(calls); i++)
                for (size_t k = 0; k < ELEMENTSOF(when); k++) {
                        char name[64];

                        snprintf(name, sizeof(name), "call.%s.%s", vm_call_to_string(calls[i]), when[k]);
                        cb(name, FAULT_VMM | (k != 1 ? FAULT_FAILS | FAULT_HANGS : 0));
                }
}

FAULT_TABLE(fault_calls, list_calls);
#endif

static int call_send(VM *vm) {
        switch (vm->job->call) {
        case CALL_PAUSE:
                job_set_stage(vm->job, "pause", -1);
                return vm->ops->pause(vm->vmm, call_reply, vm);
        case CALL_RESUME:
                job_set_stage(vm->job, "resume", -1);
                return vm->ops->resume(vm->vmm, call_reply, vm);
        case CALL_RESET:
                job_set_stage(vm->job, "reset", -1);
                return vm->ops->reset ? vm->ops->reset(vm->vmm, call_reply, vm) : relaunch_reset(vm);
        case CALL_REBOOT:
                job_set_stage(vm->job, "power-button", -1);
                return reboot_begin(vm);
        default:
                return -EINVAL;
        }
}

static int on_connect_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        call_finish(userdata, VMUNIT_ERROR_TIMEOUT, "its VMM lives but has not answered in time; try again later, or Kill it", false);
        return 0;
}

static int call_wait(VM *vm) {
        int r;

        r = sd_event_add_time_relative(vm->manager->event, &vm->call_timer, CLOCK_MONOTONIC, CONNECT_TIMEOUT_USEC, 0,
                                       on_connect_timeout, vm);
        if (r < 0)
                return r;
        job_set_stage(vm->job, "connect", -1);
        vm->call_waits = true;
        if (!vm->vmm)
                vm_try_connect(vm);
        return 0;
}

int call_error(VM *vm, VMCall call, int r, sd_bus_error *error) {
        const char *name = vm->rec.name, *vmm = vm_backend_title(vm);

        if (call == CALL_START) /* which is refused where it can't be stored */
                return write_error(r, error);
        if (r == -ENOTCONN)
                return sd_bus_error_setf(error, VMUNIT_ERROR_BUSY, "%s: %s does not answer yet; try again later, or Kill it", name, vmm);
        if (r == -EBUSY && call == CALL_REBOOT)
                return sd_bus_error_setf(error, VMUNIT_ERROR_BUSY, "%s: the last Reboot is not over yet; try again later", name);
        if (r == -ENOMEM)
                return sd_bus_error_setf(error, SD_BUS_ERROR_NO_MEMORY, "%s: there is no memory for a %s", name, vm_call_to_string(call));
        return sd_bus_error_setf(error, VMUNIT_ERROR_BACKEND_FAILED, "%s: %s can't be told of the %s: %s", name, vmm,
                                 vm_call_to_string(call), strerror(-r));
}

/* What it waited for may have changed the state, so it is looked up once more. */
void call_connected(VM *vm) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        VMAnswer answer;
        int r = 0;

        if (!vm->call_waits || !vm_is_connected(vm))
                return;
        answer = vm_call_lookup(vm->job->call, vm_get_condition(vm));
        if (answer == ANSWER_FIND || answer == ANSWER_FIND_AND_DO) /* on its way out */
                return;

        vm->call_timer = sd_event_source_disable_unref(vm->call_timer);
        vm->call_waits = false;
        if (answer == ANSWER_DO) {
                r = call_send(vm);
                if (r < 0)
                        (void) call_error(vm, vm->job->call, r, &e);
        } else if (answer != ANSWER_OK)
                r = vm_refuse(vm, vm->job->call, answer, &e);
        if (answer != ANSWER_DO || r < 0)
                job_finish(vm->job, r < 0 ? &e : NULL, false);
}

int call_begin(VM *vm) {
        int r;

        if (!vm_is_connected(vm))
                return call_wait(vm);

        r = FAULT_POINT_NAMED("call", vm_call_to_string(vm->job->call), "before", vm_leader_pid(vm));
        if (r != 0)
                return r;
        r = call_send(vm);
        (void) FAULT_POINT_NAMED("call", vm_call_to_string(vm->job->call), "waiting", vm_leader_pid(vm));
        return r;
}
