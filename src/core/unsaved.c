/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/fs-util.h"
#include "basic/json-util.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "core/vm-private.h"

/* What the database can't take now, on a full disk, say, is kept beside it in /run, which is memory: else a daemon that dies meanwhile would
 * be followed by one that knows nothing of a Stop and takes the VM's end for a crash. A boot of the host forgets it. */

#define FILE_MAX (64U * 1024)

static char *unsaved_path(const VM *vm) {
        return strjoinf("/run/vmunit/unsaved-%s", vm->rec.id);
}

/* What changes without a caller who could be refused */
static json_object *format(const VM *vm) {
        _cleanup_json_ json_object *o = json_object_new_object();
        const VMRecord *rec = &vm->rec;

        if (o && json_put_string(o, "host-boot-id", vm->manager->boot_id) && json_put_string(o, "state", vm_state_to_string(rec->state)) &&
            json_put_string(o, "reason", rec->reason) && json_put_string(o, "message", rec->message) &&
            json_put_int(o, "state-since", (int64_t) rec->state_since) && json_put_bool(o, "intent", rec->intent) &&
            json_put_int(o, "started", (int64_t) rec->started) && json_put_bool(o, "exit-known", rec->exit_known) &&
            json_put_int(o, "exit-code", rec->exit_code) && json_put_int(o, "exit-signal", rec->exit_signal) &&
            json_put_int(o, "restart-count", rec->restart_count) && json_put_int(o, "restart-at", (int64_t) rec->restart_at) &&
            json_put_string(o, "start-from", vm_state_to_string(rec->start_from)))
                return TAKE_PTR(o);
        return NULL;
}

static int parse(VMRecord *rec, json_object *o) {
        VMState state = vm_state_from_string(json_get_string(o, "state", "")), from = vm_state_from_string(json_get_string(o, "start-from", ""));
        int r;

        if ((int) state < 0 || (int) from < 0)
                return -EBADMSG;
        r = free_and_strdup(&rec->reason, json_get_string(o, "reason", ""));
        if (r >= 0)
                r = free_and_strdup(&rec->message, json_get_string(o, "message", ""));
        if (r < 0)
                return r;
        rec->state = state;
        rec->start_from = from;
        rec->state_since = (uint64_t) json_get_int(o, "state-since", 0);
        rec->intent = json_get_bool(o, "intent", false);
        rec->started = (uint64_t) json_get_int(o, "started", 0);
        rec->exit_known = json_get_bool(o, "exit-known", false);
        rec->exit_code = (int) json_get_int(o, "exit-code", 0);
        rec->exit_signal = (int) json_get_int(o, "exit-signal", 0);
        rec->restart_count = (unsigned) json_get_int(o, "restart-count", 0);
        rec->restart_at = (uint64_t) json_get_int(o, "restart-at", 0);
        return 0;
}

static int write_file(const VM *vm) {
        _cleanup_json_ json_object *o = format(vm);
        _cleanup_free_ char *path = unsaved_path(vm);

        if (!o || !path)
                return -ENOMEM;
        return write_file_atomic(path, json_object_to_json_string(o), false);
}

void vm_set_unsaved(VM *vm, int error) {
        int r;

        vm->unsaved = true;
        r = write_file(vm);
        log_error_errno(error, "%s: its state can't be stored now and is kept in memory", vm->rec.name);
        if (r < 0)
                log_error_errno(r, "%s: … but not beyond this daemon's end", vm->rec.name);
        manager_save_later(vm->manager);
}

void vm_set_saved(VM *vm) {
        _cleanup_free_ char *path = NULL;

        if (!vm->unsaved)
                return;
        vm->unsaved = false;
        path = unsaved_path(vm);
        if (path)
                (void) unlink(path);
}

static int recall(VM *vm, const char *text, size_t size) {
        _cleanup_json_ json_object *o = NULL;
        int r;

        r = json_parse_bounded(text, size, &o);
        if (r < 0)
                return r;
        if (!streq(json_get_string(o, "host-boot-id", ""), vm->manager->boot_id))
                return 0;
        if ((uint64_t) json_get_int(o, "state-since", 0) < vm->rec.state_since) /* it was stored, and more than that */
                return 0;
        return parse(&vm->rec, o);
}

int vm_recall(VM *vm) {
        _cleanup_free_ char *path = unsaved_path(vm), *text = NULL;
        size_t size;
        int r;

        if (!path)
                return -ENOMEM;
        r = read_file_all(path, FILE_MAX, &text, &size);
        if (r == -ENOENT)
                return 0;
        if (r >= 0)
                r = recall(vm, text, size);
        if (r == -ENOMEM)
                return r;
        if (r < 0)
                log_warning_errno(r, "%s: what the last daemon could not store can't be read", vm->rec.name);
        vm->unsaved = true; /* the file goes when all is stored */
        manager_save_later(vm->manager);
        return 0;
}
