/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/string-util.h"
#include "core/store-internal.h"

#define OPEN_BUSY_MSEC 2000 /* a predecessor that is closing the file */
#define BUSY_MSEC 10        /* afterwards the event loop must not stand still */

/* Entry i makes schema version i + 1 out of version i. What was released is never changed: append. */
static const char *const migrations[] = {
        "PRAGMA application_id = 0x766d756e;"
        "CREATE TABLE vm ("
        "  seq INTEGER PRIMARY KEY AUTOINCREMENT,"
        "  id TEXT NOT NULL UNIQUE CHECK (length(id) = 36),"
        "  name TEXT NOT NULL UNIQUE CHECK (length(name) > 0),"
        "  owner INTEGER NOT NULL,"
        "  backend TEXT,"
        "  intent INTEGER NOT NULL,"
        "  state TEXT NOT NULL,"
        "  reason TEXT NOT NULL,"
        "  message TEXT NOT NULL,"
        "  state_since INTEGER NOT NULL,"
        "  created INTEGER NOT NULL,"
        "  started INTEGER NOT NULL,"
        "  boot_id TEXT NOT NULL,"
        "  exit_known INTEGER NOT NULL,"
        "  exit_code INTEGER NOT NULL,"
        "  exit_signal INTEGER NOT NULL,"
        "  restart_count INTEGER NOT NULL,"
        "  restart_at INTEGER NOT NULL);"
        /* apart from the row that each transition writes anew */
        "CREATE TABLE definition ("
        "  vm_id TEXT PRIMARY KEY NOT NULL REFERENCES vm (id) ON DELETE CASCADE,"
        "  text TEXT NOT NULL,"
        "  next_text TEXT);"
        "CREATE TABLE event ("
        "  id INTEGER PRIMARY KEY AUTOINCREMENT,"
        "  usec INTEGER NOT NULL,"
        "  vm_id TEXT NOT NULL,"
        "  vm_name TEXT NOT NULL,"
        "  type TEXT NOT NULL,"
        "  message TEXT NOT NULL,"
        "  details TEXT);"
        "CREATE TABLE usage ("
        "  id INTEGER PRIMARY KEY AUTOINCREMENT,"
        "  vm_id TEXT NOT NULL,"
        "  vm_name TEXT NOT NULL,"
        "  start_usec INTEGER NOT NULL,"
        "  end_usec INTEGER CHECK (end_usec >= start_usec),"
        "  boot_id TEXT NOT NULL,"
        "  invocation_id TEXT NOT NULL);"
        "CREATE UNIQUE INDEX usage_open ON usage (vm_id) WHERE end_usec IS NULL;"
        "CREATE INDEX usage_end ON usage (end_usec);"
        "CREATE TABLE counter (name TEXT PRIMARY KEY NOT NULL, next INTEGER NOT NULL);",
        "ALTER TABLE vm ADD COLUMN start_from TEXT NOT NULL DEFAULT 'Stopped';",
        /* 0: none, as long as its row is being inserted */
        "ALTER TABLE vm ADD COLUMN slot INTEGER NOT NULL DEFAULT 0;"
        "UPDATE vm SET slot = (SELECT count(*) FROM vm AS v WHERE v.seq <= vm.seq);"
        "CREATE UNIQUE INDEX vm_slot ON vm (slot) WHERE slot > 0;",
        /* anybody may ask for those of a VM, also of one that never was */
        "CREATE INDEX event_vm_id ON event (vm_id); CREATE INDEX event_vm_name ON event (vm_name);",
};

#define SCHEMA_VERSION ((int) ELEMENTSOF(migrations))

static int refuse(char **ret_message, int error, const char *format, ...) _printf_(3, 4);
static int refuse(char **ret_message, int error, const char *format, ...) {
        char *s;
        va_list ap;

        va_start(ap, format);
        if (vasprintf(&s, format, ap) >= 0)
                *ret_message = s;
        va_end(ap);
        return error;
}

