/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "api/api.h"

/* Who may call what: one table of all methods. Root may do all, an owner what is done to the own VMs, for the rest polkit is asked. */

/* The vtables' methods: each looks its own up in the table, and runs it when the caller may. */
int manager_method(sd_bus_message *m, void *userdata, sd_bus_error *error);
int vm_method(sd_bus_message *m, void *userdata, sd_bus_error *error);
int job_method(sd_bus_message *m, void *userdata, sd_bus_error *error);

/* Who has left is not asked any more, and nothing is done. */
void authorizations_drop(Api *api, const char *name);
/* Calls for which polkit is being asked; nothing was done for them. They are told that the daemon ends. */
void authorizations_end(Api *api);
