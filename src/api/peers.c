/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "api/peers.h"
#include "basic/fd-util.h"
#include "basic/log.h"
#include "basic/pidfd-util.h"
#include "basic/string-util.h"

#define BUS "org.freedesktop.DBus"
#define BUS_PATH "/org/freedesktop/DBus"

/* The largest that anything here needs is a definition, of 256 KiB at most. */
#define MESSAGE_BYTES_MAX (512U * 1024U)
/* Calls that wait for their answer */
#define CALLS_PEER_MAX 64U
#define CALLS_USER_MAX 128U
#define CALLS_ROOT_MAX 1024U
/* Calls that were not looked at yet */
#define HELD_PEER_MAX 256U
#define HELD_PEER_BYTES_MAX (2U * 1024U * 1024U)
#define HELD_USER_BYTES_MAX (4U * 1024U * 1024U)
/* The bus keeps what a client does not read. Where that is more than 127 MiB of ours, or 64 descriptors, dbus-daemon reads nothing from us any
 * more. */
#define UNREAD_PEER_MAX (UINT64_C(8) * 1024 * 1024)
#define UNREAD_USER_MAX (UINT64_C(24) * 1024 * 1024)
#define UNREAD_PEER_FDS_MAX 4U
#define UNREAD_USER_FDS_MAX 8U
#define LOOK_AGAIN_USEC (100 * USEC_PER_MSEC)
/* The bus has answered nothing for so many looks: somebody does not read our signals, which can't be held back. */
#define STUCK_LOOK_USEC (3 * USEC_PER_SEC)
#define STUCK_LOOKS_MAX 5U
#define STUCK_BYTES_MIN 32768U

typedef struct Held {
        struct Held *next;
        sd_bus_message *message;
        size_t size;
} Held;

typedef struct Load {
        uint64_t bytes;
        unsigned fds;
} Load;

typedef struct Peer {
        struct Peer *next;
        Peers *peers;
        char *name;
        uid_t uid;
        int pidfd;              /* who has connected, for polkit */
        bool known;             /* the bus has told the uid */
        bool left;              /* kept for the calls that it has under way */
        bool told;              /* that it does not read */
        unsigned n_calls;
        unsigned n_opening;     /* those of them that will be answered with a descriptor */
        sd_bus_slot *question;  /* the bus is asked for the uid, or for what it has not read */
        Load unread;            /* when the bus was asked last */
        Load charged;           /* what it may have been sent since */
        Load asked;             /* how much of that the question under way will tell of */
        Held *held, **held_end;
        unsigned n_held;
        size_t held_bytes;
} Peer;

struct Peers {
        sd_bus *bus;
        const Manager *manager;
        peer_left_cb left;
        void *userdata;
        sd_bus_slot *filter, *match;
        Peer *list;             /* who called last comes first */
        bool uncounted;         /* the bus can't tell who has not read what, and looks after itself, as dbus-broker does */
        sd_event_source *again, *stuck;
        sd_bus_slot *ping;      /* answered when the bus has taken all that was sent before it */
        unsigned stuck_looks;   /* since the last one was */
};

/* One bus, one list: who asks for a sender has nothing but a message. */
static Peers *all;

/* Messages */

static int measure(sd_bus_message *m, size_t *left) {
        const char *contents, *s;
        const void *p;
        size_t size;
        char type;
        int r;

        while ((r = sd_bus_message_peek_type(m, &type, &contents)) > 0) {
                size = sizeof(uint64_t);
                if (type == 'a' && strchr("ynqiuxtd", contents[0]) && !contents[1])
                        r = sd_bus_message_read_array(m, contents[0], &p, &size);
                else if (strchr("avr(e{", type)) {
                        r = sd_bus_message_enter_container(m, type, contents);
                        if (r >= 0)
                                r = measure(m, left);
                        if (r >= 0)
                                r = sd_bus_message_exit_container(m);
                } else if (strchr("sog", type)) {
                        r = sd_bus_message_read_basic(m, type, &s);
                        size = r > 0 ? strlen(s) + sizeof(uint64_t) : 0;
                } else
                        r = sd_bus_message_skip(m, (const char[]) { type, 0 });
                if (r < 0)
                        return r;
                if (size > *left)
                        return -E2BIG;
                *left -= size;
        }
        return r;
}

