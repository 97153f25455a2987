/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* For a VMM that is executed without walls: the names by which it would find its files behind them, put as they are here. */

#include "basic/string-util.h"
#include "vmm/vmm.h"

static inline void open_word(char **word, const char *from, const char *to) {
        for (char *at; *word && (at = strstr(*word, from));) {
                char *new = NULL;

                *at = 0;
                if (asprintf(&new, "%s%s%s", *word, to, at + strlen(from)) < 0)
                        abort();
                free(*word);
                *word = new;
        }
}

static inline void open_plan(LaunchPlan *p, const char *directory) {
        _cleanup_free_ char *sockets = strjoinf("\"%s/", directory);

        if (!sockets)
                abort();
        for (char **word = p->argv; word && *word; word++)
                open_word(word, EXEC_FILES "/", "/proc/self/fd/");
        open_word(&p->config, EXEC_FILES "/", "/proc/self/fd/");
        open_word(&p->config, "\"" EXEC_SOCKETS_DIR "/", sockets);
}
