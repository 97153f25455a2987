/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/api-internal.h"
#include "api/authorize.h"
#include "api/wire.h"
#include "basic/string-util.h"
#include "bus/error-names.h"

/* No reply may come near the bus's limit (32 MiB). Who wants more asks again. */
#define EVENTS_LIMIT_DEFAULT 1000U
#define EVENTS_LIMIT_MAX 10000U
#define USAGE_MAX 50000U

static int reply_vm_path(sd_bus_message *m, const char *name) {
        _cleanup_free_ char *path = NULL;
        int r;

        r = vm_path(name, &path);
        if (r < 0)
                return r;
        return sd_bus_reply_method_return(m, "o", path);
}

/* CreateVM with `start`. The name is read from the message again, for the VM may be gone by now. */
static int create_answer(sd_bus_message *m, const sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        const char *name;
        int r;

        r = sd_bus_message_rewind(m, true);
        if (r < 0)
                return r;
        r = sd_bus_message_read_basic(m, 's', &name);
        if (r < 0)
                return r;
        if (!error || !sd_bus_error_is_set(error))
                return reply_vm_path(m, name);
        /* At the end, for some messages have to begin with a path in the definition. */
        sd_bus_error_setf(&e, error->name, "%s (VM %s was created, and is stopped)", strempty(error->message), name);
        return reply_error(m, &e);
}

void create_done(void *userdata, const sd_bus_error *error) {
        _cleanup_(message_releasep) sd_bus_message *m = userdata;

        message_sent(m, create_answer(m, error));
}

static int create_start(sd_bus_message *m, VM *vm, uid_t caller, bool wait) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = vm_start(vm, caller, wait ? create_done : NULL, message_hold(m, wait), &error);
        if (r > 0 && wait)
                return 1;
        if (wait)
                message_release(m);
        wire_error(&error, r);
        return create_answer(m, &error);
}

typedef struct Creation {
        sd_bus_message *message;
        uid_t caller;           /* who may have left since */
        bool start, wait;
} Creation;

static void creation_free(Creation *c) {
        message_release(c->message);
        free(c);
}

static int created(const Creation *c, VM *vm) {
        return c->start ? create_start(c->message, vm, c->caller, c->wait) : reply_vm_path(c->message, vm->rec.name);
}

/* It took a look at a file. */
static void on_created(void *userdata, VM *vm, const sd_bus_error *error) {
        Creation *c = userdata;

        message_sent(c->message, vm ? created(c, vm) : reply_error(c->message, error));
        creation_free(c);
}

typedef struct CreateArguments {
        const char *name, *definition;
        bool start, no_block;
        uint32_t owner;
} CreateArguments;

/* Who creates a VM owns it, unless it says otherwise. */
static int create_read(sd_bus_message *m, uid_t caller, CreateArguments *ret, sd_bus_error *error) {
        const Option options[] = {
                { "start", 'b', &ret->start },
                { "no-block", 'b', &ret->no_block },
                { "owner", 'u', &ret->owner },
        };
        int r;

        *ret = (CreateArguments) { .owner = caller };
        r = sd_bus_message_read(m, "ss", &ret->name, &ret->definition);
        if (r < 0)
                return r;
        return OPTIONS_READ(m, options, error);
}

static int exceeds_caller(const CreateArguments *a, const Definition *d, uid_t caller, char **ret_why) {
        if (a->owner == caller)
                return definition_exceeds_user(d, NULL, ret_why);
        *ret_why = strdup(a->owner == 0 ? "owner: root's VM can open any file of the host" : "owner: it would have another user's rights");
        return *ret_why ? 1 : -ENOMEM;
}

/* A mistake in it is told before anybody is asked for a password. */
int manager_examine_create_vm(sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *d = NULL;
        CreateArguments a;
        int r;

        r = create_read(m, caller, &a, error);
        if (r >= 0)
                r = manager_check_new(object, a.name, a.definition, a.owner, &d, error);
        if (r >= 0)
                r = exceeds_caller(&a, d, caller, &s->why);
        if (r < 0)
                return r;
        if (r > 0)
                s->right = RIGHT_HOST_RESOURCES;
        return subject_set_vm(s, a.name, a.owner);
}

