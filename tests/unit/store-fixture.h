/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sqlite3.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "basic/string-util.h"
#include "core/store.h"
#include "tap.h"

/* What the tests of the store share. */

static char directory[] = "/tmp/vmunit-test-store-XXXXXX";
static char path[256]; /* of the test's database */

static inline uint64_t now_usec(void) {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * USEC_PER_SEC + ts.tv_nsec / 1000;
}

/* A fresh directory for the next test */
static inline void fresh(void) {
        static int n;

        snprintf(path, sizeof(path), "%s/%d/vmunit.db", directory, n++);
}

static inline const char *beside(const char *suffix) {
        static char s[300];

        snprintf(s, sizeof(s), "%s%s", path, suffix);
        return s;
}

static inline Store *open_store(void) {
        _cleanup_free_ char *message = NULL;
        Store *s = NULL;
        int r;

        r = store_open(path, &s, &message);
        if (r < 0)
                ok(false, "open %s: %s (%s)", path, strerror(-r), strempty(message));
        return s;
}

/* Opening fails with this error and a sentence that has the path and this text. */
static inline void refused(int error, const char *text, const char *what) {
        _cleanup_free_ char *message = NULL;
        Store *s = NULL;
        int r;

        r = store_open(path, &s, &message);
        is_int(r, error, "%s: refused", what);
        ok(message && strstr(message, path) && strstr(message, text) && endswith(message, "."), "%s: says so: %s", what,
           strempty(message));
        ok(!s, "%s: no store", what);
        store_close(s);
}

static char text_name[32];
static char text_definition[] = "{\"version\": 1, \"cmdline\": \"ä\"}", text_empty[] = "";

/* The record of VM number n; strings are static. */
static inline VMRecord record(unsigned n) {
        VMRecord r = {
                .name = text_name,
                .definition = text_definition,
                .reason = text_empty,
                .message = text_empty,
                .state = VM_STOPPED,
                .created = 1000 + n,
        };

        snprintf(text_name, sizeof(text_name), "vm%u", n);
        snprintf(r.id, sizeof(r.id), "00000000-0000-4000-8000-%012x", n);
        return r;
}

static inline int insert(Store *s, unsigned n) {
        VMRecord r = record(n);
        int k;

        k = store_begin(s);
        if (k < 0)
                return k;
        k = store_insert_vm(s, &r);
        if (k >= 0)
                k = store_commit(s);
        if (k < 0)
                store_rollback(s);
        return k;
}

/* VM, event and interval of number n in one transaction; VM n - 50 goes. */
static inline int transition(Store *s, unsigned n) {
        VMRecord r = record(n);
        const Event ev = { .usec = n, .vm_id = r.id, .vm_name = r.name, .type = "created", .message = "Created." };
        int k;

        k = store_begin(s);
        if (k < 0)
                return k;
        k = store_insert_vm(s, &r);
        if (k >= 0)
                k = store_add_event(s, &ev, NULL);
        if (k >= 0)
                k = store_open_usage(s, &r, n, "boot", "invocation");
        if (k >= 0 && n > 50) {
                const VMRecord old = record(n - 50);

                k = store_delete_vm(s, old.id);
        }
        if (k >= 0)
                k = store_commit(s);
        if (k < 0)
                store_rollback(s);
        return k;
}

static inline int count_vm(VMRecord *r, void *userdata) {
        (*(unsigned *) userdata)++;
        return 0;
}

static inline int count_event(const Event *ev, void *userdata) {
        (*(unsigned *) userdata)++;
        return 0;
}

static inline int count_usage(const Usage *u, void *userdata) {
        (*(unsigned *) userdata)++;
        return 0;
}

static inline unsigned vms(Store *s) {
        unsigned n = 0;

        return store_foreach_vm(s, count_vm, &n) < 0 ? UINT32_MAX : n;
}

static inline unsigned events(Store *s, const char *vm) {
        unsigned n = 0;

        return store_foreach_event(s, 0, vm, UINT32_MAX, count_event, &n) < 0 ? UINT32_MAX : n;
}

static inline unsigned usages(Store *s, uint64_t from, uint64_t to) {
        unsigned n = 0;

        return store_foreach_usage(s, from, to, UINT32_MAX, count_usage, &n) < 0 ? UINT32_MAX : n;
}

static inline int foreign(const char *sql) {
        sqlite3 *db;
        int rc;

        rc = sqlite3_open(path, &db);
        if (rc == SQLITE_OK)
                rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
        sqlite3_close(db);
        return rc;
}

static inline void fresh_with_vms(void) {
        _cleanup_(store_closep) Store *s = NULL;
        bool good = true;

        fresh();
        s = open_store();
        for (unsigned i = 1; i <= 40; i++)
                good = good && transition(s, i) == 0;
        if (!good)
                ok(false, "a database with 40 VMs");
}
