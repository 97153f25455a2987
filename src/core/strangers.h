/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/store.h"

/* VMs that run, or may, and that the database does not know, since an older one was put back. They are left alone, and so is what they
 * have: their numbers are reserved for as long as the host does not boot. */
void strangers_reserve(Store *s);
