/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <stdio.h>

#include "basic/string-util.h"
#include "bed.h"

/* A daemon that comes back to many VMs: from its exec until a client has all of them, in their states */

#define VMS 60
#define DAEMON_UNIT "/org/freedesktop/systemd1/unit/vmunitd_2eservice"

static void daemon_get(const char *property, char type, void *ret) {
        check(sd_bus_get_property_trivial(bed_bus(), "org.freedesktop.systemd1", DAEMON_UNIT, "org.freedesktop.systemd1.Service",
                                          property, NULL, type, ret), property);
}

static unsigned count_states(sd_bus_message *m, const char *state) {
        const char *s;
        unsigned n = 0;

        check(sd_bus_message_enter_container(m, 'a', "(ssso)"), "ListVMs");
        while (sd_bus_message_read(m, "(ssso)", NULL, NULL, &s, NULL) > 0)
                n += streq(s, state);
        return n;
}

/* Does not activate it: systemd starts it again by itself. */
static bool all_run(unsigned n) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;

        check(sd_bus_message_new_method_call(bed_bus(), &m, "org.vmunit1", "/org/vmunit1", "org.vmunit1.Manager", "ListVMs"), "ListVMs");
        check(sd_bus_message_set_auto_start(m, false), "ListVMs");
        return sd_bus_call(bed_bus(), m, 0, NULL, &reply) >= 0 && count_states(reply, "Running") == n;
}

void bench_takeover(unsigned rounds) {
        unsigned n = rounds < 20 ? rounds : VMS;
        Row row = { .name = "exec of vmunitd until all VMs are told" };
        char name[16];
        double median;

        for (unsigned i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "vm%u", i);
                vm_create(name, bed_definition());
                vm_do(name, "Start");
        }

        for (unsigned i = 0; i < MIN(rounds, 10U); i++) {
                double end = now_ms() + 30000, told;
                uint64_t exec_usec;
                uint32_t pid;

                daemon_get("MainPID", 'u', &pid);
                if (pid == 0 || kill((pid_t) pid, SIGKILL) < 0)
                        die("no daemon to kill");
                while (!all_run(n))
                        if (now_ms() > end)
                                die("the daemon does not come back to %u VMs", n);
                told = now_ms();
                daemon_get("ExecMainStartTimestampMonotonic", 't', &exec_usec);
                row_add(&row, told - (double) exec_usec / 1000);
                rest();
        }

        median = row_print(&row);
        print_bar("takeover of all VMs", median, 100, "ms");
        for (unsigned i = 0; i < n; i++) {
                snprintf(name, sizeof(name), "vm%u", i);
                vm_remove(name);
        }
}
