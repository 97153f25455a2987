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
#include "core/message-ids.h"
#include "core/vm-private.h"

#define DATABASE "/var/lib/vmunit/vmunit.db"
#define BACKUP_DIR "/var/lib/vmunit/backup"
#define FIRST_BACKUP_USEC (5 * USEC_PER_SEC) /* a start has other things to do */
#define PROBE_TIMEOUT_USEC (10 * USEC_PER_SEC)
#define FIRST_PROBE_TIMEOUT_USEC (2 * USEC_PER_SEC)
#define STATUS_DELAY_USEC (100 * USEC_PER_MSEC)
#define SAVE_RETRY_USEC (2 * USEC_PER_SEC)

/* The VMs by name and by id, in trees of tsearch(3) */

static int compare_names(const void *a, const void *b) {
        return strcmp(((const VM *) a)->rec.name, ((const VM *) b)->rec.name);
}

static int compare_ids(const void *a, const void *b) {
        return strcmp(((const VM *) a)->rec.id, ((const VM *) b)->rec.id);
}

static int manager_link_vm(Manager *m, VM *vm) {
        VM **end;

        if (!tsearch(vm, &m->vms_by_name, compare_names) || !tsearch(vm, &m->vms_by_id, compare_ids)) {
                (void) tdelete(vm, &m->vms_by_name, compare_names);
                return -ENOMEM;
        }
        for (end = &m->vms; *end; end = &(*end)->next)
                ;
        *end = vm;
        m->n_vms++;
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

/* Back ends */

const char *const *backend_features(Backend b) {
        static const char *const none[] = { NULL };

        return vmm_ops(b) ? vmm_ops(b)->features : none;
}

static int set_info(BackendInfo *i, bool usable, const char *reason, const ProbeReply *reply) {
        int r;

        i->usable = usable;
        r = free_and_strdup(&i->reason, reason);
        if (r >= 0 && reply && reply->path[0])
                r = free_and_strdup(&i->path, reply->path);
        if (r >= 0 && reply && reply->version[0])
                r = free_and_strdup(&i->version, reply->version);
        if (reply)
                i->mtime_usec = reply->mtime_usec;
        return r;
}

static void probe_version(Manager *m, Backend b);

static const char *probe_problem(int error) {
        switch (error) {
        case 0:
                return "";
        case -ENOENT:
                return "its program was not found";
        case -EPIPE:
                return "vmunit-launch has died while it looked for the program";
        case -ETIMEDOUT:
                return "vmunit-launch did not answer in time";
        case -ECONNREFUSED:
                return "vmunit-launch can't be reached; see systemctl status vmunit-launch.socket";
        case -EPERM:
                return "its program, or a directory above it, can be written by others than root";
        default:
                return strerror(-error);
        }
}

void manager_set_probed(Manager *m, Backend b, int error, const ProbeReply *reply) {
        BackendInfo *i = &m->backends[b];
        bool upgraded = error >= 0 && i->mtime_usec != reply->mtime_usec, was_usable = i->usable;
        const char *reason = probe_problem(error);
        int r;

        if (error >= 0) {
                m->kvm = reply->kvm_error == 0;
                m->no_vhost_vsock = reply->vhost_vsock_error < 0;
        }
        r = set_info(i, error >= 0, reason, error >= 0 ? reply : NULL);
        if (r < 0)
                log_warning_errno(r, "Can't remember what a probe said");

        if (upgraded && !reply->version[0])
                probe_version(m, b);
        if ((upgraded || was_usable != i->usable || !i->probed) && m->observer)
                m->observer->backends_changed(m->observer_userdata);
        i->probed = true;
}

static void check_ready(Manager *m) {
        void (*ready)(void *userdata) = m->ready;

        for (Backend b = 0; b < _BACKEND_MAX; b++)
                if (!m->backends[b].probed)
                        return;
        m->ready = NULL;
        if (ready)
                ready(m->ready_userdata);
}

static void on_probe(void *userdata, int error, const ProbeReply *reply) {
        BackendInfo *i = userdata;
        Manager *m = i->manager;
        Backend b = (Backend) (i - m->backends);
        bool first = !i->probed;

        m->probes[b] = launch_call_free(m->probes[b]);
        manager_set_probed(m, b, error, reply);
        if (error < 0)
                log_full_fields(error == -ENOENT ? LOG_INFO : LOG_NOTICE, 0, NULL, "%s can't be used: %s", backend_to_string(b),
                                m->backends[b].reason);
        else if (reply->version[0])
                log_info("%s: %s, %s%s", backend_to_string(b), reply->path, reply->version,
                         m->kvm ? "" : "; /dev/kvm can't be opened");
        if (first)
                check_ready(m);
}

static void probe(Manager *m, Backend b, bool want_version, uint64_t timeout_usec) {
        const VMMOps *ops = vmm_ops(b);
        int r;

        if (!ops || m->probes[b])
                return;
        m->backends[b].manager = m;
        r = launch_probe(m->event, ops->program, want_version, timeout_usec, on_probe, &m->backends[b], &m->probes[b]);
        if (r < 0)
                manager_set_probed(m, b, r, NULL);
}

static void probe_version(Manager *m, Backend b) {
        probe(m, b, true, PROBE_TIMEOUT_USEC);
}

/* The quick probe first, which tells what is usable; the version follows. */
static void manager_probe(Manager *m) {
        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                if (vmm_ops(b))
                        probe(m, b, false, FIRST_PROBE_TIMEOUT_USEC);
                else {
                        (void) set_info(&m->backends[b], false, "this vmunitd has no support for it", NULL);
                        m->backends[b].probed = true;
                }
        }
        check_ready(m);
}

