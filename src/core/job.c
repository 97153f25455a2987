/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>

#include "basic/fault.h"
#include "basic/log.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "core/job.h"
#include "core/manager.h"
#include "core/message-ids.h"
#include "core/vm-private.h"

int job_new(VM *vm, VMCall call, uid_t caller, done_cb cb, void *userdata, Job **ret) {
        _cleanup_(job_freep) Job *j = NULL;
        int r;

        j = new(Job, 1);
        if (!j)
                return -ENOMEM;
        *j = (Job) {
                .vm = vm,
                .call = call,
                .stage = "queued",
                .progress = -1,
                .started_usec = now_realtime(),
                .stage_usec = now_monotonic(),
                .caller = caller,
                .cancelable = call == CALL_START && !vm_is_alive(vm),
        };

        r = FAULT_POINT("job.number", FAULT_FAILS, 0);
        if (r >= 0)
                r = store_next_number(vm->manager->store, "job", &j->id);
        if (r >= 0)
                r = job_add_waiter(j, cb, userdata);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(j);
        return 0;
}

Job *job_free(Job *j) {
        if (!j)
                return NULL;

        while (j->waiters) {
                Waiter *w = j->waiters;

                j->waiters = w->next;
                free(w);
        }
        free(j);
        return NULL;
}

void job_begin(Job *j) {
        Manager *m = j->vm->manager;

        j->vm->job = j;
        if (m->observer)
                m->observer->job_added(m->observer_userdata, j);
        vm_emit_changed(j->vm, "Job", NULL);
}

int waiter_add(Waiter **list, done_cb cb, void *userdata) {
        Waiter *w;

        if (!cb)
                return 0;
        w = new(Waiter, 1);
        if (!w)
                return -ENOMEM;
        *w = (Waiter) { .cb = cb, .userdata = userdata, .next = *list };
        *list = w;
        return 0;
}

void waiters_tell(Waiter **list, const sd_bus_error *error) {
        Waiter *l = TAKE_PTR(*list);

        while (l) {
                Waiter *w = l;

                l = w->next;
                w->cb(w->userdata, error);
                free(w);
        }
}

void waiters_drop(Waiter **list, waiter_gone gone, void *context) {
        while (*list) {
                Waiter *w = *list;

                if (!gone(w->cb, w->userdata, context)) {
                        list = &w->next;
                        continue;
                }
                *list = w->next;
                free(w);
        }
}

void vm_drop_waiters(VM *vm, waiter_gone gone, void *context) {
        if (vm->job)
                waiters_drop(&vm->job->waiters, gone, context);
        if (vm->start)
                start_drop_waiters(vm, gone, context);
}

int job_add_waiter(Job *j, done_cb cb, void *userdata) {
        return waiter_add(&j->waiters, cb, userdata);
}

/* Each of them, and the sum. A field's values lose their order, so one of them has both, name and time. */
static int add_stages(const Job *j, char ***fields, char ***words) {
        uint64_t sum = 0;
        int r = 0;

        for (size_t i = 0; r >= 0 && i < j->n_past; i++) {
                const JobStage *s = j->past + i;

                sum += s->usec;
                r = strv_extendf(fields, "STAGE=%s", s->stage);
                if (r >= 0)
                        r = strv_extendf(fields, "STAGE_USEC=%s:%" PRIu64, s->stage, s->usec);
                if (r >= 0)
                        r = strv_extendf(words, "%s %.1f", s->stage, (double) s->usec / 1000);
        }
        if (r >= 0)
                r = strv_extendf(fields, "DURATION_USEC=%" PRIu64, sum);
        if (r >= 0)
                r = strv_extendf(fields, "VMUNIT_JOB=%" PRIu32, j->id);
        return r < 0 ? r : strv_extendf(fields, "VMUNIT_OPERATION=%s", vm_call_to_string(j->call));
}

/* In one entry, which `vmunit blame` reads: an entry costs more than some stages. */
static void job_log_stages(Job *j) {
        _cleanup_strv_free_ char **fields = NULL, **words = NULL;
        _cleanup_free_ char *text = NULL;

        if (j->n_past > 0 && add_stages(j, &fields, &words) >= 0)
                text = strv_join(words, ", ");
        if (text)
                vm_log_fields(j->vm, LOG_DEBUG | LOG_ALWAYS, MESSAGE_VM_STAGES, (const char **) fields, "%s took, in ms: %s",
                              vm_call_to_string(j->call), text);
        j->n_past = 0;
}

/* Logged together at the end */
static void job_end_stage(Job *j) {
        uint64_t now = now_monotonic();

        if (j->n_past == ELEMENTSOF(j->past))
                job_log_stages(j);
        j->past[j->n_past++] = (JobStage) { j->stage, now - j->stage_usec };
        j->stage_usec = now;
}

void job_set_stage(Job *j, const char *stage, double progress) {
        Manager *m = j->vm->manager;

        if (!streq(j->stage, "queued"))
                job_end_stage(j);
        j->stage = stage;
        j->progress = progress;
        if (m->observer)
                m->observer->job_changed(m->observer_userdata, j);
}

void job_finish(Job *j, const sd_bus_error *error, bool canceled) {
        VM *vm = j->vm;
        Manager *m = vm->manager;

        if (!streq(j->stage, "queued"))
                job_end_stage(j);
        vm->job = NULL;
        waiters_tell(&j->waiters, error);
        vm_emit_changed(vm, "Job", NULL);
        if (m->observer)
                m->observer->job_removed(m->observer_userdata, j, canceled ? "canceled" : error ? "failed" : "done");
        job_log_stages(j);
        free(j);
}

int job_cancel(Job *j, sd_bus_error *error) {
        if (!j->cancelable)
                return sd_bus_error_setf(error, VMUNIT_ERROR_INVALID_STATE,
                                         "%s: a %s can't be canceled; Stop or Kill end the VM", j->vm->rec.name,
                                         vm_call_to_string(j->call));
        return start_cancel(j->vm, CALL_STOP, false, NULL, NULL);
}
