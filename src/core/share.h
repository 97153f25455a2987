/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/vm-private.h"

/* A companion of a VM's VMM while it is in use, in a scope of its own: the virtiofsd of a shared folder, or the passt of a network. It begins
 * before the VMM and goes with it. Without a virtiofsd the VM does not run on; a passt is replaced (docs/architecture.md). */

typedef struct ShareStart ShareStart;
typedef struct ShareKind ShareKind;

typedef struct Share {
        VM *vm;
        const ShareKind *kind;
        unsigned index;                 /* in the definition's list of its kind, where it is of one */
        char *tag, *scope, *dir;        /* dir: <run_dir>/fs-<tag>, or net-<name> */
        Run *run;                       /* NULL: nothing of it is there */
        ShareStart *start;              /* what its start has built so far, while it goes on */
        bool ready;                     /* it answers */
        bool renew;                     /* the VMM has left it and takes a fresh one */
        bool unborn;                    /* the daemon that was to start it has died meanwhile */
        bool failed;                    /* a fresh one could not be had */
        sd_event_source *grace;         /* it has ended: is it that the VMM has, too? Or it is to be started again */
        unsigned n_renewals;            /* of a share since the VMM last told of a reset of its guest */
        sd_event_source *proof;         /* until when it has to tell of one */
        unsigned n_deaths;              /* of a network's passts in a row */
        sd_event_source *late;          /* until when another passt has to answer */
        uint64_t ready_usec;            /* CLOCK_MONOTONIC: since when it answers */
} Share;

/* share.c */
/* vm->shares as the definition says, or as the directory below /run has them; what was there before is gone. */
int shares_prepare(VM *vm);
int shares_find(VM *vm);
void shares_free(VM *vm);
/* A share's runs count: what the VM's own run waits for */
int share_new_run(Share *share);
/* What is left of them is ended; vm->run hears when all is gone. */
void shares_end(VM *vm);
bool shares_ready(const VM *vm);
/* One that is not ready, or NULL */
const Share *shares_waited_for(const VM *vm);
const char *share_title(const Share *share); /* "Share" */
const char *share_program(const Share *share); /* "virtiofsd" */
/* That to which the VMM has connected last, where it does that itself: one after the other, so it waits for this one, if it waits
 * for any. NULL: to none, or it is not known */
const Share *shares_connected_last(const VM *vm);
/* That none has ended since it was ready */
bool shares_live(const VM *vm);
/* One whose virtiofsd lives, or NULL */
const Share *shares_living(const VM *vm);
/* The VMM has come up anew, with devices that are connected anew. */
void shares_reset(VM *vm);
/* Looks after those that have ended while no daemon was there; the VM's own run was found alive. */
void shares_take_over(VM *vm);
/* Fails the start under way by a virtiofsd that has ended, if one has: what the VMM says of that is less. */
bool shares_blamed(VM *vm);
/* One for want of which a VMM that connects by itself may have given up, or NULL */
const Share *shares_crashed(const VM *vm);
/* Whether that is not known yet, but will be in a moment, of a VMM that has ended */
bool shares_undecided(const VM *vm);
/* Told by a share's start */
void share_is_ready(Share *share);
void share_failed(Share *share, int error, const char *name, const char *format, ...) _printf_(4, 5);

/* What no share of a VM of this name can be: 0, or -errno with an error that names the key. */
int shares_check(Manager *m, const char *name, const Definition *d, sd_bus_error *error);
/* That there is a virtiofsd, for the first share of a VM, and a passt, for its first network */
int shares_check_program(Manager *m, const Definition *before, const Definition *d, sd_bus_error *error);

/* share-start.c */
/* Asks what virtiofsd and what passt there is, for what is refused when a VM is created. */
void shares_probe(Manager *m);
/* Begins the start of all that stand in vm->shares. On error nothing was begun of those that were not. */
int shares_begin(VM *vm);
int share_begin(Share *share);
/* What the VMM is to be given of it, or -EBADF where it makes its own connection; stays the share's. */
int share_vmm_fd(const Share *share);
/* Whether PID 1 has to be waited for, after which the run is ended. */
bool share_start_abandon(Share *share);
/* Of its program or that one's parent, while it starts */
void share_start_died(Share *share);
ShareStart *share_start_free(ShareStart *s);
