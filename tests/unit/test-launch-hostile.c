/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The launcher, asked by a daemon that was taken over: each field of each request wrong, each fd of another kind. */

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mount.h>

#include "launch-bed.h"

#define LOG_MAX (64U * 1024U)
#define OWNER 12345U

/* What came back: nothing (closed), or an answer. Whatever fd came along is closed; a helper ends when its control socket does. */
typedef struct Answer {
        bool closed;
        int error;
        size_t n_fds;
} Answer;

static int connect_launcher(void) {
        struct sockaddr_un sa;
        socklen_t len;
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

        must(fd >= 0 && sockaddr_un_set(&sa, &len, bed_socket) == 0 && connect(fd, (struct sockaddr *) &sa, len) == 0);
        return fd;
}

static Answer receive(int sock) {
        union { struct { LaunchHeader header; int32_t error; } a; char bytes[LAUNCH_MESSAGE_MAX]; } u = {};
        struct pollfd p = { .fd = sock, .events = POLLIN };
        size_t n_fds = SCM_FDS_MAX;
        int fds[SCM_FDS_MAX];
        ssize_t n;

        must(poll(&p, 1, (int) (PATIENCE / 1000)) == 1);
        n = recv_with_fds(sock, &u, sizeof(u), fds, &n_fds);
        if (n <= 0)
                return (Answer) { .closed = true };
        close_many(fds, n_fds);
        return (Answer) { .error = u.a.error, .n_fds = n_fds };
}

static Answer ask(const void *p, size_t n, const int *fds, size_t n_fds) {
        int sock = connect_launcher();
        Answer a;

        must(send_with_fds(sock, p, n, fds, n_fds) == 0);
        a = receive(sock);
        safe_close(sock);
        return a;
}

static bool refused(Answer a, int want) {
        bool good = want == 0 ? a.closed : !a.closed && a.error == want && a.n_fds == 0;

        if (!good)
                printf("# %s, error %d, %zu fds\n", a.closed ? "closed" : "answered", a.error, a.n_fds);
        return good;
}

/* Requests that are right, of which each test gets one thing wrong */

typedef enum Kind {
        REQUEST_OPEN, REQUEST_VMM, REQUEST_SHARE, REQUEST_ROOT_SHARE, REQUEST_NETWORK, REQUEST_PROBE, REQUEST_VSOCK, REQUEST_LOOP, _KIND_MAX,
} Kind;

#define ARGUMENTS "fake\0exit"

typedef union Body {
        LaunchHeader header;
        OpenRequest open;
        StartRequest start;
        ProbeRequest probe;
        VSockRequest vsock;
        LoopRequest loop;
        char bytes[1024];
} Body;

typedef struct Asked {
        size_t size, fixed;     /* fixed: without path or arguments */
        int fds[_HELPER_FD_MAX + 4];
        size_t n_fds;
        int control;            /* the daemon's end */
        Body body;
} Asked;

static const char *const kind_names[_KIND_MAX] = { "OPEN", "START of a VMM", "START of a user's share", "START of root's share",
                                                 "START of a network", "PROBE", "VSOCK", "LOOP" };

static void prepare_helper(Asked *q) {
        int pair[2];

        must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
        q->control = pair[0];
        q->fds[HELPER_FD_CONTROL] = pair[1];
        q->fds[HELPER_FD_EXEC] = unix_listen(bed_path("exec"), SOCK_SEQPACKET);
        q->fds[HELPER_FD_EXIT] = create_fresh(bed_path("exit"));
        q->fds[HELPER_FD_CONSOLE_LOG] = create_fresh(bed_path("console.log"));
        q->fds[HELPER_FD_LAST_OUTPUT] = create_fresh(bed_path("last-output"));
        q->n_fds = _HELPER_FD_MAX;
}

static int one_of(int type) {
        int pair[2];

        must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
        safe_close(pair[1]);
        return pair[0];
}

