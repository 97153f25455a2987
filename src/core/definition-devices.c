/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>

#include "basic/json-util.h"
#include "basic/string-util.h"
#include "core/definition-internal.h"

/* The array and room for what comes of it: elements of the size. Nothing for a missing or an empty one. */
static int read_array(DefinitionReader *r, json_object *o, const char *key, size_t max, size_t size,
                      json_object **ret_array, void *ret_elements, size_t *ret_n) {
        json_object *a;
        void *elements;
        size_t n;
        int k;

        k = reader_get(r, o, key, json_type_array, &a);
        if (k <= 0)
                return k;
        n = json_object_array_length(a);
        if (n > max)
                return reader_refuse(r, key, "%zu are too many, at most %zu are possible", n, max);
        if (n == 0)
                return 0;
        elements = calloc(n, size);
        if (!elements)
                return oom(r->error);

        *ret_array = a;
        *(void **) ret_elements = elements;
        *ret_n = n;
        return 0;
}

static bool name_is_valid(const char *s) {
        size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789");

        return s[0] >= 'a' && s[0] <= 'z' && !s[n] && n <= NAME_LENGTH_MAX;
}

static int read_name(DefinitionReader *r, json_object *o, char **ret) {
        char shown[JSON_SHOW_MAX];
        json_object *v;
        int k;

        k = reader_get(r, o, "name", json_type_string, &v);
        if (k <= 0)
                return k;
        if (!name_is_valid(json_object_get_string(v)))
                return reader_refuse(r, "name",
                                     "%s is not a name, write a small letter and up to %u small letters and digits",
                                     json_show(v, shown), NAME_LENGTH_MAX - 1);
        return free_and_strdup(ret, json_object_get_string(v)) < 0 ? oom(r->error) : 0;
}

static int read_disk(DefinitionReader *r, json_object *o, Disk *disk) {
        static const char *const keys[] = { "name", "path", "format", "readonly", NULL };
        int format = 0, k;

        k = reader_check_keys(r, o, keys);
        if (k < 0)
                return k;
        k = read_name(r, o, &disk->name);
        if (k < 0)
                return k;
        k = reader_absolute_path(r, o, "path", &disk->path);
        if (k < 0)
                return k;
        if (!disk->path)
                return reader_missing(r, "path", "the absolute path of a disk image or block device");
        k = reader_word(r, o, "format", disk_format_words, &format);
        if (k < 0)
                return k;
        disk->format = (DiskFormat) format;
        return reader_bool(r, o, "readonly", &disk->readonly);
}

int definition_read_disks(DefinitionReader *r, json_object *o, Definition *d) {
        json_object *a = NULL;
        int k;

        k = read_array(r, o, "disks", DISKS_MAX, sizeof(Disk), &a, &d->disks, &d->n_disks);
        for (size_t i = 0; k >= 0 && i < d->n_disks; i++) {
                size_t before = reader_enter(r, "disks[%zu]", i);

                k = read_disk(r, json_object_array_get_idx(a, i), d->disks + i);
                if (k >= 0)
                        reader_leave(r, before);
        }
        return k;
}

static bool tag_is_valid(const char *s) {
        size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");

        return n >= 1 && n <= TAG_LENGTH_MAX && !s[n];
}

static int read_tag(DefinitionReader *r, json_object *o, char **ret) {
        char shown[JSON_SHOW_MAX];
        json_object *v;
        int k;

        k = reader_get(r, o, "tag", json_type_string, &v);
        if (k < 0)
                return k;
        if (k == 0)
                return reader_missing(r, "tag", "the name by which the guest mounts it");
        if (!tag_is_valid(json_object_get_string(v)))
                return reader_refuse(r, "tag", "%s is not a tag, write 1 to %u of A-Z a-z 0-9 _ . -",
                                     json_show(v, shown), TAG_LENGTH_MAX);
        return free_and_strdup(ret, json_object_get_string(v)) < 0 ? oom(r->error) : 0;
}

static int read_filesystem_options(DefinitionReader *r, json_object *o, Filesystem *fs) {
        int64_t threads = 0;
        int cache = 0, k;

        k = reader_word(r, o, "cache", filesystem_cache_words, &cache);
        if (k >= 0)
                k = reader_integer(r, o, "threads", 0, THREADS_MAX, &threads);
        if (k >= 0)
                k = reader_bool(r, o, "xattr", &fs->xattr);
        if (k >= 0)
                k = reader_bool(r, o, "posixAcl", &fs->posix_acl);
        if (k < 0)
                return k;
        if (fs->posix_acl && !fs->xattr)
                return reader_refuse(r, "posixAcl", "ACLs are extended attributes, write \"xattr\": true as well");
        fs->cache = (FilesystemCache) cache;
        fs->threads = (unsigned) threads;
        return 0;
}

