/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/api-internal.h"
#include "api/authorize.h"
#include "api/wire.h"
#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"

/* A larger reply would come near the bus's limit (32 MiB). */
#define CONSOLE_LOG_REPLY_MAX (UINT64_C(16) * 1024 * 1024)

/* Operations without arguments */
typedef int (*operation)(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);

static int operate(sd_bus_message *m, VM *vm, operation op, bool wait, sd_bus_error *error) {
        uid_t caller;
        int r;

        r = caller_uid(m, &caller);
        if (r < 0)
                return r;
        wait = wait && message_is_awaited(m);
        r = op(vm, caller, wait ? message_done : NULL, message_hold(m, wait), error);
        return message_answer(m, wait, r, error);
}

static int operate_no_options(sd_bus_message *m, VM *vm, operation op, sd_bus_error *error) {
        int r;

        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        return operate(m, vm, op, true, error);
}

static int operate_no_block(sd_bus_message *m, VM *vm, operation op, sd_bus_error *error) {
        bool no_block = false;
        const Option options[] = { { "no-block", 'b', &no_block } };
        int r;

        r = OPTIONS_READ(m, options, error);
        if (r < 0)
                return r;
        return operate(m, vm, op, !no_block, error);
}

int vm_method_start(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return operate_no_block(m, userdata, vm_start, error);
}

int vm_method_reboot(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return operate_no_block(m, userdata, vm_reboot, error);
}

int vm_method_kill(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return operate_no_options(m, userdata, vm_kill, error);
}

int vm_method_reset(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return operate_no_options(m, userdata, vm_reset, error);
}

int vm_method_pause(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return operate_no_options(m, userdata, vm_pause, error);
}

int vm_method_resume(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return operate_no_options(m, userdata, vm_resume, error);
}

int vm_method_stop(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        uint64_t timeout = VM_STOP_TIMEOUT_DEFAULT;
        bool keep_intent = false, no_block = false, wait;
        const Option options[] = {
                { "timeout-usec", 't', &timeout },
                { "keep-intent", 'b', &keep_intent },
                { "no-block", 'b', &no_block },
        };
        uid_t caller;
        int r;

        r = OPTIONS_READ(m, options, error);
        if (r < 0)
                return r;
        r = caller_uid(m, &caller);
        if (r < 0)
                return r;
        if (keep_intent && caller != 0)
                return sd_bus_error_set(error, SD_BUS_ERROR_ACCESS_DENIED, "keep-intent is for the host's shutdown, and for root alone");
        wait = !no_block && message_is_awaited(m);
        r = vm_stop(userdata, caller, timeout, keep_intent, wait ? message_done : NULL, message_hold(m, wait), error);
        return message_answer(m, wait, r, error);
}

int vm_method_remove(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        bool force = false;
        const Option options[] = { { "force", 'b', &force } };
        uid_t caller;
        int r;

        r = OPTIONS_READ(m, options, error);
        if (r < 0)
                return r;
        r = caller_uid(m, &caller);
        if (r < 0)
                return r;
        r = vm_remove(userdata, caller, force, error);
        return message_answer(m, false, r, error);
}

/* Who is not its owner has no say in what its definition is, as long as nobody has allowed it: mistakes are told later. */
int vm_examine_update(sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error) {
        const char *patch;
        int r;

        r = sd_bus_message_read_basic(m, 's', &patch);
        if (r >= 0)
                r = vm_update_exceeds_owner(object, patch, &s->why);
        if (r > 0)
                s->right = RIGHT_HOST_RESOURCES;
        return r;
}

int vm_method_update(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        bool next_start = false, wait;
        const Option options[] = { { "next-start", 'b', &next_start } };
        const char *patch;
        uid_t caller;
        int r;

        r = sd_bus_message_read_basic(m, 's', &patch);
        if (r < 0)
                return r;
        r = OPTIONS_READ(m, options, error);
        if (r < 0)
                return r;
        r = caller_uid(m, &caller);
        if (r < 0)
                return r;
        wait = message_is_awaited(m);
        r = vm_update(userdata, caller, patch, next_start, wait ? message_done : NULL, message_hold(m, wait), error);
        return message_answer(m, wait, r, error);
}

