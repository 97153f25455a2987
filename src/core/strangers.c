/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>

#include "basic/log.h"
#include "basic/string-util.h"
#include "core/run.h"
#include "core/strangers.h"

#define DIRECTORY "/run/vmunit/vms"

typedef struct Strangers {
        VMNumbers *numbers;
        size_t n;
} Strangers;

/* 0: there is no such file, or none that tells */
static int add(Strangers *s, const char *dir) {
        _cleanup_free_ char *path = strjoinf("%s/run", dir);
        VMNumbers numbers, *p;

        if (!path)
                return -ENOMEM;
        if (run_read_numbers(path, &numbers) < 0)
                return 0;
        p = reallocarray(s->numbers, s->n + 1, sizeof(VMNumbers));
        if (!p)
                return -ENOMEM;
        s->numbers = p;
        s->numbers[s->n++] = numbers;
        return 1;
}

/* A virtiofsd or a passt may be there without a VMM. */
static int add_all(Strangers *s, const char *dir) {
        int r = add(s, dir);
        DIR *d;

        if (r != 0)
                return r;
        d = opendir(dir);
        if (!d)
                return errno == ENOTDIR ? 0 : -errno;
        for (struct dirent *e; r == 0 && (e = readdir(d));) {
                _cleanup_free_ char *path = strjoinf("%s/%s", dir, e->d_name);

                r = path ? add(s, path) : -ENOMEM;
        }
        closedir(d);
        return r;
}

static int look(Store *store, Strangers *s, const char *id) {
        _cleanup_free_ char *dir = NULL;
        int r;

        r = store_has_vm(store, id);
        if (r != 0)
                return MIN(r, 0);
        dir = strjoinf(DIRECTORY "/%s", id);
        r = dir ? add_all(s, dir) : -ENOMEM;
        if (r > 0)
                log_notice("The database does not know VM %s, which may run (see %s/run): it is left alone, and its ids are given to no other",
                           id, dir);
        return r;
}

void strangers_reserve(Store *store) {
        Strangers s = {};
        int r = 0;
        DIR *d;

        d = opendir(DIRECTORY);
        if (!d)
                r = errno == ENOENT ? 0 : -errno;
        for (struct dirent *e; d && r >= 0 && (e = readdir(d));)
                if (e->d_name[0] != '.')
                        r = look(store, &s, e->d_name);
        if (d)
                closedir(d);
        if (s.n > 0) {
                int k = store_reserve(store, s.numbers, s.n);

                r = MIN(r, k);
        }
        free(s.numbers);
        if (r < 0)
                log_warning_errno(r, "VMs that the database does not know may have the ids of others");
}
