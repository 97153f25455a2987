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

/* The arguments of the kind, a line each */
static char *arguments(const LaunchPlan *p, const char *option) {
        _cleanup_strv_free_ char **found = NULL;

        for (char **a = p->argv; a[0] && a[1]; a++)
                if (streq(a[0], option) && strv_extend(&found, a[1]) < 0)
                        return NULL;
        return strv_join(found, "\n");
}

/* What an image rests on comes before it, and the last rests on nothing, whatever its header says; new fds come behind all others. */
static void test_images(void) {
        Disk disks[] = {
                { .name = (char *) "root", .path = (char *) "/a/top", .format = DISK_QCOW2 },
                { .name = (char *) "data", .path = (char *) "/dev/vg/data", .readonly = true },
                { .name = (char *) "more", .path = (char *) "/b/top", .format = DISK_QCOW2, .readonly = true },
        };
        Filesystem fs = { .tag = (char *) "tag", .source = (char *) "/srv" };
        Definition d = { .cpus = 1, .memory = 32 << 20, .kernel = (char *) "/k", .disks = disks, .n_disks = 3, .filesystems = &fs, .n_filesystems = 1 };
        Image root[] = {
                { .path = (char *) "/a/data", .is_data = true },
                { .path = (char *) "/a/middle", .format = DISK_QCOW2 },
                { .path = (char *) "/dev/vg/base", .is_block = true },
        };
        Image more[] = { { .path = (char *) "/b/data", .is_data = true } };
        DiskFiles of_root = { .images = root, .n_images = 3 }, of_data = { .is_block = true }, of_more = { .images = more, .n_images = 1 };
        DiskFiles *files[] = { &of_root, &of_data, &of_more };
        LaunchParams p = { .definition = &d, .name = "web", .id = "6e1b1d5c-0d0f-4b5e-9a53-2a5c7f0f3a11", .files = files };
        _cleanup_(launch_plan_freep) LaunchPlan *before = NULL, *plan = NULL;
        _cleanup_free_ char *got = NULL;

        is_int(plan_for("", &p, &plan), 0, "a plan with images");
        p.files = NULL;
        is_int(plan_for("", &p, &before), 0, "… and one when they are not known");
        got = arguments(plan, "-blockdev");
        is_str(got,
               "{\"driver\":\"host_device\",\"node-name\":\"disk-root-3-file\",\"filename\":\"/dev/fdset/11\",\"read-only\":true,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"raw\",\"node-name\":\"disk-root-3\",\"read-only\":true,\"discard\":\"unmap\",\"file\":\"disk-root-3-file\"}\n"
               "{\"driver\":\"file\",\"node-name\":\"disk-root-2-file\",\"filename\":\"/dev/fdset/10\",\"read-only\":true,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"qcow2\",\"node-name\":\"disk-root-2\",\"read-only\":true,\"discard\":\"unmap\",\"file\":\"disk-root-2-file\","
               "\"backing\":\"disk-root-3\"}\n"
               "{\"driver\":\"file\",\"node-name\":\"disk-root-1-file\",\"filename\":\"/dev/fdset/9\",\"read-only\":false,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"file\",\"node-name\":\"disk-root-file\",\"filename\":\"/dev/fdset/5\",\"read-only\":false,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"qcow2\",\"node-name\":\"disk-root\",\"read-only\":false,\"discard\":\"unmap\",\"file\":\"disk-root-file\","
               "\"data-file\":\"disk-root-1-file\",\"backing\":\"disk-root-2\"}\n"
               "{\"driver\":\"host_device\",\"node-name\":\"disk-data-file\",\"filename\":\"/dev/fdset/6\",\"read-only\":true,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"raw\",\"node-name\":\"disk-data\",\"read-only\":true,\"discard\":\"unmap\",\"file\":\"disk-data-file\"}\n"
               "{\"driver\":\"file\",\"node-name\":\"disk-more-1-file\",\"filename\":\"/dev/fdset/12\",\"read-only\":true,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"file\",\"node-name\":\"disk-more-file\",\"filename\":\"/dev/fdset/7\",\"read-only\":true,\"discard\":\"unmap\"}\n"
               "{\"driver\":\"qcow2\",\"node-name\":\"disk-more\",\"read-only\":true,\"discard\":\"unmap\",\"file\":\"disk-more-file\","
               "\"data-file\":\"disk-more-1-file\",\"backing\":null}", "its nodes");
        is_int(before->n_fds, 6, "API, kernel, disks, share");
        is_int(plan->n_fds, 10, "… and the images");
        for (size_t i = 0; i < before->n_fds; i++)
                ok(before->fds[i].type == plan->fds[i].type && streq_ptr(before->fds[i].path, plan->fds[i].path), "fd %zu stays what it is", i);
        is_str(plan->fds[6].path, "/a/data", "the first image");
        ok(plan->fds[6].writable && !plan->fds[7].writable && !plan->fds[9].writable, "the data of a disk that is written to alone is written to");
        is_str(plan->fds[9].path, "/b/data", "the last");
}

int main(void) {
        golden_run(TEST_DIR "/golden/qemu", qemu_check, plan_for);
        test_refusals();
        test_images();
        test_table();
        return done_testing();
}
