/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One thing that a program tries that has been taken over. It runs in a child of its own. */
typedef struct Attempt {
        const char *name;
        int (*run)(const char *arg);    /* 0: it worked, which it must not; else a negative errno */
        const char *arg;                /* `@KEY…` is the fact KEY, and what stands behind it */
} Attempt;

/* Each ends with one that has no name. */
extern const Attempt file_attempts[], image_attempts[], kernel_attempts[], network_attempts[], process_attempts[], ring_attempts[];

/* What the test knows of the host, and a program that was taken over might, too: "" if it does not say */
const char *fact(const char *key);
int fact_number(const char *key);

/* Who has started all this; 0 where that cannot be seen */
extern pid_t starter;

/* The VM's own disk, open for both, and its kernel, to read: found among what was given, or by the host's names of them where those
 * can be seen. Negative errno if there is none. *ret_path: a name that it has, or NULL. */
int own_disk(const char **ret_path);
int own_kernel(const char **ret_path);

static inline int outcome(long result) {
        return result < 0 ? -errno : 0;
}

/* What newer headers have */
#define NR_OPEN_TREE 428
#define NR_MOVE_MOUNT 429
#define NR_FSOPEN 430
#define NR_FSPICK 433
#define NR_CLONE3 435
#define NR_PIDFD_GETFD 438
#define NR_PROCESS_MADVISE 440
#define NR_MOUNT_SETATTR 442
#define NR_QUOTACTL_FD 443
#define NR_MEMFD_SECRET 447
#define NR_FCHMODAT2 452
#define NR_STATMOUNT 457
#define NR_LISTMOUNT 458
#define NR_SETXATTRAT 463
#define NR_OPEN_TREE_ATTR 467
