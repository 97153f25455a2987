/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "basic/macro.h"
#include "bus/systemd.h"
#include "core/helper.h"
#include "core/launcher.h"
#include "core/store.h"

/* One run of a VM: its VMM, the VMM's parent (the helper) and their units, from the first process until nothing is left of them.
 * It is built by a start, or found again by the run file; either way this is the one place that answers "does it live?". */

typedef struct Run Run;

typedef struct RunHandler {
        void (*killed)(void *userdata);         /* the VMM is about to end, whatever it does; once, before died, if it is seen. NULL: of no interest */
        void (*died)(void *userdata);           /* the VMM has ended; once */
        void (*status)(void *userdata);         /* exit_known and status are final; after died, or when the helper ended early */
        bool (*awaits)(void *userdata);         /* before status, again and again until false: it will say more in a moment. NULL: never */
        void (*stop_asked)(void *userdata);     /* systemd wants the scope to stop; once */
        void (*gone)(void *userdata);           /* no process, scope, slice or file in /run is left; the run may be freed */
} RunHandler;

struct Run {
        sd_event *event;
        Systemd *systemd;
        const RunHandler *handler;
        void *userdata;
        const char *scope, *slice, *run_dir;    /* borrowed from the VM, where they never change */
        VMNumbers numbers;                      /* the VM's, for a daemon whose database does not know it */

        LaunchCall *launch;                     /* while it starts: its connection keeps the helper's pid from being used again */
        pid_t helper_pid, pid;
        int helper_pidfd, pidfd;
        uint64_t start_usec;                    /* of the VMM, CLOCK_BOOTTIME; 0: not known */
        uint64_t died_usec;                     /* CLOCK_MONOTONIC: its end, or that it was killed, was seen */
        HelperCall *life_call;
        sd_event_source *helper_source, *source, *life, *timer, *ask_timer, *kill_timer, *hint_timer;
        char invocation_id[33];
        char backend[24];                       /* for a daemon whose database has another one */
        uint64_t reboot_until;                  /* CLOCK_MONOTONIC: a reboot is under way, which may take so long; 0: none is */
        bool reboot_pressed;                    /* … and its button was pressed */
        char end_cause[64];                     /* it is about to be killed, and this was the reason; "": it is not */
        bool in_scope;                          /* the scope was started */
        bool killed;                            /* but its process may be there still: the kernel takes it apart */
        bool dead, helper_dead, status_told, stop_told;
        bool ending;                            /* on its way to gone */
        bool leaves_slice;                      /* which is another run's to wait for */
        const bool *keeps_dir;                  /* if so, what is in run_dir goes alone; NULL: no */
        const unsigned *n_others;               /* runs that leave it to this one, or NULL */
        bool slice_left;                        /* somebody else's unit keeps the slice */

        bool exit_known;
        int status;                             /* as wait(2) */
        char result[32];                        /* of the scope: "oom-kill", … "" if not known */

        UnitWatch *scope_watch, *slice_watch;
        SystemdCall *query, *result_query, *stop_query, *slice_query;
        bool query_again, scope_gone, slice_gone;
        bool slice_needed;                      /* it has no StopWhenUnneeded= */
        bool slice_stays, slice_asked;          /* … and is not ours; and it was there still when asked for after that */
        uint64_t end_usec;                      /* CLOCK_MONOTONIC: gives up waiting for the units */
};

int run_new(sd_event *event, Systemd *systemd, const RunHandler *handler, void *userdata, Run **ret);
Run *run_free(Run *r);
DEFINE_TRIVIAL_CLEANUP_FUNC(Run *, run_free);

/* The answer of a launch, if it is still to come, would come to nobody. */
void run_forget_launch(Run *r);
/* Take the pidfds over, and watch them. */
int run_set_helper(Run *r, pid_t pid, int pidfd);
int run_set_vmm(Run *r, pid_t pid, int pidfd);
/* The scope is there: watch it. */
int run_set_in_scope(Run *r);

/* True while the VMM lives, as far as the kernel says now; while it has a process, which one that was killed may have for a little longer. */
bool run_is_alive(const Run *r);
bool run_has_process(const Run *r);
/* That the process is in the run's scope. 0, -ESRCH (gone), -EXDEV (somewhere else). */
int run_check_cgroup(const Run *r, pid_t pid);

/* The run file, written before the VMM executes, and again when a reboot begins, presses the button or ends, or the VMM is to be ended;
 * found again by run_find(): 0, or -ENOENT (no such file), -ESRCH (its process is gone or another), -EXDEV (not in its scope). On success the
 * run is watched as if just started. */
int run_write_file(Run *r, const char *boot_id);
int run_find(Run *r, const char *boot_id);
/* Whose ids the processes have of which this run file is. -ENODATA: it does not tell. */
int run_read_numbers(const char *path, VMNumbers *ret);

/* Ends it the hard way: SIGKILL to the VMM at once, to all of the scope when the helper has ended or 100 ms later. */
void run_kill(Run *r);
/* n_others may be 0 now. */
void run_others_gone(Run *r);
/* What is left is ended and cleaned up; gone() will be called. For a run whose VMM is dead, or never was. */
void run_end(Run *r);
