/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/cloud-hypervisor-plan.h"

#include "open-plan.h"
#include "tap.h"

/* The same list against the model of Cloud Hypervisor and, where there is one, the real thing with the tiny guest: started with the
 * planned arguments and fds, as in a VM's scope. */

#define MODEL TEST_DIR "/lib/cloud-hypervisor-model"
#define DEADLINE_USEC (20 * USEC_PER_SEC)
#define CH cloud_hypervisor_ops

typedef struct Guest {
        sd_event *event;
        VMM *vmm;
        char *config;
        pid_t pid;
        int listener, fifo, tty, terminal, errors;
        char console[64 * 1024];
        size_t n_console;

        bool exited;
        int status;
        unsigned n[_VMM_EVENT_MAX];     /* events */
        VMMState state;
        int error;
} Guest;

typedef struct Reply {
        unsigned n;
        int error;
        char message[512];
        VMMCounter counters[64];
        size_t n_counters;
} Reply;

static char directory[] = "/tmp/test-ch.XXXXXX", elf[64], bios[64], sock[64], fifo[64], vsock[64];
static const char *program;
static bool model;

static uint64_t now_usec(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * USEC_PER_SEC + (uint64_t) t.tv_nsec / 1000;
}

static void on_event(void *userdata, VMMEvent event, VMMState state, int error) {
        Guest *g = userdata;

        g->n[event]++;
        g->state = state;
        if (event == VMM_EVENT_DISCONNECTED)
                g->error = error;
}

static void on_reply(void *userdata, int error, const char *message) {
        Reply *r = userdata;

        r->n++;
        r->error = error;
        snprintf(r->message, sizeof r->message, "%s", strempty(message));
}

static void on_counters(void *userdata, int error, const VMMCounter *counters, size_t n) {
        Reply *r = userdata;

        r->n++;
        r->error = error;
        r->n_counters = MIN(n, ELEMENTSOF(r->counters));
        for (size_t i = 0; i < r->n_counters; i++)
                r->counters[i] = counters[i];
}

static void turn(Guest *g) {
        ssize_t n;

        (void) sd_event_run(g->event, 5 * USEC_PER_MSEC);

        if (g->n_console > sizeof g->console / 2)
                g->n_console = 0;
        n = read(g->terminal, g->console + g->n_console, sizeof g->console / 2);
        if (n > 0)
                g->n_console += (size_t) n;
        g->console[g->n_console] = 0;

        if (!g->exited && waitpid(g->pid, &g->status, WNOHANG) == g->pid) {
                g->exited = true;
                if (g->vmm)
                        CH.drain(g->vmm);
        }
}

#define wait_for(g, condition)                                          \
        ({                                                              \
                uint64_t _end = now_usec() + DEADLINE_USEC;             \
                while (!(condition) && now_usec() < _end)               \
                        turn(g);                                        \
                (condition);                                            \
        })

static char *last_words(Guest *g) {
        static char text[16384];
        ssize_t n = pread(g->errors, text, sizeof text - 1, 0);

        text[MAX(n, 0)] = 0;
        return text;
}

static void print_errors(Guest *g) {
        for (char *save = NULL, *line = strtok_r(last_words(g), "\n", &save); line; line = strtok_r(NULL, "\n", &save))
                printf("# %s\n", line);
}

/* In the child: what the plan wants to find, under its numbers. */
static _Noreturn void execute(Guest *g, const LaunchPlan *plan) {
        int high[64];

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (size_t i = 0; i < plan->n_fds; i++) {
                const LaunchFd *f = plan->fds + i;
                int fd = f->type == LAUNCH_FD_API ? g->listener : f->type == LAUNCH_FD_EVENTS ? g->fifo :
                        open(f->path, (f->writable ? O_RDWR : O_RDONLY)|O_CLOEXEC);

                if (fd < 0)
                        _exit(99);
                high[i] = fcntl(fd, F_DUPFD_CLOEXEC, 200);
        }
        dup2(g->tty, 0);
        dup2(g->tty, 1);
        dup2(g->errors, 2);
        for (size_t i = 0; i < plan->n_fds; i++)
                dup2(high[i], VMM_FD_FIRST + (int) i);
        (void) setsid();
        execv(program, plan->argv);
        _exit(98);
}

