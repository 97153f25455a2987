/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sqlite3.h>

#include "core/store.h"

/* What the parts of the store share. */

#define STORE_APPLICATION_ID 0x766d756e /* "vmun" in the file's header, see file(1) */

typedef enum Statement {
        STATEMENT_BEGIN,
        STATEMENT_COMMIT,
        STATEMENT_ROLLBACK,
        STATEMENT_NEXT_SEQ,
        STATEMENT_INSERT_VM,
        STATEMENT_SET_SEQ,
        STATEMENT_SET_SLOT,
        STATEMENT_INSERT_DEFINITION,
        STATEMENT_UPDATE_VM,
        STATEMENT_UPDATE_DEFINITION,
        STATEMENT_DELETE_VM,
        STATEMENT_HAS_VM,
        STATEMENT_ADD_EVENT,
        STATEMENT_PRUNE_EVENTS,
        STATEMENT_PRUNE_OLD_EVENTS,
        STATEMENT_OPEN_USAGE,
        STATEMENT_CLOSE_USAGE,
        STATEMENT_USAGE_IS_OPEN,
        STATEMENT_LAST_STEP,
        STATEMENT_RESERVE_NUMBERS,
        _STATEMENT_MAX,
} Statement;

/* Numbers from next up to limit are reserved in the database. */
typedef struct Counter {
        char *name;
        int64_t next, limit;
        bool pending; /* the reservation belongs to a transaction that is still open */
} Counter;

/* An event that waits */
typedef struct KeptEvent KeptEvent;
struct KeptEvent {
        KeptEvent *next;
        Event event; /* strings and details are its own; id 0: not in the transaction */
};

struct Store {
        sqlite3 *db;
        sqlite3_stmt *statements[_STATEMENT_MAX];
        bool writing; /* between begin and commit or rollback */
        int error;    /* SQLite has rolled back by itself: why */
        uint64_t max_events, max_age_usec;
        KeptEvent *kept; /* the oldest first */
        size_t n_kept;
        void (*told)(const Event *ev, void *userdata);
        void *told_userdata;
        Counter *counters;
        size_t n_counters;
        VMNumbers *reserved;
        size_t n_reserved;
};

static inline void sqlite3_finalizep(sqlite3_stmt **st) {
        sqlite3_finalize(*st);
}

static inline void sqlite3_closep(sqlite3 **db) {
        sqlite3_close(*db);
}

#define _cleanup_statement_ _cleanup_(sqlite3_finalizep)

/* A result of SQLite as negative errno. */
int store_error(sqlite3 *db, int rc);

int store_prepare_all(Store *s);

/* Binds the parameters as types says: 's' a string or NULL, 'i' an int64_t. */
int store_bindv(sqlite3_stmt *st, const char *types, va_list ap);

/* Runs a kept statement; 1 if it gave a row, whose first column goes to *ret. */
int store_run(Store *s, Statement i, int64_t *ret, const char *types, ...);
/* The same for what writes: refused when the transaction is lost already. */
int store_write(Store *s, Statement i, int64_t *ret, const char *types, ...);

/* A walk has a statement of its own, so that callbacks may use the store. */
int store_walk_new(Store *s, const char *sql, sqlite3_stmt **ret, const char *types, ...);

/* After a commit: those that it has stored are told and dropped. After a rollback: none was. */
void store_kept_committed(Store *s);
void store_kept_rolled_back(Store *s);
void store_drop_kept(Store *s);

/* What was reserved before: known from the beginning, so that a counter never waits for the disk. */
int store_load_counters(Store *s);

/* Brings a database to schema version n, each step a transaction. */
int store_migrate(sqlite3 *db, const char *const *migrations, int n);
