/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vmm/firecracker-plan.h"

#include "golden.h"

static int plan_for(const char *name, const LaunchParams *p, LaunchPlan **ret) {
        return firecracker_plan(p, ret);
}

static void expect_refusal(const Definition *d, const char *prefix) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        golden_refused(firecracker_check(d, "", &error), &error, prefix);
}

static void test_refusals(void) {
        Disk disks[19] = {};
        Filesystem fs = {};
        Network user = { .type = NETWORK_USER }, tap = { .type = NETWORK_TAP };
        Definition good = { .kernel = (char *) "/k", .cpus = 32, .memory = 8 << 20, .disks = disks, .n_disks = 18 }, d;

        is_int(firecracker_check(&good, "", NULL), 0, "32 CPUs and 18 disks are fine");
        d = good;
        d.accel = ACCEL_KVM;
        is_int(firecracker_check(&d, "", NULL), 0, "… with KVM by name");
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
        is_int(firecracker_check(&d, "", NULL), 0, "17 disks and a vsock are fine");
        d = good;
        d.n_disks = 19;
        expect_refusal(&d, "disks: ");
        disks[17].format = DISK_QCOW2;
        expect_refusal(&good, "disks[17].format: firecracker ");
}

/* It has to fit in 2047 bytes with what Firecracker appends to it; the figures were tried with 1.12.1. */
static void test_cmdline(void) {
        static const struct {
                size_t n_disks;
                bool vsock;
                const char *version;
                size_t max;
        } table[] = {
                { 0,  false, "1.12.1", 2047 }, { 1,  false, "1.12.1", 2012 }, { 4,  false, "1.12.1", 1907 }, { 4, true,  "1.12.1", 1872 },
                { 6,  false, "1.12.1", 1836 }, { 17, true,  "1.12.1", 1404 }, { 18, false, "1.7",    1404 }, { 0, true,  "",       2012 },
                { 0,  false, "1.13.0", 2039 }, { 1,  false, "1.17.0", 2004 }, /* pci=off is appended as well */
        };
        char line[2049];

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
                Disk disks[18] = {};
                Definition d = { .kernel = (char *) "/k", .cpus = 1, .memory = 8 << 20, .cmdline = line, .disks = disks,
                                 .n_disks = table[i].n_disks, .vsock = table[i].vsock };

                memset(line, 'a', sizeof(line));
                line[table[i].max] = 0;
                is_int(firecracker_check(&d, table[i].version, NULL), 0, "%zu bytes are fine with %zu disks%s and version %s", table[i].max,
                       table[i].n_disks, table[i].vsock ? ", a vsock" : "", table[i].version);
                line[table[i].max] = 'a';
                line[table[i].max + 1] = 0;
                golden_refused(firecracker_check(&d, table[i].version, &error), &error, "boot.cmdline: firecracker ");
        }
}

static void test_kernels(void) {
        static const struct {
                const char *magic;
                size_t size;
                const char *version;
                bool good;
                const char *what;
        } table[] = {
                { "HdrS", 0x206, "1.12.1", false, "a bzImage" },
                { "HdrS", 0x206, "",       false, "… for a version that is not known" },
                { "HdrS", 0x206, "1.16.3", false, "… for the last version that can't" },
                { "HdrS", 0x206, "1.17.0", true,  "… for the first one that can" },
                { "HdrS", 0x206, "2.0",    true,  "… for a later one" },
        };
        Definition d = { .kernel = (char *) "/boot/vmlinuz", .cpus = 1, .memory = 8 << 20 };

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
                char head[0x206] = "MZ";
                int r;

                memcpy(head + 0x202, table[i].magic, 4);
                r = firecracker_check_kernel(&d, table[i].version, &(FileHead) { head, table[i].size }, &error);
                if (table[i].good)
                        is_int(r, 0, "%s is fine", table[i].what);
                else
                        golden_refused(r, &error, "boot.kernel: /boot/vmlinuz is a compressed kernel (bzImage)");
        }
}

static void test_no_kernels(void) {
        static const struct {
                const char *head;
                size_t size;
                bool good;
                const char *what;
        } table[] = {
                { "\177ELF\2\1\1", 520, true,  "ELF, 64 bits" },
                { "\177ELF\2\1\1", 64,  true,  "a short one" },
                { "\177ELF\1\1\1", 520, false, "ELF, 32 bits" },
                { "\177ELF",        4,   false, "no more than its magic" },
                { "\037\213\010",  520, false, "something compressed" },
                { "",               0,   true,  "an empty file, for it may be written later," },
        };
        Definition d = { .kernel = (char *) "/k", .cpus = 1, .memory = 8 << 20 };

        for (size_t i = 0; i < 2 * ELEMENTSOF(table); i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
                const char *version = i % 2 ? "1.12.1" : "1.17.0";
                char head[520] = {};
                int r;

                memcpy(head, table[i / 2].head, strlen(table[i / 2].head));
                r = firecracker_check_kernel(&d, version, &(FileHead) { head, table[i / 2].size }, &error);
                if (table[i / 2].good)
                        is_int(r, 0, "%s is fine", table[i / 2].what);
                else
                        golden_refused(r, &error, "boot.kernel: /k is no kernel");
        }
}

/* Firecracker locks nothing by itself. */
static void test_locks(void) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        Disk disks[] = { { .name = (char *) "a", .path = (char *) "/a" }, { .name = (char *) "b", .path = (char *) "/b", .readonly = true } };
        Definition d = { .kernel = (char *) "/k", .initramfs = (char *) "/i", .cpus = 1, .memory = 8 << 20, .disks = disks, .n_disks = 2 };

        if (!ok(firecracker_plan(&(LaunchParams) { .definition = &d, .id = "i" }, &plan) >= 0, "a plan"))
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
        is_int(cause(0, "… [id:fc_vcpu 0] Received KVM_EXIT_INTERNAL_ERROR signal"), VMM_EVENT_FAILED, "… which then may be 0 as well");
        is_int(cause(1 << 8, "… [id:fc_vcpu 0] Received KVM_EXIT_FAIL_ENTRY signal"), VMM_EVENT_FAILED, "… or be all that it says");
        is_int(cause(1 << 8, "RunWithApiError error: Failed to open the API socket"), _VMM_EVENT_MAX, "… else a crash");
        is_int(cause(1 << 8, NULL), _VMM_EVENT_MAX, "… also without a word");
        is_int(cause(148 << 8, "Shutting down VM after intercepting a bad syscall"), _VMM_EVENT_MAX, "a bad syscall: a crash");
        is_int(cause(9, "MicroVM stopped with an error"), _VMM_EVENT_MAX, "killed: a crash");
}

int main(void) {
        golden_run(TEST_DIR "/golden/firecracker", firecracker_check, plan_for);
        test_refusals();
        test_cmdline();
        test_kernels();
        test_no_kernels();
        test_locks();
        test_exit_cause();
        return done_testing();
}
