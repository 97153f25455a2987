/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "cli/cli-args.h"

int verb_stop_all(const Args *a);

/* Whether a D-Bus error means that the daemon has gone, and not that it refuses. */
bool daemon_is_lost(const char *error);
