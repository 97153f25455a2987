/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <libgen.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "core/store-internal.h"
#include "store-fixture.h"
#include "tap.h"

#define NOBODY 65534

static int take_record(VMRecord *r, void *userdata) {
        VMRecord *ret = userdata;

        vm_record_done(ret);
        *ret = *r;
        *r = (VMRecord) {};
        return 0;
}

/* The last of the VMs */
static VMRecord last_vm(Store *s) {
        VMRecord r = {};

        (void) store_foreach_vm(s, take_record, &r);
        return r;
}

static mode_t mode_of(const char *p) {
        struct stat st;

        return stat(p, &st) < 0 ? 0 : st.st_mode & 07777;
}

static void test_tables(void) {
        bool good = true;

        for (VMState i = 0; i < _VM_STATE_MAX; i++)
                good = good && vm_state_to_string(i) && vm_state_from_string(vm_state_to_string(i)) == i;
        ok(good, "each state has its word");
        is_str(vm_state_to_string(VM_REMOVING), "Removing", "as the API spells it");
        ok(!vm_state_to_string(_VM_STATE_MAX), "no word beyond");
        is_int((int) vm_state_from_string("running"), -EINVAL, "another word is no state");
        is_int((int) vm_state_from_string(NULL), -EINVAL, "NULL is no state");
}

static void test_create(void) {
        _cleanup_(store_closep) Store *s = NULL;
        char dir[256];

        fresh();
        s = open_store();
        snprintf(dir, sizeof(dir), "%.*s", (int) (strrchr(path, '/') - path), path);
        is_int(mode_of(dir), 0700, "the directory is made, closed to others");
        is_int(mode_of(path), 0600, "so is the file");
        is_int(mode_of(beside("-wal")), 0600, "and what lies beside it");
        ok(access(beside(".new"), F_OK) < 0 && access(beside(".new-journal"), F_OK) < 0, "nothing temporary is left");
        is_int(vms(s), 0, "no VM yet");
        is_int(insert(s, 1), 0, "a VM is stored");
        is_int(foreign("SELECT count(*) FROM vm"), SQLITE_OK, "another program may read the while");
        s = store_close(s);

        s = open_store();
        is_int(vms(s), 1, "and is there again");
        s = store_close(s);

        check(snprintf(path, sizeof(path), "%s/link/vmunit.db", directory) > 0);
        check(symlink(".", dirname(strdupa(path))) == 0);
        s = open_store();
        is_int(vms(s), 0, "the directory may be a link to one");
}

static void test_record(void) {
        _cleanup_(store_closep) Store *s = NULL;
        _cleanup_(vm_record_done) VMRecord a = {}, b = {};
        VMRecord r = record(1);
        char next[] = "{}", backend[] = "qemu", reason[] = "vmm-crashed", message[] = "It's dead; \"so\".";

        fresh();
        s = open_store();
        is_int(insert(s, 1), 0, "a VM with only what it must have");
        a = last_vm(s);
        ok(!a.next_definition && !a.backend, "NULL comes back as NULL");
        is_str(a.reason, "", "no reason is an empty one");

        r = (VMRecord) {
                .name = r.name, .definition = r.definition, .next_definition = next, .backend = backend,
                .reason = reason, .message = message, .owner = UINT32_MAX - 1, .intent = true, .state = VM_ERROR,
                .state_since = 1, .created = 1001, .started = 2, .exit_known = true, .exit_code = -1, .exit_signal = 9,
                .restart_count = UINT32_MAX, .restart_at = UINT64_MAX, .start_from = VM_ERROR,
        };
        strcpy(r.id, a.id);
        strcpy(r.boot_id, "01234567-0123-0123-0123-0123456789ab");
        check(store_begin(s) == 0);
        check(store_update_vm(s, &r) == 0);
        check(store_commit(s) == 0);

        b = last_vm(s);
        is_str(b.id, r.id, "id");
        is_str(b.name, "vm1", "name");
        is_str(b.definition, r.definition, "definition, byte for byte");
        is_str(b.next_definition, next, "next definition");
        is_str(b.backend, backend, "back end");
        is_str(b.reason, reason, "reason");
        is_str(b.message, message, "message");
        is_str(b.boot_id, r.boot_id, "boot id");
        ok(b.owner == r.owner && b.intent && b.state == VM_ERROR, "owner, intent, state");
        ok(b.state_since == 1 && b.created == 1001 && b.started == 2, "times");
        ok(b.exit_known && b.exit_code == -1 && b.exit_signal == 9, "exit status");
        ok(b.restart_count == UINT32_MAX && b.restart_at == UINT64_MAX && b.start_from == VM_ERROR, "restarts");

        vm_record_done(&a);
        is_int(vm_record_copy(&b, &a), 0, "a copy");
        ok(streq(a.message, b.message) && a.message != b.message && a.exit_signal == 9, "is deep and whole");
}

