/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <limits.h>
#include <sys/stat.h>

#include "basic/conf.h"

/* Where a program is, without symbolic links. -EPERM unless its file and all directories above are root's alone to change. */
int program_find(const Config *config, uint32_t program, char ret_path[static PATH_MAX], struct stat *ret_st);

/* All paths where it may be, best first; the caller frees. */
int program_paths(const Config *config, uint32_t program, char ***ret);

/* The first line that `path --version` prints, run by an id that is nobody's, bounded in time and size. For a child
 * that does no more: what it forks next is in a PID namespace, too. -ETIME: it does not say anything in time, -ENODATA: nothing at all. */
int program_version(const char *path, char *ret, size_t size);
