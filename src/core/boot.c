/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <unistd.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "core/vm-private.h"

/* What is to run after a boot of the host: OnBoot= says which VMs, autostartPriority in which order. Each start is planned in the VM's
 * record first, as a restart policy's is, so a daemon that dies half way forgets none; only then the boot is done with. */

#define LAST_BOOT "/var/lib/vmunit/last-boot"
/* Where that can't be written: gone with the boot */
#define THIS_BOOT "/run/vmunit/last-boot"
#define AGAIN_USEC (5 * USEC_PER_SEC)

static bool is_wanted(const VM *vm) {
        OnBoot on = vm->manager->config->on_boot;

        if (vm->rec.state != VM_STOPPED && (vm->rec.state != VM_ERROR || vm_is_alive(vm)))
                return false;
        if (on == ON_BOOT_NOTHING || !vm->loaded)
                return false;
        if (streq(vm->rec.boot_id, vm->manager->boot_id)) /* it was started since the boot, or its start is planned */
                return false;
        return vm->definition->autostart || (on == ON_BOOT_RESUME && vm->rec.intent);
}

/* The higher priority first, then the older VM. */
static int compare(const void *a, const void *b) {
        const VM *x = *(VM *const *) a, *y = *(VM *const *) b;

        if (x->definition->autostart_priority != y->definition->autostart_priority)
                return x->definition->autostart_priority > y->definition->autostart_priority ? -1 : 1;
        return x->rec.created < y->rec.created ? -1 : x->rec.created > y->rec.created;
}

static int plan_all(Manager *m) {
        _cleanup_free_ VM **wanted = new(VM *, m->n_vms + 1);
        size_t n = 0;
        int r;

        if (!wanted)
                return -ENOMEM;
        for (VM *vm = m->vms; vm; vm = vm->next)
                if (is_wanted(vm))
                        wanted[n++] = vm;
        qsort(wanted, n, sizeof(VM *), compare);

        for (size_t i = 0; i < n; i++) {
                r = FAULT_POINT("boot.plan", FAULT_FAILS, 0);
                if (r >= 0)
                        r = restart_plan_start(wanted[i], now_realtime() + i * m->config->on_boot_delay_usec, 0);
                if (r < 0)
                        return r;
        }
        if (n > 0)
                log_info("The host has booted: %zu virtual machines are started", n);
        return 0;
}

static bool says_this_boot(const Manager *m, const char *path) {
        _cleanup_free_ char *text = NULL;
        int r;

        r = read_file_all(path, 64, &text, NULL);
        if (r < 0 && r != -ENOENT)
                log_warning_errno(r, "%s can't be read", path);
        return r >= 0 && startswith(text, m->boot_id);
}

static bool is_done(const Manager *m) {
        if (!says_this_boot(m, LAST_BOOT))
                return says_this_boot(m, THIS_BOOT);
        (void) unlink(THIS_BOOT);
        return true;
}

static void set_done(const Manager *m) {
        int r;

        r = write_file_atomic(LAST_BOOT, m->boot_id, true);
        if (r >= 0)
                return;
        log_warning_errno(r, LAST_BOOT " can't be written, so " THIS_BOOT " remembers that what is to run after a boot was started");
        r = write_file_atomic(THIS_BOOT, m->boot_id, false);
        if (r < 0)
                log_error_errno(r, THIS_BOOT " can't be written either: the next start of the daemon starts what never ran in this boot");
}

static int on_again(sd_event_source *source, uint64_t usec, void *userdata) {
        Manager *m = userdata;

        m->boot_timer = sd_event_source_disable_unref(m->boot_timer);
        manager_on_boot(m);
        return 0;
}

/* Those whose plan was stored are planned no more. */
static void try_again(Manager *m, int error) {
        log_error_errno(error, "What is to run after a boot can't be started now; it is tried again every few seconds");
        if (sd_event_add_time_relative(m->event, &m->boot_timer, CLOCK_MONOTONIC, AGAIN_USEC, 0, on_again, m) < 0)
                log_error("… but there is no timer for that; the next start of the daemon does it");
}

void manager_on_boot(Manager *m) {
        int r;

        if (is_done(m))
                return;
        r = plan_all(m);
        if (r >= 0)
                r = FAULT_POINT("boot.planned", FAULT_FAILS, 0);
        if (r < 0)
                try_again(m, r);
        else
                set_done(m);
}
