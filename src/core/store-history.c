/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "core/store-internal.h"

/* Events, usage and counters: what outlives a VM. */

#define PRUNE_EVERY 64
#define NUMBERS_BLOCK 64
#define KEPT_MAX 1000

/* A time or id from a caller as SQLite can compare it. */
static int64_t clamp(uint64_t v) {
        return v > INT64_MAX ? INT64_MAX : (int64_t) v;
}

void store_set_history(Store *s, uint64_t max_rows, uint64_t max_age_usec) {
        s->max_events = max_rows;
        s->max_age_usec = max_age_usec;
}

static int prune_old(Store *s, uint64_t now_usec) {
        if (s->max_age_usec == 0 || now_usec <= s->max_age_usec)
                return 0;
        return store_write(s, STATEMENT_PRUNE_OLD_EVENTS, NULL, "ii", clamp(now_usec - s->max_age_usec), INT64_MAX);
}

static int prune(Store *s, int64_t id, uint64_t now_usec) {
        int r;

        if (id % PRUNE_EVERY != 0)
                return 0;
        r = prune_old(s, now_usec);
        /* ids have no gaps, for a rollback gives them back */
        if (r < 0 || s->max_events == 0 || id <= clamp(s->max_events))
                return r;
        return store_write(s, STATEMENT_PRUNE_EVENTS, NULL, "i", id - clamp(s->max_events));
}

int store_prune_events(Store *s, uint64_t now_usec) {
        int r, before = sqlite3_total_changes(s->db);

        r = store_begin(s);
        if (r < 0)
                return r;
        r = store_end(s, prune_old(s, now_usec));
        return r < 0 ? r : sqlite3_total_changes(s->db) - before;
}

static int add_event(Store *s, const Event *ev, uint64_t *ret_id) {
        const char *details = NULL;
        int64_t id;
        int r;

        if (ev->details) {
                details = json_object_to_json_string_ext(ev->details, JSON_C_TO_STRING_PLAIN |
                                                                              JSON_C_TO_STRING_NOSLASHESCAPE);
                if (!details)
                        return -ENOMEM;
        }

        r = store_write(s, STATEMENT_ADD_EVENT, NULL, "isssss", clamp(ev->usec), strempty(ev->vm_id),
                        strempty(ev->vm_name), ev->type, strempty(ev->message), details);
        if (r < 0)
                return r;

        id = sqlite3_last_insert_rowid(s->db);
        r = prune(s, id, clamp(ev->usec));
        if (r < 0)
                return r;

        if (ret_id)
                *ret_id = id;
        return 0;
}

static KeptEvent *kept_free(KeptEvent *k) {
        KeptEvent *next = k->next;

        free((char *) k->event.vm_id);
        free((char *) k->event.vm_name);
        free((char *) k->event.type);
        free((char *) k->event.message);
        json_object_put(k->event.details);
        free(k);
        return next;
}

int store_keep_event(Store *s, const Event *ev) {
        KeptEvent *k, **end = &s->kept;

        if (s->n_kept >= KEPT_MAX)
                return -ENOBUFS;
        k = new0(KeptEvent, 1);
        if (!k)
                return -ENOMEM;
        k->event = (Event) {
                .usec = ev->usec,
                .vm_id = strdup(strempty(ev->vm_id)),
                .vm_name = strdup(strempty(ev->vm_name)),
                .type = strdup(ev->type),
                .message = strdup(strempty(ev->message)),
                .details = json_object_get(ev->details),
        };
        if (!k->event.vm_id || !k->event.vm_name || !k->event.type || !k->event.message) {
                kept_free(k);
                return -ENOMEM;
        }
        while (*end)
                end = &(*end)->next;
        *end = k;
        s->n_kept++;
        return 0;
}

void store_on_kept_event(Store *s, void (*told)(const Event *ev, void *userdata), void *userdata) {
        s->told = told;
        s->told_userdata = userdata;
}

static int add_kept(Store *s) {
        int r = 0;

        for (KeptEvent *k = s->kept; r >= 0 && k; k = k->next)
                if (k->event.id == 0)
                        r = add_event(s, &k->event, &k->event.id);
        return r;
}

void store_kept_committed(Store *s) {
        while (s->kept && s->kept->event.id != 0) {
                if (s->told)
                        s->told(&s->kept->event, s->told_userdata);
                s->kept = kept_free(s->kept);
                s->n_kept--;
        }
}

