/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/fd-util.h"
#include "bus/error-names.h"
#include "core/start-private.h"
#include "vmm/disk-check.h"

/* The files of disks. What an image rests on is known when it is open, so they are opened one after another, each as the VM's owner, and
 * read by nobody else but the VMM. */

struct DiskOpen {
        Start *start;
        size_t index, n_open;           /* of the images; the disk's own file is a file of the plan */
        LaunchCall *call;
        int fds[DISK_IMAGES_MAX];
};

void start_undo_disks(Start *s) {
        for (size_t i = 0; i < s->n_disks; i++) {
                DiskOpen *o = s->disks + i;

                launch_call_free(o->call);
                close_many(o->fds, o->n_open);
                disk_files_free(s->disk_files[i]);
        }
        s->n_disks = 0;
        free(TAKE_PTR(s->disks));
        free(TAKE_PTR(s->disk_files));
}

int start_new_disks(Start *s) {
        size_t n = s->vm->definition->n_disks;
        int r = 0;

        s->disks = new(DiskOpen, n + 1);
        s->disk_files = new0(DiskFiles *, n + 1);
        if (!s->disks || !s->disk_files)
                return -ENOMEM;
        for (; r >= 0 && s->n_disks < n; s->n_disks++) {
                s->disks[s->n_disks] = (DiskOpen) { .start = s, .index = s->n_disks };
                r = disk_files_new(s->disk_files + s->n_disks);
        }
        return r;
}

static int check_taken(DiskOpen *o) {
        const VM *vm = o->start->vm;
        const DiskFiles *f = o->start->disk_files[o->index];

        if (vm->ops->takes_images || f->n_images == 0)
                return 0;
        return start_error(o->start, -EOPNOTSUPP, VMUNIT_ERROR_NOT_SUPPORTED,
                           "disks[%zu].path: %s rests on another image, which is supported with QEMU alone", o->index,
                           vm->definition->disks[o->index].path);
}

static int open_next(DiskOpen *o);

/* 0: more of them are to come, 1: these were all */
static int opened(DiskOpen *o, size_t number, const OpenReply *reply) {
        Start *s = o->start;
        DiskFiles *f = s->disk_files[o->index];
        FileSeen seen = {
                .mode = reply->mode,
                .dev = reply->dev,
                .ino = reply->ino,
                .head = reply->head,
                .head_size = MIN((size_t) reply->head_size, sizeof(reply->head)),
        };
        int r;

        r = disk_files_add(f, s->vm->definition, o->index, number, &seen, &s->error);
        if (r < 0)
                return start_errno(s, r, "can't look at its disks");
        r = check_taken(o);
        if (r < 0)
                return r;
        return number < f->n_images ? open_next(o) : 1;
}

static void on_opened(void *userdata, int error, int fd, const OpenReply *reply) {
        DiskOpen *o = userdata;
        Start *s = o->start;
        const Disk *disk = s->vm->definition->disks + o->index;
        int r = error;

        o->call = launch_call_free(o->call);
        if (error < 0) {
                char why[128];

                vm_describe_open(s->vm, error, why, sizeof(why));
                (void) start_error(s, error, VMUNIT_ERROR_BACKEND_FAILED, "disks[%zu].path: can't open %s, which %s rests on: %s", o->index,
                                   s->disk_files[o->index]->images[o->n_open].path, disk->path, why);
        } else {
                o->fds[o->n_open++] = fd;
                r = opened(o, o->n_open, reply);
        }
        if (r < 0)
                start_fail(s);
        else if (r > 0)
                start_file_opened(s);
}

static int open_next(DiskOpen *o) {
        Start *s = o->start;
        const Disk *disk = s->vm->definition->disks + o->index;
        const DiskFiles *f = s->disk_files[o->index];
        unsigned flags = disk_file_writable(disk, f, o->n_open + 1) ? LAUNCH_OPEN_WRITE : 0;
        int r;

        r = launch_open(s->vm->manager->event, f->images[o->n_open].path, s->vm->rec.owner, flags, LAUNCHER_TIMEOUT_USEC, on_opened, o, &o->call);
        return r < 0 ? start_errno(s, r, "can't reach the launcher") : 0;
}

int start_disk_opened(Start *s, size_t i, const OpenReply *reply) {
        return opened(s->disks + i, 0, reply);
}

int start_take_images(Start *s) {
        size_t n = s->n_fds;
        OpenContext *opens;

        for (size_t i = 0; i < s->n_disks; i++)
                n += s->disks[i].n_open;
        if (n != s->plan->n_fds)
                return start_errno(s, -EINVAL, "its command line is not made for its disks");
        opens = reallocarray(s->opens, n + 1, sizeof(OpenContext));
        if (!opens)
                return start_errno(s, -ENOMEM, "can't start");
        s->opens = opens;
        for (size_t i = 0; i < s->n_disks; i++) {
                for (size_t k = 0; k < s->disks[i].n_open; k++)
                        s->opens[s->n_fds++] = (OpenContext) { .start = s, .fd = s->disks[i].fds[k] };
                s->disks[i].n_open = 0;
        }
        return 0;
}
