/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <limits.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/definition.h"
#include "tap.h"

#define D(members) "{\"version\":1," members "}"
#define DISK(members) D("\"disks\":[{\"path\":\"/d\"" members "}]")
#define SHARE(members) D("\"filesystems\":[{\"tag\":\"t\",\"source\":\"/s\"" members "}]")
#define FORWARD(members) D("\"networks\":[{\"forward\":[{" members "}]}]")
#define RESOURCE(members) D("\"resources\":{" members "}")
#define KEYS "version, backend, accel, cpus, memory, boot, disks, filesystems, networks, vsock, restart, autostart, " \
             "autostartPriority, stopTimeout, resources, labels"
#define A16 "aaaaaaaaaaaaaaaa"
#define QUOTA "a percentage of one CPU such as \"150%\" or \"infinity\""
#define CPUS "numbers and ranges of CPUs up to 8191 such as \"0-3 5\""

/* What is refused, and what is said of it */
static const struct {
        const char *json, *message;
} bad[] = {
        /* No JSON, or none that can be taken */
        { "", "definition: unexpected end of data (line 1, column 1)" },
        { "{", "definition: unexpected end of data (line 1, column 2)" },
        { "{\"version\":1}x", "definition: unexpected character (line 1, column 14)" },
        { "{\"version\":1,}", "definition: unexpected character (line 1, column 14)" },
        { "{'version':1}", "definition: strings must be in double quotes (line 1, column 2)" },
        { "{\"version\":1 /* one */}", "definition: object value separator ',' expected (line 1, column 14)" },
        { "{\"version\":NaN}", "version: Infinity and NaN are no numbers here (line 1, column 12)" },
        { "{\"version\":01}", "version: a number must not begin with 0 (line 1, column 12)" },
        { "{\"version\":1,\n \"cpus\":1,\n \"cpus\":2}", "cpus: this key is there twice, write it once (line 3, column 2)" },
        { D("\"boot\":{\"kernel\":\"/a\",\"kernel\":\"/b\"}"), "boot.kernel: this key is there twice, write it once (line 1, column 36)" },
        { D("\"cpus\":18446744073709551616"), "cpus: this number is too large (line 1, column 21)" },
        { D("\"cpus\":1e400"), "cpus: this number is too large (line 1, column 21)" },
        { DISK(",\"name\":\"a\\u0000\""), "disks[0].name: a NUL character (\\u0000) is not allowed (line 1, column 45)" },
        { DISK(",\"name\":\"\\ud800\""), "disks[0].name: half of a surrogate pair is not a character (line 1, column 44)" },
        { DISK(",\"name\":\"\xff\""), "disks[0].name: this is not valid UTF-8 (line 1, column 44)" },
        { D("\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"), "definition: the nesting is too deep (line 1, column 49)" },

        /* The whole */
        { "null", "definition: must be an object {…}, not null" },
        { "[]", "definition: must be an object {…}, not an array" },
        { "\"{}\"", "definition: must be an object {…}, not a string" },
        { "{}", "version: missing, write 1" },
        { "{\"version\":2}", "version: 2 is not supported, write 1" },
        { "{\"version\":0}", "version: 0 is not supported, write 1" },
        { "{\"version\":\"1\"}", "version: must be a whole number, not a string" },
        { "{\"version\":1.0}", "version: must be a whole number, not a fraction" },
        { "{\"version\":null}", "version: must be a whole number, not null" },
        { D("\"cpu\":1"), "cpu: unknown key, did you mean \"cpus\"?" },
        { D("\"CPUS\":1"), "CPUS: unknown key, did you mean \"cpus\"?" },
        { D("\"disk\":[]"), "disk: unknown key, did you mean \"disks\"?" },
        { D("\"stop_timeout\":1"), "stop_timeout: unknown key, did you mean \"stopTimeout\"?" },
        { D("\"autostart-priority\":1"), "autostart-priority: unknown key, did you mean \"autostartPriority\"?" },
        { D("\"processors\":1"), "processors: unknown key, known are " KEYS },
        { D("\"\":1"), ": unknown key, known are " KEYS },
        { D("\"a\\nb\\u001b" A16 A16 A16 A16 A16 "\":1"),
          "a\\x0ab\\x1baaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…: unknown key, known are " KEYS },

        /* The machine */
        { D("\"backend\":\"kvm\""), "backend: \"kvm\" is unknown, write one of auto, qemu, cloud-hypervisor, firecracker" },
        { D("\"backend\":null"), "backend: must be a string, not null" },
        { D("\"backend\":[\"qemu\"]"), "backend: must be a string, not an array" },
        { D("\"accel\":\"KVM\""), "accel: \"KVM\" is unknown, write one of auto, kvm, tcg" },
        { D("\"cpus\":0"), "cpus: 0 is out of range, write 1 to 512" },
        { D("\"cpus\":513"), "cpus: 513 is out of range, write 1 to 512" },
        { D("\"cpus\":-1"), "cpus: -1 is out of range, write 1 to 512" },
        { D("\"cpus\":18446744073709551615"), "cpus: 18446744073709551615 is out of range, write 1 to 512" },
        { D("\"cpus\":2.5"), "cpus: must be a whole number, not a fraction" },
        { D("\"cpus\":\"2\""), "cpus: must be a whole number, not a string" },
        { D("\"cpus\":true"), "cpus: must be a whole number, not true" },
        { D("\"memory\":\"7M\""), "memory: 7M is out of range, write \"8M\" to \"16T\" (a bare number counts bytes)" },
        { D("\"memory\":512"), "memory: 512 is out of range, write \"8M\" to \"16T\" (a bare number counts bytes)" },
        { D("\"memory\":\"16385G\""), "memory: 16385G is out of range, write \"8M\" to \"16T\" (a bare number counts bytes)" },
        { D("\"memory\":\"10000K\""), "memory: 10000K is not a multiple of 1M, write \"9M\" or \"10M\"" },
        { D("\"memory\":1000000000"), "memory: 1000000000 is not a multiple of 1M, write \"953M\" or \"954M\"" },
        { D("\"memory\":\"512MB\""), "memory: \"512MB\" is not a size, write \"512M\" or \"2G\"" },
        { D("\"memory\":\"\""), "memory: \"\" is not a size, write \"512M\" or \"2G\"" },
        { D("\"memory\":-1"), "memory: -1 is not a size, write \"512M\" or \"2G\"" },
        { D("\"memory\":\"99999999999999999999G\""), "memory: \"99999999999999999999G\" is too large" },
        { D("\"memory\":1.5"), "memory: must be a size such as \"512M\" or \"2G\", not a fraction" },
        { D("\"memory\":{}"), "memory: must be a size such as \"512M\" or \"2G\", not an object" },

        /* What it boots */
        { D("\"boot\":\"/vmlinuz\""), "boot: must be an object {…}, not a string" },
        { D("\"boot\":{\"initrd\":\"/i\"}"), "boot.initrd: unknown key, known are kernel, initramfs, cmdline, firmware" },
        { D("\"boot\":{\"kernle\":\"/k\"}"), "boot.kernle: unknown key, did you mean \"kernel\"?" },
        { D("\"boot\":{\"kernel\":\"vmlinuz\"}"), "boot.kernel: \"vmlinuz\" is not an absolute path, write one that begins with /" },
        { D("\"boot\":{\"kernel\":\"\"}"), "boot.kernel: \"\" is not an absolute path, write one that begins with /" },
        { D("\"boot\":{\"kernel\":\"/a\\nb\"}"), "boot.kernel: \"/a\\x0ab\" has control characters, write a path without" },
        { D("\"boot\":{\"kernel\":\"/a\",\"firmware\":\"bios\"}"), "boot.firmware: a kernel and a firmware exclude each other, leave one out" },
        { D("\"boot\":{\"initramfs\":\"/i\"}"), "boot.initramfs: it needs a kernel, write boot.kernel as well" },
        { D("\"boot\":{\"cmdline\":\"quiet\"}"), "boot.cmdline: it needs a kernel, write boot.kernel as well" },
        { D("\"boot\":{\"kernel\":\"/a\",\"cmdline\":\"a\\nb\"}"), "boot.cmdline: it has control characters, write spaces between parameters" },
        { D("\"boot\":{\"kernel\":\"/a\",\"cmdline\":[\"quiet\"]}"), "boot.cmdline: must be a string, not an array" },
        { D("\"boot\":{\"firmware\":\"efi\"}"), "boot.firmware: \"efi\" is unknown, write \"bios\", \"uefi\" or an absolute path" },
        { D("\"boot\":{\"firmware\":true}"), "boot.firmware: must be a string, not true" },

        /* Disks */
        { D("\"disks\":{}"), "disks: must be an array […], not an object" },
        { D("\"disks\":[\"/d\"]"), "disks[0]: must be an object {…}, not a string" },
        { D("\"disks\":[null]"), "disks[0]: must be an object {…}, not null" },
        { D("\"disks\":[{}]"), "disks[0].path: missing, write the absolute path of a disk image or block device" },
        { D("\"disks\":[{\"path\":\"d\"}]"), "disks[0].path: \"d\" is not an absolute path, write one that begins with /" },
        { D("\"disks\":[{\"path\":\"/d\"},{\"path\":5}]"), "disks[1].path: must be a string, not a number" },
        { DISK(",\"format\":\"vmdk\""), "disks[0].format: \"vmdk\" is unknown, write one of raw, qcow2" },
        { DISK(",\"readonly\":\"yes\""), "disks[0].readonly: must be true or false, not a string" },
        { DISK(",\"readonly\":1"), "disks[0].readonly: must be true or false, not a number" },
        { DISK(",\"read_only\":true"), "disks[0].read_only: unknown key, did you mean \"readonly\"?" },
        { DISK(",\"size\":\"1G\""), "disks[0].size: unknown key, known are name, path, format, readonly" },
        { DISK(",\"delete\":true"), "disks[0].delete: unknown key, known are name, path, format, readonly" },
        { DISK(",\"name\":\"\""), "disks[0].name: \"\" is not a name, write a small letter and up to 15 small letters and digits" },
        { DISK(",\"name\":\"Data\""), "disks[0].name: \"Data\" is not a name, write a small letter and up to 15 small letters and digits" },
        { DISK(",\"name\":\"0a\""), "disks[0].name: \"0a\" is not a name, write a small letter and up to 15 small letters and digits" },
        { DISK(",\"name\":\"a-b\""), "disks[0].name: \"a-b\" is not a name, write a small letter and up to 15 small letters and digits" },
        { DISK(",\"name\":\"ä\""), "disks[0].name: \"ä\" is not a name, write a small letter and up to 15 small letters and digits" },
        { DISK(",\"name\":\"" A16 "a\""), "disks[0].name: \"" A16 "a\" is not a name, write a small letter and up to 15 small letters and digits" },
        { D("\"disks\":[{\"name\":\"a\",\"path\":\"/d\"},{\"name\":\"a\",\"path\":\"/e\"}]"), "disks[1].name: \"a\" is the name of disks[0] already, write another" },
        { D("\"disks\":[{\"name\":\"a\",\"path\":\"/d\"}],\"networks\":[{},{\"name\":\"a\"}]"), "networks[1].name: \"a\" is the name of disks[0] already, write another" },

        /* Filesystems */
        { D("\"filesystems\":[{\"source\":\"/s\"}]"), "filesystems[0].tag: missing, write the name by which the guest mounts it" },
        { D("\"filesystems\":[{\"tag\":\"t\"}]"), "filesystems[0].source: missing, write the absolute path of a directory" },
        { D("\"filesystems\":[{\"tag\":\"\",\"source\":\"/s\"}]"), "filesystems[0].tag: \"\" is not a tag, write 1 to 36 of A-Z a-z 0-9 _ . -" },
        { D("\"filesystems\":[{\"tag\":\"a/b\",\"source\":\"/s\"}]"), "filesystems[0].tag: \"a/b\" is not a tag, write 1 to 36 of A-Z a-z 0-9 _ . -" },
        { D("\"filesystems\":[{\"tag\":\"" A16 A16 "aaaaa\",\"source\":\"/s\"}]"), "filesystems[0].tag: \"" A16 A16 "aaaaa\" is not a tag, write 1 to 36 of A-Z a-z 0-9 _ . -" },
        { D("\"filesystems\":[{\"tag\":\"t\",\"source\":\"s\"}]"), "filesystems[0].source: \"s\" is not an absolute path, write one that begins with /" },
        { D("\"filesystems\":[{\"tag\":\"t\",\"source\":\"/s\"},{\"tag\":\"t\",\"source\":\"/u\"}]"), "filesystems[1].tag: \"t\" is the tag of filesystems[0] already, write another" },
        { SHARE(",\"cache\":\"none\""), "filesystems[0].cache: \"none\" is unknown, write one of auto, always, never" },
        { SHARE(",\"cache\":true"), "filesystems[0].cache: must be a string, not true" },
        { SHARE(",\"threads\":65"), "filesystems[0].threads: 65 is out of range, write 0 to 64" },
        { SHARE(",\"threads\":-1"), "filesystems[0].threads: -1 is out of range, write 0 to 64" },
        { SHARE(",\"threads\":\"4\""), "filesystems[0].threads: must be a whole number, not a string" },
        { SHARE(",\"xattr\":1"), "filesystems[0].xattr: must be true or false, not a number" },
        { SHARE(",\"posixAcl\":true"), "filesystems[0].posixAcl: ACLs are extended attributes, write \"xattr\": true as well" },
        { SHARE(",\"xattr\":false,\"posixAcl\":true"), "filesystems[0].posixAcl: ACLs are extended attributes, write \"xattr\": true as well" },
        { SHARE(",\"posixACL\":true"), "filesystems[0].posixACL: unknown key, did you mean \"posixAcl\"?" },
        { SHARE(",\"writeback\":true"), "filesystems[0].writeback: unknown key, known are tag, source, readonly, cache, threads, xattr, posixAcl" },

        /* Networks */
        { D("\"networks\":[{\"type\":\"bridge\"}]"), "networks[0].type: \"bridge\" is unknown, write one of user, tap" },
        { D("\"networks\":[{\"forwards\":[]}]"), "networks[0].forwards: unknown key, did you mean \"forward\"?" },
        { D("\"networks\":[{\"forward\":{}}]"), "networks[0].forward: must be an array […], not an object" },
        { D("\"networks\":[{\"type\":\"tap\",\"forward\":[{\"host\":1,\"guest\":1}]}]"), "networks[0].forward: only networks of type \"user\" forward ports, leave it out" },
        { FORWARD("\"host\":1"), "networks[0].forward[0].guest: missing, write a port, 1 to 65535" },
        { FORWARD("\"guest\":1"), "networks[0].forward[0].host: missing, write a port, 1 to 65535" },
        { FORWARD("\"host\":0,\"guest\":1"), "networks[0].forward[0].host: 0 is out of range, write 1 to 65535" },
        { FORWARD("\"host\":1,\"guest\":65536"), "networks[0].forward[0].guest: 65536 is out of range, write 1 to 65535" },
        { FORWARD("\"host\":\"1\",\"guest\":1"), "networks[0].forward[0].host: must be a whole number, not a string" },
        { FORWARD("\"host\":1,\"guest\":1,\"protocol\":\"sctp\""), "networks[0].forward[0].protocol: \"sctp\" is unknown, write one of tcp, udp" },
        { FORWARD("\"host\":1,\"guest\":1,\"address\":\"localhost\""), "networks[0].forward[0].address: \"localhost\" is not a numeric IPv4 address, write one such as \"127.0.0.1\"" },
        { FORWARD("\"host\":1,\"guest\":1,\"address\":\"::1\""), "networks[0].forward[0].address: \"::1\" is not a numeric IPv4 address, write one such as \"127.0.0.1\"" },
        { FORWARD("\"host\":1,\"guest\":1,\"address\":\"127.1\""), "networks[0].forward[0].address: \"127.1\" is not a numeric IPv4 address, write one such as \"127.0.0.1\"" },
        { FORWARD("\"host\":1,\"guest\":1,\"address\":\"127.0.0.01\""), "networks[0].forward[0].address: \"127.0.0.01\" is not a numeric IPv4 address, write one such as \"127.0.0.1\"" },
        { FORWARD("\"host\":1,\"guest\":1},{\"host\":1,\"guest\":2"), "networks[0].forward[1].host: tcp port 1 is taken by networks[0].forward[0] already, write another" },
        { D("\"networks\":[{\"forward\":[{\"host\":1,\"guest\":1,\"address\":\"10.0.0.1\"}]},{\"forward\":[{\"host\":2,\"guest\":1},{\"host\":1,\"guest\":1,\"address\":\"0.0.0.0\"}]}]"),
          "networks[1].forward[1].host: tcp port 1 is taken by networks[0].forward[0] already, write another" },

        /* How it is run */
        { D("\"vsock\":1"), "vsock: must be true or false, not a number" },
        { D("\"restart\":\"always\""), "restart: must be an object {…}, not a string" },
        { D("\"restart\":{\"policy\":\"on-abort\"}"), "restart.policy: \"on-abort\" is unknown, write one of no, on-failure, always" },
        { D("\"restart\":{\"max\":-1}"), "restart.max: -1 is out of range, write 0 to 1000" },
        { D("\"restart\":{\"max\":1001}"), "restart.max: 1001 is out of range, write 0 to 1000" },
        { D("\"restart\":{\"delay\":1}"), "restart.delay: unknown key, known are policy, max" },
        { D("\"autostart\":\"true\""), "autostart: must be true or false, not a string" },
        { D("\"autostartPriority\":1000001"), "autostartPriority: 1000001 is out of range, write -1000000 to 1000000" },
        { D("\"stopTimeout\":\"soon\""), "stopTimeout: \"soon\" is not a time, write \"20s\" or \"1min 30s\"" },
        { D("\"stopTimeout\":-1"), "stopTimeout: -1 is not a time, write \"20s\" or \"1min 30s\"" },
        { D("\"stopTimeout\":\"2y\""), "stopTimeout: 730d 12h is too long, write at most \"1y\", or \"infinity\"" },
        { D("\"stopTimeout\":18446744073709551615"), "stopTimeout: 18446744073709551615 is too large" },
        { D("\"stopTimeout\":1.5"), "stopTimeout: must be a time such as \"20s\" or \"1min 30s\", not a fraction" },

        /* Resources */
        { D("\"resources\":[]"), "resources: must be an object {…}, not an array" },
        { RESOURCE("\"MemoryMin\":\"1G\""), "resources.MemoryMin: unknown key, did you mean \"MemoryMax\"?" },
        { RESOURCE("\"cpuWeight\":0"), "resources.cpuWeight: unknown key, did you mean \"CPUWeight\"?" },
        { RESOURCE("\"CPUWeight\":0"), "resources.CPUWeight: 0 is not valid, write 1 to 10000 or \"idle\"" },
        { RESOURCE("\"CPUWeight\":10001"), "resources.CPUWeight: 10001 is not valid, write 1 to 10000 or \"idle\"" },
        { RESOURCE("\"CPUWeight\":\"infinity\""), "resources.CPUWeight: \"infinity\" is not valid, write 1 to 10000 or \"idle\"" },
        { RESOURCE("\"CPUWeight\":true"), "resources.CPUWeight: true is not valid, write 1 to 10000 or \"idle\"" },
        { RESOURCE("\"IOWeight\":\"idle\""), "resources.IOWeight: \"idle\" is not valid, write 1 to 10000" },
        { RESOURCE("\"CPUQuota\":\"0%\""), "resources.CPUQuota: \"0%\" is not valid, write " QUOTA },
        { RESOURCE("\"CPUQuota\":150"), "resources.CPUQuota: 150 is not valid, write " QUOTA },
        { RESOURCE("\"CPUQuota\":\"99999999%\""), "resources.CPUQuota: \"99999999%\" is not valid, write " QUOTA },
        { RESOURCE("\"MemoryMax\":\"511M\""), "resources.MemoryMax: 511M is below memory (512M), write more, for the VMM needs some as well" },
        { RESOURCE("\"MemoryMax\":\"50%\""), "resources.MemoryMax: \"50%\" is not valid, write a size such as \"1G\" or \"infinity\"" },
        { RESOURCE("\"MemoryMax\":\"18446744073709551615\""), "resources.MemoryMax: \"18446744073709551615\" is not valid, write a size such as \"1G\" or \"infinity\"" },
        { RESOURCE("\"MemoryHigh\":0"), "resources.MemoryHigh: 0 is not valid, write a size such as \"1G\" or \"infinity\"" },
        { RESOURCE("\"TasksMax\":0"), "resources.TasksMax: 0 is not valid, write a number from 1 on or \"infinity\"" },
        { RESOURCE("\"TasksMax\":-5"), "resources.TasksMax: -5 is not valid, write a number from 1 on or \"infinity\"" },
        { RESOURCE("\"TasksMax\":\"10%\""), "resources.TasksMax: \"10%\" is not valid, write a number from 1 on or \"infinity\"" },
        { RESOURCE("\"AllowedCPUs\":\"\""), "resources.AllowedCPUs: \"\" is not valid, write " CPUS },
        { RESOURCE("\"AllowedCPUs\":\"3-1\""), "resources.AllowedCPUs: \"3-1\" is not valid, write " CPUS },
        { RESOURCE("\"AllowedCPUs\":\"1-\""), "resources.AllowedCPUs: \"1-\" is not valid, write " CPUS },
        { RESOURCE("\"AllowedCPUs\":\"1-2-3\""), "resources.AllowedCPUs: \"1-2-3\" is not valid, write " CPUS },
        { RESOURCE("\"AllowedCPUs\":\"8192\""), "resources.AllowedCPUs: \"8192\" is not valid, write " CPUS },
        { RESOURCE("\"AllowedCPUs\":[0,1]"), "resources.AllowedCPUs: an array is not valid, write " CPUS },

        /* Labels */
        { D("\"labels\":[\"a\"]"), "labels: must be an object {…}, not an array" },
        { D("\"labels\":{\"team\":5}"), "labels.team: must be a string, not a number" },
        { D("\"labels\":{\"team\":null}"), "labels.team: must be a string, not null" },
        { D("\"labels\":{\"\":\"x\"}"), "labels: a label has an empty key, write one" },
        { D("\"labels\":{\"a\":\"x\\ny\"}"), "labels.a: the value has control characters, write one without" },
        { D("\"labels\":{\"a\\tb\":\"x\"}"), "labels.a\\x09b: the key has control characters, write one without" },
};

