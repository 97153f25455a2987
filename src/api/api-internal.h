/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "api/api.h"
#include "api/methods.h"
#include "api/peers.h"

struct Api {
        sd_bus *bus;
        Manager *manager;
        sd_bus_slot *slots[6];
        size_t n_slots;
        VM *leaving_vm;         /* told to leave, still to be found while the signal is made */
        Job *leaving_job;
        sd_event_source *jobs_timer;
        Peers *peers;
        struct Authorization *authorizations;   /* calls that wait for polkit */
};

/* The vtables' userdata: Manager, VM, Job. Enumerators and finders get the Api. */
extern const sd_bus_vtable manager_vtable[], vm_vtable[], job_vtable[];

int vm_object_find(sd_bus *bus, const char *path, const char *interface, void *userdata, void **ret,
                   sd_bus_error *error);
int vm_node_enumerator(sd_bus *bus, const char *prefix, void *userdata, char ***ret, sd_bus_error *error);
int job_object_find(sd_bus *bus, const char *path, const char *interface, void *userdata, void **ret,
                    sd_bus_error *error);
int job_node_enumerator(sd_bus *bus, const char *prefix, void *userdata, char ***ret, sd_bus_error *error);

/* The methods, for the table in methods.c: the caller may do what is asked, unless it says otherwise. */
#define DECLARE_METHOD(name) int name(sd_bus_message *m, void *userdata, sd_bus_error *error)
DECLARE_METHOD(manager_method_create_vm);
DECLARE_METHOD(manager_method_get_vm);
DECLARE_METHOD(manager_method_get_vm_by_pid);
DECLARE_METHOD(manager_method_list_vms);
DECLARE_METHOD(manager_method_list_events);
DECLARE_METHOD(manager_method_list_own_events); /* with the details of the caller's VMs alone */
DECLARE_METHOD(manager_method_get_usage);
DECLARE_METHOD(manager_method_reload);
DECLARE_METHOD(vm_method_start);
DECLARE_METHOD(vm_method_stop);
DECLARE_METHOD(vm_method_kill);
DECLARE_METHOD(vm_method_reboot);
DECLARE_METHOD(vm_method_reset);
DECLARE_METHOD(vm_method_pause);
DECLARE_METHOD(vm_method_resume);
DECLARE_METHOD(vm_method_remove);
DECLARE_METHOD(vm_method_update);
DECLARE_METHOD(vm_method_get_definition);
DECLARE_METHOD(vm_method_get_stats);
DECLARE_METHOD(vm_method_open_console);
DECLARE_METHOD(vm_method_read_console);         /* the same, whatever is asked for */
DECLARE_METHOD(vm_method_get_console_log);
DECLARE_METHOD(vm_method_get_last_output);
DECLARE_METHOD(vm_method_open_vsock);
DECLARE_METHOD(job_method_cancel);

#define DECLARE_EXAMINE(name) int name(sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error)
DECLARE_EXAMINE(manager_examine_create_vm);
DECLARE_EXAMINE(manager_examine_list_events);
DECLARE_EXAMINE(vm_examine_update);
DECLARE_EXAMINE(vm_examine_open_console);

/* Who waits for a CreateVM with `start` */
void create_done(void *userdata, const sd_bus_error *error);

/* Signals of the manager */
int emit_event(sd_bus *bus, const Event *ev);
int emit_job_removed(sd_bus *bus, const Job *j, const char *result);
