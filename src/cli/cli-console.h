/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "cli/cli-args.h"

int verb_console(const Args *a);
int verb_vsock(const Args *a);
int verb_log(const Args *a);

/* A stream of the VM's serial port, non-blocking. Says why when it fails. */
int console_open(sd_bus *bus, Verb verb, const char *name, const char *path, bool read_only, int *ret_fd);

/* How many bytes at the end of the log a stream that was opened before has as well, at its start. */
size_t log_overlap(const void *log, size_t n_log, const void *stream, size_t n_stream);
