/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>

#include "basic/json-util.h"
#include "basic/string-util.h"

/* The grammar is json-c's. But even when strict it is too kind, differently in each version: the last of two equal keys
 * wins, numbers are clamped, NaN, 'keys', 01, 1., control characters, broken UTF-8, NUL and lone surrogates pass. So
 * all strings, numbers and brackets of the text are looked through first, with no care for what lies between them. */

#define BOUNDED_DEPTH 32

#define DIGITS "0123456789"
#define HEX_DIGITS DIGITS "abcdefABCDEF"

typedef struct Level {
        json_object *keys;              /* of an object, so far; NULL: an array, or the whole text */
        char *key;                      /* the current one */
        size_t index;
} Level;

typedef struct Scan {
        const char *name;               /* of the whole text, for messages */
        const char *text, *p;
        unsigned depth;
        Level *levels, *top;            /* the first is the whole text */
        char *error;
} Scan;

static void level_done(Level *l) {
        json_object_put(l->keys);
        free(l->key);
        *l = (Level) {};
}

static void scan_done(Scan *s) {
        for (unsigned i = 0; s->levels && i <= s->depth; i++)
                level_done(s->levels + i);
        free(s->levels);
}

static void print_path(FILE *f, const Scan *s) {
        char shown[JSON_SHOW_MAX];

        for (const Level *l = s->levels + 1; l <= s->top; l++)
                if (!l->keys)
                        fprintf(f, "[%zu]", l->index);
                else if (l->key)
                        fprintf(f, "%s%s", ftell(f) > 0 ? "." : "", json_show_key(l->key, shown));
        if (ftell(f) == 0)
                fputs(s->name, f);
}

static int refuse(Scan *s, const char *at, const char *what) {
        const char *bol = s->text;
        unsigned line = 1;
        size_t n;
        FILE *f;

        for (const char *q = s->text; q < at; q++)
                if (*q == '\n') {
                        line++;
                        bol = q + 1;
                }
        f = open_memstream(&s->error, &n);
        if (!f)
                return -ENOMEM;
        print_path(f, s);
        fprintf(f, ": %s (line %u, column %zu)", what, line, (size_t) (at - bol) + 1);
        return fclose(f) == 0 ? -EINVAL : -ENOMEM;
}

/* Behind a key, which json-c decodes */
static int scan_key(Scan *s, const char *quoted) {
        _cleanup_free_ char *copy = strndup(quoted, (size_t) (s->p - quoted));
        enum json_tokener_error e = json_tokener_success;
        _cleanup_json_ json_object *decoded = copy ? json_tokener_parse_verbose(copy, &e) : NULL;
        Level *l = s->top;

        if (e != json_tokener_success)
                return refuse(s, quoted, json_tokener_error_desc(e));
        if (!decoded || free_and_strdup(&l->key, json_object_get_string(decoded)) < 0)
                return -ENOMEM;
        if (json_object_object_get_ex(l->keys, l->key, NULL))
                return refuse(s, quoted, "this key is there twice, write it once");
        return json_object_object_add(l->keys, l->key, NULL) < 0 ? -ENOMEM : 0;
}

/* Is this \uDXXX with that X? */
static bool is_surrogate(const char *p, const char *x) {
        return p[0] == '\\' && p[1] == 'u' && strspn(p + 2, HEX_DIGITS) >= 4 && (p[2] | 0x20) == 'd' && strchr(x, p[3]);
}

/* The length of the character that p is or escapes, or 0 and why it is none */
static size_t character(const char *p, const char **ret_why) {
        *ret_why = "a NUL character (\\u0000) is not allowed";
        if (strncmp(p, "\\u0000", 6) == 0)
                return 0;
        *ret_why = "half of a surrogate pair is not a character";
        if (is_surrogate(p, "cdefCDEF") || (is_surrogate(p, "89abAB") && !is_surrogate(p + 6, "cdefCDEF")))
                return 0;
        *ret_why = "this character must not be written as \\uXXXX\\uXXXX";
        if (is_surrogate(p, "89abAB"))  /* json-c takes U+1D800 to U+1DFFF, U+2D800… for halves of pairs. */
                return strchr("37bBfF", p[4]) && strchr("67", p[5]) ? 0 : 12;
        *ret_why = "a control character must be written as \\uXXXX";
        if ((unsigned char) *p < 0x20)
                return 0;
        *ret_why = "this is not valid UTF-8";
        return *p == '\\' && p[1] ? 2 : utf8_char_length(p, strnlen(p, 4));
}

