/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <endian.h>
#include <limits.h>
#include <sys/stat.h>

#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/disk-check.h"

#include "tap.h"

#define HEAD_MAX 4096U

static void put32(uint8_t *p, uint32_t v) {
        v = htobe32(v);
        memcpy(p, &v, sizeof v);
}

static void put64(uint8_t *p, uint64_t v) {
        v = htobe64(v);
        memcpy(p, &v, sizeof v);
}

/* A header, with an end of its extensions */
static void header(uint8_t *h, uint32_t version) {
        memset(h, 0, HEAD_MAX);
        memcpy(h, "QFI\xfb", 4);
        put32(h + 4, version);
        put32(h + 20, 16);
        put64(h + 24, 1 << 20);
        put32(h + 100, QCOW2_HEADER_MAX);
}

static size_t extension(uint8_t *h, size_t at, uint32_t type, const void *data, size_t n) {
        put32(h + at, type);
        put32(h + at + 4, (uint32_t) n);
        memcpy(h + at + 8, data, n);
        return at + 8 + (n + 7) / 8 * 8;
}

#define FORMAT 0xe2792aca
#define DATA_FILE 0x44415441

/* With a backing file, and what else is asked for */
static void backed(uint8_t *h, const char *name, const char *format, const char *data) {
        size_t at = QCOW2_HEADER_MAX;

        header(h, 3);
        at = extension(h, at, 0x12345678, "something else", 14);
        if (format)
                at = extension(h, at, FORMAT, format, strlen(format));
        if (data) {
                put64(h + 72, 4);
                at = extension(h, at, DATA_FILE, data, strlen(data));
        }
        at = extension(h, at, 0, "", 0);
        if (name) {
                put64(h + 8, at);
                put32(h + 16, (uint32_t) strlen(name));
                memcpy(h + at, name, strlen(name));
        }
}

static Qcow2Verdict verdict(const uint8_t *h, size_t n) {
        Qcow2Header r;

        return qcow2_read_header(h, n, &r);
}

static void test_header(void) {
        uint8_t h[HEAD_MAX];

        for (uint32_t version = 2; version <= 3; version++) {
                header(h, version);
                is_int(verdict(h, HEAD_MAX), QCOW2_OK, "version %u", version);
                put64(h + 8, UINT64_C(1) << 63);
                is_int(verdict(h, HEAD_MAX), QCOW2_OK, "… with a name of no bytes");
                put32(h + 16, 1);
                is_int(verdict(h, HEAD_MAX), QCOW2_FAR, "… of one, at an odd place");
                put64(h + 8, HEAD_MAX);
                is_int(verdict(h, HEAD_MAX), QCOW2_FAR, "… behind what was read");
                put32(h + 16, 1024);
                is_int(verdict(h, HEAD_MAX), QCOW2_BAD, "… of more than there may be");
                header(h, version);
                put32(h + 32, 1);
                is_int(verdict(h, HEAD_MAX), QCOW2_ENCRYPTED, "… encrypted");
                header(h, version);
                put64(h + 72, 4);
                is_int(verdict(h, HEAD_MAX), version == 3 ? QCOW2_BAD : QCOW2_OK, "… the data file's bit, and no name");
        }

        header(h, 2);
        is_int(verdict(h, 72), QCOW2_OK, "version 2 has 72 bytes");
        is_int(verdict(h, 71), QCOW2_BAD, "… not 71");
        is_int(verdict(h, 4), QCOW2_BAD, "… not 4");
        is_int(verdict(h, 3), QCOW2_NOT_QCOW2, "three bytes are nothing");
        is_int(verdict(h, 0), QCOW2_NOT_QCOW2, "an empty file is nothing");
        header(h, 3);
        is_int(verdict(h, 104), QCOW2_OK, "version 3 has 104 bytes");
        is_int(verdict(h, 103), QCOW2_BAD, "… not 103");
        put32(h + 100, 103);
        is_int(verdict(h, HEAD_MAX), QCOW2_BAD, "… and says so");
        put32(h + 100, HEAD_MAX + 8);
        is_int(verdict(h, HEAD_MAX), QCOW2_FAR, "… or that it has more than was read");
        for (uint32_t version = 0; version < 8; version++) {
                header(h, version);
                if (version != 2 && version != 3)
                        is_int(verdict(h, HEAD_MAX), QCOW2_BAD, "version %u", version);
        }
}