static void refused(const char *json, const char *message) {
        sd_bus_error e = SD_BUS_ERROR_NULL;
        Definition *d = (Definition *) &e;
        bool good = true;

        good = is_int(definition_parse(json, &d, &e), -EINVAL, "refused: %.120s", message) && good;
        good = is_str(e.name, VMUNIT_ERROR_INVALID_DEFINITION, "with its name") && good;
        good = is_str(e.message, message, "with its message") && good;
        ok(d == (Definition *) &e, "and no definition");
        if (!good)
                printf("# %.200s\n", json);
        sd_bus_error_free(&e);
        is_int(definition_parse(json, &d, NULL), -EINVAL, "also where nobody asks why");
}

static Definition *parsed(const char *json) {
        sd_bus_error e = SD_BUS_ERROR_NULL;
        Definition *d = NULL;

        if (!is_int(definition_parse(json, &d, &e), 0, "taken (%zu bytes)", strlen(json)))
                printf("# %s\n", strempty(e.message));
        sd_bus_error_free(&e);
        return d;
}

static char *formatted(const Definition *d) {
        char *s = NULL;

        if (!d || definition_format(d, &s) < 0)
                ok(false, "no format");
        return s;
}

/* The normalised form without white space between its tokens; no string of these tests has a space before a letter it would
 * miss. */