int vm_method_get_definition(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        _cleanup_free_ char *definition = NULL;
        int r;

        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        r = vm_get_definition(userdata, &definition);
        if (r < 0)
                return wire_error(error, r);
        return sd_bus_reply_method_return(m, "s", definition);
}

static int reply_counters(sd_bus_message *m, const Counter *counters, size_t n) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r;

        r = sd_bus_message_new_method_return(m, &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'a', "{sv}");
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                r = sd_bus_message_append(reply, "{sv}", counters[i].name, "t", counters[i].value);
                if (r < 0)
                        return r;
        }
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

static void stats_done(void *userdata, const sd_bus_error *error, const Counter *counters, size_t n) {
        _cleanup_(message_releasep) sd_bus_message *m = userdata;

        if (error && sd_bus_error_is_set(error))
                message_sent(m, reply_error(m, error));
        else
                message_sent(m, reply_counters(m, counters, n));
}

int vm_method_get_stats(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        int r;

        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        if (!message_is_awaited(m))
                return 1;
        r = vm_get_stats(userdata, stats_done, message_hold(m, true), error);
        if (r >= 0)
                return 1;
        message_release(m);
        return wire_error(error, r);
}

static void stream_done(void *userdata, const sd_bus_error *error, int fd) {
        _cleanup_(message_releasep) sd_bus_message *m = userdata;
        _cleanup_close_ int owned = fd;

        if (error && sd_bus_error_is_set(error))
                message_sent(m, reply_error(m, error));
        else
                message_sent(m, sd_bus_reply_method_return(m, "h", owned));
}

static int open_console_read(sd_bus_message *m, bool *ret_read_only, bool *ret_given, sd_bus_error *error) {
        const Option options[] = { { "read-only", 'b', ret_read_only, ret_given } };

        *ret_read_only = *ret_given = false;
        return OPTIONS_READ(m, options, error);
}

/* To read takes less than to write; who does not say which gets what the rights are for. */
int vm_examine_open_console(sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error) {
        bool read_only, given;
        int r;

        r = open_console_read(m, &read_only, &given, error);
        if (r < 0 || s->right == RIGHT_NONE)
                return r;
        if (read_only)
                s->right = RIGHT_INSPECT;
        else if (!given)
                s->lesser = RIGHT_INSPECT;
        return 0;
}

static int open_console(sd_bus_message *m, VM *vm, bool read_only, sd_bus_error *error) {
        int r;

        if (!message_is_awaited(m))
                return 1;
        r = vm_open_console(vm, read_only, stream_done, message_hold(m, true), error);
        if (r >= 0)
                return 1;
        message_release(m);
        return wire_error(error, r);
}

int vm_method_open_console(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        bool read_only, given;
        int r;

        r = open_console_read(m, &read_only, &given, error);
        return r < 0 ? r : open_console(m, userdata, read_only, error);
}

int vm_method_read_console(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return open_console(m, userdata, true, error);
}

