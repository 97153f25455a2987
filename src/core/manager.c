/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <sys/file.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-id128.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/name-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/manager-private.h"
#include "core/share.h"
#include "core/strangers.h"
#include "core/user-limits.h"

#define DATABASE "/var/lib/vmunit/vmunit.db"
#define BACKUP_DIR "/var/lib/vmunit/backup"
#define FIRST_BACKUP_USEC (5 * USEC_PER_SEC) /* a start has other things to do */
#define STATUS_DELAY_USEC (100 * USEC_PER_MSEC)
#define SAVE_RETRY_USEC (2 * USEC_PER_SEC)

/* The VMs by name and by id, in trees of tsearch(3) */

static int compare_names(const void *a, const void *b) {
        return strcmp(((const VM *) a)->rec.name, ((const VM *) b)->rec.name);
}

static int compare_ids(const void *a, const void *b) {
        return strcmp(((const VM *) a)->rec.id, ((const VM *) b)->rec.id);
}

int manager_link_vm(Manager *m, VM *vm) {
        VM **end;

        if (!tsearch(vm, &m->vms_by_name, compare_names) || !tsearch(vm, &m->vms_by_id, compare_ids)) {
                (void) tdelete(vm, &m->vms_by_name, compare_names);
                return -ENOMEM;
        }
        for (end = &m->vms; *end; end = &(*end)->next)
                ;
        *end = vm;
        m->n_vms++;
        claim_settle(vm);
        return 0;
}

static void manager_unlink_vm(Manager *m, VM *vm) {
        (void) tdelete(vm, &m->vms_by_name, compare_names);
        (void) tdelete(vm, &m->vms_by_id, compare_ids);
        for (VM **i = &m->vms; *i; i = &(*i)->next)
                if (*i == vm) {
                        *i = vm->next;
                        m->n_vms--;
                        break;
                }
}

VM *manager_get_vm(Manager *m, const char *name_or_id) {
        VM key = { .rec.name = (char *) name_or_id };
        VM **found;

        found = tfind(&key, &m->vms_by_name, compare_names);
        if (!found && strlen(name_or_id) == sizeof(key.rec.id) - 1) {
                memcpy(key.rec.id, name_or_id, sizeof(key.rec.id));
                found = tfind(&key, &m->vms_by_id, compare_ids);
        }
        return found ? *found : NULL;
}

VM *manager_get_vm_by_pid(Manager *m, pid_t pid) {
        _cleanup_free_ char *cgroup = NULL, *name = NULL;

        if (pid_cgroup(pid, &cgroup) < 0)
                return NULL;
        name = vm_name_from_cgroup(cgroup);
        return name ? manager_get_vm(m, name) : NULL;
}

Job *manager_get_job(Manager *m, uint32_t id) {
        for (VM *vm = m->vms; vm; vm = vm->next)
                if (vm->job && vm->job->id == id)
                        return vm->job;
        return NULL;
}

void manager_drop_vm(Manager *m, VM *vm) {
        if (m->observer)
                m->observer->vm_removed(m->observer_userdata, vm);
        manager_unlink_vm(m, vm);
        vm_free(vm);
        manager_state_changed(m);
}

/* STATUS= and what could not be saved */

static int on_status(sd_event_source *source, uint64_t usec, void *userdata) {
        Manager *m = userdata;
        size_t running = 0;

        m->status_timer = sd_event_source_disable_unref(m->status_timer);
        for (VM *vm = m->vms; vm; vm = vm->next)
                running += vm->rec.state == VM_RUNNING || vm->rec.state == VM_PAUSED;
        (void) sd_notifyf(false, "STATUS=%zu virtual machines, %zu running", m->n_vms, running);
        return 0;
}

/* A moment later, for PID 1 has better things to do while VMs start. */
void manager_state_changed(Manager *m) {
        if (!m->status_timer)
                (void) sd_event_add_time_relative(m->event, &m->status_timer, CLOCK_MONOTONIC, STATUS_DELAY_USEC, 0, on_status, m);
}

static void on_kept_event(const Event *ev, void *userdata) {
        Manager *m = userdata;

        if (m->observer)
                m->observer->event(m->observer_userdata, ev);
}

static int on_save(sd_event_source *source, uint64_t usec, void *userdata) {
        Manager *m = userdata;
        bool again;

        m->save_timer = sd_event_source_disable_unref(m->save_timer);
        again = store_flush_events(m->store) < 0;
        for (VM *vm = m->vms; vm; vm = vm->next)
                if (vm->unsaved && vm_save(vm) < 0)
                        again = true;
        if (again)
                manager_save_later(m);
        return 0;
}

void manager_save_later(Manager *m) {
        if (!m->save_timer)
                (void) sd_event_add_time_relative(m->event, &m->save_timer, CLOCK_MONOTONIC, SAVE_RETRY_USEC, 0, on_save, m);
}

/* Start and end */

typedef struct LoadContext {
        Manager *manager;
        char *bad;
} LoadContext;

