/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* Fault injection, for tests: built in by -Dfault-injection=true alone. A point is a place where the daemon may die, its VMM may die, or a
 * step may fail or hang. Each registers itself, so that `vmunitd --fault-points` tells all there are, with the actions that apply.
 * A test arms one by a file with a line for it, which is gone once it has fired; a further line is armed by then:
 *
 *      NAME ACTION [COUNT]     COUNT: fires when the point is come by for this time, 1 if not given
 */

#define FAULT_FILE "/run/vmunit/fault"

enum {
        FAULT_FAILS = 1 << 0,   /* EIO and ENOSPC: the step can fail */
        FAULT_HANGS = 1 << 1,   /* hang: the step can wait for ever; without it a hang would stop the loop: not hangable */
        FAULT_VMM = 1 << 2,     /* kill-vmm: there may be a VMM */
};

/* What a point gives beside 0 and -errno: from here on nothing goes on by itself. */
#define FAULT_HANG 1

#ifdef FAULT_INJECTION

typedef void (*fault_list_cb)(const char *name, unsigned flags);

typedef struct FaultPoint {
        const char *name;
        unsigned flags;
        void (*list)(fault_list_cb cb); /* instead: tells points that are in a table */
} FaultPoint;

#define FAULT_REGISTER_(point) \
        static const FaultPoint *const CONCAT(point, _registered) __attribute__((__section__("fault_points"), __used__)) = &point

/* vmm_pid: the VMM to be killed, 0 if there is none */
int fault_hit(const char *name, int vmm_pid);
/* The same for a point of a table: what.name.when */
int fault_hit_named(const char *what, const char *name, const char *when, int vmm_pid);
/* Prints them: NAME ACTION… */
void fault_list(void);

#define FAULT_POINT(point, point_flags, vmm_pid)                                                        \
        ({                                                                                              \
                static const FaultPoint _fault_point = { .name = (point), .flags = (point_flags) };     \
                FAULT_REGISTER_(_fault_point);                                                          \
                fault_hit(_fault_point.name, (vmm_pid));                                                \
        })
#define FAULT_POINT_NAMED(what, name, when, vmm_pid) fault_hit_named(what, name, when, vmm_pid)
/* At the top level of a file */
#define FAULT_TABLE(id, function)                                       \
        static const FaultPoint id = { .list = (function) };            \
        FAULT_REGISTER_(id)

#else

#define FAULT_POINT(point, point_flags, vmm_pid) 0
#define FAULT_POINT_NAMED(what, name, when, vmm_pid) 0

#endif
