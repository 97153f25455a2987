/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "basic/macro.h"

#define CAP_BIT(cap) (UINT64_C(1) << (cap))

/* Makes the rights of this process exactly `keep` (a mask): permitted and effective; none are inheritable or ambient. A
 * program that uid 0 executes gets the bounding set, so what shall not come back must leave that too. */
static inline int cap_set(uint64_t keep) {
        struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct d[2] = {
                { .effective = (uint32_t) keep, .permitted = (uint32_t) keep },
                { .effective = (uint32_t) (keep >> 32), .permitted = (uint32_t) (keep >> 32) },
        };

        return syscall(SYS_capset, &h, d) < 0 ? -errno : 0;
}

/* The only right, also of what this process of another uid than 0 executes */
static inline int cap_set_ambient(unsigned long cap) {
        struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
        uint32_t bits = (uint32_t) CAP_BIT(cap);
        struct __user_cap_data_struct d[2] = { { .effective = bits, .permitted = bits, .inheritable = bits } };

        if (syscall(SYS_capset, &h, d) < 0)
                return -errno;
        return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0 ? -errno : 0;
}

static inline int cap_bounding_set(uint64_t keep) {
        for (unsigned long cap = 0; cap < 64; cap++)
                if (!(keep & CAP_BIT(cap)) && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) > 0 &&
                    prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
                        return -errno;
        return 0;
}

/* For a child that will be a program of uid 0: it gets exactly these, for good. */
static inline int cap_confine(uint64_t keep) {
        int r;

        r = cap_bounding_set(keep);
        if (r < 0)
                return r;
        r = cap_set(keep);
        if (r < 0)
                return r;
        return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}
