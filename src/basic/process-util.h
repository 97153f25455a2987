/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "basic/macro.h"

/* For children that will be another program. */

/* Dispositions and mask as a new program expects them. */
void reset_signals(void);

/* Umask, session, directory, nice level, limits, and, if asked for, the OOM score: nothing of this service's settings stays. No core dumps. */
void reset_process(bool oom_score);

/* What lies in /proc takes longer to open than all the rest takes, so a parent asks and says it once for all its children. Whether there is an
 * OOM score to be reset: 1 or 0. */
int oom_score_adjusted(void);
/* A core dump would be the guest's memory, and RLIMIT_CORE does not bind where core_pattern is a pipe, see core(5). */
int no_memory_in_core_dumps(void);

/* fds become 3, 4, 5…, stay open at exec, and nothing behind them is left. At most 256. */
int place_fds(const int *fds, size_t n);

/* A resource of setrlimit(2): never more than this, for good. */
int lower_limit(int resource, uint64_t limit);

/* Takes an id for uid and gid, and no group, for good. */
int become_id(uid_t id);
