/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <cpuid.h>
#include <inttypes.h>

#include "basic/json-util.h"
#include "basic/string-util.h"
#include "bus/error-names.h"
#include "vmm/qemu-plan.h"

#define OVMF_CODE "/usr/share/OVMF/OVMF_CODE_4M.fd"

/* microvm has 24 virtio-mmio slots with a second I/O APIC and 8 without, which starts faster. On q35's root bus QEMU's own
 * chips take two of 32 numbers; one is kept free. */
#define MMIO_SLOTS_FEW 8U
#define MMIO_SLOTS_MAX 24U
#define PCI_SLOTS_MAX 29U
#define CPUS_MAX 255U                   /* what an 8-bit APIC id can name */

/* One step of making a plan: a function that adds arguments and files. */
typedef struct Context {
        const LaunchParams *params;
        const Definition *definition;
        LaunchPlan *plan;
        bool microvm, nested;
        int disks_fd, shares_fd, images_fd; /* the first of each; images: the next */
} Context;

static size_t n_devices(const Definition *d) {
        return d->n_disks + d->n_filesystems + d->n_networks + d->vsock;
}

static bool is_firmware(const Definition *d, const char *name) {
        return !d->kernel && streq(d->firmware ?: "bios", name);
}

int qemu_check(const Definition *d, const char *version, sd_bus_error *error) {
        if (d->cpus > CPUS_MAX)
                return vmm_refuse(error, "cpus: QEMU runs at most %u", CPUS_MAX);
        if (n_devices(d) > PCI_SLOTS_MAX)
                return vmm_refuse(error, "%s: QEMU takes at most %u disks, filesystems, networks and a vsock in all",
                        d->n_disks >= d->n_networks ? "disks" : "networks", PCI_SLOTS_MAX);

        for (size_t i = 0; i < d->n_networks; i++)
                if (d->networks[i].type != NETWORK_USER)
                        return vmm_refuse(error, "networks[%zu].type: only \"user\" is supported yet", i);
        return 0;
}

/* Pairs of words, for most options take one. */
static int add(Context *c, const char *option, const char *value) {
        int r;

        r = strv_extend(&c->plan->argv, option);
        return r < 0 ? r : strv_extend(&c->plan->argv, value);
}

static int addf(Context *c, const char *option, const char *format, ...) _printf_(3, 4);
static int addf(Context *c, const char *option, const char *format, ...) {
        _cleanup_free_ char *value = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&value, format, ap);
        va_end(ap);
        if (r < 0) {
                value = NULL;
                return -ENOMEM;
        }
        return add(c, option, value);
}

static int add_json(Context *c, const char *option, json_object *o) {
        const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN|JSON_C_TO_STRING_NOSLASHESCAPE);

        return text ? add(c, option, text) : -ENOMEM;
}

/* In QEMU's own syntax a comma ends a value, two stand for one. */
static char *escape_commas(const char *s) {
        char *result = new(char, 2 * strlen(s) + 1), *p = result;

        if (!result)
                return NULL;
        for (; *s; s++) {
                *p++ = *s;
                if (*s == ',')
                        *p++ = ',';
        }
        *p = 0;
        return result;
}

static int add_identity(Context *c) {
        _cleanup_free_ char *name = escape_commas(c->params->name);
        int r;

        if (!name)
                return -ENOMEM;

        r = strv_extend(&c->plan->argv, "qemu-system-x86_64");
        if (r < 0)
                return r;
        r = addf(c, "-name", "guest=%s,debug-threads=on", name);
        if (r < 0)
                return r;
        return add(c, "-uuid", c->params->id);
}

/* virtiofsd reads and writes the guest's memory. */
static const char *shared_memory(const Context *c) {
        return c->definition->n_filesystems > 0 ? ",memory-backend=memory" : "";
}

static int add_machine(Context *c) {
        int r;

        if (!c->microvm)
                /* Without graphics SeaBIOS and boot loaders come to the serial port. A guest that suspends itself could
                 * only be woken by QMP. */
                r = addf(c, "-machine", "q35%s%s%s", c->definition->kernel ? "" : ",graphics=off",
                         is_firmware(c->definition, "uefi") ? ",pflash0=firmware" : "", shared_memory(c));
        else
                r = addf(c, "-machine", "microvm,acpi=on,ioapic2=%s%s",
                         n_devices(c->definition) > MMIO_SLOTS_FEW ? "on" : "off", shared_memory(c));
        if (r < 0)
                return r;

        if (c->microvm)
                return add(c, "-global", "virtio-mmio.force-legacy=false");
        r = add(c, "-global", "ICH9-LPC.disable_s3=1");
        return r < 0 ? r : add(c, "-global", "ICH9-LPC.disable_s4=1");
}

