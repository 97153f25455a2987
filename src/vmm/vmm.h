/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "basic/launch-protocol.h"
#include "core/definition.h"
#include "vmm/disk-check.h"

/* One table of functions a back end; what all share (deadlines, last words, liveness) is in core/. */

/* What a VMM is given beside its standard streams, numbered from VMM_FD_FIRST on in their order. */
#define VMM_FD_FIRST 3

typedef enum LaunchFdType {
        LAUNCH_FD_FILE,         /* what the definition names */
        LAUNCH_FD_API,          /* the listening socket of its API, VMMOps.socket */
        LAUNCH_FD_EVENTS,       /* both ends of the FIFO VMM_EVENTS, where it tells of itself: what comes while no daemon listens
                                 * waits there */
        LAUNCH_FD_CONFIG,       /* a file with LaunchPlan.config */
        LAUNCH_FD_SHARE,        /* a connection to the virtiofsd of a share, in the order of the definition */
        LAUNCH_FD_NETWORK,      /* after those: a listening socket to which the passt of a user network connects, in that order, too */
        LAUNCH_FD_SHARES,       /* the directory VMM_SHARES, for VMMOps.connects_shares */
} LaunchFdType;

typedef struct LaunchFd {
        LaunchFdType type;
        char *key;              /* of a file: its path in the definition, for messages: "disks[0].path" */
        char *path;
        bool writable;
        bool lock;              /* the VMM does not lock it */
        ExecShown shown;        /* 0: the VMM takes the fd itself */
} LaunchFd;

/* What is to be executed, made by a pure function. */
typedef struct LaunchPlan {
        char **argv;            /* [0] a name for the process list */
        LaunchFd *fds;
        size_t n_fds;
        char *config;           /* JSON: a file for it, or what VMMOps.boot() sends; NULL if it takes arguments alone */
        bool tty;               /* its console is a terminal; else pipes */
        uint32_t rights;        /* ExecRight */
} LaunchPlan;

LaunchPlan *launch_plan_free(LaunchPlan *p);
DEFINE_TRIVIAL_CLEANUP_FUNC(LaunchPlan *, launch_plan_free);
/* For back ends: adds an fd and gives its number in the VMM, or -ENOMEM. */
int launch_plan_add_fd(LaunchPlan *p, LaunchFdType type);
int launch_plan_add_file(LaunchPlan *p, const char *path, bool writable, const char *key_format, ...) _printf_(4, 5);
/* The name by which the VMM finds its fd; NULL: no memory. */
char *launch_plan_show(LaunchPlan *p, int fd, ExecShown how);
/* -EOPNOTSUPP with VMUNIT_ERROR_NOT_SUPPORTED and this message, which begins with a path ("filesystems: …") */
int vmm_refuse(sd_bus_error *error, const char *format, ...) _printf_(2, 3);

typedef struct LaunchParams {
        const Definition *definition;
        const char *name, *id;
        uint32_t cid;           /* of its vsock, 0: none */
        bool kvm;               /* accel as decided */
        DiskFiles *const *files; /* one a disk, with their images; NULL: they were not looked at yet */
} LaunchParams;

/* What a file begins with */
typedef struct FileHead {
        const void *data;
        size_t size;
} FileHead;

typedef enum VMMState {
        VMM_STATE_UNKNOWN,
        VMM_STATE_NOT_STARTED,  /* defined, its guest has not run yet */
        VMM_STATE_RUNNING,
        VMM_STATE_PAUSED,
        VMM_STATE_IO_ERROR,     /* paused by a disk error */
        VMM_STATE_SHUTDOWN,     /* the guest has powered off, the process stays */
        VMM_STATE_FAILED,       /* KVM error, guest panic: of no more use */
} VMMState;

typedef enum VMMEvent {
        VMM_EVENT_CONNECTED,            /* the API answers; state tells what the VMM does. Once per vmm_connect(). */
        VMM_EVENT_RUNNING,              /* asked for or not, as are all below */
        VMM_EVENT_PAUSED,
        VMM_EVENT_IO_ERROR,             /* a disk error has stopped it */
        VMM_EVENT_POWER_BUTTON,         /* pressed */
        VMM_EVENT_GUEST_SHUTDOWN,       /* the guest powers off; the process ends by itself */
        VMM_EVENT_GUEST_RESET,
        VMM_EVENT_GUEST_GONE,           /* it was reset, which ends the process; but that hangs, and has to be killed. Also before CONNECTED */
        VMM_EVENT_GUEST_PANICKED,
        VMM_EVENT_SHUTDOWN,             /* the process ends by quit or a signal */
        VMM_EVENT_EXITED,               /* the process ends in good order, and why it does not tell */
        VMM_EVENT_FAILED,               /* KVM error, internal error: the guest is stopped for good */
        VMM_EVENT_DISCONNECTED,         /* the API is gone or answers garbage (error says); nothing more comes */
        _VMM_EVENT_MAX,
} VMMEvent;

typedef struct VMM VMM;
typedef struct VMMOps VMMOps;

/* error: a negative errno with VMM_EVENT_DISCONNECTED, else 0. The handler may free the VMM. */
typedef void (*vmm_event_cb)(void *userdata, VMMEvent event, VMMState state, int error);

/* error 0: done. Else a negative errno (-ETIMEDOUT: no answer in time, -EPIPE: connection lost, -ECANCELED: the VMM object was
 * freed) and the VMM's own words, or NULL. Runs exactly once, from the loop or from free(), and not after that. */
