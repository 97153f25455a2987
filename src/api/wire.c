/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>

#include "api/peers.h"
#include "api/wire.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "bus/error-names.h"

/* For what the core gives without a sentence of its own */
static const struct {
        int error;
        const char *name, *message;
} error_map[] = {
        { ENOSPC, VMUNIT_ERROR_NO_SPACE, "The disk that holds vmunit's state is full" },
        { EDQUOT, VMUNIT_ERROR_NO_SPACE, "The disk quota of vmunit's state is used up" },
        { EROFS, SD_BUS_ERROR_FAILED, "The file system that holds vmunit's state is read-only" },
        { EIO, SD_BUS_ERROR_IO_ERROR, "vmunit's state could not be read or written, see journalctl -u vmunitd" },
        { EBUSY, VMUNIT_ERROR_BUSY, "Something else is under way, try again later" },
        { ECANCELED, VMUNIT_ERROR_CANCELED, "The operation was cancelled" },
        { ETIMEDOUT, VMUNIT_ERROR_TIMEOUT, "There was no answer in time" },
        { EOPNOTSUPP, VMUNIT_ERROR_NOT_SUPPORTED, "This is not supported" },
};

/* A message that was cut inside of a character could not be sent, and sd-bus would give up the connection. */
#define ERROR_MESSAGE_MAX 8192

static void error_make_valid(sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error valid = SD_BUS_ERROR_NULL;
        _cleanup_free_ char *s = NULL;

        s = escape_untrusted(strempty(error->message), strlen(strempty(error->message)), ERROR_MESSAGE_MAX);
        if (!s || streq(s, strempty(error->message)))
                return;
        sd_bus_error_setf(&valid, error->name, "%s", s);
        sd_bus_error_free(error);
        (void) sd_bus_error_move(error, &valid);
}

int reply_error(sd_bus_message *m, const sd_bus_error *error) {
        _cleanup_(sd_bus_error_free) sd_bus_error valid = SD_BUS_ERROR_NULL;

        sd_bus_error_copy(&valid, error);
        error_make_valid(&valid);
        return sd_bus_reply_method_error(m, &valid);
}

int wire_error(sd_bus_error *error, int r) {
        if (r >= 0)
                return r;
        if (sd_bus_error_is_set(error)) {
                error_make_valid(error);
                return r;
        }
        for (size_t i = 0; i < ELEMENTSOF(error_map); i++)
                if (error_map[i].error == -r) {
                        sd_bus_error_set_const(error, error_map[i].name, error_map[i].message);
                        return r;
                }
        return sd_bus_error_set_errno(error, r);
}

int error_quoted(sd_bus_error *error, const char *name, const char *format, const char *untrusted) {
        _cleanup_free_ char *s = escape_untrusted(untrusted, strlen(untrusted), 100);

        if (!s)
                return -ENOMEM;
        for (char *p = s; *p; p++)
                if (*p == '\n' || *p == '\t')
                        *p = ' ';
        return sd_bus_error_setf(error, name, format, s);
}

static int known_options(const Option *options, size_t n, char **ret) {
        _cleanup_strv_free_ char **l = NULL;
        int r;

        for (size_t i = 0; i < n; i++) {
                r = strv_extend(&l, options[i].key);
                if (r < 0)
                        return r;
        }
        *ret = l ? strv_join(l, ", ") : strdup("none");
        return *ret ? 0 : -ENOMEM;
}

static int option_unknown(const char *key, const Option *options, size_t n, sd_bus_error *error) {
        _cleanup_free_ char *known = NULL, *format = NULL;
        int r;

        r = known_options(options, n, &known);
        if (r < 0)
                return r;
        format = strjoinf("Unknown option '%%s'; known here: %s", known);
        if (!format)
                return -ENOMEM;
        return error_quoted(error, SD_BUS_ERROR_INVALID_ARGS, format, key);
}

