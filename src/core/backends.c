/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <sys/inotify.h>

#include "basic/log.h"
#include "basic/program-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/manager-private.h"
#include "core/share.h"

/* Which VMMs there are, and which of them a definition gets. What is on this host is looked up by the launcher: the daemon sees no
 * devices. Directories where a program may be are watched, and a start looks once more. */

#define VERSION_TIMEOUT_USEC (10 * USEC_PER_SEC)
#define PROBE_TIMEOUT_USEC (2 * USEC_PER_SEC)
#define RETRY_USEC (5 * USEC_PER_SEC)
#define RETRY_DOUBLINGS_MAX 6U

static bool is_older(const BackendInfo *i, const char *version) {
        return version && !isempty(i->version) && strverscmp(i->version, version) < 0;
}

int manager_backend_features(const Manager *m, Backend b, char ***ret) {
        _cleanup_strv_free_ char **l = NULL;
        const VMMOps *ops = vmm_ops(b);
        int r = 0;

        for (const VMMFeature *f = ops ? ops->features : NULL; f && f->name && r >= 0; f++)
                if (!is_older(&m->backends[b], f->since) &&
                    !(ops->needs_vhost_vsock && m->no_vhost_vsock && startswith(f->name, "vsock")))
                        r = strv_extend(&l, f->name);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(l);
        return 0;
}

static const char *probe_problem(int error) {
        switch (error) {
        case -ENOENT:
                return "its program was not found";
        case -EPIPE:
                return "vmunit-launch has died while it looked for the program";
        case -ETIMEDOUT:
                return "vmunit-launch did not answer in time";
        case -ECONNREFUSED:
                return "vmunit-launch can't be reached; see systemctl status vmunit-launch.socket";
        case -EPERM:
                return "its program, or a directory above it, can be written by others than root";
        case -ENODATA:
        case -ETIME:
                return "it does not say what version it is when it is called with --version";
        default:
                return strerror(-error);
        }
}

/* "Firecracker v1.12.1", "QEMU emulator version 7.2.22 (Debian …)": the first word that is a number, or all there is */
static char *version_number(const char *line) {
        for (const char *w = line; *w; w += strcspn(w, " "), w += strspn(w, " ")) {
                const char *n = *w == 'v' ? w + 1 : w;

                if (isdigit((unsigned char) *n) && memchr(n, '.', strcspn(n, " ")))
                        return strndup(n, strcspn(n, " ,;"));
        }
        return strdup(line);
}

static bool is_same(const BackendInfo *i, const ProbeReply *reply) {
        return i->mtime_usec == reply->mtime_usec && streq(strempty(i->path), reply->path);
}

bool manager_knows_version(const Manager *m, Backend b, const ProbeReply *reply) {
        const BackendInfo *i = &m->backends[b];

        return reply->version[0] || (!isempty(i->version) && is_same(i, reply));
}

/* The next one may be another. */
static void forget_program(BackendInfo *i) {
        i->mtime_usec = 0;
        i->version_error = 0;
        i->n_slow = 0;
        i->path = (free(i->path), NULL);
        i->version = (free(i->version), NULL);
}

static int set_program(BackendInfo *i, int error, const ProbeReply *reply) {
        _cleanup_free_ char *version = NULL;

        if (!is_same(i, reply))
                forget_program(i);
        i->mtime_usec = reply->mtime_usec;
        if (error < 0 || reply->version[0])
                i->version_error = error;
        if (error == -ETIME)
                i->n_slow++;
        if (reply->version[0]) {
                i->n_slow = 0;
                version = version_number(reply->version);
                if (!version || free_and_strdup(&i->version, version) < 0)
                        return -ENOMEM;
        }
        return free_and_strdup(&i->path, reply->path);
}

/* "": it is usable. The caller frees. */
static char *find_reason(const Manager *m, Backend b) {
        const VMMOps *ops = vmm_ops(b);
        const BackendInfo *i = &m->backends[b];

        if (i->error < 0)
                return strdup(probe_problem(i->error));
        /* A host that boots is busy: what any version of can be used is not given up for that. */
        if (i->version_error < 0 && (ops->version_min || i->version_error != -ETIME))
                return strdup(probe_problem(i->version_error));
        if (is_older(i, ops->version_min))
                return strjoinf("version %s is too old, %s and later can be used", i->version, ops->version_min);
        if (ops->needs_kvm && !m->kvm)
                return strdup("/dev/kvm can't be opened, and it runs nothing without");
        return strdup("");
}

