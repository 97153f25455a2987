/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* Shuts the processes of this one's cgroup off from what listens on the host's own 127.0.0.0/8, and 0.0.0.0, which is the same: they can
 * neither connect nor send there, but for `resolver` (as in struct in_addr, 0: none) at port 53, and for answers by UDP to who has sent
 * something before. Whoever connects to them is not concerned. Needs a cgroup namespace whose root the cgroup is. For IPv4: there must be
 * no other sockets. */
int loopback_shut(uint32_t resolver);
