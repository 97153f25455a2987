/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "vmm/vmm.h"

/* The names of disks in Cloud Hypervisor's API: this and the name in the definition, for one set of names covers all devices. */
#define CLOUD_HYPERVISOR_DISK_PREFIX "disk-"

/* Older ones take the type of an image, and a qcow2 image's further files, from what they find in it whenever the guest resets:
 * who writes to the image chooses what is read with the VMM's rights. */
#define CLOUD_HYPERVISOR_DISKS_VERSION "51"

int cloud_hypervisor_check(const Definition *d, const char *version, sd_bus_error *error);
/* The plan's configuration is the body of vm.create. */
int cloud_hypervisor_plan(const LaunchParams *p, LaunchPlan **ret);
