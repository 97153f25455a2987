/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "vmm/cloud-hypervisor-plan.h"

/* A bus of 32, less its bridge, the random numbers and pvpanic */
#define PCI_SLOTS_MAX 29U
#define CPUS_MAX 254U

static const char *const boot_instead = "a kernel, or the path of a firmware that is made for it (CLOUDHV.fd, say)";

static int check_boot(const Definition *d, sd_bus_error *error) {
        const char *firmware = d->firmware ?: "bios";

        if (d->kernel || firmware[0] == '/')
                return 0;
        return vmm_refuse(error, "boot.firmware: Cloud Hypervisor has no \"%s\"; write %s", firmware, boot_instead);
}

static int check_cmdline(const Definition *d, sd_bus_error *error) {
        for (const char *p = strempty(d->cmdline); *p; p++)
                if (*p < ' ' || *p > '~')
                        return vmm_refuse(error, "boot.cmdline: Cloud Hypervisor takes printable ASCII characters alone");
        return 0;
}

static int check_networks(const Definition *d, sd_bus_error *error) {
        for (size_t i = 0; i < d->n_networks; i++)
                return vmm_refuse(error, d->networks[i].type == NETWORK_USER ?
                                  "networks[%zu].type: Cloud Hypervisor has no \"user\" networks; QEMU has" :
                                  "networks[%zu].type: not supported yet", i);
        return 0;
}

static int check_disks(const Definition *d, const char *version, sd_bus_error *error) {
        if (d->n_disks + d->n_filesystems + d->vsock > PCI_SLOTS_MAX)
                return vmm_refuse(error, "disks: Cloud Hypervisor takes at most %u disks, filesystems and a vsock in all", PCI_SLOTS_MAX);
        if (d->n_disks > 0 && !isempty(version) && strverscmp(version, CLOUD_HYPERVISOR_DISKS_VERSION) < 0)
                return vmm_refuse(error, "disks: Cloud Hypervisor %s takes the type of an image from what its guest writes there, "
                                  "which is not safe; " CLOUD_HYPERVISOR_DISKS_VERSION " and later can be told", version);
        return 0;
}

int cloud_hypervisor_check(const Definition *d, const char *version, sd_bus_error *error) {
        int r;

        if (d->accel == ACCEL_TCG)
                return vmm_refuse(error, "accel: cloud-hypervisor needs KVM; \"tcg\" is QEMU's");
        if (d->cpus > CPUS_MAX)
                return vmm_refuse(error, "cpus: Cloud Hypervisor runs at most %u", CPUS_MAX);

        r = check_disks(d, version, error);
        if (r >= 0)
                r = check_boot(d, error);
        if (r >= 0)
                r = check_cmdline(d, error);
        return r < 0 ? r : check_networks(d, error);
}

/* Empty ones, which their parent owns */
static json_object *put_object(json_object *o, const char *key) {
        json_object *v = json_object_new_object();

        return json_put(o, key, v) ? v : NULL;
}

static json_object *append_object(json_object *array) {
        json_object *v = json_object_new_object();

        return json_append(array, v) ? v : NULL;
}

/* The members whose value is a file, which is opened again at each reset */
static int put_file(LaunchPlan *plan, json_object *o, const char *key, const char *path, ExecShown how, const char *where) {
        _cleanup_free_ char *name = NULL;
        int fd;

        fd = launch_plan_add_file(plan, path, how == EXEC_SHOWN_WRITE, "%s", where);
        if (fd < 0)
                return fd;
        name = launch_plan_show(plan, fd, how);
        return name && json_put_string(o, key, name) ? 0 : -ENOMEM;
}

static int put_payload(LaunchPlan *plan, json_object *config, const Definition *d) {
        json_object *o = put_object(config, "payload");
        int r;

        if (!o)
                return -ENOMEM;
        if (!d->kernel)
                return put_file(plan, o, "firmware", d->firmware, EXEC_SHOWN_COPY, "boot.firmware");

        r = put_file(plan, o, "kernel", d->kernel, EXEC_SHOWN_COPY, "boot.kernel");
        if (r >= 0 && d->initramfs)
                r = put_file(plan, o, "initramfs", d->initramfs, EXEC_SHOWN_COPY, "boot.initramfs");
        if (r >= 0 && !isempty(d->cmdline) && !json_put_string(o, "cmdline", d->cmdline))
                r = -ENOMEM;
        return r;
}

/* Its disks are read and written by one thread: rings, which it would take else, go past the filter of calls, and what it takes without them is
 * slow to set up. */
static int put_disk(LaunchPlan *plan, json_object *disks, const Disk *disk, size_t i) {
        _cleanup_free_ char *id = strjoinf(CLOUD_HYPERVISOR_DISK_PREFIX "%s", disk->name);
        _cleanup_free_ char *where = strjoinf("disks[%zu].path", i);
        json_object *o = append_object(disks);

        if (!id || !where || !o ||
            !json_put_string(o, "id", id) ||
            !json_put_string(o, "serial", disk->name) ||
            !json_put_bool(o, "readonly", disk->readonly) ||
            !json_put_string(o, "image_type", disk->format == DISK_QCOW2 ? "Qcow2" : "Raw") ||
            !json_put_bool(o, "backing_files", false) ||
            !json_put_bool(o, "disable_io_uring", true) ||
            !json_put_bool(o, "disable_aio", true))
                return -ENOMEM;
        return put_file(plan, o, "path", disk->path, disk->readonly ? EXEC_SHOWN_READ : EXEC_SHOWN_WRITE, where);
}