static char *compact(char *s) {
        char *q = s;
        bool quoted = false;

        for (const char *p = s; p && *p; p++) {
                if (*p == '"' && (p == s || p[-1] != '\\'))
                        quoted = !quoted;
                if (quoted || (*p != ' ' && *p != '\n'))
                        *q++ = *p;
        }
        if (q)
                *q = 0;
        return s;
}

/* What is formatted reads back as the same, with the same hash and without a difference. */
static void round_trip(const char *json) {
        _cleanup_(definition_freep) Definition *a = parsed(json), *b = NULL;
        _cleanup_free_ char *s = formatted(a), *t = NULL;
        _cleanup_strv_free_ char **diff = NULL;
        char x[65] = "x", y[65] = "y";

        if (!s)
                return;
        b = parsed(s);
        t = formatted(b);
        is_str(t, s, "reads back as it was written");
        check(definition_hash(a, x) == 0 && definition_hash(b, y) == 0);
        is_str(x, y, "and has the same hash");
        check(definition_diff(a, b, &diff) == 0 && !diff);
        check(strlen(s) <= DEFINITION_BYTES_MAX);
}

#define HEAD "{\"version\":1,\"backend\":\"auto\",\"accel\":\"auto\",\"cpus\":1,\"memory\":\"512M\","
#define BIOS "\"boot\":{\"firmware\":\"bios\"},"
#define NONE "\"disks\":[],\"filesystems\":[],\"networks\":[],"
#define FS_DEFAULTS ",\"cache\":\"auto\",\"threads\":0,\"xattr\":false,\"posixAcl\":false"
#define BEHAVIOUR "\"vsock\":false,\"restart\":{\"policy\":\"no\",\"max\":5},\"autostart\":false,\"autostartPriority\":0,\"stopTimeout\":\"20s\","
#define TAIL BEHAVIOUR "\"resources\":{},\"labels\":{}}"

