/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/name-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "core/run.h"

/* How long the helper has to write the VMM's exit status and end, and how long if the machine is so busy that it is not its turn */
#define HELPER_END_USEC (100 * USEC_PER_MSEC)
#define HELPER_END_MAX_USEC (5 * USEC_PER_SEC)
/* How long PID 1 has to take scope and slice away */
#define UNITS_GONE_USEC (5 * USEC_PER_SEC)
#define UNITS_ASK_USEC (250 * USEC_PER_MSEC)
/* When it is asked for again whether something else has come that says more than the status */
#define AWAITS_USEC (20 * USEC_PER_MSEC)
/* How long a hint may wait while the VMM lives */
#define HINT_USEC (250 * USEC_PER_MSEC)

int run_new(sd_event *event, Systemd *systemd, const RunHandler *handler, void *userdata, Run **ret) {
        Run *r = new(Run, 1);

        if (!r)
                return -ENOMEM;
        *r = (Run) {
                .event = event,
                .systemd = systemd,
                .handler = handler,
                .userdata = userdata,
                .helper_pidfd = -EBADF,
                .pidfd = -EBADF,
        };
        *ret = r;
        return 0;
}

static void run_unwatch(Run *r) {
        r->life_call = helper_call_free(r->life_call);
        r->life = sd_event_source_disable_unref(r->life);
        r->helper_source = sd_event_source_disable_unref(r->helper_source);
        r->source = sd_event_source_disable_unref(r->source);
        r->timer = sd_event_source_disable_unref(r->timer);
        r->ask_timer = sd_event_source_disable_unref(r->ask_timer);
        r->kill_timer = sd_event_source_disable_unref(r->kill_timer);
        r->hint_timer = sd_event_source_disable_unref(r->hint_timer);
        r->scope_watch = unit_watch_free(r->scope_watch);
        r->slice_watch = unit_watch_free(r->slice_watch);
        r->query = systemd_call_free(r->query);
        r->result_query = systemd_call_free(r->result_query);
        r->stop_query = systemd_call_free(r->stop_query);
        r->slice_query = systemd_call_free(r->slice_query);
}

Run *run_free(Run *r) {
        if (!r)
                return NULL;

        run_unwatch(r);
        launch_call_free(r->launch);
        safe_close(r->helper_pidfd);
        safe_close(r->pidfd);
        free(r);
        return NULL;
}

static char *run_path(const Run *r, const char *file) {
        return strjoinf("%s/%s", r->run_dir, file);
}

bool run_has_process(const Run *r) {
        return r->pidfd >= 0 && !r->dead && !pidfd_dead(r->pidfd);
}

bool run_is_alive(const Run *r) {
        return !r->killed && run_has_process(r);
}

void run_forget_launch(Run *r) {
        if (r->helper_pidfd < 0)
                r->launch = launch_call_free(r->launch);
}

/* Status */

static void run_read_status(Run *r) {
        _cleanup_free_ char *path = run_path(r, "exit");

        if (path && helper_read_exit(path, &r->status) >= 0)
                r->exit_known = true;
        else if (r->pidfd >= 0 && pidfd_exit_status(r->pidfd, &r->status) >= 0)
                r->exit_known = true;
}

static void run_tell_status(Run *r);

static int on_awaited(sd_event_source *source, uint64_t usec, void *userdata) {
        run_tell_status(userdata);
        return 0;
}

static bool run_awaits(Run *r) {
        return r->dead && !r->ending && r->handler->awaits && r->handler->awaits(r->userdata) &&
                sd_event_add_time_relative(r->event, &r->timer, CLOCK_MONOTONIC, AWAITS_USEC, 0, on_awaited, r) >= 0;
}

static void run_tell_status(Run *r) {
        if (r->status_told)
                return;
        r->timer = sd_event_source_disable_unref(r->timer);
        run_read_status(r);
        if (run_awaits(r))
                return;
        r->status_told = true;
        r->handler->status(r->userdata);
}

/* It has the VMM's last words and exit status. */
static bool helper_may_come(const Run *r) {
        uint64_t now;

        return (r->dead || r->killed) && !r->helper_dead && r->helper_pidfd >= 0 && sd_event_now(r->event, CLOCK_MONOTONIC, &now) >= 0 &&
                now - r->died_usec < HELPER_END_MAX_USEC && !pid_stopped(r->helper_pid);
}

