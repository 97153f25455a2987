/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "core/manager.h"

/* The wire: org.vmunit1 as docs/dbus-api.md describes it. What is refused when is the core's; here calls are read and
 * answered, and what the core tells is shown. */

typedef struct Api Api;

/* Adds all objects to the bus and becomes the manager's observer. Request the name after it. */
int api_new(sd_event *event, sd_bus *bus, Manager *manager, Api **ret);
Api *api_free(Api *a);
DEFINE_TRIVIAL_CLEANUP_FUNC(Api *, api_free);
