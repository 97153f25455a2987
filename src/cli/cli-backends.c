/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-format.h"
#include "cli/cli-json.h"
#include "cli/cli-show.h"

/* (sa{sv}): the dictionary, with the name in it as well */
static int backend_to_object(json_object *backend, json_object **ret) {
        json_object *o = json_object_array_get_idx(backend, 1);

        if (!json_object_is_type(o, json_type_object))
                return -EBADMSG;
        if (json_object_object_add(o, "Name", json_object_get(json_object_array_get_idx(backend, 0))) < 0)
                return -ENOMEM;
        *ret = json_object_get(o);
        return 0;
}

static int backends_to_objects(json_object *properties, json_object **ret) {
        _cleanup_json_ json_object *objects = json_object_new_array();
        json_object *list = json_get(properties, "Backends");

        if (!objects)
                return -ENOMEM;
        if (!json_object_is_type(list, json_type_array))
                return -EBADMSG;
        for (size_t i = 0; i < json_object_array_length(list); i++) {
                json_object *o;
                int r;

                r = backend_to_object(json_object_array_get_idx(list, i), &o);
                if (r < 0)
                        return r;
                if (json_object_array_add(objects, o) < 0) {
                        json_object_put(o);
                        return -ENOMEM;
                }
        }
        *ret = TAKE_PTR(objects);
        return 0;
}

static const char *word(json_object *o, const char *key) {
        const char *s = json_get_string(o, key, "");

        return *s ? s : "-";
}

static int backends_print(json_object *backends, bool legend) {
        _cleanup_(table_done) Table t = { .columns = 5 };
        int r = 0;

        if (legend)
                r = table_add_row(&t, COLOR_BOLD, (const char *[]){ "BACKEND", "USABLE", "VERSION", "PROGRAM", "REASON" });
        for (size_t i = 0; r >= 0 && i < json_object_array_length(backends); i++) {
                json_object *b = json_object_array_get_idx(backends, i);
                bool usable = json_object_get_boolean(json_get(b, "Usable"));

                r = table_add_row(&t, usable ? COLOR_NONE : COLOR_GRAY,
                                  (const char *[]){ word(b, "Name"), usable ? "yes" : "no", word(b, "Version"), word(b, "Path"),
                                                    word(b, "Reason") });
        }
        if (r < 0)
                return say_oom();

        table_print(&t, stdout);
        return 0;
}

int verb_backends(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_json_ json_object *properties = NULL, *backends = NULL;
        int r;

        r = bus_connect(&bus);
        if (r >= 0)
                r = bus_get_all(bus, a->verb, "vmunit", ROOT_PATH, MANAGER_INTERFACE, &properties);
        if (r < 0)
                return r;
        r = backends_to_objects(properties, &backends);
        if (r < 0)
                return say_bad_reply("vmunit", r);

        if (a->json) {
                json_print(backends);
                return 0;
        }
        return backends_print(backends, !a->no_legend);
}
