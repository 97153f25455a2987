/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/json-util.h"
#include "cli/cli-args.h"

#define BUS_NAME "org.vmunit1"
#define ROOT_PATH "/org/vmunit1"
#define MANAGER_INTERFACE "org.vmunit1.Manager"
#define VM_INTERFACE "org.vmunit1.VM"
#define JOB_INTERFACE "org.vmunit1.Job"
#define PROPERTIES_INTERFACE "org.freedesktop.DBus.Properties"
#define OBJECT_MANAGER_INTERFACE "org.freedesktop.DBus.ObjectManager"

/* All of these give a negative errno when they failed, and have said why. */
int bus_connect(sd_bus **ret);
/* The same for calls that may take a password: people may be asked, and have time, unless the options say no. */
int bus_connect_asking(const Args *a, sd_bus **ret);

/* The object path of a VM by its name or id. */
int bus_get_vm(sd_bus *bus, Verb verb, const char *name, char **ret_path);

/* Calls a method of the VM whose only arguments are its options, none given. */
int bus_call_vm(sd_bus *bus, Verb verb, const char *name, const char *path, const char *member, sd_bus_message **ret);

/* All properties of an interface. */
int bus_get_all(sd_bus *bus, Verb verb, const char *name, const char *path, const char *interface, json_object **ret);

/* For a reply that is not as the API says. */
int say_bad_reply(const char *name, int r);
