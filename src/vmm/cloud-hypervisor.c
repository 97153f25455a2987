/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/wait.h>

#include "basic/string-util.h"
#include "vmm/cloud-hypervisor-plan.h"
#include "vmm/http-vmm.h"
#include "vmm/vmm-object.h"

#define DISKS_MAX 64U
/* Both wait for all of the VM's devices, also for a vhost-user one that Cloud Hypervisor itself gives a minute. */
#define BOOT_TIMEOUT_USEC (90 * USEC_PER_SEC)
/* A state that was asked for is asked for again, this often, when an event may have come between. */
#define STALE_MAX 4U
/* From here on the end of one direction of a vsock's stream is not that of both. */
#define HALF_CLOSE_VERSION "53"

typedef enum Op { OP_CREATE, OP_BOOT, OP_PAUSE, OP_RESUME, OP_POWER_BUTTON, OP_RESET, OP_QUIT, OP_COUNTERS, OP_INFO } Op;

/* timeout_usec: what is given up is not obeyed later. state: the one that follows, UNKNOWN if none does. refused: what it says that is in
 * that state already, in all versions. */
static const struct {
        const char *method, *path;
        uint64_t timeout_usec;
        VMMState state;
        const char *refused;
} ops[] = {
        [OP_CREATE]       = { "PUT", "/api/v1/vm.create", VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_BOOT]         = { "PUT", "/api/v1/vm.boot", BOOT_TIMEOUT_USEC, VMM_STATE_RUNNING, NULL },
        [OP_PAUSE]        = { "PUT", "/api/v1/vm.pause", VMM_TIMEOUT_USEC, VMM_STATE_PAUSED,
                              "InvalidStateTransition(Paused, Paused)" },
        [OP_RESUME]       = { "PUT", "/api/v1/vm.resume", VMM_TIMEOUT_USEC, VMM_STATE_RUNNING,
                              "InvalidStateTransition(Running, Running)" },
        [OP_POWER_BUTTON] = { "PUT", "/api/v1/vm.power-button", USEC_INFINITY, VMM_STATE_UNKNOWN, NULL },
        [OP_RESET]        = { "PUT", "/api/v1/vm.reboot", BOOT_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_QUIT]         = { "PUT", "/api/v1/vmm.shutdown", VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_INFO]         = { "GET", "/api/v1/vm.info", VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
        [OP_COUNTERS]     = { "GET", "/api/v1/vm.counters", VMM_TIMEOUT_USEC, VMM_STATE_UNKNOWN, NULL },
};

typedef struct CloudHypervisor {
        VMM vmm;
        Http *http;             /* NULL: given up */
        VMMStream *events;

        bool querying, stale;   /* vm.info under way; its answer may be older than what was heard since */
        unsigned n_stale;
        bool panicked;
        bool down;              /* "shutdown" was told of the VM, */
        bool ended;             /* and of the VMM */
        unsigned n_resets;      /* ours, of which "rebooted" was not told: it may come after the answer */
} CloudHypervisor;

static void refresh(CloudHypervisor *ch);

/* Calls */

static int request(CloudHypervisor *ch, Op op, const char *body, http_cb cb, void *userdata) {
        int r;

        if (!ch->http)
                return -ENOTCONN;
        r = http_request(ch->http, ops[op].method, ops[op].path, body, ops[op].timeout_usec, cb, userdata);
        return r == -ECANCELED ? -ENOTCONN : r; /* it is being given up */
}

static VMMCall *find_acknowledged(VMM *v) {
        for (VMMCall *c = v->calls; c; c = c->next)
                if (c->acknowledged)
                        return c;
        return NULL;
}

/* Those that wait for a state, which was just asked for. From the start after each, for callbacks change the list. */
static void settle(CloudHypervisor *ch) {
        VMMCall *c;

        while ((c = find_acknowledged(&ch->vmm)))
                if (ops[c->what].state == ch->vmm.state)
                        vmm_call_complete(c, 0, NULL);
                else
                        vmm_call_complete(c, -EIO, "Cloud Hypervisor obeyed, but is not in the state asked for");
}

/* The state */

static void set_state(CloudHypervisor *ch, VMMState s) {
        if (ch->vmm.state != VMM_STATE_FAILED)
                vmm_set_state(&ch->vmm, s);
}

/* What an event says of the state is newer than what an answer does that is under way. */
static void heard_state(CloudHypervisor *ch, VMMState s) {
        ch->stale = ch->querying;
        set_state(ch, s);
}

static bool says_not_created(unsigned status, const char *body) {
        return (status == 404 || status == 500) && strstr(body, "VM is not created");
}

/* The thread of its API outlives those that would do something, and says so until the process ends. */
static int answer_error(int error, unsigned status, const char *body) {
        if (error == 0 && status == 500 && strstr(body, "on a closed channel"))
                return -EPIPE;
        return http_vmm_error(error, status);
}

/* -EBADMSG if that is no answer to vm.info. */
static int state_from_answer(unsigned status, const char *body, size_t size, VMMState *ret) {
        static const VMMStateName table[] = {
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
        if (status != 200)
                return answer_error(0, status, body) == -EPIPE ? -EPIPE : -EBADMSG;
        if (json_parse_bounded(body, size, &o) < 0)
                return -EBADMSG;
        name = json_get_string(o, "state", NULL);
        if (!name)
                return -EBADMSG;

        *ret = vmm_state_find(table, ELEMENTSOF(table), name);
        return 0;
}

/* It has no VM any more and lives on: a reset has failed half-way, or somebody else has shut it down through the API. */
static void lost_guest(CloudHypervisor *ch) {
        if (!ch->down) {
                set_state(ch, VMM_STATE_FAILED);
                return;
        }
        ch->vmm.state = VMM_STATE_SHUTDOWN;
        vmm_emit(&ch->vmm, VMM_EVENT_GUEST_SHUTDOWN, 0);
        (void) request(ch, OP_QUIT, NULL, NULL, NULL);
}

static bool is_up(VMMState s) {
        return s == VMM_STATE_RUNNING || s == VMM_STATE_PAUSED;
}

static void disconnected(CloudHypervisor *ch, int error);

static void first_state(CloudHypervisor *ch, VMMState s) {
        ch->vmm.connected = true;
        ch->vmm.state = s;
        vmm_emit(&ch->vmm, VMM_EVENT_CONNECTED, 0);
        if (!ch->panicked || ch->vmm.freed)
                return;
        ch->vmm.state = VMM_STATE_FAILED;
        vmm_emit(&ch->vmm, VMM_EVENT_GUEST_PANICKED, 0);
}

static void on_info(void *userdata, int error, unsigned status, const char *body, size_t size) {
        CloudHypervisor *ch = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&ch->vmm);
        VMMState s = VMM_STATE_UNKNOWN;
        int r;

        vmm_stream_drain(ch->events); /* what it said before it answered */
        ch->querying = false;
        if (ch->vmm.freed || error == -ECANCELED)
                return;

        r = error < 0 ? http_vmm_error(error, 0) : state_from_answer(status, body, size, &s);
        if (r < 0) {
                if (!ch->vmm.connected)
                        disconnected(ch, r);
                else
                        vmm_calls_fail_acknowledged(&ch->vmm, r);
                return;
        }
        if (ch->stale && ch->n_stale++ < STALE_MAX) {
                refresh(ch);
                return;
        }
        ch->n_stale = 0;

        if (!ch->vmm.connected)
                first_state(ch, s);
        else if (is_up(ch->vmm.state) && s == VMM_STATE_NOT_STARTED)
                lost_guest(ch);
        else
                set_state(ch, s);
        settle(ch);
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
        else if (ch->vmm.connected)
                vmm_calls_fail_acknowledged(&ch->vmm, r);
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
        bool ours = ch->n_resets > 0;

        ch->n_resets -= ours;
        heard_state(ch, VMM_STATE_RUNNING);
        if (!ours)
                vmm_emit(&ch->vmm, VMM_EVENT_GUEST_RESET, 0);
}

/* One of these may have been lost. */
static void on_lost(CloudHypervisor *ch) {
        ch->n_resets = 0;
        for (VMMCall *c = ch->vmm.calls; c; c = c->next)
                ch->n_resets += c->what == OP_RESET;
        refresh(ch);
}

/* Of one that has a crash kernel Cloud Hypervisor says something else. */
static void on_panic(CloudHypervisor *ch, json_object *properties) {
        if (ch->panicked || !streq(json_get_string(properties, "event", ""), "panic"))
                return;
        ch->panicked = true;
        if (!ch->vmm.connected)
                return;
        ch->vmm.state = VMM_STATE_FAILED;
        vmm_emit(&ch->vmm, VMM_EVENT_GUEST_PANICKED, 0);
}

static void on_ended(CloudHypervisor *ch, json_object *properties) {
        ch->ended = true;
        vmm_emit(&ch->vmm, VMM_EVENT_SHUTDOWN, 0);
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
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&ch->vmm);
        const char *source = json_get_string(o, "source", ""), *name = json_get_string(o, "event", "");

        if (!o) {
                on_lost(ch);
                return;
        }
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (streq(source, table[i].source) && streq(name, table[i].name)) {
                        table[i].handle(ch, json_get(o, "properties"));
                        return;
                }
}

