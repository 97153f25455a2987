/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/name-util.h"
#include "basic/pidfd-util.h"
#include "basic/program-util.h"
#include "basic/string-util.h"
#include "tap.h"

static void test_names(void) {
        static const char *const good[] = { "a", "web", "web-1", "a.b", "0", "a-b.c-d", "xn--bcher-kva",
                "a23456789012345678901234567890123456789012345678901234567890123" };
        static const char *const bad[] = { "", "-a", "a-", ".a", "a.", "a..b", "a.-b", "A", "a_b", "a b", "a/b", "ä", "localhost",
                "a234567890123456789012345678901234567890123456789012345678901234",
                "0123456789abcdef0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdef", "a\n" };

        for (size_t i = 0; i < ELEMENTSOF(good); i++)
                ok(vm_name_is_valid(good[i]), "'%s' is a name", good[i]);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                ok(!vm_name_is_valid(bad[i]), "string %zu is no name", i);
}

/* What `systemd-escape` prints for them */
static void test_units(void) {
        static const char *const escaped[][2] = {
                { "a-b", "a\\x2db" }, { "a.b", "a.b" }, { ".a", "\\x2ea" }, { "a/b", "a-b" }, { "a\\b", "a\\x5cb" },
                { "a:b_c", "a:b_c" }, { "ä", "\\xc3\\xa4" }, { "", "" },
        };

        for (size_t i = 0; i < ELEMENTSOF(escaped); i++) {
                _cleanup_free_ char *s = unit_name_escape(escaped[i][0]);

                is_str(s, escaped[i][1], "'%s' escaped", escaped[i][0]);
        }

        _cleanup_free_ char *slice = vm_slice_name("a-b"), *scope = vm_scope_name("a-b");
        _cleanup_free_ char *name = vm_name_from_cgroup("/machine.slice/machine-vmunit.slice/machine-vmunit-a\\x2db.slice/x.scope");
        _cleanup_free_ char *none = vm_name_from_cgroup("/machine.slice/machine-vmunit.slice");
        _cleanup_free_ char *share = share_scope_name("a-b", ".x-y");

        is_str(slice, "machine-vmunit-a\\x2db.slice", "the slice of a-b");
        is_str(scope, "vmunit-a\\x2db.scope", "the scope of a-b");
        is_str(share, "vmunit-a\\x2db-fs-\\x2ex\\x2dy.scope", "the scope of its share .x-y");
        is_str(name, "a-b", "a cgroup's VM");
        is_str(none, NULL, "a cgroup of none");
}

static void test_strings(void) {
        _cleanup_strv_free_ char **l = NULL;
        _cleanup_free_ char *joined = NULL;

        check(endswith("abc", "bc") && !endswith("c", "bc"));
        is_str(startswith("abc", "ab"), "c", "startswith gives the rest");
        check(strv_extend(&l, "a") == 0 && strv_extendf(&l, "%d", 7) == 0);
        joined = strv_join(l, ", ");
        is_str(joined, "a, 7", "joined");
        check(strv_contains(l, "7") && !strv_contains(l, "b") && strv_length(l) == 2);

        is_int(edit_distance("memory", "memroy"), 1, "a swap of neighbours is one edit");
        is_int(edit_distance("cpus", "cpu"), 1, "a letter less");
        is_int(edit_distance("", "abc"), 3, "from nothing");
        is_int(edit_distance("kitten", "sitting"), 3, "kitten and sitting");
}

static void test_escape(void) {
        static const struct {
                const char *in, *out;
                size_t n, max;
        } cases[] = {
                { "plain", "plain", 5, 100 },
                { "a\nb", "a\nb", 3, 100 },
                { "a\033[1mb", "a\\x1b[1mb", 6, 100 },
                { "a\0b", "a\\x00b", 3, 100 },
                { "\xff\xfe", "\\xff\\xfe", 2, 100 },
                { "\xc3\xa4", "\xc3\xa4", 2, 100 },
                { "\xc2\x85", "\\xc2\\x85", 2, 100 },                     /* NEL, a C1 control character */
                { "\xc0\xaf", "\\xc0\\xaf", 2, 100 },                     /* overlong */
                { "\xed\xa0\x80", "\\xed\\xa0\\x80", 3, 100 },            /* a surrogate */
                { "0123456789", "6789", 10, 4 },
                { "\r\r", "\\x0d", 2, 4 },
                { "x\xc3\xa4y", "y", 4, 2 },                              /* no half of a character */
                { "", "", 0, 0 },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *s = escape_untrusted(cases[i].in, cases[i].n, cases[i].max);

                is_str(s, cases[i].out, "escaped %zu", i);
        }
}

