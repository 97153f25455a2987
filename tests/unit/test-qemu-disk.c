/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <endian.h>
#include <sys/stat.h>

#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/disk-check.h"

#include "tap.h"

static void put32(uint8_t *p, uint32_t v) {
        v = htobe32(v);
        memcpy(p, &v, sizeof v);
}

static void put64(uint8_t *p, uint64_t v) {
        v = htobe64(v);
        memcpy(p, &v, sizeof v);
}

static void header(uint8_t *h, uint32_t version) {
        memset(h, 0, QCOW2_HEADER_MAX);
        memcpy(h, "QFI\xfb", 4);
        put32(h + 4, version);
        put32(h + 20, 16);
        put64(h + 24, 1 << 20);
}

static void test_header(void) {
        uint8_t h[QCOW2_HEADER_MAX];

        for (uint32_t version = 2; version <= 3; version++) {
                header(h, version);
                is_int(qcow2_check_header(h, sizeof h), QCOW2_OK, "version %u", version);
                put64(h + 8, 0x200);
                is_int(qcow2_check_header(h, sizeof h), QCOW2_BACKING, "… with a backing file");
                put64(h + 8, UINT64_C(1) << 63);
                is_int(qcow2_check_header(h, sizeof h), QCOW2_BACKING, "… at an odd place");
                header(h, version);
                put32(h + 32, 1);
                is_int(qcow2_check_header(h, sizeof h), QCOW2_ENCRYPTED, "… encrypted");
                header(h, version);
                put64(h + 72, 4);
                is_int(qcow2_check_header(h, sizeof h), version == 3 ? QCOW2_DATA_FILE : QCOW2_OK, "… the data file's bit");
        }

        header(h, 2);
        is_int(qcow2_check_header(h, 72), QCOW2_OK, "version 2 has 72 bytes");
        is_int(qcow2_check_header(h, 71), QCOW2_BAD, "… not 71");
        is_int(qcow2_check_header(h, 4), QCOW2_BAD, "… not 4");
        is_int(qcow2_check_header(h, 3), QCOW2_NOT_QCOW2, "three bytes are nothing");
        is_int(qcow2_check_header(h, 0), QCOW2_NOT_QCOW2, "an empty file is nothing");
        header(h, 3);
        is_int(qcow2_check_header(h, 103), QCOW2_BAD, "version 3 has 104 bytes");
        for (uint32_t version = 0; version < 8; version++) {
                header(h, version);
                if (version != 2 && version != 3)
                        is_int(qcow2_check_header(h, sizeof h), QCOW2_BAD, "version %u", version);
        }
}

static void expect(DiskFormat format, const void *content, size_t n, int result, const char *name, const char *message) {
        Disk disk = { .name = (char *) "data0", .path = (char *) "/images/a.img", .format = format };
        Definition d = { .disks = &disk, .n_disks = 1 };
        sd_bus_error error = SD_BUS_ERROR_NULL;

        is_int(disk_check(&d, 0, S_IFREG | 0600, content, n, &error), result, "disk: %s", message ?: "good");
        is_str(error.name, name, "… by its name");
        if (message)
                ok(error.message && startswith(error.message, message), "… %s", strempty(error.message));
        sd_bus_error_free(&error);
}

int main(void) {
        Disk disk = { .name = (char *) "data0", .path = (char *) "/dev/null" };
        Definition d = { .disks = &disk, .n_disks = 1 };
        sd_bus_error error = SD_BUS_ERROR_NULL;
        uint8_t h[QCOW2_HEADER_MAX];

        test_header();

        header(h, 3);
        expect(DISK_QCOW2, h, sizeof h, 0, NULL, NULL);
        expect(DISK_RAW, h, sizeof h, 0, NULL, NULL);
        expect(DISK_RAW, "", 0, 0, NULL, NULL);
        expect(DISK_QCOW2, "MZ", 2, -EINVAL, VMUNIT_ERROR_INVALID_DEFINITION, "disks[0].format: /images/a.img is not a qcow2 image");
        expect(DISK_QCOW2, h, 50, -EINVAL, VMUNIT_ERROR_INVALID_DEFINITION, "disks[0].path: /images/a.img has a damaged");
        put64(h + 8, 0x300);
        expect(DISK_QCOW2, h, sizeof h, -EOPNOTSUPP, VMUNIT_ERROR_NOT_SUPPORTED, "disks[0].path: /images/a.img has a backing file");

        is_int(disk_check(&d, 0, S_IFCHR | 0666, NULL, 0, &error), -EINVAL, "a character device is no disk");
        ok(error.message && startswith(error.message, "disks[0].path: /dev/null is not a regular file"), "… and told so");
        sd_bus_error_free(&error);
        return done_testing();
}