void store_kept_rolled_back(Store *s) {
        for (KeptEvent *k = s->kept; k; k = k->next)
                k->event.id = 0;
}

void store_drop_kept(Store *s) {
        while (s->kept)
                s->kept = kept_free(s->kept);
        s->n_kept = 0;
}

int store_add_event(Store *s, const Event *ev, uint64_t *ret_id) {
        int r;

        r = add_kept(s);
        return r < 0 ? r : add_event(s, ev, ret_id);
}

int store_flush_events(Store *s) {
        int r;

        if (!s->kept)
                return 0;
        r = store_begin(s);
        if (r < 0)
                return r;
        return store_end(s, add_kept(s));
}

static const char *column_string(sqlite3_stmt *st, int i) {
        return strempty((const char *) sqlite3_column_text(st, i));
}

static int give_event(sqlite3_stmt *st, int (*cb)(const Event *ev, void *userdata), void *userdata) {
        const char *details = (const char *) sqlite3_column_text(st, 6);
        _cleanup_json_ json_object *o = details ? json_tokener_parse(details) : NULL;
        const Event ev = {
                .id = sqlite3_column_int64(st, 0),
                .usec = sqlite3_column_int64(st, 1),
                .vm_id = column_string(st, 2),
                .vm_name = column_string(st, 3),
                .type = column_string(st, 4),
                .message = column_string(st, 5),
                .details = o,
        };

        return cb(&ev, userdata);
}

#define EVENTS "SELECT id, usec, vm_id, vm_name, type, message, details FROM event WHERE "
#define IDS_BY(column) "SELECT * FROM (SELECT id FROM event WHERE " column " = ?2 AND id > ?1 ORDER BY id LIMIT ?3)"
#define EVENTS_OF_ALL EVENTS "id > ?1 AND ?2 IS NULL ORDER BY id LIMIT ?3"
/* Looks at no more rows than it gives: with OR it would be all that there are. */
#define EVENTS_OF_VM EVENTS "id IN (" IDS_BY("vm_id") " UNION " IDS_BY("vm_name") ") ORDER BY id LIMIT ?3"

int store_foreach_event(Store *s, uint64_t after, const char *vm, unsigned limit,
                        int (*cb)(const Event *ev, void *userdata), void *userdata) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int r, rc;

        r = store_walk_new(s, vm ? EVENTS_OF_VM : EVENTS_OF_ALL, &st, "isi", clamp(after), vm, (int64_t) limit);
        if (r < 0)
                return r;

        while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
                r = give_event(st, cb, userdata);
                if (r < 0)
                        return r;
        }
        return store_error(s->db, rc);
}

int store_open_usage(Store *s, const VMRecord *r, uint64_t start, const char *boot_id, const char *invocation_id) {
        return store_write(s, STATEMENT_OPEN_USAGE, NULL, "ssiss", r->id, r->name, clamp(start), strempty(boot_id),
                           strempty(invocation_id));
}

int store_close_usage(Store *s, const char *vm_id, uint64_t end) {
        return store_write(s, STATEMENT_CLOSE_USAGE, NULL, "si", vm_id, clamp(end));
}

int store_usage_is_open(Store *s, const char *vm_id) {
        return store_run(s, STATEMENT_USAGE_IS_OPEN, NULL, "s", vm_id);
}

int store_last_step(Store *s, const char *vm_id, LastStep *ret) {
        int64_t step = LAST_STEP_UNKNOWN;
        int r;

        r = store_run(s, STATEMENT_LAST_STEP, &step, "s", vm_id);
        if (r < 0)
                return r;
        *ret = (LastStep) step;
        return 0;
}

static int give_usage(sqlite3_stmt *st, int (*cb)(const Usage *u, void *userdata), void *userdata) {
        const Usage u = {
                .id = sqlite3_column_int64(st, 0),
                .vm_id = column_string(st, 1),
                .vm_name = column_string(st, 2),
                .start = sqlite3_column_int64(st, 3),
                .end = sqlite3_column_int64(st, 4), /* NULL reads as 0 */
                .boot_id = column_string(st, 5),
                .invocation_id = column_string(st, 6),
        };

        return cb(&u, userdata);
}

#define USAGE_FROM_TO "FROM usage WHERE start_usec < ?2 AND (end_usec > ?1 OR end_usec IS NULL)"

