/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/socket.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share-internal.h"
#include "core/start-private.h"

/* The start of a VMM's companion, from one answer to the next: what it is given, the parent launched, the scope, the process, and its
 * first answer. Those of a VM run at the same time, and beside the VMM's own. */

#define CONSOLE_LOG_MAX (64U * 1024U)
#define LAST_WORDS_MAX 1024U

ShareStart *share_start_free(ShareStart *s) {
        if (!s)
                return NULL;

        launch_call_free(s->probe);
        launch_call_free(s->open);
        systemd_call_free(s->scope);
        helper_free(s->helper); /* without GO it exits, and its child with it */
        sd_event_source_disable_unref(s->answer);
        close_many((int[]) { s->control_fd, s->exec_fd, s->exit_fd, s->console_fd, s->output_fd, s->vmm_fd, s->ready_fd }, 7);
        close_many(s->fds, SHARE_FDS_MAX);
        free(s->description);
        strv_free(s->argv);
        free(s);
        return NULL;
}

/* Else PID 1 would make the scope when all is thought to be over. */
bool share_start_abandon(Share *share) {
        ShareStart *s = share->start;

        if (s && share->run)
                run_forget_launch(share->run);
        if (!s || !s->scope) {
                share->start = share_start_free(s);
                return false;
        }
        s->abandoned = true;
        s->helper = helper_free(s->helper);
        run_kill(share->run);
        return true;
}

int share_vmm_fd(const Share *share) {
        return share->start ? share->start->vmm_fd : -EBADF;
}

static CompanionInfo *info_of(const ShareStart *s) {
        return &s->share->vm->manager->companions[s->share->kind->program];
}

void share_start_failed(ShareStart *s, int error, const char *what) {
        const char *name = error == -ENOSPC || error == -EDQUOT ? VMUNIT_ERROR_NO_SPACE : VMUNIT_ERROR_BACKEND_FAILED;

        share_failed(s->share, error, name, "its %s%s: %s", s->share->kind->program_name, what, strerror(-error));
}

/* Its last words are for the caller alone, as a VMM's are. */
void share_start_died(Share *share) {
        _cleanup_free_ char *path = strjoinf("%s/last-output", share->dir), *words = NULL, *text = NULL;
        size_t n;

        if (path && ring_read(path, LAST_WORDS_MAX, &words, &n) >= 0)
                text = escape_untrusted(words, n, LAST_WORDS_MAX);
        share_failed(share, -EIO, VMUNIT_ERROR_BACKEND_FAILED, "its %s has ended while it started%s%s", share->kind->program_name,
                     isempty(text) ? "" : ": ",
                     strempty(text));
}

static void executed(ShareStart *s) {
        int r;

        r = FAULT_POINT("share.ready", FAULT_FAILS | FAULT_HANGS | FAULT_VMM, s->share->run->pid);
        if (r == FAULT_HANG)
                return;
        if (r == 0)
                r = s->share->kind->ask(s);
        if (r < 0)
                share_start_failed(s, r, " can't be asked");
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
        if (r >= 0 && s->share->kind->show)
                r = s->share->kind->show(s);
        return r < 0 ? r : helper_go(s->helper);
}

static void on_helper_event(void *userdata, const ExecEvent *ev, int pidfd, int error) {
        ShareStart *s = userdata;
        int r;

        if (!ev) {
                share_start_failed(s, error, "'s parent has died");
                return;
        }
        switch (ev->type) {
        case EXEC_FORKED:
                r = run_set_vmm(s->share->run, ev->pid, pidfd);
                if (r >= 0)
                        r = go(s);
                if (r < 0)
                        share_start_failed(s, r, " can't be started");
                break;
        case EXEC_DONE:
                s->helper = helper_free(s->helper);
                s->share->run->launch = launch_call_free(s->share->run->launch); /* PID 1 has its process */
                executed(s);
                break;
        default:
                share_failed(s->share, ev->error, VMUNIT_ERROR_BACKEND_FAILED, "can't execute %s: %s: %s",
                             s->share->kind->program_name, ev->stage, strerror(-ev->error));
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
                share_start_failed(s, r, "'s parent is not in its scope");
}

static int ask_for_scope(ShareStart *s) {
        Share *share = s->share;
        int r;

        s->description = strjoinf("%s %s of virtual machine %s", share->kind->title, share->tag, share->vm->rec.name);
        if (!s->description)
                return -ENOMEM;
        r = FAULT_POINT("share.scope", FAULT_FAILS | FAULT_HANGS, 0);
        if (r != 0)
                return MIN(r, 0);
        share->run->in_scope = true;
        return vm_start_scope(share->vm, share->run, s->description, on_scope, s, &s->scope);
}

static void on_launched(void *userdata, int error, pid_t pid, int pidfd, uint32_t which) {
        ShareStart *s = userdata;
        const char *why;
        int r;

        s->control_fd = safe_close(s->control_fd);
        for (size_t i = 0; i < SHARE_FDS_MAX; i++)
                s->fds[i] = safe_close(s->fds[i]);
        why = error < 0 && s->share->kind->describe ? s->share->kind->describe(error) : NULL;
        if (why) {
                share_failed(s->share, error, VMUNIT_ERROR_BACKEND_FAILED, "%s", why);
                return;
        }
        r = error < 0 ? error : run_set_helper(s->share->run, pid, pidfd);
        if (r >= 0)
                r = ask_for_scope(s);
        if (r < 0)
                share_start_failed(s, r, "'s parent can't be started");
}

/* Its parent */

static int launch(ShareStart *s) {
        Share *share = s->share;
        Manager *m = share->vm->manager;
        int r;

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
                .program = share->kind->program,
                .kind = share->kind->start,
                .argv = s->argv,
                .helper_fds = {
                        [HELPER_FD_CONTROL] = s->control_fd,
                        [HELPER_FD_EXEC] = s->exec_fd,
                        [HELPER_FD_EXIT] = s->exit_fd,
                        [HELPER_FD_CONSOLE_LOG] = s->console_fd,
                        [HELPER_FD_LAST_OUTPUT] = s->output_fd,
                },
                .fds = s->fds,
                .n_fds = share->kind->n_fds,
                .console_log_max = CONSOLE_LOG_MAX,
                .share = s->request,
                .network = s->network,
        };
        return launch_start(m->event, &p, LAUNCHER_TIMEOUT_USEC, on_launched, s, &share->run->launch);
}

