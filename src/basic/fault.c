/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"

#define VMM_END_MSEC 5000

extern const FaultPoint *const __start_fault_points[];
extern const FaultPoint *const __stop_fault_points[];

static void kill_vmm(int pid) {
        _cleanup_close_ int pidfd = pid > 0 ? pidfd_open_pid(pid) : -ESRCH;

        if (pidfd < 0 || pidfd_kill(pidfd, SIGKILL) < 0)
                return;
        (void) poll(&(struct pollfd) { .fd = pidfd, .events = POLLIN }, 1, VMM_END_MSEC);
}

static int fire(const char *name, const char *action, int vmm_pid) {
        log_notice("Fault: %s %s", name, action);
        if (streq(action, "kill-daemon"))
                (void) kill(getpid(), SIGKILL);
        if (streq(action, "kill-vmm"))
                kill_vmm(vmm_pid);
        if (streq(action, "EIO"))
                return -EIO;
        if (streq(action, "ENOSPC"))
                return -ENOSPC;
        return streq(action, "hang") ? FAULT_HANG : 0;
}

int fault_hit(const char *name, int vmm_pid) {
        static unsigned n_hits = 0;
        _cleanup_free_ char *text = NULL;
        char armed[128] = "", action[32] = "";
        unsigned count = 1;
        const char *rest;

        if (read_file_all(FAULT_FILE, 256, &text, NULL) < 0)
                return 0;
        if (sscanf(text, "%127s %31s %u", armed, action, &count) < 2 || !streq(armed, name) || ++n_hits < count)
                return 0;
        n_hits = 0;
        rest = strchr(text, '\n');
        if (!rest || !rest[1] || write_file_atomic(FAULT_FILE, rest + 1, false) < 0)
                (void) unlink(FAULT_FILE);
        return fire(name, action, vmm_pid);
}

int fault_hit_named(const char *what, const char *name, const char *when, int vmm_pid) {
        char point[128];

        snprintf(point, sizeof(point), "%s.%s.%s", what, name, when);
        return fault_hit(point, vmm_pid);
}

static void print_point(const char *name, unsigned flags) {
        printf("%s kill-daemon%s%s%s\n", name, flags & FAULT_VMM ? " kill-vmm" : "", flags & FAULT_FAILS ? " EIO ENOSPC" : "",
               flags & FAULT_HANGS ? " hang" : "");
}

void fault_list(void) {
        for (const FaultPoint *const *p = __start_fault_points; p < __stop_fault_points; p++)
                if ((*p)->list)
                        (*p)->list(print_point);
                else
                        print_point((*p)->name, (*p)->flags);
}