int manager_method_create_vm(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        CreateArguments a;
        uid_t caller;
        Creation *c;
        VM *vm;
        int r;

        r = caller_uid(m, &caller);
        if (r >= 0)
                r = create_read(m, caller, &a, error);
        if (r < 0)
                return r;

        c = new(Creation, 1);
        if (!c)
                return -ENOMEM;
        *c = (Creation) {
                .message = message_hold(m, true),
                .caller = caller,
                .start = a.start,
                .wait = !a.no_block && message_is_awaited(m),
        };
        r = manager_create_vm(userdata, a.name, a.definition, a.owner, on_created, c, &vm, error);
        if (r > 0)
                return 1;
        r = r < 0 ? wire_error(error, r) : created(c, vm);
        creation_free(c);
        return r;
}

int manager_method_get_vm(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const char *name;
        VM *vm;
        int r;

        r = sd_bus_message_read_basic(m, 's', &name);
        if (r < 0)
                return r;
        vm = manager_get_vm(userdata, name);
        if (!vm)
                return error_quoted(error, VMUNIT_ERROR_NO_SUCH_VM, "No VM has the name or id '%s'", name);
        return reply_vm_path(m, vm->rec.name);
}

int manager_method_get_vm_by_pid(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        uint32_t pid;
        VM *vm = NULL;
        int r;

        r = sd_bus_message_read_basic(m, 'u', &pid);
        if (r < 0)
                return r;
        if (pid > 0 && pid <= INT32_MAX)
                vm = manager_get_vm_by_pid(userdata, (pid_t) pid);
        if (!vm)
                return sd_bus_error_setf(error, VMUNIT_ERROR_NO_SUCH_VM, "Process %u belongs to no VM", pid);
        return reply_vm_path(m, vm->rec.name);
}

static int append_vm(sd_bus_message *reply, const VM *vm) {
        _cleanup_free_ char *path = NULL;
        int r;

        r = vm_path(vm->rec.name, &path);
        if (r < 0)
                return r;
        return sd_bus_message_append(reply, "(ssso)", vm->rec.name, vm->rec.id, vm_state_to_string(vm->rec.state),
                                     path);
}

