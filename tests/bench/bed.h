/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/macro.h"

/* What the benchmarks share: a client's connection to the daemon, a clock, medians. What fails ends the program with a sentence. */

#define VM_PREFIX "/org/vmunit1/vm/"
#define BED_MEMORY_MB 32U
#define STILL_MEMORY_MB 8U      /* the least that a definition may have */
#define REST_MSEC 50            /* between two measurements: a move into a scope is cheap right after another */

_Noreturn void die(const char *format, ...) _printf_(1, 2);
/* r as of sd-bus: below 0 it ends the program */
void check(int r, const char *what);

double now_ms(void);
void rest(void);

sd_bus *bed_bus(void);
/* Waits for the next message until `end` (ms, as now_ms()) at the latest. */
void bed_turn(double end, const char *what);

const char *bed_kernel(void);
/* Its guest is the tiny one. */
void vm_create(const char *name, const char *backend);
/* VM number i of many: its guest sleeps, for 18 ticks a second of each of the tiny ones are soon all that a machine does. */
void vm_create_still(unsigned i, const char *backend);
void vm_name(char ret[static 16], unsigned i);
/* Start, Stop, Kill, Remove: waits for the answer. Gives false if it was an error. */
bool vm_try(const char *name, const char *method);
void vm_do(const char *name, const char *method);
/* Only sends it. */
void vm_send(const char *name, const char *method);
void vm_remove(const char *name);
int vm_leader(const char *name);

/* Counts changes of VMs to this state, from now on; waits until there were so many, and tells when the last came. */
void seen_begin(const char *state);
double seen_wait(unsigned n);

/* The number behind `key` in /proc/PID/`file`; below 0: none */
double process_figure(int pid, const char *file, const char *key);
int unit_pid(const char *unit);
/* Of the VMM's parent, in kB */
double exec_pss(const char *name);

/* A row of figures, in ms */
typedef struct Row {
        const char *name;
        size_t n;
        double v[1000];
} Row;

void row_add(Row *r, double v);
double row_median(Row *r);
/* "row NAME MEDIAN QUARTILE QUARTILE" on standard output, for tests/bench/run; gives the median. */
double row_print(Row *r);
/* "bar NAME VALUE LIMIT UNIT" */
void print_bar(const char *name, double value, double limit, const char *unit);
/* "note NAME VALUE UNIT" */
void print_note(const char *name, double value, const char *unit);

/* bare.c: the same VMM started without us, as it is known from one that runs */
typedef struct Bare Bare;
Bare *bare_of(const char *backend, int pid);
/* Starts it and waits until its API says that the guest runs; gives the time in ms. */
double bare_start(Bare *b);
/* SIGKILL; gives the time until its end is seen. */
double bare_kill(Bare *b);

/* scope.c: a process put into a scope in a slice of its own; gives the time in ms. */
double scope_once(void);

/* takeover.c: the daemon is killed; gives the time from the next one's exec, and from PID 1's fork before it, until all n VMs are told as
 * running. */
double takeover_once(unsigned n, double *ret_from_fork);

void bench_start(unsigned rounds, const char *backend);
void bench_many(unsigned rounds, const char *backend);
void bench_death(unsigned rounds, const char *backend);
void bench_read(unsigned rounds, const char *backend);
void bench_memory(unsigned rounds, const char *backend);
void bench_takeover(unsigned rounds, const char *backend);
void bench_scale(unsigned rounds, const char *backend);
void bench_walls(unsigned rounds, const char *backend);
