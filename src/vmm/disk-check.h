/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "core/definition.h"

/* The header of a qcow2 image names further files, and a VMM would open them by itself, with its own rights. So they are read here,
 * opened as the VM's owner, and the VMM is told which of its file descriptors is what. */

#define QCOW2_HEADER_MAX 104U
#define DISK_IMAGES_MAX 32U             /* beside the disk's own file */

typedef enum Qcow2Verdict {
        QCOW2_OK,
        QCOW2_NOT_QCOW2,        /* no such header */
        QCOW2_BAD,              /* cut short, or nobody knows what it says */
        QCOW2_FAR,              /* names of files lie where they are not looked for */
        QCOW2_ENCRYPTED,        /* needs a key */
} Qcow2Verdict;

/* What a header says; the strings are in it, and not terminated. */
typedef struct Qcow2Header {
        const char *backing, *backing_format, *data_file;       /* NULL: none */
        size_t backing_size, backing_format_size, data_file_size;
} Qcow2Header;

/* p: the first bytes of the file */
Qcow2Verdict qcow2_read_header(const void *p, size_t n, Qcow2Header *ret);

/* A file that a disk's image rests on */
typedef struct Image {
        char *path;
        DiskFormat format;
        bool is_data;           /* holds the data of the image before it, else that rests on it */
        bool is_block;          /* a block device */
} Image;

/* All files of a disk: its own, which is number 0, then images[0] is number 1… */
typedef struct DiskFiles {
        Image *images;
        size_t n_images;
        bool is_block;          /* the disk's own */
        uint64_t ids[1 + DISK_IMAGES_MAX][2];   /* of those that were looked at: device, inode */
} DiskFiles;

DiskFiles *disk_files_free(DiskFiles *f);
DEFINE_TRIVIAL_CLEANUP_FUNC(DiskFiles *, disk_files_free);
int disk_files_new(DiskFiles **ret);

/* Its path, and whether the VMM writes to it */
const char *disk_file_path(const Disk *disk, const DiskFiles *f, size_t number);
bool disk_file_writable(const Disk *disk, const DiskFiles *f, size_t number);

/* What the opener of a file saw */
typedef struct FileSeen {
        mode_t mode;
        uint64_t dev, ino;
        const void *head;       /* its first bytes */
        size_t head_size;
} FileSeen;

/* File by file, in their order, of disk number i of a definition: it has to be a regular file or a block device, of the format that
 * is said of it; what it names is added behind. 0; -EOPNOTSUPP with VMUNIT_ERROR_NOT_SUPPORTED, -EINVAL with
 * VMUNIT_ERROR_INVALID_DEFINITION, -ENOMEM, the message beginning with "disks[i].path: " or "disks[i].format: ". */
int disk_files_add(DiskFiles *f, const Definition *d, size_t i, size_t number, const FileSeen *seen, sd_bus_error *error);