static int add_processor(Context *c) {
        int r;

        r = add(c, "-accel", c->params->kvm ? "kvm" : "tcg");
        if (r < 0)
                return r;
        /* A KVM inside of a VM may show this MSR and refuse to set it, which makes QEMU abort. */
        r = add(c, "-cpu", !c->params->kvm ? "max" : c->nested ? "host,arch-capabilities=off" : "host");
        if (r < 0)
                return r;
        r = addf(c, "-smp", "%u", c->definition->cpus);
        if (r < 0)
                return r;
        r = addf(c, "-m", "%" PRIu64 "M", c->definition->memory >> 20);
        if (r < 0 || c->definition->n_filesystems == 0)
                return r;
        return addf(c, "-object", "memory-backend-memfd,id=memory,size=%" PRIu64 "M,share=on", c->definition->memory >> 20);
}

/* A file that QEMU opens by a name, when it has no notion of fds there. */
static int add_named_file(Context *c, const char *option, const char *path, const char *key) {
        _cleanup_free_ char *name = NULL;
        int fd;

        fd = launch_plan_add_file(c->plan, path, false, "boot.%s", key);
        if (fd < 0)
                return fd;
        name = launch_plan_show(c->plan, fd, EXEC_SHOWN_COPY);
        return name ? add(c, option, name) : -ENOMEM;
}

static int add_kernel(Context *c) {
        const Definition *d = c->definition;
        int r;

        r = add_named_file(c, "-kernel", d->kernel, "kernel");
        if (r >= 0 && d->initramfs)
                r = add_named_file(c, "-initrd", d->initramfs, "initramfs");
        if (r >= 0 && !isempty(d->cmdline))
                r = add(c, "-append", d->cmdline);
        return r;
}

static int add_fdset(Context *c, int fd) {
        return addf(c, "-add-fd", "fd=%d,set=%d", fd, fd);
}

/* The code alone, without a flash for variables: OVMF then keeps them in the guest's memory, where they outlast a reboot of
 * the guest but not the VMM. A template shared by all VMs could not be written, and a copy of it would be state. */
static int add_ovmf(Context *c) {
        int r, fd;

        fd = launch_plan_add_file(c->plan, OVMF_CODE, false, "boot.firmware");
        if (fd < 0)
                return fd;
        r = add_fdset(c, fd);
        if (r < 0)
                return r;
        return addf(c, "-blockdev",
                "{\"driver\":\"raw\",\"node-name\":\"firmware\",\"read-only\":true,"
                "\"file\":{\"driver\":\"file\",\"filename\":\"/dev/fdset/%d\",\"read-only\":true}}", fd);
}

static int add_boot(Context *c) {
        const Definition *d = c->definition;
        int r;

        if (d->kernel)
                return add_kernel(c);

        r = add(c, "-boot", "strict=on");
        if (r < 0 || is_firmware(d, "bios"))
                return r;
        if (is_firmware(d, "uefi"))
                return add_ovmf(c);
        return add_named_file(c, "-bios", d->firmware, "firmware");
}

static int add_channels(Context *c) {
        static const char *const words[] = {
                "-chardev", "stdio,id=console,signal=off",
                "-serial", "chardev:console",
                "-mon", "chardev=qmp,mode=control",
                "-device", "pvpanic",
                "-action", "reboot=reset,shutdown=poweroff,panic=exit-failure",
                "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                "-msg", "timestamp=on",
                "-display", "none",
        };
        static const char *const flags[] = { "-nodefaults", "-no-user-config", "-S" };
        int r;

        r = addf(c, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", VMM_FD_FIRST);
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(words); i += 2)
                r = add(c, words[i], words[i + 1]);
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(flags); i++)
                r = strv_extend(&c->plan->argv, flags[i]);
        return r;
}

/* A file of a disk, by its number: the disk's own is 0. */
typedef struct DiskFile {
        const Disk *disk;
        const DiskFiles *files; /* NULL: nothing is known yet */
        size_t number;
        const Image *image;     /* NULL: the disk's own */
} DiskFile;

static DiskFile disk_file(Context *c, size_t i, size_t number) {
        const DiskFiles *files = c->params->files ? c->params->files[i] : NULL;

        return (DiskFile) { c->definition->disks + i, files, number, number > 0 ? files->images + number - 1 : NULL };
}

static char *node_name(const DiskFile *f, size_t number, const char *suffix) {
        return number == 0 ? strjoinf(QEMU_DISK_PREFIX "%s%s", f->disk->name, suffix) :
                             strjoinf(QEMU_DISK_PREFIX "%s-%zu%s", f->disk->name, number, suffix);
}

