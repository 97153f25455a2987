/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "vmm/vmm.h"

int firecracker_check(const Definition *d, const char *version, sd_bus_error *error);
int firecracker_check_kernel(const Definition *d, const char *version, const FileHead *kernel, sd_bus_error *error);
int firecracker_plan(const LaunchParams *p, LaunchPlan **ret);
