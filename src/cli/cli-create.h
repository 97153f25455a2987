/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/json-util.h"
#include "cli/cli-args.h"

/* Puts what one option says into a definition. Paths become absolute by cwd. On -EINVAL *ret_error (caller frees) says what
 * is wrong with the option, on -EBADMSG with the definition; values that the daemon checks go to it as they are. */
int definition_apply(json_object *definition, Option option, const char *value, const char *cwd, char **ret_error);

/* The definition as text: from FILE, "-", the options, or a file changed by options. 0; -EINVAL for a mistake in the usage,
 * else another negative errno; it has told on stderr. */
int definition_from_args(const Args *a, char **ret);
