/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "basic/fd-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/vm-private.h"

/* Reading: always possible, and bounded in time whatever else goes on. */

#define STATS_TIMEOUT_USEC (2 * USEC_PER_SEC)
#define DEATH_SHOWS_USEC (20 * USEC_PER_MSEC)
/* After a death, until the VM's state is right: its VMM's parent has 100 ms to tell the status. */
#define STATE_SHOWS_USEC (150 * USEC_PER_MSEC)
#define CONSOLE_TIMEOUT_USEC (5 * USEC_PER_SEC)
#define LAST_WORDS_MAX 4096
#define COUNTERS_MAX 512

static int not_running(const char *name, sd_bus_error *error) {
        return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_RUNNING, "%s: it does not run", name);
}

int vm_get_definition(VM *vm, char **ret) {
        return definition_format(vm->definition, ret);
}

/* GetStats */

typedef struct Stats {
        char name[64];                  /* of the VM, which may be gone by then */
        int pidfd;
        stats_cb cb;
        void *userdata;
        SystemdCall *call;
        sd_event_source *timer;
        bool slice_pending, vmm_pending, dying, dead, told;
        Counter *counters;
        size_t n, n_room;
} Stats;

static void stats_free(Stats *s) {
        safe_close(s->pidfd);
        free(s->counters);
        free(s);
}

static bool stats_make_room(Stats *s) {
        size_t room = s->n_room == 0 ? 16 : MIN(s->n_room * 2, (size_t) COUNTERS_MAX);
        Counter *l;

        if (s->n < s->n_room)
                return true;
        l = s->n_room < room ? reallocarray(s->counters, room, sizeof(Counter)) : NULL;
        if (!l)
                return false;
        s->counters = l;
        s->n_room = room;
        return true;
}

/* What there is no room for is left out. */
static void stats_add(Stats *s, const char *name, uint64_t value) {
        if (!stats_make_room(s))
                return;
        snprintf(s->counters[s->n].name, sizeof(s->counters[s->n].name), "%s", name);
        s->counters[s->n++].value = value;
}

static void stats_tell(Stats *s) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        s->told = true;
        s->call = systemd_call_free(s->call);
        s->timer = sd_event_source_disable_unref(s->timer);
        if (pidfd_dead(s->pidfd)) /* it has died while it was asked */
                not_running(s->name, &e);
        s->cb(s->userdata, sd_bus_error_is_set(&e) ? &e : NULL, s->counters, s->n);
}

/* Who hears that it does not run finds its state to be so. */
static bool stats_wait_for_state(Stats *s) {
        if (s->dead || !pidfd_dead(s->pidfd))
                return false;
        s->dead = true;
        return sd_event_source_set_time_relative(s->timer, STATE_SHOWS_USEC) >= 0 &&
                sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT) >= 0;
}

/* The VMM's answer comes in any case, so what it is for has to stay until then. */
static void stats_check(Stats *s, bool late) {
        if (!s->told && (late || (!s->slice_pending && !s->vmm_pending && !s->dying && !s->dead)) && !stats_wait_for_state(s))
                stats_tell(s);
        if (s->told && !s->vmm_pending)
                stats_free(s);
}

static void on_slice_counters(void *userdata, const UnitCounter *counters, size_t n, const sd_bus_error *error) {
        Stats *s = userdata;

        for (size_t i = 0; i < n; i++)
                stats_add(s, counters[i].name, counters[i].value);
        s->slice_pending = false;
        s->call = systemd_call_free(s->call); /* others wait for their turn */
        stats_check(s, false);
}

static void on_vmm_counters(void *userdata, int error, const VMMCounter *counters, size_t n) {
        Stats *s = userdata;

        for (size_t i = 0; error >= 0 && i < n; i++)
                stats_add(s, counters[i].name, counters[i].value);
        s->vmm_pending = false;
        /* A process that dies closes its sockets first. */
        s->dying = !s->told && (error == -EPIPE || error == -ECANCELED) &&
                   sd_event_source_set_time_relative(s->timer, DEATH_SHOWS_USEC) >= 0;
        stats_check(s, false);
}

static int on_stats_late(sd_event_source *source, uint64_t usec, void *userdata) {
        stats_check(userdata, true);
        return 0;
}

/* systemd 252 has no property for the peak. */
static void stats_add_peak(Stats *s, pid_t pid) {
        _cleanup_free_ char *cgroup = NULL, *path = NULL, *text = NULL;
        char *p;

        if (pid_cgroup(pid, &cgroup) < 0)
                return;
        p = strrchr(cgroup, '/');
        if (!p)
                return;
        *p = 0;
        path = strjoinf("/sys/fs/cgroup%s/memory.peak", cgroup);
        if (path && read_file_all(path, 64, &text, NULL) >= 0)
                stats_add(s, "MemoryPeak", strtoull(text, NULL, 10));
}