/* Both are there: what it is given, and what is known of the program. */
void share_prepared(ShareStart *s) {
        int r;

        if (!s->opened || !s->version_known || s->share->kind->plan(s, info_of(s)->version) < 0)
                return;
        r = launch(s);
        if (r < 0)
                share_start_failed(s, r, "'s parent can't be launched");
}

/* 1: that was its version; 0: what is known of it holds; -ESTALE: that is another one's, so ask */
static int take_version(CompanionInfo *info, const ProbeReply *reply) {
        int r;

        if (!reply->version[0])
                return info->version && info->mtime_usec == reply->mtime_usec ? 0 : -ESTALE;
        r = free_and_strdup(&info->version, reply->version);
        if (r < 0)
                return r;
        info->mtime_usec = reply->mtime_usec;
        return 1;
}

static void on_manager_probed(void *userdata, int error, const ProbeReply *reply) {
        CompanionInfo *info = userdata;

        info->probe = launch_call_free(info->probe);
        info->missing = error == -ENOENT;
        if (error >= 0)
                (void) take_version(info, reply);
}

void shares_probe(Manager *m) {
        for (Program p = _PROGRAM_COMPANIONS; p < _PROGRAM_MAX; p++) {
                CompanionInfo *info = &m->companions[p];

                info->probe = launch_call_free(info->probe); /* what it would tell may be old */
                (void) launch_probe(m->event, p, true, LAUNCHER_TIMEOUT_USEC, on_manager_probed, info, &info->probe);
        }
}

static void on_probed(void *userdata, int error, const ProbeReply *reply) {
        ShareStart *s = userdata;
        const ShareKind *k = s->share->kind;
        int r;

        s->probe = launch_call_free(s->probe);
        info_of(s)->missing = error == -ENOENT;
        if (error < 0) {
                share_failed(s->share, error, error == -ENOENT ? VMUNIT_ERROR_NOT_SUPPORTED : VMUNIT_ERROR_BACKEND_UNAVAILABLE,
                             "%s can't be used: %s; see %s= in vmunit.conf(5)", k->program_name,
                             error == -ENOENT ? "it was not found" : strerror(-error), k->setting);
                return;
        }
        r = take_version(info_of(s), reply);
        if (r == -ESTALE)
                r = launch_probe(s->share->vm->manager->event, k->program, true, LAUNCHER_TIMEOUT_USEC, on_probed, s, &s->probe);
        if (r < 0)
                share_start_failed(s, r, " does not tell its version");
        if (r < 0 || s->probe)
                return;
        s->version_known = true;
        share_prepared(s);
}

/* Its files */

int share_make_file(Share *share, const char *name, int (*make)(const char *path)) {
        _cleanup_free_ char *path = strjoinf("%s/%s", share->dir, name);

        return path ? make(path) : -ENOMEM;
}

static int make_exec_socket(const char *path) {
        return unix_listen(path, SOCK_SEQPACKET);
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
                r = s->exit_fd = share_make_file(share, "exit", create_fresh);
        if (r >= 0)
                r = s->console_fd = share_make_file(share, "console.log", create_fresh);
        if (r >= 0)
                r = s->output_fd = share_make_file(share, "last-output", create_fresh);
        if (r >= 0)
                r = s->exec_fd = share_make_file(share, "exec", make_exec_socket);
        if (r >= 0)
                r = share->kind->make_files(s);
        return MIN(r, 0);
}

static int begin(ShareStart *s) {
        const ShareKind *k = s->share->kind;
        int r;

        r = make_files(s);
        if (r >= 0)
                r = k->open(s);
        if (r >= 0)
                r = launch_probe(s->share->vm->manager->event, k->program, !info_of(s)->version, LAUNCHER_TIMEOUT_USEC, on_probed, s, &s->probe);
        return r;
}

int share_begin(Share *share) {
        ShareStart *s;

        s = new(ShareStart, 1);
        if (!s)
                return -ENOMEM;
        *s = (ShareStart) {
                .share = share,
                .control_fd = -EBADF,
                .exec_fd = -EBADF,
                .exit_fd = -EBADF,
                .console_fd = -EBADF,
                .output_fd = -EBADF,
                .fds = { -EBADF, -EBADF, -EBADF },
                .vmm_fd = -EBADF,
                .ready_fd = -EBADF,
        };
        share->ready = share->failed = false;
        share->start = s;
        return begin(s);
}

int shares_begin(VM *vm) {
        for (size_t i = 0; i < vm->n_shares; i++) {
                int r = share_begin(vm->shares + i);

                if (r < 0)
                        return start_error(vm->start, r, VMUNIT_ERROR_BACKEND_FAILED, "%s[%u] (%s): can't make its files: %s",
                                           vm->shares[i].kind->list, vm->shares[i].index, vm->shares[i].tag, strerror(-r));
        }
        return 0;
}
