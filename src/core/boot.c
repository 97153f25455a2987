/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "core/vm-private.h"

/* What is to run after a boot of the host: OnBoot= says which VMs, autostartPriority in which order. Each start is planned in the VM's
 * record first, as a restart policy's is, so a daemon that dies half way forgets none; only then the boot is done with. */

#define LAST_BOOT "/var/lib/vmunit/last-boot"

static bool is_wanted(const VM *vm) {
        OnBoot on = vm->manager->config->on_boot;

        if (vm->rec.state != VM_STOPPED && (vm->rec.state != VM_ERROR || vm_is_alive(vm)))
                return false;
        if (on == ON_BOOT_NOTHING || !vm->loaded)
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

int manager_on_boot(Manager *m) {
        _cleanup_free_ char *last = NULL;
        int r;

        r = read_file_all(LAST_BOOT, 64, &last, NULL);
        if (r >= 0 && startswith(last, m->boot_id))
                return 0;
        if (r < 0 && r != -ENOENT && r != -E2BIG)
                return r;

        r = plan_all(m);
        if (r >= 0)
                r = FAULT_POINT("boot.planned", FAULT_FAILS, 0);
        if (r < 0)
                return r;
        return write_file_atomic(LAST_BOOT, m->boot_id, true);
}
