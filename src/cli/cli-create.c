/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <stdio.h>

#include "basic/fd-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "cli/cli-create.h"
#include "cli/cli-error.h"

/* More than the daemon takes, so that it is the daemon that says how much that is. */
#define FILE_MAX (1024U * 1024U)
#define DEPTH_MAX 64

static int fail(char **ret_error, char *text) {
        *ret_error = text;
        return text ? -EINVAL : -ENOMEM;
}

/* The mistake is in the file, not on the command line. */
static int fail_file(char **ret_error, char *text) {
        *ret_error = text;
        return text ? -EBADMSG : -ENOMEM;
}

/* Takes value over, also on error. */
static int object_set(json_object *o, const char *key, json_object *value) {
        if (value && json_object_object_add(o, key, value) >= 0)
                return 0;
        json_object_put(value);
        return -ENOMEM;
}

static int array_append(json_object *a, json_object *value) {
        if (value && json_object_array_add(a, value) >= 0)
                return 0;
        json_object_put(value);
        return -ENOMEM;
}

static int object_set_string(json_object *o, const char *key, const char *value) {
        return object_set(o, key, json_object_new_string(value));
}

/* The member of that type, made if it is missing. A file may hold anything, so another type there is a mistake. */
static int object_member(json_object *o, const char *key, json_type type, json_object **ret, char **ret_error) {
        json_object *m;
        int r;

        if (!json_object_object_get_ex(o, key, &m)) {
                m = type == json_type_array ? json_object_new_array() : json_object_new_object();
                r = object_set(o, key, m);
                if (r < 0)
                        return r;
        } else if (!json_object_is_type(m, type))
                return fail_file(ret_error, strjoinf("\"%s\" in the file is not an %s", key, json_type_to_name(type)));

        *ret = m;
        return 0;
}

static int object_set_path(json_object *o, const char *key, const char *path, const char *cwd) {
        _cleanup_free_ char *s = NULL;

        if (path[0] == '/')
                return object_set_string(o, key, path);

        while (startswith(path, "./"))
                path += 2 + strspn(path + 2, "/");
        s = strjoinf("%s/%s", streq(cwd, "/") ? "" : cwd, path);
        return s ? object_set_string(o, key, s) : -ENOMEM;
}

static int apply_cpus(json_object *definition, const char *value, char **ret_error) {
        uint32_t n;

        if (parse_u32(value, &n) < 0)
                return fail(ret_error, strjoinf("--cpus %s is not a number", value));
        return object_set(definition, "cpus", json_object_new_int64(n));
}

static int apply_boot(json_object *definition, Option option, const char *value, const char *cwd, char **ret_error) {
        json_object *boot;
        int r;

        if (isempty(value) && option != OPTION_CMDLINE)
                return fail(ret_error, strdup("an empty path names no file"));

        r = object_member(definition, "boot", json_type_object, &boot, ret_error);
        if (r < 0)
                return r;

        if (option == OPTION_KERNEL)
                return object_set_path(boot, "kernel", value, cwd);
        if (option == OPTION_INITRD)
                return object_set_path(boot, "initramfs", value, cwd);
        if (option == OPTION_CMDLINE)
                return object_set_string(boot, "cmdline", value);
        if (streq(value, "bios") || streq(value, "uefi"))
                return object_set_string(boot, "firmware", value);
        if (!strchr(value, '/'))
                return fail(ret_error, strjoinf("--firmware %s is not bios, uefi or a path; a file here is ./%s", value,
                                                value));
        return object_set_path(boot, "firmware", value, cwd);
}

/* The next part up to a comma; two commas stand for one within it. NULL at the end. */
static int next_part(const char **p, char **ret) {
        _cleanup_free_ char *s = NULL;
        size_t n = 0;

        if (!*p) {
                *ret = NULL;
                return 0;
        }

        s = new(char, strlen(*p) + 1);
        if (!s)
                return -ENOMEM;
        for (; **p && ((*p)[0] != ',' || (*p)[1] == ','); (*p)++) {
                s[n++] = **p;
                if (**p == ',')
                        (*p)++;
        }
        s[n] = 0;
        *p = **p ? *p + 1 : NULL;
        *ret = TAKE_PTR(s);
        return 0;
}

static int disk_apply_key(json_object *disk, const char *part, char **ret_error) {
        const char *v;

        if (streq(part, "readonly"))
                return object_set(disk, "readonly", json_object_new_boolean(true));
        if ((v = startswith(part, "format=")))
                return object_set_string(disk, "format", v);
        if ((v = startswith(part, "name=")))
                return object_set_string(disk, "name", v);
        return fail(ret_error,
                    strjoinf("--disk knows no '%s' behind the path, only format=…, readonly and name=… "
                             "(a comma in a path is written twice)", part));
}