static int check_usages(Store *s, uint64_t from, uint64_t to, unsigned max) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int r, rc;

        r = store_walk_new(s, "SELECT count(*) FROM (SELECT 1 " USAGE_FROM_TO " LIMIT ?3)", &st, "iii", clamp(from), clamp(to),
                           (int64_t) max + 1);
        if (r < 0)
                return r;
        rc = sqlite3_step(st);
        if (rc != SQLITE_ROW)
                return store_error(s->db, rc) ?: -EIO;
        return sqlite3_column_int64(st, 0) > max ? -E2BIG : 0;
}

int store_foreach_usage(Store *s, uint64_t from, uint64_t to, unsigned max, int (*cb)(const Usage *u, void *userdata),
                        void *userdata) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        int r, rc;

        r = check_usages(s, from, to, max);
        if (r >= 0)
                r = store_walk_new(s, "SELECT id, vm_id, vm_name, start_usec, end_usec, boot_id, invocation_id " USAGE_FROM_TO " ORDER BY id",
                                   &st, "ii", clamp(from), clamp(to));
        if (r < 0)
                return r;

        while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
                r = give_usage(st, cb, userdata);
                if (r < 0)
                        return r;
        }
        return store_error(s->db, rc);
}

static int counter_add(Store *s, const char *name, int64_t next, Counter **ret) {
        _cleanup_free_ char *copy = strdup(name);
        Counter *c;

        if (!copy)
                return -ENOMEM;
        c = reallocarray(s->counters, s->n_counters + 1, sizeof(Counter));
        if (!c)
                return -ENOMEM;

        s->counters = c;
        c += s->n_counters++;
        *c = (Counter) { .name = TAKE_PTR(copy), .next = next, .limit = next };
        *ret = c;
        return 0;
}

int store_load_counters(Store *s) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;
        Counter *c;
        int r, rc;

        r = store_walk_new(s, "SELECT name, next FROM counter", &st, "");
        if (r < 0)
                return r;
        while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
                r = counter_add(s, column_string(st, 0), sqlite3_column_int64(st, 1), &c);
                if (r < 0)
                        return r;
        }
        return store_error(s->db, rc);
}

static int counter_get(Store *s, const char *name, Counter **ret) {
        for (size_t i = 0; i < s->n_counters; i++)
                if (streq(s->counters[i].name, name)) {
                        *ret = s->counters + i;
                        return 0;
                }
        return counter_add(s, name, 1, ret);
}

static int counter_reserve(Store *s, Counter *c) {
        int64_t limit;
        int r;

        r = store_write(s, STATEMENT_RESERVE_NUMBERS, &limit, "sii", c->name, c->limit, (int64_t) NUMBERS_BLOCK);
        if (r < 0)
                return r;

        /* what was given without a reservation is not given again */
        if (limit - NUMBERS_BLOCK != c->limit)
                c->next = MAX(c->next, limit - NUMBERS_BLOCK);
        c->limit = limit;
        return 0;
}

/* A copy is changed, so that a commit that fails leaves the counter as it was. */
static int counter_reserve_alone(Store *s, Counter *c) {
        Counter n = *c;
        int r;

        r = store_begin(s);
        if (r < 0)
                return r;

        r = store_end(s, counter_reserve(s, &n));
        if (r >= 0)
                *c = n;
        return r;
}

int store_next_number(Store *s, const char *counter, uint32_t *ret) {
        Counter *c;
        int r;

        r = counter_get(s, counter, &c);
        if (r < 0)
                return r;

        /* Early, so that there are some when it fails: which nobody need know, for it is tried again with each number. */
        if (!s->writing && c->limit - c->next <= NUMBERS_BLOCK / 2)
                (void) counter_reserve_alone(s, c);
        if (c->next >= c->limit && s->writing)
                c->pending = counter_reserve(s, c) >= 0 || c->pending;
        if (c->next > UINT32_MAX)
                return -EOVERFLOW;

        *ret = (uint32_t) c->next++;
        c->limit = MAX(c->limit, c->next);
        return 0;
}

void store_rollback(Store *s) {
        if (!s->writing)
                return;

        if (!sqlite3_get_autocommit(s->db))
                (void) store_run(s, STATEMENT_ROLLBACK, NULL, "");
        s->writing = false;
        s->error = 0;
        store_kept_rolled_back(s);

        /* Numbers were given out of a reservation that is gone now: it is made again, beyond them. */
        for (size_t i = 0; i < s->n_counters; i++) {
                Counter *c = s->counters + i;

                if (!c->pending)
                        continue;
                c->pending = false;
                c->limit = c->next;
                (void) counter_reserve_alone(s, c);
        }
}
