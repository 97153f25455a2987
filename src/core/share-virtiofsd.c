/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/name-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share-internal.h"
#include "core/start-private.h"
#include "vmm/virtiofsd-plan.h"

/* A shared folder's virtiofsd: the directory opened as its owner, and its first answer. */

#define SOCKET "socket"

enum { FD_DIRECTORY, FD_LISTEN, N_FDS };

/* Its answer */

static int on_answer(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        ShareStart *s = userdata;
        int r;

        r = vhost_user_read(&s->message, fd);
        if (r > 0)
                share_is_ready(s->share);
        else if (r == -EBADMSG)
                share_start_failed(s, r, " does not speak vhost-user");
        else if (r < 0) /* its end tells more */
                s->answer = sd_event_source_disable_unref(s->answer);
        return 0;
}

/* Said before the VMM has the connection, for whom it makes no difference. */
static int ask(ShareStart *s) {
        int r;

        if (s->vmm_fd < 0) { /* its VMM connects by itself, and it takes one connection */
                share_is_ready(s->share);
                return 0;
        }
        r = vhost_user_ask(s->vmm_fd);
        if (r < 0)
                return r;
        return sd_event_add_io(s->share->vm->manager->event, &s->answer, s->vmm_fd, EPOLLIN, on_answer, s);
}

/* Its arguments and what it shares */

static int plan(ShareStart *s, const char *line) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        const VM *vm = s->share->vm;
        VirtiofsdVersion version;
        int r;

        if (!virtiofsd_parse_version(line, &version)) {
                share_failed(s->share, -EINVAL, VMUNIT_ERROR_BACKEND_UNAVAILABLE, "virtiofsd can't be used: it says that it is \"%s\"",
                             line);
                return -EINVAL;
        }
        r = virtiofsd_plan(vm->definition->filesystems + s->share->index, &version, VMM_FD_FIRST, &s->argv, &e);
        if (r < 0)
                share_failed(s->share, r, e.name ?: VMUNIT_ERROR_BACKEND_FAILED, "%s", e.message ?: strerror(-r));
        return r;
}

static void on_opened(void *userdata, int error, int fd, const OpenReply *reply) {
        ShareStart *s = userdata;
        Share *share = s->share;
        const VM *vm = share->vm;

        s->open = launch_call_free(s->open);
        s->fds[FD_DIRECTORY] = fd;
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
        share_prepared(s);
}

static int begin_open(ShareStart *s) {
        Share *share = s->share;
        const VM *vm = share->vm;

        return launch_open(vm->manager->event, vm->definition->filesystems[share->index].source, vm->rec.owner, LAUNCH_OPEN_DIRECTORY,
                           LAUNCHER_TIMEOUT_USEC, on_opened, s, &s->open);
}

/* Its socket */

/* The C virtiofsd takes EAGAIN for an error. */
static int make_socket(const char *path) {
        int fd = unix_listen(path, SOCK_STREAM);

        if (fd >= 0)
                (void) fcntl(fd, F_SETFL, 0);
        return fd;
}

/* For a VMM that connects by itself, and again to the next: in a directory that it is shown, and by which nobody else comes here. It tries
 * again while nobody listens there, but gives up for a connection that is lost, as it is if this daemon ends before virtiofsd begins. */
static int show(ShareStart *s) {
        const Share *share = s->share;
        _cleanup_free_ char *path = strjoinf("%s/" SOCKET, share->dir);
        _cleanup_free_ char *shown = strjoinf("%s/" VMM_SHARES "/%s", share->vm->run_dir, share->tag);

        if (!share->vm->ops->connects_shares)
                return 0;
        if (!path || !shown)
                return -ENOMEM;
        return chmod(path, 0666) < 0 || rename(path, shown) < 0 ? -errno : 0;
}

static int connect_client(const char *path) {
        return unix_connect(path, SOCK_STREAM);
}

static int make_files(ShareStart *s) {
        int r;

        r = s->fds[FD_LISTEN] = share_make_file(s->share, SOCKET, make_socket);
        if (r >= 0 && !s->share->vm->ops->connects_shares)
                r = s->vmm_fd = share_make_file(s->share, SOCKET, connect_client);
        return MIN(r, 0);
}

static const char *describe(int error) {
        if (error == -EMEDIUMTYPE)
                return "source: its file system knows no idmapped mounts, which keep the files' owners; ext4, xfs, btrfs and tmpfs do";
        if (error == -EUSERS)
                return "its virtiofsd needs a user namespace, and this host makes none (user.max_user_namespaces=)";
        return NULL;
}

const ShareKind share_kind_virtiofsd = {
        .program_name = "virtiofsd",
        .title = "Share",
        .list = "filesystems",
        .key = "tag",
        .package = "virtiofsd (in Debian 12 qemu-system-common)",
        .setting = "VirtioFSD",
        .prefix = "fs-",
        .program = PROGRAM_VIRTIOFSD,
        .start = START_SHARE,
        .n_fds = N_FDS,
        .essential = true, /* else its guest hangs */
        .scope_name = share_scope_name,
        .describe = describe,
        .make_files = make_files,
        .open = begin_open,
        .plan = plan,
        .show = show,
        .ask = ask,
};
