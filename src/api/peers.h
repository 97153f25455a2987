/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-bus.h>

#include "core/manager.h"

/* The clients of the bus: who they are, what they have under way, what they have not read yet. All that comes from them passes here first,
 * and nothing here waits for the bus. */

typedef struct Peers Peers;
/* Somebody has left: nobody will hear of an answer to this name. */
typedef void (*peer_left_cb)(void *userdata, const char *name);
int peers_new(sd_bus *bus, const Manager *manager, peer_left_cb left, void *userdata, Peers **ret);
Peers *peers_free(Peers *p);
DEFINE_TRIVIAL_CLEANUP_FUNC(Peers *, peers_free);

/* Who sent a message, as the bus has said. -ENXIO: who has left. */
int peer_uid(const char *name, uid_t *ret);

/* The process that connected, as the bus has said: a pidfd that stays the peer's own, or -ESRCH when it had ended by then. Not of root's. */
int peer_pidfd(const char *name);

/* Whether the sender may have one more call under way: 0, or LimitsExceeded. */
int peer_check_calls(sd_bus_message *m, sd_bus_error *error);
/* A call that is answered later, and its end */
void peer_call_begins(sd_bus_message *m);
void peer_call_ends(sd_bus_message *m);

/* More than `max` bytes, for those who must not keep too much: what strings and numbers take, about. For tests. */
bool message_exceeds(sd_bus_message *m, size_t max, size_t *ret_size);