int vm_method_get_console_log(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        _cleanup_free_ char *log = NULL;
        uint64_t max;
        size_t size;
        int r;

        r = sd_bus_message_read_basic(m, 't', &max);
        if (r < 0)
                return r;
        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        r = vm_get_console_log(userdata, MIN(max, CONSOLE_LOG_REPLY_MAX), &log, &size);
        if (r < 0)
                return wire_error(error, r);
        r = sd_bus_message_new_method_return(m, &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_append_array(reply, 'y', log, size);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

int vm_method_get_last_output(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        _cleanup_free_ char *output = NULL;
        int r;

        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        r = vm_get_last_output(userdata, &output);
        if (r < 0)
                return wire_error(error, r);
        return sd_bus_reply_method_return(m, "s", strempty(output));
}

int vm_method_open_vsock(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        uint32_t port;
        int r;

        r = sd_bus_message_read_basic(m, 'u', &port);
        if (r < 0)
                return r;
        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        if (!message_is_awaited(m))
                return 1;
        r = vm_open_vsock(userdata, port, stream_done, message_hold(m, true), error);
        if (r >= 0)
                return 1;
        message_release(m);
        return wire_error(error, r);
}

#define PROPERTY_GETTER(name)                                                                                   \
        static int property_##name(sd_bus *bus, const char *path, const char *interface, const char *property, \
                                   sd_bus_message *reply, void *userdata, sd_bus_error *error)

PROPERTY_GETTER(id) {
        VM *vm = userdata;

        return sd_bus_message_append_basic(reply, 's', vm->rec.id);
}

PROPERTY_GETTER(state) {
        VM *vm = userdata;

        return sd_bus_message_append_basic(reply, 's', vm_state_to_string(vm->rec.state));
}

PROPERTY_GETTER(definition_hash) {
        VM *vm = userdata;

        return sd_bus_message_append_basic(reply, 's', vm->definition_hash);
}

PROPERTY_GETTER(cpus) {
        VM *vm = userdata;

        return sd_bus_message_append(reply, "u", (uint32_t) vm->definition->cpus);
}

PROPERTY_GETTER(memory) {
        VM *vm = userdata;

        return sd_bus_message_append_basic(reply, 't', &vm->definition->memory);
}

PROPERTY_GETTER(labels) {
        VM *vm = userdata;
        char **keys = vm->definition->label_keys, **values = vm->definition->label_values;
        int r;

        r = sd_bus_message_open_container(reply, 'a', "{ss}");
        if (r < 0)
                return r;
        for (size_t i = 0; keys && keys[i]; i++) {
                r = sd_bus_message_append(reply, "{ss}", keys[i], values[i]);
                if (r < 0)
                        return r;
        }
        return sd_bus_message_close_container(reply);
}

PROPERTY_GETTER(leader_pid) {
        return sd_bus_message_append(reply, "u", (uint32_t) vm_leader_pid(userdata));
}

PROPERTY_GETTER(vsock_cid) {
        return sd_bus_message_append(reply, "u", vm_vsock_cid(userdata));
}

PROPERTY_GETTER(exit_known) {
        VM *vm = userdata;

        return sd_bus_message_append(reply, "b", (int) vm->rec.exit_known);
}

PROPERTY_GETTER(job) {
        _cleanup_free_ char *p = NULL;
        VM *vm = userdata;
        int r;

        if (!vm->job)
                return sd_bus_message_append_basic(reply, 'o', "/");
        r = job_path(vm->job->id, &p);
        if (r < 0)
                return r;
        return sd_bus_message_append_basic(reply, 'o', p);
}

#define CONST SD_BUS_VTABLE_PROPERTY_CONST
#define CHANGES SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE

const sd_bus_vtable vm_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD_WITH_ARGS("Start", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Stop", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Kill", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Reboot", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Reset", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Pause", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Resume", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Remove", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Update", SD_BUS_ARGS("s", json_merge_patch, "a{sv}", options), SD_BUS_NO_RESULT,
                                vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetDefinition", SD_BUS_ARGS("a{sv}", options), SD_BUS_RESULT("s", definition),
                                vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetStats", SD_BUS_ARGS("a{sv}", options), SD_BUS_RESULT("a{sv}", stats),
                                vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("OpenConsole", SD_BUS_ARGS("a{sv}", options), SD_BUS_RESULT("h", stream),
                                vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetConsoleLog", SD_BUS_ARGS("t", max_bytes, "a{sv}", options),
                                SD_BUS_RESULT("ay", log), vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetLastOutput", SD_BUS_ARGS("a{sv}", options), SD_BUS_RESULT("s", output),
                                vm_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("OpenVSock", SD_BUS_ARGS("u", port, "a{sv}", options), SD_BUS_RESULT("h", stream),
                                vm_method, SD_BUS_VTABLE_UNPRIVILEGED),

        SD_BUS_PROPERTY("Id", "s", property_id, 0, CONST),
        SD_BUS_PROPERTY("Name", "s", NULL, offsetof(VM, rec.name), CONST),
        SD_BUS_PROPERTY("OwnerUID", "u", NULL, offsetof(VM, rec.owner), CONST),
        SD_BUS_PROPERTY("State", "s", property_state, 0, CHANGES),
        SD_BUS_PROPERTY("StateReason", "s", NULL, offsetof(VM, rec.reason), CHANGES),
        SD_BUS_PROPERTY("StateMessage", "s", NULL, offsetof(VM, rec.message), CHANGES),
        SD_BUS_PROPERTY("StateSinceUSec", "t", NULL, offsetof(VM, rec.state_since), CHANGES),
        SD_BUS_PROPERTY("RestartAtUSec", "t", NULL, offsetof(VM, rec.restart_at), CHANGES),
        SD_BUS_PROPERTY("DefinitionHash", "s", property_definition_hash, 0, CHANGES),
        SD_BUS_PROPERTY("CPUs", "u", property_cpus, 0, CHANGES),
        SD_BUS_PROPERTY("MemoryBytes", "t", property_memory, 0, CHANGES),
        SD_BUS_PROPERTY("Labels", "a{ss}", property_labels, 0, CHANGES),
        SD_BUS_PROPERTY("Backend", "s", NULL, offsetof(VM, rec.backend), CHANGES),
        SD_BUS_PROPERTY("Unit", "s", NULL, offsetof(VM, scope), CONST),
        SD_BUS_PROPERTY("Slice", "s", NULL, offsetof(VM, slice), CONST),
        SD_BUS_PROPERTY("LeaderPID", "u", property_leader_pid, 0, CHANGES),
        SD_BUS_PROPERTY("VSockCID", "u", property_vsock_cid, 0, CHANGES),
        SD_BUS_PROPERTY("CreatedUSec", "t", NULL, offsetof(VM, rec.created), CONST),
        SD_BUS_PROPERTY("StartedUSec", "t", NULL, offsetof(VM, rec.started), CHANGES),
        SD_BUS_PROPERTY("ExitCode", "i", NULL, offsetof(VM, rec.exit_code), CHANGES),
        SD_BUS_PROPERTY("ExitSignal", "i", NULL, offsetof(VM, rec.exit_signal), CHANGES),
        SD_BUS_PROPERTY("ExitKnown", "b", property_exit_known, 0, CHANGES),
        SD_BUS_PROPERTY("RestartCount", "u", NULL, offsetof(VM, rec.restart_count), CHANGES),
        SD_BUS_PROPERTY("Job", "o", property_job, 0, CHANGES),
        SD_BUS_VTABLE_END,
};

int vm_object_find(sd_bus *bus, const char *path, const char *interface, void *userdata, void **ret,
                   sd_bus_error *error) {
        _cleanup_free_ char *name = NULL, *canonical = NULL;
        Api *a = userdata;
        VM *vm = a->leaving_vm;
        int r;

        r = sd_bus_path_decode(path, API_VM_PATH, &name);
        if (r <= 0)
                return r;
        if (!vm || !streq(vm->rec.name, name))
                vm = manager_get_vm(a->manager, name);
        if (!vm)
                return 0;
        /* Neither the id nor another spelling of the name is an object of its own. */
        r = vm_path(vm->rec.name, &canonical);
        if (r < 0)
                return r;
        if (!streq(canonical, path))
                return 0;
        *ret = vm;
        return 1;
}

int vm_node_enumerator(sd_bus *bus, const char *prefix, void *userdata, char ***ret, sd_bus_error *error) {
        _cleanup_strv_free_ char **l = NULL;
        Api *a = userdata;
        size_t n = 0;
        int r;

        l = new0(char *, a->manager->n_vms + 1);
        if (!l)
                return -ENOMEM;
        for (VM *vm = a->manager->vms; vm; vm = vm->next) {
                r = vm_path(vm->rec.name, l + n++);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(l);
        return 0;
}
