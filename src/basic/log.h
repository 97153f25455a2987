/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <syslog.h>

#include "basic/macro.h"

/* Takes a message to the journal with its fields: negative errno */
typedef int log_send_fn(int level, const char *message, const char *fields[]);

/* Everything goes to `send` where standard error is connected to the journal (JOURNAL_STREAM, systemd.exec(5)), else, or if `send` is NULL,
 * to standard error as text, without fields. Messages of debug level are dropped unless log_set_max_level() asks for them. */
void log_init(log_send_fn *send);
/* With LOG_ALWAYS in its level a message is for programs that read the journal: it goes there whatever the level, and nowhere else. */
#define LOG_ALWAYS 0x10000
bool log_is_to_journal(void);
void log_set_max_level(int level);

void log_internal(int level, int error, const char *fields[], const char *format, ...) _printf_(4, 5);

/* FIELDS is a NULL-terminated array of "NAME=value" strings, or NULL; what is more than this is left out. */
#define LOG_FIELDS_MAX 48
#define log_full_fields(level, error, fields, ...) log_internal(level, error, fields, __VA_ARGS__)
#define log_error(...) log_internal(LOG_ERR, 0, NULL, __VA_ARGS__)
#define log_warning(...) log_internal(LOG_WARNING, 0, NULL, __VA_ARGS__)
#define log_notice(...) log_internal(LOG_NOTICE, 0, NULL, __VA_ARGS__)
#define log_info(...) log_internal(LOG_INFO, 0, NULL, __VA_ARGS__)
#define log_debug(...) log_internal(LOG_DEBUG, 0, NULL, __VA_ARGS__)

/* With a negative errno, whose text is appended after ": "; they give it back, for `return log_error_errno(r, …)`. */
#define log_full_errno(level, error, ...)                               \
        ({                                                              \
                int _error = (error);                                   \
                log_internal(level, _error, NULL, __VA_ARGS__);         \
                _error;                                                 \
        })
#define log_error_errno(error, ...) log_full_errno(LOG_ERR, error, __VA_ARGS__)
#define log_warning_errno(error, ...) log_full_errno(LOG_WARNING, error, __VA_ARGS__)
#define log_debug_errno(error, ...) log_full_errno(LOG_DEBUG, error, __VA_ARGS__)
#define log_oom() log_error_errno(-ENOMEM, "Out of memory")