static const struct {
        const char *json, *normalised;
} good[] = {
        { "{\"version\":1}", HEAD BIOS NONE TAIL },
        { D("\"boot\":{},\"disks\":[],\"networks\":[],\"resources\":{},\"labels\":{},\"restart\":{}"), HEAD BIOS NONE TAIL },
        { D("\"labels\":{\"b\":\"2\",\"a\":\"\",\"ü/x.y\":\"\\\"\\\\/\"}"),
          HEAD BIOS NONE BEHAVIOUR "\"resources\":{},\"labels\":{\"a\":\"\",\"b\":\"2\",\"ü/x.y\":\"\\\"\\\\/\"}}" },
        { D("\"backend\":\"cloud-hypervisor\",\"accel\":\"kvm\",\"cpus\":512,\"memory\":\"1.5G\""),
          "{\"version\":1,\"backend\":\"cloud-hypervisor\",\"accel\":\"kvm\",\"cpus\":512,\"memory\":\"1536M\"," BIOS NONE TAIL },
        { D("\"backend\":\"qemu\",\"accel\":\"tcg\",\"memory\":8388608"),
          "{\"version\":1,\"backend\":\"qemu\",\"accel\":\"tcg\",\"cpus\":1,\"memory\":\"8M\"," BIOS NONE TAIL },
        { D("\"backend\":\"firecracker\",\"memory\":\"16T\""),
          "{\"version\":1,\"backend\":\"firecracker\",\"accel\":\"auto\",\"cpus\":1,\"memory\":\"16T\"," BIOS NONE TAIL },
        { D("\"boot\":{\"kernel\":\"/a b/../\\u00e4,=%\",\"cmdline\":\"\"}"), HEAD "\"boot\":{\"kernel\":\"/a b/../ä,=%\"}," NONE TAIL },
        { D("\"boot\":{\"cmdline\":\"quiet \\\"x\\\"\",\"initramfs\":\"/i\",\"kernel\":\"/k\"}"),
          HEAD "\"boot\":{\"kernel\":\"/k\",\"initramfs\":\"/i\",\"cmdline\":\"quiet \\\"x\\\"\"}," NONE TAIL },
        { D("\"boot\":{\"firmware\":\"uefi\",\"cmdline\":\"\"}"), HEAD "\"boot\":{\"firmware\":\"uefi\"}," NONE TAIL },
        { D("\"boot\":{\"firmware\":\"/f/OVMF.fd\"}"), HEAD "\"boot\":{\"firmware\":\"/f/OVMF.fd\"}," NONE TAIL },
        { D("\"disks\":[{\"path\":\"/a\"},{\"path\":\"/b\",\"name\":\"disk0\",\"format\":\"qcow2\"},{\"path\":\"/c\",\"readonly\":true}]"),
          HEAD BIOS "\"disks\":[{\"name\":\"disk1\",\"path\":\"/a\",\"format\":\"raw\",\"readonly\":false},"
          "{\"name\":\"disk0\",\"path\":\"/b\",\"format\":\"qcow2\",\"readonly\":false},"
          "{\"name\":\"disk2\",\"path\":\"/c\",\"format\":\"raw\",\"readonly\":true}],\"filesystems\":[],\"networks\":[]," TAIL },
        { D("\"disks\":[{\"path\":\"/a\",\"name\":\"net0\"}],\"networks\":[{}]"),
          HEAD BIOS "\"disks\":[{\"name\":\"net0\",\"path\":\"/a\",\"format\":\"raw\",\"readonly\":false}],\"filesystems\":[],"
          "\"networks\":[{\"name\":\"net1\",\"type\":\"user\",\"forward\":[]}]," TAIL },
        { D("\"filesystems\":[{\"tag\":\"A_z.0-" A16 "aaaaaaaaaaaaaa\",\"source\":\"/\",\"readonly\":true},{\"tag\":\".\",\"source\":\"/s\"}]"),
          HEAD BIOS "\"disks\":[],\"filesystems\":[{\"tag\":\"A_z.0-" A16 "aaaaaaaaaaaaaa\",\"source\":\"/\",\"readonly\":true" FS_DEFAULTS "},"
          "{\"tag\":\".\",\"source\":\"/s\",\"readonly\":false" FS_DEFAULTS "}],\"networks\":[]," TAIL },
        { SHARE(",\"posixAcl\":true,\"xattr\":true,\"threads\":64,\"cache\":\"never\""),
          HEAD BIOS "\"disks\":[],\"filesystems\":[{\"tag\":\"t\",\"source\":\"/s\",\"readonly\":false,\"cache\":\"never\",\"threads\":64,"
          "\"xattr\":true,\"posixAcl\":true}],\"networks\":[]," TAIL },
        { SHARE(",\"xattr\":true,\"threads\":1,\"cache\":\"always\""),
          HEAD BIOS "\"disks\":[],\"filesystems\":[{\"tag\":\"t\",\"source\":\"/s\",\"readonly\":false,\"cache\":\"always\",\"threads\":1,"
          "\"xattr\":true,\"posixAcl\":false}],\"networks\":[]," TAIL },
        { D("\"networks\":[{\"forward\":[{\"host\":1,\"guest\":65535},{\"host\":1,\"guest\":1,\"protocol\":\"udp\"},"
            "{\"host\":1,\"guest\":1,\"address\":\"127.0.0.2\"}]},{\"type\":\"tap\",\"forward\":[]}]"),
          HEAD BIOS "\"disks\":[],\"filesystems\":[],\"networks\":[{\"name\":\"net0\",\"type\":\"user\",\"forward\":["
          "{\"address\":\"127.0.0.1\",\"protocol\":\"tcp\",\"host\":1,\"guest\":65535},"
          "{\"address\":\"127.0.0.1\",\"protocol\":\"udp\",\"host\":1,\"guest\":1},"
          "{\"address\":\"127.0.0.2\",\"protocol\":\"tcp\",\"host\":1,\"guest\":1}]},{\"name\":\"net1\",\"type\":\"tap\"}]," TAIL },
        { D("\"vsock\":true,\"restart\":{\"policy\":\"always\",\"max\":0},\"autostart\":true,\"autostartPriority\":-1000000,\"stopTimeout\":\"90s\""),
          HEAD BIOS NONE "\"vsock\":true,\"restart\":{\"policy\":\"always\",\"max\":0},\"autostart\":true,"
          "\"autostartPriority\":-1000000,\"stopTimeout\":\"1min 30s\",\"resources\":{},\"labels\":{}}" },
        { D("\"restart\":{\"policy\":\"on-failure\",\"max\":1000},\"autostartPriority\":1000000,\"stopTimeout\":\"infinity\""),
          HEAD BIOS NONE "\"vsock\":false,\"restart\":{\"policy\":\"on-failure\",\"max\":1000},\"autostart\":false,"
          "\"autostartPriority\":1000000,\"stopTimeout\":\"infinity\",\"resources\":{},\"labels\":{}}" },
        { D("\"stopTimeout\":0"), HEAD BIOS NONE "\"vsock\":false,\"restart\":{\"policy\":\"no\",\"max\":5},\"autostart\":false,"
          "\"autostartPriority\":0,\"stopTimeout\":\"0\",\"resources\":{},\"labels\":{}}" },
        { D("\"stopTimeout\":\"1y\""), HEAD BIOS NONE "\"vsock\":false,\"restart\":{\"policy\":\"no\",\"max\":5},\"autostart\":false,"
          "\"autostartPriority\":0,\"stopTimeout\":\"365d 6h\",\"resources\":{},\"labels\":{}}" },
        { RESOURCE("\"AllowedCPUs\":\"5,0-2\\t3,,7\",\"IOWeight\":\"1\",\"TasksMax\":\"256\",\"MemoryHigh\":1000,\"MemoryMax\":\"512M\",\"CPUQuota\":\"12.50%\",\"CPUWeight\":\"10000\""),
          HEAD BIOS NONE BEHAVIOUR "\"resources\":{\"CPUWeight\":10000,\"CPUQuota\":\"12.5%\",\"MemoryMax\":\"512M\",\"MemoryHigh\":\"1000\","
          "\"TasksMax\":256,\"IOWeight\":1,\"AllowedCPUs\":\"0-3 5 7\"},\"labels\":{}}" },
        { RESOURCE("\"CPUWeight\":\"idle\",\"CPUQuota\":\"infinity\",\"MemoryMax\":\"infinity\",\"MemoryHigh\":\"infinity\",\"TasksMax\":\"infinity\",\"AllowedCPUs\":8191"),
          HEAD BIOS NONE BEHAVIOUR "\"resources\":{\"CPUWeight\":\"idle\",\"CPUQuota\":\"infinity\",\"MemoryMax\":\"infinity\","
          "\"MemoryHigh\":\"infinity\",\"TasksMax\":\"infinity\",\"AllowedCPUs\":\"8191\"},\"labels\":{}}" },
        { RESOURCE("\"CPUQuota\":\"0.01%\",\"TasksMax\":9223372036854775807"),
          HEAD BIOS NONE BEHAVIOUR "\"resources\":{\"CPUQuota\":\"0.01%\",\"TasksMax\":9223372036854775807},\"labels\":{}}" },
};