static int option_read_value(sd_bus_message *m, const Option *o, sd_bus_error *error) {
        const char type[] = { o->type, 0 }, *contents;
        int r, b;

        r = sd_bus_message_peek_type(m, NULL, &contents);
        if (r < 0)
                return r;
        if (!streq(contents, type))
                return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS, "Option '%s' must be of type %s, not %s",
                                         o->key, type, contents);

        r = sd_bus_message_enter_container(m, 'v', type);
        if (r < 0)
                return r;
        r = sd_bus_message_read_basic(m, o->type, o->type == 'b' ? &b : o->ret);
        if (r < 0)
                return r;
        if (o->type == 'b')
                *(bool *) o->ret = b;
        return sd_bus_message_exit_container(m);
}

static int option_read(sd_bus_message *m, const Option *options, size_t n, uint32_t *seen, sd_bus_error *error) {
        const char *key;
        int r;

        r = sd_bus_message_read_basic(m, 's', &key);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                if (!streq(options[i].key, key))
                        continue;
                if (*seen & UINT32_C(1) << i)
                        return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS, "Option '%s' is given twice", key);
                *seen |= UINT32_C(1) << i;
                if (options[i].ret_given)
                        *options[i].ret_given = true;
                return option_read_value(m, options + i, error);
        }
        return option_unknown(key, options, n, error);
}

int options_read(sd_bus_message *m, const Option *options, size_t n, sd_bus_error *error) {
        uint32_t seen = 0;
        int r;

        r = sd_bus_message_enter_container(m, 'a', "{sv}");
        if (r < 0)
                return r;
        while ((r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
                r = option_read(m, options, n, &seen, error);
                if (r < 0)
                        return r;
                r = sd_bus_message_exit_container(m);
                if (r < 0)
                        return r;
        }
        if (r < 0)
                return r;
        return sd_bus_message_exit_container(m);
}

int caller_uid(sd_bus_message *m, uid_t *ret) {
        return peer_uid(strempty(sd_bus_message_get_sender(m)), ret);
}

void *message_hold(sd_bus_message *m, bool wait) {
        if (!wait)
                return NULL;
        peer_call_begins(m);
        return sd_bus_message_ref(m);
}

void message_release(sd_bus_message *m) {
        if (!m)
                return;
        peer_call_ends(m);
        sd_bus_message_unref(m);
}

void message_sent(sd_bus_message *m, int r) {
        if (r < 0)
                log_debug_errno(r, "Answer to %s.%s() could not be sent", sd_bus_message_get_interface(m),
                                sd_bus_message_get_member(m));
}

void message_done(void *userdata, const sd_bus_error *error) {
        _cleanup_(message_releasep) sd_bus_message *m = userdata;

        if (error && sd_bus_error_is_set(error))
                message_sent(m, reply_error(m, error));
        else
                message_sent(m, sd_bus_reply_method_return(m, NULL));
}

int message_answer(sd_bus_message *m, bool wait, int r, sd_bus_error *error) {
        if (r > 0 && wait)
                return 1;
        if (wait)
                message_release(m);     /* what message_hold() took */
        if (r < 0)
                return wire_error(error, r);
        return sd_bus_reply_method_return(m, NULL);
}

static int append_detail(sd_bus_message *m, const char *key, json_object *value) {
        switch (json_object_get_type(value)) {
        case json_type_string:
                return sd_bus_message_append(m, "{sv}", key, "s", json_object_get_string(value));
        case json_type_int:
                return sd_bus_message_append(m, "{sv}", key, "x", json_object_get_int64(value));
        case json_type_boolean:
                return sd_bus_message_append(m, "{sv}", key, "b", json_object_get_boolean(value));
        default:
                return 0;
        }
}

int append_details(sd_bus_message *m, json_object *details) {
        int r;

        r = sd_bus_message_open_container(m, 'a', "{sv}");
        if (r < 0)
                return r;
        if (details) {
                json_object_object_foreach(details, key, value) {
                        r = append_detail(m, key, value);
                        if (r < 0)
                                return r;
                }
        }
        return sd_bus_message_close_container(m);
}

int vm_path(const char *name, char **ret) {
        return sd_bus_path_encode(API_VM_PATH, name, ret);
}

int job_path(uint32_t id, char **ret) {
        *ret = strjoinf(API_JOB_PATH "/%u", id);
        return *ret ? 0 : -ENOMEM;
}
