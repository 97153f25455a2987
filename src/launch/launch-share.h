/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/launch-protocol.h"

/* What a virtiofsd is given of a share, made by who has the rights: the directory behind dir_fd as a mount of its own, which stands
 * nowhere yet, and the user namespace that virtiofsd is root of. Files on disk keep their owner: the mount is idmapped
 * (mount_setattr(2), user_namespaces(7)). -EMEDIUMTYPE: its file system cannot be. The fds are the caller's. */
int share_open(int dir_fd, const ShareRequest *share, int *ret_tree, int *ret_userns);