static void prepare_start(Asked *q, Kind kind) {
        StartRequest *s = &q->body.start;

        q->fixed = sizeof(*s);
        q->size = sizeof(*s) + sizeof(ARGUMENTS);
        s->program = kind == REQUEST_VMM ? PROGRAM_QEMU : kind == REQUEST_NETWORK ? PROGRAM_PASST : PROGRAM_VIRTIOFSD;
        s->kind = kind == REQUEST_VMM ? START_PIPES : kind == REQUEST_NETWORK ? START_NETWORK : START_SHARE;
        s->console_log_max = LOG_MAX;
        s->argv_size = sizeof(ARGUMENTS);
        memcpy(s->argv, ARGUMENTS, sizeof(ARGUMENTS));
        prepare_helper(q);
        if (kind == REQUEST_VMM)
                q->fds[q->n_fds++] = open(bed_path("file"), O_RDONLY | O_CLOEXEC);
        else if (kind == REQUEST_NETWORK) {
                q->fds[q->n_fds++] = memfd_new("resolv.conf", "#", 1);
                q->fds[q->n_fds++] = open(bed_path("fifo"), O_RDWR | O_CLOEXEC);
                q->fds[q->n_fds++] = one_of(SOCK_STREAM);
                s->network = (NetworkRequest) { .id = NETWORK_IDS_BASE + 7, .low_ports = 1, .resolver = htonl(0x7f000035) };
        } else {
                q->fds[q->n_fds++] = open(bed_path("share"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                q->fds[q->n_fds++] = unix_listen(bed_path("socket"), SOCK_STREAM);
        }
        s->n_fds = (uint32_t) q->n_fds - _HELPER_FD_MAX;
        if (kind == REQUEST_VMM)
                s->vmm = (VMMRequest) { .id = VM_IDS_BASE + 8, .rights = EXEC_SOCKETS, .shown = { EXEC_SHOWN_NOT } };
        if (kind == REQUEST_SHARE)
                s->share = (ShareRequest) { .base = VM_IDS_BASE + 7, .count = 1, .uid = OWNER, .gid = OWNER };
        else if (kind == REQUEST_ROOT_SHARE)
                s->share = (ShareRequest) { .base = VM_IDS_BASE + SHARE_IDS, .count = SHARE_IDS };
}

static Asked prepare(Kind kind) {
        static const LaunchType types[] = { LAUNCH_OPEN, LAUNCH_START, LAUNCH_START, LAUNCH_START, LAUNCH_START, LAUNCH_PROBE, LAUNCH_VSOCK,
                                            LAUNCH_LOOP };
        Asked q = { .control = -EBADF };

        switch (kind) {
        case REQUEST_OPEN:
                strcpy(q.body.open.path, bed_path("file"));
                q.fixed = sizeof(OpenRequest);
                q.size = q.fixed + strlen(q.body.open.path) + 1;
                break;
        case REQUEST_PROBE:
                q.fixed = q.size = sizeof(ProbeRequest);
                break;
        case REQUEST_VSOCK:
                q.fixed = q.size = sizeof(VSockRequest);
                q.body.vsock.cid = 0x7ffffff0;
                q.body.vsock.port = 1;
                break;
        case REQUEST_LOOP:
                q.fixed = q.size = sizeof(LoopRequest);
                q.body.loop.readonly = 1;
                q.fds[q.n_fds++] = open(bed_path("file"), O_RDONLY | O_CLOEXEC);
                break;
        default:
                prepare_start(&q, kind);
        }
        q.body.header = (LaunchHeader) { .magic = LAUNCH_MAGIC, .type = types[kind], .size = (uint32_t) q.size };
        return q;
}

static Answer finish(Asked *q) {
        Answer a = ask(&q->body, q->size, q->fds, q->n_fds);

        safe_close(q->control);
        close_many(q->fds, q->n_fds);
        return a;
}

/* What is wrong below is the one thing that is wrong. */
static void test_right(void) {
        for (Kind kind = 0; kind < _KIND_MAX; kind++) {
                Asked q = prepare(kind);
                Answer a = finish(&q);

                if (kind == REQUEST_VSOCK)
                        ok(!a.closed && a.error < 0 && a.error != -EINVAL, "%s that is right goes on to the kernel", kind_names[kind]);
                else if (kind == REQUEST_LOOP) /* there may be no such devices */
                        ok(!a.closed && a.error != -EINVAL && a.n_fds == (a.error == 0), "%s that is right goes on to the kernel", kind_names[kind]);
                else
                        ok(!a.closed && a.error == 0 && a.n_fds == (kind != REQUEST_PROBE), "%s that is right: taken", kind_names[kind]);
        }
}

/* Each field */

typedef struct Wrong {
        Kind kind;
        size_t offset, size;
        const char *name;
        int want;               /* 0: closed without an answer */
        unsigned n;
        uint32_t values[6];
} Wrong;

#define FIELD(type, member) offsetof(type, member), sizeof(((type *) NULL)->member), #member
#define VALUES(...) sizeof((uint32_t[]) { __VA_ARGS__ }) / sizeof(uint32_t), { __VA_ARGS__ }
#define HEADER(kind)                                                                                    \
        { kind, FIELD(LaunchHeader, magic), 0, VALUES(0, LAUNCH_MAGIC - 1, UINT32_MAX) },               \
        { kind, FIELD(LaunchHeader, type), 0, VALUES(0, 99, UINT32_MAX) },                              \
        { kind, FIELD(LaunchHeader, size), 0, VALUES(0, 16, LAUNCH_MESSAGE_MAX, UINT32_MAX) },          \
        { kind, FIELD(LaunchHeader, reserved), 0, VALUES(1, UINT32_MAX) }
/* In the lower half of one of 64 bits */
#define LOWER(type, member) offsetof(type, member), 4, #member
#define UPPER(type, member) offsetof(type, member) + 4, 4, #member ", its upper half"

/* What is not for this kind of START */
#define NO_SHARE(kind)                                                                                  \
        { kind, FIELD(StartRequest, share.base), -EINVAL, VALUES(1, VM_IDS_BASE + 7) },                 \
        { kind, FIELD(StartRequest, share.count), -EINVAL, VALUES(1, SHARE_IDS) },                      \
        { kind, FIELD(StartRequest, share.uid), -EINVAL, VALUES(1, UINT32_MAX) },                       \
        { kind, FIELD(StartRequest, share.gid), -EINVAL, VALUES(1, UINT32_MAX) },                       \
        { kind, FIELD(StartRequest, share.readonly), -EINVAL, VALUES(1) },                              \
        { kind, FIELD(StartRequest, share.reserved), -EINVAL, VALUES(1) }
#define NO_NETWORK(kind)                                                                                \
        { kind, FIELD(StartRequest, network.id), -EINVAL, VALUES(1, NETWORK_IDS_BASE + 7) },                 \
        { kind, FIELD(StartRequest, network.low_ports), -EINVAL, VALUES(1) },                           \
        { kind, FIELD(StartRequest, network.resolver), -EINVAL, VALUES(1, 127) },                       \
        { kind, FIELD(StartRequest, network.reserved), -EINVAL, VALUES(1) }

#define NO_VMM(kind)                                                                                    \
        { kind, FIELD(StartRequest, vmm.id), -EINVAL, VALUES(1, VM_IDS_BASE + 8) },                     \
        { kind, FIELD(StartRequest, vmm.rights), -EINVAL, VALUES(1) },                                  \
        { kind, FIELD(StartRequest, vmm.shown), -EINVAL, VALUES('-', '-' << 8) },                       \
        { kind, FIELD(StartRequest, vmm.reserved), -EINVAL, VALUES(1) }

static const Wrong wrongs[] = {
        HEADER(REQUEST_OPEN),
        { REQUEST_OPEN, FIELD(OpenRequest, uid), -EINVAL, VALUES(UINT32_MAX) },
        { REQUEST_OPEN, FIELD(OpenRequest, uid), -ESRCH, VALUES(3999999999U) },
        { REQUEST_OPEN, FIELD(OpenRequest, flags), -EINVAL, VALUES(_LAUNCH_OPEN_ALL + 1, LAUNCH_OPEN_DIRECTORY | LAUNCH_OPEN_WRITE, UINT32_MAX) },

        HEADER(REQUEST_VMM),
        { REQUEST_VMM, FIELD(StartRequest, program), -EINVAL, VALUES(PROGRAM_VIRTIOFSD, _PROGRAM_MAX, UINT32_MAX) },
        { REQUEST_VMM, FIELD(StartRequest, n_fds), -EINVAL, VALUES(0, 2, SCM_FDS_MAX, UINT32_MAX - _HELPER_FD_MAX + 1, UINT32_MAX) },
        { REQUEST_VMM, LOWER(StartRequest, console_log_max), -EINVAL, VALUES(0, 4095, (1U << 30) + 1, UINT32_MAX) },
        { REQUEST_VMM, UPPER(StartRequest, console_log_max), -EINVAL, VALUES(1, UINT32_MAX) },
        { REQUEST_VMM, FIELD(StartRequest, argv_size), -EINVAL, VALUES(0, sizeof(ARGUMENTS) - 1, sizeof(ARGUMENTS) + 1, UINT32_MAX) },
        { REQUEST_VMM, FIELD(StartRequest, kind), -EINVAL, VALUES(START_SHARE, _START_KIND_MAX, UINT32_MAX) },
        NO_SHARE(REQUEST_VMM),
        NO_NETWORK(REQUEST_VMM),
        { REQUEST_VMM, FIELD(StartRequest, vmm.id), -EINVAL,
          VALUES(0, OWNER, VM_IDS_BASE, VM_IDS_BASE + 7, VM_IDS_BASE + SHARE_IDS, UINT32_MAX) },
        { REQUEST_VMM, FIELD(StartRequest, vmm.rights), -EINVAL, VALUES(_EXEC_RIGHTS_ALL + 1, UINT32_MAX) },
        { REQUEST_VMM, FIELD(StartRequest, vmm.shown), -EINVAL, VALUES(0, 'x', 'd', '-' | 'c' << 8, '-' | '-' << 24) },
        { REQUEST_VMM, FIELD(StartRequest, vmm.reserved), -EINVAL, VALUES(1, 1 << 8, 1 << 16) },

        HEADER(REQUEST_SHARE),
        { REQUEST_SHARE, FIELD(StartRequest, program), -EINVAL, VALUES(PROGRAM_QEMU, PROGRAM_CLOUD_HYPERVISOR, _PROGRAM_MAX, UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, n_fds), -EINVAL, VALUES(0, 1, 3, UINT32_MAX) },
        { REQUEST_SHARE, LOWER(StartRequest, console_log_max), -EINVAL, VALUES(0, 4095) },
        { REQUEST_SHARE, UPPER(StartRequest, console_log_max), -EINVAL, VALUES(1) },
        { REQUEST_SHARE, FIELD(StartRequest, argv_size), -EINVAL, VALUES(0, sizeof(ARGUMENTS) - 1, UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, kind), -EINVAL, VALUES(START_PIPES, START_TTY, _START_KIND_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, share.base), -EINVAL,
          VALUES(0, OWNER, VM_IDS_BASE, VM_IDS_BASE + 8, VM_IDS_BASE + SHARE_IDS, UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, share.count), -EINVAL, VALUES(0, 2, SHARE_IDS, UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, share.uid), -EINVAL, VALUES(0, UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, share.gid), -EINVAL, VALUES(UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, share.readonly), -EINVAL, VALUES(2, UINT32_MAX) },
        { REQUEST_SHARE, FIELD(StartRequest, share.reserved), -EINVAL, VALUES(1) },
        NO_NETWORK(REQUEST_SHARE),
        NO_VMM(REQUEST_SHARE),

        HEADER(REQUEST_ROOT_SHARE),
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, program), -EINVAL, VALUES(PROGRAM_QEMU) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, n_fds), -EINVAL, VALUES(0, 3) },
        { REQUEST_ROOT_SHARE, LOWER(StartRequest, console_log_max), -EINVAL, VALUES(0) },
        { REQUEST_ROOT_SHARE, UPPER(StartRequest, console_log_max), -EINVAL, VALUES(1) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, argv_size), -EINVAL, VALUES(0) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, kind), -EINVAL, VALUES(START_PIPES) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, share.base), -EINVAL,
          VALUES(0, 1, VM_IDS_BASE, VM_IDS_BASE + SHARE_IDS - 1, VM_IDS_BASE + SHARE_IDS + 1, VM_IDS_BASE + 2 * SHARE_IDS) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, share.count), -EINVAL, VALUES(0, 1, SHARE_IDS - 1, SHARE_IDS + 1, UINT32_MAX) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, share.uid), -EINVAL, VALUES(1, OWNER, UINT32_MAX) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, share.gid), -EINVAL, VALUES(1, OWNER, UINT32_MAX) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, share.readonly), -EINVAL, VALUES(2) },
        { REQUEST_ROOT_SHARE, FIELD(StartRequest, share.reserved), -EINVAL, VALUES(1) },
        NO_NETWORK(REQUEST_ROOT_SHARE),
        NO_VMM(REQUEST_ROOT_SHARE),

        HEADER(REQUEST_NETWORK),
        { REQUEST_NETWORK, FIELD(StartRequest, program), -EINVAL, VALUES(PROGRAM_QEMU, PROGRAM_VIRTIOFSD, _PROGRAM_MAX, UINT32_MAX) },
        { REQUEST_NETWORK, FIELD(StartRequest, n_fds), -EINVAL, VALUES(0, 2, 4, UINT32_MAX) },
        { REQUEST_NETWORK, LOWER(StartRequest, console_log_max), -EINVAL, VALUES(0, 4095) },
        { REQUEST_NETWORK, UPPER(StartRequest, console_log_max), -EINVAL, VALUES(1) },
        { REQUEST_NETWORK, FIELD(StartRequest, argv_size), -EINVAL, VALUES(0, sizeof(ARGUMENTS) - 1, UINT32_MAX) },
        { REQUEST_NETWORK, FIELD(StartRequest, kind), -EINVAL, VALUES(START_PIPES, START_TTY, START_SHARE, _START_KIND_MAX) },
        NO_SHARE(REQUEST_NETWORK),
        NO_VMM(REQUEST_NETWORK),
        { REQUEST_NETWORK, FIELD(StartRequest, network.id), -EINVAL,
          VALUES(0, OWNER, VM_IDS_BASE + 7, NETWORK_IDS_BASE - 1, NETWORK_IDS_BASE, NETWORK_IDS_BASE + SHARE_IDS) },
        { REQUEST_NETWORK, FIELD(StartRequest, network.low_ports), -EINVAL, VALUES(2, UINT32_MAX) },
        { REQUEST_NETWORK, FIELD(StartRequest, network.resolver), -EINVAL, VALUES(1, 10, 128, UINT32_MAX) },
        { REQUEST_NETWORK, FIELD(StartRequest, network.reserved), -EINVAL, VALUES(1) },

        HEADER(REQUEST_PROBE),
        { REQUEST_PROBE, FIELD(ProbeRequest, program), -EINVAL, VALUES(_PROGRAM_MAX, UINT32_MAX) },
        { REQUEST_PROBE, FIELD(ProbeRequest, want_version), -EINVAL, VALUES(2, UINT32_MAX) },

        HEADER(REQUEST_VSOCK),
        { REQUEST_VSOCK, FIELD(VSockRequest, cid), -EINVAL, VALUES(0, 1, 2, UINT32_MAX) },
        { REQUEST_VSOCK, FIELD(VSockRequest, port), -EINVAL, 0, {} }, /* a guest may have any */

        HEADER(REQUEST_LOOP),
        { REQUEST_LOOP, FIELD(LoopRequest, readonly), -EINVAL, VALUES(2, UINT32_MAX) },
        { REQUEST_LOOP, FIELD(LoopRequest, reserved), -EINVAL, VALUES(1) },
};

