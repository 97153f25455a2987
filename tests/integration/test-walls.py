#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 backends=qemu,firecracker,cloud-hypervisor
"""The walls around a VMM: who it is, what it sees, and that the host's files stay as they are."""

import os
import shutil
import stat
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *
import loop_devices

BASE = 1000013824
OWNER = 12345
TREE = "/tmp/walls"                     # of a file system that can be idmapped
PLAIN = loop_devices.own("/var/lib/walls") # the box's root, which can't
TINY = os.path.realpath(tiny_definition()["boot"]["kernel"])


def uid(vm):
    return int(status(vm.LeaderPID, "Uid")[0])


def make(path, owner=0, mode=0o600, text=None):
    return make_file(path, owner, mode, text or b"", 1 << 20 if text is None else 0)


def facts(path):
    st = os.stat(path)
    return st.st_uid, st.st_gid, st.st_mode, sorted(os.listxattr(path))


def kernel(path, **how):
    with open(TINY, "rb") as f:
        return make(path, text=f.read(), **how)


def booted(vm):
    vm.start()
    vm.wait_log(b"TINY-UP")


def view(vm, path):
    return f"/proc/{vm.LeaderPID}/root{path}"


@test("each VM has an id of its own, and keeps it")
def _():
    with vm_of() as one, vm_of() as other:
        booted(one)
        booted(other)
        first, second = uid(one), uid(other)
        assert first != second
        for vm, number in ((one, first), (other, second)):
            assert BASE < number < BASE + 65536 and number % 2 == 0, number
            for pid in unit_pids(vm.Unit):
                assert {int(n) for n in status(pid, "Uid") + status(pid, "Gid")} == {number} and status(pid, "Groups") == []
        one.stop()
        booted(one)
        assert uid(one) == first


@test("it has no rights, nor has its parent; no core dumps, and namespaces of its own")
def _():
    with vm_of() as vm:
        booted(vm)
        pid, parent = vm.LeaderPID, parent_of(vm)
        assert program_of(parent) == "vmunit-exec" and status(parent, "Threads") == ["1"]
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status(pid, kind)[0], 16) == int(status(parent, kind)[0], 16) == 0, kind
        assert int(status(pid, "CapBnd")[0], 16) == 0
        for process in (pid, parent):
            assert status(process, "NoNewPrivs") == ["1"] and status(process, "Seccomp") == ["2"], process
        assert status(pid, "NSpid")[-1] == "1"
        with open(f"/proc/{pid}/limits", encoding="utf-8") as f:
            limits = {line[:26].strip(): line[26:].split()[:2] for line in f}
        assert limits["Max core file size"] == ["0", "0"] and limits["Max processes"] == ["1024", "1024"], limits
        with open(f"/proc/{pid}/coredump_filter", encoding="utf-8") as f:
            assert int(f.read(), 16) == 0
        for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/1/ns/{kind}"), kind


@test("the filter comes on top of the VMM's own")
def _():
    # of Cloud Hypervisor all threads but the first take one of their own, of the model none
    model = os.environ.get("VMUNIT_TEST_CLOUD_HYPERVISOR", "").endswith("-model")
    with vm_of() as vm:
        booted(vm)
        pid, before = vm.LeaderPID, int(status(parent_of(vm), "Seccomp_filters")[0])
        for thread in os.listdir(f"/proc/{pid}/task"):
            added = int(status(f"{pid}/task/{thread}", "Seccomp_filters")[0]) - before
            alone = BACKEND == "cloud-hypervisor" and (model or int(thread) == pid)
            assert added == 1 if alone else added >= 2, (program_of(f"{pid}/task/{thread}"), added)


@test("it sees programs, its devices and its files, and nothing else")
def _():
    with vm_of(tiny_definition(boot={"kernel": kernel(TREE + "/kernel")})) as vm:
        booted(vm)
        top = set(os.listdir(view(vm, "/")))
        assert top - {"vm"} == {"bin", "dev", "files", "lib", "lib32", "lib64", "libx32", "sbin", "usr"}, top
        assert ("vm" in top) == (BACKEND != "qemu")
        devices = set(os.listdir(view(vm, "/dev")))
        assert devices - {"kvm"} == {"null", "zero", "full", "random", "urandom", "stderr"}, devices
        with open(f"/proc/{vm.LeaderPID}/mountinfo", encoding="utf-8") as f:
            mounts = {line.split()[4]: line.split()[5].split(",") for line in f}
        assert not any("rw" in options for at, options in mounts.items()
                       if at != "/vm" and not (BACKEND == "firecracker" and at == "/files/3")), mounts
        assert all("nosuid" in options for options in mounts.values()), mounts


