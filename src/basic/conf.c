/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <syslog.h>
#include <unistd.h>

#include "basic/conf.h"
#include "basic/fd-util.h"
#include "basic/log.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"

#define CONF_BYTES_MAX (1024U * 1024U)

static const char *const program_table[] = {
        [PROGRAM_QEMU] = "qemu",
        [PROGRAM_CLOUD_HYPERVISOR] = "cloud-hypervisor",
        [PROGRAM_FIRECRACKER] = "firecracker",
        [PROGRAM_VIRTIOFSD] = "virtiofsd",
        [PROGRAM_PASST] = "passt",
};

DEFINE_STRING_TABLE(program, Program)

const char *user_limit_to_string(UserLimit l) {
        static const char *const names[] = {
                [USER_LIMIT_VMS] = "UserVMsMax",
                [USER_LIMIT_CPUS] = "UserCPUsMax",
                [USER_LIMIT_MEMORY] = "UserMemoryMax",
                [USER_LIMIT_DISKS] = "UserDisksMax",
        };

        return l < _USER_LIMIT_MAX ? names[l] : NULL;
}

/* Sets a key from its value, NULL meaning the default: 0, -ENOMEM, or -EINVAL, then the configuration is as before and
 * *ret_want says what would do. */
typedef int (*set_fn)(Config *c, size_t offset, const char *value, const char **ret_want);

static int set_program(Config *c, size_t offset, const char *value, const char **ret_want) {
        char **p = (char **) ((char *) c + offset);

        if (value && (value[0] != '/' || strlen(value) >= PATH_MAX)) {
                *ret_want = "an absolute path";
                return -EINVAL;
        }
        return free_and_strdup(p, value);
}

static int parse_backends(const char *value, char ***ret) {
        _cleanup_strv_free_ char **l = NULL;
        _cleanup_free_ char *copy = strdup(value);
        char *state = NULL;
        int r;

        if (!copy)
                return -ENOMEM;
        for (char *w = strtok_r(copy, " \t", &state); w; w = strtok_r(NULL, " \t", &state)) {
                Program p = program_from_string(w);

                if ((int) p < 0 || p >= _PROGRAM_COMPANIONS || strv_contains(l, w))
                        return -EINVAL;
                r = strv_extend(&l, w);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(l);
        return 0;
}

static int set_backends(Config *c, size_t offset, const char *value, const char **ret_want) {
        char ***p = (char ***) ((char *) c + offset), **l;
        int r;

        r = parse_backends(value ?: "cloud-hypervisor qemu firecracker", &l);
        if (r < 0) {
                *ret_want = "names out of \"qemu cloud-hypervisor firecracker\", each once";
                return r;
        }
        strv_free(*p);
        *p = l;
        return 0;
}

static int set_u64(Config *c, size_t offset, const char *value, int (*parse)(const char *, uint64_t *), uint64_t min,
                   uint64_t max, uint64_t def) {
        uint64_t v = def;

        if (value && (parse(value, &v) < 0 || v < min || v > max))
                return -EINVAL;
        *(uint64_t *) ((char *) c + offset) = v;
        return 0;
}

static int set_start_timeout(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a time from 1ms to 1d";
        return set_u64(c, offset, value, parse_sec, USEC_PER_MSEC, 86400 * USEC_PER_SEC, 30 * USEC_PER_SEC);
}

static int set_restart(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a time from 1ms to 1d";
        return set_u64(c, offset, value, parse_sec, USEC_PER_MSEC, 86400 * USEC_PER_SEC, 1 * USEC_PER_SEC);
}

static int set_restart_max_delay(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a time from 1ms to 1d";
        return set_u64(c, offset, value, parse_sec, USEC_PER_MSEC, 86400 * USEC_PER_SEC, 300 * USEC_PER_SEC);
}

static int set_restart_reset(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a time from 1ms to 1d";
        return set_u64(c, offset, value, parse_sec, USEC_PER_MSEC, 86400 * USEC_PER_SEC, 120 * USEC_PER_SEC);
}

static int set_on_boot(Config *c, size_t offset, const char *value, const char **ret_want) {
        static const char *const words[] = { "no", "autostart", "resume" };

        for (size_t i = 0; i < ELEMENTSOF(words); i++)
                if (streq(value ?: "autostart", words[i])) {
                        *(OnBoot *) ((char *) c + offset) = (OnBoot) i;
                        return 0;
                }
        *ret_want = "autostart, resume or no";
        return -EINVAL;
}

static int set_on_boot_delay(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a time up to 1h";
        return set_u64(c, offset, value, parse_sec, 0, 3600 * USEC_PER_SEC, 0);
}

static int set_console_log_max(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a size from 4K to 1G";
        return set_u64(c, offset, value, parse_size, 4096, UINT64_C(1) << 30, UINT64_C(1) << 20);
}

static int set_events_max(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a number up to 1000000000, 0 for no limit";
        return set_u64(c, offset, value, parse_u64, 0, 1000000000, 10000);
}

static int set_events_max_age(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a time, 0 or infinity for no limit";
        return set_u64(c, offset, value, parse_sec, 0, UINT64_MAX, 90 * 86400 * USEC_PER_SEC);
}

static int set_number(Config *c, size_t offset, const char *value, const char **ret_want, uint64_t def) {
        if (value && streq(value, "infinity")) {
                *(uint64_t *) ((char *) c + offset) = UINT64_MAX;
                return 0;
        }
        *ret_want = "a number up to 1000000000, or infinity";
        return set_u64(c, offset, value, parse_u64, 0, 1000000000, def);
}

static int set_vms(Config *c, size_t offset, const char *value, const char **ret_want) {
        return set_number(c, offset, value, ret_want, 4096);
}

static int set_user_vms(Config *c, size_t offset, const char *value, const char **ret_want) {
        return set_number(c, offset, value, ret_want, 32);
}

static int set_user_cpus(Config *c, size_t offset, const char *value, const char **ret_want) {
        return set_number(c, offset, value, ret_want, 64);
}

static int set_user_disks(Config *c, size_t offset, const char *value, const char **ret_want) {
        return set_number(c, offset, value, ret_want, 128);
}

static uint64_t host_memory(uint64_t permyriad) {
        long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);

        return pages > 0 && size > 0 ? (uint64_t) pages / 10000 * (uint64_t) size * permyriad : UINT64_MAX;
}

