/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/json-util.h"
#include "vmm/vmm.h"

/* What the objects of all back ends share. Each is one block of memory that begins with its VMM and that nothing but the last vmm_unref()
 * frees: its free() gives back all else. */

/* Another reference is held while callbacks run, for these may free it. */
VMM *vmm_ref(VMM *v);
VMM *vmm_unref(VMM *v);
DEFINE_TRIVIAL_CLEANUP_FUNC(VMM *, vmm_unref);

/* Calls the handler, unless it was freed. */
void vmm_emit(VMM *v, VMMEvent event, int error);
/* Emits what becomes of it, if there is an event for that; before CONNECTED nothing. */
void vmm_set_state(VMM *v, VMMState state);

typedef struct VMMStateName {
        const char *name;
        VMMState state;
} VMMStateName;

/* VMM_STATE_UNKNOWN: none of these */
VMMState vmm_state_find(const VMMStateName *table, size_t n, const char *name);

/* A call under way. Lives until its callback has run, which is once, and not after free(). */
struct VMMCall {
        VMMCall *next;
        VMM *vmm;
        int what;               /* the back end's matter */
        bool acknowledged;      /* the VMM has obeyed; the state that follows is waited for */
        vmm_reply_cb cb;
        vmm_counters_cb counters_cb;
        void *userdata;
};

/* Anybody may ask for counters: so many at once, for other calls shall go through. */
#define VMM_COUNTERS_CALLS_MAX 8U

int vmm_call_new(VMM *v, int what, vmm_reply_cb cb, void *userdata, VMMCall **ret);
/* -EBUSY: too many are under way. */
int vmm_call_new_counters(VMM *v, int what, vmm_counters_cb cb, void *userdata, VMMCall **ret);
/* Without its callback */
void vmm_call_drop(VMMCall *call);
/* These free the call before the callback runs, which may free the VMM. */
void vmm_call_complete(VMMCall *call, int error, const char *message);
void vmm_call_complete_counters(VMMCall *call, const VMMCounter *counters, size_t n);
/* All that there are, also those that the callbacks make */
void vmm_calls_fail(VMM *v, int error);
/* Those that wait for a state */
void vmm_calls_fail_acknowledged(VMM *v, int error);

#define VMM_DISK_COUNTERS 4U
/* Fills in what there is of one disk: what makes no sense is passed over. keys: what the VMM calls bytes read, written, reads and writes.
 * Gives how many. */
size_t vmm_disk_counters(VMMCounter *counters, const char *disk, json_object *stats, const char *const keys[static VMM_DISK_COUNTERS]);

/* A VMM's own words: escaped, bounded; NULL: no memory. The caller frees. */
#define VMM_WORDS_MAX 1024U
char *vmm_words(const char *s, size_t n);
