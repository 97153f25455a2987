/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fault.h"
#include "basic/fd-util.h"
#include "basic/name-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/share-internal.h"
#include "vmm/passt-plan.h"

/* A user network's passt. The VMM listens, beside the directory of the passt, so that another one can take the place of one that has died. */

#define LINK "%s/link-%s"
#define RESOLV_CONF "/etc/resolv.conf"
#define RESOLV_CONF_MAX (64U * 1024U)

enum { FD_RESOLV_CONF, FD_READY, FD_LINK, N_FDS };

static const Network *network_of(const ShareStart *s) {
        return s->share->vm->definition->networks + s->share->index;
}

/* Its socket */

/* For the first passt of a run; the VMM holds it from then on. */
static int listen_for_link(ShareStart *s, const char *path) {
        if (!s->share->vm->start)
                return 0;
        return s->vmm_fd = unix_listen(path, SOCK_STREAM);
}

static int make_link(ShareStart *s) {
        _cleanup_free_ char *path = strjoinf(LINK, s->share->vm->run_dir, s->share->tag);
        int r;

        if (!path)
                return -ENOMEM;
        r = listen_for_link(s, path);
        if (r >= 0)
                r = s->fds[FD_LINK] = unix_connect(path, SOCK_STREAM);
        if (r < 0)
                return r;
        return fcntl(s->fds[FD_LINK], F_SETFL, 0) < 0 ? -errno : 0;
}

/* It opens its end anew, under its own uid. */
static int make_ready_pipe(ShareStart *s) {
        int p[2];

        if (pipe2(p, O_CLOEXEC | O_NONBLOCK) < 0)
                return -errno;
        s->ready_fd = p[0];
        s->fds[FD_READY] = p[1];
        return fchmod(p[1], 0622) < 0 ? -errno : 0;
}

static int make_resolv_conf(ShareStart *s) {
        _cleanup_free_ char *host = NULL, *text = NULL;
        int r;

        r = read_file_all(RESOLV_CONF, RESOLV_CONF_MAX, &host, NULL);
        if (r < 0 && r != -ENOENT)
                return r;
        r = passt_resolv_conf(strempty(host), &text, &s->network.resolver);
        return r < 0 ? r : (s->fds[FD_RESOLV_CONF] = memfd_new("resolv.conf", text, strlen(text)));
}

static int make_files(ShareStart *s) {
        int r;

        r = make_link(s);
        if (r >= 0)
                r = make_ready_pipe(s);
        if (r >= 0)
                r = make_resolv_conf(s);
        return MIN(r, 0);
}

/* Nothing takes time. */
static int begin_open(ShareStart *s) {
        s->network.id = vm_network_id(s->share->vm);
        s->network.low_ports = passt_has_low_ports(network_of(s));
        s->opened = true;
        return 0;
}

static int plan(ShareStart *s, const char *line) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        unsigned version;
        int r;

        if (!passt_parse_version(line, &version)) {
                share_failed(s->share, -EINVAL, VMUNIT_ERROR_BACKEND_UNAVAILABLE, "passt can't be used: it says that it is \"%s\"", line);
                return -EINVAL;
        }
        r = passt_check(network_of(s), version, &e);
        if (r < 0) {
                share_failed(s->share, r, VMUNIT_ERROR_NOT_SUPPORTED, "%s", strempty(e.message));
                return r;
        }
        r = passt_plan(network_of(s), version, VMM_FD_FIRST, &s->argv);
        if (r < 0)
                share_start_failed(s, r, " can't be started");
        return r;
}

/* Its answer: the number of its process, which is of no interest */

static int on_answer(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        ShareStart *s = userdata;
        char number[16];
        ssize_t n;

        n = read(fd, number, sizeof(number));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        s->answer = sd_event_source_disable_unref(s->answer);
        if (n > 0) /* else its end tells more */
                share_is_ready(s->share);
        return 0;
}

static int ask(ShareStart *s) {
        return sd_event_add_io(s->share->vm->manager->event, &s->answer, s->ready_fd, EPOLLIN, on_answer, s);
}

const ShareKind share_kind_passt = {
        .program_name = "passt",
        .title = "Network",
        .list = "networks",
        .key = "name",
        .package = "passt",
        .setting = "Passt",
        .prefix = "net-",
        .program = PROGRAM_PASST,
        .start = START_NETWORK,
        .n_fds = N_FDS,
        .scope_name = network_scope_name,
        .make_files = make_files,
        .open = begin_open,
        .plan = plan,
        .ask = ask,
};