static int read_filesystem(DefinitionReader *r, json_object *o, Filesystem *fs) {
        static const char *const keys[] = {
                "tag", "source", "readonly", "cache", "threads", "xattr", "posixAcl", NULL,
        };
        int k;

        k = reader_check_keys(r, o, keys);
        if (k < 0)
                return k;
        k = read_tag(r, o, &fs->tag);
        if (k < 0)
                return k;
        k = reader_absolute_path(r, o, "source", &fs->source);
        if (k < 0)
                return k;
        if (!fs->source)
                return reader_missing(r, "source", "the absolute path of a directory");
        k = reader_bool(r, o, "readonly", &fs->readonly);
        return k < 0 ? k : read_filesystem_options(r, o, fs);
}

int definition_read_filesystems(DefinitionReader *r, json_object *o, Definition *d) {
        json_object *a = NULL;
        int k;

        k = read_array(r, o, "filesystems", FILESYSTEMS_MAX, sizeof(Filesystem), &a, &d->filesystems,
                       &d->n_filesystems);
        for (size_t i = 0; k >= 0 && i < d->n_filesystems; i++) {
                size_t before = reader_enter(r, "filesystems[%zu]", i);

                k = read_filesystem(r, json_object_array_get_idx(a, i), d->filesystems + i);
                for (size_t j = 0; k >= 0 && j < i; j++)
                        if (streq(d->filesystems[j].tag, d->filesystems[i].tag))
                                k = reader_refuse(r, "tag",
                                                  "\"%s\" is the tag of filesystems[%zu] already, write another",
                                                  d->filesystems[i].tag, j);
                if (k >= 0)
                        reader_leave(r, before);
        }
        return k;
}

static int read_address(DefinitionReader *r, json_object *o, char **ret) {
        const char *s = ADDRESS_DEFAULT;
        char shown[JSON_SHOW_MAX];
        struct in_addr in;
        json_object *v;
        int k;

        k = reader_get(r, o, "address", json_type_string, &v);
        if (k < 0)
                return k;
        if (k > 0) {
                s = json_object_get_string(v);
                if (inet_pton(AF_INET, s, &in) != 1)
                        return reader_refuse(r, "address",
                                             "%s is not a numeric IPv4 address, write one such as \"127.0.0.1\"",
                                             json_show(v, shown));
        }
        return free_and_strdup(ret, s) < 0 ? oom(r->error) : 0;
}

static int read_port(DefinitionReader *r, json_object *o, const char *key, uint16_t *ret) {
        int64_t port = 0;
        int k;

        k = reader_integer(r, o, key, 1, UINT16_MAX, &port);
        if (k < 0)
                return k;
        if (port == 0)
                return reader_missing(r, key, "a port, 1 to 65535");
        *ret = (uint16_t) port;
        return 0;
}

static int read_forward(DefinitionReader *r, json_object *o, Forward *f) {
        static const char *const keys[] = { "address", "protocol", "host", "guest", NULL };
        int protocol = 0, k;

        k = reader_check_keys(r, o, keys);
        if (k < 0)
                return k;
        k = read_address(r, o, &f->address);
        if (k < 0)
                return k;
        k = reader_word(r, o, "protocol", protocol_words, &protocol);
        if (k < 0)
                return k;
        f->protocol = (Protocol) protocol;
        k = read_port(r, o, "host", &f->host);
        if (k < 0)
                return k;
        return read_port(r, o, "guest", &f->guest);
}

static int read_forwards(DefinitionReader *r, json_object *o, Network *net) {
        json_object *a = NULL;
        int k;

        k = read_array(r, o, "forward", FORWARDS_MAX, sizeof(Forward), &a, &net->forwards, &net->n_forwards);
        for (size_t i = 0; k >= 0 && i < net->n_forwards; i++) {
                size_t before = reader_enter(r, ".forward[%zu]", i);

                k = read_forward(r, json_object_array_get_idx(a, i), net->forwards + i);
                if (k >= 0)
                        reader_leave(r, before);
        }
        if (k >= 0 && net->n_forwards > 0 && net->type != NETWORK_USER)
                return reader_refuse(r, "forward", "only networks of type \"user\" forward ports, leave it out");
        return k;
}

