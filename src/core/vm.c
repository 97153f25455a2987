/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "basic/fault.h"
#include "basic/json-util.h"
#include "basic/launch-protocol.h"
#include "basic/log.h"
#include "basic/name-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/message-ids.h"
#include "core/share.h"
#include "core/vm-private.h"

#define STATE_VMS_DIR "/var/lib/vmunit/vms"

VM *vm_free(VM *vm) {
        if (!vm)
                return NULL;

        vm_disconnect(vm);
        start_free(vm->start);
        stop_free(vm->stop);
        shares_free(vm);
        run_free(vm->run);
        free(vm->slice_description);
        sd_event_source_disable_unref(vm->retry);
        sd_event_source_disable_unref(vm->call_timer);
        sd_event_source_disable_unref(vm->reconnect);
        sd_event_source_disable_unref(vm->settle);
        systemd_call_free(vm->stop_query);
        sd_event_source_disable_unref(vm->restart_timer);
        systemd_call_free(vm->update_call);
        if (vm->job) {
                sd_bus_error e = DAEMON_ENDS_ERROR;

                waiters_tell(&vm->job->waiters, &e);
                job_free(vm->job);
        }
        vm_record_done(&vm->rec);
        definition_free(vm->definition);
        definition_free(vm->update);
        free(vm->update_next);
        free(vm->scope);
        free(vm->slice);
        free(vm->run_dir);
        free(vm->state_dir);
        free(vm);
        return NULL;
}

static int vm_set_names(VM *vm) {
        vm->scope = vm_scope_name(vm->rec.name);
        vm->slice = vm_slice_name(vm->rec.name);
        vm->run_dir = strjoinf(RUN_VMS_DIR "/%s", vm->rec.id);
        vm->state_dir = strjoinf(STATE_VMS_DIR "/%s", vm->rec.id);
        return vm->scope && vm->slice && vm->run_dir && vm->state_dir ? 0 : -ENOMEM;
}

int vm_new(Manager *m, VMRecord *record, VM **ret) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        VM *vm;
        int r;

        vm = new0(VM, 1);
        if (!vm)
                return -ENOMEM;
        vm->manager = m;
        vm->rec = *record;
        vm->last_event = _VMM_EVENT_MAX;

        r = vm_set_names(vm);
        if (r >= 0)
                r = definition_parse(vm->rec.definition, &vm->definition, &e);
        if (r >= 0)
                r = definition_hash(vm->definition, vm->definition_hash);
        if (r < 0) {
                if (sd_bus_error_is_set(&e))
                        log_error("%s: its stored definition can't be read: %s", vm->rec.name, e.message);
                memset(&vm->rec, 0, sizeof(vm->rec)); /* stays the caller's */
                vm_free(vm);
                return r;
        }

        vm->ops = vm->rec.backend ? vmm_ops(backend_from_string(vm->rec.backend)) : NULL;
        memset(record, 0, sizeof(*record));
        *ret = vm;
        return 0;
}

bool vm_is_alive(const VM *vm) {
        return vm->run && !vm->start && run_is_alive(vm->run);
}

VMCondition vm_get_condition(const VM *vm) {
        return vm_condition(vm->rec.state, vm_is_alive(vm));
}

pid_t vm_leader_pid(const VM *vm) {
        return vm->run && vm->run->pidfd >= 0 && !vm->run->dead && !vm->run->killed ? vm->run->pid : 0;
}

void vm_emit_changed(VM *vm, const char *property, ...) {
        Manager *m = vm->manager;
        char *names[24];
        size_t n = 0;
        va_list ap;

        if (!m->observer || !vm->published)
                return;

        va_start(ap, property);
        for (const char *p = property; p && n + 1 < ELEMENTSOF(names); p = va_arg(ap, const char *))
                names[n++] = (char *) p;
        va_end(ap);
        names[n] = NULL;
        m->observer->vm_changed(m->observer_userdata, vm, names);
}

#define SENTENCE_MAX 1024

void vm_log_fields(VM *vm, int level, const char *message_id, const char *fields[], const char *format, ...) {
        char name[96], id[64], unit[300], state[48], reason[64], mid[64], message[1024];
        const char *all[LOG_FIELDS_MAX + 1];
        size_t n = 0;
        va_list ap;

        snprintf(name, sizeof(name), "VMUNIT_VM=%s", vm->rec.name);
        snprintf(id, sizeof(id), "VMUNIT_VM_ID=%s", vm->rec.id);
        snprintf(unit, sizeof(unit), "OBJECT_SYSTEMD_UNIT=%s", vm->scope);
        snprintf(state, sizeof(state), "VMUNIT_STATE=%s", vm_state_to_string(vm->rec.state));
        snprintf(reason, sizeof(reason), "VMUNIT_REASON=%s", vm->rec.reason);
        all[n++] = name;
        all[n++] = id;
        all[n++] = unit;
        all[n++] = state;
        all[n++] = reason;
        if (message_id) {
                snprintf(mid, sizeof(mid), "MESSAGE_ID=%s", message_id);
                all[n++] = mid;
        }
        for (const char **f = fields; f && *f && n < LOG_FIELDS_MAX; f++)
                all[n++] = *f;
        all[n] = NULL;

        va_start(ap, format);
        vsnprintf(message, sizeof(message), format, ap);
        va_end(ap);
        log_full_fields(level, 0, all, "%s: %s", vm->rec.name, message);
}

