/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "basic/time-util.h"
#include "core/store-backup.h"
#include "core/store-internal.h"

#define KEEP 3
#define DAY_USEC (24 * 3600 * USEC_PER_SEC)
#define LOOK_USEC (3600 * USEC_PER_SEC)         /* how often it is looked whether one is due */
#define RETRY_USEC (600 * USEC_PER_SEC)
#define ACCURACY_USEC USEC_PER_SEC
#define STEP_PAGES 8                            /* 32 KiB, and as much to be written out */

struct StoreBackup {
        sd_event *event;
        Store *store;
        char *dir, *temporary;
        sd_event_source *timer, *idle;

        /* of the one that is being made */
        sqlite3 *to;
        sqlite3_backup *backup;
        int fd;
        uint64_t pages_left;    /* that may be copied until it is given up */
        int *done;
};

/* The files */

static bool is_copy(const char *name) {
        return fnmatch("vmunit-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].db", name, 0) == 0;
}

typedef struct Copies {
        unsigned n;
        bool fresh;             /* one is younger than a day */
        char oldest[sizeof("vmunit-YYYY-MM-DD.db")];
        uint64_t oldest_usec;
} Copies;

static void copies_add(Copies *c, const char *name, const struct stat *st, const char *keep) {
        uint64_t usec = (uint64_t) st->st_mtim.tv_sec * USEC_PER_SEC + (uint64_t) st->st_mtim.tv_nsec / 1000;
        uint64_t now = now_realtime();

        c->n++;
        /* one from the future was made while the clock was wrong */
        if (usec <= now && now - usec < DAY_USEC)
                c->fresh = true;
        if ((!keep || !streq(name, keep)) && (!c->oldest[0] || usec < c->oldest_usec)) {
                c->oldest_usec = usec;
                memcpy(c->oldest, name, sizeof(c->oldest));
        }
}

/* The oldest is looked for among all but keep. */
static int copies_read(const char *dir, const char *keep, Copies *ret) {
        DIR *d;

        *ret = (Copies) {};
        d = opendir(dir);
        if (!d)
                return errno == ENOENT ? 0 : -errno;
        for (struct dirent *e; (e = readdir(d));) {
                struct stat st;

                if (is_copy(e->d_name) && fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) >= 0)
                        copies_add(ret, e->d_name, &st, keep);
        }
        closedir(d);
        return 0;
}

static int drop_old(StoreBackup *b, const char *keep) {
        for (;;) {
                _cleanup_free_ char *path = NULL;
                Copies c;
                int r;

                r = copies_read(b->dir, keep, &c);
                if (r < 0 || c.n <= KEEP || !c.oldest[0])
                        return r;
                path = strjoinf("%s/%s", b->dir, c.oldest);
                if (!path)
                        return -ENOMEM;
                if (unlink(path) < 0)
                        return -errno;
        }
}

/* The time of the next look */

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata);

static void set_timer(StoreBackup *b, uint64_t usec) {
        int r;

        b->timer = sd_event_source_disable_unref(b->timer);
        r = sd_event_add_time_relative(b->event, &b->timer, CLOCK_BOOTTIME, usec, ACCURACY_USEC, on_timer, b);
        if (r < 0)
                log_warning_errno(r, "No timer for the next copy of the database");
}

/* Making one */

static void drop(StoreBackup *b) {
        b->idle = sd_event_source_disable_unref(b->idle);
        if (b->backup)
                (void) sqlite3_backup_finish(b->backup);
        b->backup = NULL;
        sqlite3_close(b->to);
        b->to = NULL;
        b->fd = safe_close(b->fd);
        (void) unlink(b->temporary);
}

static void finish(StoreBackup *b, int r) {
        drop(b);
        if (r < 0)
                log_warning_errno(r, "No copy of the database could be made in %s, which is tried again in %u min", b->dir,
                                  (unsigned) (RETRY_USEC / USEC_PER_SEC / 60));
        set_timer(b, r < 0 ? RETRY_USEC : LOOK_USEC);
        if (b->done)
                *b->done = r < 0 ? r : 1;
        b->done = NULL;
}

static int publish(StoreBackup *b) {
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int dir = -EBADF;
        time_t now = (time_t) (now_realtime() / USEC_PER_SEC);
        char name[32];
        struct tm tm;
        int r;

        if (!localtime_r(&now, &tm) || strftime(name, sizeof(name), "vmunit-%Y-%m-%d.db", &tm) == 0)
                return -EINVAL;
        path = strjoinf("%s/%s", b->dir, name);
        if (!path)
                return -ENOMEM;
        dir = open(b->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0 || fsync(b->fd) < 0 || rename(b->temporary, path) < 0 || fsync(dir) < 0)
                return -errno;

        log_info("The database was copied to %s", path);
        r = drop_old(b, name);
        if (r < 0)
                log_warning_errno(r, "Old copies of the database in %s can't be removed", b->dir);
        return 0;
}

