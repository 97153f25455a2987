/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/disk-check.h"
#include "vmm/qmp.h"
#include "vmm/vmm.h"

#include "open-plan.h"
#include "tap.h"

/* The real QEMU, started with the planned arguments and fds as in a VM's scope, and the tiny guest in it. */

#define PROGRAM "/usr/bin/qemu-system-x86_64"
#define DEADLINE_USEC (20 * USEC_PER_SEC)

typedef struct Guest {
        sd_event *event;
        VMM *vmm;
        pid_t pid;
        int listener, input, output, errors;
        char console[64 * 1024];
        size_t n_console;
        bool deaf;                      /* don't read the console */

        bool exited;
        int status;
        unsigned n[_VMM_EVENT_MAX];     /* events */
        VMMState state;
        int error;
} Guest;

typedef struct Reply {
        unsigned n;
        int error;
        char message[256];
        VMMCounter counters[64];
        size_t n_counters;
} Reply;

static char directory[] = "/tmp/test-qemu.XXXXXX", elf[64], bios[64], sock[64];
static bool kvm;

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
        n = g->deaf ? -1 : read(g->output, g->console + g->n_console, sizeof g->console / 2);
        if (n > 0)
                g->n_console += (size_t) n;
        g->console[g->n_console] = 0;

        if (!g->exited && waitpid(g->pid, &g->status, WNOHANG) == g->pid) {
                g->exited = true;
                if (g->vmm)
                        vmm_ops(BACKEND_QEMU)->drain(g->vmm);
        }
}

#define wait_for(g, condition)                                          \
        ({                                                              \
                uint64_t _end = now_usec() + DEADLINE_USEC;             \
                while (!(condition) && now_usec() < _end)               \
                        turn(g);                                        \
                (condition);                                            \
        })

static void print_errors(Guest *g) {
        char text[4096];
        ssize_t n = pread(g->errors, text, sizeof text - 1, 0);

        if (n > 0) {
                text[n] = 0;
                for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
                        printf("# %s\n", line);
        }
}

static int listen_for_network(void) {
        _cleanup_free_ char *path = strjoinf("%s/network", directory);

        return path ? unix_listen(path, SOCK_STREAM) : -ENOMEM;
}

/* In the child: what the plan wants to find, under its numbers. */
static _Noreturn void execute(Guest *g, const LaunchPlan *plan, int in, int out) {
        int high[64];

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (size_t i = 0; i < plan->n_fds; i++) {
                const LaunchFd *f = plan->fds + i;
                int fd = f->type == LAUNCH_FD_API ? g->listener : f->type == LAUNCH_FD_NETWORK ? listen_for_network() :
                        open(f->path, (f->writable ? O_RDWR : O_RDONLY)|O_CLOEXEC);

                if (fd < 0)
                        _exit(99);
                high[i] = fcntl(fd, F_DUPFD_CLOEXEC, 200);
        }
        dup2(in, 0);
        dup2(out, 1);
        dup2(g->errors, 2);
        for (size_t i = 0; i < plan->n_fds; i++)
                dup2(high[i], VMM_FD_FIRST + (int) i);
        execv(PROGRAM, plan->argv);
        _exit(98);
}

static bool guest_connect(Guest *g) {
        return qemu_ops.connect(g->event, directory, on_event, g, &g->vmm) >= 0;
}

static void guest_spawn(Guest *g, Definition *d) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        int in[2], out[2];

        *g = (Guest) { .listener = unix_listen(sock, SOCK_STREAM), .errors = memfd_create("stderr", MFD_CLOEXEC) };
        d->cpus = d->cpus ?: 1;
        d->memory = d->memory ?: 32 << 20;
        if (g->listener < 0 || sd_event_new(&g->event) < 0 || pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 ||
            (qemu_ops.check)(d, "", &error) < 0 ||
            qemu_ops.plan(&(LaunchParams) { .definition = d, .name = "a,b", .id = "9f0d0b06-4b3f-4d4a-8d4b-9e6f0a1b2c3d", .kvm = kvm },
                          &plan) < 0)
                abort();
        open_plan(plan, directory);
        if (!guest_connect(g))
                abort();

        g->pid = fork();
        if (g->pid == 0)
                execute(g, plan, in[0], out[1]);
        g->input = in[1];
        g->output = out[0];
        (void) fcntl(g->output, F_SETFL, O_NONBLOCK);
        (void) fcntl(g->input, F_SETFL, O_NONBLOCK);
        safe_close(in[0]);
        safe_close(out[1]);
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
        safe_close(g->listener);
        safe_close(g->input);
        safe_close(g->output);
        safe_close(g->errors);
        sd_event_unref(g->event);
}

