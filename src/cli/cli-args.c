/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <getopt.h>
#include <stdio.h>

#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "cli/cli-args.h"
#include "cli/cli-error.h"

static const struct {
        const char *name;
        size_t min, max;
        const char *what;       /* the operands */
} verbs[_VERB_MAX] = {
        [VERB_CREATE] = { "create", 1, 2, "NAME [FILE|-]" },
        [VERB_START] = { "start", 1, SIZE_MAX, "NAME…" },
        [VERB_STOP] = { "stop", 1, SIZE_MAX, "NAME…" },
        [VERB_STOP_ALL] = { "stop-all", 0, 0, "no name" },
        [VERB_KILL] = { "kill", 1, SIZE_MAX, "NAME…" },
        [VERB_REBOOT] = { "reboot", 1, SIZE_MAX, "NAME…" },
        [VERB_RESET] = { "reset", 1, SIZE_MAX, "NAME…" },
        [VERB_PAUSE] = { "pause", 1, SIZE_MAX, "NAME…" },
        [VERB_RESUME] = { "resume", 1, SIZE_MAX, "NAME…" },
        [VERB_REMOVE] = { "remove", 1, SIZE_MAX, "NAME…" },
        [VERB_LIST] = { "list", 0, 0, "no name" },
        [VERB_SHOW] = { "show", 1, 1, "one NAME" },
        [VERB_STATUS] = { "status", 1, 1, "one NAME" },
        [VERB_CONSOLE] = { "console", 1, 1, "one NAME" },
        [VERB_LOG] = { "log", 1, 1, "one NAME" },
        [VERB_VSOCK] = { "vsock", 2, 2, "NAME and PORT" },
        [VERB_EVENTS] = { "events", 0, 1, "at most one NAME" },
        [VERB_BACKENDS] = { "backends", 0, 0, "no name" },
        [VERB_BLAME] = { "blame", 1, 1, "one NAME" },
        [VERB_HELP] = { "help", 0, SIZE_MAX, "nothing" },
};

#define V(v) (UINT32_C(1) << VERB_##v)
#define ANY UINT32_MAX

static const struct {
        const char *name;
        int has_arg;
        Option option;
        uint32_t verbs;         /* those it goes with */
} options[] = {
        { "help", no_argument, OPTION_HELP, ANY },
        { "version", no_argument, OPTION_VERSION, ANY },
        { "json", no_argument, OPTION_JSON, V(LIST) | V(SHOW) | V(STATUS) | V(EVENTS) | V(BACKENDS) | V(BLAME) },
        { "no-ask-password", no_argument, OPTION_NO_ASK_PASSWORD, ANY },
        { "no-legend", no_argument, OPTION_NO_LEGEND, V(LIST) | V(EVENTS) | V(BACKENDS) },
        { "property", required_argument, OPTION_PROPERTY, V(SHOW) },
        { "value", no_argument, OPTION_VALUE, V(SHOW) },
        { "definition", no_argument, OPTION_DEFINITION, V(SHOW) },
        { "number", required_argument, OPTION_NUMBER, V(LOG) | V(EVENTS) },
        { "follow", no_argument, OPTION_FOLLOW, V(LOG) },
        { "vmm", no_argument, OPTION_VMM, V(LOG) },
        { "raw", no_argument, OPTION_RAW, V(LOG) },
        { "read-only", no_argument, OPTION_READ_ONLY, V(CONSOLE) },
        { "force", no_argument, OPTION_FORCE, V(REMOVE) },
        { "no-block", no_argument, OPTION_NO_BLOCK, V(CREATE) | V(START) | V(STOP) | V(REBOOT) | V(REMOVE) },
        { "timeout", required_argument, OPTION_TIMEOUT, V(STOP) },
        { "start", no_argument, OPTION_START, V(CREATE) },
        { "backend", required_argument, OPTION_BACKEND, V(CREATE) },
        { "accel", required_argument, OPTION_ACCEL, V(CREATE) },
        { "cpus", required_argument, OPTION_CPUS, V(CREATE) },
        { "memory", required_argument, OPTION_MEMORY, V(CREATE) },
        { "kernel", required_argument, OPTION_KERNEL, V(CREATE) },
        { "initrd", required_argument, OPTION_INITRD, V(CREATE) },
        { "cmdline", required_argument, OPTION_CMDLINE, V(CREATE) },
        { "firmware", required_argument, OPTION_FIRMWARE, V(CREATE) },
        { "disk", required_argument, OPTION_DISK, V(CREATE) },
        { "share", required_argument, OPTION_SHARE, V(CREATE) },
        { "network", required_argument, OPTION_NETWORK, V(CREATE) },
        { "forward", required_argument, OPTION_FORWARD, V(CREATE) },
        { "stop-timeout", required_argument, OPTION_STOP_TIMEOUT, V(CREATE) },
        { "label", required_argument, OPTION_LABEL, V(CREATE) },
        { "vsock", no_argument, OPTION_VSOCK, V(CREATE) },
};

