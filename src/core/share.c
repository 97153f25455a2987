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
#include "core/share-internal.h"
#include "core/start-private.h"
#include "vmm/passt-plan.h"
#include "vmm/virtiofsd-plan.h"

/* The life of a VMM's companion: the virtiofsd of a share or the passt of a network, and the bond between it and its VM. */

/* A virtiofsd ends when its VMM does, which may show a moment later. */
#define GRACE_USEC (200 * USEC_PER_MSEC)
/* The same once more, where its exit status is late */
#define STATUS_LATE_USEC (100 * USEC_PER_MSEC)
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

/* Before a network whose passt dies again and again gets another, and how long one lives that is no such case */
#define AGAIN_USEC (1 * USEC_PER_SEC)
#define AGAIN_MAX_USEC (60 * USEC_PER_SEC)
#define GOOD_USEC (120 * USEC_PER_SEC)

static const ShareKind *const kinds[] = { &share_kind_virtiofsd, &share_kind_passt };

static void share_again(Share *share);

static void share_done(Share *share) {
        share->start = share_start_free(share->start);
        share->run = run_free(share->run);
        share->grace = sd_event_source_disable_unref(share->grace);
        share->proof = sd_event_source_disable_unref(share->proof);
        share->late = sd_event_source_disable_unref(share->late);
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

static int share_add(VM *vm, const ShareKind *kind, unsigned index, const char *tag) {
        Share *share = vm->shares + vm->n_shares++;

        *share = (Share) { .vm = vm, .kind = kind, .index = index };
        share->tag = strdup(tag);
        share->scope = kind->scope_name(vm->rec.name, tag);
        share->dir = strjoinf("%s/%s%s", vm->run_dir, kind->prefix, tag);
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

        r = shares_alloc(vm, d->n_filesystems + d->n_networks);
        for (size_t i = 0; r >= 0 && i < d->n_filesystems; i++)
                r = share_add(vm, &share_kind_virtiofsd, (unsigned) i, d->filesystems[i].tag);
        for (size_t i = 0; r >= 0 && i < d->n_networks; i++)
                if (d->networks[i].type == NETWORK_USER)
                        r = share_add(vm, &share_kind_passt, (unsigned) i, d->networks[i].name);
        return r;
}

static const ShareKind *kind_of_dir(const char *name) {
        for (size_t i = 0; i < ELEMENTSOF(kinds); i++)
                if (startswith(name, kinds[i]->prefix))
                        return kinds[i];
        return NULL;
}

static int is_share_dir(const struct dirent *de) {
        return kind_of_dir(de->d_name) != NULL;
}

/* By their directories, for a database that was put back may know of others. */
static unsigned index_of(const Definition *d, const ShareKind *kind, const char *tag) {
        bool network = kind == &share_kind_passt;
        size_t i = 0;

        while (i < (network ? d->n_networks : d->n_filesystems) && !streq(network ? d->networks[i].name : d->filesystems[i].tag, tag))
                i++;
        return (unsigned) i;
}

static bool is_defined(const Share *share) {
        const Definition *d = share->vm->definition;

        return share->index < (share->kind == &share_kind_passt ? d->n_networks : d->n_filesystems);
}

int shares_find(VM *vm) {
        struct dirent **list = NULL;
        int n, r;

        n = scandir(vm->run_dir, &list, is_share_dir, alphasort);
        if (n < 0)
                return errno == ENOENT ? 0 : -errno;
        r = shares_alloc(vm, (size_t) n);
        for (int i = 0; i < n; i++) {
                const ShareKind *kind = kind_of_dir(list[i]->d_name);
                const char *tag = list[i]->d_name + strlen(kind->prefix);

                if (r >= 0)
                        r = share_add(vm, kind, index_of(vm->definition, kind, tag), tag);
                free(list[i]);
        }
        free(list);
        return r;
}

uint32_t vm_id(const VM *vm) {
        return VM_IDS_BASE + 2 * vm->rec.slot;
}

uint32_t vm_share_id(const VM *vm) {
        return VM_IDS_BASE + 2 * vm->rec.slot + 1;
}

uint32_t vm_network_id(const VM *vm) {
        return NETWORK_IDS_BASE + vm->rec.slot;
}

#define UNIT_NAME_MAX 255U

static int check_scope(const ShareKind *kind, const char *name, size_t i, const char *part, sd_bus_error *error) {
        _cleanup_free_ char *scope = kind->scope_name(name, part);

        if (!scope)
                return -ENOMEM;
        if (strlen(scope) > UNIT_NAME_MAX)
                return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_DEFINITION,
                                         "%s[%zu].%s: its unit's name would have %zu bytes, at most %u are possible; write a shorter one",
                                         kind->list, i, kind->key, strlen(scope), UNIT_NAME_MAX);
        return 0;
}