static void make_terminal(Guest *g) {
        struct termios raw;

        g->terminal = posix_openpt(O_RDWR|O_NOCTTY|O_CLOEXEC|O_NONBLOCK);
        if (g->terminal < 0 || unlockpt(g->terminal) < 0)
                abort();
        g->tty = ioctl(g->terminal, TIOCGPTPEER, O_RDWR|O_NOCTTY|O_CLOEXEC);
        if (g->tty < 0 || tcgetattr(g->tty, &raw) < 0)
                abort();
        cfmakeraw(&raw);
        (void) tcsetattr(g->tty, TCSANOW, &raw);
}

static bool guest_connect(Guest *g) {
        return CH.connect(g->event, directory, on_event, g, &g->vmm) >= 0;
}

static void guest_spawn(Guest *g, Definition *d) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        LaunchParams p = {
                .definition = d, .name = "a", .id = "9f0d0b06-4b3f-4d4a-8d4b-9e6f0a1b2c3d",
                .cid = 70000, .kvm = true,
        };

        d->cpus = d->cpus ?: 1;
        d->memory = d->memory ?: 32 << 20;
        (void) unlink(fifo);
        (void) unlink(vsock);
        if (mkfifo(fifo, 0600) < 0)
                abort();
        *g = (Guest) {
                .listener = unix_listen(sock, SOCK_STREAM),
                .fifo = open(fifo, O_RDWR|O_CLOEXEC),
                .errors = memfd_create("stderr", MFD_CLOEXEC),
        };
        make_terminal(g);
        if (g->listener < 0 || g->fifo < 0 || sd_event_new(&g->event) < 0 ||
            (CH.check)(d, "53.0", &error) < 0 || CH.plan(&p, &plan) < 0) {
                printf("Bail out! %s\n", strempty(error.message));
                exit(1);
        }
        open_plan(plan, directory);
        g->config = TAKE_PTR(plan->config);

        g->pid = fork();
        if (g->pid == 0)
                execute(g, plan);
        /* As the daemon does: what is open here would hide the end of what is open there. */
        g->listener = safe_close(g->listener);
        g->fifo = safe_close(g->fifo);
        g->tty = safe_close(g->tty);
        if (!guest_connect(g))
                abort();
}

static void guest_stop(Guest *g) {
        VMM *v = TAKE_PTR(g->vmm);

        vmm_freep(&v);
        if (!g->exited) {
                (void) kill(g->pid, SIGKILL);
                (void) waitpid(g->pid, NULL, 0);
        }
        if (tap_failed > 0)
                print_errors(g);
        safe_close(g->terminal);
        safe_close(g->errors);
        free(g->config);
        sd_event_unref(g->event);
}

static void type(Guest *g, const char *s) {
        if (write(g->terminal, s, strlen(s)) != (ssize_t) strlen(s))
                abort();
}

static int boot(Guest *g, Reply *r) {
        *r = (Reply) {};
        if (CH.boot(g->vmm, g->config, on_reply, r) < 0 || !wait_for(g, r->n > 0))
                return ok(false, "boot: no answer");
        return r->error;
}

static bool call(Guest *g, int (*f)(VMM *, vmm_reply_cb, void *), const char *what) {
        Reply r = {};

        if (f(g->vmm, on_reply, &r) < 0 || !wait_for(g, r.n > 0))
                return ok(false, "%s: no answer", what);
        return is_int(r.error, 0, "%s %s", what, r.message);
}

static int refused(Guest *g, int (*f)(VMM *, vmm_reply_cb, void *), Reply *r) {
        *r = (Reply) {};
        if (f(g->vmm, on_reply, r) < 0 || !wait_for(g, r->n > 0))
                return ok(false, "no answer");
        return r->error;
}

/* What the guest has said is forgotten, for the next look. */
static void forget(Guest *g) {
        g->n_console = 0;
        g->console[0] = 0;
        memset(g->n, 0, sizeof g->n);
}

static bool guest_up(Guest *g, Definition *d) {
        Reply r;

        guest_spawn(g, d);
        if (!ok(wait_for(g, g->n[VMM_EVENT_CONNECTED] || g->exited) && !g->exited, "connected"))
                return false;
        is_int(g->state, VMM_STATE_NOT_STARTED, "… the guest has not run yet");
        is_str(g->console, "", "… nor said anything");
        if (!is_int(boot(g, &r), 0, "boot %s", r.message))
                return false;
        is_int(g->state, VMM_STATE_RUNNING, "… it runs");
        is_int(g->n[VMM_EVENT_RUNNING], 1, "… with its event");
        return ok(wait_for(g, strstr(g->console, "TINY-UP")), "… and says so");
}

