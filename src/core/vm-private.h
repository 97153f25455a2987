/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <syslog.h>

#include "basic/time-util.h"
#include "core/manager.h"

/* What the parts of a VM share with each other, and with nobody else. */

/* vm.c */
int vm_new(Manager *m, VMRecord *record, VM **ret); /* takes the record's content over on success */
VM *vm_free(VM *vm);
DEFINE_TRIVIAL_CLEANUP_FUNC(VM *, vm_free);

/* PropertiesChanged of these, a NULL-terminated list of D-Bus names */
void vm_emit_changed(VM *vm, const char *property, ...) __attribute__((__sentinel__));
/* To the journal, with the VM's fields and further "NAME=value" ones (or NULL). */
void vm_log_fields(VM *vm, int level, const char *message_id, const char *fields[], const char *format, ...) _printf_(5, 6);
#define vm_log(vm, level, ...) vm_log_fields(vm, level, NULL, NULL, __VA_ARGS__)

/* A row of history without a change of state, and its signal. details may be NULL. */
void vm_add_event(VM *vm, const char *type, json_object *details, const char *format, ...) _printf_(4, 5);

/* The one place where State changes: looks the transition up, writes record, event and usage in one transaction, tells the
 * observer and the journal. -EINVAL: not from this state. A write that fails (-ENOSPC, -EROFS, …) fails the transition where
 * something is to begin (start, removal); where it states a fact, memory is right and the store follows later. intent: 0
 * or 1, or INTENT_KEEP. */
#define INTENT_KEEP (-1)
int vm_transition(VM *vm, VMTransition t, int intent, const char *format, ...) _printf_(4, 5);
/* Writes a record in a transaction of its own. usage_end: when its interval of usage has ended, 0: leave it. */
int vm_write_record(VM *vm, const VMRecord *next, uint64_t usage_end);
/* The same with a row of history; then next is the record, whose content was taken over. */
int vm_replace_record(VM *vm, VMRecord *next, const char *event_type, const char *sentence);
/* Writes the record again, if it is not in the store as it is in memory. */
int vm_save(VM *vm);
/* The run has ended: record, usage and an event at once, later if that can't be now. */
void vm_write_exit(VM *vm, json_object *details, const char *sentence);
/* unsaved.c: the store could not take the record, by this error, and will be asked again; it has it; and what the last daemon could not
 * store, after the record was loaded */
void vm_set_unsaved(VM *vm, int error);
void vm_set_saved(VM *vm);
int vm_recall(VM *vm);
/* Sets an error for a write that failed: NoSpace with what to do, or a failure. Gives r back. */
int write_error(int r, sd_bus_error *error);

/* vm-run.c: the VMM and its connection */
/* Between the end of a VMM's connection and the end of its process, which closes its sockets first: its death says more. */
#define VM_DEATH_SHOWS_USEC (500 * USEC_PER_MSEC)
/* Systemd wants one of its scopes to stop. */
void vm_stop_asked(VM *vm);
/* Asks PID 1 for the scope of one of its runs, whose helper is there, and with the first for the slice. The strings are the caller's, as
 * long as the call. */
