/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "vmm/vmm.h"

int firecracker_check(const Definition *d, sd_bus_error *error);
int firecracker_plan(const LaunchParams *p, LaunchPlan **ret, sd_bus_error *error);
