/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#include "basic/user-util.h"

int become_user(uid_t uid) {
        struct passwd *pw;

        if (uid == 0)
                return 0;
        if (uid == (uid_t) -1)
                return -EINVAL;

        errno = 0;
        pw = getpwuid(uid);
        if (!pw)
                return errno > 0 ? -errno : -ESRCH;
        if (initgroups(pw->pw_name, pw->pw_gid) < 0 || setresgid(pw->pw_gid, pw->pw_gid, pw->pw_gid) < 0 ||
            setresuid(uid, uid, uid) < 0)
                return -errno;
        return 0;
}