static void type(Guest *g, const char *s) {
        if (write(g->input, s, strlen(s)) != (ssize_t) strlen(s))
                abort();
}

static int boot(VMM *v, vmm_reply_cb cb, void *userdata) {
        return qemu_ops.boot(v, NULL, cb, userdata);
}

static bool call(Guest *g, int (*f)(VMM *, vmm_reply_cb, void *), const char *what) {
        Reply r = {};

        if (f(g->vmm, on_reply, &r) < 0 || !wait_for(g, r.n > 0))
                return ok(false, "%s: no answer", what);
        return is_int(r.error, 0, "%s %s", what, r.message);
}

/* What the guest has said is forgotten, for the next look. */
static void forget(Guest *g) {
        g->n_console = 0;
        g->console[0] = 0;
        memset(g->n, 0, sizeof g->n);
}

static bool guest_up(Guest *g, Definition *d) {
        guest_spawn(g, d);
        if (!ok(wait_for(g, g->n[VMM_EVENT_CONNECTED] || g->exited) && !g->exited, "connected"))
                return false;
        is_int(g->state, VMM_STATE_NOT_STARTED, "… the guest has not run yet");
        is_str(g->console, "", "… nor said anything");
        if (!call(g, boot, "boot"))
                return false;
        is_int(g->state, VMM_STATE_RUNNING, "… it runs");
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
                call(&g, qemu_ops.pause, "pause");
                call(&g, qemu_ops.pause, "pause again");
                is_int(g.state, VMM_STATE_PAUSED, "… paused");
                is_int(g.n[VMM_EVENT_PAUSED], 1, "… with one event");
                call(&g, qemu_ops.resume, "resume");
                call(&g, qemu_ops.resume, "resume again");
                is_int(g.state, VMM_STATE_RUNNING, "… running");
                is_int(g.n[VMM_EVENT_RUNNING], 1, "… with one event");
        }
        type(&g, "hello");
        ok(wait_for(&g, strstr(g.console, "hello")), "the console echoes");

        forget(&g);
        call(&g, qemu_ops.reset, "reset");
        ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest starts anew");
        is_int(g.n[VMM_EVENT_GUEST_RESET], 0, "… not by itself");

        for (unsigned i = 0; i < 2; i++) {
                forget(&g);
                call(&g, qemu_ops.reboot, "reboot");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest starts anew");
                ok(strstr(g.console, "POWERBTN") != NULL, "… after the power button");
                is_int(g.n[VMM_EVENT_GUEST_SHUTDOWN], 0, "… and no shutdown is told");
                is_int(g.state, VMM_STATE_RUNNING, "… running");
        }

        forget(&g);
        call(&g, qemu_ops.power_button, "power button");
        ok(wait_for(&g, g.exited), "… QEMU ends");
        is_int(g.n[VMM_EVENT_GUEST_SHUTDOWN], 1, "… the guest has powered off");
        is_int(g.n[VMM_EVENT_POWER_BUTTON], 1, "… after the button");
        is_int(g.n[VMM_EVENT_DISCONNECTED], 1, "… disconnected");
        is_int(g.error, -EPIPE, "… as any end");
        is_int(g.status, 0, "… status 0");
        guest_stop(&g);
}

static void test_deaf(Definition *d) {
        Guest g;
        Reply r = {};

        if (guest_up(&g, d)) {
                type(&g, "s");
                (void) wait_for(&g, strstr(g.console, "s"));
                (void) qemu_ops.reboot(g.vmm, on_reply, &r);
                is_int(qemu_ops.reboot(g.vmm, on_reply, &r), -EBUSY, "one reboot at a time");
                ok(wait_for(&g, g.n[VMM_EVENT_POWER_BUTTON] > 0), "a deaf guest's button is pressed");
                qemu_ops.reboot_cancel(g.vmm);
                ok(wait_for(&g, r.n > 0), "the reboot is given up");
                is_int(r.error, -ECANCELED, "… canceled");

                forget(&g);
                call(&g, qemu_ops.reset, "reset of a deaf guest");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest starts anew");
                /* and may power off soon: QEMU keeps the button that was pressed before over the reset */
        }
        guest_stop(&g);
}