/* Not longer than the limit of a definition; through a rollback, too */
static void test_large(void) {
        _cleanup_(store_closep) Store *s = NULL;
        _cleanup_(vm_record_done) VMRecord a = {};
        _cleanup_free_ char *text = malloc(256 * 1024 + 1);
        VMRecord r = record(1);

        fresh();
        memset(text, 'x', 256 * 1024);
        text[256 * 1024] = 0;
        s = open_store();
        is_int(insert(s, 1), 0, "a small one");
        r.definition = text;
        check(store_begin(s) == 0);
        check(store_update_vm(s, &r) == 0);
        store_rollback(s);
        a = last_vm(s);
        is_str(a.definition, text_definition, "a large definition is rolled back");
        vm_record_done(&a);
        check(store_begin(s) == 0);
        check(store_update_vm(s, &r) == 0);
        check(store_commit(s) == 0);
        a = last_vm(s);
        ok(a.definition && streq(a.definition, text), "and stored");
}

static int stop_walk(VMRecord *r, void *userdata) {
        return ++*(int *) userdata == 2 ? -ECANCELED : 0;
}

static int insert_more(VMRecord *r, void *userdata) {
        Store *s = userdata;

        return streq(r->name, "vm1") ? insert(s, 70) : 0;
}

static void test_vms(void) {
        _cleanup_(store_closep) Store *s = NULL;
        _cleanup_(vm_record_done) VMRecord last = {};
        VMRecord r;
        int n = 0;

        fresh();
        s = open_store();
        check(insert(s, 2) == 0 && insert(s, 1) == 0 && insert(s, 3) == 0);
        is_int(insert(s, 2), -EEXIST, "an id is taken");
        r = record(2);
        r.id[35] = 'f';
        check(store_begin(s) == 0);
        is_int(store_insert_vm(s, &r), -EEXIST, "a name is taken");
        store_rollback(s);
        is_int(vms(s), 3, "nothing came of it");

        r = record(9);
        check(store_begin(s) == 0);
        is_int(store_update_vm(s, &r), -ENOENT, "no such VM to update");
        is_int(store_delete_vm(s, r.id), -ENOENT, "nor to delete");
        r = record(1);
        is_int(store_delete_vm(s, r.id), 0, "deleted");
        is_int(store_insert_vm(s, &r), 0, "the name is free again, in the same transaction");
        ok(r.seq > 3, "… its number is not");
        check(store_commit(s) == 0);
        last = last_vm(s);
        is_str(last.name, "vm1", "in the order of creation");

        is_int(store_foreach_vm(s, stop_walk, &n), -ECANCELED, "a walk is ended");
        is_int(n, 2, "at once");
        is_int(store_foreach_vm(s, insert_more, s), 0, "a walk's callback may write");
        is_int(vms(s), 4, "and has");

        check(store_begin(s) == 0);
        r = record(2);
        check(store_delete_vm(s, r.id) == 0);
        store_rollback(s);
        is_int(vms(s), 4, "a deletion is rolled back");
        store_rollback(s);
        ok(true, "a rollback of nothing");
        check(store_begin(s) == 0);
        check(store_delete_vm(s, r.id) == 0);
        s = store_close(s);
        s = open_store();
        is_int(vms(s), 4, "closing rolls back");
}

static int read_event(const Event *ev, void *userdata) {
        ok(streq(ev->vm_name, "web") && streq(ev->vm_id, "id") && streq(ev->type, "started") &&
           streq(ev->message, "Up.") && ev->usec == 7, "an event comes back");
        is_str(json_object_get_string(json_object_object_get(ev->details, "word")), "a\"/ä", "with the strings");
        is_int(json_object_object_length(ev->details), 3, "of its details");
        is_int(json_object_get_uint64(json_object_object_get(ev->details, "number")), UINT64_MAX, "the numbers");
        ok(json_object_get_boolean(json_object_object_get(ev->details, "yes")), "and the truth");
        return 0;
}

