/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/share.h"
#include "vmm/vhost-user.h"

/* What a share's start and its kinds have in common, and nobody else has. */

#define SHARE_FDS_MAX 3

struct ShareStart {
        Share *share;
        LaunchCall *probe, *open;
        SystemdCall *scope;
        Helper *helper;
        char *description, **argv;
        int control_fd, exec_fd, exit_fd, console_fd, output_fd;
        int fds[SHARE_FDS_MAX];         /* the program's own, gone when it is launched */
        int vmm_fd;                     /* what the VMM is given */
        int ready_fd;                   /* where the program says that it is ready, if not there */
        ShareRequest request;
        NetworkRequest network;
        bool version_known, opened;
        bool abandoned;                 /* but PID 1 is still to say whether there is a scope */
        sd_event_source *answer;
        VhostUserAnswer message;        /* a virtiofsd's */
};

/* What a kind of companion of a VMM does its own way */
struct ShareKind {
        const char *program_name, *title, *list; /* "virtiofsd", "Share", "filesystems" */
        const char *key, *package;      /* which key of the list's elements names it; where its program comes from */
        const char *setting;            /* in vmunit.conf */
        const char *prefix;             /* of its directory below the VM's in /run: "fs-" */
        Program program;
        StartKind start;
        size_t n_fds;                   /* that its program is given */
        bool essential;                 /* the VM does not run on without it */
        char *(*scope_name)(const char *vm, const char *name);
        /* Why it can't be launched, in words, where more is known than the error's own; else NULL */
        const char *(*describe)(int error);
        /* Its files beside those that all have: 0 or -errno */
        int (*make_files)(ShareStart *s);
        /* Begins to make what it is given, if that takes longer; share_prepared() when s->opened */
        int (*open)(ShareStart *s);
        /* Its argument list by the version that it tells; calls share_failed() */
        int (*plan)(ShareStart *s, const char *version);
        /* It is about to execute: from now on a VMM may come. NULL: nothing to do */
        int (*show)(ShareStart *s);
        /* It executes: calls share_is_ready() when it answers. 0 or -errno */
        int (*ask)(ShareStart *s);
};

extern const ShareKind share_kind_virtiofsd, share_kind_passt;

/* share-start.c */
int share_make_file(Share *share, const char *name, int (*make)(const char *path));
/* Something that has to be there before it is launched is there. */
void share_prepared(ShareStart *s);
void share_start_failed(ShareStart *s, int error, const char *what);