static void test_fields(void) {
        for (const Wrong *w = wrongs; w < wrongs + ELEMENTSOF(wrongs); w++)
                for (unsigned i = 0; i < w->n; i++) {
                        Asked q = prepare(w->kind);

                        memcpy(q.body.bytes + w->offset, w->values + i, sizeof(w->values[i]));
                        ok(refused(finish(&q), w->want), "%s: %s %u: refused", kind_names[w->kind], w->name, w->values[i]);
                }
}

/* A field that comes to a request has to come to the table. */
static void test_fields_whole(void) {
        for (Kind kind = 0; kind < _KIND_MAX; kind++) {
                Asked q = prepare(kind);
                size_t at = 0;

                while (at < q.fixed) {
                        const Wrong *w = wrongs;

                        while (w < wrongs + ELEMENTSOF(wrongs) && (w->kind != kind || at < w->offset || at >= w->offset + w->size))
                                w++;
                        if (w == wrongs + ELEMENTSOF(wrongs))
                                break;
                        at = w->offset + w->size;
                }
                is_int(at, q.fixed, "%s: all of its bytes have been wrong once", kind_names[kind]);
                safe_close(q.control);
                close_many(q.fds, q.n_fds);
        }
}

/* One request under another's name, too short, too long, with fds that it has no use for */
static void test_shapes(void) {
        static const LaunchType types[] = { LAUNCH_OPEN, LAUNCH_START, LAUNCH_PROBE, LAUNCH_VSOCK, LAUNCH_LOOP };
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        for (Kind kind = 0; kind < _KIND_MAX; kind++) {
                for (size_t i = 0; i < ELEMENTSOF(types); i++) {
                        Asked q = prepare(kind);
                        bool same = q.body.header.type == types[i];

                        q.body.header.type = types[i];
                        if (kind == REQUEST_PROBE || kind == REQUEST_VSOCK) /* of one size and shape */
                                same = same || types[i] == LAUNCH_PROBE || types[i] == LAUNCH_VSOCK;
                        if (same) {
                                safe_close(q.control);
                                close_many(q.fds, q.n_fds);
                        } else
                                ok(refused(finish(&q), -EINVAL), "%s, called %u: refused", kind_names[kind], types[i]);
                }

                Asked q = prepare(kind);
                q.body.header.size = (uint32_t) (q.size = q.fixed - 1);
                ok(refused(finish(&q), -EINVAL), "%s, a byte too short: refused", kind_names[kind]);
                q = prepare(kind);
                q.body.header.size = (uint32_t) ++q.size;
                ok(refused(finish(&q), -EINVAL), "%s, a byte too long: refused", kind_names[kind]);
                q = prepare(kind);
                q.fds[q.n_fds++] = fcntl(null, F_DUPFD_CLOEXEC, 3);
                ok(refused(finish(&q), -EINVAL), "%s, with a fd too many: refused", kind_names[kind]);
        }
        safe_close(null);
}