static void test_files(void) {
        char dir[] = "/tmp/test-basic.XXXXXX";
        _cleanup_free_ char *sub = NULL, *file = NULL, *link_name = NULL, *deep = NULL, *text = NULL;
        _cleanup_close_ int fd = -EBADF, again = -EBADF;
        struct stat st;
        size_t n;

        check(mkdtemp(dir) != NULL);
        sub = strjoinf("%s/sub", dir);
        file = strjoinf("%s/file", sub);
        link_name = strjoinf("%s/link", sub);
        deep = strjoinf("%s/deeper", sub);

        check(mkdir_ok(sub, 0700) == 0);
        is_int(mkdir_ok(sub, 0700), 0, "a directory may be there already");
        check(mkdir_ok(deep, 0700) == 0);
        check(symlink(dir, link_name) == 0);

        is_int(write_file_atomic(file, "one\n", true), 0, "a file is written whole");
        is_int(mkdir_ok(file, 0700), -ENOTDIR, "a file is no directory");
        check(read_file_all(file, 100, &text, &n) == 0 && n == 4 && streq(text, "one\n"));
        check(stat(file, &st) == 0 && (st.st_mode & 0777) == 0600);
        text = (free(text), NULL);
        is_int(read_file_all(file, 3, &text, &n), -E2BIG, "a bound is kept");

        fd = create_fresh(file);
        check(fd >= 0 && loop_write(fd, "old", 3) == 0);
        again = create_fresh(file);
        check(again >= 0 && lseek(again, 0, SEEK_END) == 0);
        is_int(lseek(fd, 0, SEEK_END), 3, "who holds the old file keeps what it had");

        is_int(rm_rf(sub), 0, "all is removed");
        check(access(sub, F_OK) < 0 && access(dir, F_OK) == 0);
        is_int(rm_rf(sub), 0, "what is gone is fine");
        check(rm_rf(dir) == 0);
}

static void test_sockets(void) {
        char dir[] = "/tmp/test-basic.XXXXXX", buf[16];
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int listener = -EBADF, client = -EBADF;
        int pair[2], fds[2], got[1];
        size_t n;

        check(mkdtemp(dir) != NULL);
        path = strjoinf("%s/sock", dir);
        is_int(unix_connect(path, SOCK_SEQPACKET), -ENOENT, "nobody is there");
        listener = unix_listen(path, SOCK_SEQPACKET);
        check(listener >= 0);
        client = unix_connect(path, SOCK_SEQPACKET);
        check(client >= 0);
        listener = safe_close(listener);
        is_int(unix_connect(path, SOCK_SEQPACKET), -ECONNREFUSED, "a stale socket");
        listener = unix_listen(path, SOCK_SEQPACKET);
        check(listener >= 0);
        check(rm_rf(dir) == 0);

        check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0 && pipe2(fds, O_CLOEXEC) == 0);
        is_int(send_with_fds(pair[0], "x", 1, fds, 2), 0, "two fds are sent");
        n = 1;
        is_int(recv_with_fds(pair[1], buf, sizeof(buf), got, &n), -EBADMSG, "more than there is room for are refused");
        is_int(send_with_fds(pair[0], "0123456789abcdefX", 17, NULL, 0), 0, "a long one");
        n = 0;
        is_int(recv_with_fds(pair[1], buf, sizeof(buf), NULL, &n), -EMSGSIZE, "does not fit");
        is_int(recv_with_fds(pair[1], buf, sizeof(buf), NULL, NULL), -EAGAIN, "nothing there");
        check(send_with_fds(pair[0], "x", 1, fds, 1) == 0);
        n = 1;
        check(recv_with_fds(pair[1], buf, sizeof(buf), got, &n) == 1 && n == 1 && (fcntl(got[0], F_GETFD) & FD_CLOEXEC));
        close_many(got, 1);
        is_int(send_with_fds(pair[0], "", 0, fds, 1), 0, "an fd with no bytes is sent");
        n = 1;
        got[0] = -EBADF;
        is_int(recv_with_fds(pair[1], buf, sizeof(buf), got, &n), -EBADMSG, "… and is refused, for it looks like the end");
        is_int(got[0], -EBADF, "… and not kept");
        close_many(fds, 2);
        close_many(pair, 2);
}

/* Elsewhere the path was cut off, and what connected met another socket, or none. */
static void test_long_socket_paths(void) {
        char dir[] = "/tmp/test-basic.XXXXXX";
        _cleanup_free_ char *longest = NULL, *longer = NULL;
        int fd;

        check(mkdtemp(dir) != NULL);
        longest = strjoinf("%s/%0*d", dir, (int) (sizeof(((struct sockaddr_un *) NULL)->sun_path) - 2 - strlen(dir)), 0);
        longer = strjoinf("%s0", longest);
        is_int(unix_listen(longer, SOCK_STREAM), -ENAMETOOLONG, "a path of %zu bytes is too long for a socket", strlen(longer));
        is_int(unix_connect(longer, SOCK_STREAM), -ENAMETOOLONG, "… also to connect");
        is_int(access(longest, F_OK), -1, "… and none was made of its beginning");
        fd = unix_listen(longest, SOCK_STREAM);
        ok(fd >= 0 && access(longest, F_OK) == 0, "one of %zu is fine", strlen(longest));
        safe_close(fd);
        check(rm_rf(dir) == 0);
}

