/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <dirent.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/vmm.h"

#include "tap.h"

/* Each NAME.json of a directory in tests/golden is a definition, NAME.argv beside it what the VMM gets: an argument a line, then
 * the files, then its configuration. What words in NAME mean is the back end's. UPDATE_GOLDEN=1 writes them anew, to be read before
 * they are committed. */

typedef int (*golden_check)(const Definition *d, const char *version, sd_bus_error *error);
typedef int (*golden_plan)(const char *name, const LaunchParams *p, LaunchPlan **ret);

/* For programs whose definitions a VMM checks */
static inline int golden_no_check(const Definition *d, const char *version, sd_bus_error *error) {
        return 0;
}

/* One argument list more */
static inline int golden_add(LaunchPlan *plan, char **argv) {
        STRV_FOREACH(s, argv)
                if (strv_extend(&plan->argv, *s) < 0)
                        return -ENOMEM;
        return 0;
}

static char *golden_format(const LaunchPlan *p) {
        _cleanup_json_ json_object *config = p->config ? json_tokener_parse(p->config) : NULL;
        _cleanup_strv_free_ char **lines = NULL;

        STRV_FOREACH(s, p->argv)
                if (strv_extend(&lines, *s) < 0)
                        return NULL;
        for (size_t i = 0; i < p->n_fds; i++)
                if ((p->fds[i].type == LAUNCH_FD_FILE || p->fds[i].shown) &&
                    strv_extendf(&lines, "# %zu %s %c %s %s", VMM_FD_FIRST + i, p->fds[i].writable ? "rw" : "ro",
                                 p->fds[i].shown ?: EXEC_SHOWN_NOT, strempty(p->fds[i].key), strempty(p->fds[i].path)) < 0)
                        return NULL;
        if (p->rights && strv_extendf(&lines, "# rights %#x", p->rights) < 0)
                return NULL;
        if (p->config && strv_extend(&lines, json_object_to_json_string_ext(config, JSON_C_TO_STRING_PRETTY|
                                                                            JSON_C_TO_STRING_NOSLASHESCAPE)) < 0)
                return NULL;
        if (strv_extend(&lines, "") < 0)
                return NULL;
        return strv_join(lines, "\n");
}

static char *golden_text(const char *name, const Definition *d, golden_plan plan) {
        _cleanup_(launch_plan_freep) LaunchPlan *result = NULL;
        LaunchParams p = {
                .definition = d,
                .name = "web-1.example",
                .id = "6e1b1d5c-0d0f-4b5e-9a53-2a5c7f0f3a11",
                .cid = d->vsock ? 65540 : 0,
                .kvm = d->accel == ACCEL_KVM,
        };

        return plan(name, &p, &result) < 0 ? NULL : golden_format(result);
}

static void golden_compare(const char *directory, const char *name, const char *got) {
        _cleanup_free_ char *path = strjoinf("%s/%s.argv", directory, name), *want = NULL, *actual = NULL;

        if (getenv("UPDATE_GOLDEN") && write_file_atomic(path, got, false) < 0)
                abort();
        if (!ok(read_file_all(path, 1 << 20, &want, NULL) >= 0 && streq(got, want), "%s", name)) {
                actual = strjoinf("/tmp/%s.argv.got", name);
                (void) write_file_atomic(actual, got, false);
                printf("# diff %s %s\n", path, actual);
        }
}

static void golden_one(const char *directory, const char *file, golden_check check_it, golden_plan plan) {
        _cleanup_free_ char *path = strjoinf("%s/%s", directory, file), *json = NULL, *text = NULL;
        _cleanup_free_ char *name = strndup(file, strlen(file) - strlen(".json"));
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(definition_freep) Definition *d = NULL;

        if (!ok(read_file_all(path, 1 << 20, &json, NULL) >= 0 && definition_parse(json, &d, &error) >= 0,
                "%s is a definition %s", file, strempty(error.message)))
                return;
        is_int(check_it(d, "", &error), 0, "… that the back end can do %s", strempty(error.message));
        text = golden_text(name, d, plan);
        if (ok(text != NULL, "… and plan"))
                golden_compare(directory, name, text);
}

static int golden_is_json(const struct dirent *e) {
        return endswith(e->d_name, ".json");
}

static void golden_run(const char *directory, golden_check check_it, golden_plan plan) {
        struct dirent **list;
        int n;

        n = scandir(directory, &list, golden_is_json, alphasort);
        ok(n > 0, "%d golden tests", n);
        for (int i = 0; i < n; i++) {
                golden_one(directory, list[i]->d_name, check_it, plan);
                free(list[i]);
        }
        if (n >= 0)
                free(list);
}

/* r: of a check or a plan of what can't be done */
static inline void golden_refused(int r, sd_bus_error *error, const char *prefix) {
        is_int(r, -EOPNOTSUPP, "refused: %s", prefix);
        is_str(error->name, VMUNIT_ERROR_NOT_SUPPORTED, "… by its name");
        ok(error->message && startswith(error->message, prefix), "… %s", strempty(error->message));
        sd_bus_error_free(error);
}
