/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "basic/macro.h"

/* What a passt is given in the host's network, which it stays in */
typedef struct WallsNetwork {
        int resolv_conf;        /* whose content it finds in /etc/resolv.conf */
        uid_t id;               /* its uid and gid */
        bool low_ports;         /* it may listen below 1024 */
        uint32_t resolver;      /* loopback_shut() */
} WallsNetwork;

/* The walls around a program that may be its guest's: what it sees, who it is, and what the kernel does for it. */
typedef struct Walls {
        const char *program;    /* absolute, without symbolic links; its libraries are in /usr */
        int tree;               /* a mount that stands nowhere, */
        const char *target;     /* which it finds there: absolute, below / itself */
        int userns;             /* whose root it is; or … */
        const WallsNetwork *network; /* of a passt, instead of all these three */
} Walls;

/* In the parent: takes it and its children into namespaces of their own, where nothing is but the program with its libraries, /dev and
 * the tree. */
int walls_build(const Walls *w);
/* Its child in a PID namespace of its own: as fork(2). */
pid_t walls_fork(void);
/* For a VMM, which has no other walls but its rights: the filter of system calls */
int walls_filter_vmm(void);
/* In that child, the last of all but execve(2): ids, rights and the filter of system calls. */
int walls_enter(const Walls *w);
