/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/macro.h"

/* What a VM is, as its owner wrote it: docs/definition.md. Parsed strictly, kept normalised. */

#define DEFINITION_BYTES_MAX (256U * 1024U)
#define DEFINITION_DEPTH_MAX 32U

typedef enum Backend {
        BACKEND_QEMU,
        BACKEND_CLOUD_HYPERVISOR,
        BACKEND_FIRECRACKER,
        _BACKEND_MAX,
        BACKEND_AUTO = -1,                /* not -EINVAL */
} Backend;

typedef enum Accel { ACCEL_AUTO, ACCEL_KVM, ACCEL_TCG, _ACCEL_MAX } Accel;
typedef enum DiskFormat { DISK_RAW, DISK_QCOW2, _DISK_FORMAT_MAX } DiskFormat;
typedef enum Protocol { PROTOCOL_TCP, PROTOCOL_UDP, _PROTOCOL_MAX } Protocol;
typedef enum NetworkType { NETWORK_USER, NETWORK_TAP, _NETWORK_TYPE_MAX } NetworkType;
typedef enum RestartPolicy { RESTART_NO, RESTART_ON_FAILURE, RESTART_ALWAYS, _RESTART_POLICY_MAX } RestartPolicy;

typedef struct Disk {
        char *name;
        char *path;             /* absolute */
        DiskFormat format;
        bool readonly;
} Disk;

typedef enum FilesystemCache { CACHE_AUTO, CACHE_ALWAYS, CACHE_NEVER, _FILESYSTEM_CACHE_MAX } FilesystemCache;

typedef struct Filesystem {
        char *tag;
        char *source;           /* absolute */
        bool readonly;
        FilesystemCache cache;
        unsigned threads;       /* beside virtiofsd's main one */
        bool xattr, posix_acl;  /* the latter only with the former */
} Filesystem;

typedef struct Forward {
        char *address;          /* a numeric IPv4 address of the host */
        Protocol protocol;
        uint16_t host, guest;   /* ports */
} Forward;

typedef struct Network {
        char *name;
        NetworkType type;
        Forward *forwards;
        size_t n_forwards;
} Network;

/* systemd.resource-control(5) by their names there; unset ones are left to systemd. */
typedef enum Resource {
        RESOURCE_CPU_WEIGHT,
        RESOURCE_CPU_QUOTA,     /* µs of CPU time a second */
        RESOURCE_MEMORY_MAX,
        RESOURCE_MEMORY_HIGH,
        RESOURCE_TASKS_MAX,
        RESOURCE_IO_WEIGHT,
        RESOURCE_ALLOWED_CPUS,
        _RESOURCE_MAX,
} Resource;

typedef struct Resources {
        char *text[_RESOURCE_MAX];      /* as written, normalised; NULL: not set */
        uint64_t value[_RESOURCE_MAX];  /* UINT64_MAX: infinity; not for ALLOWED_CPUS */
        uint8_t *allowed_cpus;          /* bit mask, lowest CPU first, as systemd's D-Bus API takes it */
        size_t allowed_cpus_size;
} Resources;

typedef struct Definition {
        Backend backend;
        Accel accel;
        unsigned cpus;                  /* default 1 */
        uint64_t memory;                /* bytes, a multiple of 1 MiB; default 512 MiB */

        char *kernel, *initramfs, *cmdline; /* kernel NULL: firmware */
        char *firmware;                 /* "bios", "uefi" or an absolute path; NULL with a kernel */

        Disk *disks;
        size_t n_disks;
        Filesystem *filesystems;
        size_t n_filesystems;
        Network *networks;
        size_t n_networks;
        bool vsock;

        RestartPolicy restart_policy;
        unsigned restart_max;
        bool autostart;
        int autostart_priority;
        uint64_t stop_timeout_usec;     /* USEC_INFINITY: for ever */

        Resources resources;
        char **label_keys, **label_values; /* same length, sorted by key */
} Definition;

void definition_free(Definition *d);
DEFINE_TRIVIAL_CLEANUP_FUNC(Definition *, definition_free);

/* Parses a definition. On error: VMUNIT_ERROR_INVALID_DEFINITION with a message that begins with the path in the JSON
 * ("disks[0].format: …") and says what to write instead; returns the negative errno that belongs to it. */
int definition_parse(const char *json, Definition **ret, sd_bus_error *error);

/* The normalised JSON with all defaults (the caller frees); parses back to an equal definition. */
int definition_format(const Definition *d, char **ret);

/* SHA-256 of the normalised JSON in hex. */
int definition_hash(const Definition *d, char ret[static 65]);

/* RFC 7396 merge patch, except that arrays whose elements have a "name" (or "tag") are merged by it: an element of the
 * patch changes the one of its name or is added, {"name": "data0", "delete": true} takes it out; and that a kernel
 * takes the place of the firmware, and a firmware that of the kernel. The result is checked as a whole. d stays as it
 * is. */
int definition_merge(const Definition *d, const char *patch, Definition **ret, sd_bus_error *error);

/* Paths of what differs ("cpus", "boot.kernel", "disks.data0.path"), sorted; NULL: nothing differs. */
int definition_diff(const Definition *a, const Definition *b, char ***ret);

/* Whether it needs more of the host than an ordinary user has, beside what is asked when it is used, such as files: 1, and what (the
 * caller frees). What is in `had` too does not count (NULL: nothing). */
int definition_exceeds_user(const Definition *d, const Definition *had, char **ret_why);

/* Appends the set resources as (sv) structs to the property array of a StartTransientUnit or SetUnitProperties call. */
int resources_append(const Resources *r, sd_bus_message *m);
/* The same for what differs: a resource that is no longer set goes back to systemd's default. */
int resources_append_change(const Resources *from, const Resources *to, sd_bus_message *m);

const char *backend_to_string(Backend b);       /* "auto" for BACKEND_AUTO */
Backend backend_from_string(const char *s);     /* -EINVAL for an unknown one, which is not BACKEND_AUTO */
const char *restart_policy_to_string(RestartPolicy p);
const char *accel_to_string(Accel a);
const char *disk_format_to_string(DiskFormat f);
const char *filesystem_cache_to_string(FilesystemCache c);
const char *protocol_to_string(Protocol p);
const char *network_type_to_string(NetworkType t);
