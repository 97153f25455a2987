/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <limits.h>
#include <sys/stat.h>

#include "basic/string-util.h"
#include "vmm/qemu-plan.h"

#include "fuzz.h"

/* The headers of a disk's images, each HEAD bytes or what is left: what is found is bounded, has paths that can be said on the bus, and
 * can be given to QEMU. */

#define HEAD 512U

static bool is_plain(const char *s) {
        for (size_t l; *s; s += l) {
                l = utf8_char_length(s, strlen(s));
                if (l == 0 || (l == 1 && ((unsigned char) *s < 0x20 || *s == 0x7f)))
                        return false;
        }
        return true;
}

static void check_files(const Definition *d, DiskFiles *f) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL, *before = NULL;
        LaunchParams p = { .definition = d, .name = "a", .id = "12345678-1234-1234-1234-123456789abc"};

        fuzz_assert(f->n_images <= DISK_IMAGES_MAX);
        for (size_t i = 0; i < f->n_images; i++) {
                const Image *image = f->images + i;

                fuzz_assert(image->path[0] == '/' && strlen(image->path) < PATH_MAX && is_plain(image->path));
                fuzz_assert(!image->is_data || image->format == DISK_RAW);
                fuzz_assert(!image->is_data || i == 0 || !f->images[i - 1].is_data);
                fuzz_assert(!disk_file_writable(d->disks, f, i + 1) || (i == 0 && image->is_data));
        }
        fuzz_assert(qemu_plan_for(&p, false, &before) >= 0);
        p.files = &f;
        fuzz_assert(qemu_plan_for(&p, false, &plan) >= 0);
        fuzz_assert(plan->n_fds == before->n_fds + f->n_images);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        Disk disk = { .name = (char *) "disk0", .path = (char *) "/images/a", .format = DISK_QCOW2 };
        Definition d = { .cpus = 1, .memory = 32 << 20, .kernel = (char *) "/k", .disks = &disk, .n_disks = 1 };
        _cleanup_(disk_files_freep) DiskFiles *f = NULL;
        int r = 0;

        fuzz_assert(disk_files_new(&f) >= 0);
        for (size_t number = 0; r >= 0 && number <= f->n_images; number++) {
                size_t n = MIN(size, HEAD);
                char *head = fuzz_string(data, n);
                FileSeen seen = { .mode = S_IFREG | 0600, .dev = 1, .ino = number, .head = head, .head_size = n };
                sd_bus_error error = SD_BUS_ERROR_NULL;

                r = disk_files_add(f, &d, 0, number, &seen, &error);
                fuzz_assert(sd_bus_error_is_set(&error) == (r < 0));
                fuzz_assert(r >= 0 || is_plain(error.message));
                sd_bus_error_free(&error);
                free(head);
                data += n;
                size -= n;
        }
        if (r >= 0)
                check_files(&d, f);
        return 0;
}
