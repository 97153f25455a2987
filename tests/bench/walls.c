/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <unistd.h>

#include "bed.h"

/* A start with the walls around the VMM, and with a vmunit-exec that builds none (no-walls.c), in turn */

#define EXEC LIBEXECDIR "/vmunit-exec"

static void use_exec(const char *kind) {
        char from[64];

        (void) unlink(EXEC);
        (void) snprintf(from, sizeof(from), EXEC ".%s", kind);
        if (link(from, EXEC) < 0)
                die("%s: %m", from);
}

static double start_once(const char *kind) {
        double begin, took;

        use_exec(kind);
        rest();
        seen_begin("Running");
        begin = now_ms();
        vm_send("bench", "Start");
        took = seen_wait(1) - begin;
        rest();
        vm_do("bench", "Kill");
        rest();
        return took;
}

void bench_walls(unsigned rounds, const char *backend) {
        Row with = { .name = "Start until Running is seen" }, without = { .name = "the same without walls" },
            beyond = { .name = "beyond that, round by round" };

        if (link(EXEC, EXEC ".walls") < 0)
                die("%s: %m", EXEC);
        vm_create("bench", backend);
        (void) start_once("walls");
        (void) start_once("none");

        for (unsigned i = 0; i < rounds; i++) {
                row_add(&with, start_once("walls"));
                row_add(&without, start_once("none"));
                row_add(&beyond, with.v[i] - without.v[i]);
        }
        (void) row_print(&without);
        (void) row_print(&with);
        print_bar("start beyond the one without walls", row_print(&beyond), 2, "ms");
        use_exec("walls");
        (void) unlink(EXEC ".walls");
        vm_remove("bench");
}
