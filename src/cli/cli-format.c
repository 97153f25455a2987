/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <time.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "cli/cli-format.h"

char *format_bytes(uint64_t bytes) {
        static const char units[] = "BKMGTPE";
        uint64_t rest = 0;
        size_t u = 0;

        while (bytes >= 1024 && u < sizeof(units) - 2) {
                rest = bytes % 1024;
                bytes /= 1024;
                u++;
        }

        rest = rest * 10 / 1024;
        if (rest > 0)
                return strjoinf("%" PRIu64 ".%" PRIu64 "%c", bytes, rest, units[u]);
        return strjoinf("%" PRIu64 "%c", bytes, units[u]);
}

char *format_span(uint64_t usec) {
        static const struct {
                const char *name;
                uint64_t seconds;
        } units[] = { { "y", 31557600 }, { "d", 86400 }, { "h", 3600 }, { "min", 60 }, { "s", 1 } };
        uint64_t s = usec / USEC_PER_SEC, ms = usec / USEC_PER_MSEC % 1000;

        if (s == 0)
                return strjoinf("%" PRIu64 "ms", ms);
        if (s < 10)
                return strjoinf("%" PRIu64 ".%03" PRIu64 "s", s, ms);

        for (size_t i = 0; i + 1 < ELEMENTSOF(units); i++) {
                uint64_t rest = s % units[i].seconds / units[i + 1].seconds;

                if (s < units[i].seconds)
                        continue;
                if (rest == 0)
                        return strjoinf("%" PRIu64 "%s", s / units[i].seconds, units[i].name);
                return strjoinf("%" PRIu64 "%s %" PRIu64 "%s", s / units[i].seconds, units[i].name, rest,
                                units[i + 1].name);
        }
        return strjoinf("%" PRIu64 "s", s);
}

char *format_duration(uint64_t usec) {
        if (usec >= USEC_PER_SEC - 50)
                return format_span(MAX(usec, USEC_PER_SEC));
        return strjoinf("%" PRIu64 ".%" PRIu64 "ms", (usec + 50) / 1000, (usec + 50) / 100 % 10);
}

char *format_relative(uint64_t usec, uint64_t now) {
        uint64_t d = usec > now ? usec - now : now - usec;
        _cleanup_free_ char *s = NULL;

        if (d < USEC_PER_SEC)
                return strdup("now");

        s = format_span(d < 10 * USEC_PER_SEC ? d / USEC_PER_SEC * USEC_PER_SEC : d);
        if (s && endswith(s, ".000s"))
                strcpy(s + strlen(s) - 5, "s");
        return s ? strjoinf(usec > now ? "in %s" : "%s ago", s) : NULL;
}

char *format_timestamp(uint64_t usec) {
        time_t t = (time_t) (usec / USEC_PER_SEC);
        char buffer[64];
        struct tm tm;

        if (!localtime_r(&t, &tm) || strftime(buffer, sizeof(buffer), "%a %Y-%m-%d %H:%M:%S %Z", &tm) == 0)
                return strdup("-");
        return strdup(buffer);
}

