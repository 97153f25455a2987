/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fault.h"
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share.h"
#include "core/user-limits.h"

/* Update: a merge patch on the definition, all or nothing. */

/* What can change while the VM runs; the resources go to its slice. */
static bool is_live_key(const char *path) {
        static const char *const live[] = { "labels", "restart", "autostart", "autostartPriority", "stopTimeout", "resources" };

        for (size_t i = 0; i < ELEMENTSOF(live); i++) {
                const char *rest = startswith(path, live[i]);

                if (rest && (!*rest || *rest == '.' || *rest == '['))
                        return true;
        }
        return false;
}

static int refuse_dead_keys(VM *vm, char *const *paths, sd_bus_error *error) {
        _cleanup_strv_free_ char **dead = NULL;
        _cleanup_free_ char *list = NULL;

        STRV_FOREACH(p, paths)
                if (!is_live_key(*p) && strv_extend(&dead, *p) < 0)
                        return sd_bus_error_set_errno(error, -ENOMEM);
        if (!dead)
                return 0;

        list = strv_join(dead, ", ");
        return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_STATE,
                                 "%s: can't change while it runs: %s; Stop it first, or use next-start", vm->rec.name,
                                 strempty(list));
}

static int write_record(VM *vm, const char *json, const char *next_json, const char *backend, const char *sentence) {
        _cleanup_(vm_record_done) VMRecord next = {};
        int r;

        r = vm_record_copy(&vm->rec, &next);
        if (r < 0)
                return r;
        r = free_and_strdup(&next.definition, json);
        if (r >= 0)
                r = free_and_strdup(&next.next_definition, next_json);
        if (r >= 0)
                r = free_and_strdup(&next.backend, backend);
        if (r >= 0)
                r = FAULT_POINT("update.write", FAULT_FAILS | FAULT_VMM, vm_leader_pid(vm));
        if (r >= 0)
                r = vm_replace_record(vm, &next, "updated", sentence);
        (void) FAULT_POINT("update.written", FAULT_VMM, vm_leader_pid(vm));
        return r;
}

int vm_change_backend(VM *vm, const VMMOps *ops) {
        const char *name = backend_to_string(ops->backend);
        _cleanup_free_ char *sentence = strjoinf("Its back end is %s now, for %s can't boot its kernel", name, vm_backend_title(vm));
        int r;

        if (!sentence)
                return -ENOMEM;
        r = write_record(vm, vm->rec.definition, vm->rec.next_definition, name, sentence);
        if (r < 0)
                return r;
        vm->ops = ops;
        vm_emit_changed(vm, "Backend", NULL);
        return 0;
}

/* Makes d the definition. */
static int adopt(VM *vm, Definition *d, const char *next_json, const VMMOps *ops) {
        /* Not what is planned without a policy: a start after a boot, or of what was interrupted */
        bool ends_plan = vm->definition->restart_policy != RESTART_NO && d->restart_policy == RESTART_NO;
        _cleanup_free_ char *json = NULL;
        int r;

        r = definition_format(d, &json);
        if (r >= 0)
                r = write_record(vm, json, next_json, ops ? backend_to_string(ops->backend) : NULL, "Its definition was changed");
        if (r < 0)
                return r;

        definition_free(vm->definition);
        vm->definition = d;
        vm->ops = ops;
        (void) definition_hash(d, vm->definition_hash);
        if (vm->rec.restart_at > 0 && ends_plan)
                (void) restart_cancel(vm, false);
        vm_emit_changed(vm, "DefinitionHash", "CPUs", "MemoryBytes", "Labels", "VSockCID", "Backend", NULL);
        return 0;
}

/* On what the next start would use */
static int merge_on_next(VM *vm, const char *patch, Definition **ret, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *base = NULL;
        int r;

        if (vm->rec.next_definition) {
                r = definition_parse(vm->rec.next_definition, &base, error);
                if (r < 0)
                        return r;
        }
        return definition_merge(base ?: vm->definition, patch, ret, error);
}

static int merge_next(VM *vm, const char *patch, char **ret, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *merged = NULL;
        int r;

        r = merge_on_next(vm, patch, &merged, error);
        if (r < 0)
                return r;
        r = manager_check_definition(vm->manager, merged, error);
        if (r >= 0)
                r = shares_check(vm->manager, vm->rec.name, merged, error);
        if (r >= 0)
                r = shares_check_program(vm->manager, vm->definition, merged, error);
        if (r >= 0)
                r = claim_take(vm, vm->definition, merged, error);
        if (r < 0)
                return r;
        r = definition_format(merged, ret);
        return r < 0 ? sd_bus_error_set_errno(error, r) : 0;
}