static const char full[] =
        "{\"version\": 1, \"backend\": \"auto\", \"accel\": \"auto\", \"cpus\": 2, \"memory\": \"512M\",\n"
        " \"boot\": {\"kernel\": \"/path/vmlinuz\", \"initramfs\": \"/path/initrd\", \"cmdline\": \"console=ttyS0\"},\n"
        " \"disks\": [{\"name\": \"data0\", \"path\": \"/path/disk.raw\", \"format\": \"raw\", \"readonly\": false}],\n"
        " \"filesystems\": [{\"tag\": \"share\", \"source\": \"/srv/share\", \"readonly\": false}],\n"
        " \"networks\": [{\"name\": \"net0\", \"type\": \"user\", \"forward\": [{\"address\": \"127.0.0.1\", \"protocol\": \"tcp\", \"host\": 2222, \"guest\": 22}]}],\n"
        " \"vsock\": true, \"restart\": {\"policy\": \"on-failure\", \"max\": 5}, \"autostart\": false, \"stopTimeout\": \"20s\",\n"
        " \"resources\": {\"CPUWeight\": 50, \"CPUQuota\": \"150%\", \"MemoryMax\": \"1G\", \"TasksMax\": 256, \"IOWeight\": 50},\n"
        " \"labels\": {\"team\": \"web\"}}\n";

/* To the byte: this is stored, shown and hashed. */
static const char full_normalised[] =
        "{\n"
        "  \"version\": 1,\n"
        "  \"backend\": \"auto\",\n"
        "  \"accel\": \"auto\",\n"
        "  \"cpus\": 2,\n"
        "  \"memory\": \"512M\",\n"
        "  \"boot\": {\n"
        "    \"kernel\": \"/path/vmlinuz\",\n"
        "    \"initramfs\": \"/path/initrd\",\n"
        "    \"cmdline\": \"console=ttyS0\"\n"
        "  },\n"
        "  \"disks\": [\n"
        "    {\n"
        "      \"name\": \"data0\",\n"
        "      \"path\": \"/path/disk.raw\",\n"
        "      \"format\": \"raw\",\n"
        "      \"readonly\": false\n"
        "    }\n"
        "  ],\n"
        "  \"filesystems\": [\n"
        "    {\n"
        "      \"tag\": \"share\",\n"
        "      \"source\": \"/srv/share\",\n"
        "      \"readonly\": false,\n"
        "      \"cache\": \"auto\",\n"
        "      \"threads\": 0,\n"
        "      \"xattr\": false,\n"
        "      \"posixAcl\": false\n"
        "    }\n"
        "  ],\n"
        "  \"networks\": [\n"
        "    {\n"
        "      \"name\": \"net0\",\n"
        "      \"type\": \"user\",\n"
        "      \"forward\": [\n"
        "        {\n"
        "          \"address\": \"127.0.0.1\",\n"
        "          \"protocol\": \"tcp\",\n"
        "          \"host\": 2222,\n"
        "          \"guest\": 22\n"
        "        }\n"
        "      ]\n"
        "    }\n"
        "  ],\n"
        "  \"vsock\": true,\n"
        "  \"restart\": {\n"
        "    \"policy\": \"on-failure\",\n"
        "    \"max\": 5\n"
        "  },\n"
        "  \"autostart\": false,\n"
        "  \"autostartPriority\": 0,\n"
        "  \"stopTimeout\": \"20s\",\n"
        "  \"resources\": {\n"
        "    \"CPUWeight\": 50,\n"
        "    \"CPUQuota\": \"150%\",\n"
        "    \"MemoryMax\": \"1G\",\n"
        "    \"TasksMax\": 256,\n"
        "    \"IOWeight\": 50\n"
        "  },\n"
        "  \"labels\": {\n"
        "    \"team\": \"web\"\n"
        "  }\n"
        "}";

static void test_bad(void) {
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                refused(bad[i].json, bad[i].message);
        ok(ELEMENTSOF(bad) >= 60, "%zu bad definitions", ELEMENTSOF(bad));
}

static void test_good(void) {
        for (size_t i = 0; i < ELEMENTSOF(good); i++) {
                _cleanup_(definition_freep) Definition *d = parsed(good[i].json);
                _cleanup_free_ char *s = formatted(d);

                is_str(compact(s), good[i].normalised, "normalised");
                round_trip(good[i].json);
        }
}

static void test_full(void) {
        _cleanup_(definition_freep) Definition *d = parsed(full);
        _cleanup_free_ char *s = formatted(d);
        char hash[65];

        is_str(s, full_normalised, "the example of the documentation");
        check(definition_hash(d, hash) == 0);
        is_str(hash, "9aff1b89c8b16f6e1a90f450900319ad0684bacc405ce3b4a66b3e023d286f1a", "its hash");
        is_int(d->backend, BACKEND_AUTO, "backend");
        is_int(d->cpus, 2, "cpus");
        is_int(d->memory, 512 << 20, "memory");
        is_str(d->firmware, NULL, "no firmware beside a kernel");
        is_int(d->n_disks, 1, "disks");
        is_int(d->networks[0].forwards[0].host, 2222, "host port");
        is_int(d->restart_policy, RESTART_ON_FAILURE, "restart policy");
        is_int(d->stop_timeout_usec, 20 * USEC_PER_SEC, "stop time-out");
        is_int(d->resources.value[RESOURCE_CPU_QUOTA], 1500000, "CPU quota in µs a second");
        is_int(d->resources.value[RESOURCE_MEMORY_MAX], 1 << 30, "memory limit");
        is_str(d->resources.text[RESOURCE_MEMORY_HIGH], NULL, "not set");
        is_str(d->label_values[0], "web", "label");
        round_trip(full);
}

/* printf into the definition {"version":1,…} */
static char *text(const char *format, ...) _printf_(1, 2);
static char *text(const char *format, ...) {
        _cleanup_free_ char *inner = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&inner, format, ap);
        va_end(ap);
        if (r < 0)
                abort();
        return strjoinf(D("%s"), inner);
}

static char *repeat(const char *element, size_t n, const char *separator) {
        size_t l = strlen(element), k = strlen(separator);
        char *s = malloc(n * (l + k) + 1), *p = s;

        *p = 0;
        for (size_t i = 0; i < n; i++)
                p = stpcpy(stpcpy(p, i > 0 ? separator : ""), element);
        return s;
}

static void limit_of_list(const char *key, const char *element, size_t max) {
        _cleanup_free_ char *most = repeat(element, max, ","), *more = repeat(element, max + 1, ",");
        _cleanup_free_ char *a = text("\"%s\":[%s]", key, most), *b = text("\"%s\":[%s]", key, more);
        _cleanup_free_ char *message = strjoinf("%s: %zu are too many, at most %zu are possible", key, max + 1, max);

        round_trip(a);
        refused(b, message);
}

