/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share.h"
#include "core/start-private.h"

/* The steps of a start and their undos, in their order. */

#define VERSION_TIMEOUT_USEC (10 * USEC_PER_SEC) /* the launcher's own is 5 */

/* clear: what is left of the last run */

/* Of which nothing is known: there may be units of their names. */
static int clear_shares(VM *vm) {
        int r;

        r = shares_prepare(vm);
        for (size_t i = 0; r >= 0 && i < vm->n_shares; i++)
                r = share_new_run(vm->shares + i);
        return r;
}

static int step_clear(Start *s) {
        VM *vm = s->vm;
        int r;

        if (!vm->run) {
                if (vm->clean && !vm->slice_left)
                        return STEP_DONE;
                r = vm_new_run(vm);
                if (r >= 0)
                        r = clear_shares(vm);
                if (r < 0)
                        return start_errno(s, r, "can't clear what is left of the last run");
                vm->run->status_told = true;
        }
        shares_end(vm);
        run_end(vm->run);
        return STEP_WAITS;
}

/* files: directories, logs and listening sockets, all made by the daemon */

/* Somebody may have deleted the directory above as well. */
static int make_dir(const char *path) {
        _cleanup_free_ char *above = strndup(path, (size_t) (strrchr(path, '/') - path));
        int r;

        r = mkdir_ok(path, 0700);
        if (r != -ENOENT)
                return r;
        r = above ? mkdir_ok(above, 0700) : -ENOMEM;
        return r < 0 ? r : mkdir_ok(path, 0700);
}

static int create_in(const char *dir, const char *name) {
        _cleanup_free_ char *path = strjoinf("%s/%s", dir, name);

        return path ? create_fresh(path) : -ENOMEM;
}

/* The rings of a run take the place of the last run's when its VMM is about to execute: what that said may tell why a start fails. */
static const char *const rings[] = { "console.log", "last-output" };

static int place_rings(const VM *vm) {
        for (size_t i = 0; i < ELEMENTSOF(rings); i++) {
                _cleanup_free_ char *path = strjoinf("%s/%s", vm->state_dir, rings[i]);
                _cleanup_free_ char *new = strjoinf("%s/%s.new", vm->state_dir, rings[i]);

                if (!path || !new)
                        return -ENOMEM;
                if (rename(new, path) < 0)
                        return -errno;
        }
        return 0;
}

static void drop_rings(const VM *vm) {
        for (size_t i = 0; i < ELEMENTSOF(rings); i++) {
                _cleanup_free_ char *new = strjoinf("%s/%s.new", vm->state_dir, rings[i]);

                if (new)
                        (void) unlink(new);
        }
}

static int listen_in(const char *dir, const char *name, int type) {
        _cleanup_free_ char *path = strjoinf("%s/%s", dir, name);

        return path ? unix_listen(path, type) : -ENOMEM;
}

/* Both ends are the VMM's: it neither waits for a reader nor ends for want of one. Of one that is shown the directory is the guard. */
static int fifo_in(const char *dir, const char *name, bool shown) {
        _cleanup_free_ char *path = strjoinf("%s/%s", dir, name);
        int fd;

        if (!path)
                return -ENOMEM;
        if (mkfifo(path, 0600) < 0 || (shown && chmod(path, 0666) < 0))
                return -errno;
        fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);
        return fd < 0 ? -errno : fd;
}

/* What of it is there is for all, and nobody but the VMM that is shown it comes there. */
static int make_shares(const VM *vm) {
        _cleanup_free_ char *path = strjoinf("%s/" VMM_SHARES, vm->run_dir);

        if (!path)
                return -ENOMEM;
        return mkdir(path, 0711) < 0 || chmod(path, 0711) < 0 ? -errno : 0;
}