static uint64_t add_event(Store *s, const char *vm, uint64_t usec) {
        const Event ev = { .usec = usec, .vm_id = "id", .vm_name = vm, .type = "t", .message = "m" };
        uint64_t id = 0;

        if (store_begin(s) < 0 || store_add_event(s, &ev, &id) < 0 || store_commit(s) < 0)
                store_rollback(s);
        return id;
}

static int read_id(const Event *ev, void *userdata) {
        *(uint64_t *) userdata = ev->id;
        return 0;
}

static void test_events(void) {
        _cleanup_(store_closep) Store *s = NULL;
        _cleanup_json_ json_object *details = json_object_new_object();
        Event ev = { .usec = 7, .vm_id = "id", .vm_name = "web", .type = "started", .message = "Up.",
                     .details = details };
        uint64_t id = 0, first = 0;
        unsigned n = 0;

        json_object_object_add(details, "word", json_object_new_string("a\"/ä"));
        json_object_object_add(details, "number", json_object_new_uint64(UINT64_MAX));
        json_object_object_add(details, "yes", json_object_new_boolean(true));

        fresh();
        s = open_store();
        check(store_begin(s) == 0);
        is_int(store_add_event(s, &ev, &id), 0, "an event");
        check(store_commit(s) == 0);
        is_int(id, 1, "gets an id");
        is_int(store_foreach_event(s, 0, NULL, 10, read_event, NULL), 0, "and is read");

        for (int i = 0; i < 9; i++)
                id = add_event(s, i % 2 ? "a" : "b", 1);
        is_int(id, 10, "ids grow");
        is_int(events(s, NULL), 10, "all");
        is_int(events(s, "a"), 4, "those of a name");
        is_int(events(s, "id"), 10, "those of an id");
        is_int(events(s, "none"), 0, "those of nobody");
        n = 0;
        check(store_foreach_event(s, 2, "a", 3, count_event, &n) == 0);
        is_int(n, 3, "at most so many of a name after an id");
        check(store_foreach_event(s, 5, "id", 1, read_id, &first) == 0);
        is_int(first, 6, "the first of them");
        n = 0;
        check(store_foreach_event(s, 7, NULL, 100, count_event, &n) == 0);
        is_int(n, 3, "those after an id");
        n = 0;
        check(store_foreach_event(s, 0, NULL, 4, count_event, &n) == 0);
        is_int(n, 4, "at most so many");
        n = 0;
        check(store_foreach_event(s, UINT64_MAX, NULL, 4, count_event, &n) == 0);
        is_int(n, 0, "none after the last id there can be");

        s = store_close(s);
        check(foreign("DELETE FROM event") == SQLITE_OK);
        s = open_store();
        is_int(add_event(s, "a", 1), 11, "an id is never used again");
}

static int count_steps(void *userdata) {
        (*(unsigned *) userdata)++;
        return 0;
}

/* Whoever asks, also again and again, costs no look at all that there are. */
static void test_asking(void) {
        _cleanup_(store_closep) Store *s = NULL;
        const Event ev = { .usec = 1, .vm_id = "id", .vm_name = "vm", .type = "t", .message = "m" };
        unsigned steps = 0, n = 0;
        bool good;

        fresh();
        s = open_store();
        good = store_begin(s) == 0;
        for (int i = 0; good && i < 20000; i++)
                good = store_add_event(s, &ev, NULL) == 0;
        ok(good && store_commit(s) == 0, "20,000 events");
        sqlite3_progress_handler(s->db, 1000, count_steps, &steps);
        ok(events(s, "none") == 0 && steps == 0, "a name that never was (%u,000 steps)", steps);
        check(store_foreach_event(s, 10000, "vm", 10, count_event, &n) == 0);
        ok(n == 10 && steps <= 1, "ten of a name (%u,000 steps)", steps);
}

