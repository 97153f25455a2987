/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/macro.h"

/* polkit as the daemon needs it: whether the caller of a method may do something. Asynchronous; what can't be found out is refused. */

typedef enum PolkitAnswer {
        POLKIT_ALLOWED,
        POLKIT_REFUSED,
        POLKIT_WANTS_PASSWORD,  /* and nobody was asked for it */
        POLKIT_FAILED,          /* it says that it can't tell */
        POLKIT_UNREACHABLE,     /* it is not there, has ended meanwhile, or was silent for too long */
        POLKIT_CALLER_ENDED,    /* whatever it has said: it may have looked at another process */
} PolkitAnswer;

typedef struct PolkitCheck PolkitCheck;
/* Of one under way: a dialogue goes away, and the callback does not run. */
PolkitCheck *polkit_check_free(PolkitCheck *c);
DEFINE_TRIVIAL_CLEANUP_FUNC(PolkitCheck *, polkit_check_free);

/* The subject is the caller's connection, whose unique name is never another's. polkit has the number of its process from the bus, and by
 * that its start time and session: so the process that has connected, pidfd, must live all the while, or the number could be another's by
 * then. -ESRCH: it has ended already. details: keys and values in turn, ends with NULL. interactive: people may be asked, who take their
 * time. The callback runs once, from the loop; freeing the check in it is fine. Free it when the caller leaves. */
typedef void (*polkit_cb)(void *userdata, PolkitAnswer answer);
int polkit_check(sd_bus_message *call, int pidfd, const char *action, const char *const *details, bool interactive, polkit_cb cb,
                 void *userdata, PolkitCheck **ret);