static int add_disk_file(Context *c, const DiskFile *f, int fd) {
        _cleanup_json_ json_object *o = json_object_new_object();
        _cleanup_free_ char *filename = strjoinf("/dev/fdset/%d", fd), *node = node_name(f, f->number, "-file");
        bool block = f->image ? f->image->is_block : f->files && f->files->is_block;
        int r;

        if (!o || !filename || !node ||
            !json_put_string(o, "driver", block ? "host_device" : "file") ||
            !json_put_string(o, "node-name", node) ||
            !json_put_string(o, "filename", filename) ||
            !json_put_bool(o, "read-only", !disk_file_writable(f->disk, f->files, f->number)) ||
            !json_put_string(o, "discard", "unmap"))
                return -ENOMEM;
        r = add_fdset(c, fd);
        return r < 0 ? r : add_json(c, "-blockdev", o);
}

/* Whatever its header says, QEMU opens no further file: what it rests on is named here. */
static int put_images(const DiskFile *f, json_object *o) {
        size_t n = f->files ? f->files->n_images : 0, next = f->number;
        _cleanup_free_ char *data = NULL, *backing = NULL;

        if (next < n && f->files->images[next].is_data) {
                data = node_name(f, ++next, "-file");
                if (!data || !json_put_string(o, "data-file", data))
                        return -ENOMEM;
        }
        if (next >= n)
                return json_object_object_add(o, "backing", NULL) < 0 ? -ENOMEM : 0;
        backing = node_name(f, ++next, "");
        return backing && json_put_string(o, "backing", backing) ? 0 : -ENOMEM;
}

static int add_disk_format(Context *c, const DiskFile *f) {
        _cleanup_free_ char *node = node_name(f, f->number, ""), *file = node_name(f, f->number, "-file");
        bool qcow2 = (f->image ? f->image->format : f->disk->format) == DISK_QCOW2;
        _cleanup_json_ json_object *o = json_object_new_object();

        if (!o || !node || !file ||
            !json_put_string(o, "driver", qcow2 ? "qcow2" : "raw") ||
            !json_put_string(o, "node-name", node) ||
            !json_put_bool(o, "read-only", !disk_file_writable(f->disk, f->files, f->number)) ||
            !json_put_string(o, "discard", "unmap") ||
            !json_put_string(o, "file", file) ||
            (qcow2 && put_images(f, o) < 0))
                return -ENOMEM;
        return add_json(c, "-blockdev", o);
}

/* What is named by others comes first. */
static int add_images(Context *c, size_t i) {
        size_t n = c->params->files ? c->params->files[i]->n_images : 0;
        int r = 0;

        for (size_t number = n; r >= 0 && number > 0; number--) {
                DiskFile f = disk_file(c, i, number);

                r = add_disk_file(c, &f, c->images_fd + (int) number - 1);
                if (r >= 0 && !f.image->is_data)
                        r = add_disk_format(c, &f);
        }
        c->images_fd += (int) n;
        return r;
}

static int add_disk_device(Context *c, const Disk *disk, const char *node, size_t i) {
        _cleanup_json_ json_object *o = json_object_new_object();

        if (!o ||
            !json_put_string(o, "driver", c->microvm ? "virtio-blk-device" : "virtio-blk-pci") ||
            !json_put_string(o, "id", node) ||
            !json_put_string(o, "drive", node) ||
            !json_put_string(o, "serial", disk->name))
                return -ENOMEM;
        /* An owner who sees "io-error" can make room and resume. */
        if (!disk->readonly && (!json_put_string(o, "werror", "stop") || !json_put_string(o, "rerror", "stop")))
                return -ENOMEM;
        if (!c->definition->kernel && !json_put(o, "bootindex", json_object_new_int64((int64_t) i)))
                return -ENOMEM;
        return add_json(c, "-device", o);
}

static int add_disk(Context *c, size_t i) {
        DiskFile f = disk_file(c, i, 0);
        _cleanup_free_ char *node = node_name(&f, 0, "");
        int r;

        if (!node)
                return -ENOMEM;
        r = add_images(c, i);
        if (r >= 0)
                r = add_disk_file(c, &f, c->disks_fd + (int) i);
        if (r >= 0)
                r = add_disk_format(c, &f);
        return r < 0 ? r : add_disk_device(c, f.disk, node, i);
}