static void log_probed(const Manager *m, Backend b) {
        const BackendInfo *i = &m->backends[b];

        if (!i->usable)
                log_full_fields(i->error == -ENOENT ? LOG_INFO : LOG_NOTICE, 0, NULL, "%s can't be used: %s", backend_to_string(b), i->reason);
        else if (!isempty(i->version))
                log_info("%s: %s, version %s%s", backend_to_string(b), i->path, i->version, m->kvm ? "" : "; /dev/kvm can't be opened");
}

/* Gives whether it is another reason than before. */
static bool judge(Manager *m, Backend b) {
        BackendInfo *i = &m->backends[b];
        char *reason = find_reason(m, b);

        if (!reason || streq(strempty(i->reason), reason)) {
                i->usable = isempty(i->reason);
                free(reason);
                return false;
        }
        free(i->reason);
        i->reason = reason;
        i->usable = isempty(reason);
        return true;
}

/* Else it could not be looked for. */
static bool is_about_program(int error) {
        return error == -ENOENT || error == -EPERM || error == -EACCES || error == -ENOTDIR || error == -ELOOP;
}

static bool is_about_version(int error) {
        return error == -ENODATA || error == -ETIME;
}

/* Gives whether it is another program, or another version is known, than before. */
static bool set_found(Manager *m, BackendInfo *i, int error, const ProbeReply *reply) {
        bool no_vhost_vsock = m->no_vhost_vsock;
        _cleanup_free_ char *path = strdup(strempty(i->path)), *version = strdup(strempty(i->version));

        if (reply) {
                m->kvm = reply->kvm_error == 0;
                m->no_vhost_vsock = reply->vhost_vsock_error < 0;
        }
        i->error = is_about_version(error) ? 0 : error;
        if (is_about_program(error))
                forget_program(i);
        if (i->error == 0 && set_program(i, error, reply) < 0)
                log_warning("Out of memory: what a probe said is lost");
        return no_vhost_vsock != m->no_vhost_vsock || !path || !version || !streq(path, strempty(i->path)) || !streq(version, strempty(i->version));
}

static void probe(Manager *m, Backend b, bool want_version);
static void retry_later(BackendInfo *i, uint64_t usec);

void manager_set_probed(Manager *m, Backend b, int error, const ProbeReply *reply) {
        BackendInfo *i = &m->backends[b];
        bool changed, any;

        any = changed = set_found(m, i, error, reply) || !i->probed;
        i->probed = true;
        for (Backend k = 0; k < _BACKEND_MAX; k++) { /* KVM is everybody's */
                bool now = vmm_ops(k) && m->backends[k].probed && judge(m, k);

                if (now || (k == b && changed))
                        log_probed(m, k);
                any = any || now;
        }
        if (error >= 0 && isempty(i->version))
                probe(m, b, true);
        if (i->error < 0 && !is_about_program(i->error)) /* the launcher did not answer, or was not there */
                retry_later(i, RETRY_USEC);
        else if (error == -ETIME)
                retry_later(i, RETRY_USEC << MIN(i->n_slow - 1, RETRY_DOUBLINGS_MAX));
        if (any && m->observer)
                m->observer->backends_changed(m->observer_userdata);
}

/* A start that goes on may have asked before, and been told first. */
static void check_ready(Manager *m) {
        void (*ready)(void *userdata) = m->ready;

        if (!ready)
                return;
        for (Backend b = 0; b < _BACKEND_MAX; b++)
                if (!m->backends[b].probed)
                        return;
        m->ready = NULL;
        ready(m->ready_userdata);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        BackendInfo *i = userdata;

        i->retry = sd_event_source_disable_unref(i->retry);
        probe(i->manager, (Backend) (i - i->manager->backends), false);
        check_ready(i->manager);
        return 0;
}

static void retry_later(BackendInfo *i, uint64_t usec) {
        if (!i->retry)
                (void) sd_event_add_time_relative(i->manager->event, &i->retry, CLOCK_MONOTONIC, usec, 0, on_retry, i);
}

static void on_probe(void *userdata, int error, const ProbeReply *reply) {
        BackendInfo *i = userdata;
        Manager *m = i->manager;
        Backend b = (Backend) (i - m->backends);
        bool first = !i->probed;

        i->probe = launch_call_free(i->probe);
        if (i->again) { /* what was told may be old */
                i->again = false;
                probe(m, b, false);
        }
        /* Of another program all is told at once. */
        if (!first && error >= 0 && !manager_knows_version(m, b, reply))
                probe(m, b, true);
        if (first || !i->probe)
                manager_set_probed(m, b, error, reply);
        check_ready(m);
}

