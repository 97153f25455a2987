/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share.h"
#include "core/start-private.h"
#include "vmm/virtiofsd-plan.h"

/* The start of a virtiofsd, from one answer to the next: the directory opened as its owner, the parent launched, the scope, the process,
 * and its first answer. Those of a VM run at the same time, and beside the VMM's own. */

#define CONSOLE_LOG_MAX (64U * 1024U)
#define LAST_WORDS_MAX 1024U

/* vhost-user: docs/interop/vhost-user.rst of QEMU. The first message of each VMM, which changes nothing */
#define GET_FEATURES 1U
#define VERSION_1 1U
#define IS_REPLY (1U << 2)

typedef struct VhostMessage {
        uint32_t request, flags, size;
        uint64_t features;
} __attribute__((__packed__)) VhostMessage;

struct ShareStart {
        Share *share;
        LaunchCall *probe, *open;
        SystemdCall *scope;
        Helper *helper;
        char *description, **argv;
        int dir_fd, control_fd, exec_fd, exit_fd, console_fd, output_fd, listen_fd, client_fd;
        ShareRequest request;
        bool version_known, opened;
        bool abandoned;                 /* but PID 1 is still to say whether there is a scope */
        sd_event_source *answer;
        VhostMessage message;
        size_t n_message;
};

ShareStart *share_start_free(ShareStart *s) {
        if (!s)
                return NULL;

        launch_call_free(s->probe);
        launch_call_free(s->open);
        systemd_call_free(s->scope);
        helper_free(s->helper); /* without GO it exits, and its child with it */
        sd_event_source_disable_unref(s->answer);
        close_many((int[]) { s->dir_fd, s->control_fd, s->exec_fd, s->exit_fd, s->console_fd, s->output_fd, s->listen_fd,
                             s->client_fd }, 8);
        free(s->description);
        strv_free(s->argv);
        free(s);
        return NULL;
}

/* Else PID 1 would make the scope when all is thought to be over. */
bool share_start_abandon(Share *share) {
        ShareStart *s = share->start;

        if (s && share->run && share->run->helper_pidfd < 0) /* its answer would come to nobody */
                share->run->launch = launch_call_free(share->run->launch);
        if (!s || !s->scope) {
                share->start = share_start_free(s);
                return false;
        }
        s->abandoned = true;
        s->helper = helper_free(s->helper);
        run_kill(share->run);
        return true;
}

int share_client_fd(const Share *share) {
        return share->start ? share->start->client_fd : -EBADF;
}

static void fail(ShareStart *s, int error, const char *what) {
        const char *name = error == -ENOSPC || error == -EDQUOT ? VMUNIT_ERROR_NO_SPACE : VMUNIT_ERROR_BACKEND_FAILED;

        share_failed(s->share, error, name, "%s: %s", what, strerror(-error));
}

/* The last words of virtiofsd are for the caller alone, as a VMM's are. */
void share_start_died(Share *share) {
        _cleanup_free_ char *path = strjoinf("%s/last-output", share->dir), *words = NULL, *text = NULL;
        size_t n;

        if (path && ring_read(path, LAST_WORDS_MAX, &words, &n) >= 0)
                text = escape_untrusted(words, n, LAST_WORDS_MAX);
        share_failed(share, -EIO, VMUNIT_ERROR_BACKEND_FAILED, "its virtiofsd has ended while it started%s%s", isempty(text) ? "" : ": ",
                     strempty(text));
}

/* Its answer */

static bool is_answer(const VhostMessage *m) {
        return le32toh(m->request) == GET_FEATURES && (le32toh(m->flags) & IS_REPLY) && le32toh(m->size) == sizeof(m->features);
}

static int on_answer(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        ShareStart *s = userdata;
        ssize_t n;

        n = read(fd, (char *) &s->message + s->n_message, sizeof(s->message) - s->n_message);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n <= 0) { /* its end tells more */
                s->answer = sd_event_source_disable_unref(s->answer);
                return 0;
        }
        s->n_message += (size_t) n;
        if (s->n_message < sizeof(s->message))
                return 0;
        if (is_answer(&s->message))
                share_is_ready(s->share);
        else
                fail(s, -EBADMSG, "its virtiofsd does not speak vhost-user");
        return 0;
}

/* Said before the VMM has the connection, for whom it makes no difference. */
static int ask(ShareStart *s) {
        const VhostMessage m = { .request = htole32(GET_FEATURES), .flags = htole32(VERSION_1) };

        if (send(s->client_fd, &m, offsetof(VhostMessage, features), MSG_NOSIGNAL) != offsetof(VhostMessage, features))
                return -errno;
        return sd_event_add_io(s->share->vm->manager->event, &s->answer, s->client_fd, EPOLLIN, on_answer, s);
}

