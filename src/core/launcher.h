/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/launch-protocol.h"

/* The daemon's side of vmunit-launch, asynchronous. A call's callback runs exactly once, from the loop, never from within the
 * function that made the call; freeing the call before that cancels it (nothing is left open or running of it). After the
 * callback the call is still the caller's to free. Freeing it inside its callback is fine. A function that fails (nobody
 * listens, no memory) has made no call, and calls nothing back. Errors come as negative errno:
 * -ETIMEDOUT after timeout_usec, -EPIPE when the launcher died, else what the launcher said. */

typedef struct LaunchCall LaunchCall;
LaunchCall *launch_call_free(LaunchCall *c);
static inline void launch_call_freep(LaunchCall **c) {
        launch_call_free(*c);
}

/* fd (or -EBADF) belongs to the callback. */
typedef void (*launch_open_cb)(void *userdata, int error, int fd, const OpenReply *reply);
int launch_open(sd_event *e, const char *path, uid_t uid, unsigned flags, uint64_t timeout_usec, launch_open_cb cb,
                void *userdata, LaunchCall **ret);

/* pidfd (or -EBADF) belongs to the callback. Keep the call until the job that makes the helper's scope has ended: its
 * connection is what keeps the pid from being reaped and used again. The fds are copied by the kernel; they stay the
 * caller's. */
typedef struct StartParams {
        Program program;
        StartKind kind;
        char *const *argv;
        int helper_fds[_HELPER_FD_MAX];
        const int *fds;         /* the program's own */
        size_t n_fds;
        uint64_t console_log_max;
        ShareRequest share;     /* of a virtiofsd */
        NetworkRequest network; /* of a passt */
        VMMRequest vmm;         /* of a VMM */
} StartParams;

/* which: with -EMEDIUMTYPE and -EBUSY, as in StartReply, the fd that cannot be shown to the VMM */
typedef void (*launch_start_cb)(void *userdata, int error, pid_t pid, int pidfd, uint32_t which);
int launch_start(sd_event *e, const StartParams *p, uint64_t timeout_usec, launch_start_cb cb, void *userdata, LaunchCall **ret);

typedef void (*launch_probe_cb)(void *userdata, int error, const ProbeReply *reply);
int launch_probe(sd_event *e, Program program, bool want_version, uint64_t timeout_usec, launch_probe_cb cb,
                 void *userdata, LaunchCall **ret);

/* fd (or -EBADF) belongs to the callback. */
typedef void (*launch_vsock_cb)(void *userdata, int error, int fd);
int launch_vsock(sd_event *e, uint32_t cid, uint32_t port, uint64_t timeout_usec, launch_vsock_cb cb, void *userdata,
                 LaunchCall **ret);

/* The image behind image_fd as a block device; fd (or -EBADF) belongs to the callback, and the device lasts as long as it. */
typedef void (*launch_loop_cb)(void *userdata, int error, int fd);
int launch_loop(sd_event *e, int image_fd, bool readonly, uint64_t timeout_usec, launch_loop_cb cb, void *userdata, LaunchCall **ret);

/* For tests: another socket than LAUNCH_SOCKET; NULL sets it back. */
void launch_set_socket(const char *path);
