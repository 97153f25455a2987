/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>

#include "basic/fd-util.h"
#include "basic/open-util.h"
#include "launch/launch.h"

#define TRIES_MAX 64U

static int configure(int device, int image, bool readonly) {
        struct loop_config config = {
                .fd = (uint32_t) image,
                .info = { .lo_flags = LO_FLAGS_AUTOCLEAR | (readonly ? LO_FLAGS_READ_ONLY : 0) },
        };

        return ioctl(device, LOOP_CONFIGURE, &config) < 0 ? -errno : 0;
}

/* Others may be faster with the device that is free now: -EBUSY, -ENXIO. */
static int take_free(int control, int image, bool readonly) {
        _cleanup_close_ int device = -EBADF;
        char path[32];
        int k, r;

        k = ioctl(control, LOOP_CTL_GET_FREE);
        if (k < 0)
                return -errno;
        (void) snprintf(path, sizeof(path), "/dev/loop%d", k);
        device = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
        /* As long as this is open, udev does not look into it: whatever a guest has written there is no file system of the host's. */
        if (device < 0 || flock(device, LOCK_EX) < 0)
                return -errno;
        r = configure(device, image, readonly);
        return r < 0 ? r : TAKE_FD(device);
}

static int loop_open(const Request *r) {
        const LoopRequest *q = (const LoopRequest *) r->header;
        _cleanup_close_ int control = -EBADF;
        int k;

        if (r->n_fds != 1 || r->size != sizeof(*q) || q->readonly > 1 || q->reserved != 0)
                return -EINVAL;
        k = lock_image(r->fds[0], !q->readonly); /* the VMM has a device of its own, on which a lock tells nobody */
        if (k < 0)
                return k;
        control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
        if (control < 0)
                return -errno;
        k = -EBUSY;
        for (unsigned i = 0; i < TRIES_MAX && (k == -EBUSY || k == -ENXIO); i++)
                k = take_free(control, r->fds[0], q->readonly);
        return k;
}

void loop_run(int sock, const Request *r) {
        LoopReply reply = { .header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_LOOP, .size = sizeof(reply) } };
        _cleanup_close_ int fd = loop_open(r);

        reply.error = MIN(fd, 0);
        (void) send_with_fds(sock, &reply, sizeof(reply), &fd, fd >= 0);
}
