/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <limits.h>
#include <linux/loop.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include "launch-bed.h"

typedef struct Got {
        int done, error, fd;
        OpenReply open;
        ProbeReply probe;
        LaunchCall *call;
        bool free_inside;
} Got;

static void finish(Got *g, int error) {
        g->done++;
        g->error = error;
        if (g->free_inside)
                g->call = launch_call_free(g->call);
}

static void on_open(void *userdata, int error, int fd, const OpenReply *reply) {
        Got *g = userdata;

        g->fd = fd;
        if (reply)
                g->open = *reply;
        finish(g, error);
}

static void on_probe(void *userdata, int error, const ProbeReply *reply) {
        Got *g = userdata;

        if (reply)
                g->probe = *reply;
        finish(g, error);
}

static int try_open_as(const char *path, uid_t uid, unsigned flags, Got *g) {
        int r;

        *g = (Got) { .fd = -EBADF };
        r = launch_open(loop, path, uid, flags, PATIENCE, on_open, g, &g->call);
        if (r < 0)
                return r;
        run_until(&g->done, 1);
        launch_call_free(g->call);
        return g->error;
}

static void is_error(const char *path, unsigned flags, int want, const char *what) {
        Got g;
        int r = try_open_as(path, 0, flags, &g);

        is_int(r, want, "open: %s", what);
        is_int(g.fd, -EBADF, "open: %s: no fd", what);
}

static void test_open(void) {
        struct stat st;
        Got g;
        char byte;

        bed_write("file", "content", 0600);
        is_int(try_open_as(bed_path("file"), 0, 0, &g), 0, "open: a file");
        is_int(g.open.size, 7, "its size");
        check(S_ISREG(g.open.mode) && g.open.head_size == 7 && memcmp(g.open.head, "content", 7) == 0);
        must(fstat(g.fd, &st) == 0);
        check(g.open.dev == st.st_dev && g.open.ino == st.st_ino);
        is_int(read(g.fd, &byte, 1), 1, "it reads");
        check(write(g.fd, "x", 1) < 0);
        check((fcntl(g.fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE)) == O_RDONLY);
        check(fcntl(g.fd, F_GETFD) & FD_CLOEXEC);
        safe_close(g.fd);

        is_int(try_open_as(bed_path("file"), 0, LAUNCH_OPEN_WRITE, &g), 0, "open: to write");
        is_int(pwrite(g.fd, "C", 1, 0), 1, "it writes");
        safe_close(g.fd);

        must(symlink("file", bed_path("link")) == 0);
        is_int(try_open_as(bed_path("link"), 0, 0, &g), 0, "open: a link is followed");
        safe_close(g.fd);

        is_int(try_open_as(bed, 0, LAUNCH_OPEN_DIRECTORY, &g), 0, "open: a directory, asked for");
        check(S_ISDIR(g.open.mode));
        safe_close(g.fd);
}

static void test_open_errors(void) {
        char deep[PATH_MAX + 10], s[PATH_MAX];
        int sock;

        is_error(bed_path("nothing"), 0, -ENOENT, "not there");
        is_error(bed_path("file/below"), 0, -ENOTDIR, "below a file");
        is_error(bed, 0, -EISDIR, "a directory");
        is_error(bed_path("file"), LAUNCH_OPEN_DIRECTORY, -ENOTDIR, "no directory");
        is_error(bed_path("file"), LAUNCH_OPEN_DIRECTORY | LAUNCH_OPEN_WRITE, -EINVAL, "a directory to write");
        is_error(bed_path("file"), 1U << 7, -EINVAL, "an unknown flag");
        is_error("file", 0, -EINVAL, "a relative path");
        is_error("", 0, -EINVAL, "an empty path");
        is_error("/dev/null", 0, -ENOTBLK, "a character device");

        must(symlink("loop", bed_path("loop")) == 0);
        is_error(bed_path("loop"), 0, -ELOOP, "a loop of links");
        is_error("/proc/self/exe", 0, -ELOOP, "the opener's own program");
        is_error("/dev/fd/0", 0, -ELOOP, "what the opener has open");
        (void) snprintf(s, sizeof(s), "/proc/%d/root%s", (int) getpid(), bed_path("file"));
        is_error(s, 0, -ELOOP, "a way past directories");
        is_error("/proc/self/maps", 0, -EMEDIUMTYPE, "what the kernel tells of the opener");
        must(mkfifo(bed_path("fifo"), 0600) == 0);
        is_error(bed_path("fifo"), 0, -ESPIPE, "a FIFO");
        is_error(bed_path("fifo"), LAUNCH_OPEN_WRITE, -ESPIPE, "a FIFO to write");
        sock = unix_listen(bed_path("socket"), SOCK_STREAM);
        is_error(bed_path("socket"), 0, -ENXIO, "a socket");
        safe_close(sock);

        memset(deep, 'a', sizeof(deep));
        deep[0] = '/';
        deep[PATH_MAX] = 0;
        is_error(deep, 0, -ENAMETOOLONG, "a path too long");
        memset(s, '/', sizeof(s));
        s[PATH_MAX - 1] = 0;
        is_error(s, 0, -EISDIR, "the longest path");
}

