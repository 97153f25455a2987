/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <netinet/in.h>

#include "basic/json-util.h"
#include "basic/string-util.h"
#include "core/definition-internal.h"

const char *const backend_words[] = { "auto", "qemu", "cloud-hypervisor", "firecracker", NULL };
const char *const accel_words[] = { "auto", "kvm", "tcg", NULL };
const char *const disk_format_words[] = { "raw", "qcow2", NULL };
const char *const filesystem_cache_words[] = { "auto", "always", "never", NULL };
const char *const protocol_words[] = { "tcp", "udp", NULL };
const char *const network_type_words[] = { "user", "tap", NULL };
const char *const restart_policy_words[] = { "no", "on-failure", "always", NULL };

_Static_assert(ELEMENTSOF(backend_words) == _BACKEND_MAX + 2, "a word for each");
_Static_assert(ELEMENTSOF(accel_words) == _ACCEL_MAX + 1, "a word for each");
_Static_assert(ELEMENTSOF(disk_format_words) == _DISK_FORMAT_MAX + 1, "a word for each");
_Static_assert(ELEMENTSOF(filesystem_cache_words) == _FILESYSTEM_CACHE_MAX + 1, "a word for each");
_Static_assert(ELEMENTSOF(protocol_words) == _PROTOCOL_MAX + 1, "a word for each");
_Static_assert(ELEMENTSOF(network_type_words) == _NETWORK_TYPE_MAX + 1, "a word for each");
_Static_assert(ELEMENTSOF(restart_policy_words) == _RESTART_POLICY_MAX + 1, "a word for each");

static const char *word(const char *const *words, int i, int max) {
        return i >= 0 && i < max ? words[i] : NULL;
}

const char *backend_to_string(Backend b) {
        return word(backend_words, (int) b + 1, _BACKEND_MAX + 1);
}

Backend backend_from_string(const char *s) {
        for (int i = 0; backend_words[i]; i++)
                if (streq(backend_words[i], s))
                        return (Backend) (i - 1);
        return (Backend) -EINVAL;
}

const char *accel_to_string(Accel a) {
        return word(accel_words, (int) a, _ACCEL_MAX);
}

const char *disk_format_to_string(DiskFormat f) {
        return word(disk_format_words, (int) f, _DISK_FORMAT_MAX);
}

const char *filesystem_cache_to_string(FilesystemCache c) {
        return word(filesystem_cache_words, (int) c, _FILESYSTEM_CACHE_MAX);
}

const char *protocol_to_string(Protocol p) {
        return word(protocol_words, (int) p, _PROTOCOL_MAX);
}

const char *network_type_to_string(NetworkType t) {
        return word(network_type_words, (int) t, _NETWORK_TYPE_MAX);
}

const char *restart_policy_to_string(RestartPolicy p) {
        return word(restart_policy_words, (int) p, _RESTART_POLICY_MAX);
}

static void network_done(Network *n) {
        free(n->name);
        for (size_t i = 0; i < n->n_forwards; i++)
                free(n->forwards[i].address);
        free(n->forwards);
}

void definition_free(Definition *d) {
        if (!d)
                return;
        free(d->kernel);
        free(d->initramfs);
        free(d->cmdline);
        free(d->firmware);
        for (size_t i = 0; i < d->n_disks; i++) {
                free(d->disks[i].name);
                free(d->disks[i].path);
        }
        free(d->disks);
        for (size_t i = 0; i < d->n_filesystems; i++) {
                free(d->filesystems[i].tag);
                free(d->filesystems[i].source);
        }
        free(d->filesystems);
        for (size_t i = 0; i < d->n_networks; i++)
                network_done(d->networks + i);
        free(d->networks);
        resources_done(&d->resources);
        strv_free(d->label_keys);
        strv_free(d->label_values);
        free(d);
}

const char *definition_array_id(const char *key) {
        if (streq(key, "disks") || streq(key, "networks"))
                return "name";
        return streq(key, "filesystems") ? "tag" : NULL;
}

json_object *definition_array_find(json_object *array, const char *id, const char *value, size_t *ret_index) {
        size_t n = json_object_array_length(array);

        for (size_t i = 0; i < n; i++) {
                json_object *e = json_object_array_get_idx(array, i);

                if (streq(json_get_string(e, id, ""), value)) {
                        if (ret_index)
                                *ret_index = i;
                        return e;
                }
        }
        return NULL;
}

static int diff_values(const char *path, const char *key, json_object *a, json_object *b, char ***l);

static int diff_objects(const char *path, json_object *a, json_object *b, char ***l) {
        int r = 0;

        json_object_object_foreach(a, key, value) {
                r = diff_values(path, key, value, json_get(b, key), l);
                if (r < 0)
                        return r;
        }
        json_object_object_foreach(b, key2, value2) {
                if (json_get(a, key2))
                        continue;
                r = diff_values(path, key2, NULL, value2, l);
                if (r < 0)
                        return r;
        }
        return r;
}