static void test_life(Definition *d) {
        Guest g;

        if (!guest_up(&g, d)) {
                guest_stop(&g);
                return;
        }

        for (unsigned i = 0; i < 2; i++) {
                forget(&g);
                call(&g, CH.pause, "pause");
                call(&g, CH.pause, "pause again");
                is_int(g.state, VMM_STATE_PAUSED, "… paused");
                is_int(g.n[VMM_EVENT_PAUSED], 1, "… with one event");
                call(&g, CH.resume, "resume");
                call(&g, CH.resume, "resume again");
                is_int(g.state, VMM_STATE_RUNNING, "… running");
                is_int(g.n[VMM_EVENT_RUNNING], 1, "… with one event");
        }
        type(&g, "hello");
        ok(wait_for(&g, strstr(g.console, "hello")), "the console echoes");

        for (unsigned i = 0; i < 2; i++) {
                forget(&g);
                call(&g, CH.reset, "reset");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest starts anew");
                is_int(g.n[VMM_EVENT_GUEST_RESET], 0, "… not by itself");
                is_int(g.state, VMM_STATE_RUNNING, "… running");
        }

        call(&g, CH.pause, "pause");
        forget(&g);
        call(&g, CH.power_button, "power button of a paused guest");
        call(&g, CH.resume, "resume");
        ok(wait_for(&g, g.exited), "… it ends");
        ok(strstr(g.console, "POWERBTN") != NULL, "… after the guest has seen the button");
        is_int(g.n[VMM_EVENT_POWER_BUTTON], 1, "… which was told");
        is_int(g.n[VMM_EVENT_SHUTDOWN], 1, "… as the end is");
        is_int(g.status, 0, "… status 0");
        is_int(CH.exit_cause(g.status, last_words(&g)), VMM_EVENT_EXITED, "… which is good order");
        guest_stop(&g);
}

/* No more than this is told: that it ends, and in good order. */
static void test_end(Definition *d, const char *key, int signal, bool paused, int status) {
        Guest g;
        Reply r = {};

        if (guest_up(&g, d)) {
                if (paused)
                        call(&g, CH.pause, "pause");
                forget(&g);
                if (key)
                        type(&g, key);
                else if (signal)
                        kill(g.pid, signal);
                else
                        (void) CH.quit(g.vmm, on_reply, &r);
                ok(wait_for(&g, g.exited && (key || signal || r.n > 0)), "it ends: %s%d%s", key ?: "signal ", signal,
                   paused ? ", paused" : "");
                is_int(g.status, status, "… with its status");
                is_int(g.n[VMM_EVENT_SHUTDOWN], status == 0, "… its event once");
                is_int(g.n[VMM_EVENT_GUEST_SHUTDOWN] + g.n[VMM_EVENT_GUEST_PANICKED] + g.n[VMM_EVENT_FAILED] +
                       g.n[VMM_EVENT_EXITED], 0, "… and no other");
                is_int(CH.exit_cause(g.status, last_words(&g)), status == 0 ? VMM_EVENT_EXITED : _VMM_EVENT_MAX, "… which says it all");
                if (!key && !signal)
                        is_int(r.error, 0, "… and quit was a success %s", r.message);
                is_int(refused(&g, CH.pause, &r), -EPIPE, "… after which there is nobody to ask");
        }
        guest_stop(&g);
}

static void test_guest_does(Definition *d) {
        Guest g;

        if (guest_up(&g, d)) {
                for (const char *key = "tr"; *key; key++) {
                        forget(&g);
                        type(&g, (char[]) { *key, 0 });
                        ok(wait_for(&g, strstr(g.console, "TINY-UP") && g.n[VMM_EVENT_GUEST_RESET]), "'%c': the guest starts anew", *key);
                        is_int(g.n[VMM_EVENT_GUEST_RESET], 1, "… by itself, once");
                        is_int(g.state, VMM_STATE_RUNNING, "… and it runs");
                }
                forget(&g);
                type(&g, "p");
                ok(wait_for(&g, g.n[VMM_EVENT_GUEST_PANICKED]), "a panic is told");
                is_int(g.state, VMM_STATE_FAILED, "… as a failure");
                is_int(g.n[VMM_EVENT_GUEST_PANICKED], 1, "… once");
                ok(!g.exited, "… and the VMM lives");
                call(&g, CH.quit, "quit");
                ok(wait_for(&g, g.exited), "… ends it");
        }
        guest_stop(&g);
}