/* What the definition asks of the back end, and of this host by way of it */
static int check(const Manager *m, const VMMOps *ops, const Definition *d, sd_bus_error *error) {
        if (ops->backend == BACKEND_QEMU && d->vsock && m->no_vhost_vsock) {
                (void) sd_bus_error_set(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                        "vsock: QEMU needs /dev/vhost-vsock, which can't be opened here; try modprobe vhost_vsock, "
                                        "or another back end");
                return -EOPNOTSUPP;
        }
        return ops->check(d, error);
}

int manager_check_definition(Manager *m, const Definition *d, sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error first = SD_BUS_ERROR_NULL;
        const VMMOps *ops;
        int r, result = -EOPNOTSUPP;

        if (d->backend != BACKEND_AUTO) {
                ops = vmm_ops(d->backend);
                if (!ops)
                        return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                                 "backend: this vmunitd has no support for %s; use \"qemu\" or \"auto\"",
                                                 backend_to_string(d->backend));
                return check(m, ops, d, error);
        }

        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

                ops = vmm_ops(b);
                if (!ops)
                        continue;
                r = check(m, ops, d, &e);
                if (r >= 0)
                        return 0;
                result = r;
                if (!sd_bus_error_is_set(&first))
                        (void) sd_bus_error_move(&first, &e);
        }
        if (error)
                (void) sd_bus_error_move(error, &first);
        return result;
}

/* The first usable one of the list that can do it. */
static const VMMOps *first_usable(Manager *m, const Definition *d) {
        STRV_FOREACH(name, m->config->backends) {
                Backend b = backend_from_string(*name);
                const VMMOps *ops = (int) b >= 0 ? vmm_ops(b) : NULL;

                if (ops && m->backends[b].usable && (m->kvm || !ops->needs_kvm) && check(m, ops, d, NULL) >= 0)
                        return ops;
        }
        return NULL;
}

int manager_choose_backend(Manager *m, const Definition *d, const VMMOps **ret, sd_bus_error *error) {
        const VMMOps *ops;
        int r;

        r = manager_check_definition(m, d, error);
        if (r < 0)
                return r;

        ops = d->backend == BACKEND_AUTO ? first_usable(m, d) : vmm_ops(d->backend);
        if (!ops) {
                manager_probe(m); /* it may have been installed meanwhile; the next try knows */
                sd_bus_error_setf(error, VMUNIT_ERROR_BACKEND_UNAVAILABLE,
                                  "No back end is usable that can do this; the property Backends says why");
                return -ENODEV;
        }
        *ret = ops;
        return 0;
}

/* Create */

static int check_name(Manager *m, const char *name, sd_bus_error *error) {
        VM *other;

        if (!vm_name_is_valid(name)) {
                _cleanup_free_ char *shown = escape_untrusted(name, strlen(name), 64);

                return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
                                         "name: '%s' is no name for a VM: 1 to 63 of a-z 0-9 - . that make a host name, "
                                         "not localhost, not an id", strempty(shown));
        }
        other = manager_get_vm(m, name);
        if (other && other->rec.state == VM_REMOVING)
                return sd_bus_error_setf(error, VMUNIT_ERROR_REMOVING, "%s: a VM of this name is being removed", name);
        if (other)
                return sd_bus_error_setf(error, VMUNIT_ERROR_VM_EXISTS, "%s: there is a VM of this name", name);
        return 0;
}

static int new_id(char ret[static 37]) {
        sd_id128_t id;
        int r;

        r = sd_id128_randomize(&id);
        if (r < 0)
                return r;
        (void) sd_id128_to_uuid_string(id, ret);
        return 0;
}

