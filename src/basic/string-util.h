/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

static inline bool streq(const char *a, const char *b) {
        return strcmp(a, b) == 0;
}

static inline bool streq_ptr(const char *a, const char *b) {
        return a == b || (a && b && strcmp(a, b) == 0);
}

static inline bool isempty(const char *s) {
        return !s || !*s;
}

static inline const char *strempty(const char *s) {
        return s ?: "";
}

/* The rest of s behind prefix, or NULL. */
static inline const char *startswith(const char *s, const char *prefix) {
        size_t l = strlen(prefix);

        return strncmp(s, prefix, l) == 0 ? s + l : NULL;
}

bool endswith(const char *s, const char *suffix);

/* printf into new memory; NULL when there is none. */
char *strjoinf(const char *format, ...) _printf_(1, 2);

/* Replaces *p by a copy of s (NULL allowed). 0 or -ENOMEM, then *p is as before. */
int free_and_strdup(char **p, const char *s);

/* NULL-terminated string vectors, owned by the caller. */
char **strv_free(char **l);
size_t strv_length(char *const *l);
int strv_extend(char ***l, const char *s);
/* Takes s over, also on error. */
int strv_consume(char ***l, char *s);
int strv_extendf(char ***l, const char *format, ...) _printf_(2, 3);
bool strv_contains(char *const *l, const char *s);
char *strv_join(char *const *l, const char *separator);

static inline void strv_freep(char ***l) {
        strv_free(*l);
}

#define _cleanup_strv_free_ _cleanup_(strv_freep)
#define STRV_FOREACH(s, l) for (char *const *s = (l); s && *s; s++)

/* Length of the valid UTF-8 character at p, of which n bytes can be read; 0 if it is none (RFC 3629: no overlong form, no
 * surrogate, nothing above U+10FFFF) or n is 0. */
size_t utf8_char_length(const void *p, size_t n);

/* Makes bytes that a VMM or guest wrote fit for a log: control characters but \n and broken UTF-8 become \xNN, the result has
 * at most max bytes (the end is kept, for the last words say what went wrong). NULL when there is no memory. */
char *escape_untrusted(const void *bytes, size_t n, size_t max);

/* How many single edits (insert, delete, replace, swap of neighbours) lie between two words; for "did you mean". */
unsigned edit_distance(const char *a, const char *b);