/* Events */

static void vm_tell_event(VM *vm, Event *ev, uint64_t id) {
        Manager *m = vm->manager;

        ev->id = id;
        if (m->observer)
                m->observer->event(m->observer_userdata, ev);
}

static void vm_keep_event(VM *vm, const Event *ev, int error) {
        int r;

        r = store_keep_event(vm->manager->store, ev);
        if (r < 0)
                log_warning_errno(error, "%s: the event '%s' can't be stored and is lost", vm->rec.name, ev->type);
        else
                manager_save_later(vm->manager);
}

/* What everybody reads must be text that the bus can carry, whatever was put into it: NULL when there is no memory. */
static char *format_sentence(const char *format, va_list ap) {
        _cleanup_free_ char *raw = NULL;

        if (vasprintf(&raw, format, ap) < 0) {
                raw = NULL; /* undefined then, vasprintf(3) */
                return NULL;
        }
        return escape_untrusted(raw, strlen(raw), SENTENCE_MAX);
}

void vm_add_event(VM *vm, const char *type, json_object *details, const char *format, ...) {
        Manager *m = vm->manager;
        _cleanup_free_ char *message = NULL;
        uint64_t id = 0;
        va_list ap;
        int r;

        va_start(ap, format);
        message = format_sentence(format, ap);
        va_end(ap);
        if (!message)
                return;

        Event ev = { .usec = now_realtime(), .vm_id = vm->rec.id, .vm_name = vm->rec.name, .type = type,
                     .message = message, .details = details };
        r = FAULT_POINT("event.write", FAULT_FAILS, 0);
        if (r >= 0)
                r = store_begin(m->store);
        if (r >= 0)
                r = store_end(m->store, store_add_event(m->store, &ev, &id));
        if (r < 0)
                vm_keep_event(vm, &ev, r);
        else
                vm_tell_event(vm, &ev, id);
        vm_log_fields(vm, LOG_INFO, MESSAGE_VM_EVENT, NULL, "%s", message);
}

/* Transitions */

/* What begins must be durable before it begins; what has happened has happened. */
static bool must_be_durable(VMTransition t) {
        return t == TRANSITION_START || t == TRANSITION_REMOVE;
}

static json_object *transition_details(const VM *vm, const VMRecord *next, VMTransition t) {
        json_object *d = json_object_new_object();

        if (!d)
                return NULL;
        json_object_object_add(d, "from", json_object_new_string(vm_state_to_string(vm->rec.state)));
        json_object_object_add(d, "to", json_object_new_string(vm_state_to_string(next->state)));
        json_object_object_add(d, "reason", json_object_new_string(next->reason));
        json_object_object_add(d, "transition", json_object_new_string(vm_transition_to_string(t)));
        if (vm->rec.exit_known && (next->state == VM_STOPPED || next->state == VM_ERROR)) {
                json_object_object_add(d, "exit-code", json_object_new_int(vm->rec.exit_code));
                json_object_object_add(d, "exit-signal", json_object_new_int(vm->rec.exit_signal));
        }
        return d;
}

static const char *event_type(VMState s) {
        static const char *const types[_VM_STATE_MAX] = {
                [VM_STOPPED] = "stopped",   [VM_STARTING] = "starting", [VM_RUNNING] = "running", [VM_PAUSED] = "paused",
                [VM_STOPPING] = "stopping", [VM_REMOVING] = "removing", [VM_ERROR] = "error",
        };

        return types[s];
}

static const char *state_sentence(VMState s) {
        static const char *const sentences[_VM_STATE_MAX] = {
                [VM_STOPPED] = "It has stopped",   [VM_STARTING] = "It starts",        [VM_RUNNING] = "It runs",
                [VM_PAUSED] = "It is paused",      [VM_STOPPING] = "It is being stopped",
                [VM_REMOVING] = "It is being removed", [VM_ERROR] = "It has failed",
        };

        return sentences[s];
}

