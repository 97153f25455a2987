/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/json-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/definition-internal.h"

static int compare_strings(const void *a, const void *b) {
        return strcmp(*(char *const *) a, *(char *const *) b);
}

static int read_version(DefinitionReader *r, json_object *o) {
        char shown[JSON_SHOW_MAX];
        json_object *v;
        int k;

        k = reader_get(r, o, "version", json_type_int, &v);
        if (k < 0)
                return k;
        if (k == 0)
                return reader_missing(r, "version", "1");
        if (json_object_get_int64(v) != 1)
                return reader_refuse(r, "version", "%s is not supported, write 1", json_show(v, shown));
        return 0;
}

static int read_machine(DefinitionReader *r, json_object *o, Definition *d) {
        int backend = 0, accel = 0, k;
        int64_t cpus = CPUS_DEFAULT;

        k = reader_word(r, o, "backend", backend_words, &backend);
        if (k < 0)
                return k;
        k = reader_word(r, o, "accel", accel_words, &accel);
        if (k < 0)
                return k;
        k = reader_integer(r, o, "cpus", 1, CPUS_MAX, &cpus);
        if (k < 0)
                return k;

        d->backend = (Backend) (backend - 1);
        d->accel = (Accel) accel;
        d->cpus = (unsigned) cpus;
        return 0;
}

static int read_memory(DefinitionReader *r, json_object *o, Definition *d) {
        _cleanup_free_ char *lower = NULL, *upper = NULL, *given = NULL;
        uint64_t m = MEMORY_DEFAULT, rest;
        int k;

        k = reader_size(r, o, "memory", &m);
        if (k < 0)
                return k;

        rest = m % MEMORY_STEP;
        given = format_size(m);
        lower = format_size(m - rest);
        upper = format_size(m - rest + MEMORY_STEP);
        if (!given || !lower || !upper)
                return oom(r->error);
        if (m < MEMORY_MIN || m > MEMORY_MAX)
                return reader_refuse(r, "memory",
                                     "%s is out of range, write \"8M\" to \"16T\" (a bare number counts bytes)", given);
        if (rest > 0)
                return reader_refuse(r, "memory", "%s is not a multiple of 1M, write \"%s\" or \"%s\"", given,
                                     lower, upper);
        d->memory = m;
        return 0;
}

static int read_cmdline(DefinitionReader *r, json_object *o, Definition *d) {
        const char *s;
        json_object *v;
        int k;

        k = reader_get(r, o, "cmdline", json_type_string, &v);
        if (k <= 0)
                return k;
        s = json_object_get_string(v);
        if (strlen(s) > CMDLINE_LENGTH_MAX)
                return reader_refuse(r, "cmdline", "%zu bytes are too long, Linux takes at most %u", strlen(s),
                                     CMDLINE_LENGTH_MAX);
        if (has_control_characters(s))
                return reader_refuse(r, "cmdline", "it has control characters, write spaces between parameters");
        if (!*s)
                return 0;               /* the same as none */
        return free_and_strdup(&d->cmdline, s) < 0 ? oom(r->error) : 0;
}

static int read_firmware(DefinitionReader *r, json_object *o, Definition *d) {
        json_object *v;
        int k;

        k = reader_get(r, o, "firmware", json_type_string, &v);
        if (k <= 0)
                return k;
        if (streq(json_object_get_string(v), "bios") || streq(json_object_get_string(v), "uefi"))
                return free_and_strdup(&d->firmware, json_object_get_string(v)) < 0 ? oom(r->error) : 0;
        if (json_object_get_string(v)[0] != '/') {
                char shown[JSON_SHOW_MAX];

                return reader_refuse(r, "firmware", "%s is unknown, write \"bios\", \"uefi\" or an absolute path",
                                     json_show(v, shown));
        }
        return reader_absolute_path(r, o, "firmware", &d->firmware);
}

static int check_boot(DefinitionReader *r, Definition *d) {
        if (d->kernel && d->firmware)
                return reader_refuse(r, "firmware", "a kernel and a firmware exclude each other, leave one out");
        if (d->initramfs && !d->kernel)
                return reader_refuse(r, "initramfs", "it needs a kernel, write boot.kernel as well");
        if (d->cmdline && !d->kernel)
                return reader_refuse(r, "cmdline", "it needs a kernel, write boot.kernel as well");
        return 0;
}

