/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <assert.h>
#include <stdarg.h>

#include "basic/string-util.h"
#include "core/store-internal.h"

static const char *const statement_table[_STATEMENT_MAX] = {
        /* takes the write lock at once: a commit can't find it taken */
        [STATEMENT_BEGIN] = "BEGIN IMMEDIATE",
        [STATEMENT_COMMIT] = "COMMIT",
        [STATEMENT_ROLLBACK] = "ROLLBACK",
        [STATEMENT_NEXT_SEQ] =
                "SELECT max(?1, (SELECT coalesce(max(seq), 0) FROM vm), "
                "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'vm')) + 1",
        [STATEMENT_INSERT_VM] =
                "INSERT INTO vm (seq, id, name, created, owner, backend, intent, state, reason, message, state_since, "
                "started, boot_id, exit_known, exit_code, exit_signal, restart_count, restart_at, start_from) "
                "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
        [STATEMENT_SET_SEQ] = "UPDATE vm SET seq = ?2 WHERE id = ?1",
        [STATEMENT_SET_SLOT] = "UPDATE vm SET slot = ?2 WHERE id = ?1",
        [STATEMENT_INSERT_DEFINITION] = "INSERT INTO definition (vm_id, text, next_text) VALUES (?1, ?2, ?3)",
        [STATEMENT_UPDATE_VM] =
                "UPDATE vm SET owner = ?2, backend = ?3, intent = ?4, state = ?5, reason = ?6, message = ?7, "
                "state_since = ?8, started = ?9, boot_id = ?10, exit_known = ?11, exit_code = ?12, exit_signal = ?13, "
                "restart_count = ?14, restart_at = ?15, start_from = ?16 WHERE id = ?1",
        /* most transitions leave it alone, and it may be large */
        [STATEMENT_UPDATE_DEFINITION] =
                "UPDATE definition SET text = ?2, next_text = ?3 "
                "WHERE vm_id = ?1 AND (text IS NOT ?2 OR next_text IS NOT ?3)",
        [STATEMENT_DELETE_VM] = "DELETE FROM vm WHERE id = ?1",
        [STATEMENT_HAS_VM] = "SELECT 1 FROM vm WHERE id = ?1",
        [STATEMENT_ADD_EVENT] =
                "INSERT INTO event (usec, vm_id, vm_name, type, message, details) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        /* a bounded number at a time, also when the bound was lowered */
        [STATEMENT_PRUNE_EVENTS] =
                "DELETE FROM event WHERE id <= min(?1, (SELECT min(id) FROM event) + 500)",
        /* those before the first that is young enough: a clock that was wrong for a while makes no gaps */
        [STATEMENT_PRUNE_OLD_EVENTS] =
                "DELETE FROM event WHERE id < min((SELECT min(id) FROM event) + 500, "
                "coalesce((SELECT id FROM event WHERE usec >= ?1 ORDER BY id LIMIT 1), ?2))",
        [STATEMENT_OPEN_USAGE] =
                "INSERT INTO usage (vm_id, vm_name, start_usec, boot_id, invocation_id) VALUES (?1, ?2, ?3, ?4, ?5)",
        /* a clock that was set back must not make an interval end before it began */
        [STATEMENT_CLOSE_USAGE] =
                "UPDATE usage SET end_usec = max(?2, start_usec) WHERE vm_id = ?1 AND end_usec IS NULL",
        [STATEMENT_USAGE_IS_OPEN] = "SELECT 1 FROM usage WHERE vm_id = ?1 AND end_usec IS NULL",
        [STATEMENT_LAST_STEP] = "SELECT CASE type WHEN 'starting' THEN 1 WHEN 'running' THEN 2 ELSE 3 END FROM event "
                                "WHERE vm_id = ?1 AND type IN ('starting', 'running', 'vmm-exited') ORDER BY id DESC LIMIT 1",
        [STATEMENT_RESERVE_NUMBERS] =
                "INSERT INTO counter (name, next) VALUES (?1, ?2 + ?3) "
                "ON CONFLICT (name) DO UPDATE SET next = max(next, ?2) + ?3 RETURNING next",
};

/* What the system said, where SQLite has one code for many causes. */
static int error_of_errno(int error) {
        switch (error) {
        case ENOSPC:
        case EDQUOT:
                return -ENOSPC;
        case EROFS:
        case EACCES:
        case ENOMEM:
                return -error;
        default:
                return -EIO;
        }
}

