/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <grp.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "basic/cap-util.h"
#include "basic/fd-util.h"
#include "basic/process-util.h"
#include "exec/loopback.h"
#include "exec/view.h"

/* Its vCPUs, devices and workers are threads, and all that its uid has. */
#define VMM_THREADS_MAX 1024U
#define VMM_FILES_MAX 65536U

/* One after the other, so that the one that this kernel does not let us have can be named */
static int leave_namespaces(const Walls *w, const char **ret_what) {
        const struct { int flag; const char *what; } namespaces[] = {
                { CLONE_NEWNS, "a mount namespace" },
                { CLONE_NEWIPC, "an IPC namespace" },
                { CLONE_NEWUTS, "a UTS namespace" },
                { w->network ? 0 : CLONE_NEWNET, "a network namespace" },
        };

        for (size_t i = 0; i < ELEMENTSOF(namespaces); i++)
                if (unshare(namespaces[i].flag) < 0) {
                        *ret_what = namespaces[i].what;
                        return -errno;
                }
        return 0;
}

int walls_build(Walls *w, const char **ret_what) {
        View v = VIEW_NONE;
        int r;

        *ret_what = "its view";
        r = view_take(&v, w);
        if (r >= 0)
                r = leave_namespaces(w, ret_what);
        if (r >= 0)
                r = view_enter(&v, w);
        view_done(&v);
        return r;
}

pid_t walls_fork(void) {
        struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };

        return (pid_t) syscall(SYS_clone3, &args, sizeof(args));
}

static const struct sock_filter filter_vmm[] = {
#include "exec/filter-vmm.h"
};

static const struct sock_filter filter_virtiofsd[] = {
#include "exec/filter-virtiofsd.h"
};

static const struct sock_filter filter_passt[] = {
#include "exec/filter-passt.h"
};

static int load_filter(const struct sock_filter *filter, size_t n) {
        struct sock_fprog program = { .len = (unsigned short) n, .filter = (struct sock_filter *) filter };

        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0 ? -errno : 0;
}

static int mount_proc(void) {
        return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 ? -errno : 0;
}

static int enter_share(const Walls *w) {
        int r;

        r = mount_proc();
        if (r < 0)
                return r;
        if (setgroups(0, NULL) < 0 || setns(w->userns, CLONE_NEWUSER) < 0)
                return -errno;
        return become_id(0);
}

/* Passt itself goes on to a user namespace of its own, when it listens. */
static int enter_network(const Walls *w) {
        int r;

        r = mount_proc();
        if (r >= 0)
                r = loopback_shut(w->network->resolver);
        if (r >= 0 && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
                r = -errno;
        if (r >= 0)
                r = become_id(w->id);
        if (r < 0)
                return r;
        return w->network->low_ports ? cap_set_ambient(CAP_NET_BIND_SERVICE) : cap_set(0);
}

/* Its files in EXEC_SOCKETS_DIR are nobody's to reach but the daemon's, which has no right beyond their modes. */
static int enter_vmm(const Walls *w) {
        int r;

        (void) umask(0);
        r = lower_limit(RLIMIT_NPROC, VMM_THREADS_MAX);
        if (r >= 0)
                r = lower_limit(RLIMIT_NOFILE, VMM_FILES_MAX);
        if (r >= 0)
                r = cap_bounding_set(0);
        if (r >= 0)
                r = become_id(w->id);
        return r < 0 ? r : cap_set(0);
}

int walls_enter(const Walls *w, const char **ret_what) {
        int r;

        *ret_what = "a cgroup namespace";
        if (unshare(CLONE_NEWCGROUP) < 0)
                return -errno;
        *ret_what = "its ids and limits";
        r = w->is_share ? enter_share(w) : w->network ? enter_network(w) : enter_vmm(w);
        if (r < 0)
                return r;
        *ret_what = "a filter of calls";
        if (w->is_share)
                return load_filter(filter_virtiofsd, ELEMENTSOF(filter_virtiofsd));
        if (w->network)
                return load_filter(filter_passt, ELEMENTSOF(filter_passt));
        return load_filter(filter_vmm, ELEMENTSOF(filter_vmm));
}