static void executed(ShareStart *s) {
        int r = 0;

        r = FAULT_POINT("share.ready", FAULT_FAILS | FAULT_HANGS | FAULT_VMM, s->share->run->pid);
        if (r == FAULT_HANG)
                return;
        if (r == 0 && s->client_fd >= 0)
                r = ask(s);
        if (r < 0)
                fail(s, r, "its virtiofsd can't be asked");
        else if (s->client_fd < 0)
                share_is_ready(s->share);
}

/* Its process */

static int go(ShareStart *s) {
        Run *run = s->share->run;
        int r;

        r = run_check_cgroup(run, run->pid);
        if (r >= 0)
                r = FAULT_POINT("share.run-file", FAULT_FAILS | FAULT_VMM, run->pid);
        if (r >= 0)
                r = run_write_file(run, s->share->vm->manager->boot_id);
        if (r >= 0)
                r = FAULT_POINT("share.go", FAULT_FAILS | FAULT_VMM, run->pid);
        return r < 0 ? r : helper_go(s->helper);
}

static void on_helper_event(void *userdata, const ExecEvent *ev, int pidfd, int error) {
        ShareStart *s = userdata;
        int r;

        if (!ev) {
                fail(s, error, "its virtiofsd's parent has died");
                return;
        }
        switch (ev->type) {
        case EXEC_FORKED:
                r = run_set_vmm(s->share->run, ev->pid, pidfd);
                if (r >= 0)
                        r = go(s);
                if (r < 0)
                        fail(s, r, "its virtiofsd can't be started");
                break;
        case EXEC_DONE:
                s->helper = helper_free(s->helper);
                s->share->run->launch = launch_call_free(s->share->run->launch); /* PID 1 has its process */
                executed(s);
                break;
        default:
                share_failed(s->share, ev->error, VMUNIT_ERROR_BACKEND_FAILED, "can't execute virtiofsd: %s: %s", ev->stage,
                             strerror(-ev->error));
        }
}

/* Its scope */

static void on_scope(void *userdata, const sd_bus_error *error) {
        ShareStart *s = userdata;
        Run *run = s->share->run;
        int r;

        s->scope = systemd_call_free(s->scope);
        if (s->abandoned) {
                Share *share = s->share;

                share->start = share_start_free(s);
                run_end(share->run);
                return;
        }
        if (error) {
                start_scope_refused(s->share->vm, run, error);
                share_failed(s->share, -EIO, VMUNIT_ERROR_BACKEND_FAILED, "systemd does not start its scope: %s",
                             error->message ?: error->name);
                return;
        }
        r = run->helper_dead ? -ESRCH : run_check_cgroup(run, run->helper_pid);
        if (r >= 0)
                r = run_set_in_scope(run);
        if (r >= 0)
                r = FAULT_POINT("share.fork", FAULT_FAILS, 0);
        if (r >= 0)
                r = helper_fork(s->helper);
        if (r < 0)
                fail(s, r, "its virtiofsd's parent is not in its scope");
}

static int ask_for_scope(ShareStart *s) {
        Share *share = s->share;
        int r;

        s->description = strjoinf("Share %s of virtual machine %s", share->tag, share->vm->rec.name);
        if (!s->description)
                return -ENOMEM;
        r = FAULT_POINT("share.scope", FAULT_FAILS | FAULT_HANGS, 0);
        if (r != 0)
                return MIN(r, 0);
        share->run->in_scope = true;
        return vm_start_scope(share->vm, share->run, s->description, on_scope, s, &s->scope);
}

static void on_launched(void *userdata, int error, pid_t pid, int pidfd) {
        ShareStart *s = userdata;
        int r;

        s->control_fd = safe_close(s->control_fd);
        s->listen_fd = safe_close(s->listen_fd);
        if (error == -EMEDIUMTYPE) {
                share_failed(s->share, error, VMUNIT_ERROR_BACKEND_FAILED,
                             "source: its file system knows no idmapped mounts, which keep the files' owners; ext4, xfs, btrfs and tmpfs do");
                return;
        }
        if (error == -EUSERS) {
                share_failed(s->share, error, VMUNIT_ERROR_BACKEND_FAILED,
                             "its virtiofsd needs a user namespace, and this host makes none (user.max_user_namespaces=)");
                return;
        }
        r = error < 0 ? error : run_set_helper(s->share->run, pid, pidfd);
        if (r >= 0)
                r = ask_for_scope(s);
        if (r < 0)
                fail(s, r, "its virtiofsd's parent can't be started");
}