static void test_pruning(void) {
        _cleanup_(store_closep) Store *s = NULL;
        const Event ev = { .usec = 1, .vm_id = "id", .vm_name = "vm", .type = "t", .message = "Some sentence." };
        uint64_t start = now_usec(), first = 0;
        unsigned most = 0;
        bool good = true;

        fresh();
        s = open_store();
        store_set_history(s, 10000, 0);
        for (int i = 0; i < 100; i++) {
                good = good && store_begin(s) == 0;
                for (int k = 0; k < 120; k++)
                        good = good && store_add_event(s, &ev, NULL) == 0;
                good = good && store_commit(s) == 0;
                most = MAX(most, events(s, NULL));
        }
        ok(good, "12,000 events");
        printf("# 12,000 events in 100 transactions: %llu ms\n", (unsigned long long) (now_usec() - start) / 1000);
        ok(most >= 10000 && most < 10100, "about 10,000 are kept (at most %u)", most);
        check(store_foreach_event(s, 0, NULL, 1, read_id, &first) == 0);
        ok(first > 1900, "the old ones went (first is %llu)", (unsigned long long) first);

        good = true;
        store_set_history(s, 100, 0);
        for (int i = 0; i < 40; i++) {
                good = good && store_begin(s) == 0;
                for (int k = 0; k < 64; k++)
                        good = good && store_add_event(s, &ev, NULL) == 0;
                good = good && store_commit(s) == 0;
        }
        ok(good && events(s, NULL) < 200, "a lower bound is reached in steps");

        s = store_close(s);
        start = now_usec();
        s = open_store();
        printf("# opening took %llu us\n", (unsigned long long) (now_usec() - start));
}

typedef struct Reader {
        uint64_t after;
        unsigned n;
        bool good;
} Reader;

static int read_next(const Event *ev, void *userdata) {
        Reader *r = userdata;

        r->good = r->good && ev->id > r->after && ev->usec == ev->id * 10;
        r->after = ev->id;
        r->n++;
        return 0;
}

/* By age: always from the oldest on, so that who reads on from an id misses nothing but what is too old. */
static void test_age(void) {
        _cleanup_(store_closep) Store *s = NULL;
        Reader reader = { .good = true };
        bool good = true;

        fresh();
        s = open_store();
        store_set_history(s, 0, 2000);
        for (uint64_t i = 1; i <= 1000; i++) {
                good = good && add_event(s, "a", i * 10) == i;
                if (i % 7 == 0)
                        check(store_foreach_event(s, reader.after, NULL, 5, read_next, &reader) == 0);
                if (i % 50 == 0)
                        check(store_foreach_event(s, reader.after, NULL, UINT32_MAX, read_next, &reader) == 0);
        }
        ok(good && reader.good && reader.n == 1000, "who reads on sees each of 1000 events once (%u)", reader.n);
        ok(events(s, NULL) >= 200 && events(s, NULL) < 200 + 64, "those that are young enough are kept (%u)", events(s, NULL));

        ok(store_prune_events(s, 10000) >= 0, "pruning as of now");
        is_int(events(s, NULL), 201, "leaves just those");
        while (store_prune_events(s, 11500) > 0)
                ;
        is_int(events(s, NULL), 51, "without a new event");
        store_set_history(s, 0, USEC_INFINITY);
        is_int(store_prune_events(s, UINT64_MAX), 0, "no bound");
        store_set_history(s, 0, 1);
        while (store_prune_events(s, UINT64_MAX) > 0)
                ;
        is_int(events(s, NULL), 0, "all may be too old");
        is_int(add_event(s, "a", 20000), 1001, "an id is never used again");

        /* a clock that was set back and forth */
        store_set_history(s, 0, 100);
        (void) add_event(s, "a", 30000);
        (void) add_event(s, "a", 20000);
        check(store_prune_events(s, 30000) >= 0);
        is_int(events(s, NULL), 2, "no gap: the one with the older time is after a younger one");
}

typedef struct Told {
        uint64_t last;
        unsigned n;
        bool good;
} Told;

static void on_told(const Event *ev, void *userdata) {
        Told *t = userdata;

        t->good = t->good && ev->id == t->last + 1 && ev->usec == 100 + t->n && json_object_object_length(ev->details) == 1;
        t->last = ev->id;
        t->n++;
}

