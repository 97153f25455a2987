/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <syslog.h>

#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "tap.h"

#define K(n) ((uint64_t) (n) << 10)
#define M(n) ((uint64_t) (n) << 20)
#define G(n) ((uint64_t) (n) << 30)
#define UNTOUCHED UINT64_C(0xdeadbeef)

typedef struct Case {
        const char *s;
        int result;
        uint64_t value;
} Case;

static void run(const char *what, int (*parse)(const char *, uint64_t *), const Case *cases, size_t n) {
        for (size_t i = 0; i < n; i++) {
                uint64_t v = UNTOUCHED;
                int r = parse(cases[i].s, &v);

                ok(r == cases[i].result && v == (r < 0 ? UNTOUCHED : cases[i].value), "%s \"%s\" gives %d, %llu", what,
                   cases[i].s, r, (unsigned long long) v);
        }
}

static const Case sizes[] = {
        { "0", 0, 0 },
        { "1024", 0, 1024 },
        { "1024B", 0, 1024 },
        { "512M", 0, M(512) },
        { "512 M", 0, M(512) },
        { "1.5G", 0, M(1536) },
        { "0.5K", 0, 512 },
        { "0.3K", 0, 307 },
        { "1.000000000000000000000000000001K", 0, 1024 },
        { "3T", 0, G(3072) },
        { "15E", 0, UINT64_C(15) << 60 },
        { "16E", -ERANGE },
        { "15.99999999999999999999E", 0, UINT64_MAX - 1 },
        { "18446744073709551615", 0, UINT64_MAX },
        { "18446744073709551616", -ERANGE },
        { "", -EINVAL },
        { " 1", -EINVAL },
        { "1 ", -EINVAL },
        { "-1", -EINVAL },
        { "+1", -EINVAL },
        { "M", -EINVAL },
        { "1.M", -EINVAL },
        { ".5M", -EINVAL },
        { "1k", -EINVAL },
        { "1MB", -EINVAL },
        { "1MiB", -EINVAL },
        { "1G 5M", -EINVAL },
        { "1M5", -EINVAL },
        { "0x10", -EINVAL },
        { "50%", -EINVAL },
        { "infinity", -EINVAL },
};

static const Case times[] = {
        { "0", 0, 0 },
        { "5", 0, 5 * USEC_PER_SEC },
        { "20s", 0, 20 * USEC_PER_SEC },
        { " 20 s ", 0, 20 * USEC_PER_SEC },
        { "1min 30s", 0, 90 * USEC_PER_SEC },
        { "1min30s", 0, 90 * USEC_PER_SEC },
        { "2h", 0, 7200 * USEC_PER_SEC },
        { "500ms", 0, 500000 },
        { "7us", 0, 7 },
        { "7\xc2\xb5s", 0, 7 },
        { "7\xce\xbcs", 0, 7 },
        { "2.5s", 0, 2500000 },
        { "0.0000001s", 0, 0 },
        { "1d 1w", 0, 8 * 86400 * USEC_PER_SEC },
        { "1M", 0, 2629800 * USEC_PER_SEC },
        { "1y", 0, 31557600 * USEC_PER_SEC },
        { "1 2", 0, 3 * USEC_PER_SEC },
        { "infinity", 0, USEC_INFINITY },
        { " infinity ", 0, USEC_INFINITY },
        { "infinitys", -EINVAL },
        { "infinity 1s", -EINVAL },
        { "", -EINVAL },
        { " ", -EINVAL },
        { "s", -EINVAL },
        { "-1s", -EINVAL },
        { "1x", -EINVAL },
        { "1S", -EINVAL },
        { "1.s", -EINVAL },
        { "1s,2s", -EINVAL },
        { "600000y", -ERANGE },
        { "18446744073709551615us", -ERANGE },
        { "18446744073709551614us", 0, UINT64_MAX - 1 },
        { "18446744073709551614us 1us", -ERANGE },
};

