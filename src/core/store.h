/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <json-c/json.h>
#include <sys/types.h>

#include "basic/macro.h"

/* Each VM has ids of the blocks in basic/launch-protocol.h: two of the VMs, one of the passts. */
#define VM_SLOTS_MAX 32767U

/* The durable facts, in SQLite: docs/architecture.md. WAL, synchronous=FULL, one transaction per transition. */

typedef enum VMState {
        VM_STOPPED,
        VM_STARTING,
        VM_RUNNING,
        VM_PAUSED,
        VM_STOPPING,
        VM_REMOVING,
        VM_ERROR,
        _VM_STATE_MAX,
} VMState;

const char *vm_state_to_string(VMState s);
VMState vm_state_from_string(const char *s);

/* All that is known for good of one VM; strings are owned by the record. */
typedef struct VMRecord {
        uint32_t slot;          /* 1…VM_SLOTS_MAX, of no other VM as long as there is this one; set by store_insert_vm() */
        uint64_t seq;           /* counts the VMs there ever were, from 1; set by store_insert_vm() */
        char id[37];            /* a UUID in its text form, lower case */
        char *name;
        uid_t owner;
        char *definition;       /* normalised JSON */
        char *next_definition;  /* stored for the next start by Update, or NULL */
        char *backend;          /* the one chosen, or NULL */
        bool intent;            /* should it run? */
        VMState state;
        char *reason;           /* a word of the API's StateReason, "" if none; never NULL */
        char *message;          /* vmunit's own sentence; never NULL */
        uint64_t state_since;   /* CLOCK_REALTIME µs, as all times here */
        uint64_t created;
        uint64_t started;       /* of the last run, 0: never */
        char boot_id[37];       /* of the boot in which it last started, "" if never */
        bool exit_known;        /* of the last VMM */
        int exit_code, exit_signal;
        unsigned restart_count;
        uint64_t restart_at;    /* 0: none planned */
        VMState start_from;     /* in which state the last start began; Running: it is a reboot's */
} VMRecord;

void vm_record_done(VMRecord *r);
/* Deep copy; *ret is undefined before. */
int vm_record_copy(const VMRecord *r, VMRecord *ret);

/* From which its ids and its vsock's address are made */
typedef struct VMNumbers {
        uint64_t seq;
        uint32_t slot;
} VMNumbers;

typedef struct Event {
        uint64_t id;            /* grows for ever */
        uint64_t usec;
        const char *vm_id, *vm_name, *type, *message;
        json_object *details;   /* flat object of strings, integers and booleans, or NULL */
} Event;

typedef struct Usage {
        uint64_t id;
        const char *vm_id, *vm_name;
        uint64_t start, end;    /* end 0: open */
        const char *boot_id, *invocation_id;
} Usage;

typedef struct Store Store;

/* Opens or creates the database, and the last directory of its path. A file that is corrupt, empty, not vmunit's, of a
 * newer schema, unreadable or read-only is refused: *ret_message (the caller frees; NULL for lack of memory) is a
 * sentence that names the file and says what to do. Nothing is ever overwritten. -EBADMSG: corrupt, or no database of
 * vmunit; -EOPNOTSUPP: of a newer schema. */
int store_open(const char *path, Store **ret, char **ret_message);
Store *store_close(Store *s);
static inline void store_closep(Store **s) {
        store_close(*s);
}

/* A transaction. Everything that writes must stand between begin and commit. Full disk: -ENOSPC, read-only: -EROFS,
 * lock held by a foreign program: -EBUSY (within 10 ms), damage found in the file: -EBADMSG, no memory: -ENOMEM, all
 * others -EIO; the caller then rolls back. After rollback the store is usable. Closing rolls back. */
int store_begin(Store *s);
int store_commit(Store *s);
void store_rollback(Store *s);
/* Ends it by what its writes gave: commits if r >= 0, else rolls back. 0, or the error. */
int store_end(Store *s, int r);

/* -EEXIST: the name (or id) is taken. */
int store_insert_vm(Store *s, VMRecord *r);
/* All but id, name and created. These two: -ENOENT if there is no such VM. */
int store_update_vm(Store *s, const VMRecord *r);
int store_delete_vm(Store *s, const char *id);
/* Whether there is such a VM. >0, 0 or -errno. */
int store_has_vm(Store *s, const char *id);
/* Numbers of what runs and is not in the database, an older one: no VM gets one of them or a lower seq, and one that has them gets others.
 * Before VMs are read; once. */
int store_reserve(Store *s, const VMNumbers *numbers, size_t n);
/* In the order of creation; the callback may take the strings out of the record (it is freed with what is left in it).
 * A negative result of the callback ends the walk and is given back. In all walks the callback may use the store, but
 * not roll back. */
int store_foreach_vm(Store *s, int (*cb)(VMRecord *r, void *userdata), void *userdata);

/* How much history is kept: about so many rows, none older than that; 0: no such bound, which is so at first. */
void store_set_history(Store *s, uint64_t max_rows, uint64_t max_age_usec);
/* ev->id is ignored; gives the id, which holds from the commit on: a rollback gives it back. What the bounds of the
 * history leave out is dropped now and then, always the oldest; ev->usec is taken for now. */
int store_add_event(Store *s, const Event *ev, uint64_t *ret_id);
/* What has happened but could not be stored is kept in memory, a bounded number (-ENOBUFS), and stored with the next
 * events, before them; told is called after the commit, in which nothing may be written. */
int store_keep_event(Store *s, const Event *ev);
void store_on_kept_event(Store *s, void (*told)(const Event *ev, void *userdata), void *userdata);
/* Stores them now, in a transaction of its own. */
int store_flush_events(Store *s);
/* Drops what is too old now, a bounded number of rows. >0: there may be more. A transaction of its own. */
int store_prune_events(Store *s, uint64_t now_usec);
/* Events with id > after, oldest first, at most limit; vm (name or id, NULL: all). */
int store_foreach_event(Store *s, uint64_t after, const char *vm, unsigned limit,
                        int (*cb)(const Event *ev, void *userdata), void *userdata);

/* One interval per run, -EEXIST while the VM has an open one. Closing closes the VM's open one, if any (not an error if
 * none). */
int store_open_usage(Store *s, const VMRecord *r, uint64_t start, const char *boot_id, const char *invocation_id);
int store_close_usage(Store *s, const char *vm_id, uint64_t end);
/* Whether an interval of this VM is open. >0, 0 or -errno. */
int store_usage_is_open(Store *s, const char *vm_id);
/* What the history has of the VM's last run; unknown where that is too old. */
typedef enum LastStep {
        LAST_STEP_UNKNOWN,
        LAST_STEP_STARTING,
        LAST_STEP_RUNNING,
        LAST_STEP_EXITED,
} LastStep;
int store_last_step(Store *s, const char *vm_id, LastStep *ret);
/* Intervals that overlap [from, to). -E2BIG, before the first is told of: there are more than max. */
int store_foreach_usage(Store *s, uint64_t from, uint64_t to, unsigned max, int (*cb)(const Usage *u, void *userdata),
                        void *userdata);

/* The next number of a counter that is kept for ever ("job"); numbers may be left out after a crash. Reserves a block at a
 * time, early, by a transaction of its own if none is open. Where nothing can be written (full, read-only, held by another
 * program) it gives numbers all the same and reserves them later, so that what has to be done can be done: only a crash
 * before that makes it give one twice. -ENOMEM, or -EOVERFLOW after 2^32-1. */
int store_next_number(Store *s, const char *counter, uint32_t *ret);