int vm_start_scope(VM *vm, const Run *run, const char *description, systemd_done_cb cb, void *userdata, SystemdCall **ret);
/* Why a file of its definition could not be opened */
void vm_describe_open(const VM *vm, int error, char *buf, size_t size);
/* What its VMM is on the host, uid and gid */
uint32_t vm_id(const VM *vm);
/* What its virtiofsds are on the host, where they are one owner's */
uint32_t vm_share_id(const VM *vm);
uint32_t vm_network_id(const VM *vm);
int vm_connect(VM *vm);
/* The same now, and if it fails again later */
void vm_try_connect(VM *vm);
/* Whether the VMM's API answers */
bool vm_is_connected(const VM *vm);
void vm_disconnect(VM *vm);
/* After a death was seen and what it means was shown: cleans up; vm->run is NULL when that has ended. */
void vm_end_run(VM *vm);
/* One short sentence of how the VMM ended: "QEMU was killed by signal 9". */
void vm_describe_exit(VM *vm, char *buf, size_t size);
const char *vm_backend_title(const VM *vm); /* "QEMU" */
/* What a process that SIGKILL does not end by then does: hang in the kernel. */
#define VM_KILL_TIMEOUT_USEC (15 * USEC_PER_SEC)
/* Its VMM, or a virtiofsd, is there still, if only to be taken apart by the kernel. */
bool vm_has_process(const VM *vm);
/* Of a VM that was killed: a sentence about the process that lives on, if there is one, its VMM or a virtiofsd */
bool vm_hangs(const VM *vm, char *buf, size_t size);
/* The last words of a VMM that failed, to the journal */
void vm_log_last_words(VM *vm);
/* How a VMM of no further use (guest panic, KVM error) is made an Error: it is killed first. */
void vm_put_down(VM *vm, VMMEvent why);
/* The same for a share whose virtiofsd has died */
void vm_put_down_for_share(VM *vm, const char *tag);
/* At the daemon's start */
int vm_take_over(VM *vm);
/* Makes vm->run, of which nothing is there yet. */
int vm_new_run(VM *vm);
/* The same, and looks for its processes: 0, or why there are none. */
int vm_find_run(VM *vm);
/* How the run's VMM has ended, to the record in memory and the bus */
void vm_set_exit(VM *vm);
/* What a daemon finds of the end of a run: told once, by this one or the one before. */
void vm_found_exit(VM *vm);

/* job.c */
/* What those hear who still wait when the daemon ends */
#define DAEMON_ENDS_ERROR SD_BUS_ERROR_MAKE_CONST(VMUNIT_ERROR_CANCELED, "vmunitd ends; the VM's state tells what became of it")
int waiter_add(Waiter **list, done_cb cb, void *userdata);
void waiters_tell(Waiter **list, const sd_bus_error *error);
void waiters_drop(Waiter **list, waiter_gone gone, void *context);

/* relaunch.c: reboot and reset by a new VMM */
/* Its VMM has ended by this cause: true if that is part of a reboot, which goes on when its units are gone. */
bool relaunch_died(VM *vm, VMMEvent cause);
/* The same of one that is found dead */
bool relaunch_found(VM *vm, VMMEvent cause);
/* Reset, with its job there already: kills the VMM. */
int relaunch_reset(VM *vm);
/* It is Stopping to be started again. */
bool relaunch_pending(const VM *vm);
void relaunch_run_gone(VM *vm);

/* start.c */
int start_begin(VM *vm);
void start_drop_waiters(VM *vm, waiter_gone gone, void *context);
/* The same from Stopping, for a reboot whose job is there already */
int start_begin_again(VM *vm);
/* Where a start that failed leads to: back to Error, or there because nobody waits for it, or its VM was running */
bool start_ends_in_error(const VM *vm, bool by_itself);
/* The run is what a start has built, not what is left of the last one. */
bool start_owns_run(const VM *vm);
/* cb: told when it is rolled back; by: CALL_STOP, CALL_KILL or CALL_REMOVE_FORCE */
int start_cancel(VM *vm, VMCall by, bool keep_intent, done_cb cb, void *userdata);
/* A share's virtiofsd answers. */
void start_share_ready(VM *vm);
/* PID 1 has not made the scope of one of the VM's runs: what is in its way may be cleared, and all begun anew. */
void start_scope_refused(VM *vm, const Run *run, const sd_bus_error *error);
void start_vmm_event(VM *vm, VMMEvent event, VMMState state, int error);
void start_run_died(VM *vm);
void start_run_status(VM *vm);
/* The run that was in the way, or the one that is rolled back, is gone. */
void start_run_gone(VM *vm);
Start *start_free(Start *s);

