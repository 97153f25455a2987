/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/stat.h>

#include "basic/macro.h"

/* Opens a regular file or block device (or a directory), and tells its size. Others are not touched: -EISDIR, -ENOTDIR,
 * -ESPIPE for a FIFO, -ENXIO for a socket, -ENOTBLK for a character device. Links are followed. */
int open_checked(const char *path, bool write, bool directory, struct stat *ret_st);

/* Locks a disk image for as long as the fd, or a copy of it, is open: -EAGAIN if somebody else has. QEMU and Cloud Hypervisor see the
 * lock of who writes. A file system without locks is no error. */
int lock_image(int fd, bool write);
