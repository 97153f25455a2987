/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/macro.h"

/* One request and one answer, a datagram each, over a SEQPACKET socket at a path. The callback runs once, from the loop; fds
 * are its own (none on error, when data is NULL). The connection stays open until the call is freed, which may happen at any
 * time, in the callback as well. Fails at once, without a call, where nobody listens. */
#define PACKET_ANSWER_MAX 8192U

typedef struct PacketCall PacketCall;
typedef void (*packet_cb)(void *userdata, int error, const void *data, size_t size, int *fds, size_t n_fds);

int packet_call_new(sd_event *e, const char *path, const void *request, size_t size, const int *fds, size_t n_fds,
                    uint64_t timeout_usec, packet_cb cb, void *userdata, PacketCall **ret);
PacketCall *packet_call_free(PacketCall *c);
DEFINE_TRIVIAL_CLEANUP_FUNC(PacketCall *, packet_call_free);
