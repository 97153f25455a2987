/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "core/store-internal.h"
#include "store-fixture.h"
#include "tap.h"

/* The store when disks fill, writes fail, others hold the file, and the process dies. */

/* What SQLite writes goes through here: the write number fault_at, and all after it, fail, or kill the process. */
static int fault_at, fault_errno, writes;

static bool fault(void) {
        if (++writes < fault_at || fault_at == 0)
                return false;
        if (fault_errno == 0)
                kill(getpid(), SIGKILL);
        errno = fault_errno;
        return true;
}

static ssize_t fault_write(int fd, const void *p, size_t n) {
        return fault() ? -1 : write(fd, p, n);
}

static ssize_t fault_pwrite(int fd, const void *p, size_t n, off_t offset) {
        return fault() ? -1 : pwrite(fd, p, n, offset);
}

static void set_fault(int at, int error) {
        writes = 0;
        fault_at = at;
        fault_errno = error;
}

static void hook_writes(void) {
        sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);

        (void) vfs->xSetSystemCall(vfs, "write", (sqlite3_syscall_ptr) fault_write);
        (void) vfs->xSetSystemCall(vfs, "pwrite", (sqlite3_syscall_ptr) fault_pwrite);
        (void) vfs->xSetSystemCall(vfs, "pwrite64", (sqlite3_syscall_ptr) fault_pwrite);
}

static void test_locked(void) {
        _cleanup_(store_closep) Store *s = NULL;
        _cleanup_free_ char *message = NULL;
        uint64_t start, took;
        sqlite3 *db;
        uint32_t n;

        fresh_with_vms();
        s = open_store();
        check(sqlite3_open(path, &db) == SQLITE_OK);
        check(sqlite3_exec(db, "BEGIN IMMEDIATE; UPDATE vm SET message = 'x'", NULL, NULL, NULL) == SQLITE_OK);
        start = now_usec();
        is_int(store_begin(s), -EBUSY, "a foreign writer: busy");
        took = now_usec() - start;
        ok(took < 100 * USEC_PER_MSEC, "quickly (%llu us)", (unsigned long long) took);
        is_int(store_next_number(s, "job", &n), 0, "numbers are given all the same");
        is_int(vms(s), 40, "reading goes on");
        check(sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL) == SQLITE_OK);
        is_int(transition(s, 41), 0, "writing goes on when it has left");
        check(sqlite3_exec(db, "BEGIN; SELECT count(*) FROM vm", NULL, NULL, NULL) == SQLITE_OK);
        is_int(transition(s, 42), 0, "a foreign reader hinders nobody");
        s = store_close(s);
        s = open_store();
        is_int(vms(s), 42, "nor an opening");
        s = store_close(s);
        sqlite3_close(db);

        /* without WAL, as a program that makes it its own has it */
        check(sqlite3_open(path, &db) == SQLITE_OK);
        check(sqlite3_exec(db, "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE", NULL, NULL, NULL) == SQLITE_OK);
        is_int(store_open(path, &s, &message), -EBUSY, "a file that another program has for itself");
        ok(message && strstr(message, path), "says so: %s", strempty(message));
        sqlite3_close(db);
}

/* The writes of one transaction fail, from the first, the second… on. */
static void test_fault(int error, int want) {
        _cleanup_(store_closep) Store *s = NULL;
        unsigned n = 1, faults = 0;
        bool good = true;

        fresh();
        s = open_store();
        for (int at = 1; at < 100; at++) {
                int r;

                set_fault(at, error);
                r = transition(s, n);
                set_fault(0, 0);
                if (r >= 0) {
                        if (events(s, NULL) != n || at > writes + 50)
                                good = false;
                        n++;
                        if (++faults > 3)
                                break;
                        continue;
                }
                good = good && r == want && vms(s) == n - 1 && events(s, NULL) == n - 1 && transition(s, n) == 0;
                n++;
        }
        ok(good && n > 5, "%s at each write: refused whole, then it works again", strerror(error));
        s = store_close(s);
        s = open_store();
        is_int(events(s, NULL), n - 1, "all that was committed is there");
}

/* What the caller does not look at must not be committed by itself. */
static void test_lost_transaction(void) {
        _cleanup_(store_closep) Store *s = NULL;
        const Event ev = { .usec = 1, .vm_id = "id", .vm_name = "vm", .type = "t", .message = "m" };
        VMRecord r = record(1);
        int k = 0;

        fresh();
        s = open_store();
        check(store_begin(s) == 0);
        check(store_insert_vm(s, &r) == 0);
        set_fault(1, EIO);
        is_int(store_commit(s), -EIO, "a commit fails");
        set_fault(0, 0);
        if (sqlite3_get_autocommit(s->db)) {
                k = store_add_event(s, &ev, NULL);
                is_int(k, -EIO, "what follows is refused");
                is_int(store_commit(s), -EIO, "so is another commit");
        }
        store_rollback(s);
        ok(vms(s) == 0 && events(s, NULL) == 0, "nothing is there");
        is_int(insert(s, 1), 0, "it works again");
}

