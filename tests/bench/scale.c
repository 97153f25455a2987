/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bed.h"

/* A thousand running VMs: what they cost the daemon, and what the daemon then costs those who ask */

#define VMS 1000U
#define MEASURED 20U            /* starts, at either end */
#define AT_ONCE 10U             /* of those between */
#define ASKED 20U

static double start_one(unsigned i) {
        char name[16];
        double begin;

        vm_name(name, i);
        rest();
        seen_begin("Running");
        begin = now_ms();
        vm_send(name, "Start");
        return seen_wait(1) - begin;
}

static void start_some(unsigned first, unsigned n) {
        char name[16];

        seen_begin("Running");
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, first + i);
                vm_send(name, "Start");
        }
        (void) seen_wait(n);
}

static double ask(const char *interface, const char *method) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        double begin = now_ms();

        if (sd_bus_call_method(bed_bus(), "org.vmunit1", "/org/vmunit1", interface, method, &e, &reply, "") < 0)
                die("%s: %s", method, e.message);
        return now_ms() - begin;
}

static double run_list(void) {
        double begin = now_ms();
        int status, null;
        pid_t pid;

        pid = fork();
        if (pid < 0)
                die("fork: %m");
        if (pid == 0) {
                null = open("/dev/null", O_WRONLY);
                if (null >= 0 && dup2(null, 1) == 1)
                        execlp("vmunit", "vmunit", "list", NULL);
                _exit(127);
        }
        if (waitpid(pid, &status, 0) != pid || status != 0)
                die("vmunit list failed");
        return now_ms() - begin;
}

static double all_pss(unsigned n) {
        double sum = 0;
        char name[16];

        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                sum += exec_pss(name);
        }
        return sum / n;
}

static void kill_all(unsigned n) {
        char name[16];

        for (unsigned i = 0; i < n; i += AT_ONCE) {
                unsigned k = MIN(AT_ONCE, n - i);

                seen_begin("Stopped");
                for (unsigned j = 0; j < k; j++) {
                        vm_name(name, i + j);
                        vm_send(name, "Kill");
                }
                (void) seen_wait(k);
        }
}

static void measure_starts(unsigned n, unsigned measured) {
        Row first = { .name = "a start, while few run" }, last = { .name = "a start, while all others run" };
        double begin;

        for (unsigned i = 0; i < measured; i++)
                row_add(&first, start_one(i));
        begin = now_ms();
        for (unsigned i = measured; i < n - measured; i += AT_ONCE)
                start_some(i, MIN(AT_ONCE, n - measured - i));
        print_note("starts of those between, ten at a time, all of them", (now_ms() - begin) / 1000, "s");
        for (unsigned i = n - measured; i < n; i++)
                row_add(&last, start_one(i));
        print_bar("the last start against the first", row_print(&last) / row_print(&first), 1.5, "×");
}

static void measure_memory(unsigned n, int daemon) {
        print_note("its own pages", process_figure(daemon, "status", "RssAnon:") / 1024, "MB");
        print_note("pages of files", process_figure(daemon, "status", "RssFile:") / 1024, "MB");
        print_bar("vmunitd with all", process_figure(daemon, "status", "VmRSS:") / 1024, 12, "MB");
        print_bar("vmunit-exec, PSS of one", all_pss(n) / 1024, 0.5, "MB");
}

static void measure_questions(unsigned asked) {
        Row objects = { .name = "GetManagedObjects" }, names = { .name = "ListVMs" }, list = { .name = "the command `vmunit list`" };

        for (unsigned i = 0; i < asked; i++) {
                row_add(&objects, ask("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"));
                row_add(&names, ask("org.vmunit1.Manager", "ListVMs"));
                row_add(&list, run_list());
        }
        print_bar("GetManagedObjects", row_print(&objects), 30, "ms");
        print_bar("ListVMs", row_print(&names), 10, "ms");
        (void) row_print(&list);
}

static void measure_takeover(unsigned n, unsigned rounds) {
        Row row = { .name = "exec of vmunitd until all VMs are told" };
        double from_fork;

        for (unsigned i = 0; i < rounds; i++) {
                row_add(&row, takeover_once(n, &from_fork));
                rest();
        }
        print_bar("takeover of all VMs", row_print(&row), 1500, "ms");
}

void bench_scale(unsigned rounds, const char *backend) {
        unsigned n = rounds < 20 ? 2 * rounds : VMS;
        double begin;
        int daemon;

        for (unsigned i = 0; i < n; i++)
                vm_create_still(i, backend);
        print_note("VMs", n, "");
        daemon = unit_pid("vmunitd.service");
        print_note("vmunitd with none running", process_figure(daemon, "status", "VmRSS:") / 1024, "MB");

        measure_starts(n, MIN(rounds, MEASURED));
        measure_memory(n, daemon);
        measure_questions(MIN(rounds, ASKED));
        measure_takeover(n, MIN(rounds, 5U));

        begin = now_ms();
        kill_all(n);
        print_note("Kill of all, ten at a time", (now_ms() - begin) / 1000, "s");
}
