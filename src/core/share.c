/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/name-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share.h"
#include "core/start-private.h"
#include "vmm/virtiofsd-plan.h"

/* The life of a share's virtiofsd, and the bond between it and its VM. */

/* A virtiofsd ends when its VMM does, which may show a moment later. */
#define GRACE_USEC (200 * USEC_PER_MSEC)
/* The same where it was the daemon that was away */
#define TAKEOVER_GRACE_USEC (1 * USEC_PER_SEC)

/* A VMM that resets its guest tries for a minute to connect to a fresh virtiofsd, and then tells of the reset. One that ends without a reset
 * has no business to: its guest hangs. */
#ifdef FAULT_INJECTION
#define PROOF_USEC (10 * USEC_PER_SEC)
#else
#define PROOF_USEC (75 * USEC_PER_SEC)
#endif
#define RENEWALS_MAX 3U

#define DIRECTORY_PREFIX "fs-"

static void share_done(Share *share) {
        share->start = share_start_free(share->start);
        share->run = run_free(share->run);
        share->grace = sd_event_source_disable_unref(share->grace);
        share->proof = sd_event_source_disable_unref(share->proof);
        free(share->tag);
        free(share->scope);
        free(share->dir);
}

void shares_free(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++)
                share_done(vm->shares + i);
        free(TAKE_PTR(vm->shares));
        vm->n_shares = vm->n_share_runs = 0;
}

static int share_init(Share *share, VM *vm, unsigned index, const char *tag) {
        *share = (Share) { .vm = vm, .index = index };
        share->tag = strdup(tag);
        share->scope = share_scope_name(vm->rec.name, tag);
        share->dir = strjoinf("%s/" DIRECTORY_PREFIX "%s", vm->run_dir, tag);
        return share->tag && share->scope && share->dir ? 0 : -ENOMEM;
}

static int shares_alloc(VM *vm, size_t n) {
        shares_free(vm);
        vm->shares = new0(Share, n + 1);
        return vm->shares ? 0 : -ENOMEM;
}

int shares_prepare(VM *vm) {
        const Definition *d = vm->definition;
        int r;

        r = shares_alloc(vm, d->n_filesystems);
        for (size_t i = 0; r >= 0 && i < d->n_filesystems; i++)
                r = share_init(vm->shares + vm->n_shares++, vm, (unsigned) i, d->filesystems[i].tag);
        return r;
}

static int is_share_dir(const struct dirent *de) {
        return startswith(de->d_name, DIRECTORY_PREFIX) != NULL;
}

/* By their directories, for a database that was put back may know of others. */
static unsigned index_of(const Definition *d, const char *tag) {
        size_t i = 0;

        while (i < d->n_filesystems && !streq(d->filesystems[i].tag, tag))
                i++;
        return (unsigned) i;
}

int shares_find(VM *vm) {
        struct dirent **list = NULL;
        int n, r;

        n = scandir(vm->run_dir, &list, is_share_dir, alphasort);
        if (n < 0)
                return errno == ENOENT ? 0 : -errno;
        r = shares_alloc(vm, (size_t) n);
        for (int i = 0; i < n; i++) {
                const char *tag = list[i]->d_name + strlen(DIRECTORY_PREFIX);

                if (r >= 0)
                        r = share_init(vm->shares + vm->n_shares++, vm, index_of(vm->definition, tag), tag);
                free(list[i]);
        }
        free(list);
        return r;
}

uint32_t vm_share_id(const VM *vm) {
        return VM_IDS_BASE + 2 * vm->rec.slot + 1;
}

#define UNIT_NAME_MAX 255U

int shares_check(Manager *m, const char *name, const Definition *d, sd_bus_error *error) {
        VirtiofsdVersion version;
        bool known = m->virtiofsd_version && virtiofsd_parse_version(m->virtiofsd_version, &version);

        for (size_t i = 0; i < d->n_filesystems; i++) {
                _cleanup_free_ char *scope = share_scope_name(name, d->filesystems[i].tag);
                _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
                _cleanup_strv_free_ char **argv = NULL;

                if (!scope)
                        return -ENOMEM;
                if (strlen(scope) > UNIT_NAME_MAX)
                        return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_DEFINITION,
                                                 "filesystems[%zu].tag: its unit's name would have %zu bytes, at most %u are possible; "
                                                 "write a shorter one", i, strlen(scope), UNIT_NAME_MAX);
                if (known && virtiofsd_plan(d->filesystems + i, &version, VMM_FD_FIRST, &argv, &e) == -EOPNOTSUPP)
                        return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED, "filesystems[%zu].%s", i, strempty(e.message));
        }
        return 0;
}