static int fill_record(VMRecord *rec, const char *name, const Definition *d, const VMMOps *ops, uid_t owner) {
        int r;

        r = new_id(rec->id);
        if (r < 0)
                return r;
        rec->owner = owner;
        rec->state = VM_STOPPED;
        rec->created = rec->state_since = now_realtime();
        rec->name = strdup(name);
        rec->reason = strdup("");
        rec->message = strdup("");
        rec->backend = ops ? strdup(backend_to_string(ops->backend)) : NULL;
        if (!rec->name || !rec->reason || !rec->message || (ops && !rec->backend))
                return -ENOMEM;
        return definition_format(d, &rec->definition);
}

static int insert_record(Manager *m, VMRecord *rec, uint64_t *ret_id) {
        Event ev = { .usec = rec->created, .vm_id = rec->id, .vm_name = rec->name, .type = "created", .message = "It was created" };
        int r;

        r = FAULT_POINT("create.write", FAULT_FAILS, 0);
        if (r >= 0)
                r = store_begin(m->store);
        if (r < 0)
                return r;
        r = store_insert_vm(m->store, rec);
        if (r >= 0)
                r = store_add_event(m->store, &ev, ret_id);
        return store_end(m->store, r);
}

static void publish_new(Manager *m, VM *vm, uint64_t event_id) {
        Event ev = { .id = event_id, .usec = vm->rec.created, .vm_id = vm->rec.id, .vm_name = vm->rec.name, .type = "created",
                     .message = "It was created" };

        vm->published = true;
        if (m->observer) {
                m->observer->vm_added(m->observer_userdata, vm);
                m->observer->event(m->observer_userdata, &ev);
        }
        vm_log_fields(vm, LOG_INFO, MESSAGE_VM_CREATED, NULL, "created");
        manager_state_changed(m);
}

int manager_create_vm(Manager *m, const char *name, const char *definition, uid_t owner, VM **ret, sd_bus_error *error) {
        _cleanup_(definition_freep) Definition *d = NULL;
        _cleanup_(vm_record_done) VMRecord rec = {};
        const VMMOps *ops = NULL;
        uint64_t event_id = 0;
        VM *vm = NULL;
        int r;

        r = check_name(m, name, error);
        if (r < 0)
                return r;
        if (owner != 0)
                return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                         "owner: a VM can belong to root alone, as long as files are not opened with their owner's rights");
        r = definition_parse(definition, &d, error);
        if (r < 0)
                return r;
        r = manager_choose_backend(m, d, &ops, error);
        if (r < 0 && r != -ENODEV)
                return r;
        sd_bus_error_free(error);

        r = fill_record(&rec, name, d, ops, owner);
        if (r < 0)
                return sd_bus_error_set_errno(error, r);
        r = insert_record(m, &rec, &event_id);
        if (r < 0)
                return write_error(r, error);
        r = vm_new(m, &rec, &vm);
        if (r >= 0)
                r = manager_link_vm(m, vm);
        if (r < 0) {
                /* Stored, but not in memory: the next start of the daemon finds it. Say so rather than lose it. */
                vm_free(vm);
                return sd_bus_error_setf(error, SD_BUS_ERROR_NO_MEMORY, "%s: it was stored, but there is no memory to go on", name);
        }

        vm->clean = true;
        (void) FAULT_POINT("create.written", 0, 0);
        publish_new(m, vm, event_id);
        (void) FAULT_POINT("create.published", 0, 0);
        *ret = vm;
        return 0;
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

Manager *manager_free(Manager *m) {
        if (!m)
                return NULL;

        m->observer = NULL;
        while (m->vms) {
                VM *vm = m->vms;

                manager_unlink_vm(m, vm);
                vm_free(vm);
        }
        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                launch_call_free(m->probes[b]);
                free(m->backends[b].path);
                free(m->backends[b].version);
                free(m->backends[b].reason);
        }
        sd_event_source_disable_unref(m->save_timer);
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

int manager_start(Manager *m, void (*ready)(void *userdata), void *userdata) {
        VM *next;
        int r;

        m->ready = ready;
        m->ready_userdata = userdata;

        for (VM *vm = m->vms; vm; vm = vm->next)
                vm->published = true;

        for (VM *vm = m->vms; vm; vm = next) {
                next = vm->next; /* a removal may end at once */
                r = vm_take_over(vm);
                if (r < 0) /* the next daemon may: a living VM must not be taken for a dead one */
                        return log_error_errno(r, "%s: can't find out what became of it", vm->rec.name);
        }
        manager_probe(m);
        manager_state_changed(m);

        r = store_backup_new(m->event, m->store, BACKUP_DIR, FIRST_BACKUP_USEC, &m->backup);
        if (r < 0)
                log_warning_errno(r, "No copies of the database will be made");
        return 0;
}
