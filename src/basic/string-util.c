/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>

#include "basic/string-util.h"

bool endswith(const char *s, const char *suffix) {
        size_t l = strlen(s), n = strlen(suffix);

        return l >= n && streq(s + l - n, suffix);
}

char *strjoinf(const char *format, ...) {
        va_list ap;
        char *s;
        int r;

        va_start(ap, format);
        r = vasprintf(&s, format, ap);
        va_end(ap);
        return r < 0 ? NULL : s;
}

int free_and_strdup(char **p, const char *s) {
        char *t = NULL;

        if (s) {
                t = strdup(s);
                if (!t)
                        return -ENOMEM;
        }

        free(*p);
        *p = t;
        return 0;
}

char **strv_free(char **l) {
        STRV_FOREACH(s, l)
                free(*s);
        free(l);
        return NULL;
}

size_t strv_length(char *const *l) {
        size_t n = 0;

        STRV_FOREACH(s, l)
                n++;
        return n;
}

int strv_consume(char ***l, char *s) {
        size_t n = strv_length(*l);
        char **t;

        if (!s)
                return -ENOMEM;

        t = reallocarray(*l, n + 2, sizeof(char *));
        if (!t) {
                free(s);
                return -ENOMEM;
        }

        t[n] = s;
        t[n + 1] = NULL;
        *l = t;
        return 0;
}

int strv_extend(char ***l, const char *s) {
        return strv_consume(l, strdup(s));
}

int strv_extendf(char ***l, const char *format, ...) {
        va_list ap;
        char *s;
        int r;

        va_start(ap, format);
        r = vasprintf(&s, format, ap);
        va_end(ap);
        return r < 0 ? -ENOMEM : strv_consume(l, s);
}

bool strv_contains(char *const *l, const char *s) {
        STRV_FOREACH(i, l)
                if (streq(*i, s))
                        return true;
        return false;
}

char *strv_join(char *const *l, const char *separator) {
        size_t n = 1, k = strlen(separator);
        char *r, *p;

        STRV_FOREACH(s, l)
                n += strlen(*s) + k;

        p = r = malloc(n);
        if (!r)
                return NULL;

        *p = 0;
        STRV_FOREACH(s, l) {
                if (s != l)
                        p = stpcpy(p, separator);
                p = stpcpy(p, *s);
        }
        return r;
}

size_t utf8_char_length(const void *bytes, size_t n) {
        const uint8_t *p = bytes;
        size_t l = n == 0 ? 0 : p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;

        if (l == 0 || l > n)
                return 0;
        for (size_t i = 1; i < l; i++)
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
        if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
            (p[0] == 0xf4 && p[1] > 0x8f))
                return 0;
        return l;
}

/* C0, DEL and C1 (U+0080 to U+009F) */
static bool is_control(const uint8_t *p, size_t l) {
        return (l == 1 && (p[0] < 0x20 || p[0] == 0x7f)) || (l == 2 && p[0] == 0xc2 && p[1] < 0xa0);
}

char *escape_untrusted(const void *bytes, size_t n, size_t max) {
        const uint8_t *p = bytes, *end = p + n;
        char *r, *q;
        size_t l;

        /* No byte shrinks by escaping, so what is farther than max from the end can't be in the result. */
        if (n > max)
                for (p = end - max; p < end && p < end - max + 3 && (*p & 0xc0) == 0x80; p++)
                        ; /* not from the middle of a character */

        q = r = malloc((size_t) (end - p) * 4 + 1);
        if (!r)
                return NULL;

        for (; p < end; p += MAX(l, (size_t) 1)) {
                l = utf8_char_length(p, (size_t) (end - p));
                if (l == 1 && *p == '\n')
                        *q++ = '\n';
                else if (l == 0 || is_control(p, l))
                        for (size_t i = 0; i < MAX(l, (size_t) 1); i++)
                                q += sprintf(q, "\\x%02x", p[i]);
                else
                        q = mempcpy(q, p, l);
        }
        *q = 0;

        l = (size_t) (q - r);
        if (l > max) {
                size_t skip = l - max;

                while (skip < l && ((uint8_t) r[skip] & 0xc0) == 0x80)
                        skip++;
                memmove(r, r + skip, l - skip + 1);
        }
        return r;
}

unsigned edit_distance(const char *a, const char *b) {
        size_t n = strlen(a), m = strlen(b);
        unsigned d[3][65];

        if (n > 64 || m > 64)
                return UINT32_MAX;

        for (size_t j = 0; j <= m; j++)
                d[0][j] = (unsigned) j;
        for (size_t i = 1; i <= n; i++) {
                unsigned *row = d[i % 3], *above = d[(i + 2) % 3], *above2 = d[(i + 1) % 3];

                row[0] = (unsigned) i;
                for (size_t j = 1; j <= m; j++) {
                        row[j] = MIN(above[j], row[j - 1]) + 1;
                        row[j] = MIN(row[j], above[j - 1] + (a[i - 1] != b[j - 1]));
                        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                                row[j] = MIN(row[j], above2[j - 2] + 1);
                }
        }
        return d[n % 3][m];
}
