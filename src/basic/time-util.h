/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdint.h>
#include <time.h>

#include "basic/macro.h"

static inline uint64_t now_of(clockid_t clock) {
        struct timespec ts = {};

        (void) clock_gettime(clock, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / 1000;
}

static inline uint64_t now_realtime(void) {
        return now_of(CLOCK_REALTIME);
}

static inline uint64_t now_monotonic(void) {
        return now_of(CLOCK_MONOTONIC);
}
