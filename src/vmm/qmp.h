/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/json-util.h"

/* A client of QEMU's monitor protocol. What the other side sends is not trusted: it can neither crash nor block the client,
 * nor make it grow; at worst the connection ends. */

#define QMP_LINE_MAX (512U * 1024U)     /* of one message */
#define QMP_OUTPUT_MAX (256U * 1024U)   /* not yet taken by the socket */
#define QMP_DRAIN_MAX (4U * 1024U * 1024U)

typedef struct QMP QMP;

/* All handlers may free the QMP. */
typedef struct QMPHandlers {
        /* The greeting has come and commands are accepted. */
        void (*ready)(void *userdata);
        void (*event)(void *userdata, const char *name, json_object *data);
        /* -EPIPE: the other side closed; -EBADMSG, -EMSGSIZE: it sent what is not QMP, or too much of it. After all pending
         * commands have failed; nothing comes after it. */
        void (*disconnected)(void *userdata, int error);
} QMPHandlers;

/* error 0 with what was returned; -EREMOTEIO with QEMU's words; -ETIMEDOUT, then the connection goes on; -EPIPE;
 * -ECANCELED from qmp_free(). Runs exactly once, never from within qmp_command(). */
typedef void (*qmp_reply_cb)(void *userdata, int error, json_object *result, const char *message);

/* Does not wait for the greeting, whose deadline is the caller's matter. handlers must stay. */
int qmp_connect(sd_event *e, const char *path, const QMPHandlers *handlers, void *userdata, QMP **ret);
/* Also from within any callback, even one that it runs itself. No callback runs afterwards. */
QMP *qmp_free(QMP *q);
DEFINE_TRIVIAL_CLEANUP_FUNC(QMP *, qmp_free);

/* Takes arguments over (NULL: none), also on error. -ENOTCONN before the greeting and after the end. */
int qmp_command(QMP *q, const char *command, json_object *arguments, uint64_t timeout_usec, qmp_reply_cb cb, void *userdata);

/* As if the other side had closed it: all that is pending fails with -EPIPE, then disconnected() gets the error. */
void qmp_give_up(QMP *q, int error);

/* Handles what has arrived, without waiting. */
void qmp_drain(QMP *q);
