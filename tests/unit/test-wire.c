/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <linux/sockios.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/peers.h"
#include "api/wire.h"
#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "basic/time-util.h"
#include "bus/error-names.h"
#include "tap.h"

static sd_bus *bus;

/* A bus that messages can be made for; nobody is at its other end. */
static int open_bus(int *ret_peer) {
        int fds[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
                return -errno;
        *ret_peer = fds[1];
        r = sd_bus_new(&bus);
        if (r >= 0)
                r = sd_bus_set_fd(bus, fds[0], fds[0]);
        return r < 0 ? r : sd_bus_start(bus);
}

static sd_bus_message *message(const char *types, ...) {
        sd_bus_message *m = NULL;
        va_list ap;
        int r;

        r = sd_bus_message_new_method_call(bus, &m, "a.b", "/", "a.b", "C");
        if (r < 0)
                return NULL;
        va_start(ap, types);
        r = sd_bus_message_appendv(m, types, ap);
        va_end(ap);
        if (r < 0 || sd_bus_message_seal(m, 1, 0) < 0)
                return sd_bus_message_unref(m);
        return m;
}

typedef struct Values {
        bool flag;
        bool flag_given;
        uint32_t number;
        uint64_t time;
        const char *text;
} Values;

static int read_values(sd_bus_message *m, Values *v, sd_bus_error *error) {
        const Option options[] = {
                { "flag", 'b', &v->flag, &v->flag_given },
                { "number", 'u', &v->number },
                { "time", 't', &v->time },
                { "text", 's', &v->text },
        };

        return OPTIONS_READ(m, options, error);
}

static void test_options(void) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *none = NULL;
        sd_bus_error e = SD_BUS_ERROR_NULL;
        Values v = { .number = 7 };

        m = message("a{sv}", 3, "text", "s", "hello", "flag", "b", 1, "time", "t", UINT64_MAX);
        check(read_values(m, &v, &e) >= 0);
        check(v.flag_given);
        check(v.flag && v.time == UINT64_MAX && v.number == 7 && streq(v.text, "hello"));
        check(sd_bus_message_at_end(m, true) > 0);

        none = message("a{sv}", 0);
        check(OPTIONS_NONE(none, &e) >= 0);
        v = (Values) {};
        check(sd_bus_message_rewind(none, true) >= 0 && read_values(none, &v, &e) >= 0 && !v.flag_given);
        check(!sd_bus_error_is_set(&e));
}

static void refused(sd_bus_message *m, const char *text) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        Values v = {};

        ok(read_values(m, &v, &e) < 0 && sd_bus_error_has_name(&e, SD_BUS_ERROR_INVALID_ARGS), "refused: %s", text);
        is_str(e.message, text, "the message tells it");
        sd_bus_message_unref(m);
}

static void test_options_refused(void) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;

        refused(message("a{sv}", 1, "Flag", "b", 1), "Unknown option 'Flag'; known here: flag, number, time, text");
        refused(message("a{sv}", 1, "%s%n\n\x1b", "b", 1),
                "Unknown option '%s%n \\x1b'; known here: flag, number, time, text");
        refused(message("a{sv}", 1, "flag", "u", 1), "Option 'flag' must be of type b, not u");
        refused(message("a{sv}", 1, "time", "u", 1), "Option 'time' must be of type t, not u");
        refused(message("a{sv}", 1, "text", "as", 0), "Option 'text' must be of type s, not as");
        refused(message("a{sv}", 1, "number", "v", "u", 1), "Option 'number' must be of type u, not v");
        refused(message("a{sv}", 2, "flag", "b", 0, "flag", "b", 1), "Option 'flag' is given twice");

        m = message("a{sv}", 1, "flag", "b", 1);
        check(OPTIONS_NONE(m, &e) < 0);
        is_str(e.message, "Unknown option 'flag'; known here: none", "where no option is known");
}

static void test_errors(void) {
        static const struct {
                int error;
                const char *name;
        } table[] = {
                { -ENOSPC, VMUNIT_ERROR_NO_SPACE },
                { -EDQUOT, VMUNIT_ERROR_NO_SPACE },
                { -EBUSY, VMUNIT_ERROR_BUSY },
                { -ECANCELED, VMUNIT_ERROR_CANCELED },
                { -ETIMEDOUT, VMUNIT_ERROR_TIMEOUT },
                { -EOPNOTSUPP, VMUNIT_ERROR_NOT_SUPPORTED },
                { -EIO, SD_BUS_ERROR_IO_ERROR },
                { -ENOMEM, SD_BUS_ERROR_NO_MEMORY },
        };

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

                is_int(wire_error(&e, table[i].error), table[i].error, "the result stays");
                is_str(e.name, table[i].name, "errno %d", -table[i].error);
                ok(!isempty(e.message), "… with a sentence");
        }
}