static int refuse_corrupt(const char *path, char **ret_message) {
        return refuse(ret_message, -EBADMSG, "%s is corrupt: move it, %s-wal and %s-shm away and restore a copy of it, such as "
                      "the newest in backup/ beside it.", path, path, path);
}

static int refuse_error(const char *path, int error, char **ret_message) {
        switch (error) {
        case -EBADMSG:
                return refuse_corrupt(path, ret_message);
        case -EBUSY:
                return refuse(ret_message, error,
                              "%s is locked by another program: end that, then start vmunitd again.", path);
        case -ENOSPC:
                return refuse(ret_message, error, "%s cannot be opened, its file system is full: make room there.",
                              path);
        case -EROFS:
                return refuse(ret_message, error,
                              "%s cannot be written, it or its file system is read-only: make it writable.", path);
        case -EACCES:
                return refuse(ret_message, error,
                              "%s or its directory may not be read and written by vmunitd: correct their owner and "
                              "mode.", path);
        default:
                return refuse(ret_message, error, "%s cannot be opened: %s; put that right or restore a copy of it.",
                              path, strerror(-error));
        }
}

static int exec_sql(sqlite3 *db, const char *sql) {
        return store_error(db, sqlite3_exec(db, sql, NULL, NULL, NULL));
}

static int query_int(sqlite3 *db, const char *sql, int *ret) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int rc;

        rc = sqlite3_prepare_v2(db, sql, -1, &st, NULL);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(st);
        if (rc != SQLITE_ROW)
                return store_error(db, rc) ?: -EIO;

        *ret = sqlite3_column_int(st, 0);
        return 0;
}

/* Whether the first row of what sql gives is this text. */
static int query_is(sqlite3 *db, const char *sql, const char *want) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int rc;

        rc = sqlite3_prepare_v2(db, sql, -1, &st, NULL);
        if (rc == SQLITE_OK)
                rc = sqlite3_step(st);
        if (rc != SQLITE_ROW)
                return store_error(db, rc) ?: -EIO;
        return streq(strempty((const char *) sqlite3_column_text(st, 0)), want);
}

static int migrate_step(sqlite3 *db, const char *sql, int version) {
        char pragma[64];
        int r;

        (void) snprintf(pragma, sizeof(pragma), "PRAGMA user_version = %d", version);

        r = exec_sql(db, "BEGIN IMMEDIATE");
        if (r < 0)
                return r;

        r = exec_sql(db, sql);
        if (r >= 0)
                r = exec_sql(db, pragma);
        if (r >= 0)
                r = exec_sql(db, "COMMIT");
        if (r < 0 && !sqlite3_get_autocommit(db))
                (void) exec_sql(db, "ROLLBACK");
        return r;
}

int store_migrate(sqlite3 *db, const char *const *steps, int n) {
        int r, version;

        r = query_int(db, "PRAGMA user_version", &version);
        for (; r >= 0 && version < n; version++)
                r = migrate_step(db, steps[version], version + 1);
        return r;
}

static int open_file(const char *path, sqlite3 **ret) {
        _cleanup_(sqlite3_closep) sqlite3 *db = NULL;
        int rc;

        /* without CREATE: never a new database in place of one that went away */
        rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
        if (rc != SQLITE_OK)
                return db ? store_error(db, rc) : -ENOMEM;

        (void) sqlite3_extended_result_codes(db, 1);
        (void) sqlite3_busy_timeout(db, OPEN_BUSY_MSEC);
        *ret = TAKE_PTR(db);
        return 0;
}

/* The daemon's memory is small; what a commit says is on disk. */
static int set_up(sqlite3 *db) {
        return exec_sql(db,
                        "PRAGMA cache_size = -256;"
                        "PRAGMA mmap_size = 0;"
                        "PRAGMA temp_store = MEMORY;"
                        "PRAGMA synchronous = FULL;"
                        "PRAGMA foreign_keys = ON;"
                        "PRAGMA cell_size_check = ON;"
                        "PRAGMA secure_delete = FAST;"
                        "PRAGMA locking_mode = NORMAL;"
                        "PRAGMA wal_autocheckpoint = 256;"
                        "PRAGMA journal_size_limit = 1048576;");
}

