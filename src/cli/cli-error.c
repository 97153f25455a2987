/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "cli/cli-error.h"

#define E "org.vmunit1.Error."
#define DBUS "org.freedesktop.DBus.Error."
#define ANY _VERB_MAX
#define MESSAGE_MAX (64U * 1024U)

#define IS_DAEMON_UP "is vmunitd installed and running: `systemctl status vmunitd`"
#define VERSIONS "vmunit and vmunitd are of different versions: `systemctl restart vmunitd`"

/* The first that fits counts; an error that ends in a dot stands for all that begin so. %n is the VM's name. */
static const struct {
        const char *error;
        Verb verb;
        const char *hint;
} hints[] = {
        { E "NoSuchVM", ANY, "no VM of this name; `vmunit list` shows those there are" },
        { E "VMExists", ANY, "choose another name, or `vmunit remove %n` first" },
        { E "InvalidDefinition", ANY, "nothing was created; correct the definition and try again" },
        { E "NotSupported", VERB_CREATE, "nothing was created; leave this out or choose another back end" },
        { E "InvalidState", VERB_REMOVE, "`vmunit stop %n` first, or `vmunit remove --force %n`" },
        { E "InvalidState", VERB_REBOOT, "`vmunit resume %n` first" },
        { E "InvalidState", VERB_RESET, "`vmunit resume %n` first" },
        { E "InvalidState", ANY, "`vmunit status %n` shows its state" },
        { E "Busy", ANY, "another operation is under way; `vmunit status %n` shows it, try again later" },
        { E "Canceled", ANY, "another call overtook or cancelled this one, or vmunitd was stopped; see `vmunit status %n`" },
        { E "NotRunning", ANY, "`vmunit start %n` starts it" },
        { E "Removing", VERB_CREATE, "its name is free again when its removal has ended; see `vmunit status %n`" },
        { E "Removing", ANY, "it is being removed; `vmunit status %n` shows how far that is" },
        { E "BackendUnavailable", ANY,
          "`vmunit backends` shows what is there" },
        { E "BackendFailed", ANY, "see `vmunit log --vmm %n` and `journalctl VMUNIT_VM=%n`" },
        { E "Timeout", VERB_REBOOT, "the guest did not shut down; `vmunit reset %n` restarts it the hard way" },
        { E "Timeout", VERB_STOP, "`vmunit kill %n` ends it at once" },
        { E "Timeout", ANY, "see `vmunit status %n` and `journalctl VMUNIT_VM=%n`" },
        { E "NoSpace", ANY, "make room in the file system of /var/lib/vmunit" },

        { DBUS "ServiceUnknown", ANY, IS_DAEMON_UP },
        { DBUS "NameHasNoOwner", ANY, IS_DAEMON_UP },
        { DBUS "Spawn.", ANY, IS_DAEMON_UP },
        { "org.freedesktop.systemd1.", ANY, IS_DAEMON_UP },
        { DBUS "NoReply", ANY, "vmunitd has ended or does not answer: `systemctl status vmunitd`, then `vmunit list`" },
        { DBUS "Timeout", ANY, "vmunitd does not answer: `systemctl status vmunitd`" },
        { DBUS "TimedOut", ANY, "vmunitd does not answer: `systemctl status vmunitd`" },
        { DBUS "Disconnected", ANY, "the system bus has gone: `systemctl status dbus`" },
        { DBUS "UnknownObject", ANY, "it has just gone; `vmunit list` shows those there are" },
        { DBUS "UnknownMethod", ANY, VERSIONS },
        { DBUS "UnknownInterface", ANY, VERSIONS },
        { DBUS "UnknownProperty", ANY, VERSIONS },
        { DBUS "AccessDenied", ANY, "see USERS in vmunit(1); or try sudo" },
        { DBUS "AuthFailed", ANY, "see USERS in vmunit(1); or try sudo" },
        { DBUS "InteractiveAuthorizationRequired", ANY,
          "call it on a terminal, where a password can be asked for, and without --no-ask-password; or try sudo" },
        { DBUS "LimitsExceeded", VERB_CREATE, "nothing was created; remove what is no longer needed, or ask an administrator for more" },
};

void say(const char *name, const char *format, ...) {
        va_list ap;

        fflush(stdout);
        fprintf(stderr, "%s: ", name);
        va_start(ap, format);
        vfprintf(stderr, format, ap);
        va_end(ap);
        fputc('\n', stderr);
}

int say_oom(void) {
        say("vmunit", "out of memory");
        return -ENOMEM;
}

static char *expand(const char *hint, const char *name) {
        _cleanup_free_ char *s = NULL;
        size_t n;
        FILE *f;

        f = open_memstream(&s, &n);
        if (!f)
                return NULL;

        for (const char *p = hint; *p; p++)
                if (p[0] == '%' && p[1] == 'n') {
                        fputs(name, f);
                        p++;
                } else
                        fputc(*p, f);

        return fclose(f) == 0 ? TAKE_PTR(s) : NULL;
}

static bool error_fits(const char *error, const char *pattern) {
        return endswith(pattern, ".") ? startswith(error, pattern) != NULL : streq(error, pattern);
}

static bool is_refusal(const char *error) {
        return streq(error, DBUS "AccessDenied") || streq(error, DBUS "AuthFailed") ||
                streq(error, DBUS "InteractiveAuthorizationRequired");
}

char *error_hint(const char *error, Verb verb, const char *name, bool root) {
        if (root && is_refusal(error))
                return NULL;
        for (size_t i = 0; i < ELEMENTSOF(hints); i++)
                if (error_fits(error, hints[i].error) && (hints[i].verb == ANY || hints[i].verb == verb))
                        return expand(hints[i].hint, name);
        return NULL;
}

/* The daemon names the VM at the start of some of its sentences; we do of all. */
static const char *skip_name(const char *message, const char *name) {
        const char *rest = startswith(message, name);

        rest = rest ? startswith(rest, ": ") : NULL;
        return rest ?: message;
}

/* The message may quote a VMM, so it is as untrusted as that. Further lines are set in. */
static void say_message(const char *name, const char *message) {
        _cleanup_free_ char *s = escape_untrusted(message, strlen(message), MESSAGE_MAX);
        char *save = NULL, *line;

        line = s ? strtok_r(s, "\n", &save) : NULL;
        say(name, "%s", line ? skip_name(line, name) : "vmunitd gave no reason");
        while (line && (line = strtok_r(NULL, "\n", &save)))
                fprintf(stderr, "  %s\n", line);
}

int say_bus_error(const char *name, Verb verb, const sd_bus_error *error, int r) {
        _cleanup_free_ char *hint = NULL;

        r = r < 0 ? r : -EIO;
        if (!sd_bus_error_is_set(error)) {
                say(name, "%s", strerror(-r));
                return r;
        }

        say_message(name, isempty(error->message) ? error->name : error->message);
        hint = error_hint(error->name, verb, name, geteuid() == 0);
        if (hint)
                say(name, "%s", hint);
        return r;
}
