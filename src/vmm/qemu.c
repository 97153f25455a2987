/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/wait.h>

#include "basic/string-util.h"
#include "vmm/qemu-plan.h"
#include "vmm/qmp.h"
#include "vmm/vmm-object.h"

#define DISKS_MAX 64U
/* Firmware may reset the machine once or twice more on its way up: resets so near each other are one. */
#define RESET_WINDOW_USEC USEC_PER_SEC

typedef enum Wish {
        WISH_RUNS,              /* boot, resume */
        WISH_STANDS,            /* pause */
        WISH_NOTHING,           /* QEMU's acknowledgement is enough */
        WISH_ENDS,              /* quit */
} Wish;

/* Button pressed, guest down, reset, running again */
typedef enum RebootStage {
        REBOOT_NONE,
        REBOOT_HOLD,            /* telling QEMU to stay when the guest goes down */
        REBOOT_WAIT,            /* button pressed; the guest has all the time its caller gives it */
        REBOOT_RESET,
        REBOOT_RUN,
        REBOOT_RELEASE,         /* given up: telling QEMU not to stay */
} RebootStage;

typedef struct QEMU {
        VMM vmm;
        bool ready, ended;
        QMP *qmp;
        sd_event *event;
        const char *why;        /* of one that stands without a pause */
        bool asleep;            /* the guest has suspended itself */

        bool querying, stale;   /* query-status under way; its answer may be older than what was heard since */
        bool panicked;          /* told already */
        uint64_t reset_usec;    /* when a reset was seen last */
        VMMCall *boot;          /* one of the calls, not sent yet */

        RebootStage reboot;
        bool pressed;           /* the button was pressed before */
        bool reboot_canceled;   /* its caller has gone: whatever the end, it is told so */
        vmm_reply_cb reboot_cb;
        void *reboot_userdata;
} QEMU;

static void refresh(QEMU *q);
static void reboot_failed(QEMU *q, int error, const char *message);
static int command(QEMU *q, const char *name, json_object *arguments, qmp_reply_cb cb, void *userdata);

/* Calls */

static bool is_over(VMMState s) {
        return s == VMM_STATE_FAILED || s == VMM_STATE_SHUTDOWN;
}

/* What the state says about a call: 1 as wished, 0 not yet known, or -EIO. */
static int call_verdict(QEMU *q, const VMMCall *call, bool fresh) {
        VMMState s = q->vmm.state;
        bool runs = s == VMM_STATE_RUNNING, stands = !runs && !is_over(s) && s != VMM_STATE_UNKNOWN;

        if (!call->acknowledged || call->what == WISH_ENDS)
                return 0;
        if (call->what == WISH_NOTHING || (call->what == WISH_RUNS && runs && (fresh || !q->querying)) ||
            (call->what == WISH_STANDS && fresh && stands))
                return 1;
        return fresh ? -EIO : 0;
}

static VMMCall *find_settled(QEMU *q, bool fresh, int *ret_verdict) {
        for (VMMCall *c = q->vmm.calls; c; c = c->next) {
                *ret_verdict = call_verdict(q, c, fresh);
                if (*ret_verdict != 0)
                        return c;
        }
        return NULL;
}

/* Ends the calls that the state answers; fresh: it was just asked for. From the start after each, for callbacks change the list. */
static void settle(QEMU *q, bool fresh) {
        VMMCall *c;
        int verdict;

        while ((c = find_settled(q, fresh, &verdict)))
                vmm_call_complete(c, verdict < 0 ? verdict : 0, verdict < 0 ? "QEMU obeyed, but is not in the state asked for" : NULL);
}

static void on_acknowledged(void *userdata, int error, json_object *result, const char *message) {
        VMMCall *call = userdata;
        QEMU *q = (QEMU *) call->vmm;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&q->vmm);

        /* Of `quit` the answer may be lost, and its last event not. */
        if (call->what == WISH_ENDS && error == -EPIPE && q->ended)
                error = 0;
        if (error < 0 || call->what == WISH_ENDS) {
                vmm_call_complete(call, error, message);
                return;
        }

        call->acknowledged = true;
        if (call_verdict(q, call, false) == 1)
                vmm_call_complete(call, 0, NULL);
        else
                refresh(q);
}

