/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <termios.h>

#include "basic/fd-util.h"
#include "basic/json-util.h"
#include "basic/parse-util.h"
#include "basic/string-util.h"
#include "cli/cli-agent.h"
#include "cli/cli-bus.h"
#include "cli/cli-console.h"
#include "cli/cli-error.h"

#define LEAVE 0x1d /* Ctrl-] */

/* When the input of a pipe has ended, the guest may still answer: until it has been quiet for so long. */
#define QUIET_MSEC 2000

static struct {
        struct termios saved, raw;
        volatile sig_atomic_t is_raw;
} terminal;

/* These three run in signal handlers as well. */
static void terminal_raw(void) {
        (void) tcsetattr(STDIN_FILENO, TCSANOW, &terminal.raw);
        terminal.is_raw = true;
}

static void terminal_restore(void) {
        if (terminal.is_raw)
                (void) tcsetattr(STDIN_FILENO, TCSANOW, &terminal.saved);
        terminal.is_raw = false;
}

static void on_signal(int signo) {
        int e = errno;

        if (signo == SIGCONT) {
                terminal_raw();
                errno = e;
                return;
        }

        terminal_restore();
        if (signo == SIGTSTP) {
                (void) raise(SIGSTOP);
                errno = e;
                return; /* SIGCONT came, and has made it raw again */
        }
        (void) raise(signo); /* SA_RESETHAND: with the default action, once we return */
}

static void handle(int signo, int flags) {
        struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };

        (void) sigaction(signo, &sa, NULL);
}

static int terminal_setup(const char *name) {
        static const int fatal[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGSEGV, SIGBUS };

        if (tcgetattr(STDIN_FILENO, &terminal.saved) < 0) {
                say(name, "cannot read the terminal's settings: %m");
                return -errno;
        }
        terminal.raw = terminal.saved;
        cfmakeraw(&terminal.raw);

        for (size_t i = 0; i < ELEMENTSOF(fatal); i++)
                handle(fatal[i], (int) SA_RESETHAND);
        handle(SIGTSTP, SA_RESTART);
        handle(SIGCONT, SA_RESTART);
        terminal_raw();
        say(name, "connected to the console; Ctrl-] leaves\r"); /* after it all that is typed is the guest's */
        return 0;
}

typedef struct Console {
        int fd;
        bool tty;                       /* the input is a terminal, which is raw */
        bool passes_end;                /* the other side is told of the end of the input, and ends when it likes */
        bool input_ended, output_ended, left;
        char buffer[4096];              /* input that the guest has not taken yet */
        size_t n, sent;
} Console;

static bool is_transient(int e) {
        return e == EAGAIN || e == EINTR;
}

static int read_input(Console *c) {
        const char *leave;
        ssize_t n;

        n = read(STDIN_FILENO, c->buffer, sizeof(c->buffer));
        if (n < 0)
                return is_transient(errno) ? 0 : -errno;

        leave = c->tty ? memchr(c->buffer, LEAVE, (size_t) n) : NULL;
        if (leave)
                n = leave - c->buffer;
        c->left = leave != NULL;
        c->input_ended = n == 0 && !leave;
        if (c->input_ended && c->passes_end)
                (void) shutdown(c->fd, SHUT_WR);
        c->n = (size_t) n;
        c->sent = 0;
        return 0;
}

static int send_input(Console *c) {
        ssize_t n;

        n = write(c->fd, c->buffer + c->sent, c->n - c->sent);
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
                c->output_ended = true;
                return 0;
        }
        if (n < 0)
                return is_transient(errno) ? 0 : -errno;

        c->sent += (size_t) n;
        return 0;
}

static int copy_output(Console *c) {
        char buffer[16384];
        ssize_t n;

        n = read(c->fd, buffer, sizeof(buffer));
        if (n < 0 && is_transient(errno))
                return 0;
        if (n <= 0) {
                c->output_ended = true;
                return n == 0 || errno == ECONNRESET ? 0 : -errno;
        }
        return loop_write(STDOUT_FILENO, buffer, (size_t) n);
}

/* One round. >0: go on. */
static int console_step(Console *c) {
        bool pending = c->sent < c->n;
        struct pollfd p[] = {
                { .fd = c->fd, .events = (short) (POLLIN | (pending ? POLLOUT : 0)) },
                { .fd = pending || c->input_ended ? -1 : STDIN_FILENO, .events = POLLIN },
        };
        int r;

        r = poll(p, ELEMENTSOF(p), c->input_ended && !pending && !c->passes_end ? QUIET_MSEC : -1);
        if (r < 0)
                return errno == EINTR ? 1 : -errno;
        if (r == 0)
                return 0;

        r = p[1].revents ? read_input(c) : 0;
        if (r >= 0 && p[0].revents & POLLOUT)
                r = send_input(c);
        if (r >= 0 && p[0].revents & (POLLIN | POLLHUP | POLLERR))
                r = copy_output(c);
        if (r < 0)
                return r;

        /* What was typed before Ctrl-] in the same read still goes out, if the guest takes it at once. */
        if (c->left && c->n > 0)
                (void) send_input(c);
        return !c->left && !c->output_ended && !(c->tty && c->input_ended);
}