static void test_locks(void) {
        Got writer, reader, other;

        is_int(try_open_as(bed_path("file"), 0, LAUNCH_OPEN_WRITE | LAUNCH_OPEN_LOCK, &writer), 0, "lock: to write");
        is_error(bed_path("file"), LAUNCH_OPEN_WRITE | LAUNCH_OPEN_LOCK, -EAGAIN, "locked by a writer: to write");
        is_error(bed_path("file"), LAUNCH_OPEN_LOCK, -EAGAIN, "locked by a writer: to read");
        is_int(try_open_as(bed_path("file"), 0, LAUNCH_OPEN_WRITE, &other), 0, "… who looks for no lock may");
        safe_close(other.fd);
        safe_close(writer.fd);
        is_int(try_open_as(bed_path("file"), 0, LAUNCH_OPEN_LOCK, &reader), 0, "lock: to read, when the writer has closed it");
        is_int(try_open_as(bed_path("file"), 0, LAUNCH_OPEN_LOCK, &other), 0, "… two of them");
        is_error(bed_path("file"), LAUNCH_OPEN_WRITE | LAUNCH_OPEN_LOCK, -EAGAIN, "locked by readers: to write");
        safe_close(reader.fd);
        safe_close(other.fd);
        is_error(bed_path("file"), LAUNCH_OPEN_DIRECTORY | LAUNCH_OPEN_LOCK, -EINVAL, "a directory to lock");
}

static void test_owner(void) {
        Got g;

        bed_write("secret", "x", 0600);
        bed_write("open", "x", 0644);
        is_int(try_open_as(bed_path("secret"), 65534, 0, &g), -EACCES, "another owner: not his file");
        is_int(try_open_as(bed_path("open"), 65534, 0, &g), 0, "another owner: readable by all");
        safe_close(g.fd);
        is_int(try_open_as(bed_path("open"), 65534, LAUNCH_OPEN_WRITE, &g), -EACCES, "another owner: not to write");
        is_int(try_open_as(bed_path("open"), 3999999999U, 0, &g), -ESRCH, "an owner that nobody knows");
        is_int(try_open_as(bed_path("open"), (uid_t) -1, 0, &g), -EINVAL, "uid -1");
}

static void test_probe(void) {
        Got g = {};

        must(launch_probe(loop, PROGRAM_QEMU, true, PATIENCE, on_probe, &g, &g.call) == 0);
        run_until(&g.done, 1);
        is_int(g.error, 0, "probe");
        is_str(g.probe.version, "Fake?VMM 1.0", "the first line, made harmless");
        is_str(g.probe.path, bed_path("fake-vmm"), "the path");
        check(g.probe.mtime_usec > 0);
        is_int(g.probe.kvm_error == 0, access("/dev/kvm", R_OK | W_OK) == 0, "whether KVM opens");
        launch_call_free(g.call);

        g = (Got) {};
        must(launch_probe(loop, (Program) 7, false, PATIENCE, on_probe, &g, &g.call) == 0);
        run_until(&g.done, 1);
        is_int(g.error, -EINVAL, "probe: no such program");
        launch_call_free(g.call);
}

static void try_program(const char *name, int want, const char *what) {
        Got g = {};

        must(launch_probe(loop, PROGRAM_QEMU, false, PATIENCE, on_probe, &g, &g.call) == 0);
        run_until(&g.done, 1);
        is_int(g.error, want, "a program %s", what);
        launch_call_free(g.call);
}

