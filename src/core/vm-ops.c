/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fault.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/user-limits.h"
#include "core/vm-private.h"

/* The calls on a VM: what the tables say is looked up here, before anything begins. */

int vm_refuse(VM *vm, VMCall call, VMAnswer answer, sd_bus_error *error) {
        const char *name = vm->rec.name, *state = vm_state_to_string(vm->rec.state), *what = vm_call_to_string(call);

        switch (answer) {
        case ANSWER_BUSY:
                return sd_bus_error_setf(error, VMUNIT_ERROR_BUSY, "%s: %s is under way; try again later", name,
                                         vm->job ? vm_call_to_string(vm->job->call) : state);
        case ANSWER_NOT_RUNNING:
                return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_RUNNING, "%s: %s needs a running VM, and it is %s; Start it first",
                                         name, what, state);
        case ANSWER_REMOVING:
                return sd_bus_error_setf(error, VMUNIT_ERROR_REMOVING, "%s: it is being removed", name);
        default:
                if (call == CALL_REMOVE)
                        return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_STATE,
                                                 "%s: it is %s; Stop or Kill it first, or Remove it with force", name, state);
                return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_STATE, "%s: it is %s; Resume it first", name, state);
        }
}

/* An Error whose VMM lives becomes what the VMM says. */
static int vm_find(VM *vm, sd_bus_error *error) {
        if (vm->vmm_state == VMM_STATE_RUNNING)
                return vm_transition(vm, TRANSITION_FOUND_RUNNING, INTENT_KEEP, "%s", "");
        if (vm->vmm_state == VMM_STATE_PAUSED || vm->vmm_state == VMM_STATE_IO_ERROR)
                return vm_transition(vm, TRANSITION_FOUND_PAUSED, INTENT_KEEP, "%s", "");
        return sd_bus_error_setf(error, VMUNIT_ERROR_BUSY, "%s: %s lives but does not run its guest; try again, or Kill it",
                                 vm->rec.name, vm_backend_title(vm));
}

/* What another operation under way means for this call. ANSWER_DO: go on. */
static VMAnswer look_at_job(VM *vm, VMCall call, VMAnswer answer) {
        VMState s = vm->rec.state;

        if (!vm->job || s == VM_REMOVING || s == VM_STARTING || s == VM_STOPPING) /* the table has said it all */
                return answer;

        switch (vm_call_against_job(call, vm->job->call)) {
        case ANSWER_JOIN:
                return ANSWER_JOIN;
        case ANSWER_DO:
                return answer;
        default:
                return call == CALL_REMOVE ? ANSWER_INVALID_STATE : ANSWER_BUSY;
        }
}

/* ANSWER_FIND, ANSWER_FIND_AND_DO: the VMM does not answer yet, so the call has to wait for it. */
static int lookup(VM *vm, VMCall call, VMAnswer *ret, sd_bus_error *error) {
        VMAnswer answer;
        int r;

        answer = vm_call_lookup(call, vm_get_condition(vm));
        if ((answer == ANSWER_FIND || answer == ANSWER_FIND_AND_DO) && vm_is_connected(vm)) {
                r = vm_find(vm, error);
                if (r < 0 && call != CALL_STOP)
                        return r;
                if (r >= 0)
                        answer = vm_call_lookup(call, vm_get_condition(vm));
        }
        if (answer == ANSWER_FIND_AND_DO && call == CALL_STOP) { /* which has its means where a VMM does not answer */
                sd_bus_error_free(error);
                answer = ANSWER_DO;
        }

        answer = look_at_job(vm, call, answer);
        if (answer >= ANSWER_BUSY)
                return vm_refuse(vm, call, answer, error);
        *ret = answer;
        return 0;
}

int vm_check_call(VM *vm, VMCall call, sd_bus_error *error) {
        VMAnswer answer;

        return lookup(vm, call, &answer, error);
}

bool vm_look(VM *vm) {
        if (!vm_is_alive(vm))
                return false;
        if (vm->rec.state == VM_ERROR && vm_is_connected(vm))
                (void) vm_find(vm, NULL);
        return true;
}

static int join(VM *vm, done_cb cb, void *userdata, sd_bus_error *error) {
        int r;

        if (!vm->job)
                return 0;
        r = job_add_waiter(vm->job, cb, userdata);
        return r < 0 ? sd_bus_error_set_errno(error, r) : 1;
}

/* Makes the job and begins. A begin that fails has changed nothing, and nobody but the caller hears of it. */
static int begin(VM *vm, VMCall call, uid_t caller, done_cb cb, void *userdata, int (*f)(VM *vm), sd_bus_error *error) {
        _cleanup_(job_freep) Job *j = NULL;
        int r;

        r = job_new(vm, call, caller, cb, userdata, &j);
        if (r < 0)
                return write_error(r, error);
        vm->job = j; /* its stages are told from here on, after it was told itself */
        r = f(vm);
        if (r >= 0) {
                job_begin(TAKE_PTR(j));
                return 1;
        }

        vm->job = NULL;
        if (!sd_bus_error_is_set(error))
                (void) call_error(vm, call, r, error);
        return r;
}