static int start_call(VMM *v, const char *name, Wish wish, vmm_reply_cb cb, void *userdata) {
        VMMCall *call;
        int r;

        r = vmm_call_new(v, wish, cb, userdata, &call);
        if (r < 0)
                return r;
        r = command((QEMU *) v, name, NULL, on_acknowledged, call);
        if (r < 0)
                vmm_call_drop(call);
        return r;
}

static int command(QEMU *q, const char *name, json_object *arguments, qmp_reply_cb cb, void *userdata) {
        if (!q->qmp) {
                json_object_put(arguments);
                return -ENOTCONN;
        }

        return qmp_command(q->qmp, name, arguments, VMM_TIMEOUT_USEC, cb, userdata);
}

/* The state */

/* What stands without a pause is told why. What a later QEMU may say runs, or does not. */
static VMMState read_status(QEMU *q, json_object *result) {
        static const struct {
                const char *name;
                VMMState state;
                const char *why;
        } table[] = {
                { "prelaunch",      VMM_STATE_NOT_STARTED, NULL },
                { "preconfig",      VMM_STATE_NOT_STARTED, NULL },
                { "running",        VMM_STATE_RUNNING,     NULL },
                { "paused",         VMM_STATE_PAUSED,      NULL },
                { "suspended",      VMM_STATE_PAUSED,      "The guest sleeps; Resume wakes it" },
                { "watchdog",       VMM_STATE_PAUSED,      "The guest's watchdog has stopped it; Resume lets it go on" },
                { "debug",          VMM_STATE_PAUSED,      "A debugger has stopped the guest" },
                { "inmigrate",      VMM_STATE_PAUSED,      "QEMU waits for a guest that is to be migrated here, which vmunit has not asked for" },
                { "finish-migrate", VMM_STATE_PAUSED,      "The guest is being migrated away, which vmunit has not asked for" },
                { "postmigrate",    VMM_STATE_PAUSED,      "The guest was migrated away, which vmunit has not asked for; Resume lets it go on here" },
                { "save-vm",        VMM_STATE_PAUSED,      "The guest is being saved, which vmunit has not asked for" },
                { "restore-vm",     VMM_STATE_PAUSED,      "The guest is being restored, which vmunit has not asked for" },
                { "colo",           VMM_STATE_PAUSED,      "The guest is being copied, which vmunit has not asked for" },
                { "io-error",       VMM_STATE_IO_ERROR,    NULL },
                { "shutdown",       VMM_STATE_SHUTDOWN,    NULL },
                { "internal-error", VMM_STATE_FAILED,      NULL },
                { "guest-panicked", VMM_STATE_FAILED,      NULL },
        };
        const char *status = json_get_string(result, "status", "");
        json_object *running = json_get(result, "running");

        q->asleep = streq(status, "suspended");
        q->why = NULL;
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (streq(status, table[i].name)) {
                        q->why = table[i].why;
                        return table[i].state;
                }
        if (isempty(status) || !json_object_is_type(running, json_type_boolean))
                return VMM_STATE_UNKNOWN;
        if (json_object_get_boolean(running))
                return VMM_STATE_RUNNING;
        q->why = "QEMU has stopped the guest, and vmunit does not know why";
        return VMM_STATE_PAUSED;
}

static void panicked(QEMU *q) {
        q->vmm.state = VMM_STATE_FAILED;
        if (q->panicked)
                return;
        q->panicked = true;
        if (q->reboot != REBOOT_NONE)
                reboot_failed(q, -EIO, "The guest panicked");
        vmm_emit(&q->vmm, VMM_EVENT_GUEST_PANICKED, 0);
}

/* A guest that went down just when its reboot was given up: QEMU still stood by its word to stay. */
static void end_if_left(QEMU *q) {
        if (q->vmm.connected && q->vmm.state == VMM_STATE_SHUTDOWN && q->reboot == REBOOT_NONE && q->ended)
                (void) command(q, "quit", NULL, NULL, NULL);
}