static int scan_string(Scan *s) {
        const char *open = s->p++, *why;

        while (*s->p && *s->p != '"') {
                size_t l = character(s->p, &why);

                if (l == 0)
                        return refuse(s, s->p, why);
                s->p += l;
        }
        if (!*s->p)
                return 0;
        s->p++;
        return s->top->keys && s->p[strspn(s->p, " \t\r\n")] == ':' ? scan_key(s, open) : 0;
}

static int scan_number(Scan *s) {
        const char *p = s->p, *digits = p + (*p == '-'), *end = p + strspn(p, DIGITS "+-.eE");
        const char *point = memchr(p, '.', (size_t) (end - p));
        bool integer = digits + strspn(digits, DIGITS) == end;

        s->p = end;
        if (digits[0] == '0' && isdigit((unsigned char) digits[1]))
                return refuse(s, p, "a number must not begin with 0");
        if (point && (!isdigit((unsigned char) point[-1]) || !isdigit((unsigned char) point[1])))
                return refuse(s, point, "a decimal point must be between digits");
        errno = 0;
        if (integer)
                (void) (*p == '-' ? (uint64_t) strtoll(p, NULL, 10) : strtoull(p, NULL, 10));
        if (integer ? errno == ERANGE : isinf(strtod(p, NULL)))
                return refuse(s, p, "this number is too large");
        return 0;
}

static int scan_mark(Scan *s) {
        char c = *s->p++;

        if (c == ',') {
                s->top->index++;
                free(TAKE_PTR(s->top->key));
        } else if (c == '{' || c == '[') {
                if (s->top == s->levels + s->depth) {
                        s->top = s->levels;
                        return refuse(s, s->p - 1, "the nesting is too deep");
                }
                s->top++;
                s->top->keys = c == '{' ? json_object_new_object() : NULL;
                return c == '{' && !s->top->keys ? -ENOMEM : 0;
        } else if (c == '}' || c == ']') {
                if (s->top == s->levels)
                        return refuse(s, s->p - 1, "this bracket was not opened");
                level_done(s->top--);
        }
        return 0;
}

static int scan(Scan *s) {
        int k = 0;

        while (k >= 0 && *s->p)
                if (*s->p == '"')
                        k = scan_string(s);
                else if (*s->p == '-' || isdigit((unsigned char) *s->p))
                        k = scan_number(s);
                else if (*s->p == '\'')
                        k = refuse(s, s->p, "strings must be in double quotes");
                else if (startswith(s->p, "Infinity") || startswith(s->p, "NaN"))
                        k = refuse(s, s->p, "Infinity and NaN are no numbers here");
                else
                        k = scan_mark(s);
        return k;
}

static int parse(Scan *s, const char *text, int flags, json_object **ret) {
        _cleanup_json_ json_object *o = NULL;
        enum json_tokener_error e;
        json_tokener *t;
        size_t end;

        t = json_tokener_new_ex((int) s->depth + 1);    /* for a number in the deepest array */
        if (!t)
                return -ENOMEM;
        json_tokener_set_flags(t, flags);
        o = json_tokener_parse_ex(t, text, -1);
        e = json_tokener_get_error(t);
        end = MIN(json_tokener_get_parse_end(t), strlen(text));  /* 0.16 also counts the NUL, sometimes */
        json_tokener_free(t);
        s->top = s->levels;
        if (e != json_tokener_success)
                return refuse(s, s->text + end, json_tokener_error_desc(e));
        if (text[end])
                return -ENOMEM;         /* json-c 0.16 is silent about that */
        *ret = TAKE_PTR(o);
        return 0;
}

/* json-c 0.18 takes only ASCII when it is strict: so that is for the grammar alone, then the text is read. */
static int parse_twice(Scan *s, json_object **ret) {
        _cleanup_free_ char *ascii = strdup(s->text);
        _cleanup_json_ json_object *o = NULL;
        int k;

        if (!ascii)
                return -ENOMEM;
        for (char *q = ascii; *q; q++)
                if (!isascii((unsigned char) *q))
                        *q = 'x';
        k = parse(s, ascii, JSON_TOKENER_STRICT, &o);
        return k < 0 ? k : parse(s, s->text, 0, ret);
}

