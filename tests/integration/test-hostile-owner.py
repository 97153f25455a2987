#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=900 sanitized=qemu backends=qemu,firecracker,cloud-hypervisor
"""An owner who wants more: no file is opened that this owner could not open, and nobody waits for what hangs but its owner."""

import array
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *
import loop_devices
from hanging_fuse import HangingFuse

DEVICES = "/dev/owners"
TOP = "/tmp/owners"                             # no overlay, which knows no idmapped mounts
ALICE, BOB, READERS = 23001, 23002, 23003
TINY = os.environ["VMUNIT_GUESTS"] + "/tiny.elf"
BY_NAME = {"firecracker cloud-hypervisor": "it opens disks by itself, one file each"}
FIRMWARE = SHARES = BACKEND != "firecracker"      # it has neither
FAILED = ("Stopped", "start-failed")
RENAME_EXCHANGE = 2
libc = ctypes.CDLL(None, use_errno=True)


def make_users():
    subprocess.run(["groupadd", "-g", str(READERS), "vmunit-readers"], check=True, capture_output=True)
    for name, uid, more in (("alice", ALICE, ["-G", "vmunit-readers"]), ("bob", BOB, [])):
        subprocess.run(["groupadd", "-g", str(uid), "vmunit-" + name], check=True, capture_output=True)
        subprocess.run(["useradd", "-u", str(uid), "-g", str(uid), "-M", *more, "vmunit-" + name], check=True, capture_output=True)
        directory(f"{TOP}/{name}", uid)


def directory(path, owner, mode=0o755):
    os.makedirs(path)
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    return path


def own(path, uid, mode=0o600, gid=None):
    os.chown(path, uid, uid if gid is None else gid)
    os.chmod(path, mode)
    return path


def kernel(path, uid, mode=0o600, gid=None):
    shutil.copyfile(TINY, path)
    return own(path, uid, mode, gid)


def sparse(path, uid, mode=0o600, gid=None):
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    return own(path, uid, mode, gid)


def device(name, kind, major, minor, uid, mode):
    path = f"{DEVICES}/{name}"                  # nothing is a device below TOP
    os.mknod(path, kind | mode, os.makedev(major, minor))
    return own(path, uid, mode)


A, B = TOP + "/alice", TOP + "/bob"


def rights_of(uid):
    """The launcher's processes that have become this user"""
    found = []
    for child in unit_pids("vmunit-launch.service"):
        with contextlib.suppress(OSError), open(f"/proc/{child}/status", encoding="utf-8") as f:
            if re.search(rf"^Uid:\t{uid}\t", f.read(), re.M):
                found.append(child)
    return found


def opened_inodes(pid):
    """(device, inode) of all that the process has open"""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            st = os.stat(f"/proc/{pid}/fd/{fd}")
            found.add((st.st_dev, st.st_ino))
    return found


def identity(path):
    st = os.stat(path)
    return st.st_dev, st.st_ino


def refused(vm, path, *texts, name="BackendFailed"):
    """A start that fails, and tells which path it is and why."""
    try:
        vm.start()
    except BusError as error:
        assert error.short == name, (path, error)
        assert path in error.message and any(t in error.message for t in texts), (path, texts, error.message)
    else:
        raise AssertionError(f"{path} was opened")
    assert words(vm) == FAILED, (path, words(vm))


# The launcher, asked as the daemon asks it

with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../src/basic/launch-protocol.h"), encoding="utf-8") as _header:
    MAGIC = int(re.search(r"LAUNCH_MAGIC UINT32_C\((0x[0-9a-f]+)\)", _header.read())[1], 16)
WRITE = 1


