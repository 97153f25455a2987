/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <systemd/sd-id128.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/log.h"
#include "basic/name-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/manager-private.h"
#include "core/message-ids.h"
#include "core/share.h"
#include "core/user-limits.h"

/* CreateVM: checked whole, stored, published. Where a back end is particular about kernels, the file is looked at first, by the
 * launcher, as its owner: one that is not there, or that nobody can read in time, is the start's to complain about. */

#define LOOK_TIMEOUT_USEC (5 * USEC_PER_SEC)

struct Create {
        Create *next;
        Manager *manager;
        char *name;
        Definition *definition;
        uid_t owner;
        LaunchCall *call;
        created_cb cb;
        void *userdata;
};

static int check_name(Manager *m, const char *name, sd_bus_error *error) {
        VM *other;

        if (!vm_name_is_valid(name)) {
                _cleanup_free_ char *shown = escape_untrusted(name, strlen(name), 64);

                return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
                                         "name: '%s' is no name for a VM: 1 to 63 of a-z 0-9 - . that make a host name, "
                                         "not localhost, not an id", strempty(shown));
        }
        other = manager_get_vm(m, name);
        if (other && other->rec.state == VM_REMOVING)
                return sd_bus_error_setf(error, VMUNIT_ERROR_REMOVING, "%s: a VM of this name is being removed", name);
        if (other)
                return sd_bus_error_setf(error, VMUNIT_ERROR_VM_EXISTS, "%s: there is a VM of this name", name);
        return 0;
}

static int new_id(char ret[static 37]) {
        sd_id128_t id;
        int r;

        r = sd_id128_randomize(&id);
        if (r < 0)
                return r;
        (void) sd_id128_to_uuid_string(id, ret);
        return 0;
}

static int fill_record(VMRecord *rec, const char *name, const Definition *d, const VMMOps *ops, uid_t owner) {
        int r;

        r = new_id(rec->id);
        if (r < 0)
                return r;
        rec->owner = owner;
        rec->state = VM_STOPPED;
        rec->created = rec->state_since = now_realtime();
        rec->name = strdup(name);
        rec->reason = strdup("");
        rec->message = strdup("");
        rec->backend = ops ? strdup(backend_to_string(ops->backend)) : NULL;
        if (!rec->name || !rec->reason || !rec->message || (ops && !rec->backend))
                return -ENOMEM;
        return definition_format(d, &rec->definition);
}

static int insert_record(Manager *m, VMRecord *rec, uint64_t *ret_id) {
        Event ev = { .usec = rec->created, .vm_id = rec->id, .vm_name = rec->name, .type = "created", .message = "It was created" };
        int r;

        r = FAULT_POINT("create.write", FAULT_FAILS, 0);
        if (r >= 0)
                r = store_begin(m->store);
        if (r < 0)
                return r;
        r = store_insert_vm(m->store, rec);
        if (r >= 0)
                r = store_add_event(m->store, &ev, ret_id);
        return store_end(m->store, r);
}

static void publish_new(Manager *m, VM *vm, uint64_t event_id) {
        Event ev = { .id = event_id, .usec = vm->rec.created, .vm_id = vm->rec.id, .vm_name = vm->rec.name, .type = "created",
                     .message = "It was created" };

        vm->published = true;
        if (m->observer) {
                m->observer->vm_added(m->observer_userdata, vm);
                m->observer->event(m->observer_userdata, &ev);
        }
        vm_log_fields(vm, LOG_INFO, MESSAGE_VM_CREATED, NULL, "created");
        manager_state_changed(m);
}

static int make(Manager *m, const char *name, const Definition *d, uid_t owner, const FileHead *kernel, VM **ret, sd_bus_error *error) {
        _cleanup_(vm_record_done) VMRecord rec = {};
        const VMMOps *ops = NULL;
        uint64_t event_id = 0;
        VM *vm = NULL;
        int r;

        r = claim_check_new(m, name, owner, d, error);
        if (r < 0)
                return r;
        r = manager_choose_backend(m, d, kernel, &ops, error);
        if (r < 0 && r != -ENODEV)
                return r;
        sd_bus_error_free(error);

        r = fill_record(&rec, name, d, ops, owner);
        if (r < 0)
                return sd_bus_error_set_errno(error, r);
        r = insert_record(m, &rec, &event_id);
        if (r < 0)
                return write_error(r, error);
        r = vm_new(m, &rec, &vm);
        if (r >= 0)
                r = manager_link_vm(m, vm);
        if (r < 0) {
                /* Stored, but not in memory: the next start of the daemon finds it. Say so rather than lose it. */
                vm_free(vm);
                return sd_bus_error_setf(error, SD_BUS_ERROR_NO_MEMORY, "%s: it was stored, but there is no memory to go on", name);
        }

        vm->clean = true;
        (void) FAULT_POINT("create.written", 0, 0);
        publish_new(m, vm, event_id);
        (void) FAULT_POINT("create.published", 0, 0);
        *ret = vm;
        return 0;
}

