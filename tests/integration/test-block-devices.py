#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: fault timeout=600 backends=qemu,firecracker,cloud-hypervisor
"""Disks that are block devices, and images that others than QEMU get as one: raw ones on a file system without idmapped mounts. What the VMM has
is what was opened, as long as it lives; nothing of it stays, whoever dies."""

import os
import stat
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *
import loop_devices
import vmunit_test
from loop_devices import loop_device, loops_of, number_of

PLAIN = loop_devices.own("/var/lib/block-devices") # the box's root, an overlay, which knows no idmapped mounts
DEVICES = "/dev/block-devices"
ALICE, BOB = 23001, 23002
SIZE = 1 << 20
WHERE = "/usr/local/lib/vmunit-test"            # a VMM sees /usr of the host
PROGRAM = "/usr/bin/qemu-system-x86_64" if BACKEND == "qemu" else "/usr/local/bin/" + BACKEND
FAULT_FILE = "/run/vmunit/fault"
BY_LOOP = {"qemu": "it takes disks of any file system, opened"}
LOCKED = "somebody else has a lock on it"

# What takes the VMM's place, behind its walls, does first what the test says.
VMM = f"""#!/usr/bin/python3 -I
import errno, fcntl, os, stat, sys, time
DISKS = sorted("/files/" + f for f in os.listdir("/files") if stat.S_ISBLK(os.stat("/files/" + f).st_mode)) if os.path.exists("/files") else []

def say(text):
    sys.stderr.write(text + "\\n")
    sys.stderr.flush()

def attempt(name, function, *arguments):
    try:
        function(*arguments)
        say(name + ": worked")
    except OSError as error:
        say(name + ": " + errno.errorcode[error.errno])

def wait():
    say("WAITS")
    while not os.path.exists("{WHERE}/go"):
        time.sleep(0.005)

if "--version" not in sys.argv:
    with open("{WHERE}/first") as f:
        exec(f.read())
os.execv("{PROGRAM}", ["{os.path.basename(PROGRAM)}"] + sys.argv[1:])
"""


def image(name, owner=0, mode=0o600, text=b"of the image "):
    return make_file(f"{PLAIN}/{name}", owner, mode, text, SIZE)


def facts(path):
    st = os.stat(path)
    return st.st_uid, st.st_gid, st.st_mode, st.st_size


def content(path, size=64):
    with open(path, "rb") as f:
        return f.read(size)


def devices_open(pid):
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):      # closed meanwhile
            found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_rdev)
    return found


@contextlib.contextmanager
def node(name, device, owner=0, mode=0o600):
    path = f"{DEVICES}/{name}"
    os.makedirs(DEVICES, exist_ok=True)
    os.mknod(path, stat.S_IFBLK | mode, os.makedev(*number_of(device)))
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    try:
        yield path
    finally:
        os.unlink(path)


def disk(path, **more):
    return tiny_definition(disks=[{"name": "disk0", "path": path, **more}])


@contextlib.contextmanager
def first(script):
    """In the block VMMs do this before all else."""
    put("first", script)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(WHERE + "/go")
    with configured(**{KEY: WHERE + "/vmm"}):
        wait_idle()
        yield


def put(name, text):
    with open(f"{WHERE}/{name}", "w", encoding="utf-8") as f:
        f.write(text)


def said(vm, text):
    return wait_for(lambda: text in (now := vm.last_output()) and now, 15, f"{text!r} of the VMM", poll=0.02)


def booted(vm):
    vm.start()
    vm.wait_log(b"TINY-UP")


def gone(top=PLAIN, timeout=10):
    wait_for(lambda: not loops_of(top), timeout, f"the end of {loops_of(top)}", poll=0.02)


def refused(vm, *texts, name="BackendFailed"):
    try:
        vm.start()
    except BusError as error:
        assert error.short == name and all(t in error.message for t in ("disks[0].path: ", *texts)), error
    else:
        raise AssertionError("it started")
    assert words(vm) == ("Stopped", "start-failed"), words(vm)


# Images that become loop devices

@test("a raw image on a file system without idmapped mounts: a loop device, as long as its VM runs", timeout=60, not_on=BY_LOOP)
def _():
    for owner in (0, ALICE):
        path = image(f"plain-{owner}", owner)
        before = facts(path)
        with vm_of(disk(path), owner=owner) as vm:
            for end in (vm.stop, vm.kill, lambda: os.kill(vm.LeaderPID, signal.SIGKILL), lambda: os.kill(parent_of(vm), signal.SIGKILL),
                        lambda: type_in(vm, ENDS[0])):
                booted(vm)
                (name, seen), = loops_of(path).items()
                assert seen == (path, False, True), seen
                allowed = unit_property(vm.Unit, "DeviceAllow")
                assert "/dev/block/{}:{} rwm".format(*number_of(name)) in allowed and allowed.count("/dev/block/") == 1, allowed
                assert facts(path) == before
                end()
                vm.wait_state("Stopped", "Error")
                gone(path)
        assert facts(path) == before