int shares_check_program(Manager *m, const Definition *before, const Definition *d, sd_bus_error *error) {
        if (d->n_filesystems == 0 || (before && before->n_filesystems > 0) || !m->virtiofsd_missing)
                return 0;
        return sd_bus_error_set(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                "filesystems: they need virtiofsd, which was not found; install the package virtiofsd (in Debian 12 "
                                "qemu-system-common), or see VirtioFSD= in vmunit.conf(5)");
}

const char *shares_waited_for(const VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++)
                if (!vm->shares[i].ready)
                        return vm->shares[i].tag;
        return NULL;
}

/* Of /proc/net/unix: all the sockets that there are, with the paths of those that were connected to. Listening ones have this flag. */
#define SOCKETS_MAX (16U * 1024U * 1024U)
#define SOCKET_LISTENS "00010000"

static bool is_connected(const Share *share, const char *sockets) {
        _cleanup_free_ char *end = strjoinf(" %s/socket\n", share->dir);

        for (const char *p = end ? strstr(sockets, end) : NULL; p; p = strstr(p + 1, end)) {
                const char *line = p;

                while (line > sockets && line[-1] != '\n')
                        line--;
                if (!memmem(line, (size_t) (p - line), " " SOCKET_LISTENS " ", strlen(SOCKET_LISTENS) + 2))
                        return true;
        }
        return false;
}

const char *shares_connected_last(const VM *vm) {
        _cleanup_free_ char *sockets = NULL;

        if (vm->n_shares == 0 || !vm->ops->connects_shares || read_file_all("/proc/self/net/unix", SOCKETS_MAX, &sockets, NULL) < 0)
                return NULL;
        for (size_t i = vm->n_shares; i-- > 0;)
                if (is_connected(vm->shares + i, sockets))
                        return vm->shares[i].tag;
        return NULL;
}

bool shares_ready(const VM *vm) {
        return !shares_waited_for(vm);
}

const Share *shares_living(const VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++)
                if (vm->shares[i].run && run_is_alive(vm->shares[i].run))
                        return vm->shares + i;
        return NULL;
}

/* What the VM is to hear of it */

void share_is_ready(Share *share) {
        share->start = share_start_free(share->start);
        share->ready = true;
        share->renew = false;
        if (share->vm->start)
                start_share_ready(share->vm);
}

/* A guest whose share is dead hangs, so it does not run on. */
static void share_lost(Share *share) {
        VM *vm = share->vm;

        if (vm->start && share->run && !share->run->ending)
                share_start_died(share);
        if (vm_is_alive(vm) && vm->stop)
                stop_share_lost(vm);
        if (!vm_is_alive(vm) || vm->start || vm->stop || vm->rec.state == VM_REMOVING || relaunch_pending(vm))
                return;
        if (vm->vmm)
                vm->ops->drain(vm->vmm); /* it may have said why it goes, which takes it longer than its virtiofsds */
        if (vm->last_event == _VMM_EVENT_MAX)
                vm_put_down_for_share(vm, share->tag);
}

/* One that ends because its VMM does ends in good order. */
static bool has_crashed(const Share *share) {
        _cleanup_free_ char *path = strjoinf("%s/exit", share->dir);
        int status;

        return path && helper_read_exit(path, &status) >= 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

bool shares_blamed(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                Share *share = vm->shares + i;

                if (!share->run || share->run->ending || run_is_alive(share->run) || !has_crashed(share))
                        continue;
                share_start_died(share);
                return true;
        }
        return false;
}

void share_failed(Share *share, int error, const char *name, const char *format, ...) {
        VM *vm = share->vm;
        char text[4096 + 512];
        va_list ap;

        va_start(ap, format);
        (void) vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);

        if (vm->start) {
                (void) start_error(vm->start, error, name, "filesystems[%u] (%s): %s", share->index, share->tag, text);
                start_fail(vm->start);
                return;
        }
        vm_log(vm, LOG_ERR, "share %s: %s", share->tag, text);
        (void) share_start_abandon(share);
        share_lost(share);
}