/* Which is asked by nobody: whoever may write the configuration still runs nothing as root. */
static void try_version(const char *what) {
        Got g = {};

        must(launch_probe(loop, PROGRAM_QEMU, true, PATIENCE, on_probe, &g, &g.call) == 0);
        run_until(&g.done, 1);
        is_str(g.probe.version, "Fake?VMM 1.0", "a program %s", what);
        launch_call_free(g.call);
}

static void test_program(void) {
        must(chmod(bed_path("fake-vmm"), 0722) == 0);
        try_program("fake-vmm", -EPERM, "that others may write");
        must(chown(bed_path("fake-vmm"), 65534, 0) == 0 && chmod(bed_path("fake-vmm"), 0755) == 0);
        try_program("fake-vmm", -EPERM, "of another owner");
        must(chown(bed_path("fake-vmm"), 0, 0) == 0 && chmod(bed_path("fake-vmm"), 0600) == 0);
        try_program("fake-vmm", -EACCES, "that is none");
        must(chmod(bed_path("fake-vmm"), 0700) == 0);
        try_program("fake-vmm", -EACCES, "that is one for its owner alone");
        must(chmod(bed_path("fake-vmm"), 0755) == 0 && chmod(bed, 0777) == 0);
        try_program("fake-vmm", -EPERM, "in a directory that others may write");
        must(chmod(bed, 0755) == 0);
        try_program("fake-vmm", 0, "as it should be");
        try_version("… and says what it is");
        must(chmod(bed, 0700) == 0);
        try_version("below a directory that others may not enter");
        must(chmod(bed, 0755) == 0);
}

/* A child of what is running behind a probe that hangs; -1: it has not come so far */
static pid_t hung_pid(void) {
        char *text = NULL;
        pid_t pid = -1;

        if (read_file_all(bed_path("hang-vmm.pid"), 64, &text, NULL) == 0 && strchr(text, '\n'))
                pid = atoi(text);
        free(text);
        return pid;
}

static void test_cancel(void) {
        Got g = {}, other = {};

        must(launch_probe(loop, PROGRAM_CLOUD_HYPERVISOR, true, PATIENCE, on_probe, &g, &g.call) == 0);
        is_int(g.done, 0, "no callback from within the call");
        other.free_inside = true;
        must(launch_open(loop, bed_path("file"), 0, 0, PATIENCE, on_open, &other, &other.call) == 0);
        run_until(&other.done, 1);
        is_int(other.error, 0, "freed in its callback");
        check(!other.call);
        safe_close(other.fd);
        launch_call_free(g.call);
        is_int(g.done, 0, "a cancelled call calls nobody");
}

static pid_t start_hanging(Got *g) {
        *g = (Got) {};
        bed_write("hang-vmm.pid", "", 0666); /* it is nobody */
        must(launch_probe(loop, PROGRAM_CLOUD_HYPERVISOR, true, PATIENCE, on_probe, g, &g->call) == 0);
        (void) eventually(hung_pid() > 0);
        return hung_pid();
}

static void on_vsock(void *userdata, int error, int fd) {
        Got *g = userdata;

        g->fd = fd;
        finish(g, error);
}

static int try_vsock(uint32_t cid, Got *g) {
        *g = (Got) { .fd = -EBADF };
        must(launch_vsock(loop, cid, 1024, PATIENCE, on_vsock, g, &g->call) == 0);
        run_until(&g->done, 1);
        launch_call_free(g->call);
        return g->error;
}

/* No guest can be had here, so a connection that is made is seen elsewhere. */
static void test_vsock(void) {
        Got g;

        for (uint32_t cid = 0; cid < 3; cid++)
                is_int(try_vsock(cid, &g), -EINVAL, "vsock: %u is no guest's number", cid);
        is_int(try_vsock(UINT32_MAX, &g), -EINVAL, "vsock: nor is the one that means any");
        ok(try_vsock(UINT32_MAX - 1, &g) < 0 && g.error != -EINVAL && g.fd == -EBADF, "vsock: a guest that is not there: %s",
           strerror(-g.error));
}

static unsigned n_opened, n_refused;

static void on_open_of_many(void *userdata, int error, int fd, const OpenReply *reply) {
        Got *g = userdata;

        n_opened++;
        n_refused += error < 0;
        safe_close(fd);
        g->call = launch_call_free(g->call);
}

