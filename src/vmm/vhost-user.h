/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* The one question that vmunit asks a virtiofsd: it changes nothing, and is the first that each VMM asks. vhost-user:
 * docs/interop/vhost-user.rst of QEMU. */

typedef struct VhostUserAnswer {
        uint8_t bytes[20];
        size_t n;               /* that have come */
} VhostUserAnswer;

/* On a connection to its socket. 0, or -errno. */
int vhost_user_ask(int fd);
/* Reads what is there of the answer, and nothing behind it. 1: it is whole and right; 0: more is to come; -EBADMSG: it is none; -EPIPE: it has
 * ended; or -errno. */
int vhost_user_read(VhostUserAnswer *a, int fd);
