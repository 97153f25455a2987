/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* In a guest: extended attributes of a file. xattr set FILE NAME VALUE, xattr get FILE NAME, xattr acl FILE UID: that user may read it. */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

typedef struct Entry {
        uint16_t tag, perm;
        uint32_t id;
} Entry;

static int set_acl(const char *path, uint32_t uid) {
        struct {
                uint32_t version;
                Entry entries[5];
        } acl = { 2, { { 0x01, 6, -1U }, { 0x02, 4, uid }, { 0x04, 4, -1U }, { 0x10, 4, -1U }, { 0x20, 0, -1U } } };

        return setxattr(path, "system.posix_acl_access", &acl, sizeof(acl), 0);
}

static int get(const char *path, const char *name) {
        char buf[256];
        ssize_t n = getxattr(path, name, buf, sizeof(buf));

        if (n >= 0)
                printf("%.*s\n", (int) n, buf);
        return n < 0 ? -1 : 0;
}

int main(int argc, char *argv[]) {
        int r;

        if (argc == 5 && strcmp(argv[1], "set") == 0)
                r = setxattr(argv[2], argv[3], argv[4], strlen(argv[4]), 0);
        else if (argc == 4 && strcmp(argv[1], "get") == 0)
                r = get(argv[2], argv[3]);
        else if (argc == 4 && strcmp(argv[1], "acl") == 0)
                r = set_acl(argv[2], (uint32_t) atoi(argv[3]));
        else
                return 2;
        if (r < 0)
                printf("%s\n", strerror(errno));
        return r < 0;
}