/* Many files of one owner at once, as a VM with many disks has them: those who are done are no reason to refuse the others. */
static void test_many(void) {
        static Got g[256];

        n_opened = n_refused = 0;
        for (size_t i = 0; i < ELEMENTSOF(g); i++)
                must(launch_open(loop, bed_path("file"), 0, 0, PATIENCE, on_open_of_many, g + i, &g[i].call) == 0);
        while (n_opened < ELEMENTSOF(g))
                must(sd_event_run(loop, PATIENCE) > 0);
        is_int(n_refused, 0, "256 opens at once: none is refused");
}

static void test_hang(void) {
        Got g;
        pid_t pid = start_hanging(&g);

        check(pid > 0 && kill(pid, 0) == 0);
        launch_call_free(g.call);
        ok(eventually(kill(pid, 0) < 0), "cancelled: what hung is gone");

        pid = start_hanging(&g);
        launcher_kill(SIGKILL);
        run_until(&g.done, 1);
        is_int(g.error, -EPIPE, "launcher killed in the middle of a request");
        ok(eventually(kill(pid, 0) < 0), "what hung is gone, too");
        launch_call_free(g.call);
        launcher_start();
}

static void test_killed(void) {
        Got g[20] = {};
        unsigned epipe = 0, fine = 0;

        must(kill(launcher, SIGSTOP) == 0);
        for (size_t i = 0; i < ELEMENTSOF(g); i++)
                must(launch_open(loop, bed_path("file"), 0, 0, PATIENCE, on_open, g + i, &g[i].call) == 0);
        launcher_kill(SIGKILL);
        launcher_start();
        for (size_t i = 0; i < ELEMENTSOF(g); i++) {
                run_until(&g[i].done, 1);
                epipe += g[i].error == -EPIPE;
                fine += g[i].error == 0;
                safe_close(g[i].fd);
                launch_call_free(g[i].call);
        }
        is_int(epipe + fine, ELEMENTSOF(g), "a launcher that is killed: the next one answers, or -EPIPE");

        g[0] = (Got) {};
        must(kill(launcher, SIGSTOP) == 0);
        must(launch_open(loop, bed_path("file"), 0, 0, 20 * USEC_PER_MSEC, on_open, g, &g->call) == 0);
        run_until(&g->done, 1);
        is_int(g->error, -ETIMEDOUT, "a launcher that hangs: the deadline");
        launch_call_free(g->call);
        must(kill(launcher, SIGCONT) == 0);
        is_int(try_open_as(bed_path("file"), 0, 0, g), 0, "it goes on after that");
        safe_close(g->fd);
}

/* Accepts one connection and hangs up after the request has come. */
static void test_dies_with_request(void) {
        int listener = unix_listen(bed_path("own.sock"), SOCK_SEQPACKET), fd;
        char path[128];
        Got g = {};

        (void) snprintf(path, sizeof(path), "%s", bed_path("own.sock"));
        launch_set_socket(path);
        must(launch_open(loop, "/x", 0, 0, PATIENCE, on_open, &g, &g.call) == 0);
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        safe_close(fd);
        run_until(&g.done, 1);
        is_int(g.error, -EPIPE, "killed in the middle of a request");
        launch_call_free(g.call);

        g = (Got) {};
        must(launch_open(loop, "/x", 0, 0, PATIENCE, on_open, &g, &g.call) == 0);
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        must(send_with_fds(fd, "garbage", 7, &fd, 1) == 0);
        run_until(&g.done, 1);
        is_int(g.error, -EBADMSG, "an answer that is none");
        launch_call_free(g.call);
        safe_close(fd);

        safe_close(listener);
        is_int(launch_open(loop, "/x", 0, 0, PATIENCE, on_open, &g, &g.call), -ECONNREFUSED, "nobody listens");
        launch_set_socket(bed_socket);
}

