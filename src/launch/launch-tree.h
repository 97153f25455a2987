/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* A namespace that knows as `uid` and so on what is `outside` and so on to the host: -EUSERS where this host makes none. Gives its fd. */
int userns_new(uint32_t uid, uint32_t gid, uint32_t outside, uint32_t count);
/* What is behind fd as a mount that stands nowhere yet, with the owners of such a namespace, if there is one: -EMEDIUMTYPE where the file
 * system cannot do that. */
int tree_open(int fd, int map_fd, bool readonly);
