/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "core/helper.h"
#include "vmm/firecracker-plan.h"
#include "vmm/http-vmm.h"
#include "vmm/vmm-object.h"

/* Firecracker tells nothing by itself but its counters: what it does is what it was asked for last, and its end is its exit status. */

#define COUNTERS_MAX (64U * VMM_DISK_COUNTERS)
/* How long to wait for its socket, or for its guest to run: an eighth of the time that has gone by, within these bounds */
#define WAIT_MIN_USEC (USEC_PER_MSEC / 2)
#define WAIT_MAX_USEC (500 * USEC_PER_MSEC)

typedef struct Firecracker {
        VMM vmm;
        bool asking, stale;     /* asking: for the state; its answer may be older than a call since */
        sd_event *event;
        sd_event_source *wait;
        uint64_t began_usec;
        char *dir, *socket;
        HelperCall *sockets;    /* asks for the directory, */
        int sockets_fd;         /* which is this then */
        Http *http;             /* NULL: not yet */
        VMMStream *stream;      /* NULL: it has none */
        VMMCall *boot;          /* one of the calls, until the guest runs */

        VMMCounter *counters;
        size_t n_counters;
} Firecracker;

static void boot_complete(Firecracker *f, int error, const char *message) {
        VMMCall *boot = TAKE_PTR(f->boot);

        if (boot)
                vmm_call_complete(boot, error, message);
}

/* The state */

static int parse_state(const char *body, size_t size, VMMState *ret) {
        static const VMMStateName table[] = {
                { "Not started", VMM_STATE_NOT_STARTED },
                { "Running",     VMM_STATE_RUNNING     },
                { "Paused",      VMM_STATE_PAUSED      },
        };
        _cleanup_json_ json_object *o = NULL;
        int r;

        r = json_parse_bounded(body, size, &o);
        if (r < 0)
                return r;
        *ret = vmm_state_find(table, ELEMENTSOF(table), json_get_string(o, "state", ""));
        return *ret == VMM_STATE_UNKNOWN ? -EBADMSG : 0;
}

static void set_state(Firecracker *f, VMMState state) {
        if (f->vmm.connected) {
                vmm_set_state(&f->vmm, state);
                return;
        }
        f->vmm.state = state;
        f->vmm.connected = true;
        vmm_emit(&f->vmm, VMM_EVENT_CONNECTED, 0);
}

static void ask_state(Firecracker *f);

static int on_wait(sd_event_source *source, uint64_t usec, void *userdata) {
        Firecracker *f = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);

        f->wait = sd_event_source_disable_unref(f->wait);
        ask_state(f);
        return 0;
}

static int ask_later(Firecracker *f) {
        uint64_t now, delay;
        int r;

        f->wait = sd_event_source_disable_unref(f->wait);
        r = sd_event_now(f->event, CLOCK_MONOTONIC, &now);
        if (r < 0)
                return r;
        delay = MAX((now - f->began_usec) / 8, WAIT_MIN_USEC);
        return sd_event_add_time_relative(f->event, &f->wait, CLOCK_MONOTONIC, MIN(delay, WAIT_MAX_USEC), WAIT_MIN_USEC / 4,
                                          on_wait, f);
}

/* Before the first answer there is no connection; afterwards, none that could be lost. */
static void failed(Firecracker *f, int error) {
        boot_complete(f, f->vmm.connected ? error : -EPIPE, NULL);
        if (!f->vmm.connected)
                vmm_emit(&f->vmm, VMM_EVENT_DISCONNECTED, error == -EREMOTEIO ? -EBADMSG : error);
}

static void boot_look(Firecracker *f) {
        int r = 0;

        if (!f->boot)
                return;
        if (f->vmm.state == VMM_STATE_RUNNING)
                boot_complete(f, 0, NULL);
        else if (f->vmm.state == VMM_STATE_NOT_STARTED)
                r = ask_later(f);
        else
                boot_complete(f, -EIO, "the guest is not in the state asked for");
        if (r < 0)
                boot_complete(f, r, NULL);
}

