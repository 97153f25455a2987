/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "bed.h"

/* A daemon that comes back to many VMs: from its exec until a client has all of them, in their states */

#define VMS 60
#define PROGRAM SBINDIR "/vmunitd"
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

static bool all_run(unsigned n) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;

        check(sd_bus_message_new_method_call(bed_bus(), &m, "org.vmunit1", "/org/vmunit1", "org.vmunit1.Manager", "ListVMs"), "ListVMs");
        check(sd_bus_message_set_auto_start(m, false), "ListVMs");
        return sd_bus_call(bed_bus(), m, 0, NULL, &reply) >= 0 && count_states(reply, "Running") == n;
}

static bool owned;

static int on_owner(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const char *owner;

        check(sd_bus_message_read(m, "sss", NULL, NULL, &owner), "NameOwnerChanged");
        owned = *owner;
        return 0;
}

/* It is not activated: systemd starts it again by itself. Asking all the while would take from it what processors there are. */
static void await_owner(double end) {
        while (!owned)
                bed_turn(end, "the daemon to come back");
}

/* Notes when the program is opened: at its execve, when all of the unit's walls are built. */
static _Noreturn void watch_exec(int fd, double *at) {
        char buffer[4096];

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        while (read(fd, buffer, sizeof(buffer)) > 0)
                *at = now_ms();
        _exit(EXIT_FAILURE);
}

static const double *exec_time(void) {
        static double *at;
        int fd;

        if (at)
                return at;
        at = mmap(NULL, sizeof(*at), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        fd = inotify_init1(IN_CLOEXEC);
        if (at == MAP_FAILED || fd < 0 || inotify_add_watch(fd, PROGRAM, IN_OPEN) < 0)
                die(PROGRAM ": %m");
        if (fork() == 0)
                watch_exec(fd, at);
        return at;
}

double takeover_once(unsigned n, double *ret_from_fork) {
        static sd_bus_slot *slot;
        double end = now_ms() + 60000, told;
        uint64_t fork_usec;
        uint32_t pid;

        if (!slot)
                check(sd_bus_add_match(bed_bus(), &slot, "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',"
                                       "arg0='org.vmunit1'", on_owner, NULL), "match");
        (void) exec_time();
        daemon_get("MainPID", 'u', &pid);
        owned = false;
        if (pid == 0 || kill((pid_t) pid, SIGKILL) < 0)
                die("no daemon to kill");
        await_owner(end);
        while (!all_run(n))
                if (now_ms() > end)
                        die("the daemon does not come back to %u VMs", n);
        told = now_ms();
        daemon_get("ExecMainStartTimestampMonotonic", 't', &fork_usec);
        *ret_from_fork = told - (double) fork_usec / 1000;
        return told - *exec_time();
}

void bench_takeover(unsigned rounds, const char *backend) {
        unsigned n = rounds < 20 ? rounds : VMS;
        Row row = { .name = "exec of vmunitd until all VMs are told" }, all = { .name = "the same, from its fork in PID 1" };
        char name[16];

        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                vm_create_still(i, backend);
                vm_do(name, "Start");
        }
        for (unsigned i = 0; i < MIN(rounds, 10U); i++) {
                double from_fork;

                row_add(&row, takeover_once(n, &from_fork));
                row_add(&all, from_fork);
                rest();
        }
        (void) row_print(&all);
        print_bar("takeover of all VMs", row_print(&row), 100, "ms");
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                vm_remove(name);
        }
}