static void test_names(void) {
        uint8_t h[HEAD_MAX];
        Qcow2Header r;

        backed(h, "base", "raw", "data");
        is_int(qcow2_read_header(h, HEAD_MAX, &r), QCOW2_OK, "a backing file, its format, a data file");
        ok(r.backing_size == 4 && memcmp(r.backing, "base", 4) == 0, "… the first");
        ok(r.backing_format_size == 3 && memcmp(r.backing_format, "raw", 3) == 0, "… the second");
        ok(r.data_file_size == 4 && memcmp(r.data_file, "data", 4) == 0, "… the third");
        for (size_t n = 0; n < HEAD_MAX; n++) {
                Qcow2Verdict v = qcow2_read_header(h, n, &r);

                if (v == QCOW2_OK && (!r.backing || (const uint8_t *) r.backing + r.backing_size > h + n))
                        ok(false, "cut after %zu bytes: names beyond", n);
        }
        backed(h, NULL, NULL, "data");
        put64(h + 72, 0);
        is_int(qcow2_read_header(h, HEAD_MAX, &r), QCOW2_OK, "a data file's name without its bit");
        ok(!r.data_file, "… is none");
        backed(h, "base", NULL, NULL);
        put32(h + QCOW2_HEADER_MAX + 4, UINT32_MAX);
        is_int(qcow2_read_header(h, HEAD_MAX, &r), QCOW2_FAR, "an extension that does not end");
        put32(h + QCOW2_HEADER_MAX + 4, HEAD_MAX - QCOW2_HEADER_MAX - 9);
        is_int(qcow2_read_header(h, HEAD_MAX, &r), QCOW2_FAR, "… one that ends just before the end");
}

static DiskFiles *files;
static Disk disk = { .name = (char *) "data0", .path = (char *) "/images/a.img", .format = DISK_QCOW2 };
static Definition d = { .disks = &disk, .n_disks = 1 };
static uint64_t next_inode;

static int add(size_t number, mode_t mode, const void *content, size_t n, uint64_t inode, sd_bus_error *error) {
        FileSeen seen = { .mode = mode, .dev = 1, .ino = inode, .head = content, .head_size = n };

        return disk_files_add(files, &d, 0, number, &seen, error);
}

static void anew(void) {
        files = disk_files_free(files);
        (void) disk_files_new(&files);
}

static void expect_of(size_t number, const void *content, size_t n, int result, const char *name, const char *message) {
        sd_bus_error error = SD_BUS_ERROR_NULL;

        is_int(add(number, S_IFREG | 0600, content, n, ++next_inode, &error), result, "disk: %s", message ?: "good");
        is_str(error.name, name, "… by its name");
        if (message)
                ok(error.message && startswith(error.message, message), "… %s", strempty(error.message));
        sd_bus_error_free(&error);
}

static void expect(const void *content, size_t n, int result, const char *name, const char *message) {
        anew();
        expect_of(0, content, n, result, name, message);
}

static void test_kinds(void) {
        sd_bus_error error = SD_BUS_ERROR_NULL;
        uint8_t h[HEAD_MAX];

        header(h, 3);
        expect(h, sizeof h, 0, NULL, NULL);
        expect("MZ", 2, -EINVAL, VMUNIT_ERROR_INVALID_DEFINITION, "disks[0].format: /images/a.img is not a qcow2 image");
        expect(h, 50, -EINVAL, VMUNIT_ERROR_INVALID_DEFINITION, "disks[0].path: /images/a.img has a damaged");
        put32(h + 32, 2);
        expect(h, sizeof h, -EOPNOTSUPP, VMUNIT_ERROR_NOT_SUPPORTED, "disks[0].path: /images/a.img is encrypted");

        anew();
        is_int(add(0, S_IFCHR | 0666, NULL, 0, 1, &error), -EINVAL, "a character device is no disk");
        ok(error.message && startswith(error.message, "disks[0].path: /images/a.img is neither a regular file"), "… and told so");
        sd_bus_error_free(&error);
        disk.format = DISK_RAW;
        expect(h, sizeof h, 0, NULL, NULL);
        expect("", 0, 0, NULL, NULL);
        ok(!files->is_block, "a file is no block device");
        anew();
        is_int(add(0, S_IFBLK | 0660, "", 0, 1, NULL), 0, "a block device is a disk");
        ok(files->is_block, "… and known as one");
        backed(h, "base", "raw", NULL);
        expect(h, sizeof h, 0, NULL, NULL);
        is_int(files->n_images, 0, "what a guest wrote to a raw disk is not read");
        disk.format = DISK_QCOW2;
}