static int open_shares(const VM *vm) {
        _cleanup_free_ char *path = strjoinf("%s/" VMM_SHARES, vm->run_dir);
        int fd;

        if (!path)
                return -ENOMEM;
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

/* What the VMM is given beside the files of its definition; the configuration is not known yet. */
static int make_vmm_fd(Start *s, size_t i) {
        VM *vm = s->vm;

        switch (s->plan->fds[i].type) {
        case LAUNCH_FD_API:
                return s->opens[i].fd = listen_in(vm->run_dir, vm->ops->socket, SOCK_STREAM);
        case LAUNCH_FD_EVENTS:
                return s->opens[i].fd = fifo_in(vm->run_dir, VMM_EVENTS, s->plan->fds[i].shown);
        case LAUNCH_FD_SHARES:
                return s->opens[i].fd = open_shares(vm);
        case LAUNCH_FD_SHARE:
        case LAUNCH_FD_NETWORK:
                return s->opens[i].fd = fcntl(share_vmm_fd(vm->shares + s->n_share_fds++), F_DUPFD_CLOEXEC, 3);
        default:
                return 0;
        }
}

static int begin_shares(Start *s) {
        VM *vm = s->vm;
        int r;

        r = shares_prepare(vm);
        if (r < 0 || vm->n_shares == 0)
                return r;
        r = vm->ops->connects_shares ? make_shares(vm) : 0;
        if (r < 0)
                return r;
        r = vm_new_run(vm); /* which waits for theirs, should they fail */
        return r < 0 ? r : shares_begin(vm);
}

static int make_files(Start *s) {
        VM *vm = s->vm;
        int r;

        r = rm_rf(vm->run_dir);
        if (r >= 0)
                r = make_dir(vm->run_dir);
        if (r >= 0)
                r = make_dir(vm->state_dir);
        if (r >= 0)
                r = s->exit_fd = create_in(vm->run_dir, "exit");
        if (r >= 0)
                r = s->console_fd = create_in(vm->state_dir, "console.log.new");
        if (r >= 0)
                r = s->output_fd = create_in(vm->state_dir, "last-output.new");
        if (r >= 0)
                r = s->exec_fd = listen_in(vm->run_dir, "exec", SOCK_SEQPACKET);
        if (r >= 0)
                r = begin_shares(s);
        for (size_t i = 0; r >= 0 && i < s->n_fds; i++)
                r = make_vmm_fd(s, i);
        return r < 0 ? start_errno(s, r, "can't make its files") : STEP_DONE;
}

static int ask_launcher(Start *s);

/* The launcher has something to do meanwhile. */
static int step_files(Start *s) {
        int r = ask_launcher(s);

        return r < 0 ? r : make_files(s);
}

void start_undo_files(Start *s) {
        int *fds[] = { &s->exit_fd, &s->console_fd, &s->output_fd, &s->exec_fd, &s->control_fd };

        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                *fds[i] = safe_close(*fds[i]);
}

static void undo_asked_and_files(Start *s) {
        shares_end(s->vm);
        start_undo_open(s);
        start_undo_files(s);
        drop_rings(s->vm);
}

/* open: the files of the definition and the state of the devices, all at once */

static int make_plan(Start *s, bool looked) {
        VM *vm = s->vm;
        LaunchParams p = {
                .definition = vm->definition,
                .name = vm->rec.name,
                .id = vm->rec.id,
                .cid = vm_vsock_cid(vm),
                .kvm = s->kvm,
                .files = looked ? s->disk_files : NULL,
        };
        int r;

        s->plan = launch_plan_free(s->plan);
        r = vm->ops->plan(&p, &s->plan);
        return r < 0 ? start_errno(s, r, "can't make the VMM's command line") : 0;
}

static bool wants_kvm(const Start *s) {
        Accel accel = s->vm->definition->accel;

        return accel == ACCEL_KVM || (accel == ACCEL_AUTO && s->vm->manager->kvm);
}

/* "auto" chose when the kernel was not there, or was another one. Gives whether to begin anew. */
static bool chooses_again(Start *s) {
        VM *vm = s->vm;
        const VMMOps *ops;

        if (vm->definition->backend != BACKEND_AUTO || !s->kernel.data ||
            manager_choose_backend(vm->manager, vm->definition, &s->kernel, &ops, NULL) < 0 || ops == vm->ops)
                return false;
        return vm_change_backend(vm, ops) >= 0;
}

static int open_finished(Start *s) {
        const VM *vm = s->vm;
        int r;

        if (vm->definition->accel == ACCEL_KVM && !vm->manager->kvm)
                return start_error(s, -ENODEV, VMUNIT_ERROR_BACKEND_UNAVAILABLE,
                                   "accel: /dev/kvm can't be opened here; \"tcg\" runs without it, slowly");
        r = manager_check_backend(vm->manager, vm->ops, vm->definition, s->kernel.data ? &s->kernel : NULL, &s->error);
        if (r < 0) {
                s->again = r == -EOPNOTSUPP && chooses_again(s);
                return r;
        }
        s->kvm = wants_kvm(s);
        r = make_plan(s, true); /* once more, for it is known better now whether there is KVM, and what the disks are */
        return r < 0 ? r : start_take_images(s);
}

void start_file_opened(Start *s) {
        int r;

        if (--s->n_pending > 0 || s->failing)
                return;
        r = open_finished(s);
        if (r < 0)
                start_fail(s);
        else
                start_continue(s);
}

static int ask_version(Start *s);

/* What it can do depends on its version, which was never asked for, or of another program. */
static bool lacks_version(const Start *s, const ProbeReply *reply) {
        return s->vm->ops->version_min && !s->version_asked && !manager_knows_version(s->vm->manager, s->vm->ops->backend, reply);
}

static void on_probed(void *userdata, int error, const ProbeReply *reply) {
        Start *s = userdata;
        VM *vm = s->vm;

        s->probe = launch_call_free(s->probe);
        if (error >= 0 && lacks_version(s, reply) && ask_version(s) >= 0)
                return;
        manager_set_probed(vm->manager, vm->ops->backend, error, reply);
        if (error < 0 || !vm->manager->backends[vm->ops->backend].usable) {
                (void) start_error(s, error < 0 ? error : -ENODEV, VMUNIT_ERROR_BACKEND_UNAVAILABLE, "%s can't be used: %s",
                                   vm_backend_title(vm), vm->manager->backends[vm->ops->backend].reason);
                start_fail(s);
                return;
        }
        start_file_opened(s);
}

static int ask_version(Start *s) {
        s->version_asked = true;
        return launch_probe(s->vm->manager->event, s->vm->ops->program, true, VERSION_TIMEOUT_USEC, on_probed, s, &s->probe);
}

/* A disk's header may name other files. */
static int look_at_disk(Start *s, size_t i, const OpenReply *reply) {
        unsigned index;

        return sscanf(s->plan->fds[i].key, "disks[%u].path", &index) == 1 ? start_disk_opened(s, index, reply) : 1;
}

/* It is looked at when the version is known. */
static void keep_kernel(Start *s, size_t i, const OpenReply *reply) {
        if (!s->vm->ops->check_kernel || !streq(s->plan->fds[i].key, "boot.kernel"))
                return;
        s->kernel = (FileHead) { s->kernel_head, MIN((size_t) reply->head_size, sizeof(s->kernel_head)) };
        memcpy(s->kernel_head, reply->head, s->kernel.size);
}

static const char *open_error_sentence(int error) {
        switch (error) {
        case -EPIPE:
                return "the launcher has died";
        case -EAGAIN:
                return "somebody else has a lock on it";
        case -ETIMEDOUT:
                return "no answer in time from its file system, or from one with other files of the VM's owner";
        case -EBUSY:
                return "other files of the VM's owner are on a file system that does not answer";
        case -EREMOTE:
                return "it is on a FUSE file system that is not root's, for which vmunit could have to wait for ever";
        case -EMEDIUMTYPE:
                return "it is in /proc, where the launcher sees other things than the VM's owner";
        case -ELOOP:
                return "its symbolic links go round in circles, or it leads through a link of /proc";
        case -ESPIPE:
                return "it is a FIFO";
        case -ENXIO:
                return "it is a socket, or a device that is not there";
        case -ENOTBLK:
                return "it is a character device";
        default:
                return strerror(-error);
        }
}

void vm_describe_open(const VM *vm, int error, char *buf, size_t size) {
        if (error == -ESRCH)
                (void) snprintf(buf, size, "its owner, uid %" PRIu32 ", is no user of this host", (uint32_t) vm->rec.owner);
        else
                (void) snprintf(buf, size, "%s", open_error_sentence(error));
}

static void on_opened(void *userdata, int error, int fd, const OpenReply *reply) {
        OpenContext *c = userdata;
        Start *s = c->start;
        const LaunchFd *f = &s->plan->fds[c->index];
        int r;

        c->call = launch_call_free(c->call);
        c->fd = fd;
        if (error < 0) {
                char why[128];

                vm_describe_open(s->vm, error, why, sizeof(why));
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "%s: can't open %s: %s", f->key, f->path, why);
                start_fail(s);
                return;
        }
        if (S_ISBLK(reply->mode)) { /* which no FUSE has */
                struct stat st;

                c->device = fstat(fd, &st) < 0 ? 0 : st.st_rdev;
        }
        keep_kernel(s, c->index, reply);
        r = look_at_disk(s, c->index, reply);
        if (r < 0)
                start_fail(s);
        else if (r > 0)
                start_file_opened(s);
}