static void *sleep_on(void *userdata) {
        for (;;)
                (void) pause();
        return NULL;
}

/* Its first thread has ended and another goes on: elsewhere that was taken for dead, with devices still in its hands. */
static void test_zombie_leader(void) {
        _cleanup_free_ char *path = NULL, *cgroup = NULL, *text = NULL;
        _cleanup_close_ int fd = -EBADF;
        uint64_t start;
        pid_t pid;

        pid = fork();
        if (pid == 0) {
                pthread_t thread;

                if (pthread_create(&thread, NULL, sleep_on, NULL) == 0)
                        (void) syscall(SYS_exit, 0);
                _exit(1);
        }
        fd = pidfd_open_pid(pid);
        path = strjoinf("/proc/%d/stat", (int) pid);
        while (!text && read_file_all(path, 4096, &text, NULL) >= 0 && !strstr(text, ") Z ") && !pidfd_dead(fd))
                text = (free(text), NULL);
        ok(text && strstr(text, ") Z "), "a zombie");
        ok(fd >= 0 && !pidfd_dead(fd), "… whose other thread lives is not dead");
        ok(pid_start_time(pid, &start) == 0 && pid_cgroup(pid, &cgroup) == 0, "… and can be told from others");
        is_int(pidfd_kill(fd, SIGKILL), 0, "… until it is killed");
        check(waitid(P_PIDFD, (id_t) fd, &(siginfo_t) {}, WEXITED) == 0);
        ok(pidfd_dead(fd), "… which it is then");
}

static void test_processes(void) {
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *cgroup = NULL;
        uint64_t start = 0, other = 0;
        char boot_id[37];
        uid_t uid = 1, other_uid = 1;
        int status;
        pid_t pid, p = 0;

        pid = fork();
        if (pid == 0) {
                (void) pause();
                _exit(0);
        }
        fd = pidfd_open_pid(pid);
        check(fd >= 0 && !pidfd_dead(fd));
        check(pidfd_get_pid(fd, &p) == 0 && p == pid);
        check(pid_start_time(pid, &start) == 0 && start > 0);
        check(pid_start_time(getpid(), &other) == 0 && other <= start);
        check(pid_cgroup(pid, &cgroup) == 0 && cgroup[0] == '/');
        check(pidfd_get_euid(fd, &uid) == 0 && uid == geteuid());
        check(pid_euid(pid, &other_uid) == 0 && other_uid == uid);

        ok(!pid_stopped(pid), "it waits");
        check(kill(pid, SIGSTOP) == 0 && waitid(P_PIDFD, (id_t) fd, &(siginfo_t) {}, WSTOPPED) == 0);
        ok(pid_stopped(pid), "… and is stopped");
        is_int(pidfd_kill(fd, SIGKILL), 0, "killed by its pidfd");
        check(waitid(P_PIDFD, (id_t) fd, &(siginfo_t) {}, WEXITED | WNOWAIT) == 0);
        ok(pidfd_dead(fd), "a zombie is dead");
        is_int(pidfd_get_euid(fd, &uid), -ESRCH, "… and nobody's any more");
        check(waitpid(pid, &status, 0) == pid);
        is_int(pidfd_kill(fd, SIGKILL), -ESRCH, "a dead process gets no signal");
        is_int(pidfd_get_pid(fd, &p), -ESRCH, "and has no pid");
        is_int(pidfd_get_euid(fd, &uid), -ESRCH, "nor a user");
        is_int(pid_euid(pid, &uid), -ESRCH, "… by its number either");
        is_int(pid_start_time(pid, &start), -ESRCH, "nor a start time");
        ok(!pid_stopped(pid), "… and is not stopped");

        if (pidfd_exit_status(fd, &status) == -EOPNOTSUPP)
                skip("the kernel keeps the exit status", "PIDFD_INFO_EXIT needs Linux 6.15");
        else
                ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the kernel keeps the exit status");
        check(read_boot_id(boot_id) == 0 && strlen(boot_id) == 36);
}

/* Debian 12's is beside QEMU's helpers, Debian 13's in libexec. */
static void test_virtiofsd(void) {
        static const char *const places[] = {
                "/usr/local/bin/virtiofsd", "/usr/bin/virtiofsd", "/usr/local/libexec/virtiofsd", "/usr/libexec/virtiofsd",
                "/usr/lib/qemu/virtiofsd",
        };
        _cleanup_free_ char *want = NULL;
        char path[PATH_MAX] = "";
        struct stat st;

        for (size_t i = 0; !want && i < ELEMENTSOF(places); i++)
                want = realpath(places[i], NULL);
        is_int(program_find(&(Config) {}, PROGRAM_VIRTIOFSD, path, &st), want ? 0 : -ENOENT, "virtiofsd is found where there is one");
        is_str(path, strempty(want), "… the first of its places");
}

int main(void) {
        test_names();
        test_units();
        test_strings();
        test_escape();
        test_files();
        test_sockets();
        test_long_socket_paths();
        test_zombie_leader();
        test_processes();
        test_virtiofsd();
        return done_testing();
}