/* Start */

/* What a start changes beside the state: all of it, or, where it can't begin, nothing. */
typedef struct StartChange {
        Definition *definition;         /* the one that was stored for it, or NULL */
        char hash[65];
        char *text, *next_text;
        bool ops_chosen;                /* else the back end stays */
        const VMMOps *ops;
        char *backend;
        unsigned restart_count;
        bool by_itself;
} StartChange;

static void start_change_done(StartChange *c) {
        definition_free(c->definition);
        free(c->text);
        free(c->next_text);
        free(c->backend);
}

static int start_change_definition(StartChange *c, VM *vm, sd_bus_error *error) {
        int r;

        if (!vm->rec.next_definition)
                return 0;
        r = definition_parse(vm->rec.next_definition, &c->definition, error);
        if (r < 0)
                return r;
        r = definition_hash(c->definition, c->hash);
        if (r >= 0)
                r = free_and_strdup(&c->text, vm->rec.next_definition);
        return r < 0 ? sd_bus_error_set_errno(error, r) : 0;
}

/* What "auto" chose once stays, whatever is installed since, as long as it can do what is asked. */
bool vm_keeps_backend(const VM *vm, const Definition *d) {
        return vm->ops && vm->definition->backend == BACKEND_AUTO && d->backend == BACKEND_AUTO &&
               manager_check_backend(vm->manager, vm->ops, d, NULL, NULL) >= 0;
}

static int start_change_backend(StartChange *c, VM *vm, sd_bus_error *error) {
        int r;

        if (vm->ops && (!c->definition || vm_keeps_backend(vm, c->definition)))
                return 0;
        r = manager_choose_backend(vm->manager, c->definition ?: vm->definition, NULL, &c->ops, error);
        if (r < 0)
                return r;
        r = free_and_strdup(&c->backend, backend_to_string(c->ops->backend));
        c->ops_chosen = r >= 0;
        return r < 0 ? sd_bus_error_set_errno(error, r) : 0;
}

/* Done twice, all is as it was. */
static void start_change_swap(StartChange *c, VM *vm) {
        if (c->definition) {
                char hash[sizeof(c->hash)];

                memcpy(hash, c->hash, sizeof(hash));
                memcpy(c->hash, vm->definition_hash, sizeof(hash));
                memcpy(vm->definition_hash, hash, sizeof(hash));
                SWAP(c->definition, vm->definition);
                SWAP(c->text, vm->rec.definition);
                SWAP(c->next_text, vm->rec.next_definition);
        }
        if (c->ops_chosen) {
                SWAP(c->ops, vm->ops);
                SWAP(c->backend, vm->rec.backend);
        }
        SWAP(c->restart_count, vm->rec.restart_count);
        SWAP(c->by_itself, vm->by_itself);
}

static int start_change_fill(StartChange *c, VM *vm, sd_bus_error *error) {
        int r;

        r = start_change_definition(c, vm, error);
        return r < 0 ? r : start_change_backend(c, vm, error);
}

static int begin_start(VM *vm, StartChange *c, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        int r;

        start_change_swap(c, vm);
        r = begin(vm, CALL_START, caller, cb, userdata, start_begin, error);
        if (r < 0) {
                start_change_swap(c, vm);
                return r;
        }
        claim_settle(vm);
        if (c->definition)
                vm_emit_changed(vm, "DefinitionHash", "CPUs", "MemoryBytes", "Labels", "VSockCID", NULL);
        if (c->ops_chosen)
                vm_emit_changed(vm, "Backend", NULL);
        return r;
}

/* It could not be stored, so it has not begun. */
static void start_again_later(VM *vm) {
        vm->rec.restart_at = now_realtime() + START_AGAIN_USEC;
        restart_arm(vm);
        vm_emit_changed(vm, "RestartAtUSec", NULL);
}

/* A try that can't even begin counts as well. */
static void start_by_itself_failed(VM *vm, unsigned count, const sd_bus_error *error) {
        SWAP(count, vm->rec.restart_count);
        if (vm_transition(vm, TRANSITION_START, true, "%s", "") < 0) {
                SWAP(count, vm->rec.restart_count);
                start_again_later(vm);
                return;
        }
        (void) vm_transition(vm, TRANSITION_RESTART_FAILED, INTENT_KEEP, "It could not be started: %s", strempty(error->message));
}

void vm_start_by_itself(VM *vm, unsigned count) {
        _cleanup_(start_change_done) StartChange c = { .restart_count = count, .by_itself = true };
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = start_change_fill(&c, vm, &error);
        if (r < 0) {
                start_by_itself_failed(vm, count, &error);
                return;
        }
        r = FAULT_POINT("restart.begin", FAULT_FAILS, 0);
        if (r >= 0)
                r = begin_start(vm, &c, 0, NULL, NULL, &error);
        if (r < 0) {
                vm_log(vm, LOG_ERR, "can't be started now: %s", strempty(error.message));
                start_again_later(vm);
        }
}