static int open_file(Start *s, size_t i) {
        const LaunchFd *f = &s->plan->fds[i];
        unsigned flags = (f->writable ? LAUNCH_OPEN_WRITE : 0) | (f->lock ? LAUNCH_OPEN_LOCK : 0);

        if (f->type != LAUNCH_FD_FILE)
                return 0;
        s->n_pending++;
        return launch_open(s->vm->manager->event, f->path, s->vm->rec.owner, flags, LAUNCHER_TIMEOUT_USEC, on_opened, &s->opens[i], &s->opens[i].call);
}

static int ask_launcher(Start *s) {
        VM *vm = s->vm;
        int r;

        s->kvm = wants_kvm(s);
        r = make_plan(s, false);
        if (r < 0)
                return r;

        s->opens = new(OpenContext, s->plan->n_fds + 1);
        if (!s->opens || start_new_disks(s) < 0)
                return start_errno(s, -ENOMEM, "can't start");
        s->n_fds = s->plan->n_fds;
        for (size_t i = 0; i < s->n_fds; i++)
                s->opens[i] = (OpenContext) { .start = s, .index = i, .fd = -EBADF };

        s->n_pending = 1;
        r = launch_probe(vm->manager->event, vm->ops->program, false, LAUNCHER_TIMEOUT_USEC, on_probed, s, &s->probe);
        for (size_t i = 0; r >= 0 && i < s->n_fds; i++)
                r = open_file(s, i);
        if (r < 0)
                return start_error(s, r, VMUNIT_ERROR_BACKEND_UNAVAILABLE,
                                   "can't reach the launcher: %s; see systemctl status vmunit-launch.socket", strerror(-r));
        return 0;
}

