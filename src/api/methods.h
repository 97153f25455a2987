/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-bus.h>

#include "basic/macro.h"

/* All methods of all interfaces, and what it takes to call them. */

/* Root has all. An owner has those for the own VMs, but for RIGHT_CREATE and the last two. */
typedef enum Right {
        RIGHT_NONE,             /* everybody's */
        RIGHT_CREATE,
        RIGHT_MANAGE,
        RIGHT_CONSOLE,
        RIGHT_INSPECT,
        RIGHT_HOST_RESOURCES,
        RIGHT_CONFIGURE,        /* the daemon itself */
        _RIGHT_MAX,
} Right;

/* What a call is about: what polkit is asked, and is told. */
typedef struct Subject {
        Right right;            /* RIGHT_NONE: nobody is asked */
        Right lesser;           /* who has not that one, but this, gets what `reduced` gives. RIGHT_NONE: nothing */
        char *vm, *unit;        /* NULL: of no single VM */
        char id[37];            /* "": there is none yet */
        uid_t owner;
        char *why;              /* the right is needed, if that is not plain */
} Subject;

void subject_done(Subject *s);
int subject_set_vm(Subject *s, const char *name, uid_t owner);

typedef struct Method {
        const char *interface, *member;
        const char *verb;       /* as polkit's rules see it */
        Right right;
        sd_bus_message_handler_t handler;
        bool always;            /* also for who has too much under way */
        /* For those who have not that right, who are not asked for a password; NULL: they are refused. */
        sd_bus_message_handler_t otherwise;
        sd_bus_message_handler_t reduced;       /* for the subject's lesser right */
        /* Looks at the arguments, which may need another right, or none. What is refused here is refused before anybody is asked. */
        int (*examine)(sd_bus_message *m, void *object, uid_t caller, Subject *s, sd_bus_error *error);
} Method;

const Method *method_find(const char *interface, const char *member);