/* Without anything of ours */
static int raw_put(const char *path) {
        _cleanup_free_ char *request = strjoinf("PUT /api/v1/%s HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", path);
        _cleanup_close_ int fd = unix_connect(sock, SOCK_STREAM);
        char answer[4096];
        ssize_t n;

        if (fd < 0 || !request)
                return -errno;
        (void) fcntl(fd, F_SETFL, 0);
        if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0)
                return -errno;
        n = recv(fd, answer, sizeof answer - 1, 0);
        answer[MAX(n, 0)] = 0;
        return startswith(answer, "HTTP/1.1 ") ? atoi(answer + 9) : -EBADMSG;
}

static void disconnect(Guest *g) {
        g->vmm->ops->free(TAKE_PTR(g->vmm));
        forget(g);
}

static void test_clients(Definition *d) {
        Guest g;

        if (guest_up(&g, d)) {
                disconnect(&g);
                type(&g, "r");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "with no client the guest resets");
                is_int(raw_put("vm.pause"), 204, "… and somebody pauses it");
                ok(guest_connect(&g) && wait_for(&g, g.n[VMM_EVENT_CONNECTED]), "the next client");
                is_int(g.state, VMM_STATE_PAUSED, "… finds it paused");
                is_int(g.n[VMM_EVENT_PAUSED] + g.n[VMM_EVENT_RUNNING], 0, "… which is no event");
                ok(wait_for(&g, g.n[VMM_EVENT_GUEST_RESET] == 1), "… and hears of the reset");

                is_int(raw_put("vm.resume"), 204, "somebody resumes it");
                ok(wait_for(&g, g.n[VMM_EVENT_RUNNING] == 1), "… which is told");
                call(&g, CH.resume, "… and resume does no harm");
                is_int(raw_put("vm.pause"), 204, "somebody pauses it");
                call(&g, CH.pause, "… and pause does no harm");
                is_int(g.n[VMM_EVENT_PAUSED], 1, "… and is told once");
                disconnect(&g);

                ok(guest_connect(&g) && wait_for(&g, g.n[VMM_EVENT_CONNECTED]), "one was killed while it was paused: the next");
                is_int(g.state, VMM_STATE_PAUSED, "… finds it so");
                call(&g, CH.resume, "… and resumes it");
                type(&g, "x");
                ok(wait_for(&g, strchr(g.console, 'x')), "… so that it answers");
        }
        guest_stop(&g);
}

/* More than the FIFO holds while nobody reads it */
static void test_overflow(Definition *d) {
        bool good = true;
        Guest g;

        if (guest_up(&g, d)) {
                disconnect(&g);
                for (unsigned i = 0; i < 200; i++)
                        good = good && raw_put("vm.pause") == 204 && raw_put("vm.resume") == 204;
                ok(good && raw_put("vm.pause") == 204, "paused and resumed 200 times with no client, then paused");
                ok(guest_connect(&g) && wait_for(&g, g.n[VMM_EVENT_CONNECTED]), "… the next client");
                is_int(g.state, VMM_STATE_PAUSED, "… finds it paused");
                call(&g, CH.resume, "… resumes");
                is_int(g.state, VMM_STATE_RUNNING, "… it runs");
                call(&g, CH.pause, "… pauses");
                is_int(g.state, VMM_STATE_PAUSED, "… and it stands");
                call(&g, CH.quit, "quit");
                ok(wait_for(&g, g.exited), "… ends it");
        }
        guest_stop(&g);
}

/* By somebody who speaks to the API himself */
static void test_shut_down(Definition *d) {
        Guest g;

        if (guest_up(&g, d)) {
                is_int(raw_put("vm.shutdown"), 204, "somebody shuts the VM down");
                ok(wait_for(&g, g.n[VMM_EVENT_GUEST_SHUTDOWN] && g.exited), "… which is told, and ends the VMM");
                is_int(g.n[VMM_EVENT_GUEST_SHUTDOWN], 1, "… once");
                is_int(g.status, 0, "… in good order");
        }
        guest_stop(&g);
}