def ask_open(path, uid, flags=0):
    """(errno, fd): one of them is 0 or None"""
    body = struct.pack("=2I", uid, flags) + os.fsencode(path) + b"\0"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(20)
        s.connect("/run/vmunit-launch.sock")
        s.sendall(struct.pack("=4I", MAGIC, 1, 16 + len(body), 0) + body)
        data, control, _, _ = s.recvmsg(65536, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for _, _, piece in control:
        fds.frombytes(piece)
    error, = struct.unpack_from("=i", data, 16)
    assert len(fds) == (error == 0), (error, fds)
    return -error, fds[0] if fds else None


@contextlib.contextmanager
def as_alice(action):
    """A process of alice's that does this over and over."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(ALICE)
            os.setuid(ALICE)
            while True:
                action()
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "who disturbs has ended"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def exchange(one, other):
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


# What the owner may open

@test("files that the owner may open: own ones, those of a group, by links and odd names", timeout=120)
def _():
    d = directory(A + "/may", ALICE, 0o700)
    odd = ["comma,comma,,x=y", "quote\"'`$(id)", "back\\slash\\n", " blanks  and % & ;", "äöü 漢字 \U0001f427", "-dash", "json:{}", "x" * 255,
           "ü" * 127]
    for name in odd:
        kernel(f"{d}/{name}", ALICE)
        sparse(f"{d}/{name[:-1]}D", ALICE)
    os.symlink(odd[0], d + "/link")
    os.link(f"{d}/{odd[0]}", d + "/hard")
    kernel(TOP + "/group", 0, 0o640, READERS)
    sparse(TOP + "/group-disk", 0, 0o640, READERS)
    pairs = [(f"{d}/{name}", f"{d}/{name[:-1]}D") for name in odd] + [(d + "/link", d + "/../may/./" + odd[0][:-1] + "D"), (d + "/hard", None)]
    with vm_of(tiny_definition(), owner=ALICE) as vm:
        for boot, disk in pairs:
            vm.update({"boot": {"kernel": boot}, "disks": [{"name": "a", "path": disk or A + "/may/" + odd[0][:-1] + "D"}]})
            vm.start()
            assert disk is None or identity(disk) in opened_inodes(vm.LeaderPID), disk
            vm.wait_log(b"TINY-UP")
            vm.kill()
        vm.update({"boot": {"kernel": TOP + "/group"}, "disks": [{"name": "a", "path": TOP + "/group-disk", "readonly": True}]})
        vm.start()
        assert identity(TOP + "/group-disk") in opened_inodes(vm.LeaderPID)
        vm.kill()
        vm.update({"disks": [{"name": "a", "readonly": False}]})
        refused(vm, TOP + "/group-disk", "Permission denied")
        vm.update({"disks": [{"name": "a", "path": own(d + "/link", ALICE, 0o400)}]})
        refused(vm, d + "/link", "Permission denied")
    for name in ("new\nline", "tab\t", "\x7f"):
        with expect_error("InvalidDefinition", begins="disks[0].path: "):
            manager.create("odd", tiny_definition(disks=[{"path": f"{d}/{name}"}]), owner=ALICE)


@test("files that the owner may not open, by any way that leads there", timeout=200)
def _():
    d = directory(A + "/may-not", ALICE, 0o700)
    secret, closed = kernel(B + "/secret", BOB), directory(B + "/closed", BOB, 0o700)
    kernel(closed + "/open-in-closed", BOB, 0o666)
    kernel(TOP + "/wheel", 0, 0o660)
    os.symlink(secret, d + "/link")
    os.symlink(closed, d + "/links")
    os.link(secret, d + "/hard")
    os.mkfifo(d + "/fifo", 0o666)
    own(d + "/fifo", ALICE)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(d + "/socket")
    own(d + "/socket", ALICE)
    device("null", stat.S_IFCHR, 1, 3, ALICE, 0o600)
    device("mem", stat.S_IFCHR, 1, 1, ALICE, 0o600)
    device("absent", stat.S_IFBLK, 240, 255, ALICE, 0o600)
    device("roots-disk", stat.S_IFBLK, 7, 0, 0, 0o660)
    os.symlink("loop", d + "/loop")
    opened = os.open(secret, os.O_RDWR)
    bobs = subprocess.Popen(["sleep", "infinity"], user=BOB, group=BOB, cwd="/", pass_fds=[opened], stdin=opened)
    no = ("Permission denied",)
    ways = [(secret, no), (d + "/link", no), (d + "/hard", no), (d + "/links/open-in-closed", no), (TOP + "/wheel", no),
            (f"{d}/../../bob/closed/../secret", no), (f"{closed}/../../alice/may-not/hard", no),
            ("/etc/shadow", no), ("/var/lib/vmunit/vmunit.db", no), (DEVICES + "/roots-disk", no),
            (f"/proc/{os.getpid()}/fd/{opened}", (*no, "link of /proc")), (f"/proc/{bobs.pid}/root{secret}", (*no, "link of /proc")),
            ("/proc/self/fd/0", ("link of /proc",)), ("/dev/fd/1", ("link of /proc",)), ("/dev/stdin", ("link of /proc",)),
            ("/proc/thread-self/root" + secret, ("link of /proc",)), ("/proc/self/cwd/etc/passwd", ("link of /proc",)),
            ("/proc/self/exe", ("link of /proc",)), ("/proc/self/mem", ("in /proc", *no)), ("/proc/self/maps", ("in /proc",)),
            ("/proc/version", ("in /proc",)),
            (d + "/fifo", ("a FIFO",)), (d + "/socket", ("a socket",)), (DEVICES + "/null", ("a character device",)), (DEVICES + "/mem", ("a character device",)),
            ("/dev/kvm", ("a character device", "No such file")), (DEVICES + "/absent", ("not there", "No such device", "not permitted")),
            (d + "/loop", ("circles",)), (d, ("Is a directory",)), (d + "/nothing", ("No such file",)), (d + "/fifo/x", ("Not a directory",)),
            ("/" + "x" * 256, ("too long",))]
    good = kernel(d + "/good", ALICE)
    try:
        with vm_of(tiny_definition(boot={"kernel": good}), owner=ALICE) as vm:
            for path, texts in ways:
                for patch in ({"boot": {"kernel": path}}, {"boot": {"initramfs": path}}, {"disks": [{"name": "a", "path": path}]},
                              {"disks": [{"name": "a", "path": path, "readonly": True}]}, {"boot": {"firmware": path}})[:4 + FIRMWARE]:
                    vm.update({"disks": None, "boot": {"kernel": good, "initramfs": None}})
                    vm.update(patch)
                    refused(vm, path, *texts)
            vm.update({"disks": None, "boot": {"kernel": good, "initramfs": None}})
            for path, texts in ((closed, no), (d + "/links", no), (f"/proc/{bobs.pid}/root/tmp", (*no, "link of /proc")), ("/proc", ("in /proc",)),
                                ("/proc/self/cwd", ("link of /proc",)), (d + "/good", ("Not a directory",))) if SHARES else ():
                vm.update({"filesystems": [{"tag": "s", "source": path}]})
                refused(vm, path, *texts)
            vm.update({"filesystems": None})
            vm.start()
            assert identity(secret) not in opened_inodes(vm.LeaderPID)
    finally:
        bobs.kill()
        bobs.wait()
        os.close(opened)
        listener.close()


@test("a block device is a disk if the owner may open it")
def _():
    if why := loop_devices.missing():
        raise Skip(why)
    with loop_devices.loop_device(sparse(TOP + "/below-block", BOB)) as name:
        path = device("block", stat.S_IFBLK, *loop_devices.number_of(name), ALICE, 0o400)
        with vm_of(tiny_definition(disks=[{"path": path, "readonly": True}]), owner=ALICE) as vm:
            vm.start()
            vm.wait_log(b"TINY-UP")
            assert identity(path) in opened_inodes(vm.LeaderPID)
            vm.kill()
            vm.update({"disks": [{"name": "disk0", "readonly": False}]})
            refused(vm, path, "Permission denied")


# Images that rest on others

def image(name, *more, d):
    path = f"{d}/{name}"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, path, *(() if "-b" in more else ["1M"])], check=True, cwd=d)
    return own(path, ALICE)


def rebase(path, backing, kind="raw"):
    subprocess.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", kind, path], check=True)


def files_of(vm):
    """What the VMM has open below TOP"""
    return sorted(os.path.basename(p) for p in fds(vm.LeaderPID) if p.startswith(TOP))


def on(path, **more):
    return {"disks": [{"name": "a", "path": path, "format": "qcow2", **more}]}


def forget_format(path):
    """Takes the word on the backing file's format out of the header, as older tools wrote none."""
    with open(path, "r+b") as f:
        head = f.read(4096)
        at = head.index(struct.pack(">I", 0xe2792aca))
        f.seek(at)
        f.write(struct.pack(">I", 0x12345678))


@test("images on others: each as the owner, the topmost alone to write", timeout=60, not_on=BY_NAME)
def _():
    d = directory(A + "/chain", ALICE, 0o700)
    directory(d + "/below", ALICE)
    sparse(d + "/below/base,\"\\ü.raw", ALICE, 0o400)
    image("one.qcow2", d=d + "/below")
    rebase(d + "/below/one.qcow2", "base,\"\\ü.raw")
    own(d + "/below/one.qcow2", ALICE, 0o400)
    image("two.qcow2", "-b", "below/one.qcow2", "-F", "qcow2", d=d)
    image("top.qcow2", "-b", d + "/two.qcow2", "-F", "qcow2", "-o", f"data_file={d}/top.data", d=d)
    own(d + "/top.data", ALICE)
    os.symlink("chain/top.qcow2", A + "/linked.qcow2")
    with vm_of(tiny_definition(**on(d + "/top.qcow2")), owner=ALICE) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        names = ["base,\"\\ü.raw", "one.qcow2", "top.data", "top.qcow2", "two.qcow2"]
        assert files_of(vm) == names, files_of(vm)
        for fd in os.listdir(f"/proc/{vm.LeaderPID}/fd"):
            target = os.readlink(f"/proc/{vm.LeaderPID}/fd/{fd}")
            if target.startswith(d):
                with open(f"/proc/{vm.LeaderPID}/fdinfo/{fd}", encoding="utf-8") as f:
                    mode = int(re.search(r"^flags:\s+(\d+)", f.read(), re.M)[1], 8) & os.O_ACCMODE
                assert mode == (os.O_RDWR if "/top." in target else os.O_RDONLY), (target, mode)
        vm.kill()
        own(d + "/top.data", ALICE, 0o400)
        refused(vm, d + "/top.data", "Permission denied")
        vm.update({"disks": [{"name": "a", "readonly": True}]})
        vm.start()
        vm.kill()
        os.unlink(d + "/below/one.qcow2")
        refused(vm, d + "/below/one.qcow2", "No such file")
        vm.update(on(A + "/linked.qcow2"))
        refused(vm, d + "/below/one.qcow2", "No such file")


@test("images on what the owner may not open, or on what is none: refused, and it is told which", timeout=120, not_on=BY_NAME)
def _():
    d, secret = directory(A + "/chains", ALICE, 0o700), sparse(B + "/disk", BOB)
    mine = sparse(d + "/mine", ALICE)
    top, middle = image("top.qcow2", d=d), image("middle.qcow2", d=d)
    rebase(top, middle, "qcow2")
    os.symlink(secret, d + "/link")
    os.mkfifo(d + "/fifo")
    own(d + "/fifo", ALICE)
    with vm_of(tiny_definition(**on(top)), owner=ALICE) as vm:
        for path, text in ((secret, "Permission denied"), (d + "/link", "Permission denied"), (f"{d}/../../bob/disk", "Permission denied"),
                           ("/etc/shadow", "Permission denied"), ("/dev/zero", "a character device"), (d + "/fifo", "a FIFO"),
                           ("/proc/self/fd/0", "link of /proc"), (d + "/nothing", "No such file")):
            rebase(middle, path)
            refused(vm, path, text)
        for path, text in (("nbd://127.0.0.1/x", "not the path of a file"), ("json:{\"driver\": \"file\", \"filename\": \"/etc/shadow\"}", "not the path"),
                           ("new\nline", "control characters"), (b"\xff\xfe", "control characters")):
            subprocess.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", path, "-F", "raw", middle], check=True)
            refused(vm, middle, text, name="NotSupported")
        rebase(middle, mine, "vmdk")
        refused(vm, middle, "neither raw nor qcow2", name="NotSupported")
        rebase(middle, mine, "qcow2")
        refused(vm, mine, "not a qcow2 image", name="InvalidDefinition")
        rebase(middle, top, "qcow2")
        refused(vm, top, "rests on itself", name="InvalidDefinition")
        forget_format(middle)
        refused(vm, middle, "does not tell its format", name="NotSupported")

        rebase(middle, mine)
        vm.start()
        vm.kill()
        many = [middle] + [image(f"many{n}.qcow2", d=d) for n in range(33)]
        for one, below in zip(many[1:], many):
            rebase(one, below, "qcow2")
        vm.update(on(many[30]))                 # 30, middle and mine
        vm.start()
        assert len(files_of(vm)) == 32
        vm.kill()
        vm.update(on(many[33]))
        refused(vm, many[33], "too many images", name="NotSupported")

        data = image("data.qcow2", "-o", f"data_file={B}/data", d=d)
        own(B + "/data", BOB)
        vm.update(on(data))
        refused(vm, B + "/data", "Permission denied")


@test("an image whose header is written anew when it was looked at leads nowhere", timeout=60, not_on=BY_NAME)
def _():
    d, theirs = directory(A + "/anew", ALICE), sparse(B + "/anew", BOB)
    good, backed, apart = (image(name, d=d) for name in ("good.qcow2", "backed.qcow2", "apart.qcow2"))
    rebase(backed, theirs)
    image("apart.qcow2", "-o", f"data_file={theirs}", d=d)
    own(theirs, BOB)
    with fake_vmm("gate") as fake:
        for other, readonly in ((backed, False), (backed, True), (apart, False), (apart, True)):
            shutil.copyfile(good, d + "/image")
            own(d + "/image", ALICE)
            fake("gate")
            with vm_of(tiny_definition(**on(d + "/image", readonly=readonly)), owner=ALICE) as vm:
                start = vm.start_async()
                wait_for(lambda: vm.LeaderPID, poll=0.02)
                with open(other, "rb") as new, open(d + "/image", "r+b") as f:
                    f.write(new.read())
                fake("go")
                gather([start])
                if start.error:                 # it misses what it can't see
                    assert other == apart and start.error.short == "BackendFailed", start.error
                else:
                    assert identity(theirs) not in opened_inodes(vm.LeaderPID), (other, readonly)


# Races

@test("1,000 opens, while what the path leads to is swapped", timeout=400, not_on={"firecracker cloud-hypervisor": "the launcher is the same"})
def _():
    d, secret = directory(A + "/race", ALICE), sparse(B + "/raced", BOB)
    mine = sparse(d + "/mine", ALICE)
    os.symlink(mine, d + "/one")
    os.symlink(secret, d + "/other")
    directory(B + "/raced-dir", BOB)
    directory(d + "/dir", ALICE)
    inner, theirs = sparse(d + "/dir/file", ALICE), sparse(B + "/raced-dir/file", BOB)
    os.symlink(B + "/raced-dir", d + "/dir-link")
    os.mkfifo(d + "/pipe")
    own(d + "/pipe", ALICE)
    sparse(d + "/no-pipe", ALICE)
    good = {identity(p) for p in (mine, inner, d + "/no-pipe")}
    bad = {identity(p) for p in (secret, theirs)}
    for path, one, other, error in ((d + "/one", d + "/one", d + "/other", errno.EACCES), (d + "/dir/file", d + "/dir", d + "/dir-link", errno.EACCES),
                                    (d + "/no-pipe", d + "/no-pipe", d + "/pipe", errno.ESPIPE)):
        seen, tries = set(), 0
        with as_alice(lambda: exchange(one, other)):
            while tries < 1000 or len(seen) < 2:
                code, fd = ask_open(path, ALICE, WRITE if tries % 2 else 0)
                if fd is not None:
                    st = os.fstat(fd)
                    os.close(fd)
                    assert (st.st_dev, st.st_ino) in good and (st.st_dev, st.st_ino) not in bad, path
                seen.add(code)
                tries += 1
        assert seen == {0, error}, (path, [errno.errorcode.get(e, e) for e in seen])


def race(vms, bad):
    """All of them are started at once; what came of it, of each."""
    found = []
    starts = [vm.start_async() for vm in vms]
    gather(starts)
    for vm, start in zip(vms, starts):
        if start.error:
            assert start.error.short == "BackendFailed" and "Permission denied" in start.error.message, start.error
        else:
            assert not opened_inodes(vm.LeaderPID) & bad
        found.append("refused" if start.error else "started")
    gather([vm.kill_async() for vm in vms])
    return found


@test("1,000 whole starts, while what the paths lead to is swapped", timeout=900 if "VMUNIT_ALL" in os.environ else 300)
def _():
    d = directory(A + "/starts", ALICE)
    theirs = [kernel(B + "/starts-kernel", BOB), sparse(B + "/starts-disk", BOB)]
    mine = [kernel(d + "/kernel", ALICE), sparse(d + "/disk", ALICE)]
    links = []
    for one, other in zip(mine, theirs):
        os.symlink(one, one + "-one")
        os.symlink(other, one + "-other")
        links.append((one + "-one", one + "-other"))
    bad = {identity(p) for p in theirs}
    definition = tiny_definition(boot={"kernel": mine[0] + "-one"}, disks=[{"path": mine[1] + "-one", "readonly": True}])
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(vm_of(definition, owner=ALICE)) for _ in range(8)]
        outcomes, begin = [], time.monotonic()
        with as_alice(lambda: [exchange(*pair) for pair in links]):
            # On a busy host not all of them, but with --all
            while len(outcomes) < 1000 and ("VMUNIT_ALL" in os.environ or time.monotonic() < begin + 40) or len(set(outcomes)) < 2:
                outcomes += race(vms, bad)
        print(f"# {len(outcomes)} starts in {time.monotonic() - begin:.1f} s, {outcomes.count('started')} of them with what the owner may open")