static int parse_memory(const char *value, uint64_t *ret) {
        uint64_t permyriad;

        if (streq(value, "infinity"))
                *ret = UINT64_MAX;
        else if (parse_percent(value, &permyriad) < 0)
                return parse_size(value, ret);
        else if (permyriad > 1000 * 10000)
                return -ERANGE;
        else
                *ret = host_memory(permyriad);
        return 0;
}

static int set_user_memory(Config *c, size_t offset, const char *value, const char **ret_want) {
        *ret_want = "a size, a percentage of the host's memory, or infinity";
        return set_u64(c, offset, value ?: "50%", parse_memory, 0, UINT64_MAX, 0);
}

static int set_log_level(Config *c, size_t offset, const char *value, const char **ret_want) {
        int level = value ? parse_log_level(value) : LOG_INFO;

        if (level < 0) {
                *ret_want = "emerg, alert, crit, err, warning, notice, info, debug or 0 to 7";
                return -EINVAL;
        }
        *(int *) ((char *) c + offset) = level;
        return 0;
}

static const struct {
        const char *name;
        set_fn set;
        size_t offset;
} keys[] = {
        { "QEMU", set_program, offsetof(Config, program[PROGRAM_QEMU]) },
        { "CloudHypervisor", set_program, offsetof(Config, program[PROGRAM_CLOUD_HYPERVISOR]) },
        { "Firecracker", set_program, offsetof(Config, program[PROGRAM_FIRECRACKER]) },
        { "VirtioFSD", set_program, offsetof(Config, program[PROGRAM_VIRTIOFSD]) },
        { "Passt", set_program, offsetof(Config, program[PROGRAM_PASST]) },
        { "Backends", set_backends, offsetof(Config, backends) },
        { "StartTimeoutSec", set_start_timeout, offsetof(Config, start_timeout_usec) },
        { "RestartSec", set_restart, offsetof(Config, restart_usec) },
        { "RestartMaxDelaySec", set_restart_max_delay, offsetof(Config, restart_max_delay_usec) },
        { "RestartResetSec", set_restart_reset, offsetof(Config, restart_reset_usec) },
        { "OnBoot", set_on_boot, offsetof(Config, on_boot) },
        { "OnBootDelaySec", set_on_boot_delay, offsetof(Config, on_boot_delay_usec) },
        { "ConsoleLogMaxBytes", set_console_log_max, offsetof(Config, console_log_max) },
        { "EventsMax", set_events_max, offsetof(Config, events_max) },
        { "EventsMaxAgeSec", set_events_max_age, offsetof(Config, events_max_age_usec) },
        { "VMsMax", set_vms, offsetof(Config, vms_max) },
        { "UserVMsMax", set_user_vms, offsetof(Config, user_limit[USER_LIMIT_VMS]) },
        { "UserCPUsMax", set_user_cpus, offsetof(Config, user_limit[USER_LIMIT_CPUS]) },
        { "UserMemoryMax", set_user_memory, offsetof(Config, user_limit[USER_LIMIT_MEMORY]) },
        { "UserDisksMax", set_user_disks, offsetof(Config, user_limit[USER_LIMIT_DISKS]) },
        { "LogLevel", set_log_level, offsetof(Config, log_level) },
};

