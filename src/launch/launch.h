/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/launch-protocol.h"

/* A request as it came: nothing in it is believed but size and magic of the header. */
typedef struct Request {
        const LaunchHeader *header;
        size_t size;            /* of the datagram */
        const int *fds;
        size_t n_fds;
        int refused;            /* OPEN: the error to answer at once */
        const char *root;       /* for tests: stands before RUN_VMS_DIR, or NULL */
} Request;

/* These may wait for a file system, a program or a guest: a child does them and answers by itself. */
void open_run(int sock, const Request *r);
/* Waits, and wants a child, if probe_waits() says so: for a program that tells its version. */
void probe_run(int sock, const Request *r, const Config *config);
bool probe_waits(const Request *r);
void vsock_run(int sock, const Request *r);
void loop_run(int sock, const Request *r);

/* Once, before all others: what all helpers will have from us. */
int start_prepare(void);
/* Whether a START may be done as it is: 0, or -EINVAL */
int start_validate(const Request *r);
/* Checks all, forks the helper, answers. Gives the helper's pid, or a negative errno, which it has answered, too. */
pid_t start_run(int sock, const Request *r, const Config *config, const char *exec_path);
