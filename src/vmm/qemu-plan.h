/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "vmm/vmm.h"

/* QEMU's node and device names: prefix and the name in the definition, so that a disk may be called as a network is. */
#define QEMU_DISK_PREFIX "disk-"
#define QEMU_NETWORK_PREFIX "net-"

int qemu_check(const Definition *d, const char *version, sd_bus_error *error);
/* nested: the host is a VM itself, as its processor says. */
int qemu_plan_for(const LaunchParams *p, bool nested, LaunchPlan **ret);
/* … for this host */
int qemu_plan(const LaunchParams *p, LaunchPlan **ret);