static unsigned passt_version(const Manager *m) {
        const char *line = m->companions[PROGRAM_PASST].version;
        unsigned version;

        return line && passt_parse_version(line, &version) ? version : PASST_NEWEST;
}

static int check_networks(Manager *m, const char *name, const Definition *d, sd_bus_error *error) {
        int r = 0;

        for (size_t i = 0; r >= 0 && i < d->n_networks; i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

                if (d->networks[i].type != NETWORK_USER)
                        continue;
                r = check_scope(&share_kind_passt, name, i, d->networks[i].name, error);
                if (r >= 0 && passt_check(d->networks + i, passt_version(m), &e) < 0)
                        r = sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED, "networks[%zu].%s", i, strempty(e.message));
        }
        return r;
}

int shares_check(Manager *m, const char *name, const Definition *d, sd_bus_error *error) {
        const char *line = m->companions[PROGRAM_VIRTIOFSD].version;
        VirtiofsdVersion version;
        bool known = line && virtiofsd_parse_version(line, &version);
        int r;

        for (size_t i = 0; i < d->n_filesystems; i++) {
                _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
                _cleanup_strv_free_ char **argv = NULL;

                r = check_scope(&share_kind_virtiofsd, name, i, d->filesystems[i].tag, error);
                if (r < 0)
                        return r;
                if (known && virtiofsd_plan(d->filesystems + i, &version, VMM_FD_FIRST, &argv, &e) == -EOPNOTSUPP)
                        return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED, "filesystems[%zu].%s", i, strempty(e.message));
        }
        return check_networks(m, name, d, error);
}

/* Which element of the kind's list needs it first, or SIZE_MAX */
static size_t first_of(const Definition *d, const ShareKind *kind) {
        if (kind == &share_kind_virtiofsd)
                return d->n_filesystems > 0 ? 0 : SIZE_MAX;
        for (size_t i = 0; i < d->n_networks; i++)
                if (d->networks[i].type == NETWORK_USER)
                        return i;
        return SIZE_MAX;
}

int shares_check_program(Manager *m, const Definition *before, const Definition *d, sd_bus_error *error) {
        for (size_t k = 0; k < ELEMENTSOF(kinds); k++) {
                const ShareKind *kind = kinds[k];
                size_t i = first_of(d, kind);

                if (i != SIZE_MAX && !(before && first_of(before, kind) != SIZE_MAX) && m->companions[kind->program].missing)
                        return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                                 "%s[%zu]: it needs %s, which was not found; install the package %s, or see %s= in vmunit.conf(5)",
                                                 kind->list, i, kind->program_name, kind->package, kind->setting);
        }
        return 0;
}

const Share *shares_waited_for(const VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++)
                if (!vm->shares[i].ready)
                        return vm->shares + i;
        return NULL;
}

/* Of /proc/PID/net/unix: all the sockets that there are in its network namespace, with the paths of those that were connected to from
 * there. Listening ones have this flag. */
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

const Share *shares_connected_last(const VM *vm) {
        _cleanup_free_ char *sockets = NULL, *path = NULL;

        if (vm->n_shares == 0 || !vm->ops->connects_shares || !vm->run)
                return NULL;
        path = strjoinf("/proc/%d/net/unix", (int) vm->run->pid);
        if (!path || read_file_all(path, SOCKETS_MAX, &sockets, NULL) < 0)
                return NULL;
        for (size_t i = vm->n_shares; i-- > 0;)
                if (is_connected(vm->shares + i, sockets))
                        return vm->shares + i;
        return NULL;
}

const char *share_title(const Share *share) {
        return share->kind->title;
}

const char *share_program(const Share *share) {
        return share->kind->program_name;
}

bool shares_ready(const VM *vm) {
        return !shares_waited_for(vm);
}

bool shares_live(const VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++)
                if (vm->shares[i].run && !run_is_alive(vm->shares[i].run))
                        return false;
        return true;
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
        share->late = sd_event_source_disable_unref(share->late);
        (void) sd_event_now(share->vm->manager->event, CLOCK_MONOTONIC, &share->ready_usec);
        if (share->vm->start)
                start_share_ready(share->vm);
}