static void test_end(Definition *d, const char *key, int signal, VMMEvent event, int status) {
        Guest g;
        Reply r = {};

        if (guest_up(&g, d)) {
                if (key)
                        type(&g, key);
                else if (signal)
                        kill(g.pid, signal);
                else
                        (void) qemu_ops.quit(g.vmm, on_reply, &r);
                ok(wait_for(&g, g.exited && g.n[VMM_EVENT_DISCONNECTED]), "QEMU ends: %s%d", key ?: "signal ", signal);
                is_int(g.status, status, "… with its status");
                if (event < _VMM_EVENT_MAX)
                        is_int(g.n[event], 1, "… its event once");
                is_int(g.n[VMM_EVENT_GUEST_SHUTDOWN] + g.n[VMM_EVENT_GUEST_PANICKED] + g.n[VMM_EVENT_SHUTDOWN],
                        event < _VMM_EVENT_MAX, "… and no other");
                if (!key && !signal)
                        is_int(r.n == 1 ? r.error : -1, 0, "… and quit was a success");
        }
        guest_stop(&g);
}

static void test_guest_reset(Definition *d) {
        Guest g;

        if (guest_up(&g, d)) {
                forget(&g);
                type(&g, "t");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "a triple fault: the guest starts anew");
                ok(wait_for(&g, g.n[VMM_EVENT_GUEST_RESET]), "… by itself");
                is_int(g.n[VMM_EVENT_GUEST_RESET], 1, "… once");
                type(&g, "r");
                ok(wait_for(&g, strstr(strstr(g.console, "TINY-UP") + 1, "TINY-UP")), "'r' as well");
                is_int(g.state, VMM_STATE_RUNNING, "… and it runs");
        }
        guest_stop(&g);
}

static void test_clients(Definition *d) {
        VMM *first;
        Guest g;

        if (guest_up(&g, d)) {
                first = g.vmm;
                forget(&g);
                ok(guest_connect(&g), "a second client connects");
                first->ops->free(first);
                ok(wait_for(&g, g.n[VMM_EVENT_CONNECTED]), "… and is heard when the first has gone");
                is_int(g.state, VMM_STATE_RUNNING, "… the guest runs");
                call(&g, qemu_ops.pause, "pause");
                g.vmm->ops->free(TAKE_PTR(g.vmm));

                forget(&g);
                ok(guest_connect(&g) && wait_for(&g, g.n[VMM_EVENT_CONNECTED]), "a third one");
                is_int(g.state, VMM_STATE_PAUSED, "… finds it paused");
                is_int(g.n[VMM_EVENT_PAUSED], 0, "… which is no event");
                call(&g, qemu_ops.resume, "resume");
                close(TAKE_FD(g.input));
                g.input = -EBADF;
                call(&g, qemu_ops.pause, "the end of its input does not end QEMU: pause");
        }
        guest_stop(&g);
}

static void raw_ready(void *userdata) {
        *(bool *) userdata = true;
}

static void raw_event(void *userdata, const char *name, json_object *data) {
}

static void raw_disconnected(void *userdata, int error) {
}

/* What a daemon that died in a reboot leaves: QEMU stays when the guest powers off. */
static void test_takeover_in_reboot(Definition *d) {
        static const QMPHandlers handlers = { raw_ready, raw_event, raw_disconnected };
        _cleanup_(qmp_freep) QMP *q = NULL;
        bool ready = false;
        Guest g;

        if (guest_up(&g, d)) {
                g.vmm->ops->free(TAKE_PTR(g.vmm));
                ok(qmp_connect(g.event, sock, &handlers, &ready, &q) >= 0 && wait_for(&g, ready), "a bare client");
                (void) qmp_command(q, "set-action", json_tokener_parse("{\"shutdown\": \"pause\"}"), USEC_PER_SEC, NULL, NULL);
                (void) qmp_command(q, "system_powerdown", NULL, USEC_PER_SEC, NULL, NULL);
                ok(wait_for(&g, strstr(g.console, "POWERBTN")), "… presses the button and goes");
                turn(&g);
                q = qmp_free(q);

                forget(&g);
                ok(guest_connect(&g) && wait_for(&g, g.n[VMM_EVENT_CONNECTED]), "the next daemon");
                is_int(g.state, VMM_STATE_SHUTDOWN, "… finds the guest down, and QEMU");
                call(&g, qemu_ops.reset, "reset");
                call(&g, boot, "boot");
                ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest is back");
                type(&g, "q");
                ok(wait_for(&g, g.exited), "… and when it powers off now, QEMU ends");
                is_int(g.n[VMM_EVENT_GUEST_SHUTDOWN], 1, "… with its event");
        }
        guest_stop(&g);
}

