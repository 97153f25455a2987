/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/json-util.h"
#include "bus/http.h"

/* What the back ends share whose VMM is spoken to by HTTP and tells of itself in a FIFO. Nothing of it is trusted. */

/* What an answer means, for vmm_reply_cb: 0 for a status of success, -EREMOTEIO for another one; -EPIPE where nobody listens any
 * more; else the error of http_cb. */
int http_vmm_error(int error, unsigned status);

/* The VMM's words in an answer without success: of {"fault_message": "…"} or ["…", "…"], else the text as it is. Escaped, bounded;
 * NULL: it has none. The caller frees. */
char *http_vmm_words(const char *body, size_t size);

/* JSON objects in the FIFO that a VMM writes to, one after the other with a separator between them ("\n", or "\n\n" if they have
 * lines of their own). A VMM that finds the FIFO full drops what it likes, so what is none ends with the next separator. */
typedef struct VMMStream VMMStream;

#define VMM_STREAM_RECORD_MAX (256U * 1024U)

/* o NULL: something was lost, or is no such object. The callback may free the stream. */
typedef void (*vmm_stream_cb)(void *userdata, json_object *o);

/* Of the FIFO VMM_EVENTS in dir. separator: a constant. */
int vmm_stream_new(sd_event *e, const char *dir, const char *separator, vmm_stream_cb cb, void *userdata, VMMStream **ret);
VMMStream *vmm_stream_free(VMMStream *s);
DEFINE_TRIVIAL_CLEANUP_FUNC(VMMStream *, vmm_stream_free);
/* Handles what has been written, without waiting; also NULL. */
void vmm_stream_drain(VMMStream *s);
