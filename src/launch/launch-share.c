/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fd-util.h"
#include "launch/launch-share.h"
#include "launch/launch-tree.h"

int share_open(int dir_fd, const ShareRequest *share, int *ret_tree, int *ret_userns) {
        _cleanup_close_ int userns = -EBADF, map = -EBADF;
        int tree;

        userns = userns_new(0, 0, share->base, share->count);
        if (userns < 0)
                return userns;
        /* One owner: on disk it is who it is, and to virtiofsd root. */
        if (share->uid != 0 || share->gid != 0) {
                map = userns_new(share->uid, share->gid, share->base, share->count);
                if (map < 0)
                        return map;
        }
        tree = tree_open(dir_fd, map < 0 ? userns : map, share->readonly);
        if (tree < 0)
                return tree;
        *ret_tree = tree;
        *ret_userns = TAKE_FD(userns);
        return 0;
}