static void test_vsock(Definition *d) {
        int fd;
        Guest g;

        d->vsock = true;
        if (guest_up(&g, d)) {
                fd = unix_connect(vsock, SOCK_STREAM);
                ok(fd >= 0, "its vsock can be connected to");
                safe_close(fd);
                call(&g, CH.reset, "reset");
                fd = unix_connect(vsock, SOCK_STREAM);
                ok(fd >= 0, "… also then");
                safe_close(fd);
                call(&g, CH.quit, "quit");
                ok(wait_for(&g, g.exited), "it ends");
                ok(access(vsock, F_OK) < 0, "… and the socket is gone");
        }
        guest_stop(&g);
        d->vsock = false;
}

static bool make_images(const char *raw, const char *qcow2) {
        _cleanup_free_ char *command = strjoinf("rm -f '%s' '%s' && qemu-img create -q -f raw '%s' 4M && qemu-img create -q -f qcow2 '%s' 8M",
                                                raw, qcow2, raw, qcow2);

        return system(command) == 0;
}

static void boot_fails(Definition *d, const char *words, const char *what) {
        Guest g;
        Reply r;

        guest_spawn(&g, d);
        ok(boot(&g, &r) == -EREMOTEIO && strstr(r.message, words), "%s: the boot fails: %s", what, r.message);
        is_int(g.n[VMM_EVENT_RUNNING], 0, "… the guest has not run");
        call(&g, CH.quit, "quit");
        ok(wait_for(&g, g.exited), "… ends it");
        is_int(g.status, 0, "… in good order");
        guest_stop(&g);
}

static void test_disks(Definition *d) {
        char raw[96], qcow2[96];
        Disk disks[] = {
                { .name = (char *) "disk0", .path = raw },
                { .name = (char *) "data", .path = qcow2, .format = DISK_QCOW2 },
                { .name = (char *) "a234567890123456", .path = bios, .readonly = true },
        };
        Reply r = {};
        Guest g;

        snprintf(raw, sizeof raw, "%s/a,b %%.img", directory);
        snprintf(qcow2, sizeof qcow2, "%s/q,\"w.img", directory);
        if (!make_images(raw, qcow2)) {
                skip("disks", "qemu-img is missing");
                return;
        }

        d->disks = disks;
        d->n_disks = ELEMENTSOF(disks);
        if (guest_up(&g, d)) {
                unsigned found = 0;

                if (CH.counters(g.vmm, on_counters, &r) < 0 || !wait_for(&g, r.n > 0))
                        r.error = -EIO;
                is_int(r.error, 0, "counters");
                is_int(r.n_counters, 12, "… four a disk");
                for (size_t i = 0; i < r.n_counters; i++)
                        found += streq(r.counters[i].name, "disk0.ReadBytes") || streq(r.counters[i].name, "data.WriteOps") ||
                                streq(r.counters[i].name, "a234567890123456.ReadOps");
                is_int(found, 3, "… by their names");
                forget(&g);
                call(&g, CH.reset, "reset");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… starts the guest anew");

                if (truncate(raw, 0) < 0)
                        abort();
                is_int(refused(&g, CH.reset, &r), -EREMOTEIO, "a reset that can't be: %s", r.message);
                ok(wait_for(&g, g.n[VMM_EVENT_FAILED]), "… leaves no guest, which is told");
                is_int(g.state, VMM_STATE_FAILED, "… as a failure");
                call(&g, CH.quit, "quit");
                ok(wait_for(&g, g.exited), "it ends");
        }
        guest_stop(&g);

        (void) make_images(raw, qcow2);
        disks[0].format = DISK_QCOW2;
        boot_fails(d, "type", "an image of another format");
        disks[0].format = DISK_RAW;
        disks[2] = disks[0];
        disks[2].name = (char *) "again";
        boot_fails(d, "locked", "an image twice");
        d->disks = NULL;
        d->n_disks = 0;
        (void) unlink(raw);
        (void) unlink(qcow2);
}

