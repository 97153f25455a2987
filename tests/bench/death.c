/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <signal.h>

#include "bed.h"

/* SIGKILL to the VMM until a client sees Error */

void bench_death(unsigned rounds, const char *backend) {
        Row death = { .name = "VMM killed until Error is seen" }, bare = { .name = "a bare VMM killed until its end is seen" };
        double median;
        Bare *b = NULL;

        vm_create("bench", backend);

        for (unsigned i = 0; i < rounds; i++) {
                double begin;
                int pid;

                vm_do("bench", "Start");
                pid = vm_leader("bench");
                if (!b)
                        b = bare_of(backend, pid);
                rest();
                seen_begin("Error");
                begin = now_ms();
                if (pid <= 0 || kill(pid, SIGKILL) < 0)
                        die("kill: %m");
                row_add(&death, seen_wait(1) - begin);
                rest();
                (void) bare_start(b);
                rest();
                row_add(&bare, bare_kill(b));
        }

        median = row_print(&death);
        print_note("against the bare VMM", median / row_print(&bare), "×");
        print_bar("death until seen", median, 5, "ms");
        vm_remove("bench");
}