typedef void (*vmm_reply_cb)(void *userdata, int error, const char *message);

typedef struct VMMCounter {
        char name[64];          /* "disk0.ReadBytes" */
        uint64_t value;
} VMMCounter;
typedef void (*vmm_counters_cb)(void *userdata, int error, const VMMCounter *counters, size_t n);

typedef struct VMMCall VMMCall;

/* What any call may take that has no reason for more */
#define VMM_TIMEOUT_USEC (10 * USEC_PER_SEC)

/* Each back end's object begins with this. */
struct VMM {
        const VMMOps *ops;
        vmm_event_cb handler;
        void *userdata;
        pid_t pid;              /* of the process, set by who has connected; 0: not known */
        /* For back ends alone: vmm-object.h */
        unsigned n_ref;
        bool freed, connected;
        VMMState state;
        VMMCall *calls;
};

typedef struct VMMFeature {
        const char *name;
        const char *since;      /* version; NULL: any */
} VMMFeature;

struct VMMOps {
        Backend backend;
        const char *title;      /* for people: "QEMU" */
        Program program;
        const char *socket;     /* name of the API socket, in the VM's directory below /run or in EXEC_SOCKETS_DIR */
        const VMMFeature *features; /* for the property Backends; the last has no name */
        const char *version_min; /* NULL: any will do, and what it can do does not depend on it */
        bool needs_kvm;
        bool needs_vhost_vsock; /* for a vsock: the host's device */
        bool takes_images;      /* disks that rest on other images: it opens no file by itself. Their fds are the last ones of the plan, in
                                 * the order of the disks. */
        bool connects_shares;   /* itself, and anew when its guest reboots; else it is given the connections */
        bool tells_end;         /* its last event tells why it ends, so one that ends without has crashed; else the exit status tells */

        /* 0, or -EOPNOTSUPP with VMUNIT_ERROR_NOT_SUPPORTED, the message beginning with the path ("filesystems: …"). version:
         * "1.12.1", "" if it is not known. */
        int (*check)(const Definition *d, const char *version, sd_bus_error *error);
        /* The same by what the kernel's file begins with. NULL: it takes what it is given. */
        int (*check_kernel)(const Definition *d, const char *version, const FileHead *kernel, sd_bus_error *error);
        /* Pure: definition in, argument list and files out */
        int (*plan)(const LaunchParams *p, LaunchPlan **ret);
        /* Connects to the VMM whose socket (and FIFO) is in dir, the VM's directory below /run, or who is asked there for the directory of
         * the sockets that it makes; gives the object at once, CONNECTED or DISCONNECTED comes later. A socket that the VMM makes may not
         * be there yet. */
        int (*connect)(sd_event *e, const char *dir, vmm_event_cb handler, void *userdata, VMM **ret);
        void (*free)(VMM *v); /* also from within any callback */

        /* Asynchronous, each with a deadline of its own, but for the button: one that hangs and goes on is to obey still. Boot succeeds when the VMM itself says that the guest runs; it may be
         * asked for at once after connect(), before CONNECTED; config is that of the plan, copied if kept. Pause and resume are
         * idempotent. */
        int (*boot)(VMM *v, const char *config, vmm_reply_cb cb, void *userdata);
        int (*pause)(VMM *v, vmm_reply_cb cb, void *userdata);
        int (*resume)(VMM *v, vmm_reply_cb cb, void *userdata);
        int (*power_button)(VMM *v, vmm_reply_cb cb, void *userdata);
        /* NULL: it can't, so the core kills it and starts another. */
        int (*reset)(VMM *v, vmm_reply_cb cb, void *userdata);
        /* Ends the process the orderly way (disks flushed), without asking the guest. NULL: SIGKILL does it. */
        int (*quit)(VMM *v, vmm_reply_cb cb, void *userdata);
        /* Power button, then a fresh boot in the same process once the guest has shut down: replies when it runs again. The caller
         * sets the time limit and ends it with reboot_cancel, after which a shutdown of the guest ends the VMM again; a guest that
         * is down by then comes up still. The callback then gets -ECANCELED, later. Of one that is down already the rest is done.
         * NULL: its process ends with the guest, and the core starts another. */
        int (*reboot)(VMM *v, vmm_reply_cb cb, void *userdata);
        void (*reboot_cancel)(VMM *v);
        /* The same where the button was pressed before, through another connection */
        int (*reboot_pressed)(VMM *v, vmm_reply_cb cb, void *userdata);
        /* Why a guest is PAUSED that nobody has paused: a sentence of ours, or NULL. NULL: it never tells. */
        const char *(*why)(const VMM *v);
        int (*counters)(VMM *v, vmm_counters_cb cb, void *userdata); /* -EBUSY: many have asked, and wait */
        /* What the VMM has sent but the loop has not read yet is handled now: its last event says why it died. */
        void (*drain)(VMM *v);
        /* What an end means that no event has told (the daemon was away, the connection was lost): GUEST_SHUTDOWN, GUEST_RESET,
         * GUEST_PANICKED, FAILED, EXITED, or _VMM_EVENT_MAX for a crash. status as wait(2), output: the last words, escaped. */
        VMMEvent (*exit_cause)(int status, const char *output);
};

extern const VMMOps cloud_hypervisor_ops;
extern const VMMOps firecracker_ops;
extern const VMMOps qemu_ops;
/* NULL: not built yet */
const VMMOps *vmm_ops(Backend b);

static inline void vmm_freep(VMM **v) {
        if (*v)
                (*v)->ops->free(*v);
}