/* A failed write or sync of the -wal leaves its errno only there. */
static int wal_errno(sqlite3 *db) {
        sqlite3_file *f = NULL;
        int e = 0;

        if (sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &f) != SQLITE_OK || !f || !f->pMethods)
                return 0;
        if (f->pMethods->xFileControl(f, SQLITE_FCNTL_LAST_ERRNO, &e) != SQLITE_OK)
                return 0;
        return e;
}

int store_error(sqlite3 *db, int rc) {
        switch (rc & 0xff) {
        case SQLITE_OK:
        case SQLITE_ROW:
        case SQLITE_DONE:
                return 0;
        case SQLITE_FULL:
                return -ENOSPC;
        case SQLITE_READONLY:
                return rc == SQLITE_READONLY_DIRECTORY ? -EACCES : -EROFS;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
                return -EBUSY;
        case SQLITE_NOMEM:
                return -ENOMEM;
        case SQLITE_CONSTRAINT:
                return rc == SQLITE_CONSTRAINT_UNIQUE || rc == SQLITE_CONSTRAINT_PRIMARYKEY ? -EEXIST : -EIO;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
                return -EBADMSG;
        case SQLITE_IOERR:
                if (rc == SQLITE_IOERR_NOMEM)
                        return -ENOMEM;
                return error_of_errno(wal_errno(db) ?: sqlite3_system_errno(db));
        case SQLITE_CANTOPEN:
                return error_of_errno(sqlite3_system_errno(db));
        default:
                return -EIO;
        }
}

int store_prepare_all(Store *s) {
        for (Statement i = 0; i < _STATEMENT_MAX; i++) {
                int rc = sqlite3_prepare_v3(s->db, statement_table[i], -1, SQLITE_PREPARE_PERSISTENT,
                                            &s->statements[i], NULL);
                if (rc != SQLITE_OK)
                        return store_error(s->db, rc);
        }
        return 0;
}

Store *store_close(Store *s) {
        if (!s)
                return NULL;

        store_rollback(s);
        for (size_t i = 0; i < _STATEMENT_MAX; i++)
                sqlite3_finalize(s->statements[i]);
        sqlite3_close(s->db);
        for (size_t i = 0; i < s->n_counters; i++)
                free(s->counters[i].name);
        free(s->counters);
        free(s->reserved);
        store_drop_kept(s);
        free(s);
        return NULL;
}

int store_bindv(sqlite3_stmt *st, const char *types, va_list ap) {
        for (int i = 1, rc; *types; types++, i++) {
                if (*types == 's')
                        rc = sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
                else
                        rc = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
                if (rc != SQLITE_OK)
                        return store_error(sqlite3_db_handle(st), rc);
        }
        return 0;
}

static int run(Store *s, sqlite3_stmt *st, int64_t *ret) {
        bool row = false;
        int rc;

        while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
                if (ret)
                        *ret = sqlite3_column_int64(st, 0);
                row = true;
        }
        return rc == SQLITE_DONE ? row : store_error(s->db, rc);
}

static int runv(Store *s, Statement i, int64_t *ret, const char *types, va_list ap) {
        sqlite3_stmt *st = s->statements[i];
        int64_t value = 0;
        int r;

        r = store_bindv(st, types, ap);
        if (r >= 0)
                r = run(s, st, &value);
        if (r > 0 && ret)
                *ret = value;

        /* kept statements hold neither locks nor borrowed strings */
        sqlite3_reset(st);
        sqlite3_clear_bindings(st);

        if (r < 0 && s->writing && sqlite3_get_autocommit(s->db))
                s->error = r;
        return r;
}

int store_run(Store *s, Statement i, int64_t *ret, const char *types, ...) {
        va_list ap;
        int r;

        va_start(ap, types);
        r = runv(s, i, ret, types, ap);
        va_end(ap);
        return r;
}

int store_write(Store *s, Statement i, int64_t *ret, const char *types, ...) {
        va_list ap;
        int r;

        /* After some errors SQLite rolls back by itself; what follows would be committed statement by statement. */
        assert(s->writing);
        if (s->error < 0)
                return s->error;

        va_start(ap, types);
        r = runv(s, i, ret, types, ap);
        va_end(ap);
        return r;
}

int store_walk_new(Store *s, const char *sql, sqlite3_stmt **ret, const char *types, ...) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        va_list ap;
        int r, rc;

        rc = sqlite3_prepare_v2(s->db, sql, -1, &st, NULL);
        if (rc != SQLITE_OK)
                return store_error(s->db, rc);

        va_start(ap, types);
        r = store_bindv(st, types, ap);
        va_end(ap);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(st);
        return 0;
}

