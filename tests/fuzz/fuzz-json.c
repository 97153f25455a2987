/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/json-util.h"

#include "fuzz.h"

/* Both parsers; what the strict one takes is still the same after a turn as text, and the other one takes it too. */

#define DEPTH 8

static void look_around(json_object *o) {
        char buf[JSON_SHOW_MAX];

        fuzz_assert(strlen(json_show(o, buf)) < JSON_SHOW_MAX);
        fuzz_assert(json_get_string(o, "a", ""));
        (void) json_get_int(o, "a", 1);
        (void) json_get_bool(o, "a", true);
        if (!json_object_is_type(o, json_type_object))
                return;
        json_object_object_foreach(o, key, value) {
                fuzz_assert(json_get(o, key) == value);
                fuzz_assert(strlen(json_show_key(key, buf)) < JSON_SHOW_MAX);
                look_around(value);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_json_ json_object *strict = NULL, *bounded = NULL, *again = NULL;
        _cleanup_free_ char *text = fuzz_string(data, size), *error = NULL, *other = NULL;
        const char *written;
        int r, b;

        r = json_parse_strict(text, size, DEPTH, &strict, &error);
        fuzz_assert((r == -EINVAL) == (error != NULL));
        b = json_parse_bounded(text, size, &bounded);
        fuzz_assert(b >= 0 || !bounded);
        if (b >= 0)
                look_around(bounded);
        if (r < 0)
                return 0;

        look_around(strict);
        /* json-c takes no bare number that ends with the text. */
        if (json_object_is_type(strict, json_type_object) || json_object_is_type(strict, json_type_array))
                fuzz_assert(b >= 0);
        written = json_object_to_json_string_ext(strict, JSON_C_TO_STRING_PLAIN);
        fuzz_assert(json_parse_strict(written, strlen(written), DEPTH, &again, &other) >= 0);
        fuzz_assert(json_object_equal(strict, again));
        return 0;
}