static void probe(Manager *m, Backend b, bool want_version) {
        BackendInfo *i = &m->backends[b];
        int r;

        i->manager = m;
        if (i->probe) {
                i->again = i->again || !want_version;
                return;
        }
        r = launch_probe(m->event, vmm_ops(b)->program, want_version, want_version && i->probed ? VERSION_TIMEOUT_USEC : PROBE_TIMEOUT_USEC,
                         on_probe, i, &i->probe);
        if (r < 0)
                manager_set_probed(m, b, r, NULL);
}

/* At first no more is asked than has to be known to choose one, for the daemon is not ready before: QEMU takes 30 ms to tell its
 * version. */
static void probe_all(Manager *m) {
        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                if (vmm_ops(b))
                        probe(m, b, !m->backends[b].probed && vmm_ops(b)->version_min);
                else if (!m->backends[b].probed) {
                        (void) free_and_strdup(&m->backends[b].reason, "this vmunitd has no support for it");
                        m->backends[b].probed = true;
                }
        }
}

/* Watching */

static void watch_all(Manager *m);

static bool is_called(Manager *m, Program program, const char *name) {
        _cleanup_strv_free_ char **paths = NULL;

        if (program_paths(m->config, program, &paths) < 0)
                return false;
        STRV_FOREACH(path, paths)
                if (streq(strrchr(*path, '/') + 1, name))
                        return true;
        return false;
}

static bool is_companion(Manager *m, const char *name) {
        for (Program p = _PROGRAM_COMPANIONS; p < _PROGRAM_MAX; p++)
                if (is_called(m, p, name))
                        return true;
        return false;
}

/* A directory on the way to a program, or what has taken its place */
static bool is_above(Manager *m, const char *name) {
        _cleanup_free_ char *part = strjoinf("/%s/", name);

        for (Program p = 0; part && p < _PROGRAM_MAX; p++) {
                _cleanup_strv_free_ char **paths = NULL;

                if (program_paths(m->config, p, &paths) < 0)
                        return true;
                STRV_FOREACH(path, paths)
                        if (strstr(*path, part))
                                return true;
        }
        return !part;
}

/* Something has happened in a directory: it matters only to names that are looked for. */
static int on_inotify(sd_event_source *source, const struct inotify_event *ev, void *userdata) {
        Manager *m = userdata;

        if ((ev->mask & (IN_Q_OVERFLOW | IN_IGNORED)) || (ev->len > 0 && is_above(m, ev->name))) {
                watch_all(m);
                probe_all(m);
                shares_probe(m);
                return 0;
        }
        for (Backend b = 0; b < _BACKEND_MAX; b++)
                if (ev->len > 0 && vmm_ops(b) && is_called(m, vmm_ops(b)->program, ev->name))
                        probe(m, b, false);
        if (ev->len > 0 && is_companion(m, ev->name))
                shares_probe(m);
        return 0;
}

static void watch_directory(Manager *m, const char *dir) {
        size_t n = strv_length(m->watched);
        int r;

        if (n >= ELEMENTSOF(m->watches) || strv_contains(m->watched, dir))
                return;
        r = sd_event_add_inotify(m->event, &m->watches[n], dir, IN_CREATE | IN_CLOSE_WRITE | IN_MOVE | IN_DELETE | IN_ATTRIB | IN_ONLYDIR,
                                 on_inotify, m);
        if (r >= 0 && strv_extend(&m->watched, dir) < 0)
                m->watches[n] = sd_event_source_disable_unref(m->watches[n]);
}

/* From the top: one that is renamed, or comes, after it was its turn is told by the one above. */
static void watch_above(Manager *m, char *path) {
        watch_directory(m, "/");
        for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
                *p = 0;
                watch_directory(m, path);
                *p = '/';
        }
}

static void unwatch(Manager *m) {
        for (size_t i = 0; i < ELEMENTSOF(m->watches); i++)
                m->watches[i] = sd_event_source_disable_unref(m->watches[i]);
        m->watched = strv_free(m->watched);
}

static void watch_program(Manager *m, Program program) {
        _cleanup_strv_free_ char **paths = NULL;

        if (program_paths(m->config, program, &paths) < 0)
                return;
        STRV_FOREACH(path, paths)
                watch_above(m, *path);
}

static void watch_all(Manager *m) {
        unwatch(m);
        for (Backend b = 0; b < _BACKEND_MAX; b++)
                if (vmm_ops(b))
                        watch_program(m, vmm_ops(b)->program);
        for (Program p = _PROGRAM_COMPANIONS; p < _PROGRAM_MAX; p++)
                watch_program(m, p);
}

