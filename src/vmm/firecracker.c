/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "vmm/firecracker-plan.h"
#include "vmm/http-vmm.h"

/* Firecracker tells nothing by itself but its counters: what it does is what it was asked for last, and its end is its exit status. */

#define DISKS_MAX 64U
/* How long to wait for its socket, or for its guest to run: an eighth of the time that has gone by, within these bounds */
#define WAIT_MIN_USEC (USEC_PER_MSEC / 2)
#define WAIT_MAX_USEC (500 * USEC_PER_MSEC)

typedef struct Firecracker Firecracker;

/* A call under way. Lives until its callback has run. */
typedef struct Call {
        Firecracker *fc;
        VMMState state;         /* that follows; UNKNOWN: none */
        vmm_reply_cb cb;
        vmm_counters_cb counters_cb;
        void *userdata;
} Call;

enum { READ_BYTES, WRITE_BYTES, READ_OPS, WRITE_OPS, _DISK_COUNTER_MAX };

typedef struct DiskCounters {
        char name[17];
        uint64_t value[_DISK_COUNTER_MAX];
} DiskCounters;

struct Firecracker {
        VMM vmm;
        unsigned n_ref;
        bool freed, connected, asking, stale;   /* asking: for the state; its answer may be older than a call since */
        VMMState state;
        sd_event *event;
        sd_event_source *wait;
        uint64_t began_usec;
        char *socket;
        Http *http;
        VMMStream *stream;      /* NULL: it has none */
        Call *boot;             /* until the guest runs */

        DiskCounters *disks;
        size_t n_disks;
};

static Firecracker *firecracker_unref(Firecracker *f) {
        if (--f->n_ref > 0)
                return NULL;
        sd_event_unref(f->event);
        free(f->socket);
        free(f->disks);
        free(f);
        return NULL;
}

static void firecracker_unrefp(Firecracker **f) {
        firecracker_unref(*f);
}

static Firecracker *firecracker_ref(Firecracker *f) {
        f->n_ref++;
        return f;
}

static void emit(Firecracker *f, VMMEvent event, int error) {
        if (!f->freed)
                f->vmm.handler(f->vmm.userdata, event, f->state, error);
}

static void call_complete(Call *call, int error, const char *message) {
        _cleanup_free_ Call *c = call;

        if (c->counters_cb)
                c->counters_cb(c->userdata, error, NULL, 0);
        else if (c->cb)
                c->cb(c->userdata, error, message);
}

static void boot_complete(Firecracker *f, int error, const char *message) {
        Call *boot = TAKE_PTR(f->boot);

        if (boot)
                call_complete(boot, error, message);
}

/* The state */

static int parse_state(const char *body, size_t size, VMMState *ret) {
        static const struct {
                const char *name;
                VMMState state;
        } table[] = {
                { "Not started", VMM_STATE_NOT_STARTED },
                { "Running",     VMM_STATE_RUNNING     },
                { "Paused",      VMM_STATE_PAUSED      },
        };
        _cleanup_json_ json_object *o = NULL;
        const char *name;
        int r;

        r = json_parse_bounded(body, size, &o);
        if (r < 0)
                return r;
        name = json_get_string(o, "state", "");
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (streq(name, table[i].name)) {
                        *ret = table[i].state;
                        return 0;
                }
        return -EBADMSG;
}

static void set_state(Firecracker *f, VMMState state) {
        VMMState before = f->state;

        f->state = state;
        if (!f->connected) {
                f->connected = true;
                emit(f, VMM_EVENT_CONNECTED, 0);
        } else if (state != before && state == VMM_STATE_RUNNING)
                emit(f, VMM_EVENT_RUNNING, 0);
        else if (state != before && state == VMM_STATE_PAUSED)
                emit(f, VMM_EVENT_PAUSED, 0);
}

static void ask_state(Firecracker *f);

static int on_wait(sd_event_source *source, uint64_t usec, void *userdata) {
        Firecracker *f = userdata;
        _cleanup_(firecracker_unrefp) _unused_ Firecracker *ref = firecracker_ref(f);

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
        boot_complete(f, f->connected ? error : -EPIPE, NULL);
        if (!f->connected)
                emit(f, VMM_EVENT_DISCONNECTED, error == -EREMOTEIO ? -EBADMSG : error);
}

static void boot_look(Firecracker *f) {
        int r = 0;

        if (!f->boot)
                return;
        if (f->state == VMM_STATE_RUNNING)
                boot_complete(f, 0, NULL);
        else if (f->state == VMM_STATE_NOT_STARTED)
                r = ask_later(f);
        else
                boot_complete(f, -EIO, "the guest is not in the state asked for");
        if (r < 0)
                boot_complete(f, r, NULL);
}