int vm_get_stats(VM *vm, stats_cb cb, void *userdata, sd_bus_error *error) {
        Stats *s;
        int r;

        if (!vm_look(vm) && (!vm->run || vm->run->pidfd < 0 || vm->run->status_told))
                return not_running(vm->rec.name, error);

        s = new0(Stats, 1);
        if (!s)
                return sd_bus_error_set_errno(error, -ENOMEM);
        snprintf(s->name, sizeof(s->name), "%s", vm->rec.name);
        s->pidfd = fcntl(vm->run->pidfd, F_DUPFD_CLOEXEC, 3);
        s->cb = cb;
        s->userdata = userdata;

        r = sd_event_add_time_relative(vm->manager->event, &s->timer, CLOCK_MONOTONIC, STATS_TIMEOUT_USEC, 0, on_stats_late, s);
        if (r >= 0)
                r = systemd_get_counters(vm->manager->systemd, vm->slice, on_slice_counters, s, &s->call);
        if (r < 0) {
                sd_event_source_disable_unref(s->timer);
                stats_free(s);
                return sd_bus_error_set_errno(error, r);
        }
        s->slice_pending = true;
        stats_add_peak(s, vm->run->pid);
        if (vm_is_connected(vm)) {
                s->vmm_pending = true;
                if (vm->ops->counters(vm->vmm, on_vmm_counters, s) < 0)
                        s->vmm_pending = false;
        }
        return 0;
}

/* Console */

typedef struct ConsoleCall {
        VM *vm;
        HelperCall *call;
        bool read_only;
        console_cb cb;
        void *userdata;
        char name[64];
} ConsoleCall;

static void on_console(void *userdata, int error, int fd) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        ConsoleCall *c = userdata;

        /* For good: whoever has the socket, in whatever process, sends nothing by it any more. */
        if (error >= 0 && c->read_only && shutdown(fd, SHUT_WR) < 0) {
                error = -errno;
                fd = safe_close(fd);
        }
        if (error < 0)
                sd_bus_error_setf(&e, error == -ETIMEDOUT ? VMUNIT_ERROR_TIMEOUT : VMUNIT_ERROR_BACKEND_FAILED,
                                  "%s: can't open its console: %s", c->name, strerror(-error));
        c->cb(c->userdata, error < 0 ? &e : NULL, fd);
        helper_call_free(c->call);
        free(c);
}

int vm_open_console(VM *vm, bool read_only, console_cb cb, void *userdata, sd_bus_error *error) {
        _cleanup_free_ char *path = NULL;
        ConsoleCall *c;
        int r;

        if (!vm_look(vm))
                return not_running(vm->rec.name, error);

        path = strjoinf("%s/exec", vm->run_dir);
        c = new(ConsoleCall, 1);
        if (!path || !c) {
                free(c);
                return sd_bus_error_set_errno(error, -ENOMEM);
        }
        *c = (ConsoleCall) { .read_only = read_only, .cb = cb, .userdata = userdata };
        snprintf(c->name, sizeof(c->name), "%s", vm->rec.name);
        r = helper_open_console(vm->manager->event, path, CONSOLE_TIMEOUT_USEC, on_console, c, &c->call);
        if (r < 0) {
                free(c);
                return sd_bus_error_setf(error, VMUNIT_ERROR_BACKEND_FAILED, "%s: can't open its console: %s", vm->rec.name,
                                         strerror(-r));
        }
        return 0;
}

static int read_ring(VM *vm, const char *name, uint64_t max, char **ret, size_t *ret_size) {
        _cleanup_free_ char *path = strjoinf("%s/%s", vm->state_dir, name);

        return path ? ring_read(path, max, ret, ret_size) : -ENOMEM;
}

int vm_get_console_log(VM *vm, uint64_t max, char **ret, size_t *ret_size) {
        return read_ring(vm, "console.log", max, ret, ret_size);
}

int vm_get_last_output(VM *vm, char **ret) {
        _cleanup_free_ char *raw = NULL;
        char *text;
        size_t n;
        int r;

        r = read_ring(vm, "last-output", LAST_WORDS_MAX, &raw, &n);
        if (r < 0)
                return r;
        while (n > 0 && raw[n - 1] == '\n')
                n--;
        text = escape_untrusted(raw, n, LAST_WORDS_MAX);
        if (!text)
                return -ENOMEM;
        *ret = text;
        return 0;
}