static void test_slow_console(Definition *d) {
        static char text[4097];
        unsigned n = 0;
        Guest g;

        memset(text, 'x', sizeof text - 1);
        if (guest_up(&g, d)) {
                g.deaf = true;
                for (uint64_t end = now_usec() + 2 * USEC_PER_SEC; n < 40 && now_usec() < end; turn(&g))
                        n += write(g.input, text, sizeof text - 1) > 0;
                call(&g, qemu_ops.pause, "nobody reads the console: pause");
                call(&g, qemu_ops.resume, "… resume");
                g.deaf = false;
                forget(&g);
                ok(wait_for(&g, strstr(g.console, "xxx")), "… and it can be read");
                call(&g, qemu_ops.quit, "quit");
        }
        guest_stop(&g);
}

static bool make_images(char *raw, char *qcow2, char *backed) {
        _cleanup_free_ char *command = strjoinf(
                "qemu-img create -q -f raw '%s' 4M && qemu-img create -q -f qcow2 '%s' 8M && "
                "qemu-img create -q -f qcow2 -b '%s' -F raw '%s' 8M", raw, qcow2, raw, backed);

        return system(command) == 0;
}

/* As the launcher's opener does it. Gives the number of images that it rests on. */
static int check_image(const Definition *d, size_t i, const char *path) {
        _cleanup_(disk_files_freep) DiskFiles *files = NULL;
        int fd = open(path, O_RDONLY|O_CLOEXEC), r;
        uint8_t head[4096];
        ssize_t n = pread(fd, head, sizeof head, 0);
        struct stat st;

        if (fd < 0 || n < 0 || fstat(fd, &st) < 0 || disk_files_new(&files) < 0)
                return -errno;
        safe_close(fd);
        FileSeen seen = { .mode = st.st_mode, .dev = st.st_dev, .ino = st.st_ino, .head = head, .head_size = (size_t) n };
        r = disk_files_add(files, d, i, 0, &seen, NULL);
        return r < 0 ? r : (int) files->n_images;
}

static void test_disks(Definition *d) {
        char raw[96], qcow2[96], backed[96];
        Disk disks[] = {
                { .name = (char *) "disk0", .path = raw },
                { .name = (char *) "data", .path = qcow2, .format = DISK_QCOW2 },
                { .name = (char *) "iso", .path = elf, .readonly = true },
        };
        Forward forwards[] = { { (char *) "127.0.0.1", PROTOCOL_TCP, 0, 22 } };
        Network networks[] = { { (char *) "disk0", NETWORK_USER, forwards, 1 } };
        Disk bad = { .name = (char *) "bad", .path = backed, .format = DISK_QCOW2 };
        Definition other = { .disks = &bad, .n_disks = 1 };
        Reply r = {};
        Guest g;

        snprintf(raw, sizeof raw, "%s/a,b %%.img", directory);
        snprintf(qcow2, sizeof qcow2, "%s/q,\"w.img", directory);
        snprintf(backed, sizeof backed, "%s/backed.img", directory);
        if (!make_images(raw, qcow2, backed)) {
                skip("disks", "qemu-img is missing");
                return;
        }

        d->disks = disks;
        d->n_disks = ELEMENTSOF(disks);
        d->networks = networks;
        d->n_networks = 1;
        if (guest_up(&g, d)) {
                if (qemu_ops.counters(g.vmm, on_counters, &r) < 0 || !wait_for(&g, r.n > 0))
                        r.error = -EIO;
                is_int(r.error, 0, "counters");
                is_int(r.n_counters, 12, "… four a disk");
                is_str(r.counters[0].name, "disk0.ReadBytes", "… by their names");
                is_str(r.counters[7].name, "data.WriteOps", "… and in their order");
                call(&g, qemu_ops.quit, "quit");
                ok(wait_for(&g, g.exited), "it ends");
        }
        guest_stop(&g);
        d->disks = NULL;
        d->networks = NULL;
        d->n_disks = d->n_networks = 0;

        is_int(check_image(&(Definition) { .disks = disks, .n_disks = 3 }, 1, qcow2), 0, "a real qcow2 image is good");
        is_int(check_image(&other, 0, backed), 1, "one with a backing file tells which");
        (void) unlink(raw);
        (void) unlink(qcow2);
        (void) unlink(backed);
}