/* Those that are known only when the others are open come last. */
static int add_fds(Context *c) {
        const Definition *d = c->definition;
        int r = 0;

        c->disks_fd = VMM_FD_FIRST + (int) c->plan->n_fds;
        c->shares_fd = c->disks_fd + (int) d->n_disks;
        c->images_fd = c->shares_fd + (int) d->n_filesystems;
        for (size_t i = 0; r >= 0 && i < d->n_disks; i++)
                r = launch_plan_add_file(c->plan, d->disks[i].path, !d->disks[i].readonly, "disks[%zu].path", i);
        for (size_t i = 0; r >= 0 && i < d->n_filesystems; i++)
                r = launch_plan_add_fd(c->plan, LAUNCH_FD_SHARE);
        for (size_t i = 0; r >= 0 && c->params->files && i < d->n_disks; i++)
                for (size_t k = 1; r >= 0 && k <= c->params->files[i]->n_images; k++)
                        r = launch_plan_add_file(c->plan, disk_file_path(d->disks + i, c->params->files[i], k),
                                                 disk_file_writable(d->disks + i, c->params->files[i], k), "disks[%zu].path", i);
        return r;
}

/* passt speaks the protocol of this kind of stream. When one ends QEMU listens for the next. */
static int add_netdev(Context *c, const char *id) {
        _cleanup_json_ json_object *o = json_object_new_object();
        json_object *address = json_object_new_object();
        _cleanup_free_ char *number = NULL;
        int fd;

        fd = launch_plan_add_fd(c->plan, LAUNCH_FD_NETWORK);
        if (fd >= 0)
                number = strjoinf("%d", fd);
        if (!o || !json_put(o, "addr", address) || !number ||
            !json_put_string(o, "type", "stream") || !json_put_string(o, "id", id) || !json_put_bool(o, "server", true) ||
            !json_put_string(address, "type", "fd") || !json_put_string(address, "str", number))
                return -ENOMEM;
        return add_json(c, "-netdev", o);
}

static int add_network(Context *c, const Network *n) {
        _cleanup_json_ json_object *o = json_object_new_object();
        _cleanup_free_ char *id = strjoinf(QEMU_NETWORK_PREFIX "%s", n->name);
        int r;

        if (!id)
                return -ENOMEM;
        r = add_netdev(c, id);
        if (r < 0)
                return r;

        if (!o ||
            !json_put_string(o, "driver", c->microvm ? "virtio-net-device" : "virtio-net-pci") ||
            !json_put_string(o, "id", id) ||
            !json_put_string(o, "netdev", id) ||
            (!c->microvm && !json_put_string(o, "romfile", ""))) /* boots from disks alone */
                return -ENOMEM;
        return add_json(c, "-device", o);
}

static int add_filesystem(Context *c, size_t i) {
        int r;

        r = addf(c, "-chardev", "socket,id=share%zu,fd=%d", i, c->shares_fd + (int) i);
        return r < 0 ? r : addf(c, "-device", "vhost-user-fs-%s,chardev=share%zu,tag=%s", c->microvm ? "device" : "pci", i,
                                c->definition->filesystems[i].tag);
}

static int add_vsock(Context *c) {
        c->plan->rights |= EXEC_VHOST_VSOCK;
        return addf(c, "-device", "vhost-vsock-%s,guest-cid=%" PRIu32, c->microvm ? "device" : "pci", c->params->cid);
}

/* Devices get no addresses: both machines give them out in the order in which Linux finds them, though microvm does so from
 * its last slot down. */
static int fill(Context *c) {
        static int (*const steps[])(Context *) = { add_identity, add_machine, add_processor, add_boot, add_channels };
        int r;

        c->plan->rights = c->params->kvm ? EXEC_KVM : 0;
        r = launch_plan_add_fd(c->plan, LAUNCH_FD_API); /* VMM_FD_FIRST */
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(steps); i++)
                r = steps[i](c);
        if (r >= 0)
                r = add_fds(c);
        for (size_t i = 0; r >= 0 && i < c->definition->n_disks; i++)
                r = add_disk(c, i);
        for (size_t i = 0; r >= 0 && i < c->definition->n_filesystems; i++)
                r = add_filesystem(c, i);
        for (size_t i = 0; r >= 0 && i < c->definition->n_networks; i++)
                r = add_network(c, c->definition->networks + i);
        if (r >= 0 && c->definition->vsock)
                r = add_vsock(c);
        return r;
}

int qemu_plan_for(const LaunchParams *p, bool nested, LaunchPlan **ret) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        Context c;
        int r;

        plan = new0(LaunchPlan, 1);
        if (!plan)
                return -ENOMEM;

        c = (Context) {
                .params = p,
                .definition = p->definition,
                .plan = plan,
                .nested = nested,
                .microvm = p->definition->kernel && n_devices(p->definition) <= MMIO_SLOTS_MAX,
        };
        r = fill(&c);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(plan);
        return 0;
}

static bool host_is_virtual(void) {
        unsigned eax, ebx, ecx, edx;

        return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (UINT32_C(1) << 31));
}

int qemu_plan(const LaunchParams *p, LaunchPlan **ret) {
        return qemu_plan_for(p, host_is_virtual(), ret);
}