static const Case numbers[] = {
        { "0", 0, 0 },
        { "0010", 0, 10 },
        { "18446744073709551615", 0, UINT64_MAX },
        { "18446744073709551616", -ERANGE },
        { "99999999999999999999999", -ERANGE },
        { "", -EINVAL },
        { "-0", -EINVAL },
        { "+1", -EINVAL },
        { " 1", -EINVAL },
        { "1 ", -EINVAL },
        { "0x1", -EINVAL },
        { "1.0", -EINVAL },
};

static const Case percents[] = {
        { "0%", 0, 0 },
        { "150%", 0, 15000 },
        { "12.5%", 0, 1250 },
        { "12.55%", 0, 1255 },
        { "0.01%", 0, 1 },
        { "12.555%", -EINVAL },
        { "12.%", -EINVAL },
        { "150", -EINVAL },
        { "150 %", -EINVAL },
        { "%", -EINVAL },
        { "-1%", -EINVAL },
        { "150%%", -EINVAL },
        { "184467440737095517%", -ERANGE },
};

static void test_u32(void) {
        uint32_t v = 7;

        check(parse_u32("4294967295", &v) == 0 && v == UINT32_MAX);
        check(parse_u32("4294967296", &v) == -ERANGE && v == UINT32_MAX);
        check(parse_u32("x", &v) == -EINVAL);
}

static void test_boolean(void) {
        static const char *const yes[] = { "yes", "YES", "true", "on", "1", "y", "t", "True" };
        static const char *const no[] = { "no", "NO", "false", "off", "0", "n", "f", "False" };
        static const char *const bad[] = { "", " yes", "yes ", "2", "ja", "ye" };

        for (size_t i = 0; i < ELEMENTSOF(yes); i++)
                ok(parse_boolean(yes[i]) == 1, "%s is true", yes[i]);
        for (size_t i = 0; i < ELEMENTSOF(no); i++)
                ok(parse_boolean(no[i]) == 0, "%s is false", no[i]);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                ok(parse_boolean(bad[i]) == -EINVAL, "\"%s\" is no boolean", bad[i]);
}

static void test_log_level(void) {
        is_int(parse_log_level("emerg"), LOG_EMERG, "emerg");
        is_int(parse_log_level("warning"), LOG_WARNING, "warning");
        is_int(parse_log_level("debug"), LOG_DEBUG, "debug");
        is_int(parse_log_level("3"), LOG_ERR, "3");
        is_int(parse_log_level("8"), -ERANGE, "8");
        is_int(parse_log_level("warn"), -EINVAL, "warn");
        is_int(parse_log_level(""), -EINVAL, "nothing");
}

static void test_format(void) {
        static const struct {
                uint64_t v;
                const char *size, *sec;
        } cases[] = {
                { 0, "0", "0" },
                { 1, "1", "1us" },
                { 1000, "1000", "1ms" },
                { 1024, "1K", "1ms 24us" },
                { M(1536), "1536M", "26min 50s 612ms 736us" },
                { G(1), "1G", "17min 53s 741ms 824us" },
                { 20 * USEC_PER_SEC, "20000000", "20s" },
                { 90 * USEC_PER_SEC, "90000000", "1min 30s" },
                { 86400 * USEC_PER_SEC, "84375000K", "1d" },
                { UINT64_MAX - 1, "18446744073709551614", "213503982d 8h 1min 49s 551ms 614us" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *size = format_size(cases[i].v), *sec = format_sec(cases[i].v);
                uint64_t v = 0;

                ok(parse_size(size, &v) == 0 && v == cases[i].v, "%s is read back", size);
                ok(parse_sec(sec, &v) == 0 && v == cases[i].v, "%s is read back", sec);
                is_str(size, cases[i].size, "the size %s", cases[i].size);
                is_str(sec, cases[i].sec, "the time %s", cases[i].sec);
        }
        _cleanup_free_ char *inf = format_sec(USEC_INFINITY);
        is_str(inf, "infinity", "for ever");
}

int main(void) {
        run("size", parse_size, sizes, ELEMENTSOF(sizes));
        run("time", parse_sec, times, ELEMENTSOF(times));
        run("number", parse_u64, numbers, ELEMENTSOF(numbers));
        run("percentage", parse_percent, percents, ELEMENTSOF(percents));
        test_u32();
        test_boolean();
        test_log_level();
        test_format();
        return done_testing();
}
