/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

#include "basic/json-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "core/definition-internal.h"

#define INFINITE UINT64_MAX             /* also what brings systemd's default back */
#define CPU_WEIGHT_IDLE 0               /* how D-Bus says CPUWeight=idle */
#define WEIGHT_MAX 10000
#define CPU_NUMBER_MAX 8191             /* as in systemd's own lists */
#define CPU_MASK_SIZE ((CPU_NUMBER_MAX + 8) / 8)

/* The value of a key: what it is, and how it is written best. */
typedef struct Value {
        uint64_t value;
        char *text;
        uint8_t *mask;
        size_t mask_size;
} Value;

/* Reads the spelling of a unit file: 0, -ENOMEM, or -EINVAL, whereupon the table says what would do. */
typedef int (*parse_fn)(const char *s, Value *ret);

static int value_printf(Value *v, uint64_t value, const char *format, ...) _printf_(3, 4);
static int value_printf(Value *v, uint64_t value, const char *format, ...) {
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&v->text, format, ap);
        va_end(ap);
        if (r < 0) {
                v->text = NULL;         /* undefined then, vasprintf(3) */
                return -ENOMEM;
        }
        v->value = value;
        return 0;
}

static int parse_weight(const char *s, Value *ret) {
        uint64_t v;

        if (parse_u64(s, &v) < 0 || v < 1 || v > WEIGHT_MAX)
                return -EINVAL;
        return value_printf(ret, v, "%" PRIu64, v);
}

static int parse_cpu_weight(const char *s, Value *ret) {
        if (streq(s, "idle"))
                return value_printf(ret, CPU_WEIGHT_IDLE, "idle");
        return parse_weight(s, ret);
}

static int parse_quota(const char *s, Value *ret) {
        uint64_t v;

        if (streq(s, "infinity"))
                return value_printf(ret, INFINITE, "infinity");
        if (parse_percent(s, &v) < 0 || v < 1 || v > INT_MAX)
                return -EINVAL;

        /* Hundredths of a percent of a second */
        if (v % 100 == 0)
                return value_printf(ret, v * 100, "%" PRIu64 "%%", v / 100);
        if (v % 10 == 0)
                return value_printf(ret, v * 100, "%" PRIu64 ".%" PRIu64 "%%", v / 100, v % 100 / 10);
        return value_printf(ret, v * 100, "%" PRIu64 ".%02" PRIu64 "%%", v / 100, v % 100);
}

static int parse_memory(const char *s, Value *ret) {
        uint64_t v;

        if (streq(s, "infinity"))
                return value_printf(ret, INFINITE, "infinity");
        if (parse_size(s, &v) < 0 || v < 1 || v == INFINITE)
                return -EINVAL;
        ret->text = format_size(v);
        if (!ret->text)
                return -ENOMEM;
        ret->value = v;
        return 0;
}

static int parse_tasks(const char *s, Value *ret) {
        uint64_t v;

        if (streq(s, "infinity"))
                return value_printf(ret, INFINITE, "infinity");
        if (parse_u64(s, &v) < 0 || v < 1 || v > INT64_MAX)
                return -EINVAL;
        return value_printf(ret, v, "%" PRIu64, v);
}

static int parse_cpu_number(const char **p, uint64_t *ret) {
        char digits[8];
        size_t n = strspn(*p, "0123456789");

        if (n == 0 || n >= sizeof(digits))
                return -EINVAL;
        memcpy(digits, *p, n);
        digits[n] = 0;
        *p += n;
        return parse_u64(digits, ret) < 0 || *ret > CPU_NUMBER_MAX ? -EINVAL : 0;
}

/* "0-3,5 7": numbers and ranges between commas and white space */
static int parse_cpu_mask(const char *s, uint8_t mask[static CPU_MASK_SIZE]) {
        static const char separators[] = ", \t";

        for (s += strspn(s, separators); *s; s += strspn(s, separators)) {
                uint64_t first, last;

                if (parse_cpu_number(&s, &first) < 0)
                        return -EINVAL;
                last = first;
                if (*s == '-') {
                        s++;
                        if (parse_cpu_number(&s, &last) < 0 || last < first)
                                return -EINVAL;
                }
                if (*s && !strchr(separators, *s))
                        return -EINVAL;
                for (; first <= last; first++)
                        mask[first / 8] |= (uint8_t) (1U << first % 8);
        }
        return 0;
}

static bool has_cpu(const uint8_t *mask, size_t cpu) {
        return cpu <= CPU_NUMBER_MAX && (mask[cpu / 8] & 1U << cpu % 8);
}

/* As systemctl shows it: "0-3 5" */
static int format_cpu_mask(const uint8_t *mask, char **ret) {
        size_t size;
        FILE *f = open_memstream(ret, &size);

        if (!f)
                return -ENOMEM;
        for (size_t cpu = 0, last; cpu <= CPU_NUMBER_MAX; cpu = last + 1) {
                last = cpu;
                if (!has_cpu(mask, cpu))
                        continue;
                while (has_cpu(mask, last + 1))
                        last++;
                fprintf(f, last > cpu ? "%s%zu-%zu" : "%s%zu", ftell(f) > 0 ? " " : "", cpu, last);
        }
        return fclose(f) == 0 ? 0 : -ENOMEM;
}

