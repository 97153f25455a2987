/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "cli/cli-agent.h"

#define AGENT "pkttyagent"
/* polkit may have to be started for it. */
#define PATIENCE_MSEC 30000

static pid_t agent;

static _Noreturn void run_agent(int notify_fd, pid_t parent) {
        char fd[16];

        (void) snprintf(fd, sizeof(fd), "%d", notify_fd);
        /* It serves its parent, and is to end with it. */
        (void) prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
        if (getppid() == parent && fcntl(notify_fd, F_SETFD, 0) >= 0)
                (void) execlp(AGENT, AGENT, "--notify-fd", fd, "--fallback", (char *) NULL);
        _exit(EXIT_FAILURE);
}

/* Until it is known to polkit, or has ended: both close its end. */
void agent_open(void) {
        _cleanup_close_ int ready = -EBADF, notify = -EBADF;
        pid_t self = getpid();
        struct pollfd p;
        int fds[2];

        if (agent > 0 || geteuid() == 0 || !isatty(STDIN_FILENO) || pipe2(fds, O_CLOEXEC) < 0)
                return;
        ready = fds[0];
        notify = fds[1];

        agent = fork();
        if (agent == 0)
                run_agent(notify, self);
        if (agent < 0)
                return;
        notify = safe_close(notify);
        p = (struct pollfd) { .fd = ready, .events = POLLIN };
        while (poll(&p, 1, PATIENCE_MSEC) < 0 && errno == EINTR)
                ;
}

void agent_close(void) {
        if (agent <= 0)
                return;
        (void) kill(agent, SIGTERM);
        (void) kill(agent, SIGCONT);
        while (waitpid(agent, NULL, 0) < 0 && errno == EINTR)
                ;
        agent = 0;
}
