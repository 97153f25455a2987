/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "cli/cli-args.h"

/* Everything for the person goes to standard error and begins with the VM's name, or "vmunit". */
void say(const char *name, const char *format, ...) _printf_(2, 3);
int say_oom(void);                              /* -ENOMEM */

/* What to do about a D-Bus error, as a sentence with the VM's name in it; NULL when the error speaks for itself (or there
 * is no memory). */
char *error_hint(const char *error, Verb verb, const char *name, bool root);

/* Says the daemon's own message and what to do. Gives back a negative errno, for `return say_bus_error(…)`. */
int say_bus_error(const char *name, Verb verb, const sd_bus_error *error, int r);