/* Its answers come from the loop, so none is there yet. */
static int step_open(Start *s) {
        return STEP_WAITS;
}

void start_undo_open(Start *s) {
        s->probe = launch_call_free(s->probe);
        for (size_t i = 0; i < s->n_fds; i++) {
                s->opens[i].call = launch_call_free(s->opens[i].call);
                s->opens[i].fd = safe_close(s->opens[i].fd);
        }
        start_undo_disks(s);
}

/* launch: the helper, which waits for us */

static void on_helper_event(void *userdata, const ExecEvent *ev, int pidfd, int error);

static int ask_for_loop(Start *s, uint32_t which);

static void on_launched(void *userdata, int error, pid_t pid, int pidfd, uint32_t which) {
        Start *s = userdata;
        int r;

        if (error == -EMEDIUMTYPE) {
                if (ask_for_loop(s, which) < 0)
                        start_fail(s);
                return;
        }
        if (error == -EBUSY && which < s->n_fds && s->plan->fds[which].key) {
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "%s: can't open %s: %s", s->plan->fds[which].key,
                                   s->plan->fds[which].path, open_error_sentence(-EAGAIN));
                start_fail(s);
                return;
        }
        if (error < 0) {
                start_failed(s, error, error == -EPIPE ? "the launcher has died" : "the launcher can't start the VMM's parent");
                return;
        }
        r = run_set_helper(s->vm->run, pid, pidfd);
        s->control_fd = safe_close(s->control_fd);
        if (r < 0)
                start_failed(s, r, "can't watch the VMM's parent");
        else
                start_continue(s);
}

