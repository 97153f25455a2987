/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sha2.h>

#include "basic/json-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "core/definition-internal.h"

/* All these take their value over, also on error, and take NULL for lack of memory. */
static int add(json_object *o, const char *key, json_object *v) {
        if (v && json_object_object_add(o, key, v) >= 0)
                return 0;
        json_object_put(v);
        return -ENOMEM;
}

static int add_string(json_object *o, const char *key, const char *s) {
        return add(o, key, json_object_new_string(s));
}

static int add_bool(json_object *o, const char *key, bool b) {
        return add(o, key, json_object_new_boolean(b));
}

static int add_int(json_object *o, const char *key, int64_t i) {
        return add(o, key, json_object_new_int64(i));
}

static int add_consumed(json_object *o, const char *key, char *s) {
        int r = s ? add_string(o, key, s) : -ENOMEM;

        free(s);
        return r;
}

static int append(json_object *array, json_object *v) {
        if (json_object_array_add(array, v) >= 0)
                return 0;
        json_object_put(v);
        return -ENOMEM;
}

/* An empty object that o owns, or NULL */
static json_object *add_object(json_object *o, const char *key) {
        json_object *v = json_object_new_object();

        return v && add(o, key, v) >= 0 ? v : NULL;
}

static json_object *add_array(json_object *o, const char *key) {
        json_object *v = json_object_new_array();

        return v && add(o, key, v) >= 0 ? v : NULL;
}

static json_object *append_object(json_object *array) {
        json_object *v = json_object_new_object();

        return v && append(array, v) >= 0 ? v : NULL;
}

static int add_machine(const Definition *d, json_object *o) {
        if (add_int(o, "version", 1) < 0 || add_string(o, "backend", backend_to_string(d->backend)) < 0 ||
            add_string(o, "accel", accel_to_string(d->accel)) < 0 || add_int(o, "cpus", d->cpus) < 0)
                return -ENOMEM;
        return add_consumed(o, "memory", format_size(d->memory));
}

static int add_boot(const Definition *d, json_object *o) {
        const struct {
                const char *key, *value;
        } members[] = {
                { "kernel", d->kernel },
                { "initramfs", d->initramfs },
                { "cmdline", d->cmdline },
                { "firmware", d->firmware },
        };
        json_object *b = add_object(o, "boot");

        if (!b)
                return -ENOMEM;
        for (size_t i = 0; i < ELEMENTSOF(members); i++)
                if (members[i].value && add_string(b, members[i].key, members[i].value) < 0)
                        return -ENOMEM;
        return 0;
}

static int add_disks(const Definition *d, json_object *o) {
        json_object *a = add_array(o, "disks");

        for (size_t i = 0; a && i < d->n_disks; i++) {
                const Disk *disk = d->disks + i;
                json_object *e = append_object(a);

                if (!e || add_string(e, "name", disk->name) < 0 || add_string(e, "path", disk->path) < 0 ||
                    add_string(e, "format", disk_format_to_string(disk->format)) < 0 ||
                    add_bool(e, "readonly", disk->readonly) < 0)
                        return -ENOMEM;
        }
        return a ? 0 : -ENOMEM;
}

static int add_filesystems(const Definition *d, json_object *o) {
        json_object *a = add_array(o, "filesystems");

        for (size_t i = 0; a && i < d->n_filesystems; i++) {
                const Filesystem *fs = d->filesystems + i;
                json_object *e = append_object(a);

                if (!e || add_string(e, "tag", fs->tag) < 0 || add_string(e, "source", fs->source) < 0 ||
                    add_bool(e, "readonly", fs->readonly) < 0 ||
                    add_string(e, "cache", filesystem_cache_to_string(fs->cache)) < 0 ||
                    add_int(e, "threads", fs->threads) < 0 || add_bool(e, "xattr", fs->xattr) < 0 ||
                    add_bool(e, "posixAcl", fs->posix_acl) < 0)
                        return -ENOMEM;
        }
        return a ? 0 : -ENOMEM;
}

