/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a guest does in networks: `net get tcp|udp ADDRESS PORT SOURCE-PORT SECONDS` says "hello" and prints the answer, or why there is none;
 * `net serve tcp|udp PORT` answers in the background, with "guest:" before what it was told. */

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static struct sockaddr_in address(const char *ip, const char *port) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((unsigned short) atoi(port)) };

        inet_pton(AF_INET, ip, &a.sin_addr);
        return a;
}

static int open_socket(const char *protocol, const char *port) {
        int fd = socket(AF_INET, strcmp(protocol, "tcp") == 0 ? SOCK_STREAM : SOCK_DGRAM, 0), one = 1;
        struct sockaddr_in any = address("0.0.0.0", port);

        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (fd < 0 || (any.sin_port && bind(fd, (struct sockaddr *) &any, sizeof(any)) < 0)) {
                printf("%s\n", strerror(errno));
                exit(1);
        }
        return fd;
}

static int get(const char *protocol, struct sockaddr_in to, const char *from, const char *seconds) {
        const struct timeval patience = { .tv_sec = atoi(seconds) };
        char answer[256];
        int fd = open_socket(protocol, from);
        ssize_t n = -1;

        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
        if (connect(fd, (struct sockaddr *) &to, sizeof(to)) == 0 && send(fd, "hello", 5, MSG_NOSIGNAL) == 5)
                n = recv(fd, answer, sizeof(answer), 0);
        if (n <= 0)
                printf("no answer: %s\n", n == 0 ? "closed" : strerror(errno));
        else
                printf("%.*s\n", (int) n, answer);
        return n <= 0;
}

static int serve(const char *protocol, const char *port) {
        int fd = open_socket(protocol, port), tcp = strcmp(protocol, "tcp") == 0;

        if (tcp && listen(fd, 8) < 0)
                return 1;
        if (daemon(0, 0) < 0)
                return 1;
        for (;;) {
                char text[256] = "guest:";
                struct sockaddr_in from;
                socklen_t size = sizeof(from);
                int to = tcp ? accept(fd, NULL, NULL) : fd;
                ssize_t n = recvfrom(to, text + 6, sizeof(text) - 6, 0, (struct sockaddr *) &from, &size);

                if (n > 0)
                        (void) !sendto(to, text, (size_t) n + 6, MSG_NOSIGNAL, tcp ? NULL : (struct sockaddr *) &from, tcp ? 0 : size);
                if (tcp)
                        close(to);
        }
}

int main(int argc, char *argv[]) {
        if (argc == 7 && strcmp(argv[1], "get") == 0)
                return get(argv[2], address(argv[3], argv[4]), argv[5], argv[6]);
        if (argc == 4 && strcmp(argv[1], "serve") == 0)
                return serve(argv[2], argv[3]);
        return 2;
}