/* Nobody listens yet, or it is busy with its guest's start: that ends by itself, or with the process. */
static bool may_come(const Firecracker *f, int error) {
        return !f->connected && (error == -ENOENT || error == -ECONNREFUSED || error == -ETIMEDOUT);
}

static void on_state(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Firecracker *f = userdata;
        _cleanup_(firecracker_unrefp) _unused_ Firecracker *ref = firecracker_ref(f);
        bool stale = f->stale;
        VMMState state;

        f->asking = f->stale = false;
        if (f->freed)
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

        if (f->asking || f->freed)
                return;
        /* To look for the socket costs less than to try it. */
        if (!f->connected && access(f->socket, F_OK) < 0)
                r = ask_later(f);
        else {
                r = http_request(f->http, "GET", "/", NULL, HTTP_VMM_TIMEOUT_USEC, on_state, f);
                f->asking = r >= 0;
        }
        if (r < 0)
                failed(f, r);
}

/* Calls */

static void on_answer(void *userdata, int error, unsigned status, const char *body, size_t size) {
        _cleanup_free_ char *words = NULL;
        Call *call = userdata;
        Firecracker *f = call->fc;
        _cleanup_(firecracker_unrefp) _unused_ Firecracker *ref = firecracker_ref(f);

        error = http_vmm_error(error, status);
        if (error == -EREMOTEIO)
                words = http_vmm_words(body, size);
        if (error == 0 && call->state != VMM_STATE_UNKNOWN) {
                f->stale = f->asking;
                set_state(f, call->state);
        } else if (error == 0)
                emit(f, VMM_EVENT_POWER_BUTTON, 0);
        call_complete(call, error, words);
        /* It may have been done all the same. */
        if (error < 0 && error != -EREMOTEIO)
                ask_state(f);
}

static Call *call_new(Firecracker *f, void *userdata) {
        Call *call = new(Call, 1);

        if (call)
                *call = (Call) { .fc = f, .userdata = userdata };
        return call;
}

static int send_call(VMM *v, const char *method, const char *path, const char *body, VMMState state, vmm_reply_cb cb, void *userdata) {
        Firecracker *f = (Firecracker *) v;
        Call *call;
        int r;

        if (!f->connected)
                return -ENOTCONN;
        call = call_new(f, userdata);
        if (!call)
                return -ENOMEM;
        call->state = state;
        call->cb = cb;
        r = http_request(f->http, method, path, body, HTTP_VMM_TIMEOUT_USEC, on_answer, call);
        if (r < 0)
                free(call);
        return r;
}

static int firecracker_pause(VMM *v, vmm_reply_cb cb, void *userdata) {
        return send_call(v, "PATCH", "/vm", "{\"state\":\"Paused\"}", VMM_STATE_PAUSED, cb, userdata);
}

static int firecracker_resume(VMM *v, vmm_reply_cb cb, void *userdata) {
        return send_call(v, "PATCH", "/vm", "{\"state\":\"Resumed\"}", VMM_STATE_RUNNING, cb, userdata);
}

/* There is no button: by this Linux reboots, and a reboot is Firecracker's end. */
static int firecracker_power_button(VMM *v, vmm_reply_cb cb, void *userdata) {
        return send_call(v, "PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}", VMM_STATE_UNKNOWN, cb, userdata);
}

/* It was told what to boot when it was executed, and does so by itself. */
static int firecracker_boot(VMM *v, const char *config, vmm_reply_cb cb, void *userdata) {
        Firecracker *f = (Firecracker *) v;

        int r;

        if (f->boot)
                return -EBUSY;
        r = f->connected ? ask_later(f) : 0;
        if (r < 0)
                return r;
        f->boot = call_new(f, userdata);
        if (!f->boot)
                return -ENOMEM;
        f->boot->cb = cb;
        return 0;
}

/* Counters: each line of the metrics tells what has come since the one before. */

static DiskCounters *find_disk(Firecracker *f, const char *name) {
        DiskCounters *disks;

        for (size_t i = 0; i < f->n_disks; i++)
                if (streq(f->disks[i].name, name))
                        return f->disks + i;

        if (!*name || strlen(name) >= sizeof(f->disks->name) || name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789")] ||
            f->n_disks >= DISKS_MAX)
                return NULL;
        disks = reallocarray(f->disks, f->n_disks + 1, sizeof(DiskCounters));
        if (!disks)
                return NULL;
        f->disks = disks;
        disks += f->n_disks++;
        *disks = (DiskCounters) {};
        strcpy(disks->name, name);
        return disks;
}

