/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

#include "basic/json-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/definition-internal.h"

int oom(sd_bus_error *error) {
        sd_bus_error_set_errno(error, -ENOMEM);
        return -ENOMEM;
}

size_t reader_enter(DefinitionReader *r, const char *format, ...) {
        size_t before = r->path_length, room = sizeof(r->path) - before;
        va_list ap;
        int n;

        va_start(ap, format);
        n = vsnprintf(r->path + before, room, format, ap);
        va_end(ap);
        if (n > 0)
                r->path_length += MIN((size_t) n, room - 1);
        return before;
}

void reader_leave(DefinitionReader *r, size_t before) {
        r->path_length = before;
        r->path[before] = 0;
}

int reader_refuse(DefinitionReader *r, const char *key, const char *format, ...) {
        _cleanup_free_ char *what = NULL;
        char shown[JSON_SHOW_MAX];
        va_list ap;
        int k;

        va_start(ap, format);
        k = vasprintf(&what, format, ap);
        va_end(ap);
        if (k < 0) {
                what = NULL;            /* undefined then, vasprintf(3) */
                return oom(r->error);
        }

        if (key)
                sd_bus_error_setf(r->error, VMUNIT_ERROR_INVALID_DEFINITION, "%s%s%s: %s", r->path,
                                  r->path_length > 0 ? "." : "", json_show_key(key, shown), what);
        else
                sd_bus_error_setf(r->error, VMUNIT_ERROR_INVALID_DEFINITION, "%s: %s",
                                  r->path_length > 0 ? r->path : "definition", what);
        return -EINVAL;
}

/* "Disks" and "disks" are one edit apart at most, however much is in capitals. */
static unsigned distance(const char *a, const char *b) {
        char x[64], y[64];
        size_t i;

        if (strlen(a) >= sizeof(x) || strlen(b) >= sizeof(y))
                return UINT_MAX;
        for (i = 0; a[i]; i++)
                x[i] = (char) tolower((unsigned char) a[i]);
        x[i] = 0;
        for (i = 0; b[i]; i++)
                y[i] = (char) tolower((unsigned char) b[i]);
        y[i] = 0;
        return edit_distance(x, y);
}

static int unknown_key(DefinitionReader *r, const char *key, const char *const *keys) {
        _cleanup_free_ char *list = NULL;
        const char *nearest = NULL;
        unsigned best = UINT_MAX;

        for (const char *const *k = keys; *k; k++) {
                unsigned n = distance(key, *k);

                if (n < best) {
                        best = n;
                        nearest = *k;
                }
        }
        if (nearest && best <= 3 && 2 * best <= strlen(nearest))
                return reader_refuse(r, key, "unknown key, did you mean \"%s\"?", nearest);

        list = strv_join((char *const *) keys, ", ");
        if (!list)
                return oom(r->error);
        return reader_refuse(r, key, "unknown key, known are %s", list);
}

static const char *type_name(json_object *o) {
        switch (json_object_get_type(o)) {
        case json_type_null:
                return "null";
        case json_type_boolean:
                return "true or false";
        case json_type_double:
                return "a fraction";
        case json_type_int:
                return "a number";
        case json_type_object:
                return "an object";
        case json_type_array:
                return "an array";
        default:
                return "a string";
        }
}

static const char *wanted_name(json_type type) {
        switch (type) {
        case json_type_boolean:
                return "true or false";
        case json_type_int:
                return "a whole number";
        case json_type_object:
                return "an object {…}";
        case json_type_array:
                return "an array […]";
        default:
                return "a string";
        }
}

static int wrong_type(DefinitionReader *r, const char *key, json_object *v, const char *want) {
        if (json_object_is_type(v, json_type_boolean))
                return reader_refuse(r, key, "must be %s, not %s", want, json_object_get_boolean(v) ? "true" : "false");
        return reader_refuse(r, key, "must be %s, not %s", want, type_name(v));
}

int reader_check_keys(DefinitionReader *r, json_object *o, const char *const *keys) {
        if (!json_object_is_type(o, json_type_object))
                return wrong_type(r, NULL, o, wanted_name(json_type_object));
        json_object_object_foreach(o, key, value) {
                (void) value;
                if (!strv_contains((char *const *) keys, key))
                        return unknown_key(r, key, keys);
        }
        return 0;
}

/* The member, of whatever type, if it counts as there */
static bool get_any(DefinitionReader *r, json_object *o, const char *key, json_object **ret) {
        json_object *v;

        if (!json_object_object_get_ex(o, key, &v) || (!v && r->null_is_missing))
                return false;
        *ret = v;
        return true;
}