static int list_vmm_fds(Start *s, int fds[static SCM_FDS_MAX]) {
        if (s->n_fds > SCM_FDS_MAX - _HELPER_FD_MAX)
                return start_error(s, -E2BIG, VMUNIT_ERROR_NOT_SUPPORTED, "disks: too many files for one VMM");

        for (size_t i = 0; i < s->n_fds; i++) {
                if (s->plan->fds[i].type == LAUNCH_FD_CONFIG && s->opens[i].fd < 0)
                        s->opens[i].fd = memfd_new("config", s->plan->config, strlen(s->plan->config));
                if (s->opens[i].fd < 0)
                        return start_errno(s, s->opens[i].fd, "can't pass the VMM its configuration");
                fds[i] = s->opens[i].fd;
        }
        return 0;
}

static int launch(Start *s);

static void on_loop(void *userdata, int error, int fd) {
        Start *s = userdata;
        OpenContext *c = s->opens + s->loop_index;
        struct stat st;
        int r;

        s->loop = launch_call_free(s->loop);
        if (error >= 0) {
                safe_close(c->fd);
                c->fd = fd;
                error = fstat(fd, &st) < 0 ? -errno : 0;
        }
        if (error < 0) {
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "%s: the file system of %s knows no idmapped mounts, "
                                   "and there is no loop device for it: %s", s->plan->fds[s->loop_index].key,
                                   s->plan->fds[s->loop_index].path, error == -EAGAIN ? open_error_sentence(error) : strerror(-error));
                start_fail(s);
                return;
        }
        r = FAULT_POINT("start.loop", FAULT_FAILS | FAULT_HANGS, 0);
        if (r < 0)
                start_failed(s, r, "can't have a loop device");
        if (r != 0)
                return;
        c->device = st.st_rdev;
        if (launch(s) < 0)
                start_fail(s);
}

/* For a file system that lets no other uid have its files: the image as a block device */
static int ask_for_loop(Start *s, uint32_t which) {
        const LaunchFd *f = s->plan->fds + which;
        unsigned disk;
        int r;

        start_undo_launch(s);
        s->control_fd = safe_close(s->control_fd);
        if (which >= s->n_fds || !f->key)
                return start_errno(s, -EBADMSG, "the launcher can't start the VMM's parent");
        if (sscanf(f->key, "disks[%u].path", &disk) != 1 || s->vm->definition->disks[disk].format != DISK_RAW)
                return start_error(s, -EMEDIUMTYPE, VMUNIT_ERROR_BACKEND_FAILED, "%s: the file system of %s knows no idmapped mounts, by "
                                   "which %s could have it; ext4, xfs, btrfs and tmpfs do, or use a raw image", f->key, f->path,
                                   vm_backend_title(s->vm));
        s->loop_index = which;
        r = launch_loop(s->vm->manager->event, s->opens[which].fd, !f->writable, LAUNCHER_TIMEOUT_USEC, on_loop, s, &s->loop);
        return r < 0 ? start_errno(s, r, "can't reach the launcher") : 0;
}

static int step_launch(Start *s) {
        return launch(s);
}

static int launch(Start *s) {
        VM *vm = s->vm;
        Manager *m = vm->manager;
        int vmm_fds[SCM_FDS_MAX];
        int r;

        r = vm->run ? 0 : vm_new_run(vm);
        if (r < 0)
                return start_errno(s, r, "can't start");

        r = helper_new(m->event, on_helper_event, s, &s->helper, &s->control_fd);
        if (r < 0)
                return start_errno(s, r, "can't start the VMM's parent");

        StartParams p = {
                .program = vm->ops->program,
                .kind = s->plan->tty ? START_TTY : START_PIPES,
                .argv = s->plan->argv,
                .helper_fds = {
                        [HELPER_FD_CONTROL] = s->control_fd,
                        [HELPER_FD_EXEC] = s->exec_fd,
                        [HELPER_FD_EXIT] = s->exit_fd,
                        [HELPER_FD_CONSOLE_LOG] = s->console_fd,
                        [HELPER_FD_LAST_OUTPUT] = s->output_fd,
                },
                .fds = vmm_fds,
                .n_fds = s->n_fds,
                .console_log_max = m->config->console_log_max,
                .vmm = { .id = vm_id(vm), .rights = s->plan->rights },
        };
        for (size_t i = 0; i < s->n_fds && i < VMM_FDS_MAX; i++)
                p.vmm.shown[i] = (char) (s->plan->fds[i].shown ?: EXEC_SHOWN_NOT);
        r = list_vmm_fds(s, vmm_fds);
        if (r < 0)
                return r;
        r = launch_start(m->event, &p, LAUNCHER_TIMEOUT_USEC, on_launched, s, &vm->run->launch);
        if (r < 0)
                return start_error(s, r, VMUNIT_ERROR_BACKEND_UNAVAILABLE,
                                   "can't reach the launcher: %s; see systemctl status vmunit-launch.socket", strerror(-r));
        return STEP_WAITS;
}

