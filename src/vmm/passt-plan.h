/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "core/definition.h"

/* What its guest finds: as QEMU's own user mode network has it */
#define PASST_GUEST "10.0.2.15"
#define PASST_GATEWAY "10.0.2.2"
#define PASST_RESOLVER "10.0.2.3"

/* passt has no releases but snapshots: the day of one as YYYYMMDD, 0 where it does not tell. */
bool passt_parse_version(const char *line, unsigned *ret);

#define PASST_NEWEST UINT32_MAX

/* What a passt of this version can't do: -EOPNOTSUPP with VMUNIT_ERROR_NOT_SUPPORTED, the message begins with the key within the network
 * ("forward[1].host: …"). */
int passt_check(const Network *n, unsigned version, sd_bus_error *error);

/* Pure: the argument list of a passt whose connection to the VMM is fd, and which writes to its standard input when it is ready. Its
 * /etc/resolv.conf is what passt_resolv_conf() says. */
int passt_plan(const Network *n, unsigned version, int fd, char ***ret_argv);

/* Pure: the same for who resolves names for the host, of the host's /etc/resolv.conf; and that one, as in struct in_addr, if it is within
 * 127.0.0.0/8, else 0. */
int passt_resolv_conf(const char *host, char **ret, uint32_t *ret_resolver);

/* Whether it has to listen below 1024 */
bool passt_has_low_ports(const Network *n);
