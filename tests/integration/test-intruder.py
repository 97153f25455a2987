#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=600
"""A program in the place of a VMM, or of a virtiofsd, behind the real walls tries what must not work. First root tries the same outside of
them, so that no attempt is refused because it was made wrongly. tests/intruder has the attempts."""

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

PROGRAM = os.path.join(os.environ["VMUNIT_BUILD"], "tests", "intruder", "intruder")
PLACE = "/opt/vmunit-test"
ROOT = "/tmp/intruder"                          # the box's root is an overlay, which knows no idmapped mounts
SET_USER_ID = "/usr/bin/vmunit-test-set-user-id"
BLOCK_DEVICE = "/dev/vmunit-test-disk"
HOST_ADDRESS, PORT, ABSTRACT, IPC_KEY = "192.0.2.1", 7777, "vmunit-test-abstract", 0x766d7574
DISK_SIZE, KERNEL_SIZE = 3 * 2**20 + 512, 77777
KEYS = {"qemu": "QEMU", "firecracker": "Firecracker", "cloud-hypervisor": "CloudHypervisor", "virtiofsd": "VirtioFSD", "passt": "Passt"}

# What root has no right to either where it lacks a capability, which a box or what it stands in may take away
NEEDS = {"module": "sys_module", "module-file": "sys_module", "module-unload": "sys_module", "device-mem": "sys_rawio", "kernel-log": "syslog",
         "io-level": "sys_rawio", "limit-processes": "sys_resource", "limit-files": "sys_resource", "limit-locked": "sys_resource",
         "limit-queues": "sys_resource", "pipe-size": "sys_resource", "clock-set": "sys_time", "time-set": "sys_time", "disk-priority": "sys_nice",
         "real-time": "sys_nice", "priority": "sys_nice"}
CAPS = {"sys_module": 16, "sys_rawio": 17, "sys_nice": 23, "sys_resource": 24, "sys_time": 25, "syslog": 34}
NO_SUCH_CALL = {"ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}
# How many descriptors are given: standard streams, its life's pipe, sockets, kernel and disk
FDS = {"qemu": 7, "firecracker": 8, "cloud-hypervisor": 8, "virtiofsd": 5}
# What a virtiofsd is given, for it is root of a user namespace and shuts itself in: its own processes in /proc, rights that count in its namespace
# alone; of root's share also the other ids that its namespace has.
VIRTIOFSD = set("""proc-self proc-environ-of-1 proc-root-of-1 proc-memory proc-mounts proc-keys chroot root root-group capabilities
    has-capabilities has-bounding-set has-root""".split())
ROOTS_VIRTIOFSD = VIRTIOFSD | set("socket-forged other-vms-id groups file-id".split())
# A passt is in the host's network, but for 127.0.0.0/8, has a resolv.conf, and shuts itself in by a user namespace.
PASST = set("""proc-self proc-environ-of-1 proc-root-of-1 proc-memory proc-mounts proc-keys list-etc unshare-user clone-user clone-high-bits
    connect-host datagram-host interface-up socket-netlink has-bounding-set""".split())
manager = Manager()
outside = {}


def attempts(text):
    """{name: what came of it}, of an output that is whole"""
    found = dict(re.findall(r"^ATTEMPT (\S+) (\S+)\r?$", text, re.M))
    total = re.search(r"^ATTEMPTS (\d+)\r?$", text, re.M)
    assert total and len(found) == int(total[1]) >= 200, (len(found), text[-2000:])
    return found


@contextlib.contextmanager
def neighbourhood():
    """What an intruder looks for, beside what every host has. Gives the pid of one of root's processes."""
    with contextlib.ExitStack() as stack:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(HOST_ADDRESS))
            fcntl.ioctl(control, 0x8916, address)           # SIOCSIFADDR
        for family, name in ((socket.AF_INET, ("0.0.0.0", PORT)), (socket.AF_INET6, ("::1", PORT)), (socket.AF_UNIX, "\0" + ABSTRACT)):
            listener = stack.enter_context(socket.socket(family))
            if family != socket.AF_UNIX:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(name)
            listener.listen(64)
        libc = ctypes.CDLL(None)
        segment = libc.shmget(IPC_KEY, ctypes.c_size_t(4096), 0o1666)
        stack.callback(libc.shmctl, segment, 0, None)       # IPC_RMID
        shutil.copy(PROGRAM, SET_USER_ID)
        stack.callback(os.unlink, SET_USER_ID)
        os.chmod(SET_USER_ID, 0o4755)
        os.mknod(BLOCK_DEVICE, stat.S_IFBLK | 0o666, os.makedev(7, 0))
        stack.callback(os.unlink, BLOCK_DEVICE)
        for path, mode, number in (("/dev/mem", stat.S_IFCHR, (1, 1)), ("/dev/loop-control", stat.S_IFCHR, (10, 237)), ("/dev/shm/vmunit-test", stat.S_IFREG, (0, 0)),
                                   ("/dev/log", stat.S_IFSOCK, (0, 0))):
            if os.path.exists(path):
                continue
            if stat.S_ISSOCK(mode):
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(path)
                listener.listen(64)
            else:
                os.mknod(path, mode | 0o666, os.makedev(*number))
            stack.callback(os.unlink, path)
        bystander = stack.enter_context(subprocess.Popen(["/usr/bin/sleep", "infinity"]))
        stack.callback(bystander.kill)
        yield bystander.pid