void start_undo_launch(Start *s) {
        s->loop = launch_call_free(s->loop);
        s->helper = helper_free(s->helper); /* without GO the helper exits, and its child with it */
        if (s->vm->run)
                run_forget_launch(s->vm->run);
}

/* scope: from here on systemd tracks it */

static int append_resources(sd_bus_message *m, void *userdata) {
        VM *vm = userdata;

        return resources_append(&vm->definition->resources, m);
}

/* A unit of this name that this daemon has not made, or a reload of PID 1 has taken the process from the job. */
void start_scope_refused(VM *vm, const Run *run, const sd_bus_error *error) {
        Start *s = vm->start;

        if (s && !s->cleared && !s->failing)
                s->again = s->cleared = sd_bus_error_has_name(error, "org.freedesktop.systemd1.UnitExists") ||
                        (sd_bus_error_has_name(error, VMUNIT_ERROR_BACKEND_FAILED) && !pidfd_dead(run->helper_pidfd));
}

static void on_scope(void *userdata, const sd_bus_error *error) {
        Start *s = userdata;

        s->call = systemd_call_free(s->call);
        s->scope_pending = false;
        if (s->failing) {
                start_end_run(s);
                return;
        }
        if (error) {
                start_scope_refused(s->vm, s->vm->run, error);
                (void) start_error(s, -EIO, VMUNIT_ERROR_BACKEND_FAILED, "systemd does not start its scope: %s",
                                   error->message ?: error->name);
                start_fail(s);
                return;
        }
        start_continue(s);
}

/* What its helper makes nodes of */
static int list_devices(Start *s) {
        int r = 0;

        s->devices = strv_free(s->devices);
        if (s->plan->rights & EXEC_KVM)
                r = strv_extend(&s->devices, "/dev/kvm");
        if (r >= 0 && (s->plan->rights & EXEC_VHOST_VSOCK))
                r = strv_extend(&s->devices, "/dev/vhost-vsock");
        for (size_t i = 0; r >= 0 && i < s->n_fds; i++)
                if (s->plan->fds[i].shown && s->opens[i].device)
                        r = strv_extendf(&s->devices, "/dev/block/%u:%u", major(s->opens[i].device), minor(s->opens[i].device));
        return r;
}

int vm_start_scope(VM *vm, const Run *run, const char *description, systemd_done_cb cb, void *userdata, SystemdCall **ret) {
        uint64_t stop = vm->definition->stop_timeout_usec;
        uint64_t timeout = (run == vm->run ? 10 : 20) * USEC_PER_SEC; /* the VMM's ends first */

        if (!vm->slice_description)
                vm->slice_description = strjoinf("Slice of virtual machine %s", vm->rec.name);
        if (!vm->slice_description)
                return -ENOMEM;

        const ScopeParams p = {
                .scope = run->scope,
                .slice = vm->slice,
                .description = description,
                .slice_description = vm->slice_description,
                .pid = run->helper_pid,
                .pidfd = run->helper_pidfd,
                .timeout_stop_usec = stop == USEC_INFINITY ? USEC_INFINITY : stop + timeout,
                .devices = run == vm->run ? vm->start->devices : NULL,
                .before = run == vm->run ? NULL : vm->scope,
                .slice_made = vm->slice_left ? NULL : &vm->slice_made,
                .append_slice = append_resources,
                .append_userdata = vm,
        };
        return systemd_start_scope(vm->manager->systemd, &p, cb, userdata, ret);
}