static int wait_again(sd_event_source *source) {
        int k;

        k = sd_event_source_set_time_relative(source, HELPER_END_USEC);
        return k < 0 ? k : sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_helper_late(sd_event_source *source, uint64_t usec, void *userdata) {
        Run *r = userdata;

        if (!helper_may_come(r) || wait_again(source) < 0)
                run_tell_status(r);
        return 0;
}

static void run_died(Run *r) {
        if (r->dead)
                return;
        r->dead = true;
        (void) sd_event_now(r->event, CLOCK_MONOTONIC, &r->died_usec);
        r->source = sd_event_source_disable_unref(r->source);
        r->life_call = helper_call_free(r->life_call);
        r->life = sd_event_source_disable_unref(r->life);

        r->handler->died(r->userdata);
        if (r->helper_dead)
                run_tell_status(r);
        else if (sd_event_add_time_relative(r->event, &r->timer, CLOCK_MONOTONIC, HELPER_END_USEC, 0, on_helper_late, r) < 0)
                run_tell_status(r);
}

/* A hint. Without proof it tells nothing, and the pidfd will tell all. */
static int on_life_end(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Run *r = userdata;

        r->life = sd_event_source_disable_unref(r->life);
        r->killed = pid_killed(r->pid) && run_has_process(r);
        if (!r->killed)
                return 0;
        (void) sd_event_now(r->event, CLOCK_MONOTONIC, &r->died_usec);
        r->handler->killed(r->userdata);
        return 0;
}

/* Its end alone is waited for: what a VMM writes there wakes nobody. */
static void on_life(void *userdata, int error, int fd) {
        Run *r = userdata;

        r->life_call = helper_call_free(r->life_call);
        if (error < 0)
                return;
        if (sd_event_add_io(r->event, &r->life, fd, 0, on_life_end, r) < 0) {
                safe_close(fd);
                return;
        }
        (void) sd_event_source_set_io_fd_own(r->life, true);
        (void) sd_event_source_set_priority(r->life, SD_EVENT_PRIORITY_IMPORTANT);
}

static void watch_life(Run *r) {
        _cleanup_free_ char *path = r->handler->killed ? run_path(r, "exec") : NULL;

        if (path)
                (void) helper_open_life(r->event, path, USEC_INFINITY, on_life, r, &r->life_call);
}

static int on_vmm_end(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        run_died(userdata);
        return 0;
}

/* The helper ends with the VMM. If it ends first, the VMM is told by the kernel to die (PR_SET_PDEATHSIG), which a hostile one
 * may have switched off: so the scope is killed. */
static int on_helper_end(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        Run *r = userdata;

        r->helper_dead = true;
        r->helper_source = sd_event_source_disable_unref(r->helper_source);

        if (r->pidfd >= 0 && !r->dead && !pidfd_dead(r->pidfd)) {
                run_kill(r);
                return 0;
        }
        if (r->pidfd >= 0)
                run_died(r);
        if (r->dead || r->pidfd < 0)
                run_tell_status(r);
        return 0;
}

static int watch_pidfd(Run *r, int pidfd, sd_event_io_handler_t handler, sd_event_source **ret) {
        int k;

        k = sd_event_add_io(r->event, ret, pidfd, EPOLLIN, handler, r);
        if (k < 0)
                return k;
        /* Before what the loop has to read from a VMM's socket: the handler drains that itself. */
        return sd_event_source_set_priority(*ret, SD_EVENT_PRIORITY_IMPORTANT);
}

int run_set_helper(Run *r, pid_t pid, int pidfd) {
        r->helper_pid = pid;
        r->helper_pidfd = pidfd;
        return watch_pidfd(r, pidfd, on_helper_end, &r->helper_source);
}

int run_set_vmm(Run *r, pid_t pid, int pidfd) {
        r->pid = pid;
        r->pidfd = pidfd;
        watch_life(r);
        return watch_pidfd(r, pidfd, on_vmm_end, &r->source);
}

/* Units */

static void run_ask(Run *r);

static void run_gone(Run *r) {
        int k;

        run_unwatch(r);
        if (!r->status_told)
                run_tell_status(r);
        r->launch = launch_call_free(r->launch);

        k = FAULT_POINT("run.gone", FAULT_FAILS, 0);
        if (k >= 0)
                k = r->keeps_dir && *r->keeps_dir ? rm_content(r->run_dir) : rm_rf(r->run_dir);
        if (k < 0)
                log_warning_errno(k, "%s: can't remove %s", r->scope, r->run_dir);
        r->handler->gone(r->userdata);
}

static bool run_wait_is_over(const Run *r) {
        uint64_t now;

        return sd_event_now(r->event, CLOCK_MONOTONIC, &now) >= 0 && now >= r->end_usec;
}

/* By what is not of this run, whose scope is gone. */
static bool slice_is_used(const Run *r) {
        _cleanup_free_ char *path = strjoinf("/sys/fs/cgroup/machine.slice/machine-vmunit.slice/%s/cgroup.events", r->slice);
        _cleanup_free_ char *text = NULL;

        return path && read_file_all(path, 4096, &text, NULL) >= 0 && strstr(text, "populated 1");
}

static void run_check_gone(Run *r) {
        if (!r->ending || r->query || r->result_query)
                return;
        if (run_has_process(r)) /* PID 1 forgets a unit whose processes hang */
                return;
        if (!r->scope_gone || (r->n_others && *r->n_others > 0))
                return;
        if (!r->slice_gone && !r->leaves_slice) {
                if (!run_wait_is_over(r) && !slice_is_used(r) && !(r->slice_stays && r->slice_asked))
                        return;
                r->slice_left = true;
        }
        run_gone(r);
}

void run_others_gone(Run *r) {
        if (!r->ending)
                return;
        run_ask(r);
        run_check_gone(r);
}

static void on_result(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;

        r->result_query = systemd_call_free(r->result_query);
        if (value)
                snprintf(r->result, sizeof(r->result), "%s", value);
        /* It was read, so the unit need not be kept any longer. */
        systemd_reset_failed(r->systemd, r->scope);
        r->scope_gone = true;
        run_ask(r);
        run_check_gone(r);
}

static void on_stop_result(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;

        r->stop_query = systemd_call_free(r->stop_query);
        if (r->dead || r->ending)
                return;
        if (value && streq(value, "oom-kill"))
                run_kill(r);
        else
                r->handler->stop_asked(r->userdata);
}

/* Systemd stops the scope because somebody wants it, or because the kernel has killed there for want of memory: then it says so while
 * the victims, with their memory to give back, may still be dying. */
static void run_scope_stops(Run *r) {
        r->stop_told = true;
        if (systemd_get(r->systemd, r->scope, "Scope", "Result", on_stop_result, r, &r->stop_query) < 0)
                r->handler->stop_asked(r->userdata);
}

static void run_scope_state(Run *r, const char *sub) {
        if (streq(sub, "stop-sigterm") && !r->stop_told && !r->dead && !r->ending) {
                run_scope_stops(r);
                return;
        }
        if (streq(sub, "dead") || (streq(sub, "failed") && r->result[0]))
                r->scope_gone = true;   /* or about to be: who has read its result has it reset, and then there is none to read */
        else if (streq(sub, "failed") && !r->result_query && r->ending)
                (void) systemd_get(r->systemd, r->scope, "Scope", "Result", on_result, r, &r->result_query);
        else
                r->scope_gone = false;
}

/* Made for a scope that was then not started, or made anew without what we had said of it: no unit leaves it, so it does not go. */
static void on_slice_units(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;
        bool bare = value && isempty(value) && !slice_is_used(r);

        r->slice_query = systemd_call_free(r->slice_query);
        if (bare)
                systemd_stop_unit(r->systemd, r->slice);
        r->slice_stays = !bare && r->slice_needed;
        r->slice_asked = false;         /* of one that has gone meanwhile PID 1 says "no" as well, so it is asked for once more */
        if (r->slice_stays)
                run_ask(r);
}

static void on_slice_fragment(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;

        r->slice_query = systemd_call_free(r->slice_query);
        if (!value || !(isempty(value) || startswith(value, "/run/systemd/transient/")) ||
            systemd_get(r->systemd, r->slice, "Unit", "SliceOf", on_slice_units, r, &r->slice_query) < 0)
                on_slice_units(r, NULL, NULL);
}

static void ask_slice_bare(Run *r) {
        if (r->scope_gone && !r->slice_gone && !r->slice_query && !r->slice_stays && !r->leaves_slice)
                (void) systemd_get(r->systemd, r->slice, "Unit", "FragmentPath", on_slice_fragment, r, &r->slice_query);
}

static void on_slice_stays(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;

        r->slice_query = systemd_call_free(r->slice_query);
        r->slice_needed = value && streq(value, "no");
        if (r->slice_needed)
                ask_slice_bare(r);
}

/* One that is not transient, or not ours, does not go with its last unit: there is nothing to wait for. */
static void ask_slice_stays(Run *r) {
        if (!r->slice_query && !r->slice_stays)
                (void) systemd_get(r->systemd, r->slice, "Unit", "StopWhenUnneeded", on_slice_stays, r, &r->slice_query);
}

static void on_slice_state(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;

        r->query = systemd_call_free(r->query);
        if (value)
                r->slice_gone = streq(value, "dead");
        if (value && !r->slice_gone) {
                r->slice_asked = true;
                ask_slice_stays(r);
        }
        if (r->query_again && r->ending && !r->slice_gone) {
                r->query_again = false;
                run_ask(r);
        }
        run_check_gone(r);
}

static void on_scope_state(void *userdata, const char *value, const sd_bus_error *error) {
        Run *r = userdata;

        r->query = systemd_call_free(r->query);
        if (value)
                run_scope_state(r, value);
        if (r->ending && r->scope_gone && !r->slice_gone && !r->leaves_slice)
                (void) systemd_get(r->systemd, r->slice, "Unit", "SubState", on_slice_state, r, &r->query);
        else if (r->query_again) {
                r->query_again = false;
                run_ask(r);
        }
        run_check_gone(r);
}

static void run_ask(Run *r) {
        if (r->query) {
                r->query_again = true;
                return;
        }
        if (r->scope_gone && r->ending) {
                if (!r->slice_gone && !r->leaves_slice)
                        (void) systemd_get(r->systemd, r->slice, "Unit", "SubState", on_slice_state, r, &r->query);
        } else
                (void) systemd_get(r->systemd, r->scope, "Unit", "SubState", on_scope_state, r, &r->query);
}

static int on_hint_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Run *r = userdata;

        r->hint_timer = sd_event_source_disable_unref(r->hint_timer);
        run_ask(r);
        return 0;
}

