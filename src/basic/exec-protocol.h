/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* What vmunitd and vmunit-exec, the VMM's parent, say to each other. */

/* 0. What vmunit-launch starts it with: these fds, then the program's own, and `vmunit-exec PROGRAM CONSOLE-LOG-MAX FDS HOW ID …`.
 *    HOW is `tty` or `pipes`, a VMM's console; or `share`: a virtiofsd, with two fds more before its own: the share's mount, which it
 *    finds at EXEC_SHARE, and its user namespace; or `network`: a passt, with two fds more: what it reads from /etc/resolv.conf, and its
 *    standard input. FDS has a letter for each of its own fds: how it is shown (ExecShown). For each that is, in their order, one more fd
 *    follows them all: the mount that is shown, or what a copy or a node is made of. ID is its uid and gid on the host. Then comes a sum of
 *    ExecRight, for a passt PORTS RESOLVER: `low-ports` or `-`, and as in NetworkRequest. ARGV is a file of NUL-terminated arguments. The first
 *    five stand in the order of HELPER_FD_*. */
#define EXEC_SHARE "/share"
enum { EXEC_FD_CONTROL = 3, EXEC_FD_EXEC, EXEC_FD_EXIT, EXEC_FD_CONSOLE_LOG, EXEC_FD_LAST_OUTPUT, EXEC_FD_ARGV, EXEC_FD_VMM };

/* A VMM that takes a name where others take a fd finds its fd N at EXEC_FILES/N. */
#define EXEC_FILES "/files"
typedef enum ExecShown {
        EXEC_SHOWN_NOT = '-',
        EXEC_SHOWN_COPY = 'c',          /* read-only; where its file system does not let it be shown to another uid, a copy will do */
        EXEC_SHOWN_READ = 'r',
        EXEC_SHOWN_WRITE = 'w',
        EXEC_SHOWN_DIRECTORY = 'd',     /* read-only; the fd itself is not the VMM's */
} ExecShown;

/* What not each VMM is given */
typedef enum ExecRight {
        EXEC_KVM = 1 << 0,
        EXEC_VHOST_VSOCK = 1 << 1,
        EXEC_SOCKETS = 1 << 2,          /* it makes sockets, in a file system of its own at EXEC_SOCKETS_DIR */
        _EXEC_RIGHTS_ALL = (1 << 3) - 1,
} ExecRight;
#define EXEC_SOCKETS_DIR "/vm"
#define EXEC_VSOCK EXEC_SOCKETS_DIR "/vsock" /* where a VMM that has its own kind of vsock listens */
/* Where whatever is written is the VMM's last output, for one that has to name it */
#define EXEC_STDERR "/dev/stderr"
/* What it has as this fd is the writing end of a pipe, for nothing but to be closed with it. The kernel closes the last fds of a process first, and
 * takes a VM apart for as long as some 20 ms, before it tells anybody of the end: so this one says it earlier. It proves nothing, for a VMM
 * may close it as well. */
#define EXEC_FD_LIFE 1000

/* 1. The control socket (SEQPACKET pair made by the daemon). Daemon to helper: one byte a message. End of file before GO
 *    makes the helper exit, and with it the VMM's process. After GO the helper no longer cares for the daemon. */
enum { EXEC_FORK = 'f', EXEC_GO = 'g' };

/* Helper to daemon */
typedef enum ExecEventType {
        EXEC_FORKED = 1,        /* pid; the VMM's pidfd comes along. It has not executed anything yet. */
        EXEC_DONE,              /* execve(2) succeeded */
        EXEC_FAILED,            /* error: negative errno of what failed; stage says what */
} ExecEventType;

typedef struct ExecEvent {
        uint32_t type;
        int32_t pid;
        int32_t error;
        char stage[28];         /* "execve", "a PID namespace", … NUL-terminated */
} ExecEvent;

/* 2. The listening socket `exec` (SEQPACKET, 0600, root's), made by the daemon: one request a connection. */
typedef enum ExecRequestType {
        EXEC_REQUEST_CONSOLE = 1, /* answer: int32 0 and one end of a stream socket pair that reads and writes the port */
        EXEC_REQUEST_SOCKETS,   /* answer: int32 0 and the VMM's EXEC_SOCKETS_DIR, where no symbolic link is followed */
        EXEC_REQUEST_VSOCK,     /* answer: int32 0 and a connection to EXEC_VSOCK, which may be for the VMM's uid alone; or a negative errno */
        EXEC_REQUEST_LIFE,      /* answer: int32 0 and the end of EXEC_FD_LIFE's pipe that hangs up */
} ExecRequestType;

typedef struct ExecRequest {
        uint32_t type;
} ExecRequest;

/* 3. The file `exit`: this record, written once when the VMM has ended. */
#define EXIT_RECORD_MAGIC UINT32_C(0x766d7578)
typedef struct ExitRecord {
        uint32_t magic;
        int32_t status;         /* as wait(2) gives it */
} ExitRecord;

/* 4. The files `console.log` and `last-output`: rings that keep the newest bytes; byte k of all ever written stands at offset
 *    k % size behind the header. The header is written after the data, and once before them if they overwrite old bytes,
 *    with their number in `pending`. So bytes max(0, total + pending - size) up to total are good, as the header stood
 *    after they were read (docs/architecture.md). */
#define RING_MAGIC UINT32_C(0x766d7572)
typedef struct RingHeader {
        uint32_t magic;
        uint32_t pending;       /* bytes behind `total` that may be half written */
        uint64_t size;          /* of the ring behind the header */
        uint64_t total;         /* bytes ever written */
} RingHeader;

#define LAST_OUTPUT_MAX (64U * 1024U)
