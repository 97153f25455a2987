/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>

#include "basic/string-util.h"
#include "vmm/vmm.h"

LaunchPlan *launch_plan_free(LaunchPlan *p) {
        if (!p)
                return NULL;

        strv_free(p->argv);
        for (size_t i = 0; i < p->n_files; i++) {
                free(p->files[i].key);
                free(p->files[i].path);
        }
        free(p->files);
        free(p);
        return NULL;
}

int launch_plan_add_file(LaunchPlan *p, const char *path, bool writable, const char *key_format, ...) {
        LaunchFile f = { .writable = writable }, *files;
        va_list ap;

        va_start(ap, key_format);
        if (vasprintf(&f.key, key_format, ap) < 0)
                f.key = NULL;
        va_end(ap);
        f.path = strdup(path);

        files = f.key && f.path ? reallocarray(p->files, p->n_files + 1, sizeof(LaunchFile)) : NULL;
        if (!files) {
                free(f.key);
                free(f.path);
                return -ENOMEM;
        }

        p->files = files;
        p->files[p->n_files] = f;
        return VMM_FD_FILES + (int) p->n_files++;
}

const VMMOps *vmm_ops(Backend b) {
        switch (b) {

        case BACKEND_QEMU:
                return &qemu_ops;

        default:
                return NULL;
        }
}
