/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vmm/cloud-hypervisor-plan.h"

#include "golden.h"

static int plan_for(const char *name, const LaunchParams *p, LaunchPlan **ret) {
        return cloud_hypervisor_plan(p, ret);
}

static void expect_refusal(const Definition *d, const char *prefix) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        golden_refused(cloud_hypervisor_check(d, "", &error), &error, prefix);
}

static void test_refusals(void) {
        Disk disks[30] = {};
        Filesystem fs = {};
        Network user = { .type = NETWORK_USER }, tap = { .type = NETWORK_TAP };
        Definition good = { .kernel = (char *) "/k", .cpus = 254, .memory = 8 << 20, .disks = disks, .n_disks = 29 }, d;

        is_int(cloud_hypervisor_check(&good, "", NULL), 0, "254 CPUs and 29 disks are fine");
        d = good;
        d.accel = ACCEL_TCG;
        expect_refusal(&d, "accel: cloud-hypervisor needs KVM");
        d = good;
        d.cpus = 255;
        expect_refusal(&d, "cpus: ");
        d = good;
        d.filesystems = &fs;
        d.n_filesystems = 1;
        expect_refusal(&d, "disks: ");
        d = good;
        d.networks = &user;
        d.n_networks = 1;
        expect_refusal(&d, "networks[0].type: ");
        d.networks = &tap;
        expect_refusal(&d, "networks[0].type: ");
        d = good;
        d.n_disks = 30;
        expect_refusal(&d, "disks: ");
        d.n_disks = 29;
        d.vsock = true;
        expect_refusal(&d, "disks: ");

        d = good;
        d.cmdline = (char *) " console=ttyS0 ~";
        is_int(cloud_hypervisor_check(&d, "", NULL), 0, "a command line in ASCII is fine");
        d.cmdline = (char *) "name=M\xc3\xbcller";
        expect_refusal(&d, "boot.cmdline: Cloud Hypervisor ");

        d = good;
        d.kernel = NULL;
        expect_refusal(&d, "boot.firmware: ");
        d.firmware = (char *) "uefi";
        expect_refusal(&d, "boot.firmware: ");
        d.firmware = (char *) "/CLOUDHV.fd";
        is_int(cloud_hypervisor_check(&d, "", NULL), 0, "a firmware of its own is fine");
}

/* What an old version can't be trusted with */
static void test_versions(void) {
        static const struct {
                const char *version;
                bool takes_disks;
        } table[] = {
                { "", true }, { "40.0.0", false }, { "50.2", false }, { "51.0.0", true }, { "53.0-12-gabcdef", true }, { "100.0.0", true },
        };
        Disk disk = { .name = (char *) "disk0", .path = (char *) "/d" };
        Definition without = { .kernel = (char *) "/k", .cpus = 1, .memory = 8 << 20 }, with = without;

        with.disks = &disk;
        with.n_disks = 1;
        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
                const char *version = table[i].version;

                is_int(cloud_hypervisor_check(&without, version, &error), 0, "'%s' is good without disks", version);
                if (table[i].takes_disks)
                        is_int(cloud_hypervisor_check(&with, version, &error), 0, "… and with one");
                else
                        golden_refused(cloud_hypervisor_check(&with, version, &error), &error, "disks: ");
        }
}

static void test_exit_cause(void) {
        VMMEvent (*cause)(int status, const char *output) = vmm_ops(BACKEND_CLOUD_HYPERVISOR)->exit_cause;

        ok(vmm_ops(BACKEND_CLOUD_HYPERVISOR) == &cloud_hypervisor_ops, "Cloud Hypervisor is there");
        is_int(cause(0, NULL), VMM_EVENT_EXITED, "status 0: in good order, and why it does not tell");
        is_int(cause(0, "cloud-hypervisor:   0.004s: <vcpu0> WARN:vmm/src/cpu.rs:268 -- Kernel lacks CONFIG_SCHED_CORE"),
               VMM_EVENT_EXITED, "… also after a warning");
        is_int(cause(0, "cloud-hypervisor:   0.061s: <vcpu0> ERROR:hypervisor/src/kvm/mod.rs:2531 -- Guest likely triple-faulted"),
               VMM_EVENT_EXITED, "… and after a triple fault, which was a reset");
        is_int(cause(0, "cloud-hypervisor:   7.1s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: VcpuRun(…)"),
               VMM_EVENT_FAILED, "… unless it says that KVM gave up");
        is_int(cause(0, "ERROR:vmm/src/cpu.rs -- vCPU thread panicked"), VMM_EVENT_FAILED, "… or a part of itself");
        is_int(cause(1 << 8, "Error: …"), _VMM_EVENT_MAX, "status 1: a crash");
        is_int(cause(9, ""), _VMM_EVENT_MAX, "killed: a crash");
}

int main(void) {
        golden_run(TEST_DIR "/golden/cloud-hypervisor", cloud_hypervisor_check, plan_for);
        test_refusals();
        test_versions();
        test_exit_cause();
        return done_testing();
}