/* Whether the elements that both have come in the same order: the guest sees that of its disks. */
static bool same_order(json_object *a, json_object *b, const char *id) {
        size_t n = json_object_array_length(a), at, next = 0;

        for (size_t i = 0; i < n; i++) {
                const char *name = json_get_string(json_object_array_get_idx(a, i), id, "");

                if (!definition_array_find(b, id, name, &at))
                        continue;
                if (at < next)
                        return false;
                next = at;
        }
        return true;
}

static int diff_arrays(const char *path, const char *id, json_object *a, json_object *b, char ***l) {
        size_t n = json_object_array_length(a), m = json_object_array_length(b);
        int r = 0;

        for (size_t i = 0; r >= 0 && i < n; i++) {
                json_object *e = json_object_array_get_idx(a, i);
                const char *name = json_get_string(e, id, "");

                r = diff_values(path, name, e, definition_array_find(b, id, name, NULL), l);
        }
        for (size_t i = 0; r >= 0 && i < m; i++) {
                json_object *e = json_object_array_get_idx(b, i);
                const char *name = json_get_string(e, id, "");

                if (!definition_array_find(a, id, name, NULL))
                        r = diff_values(path, name, NULL, e, l);
        }
        if (r >= 0 && !same_order(a, b, id))
                r = strv_extend(l, path);
        return r;
}

/* A value that one side lacks is NULL; normalised definitions have no null. */
static int diff_values(const char *path, const char *key, json_object *a, json_object *b, char ***l) {
        _cleanup_free_ char *here = strjoinf("%s%s%s", path, *path ? "." : "", key);
        const char *id = *path ? NULL : definition_array_id(key);

        if (!here)
                return -ENOMEM;
        if (id && a && b)
                return diff_arrays(here, id, a, b, l);
        if (json_object_is_type(a, json_type_object) && json_object_is_type(b, json_type_object))
                return diff_objects(here, a, b, l);
        return json_object_equal(a, b) ? 0 : strv_consume(l, TAKE_PTR(here));
}

static int compare_strings(const void *a, const void *b) {
        return strcmp(*(char *const *) a, *(char *const *) b);
}

int definition_diff(const Definition *a, const Definition *b, char ***ret) {
        _cleanup_json_ json_object *x = NULL, *y = NULL;
        _cleanup_strv_free_ char **l = NULL;
        int r;

        r = definition_to_json(a, &x);
        if (r < 0)
                return r;
        r = definition_to_json(b, &y);
        if (r < 0)
                return r;
        r = diff_objects("", x, y, &l);
        if (r < 0)
                return r;

        if (l)
                qsort(l, strv_length(l), sizeof(char *), compare_strings);
        *ret = TAKE_PTR(l);
        return 0;
}

/* What an ordinary user may not: the network's stack, and more of processors and disks than others get. */

static bool has_network(const Definition *d, const Network *n) {
        for (size_t i = 0; d && i < d->n_networks; i++)
                if (d->networks[i].type == n->type && streq(d->networks[i].name, n->name))
                        return true;
        return false;
}

static bool has_port(const Definition *d, const Forward *f) {
        for (size_t i = 0; d && i < d->n_networks; i++)
                for (size_t j = 0; j < d->networks[i].n_forwards; j++) {
                        const Forward *g = d->networks[i].forwards + j;

                        if (g->host == f->host && g->protocol == f->protocol && streq(g->address, f->address))
                                return true;
                }
        return false;
}

static int network_exceeds(const Network *n, size_t at, const Definition *had, char **ret_why) {
        if (n->type == NETWORK_TAP && !has_network(had, n)) {
                *ret_why = strjoinf("networks[%zu].type: a tap is the host's", at);
                return *ret_why ? 1 : -ENOMEM;
        }
        for (size_t i = 0; i < n->n_forwards; i++)
                if (n->forwards[i].host < IPPORT_RESERVED && !has_port(had, n->forwards + i)) {
                        *ret_why = strjoinf("networks[%zu].forward[%zu].host: ports below %d are the host's", at, i, IPPORT_RESERVED);
                        return *ret_why ? 1 : -ENOMEM;
                }
        return 0;
}

#define WEIGHT_DEFAULT 100U

static int weight_exceeds(const Definition *d, const Definition *had, Resource resource, const char *name, char **ret_why) {
        uint64_t allowed = WEIGHT_DEFAULT;

        if (had && had->resources.text[resource])
                allowed = MAX(allowed, had->resources.value[resource]);
        if (!d->resources.text[resource] || d->resources.value[resource] <= allowed)
                return 0;
        *ret_why = strjoinf("resources.%s: more than %u is at the cost of others", name, WEIGHT_DEFAULT);
        return *ret_why ? 1 : -ENOMEM;
}

int definition_exceeds_user(const Definition *d, const Definition *had, char **ret_why) {
        int r;

        r = weight_exceeds(d, had, RESOURCE_CPU_WEIGHT, "CPUWeight", ret_why);
        if (r == 0)
                r = weight_exceeds(d, had, RESOURCE_IO_WEIGHT, "IOWeight", ret_why);
        for (size_t i = 0; r == 0 && i < d->n_networks; i++)
                r = network_exceeds(d->networks + i, i, had, ret_why);
        return r;
}