/* The firmware guest on q35. Under KVM without hardware support its triple fault is what KVM cannot emulate. */
static void test_q35(void) {
        Definition d = { .firmware = bios };
        Reply r = {};
        Guest g;

        if (!guest_up(&g, &d)) {
                guest_stop(&g);
                return;
        }
        forget(&g);
        call(&g, qemu_ops.reboot, "q35: reboot");
        ok(wait_for(&g, strstr(g.console, "TINY-UP")), "… the guest starts anew");
        forget(&g);
        type(&g, "t");
        (void) wait_for(&g, g.n[VMM_EVENT_FAILED] || strstr(g.console, "TINY-UP"));
        if (kvm && g.n[VMM_EVENT_FAILED]) {
                is_int(g.state, VMM_STATE_FAILED, "what KVM can't emulate is a failure");
                (void) qemu_ops.resume(g.vmm, on_reply, &r);
                ok(wait_for(&g, r.n > 0), "… after which resume");
                is_int(r.error, -EREMOTEIO, "… is refused: %s", r.message);
        } else
                ok(strstr(g.console, "TINY-UP") != NULL, "a triple fault resets");
        call(&g, qemu_ops.quit, "quit");
        ok(wait_for(&g, g.exited), "it ends");
        guest_stop(&g);
}

static void test_bad_start(Definition *d) {
        Guest g;
        Disk disk = { .name = (char *) "d", .path = elf, .format = DISK_QCOW2, .readonly = true };

        d->disks = &disk;
        d->n_disks = 1;
        guest_spawn(&g, d);
        ok(wait_for(&g, g.exited), "an image of another format: QEMU ends at once");
        is_int(WEXITSTATUS(g.status), 1, "… with status 1");
        safe_close(TAKE_FD(g.listener));
        g.listener = -EBADF;
        ok(wait_for(&g, g.n[VMM_EVENT_DISCONNECTED]), "… and the connection with the socket");
        is_int(g.n[VMM_EVENT_CONNECTED], 0, "… that has never been one");
        ok(lseek(g.errors, 0, SEEK_END) > 0, "… and there are last words");
        g.vmm->ops->free(TAKE_PTR(g.vmm));
        guest_stop(&g);
        d->disks = NULL;
        d->n_disks = 0;
}

static void test_all(void) {
        Definition d = { .kernel = elf, .cmdline = (char *) "a,b=\"c\" d" };

        printf("# accel %s\n", kvm ? "kvm" : "tcg");
        test_life(&d);
        test_deaf(&d);
        test_end(&d, "q", 0, VMM_EVENT_GUEST_SHUTDOWN, 0);
        test_end(&d, "p", 0, VMM_EVENT_GUEST_PANICKED, 1 << 8);
        test_end(&d, NULL, 0, VMM_EVENT_SHUTDOWN, 0);
        test_end(&d, NULL, SIGTERM, VMM_EVENT_SHUTDOWN, 0);
        test_end(&d, NULL, SIGKILL, _VMM_EVENT_MAX, SIGKILL);
        test_guest_reset(&d);
        test_clients(&d);
        test_takeover_in_reboot(&d);
        test_slow_console(&d);
        test_disks(&d);
        test_q35();
        test_bad_start(&d);
}

static bool prepare(void) {
        _cleanup_free_ char *command = NULL;

        if (!mkdtemp(directory))
                return false;
        snprintf(elf, sizeof elf, "%s/tiny.elf", directory);
        snprintf(bios, sizeof bios, "%s/tiny.bin", directory);
        snprintf(sock, sizeof sock, "%s/qmp", directory);
        command = strjoinf(TEST_DIR "/guests/build '%s'", directory);
        return system(command) == 0;
}

int main(void) {
        _cleanup_free_ char *remove = NULL;
        int fd;

        signal(SIGPIPE, SIG_IGN);
        if (access(PROGRAM, X_OK) < 0) {
                skip("QEMU", PROGRAM " is missing");
                return done_testing();
        }
        if (!prepare()) {
                skip("QEMU", "the tiny guest could not be built");
                return done_testing();
        }

        test_all();
        fd = open("/dev/kvm", O_RDWR|O_CLOEXEC);
        if (fd >= 0) {
                safe_close(fd);
                kvm = true;
                test_all();
        } else
                skip("KVM", "/dev/kvm does not open");

        remove = strjoinf("rm -r '%s'", directory);
        if (!remove || system(remove) != 0)
                printf("# %s stays\n", directory);
        return done_testing();
}
