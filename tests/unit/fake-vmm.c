/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stands for a VMM: does what its first argument says. */

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "fake-vmm.h"

static void put(int fd, const char *p, size_t n) {
        while (n > 0) {
                ssize_t k = write(fd, p, n);

                if (k <= 0)
                        exit(9);
                p += k;
                n -= (size_t) k;
        }
}

static void say(const char *s) {
        put(1, s, strlen(s));
}

static void list_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        struct dirent *de;
        char line[300];

        while ((de = readdir(d)))
                if (de->d_name[0] != '.' && atoi(de->d_name) != dirfd(d)) {
                        (void) snprintf(line, sizeof(line), "%s%s ", de->d_name,
                                        fcntl(atoi(de->d_name), F_GETFD) & FD_CLOEXEC ? "!" : "");
                        say(line);
                }
        closedir(d);
        say("end\n");
}

static void spew(unsigned long n) {
        char buf[4096];

        for (unsigned long i = 0; i < n;) {
                size_t k = 0;

                for (; k < sizeof(buf) && i < n; k++, i++)
                        buf[k] = pattern(i);
                put(1, buf, k);
        }
}

static void echo(void) {
        char c;

        put(2, "last words\n", 11);
        say(isatty(0) && isatty(1) ? "TTY\n" : "READY\n");
        while (read(0, &c, 1) == 1 && c != 'q')
                put(1, &c, 1);
}

static void on_usr1(int sig) {
        say("USR1\n");
}

static void leave_child(void) {
        char line[32];
        pid_t pid = fork();

        if (pid == 0)
                for (;;)
                        pause();
        (void) snprintf(line, sizeof(line), "%d\n", (int) pid);
        say(line);
}

static void version(const char *self) {
        char path[4096], line[32];
        FILE *f;

        if (!strstr(self, "hang")) {
                say("Fake\tVMM 1.0\nsecond line\n");
                return;
        }

        (void) snprintf(path, sizeof(path), "%s.pid", self);
        f = fopen(path, "we");
        (void) snprintf(line, sizeof(line), "%d\n", (int) getpid());
        if (f) {
                (void) fputs(line, f);
                (void) fclose(f);
        }
        for (;;)
                pause();
}

int main(int argc, char *argv[]) {
        const char *mode = argc > 1 ? argv[1] : "", *value = argc > 2 ? argv[2] : "0";

        (void) signal(SIGUSR1, on_usr1);
        if (strcmp(mode, "--version") == 0)
                version(argv[0]);
        else if (strcmp(mode, "fds") == 0)
                list_fds();
        else if (strcmp(mode, "exit") == 0)
                return atoi(value);
        else if (strcmp(mode, "signal") == 0) {
                (void) signal(atoi(value), SIG_DFL);
                (void) raise(atoi(value));
        } else if (strcmp(mode, "spew") == 0)
                spew(strtoul(value, NULL, 10));
        else if (strcmp(mode, "child") == 0) {
                leave_child();
                return 4;
        } else if (strcmp(mode, "echo") == 0)
                echo();
        else
                for (say("READY\n");;)
                        pause();
        return 0;
}