static int read_boot(DefinitionReader *r, json_object *o, Definition *d) {
        static const char *const keys[] = { "kernel", "initramfs", "cmdline", "firmware", NULL };
        size_t before;
        json_object *b;
        int k;

        k = reader_get(r, o, "boot", json_type_object, &b);
        if (k < 0)
                return k;
        if (k > 0) {
                before = reader_enter(r, "boot");
                k = reader_check_keys(r, b, keys);
                if (k >= 0)
                        k = reader_absolute_path(r, b, "kernel", &d->kernel);
                if (k >= 0)
                        k = reader_absolute_path(r, b, "initramfs", &d->initramfs);
                if (k >= 0)
                        k = read_cmdline(r, b, d);
                if (k >= 0)
                        k = read_firmware(r, b, d);
                if (k >= 0)
                        k = check_boot(r, d);
                if (k < 0)
                        return k;
                reader_leave(r, before);
        }

        if (!d->kernel && !d->firmware && free_and_strdup(&d->firmware, FIRMWARE_DEFAULT) < 0)
                return oom(r->error);
        return 0;
}

static int read_restart(DefinitionReader *r, json_object *o, Definition *d) {
        static const char *const keys[] = { "policy", "max", NULL };
        int64_t max = RESTART_TRIES_DEFAULT;
        size_t before;
        json_object *v;
        int policy = 0, k;

        d->restart_max = RESTART_TRIES_DEFAULT;
        k = reader_get(r, o, "restart", json_type_object, &v);
        if (k <= 0)
                return k;
        before = reader_enter(r, "restart");
        k = reader_check_keys(r, v, keys);
        if (k < 0)
                return k;
        k = reader_word(r, v, "policy", restart_policy_words, &policy);
        if (k < 0)
                return k;
        k = reader_integer(r, v, "max", 0, RESTART_TRIES_MAX, &max);
        if (k < 0)
                return k;
        reader_leave(r, before);
        d->restart_policy = (RestartPolicy) policy;
        d->restart_max = (unsigned) max;
        return 0;
}

static int read_stop_timeout(DefinitionReader *r, json_object *o, Definition *d) {
        _cleanup_free_ char *given = NULL;
        uint64_t t = STOP_TIMEOUT_DEFAULT;
        int k;

        k = reader_time(r, o, "stopTimeout", &t);
        if (k < 0)
                return k;
        if (t > STOP_TIMEOUT_MAX && t != USEC_INFINITY) {
                given = format_sec(t);
                if (!given)
                        return oom(r->error);
                return reader_refuse(r, "stopTimeout", "%s is too long, write at most \"1y\", or \"infinity\"", given);
        }
        d->stop_timeout_usec = t;
        return 0;
}

static int read_behaviour(DefinitionReader *r, json_object *o, Definition *d) {
        int64_t priority = 0;
        int k;

        k = reader_bool(r, o, "vsock", &d->vsock);
        if (k < 0)
                return k;
        k = read_restart(r, o, d);
        if (k < 0)
                return k;
        k = reader_bool(r, o, "autostart", &d->autostart);
        if (k < 0)
                return k;
        k = reader_integer(r, o, "autostartPriority", -PRIORITY_MAX, PRIORITY_MAX, &priority);
        if (k < 0)
                return k;
        d->autostart_priority = (int) priority;
        return read_stop_timeout(r, o, d);
}

static int check_label(DefinitionReader *r, json_object *labels, const char *key, size_t *bytes) {
        json_object *v;
        int k;

        if (!*key)
                return reader_refuse(r, NULL, "a label has an empty key, write one");
        if (has_control_characters(key))
                return reader_refuse(r, key, "the key has control characters, write one without");
        k = reader_get(r, labels, key, json_type_string, &v);
        if (k <= 0)
                return k;
        if (has_control_characters(json_object_get_string(v)))
                return reader_refuse(r, key, "the value has control characters, write one without");
        *bytes += strlen(key) + strlen(json_object_get_string(v));
        if (*bytes > LABELS_BYTES_MAX)
                return reader_refuse(r, NULL, "keys and values take more than %u bytes in all", LABELS_BYTES_MAX);
        return 1;
}

static int sort_labels(json_object *labels, Definition *d) {
        int k;

        if (!d->label_keys)
                return 0;
        qsort(d->label_keys, strv_length(d->label_keys), sizeof(char *), compare_strings);
        STRV_FOREACH(key, d->label_keys) {
                k = strv_extend(&d->label_values, json_object_get_string(json_object_object_get(labels, *key)));
                if (k < 0)
                        return k;
        }
        return 0;
}

