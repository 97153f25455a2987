/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdio.h>

#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "core/user-limits.h"

/* Nothing is added up and kept: each question counts anew, so that no sum can go wrong. */

static void claim_add(uint64_t claim[static _USER_LIMIT_MAX], const Definition *d) {
        if (!d)
                return;
        claim[USER_LIMIT_VMS] = 1;
        claim[USER_LIMIT_CPUS] = MAX(claim[USER_LIMIT_CPUS], (uint64_t) d->cpus);
        claim[USER_LIMIT_MEMORY] = MAX(claim[USER_LIMIT_MEMORY], d->memory);
        claim[USER_LIMIT_DISKS] = MAX(claim[USER_LIMIT_DISKS], (uint64_t) d->n_disks);
}

static uint64_t used(const Manager *m, uid_t owner, UserLimit l) {
        uint64_t sum = 0;

        for (const VM *vm = m->vms; vm; vm = vm->next)
                if (vm->rec.owner == owner)
                        sum += vm->claim[l];
        return sum;
}

static int exceeded(const Manager *m, const char *name, uid_t owner, UserLimit l, uint64_t has, uint64_t more, sd_bus_error *error) {
        static const char *const keys[] = { NULL, "cpus", "memory", "disks" };
        static const char *const words[] = { "virtual machines", "CPUs", "memory", "disks" };
        _cleanup_free_ char *h = NULL, *w = NULL, *limit = NULL;
        uint64_t max = m->config->user_limit[l];
        bool size = l == USER_LIMIT_MEMORY;

        h = size ? format_size(has) : strjoinf("%" PRIu64, has);
        w = size ? format_size(more) : strjoinf("%" PRIu64, more);
        limit = size ? format_size(max) : strjoinf("%" PRIu64, max);
        if (!h || !w || !limit)
                return sd_bus_error_set_errno(error, -ENOMEM);
        return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
                                 "%s: the VMs of user %u have %s %s in all, and this would be %s more; %s= in vmunit.conf allows %s",
                                 keys[l] ?: name, (unsigned) owner, h, words[l], w, user_limit_to_string(l), limit);
}

/* has: what the VM counts so far */
static int check(const Manager *m, const char *name, uid_t owner, const uint64_t has[static _USER_LIMIT_MAX],
                 const uint64_t wants[static _USER_LIMIT_MAX], sd_bus_error *error) {
        if (owner == 0)
                return 0;
        for (UserLimit l = 0; l < _USER_LIMIT_MAX; l++) {
                uint64_t sum, max = m->config->user_limit[l];

                if (wants[l] <= has[l] || max == UINT64_MAX)
                        continue;
                sum = used(m, owner, l);
                if (sum > max || wants[l] - has[l] > max - sum)
                        return exceeded(m, name, owner, l, sum, wants[l] - has[l], error);
        }
        return 0;
}

/* Root's count as well: a script of root's that goes wrong is to be told so before all answers take seconds. */
static int check_all(const Manager *m, const char *name, sd_bus_error *error) {
        uint64_t max = m->config->vms_max;

        if (m->n_vms < max)
                return 0;
        return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
                                 "%s: there are %zu virtual machines in all, and this would be one more; VMsMax= in vmunit.conf allows %" PRIu64,
                                 name, m->n_vms, max);
}

int claim_check_new(Manager *m, const char *name, uid_t owner, const Definition *d, sd_bus_error *error) {
        uint64_t wants[_USER_LIMIT_MAX] = {};
        static const uint64_t none[_USER_LIMIT_MAX];
        int r;

        r = check_all(m, name, error);
        if (r < 0)
                return r;
        claim_add(wants, d);
        return check(m, name, owner, none, wants, error);
}

int claim_take(VM *vm, const Definition *definition, const Definition *next, sd_bus_error *error) {
        uint64_t wants[_USER_LIMIT_MAX] = {};
        int r;

        claim_add(wants, definition);
        claim_add(wants, next);
        r = check(vm->manager, vm->rec.name, vm->rec.owner, vm->claim, wants, error);
        if (r < 0)
                return r;
        claim_add(vm->claim, definition);
        claim_add(vm->claim, next);
        return 0;
}

void claim_settle(VM *vm) {
        _cleanup_(definition_freep) Definition *next = NULL;

        /* Without memory it goes on to count what it did. */
        if (!vm->rec.next_definition || definition_parse(vm->rec.next_definition, &next, NULL) >= 0)
                memset(vm->claim, 0, sizeof(vm->claim));
        claim_add(vm->claim, vm->definition);
        claim_add(vm->claim, next);
}
