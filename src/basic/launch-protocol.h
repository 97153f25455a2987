/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/conf.h"
#include "basic/exec-protocol.h"

/* What vmunitd and vmunit-launch say to each other: /run/vmunit-launch.sock (SEQPACKET, root's), one request a connection,
 * fixed structs of the same machine, checked on both sides. */

#define LAUNCH_SOCKET "/run/vmunit-launch.sock"
#define LAUNCH_MAGIC UINT32_C(0x766d7534) /* "vmu4"; changes with the format */
#define LAUNCH_MESSAGE_MAX (160U * 1024U)
#define LAUNCH_HEAD_MAX 4096U /* what tells a kernel, or a disk image and what it rests on */

typedef enum LaunchType { LAUNCH_OPEN = 1, LAUNCH_START, LAUNCH_PROBE, LAUNCH_VSOCK, LAUNCH_LOOP } LaunchType;

typedef struct LaunchHeader {
        uint32_t magic, type;
        uint32_t size;          /* of the whole datagram */
        uint32_t reserved;      /* 0 */
} LaunchHeader;

/* OPEN: a path as an owner sees it. Answer: OpenReply and, on success, the fd. */
enum {
        LAUNCH_OPEN_WRITE = 1 << 0,
        LAUNCH_OPEN_DIRECTORY = 1 << 1,
        LAUNCH_OPEN_LOCK = 1 << 2, /* nobody who looks for locks writes to it as long as the fd is open, or reads it if it is to be written */
        _LAUNCH_OPEN_ALL = LAUNCH_OPEN_WRITE | LAUNCH_OPEN_DIRECTORY | LAUNCH_OPEN_LOCK,
};

typedef struct OpenRequest {
        LaunchHeader header;
        uint32_t uid, flags;
        char path[];            /* absolute, NUL-terminated, < PATH_MAX */
} OpenRequest;

typedef struct OpenReply {
        LaunchHeader header;
        int32_t error;          /* negative errno or 0, as of open_checked(); -EBUSY: too many opens of this owner hang,
                                 * -EAGAIN: locked by somebody else */
        uint32_t mode;          /* st_mode, as the opener saw it */
        uint32_t gid;           /* the owner's own group */
        uint32_t reserved;
        uint64_t size;
        uint64_t dev, ino;      /* which file it is */
        uint32_t head_size;     /* bytes in head: what the file begins with, read by who opened it */
        uint8_t head[LAUNCH_HEAD_MAX];
} OpenReply;

/* START: a helper with these fds, in this order, then the VMM's own, which the VMM gets as 3, 4, 5…. Answer: StartReply and the
 * helper's pidfd. The helper lives until the daemon says `go` only as long as the daemon holds its end of the control
 * socket; it is reaped only after the daemon has closed the connection to the launcher. */
enum { HELPER_FD_CONTROL, HELPER_FD_EXEC, HELPER_FD_EXIT, HELPER_FD_CONSOLE_LOG, HELPER_FD_LAST_OUTPUT, _HELPER_FD_MAX };

/* How a program's standard streams are its console, or that it is a virtiofsd, whose first own fd is the directory that is shared, or a
 * passt, whose first own fds are the file that it sees as /etc/resolv.conf and its standard input */
typedef enum StartKind { START_PIPES, START_TTY, START_SHARE, START_NETWORK, _START_KIND_MAX } StartKind;

/* The ids of the host that a virtiofsd has as 0, 1… in its user namespace, and who owns on disk what its 0 makes; more than one: the
 * owners on disk are 0, 1…, too. */
typedef struct ShareRequest {
        uint32_t base, count;   /* uids and gids: one, VM_IDS_BASE + 2 * n + 1, or all of root's: SHARE_IDS */
        uint32_t uid, gid;
        uint32_t readonly;      /* 0 or 1 */
        uint32_t reserved;      /* 0 */
} ShareRequest;

/* Who a passt is on the host, in whose network it is */
typedef struct NetworkRequest {
        uint32_t id;            /* uid and gid: NETWORK_IDS_BASE + n, n > 0 */
        uint32_t low_ports;     /* 0 or 1: it listens below 1024 */
        uint32_t resolver;      /* the one address of the host's own network 127.0.0.0/8, as in struct in_addr, that it may speak to of its own
                                 * accord, at port 53; 0: none */
        uint32_t reserved;      /* 0 */
} NetworkRequest;