static void test_backlog(void) {
        int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), fd;
        struct sockaddr_un sa;
        char path[128];
        socklen_t len;
        Got g[4] = {};

        (void) snprintf(path, sizeof(path), "%s", bed_path("small.sock"));
        must(sockaddr_un_set(&sa, &len, path) == 0 && bind(listener, (struct sockaddr *) &sa, len) == 0 &&
             listen(listener, 0) == 0);
        launch_set_socket(path);
        for (size_t i = 0; i < ELEMENTSOF(g); i++)
                must(launch_open(loop, "/x", 0, 0, PATIENCE, on_open, g + i, &g[i].call) == 0);
        for (size_t i = 0; i < ELEMENTSOF(g); i++) {
                struct pollfd p = { .fd = listener, .events = POLLIN };

                while (poll(&p, 1, 0) == 0)
                        must(sd_event_run(loop, 10 * USEC_PER_MSEC) >= 0);
                fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                must(fd >= 0);
                safe_close(fd);
        }
        for (size_t i = 0; i < ELEMENTSOF(g); i++) {
                run_until(&g[i].done, 1);
                ok(g[i].error == -EPIPE, "a full backlog is waited for");
                launch_call_free(g[i].call);
        }
        safe_close(listener);
        launch_set_socket(bed_socket);
}

static ssize_t exchange(const void *p, size_t n, const int *fds, size_t n_fds, void *ret, size_t size) {
        struct timeval tv = { .tv_sec = 20 };
        struct sockaddr_un sa;
        socklen_t len;
        ssize_t k;
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

        must(sockaddr_un_set(&sa, &len, bed_socket) == 0 && connect(fd, (struct sockaddr *) &sa, len) == 0);
        (void) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
        must(send_with_fds(fd, p, n, fds, n_fds) == 0);
        k = recv(fd, ret, size, 0);
        safe_close(fd);
        return k < 0 && errno == ECONNRESET ? 0 : k;
}

static void test_protocol(void) {
        LaunchHeader h = { .magic = LAUNCH_MAGIC, .type = LAUNCH_OPEN, .size = sizeof(h) };
        union { OpenRequest q; char bytes[sizeof(OpenRequest) + 16]; } o = {
                .q.header = { .magic = LAUNCH_MAGIC, .type = LAUNCH_OPEN, .size = sizeof(o) },
        };
        static char big[LAUNCH_MESSAGE_MAX + 1000];
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC), many[SCM_FDS_MAX];
        OpenReply reply;

        is_int(exchange("x", 1, NULL, 0, &reply, sizeof(reply)), 0, "a byte: closed");
        h.size++;
        is_int(exchange(&h, sizeof(h), NULL, 0, &reply, sizeof(reply)), 0, "a wrong size: closed");
        h.size--;
        h.type = 99;
        is_int(exchange(&h, sizeof(h), NULL, 0, &reply, sizeof(reply)), 0, "an unknown type: closed");
        h.type = 0;
        is_int(exchange(&h, sizeof(h), NULL, 0, &reply, sizeof(reply)), 0, "type 0: closed");
        h.type = LAUNCH_OPEN;
        h.magic++;
        is_int(exchange(&h, sizeof(h), NULL, 0, &reply, sizeof(reply)), 0, "bad magic: closed");
        h.magic--;
        h.reserved = 1;
        is_int(exchange(&h, sizeof(h), NULL, 0, &reply, sizeof(reply)), 0, "a reserved field: closed");
        h.reserved = 0;
        is_int(exchange(big, sizeof(big), NULL, 0, &reply, sizeof(reply)), 0, "too large: closed");

        is_int(exchange(&h, sizeof(h), NULL, 0, &reply, sizeof(reply)), sizeof(reply), "open: truncated: answered");
        is_int(reply.error, -EINVAL, "by -EINVAL");
        memcpy(o.q.path, "/etc/hostname\0x", 16);
        is_int(exchange(&o, sizeof(o), NULL, 0, &reply, sizeof(reply)), sizeof(reply), "open: bytes after the path");
        is_int(reply.error, -EINVAL, "by -EINVAL");
        memset(o.q.path, '/', 16);
        is_int(exchange(&o, sizeof(o), NULL, 0, &reply, sizeof(reply)), sizeof(reply), "open: no end of the path");
        is_int(reply.error, -EINVAL, "by -EINVAL");
        for (size_t i = 0; i < ELEMENTSOF(many); i++)
                many[i] = null;
        is_int(exchange(&o, sizeof(o), many, ELEMENTSOF(many), &reply, sizeof(reply)), sizeof(reply), "open: with fds");
        is_int(reply.error, -EINVAL, "by -EINVAL");
        is_int(exchange("", 0, many, ELEMENTSOF(many), &reply, sizeof(reply)), 0, "fds alone: closed");
        safe_close(null);
}