/* A start's run has its interval, too. */
static bool ends_usage(const VM *vm, VMState to) {
        return (to == VM_STOPPED || to == VM_ERROR || to == VM_STARTING) && !(vm->run && run_is_alive(vm->run));
}

/* Its interval is open, unless the database is older than its run. */
static bool is_found(const VM *vm, VMState to) {
        return (vm->rec.state == VM_ERROR || vm->rec.state == VM_STOPPED) && (to == VM_RUNNING || to == VM_PAUSED);
}

static int open_missing_usage(VM *vm, const VMRecord *next, uint64_t usec) {
        Store *s = vm->manager->store;
        int r;

        r = store_usage_is_open(s, next->id);
        if (r != 0)
                return r;
        return store_open_usage(s, next, usec, vm->manager->boot_id, vm->run->invocation_id);
}

/* Record, event and usage, in one transaction; ended: the run has ended, whatever the state says as yet */
static int write_all(VM *vm, const VMRecord *next, bool ended, const Event *ev, uint64_t *ret_id) {
        Store *s = vm->manager->store;
        int r;

        r = store_begin(s);
        if (r < 0)
                return r;

        r = store_update_vm(s, next);
        if (r >= 0)
                r = store_add_event(s, ev, ret_id);
        if (r >= 0 && (ended || ends_usage(vm, next->state)))
                r = store_close_usage(s, next->id, ev->usec);
        if (r >= 0 && is_found(vm, next->state))
                r = open_missing_usage(vm, next, ev->usec);
        return store_end(s, r);
}

static void transition_log(VM *vm) {
        static const char *const ids[_VM_STATE_MAX] = {
                [VM_STOPPED] = MESSAGE_VM_STOPPED,   [VM_STARTING] = MESSAGE_VM_STARTING, [VM_RUNNING] = MESSAGE_VM_RUNNING,
                [VM_PAUSED] = MESSAGE_VM_PAUSED,     [VM_STOPPING] = MESSAGE_VM_STOPPING,
                [VM_REMOVING] = MESSAGE_VM_REMOVING, [VM_ERROR] = MESSAGE_VM_ERROR,
        };

        int level = vm->rec.state == VM_ERROR ? LOG_ERR : streq(vm->rec.reason, "stop-forced") ? LOG_NOTICE : LOG_INFO;

        vm_log_fields(vm, level, ids[vm->rec.state], NULL, "%s%s%s",
                      vm_state_to_string(vm->rec.state), *vm->rec.message ? ": " : "", vm->rec.message);
}

static int transition_next(VM *vm, VMTransition t, int intent, const char *message, VMRecord *next) {
        const char *reason;
        VMState to;
        int r;

        r = vm_transition_lookup(vm->rec.state, t, &to, &reason);
        if (r < 0)
                return r;
        r = vm_record_copy(&vm->rec, next);
        if (r < 0)
                return r;

        next->state = to;
        next->state_since = now_realtime();
        if (intent != INTENT_KEEP)
                next->intent = intent || restart_keeps_intent(vm, t);
        if (reason) {
                r = free_and_strdup(&next->reason, reason);
                if (r >= 0)
                        r = free_and_strdup(&next->message, message);
        }
        if (r >= 0)
                restart_plan(vm, t, next);
        if (to == VM_STARTING)
                next->start_from = t == TRANSITION_REBOOT ? VM_RUNNING : vm->rec.state;
        if (t == TRANSITION_START)
                memcpy(next->boot_id, vm->manager->boot_id, sizeof(next->boot_id));
        if (t == TRANSITION_STARTED)
                next->started = next->state_since;
        if (r < 0)
                vm_record_done(next);
        return r;
}

#ifdef FAULT_INJECTION
static void list_transitions(fault_list_cb cb) {
        for (VMTransition t = 0; t < _TRANSITION_MAX; t++) {
                bool lives = t == TRANSITION_STARTED || t == TRANSITION_PAUSED || t == TRANSITION_IO_ERROR || t == TRANSITION_RESUMED ||
                             t == TRANSITION_STOP || t == TRANSITION_STOP_FAILED || t == TRANSITION_FOUND_RUNNING ||
                             t == TRANSITION_FOUND_PAUSED || t == TRANSITION_REMOVE;
                char name[64];

                snprintf(name, sizeof(name), "commit.%s.before", vm_transition_to_string(t));
                cb(name, FAULT_FAILS | (lives ? FAULT_VMM : 0));
                snprintf(name, sizeof(name), "commit.%s.after", vm_transition_to_string(t));
                cb(name, lives ? FAULT_VMM : 0);
        }
}

FAULT_TABLE(fault_transitions, list_transitions);
#endif

