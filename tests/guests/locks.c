/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Runs in the Linux guest: locks FILE shows whether one process's lock of it keeps another out, and lets it in when it is given up. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

typedef int (*Lock)(int fd, int exclusive, int wait);

static int bsd_lock(int fd, int exclusive, int wait) {
        return flock(fd, (exclusive ? LOCK_EX : LOCK_UN) | (wait ? 0 : LOCK_NB));
}

static int posix_lock(int fd, int exclusive, int wait) {
        struct flock l = { .l_type = (short) (exclusive ? F_WRLCK : F_UNLCK), .l_whence = SEEK_SET };

        return fcntl(fd, wait ? F_SETLKW : F_SETLK, &l);
}

static int open_file(const char *path) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

        if (fd < 0) {
                perror(path);
                exit(2);
        }
        return fd;
}

/* The other process: refused while the lock is held, it says so; then it waits for it. */
static void be_other(const char *path, Lock lock, int say) {
        int fd = open_file(path);

        if (lock(fd, 1, 0) == 0)
                _exit(3);
        if (write(say, "r", 1) != 1 || lock(fd, 1, 1) < 0)
                _exit(4);
        _exit(0);
}

static int try_lock(const char *path, Lock lock) {
        int fd = open_file(path), pipes[2], status;
        char c;
        pid_t pid;

        if (lock(fd, 1, 0) < 0 || pipe(pipes) < 0)
                return 5;
        pid = fork();
        if (pid < 0)
                return 6;
        if (pid == 0)
                be_other(path, lock, pipes[1]);
        close(pipes[1]);
        if (read(pipes[0], &c, 1) == 1 && lock(fd, 0, 0) < 0)
                return 7;
        if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
                return 8;
        return WEXITSTATUS(status);
}

int main(int argc, char *argv[]) {
        int bsd, posix;

        if (argc != 2)
                return 2;
        bsd = try_lock(argv[1], bsd_lock);
        posix = try_lock(argv[1], posix_lock);
        printf("flock %d, fcntl %d\n", bsd, posix);
        return bsd || posix;
}
