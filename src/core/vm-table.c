/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/vm-table.h"

#define S(state) (1U << VM_##state)
#define LIVE (S(RUNNING) | S(PAUSED))
#define ANY_LIVE (S(STARTING) | LIVE | S(STOPPING) | S(ERROR))

/* reason NULL: reason and message stay as they are. */
static const struct {
        unsigned from;
        VMState to;
        const char *reason;
} transitions[_TRANSITION_MAX] = {
        [TRANSITION_START] = { S(STOPPED) | S(ERROR), VM_STARTING, "" },
        [TRANSITION_STARTED] = { S(STARTING), VM_RUNNING, "" },
        [TRANSITION_START_FAILED] = { S(STARTING), VM_STOPPED, "start-failed" },
        [TRANSITION_RESTART_FAILED] = { S(STARTING), VM_ERROR, "start-failed" },
        [TRANSITION_START_STOPPED] = { S(STARTING), VM_STOPPED, "stopped" },
        [TRANSITION_START_KILLED] = { S(STARTING), VM_STOPPED, "killed" },
        [TRANSITION_PAUSED] = { S(RUNNING), VM_PAUSED, "" },
        [TRANSITION_IO_ERROR] = { S(RUNNING), VM_PAUSED, "io-error" },
        [TRANSITION_RESUMED] = { S(PAUSED), VM_RUNNING, "" },
        [TRANSITION_STOP] = { LIVE | S(STOPPING) | S(ERROR) | S(STOPPED), VM_STOPPING, "" },
        [TRANSITION_STOPPED] = { S(STOPPING) | S(ERROR), VM_STOPPED, "stopped" },
        [TRANSITION_STOP_FORCED] = { S(STOPPING), VM_STOPPED, "stop-forced" },
        [TRANSITION_STOP_FAILED] = { S(STARTING) | S(STOPPING), VM_ERROR, "stop-failed" },
        [TRANSITION_KILLED] = { LIVE | S(STOPPING) | S(ERROR), VM_STOPPED, "killed" },
        [TRANSITION_GUEST_SHUTDOWN] = { LIVE, VM_STOPPED, "guest-shutdown" },
        [TRANSITION_GUEST_REBOOT] = { LIVE, VM_STOPPED, "guest-reboot" },
        [TRANSITION_VMM_EXITED] = { LIVE, VM_STOPPED, "vmm-exited" },
        [TRANSITION_VMM_CRASHED] = { LIVE | S(ERROR), VM_ERROR, "vmm-crashed" },
        [TRANSITION_OOM_KILL] = { LIVE | S(ERROR), VM_ERROR, "oom-kill" },
        [TRANSITION_GUEST_PANICKED] = { LIVE, VM_ERROR, "guest-panicked" },
        [TRANSITION_VMM_FAILED] = { LIVE, VM_ERROR, "vmm-failed" },
        [TRANSITION_VIRTIOFSD_CRASHED] = { LIVE, VM_ERROR, "virtiofsd-crashed" },
        [TRANSITION_HOST_REBOOT] = { ANY_LIVE, VM_STOPPED, "host-reboot" },
        [TRANSITION_FOUND_RUNNING] = { S(ERROR) | S(STOPPED), VM_RUNNING, NULL },
        [TRANSITION_FOUND_PAUSED] = { S(ERROR) | S(STOPPED), VM_PAUSED, NULL },
        [TRANSITION_RELAUNCH] = { S(RUNNING), VM_STOPPING, "" },
        [TRANSITION_REBOOT] = { S(STOPPING), VM_STARTING, "" },
        [TRANSITION_REMOVE] = { S(STOPPED) | ANY_LIVE, VM_REMOVING, "" },
        [TRANSITION_REMOVE_BLOCKED] = { S(REMOVING), VM_REMOVING, "blocked" },
};

int vm_transition_lookup(VMState from, VMTransition t, VMState *ret_to, const char **ret_reason) {
        if ((unsigned) t >= _TRANSITION_MAX || (unsigned) from >= _VM_STATE_MAX || !(transitions[t].from & (1U << from)))
                return -EINVAL;

        *ret_to = transitions[t].to;
        *ret_reason = transitions[t].reason;
        return 0;
}

static const char *const vm_transition_table[_TRANSITION_MAX] = {
        [TRANSITION_START] = "start",
        [TRANSITION_STARTED] = "started",
        [TRANSITION_START_FAILED] = "start-failed",
        [TRANSITION_RESTART_FAILED] = "restart-failed",
        [TRANSITION_START_STOPPED] = "start-stopped",
        [TRANSITION_START_KILLED] = "start-killed",
        [TRANSITION_PAUSED] = "paused",
        [TRANSITION_IO_ERROR] = "io-error",
        [TRANSITION_RESUMED] = "resumed",
        [TRANSITION_STOP] = "stop",
        [TRANSITION_STOPPED] = "stopped",
        [TRANSITION_STOP_FORCED] = "stop-forced",
        [TRANSITION_STOP_FAILED] = "stop-failed",
        [TRANSITION_KILLED] = "killed",
        [TRANSITION_GUEST_SHUTDOWN] = "guest-shutdown",
        [TRANSITION_GUEST_REBOOT] = "guest-reboot",
        [TRANSITION_VMM_EXITED] = "vmm-exited",
        [TRANSITION_VMM_CRASHED] = "vmm-crashed",
        [TRANSITION_OOM_KILL] = "oom-kill",
        [TRANSITION_GUEST_PANICKED] = "guest-panicked",
        [TRANSITION_VMM_FAILED] = "vmm-failed",
        [TRANSITION_VIRTIOFSD_CRASHED] = "virtiofsd-crashed",
        [TRANSITION_HOST_REBOOT] = "host-reboot",
        [TRANSITION_FOUND_RUNNING] = "found-running",
        [TRANSITION_FOUND_PAUSED] = "found-paused",
        [TRANSITION_RELAUNCH] = "relaunch",
        [TRANSITION_REBOOT] = "reboot",
        [TRANSITION_REMOVE] = "remove",
        [TRANSITION_REMOVE_BLOCKED] = "remove-blocked",
};

