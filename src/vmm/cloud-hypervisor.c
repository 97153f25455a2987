/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/wait.h>

#include "basic/string-util.h"
#include "vmm/cloud-hypervisor-plan.h"
#include "vmm/http-vmm.h"

#define DISKS_MAX 64U
/* Both wait for all of the VM's devices, also for a vhost-user one that Cloud Hypervisor itself gives a minute. */
#define BOOT_TIMEOUT_USEC (90 * USEC_PER_SEC)
/* A state that was asked for is asked for again, this often, when an event may have come between. */
#define STALE_MAX 4U

typedef struct CloudHypervisor CloudHypervisor;

typedef enum Op { OP_CREATE, OP_BOOT, OP_PAUSE, OP_RESUME, OP_POWER_BUTTON, OP_RESET, OP_QUIT, OP_COUNTERS, OP_INFO } Op;

/* state: the one that follows, UNKNOWN if none does. refused: what it says that is in that state already, in all versions. */
static const struct {
        const char *method, *path;
        uint64_t timeout_usec;
        VMMState state;
        const char *refused;
} ops[] = {
        [OP_CREATE]       = { "PUT", "/api/v1/vm.create", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_BOOT]         = { "PUT", "/api/v1/vm.boot", BOOT_TIMEOUT_USEC, VMM_STATE_RUNNING, NULL },
        [OP_PAUSE]        = { "PUT", "/api/v1/vm.pause", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_PAUSED,
                              "InvalidStateTransition(Paused, Paused)" },
        [OP_RESUME]       = { "PUT", "/api/v1/vm.resume", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_RUNNING,
                              "InvalidStateTransition(Running, Running)" },
        [OP_POWER_BUTTON] = { "PUT", "/api/v1/vm.power-button", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_RESET]        = { "PUT", "/api/v1/vm.reboot", BOOT_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_QUIT]         = { "PUT", "/api/v1/vmm.shutdown", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_INFO]         = { "GET", "/api/v1/vm.info", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_COUNTERS]     = { "GET", "/api/v1/vm.counters", HTTP_VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
};

/* A call under way. Lives until its callback has run. */
typedef struct Call {
        struct Call *next;
        CloudHypervisor *ch;
        Op op;
        bool sent;              /* it has an answer still to come */
        bool acknowledged;      /* it was obeyed; the state that follows is waited for */
        vmm_reply_cb cb;
        vmm_counters_cb counters_cb;
        void *userdata;
} Call;

struct CloudHypervisor {
        VMM vmm;
        unsigned n_ref;
        bool freed, connected;
        Http *http;             /* NULL: given up */
        VMMStream *events;
        VMMState state;

        bool querying, stale;   /* vm.info under way; its answer may be older than what was heard since */
        unsigned n_stale;
        bool panicked;
        bool down;              /* "shutdown" was told of the VM, */
        bool ended;             /* and of the VMM */
        unsigned n_resets;      /* ours, not yet answered */
        bool reset_heard;       /* "rebooted" of the first of them */
        Call *calls;
};

static CloudHypervisor *ch_unref(CloudHypervisor *ch) {
        if (--ch->n_ref == 0)
                free(ch);
        return NULL;
}

static void ch_unrefp(CloudHypervisor **ch) {
        ch_unref(*ch);
}

static CloudHypervisor *ch_ref(CloudHypervisor *ch) {
        ch->n_ref++;
        return ch;
}

static void emit(CloudHypervisor *ch, VMMEvent event, int error) {
        if (!ch->freed)
                ch->vmm.handler(ch->vmm.userdata, event, ch->state, error);
}

static void refresh(CloudHypervisor *ch);

/* Calls */

static Call *call_unlink(Call *call) {
        for (Call **p = &call->ch->calls; *p; p = &(*p)->next)
                if (*p == call) {
                        *p = call->next;
                        break;
                }
        return call;
}

static void call_complete(Call *call, int error, const char *message) {
        _cleanup_free_ Call *c = call_unlink(call);

        if (c->counters_cb)
                c->counters_cb(c->userdata, error, NULL, 0);
        else if (c->cb)
                c->cb(c->userdata, error, message);
}

static Call *call_new(CloudHypervisor *ch, Op op, void *userdata) {
        Call *call = new(Call, 1);

        if (!call)
                return NULL;
        *call = (Call) { .next = ch->calls, .ch = ch, .op = op, .userdata = userdata };
        ch->calls = call;
        return call;
}

static int request(CloudHypervisor *ch, Op op, const char *body, http_cb cb, void *userdata) {
        if (!ch->http)
                return -ENOTCONN;
        return http_request(ch->http, ops[op].method, ops[op].path, body, ops[op].timeout_usec, cb, userdata);
}

static Call *find_acknowledged(CloudHypervisor *ch) {
        for (Call *c = ch->calls; c; c = c->next)
                if (c->acknowledged)
                        return c;
        return NULL;
}

/* Those that wait for a state, which was just asked for, or could not be had. From the start after each, for callbacks change
 * the list. */
static void settle(CloudHypervisor *ch, int error) {
        Call *c;

        while ((c = find_acknowledged(ch))) {
                if (error < 0)
                        call_complete(c, error, NULL);
                else if (ops[c->op].state == ch->state)
                        call_complete(c, 0, NULL);
                else
                        call_complete(c, -EIO, "Cloud Hypervisor obeyed, but is not in the state asked for");
        }
}

/* The state */

static void set_state(CloudHypervisor *ch, VMMState s) {
        if (ch->state == s || ch->state == VMM_STATE_FAILED)
                return;
        ch->state = s;
        if (!ch->connected) /* CONNECTED will tell it */
                return;

        if (s == VMM_STATE_RUNNING)
                emit(ch, VMM_EVENT_RUNNING, 0);
        else if (s == VMM_STATE_PAUSED)
                emit(ch, VMM_EVENT_PAUSED, 0);
        else if (s == VMM_STATE_FAILED)
                emit(ch, VMM_EVENT_FAILED, 0);
}

/* What an event says of the state is newer than what an answer does that is under way. */
static void heard_state(CloudHypervisor *ch, VMMState s) {
        ch->stale = ch->querying;
        set_state(ch, s);
}

static bool says_not_created(unsigned status, const char *body) {
        return (status == 404 || status == 500) && strstr(body, "VM is not created");
}

/* -EBADMSG if that is no answer to vm.info. */
static int state_from_answer(unsigned status, const char *body, size_t size, VMMState *ret) {
        static const struct {
                const char *name;
                VMMState state;
        } table[] = {
                { "Created",  VMM_STATE_NOT_STARTED },
                { "Running",  VMM_STATE_RUNNING     },
                { "Paused",   VMM_STATE_PAUSED      },
                { "Shutdown", VMM_STATE_SHUTDOWN    },
        };
        _cleanup_json_ json_object *o = NULL;
        const char *name;

        if (says_not_created(status, body)) {
                *ret = VMM_STATE_NOT_STARTED;
                return 0;
        }
        if (status != 200 || json_parse_bounded(body, size, &o) < 0)
                return -EBADMSG;
        name = json_get_string(o, "state", NULL);
        if (!name)
                return -EBADMSG;

        *ret = VMM_STATE_UNKNOWN;
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (streq(name, table[i].name))
                        *ret = table[i].state;
        return 0;
}

/* It has no VM any more and lives on: a reset has failed half-way, or somebody else has shut it down through the API. */
static void lost_guest(CloudHypervisor *ch) {
        if (!ch->down) {
                set_state(ch, VMM_STATE_FAILED);
                return;
        }
        ch->state = VMM_STATE_SHUTDOWN;
        emit(ch, VMM_EVENT_GUEST_SHUTDOWN, 0);
        (void) request(ch, OP_QUIT, NULL, NULL, NULL);
}

static bool is_up(VMMState s) {
        return s == VMM_STATE_RUNNING || s == VMM_STATE_PAUSED;
}

static void disconnected(CloudHypervisor *ch, int error);

static void first_state(CloudHypervisor *ch, VMMState s) {
        ch->connected = true;
        ch->state = s;
        emit(ch, VMM_EVENT_CONNECTED, 0);
        if (!ch->panicked || ch->freed)
                return;
        ch->state = VMM_STATE_FAILED;
        emit(ch, VMM_EVENT_GUEST_PANICKED, 0);
}

static void on_info(void *userdata, int error, unsigned status, const char *body, size_t size) {
        CloudHypervisor *ch = userdata;
        _cleanup_(ch_unrefp) _unused_ CloudHypervisor *ref = ch_ref(ch);
        VMMState s = VMM_STATE_UNKNOWN;
        int r;

        vmm_stream_drain(ch->events); /* what it said before it answered */
        ch->querying = false;
        if (ch->freed || error == -ECANCELED)
                return;

        r = error < 0 ? http_vmm_error(error, 0) : state_from_answer(status, body, size, &s);
        if (r < 0) {
                if (!ch->connected)
                        disconnected(ch, r);
                else
                        settle(ch, r);
                return;
        }
        if (ch->stale && ch->n_stale++ < STALE_MAX) {
                refresh(ch);
                return;
        }
        ch->n_stale = 0;

        if (!ch->connected)
                first_state(ch, s);
        else if (is_up(ch->state) && s == VMM_STATE_NOT_STARTED)
                lost_guest(ch);
        else
                set_state(ch, s);
        settle(ch, 0);
}

/* Asks for the state. One question at a time; if something was heard meanwhile, once more. */
static void refresh(CloudHypervisor *ch) {
        int r;

        ch->stale = ch->querying;
        if (ch->querying)
                return;

        r = request(ch, OP_INFO, NULL, on_info, ch);
        if (r >= 0)
                ch->querying = true;
        else if (ch->connected)
                settle(ch, r);
        else
                disconnected(ch, r);
}

/* Events */

/* Without a VM at the next look, it has been shut down and Cloud Hypervisor stays, which it does not do by itself. */
static void on_down(CloudHypervisor *ch, json_object *properties) {
        ch->down = true;
        refresh(ch);
}

static void on_booted(CloudHypervisor *ch, json_object *properties) {
        ch->down = false;
        heard_state(ch, VMM_STATE_RUNNING);
}

static void on_paused(CloudHypervisor *ch, json_object *properties) {
        heard_state(ch, VMM_STATE_PAUSED);
}

static void on_resumed(CloudHypervisor *ch, json_object *properties) {
        heard_state(ch, VMM_STATE_RUNNING);
}

static void on_rebooted(CloudHypervisor *ch, json_object *properties) {
        bool ours = ch->n_resets > 0 && !ch->reset_heard;

        heard_state(ch, VMM_STATE_RUNNING);
        ch->reset_heard = true;
        if (!ours)
                emit(ch, VMM_EVENT_GUEST_RESET, 0);
}

/* Of one that has a crash kernel Cloud Hypervisor says something else. */
static void on_panic(CloudHypervisor *ch, json_object *properties) {
        if (ch->panicked || !streq(json_get_string(properties, "event", ""), "panic"))
                return;
        ch->panicked = true;
        if (!ch->connected)
                return;
        ch->state = VMM_STATE_FAILED;
        emit(ch, VMM_EVENT_GUEST_PANICKED, 0);
}

static void on_ended(CloudHypervisor *ch, json_object *properties) {
        ch->ended = true;
        emit(ch, VMM_EVENT_SHUTDOWN, 0);
}

/* One that says "pausing" may yet be refused; what counts is that it is done. */
static void on_event(void *userdata, json_object *o) {
        static const struct {
                const char *source, *name;
                void (*handle)(CloudHypervisor *ch, json_object *properties);
        } table[] = {
                { "vm",    "booted",   on_booted   },
                { "vm",    "paused",   on_paused   },
                { "vm",    "resumed",  on_resumed  },
                { "vm",    "rebooted", on_rebooted },
                { "vm",    "shutdown", on_down     },
                { "guest", "panic",    on_panic    },
                { "vmm",   "shutdown", on_ended    },
        };
        CloudHypervisor *ch = userdata;
        _cleanup_(ch_unrefp) _unused_ CloudHypervisor *ref = ch_ref(ch);
        const char *source = json_get_string(o, "source", ""), *name = json_get_string(o, "event", "");

        if (!o) { /* it may have been one of these */
                refresh(ch);
                return;
        }
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (streq(source, table[i].source) && streq(name, table[i].name)) {
                        table[i].handle(ch, json_get(o, "properties"));
                        return;
                }
}

/* Answers */

static void answered(Call *call, int error, const char *message) {
        CloudHypervisor *ch = call->ch;
        Op op = call->op;

        if (op == OP_RESET) {
                ch->n_resets--;
                ch->reset_heard = false;
        }
        call_complete(call, error, message);

        if (op == OP_POWER_BUTTON && error == 0) /* no event tells of it */
                emit(ch, VMM_EVENT_POWER_BUTTON, 0);
        else if (op == OP_RESET && error == -EREMOTEIO) /* it may have no VM any more */
                refresh(ch);
}

static void on_answer(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Call *call = userdata;
        CloudHypervisor *ch = call->ch;
        _cleanup_(ch_unrefp) _unused_ CloudHypervisor *ref = ch_ref(ch);
        _cleanup_free_ char *words = NULL;
        int r;

        call->sent = false;
        if (error == -ECANCELED) {
                answered(call, ch->freed ? -ECANCELED : -EPIPE, NULL);
                return;
        }
        vmm_stream_drain(ch->events); /* what it said before it answered */
        if (ch->freed)
                return;

        r = http_vmm_error(error, status);
        if (r == -EREMOTEIO && status == 500 && ops[call->op].refused && strstr(body, ops[call->op].refused)) {
                r = 0;
                set_state(ch, ops[call->op].state);
                if (ch->freed)
                        return;
        } else if (r == -EREMOTEIO)
                words = http_vmm_words(body, size);
        else if (r == -EPIPE && call->op == OP_QUIT && ch->ended) /* its end was faster than its answer */
                r = 0;

        if (r < 0 || ops[call->op].state == VMM_STATE_UNKNOWN || ops[call->op].state == ch->state) {
                answered(call, r, words);
                return;
        }
        call->acknowledged = true;
        refresh(ch);
}

static void on_created(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Call *call = userdata;

        if (error < 0 || http_vmm_error(error, status) < 0) {
                on_answer(userdata, error, status, body, size);
                return;
        }
        call->op = OP_BOOT;
        error = request(call->ch, OP_BOOT, NULL, on_answer, call);
        if (error < 0) {
                call->sent = false;
                call_complete(call, error, NULL);
        }
}

static int start_call(VMM *v, Op op, const char *body, http_cb on_reply, vmm_reply_cb cb, vmm_counters_cb counters_cb,
                      void *userdata) {
        CloudHypervisor *ch = (CloudHypervisor *) v;
        Call *call;
        int r;

        call = call_new(ch, op, userdata);
        if (!call)
                return -ENOMEM;
        call->cb = cb;
        call->counters_cb = counters_cb;

        r = request(ch, op, body, on_reply, call);
        if (r < 0)
                free(call_unlink(call));
        else
                call->sent = true;
        return r;
}

/* Counters */

/* Adds the counters of one disk. */
static size_t add_counters(const char *name, json_object *stats, VMMCounter *c) {
        static const char *const words[][2] = {
                { "read_bytes", "ReadBytes" }, { "write_bytes", "WriteBytes" },
                { "read_ops", "ReadOps" }, { "write_ops", "WriteOps" },
        };
        const char *disk = startswith(name, CLOUD_HYPERVISOR_DISK_PREFIX);
        size_t n = 0;

        for (size_t i = 0; disk && i < ELEMENTSOF(words); i++)
                n += vmm_counter_set(c + n, disk, words[i][1], json_get_int(stats, words[i][0], -1));
        return n;
}

static void on_counters(void *userdata, int error, unsigned status, const char *body, size_t size) {
        _cleanup_free_ VMMCounter *counters = NULL;
        _cleanup_json_ json_object *o = NULL;
        Call *call = userdata;
        size_t n = 0;
        int r;

        call->sent = false;
        r = error == -ECANCELED && !call->ch->freed ? -EPIPE : http_vmm_error(error, status);
        if (r >= 0)
                r = json_parse_bounded(body, size, &o);
        counters = new(VMMCounter, 4 * DISKS_MAX);
        if (r >= 0 && !counters)
                r = -ENOMEM;
        if (r < 0) {
                call_complete(call, r, NULL);
                return;
        }

        if (json_object_is_type(o, json_type_object)) {
                json_object_object_foreach(o, name, stats) {
                        if (n <= 4 * (DISKS_MAX - 1))
                                n += add_counters(name, stats, counters + n);
                }
        }

        vmm_counters_cb cb = call->counters_cb;
        void *call_userdata = call->userdata;
        free(call_unlink(call)); /* before its callback, which may free all */
        cb(call_userdata, 0, counters, n);
}

static int ch_counters(VMM *v, vmm_counters_cb cb, void *userdata) {
        return start_call(v, OP_COUNTERS, NULL, on_counters, NULL, cb, userdata);
}

/* The connection */

/* Those that wait for a state: the others are answered when the client is freed. */
static void fail_calls(CloudHypervisor *ch, int error) {
        Call *c;

        do {
                for (c = ch->calls; c && c->sent; c = c->next)
                        ;
                if (c)
                        call_complete(c, error, NULL);
        } while (c);
}

static void disconnected(CloudHypervisor *ch, int error) {
        _cleanup_(ch_unrefp) _unused_ CloudHypervisor *ref = ch_ref(ch);

        ch->events = vmm_stream_free(ch->events);
        http_free(TAKE_PTR(ch->http));
        fail_calls(ch, -EPIPE);
        emit(ch, VMM_EVENT_DISCONNECTED, error);
}

static void ch_free(VMM *v) {
        CloudHypervisor *ch = (CloudHypervisor *) v;

        if (!ch)
                return;

        ch->freed = true;
        ch->events = vmm_stream_free(ch->events);
        http_free(TAKE_PTR(ch->http));
        fail_calls(ch, -ECANCELED);
        ch_unref(ch);
}

static int connect_channels(CloudHypervisor *ch, sd_event *e, const char *dir) {
        _cleanup_free_ char *path = strjoinf("%s/%s", dir, cloud_hypervisor_ops.socket);
        int r;

        if (!path)
                return -ENOMEM;
        r = vmm_stream_new(e, dir, "\n\n", on_event, ch, &ch->events);
        if (r >= 0)
                r = http_new(e, path, &ch->http);
        if (r >= 0)
                r = request(ch, OP_INFO, NULL, on_info, ch);
        return r;
}

static int ch_connect(sd_event *e, const char *dir, vmm_event_cb handler, void *userdata, VMM **ret) {
        CloudHypervisor *ch;
        int r;

        ch = new(CloudHypervisor, 1);
        if (!ch)
                return -ENOMEM;
        *ch = (CloudHypervisor) {
                .vmm = { .ops = &cloud_hypervisor_ops, .handler = handler, .userdata = userdata },
                .n_ref = 1,
                .querying = true,
        };

        r = connect_channels(ch, e, dir);
        if (r < 0) {
                ch_free(&ch->vmm);
                return r;
        }
        *ret = &ch->vmm;
        return 0;
}

static int ch_boot(VMM *v, const char *config, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_CREATE, config, on_created, cb, NULL, userdata);
}