int store_begin(Store *s) {
        int r;

        assert(!s->writing);
        r = store_run(s, STATEMENT_BEGIN, NULL, "");
        if (r < 0)
                return r;

        s->writing = true;
        s->error = 0;
        return 0;
}

int store_commit(Store *s) {
        int r;

        r = store_write(s, STATEMENT_COMMIT, NULL, "");
        if (r < 0)
                return r;

        s->writing = false;
        for (size_t i = 0; i < s->n_counters; i++)
                s->counters[i].pending = false;
        store_kept_committed(s);
        return 0;
}

int store_end(Store *s, int r) {
        if (r >= 0)
                r = store_commit(s);
        if (r < 0)
                store_rollback(s);
        return r;
}

static bool slot_is_reserved(const Store *s, uint32_t slot) {
        for (size_t i = 0; i < s->n_reserved; i++)
                if (s->reserved[i].slot == slot)
                        return true;
        return false;
}

static bool seq_is_reserved(const Store *s, uint64_t seq) {
        for (size_t i = 0; i < s->n_reserved; i++)
                if (s->reserved[i].seq == seq)
                        return true;
        return false;
}

/* AUTOINCREMENT alone knows what this database has had. */
static int next_seq(Store *s, VMRecord *r) {
        int64_t seq = 0;
        int k;

        for (size_t i = 0; i < s->n_reserved; i++)
                seq = MAX(seq, (int64_t) s->reserved[i].seq);
        k = store_write(s, STATEMENT_NEXT_SEQ, &seq, "i", seq);
        r->seq = (uint64_t) seq;
        return k;
}

/* One after the other, so that none is soon used again, and the next one where another VM has it still. */
static int take_slot(Store *s, VMRecord *r) {
        for (uint64_t i = 0; i < VM_SLOTS_MAX; i++) {
                int k;

                r->slot = (uint32_t) ((r->seq - 1 + i) % VM_SLOTS_MAX + 1);
                if (slot_is_reserved(s, r->slot))
                        continue;
                k = store_write(s, STATEMENT_SET_SLOT, NULL, "si", r->id, (int64_t) r->slot);
                if (k != -EEXIST)
                        return k;
        }
        return -EUSERS;
}

int store_insert_vm(Store *s, VMRecord *r) {
        int k;

        k = next_seq(s, r);
        if (k < 0)
                return k;
        k = store_write(s, STATEMENT_INSERT_VM, NULL, "issiisisssiisiiiiis", (int64_t) r->seq, r->id, r->name,
                        (int64_t) r->created, (int64_t) r->owner, r->backend, (int64_t) r->intent, vm_state_to_string(r->state),
                        strempty(r->reason), strempty(r->message), (int64_t) r->state_since, (int64_t) r->started,
                        r->boot_id, (int64_t) r->exit_known, (int64_t) r->exit_code, (int64_t) r->exit_signal,
                        (int64_t) r->restart_count, (int64_t) r->restart_at, vm_state_to_string(r->start_from));
        if (k < 0)
                return k;
        k = take_slot(s, r);
        return k < 0 ? k : store_write(s, STATEMENT_INSERT_DEFINITION, NULL, "sss", r->id, r->definition, r->next_definition);
}

/* Id, name and time of creation never change. */
int store_update_vm(Store *s, const VMRecord *r) {
        int k;

        k = store_write(s, STATEMENT_UPDATE_VM, NULL, "sisisssiisiiiiis", r->id, (int64_t) r->owner, r->backend,
                        (int64_t) r->intent, vm_state_to_string(r->state), strempty(r->reason), strempty(r->message),
                        (int64_t) r->state_since, (int64_t) r->started, r->boot_id, (int64_t) r->exit_known,
                        (int64_t) r->exit_code, (int64_t) r->exit_signal, (int64_t) r->restart_count,
                        (int64_t) r->restart_at, vm_state_to_string(r->start_from));
        if (k < 0)
                return k;
        if (sqlite3_changes(s->db) == 0)
                return -ENOENT;
        return store_write(s, STATEMENT_UPDATE_DEFINITION, NULL, "sss", r->id, r->definition, r->next_definition);
}

int store_delete_vm(Store *s, const char *id) {
        int r;

        r = store_write(s, STATEMENT_DELETE_VM, NULL, "s", id);
        if (r < 0)
                return r;
        return sqlite3_changes(s->db) > 0 ? 0 : -ENOENT;
}