@test("its VMM reads it, and writes to it if it may", timeout=60, not_on=BY_LOOP)
def _():
    path = image("used", ALICE)
    with first("""
say(repr(DISKS))
for d in DISKS:
    fd = os.open(d, os.O_RDONLY)
    say("read " + os.pread(fd, 8, 0).decode())
    os.close(fd)
    def write():
        fd = os.open(d, os.O_RDWR)
        os.pwrite(fd, b"WRITTEN", 100)
        os.fsync(fd)
        os.close(fd)
    attempt("write", write)
"""), vm_of(disk(path), owner=ALICE) as vm:
        booted(vm)
        assert "read of the i\nwrite: worked" in said(vm, "write: "), vm.last_output()
        assert content(path, 107)[100:] == b"WRITTEN"
        vm.kill()

        path = image("read-only", ALICE, 0o400)
        vm.update({"disks": [{"name": "disk0", "path": path, "readonly": True}]})
        booted(vm)
        seen, = loops_of(path).values()
        assert seen == (path, True, True), seen
        assert "read of the i\nwrite: EACCES" in said(vm, "write: "), vm.last_output()
        vm.kill()
        assert content(path, 107)[100:] == bytes(7)

        vm.update({"disks": [{"name": "disk0", "readonly": False}]})
        refused(vm, path, "Permission denied")
        gone()


@test("several of them, and one that is gone from its name", timeout=60, not_on=BY_LOOP)
def _():
    paths = [image(f"several-{n}", ALICE) for n in range(3)]
    with vm_of(tiny_definition(disks=[{"path": p} for p in paths]), owner=ALICE) as vm:
        booted(vm)
        assert sorted(seen[0] for seen in loops_of(PLAIN).values()) == paths
        os.unlink(paths[0])
        assert len(loops_of(PLAIN)) == 3
        vm.stop()
        gone()
        refused(vm, paths[0], "No such file")


@test("an image that is not raw is refused, and it is told what to do", timeout=60, not_on={**BY_LOOP, "firecracker": "it reads raw images alone"})
def _():
    path = PLAIN + "/image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    with vm_of(disk(path, format="qcow2")) as vm:
        refused(vm, path, "knows no idmapped mounts", "ext4, xfs, btrfs and tmpfs do, or use a raw image")
        gone()


@test("one VM has it at a time, whatever the VMM does about locks; any number to read", timeout=60)
def _():
    path = image("locked", ALICE)
    with vm_of(disk(path), owner=ALICE) as one, vm_of(disk(path), owner=ALICE) as other, \
            vm_of(merge(disk(path), {"backend": "qemu"}), owner=ALICE) as qemus:
        booted(one)
        for vm in (other, qemus):
            try:
                vm.start()
            except BusError as error:
                assert error.short == "BackendFailed" and (LOCKED in error.message or "lock" in error.message), error
            else:
                raise AssertionError("two VMs write to the same image")
        assert one.State == "Running"
        one.kill()
        booted(qemus)
        if BACKEND != "qemu":
            refused(other, path, LOCKED)
        qemus.kill()
        for vm in (one, other):
            vm.update({"disks": [{"name": "disk0", "readonly": True}]})
            booted(vm)
    gone()


@test("a VMM that lets go of its device does not get another's by its number", timeout=60, not_on=BY_LOOP)
def _():
    path, others = image("let-go", ALICE), image("others", BOB, text=b"of another ")
    with first("""
os.closerange(3, 256)
say("CLOSED")
wait()
fd = os.open(DISKS[0], os.O_RDONLY)
say("read " + os.pread(fd, 8, 0).decode())
os.close(fd)
"""), vm_of(disk(path), owner=ALICE) as vm:
        start = vm.start_async()
        said(vm, "WAITS")
        name, = loops_of(path)
        with loop_device(others) as another:
            assert loops_of(path).keys() == {name} and another != name, (name, another)
            put("go", "")
            assert "read of the i" in said(vm, "read ")
        vm.kill()
        gather([start])
        gone()