static void test_lists(void) {
        _cleanup_strv_free_ char **tags = NULL;
        _cleanup_free_ char *list = NULL, *a = NULL, *b = NULL;

        limit_of_list("disks", "{\"path\":\"/d\"}", 64);
        limit_of_list("networks", "{}", 16);

        for (int i = 0; i < 16; i++)
                strv_extendf(&tags, "{\"tag\":\"t%d\",\"source\":\"/s\"}", i);
        list = strv_join(tags, ",");
        a = text("\"filesystems\":[%s]", list);
        round_trip(a);
        b = text("\"filesystems\":[%s,{\"tag\":\"x\",\"source\":\"/s\"}]", list);
        refused(b, "filesystems: 17 are too many, at most 16 are possible");
}

static void test_forwards(void) {
        _cleanup_strv_free_ char **l = NULL;
        _cleanup_free_ char *list = NULL, *a = NULL, *b = NULL;

        for (int i = 1; i <= 64; i++)
                strv_extendf(&l, "{\"host\":%d,\"guest\":1}", i);
        list = strv_join(l, ",");
        a = text("\"networks\":[{\"forward\":[%s]}]", list);
        round_trip(a);
        b = text("\"networks\":[{\"forward\":[%s,{\"host\":65,\"guest\":1}]}]", list);
        refused(b, "networks[0].forward: 65 are too many, at most 64 are possible");
}

static void test_labels(void) {
        _cleanup_strv_free_ char **l = NULL;
        _cleanup_free_ char *list = NULL, *long_value = repeat("x", 4095, "");
        _cleanup_free_ char *a = NULL, *b = NULL, *c = NULL, *d = NULL;

        for (int i = 1; i <= 64; i++)
                strv_extendf(&l, "\"l%d\":\"\"", i);
        list = strv_join(l, ",");
        a = text("\"labels\":{%s}", list);
        round_trip(a);
        b = text("\"labels\":{%s,\"x\":\"\"}", list);
        refused(b, "labels: 65 are too many, at most 64 are possible");
        c = text("\"labels\":{\"a\":\"%s\"}", long_value);
        round_trip(c);
        d = text("\"labels\":{\"ab\":\"%s\"}", long_value);
        refused(d, "labels: keys and values take more than 4096 bytes in all");
}

static void test_lengths(void) {
        _cleanup_free_ char *path = repeat("p", PATH_MAX - 2, ""), *cmdline = repeat("c", 2047, "");
        _cleanup_free_ char *a = text("\"boot\":{\"kernel\":\"/%s\",\"cmdline\":\"%s\"}", path, cmdline);
        _cleanup_free_ char *b = text("\"boot\":{\"kernel\":\"/%sp\"}", path);
        _cleanup_free_ char *c = text("\"boot\":{\"kernel\":\"/k\",\"cmdline\":\"%sc\"}", cmdline);

        round_trip(a);
        refused(b, "boot.kernel: a path of 4096 bytes is too long, at most 4095 are possible");
        refused(c, "boot.cmdline: 2048 bytes are too long, Linux takes at most 2047");
}

static void test_size(void) {
        _cleanup_free_ char *most = malloc(DEFINITION_BYTES_MAX + 2), *path = repeat("p", 4094, "");
        _cleanup_free_ char *disk = strjoinf("{\"path\":\"/%s\"}", path), *disks = repeat(disk, 63, ",");
        _cleanup_free_ char *big = text("\"disks\":[%s]", disks);
        sd_bus_error e = SD_BUS_ERROR_NULL;
        size_t n = strlen("{\"version\":1}");
        Definition *d;

        memset(most, ' ', DEFINITION_BYTES_MAX + 1);
        memcpy(most, "{\"version\":1}", n);
        most[DEFINITION_BYTES_MAX + 1] = 0;
        refused(most, "definition: 262145 bytes are too long, at most 262144 are possible");
        most[DEFINITION_BYTES_MAX] = 0;
        round_trip(most);

        /* Short enough as it comes, but not with the defaults; by how much differs between versions of json-c. */
        ok(strlen(big) < DEFINITION_BYTES_MAX, "63 long paths fit");
        is_int(definition_parse(big, &d, &e), -EINVAL, "but not what they become");
        check(startswith(e.message, "definition: with all defaults it takes 2647"));
        check(endswith(e.message, " bytes, at most 262144 are possible"));
        sd_bus_error_free(&e);
}

static void test_depth(void) {
        _cleanup_free_ char *open = repeat("[", 31, ""), *close = repeat("]", 31, "");
        _cleanup_free_ char *a = text("\"disks\":%s%s", open, close), *b = text("\"disks\":[%s%s]", open, close);

        refused(a, "disks[0]: must be an object {…}, not an array");
        refused(b, "definition: the nesting is too deep (line 1, column 53)");
}

#define BASE D("\"boot\":{\"kernel\":\"/k\",\"cmdline\":\"q\"},\"memory\":\"1G\"," \
               "\"disks\":[{\"name\":\"data0\",\"path\":\"/a\"},{\"name\":\"root\",\"path\":\"/b\"}]," \
               "\"filesystems\":[{\"tag\":\"share\",\"source\":\"/s\"}]," \
               "\"networks\":[{\"forward\":[{\"host\":1,\"guest\":1}]}]," \
               "\"resources\":{\"CPUWeight\":5},\"labels\":{\"a\":\"1\",\"b\":\"2\"}")

/* A patch, and what differs afterwards or what is said against it; then members of the result, each as a piece of its text. */
static const struct {
        const char *patch, *changed, *has;
} merges[] = {
        { "{}", "", NULL },
        { "{\"version\":1}", "", NULL },
        { "{\"cpus\":1,\"backend\":\"auto\"}", "", NULL },
        { "{\"cpus\":4}", "cpus", "\"cpus\":4" },
        { "{\"cpus\":null}", "", "\"cpus\":1" },
        { "{\"memory\":null}", "memory", "\"memory\":\"512M\"" },
        { "{\"labels\":{\"a\":null,\"c\":\"3\"}}", "labels.a labels.c", "\"labels\":{\"b\":\"2\",\"c\":\"3\"}" },
        { "{\"labels\":null}", "labels.a labels.b", "\"labels\":{}" },
        { "{\"labels\":{\"z\":null}}", "", NULL },
        { "{\"resources\":{\"CPUWeight\":null,\"MemoryMax\":\"2G\"}}", "resources.CPUWeight resources.MemoryMax", "\"resources\":{\"MemoryMax\":\"2G\"}" },
        { "{\"restart\":{\"policy\":\"always\"}}", "restart.policy", "\"restart\":{\"policy\":\"always\",\"max\":5}" },
        { "{\"boot\":{\"cmdline\":\"r\"}}", "boot.cmdline", "\"boot\":{\"kernel\":\"/k\",\"cmdline\":\"r\"}" },
        { "{\"boot\":{\"cmdline\":null}}", "boot.cmdline", "\"boot\":{\"kernel\":\"/k\"}" },
        { "{\"boot\":{\"initramfs\":\"/i\"}}", "boot.initramfs", "\"boot\":{\"kernel\":\"/k\",\"initramfs\":\"/i\",\"cmdline\":\"q\"}" },
        { "{\"boot\":{\"firmware\":\"uefi\"}}", "boot.cmdline boot.firmware boot.kernel", "\"boot\":{\"firmware\":\"uefi\"}" },
        { "{\"boot\":null}", "boot.cmdline boot.firmware boot.kernel", "\"boot\":{\"firmware\":\"bios\"}" },
        { "{\"disks\":[{\"name\":\"data0\",\"format\":\"qcow2\"}]}", "disks.data0.format", "{\"name\":\"data0\",\"path\":\"/a\",\"format\":\"qcow2\",\"readonly\":false}" },
        { "{\"disks\":[{\"name\":\"new\",\"path\":\"/n\"}]}", "disks.new", "{\"name\":\"new\",\"path\":\"/n\",\"format\":\"raw\",\"readonly\":false}]" },
        { "{\"disks\":[{\"name\":\"new\",\"path\":\"/n\",\"delete\":false}]}", "disks.new", NULL },
        { "{\"disks\":[{\"name\":\"data0\",\"delete\":true}]}", "disks.data0", "\"disks\":[{\"name\":\"root\"," },
        { "{\"disks\":[{\"name\":\"data0\",\"delete\":true},{\"name\":\"data0\",\"path\":\"/a\"}]}", "disks", NULL },
        { "{\"disks\":[{\"name\":\"data0\",\"readonly\":null}]}", "", NULL },
        { "{\"disks\":[]}", "", NULL },
        { "{\"disks\":null}", "disks.data0 disks.root", "\"disks\":[]" },
        { "{\"filesystems\":[{\"tag\":\"share\",\"delete\":true},{\"tag\":\"x\",\"source\":\"/x\"}]}", "filesystems.share filesystems.x", NULL },
        { "{\"filesystems\":[{\"tag\":\"share\",\"threads\":4,\"cache\":\"always\",\"xattr\":true,\"posixAcl\":true}]}",
          "filesystems.share.cache filesystems.share.posixAcl filesystems.share.threads filesystems.share.xattr",
          "\"source\":\"/s\",\"readonly\":false,\"cache\":\"always\",\"threads\":4,\"xattr\":true,\"posixAcl\":true}" },
        { "{\"filesystems\":[{\"tag\":\"share\",\"cache\":null,\"threads\":null,\"xattr\":null,\"posixAcl\":null}]}", "", NULL },
        { "{\"networks\":[{\"name\":\"net0\",\"forward\":[{\"host\":2,\"guest\":2}]}]}", "networks.net0.forward", "\"forward\":[{\"address\":\"127.0.0.1\",\"protocol\":\"tcp\",\"host\":2,\"guest\":2}]" },
        { "{\"networks\":[{\"name\":\"net0\",\"forward\":null}]}", "networks.net0.forward", "\"forward\":[]" },
        { "{\"networks\":[{\"name\":\"net0\",\"type\":\"tap\",\"forward\":null}]}", "networks.net0.forward networks.net0.type", NULL },
};