void args_done(Args *a) {
        free(a->values);
        strv_free(a->properties);
}

const char *verb_to_string(Verb v) {
        return v >= 0 && v < _VERB_MAX ? verbs[v].name : NULL;
}

/* NULL when nothing is near. */
static const char *nearest(const char *word, const char *(*get)(size_t i), size_t n) {
        unsigned best = MIN((unsigned) strlen(word), 4U);
        const char *found = NULL;

        for (size_t i = 0; i < n; i++) {
                unsigned d = edit_distance(word, get(i));

                if (d < best) {
                        best = d;
                        found = get(i);
                }
        }
        return found;
}

static const char *verb_name(size_t i) {
        return verbs[i].name;
}

static const char *option_name(size_t i) {
        return options[i].name;
}

static int verb_parse(const char *word, Verb *ret) {
        const char *near;

        for (Verb v = 0; v < _VERB_MAX; v++)
                if (streq(verbs[v].name, word)) {
                        *ret = v;
                        return 0;
                }

        near = nearest(word, verb_name, ELEMENTSOF(verbs));
        if (near)
                say("vmunit", "there is no verb '%s'; did you mean '%s'?", word, near);
        else
                say("vmunit", "there is no verb '%s'; `vmunit --help` shows those there are", word);
        return -EINVAL;
}

static int bad_option(int c, const char *arg) {
        const char *near;

        if (c == ':') {
                say("vmunit", "option %s needs a value; `vmunit --help` shows which", arg);
                return -EINVAL;
        }

        near = startswith(arg, "--") ? nearest(arg + 2, option_name, ELEMENTSOF(options)) : NULL;
        if (optopt >= 256)
                say("vmunit", "option %.*s takes no value", (int) strcspn(arg, "="), arg);
        else if (near)
                say("vmunit", "there is no option %s; did you mean --%s?", arg, near);
        else
                say("vmunit", "there is no option %s; `vmunit --help` shows those there are", arg);
        return -EINVAL;
}

/* What getopt_long() has just stumbled over. */
static const char *bad_word(int c, char **argv, char buffer[static 3]) {
        if (optopt > 0 && optopt < 256 && (c == '?' || !startswith(argv[optind - 1], "--"))) {
                buffer[0] = '-';
                buffer[1] = (char) optopt;
                buffer[2] = 0;
                return buffer;
        }
        return argv[optind - 1];
}

static int options_collect(int argc, char **argv, Args *a) {
        struct option o[ELEMENTSOF(options) + 1] = {};
        char buffer[3];
        int c;

        for (size_t i = 0; i < ELEMENTSOF(options); i++)
                o[i] = (struct option) { options[i].name, options[i].has_arg, NULL, (int) options[i].option };

        a->values = new(OptionValue, (size_t) argc + 1);
        if (!a->values)
                return say_oom();

        optind = 0;
        opterr = 0;
        for (;;) {
                c = getopt_long(argc, argv, ":hn:fp:", o, NULL);
                if (c < 0)
                        return 0;
                if (c == '?' || c == ':')
                        return bad_option(c, bad_word(c, argv, buffer));
                if (c == OPTION_HELP || c == OPTION_VERSION) {
                        a->verb = VERB_HELP;
                        a->version = c == OPTION_VERSION;
                        return 1;
                }
                a->values[a->n_values++] = (OptionValue) { (Option) c, optarg };
        }
}