int vm_transition(VM *vm, VMTransition t, int intent, const char *format, ...) {
        _cleanup_json_ json_object *details = NULL;
        _cleanup_free_ char *message = NULL;
        VMRecord next;
        uint64_t id = 0;
        va_list ap;
        int r;

        va_start(ap, format);
        message = format_sentence(format, ap);
        va_end(ap);
        if (!message)
                return -ENOMEM;

        r = transition_next(vm, t, intent, message, &next);
        if (r < 0)
                return log_warning_errno(r, "%s: no '%s' from %s", vm->rec.name, strempty(vm_transition_to_string(t)),
                                         vm_state_to_string(vm->rec.state));

        details = transition_details(vm, &next, t);
        Event ev = { .usec = next.state_since, .vm_id = next.id, .vm_name = next.name, .type = event_type(next.state),
                     .message = *message ? message : state_sentence(next.state), .details = details };
        r = FAULT_POINT_NAMED("commit", vm_transition_to_string(t), "before", vm_leader_pid(vm));
        if (r >= 0)
                r = write_all(vm, &next, false, &ev, &id);
        (void) FAULT_POINT_NAMED("commit", vm_transition_to_string(t), "after", vm_leader_pid(vm));
        if (r < 0 && must_be_durable(t)) {
                vm_record_done(&next);
                return r;
        }

        vm_record_done(&vm->rec);
        vm->rec = next;
        /* The event's strings may have been the old record's */
        ev.vm_id = vm->rec.id;
        ev.vm_name = vm->rec.name;
        transition_log(vm);
        vm_emit_changed(vm, "State", "StateReason", "StateMessage", "StateSinceUSec", "LeaderPID", "StartedUSec",
                        "RestartAtUSec", "RestartCount", NULL);
        restart_arm(vm);
        manager_state_changed(vm->manager);
        if (r < 0) {
                vm_set_unsaved(vm, r);
                vm_keep_event(vm, &ev, r);
        } else {
                vm_set_saved(vm);
                vm_tell_event(vm, &ev, id);
        }
        return 0;
}

int vm_write_record(VM *vm, const VMRecord *next, uint64_t usage_end) {
        Store *s = vm->manager->store;
        int r;

        r = store_begin(s);
        if (r < 0)
                return r;
        r = store_update_vm(s, next);
        if (r >= 0 && usage_end > 0)
                r = store_close_usage(s, next->id, usage_end);
        return store_end(s, r);
}

int vm_replace_record(VM *vm, VMRecord *next, const char *event_type, const char *sentence) {
        Event ev = { .usec = now_realtime(), .vm_id = next->id, .vm_name = next->name, .type = event_type, .message = sentence };
        uint64_t id = 0;
        int r;

        r = write_all(vm, next, false, &ev, &id);
        if (r < 0)
                return r;
        vm_record_done(&vm->rec);
        vm->rec = *next;
        *next = (VMRecord) {};
        vm_set_saved(vm);
        ev.vm_id = vm->rec.id;
        vm_tell_event(vm, &ev, id);
        vm_log_fields(vm, LOG_INFO, MESSAGE_VM_EVENT, NULL, "%s", sentence);
        return 0;
}

void vm_write_exit(VM *vm, json_object *details, const char *sentence) {
        Event ev = { .usec = now_realtime(), .vm_id = vm->rec.id, .vm_name = vm->rec.name, .type = "vmm-exited",
                     .message = sentence, .details = details };
        uint64_t id = 0;
        int r;

        r = FAULT_POINT("exit.write", FAULT_FAILS, 0);
        if (r >= 0)
                r = write_all(vm, &vm->rec, true, &ev, &id);
        if (r < 0) {
                vm_set_unsaved(vm, r);
                vm_keep_event(vm, &ev, r);
        } else {
                vm_set_saved(vm);
                vm_tell_event(vm, &ev, id);
        }
        vm_log_fields(vm, LOG_INFO, MESSAGE_VM_EVENT, NULL, "%s", sentence);
}

int vm_save(VM *vm) {
        int r;

        r = vm_write_record(vm, &vm->rec, ends_usage(vm, vm->rec.state) ? vm->rec.state_since : 0);
        if (r >= 0)
                vm_set_saved(vm);
        return r;
}

int write_error(int r, sd_bus_error *error) {
        if (r == -ENOSPC || r == -EDQUOT)
                sd_bus_error_setf(error, VMUNIT_ERROR_NO_SPACE,
                                  "No space left for the database in /var/lib/vmunit: make room there, then try again");
        else if (r == -EBUSY)
                sd_bus_error_setf(error, VMUNIT_ERROR_BUSY,
                                  "Another program holds the database in /var/lib/vmunit: try again later");
        else
                sd_bus_error_setf(error, SD_BUS_ERROR_FAILED, "The database in /var/lib/vmunit can't be written: %s",
                                  strerror(-r));
        return r;
}