@test("its scope is allowed its devices alone")
def _():
    with vm_of() as vm:
        booted(vm)
        assert unit_property(vm.Unit, "DevicePolicy") == "closed"
        allowed = unit_property(vm.Unit, "DeviceAllow")
        assert "vhost" not in allowed and ("/dev/kvm rwm" in allowed or BACKEND == "qemu"), allowed


NODES = {name: (kind, os.makedev(*number)) for name, kind, number in (
    ("null", stat.S_IFCHR, (1, 3)), ("zero", stat.S_IFCHR, (1, 5)), ("urandom", stat.S_IFCHR, (1, 9)), ("mem", stat.S_IFCHR, (1, 1)),
    ("kmsg", stat.S_IFCHR, (1, 11)), ("fuse", stat.S_IFCHR, (10, 229)), ("kvm", stat.S_IFCHR, (10, 232)), ("tun", stat.S_IFCHR, (10, 200)),
    ("loop-control", stat.S_IFCHR, (10, 237)), ("vhost-net", stat.S_IFCHR, (10, 238)), ("vhost-vsock", stat.S_IFCHR, (10, 241)),
    ("loop", stat.S_IFBLK, (7, 0)), ("disk", stat.S_IFBLK, (8, 0)), ("virtio-disk", stat.S_IFBLK, (254, 0)))}


