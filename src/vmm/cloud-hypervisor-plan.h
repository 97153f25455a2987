/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "vmm/vmm.h"

/* The names of disks in Cloud Hypervisor's API: this and the name in the definition, for one set of names covers all devices. */
#define CLOUD_HYPERVISOR_DISK_PREFIX "disk-"

int cloud_hypervisor_check(const Definition *d, sd_bus_error *error);
/* The plan's configuration is the body of vm.create. */
int cloud_hypervisor_plan(const LaunchParams *p, LaunchPlan **ret, sd_bus_error *error);