/* While it lives, only that systemd stops its scope is to be known, and not at once: when VMs start, PID 1 has other things to do. */
static void on_hint(void *userdata) {
        Run *r = userdata;

        if (r->dead || r->ending)
                run_ask(r);
        else if (!r->hint_timer &&
                 sd_event_add_time_relative(r->event, &r->hint_timer, CLOCK_MONOTONIC, HINT_USEC, 0, on_hint_timer, r) < 0)
                run_ask(r);
}

/* Signals are hints, so what they leave out is asked for. */
static int on_ask_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Run *r = userdata;
        int k;

        k = sd_event_source_set_time_relative(source, UNITS_ASK_USEC);
        if (k >= 0)
                k = sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
        /* PID 1 hears of the end of the last process by the cgroup, which never tells it of one that was a zombie when it came there. */
        if (!r->scope_gone && !helper_may_come(r)) {
                systemd_kill_unit(r->systemd, r->scope, SIGKILL);
                if (!run_has_process(r)) /* the stop of one that hangs would hold up a start of this daemon */
                        systemd_stop_unit(r->systemd, r->scope);
        }
        ask_slice_bare(r);
        run_ask(r);
        run_check_gone(r);
        return k;
}

int run_set_in_scope(Run *r) {
        int k;

        r->in_scope = true;
        if (!r->scope_watch) {
                k = systemd_watch_unit(r->systemd, r->scope, on_hint, r, &r->scope_watch);
                if (k < 0)
                        return k;
        }
        return 0;
}