static bool killed(pid_t pid) {
        int status;

        return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/* The process dies at each write of the creation. */
static void test_kill_creation(void) {
        bool good = true;
        int at;

        for (at = 1; at < 200; at++) {
                _cleanup_(store_closep) Store *s = NULL;
                pid_t pid;

                fresh();
                pid = fork();
                if (pid == 0) {
                        set_fault(at, 0);
                        store_close(open_store());
                        _exit(0);
                }
                if (!killed(pid))
                        break;
                s = open_store();
                good = good && s && vms(s) == 0 && insert(s, 1) == 0;
        }
        ok(good && at > 5 && at < 200, "killed at each of %d writes of the creation: opens again", at - 1);
}

static int check_name(VMRecord *r, void *userdata) {
        unsigned *n = userdata, k;

        if (sscanf(r->name, "vm%u", &k) != 1 || k != *n + 1 || !streq(r->definition, text_definition))
                return -EBADMSG;
        *n = k;
        return 0;
}

/* Transactions up to this number are there, whole. */
static bool whole(Store *s, unsigned n) {
        unsigned last = n > 50 ? n - 50 : 0;

        return store_foreach_vm(s, check_name, &last) == 0 && last == n && vms(s) == MIN(n, 50U) &&
                events(s, NULL) == n && usages(s, 0, UINT64_MAX) == n;
}

/* The process dies at each write of transactions, those of checkpoints among them. */
static void test_kill_writes(void) {
        unsigned n = 0;
        bool good = true;
        int at;

        fresh();
        for (at = 1; at < 600 && good; at += 7) {
                _cleanup_(store_closep) Store *s = NULL;
                unsigned got;
                int p[2];
                pid_t pid;

                if (pipe2(p, O_CLOEXEC) < 0)
                        break;
                pid = fork();
                if (pid == 0) {
                        s = open_store();
                        set_fault(at, 0);
                        for (unsigned i = n + 1; transition(s, i) == 0; i++)
                                (void) !write(p[1], &i, sizeof(i));
                        _exit(1);
                }
                close(p[1]);
                good = killed(pid);
                while (read(p[0], &got, sizeof(got)) == sizeof(got))
                        n = got;
                close(p[0]);

                s = open_store();
                good = good && s && (whole(s, n) || whole(s, n + 1));
                n += s && whole(s, n + 1);
        }
        ok(good, "killed at a write, each time a later one: whole to the last transaction (%u)", n);
}

static void child_writes(int fd, unsigned n) {
        Store *s = open_store();

        while (s && transition(s, n) == 0) {
                if (write(fd, &n, sizeof(n)) != sizeof(n))
                        break;
                n++;
        }
}

static void test_kill_random(void) {
        unsigned n = 0, rounds, before = 0, unreported = 0;
        bool good = true;

        srandom(20240607);
        fresh();
        for (rounds = 0; rounds < 200 && good; rounds++) {
                _cleanup_(store_closep) Store *s = NULL;
                unsigned got;
                int p[2];
                pid_t pid;

                if (pipe2(p, O_CLOEXEC) < 0)
                        break;
                pid = fork();
                if (pid == 0) {
                        child_writes(p[1], n + 1);
                        _exit(1);
                }
                close(p[1]);
                /* in some rounds while it still opens the file */
                if (rounds % 8 != 0)
                        (void) poll(&(struct pollfd) { .fd = p[0], .events = POLLIN }, 1, -1);
                usleep(random() % 3000);
                kill(pid, SIGKILL);
                good = killed(pid);
                while (read(p[0], &got, sizeof(got)) == sizeof(got)) {
                        good = good && got == n + 1;
                        n = got;
                }
                close(p[0]);

                s = open_store();
                good = good && s && n >= before && (whole(s, n) || whole(s, n + 1));
                if (s && whole(s, n + 1)) {
                        n++;
                        unreported++;
                }
                before = n;
        }
        ok(good && rounds == 200, "200 kills in the middle of %u transactions: whole each time", n);
        printf("# %u were committed without having said so\n", unreported);
}

static int fill(const char *file) {
        _cleanup_close_ int fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        char block[4096] = "";

        while (write(fd, block, sizeof(block)) > 0)
                ;
        return errno == ENOSPC ? 0 : -1;
}

/* A small file system of our own at directory/small */
static bool mount_small(char *where, size_t n) {
        snprintf(where, n, "%s/small", directory);
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mkdir_ok(where, 0700) < 0 || mount("tmpfs", where, "tmpfs", 0, "size=512k,mode=0700") < 0)
                return false;
        snprintf(path, sizeof(path), "%s/vmunit.db", where);
        return true;
}

