/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/store.h"

/* The two tables of a VM's states, as data and pure functions: which event leads where, and what a call does in which
 * state. docs/architecture.md shows the one, docs/dbus-api.md the other. */

typedef enum VMTransition {
        TRANSITION_START,               /* a start begins */
        TRANSITION_STARTED,             /* the VMM says that it runs */
        TRANSITION_START_FAILED,        /* rolled back to Stopped */
        TRANSITION_RESTART_FAILED,      /* rolled back to Error: it was there before, or nobody waits for this start */
        TRANSITION_START_STOPPED,       /* cancelled by Stop or Job.Cancel, rolled back */
        TRANSITION_START_KILLED,        /* cancelled by Kill, rolled back */
        TRANSITION_PAUSED,
        TRANSITION_IO_ERROR,
        TRANSITION_RESUMED,
        TRANSITION_STOP,                /* a stop begins */
        TRANSITION_STOPPED,
        TRANSITION_STOP_FORCED,
        TRANSITION_STOP_FAILED,         /* the VMM can't be ended */
        TRANSITION_KILLED,
        TRANSITION_GUEST_SHUTDOWN,
        TRANSITION_GUEST_REBOOT,        /* and the VMM can't reboot by itself */
        TRANSITION_VMM_EXITED,          /* in good order, nobody knows why */
        TRANSITION_VMM_CRASHED,
        TRANSITION_OOM_KILL,
        TRANSITION_GUEST_PANICKED,
        TRANSITION_VMM_FAILED,          /* KVM error */
        TRANSITION_VIRTIOFSD_CRASHED,
        TRANSITION_HOST_REBOOT,
        TRANSITION_FOUND_RUNNING,       /* in Error (or Stopped, in an older database that was put back), yet its VMM lives: reason and
                                         * message stay */
        TRANSITION_FOUND_PAUSED,
        TRANSITION_RELAUNCH,            /* its VMM has ended, or is to, for a reboot or reset that needs a new one */
        TRANSITION_REBOOT,              /* … which is started now */
        TRANSITION_REMOVE,              /* a removal begins */
        TRANSITION_REMOVE_BLOCKED,
        _TRANSITION_MAX,
} VMTransition;

/* Where the transition leads from this state; NULL reason: keep reason and message. -EINVAL: it can't happen there. */
int vm_transition_lookup(VMState from, VMTransition t, VMState *ret_to, const char **ret_reason);
const char *vm_transition_to_string(VMTransition t);

typedef enum VMCall {
        CALL_START,
        CALL_STOP,
        CALL_KILL,
        CALL_PAUSE,
        CALL_RESUME,
        CALL_REBOOT,
        CALL_RESET,
        CALL_UPDATE,
        CALL_REMOVE,
        CALL_REMOVE_FORCE,
        _CALL_MAX,
} VMCall;

const char *vm_call_to_string(VMCall c); /* the D-Bus method's name */

/* The columns of the table of calls: the states, with Error split by whether the VMM lives. */
typedef enum VMCondition {
        CONDITION_STOPPED,
        CONDITION_STARTING,
        CONDITION_RUNNING,
        CONDITION_PAUSED,
        CONDITION_STOPPING,
        CONDITION_ERROR_DEAD,
        CONDITION_ERROR_ALIVE,
        CONDITION_REMOVING,
        _CONDITION_MAX,
} VMCondition;

VMCondition vm_condition(VMState s, bool alive);

typedef enum VMAnswer {
        ANSWER_OK,              /* nothing to do */
        ANSWER_DO,
        ANSWER_JOIN,            /* waits for the same operation, which is under way */
        ANSWER_CANCEL_START,    /* what was starting is rolled back */
        ANSWER_RESUME_AND_DO,
        ANSWER_TO_STOPPED,      /* Error with nothing alive: becomes Stopped */
        ANSWER_FIND,            /* Error with a VMM alive: becomes what the VMM says, ok */
        ANSWER_FIND_AND_DO,     /* the same, then the call is looked up again */
        ANSWER_BUSY,
        ANSWER_NOT_RUNNING,
        ANSWER_INVALID_STATE,
        ANSWER_REMOVING,
        _ANSWER_MAX,
} VMAnswer;

VMAnswer vm_call_lookup(VMCall c, VMCondition in);

/* What becomes of an operation under way when another call comes in Running or Paused: ANSWER_JOIN (the same), ANSWER_DO (the
 * new one overtakes it, which is cancelled) or ANSWER_BUSY. */
VMAnswer vm_call_against_job(VMCall c, VMCall under_way);