def kill_all():
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


@test("an owner who kills all own processes, the opener's among them, harms nobody else", timeout=120)
def _():
    before = daemon_pid(), launcher_pid()
    with vm_of(tiny_definition(boot={"kernel": kernel(A + "/killed", ALICE)}), owner=ALICE) as vm, vm_of() as other:
        with as_alice(kill_all):
            for _ in range(10):
                start = vm.start_async()
                other.start()
                gather([start])
                assert start.error is None or start.error.short == "BackendFailed", start.error
                gather([vm.kill_async(), other.kill_async()])
        vm.start()
    assert (daemon_pid(), launcher_pid()) == before


# File systems that hang

@test("a file system that never answers: its owner's starts fail, at most four processes stay, others go on", timeout=200)
def _():
    others = kernel(TOP + "/for-all", 0, 0o644)
    mine = kernel(A + "/mine", ALICE)
    pids = daemon_pid(), launcher_pid()
    with HangingFuse(A + "/fuse", ALICE) as fuse, contextlib.ExitStack() as stack:
        many = [stack.enter_context(vm_of(tiny_definition(disks=[{"path": f"{fuse.path}/hang{n}a"}, {"path": f"{fuse.path}/hang{n}b"}]), owner=ALICE))
                for n in range(6)]
        good = stack.enter_context(vm_of(tiny_definition(boot={"kernel": mine}), owner=ALICE))
        starts = [vm.start_async() for vm in many]
        gather(starts, 60)
        for start in starts:
            assert start.error.short == "BackendFailed" and "no answer in time" in start.error.message, start.error
        assert any(f"{fuse.path}/hang" in start.error.message for start in starts)
        left = wait_for(lambda: len(rights_of(ALICE)) == 4 and rights_of(ALICE), 10, "what can't be killed", poll=0.05)
        assert ask_open(mine, ALICE) == (errno.EBUSY, None)
        refused(good, mine, "other files of the VM's owner are on a file system that does not answer", "no answer in time")
        for owner in (BOB, 0):
            with vm_of(tiny_definition(boot={"kernel": others}), owner=owner) as vm:
                vm.start()
                assert words(vm) == ("Running", "")
        for vm in many:
            with contextlib.suppress(BusError):
                vm.start()
            assert rights_of(ALICE) == left, "no more than four are ever left behind"
        assert (daemon_pid(), launcher_pid()) == pids
        fuse.end()
        wait_for(lambda: not rights_of(ALICE), 20, "the end of what was left behind", poll=0.02)
        good.start()
        assert words(good) == ("Running", "")