def file_of(name, size, begin=b""):
    path = f"{ROOT}/{name}"
    with open(path, "wb") as f:
        f.write(begin)
        f.truncate(size)
    os.chmod(path, 0o666)                                   # so that it is not the mode that keeps anybody off
    return path


def install(place, facts):
    path = f"{PLACE}/intruder-{place}"
    shutil.copy(PROGRAM, path + ".new")
    with open(path + ".new", "ab") as f:
        f.write(b"\nFACTS OF THE HOST\n" + "".join(f"{k}={v}\n" for k, v in facts.items()).encode())
    os.rename(path + ".new", path)                          # the daemon may just be asking the last one for its version
    return path


def definition(backend, disk, **over):
    return tiny_definition(backend=backend, boot={"kernel": f"{ROOT}/kernel"}, disks=[{"name": "disk0", "path": disk}], **over)


def look_at(path):
    """What is not to change: its owner, mode, size, links, attributes and content."""
    st = os.lstat(path)
    with open(path, "rb") as f:
        content = hashlib.file_digest(f, "sha256").hexdigest()
    return st.st_uid, st.st_gid, st.st_mode, st.st_size, st.st_nlink, sorted(os.listxattr(path)), content


def world():
    return {entry.path: look_at(entry.path) for entry in os.scandir(ROOT) if entry.is_file()}


@contextlib.contextmanager
def scene(place, backend=None, uid=0, **over):
    """A real VM that runs, a disk and a kernel, and in that place the program, which knows all of it. Gives the program, and the VM that is to
    have it, if a back end is named."""
    shutil.rmtree(ROOT, ignore_errors=True)
    os.makedirs(ROOT)
    with open(os.environ["VMUNIT_GUESTS"] + "/tiny.elf", "rb") as f:
        file_of("kernel", KERNEL_SIZE, f.read())
    for name, size in (("disk", DISK_SIZE), ("victim-disk", 4 * 2**20)):
        file_of(name, size)
    with neighbourhood() as bystander:
        vms = [manager.create("victim", definition("qemu", f"{ROOT}/victim-disk"))]
        victim = vms[0]
        try:
            victim.start()
            victim.wait_log(b"TINY-UP")
            vms.append(manager.create("taken-over", definition(backend, f"{ROOT}/disk", **over), **({"owner": uid} if uid else {})) if backend else victim)
            services, before = (daemon_pid(), launcher_pid(), victim.pid), world()
            yield install(place, {
                "program": f"{PLACE}/intruder-{place}", "daemon": services[0], "launcher": services[1], "victim": services[2],
                "bystander": bystander, "bystander-proc": f"/proc/{bystander}", "victim-run": f"/run/vmunit/vms/{victim.Id}",
                "victim-state": f"/var/lib/vmunit/vms/{victim.Id}", "victim-disk": f"{ROOT}/victim-disk",
                "victim-cgroup": unit_cgroup(victim.Unit), "own-run": f"/run/vmunit/vms/{vms[-1].Id}",
                "disk": f"{ROOT}/disk", "disk-size": DISK_SIZE, "kernel": f"{ROOT}/kernel", "kernel-size": KERNEL_SIZE,
                "home": "/root", "port": PORT, "host-address": HOST_ADDRESS, "abstract": ABSTRACT, "ipc-key": IPC_KEY,
                "block-device": BLOCK_DEVICE, "fuse-device": "/dev/fuse", "tun-device": "/dev/net/tun", "loop-device": "/dev/loop-control"}), vms[-1]
            assert (daemon_pid(), launcher_pid(), victim.pid) == services and victim.State == "Running"
            assert not backend or world() == before, (world(), before)
        finally:
            for vm in reversed(vms if backend else vms[:1]):
                vm.remove(force=True)
                vm.wait_gone()


def configure():
    os.makedirs("/etc/vmunit/vmunit.conf.d", exist_ok=True)
    with open("/etc/vmunit/vmunit.conf.d/intruder.conf", "w", encoding="utf-8") as f:
        f.write("[VMUnit]\nStartTimeoutSec=2min\n" + "".join(f"{key}={PLACE}/intruder-{place}\n" for place, key in KEYS.items()))
    os.makedirs(PLACE, exist_ok=True)
    for place in KEYS:
        install(place, {})


