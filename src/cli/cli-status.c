/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <langinfo.h>
#include <stdarg.h>
#include <string.h>

#include "basic/name-util.h"
#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-events.h"
#include "cli/cli-json.h"
#include "cli/cli-show.h"
#include "cli/cli-status.h"

#define EVENTS_SHOWN 5U

Color state_color(const char *state) {
        if (streq(state, "Running"))
                return COLOR_GREEN;
        if (streq(state, "Error"))
                return COLOR_RED;
        return streq(state, "Stopped") ? COLOR_NONE : COLOR_YELLOW;
}

static void field(const char *name, const char *format, ...) _printf_(2, 3);
static void field(const char *name, const char *format, ...) {
        va_list ap;

        printf("%10s: ", name);
        va_start(ap, format);
        vprintf(format, ap);
        va_end(ap);
        putchar('\n');
}

static uint64_t get_u64(json_object *o, const char *key) {
        json_object *v = json_get(o, key);

        return v ? json_object_get_uint64(v) : 0;
}

static void print_head(json_object *s) {
        const char *state = json_get_string(s, "State", "-"), *reason = json_get_string(s, "StateReason", "");
        _cleanup_free_ char *message = property_to_string(json_get(s, "StateMessage"));
        bool utf8 = streq(nl_langinfo(CODESET), "UTF-8"), stopped = streq(state, "Stopped");
        Color c = state_color(state);

        printf("%s%s%s %s%s%s\n", color_on(c), !utf8 ? "*" : stopped ? "○" : "●", color_off(c), color_on(COLOR_BOLD),
               json_get_string(s, "Name", "-"), color_off(COLOR_BOLD));
        field("Id", "%s", json_get_string(s, "Id", "-"));
        field("State", "%s%s%s%s%s%s", color_on(c), state, color_off(c), isempty(reason) ? "" : " (", reason,
              isempty(reason) ? "" : ")");
        if (!isempty(message))
                field("Message", "%s", message);
}

static void print_time(json_object *s, const char *name, const char *key, uint64_t now) {
        uint64_t usec = get_u64(s, key);
        _cleanup_free_ char *t = format_timestamp(usec), *ago = format_relative(usec, now);

        if (usec > 0 && t && ago)
                field(name, "%s; %s", t, ago);
}

/* How the last VMM ended; while one lives that is no news. */
static void print_exit(json_object *s) {
        const char *state = json_get_string(s, "State", "");
        int64_t signo = json_get_int(s, "ExitSignal", 0);

        if (!json_get_bool(s, "ExitKnown", false) || (!streq(state, "Stopped") && !streq(state, "Error")))
                return;
        if (signo > 0)
                field("Exit", "killed by SIG%s", sigabbrev_np((int) signo) ?: "?");
        else
                field("Exit", "code %" PRIi64, json_get_int(s, "ExitCode", 0));
}

static void print_job(json_object *job) {
        double progress = json_object_get_double(json_get(job, "Progress"));
        const char *stage = json_get_string(job, "Stage", "");

        if (!job)
                return;
        printf("%10s: %" PRIi64 " %s", "Job", json_get_int(job, "Id", 0), json_get_string(job, "Operation", "-"));
        if (!isempty(stage))
                printf(", %s", stage);
        if (progress >= 0)
                printf(", %.0f%%", progress * 100);
        putchar('\n');
}

static void print_units(json_object *s) {
        const char *backend = json_get_string(s, "Backend", "");

        field("Backend", "%s", isempty(backend) ? "not chosen yet" : backend);
        if (!isempty(json_get_string(s, "Unit", "")))
                field("Unit", "%s", json_get_string(s, "Unit", ""));
        if (!isempty(json_get_string(s, "Slice", "")))
                field("Slice", "%s", json_get_string(s, "Slice", ""));
        if (get_u64(s, "LeaderPID") > 0)
                field("Leader", "%" PRIu64, get_u64(s, "LeaderPID"));
        if (get_u64(s, "VSockCID") > 0)
                field("VSock CID", "%" PRIu64, get_u64(s, "VSockCID"));
}

