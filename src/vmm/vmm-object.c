/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>

#include "basic/string-util.h"
#include "vmm/vmm-object.h"

VMM *vmm_ref(VMM *v) {
        v->n_ref++;
        return v;
}

VMM *vmm_unref(VMM *v) {
        if (v && --v->n_ref == 0)
                free(v);
        return NULL;
}

void vmm_emit(VMM *v, VMMEvent event, int error) {
        if (!v->freed)
                v->handler(v->userdata, event, v->state, error);
}

void vmm_set_state(VMM *v, VMMState state) {
        if (v->state == state)
                return;
        v->state = state;
        if (!v->connected) /* CONNECTED will tell it */
                return;

        if (state == VMM_STATE_RUNNING)
                vmm_emit(v, VMM_EVENT_RUNNING, 0);
        else if (state == VMM_STATE_PAUSED)
                vmm_emit(v, VMM_EVENT_PAUSED, 0);
        else if (state == VMM_STATE_IO_ERROR)
                vmm_emit(v, VMM_EVENT_IO_ERROR, 0);
        else if (state == VMM_STATE_FAILED)
                vmm_emit(v, VMM_EVENT_FAILED, 0);
}

VMMState vmm_state_find(const VMMStateName *table, size_t n, const char *name) {
        for (size_t i = 0; i < n; i++)
                if (streq(name, table[i].name))
                        return table[i].state;
        return VMM_STATE_UNKNOWN;
}

/* Calls */

int vmm_call_new(VMM *v, int what, vmm_reply_cb cb, void *userdata, VMMCall **ret) {
        VMMCall *call = new(VMMCall, 1);

        if (!call)
                return -ENOMEM;
        *call = (VMMCall) { .next = v->calls, .vmm = v, .what = what, .cb = cb, .userdata = userdata };
        v->calls = call;
        *ret = call;
        return 0;
}

int vmm_call_new_counters(VMM *v, int what, vmm_counters_cb cb, void *userdata, VMMCall **ret) {
        unsigned n = 0;
        int r;

        for (VMMCall *c = v->calls; c; c = c->next)
                n += !!c->counters_cb;
        if (n >= VMM_COUNTERS_CALLS_MAX)
                return -EBUSY;
        r = vmm_call_new(v, what, NULL, userdata, ret);
        if (r >= 0)
                (*ret)->counters_cb = cb;
        return r;
}

void vmm_call_drop(VMMCall *call) {
        for (VMMCall **p = &call->vmm->calls; *p; p = &(*p)->next)
                if (*p == call) {
                        *p = call->next;
                        break;
                }
        free(call);
}

void vmm_call_complete(VMMCall *call, int error, const char *message) {
        VMMCall c = *call;

        vmm_call_drop(call);
        if (c.counters_cb)
                c.counters_cb(c.userdata, error, NULL, 0);
        else if (c.cb)
                c.cb(c.userdata, error, message);
}

void vmm_call_complete_counters(VMMCall *call, const VMMCounter *counters, size_t n) {
        VMMCall c = *call;

        vmm_call_drop(call);
        c.counters_cb(c.userdata, 0, counters, n);
}

void vmm_calls_fail(VMM *v, int error) {
        while (v->calls)
                vmm_call_complete(v->calls, error, NULL);
}

/* From the start after each, for callbacks change the list. */
void vmm_calls_fail_acknowledged(VMM *v, int error) {
        VMMCall *c;

        do {
                for (c = v->calls; c && !c->acknowledged; c = c->next)
                        ;
                if (c)
                        vmm_call_complete(c, error, NULL);
        } while (c);
}

/* What VMMs say */

size_t vmm_disk_counters(VMMCounter *counters, const char *disk, json_object *stats, const char *const keys[static VMM_DISK_COUNTERS]) {
        static const char *const names[VMM_DISK_COUNTERS] = { "ReadBytes", "WriteBytes", "ReadOps", "WriteOps" };
        size_t n = 0;

        if (strlen(disk) > 16 || disk[strspn(disk, "abcdefghijklmnopqrstuvwxyz0123456789")])
                return 0;
        for (size_t i = 0; i < VMM_DISK_COUNTERS; i++) {
                int64_t value = json_get_int(stats, keys[i], -1);

                if (value < 0)
                        continue;
                snprintf(counters[n].name, sizeof counters[n].name, "%s.%s", disk, names[i]);
                counters[n++].value = (uint64_t) value;
        }
        return n;
}

char *vmm_words(const char *s, size_t n) {
        return escape_untrusted(s, n, VMM_WORDS_MAX);
}