static int read_network(DefinitionReader *r, json_object *o, Network *net) {
        static const char *const keys[] = { "name", "type", "forward", NULL };
        int type = 0, k;

        k = reader_check_keys(r, o, keys);
        if (k < 0)
                return k;
        k = read_name(r, o, &net->name);
        if (k < 0)
                return k;
        k = reader_word(r, o, "type", network_type_words, &type);
        if (k < 0)
                return k;
        net->type = (NetworkType) type;
        return read_forwards(r, o, net);
}

int definition_read_networks(DefinitionReader *r, json_object *o, Definition *d) {
        json_object *a = NULL;
        int k;

        k = read_array(r, o, "networks", NETWORKS_MAX, sizeof(Network), &a, &d->networks, &d->n_networks);
        for (size_t i = 0; k >= 0 && i < d->n_networks; i++) {
                size_t before = reader_enter(r, "networks[%zu]", i);

                k = read_network(r, json_object_array_get_idx(a, i), d->networks + i);
                if (k >= 0)
                        reader_leave(r, before);
        }
        return k;
}

/* 0.0.0.0 takes the port on all addresses. */
static bool forwards_collide(const Forward *a, const Forward *b) {
        return a->protocol == b->protocol && a->host == b->host &&
                (streq(a->address, b->address) || streq(a->address, "0.0.0.0") || streq(b->address, "0.0.0.0"));
}

static int check_forward(DefinitionReader *r, const Definition *d, size_t i, size_t j) {
        const Forward *f = d->networks[i].forwards + j;

        for (size_t n = 0; n <= i; n++)
                for (size_t m = 0; m < (n < i ? d->networks[n].n_forwards : j); m++)
                        if (forwards_collide(f, d->networks[n].forwards + m)) {
                                (void) reader_enter(r, "networks[%zu].forward[%zu]", i, j);
                                return reader_refuse(r, "host",
                                                     "%s port %u is taken by networks[%zu].forward[%zu] already, "
                                                     "write another",
                                                     protocol_to_string(f->protocol), f->host, n, m);
                        }
        return 0;
}

int definition_check_forwards(DefinitionReader *r, const Definition *d) {
        int k = 0;

        for (size_t i = 0; i < d->n_networks; i++)
                for (size_t j = 0; k >= 0 && j < d->networks[i].n_forwards; j++)
                        k = check_forward(r, d, i, j);
        return k;
}

/* Disks and networks share their names: VMMs have one space of ids for both. */
static char **name_at(const Definition *d, size_t i) {
        return i < d->n_disks ? &d->disks[i].name : &d->networks[i - d->n_disks].name;
}

static bool name_is_taken(const Definition *d, const char *name, size_t n, size_t *ret_by) {
        for (size_t i = 0; i < n; i++)
                if (streq_ptr(*name_at(d, i), name)) {
                        *ret_by = i;
                        return true;
                }
        return false;
}

static int check_name(DefinitionReader *r, const Definition *d, size_t i) {
        size_t by;
        bool disk;

        if (!*name_at(d, i) || !name_is_taken(d, *name_at(d, i), i, &by))
                return 0;
        disk = i < d->n_disks;
        (void) reader_enter(r, "%s[%zu]", disk ? "disks" : "networks", disk ? i : i - d->n_disks);
        disk = by < d->n_disks;
        return reader_refuse(r, "name", "\"%s\" is the name of %s[%zu] already, write another", *name_at(d, i),
                             disk ? "disks" : "networks", disk ? by : by - d->n_disks);
}

/* The lowest number whose name nobody was given */
static int default_name(DefinitionReader *r, const Definition *d, size_t i) {
        size_t all = d->n_disks + d->n_networks, by;

        for (size_t n = 0;; n++) {
                _cleanup_free_ char *name = strjoinf("%s%zu", i < d->n_disks ? "disk" : "net", n);

                if (!name)
                        return oom(r->error);
                if (name_is_taken(d, name, all, &by))
                        continue;
                *name_at(d, i) = TAKE_PTR(name);
                return 0;
        }
}

int definition_settle_names(DefinitionReader *r, const Definition *d) {
        size_t n = d->n_disks + d->n_networks;
        int k = 0;

        for (size_t i = 0; k >= 0 && i < n; i++)
                k = check_name(r, d, i);
        for (size_t i = 0; k >= 0 && i < n; i++)
                if (!*name_at(d, i))
                        k = default_name(r, d, i);
        return k;
}
