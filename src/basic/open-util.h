/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/stat.h>

#include "basic/macro.h"

/* Opens a regular file or block device (or a directory), and tells its size. Others are not touched: -EISDIR, -ENOTDIR,
 * -ESPIPE for a FIFO, -ENXIO for a socket, -ENOTBLK for a character device, -EMEDIUMTYPE for what is in /proc, -EREMOTE for what is on
 * a FUSE that is not root's. Symbolic links are followed, but those of /proc that are none (-ELOOP). */
int open_checked(const char *path, bool write, bool directory, struct stat *ret_st);

/* Locks a disk image for as long as the fd, or a copy of it, is open: -EAGAIN if somebody else has. QEMU and Cloud Hypervisor see the
 * lock of who writes. A file system without locks is no error. */
int lock_image(int fd, bool write);
