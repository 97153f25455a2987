/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* systemd's spellings. All give 0 or -EINVAL (not of the form) / -ERANGE (too large), and write *ret only on success. */

/* "512M", "1.5G", "1024": bytes, base 1024, suffixes B K M G T P E; see systemd.resource-control(5), MemoryMax=. */
int parse_size(const char *s, uint64_t *ret);
/* "20s", "1min 30s", "500ms", "5": microseconds, a bare number counts seconds; see systemd.time(7). "infinity" is
 * USEC_INFINITY. */
int parse_sec(const char *s, uint64_t *ret);
/* yes/no, true/false, on/off, 1/0, y/n, t/f in any case */
int parse_boolean(const char *s);
/* decimal digits alone */
int parse_u64(const char *s, uint64_t *ret);
int parse_u32(const char *s, uint32_t *ret);
/* "150%" or "12.5%" in hundredths of a percent */
int parse_percent(const char *s, uint64_t *ret_permyriad);
/* a syslog level by name (emerg … debug) or number 0-7 */
int parse_log_level(const char *s);

/* The reverse, in the form that reads best: "512M", "1536M"; exact always. The caller frees; NULL: no memory. */
char *format_size(uint64_t bytes);
/* "20s", "1min 30s", "infinity"; exact always. */
char *format_sec(uint64_t usec);
