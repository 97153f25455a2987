/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/api-internal.h"
#include "api/authorize.h"
#include "api/wire.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"

int job_method_cancel(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        int r;

        r = OPTIONS_NONE(m, error);
        if (r < 0)
                return r;
        r = job_cancel(userdata, error);
        return message_answer(m, false, r < 0 ? r : 0, error);
}

static int property_vm(sd_bus *bus, const char *path, const char *interface, const char *property,
                       sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        _cleanup_free_ char *p = NULL;
        Job *j = userdata;
        int r;

        r = vm_path(j->vm->rec.name, &p);
        if (r < 0)
                return r;
        return sd_bus_message_append_basic(reply, 'o', p);
}

static int property_operation(sd_bus *bus, const char *path, const char *interface, const char *property,
                              sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        Job *j = userdata;

        return sd_bus_message_append_basic(reply, 's', vm_call_to_string(j->call));
}

static int property_cancelable(sd_bus *bus, const char *path, const char *interface, const char *property,
                               sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        Job *j = userdata;

        return sd_bus_message_append(reply, "b", j->cancelable);
}

const sd_bus_vtable job_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_PROPERTY("Id", "u", NULL, offsetof(Job, id), SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_PROPERTY("VM", "o", property_vm, 0, SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_PROPERTY("Operation", "s", property_operation, 0, SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_PROPERTY("Stage", "s", NULL, offsetof(Job, stage), SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        SD_BUS_PROPERTY("Progress", "d", NULL, offsetof(Job, progress), SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        SD_BUS_PROPERTY("StartedUSec", "t", NULL, offsetof(Job, started_usec), SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_PROPERTY("CallerUID", "u", NULL, offsetof(Job, caller), SD_BUS_VTABLE_PROPERTY_CONST),
        SD_BUS_PROPERTY("Cancelable", "b", property_cancelable, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
        SD_BUS_METHOD_WITH_ARGS("Cancel", SD_BUS_ARGS("a{sv}", options), SD_BUS_NO_RESULT, job_method, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};

int job_object_find(sd_bus *bus, const char *path, const char *interface, void *userdata, void **ret,
                    sd_bus_error *error) {
        _cleanup_free_ char *canonical = NULL;
        const char *s = startswith(path, API_JOB_PATH "/");
        Api *a = userdata;
        uint32_t id;
        Job *j;

        if (!s || parse_u32(s, &id) < 0)
                return 0;
        j = a->leaving_job && a->leaving_job->id == id ? a->leaving_job : manager_get_job(a->manager, id);
        if (!j)
                return 0;
        if (job_path(id, &canonical) < 0)
                return -ENOMEM;
        if (!streq(canonical, path))    /* "007" */
                return 0;
        *ret = j;
        return 1;
}

int job_node_enumerator(sd_bus *bus, const char *prefix, void *userdata, char ***ret, sd_bus_error *error) {
        _cleanup_strv_free_ char **l = NULL;
        Api *a = userdata;
        int r;

        for (VM *vm = a->manager->vms; vm; vm = vm->next) {
                if (!vm->job)
                        continue;
                r = strv_extendf(&l, API_JOB_PATH "/%u", vm->job->id);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(l);
        return 0;
}
