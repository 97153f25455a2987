/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <sched.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "core/store-backup.h"
#include "store-fixture.h"
#include "tap.h"

/* The daily copies: whole, in small steps while transitions go on, three of them, and going back to one. */

static sd_event *event;
static char backup_dir[300];

static void fresh_dirs(void) {
        fresh();
        snprintf(backup_dir, sizeof(backup_dir), "%s/backup", dirname(strdupa(path)));
}

/* The files there that begin so; the last one's path in *ret */
static unsigned files(const char *prefix, char ret[static 600]) {
        unsigned n = 0;
        DIR *d = opendir(backup_dir);

        for (struct dirent *e; d && (e = readdir(d));)
                if (!streq(e->d_name, ".") && !streq(e->d_name, "..") && startswith(e->d_name, prefix)) {
                        snprintf(ret, 600, "%s/%s", backup_dir, e->d_name);
                        n++;
                }
        if (d)
                closedir(d);
        return n;
}

static StoreBackup *backup_new(Store *s, uint64_t first_usec) {
        StoreBackup *b = NULL;

        is_int(store_backup_new(event, s, backup_dir, first_usec, &b), 0, "a keeper of copies");
        return b;
}

/* The loop, until it is done or for so long */
static int loop(const int *done, uint64_t usec) {
        uint64_t end = now_usec() + usec;

        while (!*done && now_usec() < end)
                (void) sd_event_run(event, 10 * USEC_PER_MSEC);
        return *done;
}

static int make(StoreBackup *b) {
        int done = 0, r;

        r = store_backup_begin(b, &done);
        return r < 0 ? r : loop(&done, 20 * USEC_PER_SEC);
}

static bool put(const char *name, time_t mtime) {
        const struct timespec times[2] = { { .tv_sec = mtime }, { .tv_sec = mtime } };
        char file[600];

        snprintf(file, sizeof(file), "%s/%s", backup_dir, name);
        return mkdir_ok(backup_dir, 0700) == 0 && write_file_atomic(file, "old", false) == 0 &&
                utimensat(AT_FDCWD, file, times, 0) == 0;
}

static bool there(const char *name) {
        char file[600];

        snprintf(file, sizeof(file), "%s/%s", backup_dir, name);
        return access(file, F_OK) >= 0;
}

static mode_t mode_of(const char *p) {
        struct stat st;

        return stat(p, &st) < 0 ? 0 : st.st_mode & 07777;
}

static void test_restore(void) {
        _cleanup_(store_closep) Store *s = NULL;
        StoreBackup *b;
        char copy[600], other[600];
        uint32_t before, after;

        fresh_dirs();
        s = open_store();
        for (unsigned i = 1; i <= 40; i++)
                check(transition(s, i) == 0);
        check(store_next_number(s, "job", &before) == 0);
        b = backup_new(s, 0);
        is_int(make(b), 1, "a copy is made");
        is_int(files("vmunit-", copy), 1, "it is there");
        is_int(files("", other), 1, "and nothing else");
        is_int(mode_of(copy), 0600, "closed to others");
        is_int(mode_of(backup_dir), 0700, "so is its directory");

        for (unsigned i = 41; i <= 45; i++)
                check(transition(s, i) == 0);
        b = store_backup_free(b);
        s = store_close(s);
        check(unlink(path) == 0);
        refused(-ENOENT, "copy the newest", "deleted");
        check(rename(copy, path) == 0);
        s = open_store();
        is_int(vms(s), 40, "put back, it has all VMs of that time");
        is_int(events(s, NULL), 40, "and their history");
        is_int(transition(s, 41), 0, "and can be written");
        check(store_next_number(s, "job", &after) == 0);
        ok(after > before, "numbers go on");
}

/* Transitions in between are in the copy, and none waits long for it. */
static void test_concurrent(void) {
        _cleanup_(store_closep) Store *s = NULL;
        StoreBackup *b;
        char copy[600];
        uint64_t longest = 0;
        unsigned n, steps = 0;
        int done = 0;

        fresh_dirs();
        s = open_store();
        for (n = 1; n <= 2000; n++)
                check(transition(s, n) == 0);
        b = backup_new(s, USEC_INFINITY / 4);
        is_int(store_backup_begin(b, &done), 0, "begun");
        is_int(store_backup_begin(b, NULL), 0, "a second one joins");
        while (!done && steps < 10000) {
                uint64_t start = now_usec();

                (void) sd_event_run(event, 0);
                longest = MAX(longest, now_usec() - start);
                if (++steps % 5 == 0 && !done)
                        check(transition(s, n++) == 0);
        }
        is_int(done, 1, "a copy is made while 2,000 VMs' database changes");
        ok(steps > 10, "in %u steps, the longest took %llu us", steps, (unsigned long long) longest);
        is_int(files("vmunit-", copy), 1, "one");
        b = store_backup_free(b);
        s = store_close(s);

        check(rename(copy, path) == 0);
        s = open_store();
        is_int(events(s, NULL), n - 1, "all transitions until its end are in it");
        is_int(vms(s), 50, "whole");
}

static void test_foreign_writer(void) {
        _cleanup_(store_closep) Store *s = NULL;
        StoreBackup *b;
        char other[600];
        int done = 0;

        fresh_dirs();
        s = open_store();
        for (unsigned n = 1; n <= 1000; n++)
                check(transition(s, n) == 0);
        b = backup_new(s, USEC_INFINITY / 4);
        check(store_backup_begin(b, &done) == 0);
        for (unsigned i = 0; !done && i < 10000; i++) {
                (void) sd_event_run(event, 0);
                if (foreign("UPDATE vm SET message = message || 'x' WHERE name = 'vm990'") != SQLITE_OK)
                        break;
        }
        is_int(done, -EBUSY, "a program that keeps changing the file: given up, for it begins again each time");
        is_int(files("", other), 0, "nothing is left");
        is_int(make(b), 1, "and made when that has ended");
        b = store_backup_free(b);
}