static int console_run(Console *c) {
        int r;

        signal(SIGPIPE, SIG_IGN);
        do
                r = console_step(c);
        while (r > 0);
        return r == -EPIPE ? 0 : r; /* nobody reads our output any more */
}

static int take_stream(sd_bus_message *reply, const char *name, int *ret_fd) {
        _cleanup_close_ int fd = -EBADF;
        int r, theirs;

        r = sd_bus_message_read(reply, "h", &theirs);
        if (r < 0)
                return say_bad_reply(name, r);

        fd = fcntl(theirs, F_DUPFD_CLOEXEC, 3);
        if (fd < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
                say(name, "cannot use the stream: %m");
                return -errno;
        }
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int console_open(sd_bus *bus, Verb verb, const char *name, const char *path, bool read_only, int *ret_fd) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r;

        /* Said in any case: who wants to type is not to find out later that nothing gets there. */
        r = sd_bus_call_method(bus, BUS_NAME, path, VM_INTERFACE, "OpenConsole", &error, &reply, "a{sv}", 1, "read-only", "b", read_only);
        return r < 0 ? say_bus_error(name, verb, &error, r) : take_stream(reply, name, ret_fd);
}

static int vsock_open(sd_bus *bus, const Args *a, const char *path, unsigned port, int *ret_fd) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r;

        r = sd_bus_call_method(bus, BUS_NAME, path, VM_INTERFACE, "OpenVSock", &error, &reply, "ua{sv}", port, 0);
        return r < 0 ? say_bus_error(a->names[0], a->verb, &error, r) : take_stream(reply, a->names[0], ret_fd);
}

int verb_console(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *path = NULL;
        const char *name = a->names[0];
        Console c;
        int r;

        r = bus_connect_asking(a, &bus);
        if (r >= 0)
                r = bus_get_vm(bus, a->verb, name, &path);
        if (r >= 0)
                r = console_open(bus, a->verb, name, path, a->read_only, &fd);
        if (r < 0)
                return r;
        bus = sd_bus_flush_close_unref(bus); /* the daemon may go from here on */
        agent_close();

        c = (Console) {
                .fd = fd,
                .tty = !a->read_only && isatty(STDIN_FILENO),
                /* Our input stays where it is. */
                .input_ended = a->read_only,
                .passes_end = a->read_only,
        };
        if (c.tty) {
                r = terminal_setup(name);
                if (r < 0)
                        return r;
        } else if (a->read_only && isatty(STDIN_FILENO))
                say(name, "reading the console; Ctrl-C leaves");

        r = console_run(&c);
        terminal_restore();
        if (r < 0)
                say(name, "the console failed: %s", strerror(-r));
        else if (c.tty) {
                fputc('\n', stderr); /* the guest seldom leaves the cursor at the start of a line */
                say(name, c.left ? "left the console" : "the console has ended; `vmunit status %s` shows the VM", name);
        }
        return r;
}

static bool list_has(json_object *list, const char *word) {
        for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++)
                if (streq(strempty(json_object_get_string(json_object_array_get_idx(list, i))), word))
                        return true;
        return false;
}

/* Whether its VMM can tell the guest of the end of our input, and leaves it its own direction. */
static int vsock_passes_end(sd_bus *bus, const Args *a, const char *path, bool *ret) {
        _cleanup_json_ json_object *vm = NULL, *manager = NULL;
        json_object *list;
        int r;

        r = bus_get_all(bus, a->verb, a->names[0], path, VM_INTERFACE, &vm);
        if (r >= 0)
                r = bus_get_all(bus, a->verb, "vmunit", ROOT_PATH, MANAGER_INTERFACE, &manager);
        if (r < 0)
                return r;
        *ret = false;
        list = json_get(manager, "Backends");
        for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
                json_object *b = json_object_array_get_idx(list, i); /* (sa{sv}) */
                const char *name = json_object_get_string(json_object_array_get_idx(b, 0));

                if (streq(strempty(name), json_get_string(vm, "Backend", "")))
                        *ret = list_has(json_get(json_object_array_get_idx(b, 1), "Features"), "vsock-half-close");
        }
        return 0;
}

int verb_vsock(const Args *a) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *path = NULL;
        const char *name = a->names[0];
        bool passes_end = false;
        uint32_t port;
        Console c;
        int r;

        r = parse_u32(a->names[1], &port);
        if (r < 0 || port == UINT32_MAX) {
                say(name, "%s is no vsock port, which is a number below 4294967295", a->names[1]);
                return -EINVAL;
        }
        r = bus_connect_asking(a, &bus);
        if (r >= 0)
                r = bus_get_vm(bus, a->verb, name, &path);
        if (r >= 0)
                r = vsock_passes_end(bus, a, path, &passes_end);
        if (r >= 0)
                r = vsock_open(bus, a, path, port, &fd);
        if (r < 0)
                return r;
        bus = sd_bus_flush_close_unref(bus); /* the daemon may go from here on */

        c = (Console) { .fd = fd, .passes_end = passes_end };
        r = console_run(&c);
        if (r < 0)
                say(name, "the connection failed: %s", strerror(-r));
        return r;
}