static int step_scope(Start *s) {
        VM *vm = s->vm;
        Run *run = vm->run;
        int r;

        if (run->helper_dead)
                return start_error(s, -ESRCH, VMUNIT_ERROR_BACKEND_FAILED, "the VMM's parent died before it got a scope");

        s->description = strjoinf("Virtual machine %s", vm->rec.name);
        if (!s->description)
                return start_errno(s, -ENOMEM, "can't start");

        r = list_devices(s);
        if (r < 0)
                return start_errno(s, r, "can't start");
        run->in_scope = true; /* or so it may be: the undo asks PID 1 */
        r = vm_start_scope(vm, run, s->description, on_scope, s, &s->call);
        if (r < 0)
                return start_errno(s, r, "can't ask systemd for a scope");
        s->scope_pending = true;
        return STEP_WAITS;
}

static void undo_scope(Start *s) {
        if (!s->scope_pending)
                s->call = systemd_call_free(s->call);
}

/* shares: virtiofsds and passts answer before the VMM is there */

void start_share_ready(VM *vm) {
        Start *s = vm->start;

        if (!s->failing && s->step == START_STEP_SHARES && shares_ready(vm))
                start_continue(s);
}

static int step_shares(Start *s) {
        return shares_ready(s->vm) ? STEP_DONE : STEP_WAITS;
}

/* fork: the VMM's process, in the scope, which waits for us */

static void fork_part_done(Start *s) {
        if (s->vmm_forked && s->invocation_known)
                start_continue(s);
}

static void on_invocation(void *userdata, const char *value, const sd_bus_error *error) {
        Start *s = userdata;

        s->call = systemd_call_free(s->call);
        if (!value && !s->asked_again) { /* PID 1 has executed itself anew meanwhile */
                s->asked_again = true;
                if (systemd_get(s->vm->run->systemd, s->vm->run->scope, "Unit", "InvocationID", on_invocation, s, &s->call) >= 0)
                        return;
        }
        snprintf(s->vm->run->invocation_id, sizeof(s->vm->run->invocation_id), "%s", strempty(value));
        s->invocation_known = true;
        fork_part_done(s);
}

static int step_fork(Start *s) {
        Run *run = s->vm->run;
        int r;

        /* A zombie gives a job that is done as well. */
        if (run->helper_dead || run_check_cgroup(run, run->helper_pid) < 0)
                return start_error(s, -ESRCH, VMUNIT_ERROR_BACKEND_FAILED, "the VMM's parent did not live to be in its scope");

        r = run_set_in_scope(run);
        if (r >= 0)
                r = helper_fork(s->helper);
        if (r >= 0)
                r = systemd_get(run->systemd, run->scope, "Unit", "InvocationID", on_invocation, s, &s->call);
        return r < 0 ? start_errno(s, r, "can't start the VMM's process") : STEP_WAITS;
}

/* exec: the VMM itself */

static int open_usage(VM *vm) {
        Store *st = vm->manager->store;
        int r;

        r = store_begin(st);
        if (r < 0)
                return r;
        r = store_close_usage(st, vm->rec.id, now_realtime()); /* should a crash have left one open */
        if (r >= 0)
                r = store_open_usage(st, &vm->rec, now_realtime(), vm->manager->boot_id, vm->run->invocation_id);
        return store_end(st, r);
}