bool message_exceeds(sd_bus_message *m, size_t max, size_t *ret_size) {
        size_t left = max;
        int r;

        r = measure(m, &left);
        (void) sd_bus_message_rewind(m, true);
        *ret_size = max - left;
        return r == -E2BIG;
}

/* Peers */

static void drop_held(Peer *p) {
        while (p->held) {
                Held *h = p->held;

                p->held = h->next;
                sd_bus_message_unref(h->message);
                free(h);
        }
        p->held_end = &p->held;
        p->n_held = 0;
        p->held_bytes = 0;
}

static void peer_free(Peer *p) {
        for (Peer **i = &p->peers->list; *i; i = &(*i)->next)
                if (*i == p) {
                        *i = p->next;
                        break;
                }
        drop_held(p);
        sd_bus_slot_unref(p->question);
        safe_close(p->pidfd);
        free(p->name);
        free(p);
}

static Peer *peer_find(const char *name) {
        for (Peer **i = all ? &all->list : NULL; i && *i; i = &(*i)->next) {
                Peer *p = *i;

                if (!streq(p->name, name))
                        continue;
                *i = p->next;
                p->next = all->list;
                all->list = p;
                return p;
        }
        return NULL;
}

static Peer *peer_of(sd_bus_message *m) {
        const char *sender = sd_bus_message_get_sender(m);

        return sender ? peer_find(sender) : NULL;
}

static void peer_leaves(Peer *p) {
        p->left = true;
        p->question = sd_bus_slot_unref(p->question);
        drop_held(p);
        if (p->n_calls == 0)
                return;
        p->n_calls++; /* the end of the last one would free it */
        p->peers->left(p->peers->userdata, p->name);
        p->n_calls--;
}

/* Who has left stays until its last call has ended. */
static void peer_settle(Peer *p) {
        if (p->left && p->n_calls == 0)
                peer_free(p);
}

static int on_name_owner_changed(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const char *name, *old, *new;
        Peer *p;

        if (sd_bus_message_read(m, "sss", &name, &old, &new) < 0 || *new)
                return 0;
        p = peer_find(name);
        if (!p)
                return 0;
        peer_leaves(p);
        peer_settle(p);
        return 0;
}

static bool hold(Peer *p, sd_bus_message *m, size_t size) {
        size_t sum = 0;
        Held *h;

        for (const Peer *q = p->peers->list; q && p->known && p->uid != 0; q = q->next)
                if (q->known && q->uid == p->uid)
                        sum += q->held_bytes;
        if (p->n_held >= HELD_PEER_MAX || p->held_bytes + size > HELD_PEER_BYTES_MAX || sum + size > HELD_USER_BYTES_MAX)
                return false;
        h = new(Held, 1);
        if (!h)
                return false;
        *h = (Held) { .message = sd_bus_message_ref(m), .size = size };
        *p->held_end = h;
        p->held_end = &h->next;
        p->n_held++;
        p->held_bytes += size;
        return true;
}

/* They come through the filter once more, in their order and before what is still to be read. */
static void release(Peer *p) {
        for (const Held *h = p->held; h; h = h->next)
                if (sd_bus_enqueue_for_read(p->peers->bus, h->message) < 0)
                        log_oom();
        drop_held(p);
}

/* Who it is */

typedef struct Credentials {
        uint32_t uid, pid;
        int pidfd;              /* the message's own */
        bool has_uid;
} Credentials;

static int read_credential(sd_bus_message *m, Credentials *c) {
        const char *key;
        int r;

        r = sd_bus_message_read_basic(m, 's', &key);
        if (r < 0)
                return r;
        c->has_uid = c->has_uid || streq(key, "UnixUserID");
        if (streq(key, "UnixUserID"))
                return sd_bus_message_read(m, "v", "u", &c->uid);
        if (streq(key, "ProcessID"))
                return sd_bus_message_read(m, "v", "u", &c->pid);
        if (streq(key, "ProcessFD")) /* dbus-daemon 1.16, dbus-broker 35 */
                return sd_bus_message_read(m, "v", "h", &c->pidfd);
        return sd_bus_message_skip(m, "v");
}

