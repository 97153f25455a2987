/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "basic/string-util.h"
#include "bed.h"

int main(int argc, char *argv[]) {
        static const struct {
                const char *name;
                void (*run)(unsigned rounds);
        } benches[] = {
                { "start",  bench_start  },
                { "death",  bench_death  },
                { "read",   bench_read   },
                { "memory", bench_memory },
                { "takeover", bench_takeover },
        };

        for (size_t i = 0; argc == 3 && i < ELEMENTSOF(benches); i++)
                if (streq(argv[1], benches[i].name)) {
                        benches[i].run((unsigned) MAX(atoi(argv[2]), 1));
                        return EXIT_SUCCESS;
                }
        die("usage: bench start|death|read|memory|takeover ROUNDS (see tests/bench/run)");
}