static void test_full(const char *where) {
        _cleanup_(store_closep) Store *s = NULL;
        char ballast[300];
        unsigned n = 1, refusals = 0;
        uint32_t number, last;
        bool counted = true;
        int r;

        snprintf(ballast, sizeof(ballast), "%s/ballast", where);
        check(fill(ballast) == 0);
        refused(-ENOSPC, "full", "no room for a new one");
        ok(access(path, F_OK) < 0 && access(beside(".new"), F_OK) < 0, "nothing half is left");

        check(unlink(ballast) == 0);
        s = open_store();
        check(store_next_number(s, "job", &last) == 0);
        check(fill(ballast) == 0);
        while ((r = transition(s, n)) >= 0)
                n++;
        is_int(r, -ENOSPC, "full: the commit is refused");
        for (int i = 0; i < 20; i++)
                refusals += transition(s, n) == -ENOSPC;
        is_int(refusals, 20, "again and again");
        ok(whole(s, n - 1), "nothing is lost (%u VMs)", n - 1);
        for (int i = 0; i < 500; i++)
                counted = counted && store_next_number(s, "job", &number) == 0 && number == last + 1 && (last = number);
        ok(counted, "there are numbers, whatever the disk is like");

        check(unlink(ballast) == 0);
        is_int(transition(s, n), 0, "there is room: it works again");
        ok(whole(s, n), "all is there");
        is_int(store_next_number(s, "job", &number), 0, "a number");
        is_int(number, last + 1, "is the next one");
        last = number;
        check(fill(ballast) == 0);
        s = store_close(s);
        s = open_store();
        ok(s && whole(s, n), "closing and opening when full loses nothing");
        is_int(store_next_number(s, "job", &number), 0, "a number is given there at once");
        ok(number > last, "and was never given before (%u, %u)", number, last);
}

static void test_readonly(const char *where) {
        _cleanup_(store_closep) Store *s = NULL;
        unsigned n;

        check(mount(NULL, where, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0);
        refused(-EROFS, "read-only", "a read-only file system");
        check(mount(NULL, where, NULL, MS_REMOUNT, NULL) == 0);
        s = open_store();
        n = vms(s);
        ok(n > 0 && n < UINT32_MAX, "nothing was lost");
        s = store_close(s);

        snprintf(path, sizeof(path), "%s/new.db", where);
        check(mount(NULL, where, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0);
        refused(-EROFS, "read-only", "nor is a new one made there");
        check(umount2(where, MNT_DETACH) == 0);
}

static int compare(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return (x > y) - (x < y);
}

static void test_time(void) {
        _cleanup_(store_closep) Store *s = NULL;
        const Event ev = { .usec = 1, .vm_id = "id", .vm_name = "vm", .type = "t", .message = "Some sentence." };
        uint64_t took[301];
        bool good = true;

        fresh_with_vms();
        s = open_store();
        for (size_t i = 0; i < ELEMENTSOF(took); i++) {
                VMRecord r = record(1 + i % 40);
                uint64_t start = now_usec();

                r.state = i % _VM_STATE_MAX;
                good = good && store_begin(s) == 0 && store_update_vm(s, &r) == 0 &&
                        store_add_event(s, &ev, NULL) == 0 && store_commit(s) == 0;
                took[i] = now_usec() - start;
        }
        ok(good, "301 transitions");
        qsort(took, ELEMENTSOF(took), sizeof(took[0]), compare);
        printf("# a transition: median %llu us, 99%% %llu us; SQLite's memory %lld KiB\n",
               (unsigned long long) took[150], (unsigned long long) took[297], sqlite3_memory_used() / 1024);
        ok(sqlite3_memory_used() < 768 * 1024, "its memory is small");
}

int main(void) {
        char where[128];

        if (!mkdtemp(directory))
                return 1;
        hook_writes();

        test_locked();
        test_fault(ENOSPC, -ENOSPC);
        test_fault(EDQUOT, -ENOSPC);
        test_fault(EIO, -EIO);
        test_fault(EROFS, -EROFS);
        test_lost_transaction();
        test_kill_creation();
        test_kill_writes();
        test_kill_random();
        test_time();
        if (mount_small(where, sizeof(where))) {
                test_full(where);
                test_readonly(where);
        } else
                skip("full and read-only file systems", "mounts need root");

        is_int(rm_rf(directory), 0, "cleaned up");
        return done_testing();
}
