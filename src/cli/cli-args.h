/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

typedef enum Verb {
        VERB_CREATE,
        VERB_START,
        VERB_STOP,
        VERB_STOP_ALL,
        VERB_KILL,
        VERB_REBOOT,
        VERB_RESET,
        VERB_PAUSE,
        VERB_RESUME,
        VERB_REMOVE,
        VERB_LIST,
        VERB_SHOW,
        VERB_STATUS,
        VERB_CONSOLE,
        VERB_LOG,
        VERB_VSOCK,
        VERB_EVENTS,
        VERB_BACKENDS,
        VERB_BLAME,
        VERB_HELP,
        _VERB_MAX,
} Verb;

typedef enum Option {
        OPTION_HELP = 'h',
        OPTION_FOLLOW = 'f',
        OPTION_NUMBER = 'n',
        OPTION_PROPERTY = 'p',
        OPTION_VERSION = 0x100,
        OPTION_JSON,
        OPTION_NO_LEGEND,
        OPTION_NO_ASK_PASSWORD,
        OPTION_VALUE,
        OPTION_DEFINITION,
        OPTION_VMM,
        OPTION_RAW,
        OPTION_READ_ONLY,
        OPTION_FORCE,
        OPTION_NO_BLOCK,
        OPTION_TIMEOUT,
        OPTION_START,
        /* What follows goes into the definition of a new VM. */
        OPTION_BACKEND,
        OPTION_ACCEL,
        OPTION_CPUS,
        OPTION_MEMORY,
        OPTION_KERNEL,
        OPTION_INITRD,
        OPTION_CMDLINE,
        OPTION_FIRMWARE,
        OPTION_DISK,
        OPTION_SHARE,
        OPTION_NETWORK,
        OPTION_FORWARD,
        OPTION_STOP_TIMEOUT,
        OPTION_LABEL,
        OPTION_VSOCK,
} Option;

typedef struct OptionValue {
        Option option;
        const char *value;
} OptionValue;

typedef struct Args {
        Verb verb;
        char **names;                   /* in argv; for create NAME and maybe FILE */
        size_t n_names;

        bool version, json, no_legend, value, definition, vmm, raw, read_only, follow, force, no_block, start, no_ask_password;
        uint64_t timeout_usec;
        bool timeout_set;
        uint64_t number;                /* UINT64_MAX: not given */
        char **properties;

        OptionValue *values;            /* all options as given */
        size_t n_values;
} Args;

void args_done(Args *a);

/* Fills *a (which args_done() frees, also after an error). 0, or -EINVAL when it has told on stderr what is wrong. The order
 * of argv changes: options may stand anywhere. */
int args_parse(int argc, char **argv, Args *a);

const char *verb_to_string(Verb v);
