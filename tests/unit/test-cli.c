/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/socket.h>
#include <systemd/sd-bus.h>

#include "basic/string-util.h"
#include "cli/cli-args.h"
#include "cli/cli-console.h"
#include "cli/cli-create.h"
#include "cli/cli-error.h"
#include "cli/cli-format.h"
#include "cli/cli-json.h"
#include "cli/cli-show.h"
#include "cli/cli-stop-all.h"
#include "tap.h"

static int parse(Args *a, char **argv) {
        return args_parse((int) strv_length(argv), argv, a);
}
#define W(s) ((char *) s)

static void test_args_good(void) {
        char *stop[] = { W("vmunit"), W("--timeout=1min"), W("stop"), W("a"), W("--no-block"), W("b"), NULL };
        char *log[] = { W("vmunit"), W("log"), W("web"), W("-n"), W("64K"), NULL };
        char *events[] = { W("vmunit"), W("events"), W("-n7"), NULL };
        char *start[] = { W("vmunit"), W("start"), W("--"), W("--web"), NULL };
        _cleanup_(args_done) Args a = {}, b = {}, c = {}, d = {};

        is_int(parse(&a, stop), 0, "options stand anywhere");
        is_int(a.verb, VERB_STOP, "verb");
        is_int(a.n_names, 2, "two names");
        is_str(a.names[1], "b", "second name");
        check(a.no_block && a.timeout_set);
        is_int(a.timeout_usec, 60 * USEC_PER_SEC, "time-out");

        is_int(parse(&b, log), 0, "log");
        is_int(b.number, 65536, "-n of log is a size");
        is_int(parse(&c, events), 0, "events");
        is_int(c.number, 7, "-n of events is a number");
        is_int(parse(&d, start), 0, "-- ends the options");
        is_str(d.names[0], "--web", "name behind --");
}

static void test_args_bad(void) {
        static char *const lines[][6] = {
                { W("vmunit"), NULL },
                { W("vmunit"), W("strat"), W("a"), NULL },
                { W("vmunit"), W("start"), NULL },
                { W("vmunit"), W("list"), W("a"), NULL },
                { W("vmunit"), W("show"), W("a"), W("b"), NULL },
                { W("vmunit"), W("create"), W("a"), W("b"), W("c"), NULL },
                { W("vmunit"), W("start"), W("a"), W("--force"), NULL },
                { W("vmunit"), W("start"), W("a"), W("--cpus=1"), NULL },
                { W("vmunit"), W("list"), W("--jsno"), NULL },
                { W("vmunit"), W("list"), W("--json=1"), NULL },
                { W("vmunit"), W("list"), W("-x"), NULL },
                { W("vmunit"), W("log"), W("a"), W("-n"), NULL },
                { W("vmunit"), W("log"), W("a"), W("-nx"), NULL },
                { W("vmunit"), W("events"), W("-n"), W("1K"), NULL },
                { W("vmunit"), W("stop"), W("a"), W("--timeout=soon"), NULL },
                { W("vmunit"), W("create"), W("a"), W("--no-block"), NULL },
                { W("vmunit"), W("show"), W("a"), W("--json"), W("--value"), NULL },
                { W("vmunit"), W("log"), W("a"), W("--vmm"), W("-f"), NULL },
        };

        for (size_t i = 0; i < ELEMENTSOF(lines); i++) {
                _cleanup_(args_done) Args a = {};
                char *argv[6];

                memcpy(argv, lines[i], sizeof(argv));
                is_int(parse(&a, argv), -EINVAL, "refused: %s %s", strempty(argv[1]), argv[1] ? strempty(argv[2]) : "");
        }
}

typedef struct Applied {
        Option option;
        const char *value;
        const char *want;       /* the definition, or NULL: refused */
} Applied;

