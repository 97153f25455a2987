/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/definition.h"
#include "core/job.h"
#include "core/run.h"
#include "vmm/vmm.h"

typedef struct Start Start;
typedef struct Stop Stop;

/* So much in so long a time */
typedef struct Budget {
        uint64_t since_usec;            /* CLOCK_MONOTONIC */
        unsigned n;
} Budget;

struct VM {
        Manager *manager;
        VM *next;

        VMRecord rec;                   /* what is in the store */
        bool unsaved;                   /* … or would be, if the last write had not failed */
        Definition *definition;
        char definition_hash[65];
        uint64_t claim[_USER_LIMIT_MAX]; /* what it counts for its owner's limits */
        char *scope, *slice;            /* unit names */
        char *run_dir, *state_dir;      /* /run/vmunit/vms/<id>, /var/lib/vmunit/vms/<id> */

        Job *job;                       /* the operation under way, or NULL */
        Start *start;                   /* what a start has built so far, while it goes on */
        Stop *stop;                     /* a stop, kill or reboot under way */
        Run *run;                       /* the VMM's processes and units, also while they go away */
        struct Share *shares;           /* of its shared folders and networks, in use or going away */
        size_t n_shares;
        unsigned n_share_runs;          /* those of them of which something is there */
        bool slice_made;                /* PID 1 has it, in this run */
        char *slice_description;
        VMM *vmm;                       /* its API, NULL when not connected */
        const VMMOps *ops;              /* of the back end chosen, or NULL */
        VMMState vmm_state;             /* what it said last */
        VMMEvent last_event;            /* why it may be about to end; _VMM_EVENT_MAX: nothing said */
        bool loaded;                    /* it was in the store when the daemon started */
        bool published;                 /* it is on the bus */
        bool clean;                     /* the last run has left nothing, as this daemon saw itself */
        bool slice_left;                /* … but for its slice, which somebody else's unit keeps */
        SystemdCall *stop_query;        /* is it the host's shutdown that stops its scope? */
        bool asked_to_stop;             /* by manager_stop_all() */
        bool by_itself;                 /* the start under way was asked for by nobody */
        sd_event_source *restart_timer;
        uint64_t restart_due;           /* CLOCK_BOOTTIME, made of … */
        uint64_t restart_due_of;        /* … this rec.restart_at */
        Budget notes, flips;            /* of its VMM's remarks, and of its changes of state that nobody asked for: each is a write */
        sd_event_source *settle;        /* when what the VMM says of its state is shown again */
        bool heard_all;                 /* the VMM itself has closed the connection, so no event is missing */
        sd_event_source *reconnect;
        unsigned n_reconnects;          /* since its API answered last */
        sd_event_source *call_timer;    /* of a reboot: how long the guest may take */
        unsigned n_buttons;             /* pressed for reboots, and not answered yet */
        bool reboot_resumes;            /* the job is a reboot of another daemon, of which the VMM has to be told again */
        bool call_waits;                /* the job is a call that waits for the VMM's API, as long as call_timer says */

        sd_event_source *retry;         /* of a removal that is blocked */
        uint64_t retry_usec;
        Definition *update;             /* what an update under way will make of the definition */
        char *update_next;              /* … and of the one for the next start */
        SystemdCall *update_call;
        int update_error;               /* why its limits are taken back */
};

/* Whether a VMM of this VM lives: its pidfd and scope were proven, and it has not ended. */
bool vm_is_alive(const VM *vm);
VMCondition vm_get_condition(const VM *vm);
/* 0 if none */
pid_t vm_leader_pid(const VM *vm);

/* Operations. Gives 0 when done at once (cb does not run), 1 when under way (cb will run once, unless it is NULL), or -errno with error
 * set, when refused and nothing has changed. They don't depend on their caller: the work goes on if it leaves. */
int vm_start(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);
/* timeout_usec: until the hard way; USEC_INFINITY: for ever; VM_STOP_TIMEOUT_DEFAULT: as the definition says. */
#define VM_STOP_TIMEOUT_DEFAULT (UINT64_MAX - 1)
int vm_stop(VM *vm, uid_t caller, uint64_t timeout_usec, bool keep_intent, done_cb cb, void *userdata, sd_bus_error *error);
int vm_kill(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);
int vm_reboot(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);
int vm_reset(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);
int vm_pause(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);
int vm_resume(VM *vm, uid_t caller, done_cb cb, void *userdata, sd_bus_error *error);
/* Gives 0 as soon as the removal is durable; it goes on by itself. */
int vm_remove(VM *vm, uid_t caller, bool force, sd_bus_error *error);
int vm_update(VM *vm, uid_t caller, const char *patch, bool next_start, done_cb cb, void *userdata, sd_bus_error *error);
/* Whether an update would give the VM what its owner has no right to: 1, and what; 0 also for a patch that is wrong. For somebody who is not
 * root any change of root's VM is that. */
int vm_update_exceeds_owner(VM *vm, const char *patch, char **ret_why);

/* The definition as JSON, normalised. */
int vm_get_definition(VM *vm, char **ret);

/* Counters: those of the slice by systemd's names, then the VMM's own. Answers by its own deadline, whatever else goes on. The
 * callback runs once, unless -errno with error set was given. */
typedef struct Counter {
        char name[64];
        uint64_t value;
} Counter;
typedef void (*stats_cb)(void *userdata, const sd_bus_error *error, const Counter *counters, size_t n);
int vm_get_stats(VM *vm, stats_cb cb, void *userdata, sd_bus_error *error);

/* A stream of the serial port; the callback owns fd. */
typedef void (*console_cb)(void *userdata, const sd_bus_error *error, int fd);
int vm_open_console(VM *vm, bool read_only, console_cb cb, void *userdata, sd_bus_error *error);

/* Its number as the guest's vsock address, 0: it has none. */
uint32_t vm_vsock_cid(const VM *vm);
/* A stream to a port in the guest; the callback owns fd. */
typedef void (*vsock_cb)(void *userdata, const sd_bus_error *error, int fd);
int vm_open_vsock(VM *vm, uint32_t port, vsock_cb cb, void *userdata, sd_bus_error *error);

/* The newest bytes of the serial port's log, of this run or the last. The caller frees. */
int vm_get_console_log(VM *vm, uint64_t max, char **ret, size_t *ret_size);
/* What the VMM wrote on its standard error last: valid UTF-8, control characters escaped, at most 4 KiB. */
int vm_get_last_output(VM *vm, char **ret);
