/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* Asks for passwords on a terminal, where the session has no polkit agent of its own. Nothing where it can't or need not: no terminal, root,
 * no pkttyagent(1). */
void agent_open(void);
/* Safe when none runs. */
void agent_close(void);