static void test_apply(void) {
        static const Applied cases[] = {
                { OPTION_CPUS, "2", "{\"cpus\":2}" },
                { OPTION_CPUS, "two", NULL },
                { OPTION_CPUS, "-1", NULL },
                { OPTION_MEMORY, "512M", "{\"memory\":\"512M\"}" },
                { OPTION_BACKEND, "qemu", "{\"backend\":\"qemu\"}" },
                { OPTION_ACCEL, "tcg", "{\"accel\":\"tcg\"}" },
                { OPTION_STOP_TIMEOUT, "5s", "{\"stopTimeout\":\"5s\"}" },
                { OPTION_KERNEL, "k", "{\"boot\":{\"kernel\":\"/dir/k\"}}" },
                { OPTION_KERNEL, "", NULL },
                { OPTION_INITRD, ".//d/i", "{\"boot\":{\"initramfs\":\"/dir/d/i\"}}" },
                { OPTION_CMDLINE, "", "{\"boot\":{\"cmdline\":\"\"}}" },
                { OPTION_FIRMWARE, "uefi", "{\"boot\":{\"firmware\":\"uefi\"}}" },
                { OPTION_FIRMWARE, "./f", "{\"boot\":{\"firmware\":\"/dir/f\"}}" },
                { OPTION_FIRMWARE, "ufei", NULL },
                { OPTION_DISK, "/d", "{\"disks\":[{\"path\":\"/d\"}]}" },
                { OPTION_DISK, "d,,1,,,readonly", "{\"disks\":[{\"path\":\"/dir/d,1,\",\"readonly\":true}]}" },
                { OPTION_DISK, "d,format=qcow2,name=x", "{\"disks\":[{\"path\":\"/dir/d\",\"format\":\"qcow2\",\"name\":\"x\"}]}" },
                { OPTION_DISK, "", NULL },
                { OPTION_DISK, ",readonly", NULL },
                { OPTION_DISK, "d,", NULL },
                { OPTION_DISK, "d,size=1", NULL },
                { OPTION_SHARE, "t=/srv/a b", "{\"filesystems\":[{\"tag\":\"t\",\"source\":\"/srv/a b\"}]}" },
                { OPTION_SHARE, "t=./d:ro", "{\"filesystems\":[{\"tag\":\"t\",\"source\":\"/dir/d\",\"readonly\":true}]}" },
                { OPTION_SHARE, "a.b=c=d:e", "{\"filesystems\":[{\"tag\":\"a.b\",\"source\":\"/dir/c=d:e\"}]}" },
                { OPTION_SHARE, "t=/d:ro/", "{\"filesystems\":[{\"tag\":\"t\",\"source\":\"/d:ro/\"}]}" },
                { OPTION_SHARE, "t=/d:ro:ro", "{\"filesystems\":[{\"tag\":\"t\",\"source\":\"/d:ro\",\"readonly\":true}]}" },
                { OPTION_SHARE, "t=ro", "{\"filesystems\":[{\"tag\":\"t\",\"source\":\"/dir/ro\"}]}" },
                { OPTION_SHARE, "t=", NULL },
                { OPTION_SHARE, "t=:ro", NULL },
                { OPTION_SHARE, "=/d", NULL },
                { OPTION_SHARE, "/d", NULL },
                { OPTION_SHARE, "/d:ro", NULL },
                { OPTION_SHARE, "", NULL },
                { OPTION_NETWORK, "user", "{\"networks\":[{\"type\":\"user\"}]}" },
                { OPTION_FORWARD, "2222:22", "{\"networks\":[{\"type\":\"user\",\"forward\":[{\"host\":2222,\"guest\":22}]}]}" },
                { OPTION_FORWARD, "10.0.0.1:53:5353/udp",
                  "{\"networks\":[{\"type\":\"user\",\"forward\":[{\"address\":\"10.0.0.1\",\"host\":53,\"guest\":5353,"
                  "\"protocol\":\"udp\"}]}]}" },
                { OPTION_FORWARD, "22", NULL },
                { OPTION_FORWARD, ":1:2", NULL },
                { OPTION_FORWARD, "0:22", NULL },
                { OPTION_FORWARD, "65536:22", NULL },
                { OPTION_FORWARD, "1:2/sctp", NULL },
                { OPTION_FORWARD, "1:", NULL },
                { OPTION_FORWARD, "", NULL },
                { OPTION_LABEL, "a=b=c", "{\"labels\":{\"a\":\"b=c\"}}" },
                { OPTION_LABEL, "a=", "{\"labels\":{\"a\":\"\"}}" },
                { OPTION_LABEL, "=b", NULL },
                { OPTION_LABEL, "a", NULL },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_json_ json_object *o = json_object_new_object();
                _cleanup_free_ char *error = NULL;
                int r = definition_apply(o, cases[i].option, cases[i].value, "/dir", &error);

                if (!cases[i].want)
                        ok(r == -EINVAL && !isempty(error), "refused, and told why: '%s'", cases[i].value);
                else
                        is_str(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
                               cases[i].want, "'%s'", cases[i].value);
        }
}

