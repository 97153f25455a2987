/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "basic/macro.h"

/* Takes a user's ids and groups, for good. May wait for who knows them (nsswitch.conf). -ESRCH: nobody does. */
int become_user(uid_t uid);