/* It ends in good order when its VMM leaves, as one that connects by itself does when its guest resets. */
static bool was_left(const Share *share) {
        const Run *r = share->run;

        return share->vm->ops && share->vm->ops->connects_shares &&
                (share->unborn || (r->exit_known && WIFEXITED(r->status) && WEXITSTATUS(r->status) == 0));
}

static int on_proof_late(sd_event_source *source, uint64_t usec, void *userdata) {
        Share *share = userdata;

        share->proof = sd_event_source_disable_unref(share->proof);
        if (share->vm->vmm)
                share->vm->ops->drain(share->vm->vmm);
        if (share->n_renewals > 0)
                share_lost(share);
        return 0;
}

void shares_reset(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                vm->shares[i].n_renewals = 0;
                vm->shares[i].proof = sd_event_source_disable_unref(vm->shares[i].proof);
        }
}

/* Before it is known whether there was a reset, but not again and again */
static bool may_renew(Share *share) {
        VM *vm = share->vm;

        if (vm->vmm)
                vm->ops->drain(vm->vmm);
        if (share->n_renewals++ >= RENEWALS_MAX)
                return false;
        return share->proof || sd_event_add_time_relative(vm->manager->event, &share->proof, CLOCK_MONOTONIC, PROOF_USEC, 0, on_proof_late,
                                                          share) >= 0;
}

static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Share *share = userdata;

        share->grace = sd_event_source_disable_unref(share->grace);
        share->renew = vm_is_alive(share->vm) && !share->vm->stop && was_left(share) && may_renew(share);
        if (share->renew)
                run_end(share->run);
        else
                share_lost(share);
        return 0;
}

static void share_ended(Share *share, uint64_t grace_usec) {
        share->ready = false;
        if (share->grace)
                return;
        if (sd_event_add_time_relative(share->vm->manager->event, &share->grace, CLOCK_MONOTONIC, grace_usec, 0, on_grace_over,
                                       share) < 0)
                share_lost(share);
}

/* Its processes and units */

static void on_died(void *userdata) {
        Share *share = userdata;

        if (!share->start && !share->run->ending)
                share_ended(share, GRACE_USEC);
}

static void on_status(void *userdata) {
        Share *share = userdata;

        if (share->start)
                share_start_died(share);
}

static void on_stop_asked(void *userdata) {
        Share *share = userdata;

        vm_stop_asked(share->vm);
}

static void on_gone(void *userdata) {
        Share *share = userdata;
        VM *vm = share->vm;
        bool renew = share->renew && vm_is_alive(vm) && !vm->run->ending && share->index < vm->definition->n_filesystems;

        share->run = run_free(share->run);
        vm->n_share_runs--;
        if (renew) {
                int r = share_begin(share);

                if (r < 0)
                        share_failed(share, r, VMUNIT_ERROR_BACKEND_FAILED, "can't start virtiofsd again: %s", strerror(-r));
        } else if (vm->run)
                run_others_gone(vm->run);
}

static const RunHandler share_handler = {
        .died = on_died,
        .status = on_status,
        .stop_asked = on_stop_asked,
        .gone = on_gone,
};

int share_new_run(Share *share) {
        VM *vm = share->vm;
        int r;

        r = run_new(vm->manager->event, vm->manager->systemd, &share_handler, share, &share->run);
        if (r < 0)
                return r;
        share->run->scope = share->scope;
        share->run->slice = vm->slice;
        share->run->run_dir = share->dir;
        share->run->keeps_dir = &share->renew;
        share->run->leaves_slice = true;
        (void) snprintf(share->run->backend, sizeof(share->run->backend), "virtiofsd");
        vm->n_share_runs++;
        return 0;
}

void shares_end(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                Share *share = vm->shares + i;

                share->ready = share->renew = false;
                share->grace = sd_event_source_disable_unref(share->grace);
                share->proof = sd_event_source_disable_unref(share->proof);
                if (share->run)
                        share->run->status_told = true; /* of no interest any more */
                if (!share_start_abandon(share) && share->run)
                        run_end(share->run);
        }
}

void shares_take_over(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                Share *share = vm->shares + i;
                _cleanup_free_ char *path = strjoinf("%s/exit", share->dir);

                share->ready = run_is_alive(share->run);
                if (share->ready)
                        continue;
                share->run->exit_known = path && helper_read_exit(path, &share->run->status) >= 0;
                share_ended(share, TAKEOVER_GRACE_USEC);
        }
}
