/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <endian.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm/vhost-user.h"

#define GET_FEATURES 1U
#define VERSION_1 1U
#define IS_REPLY (1U << 2)

typedef struct Message {
        uint32_t request, flags, size;
        uint64_t features;
} __attribute__((__packed__)) Message;

_Static_assert(sizeof(Message) == sizeof(((VhostUserAnswer *) NULL)->bytes), "one message");

int vhost_user_ask(int fd) {
        const Message m = { .request = htole32(GET_FEATURES), .flags = htole32(VERSION_1) };

        if (send(fd, &m, offsetof(Message, features), MSG_NOSIGNAL) != offsetof(Message, features))
                return -errno;
        return 0;
}

int vhost_user_read(VhostUserAnswer *a, int fd) {
        const Message *m = (const Message *) a->bytes;
        ssize_t n;

        n = read(fd, a->bytes + a->n, sizeof(a->bytes) - a->n);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (n == 0)
                return -EPIPE;
        a->n += (size_t) n;
        if (a->n < sizeof(a->bytes))
                return 0;
        return le32toh(m->request) == GET_FEATURES && (le32toh(m->flags) & IS_REPLY) && le32toh(m->size) == sizeof(m->features) ? 1 : -EBADMSG;
}