void config_free(Config *c) {
        if (!c)
                return;
        for (size_t i = 0; i < ELEMENTSOF(c->program); i++)
                free(c->program[i]);
        strv_free(c->backends);
        free(c);
}

static int config_new(Config **ret) {
        _cleanup_(config_freep) Config *c = new0(Config, 1);
        const char *want;
        int r;

        if (!c)
                return -ENOMEM;
        for (size_t i = 0; i < ELEMENTSOF(keys); i++) {
                r = keys[i].set(c, keys[i].offset, NULL, &want);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(c);
        return 0;
}

static char *strip(char *s) {
        size_t n;

        s += strspn(s, " \t\r");
        for (n = strlen(s); n > 0 && strchr(" \t\r", s[n - 1]); n--)
                ;
        s[n] = 0;
        return s;
}

/* What a file says, fit for a log line */
static char *printable(const char *s) {
        size_t n = strlen(s);

        return escape_untrusted(s, MIN(n, (size_t) 64), 128);
}

static int apply_assignment(Config *c, const char *path, int line, const char *key, const char *value) {
        _cleanup_free_ char *shown = NULL;
        const char *want = NULL;
        int r;

        for (size_t i = 0; i < ELEMENTSOF(keys); i++) {
                if (!streq(key, keys[i].name))
                        continue;
                r = keys[i].set(c, keys[i].offset, isempty(value) ? NULL : value, &want);
                if (r != -EINVAL)
                        return r;
                shown = printable(value);
                if (!shown)
                        return -ENOMEM;
                log_warning("%s:%d: %s=%s is not valid, expected %s; ignored", path, line, key, shown, want);
                return 0;
        }

        shown = printable(key);
        if (!shown)
                return -ENOMEM;
        log_warning("%s:%d: Unknown key \"%s\", ignored", path, line, shown);
        return 0;
}

typedef enum Section { SECTION_NONE, SECTION_OURS, SECTION_UNKNOWN } Section;

static int apply_header(Section *section, const char *path, int line, const char *s) {
        _cleanup_free_ char *shown = NULL;

        *section = streq(s, "[VMUnit]") ? SECTION_OURS : SECTION_UNKNOWN;
        if (*section == SECTION_OURS)
                return 0;
        shown = printable(s);
        if (!shown)
                return -ENOMEM;
        log_warning("%s:%d: Unknown section \"%s\", ignored", path, line, shown);
        return 0;
}

static int apply_line(Config *c, Section *section, const char *path, int line, char *s) {
        char *eq;

        s = strip(s);
        if (!*s)
                return 0;
        if (*s == '[')
                return apply_header(section, path, line, s);
        if (*section == SECTION_UNKNOWN)
                return 0;               /* its header was warned of */

        eq = strchr(s, '=');
        if (!eq) {
                log_warning("%s:%d: Neither a section nor an assignment, ignored", path, line);
                return 0;
        }
        if (*section == SECTION_NONE) {
                log_warning("%s:%d: Assignment outside of a section, ignored", path, line);
                return 0;
        }
        *eq = 0;
        return apply_assignment(c, path, line, strip(s), strip(eq + 1));
}

static bool is_comment(const char *s) {
        s += strspn(s, " \t\r");
        return *s == '#' || *s == ';';
}

/* Joins continued lines in place (the result is never longer) and drops comments, also those between continued lines,
 * as systemd does. */
static int apply_text(Config *c, const char *path, char *text) {
        Section section = SECTION_NONE;
        char *logical = text;
        size_t n = 0;
        int line = 0, first = 0, r;

        for (char *s = text, *next; s; s = next) {
                bool more = false;

                next = strchr(s, '\n');
                if (next)
                        *next++ = 0;
                line++;

                if (!is_comment(s)) {
                        size_t l = strlen(s);

                        more = l > 0 && s[l - 1] == '\\';
                        if (n == 0)
                                first = line;
                        memmove(logical + n, s, l);
                        n += l;
                        if (more)
                                logical[n - 1] = ' ';
                } else
                        more = n > 0;

                if (n == 0 || (more && next))
                        continue;

                logical[n] = 0;
                r = apply_line(c, &section, path, first, logical);
                if (r < 0)
                        return r;
                logical = next;
                n = 0;
        }
        return 0;
}

static int apply_file(Config *c, const char *path) {
        _cleanup_free_ char *text = NULL;
        size_t n;
        int r;

        r = read_file_all(path, CONF_BYTES_MAX, &text, &n);
        if (r == -ENOENT || r == -ENOMEM)
                return r;
        if (r < 0) {
                log_warning_errno(r, "Cannot read %s, ignored", path);
                return 0;
        }
        if (strlen(text) != n) {
                log_warning("%s contains NUL bytes, ignored", path);
                return 0;
        }
        return apply_text(c, path, text);
}

static const char *const dropin_dirs[] = {
        "/usr/lib/vmunit/vmunit.conf.d",
        "/run/vmunit.conf.d", /* what is below /run/vmunit is the daemon's, and what the launcher reads must not be */
        SYSCONFDIR "/vmunit/vmunit.conf.d",
};

static int list_names(const char *dir, char ***names) {
        DIR *d;
        int r = 0;

        d = opendir(dir);
        if (!d) {
                if (errno != ENOENT)
                        log_warning_errno(-errno, "Cannot read %s, ignored", dir);
                return 0;
        }
        for (struct dirent *e; r >= 0 && (e = readdir(d));)
                if (e->d_name[0] != '.' && endswith(e->d_name, ".conf") && !strv_contains(*names, e->d_name))
                        r = strv_extend(names, e->d_name);
        closedir(d);
        return r;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(char *const *) a, *(char *const *) b);
}