int reader_get(DefinitionReader *r, json_object *o, const char *key, json_type type, json_object **ret) {
        json_object *v;

        if (!get_any(r, o, key, &v))
                return 0;
        if (!json_object_is_type(v, type))
                return wrong_type(r, key, v, wanted_name(type));
        *ret = v;
        return 1;
}

int reader_missing(DefinitionReader *r, const char *key, const char *want) {
        return reader_refuse(r, key, "missing, write %s", want);
}

int reader_bool(DefinitionReader *r, json_object *o, const char *key, bool *ret) {
        json_object *v = NULL;
        int k;

        k = reader_get(r, o, key, json_type_boolean, &v);
        if (k <= 0)
                return k;
        *ret = json_object_get_boolean(v);
        return 0;
}

int reader_integer(DefinitionReader *r, json_object *o, const char *key, int64_t min, int64_t max, int64_t *ret) {
        char shown[JSON_SHOW_MAX];
        json_object *v;
        int64_t i;
        int k;

        k = reader_get(r, o, key, json_type_int, &v);
        if (k <= 0)
                return k;
        i = json_object_get_int64(v);   /* INT64_MAX for all above */
        if (i < min || i > max)
                return reader_refuse(r, key, "%s is out of range, write %lld to %lld", json_show(v, shown),
                                     (long long) min, (long long) max);
        *ret = i;
        return 0;
}

int reader_word(DefinitionReader *r, json_object *o, const char *key, const char *const *words, int *ret) {
        _cleanup_free_ char *list = NULL;
        char shown[JSON_SHOW_MAX];
        json_object *v;
        int k;

        k = reader_get(r, o, key, json_type_string, &v);
        if (k <= 0)
                return k;
        for (int i = 0; words[i]; i++)
                if (streq(words[i], json_object_get_string(v))) {
                        *ret = i;
                        return 0;
                }
        list = strv_join((char *const *) words, ", ");
        if (!list)
                return oom(r->error);
        return reader_refuse(r, key, "%s is unknown, write one of %s", json_show(v, shown), list);
}

bool has_control_characters(const char *s) {
        for (; *s; s++)
                if ((unsigned char) *s < 0x20 || *s == 0x7f)
                        return true;
        return false;
}

int reader_absolute_path(DefinitionReader *r, json_object *o, const char *key, char **ret) {
        char shown[JSON_SHOW_MAX], *copy;
        const char *s;
        json_object *v;
        int k;

        k = reader_get(r, o, key, json_type_string, &v);
        if (k <= 0)
                return k;
        s = json_object_get_string(v);
        if (s[0] != '/')
                return reader_refuse(r, key, "%s is not an absolute path, write one that begins with /",
                                     json_show(v, shown));
        if (strlen(s) >= PATH_MAX)
                return reader_refuse(r, key, "a path of %zu bytes is too long, at most %d are possible", strlen(s),
                                     PATH_MAX - 1);
        if (has_control_characters(s))
                return reader_refuse(r, key, "%s has control characters, write a path without", json_show(v, shown));
        copy = strdup(s);
        if (!copy)
                return oom(r->error);
        free(*ret);
        *ret = copy;
        return 0;
}

/* A quantity: text for parse(), or a whole number that counts units */
static int read_quantity(DefinitionReader *r, json_object *o, const char *key, int (*parse)(const char *, uint64_t *),
                         uint64_t unit, const char *kind, const char *example, uint64_t *ret) {
        char shown[JSON_SHOW_MAX];
        json_object *v;
        uint64_t q;
        int k;

        if (!get_any(r, o, key, &v))
                return 0;
        if (json_object_is_type(v, json_type_int)) {
                if (json_object_get_int64(v) < 0)
                        return reader_refuse(r, key, "%s is not %s, write %s", json_show(v, shown), kind, example);
                k = __builtin_mul_overflow(json_object_get_uint64(v), unit, &q) ? -ERANGE : 0;
        } else if (json_object_is_type(v, json_type_string))
                k = parse(json_object_get_string(v), &q);
        else {
                _cleanup_free_ char *want = strjoinf("%s such as %s", kind, example);

                return want ? wrong_type(r, key, v, want) : oom(r->error);
        }
        if (k == -ERANGE)
                return reader_refuse(r, key, "%s is too large", json_show(v, shown));
        if (k < 0)
                return reader_refuse(r, key, "%s is not %s, write %s", json_show(v, shown), kind, example);
        *ret = q;
        return 0;
}

int reader_size(DefinitionReader *r, json_object *o, const char *key, uint64_t *ret) {
        return read_quantity(r, o, key, parse_size, 1, "a size", "\"512M\" or \"2G\"", ret);
}

int reader_time(DefinitionReader *r, json_object *o, const char *key, uint64_t *ret) {
        return read_quantity(r, o, key, parse_sec, USEC_PER_SEC, "a time", "\"20s\" or \"1min 30s\"", ret);
}
