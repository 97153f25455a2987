/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "basic/macro.h"

/* For children that will be another program. */

/* Dispositions and mask as a new program expects them. */
void reset_signals(void);

/* Umask, session, directory, nice level, OOM score, limits: nothing of this service's settings stays. No core dumps. */
void reset_process(void);

/* fds become 3, 4, 5…, stay open at exec, and nothing behind them is left. At most 256. */
int place_fds(const int *fds, size_t n);

/* Takes a user's ids and groups, for good. May wait for who knows them (nsswitch.conf). -ESRCH: nobody does. */
int become_user(uid_t uid);