static int number_parse(Args *a, const char *value) {
        bool bytes = a->verb == VERB_LOG;
        uint32_t n = 0;
        int r;

        r = bytes ? parse_size(value, &a->number) : parse_u32(value, &n);
        if (r < 0) {
                say("vmunit", bytes ? "-n %s is not a size, as 4096 or 64K" : "-n %s is not a number", value);
                return -EINVAL;
        }
        if (!bytes)
                a->number = n;
        return 0;
}

static int timeout_parse(Args *a, const char *value) {
        if (parse_sec(value, &a->timeout_usec) < 0) {
                say("vmunit", "--timeout %s is not a time, as 30, 1min or infinity", value);
                return -EINVAL;
        }
        a->timeout_set = true;
        return 0;
}

static int option_apply(Args *a, const OptionValue *v) {
        switch (v->option) {
        case OPTION_JSON:
                a->json = true;
                return 0;
        case OPTION_NO_LEGEND:
                a->no_legend = true;
                return 0;
        case OPTION_NO_ASK_PASSWORD:
                a->no_ask_password = true;
                return 0;
        case OPTION_VALUE:
                a->value = true;
                return 0;
        case OPTION_DEFINITION:
                a->definition = true;
                return 0;
        case OPTION_VMM:
                a->vmm = true;
                return 0;
        case OPTION_RAW:
                a->raw = true;
                return 0;
        case OPTION_READ_ONLY:
                a->read_only = true;
                return 0;
        case OPTION_FOLLOW:
                a->follow = true;
                return 0;
        case OPTION_FORCE:
                a->force = true;
                return 0;
        case OPTION_NO_BLOCK:
                a->no_block = true;
                return 0;
        case OPTION_START:
                a->start = true;
                return 0;
        case OPTION_NUMBER:
                return number_parse(a, v->value);
        case OPTION_TIMEOUT:
                return timeout_parse(a, v->value);
        case OPTION_PROPERTY:
                return strv_extend(&a->properties, v->value) < 0 ? say_oom() : 0;
        default:
                return 0; /* for the definition, see cli-create.c */
        }
}

static int option_check_verb(Option option, Verb verb) {
        _cleanup_strv_free_ char **l = NULL;
        _cleanup_free_ char *s = NULL;

        for (size_t i = 0; i < ELEMENTSOF(options); i++) {
                if (options[i].option != option)
                        continue;
                if (options[i].verbs & (UINT32_C(1) << verb))
                        return 0;
                for (Verb v = 0; v < _VERB_MAX; v++)
                        if (options[i].verbs & (UINT32_C(1) << v) && strv_extend(&l, verbs[v].name) < 0)
                                return say_oom();
                s = strv_join(l, ", ");
                say("vmunit", "option --%s does not go with %s; it goes with %s", options[i].name, verbs[verb].name,
                    strempty(s));
        }
        return -EINVAL;
}

static int refuse(const char *text) {
        say("vmunit", "%s", text);
        return -EINVAL;
}

static int check_combination(const Args *a) {
        if (a->n_names < verbs[a->verb].min || a->n_names > verbs[a->verb].max) {
                say("vmunit", "%s takes %s; `vmunit --help` shows how", verbs[a->verb].name, verbs[a->verb].what);
                return -EINVAL;
        }
        if (a->verb == VERB_CREATE && a->no_block && !a->start)
                return refuse("--no-block goes with create only together with --start");
        if (a->definition && (a->properties || a->value))
                return refuse("--definition shows the definition, not properties: leave out --property and --value");
        if (a->json && a->value)
                return refuse("--json and --value do not go together");
        if (a->vmm && a->follow)
                return refuse("--follow follows the console; it does not go with --vmm");
        return 0;
}

int args_parse(int argc, char **argv, Args *a) {
        int r;

        *a = (Args) { .number = UINT64_MAX };

        r = options_collect(argc, argv, a);
        if (r != 0)
                return MIN(r, 0);

        if (optind >= argc)
                return refuse("what shall be done? `vmunit --help` shows the verbs, `vmunit list` the VMs");

        r = verb_parse(argv[optind], &a->verb);
        if (r < 0)
                return r;

        a->names = argv + optind + 1;
        a->n_names = (size_t) (argc - optind - 1);

        for (size_t i = 0; i < a->n_values; i++) {
                r = option_check_verb(a->values[i].option, a->verb);
                if (r < 0)
                        return r;
                r = option_apply(a, a->values + i);
                if (r < 0)
                        return r;
        }
        return check_combination(a);
}