/* Ending */

static bool run_scope_is_populated(const Run *r) {
        return r->in_scope && !(r->helper_dead && (r->pidfd < 0 || r->dead));
}

static int on_kill_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        Run *r = userdata;

        if (source && helper_may_come(r) && wait_again(source) >= 0)
                return 0;
        r->kill_timer = sd_event_source_disable_unref(r->kill_timer);
        if (r->in_scope)
                systemd_kill_unit(r->systemd, r->scope, SIGKILL);
        else if (r->helper_pidfd >= 0)
                (void) pidfd_kill(r->helper_pidfd, SIGKILL);
        return 0;
}

void run_kill(Run *r) {
        if (r->pidfd >= 0)
                (void) pidfd_kill(r->pidfd, SIGKILL);
        else if (r->helper_pidfd >= 0)
                (void) pidfd_kill(r->helper_pidfd, SIGKILL);

        if (r->kill_timer)
                return;
        if (r->helper_dead ||
            sd_event_add_time_relative(r->event, &r->kill_timer, CLOCK_MONOTONIC, HELPER_END_USEC, 0, on_kill_timer, r) < 0)
                on_kill_timer(NULL, 0, r);
}

void run_end(Run *r) {
        if (r->ending)
                return;
        r->ending = true;
        if (run_scope_is_populated(r) || (r->helper_pidfd >= 0 && !r->helper_dead))
                run_kill(r);
        else if (r->helper_pidfd < 0 && r->pidfd < 0)
                systemd_kill_unit(r->systemd, r->scope, SIGKILL); /* whoever may be in there is unknown to us */

        (void) run_set_in_scope(r);
        if (!r->leaves_slice)
                (void) systemd_watch_unit(r->systemd, r->slice, on_hint, r, &r->slice_watch);

        r->scope_gone = r->slice_gone = false;
        (void) sd_event_now(r->event, CLOCK_MONOTONIC, &r->end_usec);
        r->end_usec += UNITS_GONE_USEC;
        (void) sd_event_add_time_relative(r->event, &r->ask_timer, CLOCK_MONOTONIC, UNITS_ASK_USEC, 0, on_ask_timer, r);
        run_ask(r);
}

