/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-bus.h>

#include "core/vm-table.h"

typedef struct Job Job;
typedef struct Manager Manager;
typedef struct VM VM;

/* Told once when an operation has ended; error NULL: done. */
typedef void (*done_cb)(void *userdata, const sd_bus_error *error);

typedef struct Waiter {
        done_cb cb;
        void *userdata;
        struct Waiter *next;
} Waiter;

#define JOB_STAGES_MAX 16U /* that are logged in one entry */

typedef struct JobStage {
        const char *stage;
        uint64_t usec;          /* how long it took */
} JobStage;

/* An operation under way on a VM, of which there is at most one. */
struct Job {
        uint32_t id;
        VM *vm;
        VMCall call;
        const char *stage;      /* a static string */
        double progress;        /* 0..1, negative: unknown */
        uint64_t started_usec;
        uint64_t stage_usec;    /* CLOCK_MONOTONIC: when this stage began */
        JobStage past[JOB_STAGES_MAX]; /* those before, not logged yet */
        size_t n_past;
        uid_t caller;
        bool cancelable;
        bool untold;            /* the observer's: a change that is still to be told */
        Waiter *waiters;
};

/* Makes a job, of which nobody knows yet. cb NULL: nobody waits. -EIO etc. when no number can be had from the store. */
int job_new(VM *vm, VMCall call, uid_t caller, done_cb cb, void *userdata, Job **ret);
/* Of one that did not begin: nobody is told. */
Job *job_free(Job *j);
DEFINE_TRIVIAL_CLEANUP_FUNC(Job *, job_free);
/* Makes it the VM's and tells the observer. */
void job_begin(Job *j);
/* cb NULL: nobody waits. */
int job_add_waiter(Job *j, done_cb cb, void *userdata);
/* Whom nobody needs to tell any more, of all who wait for something of a VM: gone() owns what it says yes to. */
typedef bool (*waiter_gone)(done_cb cb, void *userdata, void *context);
void vm_drop_waiters(VM *vm, waiter_gone gone, void *context);
/* Enters a stage: notes how long the last one took, tells the observer. stage must be static. */
void job_set_stage(Job *j, const char *stage, double progress);
/* Ends the job: tells the waiters and the observer, frees it. result: "done", "failed" or "canceled". */
void job_finish(Job *j, const sd_bus_error *error, bool canceled);
/* Job.Cancel: 0, or -errno with error set. */
int job_cancel(Job *j, sd_bus_error *error);
