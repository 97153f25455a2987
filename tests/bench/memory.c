/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>

#include "bed.h"

/* What the daemon and a VMM's parent take, with many VMs */

#define VMS 60

void bench_memory(unsigned rounds, const char *backend) {
        unsigned n = rounds < 20 ? rounds : VMS;
        double before, pss = 0;
        char name[16];
        int daemon;

        vm_create_still(0, backend);
        daemon = unit_pid("vmunitd.service");
        before = process_figure(daemon, "status", "VmRSS:") / 1024;
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                if (i > 0)
                        vm_create_still(i, backend);
                vm_do(name, "Start");
        }
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                pss += exec_pss(name);
        }

        print_note("vmunitd with no VM running", before, "MB");
        print_note("of which pages of files", process_figure(daemon, "status", "RssFile:") / 1024, "MB");
        print_note("its own pages", process_figure(daemon, "status", "RssAnon:") / 1024, "MB");
        print_note("vmunit-exec, PSS of one", pss / n, "kB");
        print_note("vmunit-launch", process_figure(unit_pid("vmunit-launch.service"), "status", "VmRSS:") / 1024, "MB");
        print_bar("threads of vmunitd", process_figure(daemon, "status", "Threads:"), 1, "");
        print_bar("vmunitd with 60 VMs", process_figure(daemon, "status", "VmRSS:") / 1024, 8, "MB");
}
