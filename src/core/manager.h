/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "basic/conf.h"
#include "bus/systemd.h"
#include "core/job.h"
#include "core/store-backup.h"
#include "core/store.h"
#include "core/vm.h"

/* The wire, told by the core what has happened. Called from the loop, after the fact is durable. */
typedef struct Observer {
        void (*vm_added)(void *userdata, VM *vm);
        void (*vm_removed)(void *userdata, VM *vm);     /* still whole, gone after the call */
        void (*vm_changed)(void *userdata, VM *vm, char **properties); /* D-Bus names */
        void (*event)(void *userdata, const Event *ev);
        void (*job_added)(void *userdata, Job *j);
        void (*job_changed)(void *userdata, Job *j);    /* Stage, Progress, Cancelable */
        void (*job_removed)(void *userdata, Job *j, const char *result);
        void (*backends_changed)(void *userdata);
} Observer;

typedef struct BackendInfo {
        Manager *manager;
        LaunchCall *probe;
        sd_event_source *retry;
        bool again;                     /* look once more when that is answered */
        bool probed, usable;
        char *path, *version, *reason;  /* reason: why not usable, "" if it is; never NULL once probed */
        uint64_t mtime_usec;
        int error, version_error;       /* why it was not found, or its version is not known; or 0 */
        unsigned n_slow;                /* so often in a row it did not tell its version in time */
} BackendInfo;

typedef struct CompanionInfo {
        char *version;                  /* as it says itself; NULL: not asked yet */
        uint64_t mtime_usec;
        bool missing;                   /* it was looked for, and is not there */
        LaunchCall *probe;
} CompanionInfo;

typedef struct Create Create;

struct Manager {
        sd_event *event;
        sd_bus *bus;
        Systemd *systemd;
        Store *store;
        Config *config;
        VM *vms;                        /* in the order of creation */
        size_t n_vms;
        void *vms_by_name;              /* tsearch(3) trees */
        void *vms_by_id;
        char boot_id[37];
        BackendInfo backends[_BACKEND_MAX];
        char **watched;                 /* directories where their programs may be, and those above */
        sd_event_source *watches[64];
        Create *creates;                /* that wait for a look at a file */
        CompanionInfo companions[_PROGRAM_MAX]; /* of programs that are no VMMs */
        bool kvm;                       /* /dev/kvm can be opened */
        bool no_vhost_vsock;            /* /dev/vhost-vsock can't */
        void (*ready)(void *userdata);  /* until it was told */
        void *ready_userdata;
        bool starts_nothing;            /* by itself: it is there to stop all */
        const Observer *observer;
        void *observer_userdata;
        StoreBackup *backup;
        bool connects;                  /* manager_connect() was called */
        sd_event_source *save_timer, *status_timer, *boot_timer;
        int lock_fd;                    /* there is one manager of these VMs at a time */
};

/* Opens the store and reads all VMs; speaks to nobody yet. A store that can't be opened is told in *ret_message; -EWOULDBLOCK: another manager
 * has it. */
int manager_new(sd_event *event, sd_bus *bus, Config *config, Manager **ret, char **ret_message);
Manager *manager_free(Manager *m);
DEFINE_TRIVIAL_CLEANUP_FUNC(Manager *, manager_free);
/* Reads vmunit.conf again. The programs stay, for the launcher has to know the same. What can't be read changes nothing. */
int manager_reload(Manager *m);
/* After the observer is set: finds what still runs, goes on with what was under way, probes the back ends. ready is told, from the
 * loop, when it is known which of them are usable. */
int manager_start(Manager *m, void (*ready)(void *userdata), void *userdata);

/* Speaks to the VMMs that were found alive. Not before the daemon is on the bus, for so many of them that wake up at once would hold it up;
 * who can't wait for that connects by itself. */
void manager_connect(Manager *m);

/* Once the daemon has told that it is ready: starts what OnBoot= says, if it did not since the host has booted. Where that can't be
 * stored it is tried again. */
void manager_on_boot(Manager *m);

/* Stops all VMs in good order, those that began last first, a bounded number at once; they are to run again after a boot. done is
 * told from the loop, and whether none runs any more. */
int manager_stop_all(Manager *m, void (*done)(void *userdata, bool none_runs), void *userdata);
/* Before the daemon ends: stops whose VMM is dead are over, though PID 1 may not have taken the units away yet. When the host shuts
 * down, it ends the daemon right after the last scope, and the next one could not tell that this VM was stopped. */
void manager_end_stops(Manager *m);

VM *manager_get_vm(Manager *m, const char *name_or_id);
/* The VM in whose slice a process is, or NULL */
VM *manager_get_vm_by_pid(Manager *m, pid_t pid);
Job *manager_get_job(Manager *m, uint32_t id);

/* The definition is checked whole, also against the back ends; nothing changes on error. 0: *ret is made; 1: the callback tells, from
 * the loop or from manager_free(). */
typedef void (*created_cb)(void *userdata, VM *vm, const sd_bus_error *error);
int manager_create_vm(Manager *m, const char *name, const char *definition, uid_t owner, created_cb cb, void *userdata, VM **ret,
                      sd_bus_error *error);

/* All that can be said of it without making it; the caller frees the definition. */
int manager_check_new(Manager *m, const char *name, const char *definition, uid_t owner, Definition **ret, sd_bus_error *error);

/* For vm.c: the number of VMs that run may have changed (STATUS=); a record could not be written and is to be tried again. */
void manager_state_changed(Manager *m);
void manager_save_later(Manager *m);
/* For a removal's end: takes the VM off the bus, frees it. */
void manager_drop_vm(Manager *m, VM *vm);

/* The back end that a definition gets: the one that it names, or the first usable one of Backends= that can do it. 0; -ENODEV: none is
 * usable now (error set; create goes on without); else the reason why none can do it. kernel: what the file begins with, NULL: not
 * known. */
int manager_choose_backend(Manager *m, const Definition *d, const FileHead *kernel, const VMMOps **ret, sd_bus_error *error);
/* Whether a back end that may get it is particular about its kernel. */
bool manager_looks_at_kernel(Manager *m, const Definition *d);
/* Whether the back end that it names, or any one, can do all of it: 0, or -errno with NotSupported set. */
int manager_check_definition(Manager *m, const Definition *d, sd_bus_error *error);
/* The same for this back end, as far as its version and its kernel's head (NULL: not known) are known. */
int manager_check_backend(Manager *m, const VMMOps *ops, const Definition *d, const FileHead *kernel, sd_bus_error *error);
/* Whether the version is known, and of the program that the probe has found. */
bool manager_knows_version(const Manager *m, Backend b, const ProbeReply *reply);
/* Takes over what a probe said of a back end and of the devices. */
void manager_set_probed(Manager *m, Backend b, int error, const ProbeReply *reply);

/* What the program that is there can do, for the property Backends; the caller frees. */
int manager_backend_features(const Manager *m, Backend b, char ***ret);