static int step_exec(Start *s) {
        VM *vm = s->vm;
        Run *run = vm->run;
        int r;

        if (!shares_live(vm)) /* how that has ended will be told, and fails the start */
                return STEP_WAITS;
        r = run_check_cgroup(run, run->pid);
        if (r < 0)
                return start_errno(s, r, "the VMM's process is not in its scope");
        (void) snprintf(run->backend, sizeof(run->backend), "%s", backend_to_string(vm->ops->backend));
        r = FAULT_POINT("start.run-file", FAULT_FAILS | FAULT_VMM, run->pid);
        if (r >= 0)
                r = run_write_file(run, vm->manager->boot_id);
        if (r < 0)
                return start_errno(s, r, "can't write what the daemon has to know after a restart");
        r = FAULT_POINT("start.usage", FAULT_FAILS | FAULT_VMM, run->pid);
        if (r >= 0)
                r = open_usage(vm);
        if (r < 0)
                return start_errno(s, r, "can't write the database in /var/lib/vmunit");
        r = place_rings(vm);
        if (r < 0)
                return start_errno(s, r, "can't put its logs in their place");
        r = FAULT_POINT("start.go", FAULT_FAILS | FAULT_VMM, run->pid);
        if (r >= 0)
                r = helper_go(s->helper);
        s->told_to_execute = r >= 0;
        return r < 0 ? start_errno(s, r, "can't start the VMM's process") : STEP_WAITS;
}

static void on_helper_event(void *userdata, const ExecEvent *ev, int pidfd, int error) {
        Start *s = userdata;
        int r;

        if (s->failing || !ev) {
                safe_close(pidfd);
                if (!s->failing && !s->executed)
                        start_failed(s, error, "the VMM's parent has died");
                return;
        }

        switch (ev->type) {
        case EXEC_FORKED:
                r = run_set_vmm(s->vm->run, ev->pid, pidfd);
                if (r < 0) {
                        start_failed(s, r, "can't watch the VMM's process");
                        break;
                }
                s->vmm_forked = true;
                fork_part_done(s);
                break;
        case EXEC_DONE:
                s->executed = true;
                start_continue(s);
                break;
        default:
                (void) start_error(s, ev->error, VMUNIT_ERROR_BACKEND_FAILED, "can't execute %s: %s: %s",
                                   vm_backend_title(s->vm), ev->stage, strerror(-ev->error));
                start_fail(s);
        }
}

/* connect, boot: the VMM's API */

static void on_booted(void *userdata, int error, const char *message) {
        VM *vm = userdata;
        Start *s = vm->start;

        if (!s || s->failing || error == -ECANCELED)
                return;
        /* Its death, or the end of its connection, tells more, if there is either. */
        if (error == -EPIPE && (vm->run->dead || start_hung_up(s) >= 0))
                return;
        if (error < 0 && shares_blamed(vm))
                return;
        if (error < 0) {
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "%s does not start the guest: %s", vm_backend_title(vm),
                                   message ?: strerror(-error));
                start_fail(s);
                return;
        }
        s->booted = true;
        if (s->connected)
                start_continue(s);
}

static int step_connect(Start *s) {
        VM *vm = s->vm;
        int r;

        s->helper = helper_free(s->helper);
        vm->run->launch = launch_call_free(vm->run->launch); /* PID 1 has its process, so the number may go with it */
        start_undo_files(s);
        start_undo_open(s);
        r = vm_connect(vm);
        if (r < 0)
                return start_errno(s, r, "can't connect to the VMM");
        /* Asked for right away, so that nothing lies between the VMM's first word and the guest's first step. */
        r = vm->ops->boot(vm->vmm, s->plan->config, on_booted, vm);
        return r < 0 ? start_errno(s, r, "can't start the guest") : STEP_WAITS;
}

static void undo_connect(Start *s) {
        vm_disconnect(s->vm);
}

static int step_boot(Start *s) {
        return s->booted ? STEP_DONE : STEP_WAITS;
}

const Step start_steps[] = {
        [START_STEP_CLEAR] = { "clear", step_clear, NULL, true },
        { "files", step_files, undo_asked_and_files, false },
        { "open", step_open, start_undo_open, true },
        { "launch", step_launch, start_undo_launch, true },
        { "scope", step_scope, undo_scope, true },
        [START_STEP_SHARES] = { "shares", step_shares, NULL, false },
        [START_STEP_FORK] = { "fork", step_fork, NULL, true },
        [START_STEP_EXEC] = { "exec", step_exec, NULL, true }, /* its interval is closed when nothing of it lives */
        { "connect", step_connect, undo_connect, true },
        { "boot", step_boot, NULL, true },
};

const unsigned n_start_steps = ELEMENTSOF(start_steps);
