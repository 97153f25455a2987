/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/qemu-plan.h"

#include "tap.h"

/* Each NAME.json of the directory is a definition, NAME.argv beside it what QEMU gets, an argument a line, then the files.
 * Words in NAME: "nested", on a host that is a VM. UPDATE_GOLDEN=1 writes them anew, to be read before they are committed. */

#define DIRECTORY TEST_DIR "/golden/qemu/"

static char *format_plan(const LaunchPlan *p) {
        _cleanup_strv_free_ char **lines = NULL;

        STRV_FOREACH(s, p->argv)
                if (strv_extend(&lines, *s) < 0)
                        return NULL;
        for (size_t i = 0; i < p->n_fds; i++)
                if (p->fds[i].type == LAUNCH_FD_FILE &&
                    strv_extendf(&lines, "# %zu %s %s %s", VMM_FD_FIRST + i, p->fds[i].writable ? "rw" : "ro",
                                 p->fds[i].key, p->fds[i].path) < 0)
                        return NULL;
        if (strv_extend(&lines, "") < 0)
                return NULL;
        return strv_join(lines, "\n");
}

static char *plan_text(const Definition *d, bool nested) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        LaunchParams p = {
                .definition = d,
                .name = "web-1.example",
                .id = "6e1b1d5c-0d0f-4b5e-9a53-2a5c7f0f3a11",
                .cid = d->vsock ? 65540 : 0,
                .kvm = d->accel == ACCEL_KVM,
        };

        return qemu_plan_for(&p, nested, &plan) < 0 ? NULL : format_plan(plan);
}

static void compare(const char *name, const char *got) {
        _cleanup_free_ char *path = strjoinf(DIRECTORY "%s.argv", name), *want = NULL, *actual = NULL;

        if (getenv("UPDATE_GOLDEN") && write_file_atomic(path, got, false) < 0)
                abort();
        if (!ok(read_file_all(path, 1 << 20, &want, NULL) >= 0 && streq(got, want), "%s", name)) {
                actual = strjoinf("/tmp/%s.argv.got", name);
                (void) write_file_atomic(actual, got, false);
                printf("# diff %s %s\n", path, actual);
        }
}

static void test_one(const char *file) {
        _cleanup_free_ char *path = strjoinf(DIRECTORY "%s", file), *json = NULL, *text = NULL;
        _cleanup_free_ char *name = strndup(file, strlen(file) - strlen(".json"));
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(definition_freep) Definition *d = NULL;

        if (!ok(read_file_all(path, 1 << 20, &json, NULL) >= 0 && definition_parse(json, &d, &error) >= 0,
                "%s is a definition %s", file, strempty(error.message)))
                return;
        is_int((qemu_check)(d, &error), 0, "… that QEMU can do %s", strempty(error.message));
        text = plan_text(d, strstr(name, "nested") != NULL);
        if (ok(text != NULL, "… and plan"))
                compare(name, text);
}

static int is_json(const struct dirent *e) {
        return endswith(e->d_name, ".json");
}

static void expect_refusal(const Definition *d, const char *prefix) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        is_int((qemu_check)(d, &error), -EOPNOTSUPP, "refused: %s", prefix);
        is_str(error.name, VMUNIT_ERROR_NOT_SUPPORTED, "… by its name");
        ok(error.message && startswith(error.message, prefix), "… %s", strempty(error.message));
}

static void test_refusals(void) {
        Disk disks[30] = {};
        Filesystem fs = {};
        Network networks[30] = { { .type = NETWORK_USER }, { .type = NETWORK_TAP } };
        Definition good = { .cpus = 255, .memory = 8 << 20, .disks = disks, .n_disks = 28, .networks = networks, .n_networks = 1 };
        Definition d = good;

        is_int((qemu_check)(&good, NULL), 0, "255 CPUs and 29 devices are fine");
        d.cpus = 256;
        expect_refusal(&d, "cpus: ");
        d = good;
        d.filesystems = &fs;
        d.n_filesystems = 1;
        expect_refusal(&d, "filesystems: ");
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
        struct dirent **list;
        int n;

        n = scandir(DIRECTORY, &list, is_json, alphasort);
        ok(n > 0, "%d golden tests", n);
        for (int i = 0; i < n; i++) {
                test_one(list[i]->d_name);
                free(list[i]);
        }
        if (n >= 0)
                free(list);

        test_refusals();
        test_table();
        return done_testing();
}
