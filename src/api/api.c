/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/api-internal.h"
#include "api/authorize.h"
#include "api/wire.h"
#include "basic/log.h"
#include "basic/string-util.h"

#define JOBS_DELAY_USEC (100 * USEC_PER_MSEC)

/* A signal that could not be sent costs clients a view, never the VM its operation. */
static void emitted(const char *what, int r) {
        if (r < 0)
                log_warning_errno(r, "%s could not be sent", what);
}

static void emit_object(Api *a, const char *path, bool added) {
        if (added)
                emitted("InterfacesAdded", sd_bus_emit_object_added(a->bus, path));
        else
                emitted("InterfacesRemoved", sd_bus_emit_object_removed(a->bus, path));
}

static void emit_vm(Api *a, VM *vm, bool added) {
        _cleanup_free_ char *path = NULL;

        if (vm_path(vm->rec.name, &path) < 0) {
                log_oom();
                return;
        }
        emit_object(a, path, added);
}

static void on_vm_added(void *userdata, VM *vm) {
        emit_vm(userdata, vm, true);
}

static void on_vm_removed(void *userdata, VM *vm) {
        Api *a = userdata;

        a->leaving_vm = vm;
        emit_vm(a, vm, false);
        a->leaving_vm = NULL;
}

static void on_vm_changed(void *userdata, VM *vm, char **properties) {
        _cleanup_free_ char *path = NULL;
        Api *a = userdata;

        if (strv_length(properties) == 0)
                return;
        if (vm_path(vm->rec.name, &path) < 0) {
                log_oom();
                return;
        }
        emitted("PropertiesChanged of a VM",
                sd_bus_emit_properties_changed_strv(a->bus, path, API_VM_INTERFACE, properties));
}

static void on_event(void *userdata, const Event *ev) {
        Api *a = userdata;

        emitted("Event", emit_event(a->bus, ev));
}

static void emit_job(Api *a, Job *j, bool added) {
        _cleanup_free_ char *path = NULL;

        if (job_path(j->id, &path) < 0) {
                log_oom();
                return;
        }
        emit_object(a, path, added);
}

static void on_job_added(void *userdata, Job *j) {
        emit_job(userdata, j, true);
}

static void tell_job(Api *a, Job *j) {
        _cleanup_free_ char *path = NULL;

        if (job_path(j->id, &path) < 0) {
                log_oom();
                return;
        }
        emitted("PropertiesChanged of a job",
                sd_bus_emit_properties_changed(a->bus, path, API_JOB_INTERFACE, "Stage", "Progress",
                                               "Cancelable", NULL));
}

static int on_jobs_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Api *a = userdata;

        a->jobs_timer = sd_event_source_disable_unref(a->jobs_timer);
        for (VM *vm = a->manager->vms; vm; vm = vm->next)
                if (vm->job && vm->job->untold) {
                        vm->job->untold = false;
                        tell_job(a, vm->job);
                }
        return 0;
}

/* Most stages of a start take less than a signal: what changes in quick succession is told once. */
static void on_job_changed(void *userdata, Job *j) {
        Api *a = userdata;

        j->untold = true;
        if (!a->jobs_timer &&
            sd_event_add_time_relative(sd_bus_get_event(a->bus), &a->jobs_timer, CLOCK_MONOTONIC, JOBS_DELAY_USEC, 0,
                                       on_jobs_timer, a) < 0)
                log_oom();
}

static void on_job_removed(void *userdata, Job *j, const char *result) {
        Api *a = userdata;

        a->leaving_job = j;
        emit_job(a, j, false);
        a->leaving_job = NULL;
        emitted("JobRemoved", emit_job_removed(a->bus, j, result));
}

static void on_backends_changed(void *userdata) {
        Api *a = userdata;

        emitted("PropertiesChanged of the manager",
                sd_bus_emit_properties_changed(a->bus, API_PATH, API_MANAGER_INTERFACE, "Backends", NULL));
}

/* Takes a call out that nobody hears the end of. */
static bool on_waiter(done_cb cb, void *userdata, void *name) {
        if ((cb != message_done && cb != create_done) || !streq_ptr(sd_bus_message_get_sender(userdata), name))
                return false;
        message_release(userdata);
        return true;
}

static void on_peer_left(void *userdata, const char *name) {
        Api *a = userdata;

        authorizations_drop(a, name);
        for (VM *vm = a->manager->vms; vm; vm = vm->next)
                vm_drop_waiters(vm, on_waiter, (void *) name);
}

static const Observer observer = {
        .vm_added = on_vm_added,
        .vm_removed = on_vm_removed,
        .vm_changed = on_vm_changed,
        .event = on_event,
        .job_added = on_job_added,
        .job_changed = on_job_changed,
        .job_removed = on_job_removed,
        .backends_changed = on_backends_changed,
};

static sd_bus_slot **next_slot(Api *a) {
        return a->slots + a->n_slots++;
}

static int add_objects(Api *a) {
        int r;

        r = sd_bus_add_object_manager(a->bus, next_slot(a), API_PATH);
        if (r < 0)
                return r;
        r = sd_bus_add_object_vtable(a->bus, next_slot(a), API_PATH, API_MANAGER_INTERFACE, manager_vtable, a->manager);
        if (r < 0)
                return r;
        r = sd_bus_add_fallback_vtable(a->bus, next_slot(a), API_VM_PATH, API_VM_INTERFACE, vm_vtable, vm_object_find,
                                       a);
        if (r < 0)
                return r;
        r = sd_bus_add_node_enumerator(a->bus, next_slot(a), API_VM_PATH, vm_node_enumerator, a);
        if (r < 0)
                return r;
        r = sd_bus_add_fallback_vtable(a->bus, next_slot(a), API_JOB_PATH, API_JOB_INTERFACE, job_vtable,
                                       job_object_find, a);
        if (r < 0)
                return r;
        return sd_bus_add_node_enumerator(a->bus, next_slot(a), API_JOB_PATH, job_node_enumerator, a);
}

int api_new(sd_event *event, sd_bus *bus, Manager *manager, Api **ret) {
        _cleanup_(api_freep) Api *a = new(Api, 1);
        int r;

        if (!a)
                return -ENOMEM;
        *a = (Api) { .bus = sd_bus_ref(bus), .manager = manager };

        r = peers_new(bus, manager, on_peer_left, a, &a->peers);
        if (r >= 0)
                r = add_objects(a);
        if (r < 0)
                return r;
        manager->observer = &observer;
        manager->observer_userdata = a;
        *ret = TAKE_PTR(a);
        return 0;
}

Api *api_free(Api *a) {
        if (!a)
                return NULL;
        authorizations_end(a);
        if (a->manager->observer_userdata == a) {
                a->manager->observer = NULL;
                a->manager->observer_userdata = NULL;
        }
        for (size_t i = 0; i < a->n_slots; i++)
                sd_bus_slot_unref(a->slots[i]);
        sd_event_source_disable_unref(a->jobs_timer);
        peers_free(a->peers);
        sd_bus_unref(a->bus);
        free(a);
        return NULL;
}
