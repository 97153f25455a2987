/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>

#include "basic/string-util.h"
#include "vmm/passt-plan.h"
#include "vmm/vmm.h"

/* Its own MAC address, as QEMU's user mode network has it */
#define GATEWAY_MAC "52:55:0a:00:02:02"
#define LOW_PORT 1024U
#define NAMESERVERS_MAX 3U /* what libc takes */

#define SINCE_STDERR 20240726U  /* it writes to its standard error by itself, and will not know the option for ever */
#define SINCE_UDP_FLOWS 20240726U /* answers find their way back to a client at 127.0.0.1 by themselves */

/* Its own "2024_02_20.1e6f92b", Debian's "0.0~git20230309.7c7625d-1", Fedora's "0^20240726.g57a21d2-1", or "unknown version" */
bool passt_parse_version(const char *line, unsigned *ret) {
        const char *s = startswith(line, "passt "), *day;
        unsigned y, m, d;

        if (!s)
                return false;
        day = strstr(s, "20"); /* of this century */
        *ret = day && (sscanf(day, "%4u_%2u_%2u", &y, &m, &d) == 3 || sscanf(day, "%4u%2u%2u", &y, &m, &d) == 3) ?
                y * 10000 + m * 100 + d : 0;
        return true;
}

/* It knows of a port where that leads to, and not of an address with it; and older ones answer by UDP from one port alone. */
int passt_check(const Network *n, unsigned version, sd_bus_error *error) {
        for (size_t i = 0; i < n->n_forwards; i++)
                for (size_t j = 0; j < i; j++) {
                        const Forward *f = n->forwards + i, *other = n->forwards + j;

                        if (f->protocol != other->protocol)
                                continue;
                        if (f->host == other->host)
                                return vmm_refuse(error, "forward[%zu].host: passt forwards %s port %u of one address alone, and forward[%zu] "
                                                  "has it already; write another port, or put it into a network of its own", i,
                                                  protocol_to_string(f->protocol), f->host, j);
                        if (f->protocol == PROTOCOL_UDP && f->guest == other->guest && version < SINCE_UDP_FLOWS)
                                return vmm_refuse(error, "forward[%zu].guest: this passt is too old to forward two udp ports into one, and "
                                                  "forward[%zu] has it already; write another port, or put it into a network of its own", i, j);
                }
        return 0;
}

bool passt_has_low_ports(const Network *n) {
        for (size_t i = 0; i < n->n_forwards; i++)
                if (n->forwards[i].host < LOW_PORT)
                        return true;
        return false;
}

/* Without "none" the ports of one protocol would be forwarded for the other, too. */
static int add_forwards(const Network *n, Protocol protocol, const char *option, char ***argv) {
        bool any = false;
        int r = 0;

        for (size_t i = 0; r >= 0 && i < n->n_forwards; i++) {
                const Forward *f = n->forwards + i;

                if (f->protocol != protocol)
                        continue;
                any = true;
                r = strv_extend(argv, option);
                if (r >= 0)
                        r = strv_extendf(argv, "%s/%u:%u", f->address, f->host, f->guest);
        }
        if (r >= 0 && !any)
                r = strv_extend(argv, option);
        return r < 0 || any ? r : strv_extend(argv, "none");
}

static bool forwards_udp(const Network *n) {
        for (size_t i = 0; i < n->n_forwards; i++)
                if (n->forwards[i].protocol == PROTOCOL_UDP)
                        return true;
        return false;
}

/* Addresses of its own instead of the host's: they stay the same wherever the host is connected, and also if it is not. */
static int add_options(const Network *n, unsigned version, char ***argv) {
        static const char *const words[] = {
                "--foreground", "--quiet", "--pid=/proc/self/fd/0", "--ipv4-only", "--interface=lo", "--address=" PASST_GUEST, "--netmask=24",
                "--gateway=" PASST_GATEWAY, "--mac-addr=" GATEWAY_MAC, "--dns-forward=" PASST_RESOLVER, "--search=none",
        };
        int r = 0;

        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(words); i++)
                r = strv_extend(argv, words[i]);
        if (r >= 0 && version < SINCE_STDERR)
                r = strv_extend(argv, "--stderr");
        /* Its parent sees to it that the gateway is not the host. */
        if (r >= 0 && (version >= SINCE_UDP_FLOWS || !forwards_udp(n)))
                r = strv_extend(argv, "--no-map-gw");
        return r;
}

int passt_plan(const Network *n, unsigned version, int fd, char ***ret_argv) {
        _cleanup_strv_free_ char **argv = NULL;
        int r;

        r = strv_extend(&argv, "passt");
        if (r >= 0)
                r = strv_extendf(&argv, "--fd=%d", fd);
        if (r >= 0)
                r = add_options(n, version, &argv);
        if (r >= 0)
                r = add_forwards(n, PROTOCOL_TCP, "--tcp-ports", &argv);
        if (r >= 0)
                r = add_forwards(n, PROTOCOL_UDP, "--udp-ports", &argv);
        if (r < 0)
                return r;
        *ret_argv = TAKE_PTR(argv);
        return 0;
}

/* The IPv4 address of a line of resolv.conf(5) */
static bool is_nameserver(const char *line, size_t n, struct in_addr *ret) {
        const char *s = startswith(line, "nameserver");
        char address[INET_ADDRSTRLEN] = "";
        size_t k;

        if (!s || !isblank((unsigned char) *s))
                return false;
        s += strspn(s, " \t");
        k = strcspn(s, " \t\r\n");
        if (s + k > line + n || k >= sizeof(address))
                return false;
        memcpy(address, s, k);
        return inet_pton(AF_INET, address, ret) == 1;
}

static bool is_loopback(struct in_addr a) {
        return ntohl(a.s_addr) >> 24 == 127 || a.s_addr == 0;
}

/* passt asks the first, and tells the guest of those that are not the host's. Where there are none, there is the one that it forwards. */
int passt_resolv_conf(const char *host, char **ret, uint32_t *ret_resolver) {
        _cleanup_free_ char *text = strdup("");
        struct in_addr a, first = {};
        size_t n = 0, n_told = 0;

        for (const char *p = host; text && *p && n < NAMESERVERS_MAX; p += strcspn(p, "\n"), p += *p == '\n') {
                char shown[INET_ADDRSTRLEN], *more;

                if (!is_nameserver(p, strcspn(p, "\n"), &a))
                        continue;
                if (a.s_addr == 0)
                        a.s_addr = htonl(INADDR_LOOPBACK);
                if (n++ == 0)
                        first = a;
                else if (is_loopback(a))
                        continue;
                n_told += !is_loopback(a);
                more = strjoinf("%snameserver %s\n", text, inet_ntop(AF_INET, &a, shown, sizeof(shown)));
                free(text);
                text = more;
        }
        if (text && n > 0 && n_told == 0) {
                char *more = strjoinf("%snameserver " PASST_RESOLVER "\n", text);

                free(text);
                text = more;
        }
        if (!text)
                return -ENOMEM;
        *ret = TAKE_PTR(text);
        *ret_resolver = is_loopback(first) ? first.s_addr : 0;
        return 0;
}
