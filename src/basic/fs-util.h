/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/macro.h"

/* mkdir; an existing directory is fine. */
int mkdir_ok(const char *path, unsigned mode);

/* Removes a file or a whole directory, by an absolute path; never follows a symbolic link nor enters what is mounted there (-EBUSY). What
 * is not there is fine. */
int rm_rf(const char *path);
/* What is in that directory */
int rm_content(const char *path);

/* A fresh file of mode 0600 at path, opened read-write, close-on-exec; an older one is replaced, not truncated: whoever
 * still holds it keeps what it had. */
int create_fresh(const char *path);

/* Writes a file whole: temporary beside it, then rename(2). The old one stays as it is on error. With sync the data is on
 * disk before its name is. */
int write_file_atomic(const char *path, const char *content, bool sync);
