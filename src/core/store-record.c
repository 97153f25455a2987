/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "core/store.h"

/* The API's words, which are also those in the database. */
static const char *const vm_state_table[_VM_STATE_MAX] = {
        [VM_STOPPED] = "Stopped",
        [VM_STARTING] = "Starting",
        [VM_RUNNING] = "Running",
        [VM_PAUSED] = "Paused",
        [VM_STOPPING] = "Stopping",
        [VM_REMOVING] = "Removing",
        [VM_ERROR] = "Error",
};

DEFINE_STRING_TABLE(vm_state, VMState)

void vm_record_done(VMRecord *r) {
        free(r->name);
        free(r->definition);
        free(r->next_definition);
        free(r->backend);
        free(r->reason);
        free(r->message);
        *r = (VMRecord) {};
}

int vm_record_copy(const VMRecord *r, VMRecord *ret) {
        _cleanup_(vm_record_done) VMRecord c = *r;

        c.name = c.definition = c.next_definition = c.backend = c.reason = c.message = NULL;
        if (free_and_strdup(&c.name, r->name) < 0 ||
            free_and_strdup(&c.definition, r->definition) < 0 ||
            free_and_strdup(&c.next_definition, r->next_definition) < 0 ||
            free_and_strdup(&c.backend, r->backend) < 0 ||
            free_and_strdup(&c.reason, strempty(r->reason)) < 0 ||
            free_and_strdup(&c.message, strempty(r->message)) < 0)
                return -ENOMEM;

        *ret = c;
        c = (VMRecord) {};
        return 0;
}
