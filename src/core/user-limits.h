/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/manager.h"

/* VMsMax= of vmunit.conf, for all there are, and the limits per user: what the VMs of an owner other than root are defined to have, in all. A VM counts from its creation
 * until it is gone, whether it runs or not, and with the larger of its definition and the one for its next start. */

/* Whether one more VM, and of this owner, fits: 0, or LimitsExceeded. Counts nothing: who makes it must not wait in between. */
int claim_check_new(Manager *m, const char *name, uid_t owner, const Definition *d, sd_bus_error *error);
/* Whether it may have these (NULL: none) for what it has; then they count, beside those, until claim_settle(). What it had already is never
 * refused, though a limit be lower by now. */
int claim_take(VM *vm, const Definition *definition, const Definition *next, sd_bus_error *error);
/* From now on it counts with what is in its record. */
void claim_settle(VM *vm);