/* Its parent */

static int launch(ShareStart *s) {
        Share *share = s->share;
        Manager *m = share->vm->manager;
        int fds[] = { s->dir_fd, s->listen_fd }, r;

        r = share_new_run(share);
        if (r < 0)
                return r;
        r = FAULT_POINT("share.launch", FAULT_FAILS | FAULT_HANGS, 0);
        if (r != 0)
                return MIN(r, 0);
        r = helper_new(m->event, on_helper_event, s, &s->helper, &s->control_fd);
        if (r < 0)
                return r;

        const StartParams p = {
                .program = PROGRAM_VIRTIOFSD,
                .kind = START_SHARE,
                .argv = s->argv,
                .helper_fds = {
                        [HELPER_FD_CONTROL] = s->control_fd,
                        [HELPER_FD_EXEC] = s->exec_fd,
                        [HELPER_FD_EXIT] = s->exit_fd,
                        [HELPER_FD_CONSOLE_LOG] = s->console_fd,
                        [HELPER_FD_LAST_OUTPUT] = s->output_fd,
                },
                .fds = fds,
                .n_fds = ELEMENTSOF(fds),
                .console_log_max = CONSOLE_LOG_MAX,
                .share = s->request,
        };
        return launch_start(m->event, &p, LAUNCHER_TIMEOUT_USEC, on_launched, s, &share->run->launch);
}

static int make_argv(ShareStart *s) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        const VM *vm = s->share->vm;
        VirtiofsdVersion version;
        int r;

        if (!virtiofsd_parse_version(vm->manager->virtiofsd_version, &version)) {
                share_failed(s->share, -EINVAL, VMUNIT_ERROR_BACKEND_UNAVAILABLE, "virtiofsd can't be used: it says that it is \"%s\"",
                             vm->manager->virtiofsd_version);
                return -EINVAL;
        }
        r = virtiofsd_plan(vm->definition->filesystems + s->share->index, &version, VMM_FD_FIRST, &s->argv, &e);
        if (r < 0)
                share_failed(s->share, r, e.name ?: VMUNIT_ERROR_BACKEND_FAILED, "%s", e.message ?: strerror(-r));
        return r;
}

/* Both are there: the directory and what is known of the program. */
static void prepared(ShareStart *s) {
        int r;

        if (!s->opened || !s->version_known || make_argv(s) < 0)
                return;
        r = launch(s);
        if (r < 0)
                fail(s, r, "its virtiofsd's parent can't be launched");
}

static void on_opened(void *userdata, int error, int fd, const OpenReply *reply) {
        ShareStart *s = userdata;
        Share *share = s->share;
        const VM *vm = share->vm;

        s->open = launch_call_free(s->open);
        s->dir_fd = fd;
        if (error < 0) {
                char why[128];

                vm_describe_open(vm, error, why, sizeof(why));
                share_failed(share, error, VMUNIT_ERROR_BACKEND_FAILED, "source: can't open %s: %s",
                             vm->definition->filesystems[share->index].source, why);
                return;
        }
        if (vm->rec.owner == 0)
                s->request = (ShareRequest) { .base = VM_IDS_BASE + SHARE_IDS, .count = SHARE_IDS };
        else
                s->request = (ShareRequest) { .base = vm_share_id(vm), .count = 1, .uid = vm->rec.owner, .gid = reply->gid };
        s->request.readonly = vm->definition->filesystems[share->index].readonly;
        s->opened = true;
        prepared(s);
}

/* 1: that was its version; 0: what is known of it holds; -ESTALE: that is another one's, so ask */
static int take_version(Manager *m, const ProbeReply *reply) {
        int r;

        if (!reply->version[0])
                return m->virtiofsd_version && m->virtiofsd_mtime == reply->mtime_usec ? 0 : -ESTALE;
        r = free_and_strdup(&m->virtiofsd_version, reply->version);
        if (r < 0)
                return r;
        m->virtiofsd_mtime = reply->mtime_usec;
        return 1;
}

static void on_manager_probed(void *userdata, int error, const ProbeReply *reply) {
        Manager *m = userdata;

        m->virtiofsd_probe = launch_call_free(m->virtiofsd_probe);
        m->virtiofsd_missing = error == -ENOENT;
        if (error >= 0)
                (void) take_version(m, reply);
}