/* restart.c */
/* Decides, for the record of a transition that is about to be written, whether and when the VM is to be started again. */
void restart_plan(const VM *vm, VMTransition t, VMRecord *next);
/* Whether the policy restarts a VM that ended so: then it should run on. */
bool restart_keeps_intent(const VM *vm, VMTransition t);
/* Plans a start of what does not run, after so many others. */
int restart_plan_start(VM *vm, uint64_t at, unsigned count);
/* After so long a start that can't be stored is tried again. */
#define START_AGAIN_USEC (10 * USEC_PER_SEC)
/* Sets or ends the timer, as the record says. */
void restart_arm(VM *vm);
/* Stop or Kill of a VM that does not run: it is not to run any more, or with keep_intent not before the next boot. */
int restart_cancel(VM *vm, bool keep_intent);
/* µs until try number count + 1; random: any number */
uint64_t restart_delay(uint64_t first, uint64_t max, unsigned count, uint32_t random);
/* vm-ops.c: a start that nobody waits for; count: the tries, this one included */
void vm_start_by_itself(VM *vm, unsigned count);

/* stop.c: Stop and Kill of what lives, or goes on to be stopped. >0: under way; an error: nothing has changed. */
int stop_begin(VM *vm, VMCall call, uid_t caller, uint64_t timeout_usec, int intent, done_cb cb, void *userdata);
/* Its VMM has ended, and the rest of it is on its way. */
void stop_run_ends(VM *vm);
/* A virtiofsd has died: a guest that hangs for it can't shut down. */
void stop_share_lost(VM *vm);
/* A second Stop joined: the shorter time-out wins. */
void stop_shorten(VM *vm, uint64_t timeout_usec);
void stop_run_gone(VM *vm);
/* The VMM's API answers now. */
void stop_connected(VM *vm);
Stop *stop_free(Stop *s);
DEFINE_TRIVIAL_CLEANUP_FUNC(Stop *, stop_free);

/* call.c: operations that are one call to the VMM, for which they wait; Start of an Error whose VMM lives is no more than that */
int call_begin(VM *vm);
/* The VMM's API answers now, and its state was shown. */
void call_connected(VM *vm);
/* Sets the error of one that could not begin. */
int call_error(VM *vm, VMCall call, int r, sd_bus_error *error);
/* The VMM has died, or another operation overtakes it: its job ends. */
void call_end(VM *vm, const char *error_name, const char *message);
/* Ends the VM's job, which is such a call. error_name NULL: done */
void call_finish(VM *vm, const char *error_name, const char *message, bool canceled);
/* What the VMM answers, for its operations; userdata is the VM. */
void call_reply(void *userdata, int error, const char *message);

/* reboot.c */
/* Reboot, with its job there already */
int reboot_begin(VM *vm);
/* What was begun in the VMM is called off. */
void reboot_cancel(VM *vm);
/* It is over, however it ended. */
void reboot_forget(VM *vm);
/* The VMM says that the button was pressed. */
void reboot_pressed(VM *vm);
/* … or that the guest runs again */
void reboot_runs(VM *vm);
/* What a daemon before this one has begun goes on: of a VMM that lives, then when its API answers (true: that was so); or of one that has
 * ended: whether that was within the reboot's time. */
int reboot_take_over(VM *vm);
bool reboot_connected(VM *vm, VMMState state);
bool reboot_ended_in_time(const VM *vm);

/* update.c: another back end, chosen by what the kernel is */
int vm_change_backend(VM *vm, const VMMOps *ops);
/* One that waits, for PID 1 say, is ended as a call is: the definition stays as it was. */
void update_end(VM *vm, const char *error_name, const char *message);

/* remove.c */
int remove_begin(VM *vm);
void remove_run_gone(VM *vm);
/* Remove was called again: a removal that is blocked is tried now. */
int remove_retry(VM *vm);

/* vm-ops.c: what is under way is canceled, for another operation begins. */
void vm_overtake(VM *vm);
/* Sets the error that the table's answer says. */
int vm_refuse(VM *vm, VMCall call, VMAnswer answer, sd_bus_error *error);
/* 0, or refused with error set */
int vm_check_call(VM *vm, VMCall call, sd_bus_error *error);
/* Whether the back end that "auto" has chosen stays with this definition in the place of its own. */
bool vm_keeps_backend(const VM *vm, const Definition *d);
/* For calls that only look: whether its VMM lives. An Error whose VMM lives becomes what the VMM says. */
bool vm_look(VM *vm);