int manager_method_list_vms(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        Manager *manager = userdata;
        int r;

        r = sd_bus_message_new_method_return(m, &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'a', "(ssso)");
        if (r < 0)
                return r;
        for (VM *vm = manager->vms; vm; vm = vm->next) {
                r = append_vm(reply, vm);
                if (r < 0)
                        return r;
        }
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

/* The fields that a reply's struct and the signal have in common */
static int append_event(sd_bus_message *m, const Event *ev, bool details) {
        int r;

        r = sd_bus_message_append(m, "ttssss", ev->id, ev->usec, strempty(ev->vm_id), strempty(ev->vm_name),
                                  strempty(ev->type), strempty(ev->message));
        if (r < 0)
                return r;
        return append_details(m, details ? ev->details : NULL);
}

typedef struct Listing {
        sd_bus_message *reply;
        Manager *manager;
        bool all_details;
        uid_t caller;           /* else who owns a VM has its details */
} Listing;

static bool has_details(const Listing *l, const Event *ev) {
        const VM *vm;

        if (l->all_details)
                return true;
        vm = ev->vm_id ? manager_get_vm(l->manager, ev->vm_id) : NULL;
        return vm && streq(vm->rec.id, ev->vm_id) && vm->rec.owner == l->caller;
}

static int list_event(const Event *ev, void *userdata) {
        Listing *l = userdata;
        int r;

        r = sd_bus_message_open_container(l->reply, 'r', "ttssssa{sv}");
        if (r < 0)
                return r;
        r = append_event(l->reply, ev, has_details(l, ev));
        if (r < 0)
                return r;
        return sd_bus_message_close_container(l->reply);
}

typedef struct EventFilter {
        uint64_t after;
        const char *vm;
        uint32_t limit;
} EventFilter;

static int filter_read(sd_bus_message *m, EventFilter *ret, sd_bus_error *error) {
        const Option options[] = {
                { "after", 't', &ret->after },
                { "vm", 's', &ret->vm },
                { "limit", 'u', &ret->limit },
        };

        *ret = (EventFilter) { .limit = EVENTS_LIMIT_DEFAULT };
        return OPTIONS_READ(m, options, error);
}

/* About the own VMs nobody is asked, unless an earlier one of that name may have been another's. */
int manager_examine_list_events(sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error) {
        EventFilter f;
        VM *vm;
        int r;

        r = filter_read(m, &f, error);
        if (r < 0)
                return r;
        vm = f.vm ? manager_get_vm(object, f.vm) : NULL;
        if (!vm)
                return 0;
        if (vm->rec.owner == caller && streq(f.vm, vm->rec.id))
                s->right = RIGHT_NONE;
        return subject_set_vm(s, vm->rec.name, vm->rec.owner);
}

static int list_events(sd_bus_message *m, Manager *manager, bool all_details, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        EventFilter f;
        uid_t caller;
        int r;

        r = filter_read(m, &f, error);
        if (r < 0)
                return r;
        r = caller_uid(m, &caller);
        if (r < 0)
                return r;
        r = sd_bus_message_new_method_return(m, &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'a', "(ttssssa{sv})");
        if (r < 0)
                return r;
        r = store_foreach_event(manager->store, f.after, f.vm, MIN(f.limit, EVENTS_LIMIT_MAX), list_event,
                                &(Listing) { .reply = reply, .manager = manager, .all_details = all_details, .caller = caller });
        if (r < 0)
                return wire_error(error, r);
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

int manager_method_list_events(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return list_events(m, userdata, true, error);
}

int manager_method_list_own_events(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        return list_events(m, userdata, false, error);
}

static int list_usage(const Usage *u, void *userdata) {
        Listing *l = userdata;

        return sd_bus_message_append(l->reply, "(ssttta{sv})", u->vm_id, u->vm_name, u->id, u->start, u->end, 2,
                                     "BootID", "s", strempty(u->boot_id),
                                     "InvocationID", "s", strempty(u->invocation_id));
}

int manager_method_get_usage(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        Manager *manager = userdata;
        uint64_t from, to;
        int r;

        r = sd_bus_message_read(m, "tt", &from, &to);
        if (r < 0)
                return r;
        if (from > to)
                return sd_bus_error_set(error, SD_BUS_ERROR_INVALID_ARGS, "`from` is later than `to`");
        r = sd_bus_message_new_method_return(m, &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'a', "(ssttta{sv})");
        if (r < 0)
                return r;
        r = store_foreach_usage(manager->store, from, to, USAGE_MAX, list_usage, &(Listing) { .reply = reply });
        if (r == -E2BIG)
                return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
                                         "More than %u intervals lie in that time; ask for less at a time", USAGE_MAX);
        if (r < 0)
                return wire_error(error, r);
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

int manager_method_reload(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        int r;

        r = OPTIONS_NONE(m, error);
        if (r >= 0)
                r = manager_reload(userdata);
        return r < 0 ? wire_error(error, r) : sd_bus_reply_method_return(m, NULL);
}

static int property_version(sd_bus *bus, const char *path, const char *interface, const char *property,
                            sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        return sd_bus_message_append_basic(reply, 's', VMUNIT_VERSION);
}

static int append_features(sd_bus_message *reply, const Manager *manager, Backend b) {
        _cleanup_strv_free_ char **features = NULL;
        int r;

        r = manager_backend_features(manager, b, &features);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'e', "sv");
        if (r < 0)
                return r;
        r = sd_bus_message_append_basic(reply, 's', "Features");
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'v', "as");
        if (r < 0)
                return r;
        r = sd_bus_message_append_strv(reply, features);
        if (r < 0)
                return r;
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        return sd_bus_message_close_container(reply);
}