/* 0: there is more to do. What was copied is written out at once, so that no step has much to wait for. */
static int step(StoreBackup *b) {
        int rc;

        rc = sqlite3_backup_step(b->backup, STEP_PAGES);
        if (rc == SQLITE_OK) {
                if (b->pages_left < STEP_PAGES)
                        return -EBUSY;          /* another program keeps changing it, so that it begins again and again */
                b->pages_left -= STEP_PAGES;
                (void) sqlite3_db_cacheflush(b->to);
                return fdatasync(b->fd) < 0 ? -errno : 0;
        }
        if (rc != SQLITE_DONE)
                return store_error(b->to, rc) ?: -EIO;

        rc = sqlite3_backup_finish(b->backup);
        b->backup = NULL;
        if (rc == SQLITE_OK)
                rc = sqlite3_close(b->to);
        if (rc != SQLITE_OK)
                return store_error(b->to, rc);
        b->to = NULL;
        return publish(b) ?: 1;
}

static int on_idle(sd_event_source *source, void *userdata) {
        StoreBackup *b = userdata;
        int r;

        r = step(b);
        if (r != 0)
                finish(b, r);
        return 0;
}

static int pages(StoreBackup *b, const char *pragma, uint64_t *ret) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int r;

        r = store_walk_new(b->store, pragma, &st, "");
        if (r < 0)
                return r;
        if (sqlite3_step(st) != SQLITE_ROW)
                return -EIO;
        *ret = (uint64_t) sqlite3_column_int64(st, 0);
        return 0;
}

/* Not on a file system that it would all but fill: the database itself needs the room. */
static int check_room(StoreBackup *b) {
        uint64_t count, size;
        struct statvfs v;
        int r;

        r = pages(b, "PRAGMA page_count", &count);
        if (r >= 0)
                r = pages(b, "PRAGMA page_size", &size);
        if (r < 0)
                return r;
        if (statvfs(b->dir, &v) < 0)
                return -errno;
        if ((uint64_t) v.f_bavail * v.f_frsize < 2 * count * size)
                return -ENOSPC;
        b->pages_left = 8 * count + 1024;
        return 0;
}

static int begin(StoreBackup *b) {
        int r;

        r = mkdir_ok(b->dir, 0700);
        if (r >= 0)
                r = check_room(b);
        if (r < 0)
                return r;
        r = b->fd = create_fresh(b->temporary);
        if (r < 0)
                return r;

        r = store_error(NULL, sqlite3_open_v2(b->temporary, &b->to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL));
        /* A crash leaves a file that is never used, so it needs no journal. */
        if (r >= 0)
                r = store_error(b->to, sqlite3_exec(b->to, "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; "
                                                           "PRAGMA cache_size = 16", NULL, NULL, NULL));
        if (r < 0)
                return r;
        b->backup = sqlite3_backup_init(b->to, "main", b->store->db, "main");
        if (!b->backup)
                return store_error(b->to, sqlite3_errcode(b->to)) ?: -EIO;

        r = sd_event_add_defer(b->event, &b->idle, on_idle, b);
        if (r >= 0)
                r = sd_event_source_set_priority(b->idle, SD_EVENT_PRIORITY_IDLE);
        if (r >= 0)
                r = sd_event_source_set_enabled(b->idle, SD_EVENT_ON);
        return r;
}

int store_backup_begin(StoreBackup *b, int *done) {
        int r;

        if (b->backup)
                return 0;
        b->done = done;
        r = begin(b);
        if (r < 0)
                finish(b, r);
        return r;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
        StoreBackup *b = userdata;
        Copies c;
        int r;

        r = store_prune_events(b->store, now_realtime());
        if (r < 0)
                log_warning_errno(r, "Old events can't be dropped now");

        r = copies_read(b->dir, NULL, &c);
        if (r < 0)
                finish(b, r);
        else if (c.fresh)
                set_timer(b, LOOK_USEC);
        else
                (void) store_backup_begin(b, NULL);
        return 0;
}

StoreBackup *store_backup_free(StoreBackup *b) {
        if (!b)
                return NULL;

        drop(b);
        sd_event_source_disable_unref(b->timer);
        sd_event_unref(b->event);
        free(b->dir);
        free(b->temporary);
        free(b);
        return NULL;
}

int store_backup_new(sd_event *event, Store *s, const char *dir, uint64_t first_usec, StoreBackup **ret) {
        _cleanup_(store_backup_freep) StoreBackup *b = new(StoreBackup, 1);

        if (!b)
                return -ENOMEM;
        *b = (StoreBackup) { .event = sd_event_ref(event), .store = s, .fd = -EBADF };
        b->dir = strdup(dir);
        b->temporary = strjoinf("%s/.vmunit.db.new", dir);
        if (!b->dir || !b->temporary)
                return -ENOMEM;

        (void) unlink(b->temporary); /* what a crash has left */
        set_timer(b, first_usec);
        *ret = TAKE_PTR(b);
        return 0;
}
