/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>

#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/vmm.h"

LaunchPlan *launch_plan_free(LaunchPlan *p) {
        if (!p)
                return NULL;

        strv_free(p->argv);
        for (size_t i = 0; i < p->n_fds; i++) {
                free(p->fds[i].key);
                free(p->fds[i].path);
        }
        free(p->fds);
        free(p->config);
        free(p);
        return NULL;
}

static int add_fd(LaunchPlan *p, LaunchFd f) {
        LaunchFd *fds = reallocarray(p->fds, p->n_fds + 1, sizeof(LaunchFd));

        if (!fds)
                return -ENOMEM;
        p->fds = fds;
        p->fds[p->n_fds] = f;
        return VMM_FD_FIRST + (int) p->n_fds++;
}

int launch_plan_add_fd(LaunchPlan *p, LaunchFdType type) {
        return add_fd(p, (LaunchFd) { .type = type });
}

int launch_plan_add_file(LaunchPlan *p, const char *path, bool writable, const char *key_format, ...) {
        LaunchFd f = { .type = LAUNCH_FD_FILE, .writable = writable };
        va_list ap;
        int r;

        va_start(ap, key_format);
        if (vasprintf(&f.key, key_format, ap) < 0)
                f.key = NULL;
        va_end(ap);
        f.path = strdup(path);

        r = f.key && f.path ? add_fd(p, f) : -ENOMEM;
        if (r < 0) {
                free(f.key);
                free(f.path);
        }
        return r;
}

char *launch_plan_show(LaunchPlan *p, int fd, ExecShown how) {
        char name[32];

        p->fds[fd - VMM_FD_FIRST].shown = how;
        (void) snprintf(name, sizeof(name), EXEC_FILES "/%d", fd);
        return strdup(name);
}

int vmm_refuse(sd_bus_error *error, const char *format, ...) {
        va_list ap;

        va_start(ap, format);
        (void) sd_bus_error_setfv(error, VMUNIT_ERROR_NOT_SUPPORTED, format, ap);
        va_end(ap);
        return -EOPNOTSUPP;
}

const VMMOps *vmm_ops(Backend b) {
        switch (b) {

        case BACKEND_CLOUD_HYPERVISOR:
                return &cloud_hypervisor_ops;

        case BACKEND_QEMU:
                return &qemu_ops;

        case BACKEND_FIRECRACKER:
                return &firecracker_ops;

        default:
                return NULL;
        }
}