static void on_metrics(void *userdata, json_object *o) {
        static const char *const keys[_DISK_COUNTER_MAX] = {
                [READ_BYTES] = "read_bytes",
                [WRITE_BYTES] = "write_bytes",
                [READ_OPS] = "read_count",
                [WRITE_OPS] = "write_count",
        };
        Firecracker *f = userdata;

        if (!o) /* what could not be read is not counted */
                return;
        json_object_object_foreach(o, key, value) {
                const char *name = startswith(key, "block_");
                DiskCounters *disk = name ? find_disk(f, name) : NULL;

                for (size_t i = 0; disk && i < _DISK_COUNTER_MAX; i++) {
                        int64_t n = json_get_int(value, keys[i], 0);

                        if (n > 0)
                                disk->value[i] += (uint64_t) n;
                }
        }
}

static void tell_counters(Firecracker *f, vmm_counters_cb cb, void *userdata) {
        static const char *const words[_DISK_COUNTER_MAX] = {
                [READ_BYTES] = "ReadBytes",
                [WRITE_BYTES] = "WriteBytes",
                [READ_OPS] = "ReadOps",
                [WRITE_OPS] = "WriteOps",
        };
        _cleanup_free_ VMMCounter *counters = new(VMMCounter, _DISK_COUNTER_MAX * f->n_disks + 1);
        size_t n = 0;

        for (size_t d = 0; counters && d < f->n_disks; d++)
                for (size_t i = 0; i < _DISK_COUNTER_MAX; i++) {
                        snprintf(counters[n].name, sizeof(counters[n].name), "%s.%s", f->disks[d].name, words[i]);
                        counters[n++].value = f->disks[d].value[i];
                }
        cb(userdata, counters ? 0 : -ENOMEM, counters, n);
}

/* They were written before the answer was. */
static void on_flushed(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Call *call = userdata;
        Firecracker *f = call->fc;
        _cleanup_(firecracker_unrefp) _unused_ Firecracker *ref = firecracker_ref(f);

        error = http_vmm_error(error, status);
        if (error < 0) {
                call_complete(call, error, NULL);
                return;
        }
        vmm_stream_drain(f->stream);
        tell_counters(f, call->counters_cb, call->userdata);
        free(call);
}

static int firecracker_counters(VMM *v, vmm_counters_cb cb, void *userdata) {
        Firecracker *f = (Firecracker *) v;
        Call *call;
        int r;

        if (!f->connected || !f->stream)
                return -ENOTCONN;
        call = call_new(f, userdata);
        if (!call)
                return -ENOMEM;
        call->counters_cb = cb;
        r = http_request(f->http, "PUT", "/actions", "{\"action_type\":\"FlushMetrics\"}", HTTP_VMM_TIMEOUT_USEC, on_flushed, call);
        if (r < 0)
                free(call);
        return r;
}

/* The connection */

static void firecracker_free(VMM *v) {
        Firecracker *f = (Firecracker *) v;

        if (!f)
                return;

        f->freed = true;
        f->wait = sd_event_source_disable_unref(f->wait);
        f->stream = vmm_stream_free(f->stream);
        f->http = http_free(f->http);
        boot_complete(f, -ECANCELED, NULL);
        firecracker_unref(f);
}

static int firecracker_connect(sd_event *e, const char *dir, vmm_event_cb handler, void *userdata, VMM **ret) {
        Firecracker *f;
        int r;

        f = new(Firecracker, 1);
        if (!f)
                return -ENOMEM;
        *f = (Firecracker) {
                .vmm = { .ops = &firecracker_ops, .handler = handler, .userdata = userdata },
                .n_ref = 1,
                .event = sd_event_ref(e),
                .socket = strjoinf("%s/%s", dir, firecracker_ops.socket),
        };

        r = f->socket ? http_new(e, f->socket, &f->http) : -ENOMEM;
        if (r >= 0)
                r = sd_event_now(e, CLOCK_MONOTONIC, &f->began_usec);
        if (r >= 0)
                r = ask_later(f);
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
        _cleanup_(firecracker_unrefp) _unused_ Firecracker *ref = firecracker_ref(f);

        http_drain(f->http); /* the guest may have gone faster than the answer to its button */
        vmm_stream_drain(f->stream);
}

/* 0 is a reset, whoever wanted it: reboot, panic=1, a triple fault. */
static VMMEvent firecracker_exit_cause(int status, const char *output) {
        if (!WIFEXITED(status))
                return _VMM_EVENT_MAX;
        if (WEXITSTATUS(status) == 0)
                return VMM_EVENT_GUEST_RESET;
        return WEXITSTATUS(status) == 1 && strstr(strempty(output), "MicroVM stopped with an error") ? VMM_EVENT_FAILED : _VMM_EVENT_MAX;
}

const VMMOps firecracker_ops = {
        .backend = BACKEND_FIRECRACKER,
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
