/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/vm-private.h"

/* OpenVSock: a connection to a port in the guest, by the kernel (QEMU) or by the VMM's own UNIX socket, where one line asks for the
 * port and one line answers. */

#define VSOCK_TIMEOUT_USEC (5 * USEC_PER_SEC)
/* Firecracker and Cloud Hypervisor close the connection when the guest refuses it, and also when it has said nothing for so long. */
#define VMM_PATIENCE_USEC (2 * USEC_PER_SEC)
#define ANSWER_MAX 32U /* "OK 1073741824\n" */

/* Numbers below are left to others on this host, who begin at 3. No number is handed out twice. */
#define CID_FIRST UINT64_C(0x10000)
#define CID_LAST UINT64_C(0xfffffffe)

typedef struct VSockCall {
        vsock_cb cb;
        void *userdata;
        char name[64];
        const char *title;              /* the VMM's */
        char *path;                     /* of the VM's helper */
        uint32_t port;
        LaunchCall *launch;
        HelperCall *helper;
        sd_event *event;
        int fd;
        sd_event_source *io, *deadline;
        uint64_t asked_usec;
        bool again;                     /* it is asked for the second time */
        bool refused;                   /* the guest says that nobody listens */
        char answer[ANSWER_MAX];
        size_t n_answer;
} VSockCall;

uint32_t vm_vsock_cid(const VM *vm) {
        uint64_t cid = CID_FIRST - 1 + vm->rec.seq;

        return vm->definition->vsock && cid <= CID_LAST ? (uint32_t) cid : 0;
}

static VSockCall *vsock_call_free(VSockCall *c) {
        if (!c)
                return NULL;
        launch_call_free(c->launch);
        helper_call_free(c->helper);
        sd_event_source_disable_unref(c->io);
        sd_event_source_disable_unref(c->deadline);
        safe_close(c->fd);
        free(c->path);
        free(c);
        return NULL;
}

static int vsock_error(const VSockCall *c, int error, sd_bus_error *e) {
        if (c->refused)
                return sd_bus_error_setf(e, VMUNIT_ERROR_BACKEND_FAILED,
                                         "%s: no such port: nobody listens on vsock port %u in its guest", c->name, c->port);
        switch (error) {
        case -ETIMEDOUT:
                return sd_bus_error_setf(e, VMUNIT_ERROR_TIMEOUT,
                                         "%s: its guest does not answer on vsock port %u; it may not have booted yet", c->name, c->port);
        /* of sockets on the host, which tell nothing of ports */
        case -ECONNREFUSED:
        case -ENOENT:
        case -EPIPE:
                return sd_bus_error_setf(e, VMUNIT_ERROR_BACKEND_FAILED,
                                         "%s: can't connect to vsock port %u: %s takes no connections now, as when it ends or its guest is reset",
                                         c->name, c->port, c->title);
        default:
                return sd_bus_error_setf(e, VMUNIT_ERROR_BACKEND_FAILED, "%s: can't connect to vsock port %u: %s", c->name, c->port,
                                         strerror(-error));
        }
}

static void vsock_finish(VSockCall *c, int error, int fd) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;

        if (error < 0)
                (void) vsock_error(c, error, &e);
        c->cb(c->userdata, error < 0 ? &e : NULL, fd);
        vsock_call_free(c);
}

static void on_launched(void *userdata, int error, int fd) {
        VSockCall *c = userdata;

        c->refused = error == -ECONNRESET;
        vsock_finish(c, error, fd);
}

/* Byte by byte, for what follows the line is the guest's. -EAGAIN: not whole yet. -ECONNRESET: closed after the line was read. */
static int read_answer(VSockCall *c) {
        while (c->n_answer == 0 || c->answer[c->n_answer - 1] != '\n') {
                ssize_t n;

                if (c->n_answer >= sizeof(c->answer))
                        return -EBADMSG;
                n = recv(c->fd, c->answer + c->n_answer, 1, MSG_DONTWAIT);
                if (n < 0 && errno == ECONNRESET) /* or before: a VMM's end comes bit by bit, and that of its sockets may be late */
                        return -ECONNREFUSED;
                if (n < 0)
                        return errno == EINTR ? -EAGAIN : -errno;
                if (n == 0)
                        return -ECONNRESET;
                c->n_answer++;
        }
        return strncmp(c->answer, "OK ", 3) == 0 ? 0 : -EBADMSG;
}