static int add_forwards(const Network *n, json_object *o) {
        json_object *a = add_array(o, "forward");

        for (size_t i = 0; a && i < n->n_forwards; i++) {
                const Forward *f = n->forwards + i;
                json_object *e = append_object(a);

                if (!e || add_string(e, "address", f->address) < 0 ||
                    add_string(e, "protocol", protocol_to_string(f->protocol)) < 0 ||
                    add_int(e, "host", f->host) < 0 || add_int(e, "guest", f->guest) < 0)
                        return -ENOMEM;
        }
        return a ? 0 : -ENOMEM;
}

static int add_networks(const Definition *d, json_object *o) {
        json_object *a = add_array(o, "networks");

        for (size_t i = 0; a && i < d->n_networks; i++) {
                const Network *n = d->networks + i;
                json_object *e = append_object(a);

                if (!e || add_string(e, "name", n->name) < 0 ||
                    add_string(e, "type", network_type_to_string(n->type)) < 0)
                        return -ENOMEM;
                if (n->type == NETWORK_USER && add_forwards(n, e) < 0)
                        return -ENOMEM;
        }
        return a ? 0 : -ENOMEM;
}

static int add_behaviour(const Definition *d, json_object *o) {
        json_object *restart;

        if (add_bool(o, "vsock", d->vsock) < 0)
                return -ENOMEM;
        restart = add_object(o, "restart");
        if (!restart || add_string(restart, "policy", restart_policy_to_string(d->restart_policy)) < 0 ||
            add_int(restart, "max", d->restart_max) < 0)
                return -ENOMEM;
        if (add_bool(o, "autostart", d->autostart) < 0 || add_int(o, "autostartPriority", d->autostart_priority) < 0)
                return -ENOMEM;
        return add_consumed(o, "stopTimeout", format_sec(d->stop_timeout_usec));
}

static int add_resources(const Definition *d, json_object *o) {
        json_object *res = add_object(o, "resources");

        return res ? resources_to_json(&d->resources, res) : -ENOMEM;
}

static int add_labels(const Definition *d, json_object *o) {
        json_object *labels = add_object(o, "labels");

        for (size_t i = 0; labels && d->label_keys && d->label_keys[i]; i++)
                if (add_string(labels, d->label_keys[i], d->label_values[i]) < 0)
                        return -ENOMEM;
        return labels ? 0 : -ENOMEM;
}

int definition_to_json(const Definition *d, json_object **ret) {
        static int (*const parts[])(const Definition *, json_object *) = {
                add_machine, add_boot, add_disks, add_filesystems, add_networks, add_behaviour, add_resources,
                add_labels,
        };
        _cleanup_json_ json_object *o = json_object_new_object();

        if (!o)
                return -ENOMEM;
        for (size_t i = 0; i < ELEMENTSOF(parts); i++)
                if (parts[i](d, o) < 0)
                        return -ENOMEM;
        *ret = TAKE_PTR(o);
        return 0;
}

static int print(const Definition *d, int flags, char **ret) {
        _cleanup_json_ json_object *o = NULL;
        const char *s;
        int r;

        r = definition_to_json(d, &o);
        if (r < 0)
                return r;
        s = json_object_to_json_string_ext(o, flags | JSON_C_TO_STRING_NOSLASHESCAPE);
        *ret = s ? strdup(s) : NULL;
        return *ret ? 0 : -ENOMEM;
}

int definition_format(const Definition *d, char **ret) {
        return print(d, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED, ret);
}

/* Of the plain form, which is the same in all versions of json-c */
int definition_hash(const Definition *d, char ret[static 65]) {
        _cleanup_free_ char *s = NULL;
        int r;

        r = print(d, JSON_C_TO_STRING_PLAIN, &s);
        if (r < 0)
                return r;
        SHA256Data((const uint8_t *) s, strlen(s), ret);
        return 0;
}