def explained(name):
    """Why root, too, was refused that."""
    with open("/proc/self/status", encoding="utf-8") as f:
        mine = int(re.search(r"^CapEff:\t(\w+)", f.read(), re.M)[1], 16)
    if outside[name] in NO_SUCH_CALL or (name in NEEDS and not mine & 1 << CAPS[NEEDS[name]]):
        return True
    return name == "proc-sysrq" and not os.path.exists("/proc/sysrq-trigger")


def bounded():
    """Whether a scope's TasksMax= holds here"""
    return os.path.exists(unit_cgroup("vmunitd.service") + "/pids.max")


def judge(place, text, allowed=frozenset()):
    """Nothing worked, and nothing that works nowhere passes for refused."""
    inside = attempts(text)
    for result in sorted(set(inside.values())):
        print(f"# {result}: " + " ".join(name for name in inside if inside[name] == result))
    wrong = [] if inside.keys() == outside.keys() else ["other attempts than outside"]
    if place == "virtiofsd" and not bounded():
        allowed = allowed | {"fork-bomb"}
    wrong += [f"{name}: {result}" for name, result in inside.items()
              if (result in ("worked", "hung", "strange")) is not (name in allowed)]
    wrong += [f"{name}: {result}, as outside" for name, result in inside.items()
              if result == outside[name] and name not in allowed and not explained(name)]
    fds = int(re.search(r"^FDS (\d+)\r?$", text, re.M)[1])
    if fds != FDS[place]:
        wrong.append(f"{fds} descriptors instead of {FDS[place]}")
    assert not wrong, wrong


@test("outside of the walls each attempt works, or fails in its own way", timeout=100)
def _():
    configure()
    with scene("outside") as (program, _):
        with open("/dev/null", "rb") as leaked:
            fds = [fcntl.fcntl(leaked, fcntl.F_DUPFD, 100 + n) for n in range(32)] + [os.open("/", os.O_RDONLY)]
            done = subprocess.run([program, "--outside"], pass_fds=fds, extra_groups=[6], stdout=subprocess.PIPE, text=True, check=True)
            for fd in fds:
                os.close(fd)
        outside.update(attempts(done.stdout))
    print("# " + ", ".join(f"{name}: {result}" for name, result in outside.items() if result != "worked"))


for backend in ("qemu", "firecracker", "cloud-hypervisor"):
    @test(f"in the place of a VMM nothing works: {backend}", timeout=150)
    def _(place=backend):
        if not dict(manager.Backends)[place]["Usable"]:
            raise Skip(dict(manager.Backends)[place]["Reason"])
        with scene(place, place) as (_, vm):
            with expect_error("BackendFailed"):
                vm.start()
            text = vm.console_log().decode()
            judge(place, text)


@test("in the place of a VMM memory beyond its VM's limit is not to be had", timeout=150)
def _():
    with scene("qemu", "qemu", resources={"MemoryMax": "100M"}) as (program, vm):
        with open(program, "ab") as f:
            f.write(b"fill-mib=200\n")
        limited = manager.create("victim-limited", definition("qemu", f"{ROOT}/disk", resources={"MemoryMax": "100M"}), start=True)
        try:
            assert unit_property(limited.Slice, "MemoryMax") == str(100 << 20)
            enforced = os.path.exists(unit_cgroup(limited.Slice) + "/memory.max")
        finally:
            limited.remove(force=True)
            limited.wait_gone()
        if not enforced:
            raise Skip("this box has no memory controller, so its slice's MemoryMax= is set and holds nobody; vm/limits does it")
        with expect_error("BackendFailed"):
            vm.start()
        assert "FILLS anonymous" in vm.last_output() and "FILLED" not in vm.last_output(), vm.last_output()


for owner in (0, 65534):
    @test(f"in the place of a virtiofsd nothing works but what it is for: {'a user' if owner else 'root'}'s share", timeout=150)
    def _(uid=owner):
        share = ROOT + "-share"
        shutil.rmtree(share, ignore_errors=True)
        os.makedirs(share)
        os.chown(share, uid, uid)
        with scene("virtiofsd", "qemu", uid, filesystems=[{"tag": "share", "source": share}]) as (_, vm):
            with expect_error("BackendFailed", text="virtiofsd"):
                vm.start()
            with open(share + "/results", encoding="utf-8") as f:
                judge("virtiofsd", f.read(), VIRTIOFSD if uid else ROOTS_VIRTIOFSD)
            assert (os.stat(share + "/results").st_uid, os.stat(share).st_uid) == (uid, uid)


@test("in the place of a passt nothing works but what it is for", timeout=150)
def _():
    with scene("passt", "qemu", networks=[{}]) as (_, vm):
        try:
            vm.start()
        except BusError as error:                           # who has less room for words has fewer
            worked, total = re.search(r"((?: [\w.:-]+)*) OF (\d+)", error.message).groups()
        allowed = PASST if bounded() else PASST | {"fork-bomb"}
        assert int(total) == len(outside) and set(worked.split()) == allowed, worked


run()