static int read_credentials(sd_bus_message *m, Credentials *ret) {
        int r;

        *ret = (Credentials) { .pidfd = -EBADF };
        if (sd_bus_message_is_method_error(m, NULL))
                return -ENXIO;
        r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
                r = read_credential(m, ret);
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
        }
        return r < 0 ? r : ret->has_uid ? 0 : -ENXIO;
}

/* The number alone may be another's by now. One of the same user's has no rights that it would not have itself. */
static int open_process(const Credentials *c) {
        _cleanup_close_ int fd = -EBADF;
        uid_t euid;
        int r;

        if (c->uid == 0)
                return -EBADF;
        if (c->pidfd >= 0) {
                fd = fcntl(c->pidfd, F_DUPFD_CLOEXEC, 3);
                return fd < 0 ? -errno : TAKE_FD(fd);
        }
        fd = c->pid > 0 && c->pid <= INT32_MAX ? pidfd_open_pid((pid_t) c->pid) : -ESRCH;
        if (fd < 0)
                return fd;
        r = pidfd_get_euid(fd, &euid);
        if (r < 0)
                return r;
        return euid == c->uid ? TAKE_FD(fd) : -ESRCH;
}

/* Most often it has left. Else, of a bus that is too busy, say, it is asked anew with its next call. */
static void peer_not_known(Peer *p, const sd_bus_error *e) {
        bool left = sd_bus_error_has_name(e, SD_BUS_ERROR_NAME_HAS_NO_OWNER);

        for (const Held *h = p->held; h && !left; h = h->next)
                (void) sd_bus_reply_method_errorf(h->message, SD_BUS_ERROR_LIMITS_EXCEEDED, "The bus does not say who calls: %s; try again",
                                                  e && e->message ? e->message : "its answer can't be read");
        p->left = true;
        peer_settle(p);
}

static int on_credentials(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Peer *p = userdata;
        Credentials c;

        p->question = sd_bus_slot_unref(p->question);
        if (read_credentials(m, &c) < 0) {
                peer_not_known(p, sd_bus_message_get_error(m));
                return 0;
        }
        p->uid = c.uid;
        p->pidfd = open_process(&c);
        p->known = true;
        release(p);
        return 0;
}

static int peer_new(Peers *peers, const char *name, Peer **ret) {
        Peer *p = new(Peer, 1);
        int r;

        if (!p)
                return -ENOMEM;
        *p = (Peer) { .peers = peers, .name = strdup(name), .pidfd = -EBADF, .held_end = &p->held };
        r = !p->name ? -ENOMEM :
                sd_bus_call_method_async(peers->bus, &p->question, BUS, BUS_PATH, BUS, "GetConnectionCredentials", on_credentials, p, "s", name);
        if (r < 0) {
                free(p->name);
                free(p);
                return r;
        }
        p->next = peers->list;
        peers->list = p;
        *ret = p;
        return 0;
}

int peer_uid(const char *name, uid_t *ret) {
        const Peer *p = peer_find(name);

        if (!p || !p->known)
                return -ENXIO;
        *ret = p->uid;
        return 0;
}

int peer_pidfd(const char *name) {
        const Peer *p = peer_find(name);

        return !p || !p->known ? -ESRCH : p->pidfd;
}

/* What it has under way */

static unsigned calls_of_user(const Peers *peers, uid_t uid) {
        unsigned n = 0;

        for (const Peer *p = peers->list; p; p = p->next)
                if (p->known && p->uid == uid)
                        n += p->n_calls;
        return n;
}

int peer_check_calls(sd_bus_message *m, sd_bus_error *error) {
        const Peer *p = peer_of(m);

        if (!p)
                return 0;
        if (p->n_calls >= (p->uid == 0 ? CALLS_ROOT_MAX : CALLS_PEER_MAX))
                return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "%u of your calls are under way; wait for one to end", p->n_calls);
        if (p->uid != 0 && calls_of_user(p->peers, p->uid) >= CALLS_USER_MAX)
                return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "%u calls of user %u are under way; wait for one to end",
                                         CALLS_USER_MAX, (unsigned) p->uid);
        return 0;
}