@test("a restart of the launcher, while processes of it can't be killed: others go on with the new one", timeout=120, sanitized=False)
def _():
    others = kernel(TOP + "/for-others", 0, 0o644)
    with HangingFuse(A + "/restart", ALICE) as fuse, vm_of(tiny_definition(disks=[{"path": fuse.path + "/hang"}]), owner=ALICE) as vm, \
            vm_of(tiny_definition(boot={"kernel": others}), owner=BOB) as other:
        refused(vm, fuse.path + "/hang", "no answer in time")
        before, begin = launcher_pid(), time.monotonic()
        systemctl("restart", "vmunit-launch.service")
        print(f"# restarted after {time.monotonic() - begin:.1f} s")
        assert launcher_pid() not in (0, before)
        other.start()
        assert words(other) == ("Running", "")
        fuse.end()
        wait_for(lambda: not rights_of(ALICE), 20, "the end of what was left behind", poll=0.02)


@test("a file system whose program is stopped: what waits for it is ended, and nothing stays", timeout=120)
def _():
    mine = kernel(A + "/mine-too", ALICE)
    with HangingFuse(A + "/stopped", ALICE) as fuse, vm_of(tiny_definition(disks=[{"path": fuse.path + "/good"}]), owner=ALICE) as vm, \
            vm_of(tiny_definition(boot={"kernel": mine}), owner=ALICE) as good:
        fuse.stop()
        refused(vm, fuse.path + "/good", "no answer in time")
        wait_for(lambda: not rights_of(ALICE), 20, "the end of who opened", poll=0.02)
        good.start()
        fuse.go_on()
        refused(vm, fuse.path + "/good", "FUSE")


