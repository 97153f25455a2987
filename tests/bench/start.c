/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "bed.h"

/* D-Bus Start until a client sees Running, against what it cannot do without: the VMM's own start, and a process put into a scope. */

static double start_once(void) {
        double begin;

        seen_begin("Running");
        begin = now_ms();
        vm_send("bench", "Start");
        return seen_wait(1) - begin;
}

void bench_start(unsigned rounds, const char *backend) {
        Row start = { .name = "Start until Running is seen" }, bare = { .name = "the same VMM started bare" },
            scope = { .name = "a bare process into a scope" }, beyond = { .name = "beyond their sum, round by round" };
        double sum, median;
        Bare *b;

        vm_create("bench", backend);
        vm_do("bench", "Start"); /* once to warm up, and for the program */
        b = bare_of(backend, vm_leader("bench"));
        vm_do("bench", "Kill");

        for (unsigned i = 0; i < rounds; i++) {
                rest();
                row_add(&start, start_once());
                rest();
                vm_do("bench", "Kill");
                rest();
                row_add(&bare, bare_start(b));
                bare_kill(b);
                rest();
                row_add(&scope, scope_once());
                row_add(&beyond, start.v[i] - bare.v[i] - scope.v[i]);
        }

        sum = row_print(&bare) + row_print(&scope);
        median = row_print(&start);
        (void) row_print(&beyond);
        /* QEMU's own time differs from host to host more than ours. */
        if (streq(backend, "qemu"))
                print_bar("start against their sum", median / sum, 1.10, "×");
        else
                print_bar("start beyond their sum", median - sum, 3, "ms");
        vm_remove("bench");
}