static void test_error_texts(void) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL, cut = SD_BUS_ERROR_NULL;

        sd_bus_error_set(&e, VMUNIT_ERROR_BUSY, "the core's own sentence");
        is_int(wire_error(&e, -ENOSPC), -ENOSPC, "an error that is set");
        is_str(e.name, VMUNIT_ERROR_BUSY, "… keeps its name");
        is_str(e.message, "the core's own sentence", "… and its sentence");

        sd_bus_error_set(&cut, VMUNIT_ERROR_BUSY, "\xc3\xa4 and half of it: \xc3");
        is_int(wire_error(&cut, -EBUSY), -EBUSY, "a sentence that was cut inside of a character");
        is_str(cut.message, "\xc3\xa4 and half of it: \\xc3", "… can be sent");
}

static void test_details(void) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        json_object *o = json_object_new_object();
        const char *key, *s;
        int64_t x;
        int b;

        json_object_object_add(o, "s", json_object_new_string("text"));
        json_object_object_add(o, "x", json_object_new_int64(-5));
        json_object_object_add(o, "null", NULL);
        json_object_object_add(o, "b", json_object_new_boolean(true));
        check(sd_bus_message_new_method_call(bus, &m, "a.b", "/", "a.b", "C") >= 0);
        check(append_details(m, o) >= 0 && append_details(m, NULL) >= 0);
        check(sd_bus_message_seal(m, 1, 0) >= 0);
        is_str(sd_bus_message_get_signature(m, true), "a{sv}a{sv}", "both are there");

        check(sd_bus_message_enter_container(m, 'a', "{sv}") > 0);
        check(sd_bus_message_read(m, "{sv}", &key, "s", &s) > 0 && streq(key, "s") && streq(s, "text"));
        check(sd_bus_message_read(m, "{sv}", &key, "x", &x) > 0 && streq(key, "x") && x == -5);
        check(sd_bus_message_read(m, "{sv}", &key, "b", &b) > 0 && streq(key, "b") && b == 1);
        check(sd_bus_message_at_end(m, false) > 0);
        json_object_put(o);
}

static void test_paths(void) {
        static const struct {
                const char *name, *path;
        } table[] = {
                { "web", "/org/vmunit1/vm/web" },
                { "web-1", "/org/vmunit1/vm/web_2d1" },
                { "1.a", "/org/vmunit1/vm/_31_2ea" },
        };

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                _cleanup_free_ char *p = NULL;

                check(vm_path(table[i].name, &p) >= 0);
                is_str(p, table[i].path, "the path of %s", table[i].name);
        }

        _cleanup_free_ char *p = NULL;
        check(job_path(UINT32_MAX, &p) >= 0);
        is_str(p, "/org/vmunit1/job/4294967295", "the path of a job");
}

/* A bus double: what it is asked for it refuses by this error. */
typedef struct Double {
        sd_bus *bus;
        const char *refusal;
        unsigned n_asked;
} Double;

static int on_asked(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Double *d = userdata;

        d->n_asked++;
        return sd_bus_reply_method_errorf(m, d->refusal, "no");
}

static int on_answered(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        *(sd_bus_message **) userdata = sd_bus_message_ref(m);
        return 1;
}

static sd_bus *open_end(int fd, bool server) {
        sd_id128_t id = SD_ID128_MAKE(01, 02, 03, 04, 05, 06, 07, 08, 09, 0a, 0b, 0c, 0d, 0e, 0f, 10);
        sd_bus *b = NULL;

        if (sd_bus_new(&b) < 0 || sd_bus_set_fd(b, fd, fd) < 0 || (server && sd_bus_set_server(b, true, id) < 0) ||
            sd_bus_set_anonymous(b, true) < 0 || sd_bus_set_trusted(b, true) < 0 || sd_bus_start(b) < 0)
                return NULL;
        return b;
}

static void settle(sd_bus *a, sd_bus *b) {
        for (unsigned idle = 0; idle < 3;)
                idle = sd_bus_process(a, NULL) + sd_bus_process(b, NULL) > 0 ? 0 : idle + 1;
}