static int apply_disk(json_object *definition, const char *value, const char *cwd, char **ret_error) {
        _cleanup_json_ json_object *disk = NULL;
        json_object *disks;
        int r;

        disk = json_object_new_object();
        if (!disk)
                return -ENOMEM;

        for (bool first = true;; first = false) {
                _cleanup_free_ char *part = NULL;

                r = next_part(&value, &part);
                if (r < 0)
                        return r;
                if (!part)
                        break;
                if (first && !*part)
                        return fail(ret_error, strdup("--disk needs a path"));
                r = first ? object_set_path(disk, "path", part, cwd) : disk_apply_key(disk, part, ret_error);
                if (r < 0)
                        return r;
        }

        r = object_member(definition, "disks", json_type_array, &disks, ret_error);
        return r < 0 ? r : array_append(disks, TAKE_PTR(disk));
}

/* TAG=DIRECTORY[:ro]; a directory whose own name ends like that is written with a slash behind. */
static int apply_share(json_object *definition, const char *value, const char *cwd, char **ret_error) {
        _cleanup_json_ json_object *share = NULL;
        _cleanup_free_ char *tag = NULL, *path = NULL;
        const char *eq = strchr(value, '=');
        json_object *shares;
        bool readonly;
        int r;

        readonly = endswith(value, ":ro");
        if (!eq || eq == value || streq(eq + 1, readonly ? ":ro" : ""))
                return fail(ret_error, strjoinf("--share %s is not of the form TAG=DIRECTORY or TAG=DIRECTORY:ro", value));

        tag = strndup(value, (size_t) (eq - value));
        path = strndup(eq + 1, strlen(eq + 1) - (readonly ? strlen(":ro") : 0));
        share = json_object_new_object();
        if (!tag || !path || !share)
                return -ENOMEM;
        r = object_set_string(share, "tag", tag);
        if (r >= 0)
                r = object_set_path(share, "source", path, cwd);
        if (r >= 0 && readonly)
                r = object_set(share, "readonly", json_object_new_boolean(true));
        if (r >= 0)
                r = object_member(definition, "filesystems", json_type_array, &shares, ret_error);
        return r < 0 ? r : array_append(shares, TAKE_PTR(share));
}

static int apply_network(json_object *definition, const char *type, json_object **ret, char **ret_error) {
        json_object *networks, *network;
        int r;

        r = object_member(definition, "networks", json_type_array, &networks, ret_error);
        if (r < 0)
                return r;

        network = json_object_new_object();
        r = array_append(networks, network);
        if (r < 0)
                return r;
        if (ret)
                *ret = network;
        return object_set_string(network, "type", type);
}

/* The last network there is; a forward without any asks for one. */
static int forward_network(json_object *definition, json_object **ret, char **ret_error) {
        json_object *networks, *last;
        size_t n;
        int r;

        r = object_member(definition, "networks", json_type_array, &networks, ret_error);
        if (r < 0)
                return r;

        n = json_object_array_length(networks);
        if (n == 0)
                return apply_network(definition, "user", ret, ret_error);

        last = json_object_array_get_idx(networks, n - 1);
        if (!json_object_is_type(last, json_type_object))
                return fail_file(ret_error, strdup("\"networks\" in the file holds something that is not an object"));
        *ret = last;
        return 0;
}

static int port_parse(const char *s, json_object **ret) {
        uint32_t n;

        if (parse_u32(s, &n) < 0 || n == 0 || n > UINT16_MAX)
                return -EINVAL;
        *ret = json_object_new_int64(n);
        return *ret ? 0 : -ENOMEM;
}

/* Splits [ADDR:]HOST:GUEST in place and fills the forward. */
static int forward_parse(char *s, json_object *forward) {
        json_object *port;
        char *guest, *host;
        int r;

        guest = strrchr(s, ':');
        if (!guest)
                return -EINVAL;
        *guest++ = 0;

        host = strrchr(s, ':');
        if (host) {
                *host++ = 0;
                if (!*s)
                        return -EINVAL;
                r = object_set_string(forward, "address", s);
                if (r < 0)
                        return r;
        } else
                host = s;

        r = port_parse(host, &port);
        if (r >= 0)
                r = object_set(forward, "host", port);
        if (r >= 0)
                r = port_parse(guest, &port);
        return r < 0 ? r : object_set(forward, "guest", port);
}

static int apply_forward(json_object *definition, const char *value, char **ret_error) {
        _cleanup_json_ json_object *forward = NULL;
        _cleanup_free_ char *s = NULL;
        json_object *network, *forwards;
        char *protocol;
        int r;

        forward = json_object_new_object();
        s = strdup(value);
        if (!forward || !s)
                return -ENOMEM;

        protocol = strchr(s, '/');
        if (protocol)
                *protocol++ = 0;

        r = protocol && !streq(protocol, "tcp") && !streq(protocol, "udp") ? -EINVAL : forward_parse(s, forward);
        if (r == -EINVAL)
                return fail(ret_error,
                            strjoinf("--forward %s is not of the form [ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]", value));
        if (r >= 0 && protocol)
                r = object_set_string(forward, "protocol", protocol);
        if (r < 0)
                return r;

        r = forward_network(definition, &network, ret_error);
        if (r >= 0)
                r = object_member(network, "forward", json_type_array, &forwards, ret_error);
        return r < 0 ? r : array_append(forwards, TAKE_PTR(forward));
}