int json_parse_named(const char *name, const char *text, size_t n, unsigned depth, json_object **ret,
                     char **ret_error) {
        _cleanup_free_ char *copy = NULL;
        _cleanup_(scan_done) Scan s = { .name = name, .depth = depth };
        int k;

        if (n > INT_MAX / 2)
                return -EFBIG;
        s.text = s.p = copy = strndup(text, n);
        s.levels = s.top = new0(Level, (size_t) depth + 1);
        if (!copy || !s.levels)
                return -ENOMEM;

        k = strlen(copy) < n ? refuse(&s, copy + strlen(copy), "a NUL byte is not allowed") : scan(&s);
        if (k >= 0)
                k = parse_twice(&s, ret);
        if (k == -EINVAL)
                *ret_error = s.error;
        else
                free(s.error);
        return k;
}

json_object *json_get(json_object *o, const char *key) {
        json_object *v;

        if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v))
                return NULL;
        return v;
}

const char *json_get_string(json_object *o, const char *key, const char *def) {
        json_object *v = json_get(o, key);

        return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : def;
}

int64_t json_get_int(json_object *o, const char *key, int64_t def) {
        json_object *v = json_get(o, key);

        return json_object_is_type(v, json_type_int) ? json_object_get_int64(v) : def;
}

bool json_get_bool(json_object *o, const char *key, bool def) {
        json_object *v = json_get(o, key);

        return json_object_is_type(v, json_type_boolean) ? json_object_get_boolean(v) : def;
}

/* What may cost much is counted before. */
static bool is_cheap(const char *s, size_t n) {
        size_t containers = 0, commas = 0;

        for (size_t i = 0; i < n; i++) {
                containers += s[i] == '{' || s[i] == '[';
                commas += s[i] == ',';
        }
        return containers <= JSON_CONTAINERS_MAX && commas <= JSON_COMMAS_MAX;
}

int json_parse_bounded(const char *text, size_t n, json_object **ret) {
        _cleanup_json_ json_object *o = NULL;
        json_tokener *t;
        bool good;

        if (n > INT_MAX || !is_cheap(text, n))
                return -EMSGSIZE;

        t = json_tokener_new_ex(BOUNDED_DEPTH);
        if (!t)
                return -ENOMEM;
        json_tokener_set_flags(t, JSON_TOKENER_STRICT|JSON_TOKENER_VALIDATE_UTF8);
        o = json_tokener_parse_ex(t, text, (int) n);
        good = json_tokener_get_error(t) == json_tokener_success && json_tokener_get_parse_end(t) == n;
        json_tokener_free(t);
        if (!good || !o)
                return -EBADMSG;

        *ret = TAKE_PTR(o);
        return 0;
}

bool json_put(json_object *o, const char *key, json_object *value) {
        if (value && json_object_object_add(o, key, value) == 0)
                return true;
        json_object_put(value);
        return false;
}

bool json_put_string(json_object *o, const char *key, const char *s) {
        return json_put(o, key, json_object_new_string(s));
}

bool json_put_bool(json_object *o, const char *key, bool b) {
        return json_put(o, key, json_object_new_boolean(b));
}

bool json_put_int(json_object *o, const char *key, int64_t i) {
        return json_put(o, key, json_object_new_int64(i));
}

bool json_append(json_object *array, json_object *value) {
        if (value && json_object_array_add(array, value) == 0)
                return true;
        json_object_put(value);
        return false;
}

/* Copies s, control characters as \xNN, and breaks it off with an ellipsis when it is long. */
static char *show(const char *s, const char *quote, char buf[static JSON_SHOW_MAX]) {
        char *q = stpcpy(buf, quote);
        size_t l;

        for (; *s; s += l) {
                const unsigned char *u = (const unsigned char *) s;

                l = utf8_char_length(s, strlen(s));
                if (q - buf > JSON_SHOW_MAX - 16) {
                        q = stpcpy(q, "…");
                        break;
                }
                if (l == 0 || *u < 0x20 || *u == 0x7f || (l == 2 && u[0] == 0xc2 && u[1] < 0xa0)) {
                        l = MAX(l, (size_t) 1);
                        for (size_t i = 0; i < l; i++)
                                q += sprintf(q, "\\x%02x", u[i]);
                } else
                        q = mempcpy(q, s, l);
        }
        strcpy(q, quote);
        return buf;
}

const char *json_show_key(const char *key, char buf[static JSON_SHOW_MAX]) {
        return show(key, "", buf);
}

const char *json_show(json_object *o, char buf[static JSON_SHOW_MAX]) {
        switch (json_object_get_type(o)) {
        case json_type_string:
                return show(json_object_get_string(o), "\"", buf);
        case json_type_object:
                return "an object";
        case json_type_array:
                return "an array";
        default:
                return show(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN), "", buf);
        }
}