static bool is_answered_with_fd(sd_bus_message *m) {
        const char *member = strempty(sd_bus_message_get_member(m));

        return streq(member, "OpenConsole") || streq(member, "OpenVSock");
}

void peer_call_begins(sd_bus_message *m) {
        Peer *p = peer_of(m);

        if (!p)
                return;
        p->n_calls++;
        p->n_opening += is_answered_with_fd(m);
}

void peer_call_ends(sd_bus_message *m) {
        Peer *p = peer_of(m);

        if (!p || p->n_calls == 0)
                return;
        p->n_calls--;
        if (is_answered_with_fd(m)) {
                p->n_opening--;
                p->charged.fds++;
        }
        peer_settle(p);
}

/* What it has not read */

/* Mostly upper bounds: what is too much costs one more question to the bus, and what was too little is known by the next one. */
static uint64_t cost_of(const Peers *peers, sd_bus_message *m) {
        const struct {
                const char *member;
                uint64_t cost;
        } costs[] = {
                { "GetManagedObjects", 32 * 1024 + peers->manager->n_vms * 8192 },
                { "ListVMs", 1024 + peers->manager->n_vms * 256 },
                { "Introspect", 16 * 1024 + peers->manager->n_vms * 256 },
                { "ListEvents", 4 * 1024 * 1024 },
                { "GetUsage", 16 * 1024 * 1024 },
                { "GetConsoleLog", MIN(peers->manager->config->console_log_max, UINT64_C(16) * 1024 * 1024) + 1024 },
                { "GetDefinition", 512 * 1024 },
                { "GetAll", 16 * 1024 },
                { "GetLastOutput", 16 * 1024 },
        };
        const char *member = strempty(sd_bus_message_get_member(m));

        for (size_t i = 0; i < ELEMENTSOF(costs); i++)
                if (streq(member, costs[i].member))
                        return costs[i].cost;
        return 1024;
}

static void load_add(Load *l, Load more) {
        l->bytes += more.bytes;
        l->fds += more.fds;
}

static bool load_reaches(Load l, uint64_t bytes, unsigned fds) {
        return l.bytes >= bytes || l.fds >= fds;
}

static Load may_be_unread(const Peer *p) {
        return (Load) { p->unread.bytes + p->charged.bytes, p->unread.fds + p->charged.fds + p->n_opening };
}

static bool same_user(const Peer *a, const Peer *b) {
        return a == b || (a->known && b->known && a->uid == b->uid && a->uid != 0);
}

static bool has_unread(const Peer *p) {
        Load sum = {};

        if (load_reaches(may_be_unread(p), UNREAD_PEER_MAX, UNREAD_PEER_FDS_MAX))
                return true;
        for (const Peer *q = p->peers->list; q; q = q->next)
                if (same_user(p, q) && !q->left)
                        load_add(&sum, may_be_unread(q));
        return load_reaches(sum, UNREAD_USER_MAX, UNREAD_USER_FDS_MAX);
}

static int on_again(sd_event_source *source, uint64_t usec, void *userdata);

static void look_again(Peers *peers) {
        if (!peers->again &&
            sd_event_add_time_relative(sd_bus_get_event(peers->bus), &peers->again, CLOCK_MONOTONIC, LOOK_AGAIN_USEC, USEC_PER_MSEC, on_again, peers) < 0)
                log_oom();
}

static int read_number(sd_bus_message *m, uint32_t *ret) {
        return sd_bus_message_read(m, "v", "u", ret);
}