/* The run file */

int run_check_cgroup(const Run *r, pid_t pid) {
        _cleanup_free_ char *cgroup = NULL, *tail = NULL;
        int k;

        k = pid_cgroup(pid, &cgroup);
        if (k < 0)
                return k;
        tail = strjoinf("/%s/%s", r->slice, r->scope);
        if (!tail)
                return -ENOMEM;
        return endswith(cgroup, tail) ? 0 : -EXDEV;
}

static void set_start(Run *r, uint64_t ticks) {
        r->start_usec = ticks * USEC_PER_SEC / (uint64_t) sysconf(_SC_CLK_TCK);
}

int run_write_file(Run *r, const char *boot_id) {
        _cleanup_free_ char *path = run_path(r, "run"), *text = NULL;
        uint64_t start = 0, helper_start = 0;
        int k;

        k = pid_start_time(r->pid, &start);
        if (k >= 0)
                k = pid_start_time(r->helper_pid, &helper_start);
        if (k < 0)
                return k;

        set_start(r, start);
        text = strjoinf("# This is private data of vmunitd.\n"
                        "BOOT_ID=%s\nSCOPE=%s\nINVOCATION_ID=%s\nBACKEND=%s\nSEQ=%" PRIu64 "\nSLOT=%" PRIu32 "\n"
                        "PID=%d\nSTART=%" PRIu64 "\nINODE=%" PRIu64 "\n"
                        "HELPER_PID=%d\nHELPER_START=%" PRIu64 "\nHELPER_INODE=%" PRIu64 "\n"
                        "REBOOT_UNTIL=%" PRIu64 "\nREBOOT_PRESSED=%d\nEND_CAUSE=%s\n",
                        boot_id, r->scope, r->invocation_id, r->backend, r->numbers.seq, r->numbers.slot,
                        (int) r->pid, start, pidfd_inode(r->pidfd),
                        (int) r->helper_pid, helper_start, pidfd_inode(r->helper_pidfd), r->reboot_until, r->reboot_pressed,
                        r->end_cause);
        if (!path || !text)
                return -ENOMEM;
        return write_file_atomic(path, text, false);
}

static const char *run_file_get(const char *text, const char *key, char *buf, size_t size) {
        size_t l = strlen(key);

        for (const char *p = text; p; p = strchr(p, '\n')) {
                p += *p == '\n';
                if (strncmp(p, key, l) == 0 && p[l] == '=') {
                        snprintf(buf, size, "%.*s", (int) strcspn(p + l + 1, "\n"), p + l + 1);
                        return buf;
                }
        }
        buf[0] = 0;
        return buf;
}

