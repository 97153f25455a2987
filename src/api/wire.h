/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <json-c/json.h>
#include <sys/types.h>
#include <systemd/sd-bus.h>

#include "basic/macro.h"
#include "core/job.h"
#include "core/vm.h"

/* What all objects share: options, callers, errors, answers that come later. */

#define API_PATH "/org/vmunit1"
#define API_VM_PATH API_PATH "/vm"
#define API_JOB_PATH API_PATH "/job"
#define API_MANAGER_INTERFACE "org.vmunit1.Manager"
#define API_VM_INTERFACE "org.vmunit1.VM"
#define API_JOB_INTERFACE "org.vmunit1.Job"

/* A key of an a{sv}: bool for 'b', uint32_t for 'u', uint64_t for 't', const char * for 's'. */
typedef struct Option {
        const char *key;
        char type;
        void *ret;
        bool *ret_given;        /* or NULL */
} Option;

/* Reads the dictionary that comes next. An unknown key, one given twice, or another type is InvalidArgs. */
int options_read(sd_bus_message *m, const Option *options, size_t n, sd_bus_error *error);
#define OPTIONS_READ(m, options, error) options_read(m, options, ELEMENTSOF(options), error)
#define OPTIONS_NONE(m, error) options_read(m, NULL, 0, error)

/* The caller's uid as the bus knows it, never what /proc says. */
int caller_uid(sd_bus_message *m, uid_t *ret);

/* Gives r back; fills error for it unless the core did, and sees to it that it can be sent. */
int wire_error(sd_bus_error *error, int r);
int reply_error(sd_bus_message *m, const sd_bus_error *error);
/* InvalidArgs etc. with something that a caller wrote: made printable and short. */
int error_quoted(sd_bus_error *error, const char *name, const char *format, const char *untrusted);

/* A call that is answered when its operation ends: message_hold() as userdata with message_done(), then the operation's
 * result to message_answer(), which answers at once what is not under way. The caller may leave meanwhile. */
void *message_hold(sd_bus_message *m, bool wait);
void message_release(sd_bus_message *m); /* and NULL */
static inline void message_releasep(sd_bus_message **m) {
        message_release(*m);
}
/* Whether anybody wants to hear how it ends: who does not costs nothing. */
static inline bool message_is_awaited(sd_bus_message *m) {
        return sd_bus_message_get_expect_reply(m) > 0;
}
void message_done(void *userdata, const sd_bus_error *error);
int message_answer(sd_bus_message *m, bool wait, int r, sd_bus_error *error);
/* For callbacks: an answer that could not be sent is worth a line for developers alone. */
void message_sent(sd_bus_message *m, int r);

/* A flat JSON object as a{sv}: strings s, integers x, booleans b. NULL is an empty one. */
int append_details(sd_bus_message *m, json_object *details);

/* Object paths; the caller frees. */
int vm_path(const char *name, char **ret);
int job_path(uint32_t id, char **ret);
