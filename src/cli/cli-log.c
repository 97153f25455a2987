/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <poll.h>
#include <stdio.h>

#include "basic/fd-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-console.h"
#include "cli/cli-error.h"
#include "cli/cli-format.h"

/* To a terminal only what cannot harm it, to anything else the bytes as they are. */
static int put(const Args *a, Filter *f, const void *p, size_t n) {
        _cleanup_free_ char *s = NULL;
        int r;

        if (!a->raw && isatty(STDOUT_FILENO)) {
                s = new(char, 2 * n + 4);
                if (!s)
                        return say_oom();
                n = filter_terminal(f, p, n, s);
                p = s;
        }

        r = loop_write(STDOUT_FILENO, p, n);
        if (r < 0)
                say(a->names[0], "cannot write the log: %s", strerror(-r));
        return r;
}

static int get_console_log(const Args *a, sd_bus *bus, const char *path, sd_bus_message **ret,
                           const void **ret_p, size_t *ret_n) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, path, VM_INTERFACE, "GetConsoleLog", &error, ret, "ta{sv}", a->number, 0);
        if (r < 0)
                return say_bus_error(a->names[0], a->verb, &error, r);
        r = sd_bus_message_read_array(*ret, 'y', ret_p, ret_n);
        return r < 0 ? say_bad_reply(a->names[0], r) : 0;
}

static int show_last_output(const Args *a, sd_bus *bus, const char *path) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        Filter f = {};
        const char *s;
        size_t n;
        int r;

        r = bus_call_vm(bus, a->verb, a->names[0], path, "GetLastOutput", &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_read(reply, "s", &s);
        if (r < 0)
                return say_bad_reply(a->names[0], r);

        n = strlen(s);
        if (n > a->number)
                s += n - a->number;
        return put(a, &f, s, strlen(s));
}

size_t log_overlap(const void *log, size_t n_log, const void *stream, size_t n_stream) {
        for (size_t n = MIN(n_log, n_stream); n > 0; n--)
                if (memcmp((const char *) log + n_log - n, stream, n) == 0)
                        return n;
        return 0;
}

static int follow(const Args *a, Filter *f, int fd, const void *log, size_t n_log) {
        bool first = true;

        for (;;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                size_t skip = 0;
                char buffer[16384];
                ssize_t n;
                int r;

                if (poll(&p, 1, -1) < 0 && errno != EINTR)
                        return -errno;
                n = read(fd, buffer, sizeof(buffer));
                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        continue;
                if (n <= 0)
                        return 0; /* the VM has ended */

                if (first)
                        skip = log_overlap(log, n_log, buffer, (size_t) n);
                first = false;
                r = put(a, f, buffer + skip, (size_t) n - skip);
                if (r < 0)
                        return r;
        }
}

static int show_console_log(const Args *a, sd_bus *bus, const char *path) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        _cleanup_close_ int fd = -EBADF;
        const void *log;
        Filter f = {};
        size_t n;
        int r;

        /* First the stream, so that nothing falls between the two; what is in both is shown once. */
        if (a->follow) {
                r = console_open(bus, a->verb, a->names[0], path, true, &fd);
                if (r < 0)
                        return r;
        }

        r = get_console_log(a, bus, path, &reply, &log, &n);
        if (r >= 0)
                r = put(a, &f, log, n);
        return r < 0 || !a->follow ? r : follow(a, &f, fd, log, n);
}

int verb_log(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        r = bus_connect_asking(a, &bus);
        if (r >= 0)
                r = bus_get_vm(bus, a->verb, a->names[0], &path);
        if (r < 0)
                return r;
        return a->vmm ? show_last_output(a, bus, path) : show_console_log(a, bus, path);
}