/* Looking at the kernel before */

static Create *create_free(Create *c) {
        if (!c)
                return NULL;
        launch_call_free(c->call);
        definition_free(c->definition);
        free(c->name);
        free(c);
        return NULL;
}
DEFINE_TRIVIAL_CLEANUP_FUNC(Create *, create_free);

static void create_end(Create *c, VM *vm, const sd_bus_error *error) {
        for (Create **i = &c->manager->creates; *i; i = &(*i)->next)
                if (*i == c) {
                        *i = c->next;
                        break;
                }
        c->cb(c->userdata, vm, error);
        create_free(c);
}

static void on_looked(void *userdata, int error, int fd, const OpenReply *reply) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        Create *c = userdata;
        FileHead kernel;
        VM *vm = NULL;
        int r;

        safe_close(fd);
        if (error == 0)
                kernel = (FileHead) { reply->head, MIN((size_t) reply->head_size, sizeof(reply->head)) };
        r = check_name(c->manager, c->name, &e); /* somebody may have been faster */
        if (r >= 0)
                r = make(c->manager, c->name, c->definition, c->owner, error == 0 ? &kernel : NULL, &vm, &e);
        if (r < 0 && !sd_bus_error_is_set(&e))
                (void) sd_bus_error_set_errno(&e, r);
        create_end(c, vm, &e);
}

/* Takes the definition over if it gives 1. */
static int look_first(Manager *m, const char *name, Definition *d, uid_t owner, created_cb cb, void *userdata) {
        _cleanup_(create_freep) Create *c = new(Create, 1);
        int r;

        if (!c)
                return -ENOMEM;
        *c = (Create) { .next = m->creates, .manager = m, .name = strdup(name), .owner = owner, .cb = cb, .userdata = userdata };
        if (!c->name)
                return -ENOMEM;
        r = launch_open(m->event, d->kernel, owner, 0, LOOK_TIMEOUT_USEC, on_looked, c, &c->call);
        if (r < 0)
                return r;
        c->definition = d;
        m->creates = TAKE_PTR(c);
        return 1;
}

int manager_check_new(Manager *m, const char *name, const char *definition, uid_t owner, Definition **ret, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *d = NULL;
        int r;

        r = check_name(m, name, error);
        if (r < 0)
                return r;
        if (owner == (uid_t) -1)
                return sd_bus_error_set(error, SD_BUS_ERROR_INVALID_ARGS, "owner: this is nobody's uid");
        r = definition_parse(definition, &d, error);
        if (r < 0)
                return r;
        r = manager_check_definition(m, d, error);
        if (r >= 0)
                r = shares_check(m, name, d, error);
        if (r >= 0)
                r = shares_check_program(m, NULL, d, error);
        if (r >= 0)
                r = claim_check_new(m, name, owner, d, error); /* before the owner's file is looked at */
        if (r < 0)
                return r;
        *ret = TAKE_PTR(d);
        return 0;
}

int manager_create_vm(Manager *m, const char *name, const char *definition, uid_t owner, created_cb cb, void *userdata, VM **ret,
                      sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *d = NULL;
        int r;

        r = manager_check_new(m, name, definition, owner, &d, error);
        if (r < 0)
                return r;

        if (manager_looks_at_kernel(m, d) && look_first(m, name, d, owner, cb, userdata) > 0) {
                d = NULL;
                return 1;
        }
        return make(m, name, d, owner, NULL, ret, error);
}

void manager_end_creates(Manager *m) {
        sd_bus_error e = SD_BUS_ERROR_MAKE_CONST(VMUNIT_ERROR_CANCELED, "vmunitd ends; the VM was not created");

        while (m->creates)
                create_end(m->creates, NULL, &e);
}
