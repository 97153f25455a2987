/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "exec/walls.h"

/* The mounts that a program behind walls sees. */
typedef struct View {
        int usr, program;
} View;

#define VIEW_NONE ((View) { .usr = -EBADF, .program = -EBADF })

/* In the host's mount namespace, for a mount of another one can't be taken: what of the host is shown. */
int view_take(View *v, const Walls *w);
void view_done(View *v);
/* In a mount namespace of our own: makes it the root, with nothing else. */
int view_enter(const View *v, Walls *w);
