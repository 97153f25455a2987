/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "basic/log.h"

/* For log_init(): an entry with all fields. Apart, for the launcher does without libsystemd. */
log_send_fn log_send_to_journal;
