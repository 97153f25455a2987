/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* A VM's name: 1-63 of "a-z 0-9 - .", a valid host name, not "localhost", not something that reads as an id, and short
 * enough that its slice's name has at most 255 bytes. */
bool vm_name_is_valid(const char *name);

/* systemd's unit-name escaping, as `systemd-escape` does it (systemd.unit(5), "String Escaping"). NULL: no memory. */
char *unit_name_escape(const char *s);

/* machine-vmunit-<name>.slice and vmunit-<name>.scope, <name> escaped, "-" too, so that no VM's slice lies in another's. */
char *vm_slice_name(const char *name);
char *vm_scope_name(const char *name);
/* vmunit-<name>-fs-<tag>.scope, both escaped */
char *share_scope_name(const char *name, const char *tag);
/* vmunit-<name>-net-<network>.scope */
char *network_scope_name(const char *name, const char *network);

/* The VM whose slice a cgroup path runs through: its name unescaped, or NULL (also for no memory). */
char *vm_name_from_cgroup(const char *cgroup);
