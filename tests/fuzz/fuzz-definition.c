/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/definition.h"
#include "vmm/vmm.h"

#include "fuzz.h"

/* A definition and, behind a NUL, a patch for it. What is taken is the same after a turn as text, and back ends can plan it or say
 * why not. */

static void check_same(const Definition *d) {
        _cleanup_(definition_freep) Definition *again = NULL;
        _cleanup_free_ char *text = NULL, *text_again = NULL;
        char hash[65], hash_again[65];

        fuzz_assert(definition_format(d, &text) >= 0);
        fuzz_assert(definition_parse(text, &again, NULL) >= 0);
        fuzz_assert(definition_format(again, &text_again) >= 0);
        fuzz_assert(strcmp(text, text_again) == 0);
        fuzz_assert(definition_hash(d, hash) >= 0 && definition_hash(again, hash_again) >= 0);
        fuzz_assert(strcmp(hash, hash_again) == 0);
}

static void check_plans(const Definition *d) {
        LaunchParams p = { .definition = d, .name = "a", .id = "12345678-1234-1234-1234-123456789abc" };

        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
                sd_bus_error error = SD_BUS_ERROR_NULL;

                if (!vmm_ops(b))
                        continue;
                if (vmm_ops(b)->check(d, "", &error) < 0)
                        fuzz_assert(sd_bus_error_is_set(&error));
                else
                        fuzz_assert(vmm_ops(b)->plan(&p, &plan) >= 0 && plan->argv && *plan->argv);
                sd_bus_error_free(&error);
        }
}

static bool differs(const Definition *a, const Definition *b) {
        char **paths = NULL;
        bool any;

        fuzz_assert(definition_diff(a, b, &paths) >= 0);
        any = paths && *paths;
        for (char **p = paths; p && *p; p++)
                free(*p);
        free(paths);
        return any;
}

static void patch_with(const Definition *d, const char *patch) {
        sd_bus_error error = SD_BUS_ERROR_NULL;
        Definition *merged = NULL;
        char a[65], b[65];

        if (definition_merge(d, patch, &merged, &error) >= 0) {
                check_same(merged);
                fuzz_assert(definition_hash(d, a) >= 0 && definition_hash(merged, b) >= 0);
                fuzz_assert(differs(d, merged) == (strcmp(a, b) != 0));
                definition_free(merged);
        } else
                fuzz_assert(!merged && sd_bus_error_is_set(&error));
        sd_bus_error_free(&error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_free_ char *text = fuzz_string(data, size);
        _cleanup_(definition_freep) Definition *d = NULL;
        sd_bus_error error = SD_BUS_ERROR_NULL;

        if (definition_parse(text, &d, &error) >= 0) {
                check_same(d);
                check_plans(d);
                fuzz_assert(!differs(d, d));
                if (strlen(text) < size)
                        patch_with(d, text + strlen(text) + 1);
        } else
                fuzz_assert(!d && sd_bus_error_is_set(&error));
        sd_bus_error_free(&error);
        return 0;
}
