/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "core/definition.h"

/* There are two programs of that name: the older one in C came with QEMU up to 7.2, the other one is written in Rust. */
typedef struct VirtiofsdVersion {
        bool rust;
        unsigned major, minor;
} VirtiofsdVersion;

/* From the first line that --version prints. False: it makes no sense. */
bool virtiofsd_parse_version(const char *line, VirtiofsdVersion *ret);

/* Pure: the argument list of a virtiofsd whose listening socket is fd. It is root of a user namespace of its own, behind walls, and
 * the directory is EXEC_SHARE there.
 * -EOPNOTSUPP with VMUNIT_ERROR_NOT_SUPPORTED for what this version can't do; the message begins with the key within the file
 * system ("posixAcl: …") if it is one. */
int virtiofsd_plan(const Filesystem *fs, const VirtiofsdVersion *v, int fd, char ***ret_argv, sd_bus_error *error);
