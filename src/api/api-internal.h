/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "api/api.h"

struct Api {
        sd_bus *bus;
        Manager *manager;
        sd_bus_slot *slots[6];
        size_t n_slots;
        VM *leaving_vm;         /* told to leave, still to be found while the signal is made */
        Job *leaving_job;
        sd_event_source *jobs_timer;
};

/* The vtables' userdata: Manager, VM, Job. Enumerators and finders get the Api. */
extern const sd_bus_vtable manager_vtable[], vm_vtable[], job_vtable[];

int vm_object_find(sd_bus *bus, const char *path, const char *interface, void *userdata, void **ret,
                   sd_bus_error *error);
int vm_node_enumerator(sd_bus *bus, const char *prefix, void *userdata, char ***ret, sd_bus_error *error);
int job_object_find(sd_bus *bus, const char *path, const char *interface, void *userdata, void **ret,
                    sd_bus_error *error);
int job_node_enumerator(sd_bus *bus, const char *prefix, void *userdata, char ***ret, sd_bus_error *error);

/* Signals of the manager */
int emit_event(sd_bus *bus, const Event *ev);
int emit_job_removed(sd_bus *bus, const Job *j, const char *result);
