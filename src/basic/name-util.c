/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <systemd/sd-id128.h>

#include "basic/name-util.h"
#include "basic/string-util.h"

#define SLICE_PREFIX "machine-vmunit-"
#define UNIT_NAME_MAX 255

static bool is_name_char(char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
}

/* Labels of 1-63 characters between dots, none begins or ends with a dash: see hostname(7). */
static bool is_hostname(const char *s) {
        for (const char *p = s; *p; p++) {
                bool first = p == s || p[-1] == '.', last = p[1] == 0 || p[1] == '.';

                if (!is_name_char(*p))
                        return false;
                if (*p == '.' ? first || last : *p == '-' && (first || last))
                        return false;
        }
        return *s;
}

bool vm_name_is_valid(const char *name) {
        _cleanup_free_ char *slice = NULL;
        sd_id128_t id;

        if (strlen(name) > 63 || !is_hostname(name) || streq(name, "localhost"))
                return false;
        if (sd_id128_from_string(name, &id) >= 0)
                return false;

        slice = vm_slice_name(name);
        return slice && strlen(slice) <= UNIT_NAME_MAX;
}

char *unit_name_escape(const char *s) {
        char *r, *p;

        p = r = malloc(strlen(s) * 4 + 1);
        if (!r)
                return NULL;

        for (const char *c = s; *c; c++) {
                bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
                             *c == ':' || *c == '_' || (*c == '.' && c != s);

                if (*c == '/')
                        *p++ = '-';
                else if (plain)
                        *p++ = *c;
                else
                        p += sprintf(p, "\\x%02x", (unsigned char) *c);
        }
        *p = 0;
        return r;
}

static char *unit_name(const char *prefix, const char *name, const char *suffix) {
        _cleanup_free_ char *e = unit_name_escape(name);

        return e ? strjoinf("%s%s%s", prefix, e, suffix) : NULL;
}

char *vm_slice_name(const char *name) {
        return unit_name(SLICE_PREFIX, name, ".slice");
}

char *vm_scope_name(const char *name) {
        return unit_name("vmunit-", name, ".scope");
}

static char *part_scope_name(const char *name, const char *what, const char *part) {
        _cleanup_free_ char *n = unit_name_escape(name), *p = unit_name_escape(part);

        return n && p ? strjoinf("vmunit-%s-%s-%s.scope", n, what, p) : NULL;
}

char *share_scope_name(const char *name, const char *tag) {
        return part_scope_name(name, "fs", tag);
}

char *network_scope_name(const char *name, const char *network) {
        return part_scope_name(name, "net", network);
}

static char *unescape(const char *s, size_t n) {
        char *r, *p;

        p = r = malloc(n + 1);
        if (!r)
                return NULL;

        for (size_t i = 0; i < n; i++) {
                unsigned c;

                if (s[i] == '\\' && i + 3 < n && s[i + 1] == 'x' && sscanf(s + i + 2, "%2x", &c) == 1) {
                        *p++ = (char) c;
                        i += 3;
                } else
                        *p++ = s[i];
        }
        *p = 0;
        return r;
}

char *vm_name_from_cgroup(const char *cgroup) {
        const char *p, *e;

        p = strstr(cgroup, "/" SLICE_PREFIX);
        if (!p)
                return NULL;
        p += strlen("/" SLICE_PREFIX);
        e = strstr(p, ".slice/");
        return e ? unescape(p, (size_t) (e - p)) : NULL;
}
