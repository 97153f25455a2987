/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>
#include <stdio.h>

#include "vmm/passt-plan.h"

#include "golden.h"

/* A file's name says the version, a day or "unknown". The argument lists of all its networks, one after the other. */
static int plan_for(const char *name, const LaunchParams *p, LaunchPlan **ret) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = new0(LaunchPlan, 1);
        unsigned version = 0;

        if (!plan || (!streq(name, "unknown") && sscanf(name, "%u", &version) != 1))
                return -EINVAL;
        for (size_t i = 0; i < p->definition->n_networks; i++) {
                _cleanup_strv_free_ char **argv = NULL;
                int r;

                r = passt_plan(p->definition->networks + i, version, 9, &argv);
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
                unsigned want;
        } good[] = {
                { "passt unknown version", 0 },
                { "passt 0.0~git20230309.7c7625d-1", 20230309 },
                { "passt 0.0~git20250503.587980c-2", 20250503 },
                { "passt 0.0~git20240220.1e6f92b-1ubuntu1", 20240220 },
                { "passt 2024_02_20.1e6f92b", 20240220 },
                { "passt 0^20240726.g57a21d2-1.fc40.x86_64", 20240726 },
                { "passt 2025_12_01.abcdef0-3-g1234567", 20251201 },
                { "passt ", 0 },
                { "passt git1", 0 },
                { "passt 1.0", 0 },
        };
        static const char *const bad[] = { "", "passt", "pasta 2024_02_20.1e6f92b", " passt 1", "QEMU emulator version 7.2.22" };
        unsigned v;

        for (size_t i = 0; i < ELEMENTSOF(good); i++) {
                v = 77;
                ok(passt_parse_version(good[i].line, &v), "%s", good[i].line);
                is_int(v, good[i].want, "… its day");
        }
        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                v = 77;
                ok(!passt_parse_version(bad[i], &v) && v == 77, "none: \"%s\"", bad[i]);
        }
}

static void test_refusals(void) {
        Forward f[] = {
                { (char *) "127.0.0.1", PROTOCOL_TCP, 2222, 22 },
                { (char *) "127.0.0.1", PROTOCOL_UDP, 2222, 53 },
                { (char *) "127.0.0.2", PROTOCOL_TCP, 2223, 22 },
        };
        Network n = { .name = (char *) "net0", .forwards = f, .n_forwards = 3 };
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        is_int(passt_check(&n, 0, NULL), 0, "one port for each protocol, two into one by TCP");
        ok(!passt_has_low_ports(&n), "nothing below 1024");
        f[2].host = 2222;
        golden_refused(passt_check(&n, PASST_NEWEST, &error), &error, "forward[2].host: ");
        f[2] = (Forward) { (char *) "127.0.0.1", PROTOCOL_UDP, 1023, 53 };
        ok(passt_has_low_ports(&n), "one below 1024");
        is_int(passt_check(&n, 20240726, NULL), 0, "two into one by UDP");
        sd_bus_error_free(&error);
        golden_refused(passt_check(&n, 20240725, &error), &error, "forward[2].guest: ");
}

static void resolves(const char *host, const char *want, const char *want_resolver) {
        _cleanup_free_ char *text = NULL;
        uint32_t resolver = 77;
        struct in_addr a = {};

        if (want_resolver && inet_pton(AF_INET, want_resolver, &a) != 1)
                abort();
        is_int(passt_resolv_conf(host, &text, &resolver), 0, "resolv.conf");
        is_str(text, want, "… as passt reads it");
        is_int(resolver, a.s_addr, "… with what it may ask on this host");
}

static void test_resolv_conf(void) {
        resolves("", "", NULL);
        resolves("# nameserver 192.0.2.1\nsearch example.net\noptions edns0\nnameserver\nnameserver x\nnameservers 192.0.2.1\n", "", NULL);
        resolves("nameserver 192.0.2.1\n", "nameserver 192.0.2.1\n", NULL);
        resolves("nameserver\t192.0.2.1 # that one\r\nnameserver   198.51.100.1", "nameserver 192.0.2.1\nnameserver 198.51.100.1\n", NULL);
        resolves("nameserver 127.0.0.53\n", "nameserver 127.0.0.53\nnameserver 10.0.2.3\n", "127.0.0.53");
        resolves("nameserver 0.0.0.0\n", "nameserver 127.0.0.1\nnameserver 10.0.2.3\n", "127.0.0.1");
        resolves("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "127.0.0.1");
        resolves("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", "nameserver 192.0.2.1\n", NULL);
        resolves("nameserver ::1\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\n", "nameserver 192.0.2.1\n", NULL);
        resolves("nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
                 "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n", NULL);
        resolves("nameserver 192.0.2.1nameserver 192.0.2.2\nnameserver 1234567890123456789\n", "", NULL);
}

int main(void) {
        golden_run(TEST_DIR "/golden/passt", golden_no_check, plan_for);
        test_versions();
        test_refusals();
        test_resolv_conf();
        return done_testing();
}