static uint64_t run_file_get_u64(const char *text, const char *key) {
        char buf[32];

        return strtoull(run_file_get(text, key, buf, sizeof(buf)), NULL, 10);
}

/* A pid is believed only with proof: in the scope's cgroup, and the same pidfd inode, or start time (the boot id was compared
 * before). Gives a pidfd. */
static int open_proven(const Run *r, pid_t pid, uint64_t start, uint64_t inode) {
        _cleanup_close_ int pidfd = -EBADF;
        uint64_t now_start;
        int k;

        if (pid <= 0)
                return -ESRCH;
        pidfd = pidfd_open_pid(pid);
        if (pidfd < 0)
                return pidfd == -EINVAL ? -ESRCH : pidfd; /* a thread's number, or none that can be */
        k = pid_start_time(pid, &now_start);
        if (k < 0)
                return k;
        if (now_start != start || (inode != 0 && pidfd_inode(pidfd) != inode))
                return -ESRCH;
        k = run_check_cgroup(r, pid);
        /* All of that was of the process behind the pidfd if it lives now still. */
        if (pidfd_dead(pidfd))
                return -ESRCH;
        /* It is ours, but somebody has taken it out of its scope, where nothing limits or stops it: it must not live on beside
         * its VM's next start. */
        if (k == -EXDEV) {
                log_warning("%s: process %d is not in its scope any more and is killed", r->scope, (int) pid);
                (void) pidfd_kill(pidfd, SIGKILL);
        }
        return k < 0 ? k : TAKE_FD(pidfd);
}

int run_find(Run *r, const char *boot_id) {
        _cleanup_free_ char *path = run_path(r, "run"), *text = NULL;
        pid_t pid, helper_pid;
        char buf[64];
        int pidfd, k;

        if (!path)
                return -ENOMEM;
        k = read_file_all(path, 4096, &text, NULL);
        if (k < 0)
                return k == -E2BIG || k == -EISDIR || k == -ENOTDIR || k == -ELOOP ? -ESRCH : k; /* not what we wrote */
        if (!streq(run_file_get(text, "BOOT_ID", buf, sizeof(buf)), boot_id))
                return -ESRCH;
        run_file_get(text, "INVOCATION_ID", r->invocation_id, sizeof(r->invocation_id));
        run_file_get(text, "BACKEND", r->backend, sizeof(r->backend));

        r->reboot_until = run_file_get_u64(text, "REBOOT_UNTIL");
        r->reboot_pressed = run_file_get_u64(text, "REBOOT_PRESSED") > 0;
        run_file_get(text, "END_CAUSE", r->end_cause, sizeof(r->end_cause));

        pid = (pid_t) run_file_get_u64(text, "PID");
        helper_pid = (pid_t) run_file_get_u64(text, "HELPER_PID");

        pidfd = open_proven(r, helper_pid, run_file_get_u64(text, "HELPER_START"), run_file_get_u64(text, "HELPER_INODE"));
        if (pidfd >= 0) {
                k = run_set_helper(r, helper_pid, pidfd);
                if (k < 0)
                        return k;
        } else
                r->helper_dead = true;

        pidfd = open_proven(r, pid, run_file_get_u64(text, "START"), run_file_get_u64(text, "INODE"));
        if (pidfd < 0)
                return pidfd;
        set_start(r, run_file_get_u64(text, "START"));
        k = run_set_vmm(r, pid, pidfd);
        if (k < 0)
                return k;
        k = run_set_in_scope(r);
        if (k < 0)
                return k;
        run_ask(r); /* systemd may want it to stop since before we came */
        return 0;
}

int run_read_numbers(const char *path, VMNumbers *ret) {
        _cleanup_free_ char *text = NULL;
        uint64_t seq, slot;
        int k;

        k = read_file_all(path, 4096, &text, NULL);
        if (k < 0)
                return k;
        seq = run_file_get_u64(text, "SEQ");
        slot = run_file_get_u64(text, "SLOT");
        if (seq == 0 || seq > UINT32_MAX || slot == 0 || slot > VM_SLOTS_MAX)
                return -ENODATA;
        *ret = (VMNumbers) { .seq = seq, .slot = (uint32_t) slot };
        return 0;
}
