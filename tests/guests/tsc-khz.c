/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Prints the frequency of this machine's time stamp counter in kHz. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static double now(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

int main(void) {
        double start = now(), end;
        unsigned long long first = __rdtsc();

        do
                end = now();
        while (end - start < 0.02);
        printf("%.0f\n", (double) (__rdtsc() - first) / (end - start) / 1000);
        return 0;
}
