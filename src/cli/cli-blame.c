/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include "basic/json-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "cli/cli-blame.h"
#include "cli/cli-error.h"
#include "cli/cli-format.h"
#include "cli/cli-json.h"

/* Where the last start of a VM spent its time: the daemon writes an entry with all stages of a job to the journal. */

#define DAEMON_UNIT "_SYSTEMD_UNIT=vmunitd.service"     /* fields with an underscore are journald's own: nobody forges them */
#define STAGE_FIELD "STAGE_USEC="
#define STAGES_MAX 256U

typedef struct Stage {
        char *name;
        uint64_t usec;
} Stage;

typedef struct Blame {
        Stage stages[STAGES_MAX];
        size_t n;
        char *name, *id, *job;
        uint64_t started_usec, ended_usec;      /* CLOCK_REALTIME */
        uint64_t sum_usec;
} Blame;

static void blame_done(Blame *b) {
        for (size_t i = 0; i < b->n; i++)
                free(b->stages[i].name);
        free(b->name);
        free(b->id);
        free(b->job);
}

static int get_field(sd_journal *j, const char *field, char **ret) {
        const void *data;
        size_t n, skip = strlen(field) + 1;
        int r;

        r = sd_journal_get_data(j, field, &data, &n);
        if (r < 0)
                return r;
        *ret = n >= skip ? strndup((const char *) data + skip, n - skip) : NULL;
        return *ret ? 0 : n >= skip ? -ENOMEM : -EBADMSG;
}

static int add_match(sd_journal *j, const char *field, const char *value) {
        _cleanup_free_ char *match = strjoinf("%s=%s", field, value);

        return match ? sd_journal_add_match(j, match, 0) : -ENOMEM;
}

static int add_matches(sd_journal *j, const char *name_or_id) {
        int r;

        r = sd_journal_add_match(j, DAEMON_UNIT, 0);
        if (r >= 0)
                r = add_match(j, "VMUNIT_OPERATION", "Start");
        if (r >= 0)
                r = add_match(j, "VMUNIT_VM", name_or_id);
        if (r >= 0)
                r = sd_journal_add_disjunction(j);
        if (r >= 0)
                r = sd_journal_add_match(j, DAEMON_UNIT, 0);
        if (r >= 0)
                r = add_match(j, "VMUNIT_OPERATION", "Start");
        return r < 0 ? r : add_match(j, "VMUNIT_VM_ID", name_or_id);
}

/* "NAME:USEC" */
static int add_stage(Blame *b, const char *text, size_t n) {
        _cleanup_free_ char *copy = strndup(text, n);
        uint64_t usec;
        char *colon;
        int r;

        if (!copy)
                return -ENOMEM;
        colon = strchr(copy, ':');
        if (!colon || b->n == STAGES_MAX)
                return -EBADMSG;
        r = parse_u64(colon + 1, &usec);
        if (r < 0)
                return r;
        *colon = 0;
        b->stages[b->n++] = (Stage) { TAKE_PTR(copy), usec };
        b->sum_usec += usec;
        return 0;
}

/* One that can't be read is left out. */
static int add_stages(sd_journal *j, Blame *b) {
        const void *data;
        size_t n;

        SD_JOURNAL_FOREACH_DATA(j, data, n) {
                const char *text = n >= strlen(STAGE_FIELD) ? data : "";

                if (strncmp(text, STAGE_FIELD, strlen(STAGE_FIELD)) == 0 &&
                    add_stage(b, text + strlen(STAGE_FIELD), n - strlen(STAGE_FIELD)) == -ENOMEM)
                        return -ENOMEM;
        }
        return 0;
}

/* 0: it is of another start, and all of ours is read. */
static int read_stages_entry(sd_journal *j, Blame *b) {
        _cleanup_free_ char *job = NULL, *id = NULL;
        uint64_t at;
        int r;

        r = get_field(j, "VMUNIT_JOB", &job);
        if (r >= 0)
                r = get_field(j, "VMUNIT_VM_ID", &id);
        if (r < 0)
                return r;
        if (b->job && (!streq(b->job, job) || !streq(b->id, id)))
                return 0;

        r = sd_journal_get_realtime_usec(j, &at);
        if (r >= 0 && !b->job)
                r = get_field(j, "VMUNIT_VM", &b->name);
        if (r < 0)
                return r;

        if (!b->job) {
                b->job = TAKE_PTR(job);
                b->id = TAKE_PTR(id);
                b->ended_usec = at;
        }
        r = add_stages(j, b);
        return r < 0 ? r : 1;
}