@test("what loop devices can be told, a VMM can't tell its own", timeout=60, not_on=BY_LOOP)
def _():
    path = image("told", ALICE)
    for readonly in (False, True):
        with first(f"""
fd = os.open(DISKS[0], os.O_RDONLY if {readonly} else os.O_RDWR)
file = os.open("/tmp" if os.path.exists("/tmp") else "/usr/bin/env", os.O_RDONLY)
attempt("clear", fcntl.ioctl, fd, {loop_devices.CLR_FD}, 0)
attempt("status", fcntl.ioctl, fd, {loop_devices.SET_STATUS64}, bytes(232))
attempt("change", fcntl.ioctl, fd, {loop_devices.CHANGE_FD}, file)
attempt("set", fcntl.ioctl, fd, {loop_devices.SET_FD}, file)
attempt("configure", fcntl.ioctl, fd, {loop_devices.CONFIGURE}, bytes(304))
attempt("high", fcntl.ioctl, fd, {loop_devices.CLR_FD} | 1 << 32, 0)
attempt("block-size", fcntl.ioctl, fd, {loop_devices.SET_BLOCK_SIZE}, 4096)
os.close(fd)
os.close(file)
"""), vm_of(disk(path, readonly=readonly), owner=ALICE) as vm:
            booted(vm)
            output = said(vm, "block-size: ")
            assert output.count(": EPERM") == 7 and "worked" not in output, output
            seen, = loops_of(path).values()
            assert seen == (path, readonly, True), seen
            vm.kill()
            gone()


# Whoever dies

@test("another daemon finds the VM and its loop device, and ends both", timeout=60, not_on=BY_LOOP)
def _():
    path = image("takeover", ALICE)
    with vm_of(disk(path), owner=ALICE) as vm:
        booted(vm)
        name, pid = list(loops_of(path)), vm.LeaderPID
        kill_daemon()
        os.kill(launcher_pid(), signal.SIGKILL)
        assert (vm.State, vm.LeaderPID, list(loops_of(path))) == ("Running", pid, name)
        vm.stop()
        gone()
        booted(vm)
        stop_daemon()
        assert len(loops_of(path)) == 1
        os.kill(pid := vmm_of(vm), signal.SIGKILL)
        wait_exit(pid)
        gone()
        start_daemon()
        assert vm.State == "Error"


def vmm_of(vm):
    """The VMM's pid, while there is no daemon"""
    pid, = (p for p in unit_pids(f"vmunit-{vm_name(vm)}.scope") if open(f"/proc/{p}/comm", encoding="utf-8").read().startswith(VMM_COMMS))
    return pid


def vm_name(vm):
    return vm.path.rpartition("/")[2]


def points():
    """Those of a start, with what may happen there"""
    done = subprocess.run(["/usr/sbin/vmunitd", "--fault-points"], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines() if line.startswith("start.") and not line.startswith("start.shares")]


def arm(line):
    with open(FAULT_FILE + ".new", "w", encoding="utf-8") as f:
        f.write(line + "\n")
    os.rename(FAULT_FILE + ".new", FAULT_FILE)


def fired():
    wait_for(lambda: not os.path.exists(FAULT_FILE), 15, "the fault to fire", poll=0.01)


@test("daemon, VMM or launcher is killed at each step of a start: no loop device stays", timeout=400, not_on=BY_LOOP)
def _():
    path, cases = image("killed", ALICE), 0
    with vm_of(disk(path), owner=ALICE) as vm:
        for point, *actions in points():
            for action in ("kill-daemon", "kill-vmm", "kill-launcher", "EIO")[:4 if "VMUNIT_ALL" in os.environ else 3]:
                how = "hang" if action == "kill-launcher" else action
                if how not in actions:
                    continue
                if point.startswith("start.clear"):
                    kill_daemon()               # one that knows nothing of the last run
                owner = vmunit_test._owner()
                arm(f"{point} {how}")
                start = vm.start_async()
                fired()
                if action == "kill-launcher":
                    systemctl("kill", "--signal=KILL", "--kill-who=main", "vmunit-launch.service")
                    vm.kill()
                if action == "kill-daemon":
                    wait_for(lambda: vmunit_test._owner() not in (None, owner), 20, "another daemon", poll=0.02)
                gather([start])
                wait_for(lambda: (vm.State, len(loops_of(path))) in (("Running", 1), ("Stopped", 0), ("Error", 0)), 20,
                         f"the end of {point} {action}", poll=0.02)
                vm.kill()
                gone()
                cases += 1
        print(f"# {cases} cases")
        booted(vm)


# Block devices