/* What it would be after it, from this one */
static int merged_exceeds(const Definition *base, const char *patch, char **ret_why) {
        _cleanup_(definition_freep) Definition *merged = NULL;
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        if (definition_merge(base, patch, &merged, &e) < 0)
                return 0;
        return definition_exceeds_user(merged, base, ret_why);
}

int vm_update_exceeds_owner(VM *vm, const char *patch, char **ret_why) {
        _cleanup_(definition_freep) Definition *next = NULL;
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        int r;

        if (vm->rec.owner == 0) {
                *ret_why = strdup("root's VM can open any file of the host");
                return *ret_why ? 1 : -ENOMEM;
        }
        r = merged_exceeds(vm->definition, patch, ret_why);
        if (r != 0 || !vm->rec.next_definition)
                return r;
        r = definition_parse(vm->rec.next_definition, &next, &e);
        return r < 0 ? r : merged_exceeds(next, patch, ret_why);
}

static int update_next_start(VM *vm, const char *patch, sd_bus_error *error) {
        _cleanup_free_ char *next = NULL;
        int r;

        r = merge_next(vm, patch, &next, error);
        if (r < 0)
                return r;
        r = write_record(vm, vm->rec.definition, next, vm->rec.backend, "Its definition will change at the next start");
        return r < 0 ? write_error(r, error) : 0;
}

/* It was merged, so it is an object. */
static bool names_backend(const char *patch) {
        _cleanup_json_ json_object *o = json_tokener_parse(patch);

        return json_object_object_get_ex(o, "backend", NULL);
}

/* What an earlier update has stored for the next start is part of the definition from now on. */
static int update_dead(VM *vm, const char *patch, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *d = NULL;
        const VMMOps *ops = NULL;
        int r;

        r = merge_on_next(vm, patch, &d, error);
        if (r < 0)
                return r;
        r = manager_check_definition(vm->manager, d, error);
        if (r >= 0)
                r = shares_check(vm->manager, vm->rec.name, d, error);
        if (r >= 0)
                r = shares_check_program(vm->manager, vm->definition, d, error);
        if (r >= 0)
                r = claim_take(vm, d, NULL, error);
        if (r < 0)
                return r;
        if (vm_keeps_backend(vm, d) && !names_backend(patch))
                ops = vm->ops;
        else if (manager_choose_backend(vm->manager, d, NULL, &ops, NULL) == -ENODEV)
                ops = NULL; /* chosen at the next start */
        r = adopt(vm, d, NULL, ops);
        if (r < 0)
                return write_error(r, error);
        d = NULL;
        return 0;
}

/* Also of what was not adopted */
static void update_finish(VM *vm, const sd_bus_error *error, bool canceled) {
        vm->update_call = systemd_call_free(vm->update_call);
        definition_free(TAKE_PTR(vm->update));
        free(TAKE_PTR(vm->update_next));
        claim_settle(vm);
        if (vm->job && vm->job->call == CALL_UPDATE)
                job_finish(vm->job, error, canceled);
}

void update_end(VM *vm, const char *error_name, const char *message) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        if (!vm->update_call)
                return;
        sd_bus_error_setf(&e, error_name, "%s: %s", vm->rec.name, message);
        update_finish(vm, &e, streq(error_name, VMUNIT_ERROR_CANCELED));
}

static void on_taken_back(void *userdata, const sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        VM *vm = userdata;

        if (error)
                vm_log(vm, LOG_ERR, "its slice keeps limits that its definition does not have: %s", error->message ?: error->name);
        (void) write_error(vm->update_error, &e);
        update_finish(vm, &e, false);
}

static int append_back(sd_bus_message *m, void *userdata) {
        VM *vm = userdata;

        return resources_append_change(&vm->update->resources, &vm->definition->resources, m);
}

/* The limits are the slice's, but can't be the definition's. */
static void take_back(VM *vm, int error) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        int r;

        vm->update_error = error;
        r = systemd_set_transient(vm->manager->systemd, vm->slice, append_back, vm, on_taken_back, vm, &vm->update_call);
        if (r < 0)
                on_taken_back(vm, (sd_bus_error_set_errno(&e, r), &e));
}

