/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "core/store.h"

/* A copy of the database a day, made in small steps when the loop has nothing else to do: vmunit-YYYY-MM-DD.db in a
 * directory of their own, three of them. The files alone say when the next is due, so that it survives restarts. What fails
 * is a warning and tried again. */
typedef struct StoreBackup StoreBackup;

/* The first look at whether one is due is after so long. The store must outlive it. */
int store_backup_new(sd_event *event, Store *s, const char *dir, uint64_t first_usec, StoreBackup **ret);
StoreBackup *store_backup_free(StoreBackup *b);
DEFINE_TRIVIAL_CLEANUP_FUNC(StoreBackup *, store_backup_free);

/* Makes one now, whether due or not; no-op while one is being made. *done, if any, gets 1 when it is there or -errno. */
int store_backup_begin(StoreBackup *b, int *done);