static const struct {
        const char *patch, *message;
} bad_merges[] = {
        { "", "patch: unexpected end of data (line 1, column 1)" },
        { "{\"cpus\":1,\"cpus\":2}", "cpus: this key is there twice, write it once (line 1, column 11)" },
        { "null", "patch: must be an object {…}" },
        { "[]", "patch: must be an object {…}" },
        { "{\"cpu\":2}", "cpu: unknown key, did you mean \"cpus\"?" },
        { "{\"cpu\":null}", "cpu: unknown key, did you mean \"cpus\"?" },
        { "{\"boot\":{\"kernle\":null}}", "boot.kernle: unknown key, did you mean \"kernel\"?" },
        { "{\"version\":null}", "version: missing, write 1" },
        { "{\"version\":2}", "version: 2 is not supported, write 1" },
        { "{\"cpus\":0}", "cpus: 0 is out of range, write 1 to 512" },
        { "{\"resources\":{\"MemoryMax\":\"512M\"}}", "resources.MemoryMax: 512M is below memory (1G), write more, for the VMM needs some as well" },
        { "{\"boot\":{\"kernel\":null}}", "boot.cmdline: it needs a kernel, write boot.kernel as well" },
        { "{\"boot\":{\"kernel\":\"/k\",\"firmware\":\"bios\"}}", "boot.firmware: a kernel and a firmware exclude each other, leave one out" },
        { "{\"disks\":{}}", "disks: must be an array […], not an object" },
        { "{\"disks\":[5]}", "disks[0]: must be an object {…} with a \"name\"" },
        { "{\"disks\":[{\"path\":\"/x\"}]}", "disks[0].name: missing, write it: elements are merged by it" },
        { "{\"disks\":[{\"name\":5}]}", "disks[0].name: must be a string, not a number" },
        { "{\"disks\":[{\"name\":\"data0\"},{\"name\":\"nope\",\"delete\":true}]}", "disks[1].name: there is no \"nope\" to take out" },
        { "{\"disks\":[{\"name\":\"data0\",\"delete\":1}]}", "disks[0].delete: must be true or false, not a number" },
        { "{\"disks\":[{\"name\":\"data0\",\"delete\":true,\"path\":\"/x\"}]}", "disks[0].delete: what is taken out has no other members than \"name\", leave them out" },
        { "{\"disks\":[{\"name\":\"new\"}]}", "disks[2].path: missing, write the absolute path of a disk image or block device" },
        { "{\"disks\":[{\"name\":\"root\",\"size\":null}]}", "disks[1].size: unknown key, known are name, path, format, readonly" },
        { "{\"disks\":[{\"name\":\"root\",\"path\":null}]}", "disks[1].path: missing, write the absolute path of a disk image or block device" },
        { "{\"filesystems\":[{\"name\":\"share\"}]}", "filesystems[0].tag: missing, write it: elements are merged by it" },
        { "{\"filesystems\":[{\"tag\":\"share\",\"posixAcl\":true}]}",
          "filesystems[0].posixAcl: ACLs are extended attributes, write \"xattr\": true as well" },
        { "{\"networks\":[{\"name\":\"net0\",\"type\":\"tap\"}]}", "networks[0].forward: only networks of type \"user\" forward ports, leave it out" },
        { "{\"networks\":[{\"name\":\"data0\"}]}", "networks[1].name: \"data0\" is the name of disks[0] already, write another" },
};

static void test_merge(void) {
        _cleanup_(definition_freep) Definition *d = parsed(BASE);
        _cleanup_free_ char *before = formatted(d), *after = NULL;

        for (size_t i = 0; i < ELEMENTSOF(merges); i++) {
                _cleanup_(definition_freep) Definition *n = NULL;
                _cleanup_strv_free_ char **diff = NULL;
                _cleanup_free_ char *paths = NULL, *s = NULL;
                sd_bus_error e = SD_BUS_ERROR_NULL;

                if (!is_int(definition_merge(d, merges[i].patch, &n, &e), 0, "merged: %s", merges[i].patch)) {
                        printf("# %s\n", strempty(e.message));
                        sd_bus_error_free(&e);
                        continue;
                }
                check(definition_diff(d, n, &diff) == 0);
                paths = strv_join(diff, " ");
                is_str(paths, merges[i].changed, "changes %s", merges[i].changed);
                s = compact(formatted(n));
                if (merges[i].has && !ok(strstr(s, merges[i].has), "has %s", merges[i].has))
                        printf("# %s\n", s);
        }
        after = formatted(d);
        is_str(after, before, "what was merged into is as it was");
}

static void test_bad_merge(void) {
        _cleanup_(definition_freep) Definition *d = parsed(BASE);
        _cleanup_free_ char *before = formatted(d), *after = NULL;

        for (size_t i = 0; i < ELEMENTSOF(bad_merges); i++) {
                sd_bus_error e = SD_BUS_ERROR_NULL;
                Definition *n = (Definition *) &e;

                is_int(definition_merge(d, bad_merges[i].patch, &n, &e), -EINVAL, "refused: %s", bad_merges[i].patch);
                is_str(e.name, VMUNIT_ERROR_INVALID_DEFINITION, "with its name");
                is_str(e.message, bad_merges[i].message, "with its message");
                ok(n == (Definition *) &e, "and no definition");
                sd_bus_error_free(&e);
        }
        after = formatted(d);
        is_str(after, before, "what was merged into is as it was");
}

static void test_merge_kernel(void) {
        _cleanup_(definition_freep) Definition *d = parsed("{\"version\":1}"), *n = NULL;

        is_int(definition_merge(d, "{\"boot\":{\"kernel\":\"/k\"}}", &n, NULL), 0, "a kernel takes the place of the firmware");
        check(n && streq_ptr(n->kernel, "/k") && !n->firmware);
}

/* A connection that nobody answers on: enough to make messages */
static sd_bus *new_bus(void) {
        int fds[2];
        sd_bus *bus;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 || sd_bus_new(&bus) < 0 ||
            sd_bus_set_fd(bus, fds[0], fds[0]) < 0 || sd_bus_start(bus) < 0)
                abort();
        close(fds[1]);
        return bus;
}

/* "CPUWeight=t50 AllowedCPUs=ay0f02" */
static char *read_back(sd_bus_message *m) {
        _cleanup_strv_free_ char **l = NULL;
        const char *name, *contents;
        const uint8_t *bytes;
        uint64_t t;
        size_t n;
        char type;

        sd_bus_message_enter_container(m, 'a', "(sv)");
        while (sd_bus_message_enter_container(m, 'r', "sv") > 0) {
                sd_bus_message_read(m, "s", &name);
                sd_bus_message_peek_type(m, &type, &contents);
                sd_bus_message_enter_container(m, 'v', contents);
                if (streq(contents, "t")) {
                        sd_bus_message_read(m, "t", &t);
                        if (t == UINT64_MAX)
                                strv_extendf(&l, "%s=max", name);
                        else
                                strv_extendf(&l, "%s=%llu", name, (unsigned long long) t);
                } else {
                        char hex[2 * 1024 + 1] = "";

                        sd_bus_message_read_array(m, 'y', (const void **) &bytes, &n);
                        for (size_t i = 0; i < n; i++)
                                sprintf(hex + 2 * i, "%02x", bytes[i]);
                        strv_extendf(&l, "%s=[%s]", name, hex);
                }
                sd_bus_message_exit_container(m);
                sd_bus_message_exit_container(m);
        }
        return strv_join(l, " ");
}