static int read_labels(DefinitionReader *r, json_object *o, Definition *d) {
        size_t before, bytes = 0;
        json_object *labels;
        int k;

        k = reader_get(r, o, "labels", json_type_object, &labels);
        if (k <= 0)
                return k;
        before = reader_enter(r, "labels");
        json_object_object_foreach(labels, key, value) {
                (void) value;
                k = check_label(r, labels, key, &bytes);
                if (k < 0)
                        return k;
                if (k > 0 && strv_extend(&d->label_keys, key) < 0)
                        return oom(r->error);
        }
        if (strv_length(d->label_keys) > LABELS_MAX)
                return reader_refuse(r, NULL, "%zu are too many, at most %u are possible",
                                     strv_length(d->label_keys), LABELS_MAX);
        reader_leave(r, before);
        return sort_labels(labels, d) < 0 ? oom(r->error) : 0;
}

static int check_memory_max(DefinitionReader *r, const Definition *d) {
        _cleanup_free_ char *memory = NULL;

        if (!d->resources.text[RESOURCE_MEMORY_MAX] || d->resources.value[RESOURCE_MEMORY_MAX] >= d->memory)
                return 0;
        memory = format_size(d->memory);
        if (!memory)
                return oom(r->error);
        return reader_refuse(r, "resources.MemoryMax",
                             "%s is below memory (%s), write more, for the VMM needs some as well",
                             d->resources.text[RESOURCE_MEMORY_MAX], memory);
}

static int read_resources(DefinitionReader *r, json_object *o, Definition *d) {
        json_object *res;
        size_t before;
        int k;

        k = reader_get(r, o, "resources", json_type_object, &res);
        if (k <= 0)
                return k;
        before = reader_enter(r, "resources");
        k = resources_read(r, res, &d->resources);
        if (k < 0)
                return k;
        reader_leave(r, before);
        return check_memory_max(r, d);
}

/* What goes out must not be larger than what comes in may be: it is stored, sent, and read again. */
static int check_size(DefinitionReader *r, const Definition *d) {
        _cleanup_free_ char *s = NULL;
        int k;

        k = definition_format(d, &s);
        if (k < 0)
                return oom(r->error);
        if (strlen(s) > DEFINITION_BYTES_MAX)
                return reader_refuse(r, NULL, "with all defaults it takes %zu bytes, at most %u are possible",
                                     strlen(s), DEFINITION_BYTES_MAX);
        return 0;
}

int definition_from_json(json_object *o, bool null_is_missing, Definition **ret, sd_bus_error *error) {
        static const char *const keys[] = {
                "version", "backend", "accel", "cpus", "memory", "boot", "disks", "filesystems", "networks", "vsock",
                "restart", "autostart", "autostartPriority", "stopTimeout", "resources", "labels", NULL,
        };
        static int (*const steps[])(DefinitionReader *, json_object *, Definition *) = {
                read_machine, read_memory, read_boot, definition_read_disks, definition_read_filesystems,
                definition_read_networks, read_behaviour,
                read_resources, read_labels,
        };
        DefinitionReader r = { .error = error, .null_is_missing = null_is_missing };
        _cleanup_(definition_freep) Definition *d = new0(Definition, 1);
        int k;

        if (!d)
                return oom(error);
        k = reader_check_keys(&r, o, keys);
        if (k >= 0)
                k = read_version(&r, o);
        for (size_t i = 0; k >= 0 && i < ELEMENTSOF(steps); i++)
                k = steps[i](&r, o, d);
        if (k >= 0)
                k = definition_settle_names(&r, d);
        if (k >= 0)
                k = definition_check_forwards(&r, d);
        if (k >= 0)
                k = check_size(&r, d);
        if (k < 0)
                return k;

        *ret = TAKE_PTR(d);
        return 0;
}

int definition_read_json(const char *name, const char *text, json_object **ret, sd_bus_error *error) {
        _cleanup_free_ char *message = NULL;
        size_t n = strlen(text);
        int k;

        if (n > DEFINITION_BYTES_MAX) {
                sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_DEFINITION,
                                  "%s: %zu bytes are too long, at most %u are possible", name, n,
                                  DEFINITION_BYTES_MAX);
                return -EINVAL;
        }
        k = json_parse_named(name, text, n, DEFINITION_DEPTH_MAX, ret, &message);
        if (k == -EINVAL)
                sd_bus_error_set(error, VMUNIT_ERROR_INVALID_DEFINITION, message);
        else if (k < 0)
                sd_bus_error_set_errno(error, k);
        return k;
}

int definition_parse(const char *json, Definition **ret, sd_bus_error *error) {
        _cleanup_json_ json_object *o = NULL;
        int k;

        k = definition_read_json("definition", json, &o, error);
        if (k < 0)
                return k;
        return definition_from_json(o, false, ret, error);
}
