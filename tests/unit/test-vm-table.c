/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "core/vm-table.h"
#include "tap.h"

/* The two tables once more, as the documents have them: written by hand, row by row, so that a slip in one shows. */

static const char *const answer_names[_ANSWER_MAX] = {
        [ANSWER_OK] = "ok",          [ANSWER_DO] = "does",           [ANSWER_JOIN] = "joins",
        [ANSWER_CANCEL_START] = "cancels", [ANSWER_RESUME_AND_DO] = "resumes+does", [ANSWER_TO_STOPPED] = "->Stopped",
        [ANSWER_FIND] = "->found",   [ANSWER_FIND_AND_DO] = "->found+again", [ANSWER_BUSY] = "Busy",
        [ANSWER_NOT_RUNNING] = "NotRunning", [ANSWER_INVALID_STATE] = "InvalidState", [ANSWER_REMOVING] = "Removing",
};

static const char *const calls[_CALL_MAX] = {
        /*                      Stopped    Starting     Running      Paused       Stopping     Error,dead Error,alive   Removing */
        [CALL_START] =         "does       joins        ok           ok           Busy         does       ->found       Removing",
        [CALL_STOP] =          "ok         cancels      does         resumes+does joins        ->Stopped  ->found+again Removing",
        [CALL_KILL] =          "ok         cancels      does         does         does         ->Stopped  does          does",
        [CALL_PAUSE] =         "NotRunning Busy         does         ok           Busy         NotRunning ->found+again Removing",
        [CALL_RESUME] =        "NotRunning Busy         ok           does         Busy         NotRunning ->found+again Removing",
        [CALL_REBOOT] =        "NotRunning Busy         does         InvalidState Busy         NotRunning ->found+again Removing",
        [CALL_RESET] =         "NotRunning Busy         does         InvalidState Busy         NotRunning ->found+again Removing",
        [CALL_UPDATE] =        "does       Busy         does         does         Busy         does       does          Removing",
        [CALL_REMOVE] =        "does       InvalidState InvalidState InvalidState InvalidState does       InvalidState  ok",
        [CALL_REMOVE_FORCE] =  "does       does         does         does         does         does       does          ok",
};

static void test_calls(void) {
        for (VMCall c = 0; c < _CALL_MAX; c++) {
                char row[256], *p = row, *word;

                snprintf(row, sizeof(row), "%s", calls[c]);
                for (VMCondition k = 0; k < _CONDITION_MAX; k++) {
                        word = strtok_r(p, " ", &p);
                        is_str(answer_names[vm_call_lookup(c, k)], word, "%s%s, column %d", vm_call_to_string(c),
                               c == CALL_REMOVE_FORCE ? " force" : "", (int) k);
                }
        }
}