static int read_unread(sd_bus_message *m, Load *ret) {
        uint32_t bytes = 0, fds = 0;
        bool found = false;
        const char *key;
        int r;

        r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
                r = sd_bus_message_read_basic(m, 's', &key);
                if (r >= 0 && streq(key, "OutgoingBytes")) {
                        r = read_number(m, &bytes);
                        found = true;
                } else if (r >= 0)
                        r = streq(key, "OutgoingFDs") ? read_number(m, &fds) : sd_bus_message_skip(m, "v");
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
        }
        if (r < 0 || !found)
                return r < 0 ? r : -ENODATA;
        *ret = (Load) { bytes, fds };
        return 0;
}

static void release_readers(Peers *peers) {
        for (Peer *p = peers->list; p; p = p->next) {
                if (!p->held || !p->known)
                        continue;
                if (peers->uncounted || !has_unread(p))
                        release(p);
                else
                        look_again(peers);
        }
}

static void tell_unread(Peer *p) {
        if (!p->told)
                log_notice("A client of user %u (%s) does not read what it is sent, %" PRIu64 " bytes and %u descriptors; it is not answered "
                           "until it does", (unsigned) p->uid, p->name, p->unread.bytes, p->unread.fds);
        p->told = true;
}

static bool has_no_stats(const sd_bus_error *e) {
        static const char *const names[] = {
                SD_BUS_ERROR_UNKNOWN_METHOD, SD_BUS_ERROR_UNKNOWN_INTERFACE, SD_BUS_ERROR_UNKNOWN_OBJECT, SD_BUS_ERROR_ACCESS_DENIED,
                SD_BUS_ERROR_NOT_SUPPORTED,
        };

        for (size_t i = 0; e && i < ELEMENTSOF(names); i++)
                if (streq(e->name, names[i]))
                        return true;
        return false;
}

static int on_unread(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const sd_bus_error *e = sd_bus_message_get_error(m);
        Peer *p = userdata;
        Load unread = {};

        p->question = sd_bus_slot_unref(p->question);
        if (has_no_stats(e) || (!e && read_unread(m, &unread) < 0))
                p->peers->uncounted = true;
        else if (e && !streq(e->name, SD_BUS_ERROR_NAME_HAS_NO_OWNER)) {
                look_again(p->peers); /* a bus that is too busy to tell */
                return 0;
        }
        p->charged.bytes -= p->asked.bytes;
        p->charged.fds -= p->asked.fds;
        p->unread = unread;
        if (load_reaches(unread, UNREAD_PEER_MAX, UNREAD_PEER_FDS_MAX))
                tell_unread(p);
        release_readers(p->peers);
        return 0;
}

static void ask_unread(Peer *p) {
        if (p->question || p->left || !p->known)
                return;
        p->asked = p->charged;
        if (sd_bus_call_method_async(p->peers->bus, &p->question, BUS, BUS_PATH, BUS ".Debug.Stats", "GetConnectionStats", on_unread, p, "s",
                                     p->name) < 0)
                look_again(p->peers);
}

/* Of all its connections, for it may be another one that has not read. */
static void ask_user_unread(Peer *p, bool fresh) {
        bool asked = false;

        for (Peer *q = p->peers->list; q; q = q->next)
                if (same_user(p, q) && (load_reaches(q->charged, 1, 1) || (!fresh && load_reaches(q->unread, 1, 1)))) {
                        ask_unread(q);
                        asked = true;
                }
        if (!asked)
                look_again(p->peers);
}

static int on_again(sd_event_source *source, uint64_t usec, void *userdata) {
        Peers *peers = userdata;

        peers->again = sd_event_source_disable_unref(peers->again);
        release_readers(peers); /* it may have been what was under way */
        for (Peer *p = peers->list; p; p = p->next)
                if (p->held && p->known)
                        ask_user_unread(p, false);
        return 0;
}

/* A bus that takes nothing more */

/* What it has not taken, of what is in the socket, where megabytes fit. How much that is says nothing: it may take as much as comes. */
static uint64_t queued_bytes(const Peers *peers) {
        int n = 0;

        if (ioctl(sd_bus_get_fd(peers->bus), SIOCOUTQ, &n) < 0)
                return 0;
        return (uint64_t) n;
}

static int on_pong(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        Peers *peers = userdata;

        peers->ping = sd_bus_slot_unref(peers->ping);
        peers->stuck_looks = 0;
        return 0;
}