static int load_vm(VMRecord *rec, void *userdata) {
        LoadContext *c = userdata;
        VM *vm;
        int r;

        r = vm_new(c->manager, rec, &vm);
        if (r < 0) {
                c->bad = strdup(rec->name);
                return r;
        }
        vm->loaded = true;
        r = vm_recall(vm);
        if (r >= 0)
                r = manager_link_vm(c->manager, vm);
        if (r < 0)
                vm_free(vm);
        return r;
}

static int manager_load(Manager *m, char **ret_message) {
        LoadContext c = { .manager = m };
        int r;

        r = store_open(DATABASE, &m->store, ret_message);
        if (r < 0)
                return r;
        store_set_history(m->store, m->config->events_max, m->config->events_max_age_usec);
        store_on_kept_event(m->store, on_kept_event, m);
        strangers_reserve(m->store);
        r = store_foreach_vm(m->store, load_vm, &c);
        if (r < 0)
                *ret_message = c.bad ? strjoinf("The VM %s in " DATABASE " can't be read (%s); use the vmunit that wrote it, or a copy "
                                                "of the database.", c.bad, strerror(-r)) :
                                       strjoinf("The VMs in " DATABASE " can't be read: %s.", strerror(-r));
        free(c.bad);
        return r;
}

static int manager_lock(Manager *m, char **ret_message) {
        m->lock_fd = open("/run/vmunit/lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
        if (m->lock_fd < 0)
                return -errno;
        if (flock(m->lock_fd, LOCK_EX | LOCK_NB) < 0) {
                if (errno == EWOULDBLOCK)
                        *ret_message = strdup("Another vmunitd holds /run/vmunit/lock: stop it first");
                return -errno;
        }
        return 0;
}

int manager_new(sd_event *event, sd_bus *bus, Config *config, Manager **ret, char **ret_message) {
        _cleanup_(manager_freep) Manager *m = NULL;
        int r;

        m = new0(Manager, 1);
        if (!m)
                return -ENOMEM;
        m->lock_fd = -EBADF;
        m->event = sd_event_ref(event);
        m->bus = sd_bus_ref(bus);
        m->config = config;

        r = read_boot_id(m->boot_id);
        if (r >= 0)
                r = mkdir_ok("/run/vmunit/vms", 0700);
        if (r >= 0)
                r = mkdir_ok("/var/lib/vmunit/vms", 0700);
        if (r >= 0)
                r = systemd_new(bus, &m->systemd);
        if (r < 0)
                return r;
        r = manager_lock(m, ret_message);
        if (r < 0)
                return r;
        r = manager_load(m, ret_message);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(m);
        return 0;
}

int manager_reload(Manager *m) {
        _cleanup_(config_freep) Config *c = NULL;
        int r;

        r = config_load(NULL, &c);
        if (r < 0)
                return log_warning_errno(r, "Can't read the configuration again, it stays as it was");
        SWAP(*c, *m->config);
        for (size_t i = 0; i < ELEMENTSOF(c->program); i++)
                SWAP(c->program[i], m->config->program[i]);
        store_set_history(m->store, m->config->events_max, m->config->events_max_age_usec);
        log_set_max_level(m->config->log_level);
        log_notice("The configuration was read again");
        return 0;
}

Manager *manager_free(Manager *m) {
        if (!m)
                return NULL;

        m->observer = NULL;
        manager_end_creates(m);
        while (m->vms) {
                VM *vm = m->vms;

                manager_unlink_vm(m, vm);
                vm_free(vm);
        }
        manager_free_backends(m);
        sd_event_source_disable_unref(m->save_timer);
        for (size_t i = 0; i < ELEMENTSOF(m->companions); i++) {
                launch_call_free(m->companions[i].probe);
                free(m->companions[i].version);
        }
        sd_event_source_disable_unref(m->status_timer);
        sd_event_source_disable_unref(m->boot_timer);
        systemd_free(m->systemd);
        store_backup_free(m->backup);
        store_close(m->store);
        safe_close(m->lock_fd);
        sd_bus_unref(m->bus);
        sd_event_unref(m->event);
        free(m);
        return NULL;
}

void manager_connect(Manager *m) {
        m->connects = true;
        for (VM *vm = m->vms; vm; vm = vm->next)
                if (vm->ops && vm->rec.state != VM_REMOVING && !vm->vmm && !vm->reconnect && vm_is_alive(vm))
                        vm_try_connect(vm);
}

int manager_start(Manager *m, void (*ready)(void *userdata), void *userdata) {
        VM *next;
        int r;

        m->ready = ready;
        m->ready_userdata = userdata;

        for (VM *vm = m->vms; vm; vm = vm->next)
                vm->published = true;
        manager_watch_backends(m); /* the launcher answers meanwhile */

        for (VM *vm = m->vms; vm; vm = next) {
                next = vm->next; /* a removal may end at once */
                r = vm_take_over(vm);
                if (r < 0) /* the next daemon may: a living VM must not be taken for a dead one */
                        return log_error_errno(r, "%s: can't find out what became of it", vm->rec.name);
        }
        shares_probe(m);
        manager_state_changed(m);

        r = store_backup_new(m->event, m->store, BACKUP_DIR, FIRST_BACKUP_USEC, &m->backup);
        if (r < 0)
                log_warning_errno(r, "No copies of the database will be made");
        return 0;
}
