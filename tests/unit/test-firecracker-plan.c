/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vmm/firecracker-plan.h"

#include "golden.h"

static int plan_for(const char *name, const LaunchParams *p, LaunchPlan **ret) {
        return firecracker_plan(p, ret, NULL);
}

static void expect_refusal(const Definition *d, const char *prefix) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        golden_refused(firecracker_check(d, &error), &error, prefix);
}

static void test_refusals(void) {
        Disk disks[19] = {};
        Filesystem fs = {};
        Network user = { .type = NETWORK_USER }, tap = { .type = NETWORK_TAP };
        Definition good = { .kernel = (char *) "/k", .cpus = 32, .memory = 8 << 20, .disks = disks, .n_disks = 18 }, d;

        is_int(firecracker_check(&good, NULL), 0, "32 CPUs and 18 disks are fine");
        d = good;
        d.accel = ACCEL_KVM;
        is_int(firecracker_check(&d, NULL), 0, "… with KVM by name");
        d.accel = ACCEL_TCG;
        expect_refusal(&d, "accel: firecracker needs KVM");
        d = good;
        d.cpus = 33;
        expect_refusal(&d, "cpus: ");
        d = good;
        d.kernel = NULL;
        d.firmware = (char *) "bios";
        expect_refusal(&d, "boot.firmware: ");
        d = good;
        d.filesystems = &fs;
        d.n_filesystems = 1;
        expect_refusal(&d, "filesystems: firecracker has no shared folders");
        d = good;
        d.networks = &user;
        d.n_networks = 1;
        expect_refusal(&d, "networks[0].type: ");
        d.networks = &tap;
        expect_refusal(&d, "networks[0].type: ");
        d = good;
        d.vsock = true;
        expect_refusal(&d, "disks: ");
        d.n_disks = 17;
        is_int(firecracker_check(&d, NULL), 0, "17 disks and a vsock are fine");
        d = good;
        d.n_disks = 19;
        expect_refusal(&d, "disks: ");
        disks[17].format = DISK_QCOW2;
        expect_refusal(&good, "disks[17].format: firecracker ");
}

/* Firecracker locks nothing by itself. */
static void test_locks(void) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        Disk disks[] = { { .name = (char *) "a", .path = (char *) "/a" }, { .name = (char *) "b", .path = (char *) "/b", .readonly = true } };
        Definition d = { .kernel = (char *) "/k", .initramfs = (char *) "/i", .cpus = 1, .memory = 8 << 20, .disks = disks, .n_disks = 2 };

        if (!ok(firecracker_plan(&(LaunchParams) { .definition = &d, .id = "i", .run_dir = "/r" }, &plan, NULL) >= 0, "a plan"))
                return;
        for (size_t i = 0; i < plan->n_fds; i++)
                if (plan->fds[i].type == LAUNCH_FD_FILE)
                        is_int(plan->fds[i].lock, startswith(plan->fds[i].key, "disks") != NULL, "%s", plan->fds[i].key);
}

static void test_exit_cause(void) {
        VMMEvent (*cause)(int status, const char *output) = firecracker_ops.exit_cause;

        ok(vmm_ops(BACKEND_FIRECRACKER) == &firecracker_ops, "Firecracker is there");
        is_int(cause(0, NULL), VMM_EVENT_GUEST_RESET, "status 0: the guest has reset");
        is_int(cause(1 << 8, "… [id:main] RunWithApiError error: MicroVM stopped with an error: GenericError"), VMM_EVENT_FAILED,
               "status 1: KVM gave up, if it says so");
        is_int(cause(1 << 8, "RunWithApiError error: Failed to open the API socket"), _VMM_EVENT_MAX, "… else a crash");
        is_int(cause(1 << 8, NULL), _VMM_EVENT_MAX, "… also without a word");
        is_int(cause(148 << 8, "Shutting down VM after intercepting a bad syscall"), _VMM_EVENT_MAX, "a bad syscall: a crash");
        is_int(cause(9, "MicroVM stopped with an error"), _VMM_EVENT_MAX, "killed: a crash");
}

int main(void) {
        golden_run(TEST_DIR "/golden/firecracker", firecracker_check, plan_for);
        test_refusals();
        test_locks();
        test_exit_cause();
        return done_testing();
}