/* From the last entry back to where the start begins. */
static int read_stages(sd_journal *j, Blame *b) {
        int r;

        r = sd_journal_seek_tail(j);
        while (r >= 0 && b->n < STAGES_MAX) {
                r = sd_journal_previous(j);
                if (r <= 0)
                        break;
                r = read_stages_entry(j, b);
                if (r == -ENOENT || r == -EBADMSG || r == -EINVAL) /* one that can't be read is left out */
                        r = 1;
                else if (r <= 0)
                        break;
        }
        b->started_usec = b->ended_usec - MIN(b->sum_usec, b->ended_usec);
        return MIN(r, 0);
}

static int compare_stages(const void *a, const void *b) {
        const Stage *x = a, *y = b;

        return x->usec > y->usec ? -1 : x->usec < y->usec;
}

static int add_new(json_object *o, const char *key, json_object *value) {
        if (!value || json_object_object_add(o, key, value) < 0) {
                json_object_put(value);
                return -ENOMEM;
        }
        return 0;
}

static json_object *stages_to_json(const Blame *b) {
        _cleanup_json_ json_object *stages = json_object_new_array();

        for (size_t i = 0; stages && i < b->n; i++) {
                json_object *o = json_object_new_object();

                if (!o || json_object_array_add(stages, o) < 0) {
                        json_object_put(o);
                        return NULL;
                }
                if (add_new(o, "Stage", json_object_new_string(b->stages[i].name)) < 0 ||
                    add_new(o, "DurationUSec", json_object_new_uint64(b->stages[i].usec)) < 0)
                        return NULL;
        }
        return TAKE_PTR(stages);
}

static int print_json(const Blame *b) {
        _cleanup_json_ json_object *o = json_object_new_object();
        uint64_t job = 0;

        (void) parse_u64(b->job, &job);
        if (!o || add_new(o, "Name", json_object_new_string(b->name)) < 0 ||
            add_new(o, "Id", json_object_new_string(b->id)) < 0 || add_new(o, "Job", json_object_new_uint64(job)) < 0 ||
            add_new(o, "StartedUSec", json_object_new_uint64(b->started_usec)) < 0 ||
            add_new(o, "SumUSec", json_object_new_uint64(b->sum_usec)) < 0 || add_new(o, "Stages", stages_to_json(b)) < 0)
                return say_oom();
        json_print(o);
        return 0;
}

static int print_line(uint64_t usec, const char *what, Color color) {
        _cleanup_free_ char *duration = format_duration(usec);

        if (!duration)
                return say_oom();
        printf("%s%10s %s%s\n", color_on(color), duration, what, color_off(color));
        return 0;
}

static int print_text(const Blame *b) {
        _cleanup_free_ char *at = format_timestamp(b->started_usec), *sum = NULL;
        int r;

        for (size_t i = 0; i < b->n; i++) {
                r = print_line(b->stages[i].usec, b->stages[i].name, COLOR_NONE);
                if (r < 0)
                        return r;
        }
        sum = at ? strjoinf("in all, the start of %s", at) : NULL;
        return sum ? print_line(b->sum_usec, sum, COLOR_BOLD) : say_oom();
}

static int say_nothing_found(const char *name) {
        say(name, "the journal tells of no start; `vmunit list` shows the VMs");
        if (geteuid() != 0)
                say(name, "only root and members of systemd-journal may read the system's journal: try sudo");
        return -ENOENT;
}

int verb_blame(const Args *a) {
        _cleanup_(blame_done) Blame b = {};
        sd_journal *j = NULL;
        int r;

        r = sd_journal_open(&j, SD_JOURNAL_LOCAL_ONLY);
        if (r >= 0)
                r = add_matches(j, a->names[0]);
        if (r >= 0)
                r = read_stages(j, &b);
        sd_journal_close(j);
        if (r < 0) {
                say(a->names[0], "cannot read the journal: %s", strerror(-r));
                return r;
        }
        if (b.n == 0)
                return say_nothing_found(a->names[0]);

        qsort(b.stages, b.n, sizeof(Stage), compare_stages);
        return a->json ? print_json(&b) : print_text(&b);
}
