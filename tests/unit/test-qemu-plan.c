/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vmm/qemu-plan.h"

#include "golden.h"

/* "nested" in a name: on a host that is a VM. */
static int plan_for(const char *name, const LaunchParams *p, LaunchPlan **ret) {
        return qemu_plan_for(p, strstr(name, "nested") != NULL, ret);
}

static void expect_refusal(const Definition *d, const char *prefix) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        golden_refused(qemu_check(d, "", &error), &error, prefix);
}

static void test_refusals(void) {
        Disk disks[30] = {};
        Filesystem fs = {};
        Network networks[30] = { { .type = NETWORK_USER }, { .type = NETWORK_TAP } };
        Definition good = { .cpus = 255, .memory = 8 << 20, .disks = disks, .n_disks = 28, .networks = networks, .n_networks = 1 };
        Definition d = good;

        is_int(qemu_check(&good, "", NULL), 0, "255 CPUs and 29 devices are fine");
        d.cpus = 256;
        expect_refusal(&d, "cpus: ");
        d = good;
        d.filesystems = &fs;
        d.n_filesystems = 1;
        expect_refusal(&d, "disks: ");
        d = good;
        d.vsock = true;
        expect_refusal(&d, "disks: "); /* a vsock is a device, too */
        d = good;
        d.n_disks = 27;
        d.n_networks = 2;
        expect_refusal(&d, "networks[1].type: ");
        d = good;
        d.n_disks = 29;
        expect_refusal(&d, "disks: ");
        d = good;
        d.n_disks = 0;
        d.n_networks = 30;
        expect_refusal(&d, "networks: ");
}

static void test_table(void) {
        const VMMOps *ops = vmm_ops(BACKEND_QEMU);

        ok(ops == &qemu_ops, "QEMU is there");
        ok(!vmm_ops(BACKEND_AUTO) && !vmm_ops(_BACKEND_MAX), "what is no back end is none");
        is_int(ops->exit_cause(0, ""), VMM_EVENT_GUEST_SHUTDOWN, "status 0: the guest has powered off");
        is_int(ops->exit_cause(0, "qemu: terminating on signal 15 from pid 1"), _VMM_EVENT_MAX, "… unless a signal is told");
        is_int(ops->exit_cause(1 << 8, NULL), VMM_EVENT_GUEST_PANICKED, "status 1 without a word: a panic");
        is_int(ops->exit_cause(1 << 8, "qemu: oh"), _VMM_EVENT_MAX, "… with words: a crash");
        is_int(ops->exit_cause(9, ""), _VMM_EVENT_MAX, "killed: a crash");
}

int main(void) {
        golden_run(TEST_DIR "/golden/qemu", qemu_check, plan_for);
        test_refusals();
        test_table();
        return done_testing();
}
