/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* In a guest: says its number and "hello" to each who comes to a vsock port, then what it is told, and "bye" at the end of that. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void serve(int fd, int number) {
        char text[4096];
        ssize_t n;

        dprintf(fd, "hello from port %d\n", number);
        while ((n = read(fd, text, sizeof(text))) > 0)
                if (write(fd, text, (size_t) n) != n)
                        return;
        (void) !write(fd, "bye", 3);
}

int main(int argc, char *argv[]) {
        struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
        int listener = socket(AF_VSOCK, SOCK_STREAM, 0), port = argc > 1 ? atoi(argv[1]) : 0;

        address.svm_port = (unsigned) port;
        if (listener < 0 || bind(listener, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(listener, 8) < 0) {
                perror("vsock-echo");
                return EXIT_FAILURE;
        }
        puts("LISTENS");
        fflush(stdout);
        for (;;) {
                int fd = accept(listener, NULL, NULL);

                if (fd < 0)
                        return EXIT_FAILURE;
                if (fork() == 0) {
                        serve(fd, port);
                        return EXIT_SUCCESS;
                }
                close(fd);
        }
}
