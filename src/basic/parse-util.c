/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <stdio.h>
#include <strings.h>
#include <syslog.h>

#include "basic/parse-util.h"
#include "basic/string-util.h"

typedef struct Unit {
        const char *name;
        uint64_t factor;
} Unit;

#define MINUTE (60 * USEC_PER_SEC)
#define HOUR (60 * MINUTE)
#define DAY (24 * HOUR)

static const Unit size_units[] = {
        { "B", 1 },
        { "K", UINT64_C(1) << 10 },
        { "M", UINT64_C(1) << 20 },
        { "G", UINT64_C(1) << 30 },
        { "T", UINT64_C(1) << 40 },
        { "P", UINT64_C(1) << 50 },
        { "E", UINT64_C(1) << 60 },
};

static const Unit time_units[] = {
        { "us", 1 },
        { "usec", 1 },
        { "\xc2\xb5s", 1 },     /* U+00B5, the micro sign */
        { "\xce\xbcs", 1 },     /* U+03BC, the Greek letter */
        { "ms", USEC_PER_MSEC },
        { "msec", USEC_PER_MSEC },
        { "s", USEC_PER_SEC },
        { "sec", USEC_PER_SEC },
        { "second", USEC_PER_SEC },
        { "seconds", USEC_PER_SEC },
        { "m", MINUTE },
        { "min", MINUTE },
        { "minute", MINUTE },
        { "minutes", MINUTE },
        { "h", HOUR },
        { "hr", HOUR },
        { "hour", HOUR },
        { "hours", HOUR },
        { "d", DAY },
        { "day", DAY },
        { "days", DAY },
        { "w", 7 * DAY },
        { "week", 7 * DAY },
        { "weeks", 7 * DAY },
        { "M", 2629800 * USEC_PER_SEC },
        { "month", 2629800 * USEC_PER_SEC },
        { "months", 2629800 * USEC_PER_SEC },
        { "y", 31557600 * USEC_PER_SEC },
        { "year", 31557600 * USEC_PER_SEC },
        { "years", 31557600 * USEC_PER_SEC },
};

static void skip_space(const char **p) {
        *p += strspn(*p, " \t\n\r");
}

static int read_digits(const char **p, uint64_t *ret) {
        uint64_t v = 0;
        const char *s = *p;

        if (!isdigit((unsigned char) *s))
                return -EINVAL;
        for (; isdigit((unsigned char) *s); s++)
                if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t) (*s - '0'), &v))
                        return -ERANGE;
        *p = s;
        *ret = v;
        return 0;
}

/* The digits behind a point, in 10^-18; those beyond are too small to count. */
static int read_fraction(const char **p, uint64_t *ret) {
        uint64_t v = 0, weight = UINT64_C(100000000000000000);
        const char *s = *p;

        if (*s != '.') {
                *ret = 0;
                return 0;
        }
        if (!isdigit((unsigned char) *++s))
                return -EINVAL;
        for (; isdigit((unsigned char) *s); s++, weight /= 10)
                v += (uint64_t) (*s - '0') * weight;
        *p = s;
        *ret = v;
        return 0;
}

/* A unit is a word: it ends where no letter follows. Letters beyond ASCII occur in "µs" alone. */
static const Unit *read_unit(const char **p, const Unit *units, size_t n) {
        size_t l = 0;

        while (isalpha((unsigned char) (*p)[l]) || (unsigned char) (*p)[l] >= 0x80)
                l++;
        for (size_t i = 0; i < n; i++)
                if (strlen(units[i].name) == l && strncmp(units[i].name, *p, l) == 0) {
                        *p += l;
                        return units + i;
                }
        return NULL;
}

/* A number with its unit; without one def counts. What is smaller than one is cut off, as systemd does it. */
static int read_quantity(const char **p, const Unit *units, size_t n, uint64_t def, uint64_t *ret) {
        uint64_t whole, fraction, factor = def, v;
        const char *s = *p, *t;
        int r;

        r = read_digits(&s, &whole);
        if (r < 0)
                return r;
        r = read_fraction(&s, &fraction);
        if (r < 0)
                return r;

        t = s;
        skip_space(&t);
        if (*t && !isdigit((unsigned char) *t)) {
                const Unit *u = read_unit(&t, units, n);

                if (!u)
                        return -EINVAL;
                factor = u->factor;
                s = t;
        }

        fraction = (uint64_t) ((unsigned __int128) fraction * factor / UINT64_C(1000000000000000000));
        if (__builtin_mul_overflow(whole, factor, &v) || __builtin_add_overflow(v, fraction, &v))
                return -ERANGE;
        *p = s;
        *ret = v;
        return 0;
}