/* Answers */

static void answered(VMMCall *call, int error, const char *message) {
        CloudHypervisor *ch = (CloudHypervisor *) call->vmm;
        Op op = (Op) call->what;

        if (op == OP_RESET && error < 0 && ch->n_resets > 0)
                ch->n_resets--;
        vmm_call_complete(call, error, message);

        if (op == OP_POWER_BUTTON && error == 0) /* no event tells of it */
                vmm_emit(&ch->vmm, VMM_EVENT_POWER_BUTTON, 0);
        else if (op == OP_RESET && error == -EREMOTEIO) /* it may have no VM any more */
                refresh(ch);
}

/* Another question would not tell more than such a refusal. */
static bool done_already(Op op, unsigned status, const char *body) {
        return status == 500 && ops[op].refused && strstr(body, ops[op].refused);
}

static void on_answer(void *userdata, int error, unsigned status, const char *body, size_t size) {
        VMMCall *call = userdata;
        CloudHypervisor *ch = (CloudHypervisor *) call->vmm;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&ch->vmm);
        _cleanup_free_ char *words = NULL;
        Op op = (Op) call->what;
        bool already;
        int r;

        if (error == -ECANCELED) {
                answered(call, ch->vmm.freed ? -ECANCELED : -EPIPE, NULL);
                return;
        }
        vmm_stream_drain(ch->events); /* what it said before it answered */
        if (ch->vmm.freed)
                return;

        r = answer_error(error, status, body);
        already = r == -EREMOTEIO && done_already(op, status, body);
        if (already) {
                r = 0;
                set_state(ch, ops[op].state);
                if (ch->vmm.freed)
                        return;
        } else if (r == -EREMOTEIO)
                words = http_vmm_words(body, size);
        else if (r == -EPIPE && op == OP_QUIT && ch->ended) /* its end was faster than its answer */
                r = 0;

        if (r < 0 || already || ops[op].state == VMM_STATE_UNKNOWN || ops[op].state == ch->vmm.state) {
                answered(call, r, words);
                return;
        }
        call->acknowledged = true;
        refresh(ch);
}