def openable(nodes, cgroup=None):
    """Which of them root may open, as a process of that cgroup"""
    done, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = "failed"
        with contextlib.suppress(Exception):
            if cgroup:
                with open(cgroup + "/cgroup.procs", "w", encoding="utf-8") as f:
                    f.write("0")
            found = []
            for name in nodes:
                with contextlib.suppress(OSError):
                    os.close(os.open(f"/dev/walls/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
                    found.append(name)
        os.write(told, json.dumps(found).encode())
        os._exit(0)
    os.close(told)
    with open(done, encoding="utf-8") as f:
        found = json.load(f)
    os.waitpid(pid, 0)
    assert found != "failed", "the test's process can't be moved there"
    return set(found)


@contextlib.contextmanager
def nodes_of(nodes):
    os.makedirs("/dev/walls")
    for name, (kind, number) in nodes.items():
        os.mknod("/dev/walls/" + name, kind | 0o600, number)
    try:
        yield openable(nodes)
    finally:
        shutil.rmtree("/dev/walls")


@test("who is root in its scope, or that of a virtiofsd or a passt, may not open another device")
def _():
    over = {"filesystems": [{"tag": "share", "source": TREE}]} if BACKEND != "firecracker" else {}
    if BACKEND == "qemu":
        over["networks"] = [{"name": "net"}]
    os.makedirs(TREE, exist_ok=True)
    with nodes_of(NODES) as outside, vm_of(tiny_definition(**over), name="devices") as vm:
        if len(outside - {"null", "zero", "urandom", "kvm"}) < 2:
            raise Skip(f"root may open nothing here but {outside}")
        booted(vm)
        scopes = [vm.Unit, *(["vmunit-devices-fs-share.scope"] if "filesystems" in over else []), *(["vmunit-devices-net-net.scope"] if "networks" in over else [])]
        for scope in scopes:
            kvm = {"kvm"} if "/dev/kvm " in unit_property(scope, "DeviceAllow") else set()
            assert not kvm or scope == vm.Unit
            inside = openable(outside, unit_cgroup(scope))
            assert inside == outside & ({"null", "zero", "urandom"} | kvm), (scope, inside, outside)
        print(f"# root may open {' '.join(sorted(outside))}")


@test("nor another block device than its disk", not_on={"qemu": "it has disks by descriptors, and no device of its own"})
def _():
    if why := loop_devices.missing():
        raise Skip(why)
    path = make(PLAIN + "/its-own")
    with vm_of(tiny_definition(disks=[{"path": path}])) as vm:
        booted(vm)
        name, = loop_devices.loops_of(path)
        number = os.makedev(*loop_devices.number_of(name))
        another = next(d for d in os.listdir("/sys/block") if d.startswith("loop") and d != name)
        others = {"another": os.makedev(*loop_devices.number_of(another)), "own": number}
        with nodes_of({n: (stat.S_IFBLK, device) for n, device in others.items()}) as outside:
            assert outside == {"own", "another"}, outside
            assert openable(outside, unit_cgroup(vm.Unit)) == {"own"}


@test("a kernel and disks that are their owner's alone: they are used, and stay as they are")
def _():
    for owner in (0, OWNER):
        files = [kernel(f"{TREE}/{owner}/kernel", owner=owner), make(f"{TREE}/{owner}/disk", owner=owner),
                 make(f"{TREE}/{owner}/read-only", owner=owner, mode=0o400)]
        before = [facts(f) for f in files]
        disks = [{"path": files[1]}, {"path": files[2], "readonly": True}]
        with vm_of(tiny_definition(boot={"kernel": files[0]}, disks=disks)) as vm:
            booted(vm)
            assert [facts(f) for f in files] == before
            vm.kill()
        assert [facts(f) for f in files] == before


@test("what was opened is what it sees, whatever has its name by then")
def _():
    path = kernel(TREE + "/moved")
    with vm_of(tiny_definition(boot={"kernel": path})) as vm:
        booted(vm)
        first = os.stat(path)
        os.unlink(path)
        make(path, text=b"another\n", mode=0o644)
        shown = [os.stat(view(vm, "/files/" + name)) for name in os.listdir(view(vm, "/files"))]
        assert any(os.path.samestat(first, f) for f in shown) and not any(os.path.samestat(os.stat(path), f) for f in shown), shown
        if RESETS:
            vm.reset()
            wait_for(lambda: times_on(vm, b"TINY-UP") == 2, 10, "the guest's second start")


@test("a kernel on a file system without idmapped mounts is copied")
def _():
    path = kernel(PLAIN + "/kernel")
    before = facts(path)
    with vm_of(tiny_definition(boot={"kernel": path})) as vm:
        booted(vm)
        assert facts(path) == before


@test("a disk on such a file system: QEMU has it, others by a loop device, or the start says what is missing")
def _():
    path = make(PLAIN + "/disk")
    before = facts(path)
    with vm_of(tiny_definition(disks=[{"path": path}])) as vm:
        if BACKEND == "qemu" or os.path.exists("/dev/loop-control"):
            booted(vm)
            vm.kill()
        else:
            with expect_error("BackendFailed", "disks[0].path: the file system of " + path + " knows no idmapped mounts"):
                vm.start()
            assert words(vm) == ("Stopped", "start-failed")
        assert facts(path) == before


@test("a disk that all may write to needs no map")
def _():
    path = make(PLAIN + "/shared", mode=0o666)
    with vm_of(tiny_definition(disks=[{"path": path}])) as vm:
        booted(vm)


@test("nothing of a VM is anybody's who is not root, and what it makes goes with it")
def _():
    with vm_of() as vm:
        booted(vm)
        where = f"/run/vmunit/vms/{vm.Id}"
        assert os.stat(where).st_mode & 0o777 == 0o700 and os.stat(where).st_uid == 0
        for name in os.listdir(where):
            assert os.lstat(f"{where}/{name}").st_uid == 0, name
        vm.kill()
        assert not os.path.exists(where)


@test("a network namespace of its own has no devices but lo, which is down")
def _():
    with vm_of() as vm:
        booted(vm)
        with open(f"/proc/{vm.LeaderPID}/net/dev", encoding="utf-8") as f:
            devices = [line.split(":")[0].strip() for line in f if ":" in line]
        assert devices == ["lo"], devices
        with open(f"/proc/{vm.LeaderPID}/net/tcp", encoding="utf-8") as f:
            assert len(f.readlines()) == 1


@test("SIGTERM to its scope ends a VMM that handles it, and does nothing to one that does not")
def _():
    with vm_of() as vm:
        booted(vm)
        pid = vm.LeaderPID
        systemctl("kill", "--signal=TERM", vm.Unit)
        if BACKEND == "firecracker":
            vm.pause()
            vm.resume()
            assert vm.LeaderPID == pid and words(vm) == ("Running", "")
            systemctl("kill", "--signal=KILL", vm.Unit)
        wait_exit(pid)
        wait_for(lambda: vm.State != "Running", 10, "the end of the VM")


run()
