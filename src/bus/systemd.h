/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-bus.h>

#include "basic/macro.h"

/* PID 1 as the daemon needs it: transient scopes, their jobs, what becomes of units. Everything is asynchronous with a deadline.
 * See org.freedesktop.systemd1(5). */

typedef struct Systemd Systemd;

int systemd_new(sd_bus *bus, Systemd **ret);
Systemd *systemd_free(Systemd *s);
DEFINE_TRIVIAL_CLEANUP_FUNC(Systemd *, systemd_free);

/* Signals are hints: something about the unit may have changed, or PID 1 was reloaded. Ask then. */
typedef struct UnitWatch UnitWatch;
typedef void (*unit_hint_cb)(void *userdata);
int systemd_watch_unit(Systemd *s, const char *unit, unit_hint_cb cb, void *userdata, UnitWatch **ret);
UnitWatch *unit_watch_free(UnitWatch *w);
DEFINE_TRIVIAL_CLEANUP_FUNC(UnitWatch *, unit_watch_free);

/* A call under way; freeing it cancels the callback, not what PID 1 does. The callback runs once, from the loop. */
typedef struct SystemdCall SystemdCall;
SystemdCall *systemd_call_free(SystemdCall *c);

typedef struct ScopeParams {
        const char *scope, *slice;
        const char *description, *slice_description;
        pid_t pid;
        int pidfd;
        uint64_t timeout_stop_usec;
        char *const *devices;                   /* paths of those that it is allowed beside /dev/null and its kind, or NULL */
        const char *before;                     /* a unit that is stopped before it, or NULL */
        /* Whether the slice is there; set when PID 1 has taken over a scope that brought it along. Until then the other scopes of that slice
         * wait, for PID 1 makes one without limits by itself, and takes no second. NULL: somebody's slice is there already */
        bool *slice_made;
        int (*append_slice)(sd_bus_message *m, void *userdata); /* more (sv) for the slice, or NULL */
        void *append_userdata;
} ScopeParams;

/* error: what went wrong, NULL if the job is done. What p points to must live as long as the call. */
typedef void (*systemd_done_cb)(void *userdata, const sd_bus_error *error);
int systemd_start_scope(Systemd *s, const ScopeParams *p, systemd_done_cb cb, void *userdata, SystemdCall **ret);

/* One property of a unit, asked for with Properties.Get: interface is the last part of its name ("Unit", "Scope", "Slice").
 * value: strings as they are, booleans as "yes" or "no", byte arrays (InvocationID) in hex; NULL when PID 1 could not be asked,
 * error then says why. A unit that is not loaded has the SubState "dead". */
typedef void (*unit_property_cb)(void *userdata, const char *value, const sd_bus_error *error);
int systemd_get(Systemd *s, const char *unit, const char *interface, const char *property, unit_property_cb cb,
                void *userdata, SystemdCall **ret);

/* The same for a property of PID 1 itself, such as SystemState. */
int systemd_get_manager(Systemd *s, const char *property, unit_property_cb cb, void *userdata, SystemdCall **ret);

/* Told, not waited for; errors are logged where they matter. */
void systemd_kill_unit(Systemd *s, const char *unit, int sig);
void systemd_stop_unit(Systemd *s, const char *unit);
void systemd_reset_failed(Systemd *s, const char *unit);

/* SetProperties(runtime), with what append adds, of a transient unit that is there: of another one, or of its stub when it has gone, PID 1
 * would keep drop-ins, which the next unit of that name would have. append is called later, if at all before the call is freed. */
int systemd_set_transient(Systemd *s, const char *unit, int (*append)(sd_bus_message *m, void *userdata), void *append_userdata,
                           systemd_done_cb cb, void *userdata, SystemdCall **ret);

/* Numbers of a slice: those of org.freedesktop.systemd1.Slice that are known, by systemd's names. */
typedef struct UnitCounter {
        const char *name;
        uint64_t value;
} UnitCounter;
typedef void (*unit_counters_cb)(void *userdata, const UnitCounter *counters, size_t n, const sd_bus_error *error);
int systemd_get_counters(Systemd *s, const char *slice, unit_counters_cb cb, void *userdata, SystemdCall **ret);
