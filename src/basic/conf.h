/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* The programs that vmunit may start. Their numbers are part of the launcher's protocol. */
typedef enum Program {
        PROGRAM_QEMU,
        PROGRAM_CLOUD_HYPERVISOR,
        PROGRAM_FIRECRACKER,
        PROGRAM_VIRTIOFSD,
        PROGRAM_PASST,
        _PROGRAM_MAX,
        _PROGRAM_COMPANIONS = PROGRAM_VIRTIOFSD, /* those from here on run beside a VMM */
} Program;

typedef enum OnBoot {
        ON_BOOT_NOTHING,
        ON_BOOT_AUTOSTART,      /* those with `autostart` */
        ON_BOOT_RESUME,         /* also those that ran */
} OnBoot;

/* What the VMs of one user other than root may be defined to have in all */
typedef enum UserLimit {
        USER_LIMIT_VMS,
        USER_LIMIT_CPUS,
        USER_LIMIT_MEMORY,      /* bytes */
        USER_LIMIT_DISKS,
        _USER_LIMIT_MAX,
} UserLimit;

/* vmunit.conf: systemd's INI style, one section [VMUnit]. Read from /etc/vmunit/vmunit.conf, then drop-ins
 * vmunit.conf.d/NAME.conf below /usr/lib/vmunit, /run and /etc/vmunit, in the order of their names; one of the same name
 * in a later directory replaces the earlier. The daemon and the launcher read the same. */
typedef struct Config {
        char *program[_PROGRAM_MAX];    /* QEMU=, CloudHypervisor=, Firecracker=, VirtioFSD=, Passt=: absolute path, NULL:
                                         * searched in the usual directories */
        char **backends;                /* Backends=: names in the order in which `auto` tries them */
        uint64_t start_timeout_usec;    /* StartTimeoutSec=: a VMM has to run by then (default 30 s) */
        uint64_t restart_usec;          /* RestartSec=: before the first restart; doubles with each (default 1 s) */
        uint64_t restart_max_delay_usec; /* RestartMaxDelaySec=: the most that it grows to (default 5 min) */
        uint64_t restart_reset_usec;    /* RestartResetSec=: who ran so long starts counting anew (default 2 min) */
        OnBoot on_boot;                 /* OnBoot=: which VMs are started after a boot (default autostart) */
        uint64_t on_boot_delay_usec;    /* OnBootDelaySec=: between two of them (default 0) */
        uint64_t console_log_max;       /* ConsoleLogMaxBytes=: bound of a VM's console log (default 1 MiB) */
        uint64_t events_max;            /* EventsMax=: rows of history that are kept (default 10000) */
        uint64_t events_max_age_usec;   /* EventsMaxAgeSec=: older rows of history go (default 90 days) */
        uint64_t vms_max;               /* VMsMax=: VMs of all users, root too; UINT64_MAX: none (default 4096) */
        uint64_t user_limit[_USER_LIMIT_MAX]; /* UserVMsMax= …: UINT64_MAX: none (defaults 32, 64, half of the host's memory, 128) */
        int log_level;                  /* LogLevel=: syslog(3) level, by name or number (default info) */
} Config;

void config_free(Config *c);
DEFINE_TRIVIAL_CLEANUP_FUNC(Config *, config_free);

/* Defaults, overridden by what the files say. An unknown key, section or a bad value is a warning with file and line and
 * changes nothing. Fails only for lack of memory. root is put before all paths (NULL: none), for tests. */
int config_load(const char *root, Config **ret);

/* "UserVMsMax" etc. */
const char *user_limit_to_string(UserLimit l);

const char *program_to_string(Program p);
Program program_from_string(const char *s);
