/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Test Anything Protocol: ok() per check, done_testing() at the end, whose result main() returns. A test that ends before
 * its plan was printed has failed. */

static int tap_count, tap_failed;

static inline bool __attribute__((__format__(printf, 4, 5)))
tap_result(bool good, const char *file, int line, const char *format, ...) {
        va_list ap;

        printf("%sok %d - ", good ? "" : "not ", ++tap_count);
        va_start(ap, format);
        vprintf(format, ap);
        va_end(ap);
        putchar('\n');
        if (!good) {
                tap_failed++;
                printf("# at %s:%d\n", file, line);
        }
        fflush(stdout);
        return good;
}

#define ok(condition, ...) tap_result((condition), __FILE__, __LINE__, __VA_ARGS__)

/* A check whose name is what it checks */
#define check(condition) ok((condition), "%s", #condition)

#define is_int(got, want, ...)                                                  \
        ({                                                                      \
                long long _got = (long long) (got), _want = (long long) (want); \
                bool _good = ok(_got == _want, __VA_ARGS__);                    \
                if (!_good)                                                     \
                        printf("# got %lld, want %lld\n", _got, _want);         \
                _good;                                                          \
        })

#define is_str(got, want, ...)                                                  \
        ({                                                                      \
                const char *_g = (got), *_w = (want);                           \
                bool _good = ok(_g == _w || (_g && _w && strcmp(_g, _w) == 0), __VA_ARGS__); \
                if (!_good)                                                     \
                        printf("# got  '%s'\n# want '%s'\n", _g ? _g : "(null)", _w ? _w : "(null)"); \
                _good;                                                          \
        })

static inline void __attribute__((__unused__)) skip(const char *what, const char *why) {
        printf("ok %d - %s # SKIP %s\n", ++tap_count, what, why);
}

static inline int done_testing(void) {
        printf("1..%d\n", tap_count);
        return tap_failed > 0;
}
