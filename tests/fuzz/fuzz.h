/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "basic/macro.h"

/* A libFuzzer target: runs on any bytes, must neither crash nor leak nor find a promise broken. Files it makes go to the working
 * directory, which is its own. See tests/fuzz/run. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define fuzz_assert(condition)                                                          \
        do {                                                                            \
                if (!(condition)) {                                                     \
                        fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
                        abort();                                                        \
                }                                                                       \
        } while (false)

/* A copy with a NUL behind it, on a block of just that size. */
static inline char *fuzz_string(const void *p, size_t n) {
        char *s = malloc(n + 1);

        fuzz_assert(s);
        if (n > 0)
                memcpy(s, p, n);
        s[n] = 0;
        return s;
}
