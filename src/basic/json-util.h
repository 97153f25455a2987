/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <json-c/json.h>

#include "basic/macro.h"

static inline void json_object_putp(json_object **o) {
        if (*o)
                json_object_put(*o);
}
#define _cleanup_json_ _cleanup_(json_object_putp)

/* Parses one JSON value (RFC 8259; null is NULL) strictly: nothing behind it, no duplicate keys, no comments or NaN, no
 * NUL (also not as \u0000), valid UTF-8 without lone surrogates, at most depth levels, integers that fit int64 or
 * uint64, other numbers that fit a double. Refused as well: surrogate pairs that json-c misreads (U+xD800 to U+xDFFF as
 * \uXXXX\uXXXX; as themselves they are fine). On -EINVAL *ret_error (caller frees) says what is wrong and where:
 * "cpus: … (line 1, column 9)", or "NAME: … (line 1, column 9)" when it is not JSON. Columns are bytes. */
int json_parse_named(const char *name, const char *text, size_t n, unsigned depth, json_object **ret, char **ret_error);

static inline int json_parse_strict(const char *text, size_t n, unsigned depth, json_object **ret, char **ret_error) {
        return json_parse_named("JSON", text, n, depth, ret, ret_error);
}

/* What a VMM sends: like the above, but what a parsed text may cost is bounded (`[]` takes a hundred times the memory that it has as
 * text), and what json-c is lax about may pass. -EBADMSG, -EMSGSIZE. */
#define JSON_CONTAINERS_MAX 8192U       /* objects and arrays, */
#define JSON_COMMAS_MAX 65536U          /* and separators */
int json_parse_bounded(const char *text, size_t n, json_object **ret);

/* For building: add a member to an object or an element to an array. Take the value over, and give false for no memory, which is
 * also what a value of NULL means. */
bool json_put(json_object *o, const char *key, json_object *value);
bool json_put_string(json_object *o, const char *key, const char *s);
bool json_put_bool(json_object *o, const char *key, bool b);
bool json_put_int(json_object *o, const char *key, int64_t i);
bool json_append(json_object *array, json_object *value);

/* A value ("an object" and "an array" for those) or a key for messages: bounded, strings quoted, without control
 * characters. */
#define JSON_SHOW_MAX 80
const char *json_show(json_object *o, char buf[static JSON_SHOW_MAX]);
const char *json_show_key(const char *key, char buf[static JSON_SHOW_MAX]);

/* Lenient getters for what VMMs answer: the member, or the given default when it is missing or of another type. */
json_object *json_get(json_object *o, const char *key);
const char *json_get_string(json_object *o, const char *key, const char *def);
int64_t json_get_int(json_object *o, const char *key, int64_t def);
bool json_get_bool(json_object *o, const char *key, bool def);