static void on_first_status(QEMU *q, int error, json_object *result) {
        if (error < 0) {
                qmp_give_up(q->qmp, error == -EREMOTEIO ? -EBADMSG : error);
                return;
        }

        q->vmm.connected = true;
        q->vmm.state = read_status(q, result);
        q->panicked = streq(json_get_string(result, "status", ""), "guest-panicked");
        vmm_emit(&q->vmm, VMM_EVENT_CONNECTED, 0);
        if (!q->vmm.freed)
                settle(q, true);
}

static void on_status(void *userdata, int error, json_object *result, const char *message) {
        QEMU *q = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&q->vmm);

        q->querying = false;
        if (q->vmm.freed || error == -EPIPE || error == -ECANCELED)
                return;

        if (q->stale)
                refresh(q);
        else if (!q->vmm.connected)
                on_first_status(q, error, result);
        else if (error < 0)
                vmm_calls_fail_acknowledged(&q->vmm, error);
        else {
                if (streq(json_get_string(result, "status", ""), "guest-panicked"))
                        panicked(q);
                else
                        vmm_set_state(&q->vmm, read_status(q, result));
                settle(q, true);
                end_if_left(q);
        }
}

/* Asks for the state. One question at a time; if something was heard meanwhile, once more. */
static void refresh(QEMU *q) {
        int r;

        q->stale = q->querying;
        if (q->querying)
                return;

        r = command(q, "query-status", NULL, on_status, q);
        if (r >= 0)
                q->querying = true;
        else
                vmm_calls_fail_acknowledged(&q->vmm, r);
}

/* Reboot: `stay` on, button, wait for the guest to go down, `stay` off, reset, run. */

static void reboot_complete(QEMU *q, int error, const char *message) {
        vmm_reply_cb cb = q->reboot_cb;

        q->reboot = REBOOT_NONE;
        q->reboot_cb = NULL;
        if (cb)
                cb(q->reboot_userdata, q->reboot_canceled ? -ECANCELED : error, q->reboot_canceled ? NULL : message);
}

static int set_shutdown_action(QEMU *q, const char *action, qmp_reply_cb cb) {
        json_object *o = json_object_new_object(), *s = json_object_new_string(action);

        if (!o || !s || json_object_object_add(o, "shutdown", s) < 0) {
                json_object_put(o);
                json_object_put(s);
                return -ENOMEM;
        }
        return command(q, "set-action", o, cb, q);
}

/* Undoes what a reboot has set; its error is of no more use. */
static void reboot_failed(QEMU *q, int error, const char *message) {
        (void) set_shutdown_action(q, "poweroff", NULL);
        reboot_complete(q, error, message);
}

static void on_reboot_runs(void *userdata, int error, const char *message) {
        QEMU *q = userdata;

        if (q->reboot == REBOOT_RUN)
                reboot_complete(q, error, message);
}

static void reboot_run(QEMU *q) {
        int r;

        q->reboot = REBOOT_RUN;
        r = start_call(&q->vmm, "cont", WISH_RUNS, on_reboot_runs, q);
        if (r < 0)
                reboot_complete(q, r, NULL);
}

static void on_reboot_step(void *userdata, int error, json_object *result, const char *message) {
        QEMU *q = userdata;

        if (error < 0 && q->reboot != REBOOT_NONE)
                reboot_failed(q, error, message);
}

/* From here a guest that goes down ends QEMU again. The reset is done when its event comes. */
static void reboot_reset(QEMU *q) {
        int r;

        q->reboot = REBOOT_RESET;
        r = set_shutdown_action(q, "poweroff", on_reboot_step);
        if (r >= 0)
                r = command(q, "system_reset", NULL, on_reboot_step, q);
        if (r < 0)
                reboot_complete(q, r, NULL);
}

