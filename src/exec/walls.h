/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/exec-protocol.h"

/* What a passt is given in the host's network, which it stays in */
typedef struct WallsNetwork {
        int resolv_conf;        /* whose content it finds in /etc/resolv.conf */
        bool low_ports;         /* it may listen below 1024 */
        uint32_t resolver;      /* loopback_shut() */
} WallsNetwork;

/* The walls around a program that may be its guest's: what it sees, who it is, and what the kernel does for it. */
typedef struct Walls {
        const char *program;    /* absolute, without symbolic links; its libraries are in /usr */

        /* A virtiofsd */
        bool is_share;
        int tree;               /* a mount that stands nowhere, */
        const char *target;     /* which it finds there: absolute, below / itself */
        int userns;             /* whose root it is */

        const WallsNetwork *network; /* a passt */

        uint32_t id;            /* uid and gid on the host */

        /* A VMM, which is neither */
        uint32_t rights;        /* ExecRight */
        const char *shown;      /* ExecShown of each of its fds, the first of which it has as 3; */
        int first_shown;        /* what the first of those is made of that is shown; the others follow */

        int sockets;            /* made by walls_build(): EXEC_SOCKETS_DIR, or -EBADF */
} Walls;

/* In the parent: takes it and its children into namespaces of their own, where nothing is but what the program needs. On error
 * *ret_what says what can't be had. */
int walls_build(Walls *w, const char **ret_what);
/* Its child in a PID namespace of its own: as fork(2). */
pid_t walls_fork(void);
/* In that child, the last of all but execve(2): ids, rights, limits and the filter of system calls. */
int walls_enter(const Walls *w, const char **ret_what);