/* Nobody listens yet, or it is busy with its guest's start: that ends by itself, or with the process. */
static bool may_come(const Firecracker *f, int error) {
        return !f->vmm.connected && (error == -ENOENT || error == -ECONNREFUSED || error == -ETIMEDOUT);
}

static void on_state(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Firecracker *f = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);
        bool stale = f->stale;
        VMMState state;

        f->asking = f->stale = false;
        if (f->vmm.freed)
                return;

        if (may_come(f, error))
                error = ask_later(f);
        else {
                error = http_vmm_error(error, status);
                if (error >= 0)
                        error = parse_state(body, size, &state);
                if (error >= 0 && stale)
                        ask_state(f);
                else if (error >= 0) {
                        set_state(f, state);
                        boot_look(f);
                }
        }
        if (error < 0)
                failed(f, error);
}

/* One question at a time */
static void ask_state(Firecracker *f) {
        int r;

        if (f->asking || f->vmm.freed)
                return;
        /* To look for the socket costs less than to try it. */
        if (!f->vmm.connected && access(f->socket, F_OK) < 0)
                r = ask_later(f);
        else {
                r = http_request(f->http, "GET", "/", NULL, VMM_TIMEOUT_USEC, on_state, f);
                f->asking = r >= 0;
        }
        if (r < 0)
                failed(f, r);
}

/* Calls */

static void on_answer(void *userdata, int error, unsigned status, const char *body, size_t size) {
        _cleanup_free_ char *words = NULL;
        VMMCall *call = userdata;
        Firecracker *f = (Firecracker *) call->vmm;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);
        bool tells_state = call->what != VMM_STATE_UNKNOWN;

        error = http_vmm_error(error, status);
        if (error == -EREMOTEIO)
                words = http_vmm_words(body, size);
        if (error == 0 && tells_state) {
                f->stale = f->asking;
                set_state(f, (VMMState) call->what);
                if (f->vmm.freed) /* and so all calls are answered */
                        return;
        }
        vmm_call_complete(call, error, words);
        if (error == 0 && !tells_state)
                vmm_emit(&f->vmm, VMM_EVENT_POWER_BUTTON, 0);
        /* It may have been done all the same. */
        if (error < 0 && error != -EREMOTEIO)
                ask_state(f);
}

static int send_call(VMM *v, const char *method, const char *path, const char *body, VMMState state, uint64_t timeout_usec, vmm_reply_cb cb,
                     void *userdata) {
        Firecracker *f = (Firecracker *) v;
        VMMCall *call;
        int r;

        if (!v->connected)
                return -ENOTCONN;
        r = vmm_call_new(v, (int) state, cb, userdata, &call);
        if (r < 0)
                return r;
        r = http_request(f->http, method, path, body, timeout_usec, on_answer, call);
        if (r < 0)
                vmm_call_drop(call);
        return r;
}

static int firecracker_pause(VMM *v, vmm_reply_cb cb, void *userdata) {
        return send_call(v, "PATCH", "/vm", "{\"state\":\"Paused\"}", VMM_STATE_PAUSED, VMM_TIMEOUT_USEC, cb, userdata);
}

static int firecracker_resume(VMM *v, vmm_reply_cb cb, void *userdata) {
        return send_call(v, "PATCH", "/vm", "{\"state\":\"Resumed\"}", VMM_STATE_RUNNING, VMM_TIMEOUT_USEC, cb, userdata);
}

/* There is no button: by this Linux reboots, and a reboot is Firecracker's end. A request that is given up is not obeyed later. */
static int firecracker_power_button(VMM *v, vmm_reply_cb cb, void *userdata) {
        return send_call(v, "PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}", VMM_STATE_UNKNOWN, USEC_INFINITY, cb,
                         userdata);
}