static void on_created(void *userdata, int error, unsigned status, const char *body, size_t size) {
        VMMCall *call = userdata;

        if (error < 0 || http_vmm_error(error, status) < 0) {
                on_answer(userdata, error, status, body, size);
                return;
        }
        call->what = OP_BOOT;
        error = request((CloudHypervisor *) call->vmm, OP_BOOT, NULL, on_answer, call);
        if (error < 0)
                vmm_call_complete(call, error, NULL);
}

static int start_call(VMM *v, Op op, const char *body, http_cb on_reply, vmm_reply_cb cb, void *userdata) {
        VMMCall *call;
        int r;

        r = vmm_call_new(v, op, cb, userdata, &call);
        if (r < 0)
                return r;
        r = request((CloudHypervisor *) v, op, body, on_reply, call);
        if (r < 0)
                vmm_call_drop(call);
        return r;
}

/* Counters */

static void on_counters(void *userdata, int error, unsigned status, const char *body, size_t size) {
        static const char *const keys[VMM_DISK_COUNTERS] = { "read_bytes", "write_bytes", "read_ops", "write_ops" };
        _cleanup_free_ VMMCounter *counters = new(VMMCounter, VMM_DISK_COUNTERS * DISKS_MAX);
        _cleanup_json_ json_object *o = NULL;
        VMMCall *call = userdata;
        size_t n = 0;
        int r;

        r = error == -ECANCELED && !call->vmm->freed ? -EPIPE : answer_error(error, status, body);
        if (r >= 0)
                r = json_parse_bounded(body, size, &o);
        if (r >= 0 && !counters)
                r = -ENOMEM;
        if (r < 0) {
                vmm_call_complete(call, r, NULL);
                return;
        }

        if (json_object_is_type(o, json_type_object)) {
                json_object_object_foreach(o, name, stats) {
                        const char *disk = startswith(name, CLOUD_HYPERVISOR_DISK_PREFIX);

                        if (disk && n <= VMM_DISK_COUNTERS * (DISKS_MAX - 1))
                                n += vmm_disk_counters(counters + n, disk, stats, keys);
                }
        }
        vmm_call_complete_counters(call, counters, n);
}