@test("a block device is a disk if the owner may open it, and stays who it is", timeout=60)
def _():
    below = image("below", BOB)
    with loop_device(below) as device, node("alices", device, ALICE) as path, node("roots", device) as roots, \
            node("to-read", device, ALICE, 0o400) as to_read:
        for owner, where in ((ALICE, path), (0, roots), (0, path)):
            with vm_of(disk(where), owner=owner) as vm:
                before = facts(where)
                booted(vm)
                assert os.makedev(*number_of(device)) in devices_open(vm.LeaderPID)
                vm.kill()
                assert facts(where) == before
        with vm_of(disk(roots), owner=ALICE) as vm:
            refused(vm, roots, "Permission denied")
        with vm_of(disk(to_read, readonly=True), owner=ALICE) as vm:
            booted(vm)
            vm.kill()
            vm.update({"disks": [{"name": "disk0", "readonly": False}]})
            refused(vm, to_read, "Permission denied")
        assert loops_of(below)
    gone()


@test("its VMM reads a block device, and writes to it if it may", timeout=60, not_on={"qemu": "it has it by a descriptor, and no name of it"})
def _():
    below = image("below-used")
    with loop_device(below) as device, node("used", device, ALICE) as path, first("""
fd = os.open(DISKS[0], os.O_RDONLY)
say("read " + os.pread(fd, 8, 0).decode())
def write():
    fd = os.open(DISKS[0], os.O_RDWR)
    os.pwrite(fd, b"WRITTEN", 100)
    os.fsync(fd)
    os.close(fd)
attempt("write", write)
os.close(fd)
"""), vm_of(disk(path, readonly=True), owner=ALICE) as vm:
        booted(vm)
        assert "read of the i\nwrite: EACCES" in said(vm, "write: "), vm.last_output()
        vm.kill()
        vm.update({"disks": [{"name": "disk0", "readonly": False}]})
        booted(vm)
        assert "read of the i\nwrite: worked" in said(vm, "write: "), vm.last_output()
        vm.kill()
        assert content(below, 107)[100:] == b"WRITTEN"


@test("a block device whose name is another's meanwhile, and which its owner lets go of, is still its VM's", timeout=60,
      not_on={"qemu": "it has it by a descriptor, and no name of it"})
def _():
    below, others = image("below-moved", ALICE), image("others-moved", BOB, text=b"of another ")
    with first("""
os.closerange(3, 256)
wait()
fd = os.open(DISKS[0], os.O_RDONLY)
say("read " + os.pread(fd, 8, 0).decode())
os.close(fd)
"""), vm_of(owner=ALICE) as vm, contextlib.ExitStack() as stack:
        device = stack.enter_context(loop_device(below))
        path = stack.enter_context(node("moved", device, ALICE))
        vm.update({"disks": [{"name": "disk0", "path": path}]})
        start = vm.start_async()
        said(vm, "WAITS")
        stack.close()                           # the last user of it but the VM
        with loop_device(others) as another, node("moved", another, ALICE):
            assert another != device and loops_of(below).keys() == {device}
            put("go", "")
            assert "read of the i" in said(vm, "read ")
        vm.kill()
        gather([start])
        gone()


@test("one VM has a block device at a time, whatever the VMM does about locks", timeout=60)
def _():
    with loop_device(image("below-locked")) as device, node("locked", device, ALICE) as path, vm_of(disk(path), owner=ALICE) as one, \
            vm_of(disk(path), owner=ALICE) as other, vm_of(merge(disk(path), {"backend": "qemu"}), owner=ALICE) as qemus:
        for first_one, more in ((one, (other, qemus)), (qemus, (other,))):
            booted(first_one)
            for vm in more:
                try:
                    vm.start()
                except BusError as error:
                    assert error.short == "BackendFailed" and "lock" in error.message, error
                else:
                    raise AssertionError("two VMs write to the same device")
            first_one.kill()
        booted(other)


os.makedirs(WHERE)
with open(WHERE + "/vmm", "w", encoding="utf-8") as vmm:
    vmm.write(VMM)
os.chmod(WHERE + "/vmm", 0o755)
for user, uid in (("alice", ALICE), ("bob", BOB)):
    subprocess.run(["groupadd", "-g", str(uid), "vmunit-" + user], check=True, capture_output=True)
    subprocess.run(["useradd", "-u", str(uid), "-g", str(uid), "-M", "vmunit-" + user], check=True, capture_output=True)
os.makedirs("/run/systemd/system/vmunitd.service.d", exist_ok=True)
with open("/run/systemd/system/vmunitd.service.d/fault.conf", "w", encoding="utf-8") as conf:
    conf.write("[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=10ms\n")
systemctl("daemon-reload")
if why := loop_devices.missing():
    print(f"1..0 # SKIP {why}")
    sys.exit()
manager.list()
run()