static int append_backend(sd_bus_message *reply, const Manager *manager, Backend b) {
        const BackendInfo *i = &manager->backends[b];
        int r;

        r = sd_bus_message_open_container(reply, 'r', "sa{sv}");
        if (r < 0)
                return r;
        r = sd_bus_message_append_basic(reply, 's', backend_to_string(b));
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'a', "{sv}");
        if (r < 0)
                return r;
        r = sd_bus_message_append(reply, "{sv}{sv}{sv}{sv}",
                                  "Path", "s", strempty(i->path),
                                  "Usable", "b", (int) i->usable,
                                  "Version", "s", strempty(i->version),
                                  "Reason", "s", i->probed ? strempty(i->reason) : "It has not been looked at yet");
        if (r < 0)
                return r;
        r = append_features(reply, manager, b);
        if (r < 0)
                return r;
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        return sd_bus_message_close_container(reply);
}

static int property_backends(sd_bus *bus, const char *path, const char *interface, const char *property,
                             sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        Manager *manager = userdata;
        int r;

        r = sd_bus_message_open_container(reply, 'a', "(sa{sv})");
        if (r < 0)
                return r;
        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                r = append_backend(reply, manager, b);
                if (r < 0)
                        return r;
        }
        return sd_bus_message_close_container(reply);
}

const sd_bus_vtable manager_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD_WITH_ARGS("CreateVM", SD_BUS_ARGS("s", name, "s", definition, "a{sv}", options),
                                SD_BUS_RESULT("o", vm), manager_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetVM", SD_BUS_ARGS("s", name_or_id), SD_BUS_RESULT("o", vm), manager_method,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetVMByPID", SD_BUS_ARGS("u", pid), SD_BUS_RESULT("o", vm), manager_method,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("ListVMs", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(ssso)", vms), manager_method,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("ListEvents", SD_BUS_ARGS("a{sv}", filter), SD_BUS_RESULT("a(ttssssa{sv})", events),
                                manager_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("GetUsage", SD_BUS_ARGS("t", from, "t", to), SD_BUS_RESULT("a(ssttta{sv})", intervals),
                                manager_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Reload", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, manager_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_PROPERTY("Version", "s", property_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_PROPERTY("Backends", "a(sa{sv})", property_backends, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        SD_BUS_SIGNAL_WITH_ARGS("Event",
                                SD_BUS_ARGS("t", id, "t", usec, "s", vm_id, "s", vm_name, "s", type, "s", message,
                                            "a{sv}", details), 0),
        SD_BUS_SIGNAL_WITH_ARGS("JobRemoved", SD_BUS_ARGS("u", id, "o", job, "o", vm, "s", result), 0),
        SD_BUS_VTABLE_END,
};

/* Everybody can listen, so the details stay out: ListEvents has them, for those who may see them. */
int emit_event(sd_bus *bus, const Event *ev) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_signal(bus, &m, API_PATH, API_MANAGER_INTERFACE, "Event");
        if (r < 0)
                return r;
        r = append_event(m, ev, false);
        if (r < 0)
                return r;
        return sd_bus_send(bus, m, NULL);
}

int emit_job_removed(sd_bus *bus, const Job *j, const char *result) {
        _cleanup_free_ char *job = NULL, *vm = NULL;
        int r;

        r = job_path(j->id, &job);
        if (r < 0)
                return r;
        r = vm_path(j->vm->rec.name, &vm);
        if (r < 0)
                return r;
        return sd_bus_emit_signal(bus, API_PATH, API_MANAGER_INTERFACE, "JobRemoved", "uoos", j->id, job, vm, result);
}