static void test_kept(void) {
        _cleanup_(store_closep) Store *s = NULL;
        _cleanup_json_ json_object *details = json_object_new_object();
        Told told = { .last = 1, .good = true };
        bool good = true;
        uint64_t id;

        json_object_object_add(details, "a", json_object_new_int(1));
        fresh();
        s = open_store();
        store_on_kept_event(s, on_told, &told);
        is_int(add_event(s, "a", 1), 1, "an event");
        for (unsigned i = 0; i < 1000; i++) {
                const Event ev = { .usec = 100 + i, .vm_id = "id", .vm_name = "b", .type = "t", .message = "m",
                                   .details = details };

                good = good && store_keep_event(s, &ev) == 0;
                if (i == 500) {
                        check(store_begin(s) == 0);
                        good = good && store_add_event(s, &ev, &id) == 0 && id == 503;
                        store_rollback(s);
                }
        }
        ok(good && events(s, "b") == 0 && told.n == 0, "those that are kept are not stored, nor by a rollback");
        is_int(store_keep_event(s, &(Event) { .type = "t" }), -ENOBUFS, "not more than so many");
        is_int(add_event(s, "a", 2), 1002, "they are stored before the next one");
        ok(told.n == 1000 && told.good, "and told in their order, each once (%u)", told.n);
        is_int(store_flush_events(s), 0, "nothing is left");
        check(store_keep_event(s, &(Event) { .type = "t", .usec = 1100, .details = details }) == 0);
        told.last = 1002;
        is_int(store_flush_events(s), 0, "or by themselves");
        ok(told.n == 1001 && told.good && events(s, NULL) == 1003, "told as well");
        check(store_keep_event(s, &(Event) { .type = "t" }) == 0); /* freed with the store */
}

static int read_usage(const Usage *u, void *userdata) {
        Usage *ret = userdata;

        ok(streq(u->vm_name, "vm1") && strlen(u->vm_id) == 36 && streq(u->boot_id, "boot") &&
           streq(u->invocation_id, "invocation"), "an interval's words");
        *ret = *u;
        return 0;
}

static void test_usage(void) {
        _cleanup_(store_closep) Store *s = NULL;
        const VMRecord r = record(1);
        unsigned n = 0;
        Usage u = {};

        fresh();
        s = open_store();
        is_int(insert(s, 1), 0, "a VM");
        is_int(store_usage_is_open(s, r.id), 0, "has none open");
        check(store_begin(s) == 0);
        is_int(store_close_usage(s, r.id, 10), 0, "closing none is fine");
        is_int(store_open_usage(s, &r, 100, "boot", "invocation"), 0, "opened");
        is_int(store_open_usage(s, &r, 101, "boot", "invocation"), -EEXIST, "not twice");
        check(store_commit(s) == 0);
        is_int(store_usage_is_open(s, r.id), 1, "is open");
        is_int(store_foreach_usage(s, 0, UINT64_MAX, 1, read_usage, &u), 0, "read");
        ok(u.start == 100 && u.end == 0, "with start and no end");
        is_int(usages(s, 200, 300), 1, "an open one lasts");
        is_int(usages(s, 0, 100), 0, "not before its start");

        check(store_begin(s) == 0);
        is_int(store_close_usage(s, r.id, 50), 0, "closed by a clock that was set back");
        is_int(store_close_usage(s, r.id, 150), 0, "closing again is fine");
        check(store_open_usage(s, &r, 200, "boot", "invocation") == 0);
        check(store_close_usage(s, r.id, 250) == 0);
        check(store_delete_vm(s, r.id) == 0);
        check(store_commit(s) == 0);
        is_int(store_usage_is_open(s, r.id), 0, "is closed");
        is_int(usages(s, 0, UINT64_MAX), 2, "both outlive their VM");
        n = 0;
        is_int(store_foreach_usage(s, 0, UINT64_MAX, 1, count_usage, &n), -E2BIG, "more than are wanted are refused");
        is_int(n, 0, "before one is told of");
        check(store_foreach_usage(s, 0, 150, 1, read_usage, &u) == 0);
        ok(u.start == 100 && u.end == 100, "no end before the start, and the first end holds");
        is_int(usages(s, 250, 300), 0, "an end is not part of it");
        is_int(usages(s, 249, 250), 1, "what is before it is");
}

static void test_counters(void) {
        _cleanup_(store_closep) Store *s = NULL;
        uint32_t n = 0, last = 0;
        bool good = true;
        int status;
        pid_t pid;

        fresh();
        s = open_store();
        for (uint32_t i = 1; i <= 200; i++)
                good = good && store_next_number(s, "job", &n) == 0 && n == i;
        ok(good, "200 numbers in a row");
        check(store_next_number(s, "other", &n) == 0);
        is_int(n, 1, "another counter counts for itself");
        s = store_close(s);

        s = open_store();
        check(store_next_number(s, "job", &n) == 0);
        ok(n > 200 && n <= 200 + 128, "never given again after a restart (%u)", n);
        last = n;

        check(store_begin(s) == 0);
        for (int i = 0; i < 100; i++)
                good = good && store_next_number(s, "job", &n) == 0 && n > last && (last = n);
        store_rollback(s);
        check(store_next_number(s, "job", &n) == 0);
        ok(good && n > last, "numbers given in a transaction that is rolled back are gone");
        last = n;
        s = store_close(s);

        pid = fork();
        if (pid == 0) {
                s = open_store();
                good = store_begin(s) == 0;
                for (int i = 0; i < 300; i++)
                        good = good && store_next_number(s, "job", &n) == 0;
                store_rollback(s);
                _exit(good ? 0 : 1);
        }
        ok(waitpid(pid, &status, 0) == pid && status == 0, "a daemon dies after it");
        s = open_store();
        check(store_next_number(s, "job", &n) == 0);
        ok(n > last + 300, "nor are they given by the next one");
}