static void test_latency(void) {
        uint64_t t, best[3] = { UINT64_MAX, UINT64_MAX, UINT64_MAX };
        Got g;

        for (unsigned i = 0; i < 50; i++) {
                t = now_usec();
                (void) try_open_as(bed_path("file"), 0, 0, &g);
                safe_close(g.fd);
                best[0] = MIN(best[0], now_usec() - t);

                g = (Got) {};
                t = now_usec();
                must(launch_probe(loop, PROGRAM_QEMU, false, PATIENCE, on_probe, &g, &g.call) == 0);
                run_until(&g.done, 1);
                launch_call_free(g.call);
                best[1] = MIN(best[1], now_usec() - t);
        }
        printf("# best of 50: OPEN %u us, PROBE %u us\n", (unsigned) best[0], (unsigned) best[1]);
}

static void on_loop(void *userdata, int error, int fd) {
        Got *g = userdata;

        g->fd = fd;
        finish(g, error);
}

static int try_loop(int image, bool readonly, Got *g) {
        *g = (Got) { .fd = -EBADF };
        must(launch_loop(loop, image, readonly, PATIENCE, on_loop, g, &g->call) == 0);
        run_until(&g->done, 1);
        launch_call_free(g->call);
        return g->error;
}

/* Or somebody else's by now */
static bool is_free(const char *path, ino_t image) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct loop_info64 info;

        return fd >= 0 && (ioctl(fd, LOOP_GET_STATUS64, &info) < 0 ? errno == ENXIO : info.lo_inode != image);
}

static void test_loop(void) {
        int image, ro, other;
        char path[64];
        struct stat st;
        Got g;

        bed_write("image", "image", 0600);
        must(truncate(bed_path("image"), 1 << 20) == 0);
        image = open(bed_path("image"), O_RDWR | O_CLOEXEC);
        ro = open(bed_path("image"), O_RDONLY | O_CLOEXEC);
        must(image >= 0 && ro >= 0);
        if (try_loop(image, false, &g) < 0) {
                skip("LOOP", "no loop devices here");
                close_many((int[]) { image, ro }, 2);
                return;
        }
        ok(fstat(g.fd, &st) == 0 && S_ISBLK(st.st_mode) && lseek(g.fd, 0, SEEK_END) == 1 << 20, "an image as a block device");
        (void) snprintf(path, sizeof(path), "/dev/loop%u", minor(st.st_rdev));
        ok(pwrite(g.fd, "other", 5, 0) == 5 && fsync(g.fd) == 0, "which is written to");
        other = open(path, O_RDONLY | O_CLOEXEC);
        ok(other >= 0 && flock(other, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK, "nobody looks for a file system in it as long as it is used");
        safe_close(other);
        safe_close(image);
        image = g.fd;
        is_int(try_loop(ro, true, &g), -EAGAIN, "and by nobody else");
        safe_close(image);
        must(fstat(ro, &st) == 0);
        ok(eventually(is_free(path, st.st_ino)), "it goes with its last user");
        is_int(try_loop(ro, true, &g), 0, "one to read");
        ok(pwrite(g.fd, "x", 1, 0) < 0, "is not written to");
        safe_close(g.fd);
        safe_close(ro);
        image = open(bed_path("image"), O_RDONLY | O_CLOEXEC);
        is_int(try_loop(image, false, &g), 0, "to write what was opened to read: a device that is read-only");
        ok(pwrite(g.fd, "x", 1, 0) < 0 || fsync(g.fd) < 0, "however it is asked for");
        safe_close(g.fd);
        safe_close(image);
}

int main(void) {
        unsigned before, launchers;
        Got g;

        bed_setup();
        bed_write("warm", "", 0600);
        (void) try_open_as(bed_path("warm"), 0, 0, &g);
        safe_close(g.fd);
        before = count_fds(getpid());

        test_open();
        test_open_errors();
        test_locks();
        test_owner();
        test_probe();
        test_program();
        test_cancel();
        test_vsock();
        test_loop();
        test_many();
        test_hang();
        (void) try_open_as(bed_path("warm"), 0, 0, &g);
        safe_close(g.fd);
        launchers = count_fds(launcher);
        test_protocol();
        ok(eventually(count_fds(launcher) <= launchers), "the launcher keeps no fd");
        test_killed();
        test_dies_with_request();
        test_backlog();
        test_latency();
        is_int(count_fds(getpid()), before, "no fd is left open");
        bed_teardown();
        return done_testing();
}