/* A guest whose share is dead hangs, so it does not run on. */
static void share_lost(Share *share) {
        VM *vm = share->vm;

        if (vm->start && share->run && !share->run->ending)
                share_start_died(share);
        if (!share->kind->essential)
                return;
        if (vm_is_alive(vm) && vm->stop)
                stop_share_lost(vm);
        if (!vm_is_alive(vm) || vm->start || vm->stop || vm->rec.state == VM_REMOVING || relaunch_pending(vm))
                return;
        if (vm->vmm)
                vm->ops->drain(vm->vmm); /* it may have said why it goes, which takes it longer than its virtiofsds */
        if (vm->last_event == _VMM_EVENT_MAX)
                vm_put_down_for_share(vm, share->tag);
}

/* One that ends because its VMM does ends in good order, and its parent says so. */
static bool has_crashed(const Share *share) {
        _cleanup_free_ char *path = strjoinf("%s/exit", share->dir);
        int status;

        if (path && helper_read_exit(path, &status) >= 0)
                return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        return share->run->status_told;
}

static bool ends_by_itself(const Share *share) {
        return share->kind->essential && share->run && share->run->pidfd >= 0 && !share->run->ending;
}

const Share *shares_crashed(const VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                const Share *share = vm->shares + i;

                if (share->failed || (ends_by_itself(share) && !run_is_alive(share->run) && has_crashed(share)))
                        return share;
        }
        return NULL;
}

/* A VMM is told of the end of a process a little before whoever has its pidfd is. */
bool shares_undecided(const VM *vm) {
        uint64_t now = 0;

        if (shares_crashed(vm))
                return false;
        (void) sd_event_now(vm->manager->event, CLOCK_MONOTONIC, &now);
        for (size_t i = 0; i < vm->n_shares; i++) {
                const Share *share = vm->shares + i;

                if (ends_by_itself(share) && (run_is_alive(share->run) ? now < vm->run->died_usec + GRACE_USEC : !share->run->status_told))
                        return true;
        }
        return false;
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
                (void) start_error(vm->start, error, name, "%s[%u] (%s): %s", share->kind->list, share->index, share->tag, text);
                start_fail(vm->start);
                return;
        }
        vm_log(vm, LOG_ERR, "%s[%u] (%s): %s", share->kind->list, share->index, share->tag, text);
        share->failed = share->kind->essential;
        share->renew = !share->kind->essential;
        share->late = sd_event_source_disable_unref(share->late);
        if (share_start_abandon(share))
                return;
        if (share->kind->essential)
                share_lost(share);
        else if (share->run)
                run_end(share->run);
        else
                share_again(share);
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
static bool may_be_reset(Share *share) {
        VM *vm = share->vm;

        if (vm->vmm)
                vm->ops->drain(vm->vmm);
        if (share->n_renewals++ >= RENEWALS_MAX)
                return false;
        return share->proof || sd_event_add_time_relative(vm->manager->event, &share->proof, CLOCK_MONOTONIC, PROOF_USEC, 0, on_proof_late,
                                                          share) >= 0;
}

static int on_again_late(sd_event_source *source, uint64_t usec, void *userdata) {
        Share *share = userdata;

        share_failed(share, -ETIMEDOUT, VMUNIT_ERROR_TIMEOUT, "no answer from its %s", share->kind->program_name);
        return 0;
}

/* A network goes on by another passt, with what is connected from then on. */
static int on_again(sd_event_source *source, uint64_t usec, void *userdata) {
        Share *share = userdata;
        Manager *m = share->vm->manager;
        int r;

        share->grace = sd_event_source_disable_unref(share->grace);
        if (!vm_is_alive(share->vm) || share->vm->run->ending)
                return 0;
        r = share_begin(share);
        if (r >= 0)
                r = sd_event_add_time_relative(m->event, &share->late, CLOCK_MONOTONIC, m->config->start_timeout_usec, 0, on_again_late, share);
        if (r < 0)
                share_failed(share, r, VMUNIT_ERROR_BACKEND_FAILED, "can't start %s again: %s", share->kind->program_name, strerror(-r));
        return 0;
}