static int on_stuck(sd_event_source *source, uint64_t usec, void *userdata);

static void look_at_queue(Peers *peers) {
        if (!peers->ping)
                (void) sd_bus_call_method_async(peers->bus, &peers->ping, BUS, BUS_PATH, BUS ".Peer", "Ping", on_pong, peers, NULL);
        (void) sd_event_add_time_relative(sd_bus_get_event(peers->bus), &peers->stuck, CLOCK_MONOTONIC, STUCK_LOOK_USEC, 0, on_stuck, peers);
}

static int on_stuck(sd_event_source *source, uint64_t usec, void *userdata) {
        Peers *peers = userdata;

        peers->stuck = sd_event_source_disable_unref(peers->stuck);
        if (queued_bytes(peers) == 0)
                return 0;
        if (++peers->stuck_looks >= STUCK_LOOKS_MAX) {
                log_error("The bus has taken no message for %u s, for some clients do not read what we send: starting again",
                          STUCK_LOOKS_MAX * (unsigned) (STUCK_LOOK_USEC / USEC_PER_SEC));
                return sd_event_exit(sd_bus_get_event(peers->bus), 1);
        }
        look_at_queue(peers);
        return 0;
}

static void watch_queue(Peers *peers) {
        if (peers->stuck || queued_bytes(peers) < STUCK_BYTES_MIN)
                return;
        peers->ping = sd_bus_slot_unref(peers->ping);
        peers->stuck_looks = 0;
        look_at_queue(peers);
}

/* All that comes in */

static int on_call(Peers *peers, Peer *p, sd_bus_message *m, sd_bus_error *error) {
        size_t size;

        if (message_exceeds(m, MESSAGE_BYTES_MAX, &size))
                return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "The message is larger than %u KiB", MESSAGE_BYTES_MAX / 1024);
        if (!p->known)
                return hold(p, m, size) ? 1 : sd_bus_error_set(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "Too many calls at once; try again");
        if (peers->uncounted || !sd_bus_message_get_expect_reply(m))
                return 0;
        if (p->held || has_unread(p)) {
                if (!p->held)
                        ask_user_unread(p, true);
                /* Who is told that it does not read would have that to read as well. */
                (void) hold(p, m, size);
                return 1;
        }
        p->charged.bytes += cost_of(peers, m);
        return 0;
}

static int on_message(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        const char *sender = sd_bus_message_get_sender(m);
        Peers *peers = userdata;
        Peer *p;
        int r;

        watch_queue(peers);
        if (!sender || !sd_bus_message_is_method_call(m, NULL, NULL))
                return 0;
        p = peer_find(sender);
        if (!p) {
                r = peer_new(peers, sender, &p);
                if (r < 0)
                        return r;
        }
        return on_call(peers, p, m, error);
}

int peers_new(sd_bus *bus, const Manager *manager, peer_left_cb left, void *userdata, Peers **ret) {
        _cleanup_(peers_freep) Peers *p = new(Peers, 1);
        int r;

        if (!p)
                return -ENOMEM;
        *p = (Peers) { .bus = sd_bus_ref(bus), .manager = manager, .left = left, .userdata = userdata };
        r = sd_bus_add_filter(bus, &p->filter, on_message, p);
        if (r >= 0)
                r = sd_bus_add_match_async(bus, &p->match, "type='signal',sender='" BUS "',path='" BUS_PATH "',interface='" BUS "',"
                                           "member='NameOwnerChanged',arg2=''", on_name_owner_changed, NULL, p);
        if (r < 0)
                return r;
        all = *ret = TAKE_PTR(p);
        return 0;
}

Peers *peers_free(Peers *p) {
        if (!p)
                return NULL;
        if (all == p)
                all = NULL;
        sd_bus_slot_unref(p->filter);
        sd_bus_slot_unref(p->match);
        sd_event_source_disable_unref(p->again);
        sd_event_source_disable_unref(p->stuck);
        sd_bus_slot_unref(p->ping);
        while (p->list)
                peer_free(p->list);
        sd_bus_unref(p->bus);
        free(p);
        return NULL;
}
