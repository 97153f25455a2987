/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-events.h"
#include "cli/cli-format.h"
#include "cli/cli-json.h"
#include "cli/cli-show.h"

#define PAGE 1000U

static int call_list_events(sd_bus *bus, uint64_t after, const char *vm, sd_bus_error *error, sd_bus_message **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        int r;

        r = sd_bus_message_new_method_call(bus, &m, BUS_NAME, ROOT_PATH, MANAGER_INTERFACE, "ListEvents");
        if (r >= 0)
                r = sd_bus_message_open_container(m, 'a', "{sv}");
        if (r >= 0)
                r = sd_bus_message_append(m, "{sv}{sv}", "after", "t", after, "limit", "u", PAGE);
        if (r >= 0 && vm)
                r = sd_bus_message_append(m, "{sv}", "vm", "s", vm);
        if (r >= 0)
                r = sd_bus_message_close_container(m);
        return r < 0 ? r : sd_bus_call(bus, m, 0, error, ret);
}

/* (ttssssa{sv}) as an object */
static int event_to_object(json_object *event, json_object **ret) {
        static const char *const keys[] = { "Id", "TimeUSec", "VMId", "VMName", "Type", "Message", "Details" };
        _cleanup_json_ json_object *o = json_object_new_object();

        if (!o)
                return -ENOMEM;

        for (size_t i = 0; i < ELEMENTSOF(keys); i++)
                if (json_object_object_add(o, keys[i], json_object_get(json_object_array_get_idx(event, i))) < 0)
                        return -ENOMEM;
        *ret = TAKE_PTR(o);
        return 0;
}

/* Appends a page to events, and gives the number in it. */
static int events_add(json_object *events, json_object *page, uint64_t *after) {
        size_t n = json_object_array_length(page);

        for (size_t i = 0; i < n; i++) {
                json_object *o;
                int r;

                r = event_to_object(json_object_array_get_idx(page, i), &o);
                if (r < 0)
                        return r;
                *after = MAX(*after, (uint64_t) json_get_int(o, "Id", 0));
                if (json_object_array_add(events, o) < 0) {
                        json_object_put(o);
                        return -ENOMEM;
                }
        }
        return (int) n;
}

static void keep_last(json_object *events, size_t n) {
        size_t have = json_object_array_length(events);

        if (have > n)
                json_object_array_del_idx(events, 0, have - n);
}

int events_get(sd_bus *bus, Verb verb, const char *name, const char *vm, size_t n, json_object **ret) {
        _cleanup_json_ json_object *events = json_object_new_array();
        uint64_t after = 0, before;
        int r;

        if (!events)
                return say_oom();

        /* The API pages forwards only; a page may be smaller than asked for. */
        do {
                _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
                _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
                _cleanup_json_ json_object *page = NULL;

                r = call_list_events(bus, after, vm, &error, &reply);
                if (r < 0)
                        return say_bus_error(name, verb, &error, r);

                before = after;
                r = json_from_message(reply, &page);
                if (r >= 0)
                        r = events_add(events, page, &after);
                if (r < 0)
                        return say_bad_reply(name, r);
                keep_last(events, n);
        } while (r > 0 && after > before);

        *ret = TAKE_PTR(events);
        return 0;
}

static int events_print(json_object *events, bool legend) {
        _cleanup_(table_done) Table t = { .columns = 4 };
        int r = 0;

        if (legend)
                r = table_add_row(&t, COLOR_BOLD, (const char *[]){ "TIME", "VM", "TYPE", "MESSAGE" });

        for (size_t i = 0; r >= 0 && i < json_object_array_length(events); i++) {
                json_object *e = json_object_array_get_idx(events, i);
                _cleanup_free_ char *time = format_timestamp((uint64_t) json_get_int(e, "TimeUSec", 0));
                _cleanup_free_ char *message = property_to_string(json_get(e, "Message"));

                r = table_add_row(&t, COLOR_NONE, (const char *[]){ strempty(time), json_get_string(e, "VMName", "-"),
                                                                    json_get_string(e, "Type", "-"), strempty(message) });
        }
        if (r < 0)
                return say_oom();

        table_print(&t, stdout);
        return 0;
}

int verb_events(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_json_ json_object *events = NULL;
        const char *vm = a->n_names > 0 ? a->names[0] : NULL;
        int r;

        r = bus_connect(&bus);
        if (r >= 0)
                r = events_get(bus, a->verb, vm ?: "vmunit", vm, a->number == UINT64_MAX ? SIZE_MAX : a->number, &events);
        if (r < 0)
                return r;

        if (a->json) {
                json_print(events);
                return 0;
        }
        return events_print(events, !a->no_legend);
}
