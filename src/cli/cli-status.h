/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/json-util.h"
#include "cli/cli-format.h"

Color state_color(const char *state);

/* The view for people of what `status --json` gives. */
void status_print(json_object *status, uint64_t now);
