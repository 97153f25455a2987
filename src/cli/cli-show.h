/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/json-util.h"
#include "cli/cli-args.h"

int verb_list(const Args *a);
int verb_show(const Args *a);
int verb_status(const Args *a);
int verb_events(const Args *a);
int verb_backends(const Args *a);

/* The value of a property as `show` prints it: a string as it is but for control characters, all else as JSON. The caller
 * frees; NULL: no memory. */
char *property_to_string(json_object *value);