/* event: from-states -> to, reason ("-": kept). Every other pair of event and state must be refused. */
static const struct {
        VMTransition t;
        const char *from, *to, *reason;
} events[] = {
        { TRANSITION_START, "Stopped Error", "Starting", "" },
        { TRANSITION_STARTED, "Starting", "Running", "" },
        { TRANSITION_START_FAILED, "Starting", "Stopped", "start-failed" },
        { TRANSITION_RESTART_FAILED, "Starting", "Error", "start-failed" },
        { TRANSITION_START_STOPPED, "Starting", "Stopped", "stopped" },
        { TRANSITION_START_KILLED, "Starting", "Stopped", "killed" },
        { TRANSITION_PAUSED, "Running", "Paused", "" },
        { TRANSITION_IO_ERROR, "Running", "Paused", "io-error" },
        { TRANSITION_RESUMED, "Paused", "Running", "" },
        { TRANSITION_STOP, "Running Paused Stopping Error Stopped", "Stopping", "" },
        { TRANSITION_STOPPED, "Stopping Error", "Stopped", "stopped" },
        { TRANSITION_STOP_FORCED, "Stopping", "Stopped", "stop-forced" },
        { TRANSITION_STOP_FAILED, "Starting Stopping", "Error", "stop-failed" },
        { TRANSITION_KILLED, "Running Paused Stopping Error", "Stopped", "killed" },
        { TRANSITION_GUEST_SHUTDOWN, "Running Paused", "Stopped", "guest-shutdown" },
        { TRANSITION_GUEST_REBOOT, "Running Paused", "Stopped", "guest-reboot" },
        { TRANSITION_VMM_EXITED, "Running Paused", "Stopped", "vmm-exited" },
        { TRANSITION_VMM_CRASHED, "Running Paused Error", "Error", "vmm-crashed" },
        { TRANSITION_OOM_KILL, "Running Paused Error", "Error", "oom-kill" },
        { TRANSITION_GUEST_PANICKED, "Running Paused", "Error", "guest-panicked" },
        { TRANSITION_VMM_FAILED, "Running Paused", "Error", "vmm-failed" },
        { TRANSITION_VIRTIOFSD_CRASHED, "Running Paused", "Error", "virtiofsd-crashed" },
        { TRANSITION_HOST_REBOOT, "Starting Running Paused Stopping Error", "Stopped", "host-reboot" },
        { TRANSITION_FOUND_RUNNING, "Error Stopped", "Running", "-" },
        { TRANSITION_FOUND_PAUSED, "Error Stopped", "Paused", "-" },
        { TRANSITION_RELAUNCH, "Running", "Stopping", "" },
        { TRANSITION_REBOOT, "Stopping", "Starting", "" },
        { TRANSITION_REMOVE, "Stopped Starting Running Paused Stopping Error", "Removing", "" },
        { TRANSITION_REMOVE_BLOCKED, "Removing", "Removing", "blocked" },
};

static bool has_word(const char *list, const char *word) {
        size_t l = strlen(word);

        for (const char *p = strstr(list, word); p; p = strstr(p + 1, word))
                if ((p == list || p[-1] == ' ') && (p[l] == 0 || p[l] == ' '))
                        return true;
        return false;
}

static void test_events(void) {
        is_int(ELEMENTSOF(events), _TRANSITION_MAX, "every event is in this test");

        for (size_t i = 0; i < ELEMENTSOF(events); i++)
                for (VMState from = 0; from < _VM_STATE_MAX; from++) {
                        const char *reason = "?", *name = vm_transition_to_string(events[i].t);
                        VMState to = -1;
                        int r = vm_transition_lookup(from, events[i].t, &to, &reason);

                        if (!has_word(events[i].from, vm_state_to_string(from))) {
                                is_int(r, -EINVAL, "%s is refused in %s", name, vm_state_to_string(from));
                                continue;
                        }
                        ok(r == 0 && streq(vm_state_to_string(to), events[i].to) && streq(reason ?: "-", events[i].reason),
                           "%s: %s -> %s", name, vm_state_to_string(from), events[i].to);
                }
}

static void test_against_job(void) {
        for (VMCall c = 0; c < _CALL_MAX; c++)
                for (VMCall job = 0; job < _CALL_MAX; job++) {
                        bool strong = c == CALL_STOP || c == CALL_KILL || c == CALL_REMOVE_FORCE;
                        VMAnswer want = strong ? ANSWER_DO : c == job && c != CALL_UPDATE ? ANSWER_JOIN : ANSWER_BUSY;

                        is_int(vm_call_against_job(c, job), want, "%s while %s is under way", vm_call_to_string(c),
                               vm_call_to_string(job));
                }
}

int main(void) {
        for (VMState s = 0; s < _VM_STATE_MAX; s++)
                is_int(vm_condition(s, true), s == VM_ERROR || s == VM_STOPPED ? CONDITION_ERROR_ALIVE : vm_condition(s, false),
                       "who does not run is asked whether the VMM lives: %s", vm_state_to_string(s));
        test_calls();
        test_events();
        test_against_job();
        return done_testing();
}