/* The end of the connection in the place of an answer. */
static int why_closed(VSockCall *c) {
        uint64_t now = c->asked_usec;

        (void) sd_event_now(c->event, CLOCK_MONOTONIC, &now);
        c->refused = now - c->asked_usec < VMM_PATIENCE_USEC;
        return c->refused ? -ECONNRESET : -ETIMEDOUT;
}

/* The client's is one that blocks, as consoles do and what the kernel gives for QEMU. */
static int make_blocking(int fd) {
        return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0 ? -errno : 0;
}

static int ask_again(VSockCall *c);

static int on_answer(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        VSockCall *c = userdata;
        int r;

        r = read_answer(c);
        if (r == -EAGAIN)
                return 0;
        c->io = sd_event_source_disable_unref(c->io);
        if (r == -ECONNRESET)
                r = why_closed(c);
        if ((c->refused || r == -ECONNREFUSED) && !c->again) {
                r = ask_again(c);
                if (r >= 0)
                        return 0;
        }
        if (r >= 0)
                r = make_blocking(c->fd);
        vsock_finish(c, r, r < 0 ? -EBADF : TAKE_FD(c->fd));
        return 0;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *userdata) {
        vsock_finish(userdata, -ETIMEDOUT, -EBADF);
        return 0;
}

static int ask_vmm(VSockCall *c) {
        char line[32];
        int n, r;

        n = snprintf(line, sizeof(line), "CONNECT %u\n", c->port);
        if (send(c->fd, line, (size_t) n, MSG_DONTWAIT | MSG_NOSIGNAL) != n)
                return -EPIPE;
        (void) sd_event_now(c->event, CLOCK_MONOTONIC, &c->asked_usec);

        if (!c->deadline) {
                r = sd_event_add_time_relative(c->event, &c->deadline, CLOCK_MONOTONIC, VSOCK_TIMEOUT_USEC, 0, on_deadline, c);
                if (r < 0)
                        return r;
        }
        return sd_event_add_io(c->event, &c->io, c->fd, EPOLLIN, on_answer, c);
}

static void on_connected(void *userdata, int error, int fd) {
        VSockCall *c = userdata;

        c->fd = fd;
        if (error >= 0)
                error = ask_vmm(c);
        if (error < 0)
                vsock_finish(c, error, -EBADF);
}

static int connect_vmm(VSockCall *c) {
        return helper_open_vsock(c->event, c->path, VSOCK_TIMEOUT_USEC, on_connected, c, &c->helper);
}

/* The guest has refused, or its VMM has ended or reset it meanwhile: the second time tells. */
static int ask_again(VSockCall *c) {
        c->again = true;
        c->refused = false;
        c->n_answer = 0;
        c->fd = safe_close(c->fd);
        c->helper = helper_call_free(c->helper);
        return connect_vmm(c);
}

static int begin(VSockCall *c, VM *vm) {
        if (vm->ops->needs_vhost_vsock)
                return launch_vsock(vm->manager->event, vm_vsock_cid(vm), c->port, VSOCK_TIMEOUT_USEC, on_launched, c, &c->launch);
        c->path = strjoinf("%s/exec", vm->run_dir);
        return c->path ? connect_vmm(c) : -ENOMEM;
}

int vm_open_vsock(VM *vm, uint32_t port, vsock_cb cb, void *userdata, sd_bus_error *error) {
        VSockCall *c;
        int r;

        if (!vm->definition->vsock)
                return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED, "vsock: %s has no vsock; its definition can ask for one",
                                         vm->rec.name);
        if (!vm_look(vm))
                return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_RUNNING, "%s: it is not running", vm->rec.name);

        if (vm->rec.state == VM_PAUSED)
                return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_STATE, "%s: it is paused, so its guest can't answer; Resume it first",
                                         vm->rec.name);

        c = new(VSockCall, 1);
        if (!c)
                return sd_bus_error_set_errno(error, -ENOMEM);
        *c = (VSockCall) {
                .cb = cb,
                .userdata = userdata,
                .title = vm_backend_title(vm),
                .port = port,
                .event = vm->manager->event,
                .fd = -EBADF,
        };
        (void) snprintf(c->name, sizeof(c->name), "%s", vm->rec.name);
        r = begin(c, vm);
        if (r < 0) {
                r = vsock_error(c, r, error);
                vsock_call_free(c);
        }
        return MIN(r, 0);
}