static void test_days(void) {
        _cleanup_(store_closep) Store *s = NULL;
        time_t now = time(NULL);
        StoreBackup *b;
        char copy[600];
        int done = 0;

        fresh_dirs();
        s = open_store();
        check(put("vmunit-2020-01-01.db", now - 4 * 86400) && put("vmunit-2020-01-02.db", now - 3 * 86400));
        check(put("vmunit-2020-01-03.db", now - 2 * 86400) && put("vmunit-2020-01-04.db", now - 86000));
        check(put("vmunit-2019-01-01.db.mine", now - 9 * 86400) && put(".vmunit.db.new", now));

        b = backup_new(s, 0);
        ok(!there(".vmunit.db.new"), "what a crash has left goes");
        (void) loop(&done, 2 * USEC_PER_SEC);
        is_int(files("vmunit-20", copy), 5, "none is made while one is younger than a day");
        b = store_backup_free(b);

        check(put("vmunit-2020-01-04.db", now - 86500));
        b = backup_new(s, 0);
        for (int i = 0; i < 500 && there("vmunit-2020-01-02.db"); i++)
                (void) sd_event_run(event, 10 * USEC_PER_MSEC);
        ok(there("vmunit-2020-01-04.db") && there("vmunit-2020-01-03.db"), "one is made after a day; two others stay");
        ok(!there("vmunit-2020-01-01.db") && !there("vmunit-2020-01-02.db"), "the oldest ones go");
        ok(there("vmunit-2019-01-01.db.mine"), "but not what is somebody's");
        is_int(files("vmunit-20", copy), 4, "three, and that");
        b = store_backup_free(b);

        /* A clock that was wrong once: the new one stays, though the others are younger. */
        fresh_dirs();
        s = store_close(s);
        s = open_store();
        for (int i = 1; i <= 4; i++) {
                char name[32];

                snprintf(name, sizeof(name), "vmunit-2099-01-0%d.db", i);
                check(put(name, now + (10 + i) * 86400));
        }
        b = backup_new(s, 0);
        for (int i = 0; i < 500 && there("vmunit-2099-01-02.db"); i++)
                (void) sd_event_run(event, 10 * USEC_PER_MSEC);
        ok(there("vmunit-2099-01-04.db") && there("vmunit-2099-01-03.db"), "copies from the future hinder nothing");
        is_int(files("vmunit-", copy), 3, "the new one is among the three");
        b = store_backup_free(b);
}

static bool fill(const char *file, size_t leave) {
        _cleanup_close_ int fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        char block[4096] = "";
        struct stat st;

        while (write(fd, block, sizeof(block)) > 0)
                ;
        return fstat(fd, &st) == 0 && ftruncate(fd, st.st_size - (off_t) leave) == 0;
}

static void test_full(void) {
        _cleanup_(store_closep) Store *s = NULL;
        char where[200], ballast[300], other[600];
        StoreBackup *b;

        snprintf(where, sizeof(where), "%s/small", directory);
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mkdir_ok(where, 0700) < 0 || mount("tmpfs", where, "tmpfs", 0, "size=2m,mode=0700") < 0) {
                skip("full file systems", "mounts need root");
                return;
        }
        snprintf(path, sizeof(path), "%s/vmunit.db", where);
        snprintf(backup_dir, sizeof(backup_dir), "%s/backup", where);
        snprintf(ballast, sizeof(ballast), "%s/ballast", where);
        s = open_store();
        for (unsigned i = 1; i <= 40; i++)
                check(transition(s, i) == 0);
        b = backup_new(s, USEC_INFINITY / 4);
        is_int(make(b), 1, "with room");
        is_int(files("vmunit-", other), 1, "a copy");
        check(unlink(other) == 0);

        check(fill(ballast, 0));
        is_int(make(b), -ENOSPC, "without room: no copy");
        is_int(files("", other), 0, "and nothing is left of it");
        check(unlink(ballast) == 0 && fill(ballast, 100000));
        is_int(make(b), -ENOSPC, "nor where it would take the last of it");
        is_int(files("", other), 0, "nothing is left");
        check(unlink(ballast) == 0);
        is_int(make(b), 1, "with room again: a copy");
        is_int(transition(s, 41), 0, "the database was never hindered");

        check(mount(backup_dir, backup_dir, NULL, MS_BIND, NULL) == 0);
        check(mount(NULL, backup_dir, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) == 0);
        is_int(make(b), -EROFS, "read-only: no copy");
        check(umount2(backup_dir, MNT_DETACH) == 0);
        is_int(files("", other), 1, "the older one is there");

        check(store_backup_begin(b, NULL) == 0);
        (void) sd_event_run(event, 0);
        b = store_backup_free(b);
        is_int(files(".", other), 0, "what is ended in the middle leaves nothing");
        s = store_close(s);
        check(umount2(where, MNT_DETACH) == 0);
}

int main(void) {
        if (!mkdtemp(directory) || sd_event_default(&event) < 0)
                return 1;

        test_restore();
        test_concurrent();
        test_foreign_writer();
        test_days();
        test_full();

        sd_event_unref(event);
        is_int(rm_rf(directory), 0, "cleaned up");
        return done_testing();
}
