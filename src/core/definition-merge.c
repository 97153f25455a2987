/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "core/definition-internal.h"

/* RFC 7396, but what is to be taken out becomes null instead: the parser takes null for missing then, and so sees all
 * keys of the patch, also unknown ones that are null. */

static int put(DefinitionReader *r, json_object *target, const char *key, json_object *value) {
        if (json_object_object_add(target, key, json_object_get(value)) >= 0)
                return 0;
        json_object_put(value);
        return oom(r->error);
}

/* Both are objects. Arrays are replaced. */
static int merge_object(DefinitionReader *r, json_object *target, json_object *patch) {
        json_object_object_foreach(patch, key, value) {
                json_object *old = json_get(target, key);
                bool both = json_object_is_type(old, json_type_object) && json_object_is_type(value, json_type_object);
                int k = both ? merge_object(r, old, value) : put(r, target, key, value);

                if (k < 0)
                        return k;
        }
        return 0;
}

static int delete_element(DefinitionReader *r, json_object *array, const char *id, const char *name,
                          json_object *patch) {
        size_t at;

        if (json_object_object_length(patch) != 2)
                return reader_refuse(r, "delete", "what is taken out has no other members than \"%s\", leave them out",
                                     id);
        if (!definition_array_find(array, id, name, &at))
                return reader_refuse(r, id, "there is no \"%s\" to take out", name);
        json_object_array_del_idx(array, at, 1);
        return 0;
}

static int add_element(DefinitionReader *r, json_object *array, json_object *patch) {
        if (json_object_array_add(array, json_object_get(patch)) >= 0)
                return 0;
        json_object_put(patch);
        return oom(r->error);
}

static int merge_element(DefinitionReader *r, json_object *array, const char *id, json_object *patch) {
        json_object *name, *old;
        bool delete = false;
        int k;

        if (!json_object_is_type(patch, json_type_object))
                return reader_refuse(r, NULL, "must be an object {…} with a \"%s\"", id);
        k = reader_get(r, patch, id, json_type_string, &name);
        if (k < 0)
                return k;
        if (k == 0)
                return reader_missing(r, id, "it: elements are merged by it");
        k = reader_bool(r, patch, "delete", &delete);
        if (k < 0)
                return k;
        if (delete)
                return delete_element(r, array, id, json_object_get_string(name), patch);
        json_object_object_del(patch, "delete");

        old = definition_array_find(array, id, json_object_get_string(name), NULL);
        return old ? merge_object(r, old, patch) : add_element(r, array, patch);
}

static int merge_array(DefinitionReader *r, const char *key, json_object *array, const char *id, json_object *patch) {
        size_t n = json_object_array_length(patch);
        int k = 0;

        for (size_t i = 0; k >= 0 && i < n; i++) {
                size_t before = reader_enter(r, "%s[%zu]", key, i);

                k = merge_element(r, array, id, json_object_array_get_idx(patch, i));
                if (k >= 0)
                        reader_leave(r, before);
        }
        return k;
}

/* Kernel and firmware exclude each other, and one of them is always there: who writes one means to be rid of the
 * other. */
static void settle_boot(json_object *target, json_object *patch) {
        static const char *const with_kernel[] = { "kernel", "initramfs", "cmdline" };
        json_object *boot = json_get(target, "boot");

        patch = json_get(patch, "boot");
        if (!json_object_is_type(boot, json_type_object))
                return;
        if (json_get(patch, "kernel") && !json_object_object_get_ex(patch, "firmware", NULL))
                json_object_object_del(boot, "firmware");
        if (!json_get(patch, "firmware"))
                return;
        for (size_t i = 0; i < ELEMENTSOF(with_kernel); i++)
                if (!json_object_object_get_ex(patch, with_kernel[i], NULL))
                        json_object_object_del(boot, with_kernel[i]);
}

static int merge_all(DefinitionReader *r, json_object *target, json_object *patch) {
        int k;

        if (!json_object_is_type(patch, json_type_object))
                return reader_refuse(r, "patch", "must be an object {…}");
        settle_boot(target, patch);

        json_object_object_foreach(patch, key, value) {
                const char *id = definition_array_id(key);
                json_object *old = json_get(target, key);

                if (id && old && json_object_is_type(value, json_type_array))
                        k = merge_array(r, key, old, id, value);
                else if (json_object_is_type(old, json_type_object) && json_object_is_type(value, json_type_object))
                        k = merge_object(r, old, value);
                else
                        k = put(r, target, key, value);
                if (k < 0)
                        return k;
        }
        return 0;
}

int definition_merge(const Definition *d, const char *patch, Definition **ret, sd_bus_error *error) {
        _cleanup_json_ json_object *o = NULL, *p = NULL;
        DefinitionReader r = { .error = error, .null_is_missing = true };
        int k;

        k = definition_read_json("patch", patch, &p, error);
        if (k < 0)
                return k;
        if (definition_to_json(d, &o) < 0)
                return oom(error);
        k = merge_all(&r, o, p);
        if (k < 0)
                return k;
        return definition_from_json(o, true, ret, error);
}