int store_has_vm(Store *s, const char *id) {
        return store_run(s, STATEMENT_HAS_VM, NULL, "s", id);
}

static int column_dup(sqlite3_stmt *st, int i, char **ret) {
        return free_and_strdup(ret, (const char *) sqlite3_column_text(st, i));
}

/* An id of a row, which may be anything where the file was tampered with. */
static int column_id(sqlite3_stmt *st, int i, char ret[static 37]) {
        const char *t = (const char *) sqlite3_column_text(st, i);

        if (!t || strlen(t) > 36)
                return -EBADMSG;
        strcpy(ret, t);
        return 0;
}

static int read_strings(sqlite3_stmt *st, VMRecord *r) {
        if (column_dup(st, 1, &r->name) < 0 || column_dup(st, 3, &r->definition) < 0 ||
            column_dup(st, 4, &r->next_definition) < 0 || column_dup(st, 5, &r->backend) < 0 ||
            column_dup(st, 8, &r->reason) < 0 || column_dup(st, 9, &r->message) < 0)
                return -ENOMEM;
        if (!r->name || !r->definition || !r->reason || !r->message)
                return -EBADMSG;
        return 0;
}

static int read_record(sqlite3_stmt *st, VMRecord *ret) {
        _cleanup_(vm_record_done) VMRecord c = {};
        int r;

        r = column_id(st, 0, c.id);
        if (r >= 0)
                r = column_id(st, 13, c.boot_id);
        if (r >= 0)
                r = read_strings(st, &c);
        if (r < 0)
                return r;

        c.state = vm_state_from_string((const char *) sqlite3_column_text(st, 7));
        c.start_from = vm_state_from_string((const char *) sqlite3_column_text(st, 19));
        if ((int) c.state < 0 || (int) c.start_from < 0)
                return -EBADMSG;

        c.owner = sqlite3_column_int64(st, 2);
        c.intent = sqlite3_column_int(st, 6);
        c.state_since = sqlite3_column_int64(st, 10);
        c.created = sqlite3_column_int64(st, 11);
        c.started = sqlite3_column_int64(st, 12);
        c.exit_known = sqlite3_column_int(st, 14);
        c.exit_code = sqlite3_column_int(st, 15);
        c.exit_signal = sqlite3_column_int(st, 16);
        c.restart_count = sqlite3_column_int64(st, 17);
        c.restart_at = sqlite3_column_int64(st, 18);
        c.seq = (uint64_t) sqlite3_column_int64(st, 20);
        c.slot = (uint32_t) sqlite3_column_int(st, 21);

        *ret = c;
        c = (VMRecord) {};
        return 0;
}

int store_foreach_vm(Store *s, int (*cb)(VMRecord *r, void *userdata), void *userdata) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int r, rc;

        /* LEFT: a VM whose definition is missing is an error, not a VM less */
        r = store_walk_new(s, "SELECT id, name, owner, text, next_text, backend, intent, state, reason, message, "
                              "state_since, created, started, boot_id, exit_known, exit_code, exit_signal, "
                              "restart_count, restart_at, start_from, seq, slot FROM vm LEFT JOIN definition ON vm_id = id ORDER BY seq",
                           &st, "");
        if (r < 0)
                return r;

        while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
                _cleanup_(vm_record_done) VMRecord record = {};

                r = read_record(st, &record);
                if (r >= 0)
                        r = cb(&record, userdata);
                if (r < 0)
                        return r;
        }
        return store_error(s->db, rc);
}

/* It comes by once more, with its new number, which is its own. */
static int renumber(VMRecord *r, void *userdata) {
        Store *s = userdata;
        int k;

        if (!seq_is_reserved(s, r->seq) && !slot_is_reserved(s, r->slot))
                return 0;
        k = next_seq(s, r);
        if (k >= 0)
                k = store_write(s, STATEMENT_SET_SEQ, NULL, "si", r->id, (int64_t) r->seq);
        return k < 0 ? k : take_slot(s, r);
}

int store_reserve(Store *s, const VMNumbers *numbers, size_t n) {
        int k;

        s->reserved = new(VMNumbers, n);
        if (!s->reserved)
                return -ENOMEM;
        memcpy(s->reserved, numbers, n * sizeof(VMNumbers));
        s->n_reserved = n;

        k = store_begin(s);
        return k < 0 ? k : store_end(s, store_foreach_vm(s, renumber, s));
}