static int parse_cpus(const char *s, Value *ret) {
        uint8_t mask[CPU_MASK_SIZE] = {};
        size_t n = CPU_MASK_SIZE;

        if (parse_cpu_mask(s, mask) < 0)
                return -EINVAL;
        while (n > 0 && mask[n - 1] == 0)
                n--;
        if (n == 0)
                return -EINVAL;         /* no CPU at all */

        ret->mask = malloc(n);
        if (!ret->mask || format_cpu_mask(mask, &ret->text) < 0)
                return -ENOMEM;
        memcpy(ret->mask, mask, n);
        ret->mask_size = n;
        return 0;
}

/* The keys are those of unit files, the properties those of systemd's D-Bus API; all are of type t, but AllowedCPUs. */
static const struct {
        const char *key, *property;
        parse_fn parse;
        const char *want;
        bool number;                    /* best written as a JSON number */
} table[] = {
        [RESOURCE_CPU_WEIGHT] = { "CPUWeight", "CPUWeight", parse_cpu_weight, "1 to 10000 or \"idle\"", true },
        [RESOURCE_CPU_QUOTA] = { "CPUQuota", "CPUQuotaPerSecUSec", parse_quota,
                                 "a percentage of one CPU such as \"150%\" or \"infinity\"" },
        [RESOURCE_MEMORY_MAX] = { "MemoryMax", "MemoryMax", parse_memory, "a size such as \"1G\" or \"infinity\"" },
        [RESOURCE_MEMORY_HIGH] = { "MemoryHigh", "MemoryHigh", parse_memory, "a size such as \"1G\" or \"infinity\"" },
        [RESOURCE_TASKS_MAX] = { "TasksMax", "TasksMax", parse_tasks, "a number from 1 on or \"infinity\"", true },
        [RESOURCE_IO_WEIGHT] = { "IOWeight", "IOWeight", parse_weight, "1 to 10000", true },
        [RESOURCE_ALLOWED_CPUS] = { "AllowedCPUs", "AllowedCPUs", parse_cpus,
                                    "numbers and ranges of CPUs up to 8191 such as \"0-3 5\"" },
};

static int resource_read(DefinitionReader *r, json_object *o, Resource i, Resources *res) {
        char shown[JSON_SHOW_MAX];
        json_object *v;
        Value value = {};
        int k;

        if (!json_object_object_get_ex(o, table[i].key, &v) || (!v && r->null_is_missing))
                return 0;
        if (!json_object_is_type(v, json_type_string) && !json_object_is_type(v, json_type_int))
                return reader_refuse(r, table[i].key, "%s is not valid, write %s", json_show(v, shown), table[i].want);

        k = table[i].parse(json_object_get_string(v), &value);
        if (k < 0) {
                free(value.text);
                free(value.mask);
                return k == -ENOMEM ? oom(r->error) :
                        reader_refuse(r, table[i].key, "%s is not valid, write %s", json_show(v, shown), table[i].want);
        }
        res->text[i] = value.text;
        res->value[i] = value.value;
        if (value.mask) {
                res->allowed_cpus = value.mask;
                res->allowed_cpus_size = value.mask_size;
        }
        return 0;
}

int resources_read(DefinitionReader *r, json_object *o, Resources *res) {
        const char *keys[_RESOURCE_MAX + 1] = {};
        int k;

        for (Resource i = 0; i < _RESOURCE_MAX; i++)
                keys[i] = table[i].key;
        k = reader_check_keys(r, o, keys);
        for (Resource i = 0; k >= 0 && i < _RESOURCE_MAX; i++)
                k = resource_read(r, o, i, res);
        return k;
}

void resources_done(Resources *r) {
        for (Resource i = 0; i < _RESOURCE_MAX; i++)
                free(r->text[i]);
        free(r->allowed_cpus);
        *r = (Resources) {};
}

int resources_to_json(const Resources *r, json_object *o) {
        for (Resource i = 0; i < _RESOURCE_MAX; i++) {
                json_object *v;

                if (!r->text[i])
                        continue;
                v = table[i].number && isdigit((unsigned char) r->text[i][0]) ?
                        json_object_new_int64((int64_t) r->value[i]) : json_object_new_string(r->text[i]);
                if (!v)
                        return -ENOMEM;
                if (json_object_object_add(o, table[i].key, v) < 0) {
                        json_object_put(v);
                        return -ENOMEM;
                }
        }
        return 0;
}

/* r NULL: systemd's default, an empty list or "infinity" */
static int append_one(sd_bus_message *m, Resource i, const Resources *r) {
        int k;

        if (i != RESOURCE_ALLOWED_CPUS)
                return sd_bus_message_append(m, "(sv)", table[i].property, "t", r ? r->value[i] : INFINITE);

        k = sd_bus_message_open_container(m, 'r', "sv");
        if (k < 0)
                return k;
        k = sd_bus_message_append(m, "s", table[i].property);
        if (k < 0)
                return k;
        k = sd_bus_message_open_container(m, 'v', "ay");
        if (k < 0)
                return k;
        k = sd_bus_message_append_array(m, 'y', r ? r->allowed_cpus : NULL, r ? r->allowed_cpus_size : 0);
        if (k < 0)
                return k;
        k = sd_bus_message_close_container(m);
        if (k < 0)
                return k;
        return sd_bus_message_close_container(m);
}

int resources_append(const Resources *r, sd_bus_message *m) {
        static const Resources none = {};

        return resources_append_change(&none, r, m);
}

int resources_append_change(const Resources *from, const Resources *to, sd_bus_message *m) {
        for (Resource i = 0; i < _RESOURCE_MAX; i++) {
                int k;

                if (streq_ptr(from->text[i], to->text[i]))
                        continue;
                k = append_one(m, i, to->text[i] ? to : NULL);
                if (k < 0)
                        return k;
        }
        return 0;
}