/* Each fd, as each of these kinds */

typedef enum Thing {
        FILE_READ, FILE_WRITE, FILE_BOTH, FILE_APPEND, FILE_PATH, FILE_MEMORY, DIRECTORY, DIRECTORY_PATH, FIFO, DEVICE,
        STREAM, STREAM_LISTENING, PACKETS, PACKETS_LISTENING, DATAGRAMS, INTERNET, INTERNET_LISTENING, EVENTS, POLLS, _THING_MAX,
} Thing;

static const char *const thing_names[_THING_MAX] = {
        "a file to read", "a file to write", "a file for both", "a file to append to", "a file's path", "a file in memory", "a directory",
        "a directory's path", "a FIFO", "a device", "a stream", "a stream's listener", "a socket of packets", "a listener of packets",
        "a socket of datagrams", "a socket of the Internet", "a listener of the Internet", "an eventfd", "an epoll",
};

#define BIT(thing) (1U << (thing))
#define LOGS (BIT(FILE_WRITE) | BIT(FILE_BOTH) | BIT(FILE_MEMORY))
#define VMMS (LOGS | BIT(FILE_READ) | BIT(FILE_APPEND) | BIT(FIFO) | BIT(STREAM) | BIT(STREAM_LISTENING))

static const struct {
        Kind kind;
        size_t at;
        const char *name;
        uint32_t taken;
} places[] = {
        { REQUEST_VMM, HELPER_FD_CONTROL, "the control socket", BIT(PACKETS) },
        { REQUEST_VMM, HELPER_FD_EXEC, "the helper's socket", BIT(PACKETS_LISTENING) },
        { REQUEST_VMM, HELPER_FD_EXIT, "the exit status", LOGS },
        { REQUEST_VMM, HELPER_FD_CONSOLE_LOG, "the console's log", LOGS },
        { REQUEST_VMM, HELPER_FD_LAST_OUTPUT, "the last output", LOGS },
        { REQUEST_VMM, _HELPER_FD_MAX, "a VMM's own", VMMS },
        { REQUEST_SHARE, HELPER_FD_CONTROL, "a share's control socket", BIT(PACKETS) },
        { REQUEST_SHARE, HELPER_FD_EXEC, "a share's helper's socket", BIT(PACKETS_LISTENING) },
        { REQUEST_SHARE, HELPER_FD_EXIT, "a share's exit status", LOGS },
        { REQUEST_SHARE, HELPER_FD_CONSOLE_LOG, "a share's log", LOGS },
        { REQUEST_SHARE, HELPER_FD_LAST_OUTPUT, "a share's last output", LOGS },
        { REQUEST_SHARE, _HELPER_FD_MAX, "what is shared", BIT(DIRECTORY) },
        { REQUEST_SHARE, _HELPER_FD_MAX + 1, "a virtiofsd's socket", BIT(STREAM_LISTENING) },
        { REQUEST_NETWORK, _HELPER_FD_MAX, "a network's list of resolvers", BIT(FILE_READ) | BIT(FILE_BOTH) | BIT(FILE_MEMORY) },
        { REQUEST_NETWORK, _HELPER_FD_MAX + 1, "where a passt is ready", BIT(FIFO) },
        { REQUEST_NETWORK, _HELPER_FD_MAX + 2, "a passt's connection", BIT(STREAM) },
};

