/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bed.h"

/* Many VMs started at once, against as many bare VMMs at once and as many processes put into scopes, one after the other */

#define VMS 40

/* What one measurement has left to do, for PID 1 above all, must not slow the next one down. */
static void settle(void) {
        for (unsigned i = 0; i < 8; i++)
                rest();
}

/* Who works for a start. What a process used before it was moved into a scope counts where it was: the helpers' beginnings are the launcher's. */
static const struct { const char *name, *cgroup; } workers[] = {
        { "  processor time of vmunitd", "system.slice/vmunitd.service" },
        { "  of vmunit-launch, helpers till in scope", "system.slice/vmunit-launch.service" },
        { "  of what is in the scopes", "machine.slice" },
        { "  of PID 1", "init.scope" },
        { "  of D-Bus", "system.slice/dbus.service" },
        { "  of the journal", "system.slice/systemd-journald.service" },
        { "  of all", "" },
};
static Row work[ELEMENTSOF(workers)];

/* In ms */
static double used_by(const char *cgroup) {
        char path[PATH_MAX];
        double usec = 0;
        FILE *f;

        (void) snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/cpu.stat", cgroup);
        f = fopen(path, "re");
        if (!f || fscanf(f, "usage_usec %lf", &usec) != 1)
                usec = 0; /* not begun yet */
        if (f)
                fclose(f);
        return usec / 1000;
}

static double start_all(unsigned n) {
        char name[16];
        double begin;

        seen_begin("Running");
        begin = now_ms();
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                vm_send(name, "Start");
        }
        return seen_wait(n) - begin;
}

static double start_all_watched(unsigned n) {
        double before[ELEMENTSOF(workers)], took;

        for (size_t i = 0; i < ELEMENTSOF(workers); i++)
                before[i] = used_by(workers[i].cgroup);
        took = start_all(n);
        for (size_t i = 0; i < ELEMENTSOF(workers); i++) {
                work[i].name = workers[i].name;
                row_add(&work[i], used_by(workers[i].cgroup) - before[i]);
        }
        return took;
}

static void kill_all(unsigned n) {
        char name[16];

        seen_begin("Stopped");
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                vm_send(name, "Kill");
        }
        (void) seen_wait(n);
}

/* One that starts its VMM, says so, and waits for its end */
static pid_t driver(Bare *b, int said) {
        pid_t pid = fork();

        if (pid < 0)
                die("fork: %m");
        if (pid > 0)
                return pid;
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        (void) bare_start(b);
        if (write(said, "", 1) != 1)
                _exit(EXIT_FAILURE);
        for (;;)
                pause();
}

static double bare_all(Bare **bares, unsigned n) {
        double begin = now_ms(), end;
        pid_t pids[VMS];
        int said[2];
        char c;

        if (pipe(said) < 0)
                die("pipe: %m");
        for (unsigned i = 0; i < n; i++)
                pids[i] = driver(bares[i], said[1]);
        close(said[1]);
        for (unsigned i = 0; i < n; i++)
                if (read(said[0], &c, 1) != 1)
                        die("a bare VMM did not start");
        end = now_ms();
        close(said[0]);
        for (unsigned i = 0; i < n; i++) {
                (void) kill(pids[i], SIGKILL); /* and its VMM */
                (void) waitpid(pids[i], NULL, 0);
        }
        return end - begin;
}

static double scope_all(unsigned n) {
        double sum = 0;

        for (unsigned i = 0; i < n; i++)
                sum += scope_once();
        return sum;
}

void bench_many(unsigned rounds, const char *backend) {
        Row start = { .name = "Start of all until all are seen Running" }, bare = { .name = "as many bare VMMs at once" },
            scope = { .name = "as many scopes, one after the other" };
        unsigned n = rounds < 10 ? rounds : VMS;
        Bare *bares[VMS];
        double sum, median;
        char name[16];

        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                vm_create(name, backend);
        }
        (void) start_all(n);
        for (unsigned i = 0; i < n; i++)
                bares[i] = bare_of(backend, vm_leader("vm0"));
        kill_all(n);

        for (unsigned i = 0; i < MIN(rounds, 20U); i++) {
                settle();
                row_add(&start, start_all_watched(n));
                settle();
                kill_all(n);
                settle();
                row_add(&bare, bare_all(bares, n));
                settle();
                row_add(&scope, scope_all(n));
        }

        sum = row_print(&bare) + row_print(&scope);
        median = row_print(&start);
        for (size_t i = 0; i < ELEMENTSOF(workers); i++)
                (void) row_print(&work[i]);
        print_note("VMs", n, "");
        print_bar("start of all against their sum", median / sum, 1, "×");
        for (unsigned i = 0; i < n; i++) {
                vm_name(name, i);
                vm_remove(name);
        }
}