/* It was told what to boot when it was executed, and does so by itself. */
static int firecracker_boot(VMM *v, const char *config, vmm_reply_cb cb, void *userdata) {
        Firecracker *f = (Firecracker *) v;
        int r;

        if (f->boot)
                return -EBUSY;
        r = v->connected ? ask_later(f) : 0;
        return r < 0 ? r : vmm_call_new(v, VMM_STATE_RUNNING, cb, userdata, &f->boot);
}

/* Counters: each line of the metrics tells what has come since the one before. */

static void add_counter(Firecracker *f, const VMMCounter *c) {
        VMMCounter *counters;

        for (size_t i = 0; i < f->n_counters; i++)
                if (streq(f->counters[i].name, c->name)) {
                        f->counters[i].value += c->value;
                        return;
                }
        if (f->n_counters >= COUNTERS_MAX)
                return;
        counters = reallocarray(f->counters, f->n_counters + 1, sizeof(VMMCounter));
        if (!counters)
                return;
        f->counters = counters;
        f->counters[f->n_counters++] = *c;
}

static void on_metrics(void *userdata, json_object *o) {
        static const char *const keys[VMM_DISK_COUNTERS] = { "read_bytes", "write_bytes", "read_count", "write_count" };
        VMMCounter counters[VMM_DISK_COUNTERS];
        Firecracker *f = userdata;

        if (!o) /* what could not be read is not counted */
                return;
        json_object_object_foreach(o, key, value) {
                const char *name = startswith(key, "block_");
                size_t n = name ? vmm_disk_counters(counters, name, value, keys) : 0;

                for (size_t i = 0; i < n; i++)
                        add_counter(f, counters + i);
        }
}

/* They were written before the answer was. */
static void on_flushed(void *userdata, int error, unsigned status, const char *body, size_t size) {
        _cleanup_free_ VMMCounter *counters = NULL;
        VMMCall *call = userdata;
        Firecracker *f = (Firecracker *) call->vmm;

        error = http_vmm_error(error, status);
        if (error == 0) {
                vmm_stream_drain(f->stream);
                counters = new(VMMCounter, f->n_counters + 1);
                error = counters ? 0 : -ENOMEM;
        }
        if (error < 0) {
                vmm_call_complete(call, error, NULL);
                return;
        }
        if (f->n_counters > 0)
                memcpy(counters, f->counters, f->n_counters * sizeof(VMMCounter));
        vmm_call_complete_counters(call, counters, f->n_counters);
}

static int firecracker_counters(VMM *v, vmm_counters_cb cb, void *userdata) {
        Firecracker *f = (Firecracker *) v;
        VMMCall *call;
        int r;

        if (!v->connected || !f->stream)
                return -ENOTCONN;
        r = vmm_call_new_counters(v, VMM_STATE_UNKNOWN, cb, userdata, &call);
        if (r < 0)
                return r;
        r = http_request(f->http, "PUT", "/actions", "{\"action_type\":\"FlushMetrics\"}", VMM_TIMEOUT_USEC, on_flushed, call);
        if (r < 0)
                vmm_call_drop(call);
        return r;
}

/* The connection */

static void firecracker_free(VMM *v) {
        Firecracker *f = (Firecracker *) v;

        if (!v || v->freed)
                return;

        v->freed = true;
        f->boot = NULL;
        f->wait = sd_event_source_disable_unref(f->wait);
        f->stream = vmm_stream_free(f->stream);
        f->http = http_free(f->http);
        f->sockets = helper_call_free(f->sockets);
        vmm_calls_fail(v, -ECANCELED);
        sd_event_unref(f->event);
        f->sockets_fd = safe_close(f->sockets_fd);
        free(f->dir);
        free(f->socket);
        free(f->counters);
        vmm_unref(v);
}

static int use_sockets(Firecracker *f, const char *dir) {
        int r;

        f->socket = strjoinf("%s/%s", dir, firecracker_ops.socket);
        r = f->socket ? http_new(f->event, f->socket, &f->http) : -ENOMEM;
        return r < 0 ? r : ask_later(f);
}

static int ask_for_sockets(Firecracker *f);

