/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <endian.h>
#include <sys/stat.h>

#include "bus/error-names.h"
#include "vmm/disk-check.h"

/* Offsets of the header: docs/interop/qcow2.txt of QEMU. All is big-endian. */
enum {
        QCOW2_VERSION = 4,
        QCOW2_BACKING_OFFSET = 8,
        QCOW2_CRYPT_METHOD = 32,
        QCOW2_V2_SIZE = 72,
        QCOW2_INCOMPATIBLE = 72,
        QCOW2_V3_SIZE = 104,
};

#define QCOW2_INCOMPATIBLE_DATA_FILE (UINT64_C(1) << 2)

static uint32_t read_be32(const uint8_t *p) {
        uint32_t v;

        memcpy(&v, p, sizeof v);
        return be32toh(v);
}

static uint64_t read_be64(const uint8_t *p) {
        uint64_t v;

        memcpy(&v, p, sizeof v);
        return be64toh(v);
}

Qcow2Verdict qcow2_check_header(const void *data, size_t n) {
        const uint8_t *p = data;
        uint32_t version;

        if (n < 4 || memcmp(p, "QFI\xfb", 4) != 0)
                return QCOW2_NOT_QCOW2;
        if (n < QCOW2_V2_SIZE)
                return QCOW2_BAD;

        version = read_be32(p + QCOW2_VERSION);
        if ((version != 2 && version != 3) || (version == 3 && n < QCOW2_V3_SIZE))
                return QCOW2_BAD;

        if (read_be64(p + QCOW2_BACKING_OFFSET) != 0)
                return QCOW2_BACKING;
        if (version == 3 && (read_be64(p + QCOW2_INCOMPATIBLE) & QCOW2_INCOMPATIBLE_DATA_FILE))
                return QCOW2_DATA_FILE;
        if (read_be32(p + QCOW2_CRYPT_METHOD) != 0)
                return QCOW2_ENCRYPTED;
        return QCOW2_OK;
}

static int refuse(sd_bus_error *error, bool supported, size_t i, const char *key, const char *path, const char *why) {
        sd_bus_error_setf(error, supported ? VMUNIT_ERROR_INVALID_DEFINITION : VMUNIT_ERROR_NOT_SUPPORTED,
                "disks[%zu].%s: %s %s", i, key, path, why);
        return supported ? -EINVAL : -EOPNOTSUPP;
}

static int check_qcow2(const Disk *disk, size_t i, const void *head, size_t n, sd_bus_error *error) {
        switch (qcow2_check_header(head, n)) {

        case QCOW2_OK:
                return 0;
        case QCOW2_NOT_QCOW2:
                return refuse(error, true, i, "format", disk->path, "is not a qcow2 image; if it is a raw one, write \"raw\"");
        case QCOW2_BACKING:
                return refuse(error, false, i, "path", disk->path,
                        "has a backing file, which is not supported yet; `qemu-img convert -O qcow2` makes an image without");
        case QCOW2_DATA_FILE:
                return refuse(error, false, i, "path", disk->path,
                        "keeps its data in another file, which is not supported; `qemu-img convert -O qcow2` makes one image");
        case QCOW2_ENCRYPTED:
                return refuse(error, false, i, "path", disk->path, "is encrypted, which is not supported");
        case QCOW2_BAD:
                break;
        }
        return refuse(error, true, i, "path", disk->path, "has a damaged qcow2 header, or one of an unknown version");
}

int disk_check(const Definition *d, size_t i, mode_t mode, const void *head, size_t n, sd_bus_error *error) {
        const Disk *disk = d->disks + i;

        /* A pure function makes QEMU's arguments, and a block device would need others than a file. */
        if (S_ISBLK(mode))
                return refuse(error, false, i, "path", disk->path, "is a block device, which is not supported yet");
        if (!S_ISREG(mode))
                return refuse(error, true, i, "path", disk->path, "is not a regular file");

        return disk->format == DISK_QCOW2 ? check_qcow2(disk, i, head, n, error) : 0;
}
