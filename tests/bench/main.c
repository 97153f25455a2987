/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>

#include "basic/string-util.h"
#include "bed.h"

int main(int argc, char *argv[]) {
        static const struct {
                const char *name;
                void (*run)(unsigned rounds, const char *backend);
        } benches[] = {
                { "start",    bench_start    },
                { "many",     bench_many     },
                { "death",    bench_death    },
                { "read",     bench_read     },
                { "memory",   bench_memory   },
                { "takeover", bench_takeover },
                { "scale",    bench_scale    },
                { "walls",    bench_walls    },
        };

        for (size_t i = 0; argc == 4 && i < ELEMENTSOF(benches); i++)
                if (streq(argv[1], benches[i].name)) {
                        benches[i].run((unsigned) MAX(atoi(argv[2]), 1), argv[3]);
                        return EXIT_SUCCESS;
                }
        die("usage: bench start|many|death|read|memory|takeover|scale|walls ROUNDS BACKEND (see tests/bench/run)");
}
