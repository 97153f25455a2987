/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-format.h"
#include "cli/cli-json.h"
#include "cli/cli-show.h"
#include "cli/cli-status.h"

#define VALUE_MAX (256U * 1024U)

static int get_vms(sd_bus *bus, json_object **ret) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        _cleanup_json_ json_object *objects = NULL;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, ROOT_PATH, OBJECT_MANAGER_INTERFACE, "GetManagedObjects", &error,
                               &reply, "");
        if (r < 0)
                return say_bus_error("vmunit", VERB_LIST, &error, r);

        r = json_from_message(reply, &objects);
        if (r >= 0)
                r = json_vms(objects, ret);
        return r < 0 ? say_bad_reply("vmunit", r) : 0;
}

static int list_add(Table *t, json_object *vm, uint64_t now) {
        const char *state = json_get_string(vm, "State", "-"), *backend = json_get_string(vm, "Backend", "");
        _cleanup_free_ char *cpus = strjoinf("%lld", (long long) json_get_int(vm, "CPUs", 0));
        _cleanup_free_ char *memory = format_bytes((uint64_t) json_get_int(vm, "MemoryBytes", 0));
        _cleanup_free_ char *since = format_relative((uint64_t) json_get_int(vm, "StateSinceUSec", 0), now);
        int r;

        if (!cpus || !memory || !since)
                return -ENOMEM;

        r = table_add_row(t, COLOR_NONE, (const char *[]){ json_get_string(vm, "Name", "-"), state,
                                                           isempty(backend) ? "-" : backend, cpus, memory, since });
        if (r >= 0)
                t->colors[t->n - t->columns + 1] = state_color(state);
        return r;
}

static int list_print(json_object *vms, bool legend) {
        static const char *const heads[] = { "NAME", "STATE", "BACKEND", "CPUS", "MEMORY", "SINCE" };
        _cleanup_(table_done) Table t = { .columns = ELEMENTSOF(heads) };
        uint64_t now = now_usec();

        if (legend && table_add_row(&t, COLOR_BOLD, heads) < 0)
                return say_oom();
        for (size_t i = 0; i < json_object_array_length(vms); i++)
                if (list_add(&t, json_object_array_get_idx(vms, i), now) < 0)
                        return say_oom();

        table_print(&t, stdout);
        return 0;
}

int verb_list(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_json_ json_object *vms = NULL;
        int r;

        r = bus_connect(&bus);
        if (r >= 0)
                r = get_vms(bus, &vms);
        if (r < 0)
                return r;

        if (a->json) {
                json_print(vms);
                return 0;
        }
        return list_print(vms, !a->no_legend);
}

char *property_to_string(json_object *value) {
        _cleanup_free_ char *s = NULL;
        const char *text;
        char *r, *q;

        if (!json_object_is_type(value, json_type_string))
                return json_print_to_string(value, false);

        text = json_object_get_string(value);
        s = escape_untrusted(text, strlen(text), VALUE_MAX);
        q = r = s ? new(char, strlen(s) * 4 + 1) : NULL;
        if (!r)
                return NULL;

        /* one line a property */
        for (const char *p = s; *p; p++)
                if (*p == '\n')
                        q = stpcpy(q, "\\x0a");
                else
                        *q++ = *p;
        *q = 0;
        return r;
}

static int property_print(const Args *a, const char *name, json_object *value) {
        _cleanup_free_ char *s = property_to_string(value);

        if (!s)
                return say_oom();
        if (a->value)
                puts(s);
        else
                printf("%s=%s\n", name, s);
        return 0;
}

/* Those asked for in their order, or all. */
static int properties_select(const Args *a, json_object *all, json_object **ret) {
        _cleanup_json_ json_object *o = NULL;
        json_object *value;

        if (!a->properties) {
                *ret = json_object_get(all);
                return 0;
        }

        o = json_object_new_object();
        if (!o)
                return say_oom();

        STRV_FOREACH(p, a->properties) {
                if (!json_object_object_get_ex(all, *p, &value)) {
                        say(a->names[0], "there is no property %s; `vmunit show %s` shows all", *p, a->names[0]);
                        return -ENOENT;
                }
                if (json_object_object_add(o, *p, json_object_get(value)) < 0) {
                        json_object_put(value);
                        return say_oom();
                }
        }
        *ret = TAKE_PTR(o);
        return 0;
}

static int show_properties(const Args *a, sd_bus *bus, const char *path) {
        _cleanup_json_ json_object *all = NULL, *chosen = NULL;
        int r;

        r = bus_get_all(bus, a->verb, a->names[0], path, VM_INTERFACE, &all);
        if (r >= 0)
                r = properties_select(a, all, &chosen);
        if (r < 0)
                return r;

        if (a->json) {
                json_print(chosen);
                return 0;
        }
        json_object_object_foreach(chosen, key, value) {
                r = property_print(a, key, value);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int show_definition(const Args *a, sd_bus *bus, const char *path) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *s = NULL;
        const char *text;
        int r;

        r = bus_call_vm(bus, a->verb, a->names[0], path, "GetDefinition", &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_read(reply, "s", &text);
        if (r < 0)
                return say_bad_reply(a->names[0], r);

        o = json_tokener_parse(text);
        s = o ? json_print_to_string(o, !a->json) : NULL;
        if (!s)
                return say_bad_reply(a->names[0], -EBADMSG);
        puts(s);
        return 0;
}

int verb_show(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        r = a->definition ? bus_connect_asking(a, &bus) : bus_connect(&bus);
        if (r >= 0)
                r = bus_get_vm(bus, a->verb, a->names[0], &path);
        if (r < 0)
                return r;
        return a->definition ? show_definition(a, bus, path) : show_properties(a, bus, path);
}