/* Writes n bytes at an offset */
static void scribble(const char *file, off_t offset, const void *p, size_t n) {
        _cleanup_close_ int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

        if (fd < 0 || pwrite(fd, p, n, offset) != (ssize_t) n)
                ok(false, "write to %s: %s", file, strerror(errno));
}

static void fresh_with_file(const char *content) {
        Store *s;

        fresh();
        s = open_store();
        store_close(s);
        if (unlink(path) < 0 || write_file_atomic(path, content, false) < 0)
                ok(false, "write %s", path);
}

static void test_not_a_database(void) {
        char junk[8192];

        fresh_with_file("hello, this is not a database\n");
        refused(-EBADMSG, "not an SQLite database", "a short text");
        is_int(mode_of(path), 0600, "it is still there");

        fresh_with_file("");
        memset(junk, 'x', sizeof(junk));
        scribble(path, 0, junk, sizeof(junk));
        refused(-EBADMSG, "not an SQLite database", "a long text");
        memset(junk, 0, sizeof(junk));
        scribble(path, 0, junk, sizeof(junk));
        refused(-EBADMSG, "not an SQLite database", "zeros");

        fresh_with_file("");
        refused(-EBADMSG, "is empty", "an empty file");
        scribble(beside("-wal"), 0, junk, sizeof(junk));
        refused(-EBADMSG, "-wal", "an empty file beside changes to a lost one");
        ok(access(beside("-wal"), F_OK) >= 0, "they are left alone");

        check(unlink(path) == 0);
        refused(-ENOENT, "-wal", "changes to a missing file");
        ok(access(path, F_OK) < 0, "no new one is made");
        check(symlink("nowhere", path) == 0);
        refused(-ENOENT, "leads nowhere", "a link to nothing");
        check(unlink(path) == 0 && mkdir(path, 0700) == 0);
        refused(-EISDIR, "is a directory", "a directory");
        check(rmdir(path) == 0 && mkfifo(path, 0600) == 0);
        refused(-EBADMSG, "no regular file", "a pipe");

        snprintf(path, sizeof(path), "%s/no/such/vmunit.db", directory);
        refused(-ENOENT, "cannot be made", "a directory too deep");
}

/* A database that was deleted is never taken for one that is yet to be made. */
static void test_deleted(void) {
        _cleanup_(store_closep) Store *s = NULL;
        char vms_dir[300], backup[300], file[400];
        char *dir;

        fresh();
        dir = dirname(strdupa(path));
        snprintf(vms_dir, sizeof(vms_dir), "%s/vms", dir);
        snprintf(backup, sizeof(backup), "%s/backup", dir);
        snprintf(file, sizeof(file), "%s/vmunit-2026-01-01.db", backup);
        check(mkdir(dir, 0700) == 0 && mkdir(vms_dir, 0700) == 0 && mkdir(backup, 0700) == 0);
        s = open_store();
        is_int(vms(s), 0, "empty directories are no sign of an older one");
        s = store_close(s);

        check(unlink(path) == 0 && write_file_atomic(file, "x", false) == 0);
        refused(-ENOENT, backup, "deleted, with copies");
        check(unlink(file) == 0);
        snprintf(file, sizeof(file), "%s/00000000-0000-4000-8000-000000000001", vms_dir);
        check(mkdir(file, 0700) == 0);
        refused(-ENOENT, vms_dir, "deleted, with files of VMs");
        ok(access(path, F_OK) < 0 && access(beside(".new"), F_OK) < 0, "nothing was made");
        check(rmdir(file) == 0);
        s = open_store();
        is_int(vms(s), 0, "without them it begins anew");
}