static void share_again(Share *share) {
        unsigned n = MIN(share->n_deaths, 6U);
        uint64_t delay = n == 0 ? 0 : MIN(AGAIN_USEC << n, AGAIN_MAX_USEC);

        share->n_deaths++;
        if (!vm_is_alive(share->vm) || share->vm->run->ending || share->grace)
                return;
        if (sd_event_add_time_relative(share->vm->manager->event, &share->grace, CLOCK_MONOTONIC, delay, 0, on_again, share) < 0)
                vm_log(share->vm, LOG_ERR, "no timer for network %s, which is gone until the VM is started again", share->tag);
}

static bool may_renew(Share *share) {
        VM *vm = share->vm;
        uint64_t now = 0;

        if (share->kind->essential)
                return vm_is_alive(vm) && !vm->stop && was_left(share) && may_be_reset(share);
        if (!vm_is_alive(vm) || vm->run->ending)
                return false;
        (void) sd_event_now(vm->manager->event, CLOCK_MONOTONIC, &now);
        if (now > share->ready_usec + GOOD_USEC)
                share->n_deaths = 0;
        vm_add_event(vm, "network-lost", NULL, "The passt of its network %s has died, and with it all connections; another takes its place",
                     share->tag);
        return true;
}

static void share_ended(Share *share, uint64_t grace_usec);

/* On a busy machine its parent, which tells how it ended, may not have had its turn. */
static bool status_comes(const Share *share) {
        return share->vm->ops && share->vm->ops->connects_shares && share->run->died_usec > 0 && !share->run->status_told;
}

static void read_status(Share *share) {
        _cleanup_free_ char *path = strjoinf("%s/exit", share->dir);

        if (!share->run->exit_known && path)
                share->run->exit_known = helper_read_exit(path, &share->run->status) >= 0;
}

static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata) {
        Share *share = userdata;

        share->grace = sd_event_source_disable_unref(share->grace);
        read_status(share);
        if (!share->run->exit_known && status_comes(share)) {
                share_ended(share, STATUS_LATE_USEC);
                return 0;
        }
        share->renew = may_renew(share);
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

/* Until there is a VMM it can't have ended with that. */
static bool is_starting(const Share *share) {
        return share->start || (share->vm->start && !share->vm->start->told_to_execute);
}

static void on_died(void *userdata) {
        Share *share = userdata;

        if (!is_starting(share) && !share->run->ending)
                share_ended(share, GRACE_USEC);
}

static void on_status(void *userdata) {
        Share *share = userdata;

        if (is_starting(share))
                share_start_died(share);
}

static void on_stop_asked(void *userdata) {
        Share *share = userdata;

        vm_stop_asked(share->vm);
}

static void on_gone(void *userdata) {
        Share *share = userdata;
        VM *vm = share->vm;
        bool renew = share->renew && vm_is_alive(vm) && !vm->run->ending && is_defined(share);

        share->run = run_free(share->run);
        vm->n_share_runs--;
        if (renew && !share->kind->essential)
                share_again(share);
        else if (renew) {
                int r = share_begin(share);

                if (r < 0)
                        share_failed(share, r, VMUNIT_ERROR_BACKEND_FAILED, "can't start virtiofsd again: %s", strerror(-r));
        } else {
                if (share->kind->essential && vm_is_alive(vm) && !vm->run->ending) /* it had failed while PID 1 was making its scope */
                        share_lost(share);
                if (vm->run)
                        run_others_gone(vm->run);
        }
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
        share->run->numbers = (VMNumbers) { .seq = vm->rec.seq, .slot = vm->rec.slot };
        share->run->keeps_dir = &share->renew;
        share->run->leaves_slice = true;
        (void) snprintf(share->run->backend, sizeof(share->run->backend), "%s", share->kind->program_name);
        vm->n_share_runs++;
        return 0;
}

void shares_end(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                Share *share = vm->shares + i;

                share->ready = share->renew = false;
                share->grace = sd_event_source_disable_unref(share->grace);
                share->proof = sd_event_source_disable_unref(share->proof);
                share->late = sd_event_source_disable_unref(share->late);
                if (share->run)
                        share->run->status_told = true; /* of no interest any more */
                if (!share_start_abandon(share) && share->run)
                        run_end(share->run);
        }
}

void shares_take_over(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                Share *share = vm->shares + i;

                share->ready = run_is_alive(share->run);
                if (!share->ready)
                        share_ended(share, TAKEOVER_GRACE_USEC);
        }
}
