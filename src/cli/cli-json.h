/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/json-util.h"

/* The next complete value of a message as JSON: numbers as numbers, a{s*} as an object, other arrays and structs as arrays,
 * a variant as what is in it. */
int json_from_message(sd_bus_message *m, json_object **ret);

/* One line, or indented on a terminal. Control characters are escaped, those above ASCII too, for labels are anybody's. */
void json_print(json_object *o);
char *json_print_to_string(json_object *o, bool pretty);

/* The VMs in a GetManagedObjects answer: an array of objects of their properties, sorted by name. */
int json_vms(json_object *objects, json_object **ret);