static void on_hold(void *userdata, int error, json_object *result, const char *message) {
        QEMU *q = userdata;
        int r;

        if (q->reboot != REBOOT_HOLD)
                return;
        if (error < 0) {
                reboot_failed(q, error, message);
                return;
        }

        if (q->vmm.state == VMM_STATE_SHUTDOWN) {
                reboot_reset(q);
                return;
        }
        q->reboot = REBOOT_WAIT;
        r = q->pressed ? 0 : command(q, "system_powerdown", NULL, on_reboot_step, q);
        if (r < 0)
                reboot_failed(q, r, NULL);
}

static int reboot(VMM *v, bool pressed, vmm_reply_cb cb, void *userdata) {
        QEMU *q = (QEMU *) v;
        int r;

        if (q->reboot != REBOOT_NONE)
                return -EBUSY;

        r = set_shutdown_action(q, q->vmm.state == VMM_STATE_SHUTDOWN ? "poweroff" : "pause", on_hold);
        if (r < 0)
                return r;
        q->reboot = REBOOT_HOLD;
        q->pressed = pressed;
        q->reboot_canceled = false;
        q->reboot_cb = cb;
        q->reboot_userdata = userdata;
        return 0;
}

static int qemu_reboot(VMM *v, vmm_reply_cb cb, void *userdata) {
        return reboot(v, false, cb, userdata);
}

static int qemu_reboot_pressed(VMM *v, vmm_reply_cb cb, void *userdata) {
        return reboot(v, true, cb, userdata);
}

static void on_released(void *userdata, int error, json_object *result, const char *message) {
        QEMU *q = userdata;

        if (q->reboot != REBOOT_RELEASE)
                return;
        reboot_complete(q, -ECANCELED, NULL);
}

static void qemu_reboot_cancel(VMM *v) {
        QEMU *q = (QEMU *) v;

        q->reboot_canceled = true;
        /* A guest that is down already comes up again. */
        if (q->reboot != REBOOT_HOLD && q->reboot != REBOOT_WAIT)
                return;
        if (set_shutdown_action(q, "poweroff", on_released) >= 0)
                q->reboot = REBOOT_RELEASE;
}

/* Events */

static void on_resume(QEMU *q, json_object *data) {
        q->stale = q->querying;
        q->asleep = false;
        vmm_set_state(&q->vmm, VMM_STATE_RUNNING);
        if (!q->vmm.freed)
                settle(q, false);
}

/* A pause, a disk error, a failure of KVM, a guest that falls asleep or wakes: only the state tells them apart. */
static void on_stop(QEMU *q, json_object *data) {
        refresh(q);
}

static void on_powerdown(QEMU *q, json_object *data) {
        vmm_emit(&q->vmm, VMM_EVENT_POWER_BUTTON, 0);
}

static void on_reset(QEMU *q, json_object *data) {
        bool guest = json_get_bool(data, "guest", false);
        uint64_t now = 0;

        (void) sd_event_now(q->event, CLOCK_MONOTONIC, &now);
        if (guest && q->reset_usec != 0 && now - q->reset_usec < RESET_WINDOW_USEC)
                return;
        q->reset_usec = now;

        if (q->reboot == REBOOT_RESET)
                reboot_run(q);
        else if (guest)
                vmm_emit(&q->vmm, VMM_EVENT_GUEST_RESET, 0);
}

static void on_guest_panicked(QEMU *q, json_object *data) {
        panicked(q);
}

static void on_shutdown(QEMU *q, json_object *data) {
        const char *reason = json_get_string(data, "reason", "");

        if (q->reboot == REBOOT_WAIT && streq(reason, "guest-shutdown")) {
                vmm_set_state(&q->vmm, VMM_STATE_SHUTDOWN);
                reboot_reset(q);
                return;
        }

        q->ended = true;
        if (streq(reason, "guest-panic"))
                panicked(q);
        else if (streq(reason, "guest-shutdown"))
                vmm_emit(&q->vmm, VMM_EVENT_GUEST_SHUTDOWN, 0);
        else if (streq(reason, "guest-reset"))
                vmm_emit(&q->vmm, VMM_EVENT_GUEST_RESET, 0);
        else
                vmm_emit(&q->vmm, VMM_EVENT_SHUTDOWN, 0);
}