/* Options change what a file said. */
static void test_apply_to_file(void) {
        _cleanup_json_ json_object *o = json_tokener_parse("{\"cpus\":1,\"boot\":[],\"networks\":[{\"type\":\"tap\"},{\"name\":\"n\"}]}");
        _cleanup_free_ char *error = NULL;

        is_int(definition_apply(o, OPTION_CPUS, "4", "/", &error), 0, "replaced");
        is_int(definition_apply(o, OPTION_FORWARD, "1:2", "/", &error), 0, "forward of the last network");
        is_int(definition_apply(o, OPTION_DISK, "a", "/", &error), 0, "disk in the root directory");
        is_int(definition_apply(o, OPTION_SHARE, "a=b", "/", &error), 0, "a share");
        is_int(definition_apply(o, OPTION_SHARE, "c=/d:ro", "/", &error), 0, "… and another");
        is_int(definition_apply(o, OPTION_KERNEL, "/k", "/", &error), -EBADMSG, "a member of another type");
        check(error && strstr(error, "\"boot\""));
        is_str(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
               "{\"cpus\":4,\"boot\":[],\"networks\":[{\"type\":\"tap\"},{\"name\":\"n\",\"forward\":[{\"host\":1,\"guest\":2}]}],"
               "\"disks\":[{\"path\":\"/a\"}],\"filesystems\":[{\"tag\":\"a\",\"source\":\"/b\"},{\"tag\":\"c\",\"source\":\"/d\",\"readonly\":true}]}",
               "the whole");
}

static void one_format(char *got, const char *want) {
        is_str(got, want, "%s", want);
        free(got);
}

static void test_format(void) {
        uint64_t now = UINT64_C(1000000) * USEC_PER_SEC;

        one_format(format_bytes(0), "0B");
        one_format(format_bytes(1023), "1023B");
        one_format(format_bytes(UINT64_C(512) << 20), "512M");
        one_format(format_bytes(UINT64_C(1536) << 20), "1.5G");
        one_format(format_bytes(UINT64_MAX), "15.9E");
        one_format(format_span(1500), "1ms");
        one_format(format_span(1250 * USEC_PER_MSEC), "1.250s");
        one_format(format_span(59 * USEC_PER_SEC), "59s");
        one_format(format_span(303 * USEC_PER_SEC), "5min 3s");
        one_format(format_span(2 * 86400 * USEC_PER_SEC), "2d");
        one_format(format_duration(0), "0.0ms");
        one_format(format_duration(149), "0.1ms");
        one_format(format_duration(20947), "20.9ms");
        one_format(format_duration(999949), "999.9ms");
        one_format(format_duration(999950), "1.000s");
        one_format(format_duration(303 * USEC_PER_SEC), "5min 3s");
        one_format(format_relative(now, now), "now");
        one_format(format_relative(now - 5 * USEC_PER_SEC - 7000, now), "5s ago");
        one_format(format_relative(now + 90 * USEC_PER_SEC, now), "in 1min 30s");
        one_format(format_relative(0, now), "11d 13h ago");
}