static int fsync_directory_of(const char *path) {
        _cleanup_free_ char *copy = strdup(path);
        _cleanup_close_ int fd = -EBADF;

        if (!copy)
                return -ENOMEM;
        fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) < 0)
                return -errno;
        return 0;
}

static int build_schema(const char *path) {
        _cleanup_(sqlite3_closep) sqlite3 *db = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        fd = create_fresh(path);
        if (fd < 0)
                return fd;
        fd = safe_close(fd);

        r = open_file(path, &db);
        if (r >= 0)
                r = set_up(db);
        if (r >= 0)
                r = store_migrate(db, migrations, SCHEMA_VERSION);
        return r;
}

/* Made beside and renamed when it is whole: a database is there with its tables or not at all, so that an empty or half
 * one is never taken for a new one. */
static int create_database(const char *path) {
        _cleanup_free_ char *new = strjoinf("%s.new", path), *journal = strjoinf("%s.new-journal", path);
        int r;

        if (!new || !journal)
                return -ENOMEM;

        /* what a crash left; a journal would be played back into the new file */
        if (unlink(journal) < 0 && errno != ENOENT)
                return -errno;

        r = build_schema(new);
        if (r >= 0 && renameat2(AT_FDCWD, new, AT_FDCWD, path, RENAME_NOREPLACE) < 0)
                r = -errno;
        if (r >= 0)
                return fsync_directory_of(path);

        (void) unlink(journal);
        (void) unlink(new);
        return r;
}

static int make_directory_of(const char *path) {
        _cleanup_free_ char *copy = strdup(path);
        struct stat st;

        if (!copy)
                return -ENOMEM;
        /* it may be a symbolic link to another disk */
        if (stat(dirname(copy), &st) >= 0)
                return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
        return mkdir_ok(copy, 0700);
}

/* Whether a directory beside the database has anything in it; what can't be read may have. */
static bool has_content(const char *dir) {
        struct dirent *e;
        bool found = false;
        DIR *d;

        d = opendir(dir);
        if (!d)
                return errno != ENOENT;
        while (!found && (e = readdir(d)))
                found = e->d_name[0] != '.';
        closedir(d);
        return found;
}

/* No database: make one, unless there are signs of one that is lost. */
static int check_missing(const char *path, char **ret_message) {
        _cleanup_free_ char *wal = strjoinf("%s-wal", path), *copy = strdup(path), *backup = NULL, *vms = NULL;
        struct stat st;
        int r;

        if (!wal || !copy)
                return -ENOMEM;
        backup = strjoinf("%s/backup", dirname(copy));
        vms = strjoinf("%s/vms", copy);
        if (!backup || !vms)
                return -ENOMEM;

        r = make_directory_of(path);
        if (r < 0)
                return refuse(ret_message, r, "The directory of %s cannot be made: %s; make it, with mode 0700.", path,
                              strerror(-r));

        if (lstat(path, &st) >= 0)
                return refuse(ret_message, -ENOENT, "%s is a symbolic link that leads nowhere: restore what it names.",
                              path);
        /* SQLite would play it back into the new one */
        if (stat(wal, &st) >= 0 && st.st_size > 0)
                return refuse(ret_message, -ENOENT,
                              "%s is missing, but %s holds changes to it: restore a copy of both, or remove the latter "
                              "to begin with no VMs.", path, wal);
        if (has_content(backup))
                return refuse(ret_message, -ENOENT,
                              "%s is missing, but there are copies of it: copy the newest of %s back to that name, or "
                              "remove %s and %s to begin with no VMs.", path, backup, backup, vms);
        if (has_content(vms))
                return refuse(ret_message, -ENOENT,
                              "%s is missing, but there are files of its VMs: restore a copy of it, or remove %s to "
                              "begin with no VMs.", path, vms);

        r = create_database(path);
        return r < 0 ? refuse_error(path, r, ret_message) : 0;
}