static void print_shares(json_object *s) {
        json_object *shares = json_get(s, "Filesystems");
        size_t n = shares ? json_object_array_length(shares) : 0;

        for (size_t i = 0; i < n; i++) {
                json_object *share = json_object_array_get_idx(shares, i);
                const char *tag = json_get_string(share, "tag", "");
                _cleanup_free_ char *source = property_to_string(json_get(share, "source"));
                _cleanup_free_ char *scope = share_scope_name(json_get_string(s, "Name", ""), tag);

                field("Share", "%s, %s%s, %s", tag, strempty(source), json_get_bool(share, "readonly", false) ? " read-only" : "",
                      strempty(scope));
        }
}

static void print_memory(json_object *s, json_object *stats) {
        _cleanup_free_ char *memory = format_bytes(get_u64(s, "MemoryBytes"));
        _cleanup_free_ char *current = format_bytes(get_u64(stats, "MemoryCurrent"));
        _cleanup_free_ char *peak = format_bytes(get_u64(stats, "MemoryPeak"));

        if (!memory || !current || !peak)
                return;
        if (!json_get(stats, "MemoryCurrent"))
                field("Memory", "%s", memory);
        else if (!json_get(stats, "MemoryPeak"))
                field("Memory", "%s (in use %s)", memory, current);
        else
                field("Memory", "%s (in use %s, peak %s)", memory, current, peak);
}

static void print_resources(json_object *s, json_object *stats) {
        _cleanup_free_ char *cpu = format_span(get_u64(stats, "CPUUsageNSec") / 1000);
        _cleanup_free_ char *in = format_bytes(get_u64(stats, "IOReadBytes"));
        _cleanup_free_ char *out = format_bytes(get_u64(stats, "IOWriteBytes"));

        if (json_get(stats, "CPUUsageNSec") && cpu)
                field("CPUs", "%" PRIu64 " (used %s)", get_u64(s, "CPUs"), cpu);
        else
                field("CPUs", "%" PRIu64, get_u64(s, "CPUs"));
        print_memory(s, stats);
        if (json_get(stats, "IOReadBytes") && in && out)
                field("IO", "%s read, %s written", in, out);
        if (json_get(stats, "TasksCurrent"))
                field("Tasks", "%" PRIu64, get_u64(stats, "TasksCurrent"));
}

static void print_labels(json_object *labels) {
        if (!json_object_is_type(labels, json_type_object) || json_object_object_length(labels) == 0)
                return;

        printf("%10s:", "Labels");
        json_object_object_foreach(labels, key, value) {
                _cleanup_json_ json_object *k = json_object_new_string(key);
                _cleanup_free_ char *a = property_to_string(k), *b = property_to_string(value);

                printf(" %s=%s", strempty(a), strempty(b));
        }
        putchar('\n');
}

static void print_restart(json_object *s, uint64_t now) {
        uint64_t at = get_u64(s, "RestartAtUSec"), n = get_u64(s, "RestartCount");
        _cleanup_free_ char *in = format_relative(at, now);

        if (at > 0 && in)
                field("Restart", "planned, %s; %" PRIu64 " so far", in, n);
        else if (n > 0)
                field("Restarts", "%" PRIu64, n);
}

static void print_events(json_object *events) {
        size_t n = events ? json_object_array_length(events) : 0;

        if (n > 0)
                puts("\nLast events:");
        for (size_t i = 0; i < n; i++) {
                json_object *e = json_object_array_get_idx(events, i);
                _cleanup_free_ char *time = format_timestamp(get_u64(e, "TimeUSec"));
                _cleanup_free_ char *message = property_to_string(json_get(e, "Message"));

                printf("  %s  %s%s%s\n", strempty(time), json_get_string(e, "Type", "-"), isempty(message) ? "" : ": ",
                       strempty(message));
        }
}

