/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "basic/string-util.h"
#include "bed.h"

#define DESTINATION "org.vmunit1"
#define WAIT_MS 30000.0

static sd_bus *the_bus;

/* What is waited for: changes to this state, how many there were, and when the last came (ms) */
static struct Seen {
        const char *state;
        unsigned n;
        double at;
} seen;

void die(const char *format, ...) {
        va_list ap;

        va_start(ap, format);
        fputs("bench: ", stderr);
        vfprintf(stderr, format, ap);
        fputc('\n', stderr);
        va_end(ap);
        exit(EXIT_FAILURE);
}

void check(int r, const char *what) {
        if (r < 0)
                die("%s: %s", what, strerror(-r));
}

double now_ms(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double) ts.tv_sec * 1e3 + (double) ts.tv_nsec / 1e6;
}

void rest(void) {
        (void) nanosleep(&(struct timespec) { .tv_nsec = REST_MSEC * 1000000L }, NULL);
}

sd_bus *bed_bus(void) {
        if (!the_bus)
                check(sd_bus_open_system(&the_bus), "can't connect to the bus");
        return the_bus;
}

void bed_turn(double end, const char *what) {
        double left;
        int r;

        r = sd_bus_process(bed_bus(), NULL);
        check(r, "the bus");
        if (r > 0)
                return;
        left = end - now_ms();
        if (left <= 0)
                die("waited in vain for %s", what);
        check(sd_bus_wait(bed_bus(), (uint64_t) (left * 1000)), "the bus");
}

static char *guest_path(const char *guest) {
        const char *guests = getenv("VMUNIT_GUESTS");

        if (!guests)
                die("VMUNIT_GUESTS is not set: use tests/bench/run");
        return strjoinf("%s/%s.elf", guests, guest);
}

const char *bed_kernel(void) {
        static char *path;

        if (!path)
                path = guest_path("tiny");
        return path;
}

static char *vm_path(const char *name) {
        char *path;

        check(sd_bus_path_encode("/org/vmunit1/vm", name, &path), "path");
        return path;
}

static void create(const char *name, const char *backend, unsigned memory_mb, const char *kernel) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        _cleanup_free_ char *definition = NULL;

        definition = strjoinf("{\"version\": 1, \"backend\": \"%s\", \"memory\": \"%uM\", \"boot\": {\"kernel\": \"%s\"}}",
                              backend, memory_mb, kernel);
        if (sd_bus_call_method(bed_bus(), DESTINATION, "/org/vmunit1", "org.vmunit1.Manager", "CreateVM", &e, NULL, "ssa{sv}",
                               name, definition, 0) < 0)
                die("CreateVM %s: %s", name, e.message);
}

void vm_create(const char *name, const char *backend) {
        create(name, backend, BED_MEMORY_MB, bed_kernel());
}

void vm_create_still(unsigned i, const char *backend) {
        _cleanup_free_ char *kernel = guest_path("still");
        char name[16];

        vm_name(name, i);
        create(name, backend, STILL_MEMORY_MB, kernel);
}

void vm_name(char ret[static 16], unsigned i) {
        snprintf(ret, 16, "vm%u", i);
}

static sd_bus_message *vm_message(const char *name, const char *method) {
        _cleanup_free_ char *path = vm_path(name);
        sd_bus_message *m;

        check(sd_bus_message_new_method_call(bed_bus(), &m, DESTINATION, path, "org.vmunit1.VM", method), method);
        if (streq(method, "Remove"))
                check(sd_bus_message_append(m, "a{sv}", 1, "force", "b", true), method);
        else
                check(sd_bus_message_append(m, "a{sv}", 0), method);
        return m;
}

bool vm_try(const char *name, const char *method) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = vm_message(name, method);

        return sd_bus_call(bed_bus(), m, 60 * USEC_PER_SEC, NULL, NULL) >= 0;
}

void vm_do(const char *name, const char *method) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = vm_message(name, method);
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        if (sd_bus_call(bed_bus(), m, 60 * USEC_PER_SEC, &e, NULL) < 0)
                die("%s %s: %s", method, name, e.message);
}

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const sd_bus_error *e = sd_bus_message_get_error(m);

        if (e)
                die("%s: %s", (const char *) userdata, e->message);
        return 0;
}