static void on_event(void *userdata, const char *name, json_object *data) {
        static const struct {
                const char *name;
                void (*handle)(QEMU *q, json_object *data);
        } table[] = {
                { "RESUME",         on_resume         },
                { "STOP",           on_stop           },
                { "SUSPEND",        on_stop           },
                { "WAKEUP",         on_stop           },
                { "POWERDOWN",      on_powerdown      },
                { "RESET",          on_reset          },
                { "SHUTDOWN",       on_shutdown       },
                { "GUEST_PANICKED", on_guest_panicked },
        };
        QEMU *q = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&q->vmm);

        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (streq(name, table[i].name)) {
                        table[i].handle(q, data);
                        return;
                }
}

/* Counters */

static void on_blockstats(void *userdata, int error, json_object *result, const char *message) {
        static const char *const keys[VMM_DISK_COUNTERS] = { "rd_bytes", "wr_bytes", "rd_operations", "wr_operations" };
        _cleanup_free_ VMMCounter *counters = NULL;
        VMMCall *call = userdata;
        size_t n = 0, n_devices = 0;

        if (error == 0 && json_object_is_type(result, json_type_array))
                n_devices = MIN(json_object_array_length(result), (size_t) DISKS_MAX);
        counters = new(VMMCounter, VMM_DISK_COUNTERS * n_devices + 1);
        if (!counters)
                error = -ENOMEM;
        if (error < 0) {
                vmm_call_complete(call, error, NULL);
                return;
        }

        /* What is not one of ours is passed over. */
        for (size_t i = 0; i < n_devices; i++) {
                json_object *device = json_object_array_get_idx(result, i);
                const char *disk = startswith(json_get_string(device, "node-name", ""), QEMU_DISK_PREFIX);

                if (disk)
                        n += vmm_disk_counters(counters + n, disk, json_get(device, "stats"), keys);
        }
        vmm_call_complete_counters(call, counters, n);
}

static int qemu_counters(VMM *v, vmm_counters_cb cb, void *userdata) {
        VMMCall *call;
        int r;

        r = vmm_call_new_counters(v, WISH_NOTHING, cb, userdata, &call);
        if (r < 0)
                return r;
        r = command((QEMU *) v, "query-blockstats", NULL, on_blockstats, call);
        if (r < 0)
                vmm_call_drop(call);
        return r;
}

/* The connection */

static void ready(void *userdata) {
        QEMU *q = userdata;
        int r;

        /* A daemon that died in a reboot has left it at `pause`. */
        r = set_shutdown_action(q, "poweroff", NULL);
        if (r >= 0)
                refresh(q);
        if (r >= 0 && !q->querying)
                r = -ENOMEM;
        if (r >= 0 && q->boot)
                r = command(q, "cont", NULL, on_acknowledged, TAKE_PTR(q->boot));
        if (r < 0)
                qmp_give_up(q->qmp, r);
        else
                q->ready = true;
}

/* Those that wait for a state; the others were answered by the QMP client. */
static void fail_calls(QEMU *q, int error) {
        q->boot = NULL;
        vmm_calls_fail(&q->vmm, error);
        if (q->reboot != REBOOT_NONE)
                reboot_complete(q, error, NULL);
}

static void disconnected(void *userdata, int error) {
        QEMU *q = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&q->vmm);

        q->ready = true; /* nothing is put off from here on */
        fail_calls(q, -EPIPE);
        vmm_emit(&q->vmm, VMM_EVENT_DISCONNECTED, error);
}

static const QMPHandlers handlers = {
        .ready = ready,
        .event = on_event,
        .disconnected = disconnected,
};

static void qemu_free(VMM *v) {
        QEMU *q = (QEMU *) v;

        if (!v || v->freed)
                return;

        v->freed = true;
        q->qmp = qmp_free(q->qmp);
        fail_calls(q, -ECANCELED);
        q->event = sd_event_unref(q->event);
        vmm_unref(v);
}

