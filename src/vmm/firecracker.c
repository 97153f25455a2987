/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "core/helper.h"
#include "vmm/firecracker-plan.h"
#include "vmm/http-vmm.h"
#include "vmm/vmm-object.h"

/* Firecracker tells nothing by itself but its counters: what it does is what it was asked for last, and its end is its exit status. */

#define COUNTERS_MAX (64U * VMM_DISK_COUNTERS)
/* How long to wait for its socket, or for its guest to run: a fifth of the time that has gone by, within these bounds. None runs before the first
 * of them. */
#define WAIT_FIRST_USEC (3 * USEC_PER_MSEC)
#define WAIT_MIN_USEC (USEC_PER_MSEC / 2)
#define WAIT_MAX_USEC (500 * USEC_PER_MSEC)
/* One that has not made its guest's CPUs by then is asked all the same. */
#define BUILD_MAX_USEC (2 * USEC_PER_SEC)
/* A guest's reset while a request is under way, whoever's, makes it hang for good. So it is looked at when it is silent for so long, and
 * again; */
#define MUTE_USEC (100 * USEC_PER_MSEC)
#define MUTE_MAX_USEC USEC_PER_SEC
/* counters are asked for so often, */
#define COUNTERS_USEC USEC_PER_SEC
/* and nothing is while a guest may be on its way down. */
#define QUIET_USEC (120 * USEC_PER_SEC)

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

        unsigned n_requests;    /* under way */
        sd_event_source *mute;
        uint64_t mute_usec;
        bool gone;              /* it had no CPUs when it was looked at */
        uint64_t quiet_until_usec;

        bool counting;          /* asked for counters */
        sd_event_source *tell;  /* those known */
        uint64_t counted_usec;  /* 0: never */
        VMMCounter *counters;
        size_t n_counters;
} Firecracker;

static void boot_complete(Firecracker *f, int error, const char *message) {
        VMMCall *boot = TAKE_PTR(f->boot);

        if (boot)
                vmm_call_complete(boot, error, message);
}

static uint64_t now(const Firecracker *f) {
        uint64_t usec = 0;

        (void) sd_event_now(f->event, CLOCK_MONOTONIC, &usec);
        return usec;
}

/* Requests */

/* -ENOENT: it has just ended */
static int thread_name(pid_t pid, const char *tid, char **ret) {
        _cleanup_free_ char *path = strjoinf("/proc/%d/task/%s/comm", (int) pid, tid);
        int r;

        r = path ? read_file_all(path, 64, ret, NULL) : -ENOMEM;
        return r == -ESRCH ? -ENOENT : r;
}

/* Whether it has the thread of its API, and none any more that runs its guest; not if that can't be seen. */
static bool has_no_cpus(pid_t pid) {
        bool api = false, cpus = false;
        struct dirent *e;
        char path[64];
        DIR *d;
        int r = 0;

        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) pid);
        d = opendir(path);
        if (!d)
                return false;
        while (r >= 0 && !cpus && (errno = 0, e = readdir(d))) {
                _cleanup_free_ char *name = NULL;

                r = e->d_name[0] == '.' ? -ENOENT : thread_name(pid, e->d_name, &name);
                api = api || (name && startswith(name, "fc_api"));
                cpus = name && startswith(name, "fc_vcpu");
                r = r == -ENOENT ? 0 : r;
        }
        r = r >= 0 && !cpus ? -errno : r;
        closedir(d);
        return r >= 0 && api && !cpus;
}

static void expect_answer(Firecracker *f);

/* Twice, for one that ends as it should has no CPUs for a moment. */
static int on_mute(sd_event_source *source, uint64_t usec, void *userdata) {
        Firecracker *f = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);
        bool was_gone = f->gone;

        f->gone = f->vmm.pid > 0 && has_no_cpus(f->vmm.pid);
        f->mute_usec = f->gone ? MUTE_USEC : MIN(f->mute_usec * 2, MUTE_MAX_USEC);
        expect_answer(f);
        if (f->gone && was_gone)
                vmm_emit(&f->vmm, VMM_EVENT_GUEST_GONE, 0);
        return 0;
}

/* The guest was told to go down, and nothing else since. */
static bool is_quiet(const Firecracker *f) {
        return now(f) < f->quiet_until_usec;
}

/* Or the process's end. While it boots it has no CPUs yet. */
static void expect_answer(Firecracker *f) {
        f->mute = sd_event_source_disable_unref(f->mute);
        if ((f->n_requests > 0 || is_quiet(f)) && !f->boot)
                (void) sd_event_add_time_relative(f->event, &f->mute, CLOCK_MONOTONIC, f->mute_usec, MUTE_USEC / 10, on_mute, f);
}

static int request(Firecracker *f, const char *method, const char *path, const char *body, uint64_t timeout_usec, http_cb cb, void *userdata) {
        int r;

        r = http_request(f->http, method, path, body, timeout_usec, cb, userdata);
        if (r < 0)
                return r;
        if (f->n_requests++ == 0) {
                f->mute_usec = MUTE_USEC;
                f->gone = false;
                expect_answer(f);
        }
        return r;
}