void status_print(json_object *status, uint64_t now) {
        const char *name = json_get_string(status, "Name", "-");

        print_head(status);
        print_time(status, "Since", "StateSinceUSec", now);
        print_job(json_get(status, "JobProperties"));
        print_restart(status, now);
        print_exit(status);
        print_units(status);
        print_shares(status);
        print_resources(status, json_get(status, "Stats"));
        print_labels(json_get(status, "Labels"));
        print_time(status, "Created", "CreatedUSec", now);
        print_events(json_get(status, "Events"));
        printf("\n%sMore: journalctl VMUNIT_VM=%s, vmunit log %s%s\n", color_on(COLOR_GRAY), name, name,
               color_off(COLOR_GRAY));
}

/* What may be missing gives NULL: stats of a VM that does not run, a job that has just ended. */
static json_object *try_read(int r, sd_bus_message *reply) {
        json_object *o = NULL;

        if (r >= 0)
                (void) json_from_message(reply, &o);
        sd_bus_message_unref(reply);
        return o;
}

static json_object *try_stats(sd_bus *bus, const char *path) {
        sd_bus_message *reply = NULL;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, path, VM_INTERFACE, "GetStats", NULL, &reply, "a{sv}", 0);
        return try_read(r, reply);
}

/* The file systems of a definition, which not everybody may read */
static json_object *try_filesystems(sd_bus *bus, const char *path) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        _cleanup_json_ json_object *definition = NULL;
        json_object *a;
        const char *text;

        if (sd_bus_call_method(bus, BUS_NAME, path, VM_INTERFACE, "GetDefinition", NULL, &reply, "a{sv}", 0) < 0 ||
            sd_bus_message_read(reply, "s", &text) < 0)
                return NULL;
        definition = json_tokener_parse(text);
        a = json_get(definition, "filesystems");
        return json_object_is_type(a, json_type_array) ? json_object_get(a) : NULL;
}

static json_object *try_job(sd_bus *bus, const char *path) {
        sd_bus_message *reply = NULL;
        int r;

        if (streq(path, "/"))
                return NULL;
        r = sd_bus_call_method(bus, BUS_NAME, path, PROPERTIES_INTERFACE, "GetAll", NULL, &reply, "s", JOB_INTERFACE);
        return try_read(r, reply);
}

static int add(json_object *o, const char *key, json_object *value) {
        if (json_object_object_add(o, key, value) >= 0)
                return 0;
        json_object_put(value);
        return say_oom();
}

static int status_get(sd_bus *bus, const char *name, json_object **ret) {
        _cleanup_json_ json_object *s = NULL, *events = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        r = bus_get_vm(bus, VERB_STATUS, name, &path);
        if (r >= 0)
                r = bus_get_all(bus, VERB_STATUS, name, path, VM_INTERFACE, &s);
        if (r >= 0)
                r = add(s, "Stats", try_stats(bus, path));
        if (r >= 0)
                r = add(s, "JobProperties", try_job(bus, json_get_string(s, "Job", "/")));
        if (r >= 0)
                r = add(s, "Filesystems", try_filesystems(bus, path));
        if (r >= 0)
                r = events_get(bus, VERB_STATUS, name, json_get_string(s, "Id", name), EVENTS_SHOWN, &events);
        if (r >= 0)
                r = add(s, "Events", TAKE_PTR(events));
        if (r >= 0)
                *ret = TAKE_PTR(s);
        return r;
}

int verb_status(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_json_ json_object *s = NULL;
        int r;

        r = bus_connect(&bus);
        if (r >= 0)
                r = status_get(bus, a->names[0], &s);
        if (r < 0)
                return r;

        if (a->json)
                json_print(s);
        else
                status_print(s, now_usec());
        return 0;
}
