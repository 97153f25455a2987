/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bed.h"

/* Reading while a start hangs: tests/bench/run has put a program that never answers in QEMU's place. */

#define OTHERS 20               /* VMs beside the one that hangs */

typedef struct Question {
        Row row;
        const char *destination, *path, *interface, *method, *words[2];
} Question;

static double ask(const Question *q) {
        _cleanup_(sd_bus_error_free) sd_bus_error e = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL, *reply = NULL;
        double begin = now_ms();

        check(sd_bus_message_new_method_call(bed_bus(), &m, q->destination, q->path, q->interface, q->method), q->method);
        for (size_t i = 0; i < 2 && q->words[i]; i++)
                check(sd_bus_message_append(m, "s", q->words[i]), q->method);
        if (sd_bus_call(bed_bus(), m, 10 * USEC_PER_SEC, &e, &reply) < 0)
                die("%s: %s", q->method, e.message);
        return now_ms() - begin;
}

void bench_read(unsigned rounds, const char *backend) {
        static const char properties[] = "org.freedesktop.DBus.Properties", vm[] = "org.vmunit1.VM",
                          path[] = VM_PREFIX "bench", us[] = "org.vmunit1";
        Question questions[] = {
                { { .name = "a property of PID 1" }, "org.freedesktop.systemd1", "/org/freedesktop/systemd1", properties, "Get",
                  { "org.freedesktop.systemd1.Manager", "Version" } },
                { { .name = "Get of State" }, us, path, properties, "Get", { vm, "State" } },
                { { .name = "GetAll of a VM" }, us, path, properties, "GetAll", { vm } },
                { { .name = "ListVMs, 21 VMs" }, us, "/org/vmunit1", "org.vmunit1.Manager", "ListVMs", {} },
                { { .name = "GetManagedObjects, 21 VMs" }, us, "/org/vmunit1", "org.freedesktop.DBus.ObjectManager",
                  "GetManagedObjects", {} },
        };
        double base;

        for (unsigned i = 0; i < OTHERS; i++) {
                char name[] = "other-00";

                name[6] = (char) ('0' + i / 10);
                name[7] = (char) ('0' + i % 10);
                vm_create(name, backend);
        }
        vm_create("bench", backend);
        seen_begin("Starting");
        vm_send("bench", "Start");
        (void) seen_wait(1);
        rest();
        rest();

        for (unsigned i = 0; i < rounds * 10; i++)
                for (size_t k = 0; k < ELEMENTSOF(questions); k++)
                        row_add(&questions[k].row, ask(questions + k));

        base = row_print(&questions[0].row);
        for (size_t k = 1; k < ELEMENTSOF(questions); k++)
                (void) row_print(&questions[k].row);
        print_note("a property against one of PID 1", row_median(&questions[1].row) / base, "×");
        print_bar("a property while a start hangs", row_median(&questions[1].row), 1, "ms");
}
