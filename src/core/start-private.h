/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/vm-private.h"

/* A start is a transaction: a list of steps, each with the undo of all that it may have made, which is safe to run when it has
 * made nothing. A step gives STEP_DONE, STEP_WAITS (start_continue() goes on) or a negative errno with s->error set. After a
 * failure the undos run in reverse, then the run is ended: processes, scope, slice and files in /run. */

#define LAUNCHER_TIMEOUT_USEC (5 * USEC_PER_SEC)

enum { STEP_DONE = 0, STEP_WAITS = 1 };

typedef struct OpenContext {
        Start *start;
        size_t index;
        LaunchCall *call;
        int fd;
        dev_t device;                   /* of a block device, else 0 */
} OpenContext;

typedef struct DiskOpen DiskOpen;

struct Start {
        VM *vm;
        unsigned step;
        bool failing;                   /* rolling back */
        bool hung;                      /* by a fault: whatever comes in */
        bool canceled;
        VMCall canceled_by;
        bool keep_intent;               /* by a Stop after which it is to run again */
        Waiter *cancel_waiters;
        sd_bus_error error;
        sd_event_source *kick, *deadline;

        LaunchPlan *plan;
        bool kvm;
        LaunchCall *probe;
        bool version_asked;
        FileHead kernel;                /* if the back end is particular about it; no data: not known */
        uint8_t kernel_head[LAUNCH_HEAD_MAX];
        OpenContext *opens;             /* one an fd of the plan */
        size_t n_fds, n_share_fds, n_pending;
        DiskOpen *disks;                /* what opens the images that the disks rest on, */
        DiskFiles **disk_files;         /* and what is known of them */
        size_t n_disks;
        int exec_fd, control_fd, exit_fd, console_fd, output_fd;
        Helper *helper;
        LaunchCall *loop;               /* asks for a device in the place of opens[loop_index].fd */
        uint32_t loop_index;
        SystemdCall *call;
        char *description, **devices;
        bool vmm_forked, invocation_known, told_to_execute, executed, connected, booted;
        bool asked_again;               /* for the InvocationID, which PID 1 had not answered */
        bool scope_pending;             /* PID 1 has been asked for the scope and has not made it yet */
        bool again;                     /* when all that it has made is gone it begins anew, */
        bool cleared;                   /* for what was in the way of the scope, which happens once, or with another back end */
};

typedef struct Step {
        const char *name;
        int (*act)(Start *s);
        void (*undo)(Start *s);
        bool waits;             /* most often its act gives STEP_WAITS */
} Step;

#define START_STEP_CLEAR 0
#define START_STEP_SHARES 5
#define START_STEP_FORK 6       /* the one that makes the VMM's process */
#define START_STEP_EXEC 7

extern const Step start_steps[];
extern const unsigned n_start_steps;

/* Goes on with the next step; for what a step waited for. */
void start_continue(Start *s);
/* Rolls back, with s->error set by one of those below. They give r back, and keep the first error. */
void start_fail(Start *s);
int start_error(Start *s, int r, const char *name, const char *format, ...) _printf_(4, 5);
int start_errno(Start *s, int r, const char *what);
/* Both: an asynchronous part has failed. */
void start_failed(Start *s, int r, const char *what);
/* The VMM does not speak to us any more: it fails, when the VMM's death has had the time to tell why. */
int start_hung_up(Start *s);

/* start-disks.c: before anything is opened; the disk's own file is open: 0, more is to be opened, 1, that was all; all are open, and the
 * plan was made with them: they become files of the plan */
int start_new_disks(Start *s);
int start_disk_opened(Start *s, size_t i, const OpenReply *reply);
int start_take_images(Start *s);
void start_undo_disks(Start *s);
/* start-steps.c: a file of the plan, with all that it names, is open. */
void start_file_opened(Start *s);

/* Undos that a start which goes well needs as well */
void start_undo_files(Start *s);
void start_undo_open(Start *s);
void start_undo_launch(Start *s);
/* After the undos: what the run has made is ended. */
void start_end_run(Start *s);