static void test_slots(void) {
        _cleanup_(store_closep) Store *s = NULL;
        unsigned slots[4];
        VMRecord r;

        fresh();
        s = open_store();
        check(insert(s, 1) == 0 && insert(s, 2) == 0);
        check(store_begin(s) == 0);
        check(store_delete_vm(s, record(1).id) == 0 && store_commit(s) == 0);
        s = store_close(s);
        check(foreign("UPDATE sqlite_sequence SET seq = 32766 WHERE name = 'vm'") == SQLITE_OK);

        s = open_store();
        check(store_begin(s) == 0);
        for (unsigned i = 0; i < ELEMENTSOF(slots); i++) {
                r = record(10 + i);
                check(store_insert_vm(s, &r) == 0);
                slots[i] = r.slot;
        }
        check(store_commit(s) == 0);
        ok(slots[0] == VM_SLOTS_MAX && slots[1] == 1 && slots[2] == 3 && slots[3] == 4, "a slot is used again as late as can be, and never twice");
}

/* What runs with numbers of a database that this one is an older copy of */
static void test_reserved(void) {
        static const VMNumbers reserved[] = { { .seq = 2, .slot = 2 }, { .seq = 40000, .slot = 3 } };
        _cleanup_(store_closep) Store *s = NULL;
        VMRecord r;

        fresh();
        s = open_store();
        for (unsigned i = 1; i <= 4; i++)
                check(insert(s, i) == 0);
        ok(store_has_vm(s, record(4).id) == 1 && store_has_vm(s, record(5).id) == 0, "which VMs there are");
        is_int(store_reserve(s, reserved, ELEMENTSOF(reserved)), 0, "numbers are reserved");

        check(store_begin(s) == 0);
        r = record(5);
        check(store_insert_vm(s, &r) == 0 && store_commit(s) == 0);
        ok(r.seq == 40003 && r.slot == 40003 % VM_SLOTS_MAX, "a new VM comes after those that had to move: %llu, %u", (unsigned long long) r.seq, r.slot);
        s = store_close(s);
        check(foreign("DELETE FROM vm WHERE seq = 40003; UPDATE sqlite_sequence SET seq = 32768 WHERE name = 'vm'") == SQLITE_OK);
        ok(foreign("CREATE TEMP TABLE x (n INTEGER CHECK (n = 4)); INSERT INTO x SELECT count(*) FROM vm WHERE "
                   "(seq, slot) IN (VALUES (1, 1), (4, 4), (40001, 7234), (40002, 7235))") == SQLITE_OK, "who had one of them has others, for good");

        s = open_store();
        check(store_begin(s) == 0);
        r = record(6);
        check(store_insert_vm(s, &r) == 0 && store_commit(s) == 0);
        ok(r.seq == 40003, "nobody gets the number of one that moved");
}

static void test_wrong_database(void) {
        _cleanup_(store_closep) Store *s = NULL;

        fresh_with_vms();
        check(foreign("PRAGMA user_version = 1000") == SQLITE_OK);
        refused(-EOPNOTSUPP, "upgrade vmunit", "a newer schema");
        check(foreign("PRAGMA user_version = 0") == SQLITE_OK);
        refused(-EBADMSG, "not one of vmunit", "no version");
        check(foreign("PRAGMA user_version = 4; PRAGMA application_id = 1") == SQLITE_OK);
        refused(-EBADMSG, "not one of vmunit", "another program's");
        check(foreign("PRAGMA application_id = 0x766d756e") == SQLITE_OK);
        s = open_store();
        is_int(vms(s), 40, "nothing was changed by all that");
        s = store_close(s);

        check(foreign("DROP INDEX event_vm_id; DROP INDEX event_vm_name; DROP INDEX vm_slot; ALTER TABLE vm DROP COLUMN slot; "
                      "ALTER TABLE vm DROP COLUMN start_from; PRAGMA user_version = 1") == SQLITE_OK);
        s = open_store();
        is_int(vms(s), 40, "one of the first version is taken over");
        s = store_close(s);

        check(foreign("UPDATE vm SET state = 'Bored' WHERE name = 'vm7'") == SQLITE_OK);
        refused(-EBADMSG, "corrupt", "a state that there is not");
        check(foreign("UPDATE vm SET state = 'Stopped'; DELETE FROM definition WHERE rowid = 3") == SQLITE_OK);
        refused(-EBADMSG, "corrupt", "a VM without definition");
        check(foreign("DROP TABLE vm") == SQLITE_OK);
        refused(-EIO, "restore a copy", "a table less");

        fresh();
        check(mkdir(dirname(strdupa(path)), 0700) == 0);
        check(foreign("CREATE TABLE t (a)") == SQLITE_OK);
        refused(-EBADMSG, "not one of vmunit", "an SQLite file of somebody");
        check(foreign("DROP TABLE t") == SQLITE_OK);
        refused(-EBADMSG, "not one of vmunit", "an SQLite file with nothing in it");
}