static void one_filter(const char *in, size_t n, const char *want, size_t step) {
        char *out = malloc(2 * n + 4);
        size_t m = 0;
        Filter f = {};

        for (size_t i = 0; i < n; i += step)
                m += filter_terminal(&f, in + i, MIN(step, n - i), out + m);
        out[m] = 0;
        is_str(out, want, "filtered, %zu bytes at once", step);
        free(out);
}
#define FILTER(in, want)                                        \
        do {                                                    \
                one_filter(in, sizeof(in) - 1, want, 1);        \
                one_filter(in, sizeof(in) - 1, want, 4096);     \
        } while (false)

static void test_filter(void) {
        FILTER("a\tb\r\nc\b", "a\tb\r\nc\b");
        FILTER("\033c\033[?7l\033[2Jboot\033[0;31mred\033[0m\a\0\177", "bootred");
        FILTER("\033]0;title\007x\033]52;c;AAAA\033\\y\033Pq\033\\z", "xyz");
        FILTER("\033]never ended\nnext", "\nnext");
        FILTER("\033(B\033=ok\x18", "ok");
        FILTER("\303\251\342\202\254\360\237\230\200", "\303\251\342\202\254\360\237\230\200");
        FILTER("\302\233" "31m", "31m");
        FILTER("\233" "1m\377\303x\300\200\355\240\200", "?1m??x????");
}

static void one_hint(const char *error, Verb verb, bool root, const char *want) {
        _cleanup_free_ char *s = error_hint(error, verb, "web", root);

        is_str(s, want, "%s of %s", error, verb_to_string(verb));
}

static void test_hints(void) {
        one_hint("org.vmunit1.Error.NoSuchVM", VERB_START, true, "no VM of this name; `vmunit list` shows those there are");
        one_hint("org.vmunit1.Error.NotRunning", VERB_PAUSE, true, "`vmunit start web` starts it");
        one_hint("org.vmunit1.Error.InvalidState", VERB_REMOVE, true, "`vmunit stop web` first, or `vmunit remove --force web`");
        one_hint("org.vmunit1.Error.InvalidState", VERB_PAUSE, true, "`vmunit status web` shows its state");
        one_hint("org.freedesktop.DBus.Error.AccessDenied", VERB_STOP, false, "see USERS in vmunit(1); or try sudo");
        one_hint("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", VERB_LOG, false,
                 "call it on a terminal, where a password can be asked for, and without --no-ask-password; or try sudo");
        one_hint("org.freedesktop.DBus.Error.AccessDenied", VERB_STOP, true, NULL);
        one_hint("org.freedesktop.DBus.Error.ServiceUnknown", VERB_LIST, true,
                 "is vmunitd installed and running: `systemctl status vmunitd`");
        one_hint("org.freedesktop.DBus.Error.Spawn.ChildExited", VERB_LIST, true,
                 "is vmunitd installed and running: `systemctl status vmunitd`");
        one_hint("org.freedesktop.DBus.Error.InvalidArgs", VERB_STOP, true, NULL);
        one_hint("org.example.Other", VERB_STOP, false, NULL);
}

static void test_lost(void) {
        static const char *const lost[] = {
                "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.NameHasNoOwner",
                "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.Disconnected",
                "org.freedesktop.DBus.Error.Spawn.ChildExited", "org.freedesktop.systemd1.ShuttingDown",
        }, *const there[] = {
                "org.vmunit1.Error.Busy", "org.vmunit1.Error.Timeout", "org.freedesktop.DBus.Error.AccessDenied",
                "org.freedesktop.DBus.Error.UnknownObject", "org.example.NoReply",
        };

        for (size_t i = 0; i < ELEMENTSOF(lost); i++)
                is_int(daemon_is_lost(lost[i]), true, "%s: no daemon", lost[i]);
        for (size_t i = 0; i < ELEMENTSOF(there); i++)
                is_int(daemon_is_lost(there[i]), false, "%s: it refuses", there[i]);
}

