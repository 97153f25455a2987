/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "cli/cli-args.h"

int verb_blame(const Args *a);
