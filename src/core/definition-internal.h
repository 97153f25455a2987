/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <json-c/json.h>

#include "core/definition.h"

/* What the files of the definition share; nobody else includes this. */

#define DISKS_MAX 64U
#define FILESYSTEMS_MAX 16U
#define NETWORKS_MAX 16U
#define FORWARDS_MAX 64U                /* of one network */
#define NAME_LENGTH_MAX 16U
#define TAG_LENGTH_MAX 36U
#define THREADS_MAX 64
#define LABELS_MAX 64U
#define LABELS_BYTES_MAX 4096U
#define CPUS_MAX 512U
#define MEMORY_MIN (UINT64_C(8) << 20)
#define MEMORY_MAX (UINT64_C(16) << 40)
#define MEMORY_STEP (UINT64_C(1) << 20)
/* COMMAND_LINE_SIZE of Linux on x86 and arm64, less the NUL */
#define CMDLINE_LENGTH_MAX 2047U
#define RESTART_TRIES_MAX 1000
#define PRIORITY_MAX 1000000
#define STOP_TIMEOUT_MAX (UINT64_C(31557600) * USEC_PER_SEC) /* systemd's year */

#define CPUS_DEFAULT 1U
#define MEMORY_DEFAULT (UINT64_C(512) << 20)
#define RESTART_TRIES_DEFAULT 5U
#define STOP_TIMEOUT_DEFAULT (20 * USEC_PER_SEC)
#define FIRMWARE_DEFAULT "bios"
#define ADDRESS_DEFAULT "127.0.0.1"

/* The words of the enums, in their order, NULL at the end; backend_words begins with BACKEND_AUTO. */
extern const char *const backend_words[], *const accel_words[], *const disk_format_words[],
        *const filesystem_cache_words[], *const protocol_words[], *const network_type_words[], *const restart_policy_words[];

/* Where in the JSON we are, and where errors go. All that reads gives 0 or a negative errno and writes its output only
 * on success; what finds a value missing leaves the output, which holds the default. */
typedef struct DefinitionReader {
        sd_bus_error *error;
        bool null_is_missing;           /* the result of a merge, where null took something out */
        char path[256];
        size_t path_length;
} DefinitionReader;

/* Steps into a member or element; gives what reader_leave() needs to step out. */
size_t reader_enter(DefinitionReader *r, const char *format, ...) _printf_(2, 3);
void reader_leave(DefinitionReader *r, size_t before);

/* Sets the error "PATH.key: …" (key NULL: the place itself) and gives -EINVAL. */
int reader_refuse(DefinitionReader *r, const char *key, const char *format, ...) _printf_(3, 4);

/* That o is an object and has only these keys; the list ends with NULL. */
int reader_check_keys(DefinitionReader *r, json_object *o, const char *const *keys);
/* The member if it is there and of the type: 1, not there: 0. */
int reader_get(DefinitionReader *r, json_object *o, const char *key, json_type type, json_object **ret);
int reader_missing(DefinitionReader *r, const char *key, const char *want);

int reader_bool(DefinitionReader *r, json_object *o, const char *key, bool *ret);
int reader_integer(DefinitionReader *r, json_object *o, const char *key, int64_t min, int64_t max, int64_t *ret);
/* The index of a word in the list of those allowed, which ends with NULL */
int reader_word(DefinitionReader *r, json_object *o, const char *key, const char *const *words, int *ret);
int reader_absolute_path(DefinitionReader *r, json_object *o, const char *key, char **ret);
/* A string (spelled as systemd does) or a number of bytes or seconds */
int reader_size(DefinitionReader *r, json_object *o, const char *key, uint64_t *ret);
int reader_time(DefinitionReader *r, json_object *o, const char *key, uint64_t *ret);

bool has_control_characters(const char *s);
int oom(sd_bus_error *error);

int definition_read_disks(DefinitionReader *r, json_object *o, Definition *d);
int definition_read_filesystems(DefinitionReader *r, json_object *o, Definition *d);
int definition_read_networks(DefinitionReader *r, json_object *o, Definition *d);
/* Once all of them are there: that no name and no port of the host is there twice; gives default names. */
int definition_settle_names(DefinitionReader *r, const Definition *d);
int definition_check_forwards(DefinitionReader *r, const Definition *d);

int resources_read(DefinitionReader *r, json_object *o, Resources *res);
int resources_to_json(const Resources *res, json_object *o);
void resources_done(Resources *r);

/* From JSON that has been read strictly already */
int definition_from_json(json_object *o, bool null_is_missing, Definition **ret, sd_bus_error *error);
int definition_to_json(const Definition *d, json_object **ret);
/* Reads the text and sees to its size. name stands for the whole in messages. */
int definition_read_json(const char *name, const char *text, json_object **ret, sd_bus_error *error);

/* Arrays whose elements are told apart by a member: its name ("name" or "tag") for the key of the array, or NULL */
const char *definition_array_id(const char *key);
/* The element whose member id has the value, or NULL */
json_object *definition_array_find(json_object *array, const char *id, const char *value, size_t *ret_index);