int vm_start(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        _cleanup_(start_change_done) StartChange c = {};
        VMAnswer answer;
        int r;

        r = lookup(vm, CALL_START, &answer, error);
        if (r < 0 || answer == ANSWER_OK)
                return r;
        if (answer == ANSWER_JOIN)
                return join(vm, cb, userdata, error);
        if (answer == ANSWER_FIND)
                return begin(vm, CALL_START, caller, cb, userdata, call_begin, error);

        r = start_change_fill(&c, vm, error);
        return r < 0 ? r : begin_start(vm, &c, caller, cb, userdata, error);
}

/* Stop, Kill */

void vm_overtake(VM *vm) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        call_end(vm, VMUNIT_ERROR_CANCELED, "another operation has overtaken it");
        update_end(vm, VMUNIT_ERROR_CANCELED, "another operation has overtaken it");
        if (vm->job) {
                sd_bus_error_setf(&e, VMUNIT_ERROR_CANCELED, "%s: another operation has overtaken it", vm->rec.name);
                job_finish(vm->job, &e, true);
        }
}

static int to_stopped(VM *vm, bool keep_intent) {
        vm_overtake(vm);
        return vm_transition(vm, TRANSITION_STOPPED, keep_intent ? INTENT_KEEP : false, "%s", "");
}

int vm_stop(VM *vm, uid_t caller, uint64_t timeout_usec, bool keep_intent, done_cb cb, void *userdata, sd_bus_error *error) {
        VMAnswer answer;
        int r;

        r = lookup(vm, CALL_STOP, &answer, error);
        if (r < 0)
                return r;
        if (answer == ANSWER_OK)
                return restart_cancel(vm, keep_intent);
        if (answer == ANSWER_TO_STOPPED && !vm_has_process(vm))
                return to_stopped(vm, keep_intent);
        if (answer == ANSWER_CANCEL_START)
                return start_cancel(vm, CALL_STOP, keep_intent, cb, userdata);
        if (answer == ANSWER_JOIN && !relaunch_pending(vm)) {
                if (vm->stop)
                        stop_shorten(vm, timeout_usec);
                return join(vm, cb, userdata, error);
        }

        r = stop_begin(vm, CALL_STOP, caller, timeout_usec, keep_intent ? INTENT_KEEP : false, cb, userdata);
        return r < 0 ? write_error(r, error) : r;
}

int vm_kill(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        VMAnswer answer;
        int r;

        r = lookup(vm, CALL_KILL, &answer, error);
        if (r < 0)
                return r;
        if (answer == ANSWER_OK)
                return restart_cancel(vm, false);
        if (answer == ANSWER_TO_STOPPED && !vm_has_process(vm))
                return to_stopped(vm, false);
        if (answer == ANSWER_CANCEL_START)
                return start_cancel(vm, CALL_KILL, false, cb, userdata);
        if (vm->rec.state == VM_REMOVING) {
                if (vm->run)
                        run_kill(vm->run);
                return 0;
        }
        if (vm->job && vm->job->call == CALL_KILL)
                return join(vm, cb, userdata, error);

        r = stop_begin(vm, CALL_KILL, caller, 0, false, cb, userdata);
        return r < 0 ? write_error(r, error) : r;
}

/* Pause, Resume, Reset, Reboot */

static int simple_call(VM *vm, VMCall call, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        VMAnswer answer;
        int r;

        r = lookup(vm, call, &answer, error);
        if (r < 0 || answer == ANSWER_OK)
                return r;
        if (answer == ANSWER_JOIN)
                return join(vm, cb, userdata, error);
        return begin(vm, call, caller, cb, userdata, call_begin, error);
}

int vm_pause(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        return simple_call(vm, CALL_PAUSE, caller, cb, userdata, error);
}

int vm_resume(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        return simple_call(vm, CALL_RESUME, caller, cb, userdata, error);
}

int vm_reset(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        return simple_call(vm, CALL_RESET, caller, cb, userdata, error);
}

int vm_reboot(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error) {
        return simple_call(vm, CALL_REBOOT, caller, cb, userdata, error);
}

/* Remove */

int vm_remove(VM *vm, uid_t caller, bool force, sd_bus_error *error) {
        VMAnswer answer;
        int r;

        r = lookup(vm, force ? CALL_REMOVE_FORCE : CALL_REMOVE, &answer, error);
        if (r < 0)
                return r;
        if (answer == ANSWER_OK)
                return remove_retry(vm);

        r = vm_transition(vm, TRANSITION_REMOVE, false, "%s", "");
        if (r < 0)
                return write_error(r, error);
        if (vm->start) {
                (void) start_cancel(vm, CALL_REMOVE_FORCE, false, NULL, NULL); /* its end goes on with the removal */
                return 0;
        }
        vm_overtake(vm);
        vm->stop = stop_free(vm->stop);
        return remove_begin(vm);
}
