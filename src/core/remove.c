/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fault.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "core/message-ids.h"
#include "core/vm-private.h"

/* A removal is durable before it begins, runs in the background and frees the name last. It deletes what vmunit made, never a path that a
 * definition names. What can't go now is tried again, with growing pauses. */

#define RETRY_MIN_USEC (1 * USEC_PER_SEC)
#define RETRY_MAX_USEC (60 * USEC_PER_SEC)

static void try_again(VM *vm);

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        try_again(userdata);
        return 0;
}

static void arm_retry(VM *vm, uint64_t usec) {
        int r;

        vm->retry = sd_event_source_disable_unref(vm->retry);
        r = sd_event_add_time_relative(vm->manager->event, &vm->retry, CLOCK_MONOTONIC, usec, 0, on_retry, vm);
        if (r < 0)
                vm_log(vm, LOG_ERR, "no timer for the next try: %s", strerror(-r));
}

static void remove_blocked(VM *vm, const char *what, const char *why) {
        (void) vm_transition(vm, TRANSITION_REMOVE_BLOCKED, INTENT_KEEP, "%s can't be removed now (%s); it is tried again", what, why);
        vm->retry_usec = vm->retry_usec ? MIN(vm->retry_usec * 2, RETRY_MAX_USEC) : RETRY_MIN_USEC;
        arm_retry(vm, vm->retry_usec);
}

/* Without the proof that all of it is dead nothing goes. */
static void try_again(VM *vm) {
        char why[512];

        vm->retry = sd_event_source_disable_unref(vm->retry);
        if (!vm->run) {
                remove_run_gone(vm);
                return;
        }
        run_kill(vm->run);
        remove_blocked(vm, "its processes and units", vm_hangs(vm, why, sizeof(why)) ? why : "they are not gone although they were killed");
}

static int remove_record(VM *vm) {
        Manager *m = vm->manager;
        uint64_t id;
        int r;

        Event ev = { .usec = now_realtime(), .vm_id = vm->rec.id, .vm_name = vm->rec.name, .type = "removed",
                     .message = "It was removed" };
        r = store_begin(m->store);
        if (r < 0)
                return r;
        r = store_close_usage(m->store, vm->rec.id, ev.usec);
        if (r >= 0)
                r = store_delete_vm(m->store, vm->rec.id);
        if (r >= 0)
                r = store_add_event(m->store, &ev, &id);
        r = store_end(m->store, r);
        if (r < 0)
                return r;

        ev.id = id;
        if (m->observer)
                m->observer->event(m->observer_userdata, &ev);
        return 0;
}

/* Its processes and units are gone; now its files, then its record. The VM is freed when that succeeds. */
void remove_run_gone(VM *vm) {
        int r;

        vm->retry = sd_event_source_disable_unref(vm->retry);
        r = FAULT_POINT("remove.files", FAULT_FAILS, 0);
        if (r >= 0)
                r = rm_rf(vm->state_dir);
        if (r < 0) {
                remove_blocked(vm, vm->state_dir, strerror(-r));
                return;
        }
        r = FAULT_POINT("remove.run-files", FAULT_FAILS, 0);
        if (r >= 0)
                r = rm_rf(vm->run_dir);
        if (r < 0) {
                remove_blocked(vm, vm->run_dir, strerror(-r));
                return;
        }
        r = FAULT_POINT("remove.record", FAULT_FAILS, 0);
        if (r >= 0)
                r = remove_record(vm);
        (void) FAULT_POINT("remove.record-gone", 0, 0);
        if (r < 0) {
                remove_blocked(vm, "its record in the database", strerror(-r));
                return;
        }

        vm_set_saved(vm);
        vm_log_fields(vm, LOG_INFO, MESSAGE_VM_REMOVED, NULL, "removed");
        if (vm->job)
                job_finish(vm->job, NULL, false);
        manager_drop_vm(vm->manager, vm);
}

int remove_begin(VM *vm) {
        Job *j;
        int r;

        (void) FAULT_POINT("remove.begin", FAULT_VMM, vm_leader_pid(vm));
        if (!vm->job && job_new(vm, CALL_REMOVE, 0, NULL, NULL, &j) >= 0) {
                job_begin(j);
                job_set_stage(j, "removing", -1);
        }
        if (!vm->run) {
                r = vm_find_run(vm);
                if (r < 0 && vm->run)
                        vm_found_exit(vm);
                else if (!vm->vmm)
                        vm_log(vm, LOG_DEBUG, "its VMM still lives and is killed");
        }
        if (vm->run && run_is_alive(vm->run))
                run_kill(vm->run); /* its end goes on */
        else if (vm->run)
                vm_end_run(vm);
        arm_retry(vm, VM_KILL_TIMEOUT_USEC);
        return 0;
}

int remove_retry(VM *vm) {
        vm->retry_usec = 0;
        if (streq(vm->rec.reason, "blocked"))
                try_again(vm);
        return 0;
}