void shares_probe(Manager *m) {
        m->virtiofsd_probe = launch_call_free(m->virtiofsd_probe); /* what it would tell may be old */
        (void) launch_probe(m->event, PROGRAM_VIRTIOFSD, true, LAUNCHER_TIMEOUT_USEC, on_manager_probed, m, &m->virtiofsd_probe);
}

static void on_probed(void *userdata, int error, const ProbeReply *reply) {
        ShareStart *s = userdata;
        Manager *m = s->share->vm->manager;
        int r;

        s->probe = launch_call_free(s->probe);
        m->virtiofsd_missing = error == -ENOENT;
        if (error < 0) {
                share_failed(s->share, error, VMUNIT_ERROR_BACKEND_UNAVAILABLE, "virtiofsd can't be used: %s; see VirtioFSD= in vmunit.conf(5)",
                             error == -ENOENT ? "it was not found" : strerror(-error));
                return;
        }
        r = take_version(m, reply);
        if (r == -ESTALE)
                r = launch_probe(m->event, PROGRAM_VIRTIOFSD, true, LAUNCHER_TIMEOUT_USEC, on_probed, s, &s->probe);
        if (r < 0)
                fail(s, r, "can't find out the version of virtiofsd");
        if (r < 0 || s->probe)
                return;
        s->version_known = true;
        prepared(s);
}

/* Its files */

static int make_in(Share *share, const char *name, int (*make)(const char *path)) {
        _cleanup_free_ char *path = strjoinf("%s/%s", share->dir, name);

        return path ? make(path) : -ENOMEM;
}

static int make_exec_socket(const char *path) {
        return unix_listen(path, SOCK_SEQPACKET);
}

/* The C virtiofsd takes EAGAIN for an error. */
static int make_socket(const char *path) {
        int fd = unix_listen(path, SOCK_STREAM);

        if (fd >= 0)
                (void) fcntl(fd, F_SETFL, 0);
        return fd;
}

static int connect_client(const char *path) {
        return unix_connect(path, SOCK_STREAM);
}

static int make_files(ShareStart *s) {
        Share *share = s->share;
        int r;

        r = FAULT_POINT("share.files", FAULT_FAILS, 0);
        if (r >= 0)
                r = mkdir_ok(share->dir, 0700); /* never without it: by that a daemon that comes back knows of the share */
        if (r >= 0)
                r = rm_content(share->dir);
        if (r >= 0)
                r = s->exit_fd = make_in(share, "exit", create_fresh);
        if (r >= 0)
                r = s->console_fd = make_in(share, "console.log", create_fresh);
        if (r >= 0)
                r = s->output_fd = make_in(share, "last-output", create_fresh);
        if (r >= 0)
                r = s->exec_fd = make_in(share, "exec", make_exec_socket);
        if (r >= 0)
                r = s->listen_fd = make_in(share, "socket", make_socket);
        if (r >= 0 && !share->vm->ops->connects_shares)
                r = s->client_fd = make_in(share, "socket", connect_client);
        return MIN(r, 0);
}

static int begin(ShareStart *s) {
        Share *share = s->share;
        VM *vm = share->vm;
        sd_event *e = vm->manager->event;
        int r;

        r = make_files(s);
        if (r >= 0)
                r = launch_open(e, vm->definition->filesystems[share->index].source, vm->rec.owner, LAUNCH_OPEN_DIRECTORY,
                                LAUNCHER_TIMEOUT_USEC, on_opened, s, &s->open);
        if (r >= 0)
                r = launch_probe(e, PROGRAM_VIRTIOFSD, !vm->manager->virtiofsd_version, LAUNCHER_TIMEOUT_USEC, on_probed, s, &s->probe);
        return r;
}

int share_begin(Share *share) {
        ShareStart *s;

        s = new(ShareStart, 1);
        if (!s)
                return -ENOMEM;
        *s = (ShareStart) {
                .share = share,
                .dir_fd = -EBADF,
                .control_fd = -EBADF,
                .exec_fd = -EBADF,
                .exit_fd = -EBADF,
                .console_fd = -EBADF,
                .output_fd = -EBADF,
                .listen_fd = -EBADF,
                .client_fd = -EBADF,
        };
        share->ready = false;
        share->start = s;
        return begin(s);
}

int shares_begin(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                int r = share_begin(vm->shares + i);

                if (r < 0)
                        return start_error(vm->start, r, VMUNIT_ERROR_BACKEND_FAILED, "filesystems[%zu] (%s): can't make its files: %s", i,
                                           vm->shares[i].tag, strerror(-r));
        }
        return 0;
}