const char *vm_transition_to_string(VMTransition t) {
        return (unsigned) t < _TRANSITION_MAX ? vm_transition_table[t] : NULL;
}

static const char *const vm_call_table[_CALL_MAX] = {
        [CALL_START] = "Start",
        [CALL_STOP] = "Stop",
        [CALL_KILL] = "Kill",
        [CALL_PAUSE] = "Pause",
        [CALL_RESUME] = "Resume",
        [CALL_REBOOT] = "Reboot",
        [CALL_RESET] = "Reset",
        [CALL_UPDATE] = "Update",
        [CALL_REMOVE] = "Remove",
        [CALL_REMOVE_FORCE] = "Remove",
};

const char *vm_call_to_string(VMCall c) {
        return (unsigned) c < _CALL_MAX ? vm_call_table[c] : NULL;
}

VMCondition vm_condition(VMState s, bool alive) {
        static const VMCondition conditions[_VM_STATE_MAX] = {
                [VM_STOPPED] = CONDITION_STOPPED,
                [VM_STARTING] = CONDITION_STARTING,
                [VM_RUNNING] = CONDITION_RUNNING,
                [VM_PAUSED] = CONDITION_PAUSED,
                [VM_STOPPING] = CONDITION_STOPPING,
                [VM_REMOVING] = CONDITION_REMOVING,
        };

        /* Stopped in an older database that was put back */
        if (s == VM_STOPPED && alive)
                return CONDITION_ERROR_ALIVE;
        if (s == VM_ERROR)
                return alive ? CONDITION_ERROR_ALIVE : CONDITION_ERROR_DEAD;
        return conditions[s];
}

#define A(answer) ANSWER_##answer
static const VMAnswer answers[_CALL_MAX][_CONDITION_MAX] = {
        /*                       Stopped         Starting          Running          Paused             Stopping
         *                       Error, dead     Error, alive      Removing */
        [CALL_START] =         { A(DO),          A(JOIN),          A(OK),           A(OK),             A(BUSY),
                                 A(DO),          A(FIND),          A(REMOVING) },
        [CALL_STOP] =          { A(OK),          A(CANCEL_START),  A(DO),           A(RESUME_AND_DO),  A(JOIN),
                                 A(TO_STOPPED),  A(FIND_AND_DO),   A(REMOVING) },
        [CALL_KILL] =          { A(OK),          A(CANCEL_START),  A(DO),           A(DO),             A(DO),
                                 A(TO_STOPPED),  A(DO),            A(DO) },
        [CALL_PAUSE] =         { A(NOT_RUNNING), A(BUSY),          A(DO),           A(OK),             A(BUSY),
                                 A(NOT_RUNNING), A(FIND_AND_DO),   A(REMOVING) },
        [CALL_RESUME] =        { A(NOT_RUNNING), A(BUSY),          A(OK),           A(DO),             A(BUSY),
                                 A(NOT_RUNNING), A(FIND_AND_DO),   A(REMOVING) },
        [CALL_REBOOT] =        { A(NOT_RUNNING), A(BUSY),          A(DO),           A(INVALID_STATE),  A(BUSY),
                                 A(NOT_RUNNING), A(FIND_AND_DO),   A(REMOVING) },
        [CALL_RESET] =         { A(NOT_RUNNING), A(BUSY),          A(DO),           A(INVALID_STATE),  A(BUSY),
                                 A(NOT_RUNNING), A(FIND_AND_DO),   A(REMOVING) },
        [CALL_UPDATE] =        { A(DO),          A(BUSY),          A(DO),           A(DO),             A(BUSY),
                                 A(DO),          A(DO),            A(REMOVING) },
        [CALL_REMOVE] =        { A(DO),          A(INVALID_STATE), A(INVALID_STATE), A(INVALID_STATE), A(INVALID_STATE),
                                 A(DO),          A(INVALID_STATE), A(OK) },
        [CALL_REMOVE_FORCE] =  { A(DO),          A(DO),            A(DO),           A(DO),             A(DO),
                                 A(DO),          A(DO),            A(OK) },
};

VMAnswer vm_call_lookup(VMCall c, VMCondition in) {
        return answers[c][in];
}

VMAnswer vm_call_against_job(VMCall c, VMCall under_way) {
        if (c == CALL_STOP || c == CALL_KILL || c == CALL_REMOVE_FORCE)
                return ANSWER_DO;
        /* Two updates bring two patches, so the second is no part of the first. */
        if (c == under_way && c != CALL_UPDATE)
                return ANSWER_JOIN;
        return ANSWER_BUSY;
}
