/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/json-util.h"
#include "cli/cli-args.h"

/* The last n events of a VM (name or id; NULL: of all) as an array of objects, oldest first. Says why when it fails. */
int events_get(sd_bus *bus, Verb verb, const char *name, const char *vm, size_t n, json_object **ret);
