/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "exec/ring.h"

#define CONSOLE_CLIENTS_MAX 64

typedef struct ConsoleClient {
        int fd;
        bool asking;            /* has not sent its request yet; fd is its connection, not a stream */
        bool deaf;              /* it will write no more */
} ConsoleClient;

/* Carries bytes between a VMM's standard files, their logs and any number of clients. */
typedef struct Console {
        int in, out, err;       /* our ends of the VMM's pipes, non-blocking */
        int listener;
        int sockets;            /* what is answered to EXEC_REQUEST_SOCKETS, or -EBADF */
        int life;               /* to EXEC_REQUEST_LIFE */
        bool resting;           /* accept() failed for lack of something: pause */
        Ring log, last_output;
        ConsoleClient clients[CONSOLE_CLIENTS_MAX]; /* oldest first */
        size_t n_clients;
        char input[4096];       /* on its way to the VMM, from input_begin */
        size_t input_begin, input_end;
} Console;

/* Until the process behind pidfd has ended. What it left in the pipes is read; others who hold them are not waited for. */
void console_run(Console *c, int pidfd);
