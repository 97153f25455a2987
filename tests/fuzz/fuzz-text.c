/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/name-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"

#include "fuzz.h"

/* Sizes, times, names, and what guests and VMMs say on their way to a log. */

static void check_numbers(const char *s) {
        uint64_t v, again;
        uint32_t u;

        if (parse_size(s, &v) >= 0) {
                _cleanup_free_ char *text = format_size(v);

                fuzz_assert(text && parse_size(text, &again) >= 0 && again == v);
        }
        if (parse_sec(s, &v) >= 0) {
                _cleanup_free_ char *text = format_sec(v);

                fuzz_assert(text && parse_sec(text, &again) >= 0 && again == v);
        }
        if (parse_u32(s, &u) >= 0)
                fuzz_assert(parse_u64(s, &v) >= 0 && v == u);
        (void) parse_percent(s, &v);
        (void) parse_boolean(s);
        (void) parse_log_level(s);
}

static void check_names(const char *s) {
        _cleanup_free_ char *escaped = unit_name_escape(s), *slice = NULL, *cgroup = NULL, *found = NULL;

        fuzz_assert(escaped && !strchr(escaped, '/'));
        free(vm_name_from_cgroup(s));
        if (!vm_name_is_valid(s))
                return;
        slice = vm_slice_name(s);
        fuzz_assert(slice && strlen(slice) <= 255);
        cgroup = strjoinf("/machine.slice/machine-vmunit.slice/%s/x.scope", slice);
        found = vm_name_from_cgroup(cgroup);
        fuzz_assert(found && streq(found, s));
}

static void check_escaped(const void *p, size_t n, size_t max) {
        _cleanup_free_ char *s = escape_untrusted(p, n, max);
        size_t k;

        fuzz_assert(s && strlen(s) <= max);
        for (const char *q = s; *q; q += k) {
                k = utf8_char_length(q, strlen(q));
                fuzz_assert(k > 0 && ((unsigned char) *q >= ' ' || *q == '\n') && *q != 0x7f);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_free_ char *s = fuzz_string(data, size);

        check_numbers(s);
        check_names(s);
        check_escaped(data, size, 64);
        check_escaped(data, size, 2 * size + 16);
        return 0;
}