static int apply_dropin(Config *c, const char *root, const char *name) {
        for (size_t i = ELEMENTSOF(dropin_dirs); i-- > 0;) {
                _cleanup_free_ char *path = strjoinf("%s%s/%s", root, dropin_dirs[i], name);
                int r;

                if (!path)
                        return -ENOMEM;
                r = apply_file(c, path);
                if (r != -ENOENT)
                        return r;
        }
        return 0;               /* gone since the directory was read */
}

static int apply_dropins(Config *c, const char *root) {
        _cleanup_strv_free_ char **names = NULL;
        int r;

        for (size_t i = 0; i < ELEMENTSOF(dropin_dirs); i++) {
                _cleanup_free_ char *dir = strjoinf("%s%s", root, dropin_dirs[i]);

                if (!dir)
                        return -ENOMEM;
                r = list_names(dir, &names);
                if (r < 0)
                        return r;
        }
        if (names)
                qsort(names, strv_length(names), sizeof(char *), compare_names);
        STRV_FOREACH(n, names) {
                r = apply_dropin(c, root, *n);
                if (r < 0)
                        return r;
        }
        return 0;
}

int config_load(const char *root, Config **ret) {
        _cleanup_(config_freep) Config *c = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        root = strempty(root);
        path = strjoinf("%s%s/vmunit/vmunit.conf", root, SYSCONFDIR);
        if (!path)
                return -ENOMEM;
        r = config_new(&c);
        if (r < 0)
                return r;
        r = apply_file(c, path);
        if (r < 0 && r != -ENOENT)
                return r;
        r = apply_dropins(c, root);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(c);
        return 0;
}
