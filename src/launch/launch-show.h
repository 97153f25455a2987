/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/launch-protocol.h"

/* What the helper shows a VMM of these fds, for each that is to be shown one fd of the caller's: a mount that stands nowhere yet, in which the
 * VM's uid may do what the fd may, or another fd of a block device, or of a file to be copied. -EMEDIUMTYPE: *ret_which of them cannot be, for
 * its file system lets nobody else have it; -EBUSY: it is a block device that somebody else has a lock on. On error none is left open. */
int show_open(const VMMRequest *vmm, const char *root, const int *fds, size_t n_fds, int *ret_fds, size_t *ret_n, uint32_t *ret_which);