void vm_send(const char *name, const char *method) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = vm_message(name, method);

        check(sd_bus_call_async(bed_bus(), NULL, m, on_reply, (void *) method, 60 * USEC_PER_SEC), method);
        check(sd_bus_flush(bed_bus()), method);
}

void vm_remove(const char *name) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        double end = now_ms() + WAIT_MS;

        vm_do(name, "Remove");
        /* It goes in the background. */
        while (sd_bus_call_method(bed_bus(), DESTINATION, "/org/vmunit1", "org.vmunit1.Manager", "GetVM", &e, NULL, "s", name) >= 0) {
                if (now_ms() > end)
                        die("%s is not removed", name);
                rest();
        }
}

int vm_leader(const char *name) {
        _cleanup_free_ char *path = vm_path(name);
        uint32_t pid;

        check(sd_bus_get_property_trivial(bed_bus(), DESTINATION, path, "org.vmunit1.VM", "LeaderPID", NULL, 'u', &pid),
              "LeaderPID");
        return (int) pid;
}

/* Signals */

static int read_state(sd_bus_message *m) {
        const char *key, *state;
        int r;

        r = sd_bus_message_skip(m, "s");
        if (r >= 0)
                r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
                r = sd_bus_message_read(m, "s", &key);
                if (r >= 0 && streq(key, "State")) {
                        r = sd_bus_message_read(m, "v", "s", &state);
                        if (r >= 0 && streq(state, seen.state)) {
                                seen.n++;
                                seen.at = now_ms();
                        }
                } else if (r >= 0)
                        r = sd_bus_message_skip(m, "v");
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
        }
        return r;
}

static int on_changed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        check(read_state(m), "PropertiesChanged");
        return 0;
}

void seen_begin(const char *state) {
        static bool watched;

        if (!watched)
                check(sd_bus_add_match(bed_bus(), NULL, "type='signal',sender='" DESTINATION "',path_namespace='/org/vmunit1/vm',"
                                       "interface='org.freedesktop.DBus.Properties',member='PropertiesChanged'", on_changed, NULL), "match");
        watched = true;
        /* What has come already is not what is waited for. */
        while (sd_bus_process(bed_bus(), NULL) > 0)
                ;
        seen = (struct Seen) { .state = state };
}

double seen_wait(unsigned n) {
        double end = now_ms() + WAIT_MS;

        while (seen.n < n)
                bed_turn(end, seen.state);
        return seen.at;
}

/* Processes */

double process_figure(int pid, const char *file, const char *key) {
        char path[64], line[256];
        double value = -1;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
        f = fopen(path, "re");
        if (!f)
                die("%s: %m", path);
        while (value < 0 && fgets(line, sizeof(line), f)) {
                const char *rest_of = startswith(line, key);

                if (rest_of)
                        value = strtod(rest_of, NULL);
        }
        fclose(f);
        return value;
}

int unit_pid(const char *unit) {
        _cleanup_free_ char *path = NULL;
        uint32_t pid;

        check(sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit, &path), "path");
        check(sd_bus_get_property_trivial(bed_bus(), "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service", "MainPID",
                                          NULL, 'u', &pid), unit);
        if (pid == 0)
                die("%s does not run", unit);
        return (int) pid;
}

double exec_pss(const char *name) {
        int parent = (int) process_figure(vm_leader(name), "status", "PPid:");

        return process_figure(parent, "smaps_rollup", "Pss:");
}

/* Figures */

void row_add(Row *r, double v) {
        if (r->n < ELEMENTSOF(r->v))
                r->v[r->n++] = v;
}

static int compare(const void *a, const void *b) {
        const double *x = a, *y = b;

        return *x < *y ? -1 : *x > *y;
}

double row_median(Row *r) {
        if (r->n == 0)
                die("%s: no figures", r->name);
        qsort(r->v, r->n, sizeof(double), compare);
        return (r->v[(r->n - 1) / 2] + r->v[r->n / 2]) / 2;
}

double row_print(Row *r) {
        double median = row_median(r);

        /* sorted by now */
        printf("row\t%s\t%.3f\t%.3f\t%.3f\n", r->name, median, r->v[r->n / 4], r->v[(r->n * 3) / 4]);
        return median;
}

void print_bar(const char *name, double value, double limit, const char *unit) {
        printf("bar\t%s\t%.3f\t%.3f\t%s\n", name, value, limit, unit);
}

void print_note(const char *name, double value, const char *unit) {
        printf("note\t%s\t%.3f\t%s\n", name, value, unit);
}