static int qemu_connect(sd_event *e, const char *dir, vmm_event_cb handler, void *userdata, VMM **ret) {
        _cleanup_free_ char *path = strjoinf("%s/%s", dir, qemu_ops.socket);
        QEMU *q;
        int r;

        if (!path)
                return -ENOMEM;
        q = new(QEMU, 1);
        if (!q)
                return -ENOMEM;
        *q = (QEMU) {
                .vmm = { .ops = &qemu_ops, .handler = handler, .userdata = userdata, .n_ref = 1 },
                .event = sd_event_ref(e),
        };

        r = qmp_connect(e, path, &handlers, q, &q->qmp);
        if (r < 0) {
                qemu_free(&q->vmm);
                return r;
        }

        *ret = &q->vmm;
        return 0;
}

/* `cont` does nothing to a guest that sleeps. */
static int qemu_resume(VMM *v, vmm_reply_cb cb, void *userdata) {
        QEMU *q = (QEMU *) v;

        return start_call(v, q->asleep ? "system_wakeup" : "cont", WISH_RUNS, cb, userdata);
}

static const char *qemu_why(const VMM *v) {
        const QEMU *q = (const QEMU *) v;

        return q->vmm.state == VMM_STATE_PAUSED ? q->why : NULL;
}

static int qemu_boot(VMM *v, const char *config, vmm_reply_cb cb, void *userdata) {
        QEMU *q = (QEMU *) v;

        if (q->ready)
                return qemu_resume(v, cb, userdata);
        if (q->boot)
                return -EBUSY;

        /* Goes out behind the question for the state, without waiting for its answer. */
        return vmm_call_new(v, WISH_RUNS, cb, userdata, &q->boot);
}

static int qemu_pause(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, "stop", WISH_STANDS, cb, userdata);
}

static int qemu_power_button(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, "system_powerdown", WISH_NOTHING, cb, userdata);
}

static int qemu_reset(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, "system_reset", WISH_NOTHING, cb, userdata);
}

static int qemu_quit(VMM *v, vmm_reply_cb cb, void *userdata) {
        return start_call(v, "quit", WISH_ENDS, cb, userdata);
}

static void qemu_drain(VMM *v) {
        QEMU *q = (QEMU *) v;

        if (q->qmp)
                qmp_drain(q->qmp);
}

/* QEMU exits with 0 after a power-off, and says so when it was a signal; with 1 and not a word after a panic
 * (-action panic=exit-failure), while other failures have some. */
static VMMEvent qemu_exit_cause(int status, const char *output) {
        if (WIFEXITED(status) && WEXITSTATUS(status) == 1 && isempty(output))
                return VMM_EVENT_GUEST_PANICKED;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                return _VMM_EVENT_MAX;
        return strstr(strempty(output), "terminating on signal") ? _VMM_EVENT_MAX : VMM_EVENT_GUEST_SHUTDOWN;
}

const VMMOps qemu_ops = {
        .backend = BACKEND_QEMU,
        .title = "QEMU",
        .program = PROGRAM_QEMU,
        .socket = "qmp",
        .features = (const VMMFeature[]) {
                { "disks" }, { "qcow2" }, { "backing-files" }, { "bios" }, { "uefi" }, { "firmware" }, { "filesystems" }, { "user-network" }, { "vsock" },
                { "vsock-half-close" }, { "tcg" }, { "power-button" }, { "reset" }, { "reboot-in-place" }, {},
        },
        .needs_vhost_vsock = true,
        .takes_images = true,
        .tells_end = true,
        .check = qemu_check,
        .plan = qemu_plan,
        .connect = qemu_connect,
        .free = qemu_free,
        .boot = qemu_boot,
        .pause = qemu_pause,
        .resume = qemu_resume,
        .power_button = qemu_power_button,
        .reset = qemu_reset,
        .quit = qemu_quit,
        .why = qemu_why,
        .reboot = qemu_reboot,
        .reboot_cancel = qemu_reboot_cancel,
        .reboot_pressed = qemu_reboot_pressed,
        .counters = qemu_counters,
        .drain = qemu_drain,
        .exit_cause = qemu_exit_cause,
};