static int check_file(const char *path, char **ret_message) {
        struct stat st;

        if (stat(path, &st) < 0)
                return errno == ENOENT ? check_missing(path, ret_message) : refuse_error(path, -errno, ret_message);
        if (!S_ISREG(st.st_mode))
                return refuse(ret_message, S_ISDIR(st.st_mode) ? -EISDIR : -EBADMSG,
                              "%s is %s, not a database: move it away and restore a copy of the database.", path,
                              S_ISDIR(st.st_mode) ? "a directory" : "no regular file");

        /* A crash of ours leaves none, so data was lost; SQLite would take it for a new one and delete its -wal. */
        if (st.st_size == 0)
                return refuse(ret_message, -EBADMSG,
                              "%s is empty: restore a copy of it, or remove it and %s-wal to begin with no VMs.", path,
                              path);
        if (euidaccess(path, R_OK | W_OK) < 0)
                return refuse_error(path, -errno, ret_message);
        return 0;
}

/* Whose database it is, before anything in it is changed */
static int check_header(sqlite3 *db, const char *path, char **ret_message) {
        int application, version, r;

        r = query_int(db, "PRAGMA user_version", &version);
        if (r >= 0)
                r = query_int(db, "PRAGMA application_id", &application);
        if (r == -EBADMSG && (sqlite3_extended_errcode(db) & 0xff) == SQLITE_NOTADB)
                return refuse(ret_message, r,
                              "%s is not an SQLite database: move it, %s-wal and %s-shm away and restore a copy of it.",
                              path, path, path);
        if (r < 0)
                return refuse_error(path, r, ret_message);

        if (application != STORE_APPLICATION_ID || version < 1)
                return refuse(ret_message, -EBADMSG,
                              "%s is an SQLite database, but not one of vmunit: move it away and restore a copy of the "
                              "right one.", path);
        if (version > SCHEMA_VERSION)
                return refuse(ret_message, -EOPNOTSUPP,
                              "%s has schema version %d, this vmunit knows up to %d: upgrade vmunit, or restore a copy "
                              "that this version made.", path, version, SCHEMA_VERSION);
        return 0;
}

static int read_nothing(VMRecord *r, void *userdata) {
        return 0;
}

static int prepare(Store *s) {
        int r;

        r = query_is(s->db, "PRAGMA journal_mode = WAL", "wal");
        if (r == 0)
                return -EOPNOTSUPP; /* a file system without shared memory maps */
        if (r > 0)
                r = store_migrate(s->db, migrations, SCHEMA_VERSION);
        if (r >= 0)
                r = store_prepare_all(s);
        if (r >= 0)
                r = store_foreach_vm(s, read_nothing, NULL);
        if (r >= 0)
                r = store_load_counters(s);
        return r;
}

static int check_database(Store *s, const char *path, char **ret_message) {
        int r;

        r = check_header(s->db, path, ret_message);
        if (r < 0)
                return r;
        if (sqlite3_db_readonly(s->db, "main") != 0)
                return refuse_error(path, -EROFS, ret_message);

        /* Reads every page once; it sees all but a change within a text. */
        r = query_is(s->db, "PRAGMA quick_check(1)", "ok");
        if (r == 0)
                return refuse_corrupt(path, ret_message);
        if (r > 0)
                r = set_up(s->db);
        if (r >= 0)
                r = prepare(s);
        return r < 0 ? refuse_error(path, r, ret_message) : 0;
}

int store_open(const char *path, Store **ret, char **ret_message) {
        _cleanup_(store_closep) Store *s = NULL;
        int r;

        *ret_message = NULL;

        r = check_file(path, ret_message);
        if (r < 0)
                return r;

        s = new0(Store, 1);
        if (!s)
                return -ENOMEM;

        r = open_file(path, &s->db);
        if (r < 0)
                return refuse_error(path, r, ret_message);

        /* What is refused stays as it is, its -wal too. */
        (void) sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
        r = check_database(s, path, ret_message);
        if (r < 0)
                return r;
        (void) sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);

        (void) sqlite3_busy_timeout(s->db, BUSY_MSEC);
        (void) sqlite3_db_release_memory(s->db); /* what the check has read */
        *ret = TAKE_PTR(s);
        return 0;
}
