/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <endian.h>
#include <limits.h>
#include <sys/stat.h>

#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/disk-check.h"

/* Offsets of the header: docs/interop/qcow2.txt of QEMU. All is big-endian. */
enum {
        QCOW2_VERSION = 4,
        QCOW2_BACKING_OFFSET = 8,
        QCOW2_BACKING_SIZE = 16,
        QCOW2_CRYPT_METHOD = 32,
        QCOW2_V2_SIZE = 72,
        QCOW2_INCOMPATIBLE = 72,
        QCOW2_HEADER_LENGTH = 100,
        QCOW2_V3_SIZE = 104,
};

#define QCOW2_INCOMPATIBLE_DATA_FILE (UINT64_C(1) << 2)
#define QCOW2_BACKING_NAME_MAX 1023U

enum {
        EXTENSION_END = 0,
        EXTENSION_BACKING_FORMAT = 0xe2792aca,
        EXTENSION_DATA_FILE = 0x44415441,
};

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

/* Type, size, data, filled up to a multiple of 8 */
static Qcow2Verdict read_extensions(const uint8_t *p, size_t at, size_t n, Qcow2Header *h) {
        for (;;) {
                uint32_t type, size;

                if (n - at < 8)
                        return QCOW2_FAR;
                type = read_be32(p + at);
                size = read_be32(p + at + 4);
                at += 8;
                if (type == EXTENSION_END)
                        return QCOW2_OK;
                if (size > n - at)
                        return QCOW2_FAR;
                if (type == EXTENSION_BACKING_FORMAT) {
                        h->backing_format = (const char *) p + at;
                        h->backing_format_size = size;
                } else if (type == EXTENSION_DATA_FILE) {
                        h->data_file = (const char *) p + at;
                        h->data_file_size = size;
                }
                at += MIN(((size_t) size + 7) / 8 * 8, n - at);
        }
}

static Qcow2Verdict read_names(const uint8_t *p, size_t n, uint32_t length, bool has_data_file, Qcow2Header *h) {
        uint64_t offset = read_be64(p + QCOW2_BACKING_OFFSET);
        uint32_t size = offset == 0 ? 0 : read_be32(p + QCOW2_BACKING_SIZE);
        Qcow2Verdict v;

        if (size > QCOW2_BACKING_NAME_MAX)
                return QCOW2_BAD;
        if (size > 0 && (offset > n || size > n - offset))
                return QCOW2_FAR;
        if (size > 0) {
                h->backing = (const char *) p + offset;
                h->backing_size = size;
        }
        if (size == 0 && !has_data_file)
                return QCOW2_OK; /* whatever else it says */
        v = read_extensions(p, length, n, h);
        if (v != QCOW2_OK)
                return v;
        if (!has_data_file)
                h->data_file = NULL;
        else if (!h->data_file || h->data_file_size == 0)
                return QCOW2_BAD;
        return QCOW2_OK;
}

Qcow2Verdict qcow2_read_header(const void *data, size_t n, Qcow2Header *ret) {
        uint32_t version, length = QCOW2_V2_SIZE;
        bool has_data_file = false;
        const uint8_t *p = data;

        *ret = (Qcow2Header) {};
        if (n < 4 || memcmp(p, "QFI\xfb", 4) != 0)
                return QCOW2_NOT_QCOW2;
        if (n < QCOW2_V2_SIZE)
                return QCOW2_BAD;

        version = read_be32(p + QCOW2_VERSION);
        if ((version != 2 && version != 3) || (version == 3 && n < QCOW2_V3_SIZE))
                return QCOW2_BAD;
        if (read_be32(p + QCOW2_CRYPT_METHOD) != 0)
                return QCOW2_ENCRYPTED;
        if (version == 3) {
                has_data_file = read_be64(p + QCOW2_INCOMPATIBLE) & QCOW2_INCOMPATIBLE_DATA_FILE;
                length = read_be32(p + QCOW2_HEADER_LENGTH);
        }
        if (length < (version == 3 ? QCOW2_V3_SIZE : QCOW2_V2_SIZE))
                return QCOW2_BAD;
        return length > n ? QCOW2_FAR : read_names(p, n, length, has_data_file, ret);
}

/* The files of a disk */

DiskFiles *disk_files_free(DiskFiles *f) {
        if (!f)
                return NULL;
        for (size_t i = 0; i < f->n_images; i++)
                free(f->images[i].path);
        free(f->images);
        free(f);
        return NULL;
}

int disk_files_new(DiskFiles **ret) {
        *ret = new0(DiskFiles, 1);
        return *ret ? 0 : -ENOMEM;
}

const char *disk_file_path(const Disk *disk, const DiskFiles *f, size_t number) {
        return number == 0 ? disk->path : f->images[number - 1].path;
}

/* The data of the topmost image alone */
bool disk_file_writable(const Disk *disk, const DiskFiles *f, size_t number) {
        return !disk->readonly && (number == 0 || (number == 1 && f->images[0].is_data));
}

typedef struct Context {
        DiskFiles *files;
        const Disk *disk;
        size_t i, number;
        sd_bus_error *error;
} Context;

static int refuse(const Context *c, bool supported, const char *key, const char *why) {
        const char *path = disk_file_path(c->disk, c->files, c->number), *what = "";

        if (c->number > 0)
                what = c->files->images[c->number - 1].is_data ? ", a data file of " : ", a backing file of ";
        sd_bus_error_setf(c->error, supported ? VMUNIT_ERROR_INVALID_DEFINITION : VMUNIT_ERROR_NOT_SUPPORTED, "disks[%zu].%s: %s%s%s%s %s", c->i, key,
                          path, what, c->number > 0 ? c->disk->path : "", c->number > 0 ? "," : "", why);
        return supported ? -EINVAL : -EOPNOTSUPP;
}