/* As many as are let through, and no more fit in */
static void test_many_disks(Definition *d) {
        static char paths[30][64], names[30][8];
        Disk disks[30];
        Guest g;

        for (size_t i = 0; i < ELEMENTSOF(disks); i++) {
                int fd;

                snprintf(paths[i], sizeof paths[i], "%s/%zu.img", directory, i);
                snprintf(names[i], sizeof names[i], "d%zu", i);
                fd = open(paths[i], O_RDWR|O_CREAT|O_CLOEXEC, 0600);
                if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
                        abort();
                safe_close(fd);
                disks[i] = (Disk) { .name = names[i], .path = paths[i] };
        }
        d->disks = disks;
        d->n_disks = ELEMENTSOF(disks);
        is_int((CH.check)(d, "", NULL), -EOPNOTSUPP, "30 disks are refused");
        d->n_disks--;
        if (guest_up(&g, d))
                call(&g, CH.quit, "29 disks: quit");
        guest_stop(&g);
        d->disks = NULL;
        d->n_disks = 0;
        for (size_t i = 0; i < ELEMENTSOF(disks); i++)
                (void) unlink(paths[i]);
}

/* What is refused before is refused by it as well. */
static void test_cmdline(void) {
        Definition d = { .kernel = elf, .cmdline = (char *) "name=??" };
        Guest g;
        Reply r;

        guest_spawn(&g, &d);
        memcpy(strstr(g.config, "??"), "\xc3\xa4", 2);
        ok(boot(&g, &r) == -EREMOTEIO && strstr(r.message, "non-printable ASCII"), "a command line that is not ASCII: %s", r.message);
        guest_stop(&g);
        d.cmdline = (char *) "name=\xc3\xa4";
        is_int((CH.check)(&d, "", NULL), -EOPNOTSUPP, "… is refused before");
}

static void test_refusals(Definition *d) {
        Definition bad = { .kernel = bios };
        Guest g;
        Reply r;

        boot_fails(&bad, "Invalid bzImage", "a kernel that is none");
        test_cmdline();

        guest_spawn(&g, d);
        is_int(refused(&g, CH.pause, &r), -EREMOTEIO, "pause before the boot: %s", r.message);
        is_str(r.message, "Error from API: The VM could not be paused: VM is not running", "… in its words");
        is_int(refused(&g, CH.reset, &r), -EREMOTEIO, "… reset: %s", r.message);
        is_int(refused(&g, CH.power_button, &r), -EREMOTEIO, "… power button: %s", r.message);
        is_int(g.n[VMM_EVENT_POWER_BUTTON] + g.n[VMM_EVENT_FAILED], 0, "… which is told nobody");
        is_int(boot(&g, &r), 0, "boot");
        is_int(boot(&g, &r), -EREMOTEIO, "… again: %s", r.message);
        ok(strstr(r.message, "VM is already created"), "… is refused");
        guest_stop(&g);
}

static void test_kvm_error(Definition *d) {
        Guest g;

        if (guest_up(&g, d)) {
                type(&g, "E");
                ok(wait_for(&g, g.exited), "KVM gives up: it ends");
                is_int(g.status, 0, "… in good order, it says");
                is_int(CH.exit_cause(g.status, last_words(&g)), VMM_EVENT_FAILED, "… and its last words say more");
        }
        guest_stop(&g);
}

/* The real one has a thread for its events, which may be slower than its answers. */
static void test_late_events(void) {
        Definition d = { .kernel = elf, .cmdline = (char *) "model.late=rebooted" };
        Guest g;

        if (guest_up(&g, &d)) {
                for (unsigned i = 0; i < 3; i++) {
                        g.n_console = 0;
                        call(&g, CH.reset, "reset");
                        ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest starts anew");
                }
                call(&g, CH.pause, "pause, which tells what came late");
                is_int(g.n[VMM_EVENT_GUEST_RESET], 0, "resets of our own that are told of late are not the guest's");
                call(&g, CH.resume, "resume");
                type(&g, "r");
                ok(wait_for(&g, g.n[VMM_EVENT_GUEST_RESET]), "… one of the guest's is");
        }
        guest_stop(&g);
}

