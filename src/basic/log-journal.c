/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <sys/uio.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include "basic/log-journal.h"
#include "basic/string-util.h"

int log_send_to_journal(int level, const char *message, const char *fields[]) {
        _cleanup_free_ char *text = NULL, *priority = NULL;
        struct iovec iov[LOG_FIELDS_MAX + 2];
        int n = 0;

        text = strjoinf("MESSAGE=%s", message);
        priority = strjoinf("PRIORITY=%d", level);
        if (!text || !priority)
                return -ENOMEM;

        iov[n++] = (struct iovec) { text, strlen(text) };
        iov[n++] = (struct iovec) { priority, strlen(priority) };
        for (const char **f = fields; f && *f && n < LOG_FIELDS_MAX + 2; f++)
                iov[n++] = (struct iovec) { (void *) *f, strlen(*f) };
        return sd_journal_sendv(iov, n);
}