int parse_size(const char *s, uint64_t *ret) {
        uint64_t v;
        int r;

        r = read_quantity(&s, size_units, ELEMENTSOF(size_units), 1, &v);
        if (r < 0)
                return r;
        if (*s)
                return -EINVAL;
        *ret = v;
        return 0;
}

int parse_sec(const char *s, uint64_t *ret) {
        uint64_t sum = 0, v;
        int r;

        skip_space(&s);
        if (startswith(s, "infinity")) {
                s += strlen("infinity");
                skip_space(&s);
                if (*s)
                        return -EINVAL;
                *ret = USEC_INFINITY;
                return 0;
        }

        do {
                r = read_quantity(&s, time_units, ELEMENTSOF(time_units), USEC_PER_SEC, &v);
                if (r < 0)
                        return r;
                if (__builtin_add_overflow(sum, v, &sum) || sum == USEC_INFINITY)
                        return -ERANGE;
                skip_space(&s);
        } while (*s);

        *ret = sum;
        return 0;
}

int parse_boolean(const char *s) {
        static const char *const yes[] = { "1", "yes", "y", "true", "t", "on" };
        static const char *const no[] = { "0", "no", "n", "false", "f", "off" };

        for (size_t i = 0; i < ELEMENTSOF(yes); i++) {
                if (strcasecmp(s, yes[i]) == 0)
                        return 1;
                if (strcasecmp(s, no[i]) == 0)
                        return 0;
        }
        return -EINVAL;
}

int parse_u64(const char *s, uint64_t *ret) {
        uint64_t v;
        int r;

        r = read_digits(&s, &v);
        if (r < 0)
                return r;
        if (*s)
                return -EINVAL;
        *ret = v;
        return 0;
}

int parse_u32(const char *s, uint32_t *ret) {
        uint64_t v;
        int r;

        r = parse_u64(s, &v);
        if (r < 0)
                return r;
        if (v > UINT32_MAX)
                return -ERANGE;
        *ret = (uint32_t) v;
        return 0;
}

int parse_percent(const char *s, uint64_t *ret_permyriad) {
        uint64_t whole, hundredths = 0;
        int r;

        r = read_digits(&s, &whole);
        if (r < 0)
                return r;
        if (*s == '.') {
                if (!isdigit((unsigned char) *++s))
                        return -EINVAL;
                hundredths = (uint64_t) (*s++ - '0') * 10;
                if (isdigit((unsigned char) *s))
                        hundredths += (uint64_t) (*s++ - '0');
        }
        if (!streq(s, "%"))
                return -EINVAL;
        if (__builtin_mul_overflow(whole, 100, &whole) || __builtin_add_overflow(whole, hundredths, &whole))
                return -ERANGE;
        *ret_permyriad = whole;
        return 0;
}

int parse_log_level(const char *s) {
        static const char *const names[] = {
                [LOG_EMERG] = "emerg",     [LOG_ALERT] = "alert",   [LOG_CRIT] = "crit", [LOG_ERR] = "err",
                [LOG_WARNING] = "warning", [LOG_NOTICE] = "notice", [LOG_INFO] = "info", [LOG_DEBUG] = "debug",
        };
        uint64_t v;
        int r;

        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                if (streq(s, names[i]))
                        return (int) i;
        r = parse_u64(s, &v);
        if (r < 0)
                return r;
        return v < ELEMENTSOF(names) ? (int) v : -ERANGE;
}

char *format_size(uint64_t bytes) {
        for (size_t i = ELEMENTSOF(size_units) - 1; i > 0 && bytes > 0; i--)
                if (bytes % size_units[i].factor == 0)
                        return strjoinf("%llu%s", (unsigned long long) (bytes / size_units[i].factor),
                                        size_units[i].name);
        return strjoinf("%llu", (unsigned long long) bytes);
}

char *format_sec(uint64_t usec) {
        static const Unit units[] = {
                { "d", DAY }, { "h", HOUR }, { "min", MINUTE },
                { "s", USEC_PER_SEC }, { "ms", USEC_PER_MSEC }, { "us", 1 },
        };
        char buf[128], *p = buf;

        if (usec == USEC_INFINITY)
                return strdup("infinity");
        if (usec == 0)
                return strdup("0");

        for (size_t i = 0; i < ELEMENTSOF(units); i++) {
                if (usec < units[i].factor)
                        continue;
                p += sprintf(p, "%s%llu%s", p == buf ? "" : " ", (unsigned long long) (usec / units[i].factor),
                             units[i].name);
                usec %= units[i].factor;
        }
        return strdup(buf);
}
