/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>

#include "basic/exec-protocol.h"
#include "basic/string-util.h"
#include "vmm/virtiofsd-plan.h"
#include "vmm/vmm.h"

typedef struct Since {
        unsigned major, minor;
} Since;

static const Since c_oldest = { 5, 2 }, c_posix_acl = { 6, 2 };
static const Since rust_oldest = { 1, 0 }, rust_posix_acl = { 1, 2 }, rust_readonly = { 1, 13 };

static bool is_since(const VirtiofsdVersion *v, Since since) {
        return v->major > since.major || (v->major == since.major && v->minor >= since.minor);
}

/* At most four digits, and what is behind them */
static const char *parse_number(const char *s, unsigned *ret) {
        unsigned n = 0;
        size_t i;

        for (i = 0; isdigit((unsigned char) s[i]); i++) {
                if (i == 4)
                        return NULL;
                n = n * 10 + (unsigned) (s[i] - '0');
        }
        if (i == 0)
                return NULL;
        *ret = n;
        return s + i;
}

bool virtiofsd_parse_version(const char *line, VirtiofsdVersion *ret) {
        const char *s = startswith(line, "virtiofsd version ");
        VirtiofsdVersion v = { .rust = !s };

        if (!s)
                s = startswith(line, "virtiofsd backend "); /* older ones */
        if (!s)
                s = startswith(line, "virtiofsd ");
        s = s ? parse_number(s, &v.major) : NULL;
        if (!s || *s != '.' || !parse_number(s + 1, &v.minor))
                return false;
        *ret = v;
        return true;
}

static int refuse(const VirtiofsdVersion *v, const char *key, Since since, sd_bus_error *error) {
        return vmm_refuse(error, "%svirtiofsd %u.%u is too old for that, it takes %u.%u or later", key, v->major, v->minor, since.major,
                          since.minor);
}

static int check(const Filesystem *fs, const VirtiofsdVersion *v, sd_bus_error *error) {
        Since oldest = v->rust ? rust_oldest : c_oldest, posix_acl = v->rust ? rust_posix_acl : c_posix_acl;

        if (!is_since(v, oldest))
                return refuse(v, "", oldest, error);
        if (fs->posix_acl && !is_since(v, posix_acl))
                return refuse(v, "posixAcl: ", posix_acl, error);
        return 0;
}

/* In a chroot it is one process, which needs no more mounts and namespaces than it was born with: nothing of the host's is left to see there.
 * Locks stay in the guest: those that reach the host can only be tried for, and not waited for. */
static int add_c_options(const Filesystem *fs, const VirtiofsdVersion *v, char ***argv) {
        const char *const options[] = {
                "source=" EXEC_SHARE,
                "sandbox=chroot",
                fs->cache == CACHE_NEVER ? "cache=none" : fs->cache == CACHE_ALWAYS ? "cache=always" : "cache=auto",
                fs->xattr ? "xattr" : "no_xattr",
                "no_flock",
                "no_posix_lock",
                !is_since(v, c_posix_acl) ? NULL : fs->posix_acl ? "posix_acl" : "no_posix_acl",
        };

        for (size_t i = 0; i < ELEMENTSOF(options); i++)
                if (options[i] && (strv_extend(argv, "-o") < 0 || strv_extend(argv, options[i]) < 0))
                        return -ENOMEM;
        return 0;
}

static int add_rust_options(const Filesystem *fs, const VirtiofsdVersion *v, char ***argv) {
        if (strv_extend(argv, "--shared-dir=" EXEC_SHARE) < 0 || strv_extend(argv, "--sandbox=chroot") < 0 ||
            strv_extendf(argv, "--cache=%s", filesystem_cache_to_string(fs->cache)) < 0)
                return -ENOMEM;
        if (fs->xattr && strv_extend(argv, "--xattr") < 0)
                return -ENOMEM;
        if (fs->posix_acl && strv_extend(argv, "--posix-acl") < 0)
                return -ENOMEM;
        if (fs->readonly && is_since(v, rust_readonly) && strv_extend(argv, "--readonly") < 0)
                return -ENOMEM;
        return 0;
}

/* The limit of open files is the caller's: root of a user namespace can't raise it, and the C one then stays at the lower of the two. */
static int add_options(const Filesystem *fs, const VirtiofsdVersion *v, int fd, char ***argv) {
        int r;

        if (strv_extend(argv, "virtiofsd") < 0 || strv_extendf(argv, "--fd=%d", fd) < 0)
                return -ENOMEM;
        r = v->rust ? add_rust_options(fs, v, argv) : add_c_options(fs, v, argv);
        if (r < 0 || strv_extendf(argv, "--thread-pool-size=%u", fs->threads) < 0 || strv_extend(argv, "--rlimit-nofile=0") < 0)
                return -ENOMEM;
        return 0;
}

int virtiofsd_plan(const Filesystem *fs, const VirtiofsdVersion *v, int fd, char ***ret_argv, sd_bus_error *error) {
        _cleanup_strv_free_ char **argv = NULL;
        int r;

        r = check(fs, v, error);
        if (r >= 0)
                r = add_options(fs, v, fd, &argv);
        if (r < 0)
                return r;
        *ret_argv = TAKE_PTR(argv);
        return 0;
}