@test("a FUSE of a user's is refused, for files and shares, for it could make the daemon wait; root's is not", timeout=60)
def _():
    with HangingFuse(A + "/users", ALICE, others=True) as fuse:
        for owner in (ALICE, BOB, 0):
            with vm_of(tiny_definition(disks=[{"path": fuse.path + "/good"}]), owner=owner) as vm:
                refused(vm, fuse.path + "/good", "FUSE")
        if SHARES:
            with vm_of(tiny_definition(filesystems=[{"tag": "s", "source": fuse.path}]), owner=ALICE) as vm:
                refused(vm, fuse.path, "FUSE")
    with HangingFuse(A + "/private", ALICE) as fuse, vm_of(tiny_definition(disks=[{"path": fuse.path + "/good"}]), owner=BOB) as vm:
        refused(vm, fuse.path + "/good", "Permission denied")
    if BACKEND != "qemu":                       # others can't be given what is there
        return
    with HangingFuse(TOP + "/roots", 0, others=True) as fuse, vm_of(tiny_definition(disks=[{"path": fuse.path + "/good", "readonly": True}]), owner=BOB) as vm:
        vm.start()
        assert any(p.startswith(fuse.path) for p in fds(vm.LeaderPID)), fds(vm.LeaderPID)
        vm.kill()


os.makedirs(TOP)
os.makedirs(DEVICES)
make_users()
manager.list()
systemctl("start", "vmunit-launch.service")
run()