/* The same, of a name in its header, which anybody may have written */
static int refuse_name(const Context *c, const char *name, size_t n, const char *why) {
        _cleanup_free_ char *shown = escape_untrusted(name, n, 512), *sentence = NULL;

        for (char *p = shown; p && *p; p++)
                if (*p == '\n')
                        *p = ' ';
        sentence = strjoinf("rests on \"%s\", %s", strempty(shown), why);
        return sentence ? refuse(c, false, "path", sentence) : -ENOMEM;
}

/* As a definition's path: no broken UTF-8, no control characters */
static bool is_plain(const char *s, size_t n) {
        _cleanup_free_ char *escaped = escape_untrusted(s, n, n);

        return escaped && strlen(escaped) == n && memcmp(escaped, s, n) == 0 && !memchr(s, '\n', n);
}

/* What QEMU would take for the name of a protocol, or for JSON */
static bool has_protocol(const char *s, size_t n) {
        const char *colon = memchr(s, ':', n);

        return colon && !memchr(s, '/', (size_t) (colon - s));
}

/* A name that is not absolute is looked for where the image is that has it. */
static char *resolve(const char *path, const char *name, size_t n) {
        int above = name[0] == '/' ? 0 : (int) (strrchr(path, '/') + 1 - path);

        return strjoinf("%.*s%.*s", above, path, (int) n, name);
}

static int add_image(const Context *c, const char *name, size_t n, DiskFormat format, bool is_data) {
        DiskFiles *f = c->files;
        Image *images;
        char *path;

        if (f->n_images >= DISK_IMAGES_MAX)
                return refuse(c, false, "path", "is one of too many images that rest on each other");
        if (!is_plain(name, n))
                return refuse_name(c, name, n, "which has control characters, or is not written in UTF-8");
        if (has_protocol(name, n))
                return refuse_name(c, name, n, "which is not the path of a file");
        images = reallocarray(f->images, f->n_images + 1, sizeof(Image));
        if (!images)
                return -ENOMEM;
        f->images = images;
        path = resolve(disk_file_path(c->disk, f, c->number), name, n);
        if (!path)
                return -ENOMEM;
        if (strlen(path) >= PATH_MAX) {
                free(path);
                return refuse(c, false, "path", "rests on a file whose path is too long");
        }
        f->images[f->n_images++] = (Image) { .path = path, .format = format, .is_data = is_data };
        return 0;
}

/* To find the format out is not safe: a guest that wrote to a raw image could have made it look like a qcow2 one that rests on any file
 * of the owner's. */
static int add_backing(const Context *c, const Qcow2Header *h) {
        DiskFormat format;

        if (!h->backing)
                return 0;
        if (!h->backing_format)
                return refuse_name(c, h->backing, h->backing_size, "and does not tell its format; `qemu-img rebase -u -b FILE -F FORMAT` adds that");
        if (h->backing_format_size == 3 && memcmp(h->backing_format, "raw", 3) == 0)
                format = DISK_RAW;
        else if (h->backing_format_size == 5 && memcmp(h->backing_format, "qcow2", 5) == 0)
                format = DISK_QCOW2;
        else
                return refuse_name(c, h->backing, h->backing_size, "of a format that is neither raw nor qcow2");
        return add_image(c, h->backing, h->backing_size, format, false);
}

static int add_named(const Context *c, const FileSeen *seen) {
        Qcow2Header h;
        int r;

        switch (qcow2_read_header(seen->head, seen->head_size, &h)) {
        case QCOW2_OK:
                r = h.data_file ? add_image(c, h.data_file, h.data_file_size, DISK_RAW, true) : 0;
                return r < 0 ? r : add_backing(c, &h);
        case QCOW2_NOT_QCOW2:
                return refuse(c, true, c->number == 0 ? "format" : "path", "is not a qcow2 image; if it is a raw one, write \"raw\"");
        case QCOW2_FAR:
                return refuse(c, false, "path", "names other files behind its first 4096 bytes; `qemu-img convert -O qcow2` makes an image without");
        case QCOW2_ENCRYPTED:
                return refuse(c, false, "path", "is encrypted, which is not supported");
        case QCOW2_BAD:
                break;
        }
        return refuse(c, true, "path", "has a damaged qcow2 header, or one of an unknown version");
}

static bool is_known(const DiskFiles *f, size_t number, const FileSeen *seen) {
        for (size_t i = 0; i < number; i++)
                if (f->ids[i][0] == seen->dev && f->ids[i][1] == seen->ino)
                        return true;
        return false;
}

int disk_files_add(DiskFiles *f, const Definition *d, size_t i, size_t number, const FileSeen *seen, sd_bus_error *error) {
        const Context c = { .files = f, .disk = d->disks + i, .i = i, .number = number, .error = error };
        DiskFormat format = number == 0 ? c.disk->format : f->images[number - 1].format;
        bool block = S_ISBLK(seen->mode);

        if (!S_ISREG(seen->mode) && !block)
                return refuse(&c, true, "path", "is neither a regular file nor a block device");
        if (is_known(f, number, seen))
                return refuse(&c, true, "path", "rests on itself");
        f->ids[number][0] = seen->dev;
        f->ids[number][1] = seen->ino;
        if (number == 0)
                f->is_block = block;
        else
                f->images[number - 1].is_block = block;
        return format == DISK_QCOW2 ? add_named(&c, seen) : 0;
}