static int ch_pause(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_PAUSE, NULL, on_answer, cb, NULL, userdata);
}

static int ch_resume(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_RESUME, NULL, on_answer, cb, NULL, userdata);
}

static int ch_power_button(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_POWER_BUTTON, NULL, on_answer, cb, NULL, userdata);
}

static int ch_reset(VMM *v, vmm_reply_cb cb, void *userdata) {
        int r;

        r = start_call(v, OP_RESET, NULL, on_answer, cb, NULL, userdata);
        if (r >= 0)
                ((CloudHypervisor *) v)->n_resets++;
        return r;
}

static int ch_quit(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_QUIT, NULL, on_answer, cb, NULL, userdata);
}

static void ch_drain(VMM *v) {
        CloudHypervisor *ch = (CloudHypervisor *) v;
        _cleanup_(ch_unrefp) _unused_ CloudHypervisor *ref = ch_ref(ch);

        http_drain(ch->http); /* the guest may have gone faster than the answer to its button */
        vmm_stream_drain(ch->events);
}

/* It exits with 0 after a power-off, SIGTERM, and also when a thread of its own has failed, of which only its log tells. */
static VMMEvent ch_exit_cause(int status, const char *output) {
        static const char *const failures[] = { "VCPU generated error", "thread panicked" };

        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                return _VMM_EVENT_MAX;
        for (size_t i = 0; i < ELEMENTSOF(failures); i++)
                if (strstr(strempty(output), failures[i]))
                        return VMM_EVENT_FAILED;
        return VMM_EVENT_EXITED;
}

const VMMOps cloud_hypervisor_ops = {
        .backend = BACKEND_CLOUD_HYPERVISOR,
        .program = PROGRAM_CLOUD_HYPERVISOR,
        .socket = "api",
        .features = (const VMMFeature[]) {
                { "disks", CLOUD_HYPERVISOR_DISKS_VERSION }, { "qcow2", CLOUD_HYPERVISOR_DISKS_VERSION }, { "firmware" }, { "vsock" },
                { "power-button" }, { "reset" }, {},
        },
        .needs_kvm = true,
        .version_min = "40", /* the oldest that was looked at */
        .check = cloud_hypervisor_check,
        .plan = cloud_hypervisor_plan,
        .connect = ch_connect,
        .free = ch_free,
        .boot = ch_boot,
        .pause = ch_pause,
        .resume = ch_resume,
        .power_button = ch_power_button,
        .reset = ch_reset,
        .quit = ch_quit,
        .counters = ch_counters,
        .drain = ch_drain,
        .exit_cause = ch_exit_cause,
};
