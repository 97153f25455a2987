/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/log.h"
#include "basic/string-util.h"

static int max_level = LOG_INFO;
static bool to_journal;
static log_send_fn *send_to_journal;

/* JOURNAL_STREAM is "device:inode" of the stream that the service manager connected, see systemd.exec(5). */
void log_init(log_send_fn *send) {
        const char *e = getenv("JOURNAL_STREAM");
        unsigned long long dev, ino;
        struct stat st;

        to_journal = e && sscanf(e, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) >= 0 &&
                     st.st_dev == dev && st.st_ino == ino;
        send_to_journal = send;
}

bool log_is_to_journal(void) {
        return to_journal;
}

void log_set_max_level(int level) {
        max_level = level;
}

/* A line whose priority the journal takes from its beginning, see sd-daemon(3) */
static void write_line(int level, const char *message) {
        if (to_journal)
                fprintf(stderr, "<%d>%s\n", level, message);
        else
                fprintf(stderr, "%s\n", message);
}

void log_internal(int level, int error, const char *fields[], const char *format, ...) {
        _cleanup_free_ char *message = NULL, *full = NULL;
        va_list ap;
        int r, saved = errno;

        if (level & LOG_ALWAYS ? !to_journal && (level & ~LOG_ALWAYS) > max_level : level > max_level)
                return;
        level &= ~LOG_ALWAYS;

        va_start(ap, format);
        r = vasprintf(&message, format, ap);
        va_end(ap);
        if (r < 0)
                return;
        if (error < 0)
                full = strjoinf("%s: %s", message, strerror(-error));

        if (!to_journal || !send_to_journal || send_to_journal(level, full ?: message, fields) < 0)
                write_line(level, full ?: message);
        errno = saved;
}
