/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "core/definition.h"

/* The header of a qcow2 file says which further files the VMM would open by itself, with its own rights. */

#define QCOW2_HEADER_MAX 104U

typedef enum Qcow2Verdict {
        QCOW2_OK,
        QCOW2_NOT_QCOW2,        /* no such header */
        QCOW2_BAD,              /* cut short, or a version that nobody knows */
        QCOW2_BACKING,          /* rests on another image */
        QCOW2_DATA_FILE,        /* keeps its data in another file */
        QCOW2_ENCRYPTED,        /* needs a key */
} Qcow2Verdict;

Qcow2Verdict qcow2_check_header(const void *p, size_t n);

/* Checks disk number i of a definition by what its opener saw: st_mode and the file's first bytes. It has to be a regular file, of
 * the format that the definition says, standing for itself. 0; -EOPNOTSUPP with VMUNIT_ERROR_NOT_SUPPORTED, -EINVAL with
 * VMUNIT_ERROR_INVALID_DEFINITION, the message beginning with "disks[i].path: " or "disks[i].format: ". */
int disk_check(const Definition *d, size_t i, mode_t mode, const void *head, size_t n, sd_bus_error *error);
