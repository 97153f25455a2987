/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/macro.h"

/* What the benchmarks share: a client's connection to the daemon, a clock, medians. What fails ends the program with a sentence. */

#define VM_PREFIX "/org/vmunit1/vm/"
#define REST_MSEC 50            /* between two measurements: a move into a scope is cheap right after another */

/* State of a VM, as signals tell it */
typedef struct Seen {
        char state[16];
        double at;              /* ms, when the last change came */
} Seen;

_Noreturn void die(const char *format, ...) _printf_(1, 2);
/* r as of sd-bus: below 0 it ends the program */
void check(int r, const char *what);

double now_ms(void);
void rest(void);

sd_bus *bed_bus(void);
/* Waits for the next message until `end` (ms, as now_ms()) at the latest. */
void bed_turn(double end, const char *what);

/* The tiny guest, as a definition */
const char *bed_definition(void);
void vm_create(const char *name, const char *definition);
/* Start, Stop, Kill, Remove: waits for the answer. Gives false if it was an error. */
bool vm_try(const char *name, const char *method);
void vm_do(const char *name, const char *method);
/* Only sends it. */
void vm_send(const char *name, const char *method);
void vm_remove(const char *name);
int vm_leader(const char *name);

/* Watches the VM's State; one VM at a time */
void seen_watch(const char *name);
/* Waits until a signal tells this state; gives when it came. seen_clear() before whatever is to bring it. */
void seen_clear(void);
double seen_wait(const char *state);

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

/* bare.c: the command line of a running VMM, and the same started without us */
typedef struct Bare Bare;
Bare *bare_of(int pid);
/* Starts it and waits until QMP says that the guest runs; gives the time in ms. */
double bare_start(Bare *b);
/* SIGKILL; gives the time until its end is seen. */
double bare_kill(Bare *b);

void bench_start(unsigned rounds);
void bench_death(unsigned rounds);
void bench_read(unsigned rounds);
void bench_memory(unsigned rounds);
void bench_takeover(unsigned rounds);
