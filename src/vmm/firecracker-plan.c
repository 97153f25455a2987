/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <elf.h>
#include <inttypes.h>

#include "basic/json-util.h"
#include "basic/string-util.h"
#include "vmm/firecracker-plan.h"

#define CPUS_MAX 32U
#define DEVICES_MAX 18U                 /* so many interrupts are left for them */

/* For a definition that has none. Firecracker's own has no console, and refuses modules. The rest is what its guests need to end by
 * themselves (k: the keyboard controller's reset is the only one), and what spares a Linux the look for what is not there. */
#define CMDLINE_DEFAULT "console=ttyS0 reboot=k panic=1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd"

/* It appends each device, with an interrupt from 5 on, and later versions that there is no PCI. */
#define CMDLINE_MAX 2047U
#define DEVICE_APPENDED strlen(" virtio_mmio.device=4K@0xd0000000:10")
#define DEVICES_SHORT_MAX 5U            /* whose interrupt has one digit */
#define PCI_OFF_VERSION "1.13"

typedef struct Context {
        const LaunchParams *params;
        const Definition *definition;
        LaunchPlan *plan;
        int events, config;             /* fds */
} Context;

static int check_cmdline(const Definition *d, const char *version, sd_bus_error *error) {
        size_t n = d->n_disks + d->vsock, max = CMDLINE_MAX - n * DEVICE_APPENDED + MIN(n, (size_t) DEVICES_SHORT_MAX);

        if (!isempty(version) && strverscmp(version, PCI_OFF_VERSION) >= 0)
                max -= strlen(" pci=off");
        if (strlen(strempty(d->cmdline)) <= max)
                return 0;
        return vmm_refuse(error, "boot.cmdline: firecracker takes at most %zu bytes with %zu disks and vsocks, for it appends what they are", max, n);
}

int firecracker_check(const Definition *d, const char *version, sd_bus_error *error) {
        if (d->accel == ACCEL_TCG)
                return vmm_refuse(error, "accel: firecracker needs KVM; write \"kvm\" or \"auto\"");
        if (d->cpus > CPUS_MAX)
                return vmm_refuse(error, "cpus: firecracker runs at most %u", CPUS_MAX);
        if (!d->kernel)
                return vmm_refuse(error, "boot.firmware: firecracker has none; it boots a kernel (boot.kernel)");
        if (d->n_filesystems > 0)
                return vmm_refuse(error, "filesystems: firecracker has no shared folders");
        if (d->n_disks + d->vsock > DEVICES_MAX)
                return vmm_refuse(error, "disks: firecracker takes at most %u disks and a vsock in all", DEVICES_MAX);
        for (size_t i = 0; i < d->n_disks; i++)
                if (d->disks[i].format != DISK_RAW)
                        return vmm_refuse(error, "disks[%zu].format: firecracker reads raw images alone; "
                                          "`qemu-img convert -O raw` makes one", i);
        if (d->n_networks > 0)
                return vmm_refuse(error, d->networks[0].type == NETWORK_USER ?
                                  "networks[0].type: firecracker has no user mode network, it needs a tap" :
                                  "networks[0].type: not supported with firecracker yet");
        return check_cmdline(d, version, error);
}

/* The boot protocol of Linux on x86, Documentation/arch/x86/boot.rst */
#define BZIMAGE_MAGIC_OFFSET 0x202
#define BZIMAGE_VERSION "1.17"          /* of Firecracker, which reads them from then on */

int firecracker_check_kernel(const Definition *d, const char *version, const FileHead *kernel, sd_bus_error *error) {
        const char *head = kernel->data;

        if (kernel->size == 0) /* not written yet */
                return 0;
        if (kernel->size > EI_CLASS && memcmp(head, ELFMAG, SELFMAG) == 0 && head[EI_CLASS] == ELFCLASS64)
                return 0;
        if (kernel->size < BZIMAGE_MAGIC_OFFSET + 4 || memcmp(head + BZIMAGE_MAGIC_OFFSET, "HdrS", 4) != 0)
                return vmm_refuse(error, "boot.kernel: %s is no kernel that firecracker boots, which is a 64-bit ELF file (vmlinux)", d->kernel);
        if (!isempty(version) && strverscmp(version, BZIMAGE_VERSION) >= 0)
                return 0;
        return vmm_refuse(error, "boot.kernel: %s is a compressed kernel (bzImage), and firecracker boots an uncompressed one (vmlinux); "
                          "scripts/extract-vmlinux of the Linux sources makes one of the other", d->kernel);
}

/* It opens all by names, having no notion of fds. */
static bool put_fd(Context *c, json_object *o, const char *key, int fd, ExecShown how) {
        _cleanup_free_ char *path = launch_plan_show(c->plan, fd, how);

        return path && json_put_string(o, key, path);
}

static bool put_object(json_object *o, const char *key, json_object **ret) {
        *ret = json_object_new_object();
        return json_put(o, key, *ret);
}

