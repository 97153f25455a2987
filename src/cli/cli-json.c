/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "cli/cli-bus.h"
#include "cli/cli-error.h"
#include "cli/cli-json.h"

static int basic_value(sd_bus_message *m, char type, json_object **ret) {
        union {
                const char *s;
                uint8_t y;
                int b;
                int16_t n;
                uint16_t q;
                int32_t i;
                uint32_t u;
                int64_t x;
                uint64_t t;
                double d;
        } v = {};
        int r;

        r = sd_bus_message_read_basic(m, type, &v);
        if (r < 0)
                return r;

        switch (type) {
        case 'y':
                *ret = json_object_new_int64(v.y);
                break;
        case 'b':
                *ret = json_object_new_boolean(v.b);
                break;
        case 'n':
                *ret = json_object_new_int64(v.n);
                break;
        case 'q':
                *ret = json_object_new_int64(v.q);
                break;
        case 'i':
                *ret = json_object_new_int64(v.i);
                break;
        case 'u':
                *ret = json_object_new_int64(v.u);
                break;
        case 'x':
                *ret = json_object_new_int64(v.x);
                break;
        case 't':
                *ret = json_object_new_uint64(v.t);
                break;
        case 'd':
                *ret = json_object_new_double(v.d);
                break;
        case 'h':
                *ret = NULL; /* a descriptor has no JSON */
                return 0;
        default:
                *ret = json_object_new_string(v.s);
        }
        return *ret ? 0 : -ENOMEM;
}

static int read_dict(sd_bus_message *m, json_object *o) {
        const char *key, *contents;
        json_object *value;
        char type;
        int r;

        for (;;) {
                r = sd_bus_message_peek_type(m, &type, &contents);
                if (r <= 0)
                        return r;
                r = sd_bus_message_enter_container(m, 'e', contents);
                if (r < 0)
                        return r;
                r = sd_bus_message_read_basic(m, contents[0], &key);
                if (r < 0)
                        return r;
                r = json_from_message(m, &value);
                if (r < 0)
                        return r;
                if (json_object_object_add(o, key, value) < 0) {
                        json_object_put(value);
                        return -ENOMEM;
                }
                r = sd_bus_message_exit_container(m);
                if (r < 0)
                        return r;
        }
}

static int read_array(sd_bus_message *m, json_object *a) {
        json_object *value;
        int r;

        for (;;) {
                r = sd_bus_message_at_end(m, false);
                if (r != 0)
                        return MIN(r, 0);
                r = json_from_message(m, &value);
                if (r < 0)
                        return r;
                if (json_object_array_add(a, value) < 0) {
                        json_object_put(value);
                        return -ENOMEM;
                }
        }
}

static int container_value(sd_bus_message *m, char type, const char *contents, json_object **ret) {
        bool dict = type == 'a' && contents[0] == '{' && strchr("sog", contents[1]);
        _cleanup_json_ json_object *o = NULL;
        int r;

        r = sd_bus_message_enter_container(m, type, contents);
        if (r < 0)
                return r;

        if (type == 'v')
                r = json_from_message(m, &o);
        else {
                o = dict ? json_object_new_object() : json_object_new_array();
                r = !o ? -ENOMEM : dict ? read_dict(m, o) : read_array(m, o);
        }
        if (r < 0)
                return r;

        r = sd_bus_message_exit_container(m);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(o);
        return 0;
}

int json_from_message(sd_bus_message *m, json_object **ret) {
        const char *contents;
        char type;
        int r;

        r = sd_bus_message_peek_type(m, &type, &contents);
        if (r < 0)
                return r;
        if (r == 0)
                return -ENXIO;

        return contents ? container_value(m, type, contents, ret) : basic_value(m, type, ret);
}

char *json_print_to_string(json_object *o, bool pretty) {
        const uint8_t *p = (const uint8_t *) json_object_to_json_string_ext(
                o, (pretty ? JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED : JSON_C_TO_STRING_PLAIN) |
                           JSON_C_TO_STRING_NOSLASHESCAPE);
        char *s, *q;

        q = s = p ? new(char, strlen((const char *) p) * 6 + 1) : NULL;
        if (!s)
                return NULL;

        for (; *p; p++)
                if (*p == 0x7f)
                        q = stpcpy(q, "\\u007f");
                else if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
                        q += sprintf(q, "\\u%04x", *++p);
                else
                        *q++ = (char) *p;
        *q = 0;
        return s;
}

void json_print(json_object *o) {
        _cleanup_free_ char *s = json_print_to_string(o, isatty(STDOUT_FILENO));

        if (s)
                puts(s);
        else
                say_oom();
}

static int compare_names(const void *a, const void *b) {
        json_object *const *x = a, *const *y = b;

        return strcmp(json_get_string(*x, "Name", ""), json_get_string(*y, "Name", ""));
}

int json_vms(json_object *objects, json_object **ret) {
        _cleanup_json_ json_object *vms = json_object_new_array();

        if (!vms)
                return -ENOMEM;

        json_object_object_foreach(objects, path, interfaces) {
                json_object *vm;

                (void) path;
                if (!json_object_object_get_ex(interfaces, VM_INTERFACE, &vm))
                        continue;
                if (json_object_array_add(vms, json_object_get(vm)) < 0) {
                        json_object_put(vm);
                        return -ENOMEM;
                }
        }

        json_object_array_sort(vms, compare_names);
        *ret = TAKE_PTR(vms);
        return 0;
}
