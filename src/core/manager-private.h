/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "core/manager.h"

/* What the files of the manager share with nobody else. */

/* Into the lists; -ENOMEM. Frees nothing. */
int manager_link_vm(Manager *m, VM *vm);

/* backends.c: looks for all programs, and again whenever one is installed, upgraded or removed. Then tells m->ready. */
void manager_watch_backends(Manager *m);
void manager_free_backends(Manager *m);

/* create.c: who waits for a VM to be made is told that the daemon ends. */
void manager_end_creates(Manager *m);