/* What a client hears whose call comes while the bus does not say who it is; NULL: nothing */
static sd_bus_message *ask_as(Double *d, sd_bus *ours, const char *refusal) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        sd_bus_slot *slot = NULL;
        sd_bus_message *answer = NULL;

        d->refusal = refusal;
        check(sd_bus_message_new_method_call(d->bus, &m, "a.b", "/", "a.b", "C") >= 0 && sd_bus_message_set_sender(m, ":1.5") >= 0);
        check(sd_bus_call_async(d->bus, &slot, m, on_answered, &answer, 0) >= 0);
        settle(d->bus, ours);
        sd_bus_slot_unref(slot);
        return answer;
}

static void test_peers(void) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *busy = NULL, *left = NULL;
        Double d = {};
        Manager manager = {};
        Peers *peers = NULL;
        sd_bus *ours;
        int fds[2];

        check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) >= 0);
        d.bus = open_end(fds[0], true);
        ours = open_end(fds[1], false);
        if (!ok(d.bus && ours, "a bus double"))
                return;
        check(sd_bus_add_fallback(d.bus, NULL, "/org/freedesktop/DBus", on_asked, &d) >= 0);
        check(peers_new(ours, &manager, NULL, NULL, &peers) >= 0);

        busy = ask_as(&d, ours, SD_BUS_ERROR_LIMITS_EXCEEDED);
        ok(busy && sd_bus_message_is_method_error(busy, SD_BUS_ERROR_LIMITS_EXCEEDED), "where the bus is too busy to say who calls, the caller is told");
        is_int(d.n_asked, 1, "it was asked");
        left = ask_as(&d, ours, SD_BUS_ERROR_NAME_HAS_NO_OWNER);
        is_int(d.n_asked, 2, "and is asked anew with the next call");
        ok(!left, "who has left is told nothing");

        peers_free(peers);
        sd_bus_close_unref(ours);
        sd_bus_close_unref(d.bus);
}

static uint64_t queued(int fd) {
        int n = 0;

        return ioctl(fd, SIOCOUTQ, &n) < 0 ? 0 : (uint64_t) n;
}

/* There is always as much to take as before, for more than the 15 s after which one that takes nothing is given up. */
static void test_busy_bus(void) {
        _cleanup_free_ char *text = new0(char, 16384 + 1);
        uint64_t end = now_monotonic() + 17 * USEC_PER_SEC;
        Manager manager = {};
        Peers *peers = NULL;
        sd_event *e = NULL;
        sd_bus *bus_end, *ours;
        bool busy = true;
        int fds[2];

        check(text && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) >= 0);
        memset(text, 'x', 16384);
        bus_end = open_end(fds[0], true);
        ours = open_end(fds[1], false);
        if (!ok(bus_end && ours && sd_event_new(&e) >= 0 && sd_bus_attach_event(ours, e, 0) >= 0, "a bus double"))
                return;
        check(peers_new(ours, &manager, NULL, NULL, &peers) >= 0);

        settle(ours, bus_end);
        while (now_monotonic() < end && sd_event_get_state(e) != SD_EVENT_FINISHED) {
                unsigned n = 0;

                while (queued(fds[1]) < 65536 && n++ < 16)
                        (void) sd_bus_emit_signal(ours, "/", "a.b", "C", "s", text);
                (void) sd_bus_emit_signal(bus_end, "/", "a.b", "C", "");
                (void) sd_event_run(e, 10 * USEC_PER_MSEC);
                busy = busy && queued(fds[1]) >= 32768;
                (void) sd_bus_process(bus_end, NULL);
        }
        ok(busy, "there was always something to take");
        ok(sd_event_get_state(e) != SD_EVENT_FINISHED, "a bus that takes what it is sent is not stuck");

        peers_free(peers);
        sd_bus_close_unref(ours);
        sd_bus_close_unref(bus_end);
        sd_event_unref(e);
}

int main(void) {
        _cleanup_close_ int peer = -EBADF;
        int r;

        r = open_bus(&peer);
        if (!ok(r >= 0, "a bus without a peer"))
                return done_testing();
        test_options();
        test_options_refused();
        test_errors();
        test_error_texts();
        test_details();
        test_paths();
        test_peers();
        test_busy_bus();
        sd_bus_close_unref(bus);
        return done_testing();
}
