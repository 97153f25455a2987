/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/exec-protocol.h"

/* The writer of a ring file. What cannot be written (a full disk) is left out; nothing fails for it. */
typedef struct Ring {
        int fd;
        RingHeader header;
} Ring;

void ring_init(Ring *r, int fd, uint64_t size);
void ring_append(Ring *r, const char *p, size_t n);
