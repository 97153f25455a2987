/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a back end's object has told: events, replies and counters; and when it is to be freed in the middle of that. */

#include <stdio.h>
#include <time.h>

#include "basic/string-util.h"
#include "vmm/vmm.h"

typedef struct Heard {
        VMM *vmm;
        unsigned n[_VMM_EVENT_MAX];
        VMMState state;
        int error;
        unsigned n_replies, n_late;     /* late: after it was freed */
        int last_reply;
        char last_message[2048];
        VMMCounter counters[300];
        size_t n_counters;
        VMMEvent free_on;
        bool free_on_reply, freed;
} Heard;

static inline uint64_t now_usec(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * USEC_PER_SEC + (uint64_t) t.tv_nsec / 1000;
}

static inline void heard_free(Heard *h) {
        VMM *v = TAKE_PTR(h->vmm);

        if (!v)
                return;
        vmm_freep(&v);
        h->freed = true;
}

/* Callbacks, whose userdata is a Heard */
static inline void on_event(void *userdata, VMMEvent event, VMMState state, int error) {
        Heard *h = userdata;

        h->n[event]++;
        h->state = state;
        h->error = error;
        if (h->free_on == event)
                heard_free(h);
}

static inline void on_reply(void *userdata, int error, const char *message) {
        Heard *h = userdata;

        h->n_replies++;
        h->n_late += h->freed;
        h->last_reply = error;
        snprintf(h->last_message, sizeof h->last_message, "%s", strempty(message));
        if (h->free_on_reply)
                heard_free(h);
}

static inline void on_counters(void *userdata, int error, const VMMCounter *counters, size_t n) {
        Heard *h = userdata;

        h->n_counters = MIN(n, ELEMENTSOF(h->counters));
        for (size_t i = 0; i < h->n_counters; i++)
                h->counters[i] = counters[i];
        on_reply(userdata, error, NULL);
}
