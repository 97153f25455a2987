/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "basic/string-util.h"
#include "bed.h"

/* What the daemon and a VMM's parent take, with many VMs */

#define VMS 60

static double read_figure(int pid, const char *file, const char *key) {
        char path[64], line[256];
        double value = -1;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
        f = fopen(path, "re");
        if (!f)
                die("%s: %m", path);
        while (value < 0 && fgets(line, sizeof(line), f)) {
                const char *rest_of = startswith(line, key);

                if (rest_of)
                        value = strtod(rest_of, NULL);
        }
        fclose(f);
        return value;
}

static int unit_pid(const char *unit) {
        _cleanup_free_ char *path = NULL;
        uint32_t pid;

        check(sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit, &path), "path");
        check(sd_bus_get_property_trivial(bed_bus(), "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service", "MainPID",
                                          NULL, 'u', &pid), unit);
        if (pid == 0)
                die("%s does not run", unit);
        return (int) pid;
}

/* The VMM's parent */
static int parent_of(int pid) {
        return (int) read_figure(pid, "status", "PPid:");
}

void bench_memory(unsigned rounds) {
        unsigned n = rounds < 20 ? rounds : VMS;
        double before, pss = 0;
        char name[16];
        int daemon;

        vm_create("vm0", bed_definition());
        daemon = unit_pid("vmunitd.service");
        before = read_figure(daemon, "status", "VmRSS:") / 1024;
        for (unsigned i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "vm%u", i);
                if (i > 0)
                        vm_create(name, bed_definition());
                vm_do(name, "Start");
        }
        for (unsigned i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "vm%u", i);
                pss += read_figure(parent_of(vm_leader(name)), "smaps_rollup", "Pss:");
        }

        print_note("vmunitd with no VM running", before, "MB");
        print_note("of which pages of files", read_figure(daemon, "status", "RssFile:") / 1024, "MB");
        print_note("its own pages", read_figure(daemon, "status", "RssAnon:") / 1024, "MB");
        print_note("vmunit-exec, PSS of one", pss / n, "kB");
        print_note("vmunit-launch", read_figure(unit_pid("vmunit-launch.service"), "status", "VmRSS:") / 1024, "MB");
        print_bar("threads of vmunitd", read_figure(daemon, "status", "Threads:"), 1, "");
        print_bar("vmunitd with 60 VMs", read_figure(daemon, "status", "VmRSS:") / 1024, 8, "MB");
}