static int internet(bool listening) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (listening)
                must(listen(fd, 1) == 0);
        return fd;
}

static int thing_new(Thing thing) {
        const char *file = bed_path("file");

        switch (thing) {
        case FILE_READ:
                return open(file, O_RDONLY | O_CLOEXEC);
        case FILE_WRITE:
                return open(file, O_WRONLY | O_CLOEXEC);
        case FILE_BOTH:
                return open(file, O_RDWR | O_CLOEXEC);
        case FILE_APPEND:
                return open(file, O_WRONLY | O_APPEND | O_CLOEXEC);
        case FILE_PATH:
                return open(file, O_PATH | O_CLOEXEC);
        case FILE_MEMORY:
                return memfd_new("test", "x", 1);
        case DIRECTORY:
                return open(bed_path("share"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        case DIRECTORY_PATH:
                return open(bed_path("share"), O_PATH | O_DIRECTORY | O_CLOEXEC);
        case FIFO:
                return open(bed_path("fifo"), O_RDWR | O_CLOEXEC);
        case DEVICE:
                return open("/dev/null", O_RDWR | O_CLOEXEC);
        case STREAM:
                return one_of(SOCK_STREAM);
        case STREAM_LISTENING:
                return unix_listen(bed_path("thing"), SOCK_STREAM);
        case PACKETS:
                return one_of(SOCK_SEQPACKET);
        case PACKETS_LISTENING:
                return unix_listen(bed_path("thing"), SOCK_SEQPACKET);
        case DATAGRAMS:
                return one_of(SOCK_DGRAM);
        case INTERNET:
        case INTERNET_LISTENING:
                return internet(thing == INTERNET_LISTENING);
        case EVENTS:
                return eventfd(0, EFD_CLOEXEC);
        case POLLS:
                return epoll_create1(EPOLL_CLOEXEC);
        default:
                return -EBADF;
        }
}

static void test_things(void) {
        for (size_t i = 0; i < ELEMENTSOF(places); i++)
                for (Thing thing = 0; thing < _THING_MAX; thing++) {
                        Asked q = prepare(places[i].kind);
                        bool taken = places[i].taken & BIT(thing);
                        Answer a;

                        safe_close(q.fds[places[i].at]);
                        q.fds[places[i].at] = thing_new(thing);
                        must(q.fds[places[i].at] >= 0);
                        a = finish(&q);
                        ok(taken ? !a.closed && a.error == 0 : refused(a, -EINVAL), "%s as %s: %s", thing_names[thing], places[i].name,
                           taken ? "taken" : "refused");
                }
}

/* What a VMM is shown: nothing of the host's that was not opened for it, and of the daemon's own one FIFO and one directory. */

static Answer ask_shown(int fd, ExecShown how) {
        Asked q = prepare(REQUEST_VMM);

        must(fd >= 0);
        safe_close(q.fds[_HELPER_FD_MAX]);
        q.fds[_HELPER_FD_MAX] = fd;
        q.body.start.vmm.shown[0] = (char) how;
        return finish(&q);
}

static void test_shown_as_opened(void) {
        static const struct { int flags; ExecShown how; bool taken; const char *name; } tests[] = {
                { O_RDONLY, EXEC_SHOWN_READ, true, "opened to read, shown to read" },
                { O_RDWR, EXEC_SHOWN_READ, true, "opened for both, shown to read" },
                { O_RDWR, EXEC_SHOWN_WRITE, true, "opened for both, shown to write" },
                { O_RDONLY, EXEC_SHOWN_COPY, true, "opened to read, shown as a copy" },
                { O_RDONLY, EXEC_SHOWN_WRITE, false, "opened to read, shown to write" },
                { O_WRONLY, EXEC_SHOWN_WRITE, false, "opened to write, shown for both" },
                { O_WRONLY, EXEC_SHOWN_READ, false, "opened to write, shown to read" },
                { O_WRONLY, EXEC_SHOWN_COPY, false, "opened to write, shown as a copy" },
                { O_PATH, EXEC_SHOWN_READ, false, "named, shown to read" },
        };

        for (size_t i = 0; i < ELEMENTSOF(tests); i++) {
                Answer a = ask_shown(open(bed_path("file"), tests[i].flags | O_CLOEXEC), tests[i].how);

                ok(tests[i].taken ? !a.closed && a.error == 0 : refused(a, -EINVAL), "a file %s: %s", tests[i].name,
                   tests[i].taken ? "taken" : "refused");
        }
}

static void make_places(void) {
        static const char *const directories[] = { "shares", "other", "sub", "sub/shares" };

        for (size_t i = 0; i < ELEMENTSOF(directories); i++)
                must(mkdir(bed_vm(directories[i]), 0711) == 0);
        must(mkfifo(bed_vm("events"), 0666) == 0 && mkfifo(bed_vm("other-fifo"), 0666) == 0 && mkfifo(bed_vm("sub/events"), 0666) == 0 &&
             mkfifo(bed_path(BED_VMS "/events"), 0666) == 0 && mkdir(bed_path(BED_VMS "/shares"), 0711) == 0);
        must(mkdir(bed_path(BED_VMS "/odd"), 0711) == 0 && mkdir(bed_path(BED_VMS "/odd/events"), 0711) == 0 &&
             mkfifo(bed_path(BED_VMS "/odd/shares"), 0666) == 0);
        must(mkdir(bed_path("vms"), 0711) == 0 && mkdir(bed_path("vms/shares"), 0711) == 0 && symlink("../../../vms", bed_path(BED_VMS "/linked")) == 0);
}

static void test_shown_of_daemons(void) {
        static const struct { const char *path; int want; } tests[] = {
                { BED_VMS "/vm/events", 0 }, { BED_VMS "/vm/shares", 0 },
                { "fifo", -EINVAL }, { BED_VMS "/vm/other-fifo", -EINVAL }, { BED_VMS "/vm/sub/events", -EINVAL }, { BED_VMS "/events", -EINVAL },
                { BED_VMS "/odd/shares", -EINVAL }, { BED_VMS "/odd/events", -EINVAL },
                { "share", -EINVAL }, { "", -EINVAL }, { "../../etc", -EINVAL }, { "../..", -EINVAL }, { BED_VMS, -EINVAL }, { BED_VMS "/vm", -EINVAL },
                { BED_VMS "/vm/other", -EINVAL }, { BED_VMS "/vm/sub/shares", -EINVAL }, { BED_VMS "/shares", -EINVAL },
                { BED_VMS "/linked/shares", -EINVAL },
        };
        struct stat st;

        make_places();
        for (size_t i = 0; i < ELEMENTSOF(tests); i++) {
                const char *path = bed_path(tests[i].path);
                bool directory;
                Answer a;

                must(stat(path, &st) == 0);
                directory = S_ISDIR(st.st_mode);
                a = ask_shown(open(path, (directory ? O_RDONLY : O_RDWR) | O_CLOEXEC), directory ? EXEC_SHOWN_DIRECTORY : EXEC_SHOWN_WRITE);
                ok(tests[i].want == 0 ? !a.closed && a.error == 0 : refused(a, tests[i].want), "the %s /%s is shown: %s",
                   directory ? "directory" : "FIFO", tests[i].path, tests[i].want == 0 ? "taken" : "refused");
        }
}

/* What has the right name in the daemon's mounts, and what had it */
static void test_shown_elsewhere(void) {
        int fd, status;
        pid_t pid;

        fd = open(bed_vm("shares"), O_RDONLY | O_CLOEXEC);
        must(rmdir(bed_vm("shares")) == 0 && mkdir(bed_vm("shares"), 0711) == 0);
        ok(refused(ask_shown(fd, EXEC_SHOWN_DIRECTORY), -EINVAL), "a directory that is gone: refused");

        pid = fork();
        must(pid >= 0);
        if (pid == 0) {
                if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
                    mount("tmpfs", bed_path(BED_VMS "/vm"), "tmpfs", 0, NULL) < 0 || mkdir(bed_vm("shares"), 0711) < 0)
                        _exit(2);
                fd = open(bed_vm("shares"), O_RDONLY | O_CLOEXEC);
                _exit(!refused(ask_shown(fd, EXEC_SHOWN_DIRECTORY), -ESTALE));
        }
        must(waitpid(pid, &status, 0) == pid);
        is_int(status, 0, "a directory of another mount there: refused");
}

static void test_arguments(void) {
        static union { StartRequest q; char bytes[sizeof(StartRequest) + 4096]; } u;
        Asked base = prepare(REQUEST_VMM);

        for (unsigned n = 1024; n <= 1025; n++) {
                Asked q = prepare(REQUEST_VMM);
                Answer a;

                memcpy(u.bytes, q.body.bytes, sizeof(StartRequest));
                for (unsigned i = 0; i < n; i++)
                        memcpy(u.q.argv + 2 * (size_t) i, "x", 2);
                u.q.argv_size = 2 * n;
                u.q.header.size = (uint32_t) sizeof(StartRequest) + 2 * n;
                a = ask(&u, u.q.header.size, q.fds, q.n_fds);
                ok(n > 1024 ? refused(a, -EINVAL) : a.error == 0 && a.n_fds == 1, "%u arguments", n);
                safe_close(q.control);
                close_many(q.fds, q.n_fds);
        }
        base.body.start.argv[sizeof(ARGUMENTS) - 1] = 'x';
        ok(refused(finish(&base), -EINVAL), "arguments without an end: refused");
}

/* Its clients are root, whoever comes to the socket. */
static void test_stranger(void) {
        Asked q = prepare(REQUEST_OPEN);
        int status;
        pid_t pid;

        must(chmod(bed_socket, 0666) == 0);
        pid = fork();
        must(pid >= 0);
        if (pid == 0) {
                int sock;

                if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
                        _exit(2);
                sock = connect_launcher();
                /* It may have hung up before it is asked. */
                _exit(send_with_fds(sock, &q.body, q.size, NULL, 0) < 0 || receive(sock).closed ? 0 : 1);
        }
        must(waitpid(pid, &status, 0) == pid && chmod(bed_socket, 0600) == 0);
        is_int(status, 0, "who is not root is hung up on");
}

static bool has_children(void) {
        char path[64], *text = NULL;
        bool has;

        (void) snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int) launcher, (int) launcher);
        must(read_file_all(path, 4096, &text, NULL) == 0);
        has = text[0];
        free(text);
        return has;
}

int main(void) {
        unsigned before;

        bed_setup();
        bed_write("file", "content", 0644);
        must(mkdir(bed_path("share"), 0755) == 0 && chown(bed_path("share"), OWNER, OWNER) == 0 && mkfifo(bed_path("fifo"), 0600) == 0);
        (void) ask("x", 1, NULL, 0);
        before = count_fds(launcher);

        test_right();
        test_fields();
        test_fields_whole();
        test_shapes();
        test_things();
        test_shown_as_opened();
        test_shown_of_daemons();
        test_shown_elsewhere();
        test_arguments();
        test_stranger();

        ok(eventually(!has_children()), "nothing of all this runs on");
        ok(eventually(count_fds(launcher) <= before), "the launcher keeps no fd");
        ok(kill(launcher, 0) == 0, "it is the same launcher still");
        test_right();
        bed_teardown();
        return done_testing();
}
