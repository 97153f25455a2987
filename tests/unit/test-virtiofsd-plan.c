/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>

#include "vmm/virtiofsd-plan.h"

#include "golden.h"

/* A file's name says the version: "c-7.2", "rust-1.13". The argument lists of all its file systems, one after the other. */
static int plan_for(const char *name, const LaunchParams *p, LaunchPlan **ret) {
        VirtiofsdVersion v = { .rust = startswith(name, "rust-") != NULL };
        _cleanup_(launch_plan_freep) LaunchPlan *plan = new0(LaunchPlan, 1);
        int r;

        if (!plan || sscanf(name, v.rust ? "rust-%u.%u" : "c-%u.%u", &v.major, &v.minor) != 2)
                return -EINVAL;
        for (size_t i = 0; i < p->definition->n_filesystems; i++) {
                _cleanup_strv_free_ char **argv = NULL;

                r = virtiofsd_plan(p->definition->filesystems + i, &v, 9, &argv, NULL);
                if (r < 0)
                        return r;
                r = golden_add(plan, argv);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(plan);
        return 0;
}

static void test_versions(void) {
        static const struct {
                const char *line;
                VirtiofsdVersion want;
        } good[] = {
                { "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", { false, 7, 2 } },
                { "virtiofsd version 6.0.0", { false, 6, 0 } },
                { "virtiofsd version 5.2", { false, 5, 2 } },
                { "virtiofsd 1.13.2", { true, 1, 13 } },
                { "virtiofsd 2.0", { true, 2, 0 } },
                { "virtiofsd 1.14.0-rc1", { true, 1, 14 } },
                { "virtiofsd backend 1.3.0", { true, 1, 3 } },
                { "virtiofsd 9999.9999", { true, 9999, 9999 } },
        };
        static const char *const bad[] = {
                "", "virtiofsd", "virtiofsd ", "virtiofsd version", "virtiofsd version ", "virtiofsd 1", "virtiofsd 1.", "virtiofsd .1",
                "virtiofsd v1.13", "virtiofsd -1.2", "virtiofsd 1.-2", "virtiofsd 1,13", "virtiofsd 10000.1", "virtiofsd 1.10000",
                "virtiofsd 99999999999999999999.1", "virtiofsd-rs 1.1", "QEMU emulator version 7.2.22", " virtiofsd 1.13.2",
                "VIRTIOFSD 1.13.2", "virtiofsd  1.13.2",
        };
        VirtiofsdVersion v;

        for (size_t i = 0; i < ELEMENTSOF(good); i++)
                ok(virtiofsd_parse_version(good[i].line, &v) && v.rust == good[i].want.rust && v.major == good[i].want.major &&
                   v.minor == good[i].want.minor, "%s", good[i].line);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                v = (VirtiofsdVersion) { .major = 77 };
                ok(!virtiofsd_parse_version(bad[i], &v) && v.major == 77, "none: \"%s\"", bad[i]);
        }
}

static void refused(VirtiofsdVersion v, bool posix_acl, const char *message) {
        Filesystem fs = { .tag = (char *) "t", .source = (char *) "/s", .xattr = posix_acl, .posix_acl = posix_acl };
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_strv_free_ char **argv = NULL;

        golden_refused(virtiofsd_plan(&fs, &v, 9, &argv, &error), &error, message);
        ok(!argv, "… and there is no argument list");
}

static void fine(VirtiofsdVersion v, bool posix_acl) {
        Filesystem fs = { .tag = (char *) "t", .source = (char *) "/s", .xattr = posix_acl, .posix_acl = posix_acl };
        _cleanup_strv_free_ char **argv = NULL;

        is_int(virtiofsd_plan(&fs, &v, 9, &argv, NULL), 0, "%s %u.%u will do", v.rust ? "Rust" : "C", v.major, v.minor);
        is_int(strv_contains(argv, "posix_acl") || strv_contains(argv, "--posix-acl"), posix_acl, "… with ACLs or without");
}

static void test_refusals(void) {
        refused((VirtiofsdVersion) { false, 5, 1 }, false, "virtiofsd 5.1 is too old for that, it takes 5.2 or later");
        refused((VirtiofsdVersion) { false, 6, 1 }, true, "posixAcl: virtiofsd 6.1 is too old for that, it takes 6.2 or later");
        refused((VirtiofsdVersion) { false, 5, 9 }, true, "posixAcl: ");
        refused((VirtiofsdVersion) { true, 0, 9 }, true, "virtiofsd 0.9 is too old for that, it takes 1.0 or later");
        refused((VirtiofsdVersion) { true, 1, 1 }, true, "posixAcl: virtiofsd 1.1 is too old for that, it takes 1.2 or later");
        fine((VirtiofsdVersion) { false, 5, 2 }, false);
        fine((VirtiofsdVersion) { false, 6, 2 }, true);
        fine((VirtiofsdVersion) { false, 7, 0 }, true);
        fine((VirtiofsdVersion) { true, 1, 0 }, false);
        fine((VirtiofsdVersion) { true, 1, 2 }, true);
        fine((VirtiofsdVersion) { true, 2, 0 }, true);
}

int main(void) {
        golden_run(TEST_DIR "/golden/virtiofsd", golden_no_check, plan_for);
        test_versions();
        test_refusals();
        return done_testing();
}
