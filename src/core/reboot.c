/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/stat.h>

#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/vm-private.h"

/* Reboot: the power button, and when the guest has shut down, a new beginning: in the same VMM, or by relaunch.c. Until when the guest may take
 * for that, and whether its button was pressed, is in the run file, so a daemon that comes back goes on. */

static void reboot_note(VM *vm, uint64_t until, bool pressed) {
        int r;

        vm->run->reboot_until = until;
        vm->run->reboot_pressed = pressed;
        r = run_write_file(vm->run, vm->manager->boot_id);
        if (r < 0)
                vm_log(vm, LOG_WARNING, "can't note how far its reboot is, should vmunitd end: %s", strerror(-r));
}

void reboot_forget(VM *vm) {
        vm->reboot_resumes = false;
        if (vm->run && vm->run->reboot_until > 0 && run_is_alive(vm->run))
                reboot_note(vm, 0, false);
}

void reboot_pressed(VM *vm) {
        if (vm->job && vm->job->call == CALL_REBOOT && vm->run->reboot_until > 0 && !vm->run->reboot_pressed)
                reboot_note(vm, vm->run->reboot_until, true);
}

/* The reply follows; a daemon that comes in between must not wait for the guest's end once more. */
void reboot_runs(VM *vm) {
        if (vm->run->reboot_pressed)
                reboot_note(vm, 0, false);
}

void reboot_cancel(VM *vm) {
        if (vm->vmm && vm->ops->reboot)
                vm->ops->reboot_cancel(vm->vmm);
}

static int on_timeout(sd_event_source *source, uint64_t usec, void *userdata) {
        VM *vm = userdata;

        reboot_cancel(vm);
        call_finish(vm, VMUNIT_ERROR_TIMEOUT, "the guest did not shut down in time, so it runs on", false);
        return 0;
}

/* Of a VMM that ends with its guest: the end goes on with it. That of a reboot whose time was over may come in the middle of another call;
 * they come in their order. */
static void on_button(void *userdata, int error, const char *message) {
        VM *vm = userdata;

        if (--vm->n_buttons > 0 || !vm->job || vm->job->call != CALL_REBOOT)
                return;
        if (error < 0)
                call_reply(vm, error, message);
        else
                reboot_pressed(vm);
}

static int press(VM *vm) {
        int r;

        r = vm->ops->power_button(vm->vmm, on_button, vm);
        vm->n_buttons += r >= 0;
        return r;
}

static int arm(VM *vm, uint64_t until) {
        if (until == USEC_INFINITY)
                return 0;
        return sd_event_add_time(vm->manager->event, &vm->call_timer, CLOCK_MONOTONIC, until, 0, on_timeout, vm);
}

static int send(VM *vm) {
        if (vm->run->reboot_pressed)
                return vm->ops->reboot ? vm->ops->reboot_pressed(vm->vmm, call_reply, vm) : 0;
        return vm->ops->reboot ? vm->ops->reboot(vm->vmm, call_reply, vm) : press(vm);
}

int reboot_begin(VM *vm) {
        uint64_t timeout = vm->definition->stop_timeout_usec, now = 0, until;
        int r;

        (void) sd_event_now(vm->manager->event, CLOCK_MONOTONIC, &now);
        until = timeout >= USEC_INFINITY - now ? USEC_INFINITY : now + timeout;
        r = arm(vm, until);
        if (r < 0)
                return r;
        reboot_note(vm, until, false);
        r = send(vm);
        if (r < 0) {
                vm->call_timer = sd_event_source_disable_unref(vm->call_timer);
                reboot_forget(vm);
        }
        return r;
}

/* Takeover */

static uint64_t since(uint64_t realtime) {
        uint64_t now = now_realtime();

        return now > realtime ? now - realtime : 0;
}

int reboot_take_over(VM *vm) {
        _cleanup_(job_freep) Job *j = NULL;
        uint64_t now = 0;
        int r;

        (void) sd_event_now(vm->manager->event, CLOCK_MONOTONIC, &now);
        if (vm->rec.state != VM_RUNNING || vm->run->reboot_until <= now) {
                reboot_forget(vm);
                return 0;
        }
        r = job_new(vm, CALL_REBOOT, 0, NULL, NULL, &j);
        if (r >= 0)
                r = arm(vm, vm->run->reboot_until);
        if (r < 0)
                return r;
        vm->reboot_resumes = true;
        job_begin(TAKE_PTR(j));
        job_set_stage(vm->job, "power-button", -1);
        return 0;
}

/* The VMM's parent has written its file when the VMM ended. */
bool reboot_ended_in_time(const VM *vm) {
        _cleanup_free_ char *path = strjoinf("%s/exit", vm->run_dir);
        uint64_t now = 0, ago;
        struct stat st;

        if (vm->run->reboot_until == 0 || !path || stat(path, &st) < 0)
                return false;
        (void) sd_event_now(vm->manager->event, CLOCK_MONOTONIC, &now);
        ago = since((uint64_t) st.st_mtim.tv_sec * USEC_PER_SEC + (uint64_t) st.st_mtim.tv_nsec / 1000);
        return ago >= now || now - ago <= vm->run->reboot_until;
}

/* Of one whose time was over, or of which there is no note */
static void on_finished(void *userdata, int error, const char *message) {
        VM *vm = userdata;

        if (error == 0)
                vm_add_event(vm, "rebooted", NULL, "The guest was rebooted");
        else if (error != -EPIPE && error != -ECANCELED && vm_is_alive(vm))
                vm_put_down(vm, VMM_EVENT_GUEST_SHUTDOWN);
}

static int go_on(VM *vm, VMMState state, vmm_reply_cb cb) {
        if (state == VMM_STATE_RUNNING)
                return send(vm);
        if (!vm->ops->reboot)
                return -EOPNOTSUPP;
        return state == VMM_STATE_SHUTDOWN ? vm->ops->reboot(vm->vmm, cb, vm) : vm->ops->resume(vm->vmm, cb, vm);
}

bool reboot_connected(VM *vm, VMMState state) {
        bool resumes = vm->reboot_resumes;
        int r;

        if (vm->rec.state != VM_RUNNING || (state == VMM_STATE_RUNNING && !resumes))
                return false;
        vm->reboot_resumes = false;
        r = go_on(vm, state, resumes ? call_reply : on_finished);
        if (r < 0 && resumes && state == VMM_STATE_RUNNING)
                call_finish(vm, VMUNIT_ERROR_BACKEND_FAILED, strerror(-r), false);
        return r >= 0;
}