static void test_corrupt(void) {
        unsigned found = 0, harmless = 0;
        struct stat st;
        char junk[64];

        memset(junk, 0xa5, sizeof(junk));
        fresh_with_vms();
        check(stat(path, &st) == 0);
        check(truncate(path, st.st_size - 4096) == 0);
        refused(-EBADMSG, "corrupt", "the last page is missing");
        fresh_with_vms();
        check(truncate(path, 4096) == 0);
        refused(-EBADMSG, "corrupt", "only the first page");
        fresh_with_vms();
        check(truncate(path, 50) == 0);
        refused(-EBADMSG, "database", "half a header");

        /* the header of each page in turn */
        for (off_t p = 0; p < st.st_size / 4096; p++) {
                _cleanup_free_ char *message = NULL;
                Store *s = NULL;

                fresh_with_vms();
                scribble(path, p * 4096 + (p == 0 ? 100 : 0), junk, sizeof(junk));
                if (store_open(path, &s, &message) == -EBADMSG && message && strstr(message, path))
                        found++;
                else
                        harmless++;
                store_close(s);
        }
        ok(harmless == 0, "damage to any of %u pages is found", found);
}

static void test_access(void) {
        char *dir;

        if (geteuid() != 0) {
                skip("access", "needs root");
                return;
        }

        fresh_with_vms();
        dir = dirname(strdupa(path));
        check(chmod(directory, 0755) == 0 && chown(dir, NOBODY, NOBODY) == 0 && chown(path, NOBODY, NOBODY) == 0);
        check(chmod(path, 0) == 0 && seteuid(NOBODY) == 0);
        refused(-EACCES, "owner and mode", "an unreadable file");
        check(seteuid(0) == 0 && chmod(path, 0400) == 0 && seteuid(NOBODY) == 0);
        refused(-EACCES, "owner and mode", "a file that can't be written");
        check(seteuid(0) == 0 && chmod(path, 0600) == 0 && chmod(dir, 0500) == 0 && seteuid(NOBODY) == 0);
        refused(-EACCES, "owner and mode", "a directory that can't be written");
        check(seteuid(0) == 0 && chmod(dir, 0000) == 0 && seteuid(NOBODY) == 0);
        refused(-EACCES, "owner and mode", "a directory that can't be entered");
        check(seteuid(0) == 0);
}

static int64_t value(sqlite3 *db, const char *sql) {
        _cleanup_statement_ sqlite3_stmt *st = NULL;

        if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK || sqlite3_step(st) != SQLITE_ROW)
                return -1;
        return sqlite3_column_int64(st, 0);
}

static void test_migrations(void) {
        static const char *const steps[] = {
                "CREATE TABLE a (x)",
                "CREATE TABLE b (x); INSERT INTO a VALUES (1)",
                "INSERT INTO a VALUES (2); DROP TABLE none",
        };
        sqlite3 *db;

        fresh();
        check(sqlite3_open(":memory:", &db) == SQLITE_OK);
        is_int(store_migrate(db, steps, 1), 0, "to version 1");
        is_int(store_migrate(db, steps, 2), 0, "to version 2");
        is_int(store_migrate(db, steps, 2), 0, "again: nothing to do");
        ok(store_migrate(db, steps, 3) < 0, "a step fails");
        is_int(value(db, "SELECT count(*) FROM a"), 1, "its rows are rolled back");
        is_int(value(db, "PRAGMA user_version"), 2, "the version stays");
        is_int(value(db, "SELECT count(*) FROM sqlite_schema"), 2, "so do the tables");
        sqlite3_close(db);
}

int main(void) {
        if (!mkdtemp(directory))
                return 1;

        test_tables();
        test_create();
        test_record();
        test_large();
        test_vms();
        test_events();
        test_asking();
        test_pruning();
        test_age();
        test_kept();
        test_usage();
        test_counters();
        test_not_a_database();
        test_deleted();
        test_slots();
        test_reserved();
        test_wrong_database();
        test_corrupt();
        test_access();
        test_migrations();

        is_int(rm_rf(directory), 0, "cleaned up");
        return done_testing();
}