static void on_sockets(void *userdata, int error, int fd) {
        Firecracker *f = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);
        char dir[32];

        f->sockets = helper_call_free(f->sockets);
        f->sockets_fd = fd;
        (void) snprintf(dir, sizeof(dir), "/proc/self/fd/%d", fd);
        if (error >= 0)
                error = use_sockets(f, dir);
        else if (error == -ETIMEDOUT) /* it is stopped, as its VMM may be: that ends by itself, or with it */
                error = ask_for_sockets(f);
        else if (error == -EBADMSG) /* from before VMMs had directories of their own */
                error = use_sockets(f, f->dir);
        if (error < 0)
                failed(f, error);
}

static int ask_for_sockets(Firecracker *f) {
        _cleanup_free_ char *path = strjoinf("%s/exec", f->dir);
        int r;

        r = path ? helper_open_sockets(f->event, path, VMM_TIMEOUT_USEC, on_sockets, f, &f->sockets) : -ENOMEM;
        return r == -ENOENT ? use_sockets(f, f->dir) : r;
}

static int firecracker_connect(sd_event *e, const char *dir, vmm_event_cb handler, void *userdata, VMM **ret) {
        Firecracker *f;
        int r;

        f = new(Firecracker, 1);
        if (!f)
                return -ENOMEM;
        *f = (Firecracker) {
                .vmm = { .ops = &firecracker_ops, .handler = handler, .userdata = userdata, .n_ref = 1 },
                .event = sd_event_ref(e),
                .dir = strdup(dir),
                .sockets_fd = -EBADF,
        };

        r = f->dir ? sd_event_now(e, CLOCK_MONOTONIC, &f->began_usec) : -ENOMEM;
        if (r >= 0)
                r = ask_for_sockets(f);
        if (r < 0) {
                firecracker_free(&f->vmm);
                return r;
        }
        /* Without it all but the counters can be had. */
        (void) vmm_stream_new(e, dir, "\n", on_metrics, f, &f->stream);
        *ret = &f->vmm;
        return 0;
}

static void firecracker_drain(VMM *v) {
        Firecracker *f = (Firecracker *) v;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);

        if (f->http)
                http_drain(f->http); /* the guest may have gone faster than the answer to its button */
        vmm_stream_drain(f->stream);
}

/* 0 is a reset, whoever wanted it: reboot, panic=1, a triple fault. When KVM gives up it is 1 or 0, as it happens, and the log alone tells. */
static VMMEvent firecracker_exit_cause(int status, const char *output) {
        static const char *const failures[] = {
                "KVM_EXIT_INTERNAL_ERROR", "KVM_EXIT_FAIL_ENTRY", "Unexpected exit reason on vcpu run", "Failure during vcpu run",
                "MicroVM stopped with an error",
        };

        if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
                return _VMM_EVENT_MAX;
        for (size_t i = 0; i < ELEMENTSOF(failures); i++)
                if (strstr(strempty(output), failures[i]))
                        return VMM_EVENT_FAILED;
        return WEXITSTATUS(status) == 0 ? VMM_EVENT_GUEST_RESET : _VMM_EVENT_MAX;
}

const VMMOps firecracker_ops = {
        .backend = BACKEND_FIRECRACKER,
        .title = "Firecracker",
        .program = PROGRAM_FIRECRACKER,
        .socket = "api",
        .features = (const VMMFeature[]) { { "disks" }, { "vsock" }, {} },
        .version_min = "1.7", /* counts each disk by itself */
        .needs_kvm = true,
        .check = firecracker_check,
        .check_kernel = firecracker_check_kernel,
        .plan = firecracker_plan,
        .connect = firecracker_connect,
        .free = firecracker_free,
        .boot = firecracker_boot,
        .pause = firecracker_pause,
        .resume = firecracker_resume,
        .power_button = firecracker_power_button,
        .counters = firecracker_counters,
        .drain = firecracker_drain,
        .exit_cause = firecracker_exit_cause,
};