void manager_watch_backends(Manager *m) {
        watch_all(m);
        probe_all(m);
        check_ready(m);
}

void manager_free_backends(Manager *m) {
        for (Backend b = 0; b < _BACKEND_MAX; b++) {
                BackendInfo *i = &m->backends[b];

                launch_call_free(i->probe);
                sd_event_source_disable_unref(i->retry);
                free(i->path);
                free(i->version);
                free(i->reason);
        }
        unwatch(m);
}

/* Choosing */

/* What the definition asks of the back end, and of this host by way of it */
int manager_check_backend(Manager *m, const VMMOps *ops, const Definition *d, const FileHead *kernel, sd_bus_error *error) {
        const char *version = strempty(m->backends[ops->backend].version);
        int r;

        if (ops->needs_vhost_vsock && d->vsock && m->no_vhost_vsock) {
                (void) sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                         "vsock: %s needs /dev/vhost-vsock, which can't be opened here; try modprobe vhost_vsock, "
                                         "or another back end", ops->title);
                return -EOPNOTSUPP;
        }
        r = ops->check(d, version, error);
        if (r < 0 || !kernel || !ops->check_kernel)
                return r;
        return ops->check_kernel(d, version, kernel, error);
}

static const VMMOps *listed(char *name) {
        Backend b = backend_from_string(name);

        return (int) b >= 0 ? vmm_ops(b) : NULL;
}

static size_t n_features(const VMMOps *ops) {
        size_t n = 0;

        while (ops->features[n].name)
                n++;
        return n;
}

static int check_any(Manager *m, const Definition *d, const FileHead *kernel, sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error first = SD_BUS_ERROR_NULL;
        size_t most = 0;
        int r, result = 0;

        STRV_FOREACH(name, m->config->backends) {
                _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
                const VMMOps *ops = listed(*name);

                r = ops ? manager_check_backend(m, ops, d, kernel, &e) : 0;
                if (ops && r >= 0)
                        return 0;
                /* What that one lacks that can do the most says most. */
                if (ops && n_features(ops) > most) {
                        most = n_features(ops);
                        result = r;
                        sd_bus_error_free(&first);
                        (void) sd_bus_error_move(&first, &e);
                }
        }
        if (error)
                (void) sd_bus_error_move(error, &first);
        return result;
}

static int check_definition(Manager *m, const Definition *d, const FileHead *kernel, sd_bus_error *error) {
        const VMMOps *ops;

        if (d->backend == BACKEND_AUTO)
                return check_any(m, d, kernel, error);
        ops = vmm_ops(d->backend);
        if (!ops)
                return sd_bus_error_setf(error, VMUNIT_ERROR_NOT_SUPPORTED,
                                         "backend: this vmunitd has no support for %s; use \"qemu\" or \"auto\"",
                                         backend_to_string(d->backend));
        return manager_check_backend(m, ops, d, kernel, error);
}

int manager_check_definition(Manager *m, const Definition *d, sd_bus_error *error) {
        return check_definition(m, d, NULL, error);
}

/* The first usable one of the list that can do it. */
static const VMMOps *first_usable(Manager *m, const Definition *d, const FileHead *kernel) {
        STRV_FOREACH(name, m->config->backends) {
                const VMMOps *ops = listed(*name);

                if (ops && m->backends[ops->backend].usable && manager_check_backend(m, ops, d, kernel, NULL) >= 0)
                        return ops;
        }
        return NULL;
}

int manager_choose_backend(Manager *m, const Definition *d, const FileHead *kernel, const VMMOps **ret, sd_bus_error *error) {
        const VMMOps *ops;
        int r;

        r = check_definition(m, d, kernel, error);
        if (r < 0)
                return r;

        ops = d->backend == BACKEND_AUTO ? first_usable(m, d, kernel) : vmm_ops(d->backend);
        if (!ops) {
                probe_all(m); /* KVM may be here by now; the next try knows */
                sd_bus_error_setf(error, VMUNIT_ERROR_BACKEND_UNAVAILABLE,
                                  "No back end is usable that can do this; the property Backends says why");
                return -ENODEV;
        }
        *ret = ops;
        return 0;
}

bool manager_looks_at_kernel(Manager *m, const Definition *d) {
        if (!d->kernel)
                return false;
        if (d->backend != BACKEND_AUTO)
                return vmm_ops(d->backend) && vmm_ops(d->backend)->check_kernel;
        STRV_FOREACH(name, m->config->backends)
                if (listed(*name) && listed(*name)->check_kernel && m->backends[listed(*name)->backend].usable)
                        return true;
        return false;
}