uint64_t now_usec(void) {
        struct timespec ts;

        clock_gettime(CLOCK_REALTIME, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / 1000;
}

bool colors_wanted(void) {
        static int wanted = -1;

        if (wanted < 0)
                wanted = isatty(STDOUT_FILENO) && isempty(getenv("NO_COLOR")) && !streq(getenv("TERM") ?: "dumb", "dumb");
        return wanted;
}

const char *color_on(Color c) {
        static const char *const sequences[] = {
                [COLOR_NONE] = "",
                [COLOR_GREEN] = "\033[0;1;32m",
                [COLOR_YELLOW] = "\033[0;1;33m",
                [COLOR_RED] = "\033[0;1;31m",
                [COLOR_GRAY] = "\033[0;38;5;245m",
                [COLOR_BOLD] = "\033[0;1;39m",
        };

        return colors_wanted() ? sequences[c] : "";
}

const char *color_off(Color c) {
        return c != COLOR_NONE && colors_wanted() ? "\033[0m" : "";
}

void table_done(Table *t) {
        for (size_t i = 0; i < t->n; i++)
                free(t->cells[i]);
        free(t->cells);
        free(t->colors);
}

static size_t width(const char *s) {
        size_t n = 0;

        for (; *s; s++)
                n += ((uint8_t) *s & 0xc0) != 0x80;
        return n;
}

static int table_add(Table *t, Color color, const char *cell) {
        size_t *widest = &t->widths[t->n % t->columns];
        char **cells, *s;
        Color *colors;

        cells = reallocarray(t->cells, t->n + 1, sizeof(char *));
        if (!cells)
                return -ENOMEM;
        t->cells = cells;

        colors = reallocarray(t->colors, t->n + 1, sizeof(Color));
        if (!colors)
                return -ENOMEM;
        t->colors = colors;

        s = strdup(cell);
        if (!s)
                return -ENOMEM;

        *widest = MAX(*widest, width(s));
        t->cells[t->n] = s;
        t->colors[t->n++] = color;
        return 0;
}

int table_add_row(Table *t, Color color, const char *const *cells) {
        for (size_t i = 0; i < t->columns; i++)
                if (table_add(t, color, cells[i]) < 0)
                        return -ENOMEM;
        return 0;
}

void table_print(const Table *t, FILE *f) {
        for (size_t i = 0; i < t->n; i++) {
                bool last = i % t->columns == t->columns - 1;
                size_t pad = last ? 0 : t->widths[i % t->columns] - width(t->cells[i]) + 1;

                fprintf(f, "%s%s%s%*s%s", color_on(t->colors[i]), t->cells[i], color_off(t->colors[i]), (int) pad, "",
                        last ? "\n" : "");
        }
}

static bool is_usual(uint8_t c) {
        return c == '\n' || c == '\r' || c == '\t' || c == '\b';
}

static size_t utf8_expected(uint8_t c) {
        return c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
}

static bool utf8_second_is_valid(uint8_t first, uint8_t second) {
        uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;

        return second >= low && second <= high;
}

/* The end of what was begun: gives up a character that stayed incomplete. */
static char *filter_abandon(Filter *f, char *out) {
        if (f->n_pending > 0)
                *out++ = '?';
        f->n_pending = 0;
        return out;
}

static char *filter_multibyte(Filter *f, uint8_t c, char *out) {
        bool continues = (c & 0xc0) == 0x80;

        if (f->n_pending > 0 && (!continues || (f->n_pending == 1 && !utf8_second_is_valid(f->pending[0], c)))) {
                out = filter_abandon(f, out);
                if (continues)
                        return out;
        }
        if (f->n_pending == 0 && utf8_expected(c) == 0) {
                *out++ = '?';
                return out;
        }

        f->pending[f->n_pending++] = c;
        if (f->n_pending < utf8_expected(f->pending[0]))
                return out;
        /* U+0080 to U+009F are control characters as well */
        if (!(f->pending[0] == 0xc2 && c < 0xa0))
                out = mempcpy(out, f->pending, f->n_pending);
        f->n_pending = 0;
        return out;
}

static char *filter_text(Filter *f, uint8_t c, char *out) {
        if (c >= 0x80)
                return filter_multibyte(f, c, out);

        out = filter_abandon(f, out);
        if (c == 0x1b)
                f->state = FILTER_ESCAPE;
        else if ((c >= 0x20 && c != 0x7f) || is_usual(c))
                *out++ = (char) c;
        return out;
}

/* ECMA-48: what follows an ESC. Intermediate bytes stay in the state, a final byte ends it. */
static void filter_escape(Filter *f, uint8_t c) {
        if (c == '[')
                f->state = FILTER_CSI;
        else if (c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_')
                f->state = FILTER_STRING;
        else if (c < 0x20 || c > 0x2f)
                f->state = FILTER_TEXT;
}

size_t filter_terminal(Filter *f, const void *in, size_t n, char *out) {
        const uint8_t *p = in;
        char *start = out;

        for (size_t i = 0; i < n; i++) {
                uint8_t c = p[i];

                /* A newline or a new ESC ends any sequence, so that a broken one swallows no more than a line. */
                if (f->state != FILTER_TEXT && c == '\n')
                        f->state = FILTER_TEXT;
                else if (f->state != FILTER_TEXT && c == 0x1b) {
                        f->state = f->state == FILTER_STRING ? FILTER_STRING_ESCAPE : FILTER_ESCAPE;
                        continue;
                }

                switch (f->state) {
                case FILTER_TEXT:
                        out = filter_text(f, c, out);
                        break;
                case FILTER_ESCAPE:
                        filter_escape(f, c);
                        break;
                case FILTER_CSI:
                        if (c >= 0x40 && c <= 0x7e)
                                f->state = FILTER_TEXT;
                        break;
                case FILTER_STRING:
                        if (c == 0x07)
                                f->state = FILTER_TEXT;
                        break;
                case FILTER_STRING_ESCAPE:
                        f->state = c == '\\' ? FILTER_TEXT : FILTER_STRING;
                        break;
                }
        }
        return (size_t) (out - start);
}
