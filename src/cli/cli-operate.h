/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "cli/cli-args.h"

/* create, start, stop, kill, reboot, reset, pause, resume, remove. 0, or negative when any failed; it has said which. */
int operate(const Args *a);