static int apply_label(json_object *definition, const char *value, char **ret_error) {
        _cleanup_free_ char *key = NULL;
        const char *eq = strchr(value, '=');
        json_object *labels;
        int r;

        if (!eq || eq == value)
                return fail(ret_error, strjoinf("--label %s is not of the form KEY=VALUE", value));

        r = object_member(definition, "labels", json_type_object, &labels, ret_error);
        if (r < 0)
                return r;

        key = strndup(value, (size_t) (eq - value));
        return key ? object_set_string(labels, key, eq + 1) : -ENOMEM;
}

int definition_apply(json_object *definition, Option option, const char *value, const char *cwd, char **ret_error) {
        switch (option) {
        case OPTION_BACKEND:
                return object_set_string(definition, "backend", value);
        case OPTION_ACCEL:
                return object_set_string(definition, "accel", value);
        case OPTION_CPUS:
                return apply_cpus(definition, value, ret_error);
        case OPTION_MEMORY:
                return object_set_string(definition, "memory", value);
        case OPTION_KERNEL:
        case OPTION_INITRD:
        case OPTION_CMDLINE:
        case OPTION_FIRMWARE:
                return apply_boot(definition, option, value, cwd, ret_error);
        case OPTION_DISK:
                return apply_disk(definition, value, cwd, ret_error);
        case OPTION_SHARE:
                return apply_share(definition, value, cwd, ret_error);
        case OPTION_NETWORK:
                return apply_network(definition, value, NULL, ret_error);
        case OPTION_FORWARD:
                return apply_forward(definition, value, ret_error);
        case OPTION_STOP_TIMEOUT:
                return object_set_string(definition, "stopTimeout", value);
        case OPTION_LABEL:
                return apply_label(definition, value, ret_error);
        case OPTION_VSOCK:
                return json_object_object_add(definition, "vsock", json_object_new_boolean(true)) < 0 ? -ENOMEM : 0;
        default:
                return 0;
        }
}

static int read_definition(const char *name, const char *file, char **ret, size_t *ret_size) {
        bool is_stdin = streq(file, "-");
        int r;

        r = is_stdin ? read_fd_all(STDIN_FILENO, FILE_MAX, ret, ret_size) : read_file_all(file, FILE_MAX, ret, ret_size);
        if (r < 0) {
                say(name, "cannot read %s: %s", is_stdin ? "standard input" : file,
                    r == -E2BIG ? "too large for a definition" : strerror(-r));
                return r == -EINVAL ? -EIO : r;
        }
        if (memchr(*ret, 0, *ret_size)) {
                say(name, "%s is not text, it has a NUL byte: a definition is JSON", is_stdin ? "standard input" : file);
                return -EBADMSG;
        }
        return 0;
}

static int parse_definition(const char *name, const char *text, size_t n, json_object **ret) {
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *error = NULL;
        int r;

        r = json_parse_strict(text, n, DEPTH_MAX, &o, &error);
        if (r < 0) {
                say(name, "the definition is not JSON: %s", error ?: strerror(-r));
                return r == -EINVAL ? -EBADMSG : r;
        }
        if (!json_object_is_type(o, json_type_object)) {
                say(name, "the definition is not a JSON object");
                return -EBADMSG;
        }
        *ret = TAKE_PTR(o);
        return 0;
}

static int new_definition(json_object **ret) {
        _cleanup_json_ json_object *o = json_object_new_object();

        if (!o || object_set(o, "version", json_object_new_int64(1)) < 0)
                return say_oom();
        *ret = TAKE_PTR(o);
        return 0;
}

static int apply_all(const Args *a, json_object *definition) {
        _cleanup_free_ char *cwd = getcwd(NULL, 0), *error = NULL;
        int r;

        if (!cwd) {
                say(a->names[0], "cannot find out the current directory: %m");
                return -EIO;
        }

        for (size_t i = 0; i < a->n_values; i++) {
                r = definition_apply(definition, a->values[i].option, a->values[i].value, cwd, &error);
                if (r < 0) {
                        say(a->names[0], "%s", error ?: strerror(-r));
                        return r;
                }
        }
        return 0;
}

static bool has_definition_options(const Args *a) {
        for (size_t i = 0; i < a->n_values; i++)
                if (a->values[i].option >= OPTION_BACKEND)
                        return true;
        return false;
}

int definition_from_args(const Args *a, char **ret) {
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *text = NULL;
        size_t n;
        int r;

        if (a->n_names > 1) {
                r = read_definition(a->names[0], a->names[1], &text, &n);
                if (r < 0)
                        return r;
                if (!has_definition_options(a)) {
                        *ret = TAKE_PTR(text); /* as written, so that what the daemon says fits it */
                        return 0;
                }
        }

        r = text ? parse_definition(a->names[0], text, n, &o) : new_definition(&o);
        if (r < 0)
                return r;
        r = apply_all(a, o);
        if (r < 0)
                return r;

        *ret = strdup(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
        return *ret ? 0 : say_oom();
}