static void expect_image(const char *name, const char *path) {
        uint8_t h[HEAD_MAX];

        backed(h, name, "raw", NULL);
        expect(h, sizeof h, 0, NULL, NULL);
        is_int(files->n_images, 1, "it rests on one");
        is_str(files->n_images ? files->images[0].path : NULL, path, "… which is found");
}

static void refuse_image(const char *name, const char *format, const char *message) {
        uint8_t h[HEAD_MAX];

        backed(h, name, format, NULL);
        expect(h, sizeof h, -EOPNOTSUPP, VMUNIT_ERROR_NOT_SUPPORTED, message);
        is_int(files->n_images, 0, "… and is not opened");
}

static void test_paths(void) {
        char name[1024], path[PATH_MAX];

        expect_image("base", "/images/base");
        expect_image("../b/c:d", "/images/../b/c:d");
        expect_image("/other/ba,s\"e\\ ü", "/other/ba,s\"e\\ ü");
        expect_image("./a:b", "/images/./a:b");
        refuse_image("nbd://host/x", "raw", "disks[0].path: /images/a.img rests on \"nbd://host/x\", which is not the path");
        refuse_image("json:{\"driver\":\"file\"}", "raw", "disks[0].path: /images/a.img rests on \"json:");
        refuse_image("file:/etc/shadow", "raw", "disks[0].path: /images/a.img rests on \"file:");
        refuse_image("a\nb", "raw", "disks[0].path: /images/a.img rests on \"a b\", which has control");
        refuse_image("a\xff", "raw", "disks[0].path: /images/a.img rests on \"a\\xff\", which has control");
        refuse_image("/b", NULL, "disks[0].path: /images/a.img rests on \"/b\", and does not tell its format");
        refuse_image("/b", "vmdk", "disks[0].path: /images/a.img rests on \"/b\", of a format");

        memset(path, 'p', sizeof path);
        path[0] = path[PATH_MAX - 600] = '/';
        path[PATH_MAX - 599] = 0;
        memset(name, 'n', sizeof name);
        name[1000] = 0;
        disk.path = path;
        refuse_image(name, "raw", "disks[0].path: /ppp");
        disk.path = (char *) "/images/a.img";
}

static void test_chain(void) {
        sd_bus_error error = SD_BUS_ERROR_NULL;
        char message[256];
        uint8_t h[HEAD_MAX];
        int r = 0;

        backed(h, "one/base", "qcow2", "data");
        expect(h, sizeof h, 0, NULL, NULL);
        is_int(files->n_images, 2, "data and a backing file");
        ok(files->images[0].is_data && !files->images[1].is_data && files->images[1].format == DISK_QCOW2, "… in this order");
        ok(disk_file_writable(&disk, files, 0) && disk_file_writable(&disk, files, 1) && !disk_file_writable(&disk, files, 2),
           "the disk and its data are written to");
        backed(h, "base", "raw", "data");
        expect_of(1, h, sizeof h, 0, NULL, NULL);
        is_int(files->n_images, 2, "data rests on nothing");
        expect_of(2, h, sizeof h, 0, NULL, NULL);
        is_int(files->n_images, 4, "the second image's");
        is_str(disk_file_path(&disk, files, 3), "/images/one/data", "… from where that is");
        ok(!disk_file_writable(&disk, files, 3), "… whose data is not written to");
        expect_of(3, "", 0, 0, NULL, NULL);
        expect_of(4, h, sizeof h, 0, NULL, NULL);
        is_int(files->n_images, 4, "a raw one rests on nothing");

        backed(h, "base", "qcow2", NULL);
        expect(h, sizeof h, 0, NULL, NULL);
        is_int(add(1, S_IFREG | 0600, h, sizeof h, next_inode, &error), -EINVAL, "one that rests on itself");
        ok(error.message && startswith(error.message, "disks[0].path: /images/base, a backing file of /images/a.img, rests on itself"),
           "… %s", strempty(error.message));
        sd_bus_error_free(&error);

        anew();
        for (size_t i = 0; r == 0 && i <= DISK_IMAGES_MAX + 1; i++) {
                r = add(i, S_IFREG | 0600, h, sizeof h, i + 1, &error);
                (void) snprintf(message, sizeof message, "%s", strempty(error.message));
        }
        is_int(r, -EOPNOTSUPP, "%zu images are too many: %s", files->n_images, message);
        is_int(files->n_images, DISK_IMAGES_MAX, "… and no more are known");
        sd_bus_error_free(&error);
}

int main(void) {
        test_header();
        test_names();
        test_kinds();
        test_paths();
        test_chain();
        files = disk_files_free(files);
        return done_testing();
}