static int put_disks(LaunchPlan *plan, json_object *config, const Definition *d) {
        json_object *disks = json_object_new_array();
        int r = 0;

        if (!json_put(config, "disks", disks))
                return -ENOMEM;
        for (size_t i = 0; r >= 0 && i < d->n_disks; i++)
                r = put_disk(plan, disks, d->disks + i, i);
        return r;
}

/* It connects by itself, at each start of its guest. */
static int put_filesystem(json_object *array, const LaunchParams *p, const char *dir, size_t i) {
        const char *tag = p->definition->filesystems[i].tag;
        _cleanup_free_ char *id = strjoinf("share%zu", i), *path = strjoinf("%s/%s", dir, tag);
        json_object *o = append_object(array);

        return id && path && o && json_put_string(o, "id", id) && json_put_string(o, "tag", tag) && json_put_string(o, "socket", path) ?
                0 : -ENOMEM;
}

static int put_filesystems(LaunchPlan *plan, json_object *config, const LaunchParams *p) {
        json_object *array = json_object_new_array();
        _cleanup_free_ char *dir = NULL;
        int r;

        if (!json_put(config, "fs", array))
                return -ENOMEM;
        r = launch_plan_add_fd(plan, LAUNCH_FD_SHARES);
        if (r < 0)
                return r;
        dir = launch_plan_show(plan, r, EXEC_SHOWN_DIRECTORY);
        if (!dir)
                return -ENOMEM;
        for (size_t i = 0; r >= 0 && i < p->definition->n_filesystems; i++)
                r = put_filesystem(array, p, dir, i);
        return r;
}

/* Its own kind of vsock: a UNIX socket that it makes, and makes anew at each reset. */
static int put_vsock(json_object *config, const LaunchParams *p) {
        json_object *o = put_object(config, "vsock");

        return o && json_put_int(o, "cid", p->cid) && json_put_string(o, "socket", EXEC_VSOCK) ? 0 : -ENOMEM;
}

/* Keys that a version does not know are passed over by it, but the old and the new name of one together are an error: "uuid" is
 * the one that all know. */
static int put_machine(json_object *config, const LaunchParams *p) {
        const Definition *d = p->definition;
        json_object *cpus = put_object(config, "cpus"), *memory = put_object(config, "memory");
        json_object *serial = put_object(config, "serial"), *console = put_object(config, "console");
        json_object *platform = put_object(config, "platform");

        if (!cpus || !memory || !serial || !console || !platform ||
            !json_put_int(cpus, "boot_vcpus", d->cpus) ||
            !json_put_int(cpus, "max_vcpus", d->cpus) ||
            !json_put_int(memory, "size", (int64_t) d->memory) ||
            (d->n_filesystems > 0 && !json_put_bool(memory, "shared", true)) || /* virtiofsd reads and writes it */
            !json_put_string(serial, "mode", "Tty") ||
            !json_put_string(console, "mode", "Off") || /* a terminal by default */
            !json_put_bool(config, "pvpanic", true) ||
            !json_put_string(platform, "uuid", p->id))
                return -ENOMEM;
        return 0;
}

static int put_config(LaunchPlan *plan, const LaunchParams *p) {
        _cleanup_json_ json_object *config = json_object_new_object();
        const char *text;
        int r;

        if (!config)
                return -ENOMEM;
        r = put_machine(config, p);
        if (r >= 0)
                r = put_payload(plan, config, p->definition);
        if (r >= 0 && p->definition->n_disks > 0)
                r = put_disks(plan, config, p->definition);
        if (r >= 0 && p->definition->n_filesystems > 0)
                r = put_filesystems(plan, config, p);
        if (r >= 0 && p->definition->vsock)
                r = put_vsock(config, p);
        if (r < 0)
                return r;

        text = json_object_to_json_string_ext(config, JSON_C_TO_STRING_PLAIN|JSON_C_TO_STRING_NOSLASHESCAPE);
        return text ? free_and_strdup(&plan->config, text) : -ENOMEM;
}

/* Its log goes to standard error: warnings and errors, as by default, a few lines in a life. */
static int put_arguments(LaunchPlan *plan) {
        static const struct {
                const char *option;
                LaunchFdType type;
        } fds[] = { { "--api-socket", LAUNCH_FD_API }, { "--event-monitor", LAUNCH_FD_EVENTS } };
        int r;

        r = strv_extend(&plan->argv, "cloud-hypervisor");
        for (size_t i = 0; r >= 0 && i < ELEMENTSOF(fds); i++) {
                int fd = launch_plan_add_fd(plan, fds[i].type);

                r = fd < 0 ? fd : strv_extend(&plan->argv, fds[i].option);
                if (r >= 0)
                        r = strv_extendf(&plan->argv, "fd=%d", fd);
        }
        return r;
}

int cloud_hypervisor_plan(const LaunchParams *p, LaunchPlan **ret) {
        _cleanup_(launch_plan_freep) LaunchPlan *plan = NULL;
        int r;

        plan = new0(LaunchPlan, 1);
        if (!plan)
                return -ENOMEM;
        plan->tty = true;
        plan->rights = EXEC_KVM | EXEC_SOCKETS;
        r = put_arguments(plan);
        if (r >= 0)
                r = put_config(plan, p);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(plan);
        return 0;
}