static int put_machine(Context *c, json_object *config) {
        const Definition *d = c->definition;
        json_object *o;

        if (!put_object(config, "machine-config", &o) ||
            !json_put_int(o, "vcpu_count", d->cpus) ||
            !json_put_int(o, "mem_size_mib", (int64_t) (d->memory >> 20)))
                return -ENOMEM;
        return 0;
}

static int put_boot(Context *c, json_object *config) {
        const Definition *d = c->definition;
        json_object *o;
        int fd;

        fd = launch_plan_add_file(c->plan, d->kernel, false, "boot.kernel");
        if (fd < 0)
                return fd;
        if (!put_object(config, "boot-source", &o) ||
            !put_fd(c, o, "kernel_image_path", fd, EXEC_SHOWN_COPY) ||
            !json_put_string(o, "boot_args", d->cmdline ?: CMDLINE_DEFAULT))
                return -ENOMEM;
        if (!d->initramfs)
                return 0;
        fd = launch_plan_add_file(c->plan, d->initramfs, false, "boot.initramfs");
        if (fd < 0)
                return fd;
        return put_fd(c, o, "initrd_path", fd, EXEC_SHOWN_COPY) ? 0 : -ENOMEM;
}

static int append_disk(Context *c, json_object *list, size_t i) {
        const Disk *disk = c->definition->disks + i;
        json_object *o = json_object_new_object();
        int fd;

        if (!json_append(list, o))
                return -ENOMEM;
        fd = launch_plan_add_file(c->plan, disk->path, !disk->readonly, "disks[%zu].path", i);
        if (fd < 0)
                return fd;
        c->plan->fds[fd - VMM_FD_FIRST].lock = true;
        if (!json_put_string(o, "drive_id", disk->name) ||
            !put_fd(c, o, "path_on_host", fd, disk->readonly ? EXEC_SHOWN_READ : EXEC_SHOWN_WRITE) ||
            !json_put_bool(o, "is_root_device", false) || /* else it would add to the command line */
            !json_put_bool(o, "is_read_only", disk->readonly) ||
            !json_put_string(o, "cache_type", "Writeback")) /* a flush of the guest's reaches the disk */
                return -ENOMEM;
        return 0;
}

static int put_disks(Context *c, json_object *config) {
        json_object *list = json_object_new_array();
        int r = 0;

        if (!json_put(config, "drives", list))
                return -ENOMEM;
        for (size_t i = 0; r >= 0 && i < c->definition->n_disks; i++)
                r = append_disk(c, list, i);
        return r;
}

/* It makes the socket there by itself. */
static int put_vsock(Context *c, json_object *config) {
        json_object *o;

        if (!c->definition->vsock)
                return 0;
        if (!put_object(config, "vsock", &o) ||
            !json_put_int(o, "guest_cid", c->params->cid) ||
            !json_put_string(o, "uds_path", EXEC_VSOCK))
                return -ENOMEM;
        return 0;
}

static int make_config(Context *c) {
        _cleanup_json_ json_object *config = json_object_new_object();
        const char *text;
        int r;

        if (!config)
                return -ENOMEM;
        r = put_boot(c, config);
        if (r >= 0)
                r = put_machine(c, config);
        if (r >= 0)
                r = put_disks(c, config);
        if (r >= 0)
                r = put_vsock(c, config);
        if (r < 0)
                return r;

        text = json_object_to_json_string_ext(config, JSON_C_TO_STRING_PLAIN|JSON_C_TO_STRING_NOSLASHESCAPE);
        c->plan->config = text ? strdup(text) : NULL;
        return c->plan->config ? 0 : -ENOMEM;
}

static int make_argv(Context *c) {
        _cleanup_free_ char *config = launch_plan_show(c->plan, c->config, EXEC_SHOWN_COPY);
        _cleanup_free_ char *events = launch_plan_show(c->plan, c->events, EXEC_SHOWN_WRITE);
        _cleanup_free_ char *api = strjoinf(EXEC_SOCKETS_DIR "/%s", firecracker_ops.socket);
        const char *words[] = {
                "firecracker",
                "--id", c->params->id,
                "--api-sock", api,
                "--config-file", config,
                "--metrics-path", events,
                "--log-path", EXEC_STDERR, /* else it were written among the guest's words */
                "--level", "Error",
        };
        int r = 0;

        if (!config || !events || !api)
                return -ENOMEM;
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(words); i++)
                r = strv_extend(&c->plan->argv, words[i]);
        return r;
}

/* With a configuration it starts the guest by itself, and has opened all when it reads the API for the first time. */
int firecracker_plan(const LaunchParams *p, LaunchPlan **ret) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        Context c;
        int r;

        plan = new0(LaunchPlan, 1);
        if (!plan)
                return -ENOMEM;

        plan->rights = EXEC_KVM | EXEC_SOCKETS;
        c = (Context) { .params = p, .definition = p->definition, .plan = plan };
        r = c.events = launch_plan_add_fd(plan, LAUNCH_FD_EVENTS);
        if (r >= 0)
                r = c.config = launch_plan_add_fd(plan, LAUNCH_FD_CONFIG);
        if (r >= 0)
                r = make_argv(&c);
        if (r >= 0)
                r = make_config(&c);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(plan);
        return 0;
}