/* A connection that nobody answers is enough to make messages. */
static sd_bus *new_bus(int fds[static 2]) {
        sd_bus *bus = NULL;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0 || sd_bus_new(&bus) < 0 ||
            sd_bus_set_fd(bus, fds[0], fds[0]) < 0 || sd_bus_start(bus) < 0)
                return NULL;
        return bus;
}

static void test_json_message(void) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *s = NULL;
        sd_bus *bus;
        int fds[2];

        bus = new_bus(fds);
        if (!ok(bus != NULL, "a bus connection"))
                return;

        check(sd_bus_message_new_method_call(bus, &m, NULL, "/x", NULL, "X") >= 0);
        check(sd_bus_message_append(m, "a{sv}", 7, "u", "u", UINT32_MAX, "t", "t", UINT64_MAX, "i", "i", -7, "b", "b", true, "d",
                                    "d", 0.5, "l", "a{ss}", 1, "k/", "v\033\302\233\177", "e", "a(ts)", 1, UINT64_C(3), "three") >= 0);
        check(sd_bus_message_seal(m, 1, 0) >= 0);
        check(sd_bus_message_rewind(m, true) >= 0);
        is_int(json_from_message(m, &o), 0, "read");
        s = json_print_to_string(o, false);
        is_str(s, "{\"u\":4294967295,\"t\":18446744073709551615,\"i\":-7,\"b\":true,\"d\":0.5,"
                  "\"l\":{\"k/\":\"v\\u001b\\u009b\\u007f\"},\"e\":[[3,\"three\"]]}", "as JSON, numbers as numbers");

        m = sd_bus_message_unref(m);
        sd_bus_close_unref(bus);
        close(fds[1]);
}

static void test_json_vms(void) {
        _cleanup_json_ json_object *objects = json_tokener_parse(
                "{\"/a\":{\"org.vmunit1.Job\":{}},\"/b\":{\"org.vmunit1.VM\":{\"Name\":\"web\"},\"x\":{}},"
                "\"/c\":{\"org.vmunit1.VM\":{\"Name\":\"db\"}}}");
        _cleanup_json_ json_object *vms = NULL;

        is_int(json_vms(objects, &vms), 0, "VMs of all objects");
        is_str(json_object_to_json_string_ext(vms, JSON_C_TO_STRING_PLAIN), "[{\"Name\":\"db\"},{\"Name\":\"web\"}]", "sorted");
}

static void test_property(void) {
        _cleanup_json_ json_object *s = json_object_new_string("a\nb\033[1m"), *n = json_object_new_uint64(UINT64_MAX);
        _cleanup_free_ char *a = property_to_string(s), *b = property_to_string(n), *c = property_to_string(NULL);

        is_str(a, "a\\x0ab\\x1b[1m", "a property stays on its line");
        is_str(b, "18446744073709551615", "number");
        is_str(c, "null", "nothing");
}

static void test_overlap(void) {
        is_int(log_overlap("abcdef", 6, "efgh", 4), 2, "the stream begins within the log");
        is_int(log_overlap("abc", 3, "abc", 3), 3, "all of it");
        is_int(log_overlap("abc", 3, "xyz", 3), 0, "none of it");
        is_int(log_overlap("", 0, "xyz", 3), 0, "no log");
}

int main(void) {
        test_args_good();
        test_args_bad();
        test_apply();
        test_apply_to_file();
        test_format();
        test_filter();
        test_hints();
        test_lost();
        test_json_message();
        test_json_vms();
        test_property();
        test_overlap();
        return done_testing();
}