/* What the real one can't be brought to */
static void test_model(void) {
        Definition d = { .kernel = elf };
        Reply r = {}, second = {};
        Guest g;

        test_late_events();

        d.cmdline = (char *) "model.dies=vm.boot";
        guest_spawn(&g, &d);
        is_int(boot(&g, &r), -EPIPE, "it dies while it boots");
        ok(wait_for(&g, g.exited), "… and is seen");
        guest_stop(&g);

        d.cmdline = (char *) "model.slow=vm.pause:0.5 model.slow=vm.resume:0.2";
        if (guest_up(&g, &d)) {
                r = (Reply) {};
                (void) CH.pause(g.vmm, on_reply, &r);
                (void) CH.resume(g.vmm, on_reply, &second);
                ok(wait_for(&g, r.n > 0), "a slow pause");
                is_int(second.n, 0, "… the resume behind it waits");
                is_int(r.error, 0, "… is done");
                ok(wait_for(&g, second.n > 0), "… and so is that");
                is_int(second.error, 0, "… well");
                is_int(g.state, VMM_STATE_RUNNING, "… and it runs");
        }
        guest_stop(&g);

        d.cmdline = (char *) "model.mute=vm.pause";
        if (guest_up(&g, &d)) {
                r = second = (Reply) {};
                (void) CH.pause(g.vmm, on_reply, &r);
                (void) CH.quit(g.vmm, on_reply, &second);
                ok(wait_for(&g, r.n > 0 && second.n > 0), "one that does not answer");
                is_int(r.error, -ETIMEDOUT, "… is not waited for for ever");
                is_int(second.error, -ETIMEDOUT, "… nor is what waits behind it");
                type(&g, "x");
                ok(wait_for(&g, strchr(g.console, 'x')), "… while the guest runs on");
        }
        guest_stop(&g);
}

static void test_all(const char *path) {
        Definition d = { .kernel = elf, .cmdline = (char *) "a,b=\"c\" d" };

        program = path;
        model = streq(path, MODEL);
        printf("# %s\n", path);
        test_life(&d);
        test_end(&d, "q", 0, false, 0);
        test_end(&d, NULL, 0, false, 0);
        test_end(&d, NULL, 0, true, 0);
        test_end(&d, NULL, SIGTERM, false, 0);
        test_end(&d, NULL, SIGTERM, true, 0);
        test_end(&d, NULL, SIGKILL, false, SIGKILL);
        test_guest_does(&d);
        test_clients(&d);
        test_overflow(&d);
        test_shut_down(&d);
        test_vsock(&d);
        test_disks(&d);
        test_many_disks(&d);
        test_refusals(&d);
        test_kvm_error(&d);
        if (model)
                test_model();
}

/* VMUNIT_TEST_CLOUD_HYPERVISOR, else one in the PATH; NULL: none but the model */
static char *find_program(void) {
        const char *path = getenv("VMUNIT_TEST_CLOUD_HYPERVISOR");

        if (path)
                return strdup(path);
        for (const char *p = strempty(getenv("PATH")); *p; p += strcspn(p, ":"), p += *p == ':') {
                char *s = strjoinf("%.*s/cloud-hypervisor", (int) strcspn(p, ":"), p);

                if (s && access(s, X_OK) == 0)
                        return s;
                free(s);
        }
        return NULL;
}

static void test_real(void) {
        _cleanup_free_ char *path = find_program();

        if (!path)
                skip("the real Cloud Hypervisor", "none is found; VMUNIT_TEST_CLOUD_HYPERVISOR= names one");
        else if (access("/dev/kvm", R_OK|W_OK) < 0)
                skip("the real Cloud Hypervisor", "/dev/kvm does not open");
        else
                test_all(path);
}

static bool prepare(void) {
        _cleanup_free_ char *command = NULL;

        if (!mkdtemp(directory))
                return false;
        snprintf(elf, sizeof elf, "%s/tiny.elf", directory);
        snprintf(bios, sizeof bios, "%s/tiny.bin", directory);
        snprintf(sock, sizeof sock, "%s/api", directory);
        snprintf(fifo, sizeof fifo, "%s/" VMM_EVENTS, directory);
        snprintf(vsock, sizeof vsock, "%s/vsock", directory);
        command = strjoinf(TEST_DIR "/guests/build '%s'", directory);
        return system(command) == 0;
}

int main(void) {
        _cleanup_free_ char *remove = NULL;

        signal(SIGPIPE, SIG_IGN);
        if (!prepare()) {
                skip("Cloud Hypervisor", "the tiny guest could not be built");
                return done_testing();
        }
        test_all(MODEL);
        test_real();

        remove = strjoinf("rm -r '%s'", directory);
        if (!remove || system(remove) != 0)
                printf("# %s stays\n", directory);
        return done_testing();
}