static void change(const char *from, const char *to, const char *want) {
        _cleanup_(definition_freep) Definition *a = parsed(from), *b = parsed(to);
        _cleanup_free_ char *got = NULL;
        sd_bus *bus = new_bus();
        sd_bus_message *m;

        check(sd_bus_message_new_method_call(bus, &m, "a.b", "/", "a.b", "C") >= 0);
        check(sd_bus_message_open_container(m, 'a', "(sv)") >= 0);
        is_int(from == to ? resources_append(&b->resources, m) : resources_append_change(&a->resources, &b->resources, m), 0, "appended");
        check(sd_bus_message_close_container(m) >= 0);
        check(sd_bus_message_seal(m, 1, 0) >= 0);
        got = read_back(m);
        is_str(got, want, "as properties: %s", want);
        sd_bus_message_unref(m);
        sd_bus_close_unref(bus);
}

static void test_resources(void) {
        static const char none[] = "{\"version\":1}";
        static const char all[] = RESOURCE("\"CPUWeight\":50,\"CPUQuota\":\"150%\",\"MemoryMax\":\"1G\",\"MemoryHigh\":\"900M\","
                                           "\"TasksMax\":256,\"IOWeight\":60,\"AllowedCPUs\":\"0-3,9\"");
        static const char odd[] = RESOURCE("\"CPUWeight\":\"idle\",\"CPUQuota\":\"infinity\",\"MemoryMax\":\"infinity\",\"AllowedCPUs\":8191");
        _cleanup_free_ char *zeros = repeat("00", 1023, ""), *want = NULL;

        change(none, none, "");
        change(all, all, "CPUWeight=50 CPUQuotaPerSecUSec=1500000 MemoryMax=1073741824 MemoryHigh=943718400 TasksMax=256 IOWeight=60 AllowedCPUs=[0f02]");
        want = strjoinf("CPUWeight=0 CPUQuotaPerSecUSec=max MemoryMax=max AllowedCPUs=[%s80]", zeros);
        change(odd, odd, want);
        change(none, RESOURCE("\"IOWeight\":1"), "IOWeight=1");
        change(all, RESOURCE("\"CPUWeight\":50,\"TasksMax\":257"),
               "CPUQuotaPerSecUSec=max MemoryMax=max MemoryHigh=max TasksMax=257 IOWeight=max AllowedCPUs=[]");
}

static void test_diff_order(void) {
        _cleanup_(definition_freep) Definition *a = parsed(D("\"disks\":[{\"name\":\"a\",\"path\":\"/a\"},{\"name\":\"b\",\"path\":\"/b\"}]"));
        _cleanup_(definition_freep) Definition *b = parsed(D("\"disks\":[{\"name\":\"b\",\"path\":\"/c\"},{\"name\":\"a\",\"path\":\"/a\"}]"));
        _cleanup_strv_free_ char **l = NULL;
        _cleanup_free_ char *paths = NULL;
        char x[65], y[65];

        check(definition_diff(a, b, &l) == 0);
        paths = strv_join(l, " ");
        is_str(paths, "disks disks.b.path", "another order of the disks is a difference");
        check(definition_hash(a, x) == 0 && definition_hash(b, y) == 0);
        check(!streq(x, y));
}

#define PORTS(ports) D("\"networks\":[{},{\"forward\":[{\"host\":1024,\"guest\":1}," ports "]}]")

static void one_excess(const char *json, const char *had, const char *want) {
        _cleanup_(definition_freep) Definition *d = parsed(json), *h = had ? parsed(had) : NULL;
        _cleanup_free_ char *why = NULL;

        is_int(definition_exceeds_user(d, h, &why), want != NULL, "%s", json);
        is_str(why, want, "why");
}

static void test_excess(void) {
        static const char port_80[] = PORTS("{\"host\":80,\"guest\":1}");

        one_excess("{\"version\":1}", NULL, NULL);
        one_excess(PORTS("{\"host\":65535,\"guest\":1}"), NULL, NULL);
        one_excess(PORTS("{\"host\":1023,\"guest\":1}"), NULL, "networks[1].forward[1].host: ports below 1024 are the host's");
        one_excess(D("\"networks\":[{\"type\":\"tap\"}]"), NULL, "networks[0].type: a tap is the host's");
        one_excess(D("\"networks\":[{\"type\":\"tap\"}]"), D("\"networks\":[{\"type\":\"tap\"}]"), NULL);
        one_excess(D("\"networks\":[{\"type\":\"tap\"}]"), D("\"networks\":[{\"name\":\"other\",\"type\":\"tap\"}]"),
                   "networks[0].type: a tap is the host's");
        one_excess(port_80, port_80, NULL);
        one_excess(D("\"resources\":{\"CPUWeight\":100,\"IOWeight\":100,\"MemoryMax\":\"infinity\"}"), NULL, NULL);
        one_excess(D("\"resources\":{\"CPUWeight\":\"idle\"}"), NULL, NULL);
        one_excess(D("\"resources\":{\"CPUWeight\":101}"), NULL, "resources.CPUWeight: more than 100 is at the cost of others");
        one_excess(D("\"resources\":{\"IOWeight\":10000}"), D("\"resources\":{\"CPUWeight\":10000}"),
                   "resources.IOWeight: more than 100 is at the cost of others");
        one_excess(D("\"resources\":{\"CPUWeight\":200}"), D("\"resources\":{\"CPUWeight\":300}"), NULL);
        one_excess(D("\"resources\":{\"CPUWeight\":200}"), D("\"resources\":{\"CPUWeight\":150}"),
                   "resources.CPUWeight: more than 100 is at the cost of others");
        one_excess(port_80, PORTS("{\"host\":81,\"guest\":1}"), "networks[1].forward[1].host: ports below 1024 are the host's");
        one_excess(port_80, PORTS("{\"host\":80,\"guest\":1,\"protocol\":\"udp\"}"),
                   "networks[1].forward[1].host: ports below 1024 are the host's");
        one_excess(port_80, PORTS("{\"host\":80,\"guest\":1,\"address\":\"127.0.0.2\"}"),
                   "networks[1].forward[1].host: ports below 1024 are the host's");
}

static void test_words(void) {
        is_str(backend_to_string(BACKEND_AUTO), "auto", "auto");
        is_str(backend_to_string(BACKEND_FIRECRACKER), "firecracker", "firecracker");
        is_str(backend_to_string(_BACKEND_MAX), NULL, "none behind the last");
        is_str(backend_to_string((Backend) -EINVAL), NULL, "none for an error");
        is_int(backend_from_string("auto"), BACKEND_AUTO, "auto");
        is_int(backend_from_string("cloud-hypervisor"), BACKEND_CLOUD_HYPERVISOR, "cloud-hypervisor");
        is_int((int) backend_from_string("xen"), -EINVAL, "no xen");
        is_str(accel_to_string(ACCEL_TCG), "tcg", "tcg");
        is_str(accel_to_string(_ACCEL_MAX), NULL, "none behind the last");
        is_str(disk_format_to_string(DISK_QCOW2), "qcow2", "qcow2");
        is_str(filesystem_cache_to_string(CACHE_NEVER), "never", "never");
        is_str(filesystem_cache_to_string(_FILESYSTEM_CACHE_MAX), NULL, "none behind the last");
        is_str(protocol_to_string(PROTOCOL_UDP), "udp", "udp");
        is_str(network_type_to_string(NETWORK_TAP), "tap", "tap");
        is_str(restart_policy_to_string(RESTART_ALWAYS), "always", "always");
}

int main(void) {
        test_bad();
        test_good();
        test_full();
        test_lists();
        test_forwards();
        test_labels();
        test_lengths();
        test_size();
        test_depth();
        test_merge();
        test_bad_merge();
        test_merge_kernel();
        test_resources();
        test_diff_order();
        test_excess();
        test_words();
        return done_testing();
}