static int ch_counters(VMM *v, vmm_counters_cb cb, void *userdata) {
        VMMCall *call;
        int r;

        r = vmm_call_new_counters(v, OP_COUNTERS, cb, userdata, &call);
        if (r < 0)
                return r;
        r = request((CloudHypervisor *) v, OP_COUNTERS, NULL, on_counters, call);
        if (r < 0)
                vmm_call_drop(call);
        return r;
}

/* The connection */

/* All requests are answered by the end of it, also if one of their callbacks frees all. */
static void close_channels(CloudHypervisor *ch) {
        ch->events = vmm_stream_free(ch->events);
        http_free(ch->http);
        ch->http = NULL;
}

static void disconnected(CloudHypervisor *ch, int error) {
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&ch->vmm);

        close_channels(ch);
        vmm_calls_fail(&ch->vmm, -EPIPE);
        vmm_emit(&ch->vmm, VMM_EVENT_DISCONNECTED, error);
}

static void ch_free(VMM *v) {
        if (!v || v->freed)
                return;

        v->freed = true;
        close_channels((CloudHypervisor *) v);
        vmm_calls_fail(v, -ECANCELED);
        vmm_unref(v);
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
                .vmm = { .ops = &cloud_hypervisor_ops, .handler = handler, .userdata = userdata, .n_ref = 1 },
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
        return start_call(v, OP_CREATE, config, on_created, cb, userdata);
}

static int ch_pause(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_PAUSE, NULL, on_answer, cb, userdata);
}

static int ch_resume(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_RESUME, NULL, on_answer, cb, userdata);
}

static int ch_power_button(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_POWER_BUTTON, NULL, on_answer, cb, userdata);
}

static int ch_reset(VMM *v, vmm_reply_cb cb, void *userdata) {
        int r;

        r = start_call(v, OP_RESET, NULL, on_answer, cb, userdata);
        if (r >= 0)
                ((CloudHypervisor *) v)->n_resets++;
        return r;
}

static int ch_quit(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, OP_QUIT, NULL, on_answer, cb, userdata);
}

static void ch_drain(VMM *v) {
        CloudHypervisor *ch = (CloudHypervisor *) v;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&ch->vmm);

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
        .title = "Cloud Hypervisor",
        .program = PROGRAM_CLOUD_HYPERVISOR,
        .socket = "api",
        .features = (const VMMFeature[]) {
                { "disks", CLOUD_HYPERVISOR_DISKS_VERSION }, { "qcow2", CLOUD_HYPERVISOR_DISKS_VERSION }, { "firmware" }, { "filesystems" }, { "vsock" },
                { "vsock-half-close", HALF_CLOSE_VERSION }, { "power-button" }, { "reset" }, {},
        },
        .needs_kvm = true,
        .connects_shares = true,
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