static void refused(const VM *vm, const sd_bus_error *error, sd_bus_error *ret) {
        if (!vm_is_alive(vm)) /* its slice has gone first */
                sd_bus_error_setf(ret, VMUNIT_ERROR_NOT_RUNNING, "%s: the VM has ended; update it now", vm->rec.name);
        else if (sd_bus_error_get_errno(error) == EADDRINUSE)
                sd_bus_error_setf(ret, VMUNIT_ERROR_BACKEND_FAILED,
                                  "%s: resources: its slice is a unit of somebody else, so they can't change while it runs",
                                  vm->rec.name);
        else
                sd_bus_error_setf(ret, VMUNIT_ERROR_BACKEND_FAILED, "%s: resources: systemd refuses them: %s", vm->rec.name,
                                  error->message ?: error->name);
}

static void on_resources_set(void *userdata, const sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        VM *vm = userdata;
        int r;

        vm->update_call = systemd_call_free(vm->update_call);
        (void) FAULT_POINT("update.resources-set", FAULT_VMM, vm_leader_pid(vm));
        if (error) {
                refused(vm, error, &e);
                update_finish(vm, &e, false);
                return;
        }
        r = adopt(vm, vm->update, vm->update_next, vm->ops);
        if (r < 0) {
                take_back(vm, r);
                return;
        }
        vm->update = NULL;
        update_finish(vm, NULL, false);
}

static int append_change(sd_bus_message *m, void *userdata) {
        VM *vm = userdata;

        return resources_append_change(&vm->definition->resources, &vm->update->resources, m);
}

static int update_resources(VM *vm, Definition *d, char *next, uid_t caller, done_cb cb, void *userdata,
                            sd_bus_error *error) {
        _cleanup_(job_freep) Job *j = NULL;
        int r;

        vm->update = d;
        vm->update_next = next;
        r = job_new(vm, CALL_UPDATE, caller, cb, userdata, &j);
        if (r >= 0)
                r = FAULT_POINT("update.resources", FAULT_FAILS | FAULT_HANGS | FAULT_VMM, vm_leader_pid(vm));
        if (r == 0)
                r = systemd_set_transient(vm->manager->systemd, vm->slice, append_change, vm, on_resources_set, vm, &vm->update_call);
        if (r < 0) {
                definition_free(TAKE_PTR(vm->update));
                free(TAKE_PTR(vm->update_next));
                return write_error(r, error);
        }
        job_begin(TAKE_PTR(j));
        return 1;
}

static bool changes_resources(char *const *paths) {
        STRV_FOREACH(p, paths)
                if (startswith(*p, "resources"))
                        return true;
        return false;
}

static int update(VM *vm, uid_t caller, const char *patch, bool next_start, done_cb cb, void *userdata, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *d = NULL;
        _cleanup_strv_free_ char **paths = NULL;
        _cleanup_free_ char *next = NULL;
        int r;

        r = vm_check_call(vm, CALL_UPDATE, error);
        if (r < 0)
                return r;
        if (!vm_is_alive(vm))
                return update_dead(vm, patch, error);
        if (next_start)
                return update_next_start(vm, patch, error);

        r = definition_merge(vm->definition, patch, &d, error);
        if (r < 0)
                return r;
        r = definition_diff(vm->definition, d, &paths);
        if (r < 0)
                return sd_bus_error_set_errno(error, r);
        if (!paths)
                return 0;
        r = refuse_dead_keys(vm, paths, error);
        if (r < 0)
                return r;
        /* What is stored for the next start changes as well, or it would take this change back. */
        if (vm->rec.next_definition) {
                r = merge_next(vm, patch, &next, error);
                if (r < 0)
                        return r;
        }
        if (changes_resources(paths))
                return update_resources(vm, TAKE_PTR(d), TAKE_PTR(next), caller, cb, userdata, error);

        r = adopt(vm, d, next, vm->ops);
        if (r < 0)
                return write_error(r, error);
        d = NULL;
        return 0;
}

int vm_update(VM *vm, uid_t caller, const char *patch, bool next_start, done_cb cb, void *userdata, sd_bus_error *error) {
        int r;

        r = update(vm, caller, patch, next_start, cb, userdata, error);
        if (r == 0 || (r < 0 && !vm->update)) /* not while another one is under way */
                claim_settle(vm);
        return r;
}