/* To be called with each answer */
static void request_done(Firecracker *f) {
        f->n_requests--;
        f->mute_usec = MUTE_USEC;
        f->gone = false;
        if (!f->vmm.freed)
                expect_answer(f);
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
        uint64_t gone = now(f) - f->began_usec, delay = gone < WAIT_FIRST_USEC ? WAIT_FIRST_USEC - gone : gone / 5;

        delay = MAX(delay, WAIT_MIN_USEC);
        f->wait = sd_event_source_disable_unref(f->wait);
        return sd_event_add_time_relative(f->event, &f->wait, CLOCK_MONOTONIC, MIN(delay, WAIT_MAX_USEC), WAIT_MIN_USEC / 4, on_wait, f);
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

        request_done(f);
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

/* A question that comes before it has made its CPUs hides why it can't: its API's thread would panic, and end it in the middle of its
 * words. The links of a task directory are two and its threads, of which there are two before. */
static bool is_built(const Firecracker *f) {
        char path[32];
        struct stat st;

        if (!f->boot || f->vmm.pid <= 0 || now(f) - f->began_usec > BUILD_MAX_USEC)
                return true;
        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) f->vmm.pid);
        return stat(path, &st) < 0 || st.st_nlink > 4;
}

/* One question at a time */
static void ask_state(Firecracker *f) {
        int r;

        if (f->asking || f->vmm.freed || (f->vmm.connected && is_quiet(f)))
                return;
        /* To look for the socket costs less than to try it. */
        if (!f->vmm.connected && (access(f->socket, F_OK) < 0 || !is_built(f)))
                r = ask_later(f);
        else {
                r = request(f, "GET", "/", NULL, VMM_TIMEOUT_USEC, on_state, f);
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

        request_done(f);
        error = http_vmm_error(error, status);
        if (error == -EREMOTEIO)
                words = http_vmm_words(body, size);
        if (error < 0 && !tells_state)
                f->quiet_until_usec = 0;
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
        f->quiet_until_usec = 0;
        r = request(f, method, path, body, timeout_usec, on_answer, call);
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
        Firecracker *f = (Firecracker *) v;
        int r;

        r = send_call(v, "PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}", VMM_STATE_UNKNOWN, USEC_INFINITY, cb, userdata);
        if (r >= 0)
                f->quiet_until_usec = now(f) + QUIET_USEC;
        return r;
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

static VMMCall *find_counters_call(const Firecracker *f) {
        VMMCall *c = f->vmm.calls;

        while (c && !(c->counters_cb && c->acknowledged))
                c = c->next;
        return c;
}

/* To all who wait for them by now; callbacks may ask for more. */
static void tell_counters(Firecracker *f, int error) {
        _cleanup_free_ VMMCounter *counters = new(VMMCounter, f->n_counters + 1);
        size_t n = f->n_counters;
        VMMCall *c;

        if (!counters)
                error = -ENOMEM;
        else if (n > 0)
                memcpy(counters, f->counters, n * sizeof(VMMCounter));
        for (c = f->vmm.calls; c; c = c->next)
                c->acknowledged = c->counters_cb;
        while ((c = find_counters_call(f)))
                if (error < 0)
                        vmm_call_complete(c, error, NULL);
                else
                        vmm_call_complete_counters(c, counters, n);
}

/* They were written before the answer was. */
static void on_flushed(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Firecracker *f = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);

        request_done(f);
        f->counting = false;
        if (f->vmm.freed)
                return;
        error = http_vmm_error(error, status);
        if (error == 0) {
                vmm_stream_drain(f->stream);
                f->counted_usec = now(f);
        }
        tell_counters(f, error);
}

static int on_tell(sd_event_source *source, void *userdata) {
        Firecracker *f = userdata;
        _cleanup_(vmm_unrefp) _unused_ VMM *ref = vmm_ref(&f->vmm);

        f->tell = sd_event_source_disable_unref(f->tell);
        tell_counters(f, 0);
        return 0;
}

/* One question is for all who ask meanwhile, and its answer for those who come soon after. */
static int ask_counters(Firecracker *f) {
        int r;

        if (f->counting || f->tell)
                return 0;
        if (is_quiet(f) || (f->counted_usec > 0 && now(f) - f->counted_usec < COUNTERS_USEC))
                return sd_event_add_defer(f->event, &f->tell, on_tell, f);
        r = request(f, "PUT", "/actions", "{\"action_type\":\"FlushMetrics\"}", VMM_TIMEOUT_USEC, on_flushed, f);
        f->counting = r >= 0;
        return r;
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
        r = ask_counters(f);
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
        f->mute = sd_event_source_disable_unref(f->mute);
        f->tell = sd_event_source_disable_unref(f->tell);
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

        f->began_usec = now(f);
        r = f->dir ? ask_for_sockets(f) : -ENOMEM;
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
