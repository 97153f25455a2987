/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "bed.h"

#define SYSTEMD "org.freedesktop.systemd1"
#define SYSTEMD_PATH "/org/freedesktop/systemd1"
#define SYSTEMD_MANAGER "org.freedesktop.systemd1.Manager"

static char ended_unit[64];

static int on_job_removed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const char *unit, *result;

        check(sd_bus_message_read(m, "uoss", NULL, NULL, &unit, &result), "JobRemoved");
        if (startswith(unit, "vmunitbench-")) {
                if (!streq(result, "done"))
                        die("%s: %s", unit, result);
                snprintf(ended_unit, sizeof(ended_unit), "%s", unit);
        }
        return 0;
}

static void subscribe(void) {
        check(sd_bus_match_signal(bed_bus(), NULL, SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "JobRemoved", on_job_removed, NULL),
              "match");
        check(sd_bus_call_method(bed_bus(), SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "Subscribe", NULL, NULL, NULL), "Subscribe");
}

static void start_scope(const char *scope, const char *slice, pid_t pid) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        if (sd_bus_call_method(bed_bus(), SYSTEMD, SYSTEMD_PATH, SYSTEMD_MANAGER, "StartTransientUnit", &e, NULL,
                               "ssa(sv)a(sa(sv))", scope, "fail",
                               3, "Slice", "s", slice, "PIDs", "au", 1, (uint32_t) pid, "CollectMode", "s", "inactive-or-failed",
                               1, slice, 1, "StopWhenUnneeded", "b", true) < 0)
                die("StartTransientUnit: %s", e.message);
}

double scope_once(void) {
        static unsigned round;
        char scope[64], slice[64];
        double begin, end;
        pid_t pid;

        if (round++ == 0)
                subscribe();
        begin = now_ms();
        snprintf(scope, sizeof(scope), "vmunitbench-%u.scope", round);
        snprintf(slice, sizeof(slice), "machine-vmunitbench-%u.slice", round);
        pid = fork();
        if (pid < 0)
                die("fork: %m");
        if (pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
                for (;;)
                        pause();
        }
        start_scope(scope, slice, pid);
        while (!streq(ended_unit, scope))
                bed_turn(begin + 30000, scope);
        end = now_ms();
        (void) kill(pid, SIGKILL);
        (void) waitpid(pid, NULL, 0);
        return end - begin;
}
