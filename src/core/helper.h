/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "basic/exec-protocol.h"

/* The daemon's side of vmunit-exec: its control socket while a VMM starts, its requests later, and the files it leaves. */

typedef struct Helper Helper;
Helper *helper_free(Helper *h); /* closes the control socket: a helper that has not got GO exits, and its child with it */
static inline void helper_freep(Helper **h) {
        helper_free(*h);
}

/* Each of the helper's events, from the loop. For EXEC_FORKED pidfd is the callback's, else -EBADF. End of file or garbage
 * on the socket comes as ev NULL with a negative error, once. EXEC_DONE and EXEC_FAILED are the last words.
 * Freeing the helper inside the callback is fine. */
typedef void (*helper_event_cb)(void *userdata, const ExecEvent *ev, int pidfd, int error);

/* Makes the socket pair: *ret_fd is the helper's end, for launch_start(); the caller closes it after that. */
int helper_new(sd_event *e, helper_event_cb cb, void *userdata, Helper **ret, int *ret_fd);
int helper_fork(Helper *h);
int helper_go(Helper *h);

/* One stream of the console from the helper that listens at path (…/exec). The callback runs once; fd is its own. Free to
 * cancel, as with LaunchCall. */
typedef struct HelperCall HelperCall;
HelperCall *helper_call_free(HelperCall *c);
typedef void (*helper_console_cb)(void *userdata, int error, int fd);
int helper_open_console(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata,
                        HelperCall **ret);

/* The same for the directory where the VMM makes its sockets. -EBADMSG: this helper knows of none. */
int helper_open_sockets(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata, HelperCall **ret);

/* The same for a connection to where the VMM listens for those who want to come to its guest's vsock. */
int helper_open_vsock(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata, HelperCall **ret);

/* The same for a pipe that hangs up when the VMM closes EXEC_FD_LIFE. -EBADMSG: this helper is an older one. */
int helper_open_life(sd_event *e, const char *path, uint64_t timeout_usec, helper_console_cb cb, void *userdata, HelperCall **ret);

/* The status that the helper wrote to the file: 0, -ENODATA if it wrote none (yet), -EBADMSG if it is not a record. */
int helper_read_exit(const char *path, int *ret_status);

/* The newest bytes of a ring file (console.log, last-output), at most max, oldest first. A file that does not exist is
 * empty. Safe while the helper writes. */
int ring_read(const char *path, uint64_t max, char **ret, size_t *ret_size);