/* What a VMM is given, and how it is shown its own fds: ExecRight, ExecShown */
#define VMM_FDS_MAX 245U /* as many as come with one message, but for the helper's */
/* All that a VMM is shown of the daemon's own, in the VM's directory there. Their fds are of the daemon's mounts, so they are opened anew. */
#define RUN_VMS_DIR "/run/vmunit/vms"
#define VMM_EVENTS "events"     /* a FIFO */
#define VMM_SHARES "shares"     /* a directory: where the virtiofsds listen, each at its tag */

typedef struct VMMRequest {
        uint32_t id;            /* uid and gid: VM_IDS_BASE + 2 * n, n > 0 */
        uint32_t rights;
        char shown[VMM_FDS_MAX];
        char reserved[3];       /* 0 */
} VMMRequest;

/* Ids of VMs are in this block, which sysusers.d/vmunit.conf keeps others off; the one after it is that of root's shares, the third that of
 * passts, one id for each VM. */
#define VM_IDS_BASE UINT32_C(1000013824)
#define SHARE_IDS UINT32_C(65536)
#define NETWORK_IDS_BASE (VM_IDS_BASE + 2 * SHARE_IDS)

typedef struct StartRequest {
        LaunchHeader header;
        uint32_t program;       /* Program */
        uint32_t n_fds;         /* the VMM's own */
        uint64_t console_log_max;
        uint32_t argv_size;     /* NUL-terminated strings; [0] is the VMM's name, the program itself is the launcher's to choose */
        uint32_t kind;          /* StartKind */
        ShareRequest share;     /* of a virtiofsd, else 0 */
        NetworkRequest network; /* of a passt, else 0 */
        VMMRequest vmm;         /* of a VMM, else 0 */
        char argv[];
} StartRequest;

typedef struct StartReply {
        LaunchHeader header;
        int32_t error;
        int32_t pid;            /* in the launcher's PID namespace, which is the host's */
        uint32_t fd;            /* which of the VMM's own cannot be shown, with -EMEDIUMTYPE, for its file system lets no other uid have it;
                                 * -EBUSY: it is a block device, and locked by somebody else */
        uint32_t reserved;
} StartReply;

/* LOOP: a raw image, which comes along, as a block device that goes with its last user. Answer: LoopReply and the device's fd. */
typedef struct LoopRequest {
        LaunchHeader header;
        uint32_t readonly;      /* 0 or 1 */
        uint32_t reserved;      /* 0 */
} LoopRequest;

typedef struct LoopReply {
        LaunchHeader header;
        int32_t error;
        uint32_t reserved;
} LoopReply;

/* PROBE: is the program there, which version; are the devices usable. Answer: ProbeReply. */
typedef struct ProbeRequest {
        LaunchHeader header;
        uint32_t program;       /* Program */
        uint32_t want_version;  /* 0: path and devices alone, which is fast */
} ProbeRequest;

typedef struct ProbeReply {
        LaunchHeader header;
        int32_t error;          /* -ENOENT: not found, -EACCES …, -ETIMEDOUT: --version did not end */
        int32_t kvm_error, vhost_vsock_error; /* 0: /dev/kvm, /dev/vhost-vsock open read-write */
        uint32_t reserved;
        uint64_t mtime_usec;
        char path[512];
        char version[256];      /* first line of what --version printed, control characters replaced */
} ProbeReply;

/* VSOCK: a connection to a guest by vhost-vsock(4). Answer: VSockReply and, on success, the fd. */
typedef struct VSockRequest {
        LaunchHeader header;
        uint32_t cid, port;     /* a guest's: the host's own are refused */
} VSockRequest;

typedef struct VSockReply {
        LaunchHeader header;
        int32_t error;          /* as of connect(2): -ECONNRESET, nobody listens; -ENODEV, no such guest; -ETIMEDOUT */
        uint32_t reserved;
} VSockReply;
