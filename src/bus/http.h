/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/macro.h"

/* A client of an HTTP server on a UNIX socket. Requests of one Http go out one after the other, in order, each on a connection of
 * its own: the server sees no request twice. Those of different ones do not wait for each other. What the server sends is not
 * trusted: it can neither crash nor block the client, nor make it grow; at worst that request fails. One that is idle is a few
 * hundred bytes and no file descriptor. */

#define HTTP_BODY_MAX (1024U * 1024U)   /* of an answer, */
#define HTTP_HEAD_MAX (64U * 1024U)     /* and of its header lines */
#define HTTP_PENDING_MAX 64U

typedef struct Http Http;

/* Connects to nothing yet. -ENOPKG: there is no libcurl, which the first of a process loads. */
int http_new(sd_event *e, const char *path, Http **ret);
/* Callbacks of what is pending run with -ECANCELED, which may free it once more; none runs afterwards. The connection is closed; the server may do what it was asked all the same. */
Http *http_free(Http *h);
DEFINE_TRIVIAL_CLEANUP_FUNC(Http *, http_free);

/* error 0: answered, with any status from 200. -ETIMEDOUT: no whole answer in time; -ECONNREFUSED, -ENOENT: nobody listens; -EPIPE:
 * closed before the answer was whole; -EBADMSG: it is not HTTP; -EMSGSIZE: it is too long; -ECANCELED: from http_free(). Or
 * another, of connect() or for want of memory. body is size bytes and a NUL, the callee's until it returns; NULL on error.
 * Runs exactly once, never from within http_request(); may free the Http and make requests. */
typedef void (*http_cb)(void *userdata, int error, unsigned status, const char *body, size_t size);

/* path: as it is sent, from the "/" on. body: JSON, or NULL for none ("Content-Length: 0" with PUT and PATCH). timeout_usec counts
 * from this call, also while the request waits for those before it: one that was never sent can be -ETIMEDOUT too. -EINVAL:
 * method or path can't be sent; -ENOBUFS: too many are pending. On error the callback does not run. */
int http_request(Http *h, const char *method, const char *path, const char *body, uint64_t timeout_usec, http_cb cb, void *userdata);
/* Tells what has come, without waiting for a turn of the loop; also NULL. That nothing comes any more is left to the loop. */
void http_drain(Http *h);
