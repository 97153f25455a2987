#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=600 sanitized backends=qemu,cloud-hypervisor
"""Shared folders: a virtiofsd each, in a scope of its own, that is bound to its VM both ways. The tiny guest has no driver for them."""

import itertools
import os
import shutil
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *
from idmapped_fuse import hanging
from invariants import SLOTS, come_round_to, ids_of

ROOT = "/tmp/shares"                            # the box's root is an overlay, which knows no idmapped mounts
OWNER = 12345
ROOT_IDS, USER_IDS = 1000079360, range(1000013825, 1000079360)
VM_IDS = 1000013824
# For a minute of waiting
ONCE = {} if "VMUNIT_ALL" in os.environ else {"cloud-hypervisor": "it is the daemon's and the kernel's alone, and is shown with QEMU"}


def share_dir(name, owner=0, mode=0o755):
    path = f"{ROOT}/{name}"
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    return path


def shared(*names, **over):
    return tiny_definition(filesystems=[{"tag": name, "source": share_dir(name)} for name in names], **over)


def scope(vm, tag):
    return f"vmunit-{escape(vm.Name)}-fs-{escape(tag)}.scope"


def virtiofsds(vm, tag):
    """The program's first process, then its child."""
    return [pid for pid in sorted(unit_pids(scope(vm, tag))) if program_of(pid) == "virtiofsd"]


@contextlib.contextmanager
def expect_text(text):
    try:
        yield
    except BusError as error:
        assert text in error.message, error.message
        raise


def all_gone(vm, *tags):
    for unit in [scope(vm, tag) for tag in tags] + [vm.Unit, vm.Slice]:
        wait_unit_gone(unit)


def crashed(vm, tag):
    vm.wait_state("Error")
    assert words(vm) == ("Error", "virtiofsd-crashed"), words(vm)
    assert tag in vm.StateMessage, vm.StateMessage
    assert not vm.LeaderPID


def warm_up():
    """The daemon's first restart opens what it keeps for all that follow."""
    vm = manager.create("warm", tiny_definition(restart={"policy": "always"}), start=True)
    os.kill(vm.LeaderPID, signal.SIGKILL)
    vm.wait_state("Error")
    vm.wait_state("Running")
    vm.remove(force=True)
    vm.wait_gone()


@test("two shares: a scope each, beside the VMM's in the VM's slice, gone with the VM")
def _():
    with vm_of(shared("one", "two.2"), name="a-b") as vm:
        vm.start()
        assert words(vm) == ("Running", "")
        vm.wait_log(b"TINY-UP")
        for tag in ("one", "two.2"):
            unit = scope(vm, tag)
            assert unit_property(unit, "Slice") == vm.Slice
            assert vm.Unit in unit_property(unit, "Before").replace(r"\\", "\\"), unit_property(unit, "Before")
            assert unit_property(unit, "Description") == f"Share {tag} of virtual machine a-b"
            assert virtiofsds(vm, tag), unit_pids(unit)
        vm.stop()
        assert words(vm) == ("Stopped", "stopped")
        all_gone(vm, "one", "two.2")
        vm.start()
        vm.kill()
        all_gone(vm, "one", "two.2")


@test("a virtiofsd of root's is no root: ids of its own, no right on the host, no network, no more than its share")
def _():
    with vm_of(shared("one")) as vm:
        vm.start()
        for pid in virtiofsds(vm, "one"):
            assert status(pid, "Uid") == [str(ROOT_IDS)] * 4 and status(pid, "Gid") == [str(ROOT_IDS)] * 4
            assert status(pid, "Groups") == [] and status(pid, "NoNewPrivs") == ["1"] and status(pid, "Seccomp") == ["2"]
            for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/1/ns/{kind}"), kind
        assert not any(int(status(pid, "CapEff")[0], 16) & ~0x880000db for pid in virtiofsds(vm, "one")), "what its program needs"
        helper = next(pid for pid in unit_pids(scope(vm, "one")) if program_of(pid) == "vmunit-exec")
        for pid in (helper, *virtiofsds(vm, "one")):    # what counts on the host; those in its namespace are another matter
            for key in ("CapInh", "CapAmb") + (("CapEff", "CapPrm") if pid == helper else ()):
                assert int(status(pid, key)[0], 16) == 0, (program_of(pid), key, status(pid, key))
            assert status(pid, "NoNewPrivs") == ["1"]
        with open(f"/proc/{virtiofsds(vm, 'one')[0]}/uid_map", encoding="utf-8") as f:
            assert "0" not in [line.split()[1] for line in f], "root of the host is nobody there"


def shown(vm, tag):
    """The directory that a virtiofsd has opened: its root, or /share before it is"""
    for pid in virtiofsds(vm, tag):
        for path in (f"/proc/{pid}/root", f"/proc/{pid}/root/share"):
            with contextlib.suppress(OSError):
                yield os.stat(path).st_dev, os.stat(path).st_ino


@test("a link to a directory is followed once, at the start", timeout=60)
def _():
    a, b, link = share_dir("link-a"), share_dir("link-b"), f"{ROOT}/link"
    identity = lambda path: (os.stat(path).st_dev, os.stat(path).st_ino)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink("link-a", link)
    with vm_of(tiny_definition(filesystems=[{"tag": "one", "source": link}])) as vm:
        vm.start()
        assert identity(a) in shown(vm, "one")
        os.unlink(link)
        os.symlink("link-b", link)
        vm.pause()
        vm.resume()
        vm.reset()
        wait_for(lambda: identity(a) in shown(vm, "one") or identity(b) in shown(vm, "one"), poll=0.05)
        if BACKEND == "qemu":                   # another one has a fresh virtiofsd by now, and its directory is opened with that
            assert identity(a) in shown(vm, "one")
        vm.kill()
        vm.start()
        assert identity(b) in shown(vm, "one") and identity(a) not in shown(vm, "one")
        vm.kill()
        os.unlink(link)
        os.symlink("link", link)
        with expect_error("BackendFailed", text="filesystems[0] (one)"):
            vm.start()


@test("what lies where a share's socket is to be does not keep it from its VM, and stays another's")
def _():
    with vm_of(shared("one", "two")) as vm, socket.socket(socket.AF_UNIX) as other:
        where = f"/run/vmunit/vms/{vm.Id}/fs-two"
        os.makedirs(where, mode=0o700)
        other.bind(where + "/socket")
        other.listen()
        vm.start()
        assert words(vm) == ("Running", "") and virtiofsds(vm, "two")
        other.setblocking(False)
        try:
            other.accept()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("it was connected to another's socket")
    with vm_of(shared("one", "two")) as vm:
        where = f"/run/vmunit/vms/{vm.Id}/fs-two"
        os.makedirs(where, mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "busy", where], check=True)
        try:
            with expect_error("BackendFailed", text="busy"):
                vm.start()
            assert words(vm) == ("Stopped", "start-failed") and not usage_of(vm)
        finally:
            subprocess.run(["umount", where], check=True)
        vm.start()


@test("systemctl stop of a share's scope while no daemon is there: the VM is no more when there is one again", timeout=120, sanitized=False)
def _():
    with vm_of(shared("one", "two", stopTimeout="1s")) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        unit = scope(vm, "two")
        stop_daemon()
        systemctl("stop", "--no-block", unit)
        systemctl("start", "vmunitd.service")   # systemd has it wait for the stop, which ends by its time-out
        vm.wait_state("Stopped", "Error", timeout=60)
        assert words(vm) in (("Stopped", "stopped"), ("Error", "virtiofsd-crashed")), words(vm)
        all_gone(vm, "one", "two")


@test("the memory of the guest is shared exactly if there are shares", not_on={"cloud-hypervisor": "its configuration can't be seen from outside"})
def _():
    for definition, want in ((shared("one"), True), (tiny_definition(), False)):
        with vm_of(definition) as vm:
            vm.start()
            with open(f"/proc/{vm.LeaderPID}/cmdline", encoding="utf-8") as f:
                assert ("memory-backend-memfd" in f.read()) == want


@test("a virtiofsd that dies takes the VM along, and the restart policy follows")
def _():
    with vm_of(shared("one", "two")) as vm:
        vm.start()
        os.kill(virtiofsds(vm, "two")[0], signal.SIGKILL)
        crashed(vm, "two")
        all_gone(vm, "one", "two")
        vm.start()
        assert words(vm) == ("Running", "")
        vm.update({"restart": {"policy": "on-failure"}})
        os.kill(sorted(unit_pids(scope(vm, "one")))[0], signal.SIGKILL)     # its parent
        vm.wait_state("Error")
        vm.wait_state("Running")
        assert virtiofsds(vm, "one") and virtiofsds(vm, "two")


@test("a VMM that dies takes its virtiofsds along")
def _():
    with vm_of(shared("one", "two")) as vm:
        vm.start()
        os.kill(vm.LeaderPID, signal.SIGKILL)
        vm.wait_state("Error")
        assert words(vm) == ("Error", "vmm-crashed"), words(vm)
        all_gone(vm, "one", "two")


@test("systemctl stop of a share's scope, of the VMM's and of the slice is a Stop", timeout=60)
def _():
    with vm_of(shared("one", "two")) as vm:
        for unit in (scope(vm, "two"), vm.Unit, vm.Slice):
            vm.start()
            vm.wait_log(b"TINY-UP")
            systemctl("stop", unit)
            vm.wait_state("Stopped")
            assert words(vm) == ("Stopped", "stopped"), (unit, words(vm))
            assert times_on(vm, b"POWERBTN") == 1, unit
            all_gone(vm, "one", "two")


@test("a reboot and a reset keep the shares, of a VMM that connects anew with a fresh virtiofsd", timeout=60)
def _():
    with vm_of(shared("one", "two")) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        before = {tag: virtiofsds(vm, tag) for tag in ("one", "two")}
        vm.reboot()
        up = 2 if IN_PLACE else 1               # else another VMM, with another log
        wait_for(lambda: times_on(vm, b"TINY-UP") == up, poll=0.02)
        assert words(vm) == ("Running", "")
        if not IN_PLACE:
            before = {tag: virtiofsds(vm, tag) for tag in ("one", "two")}
        for n in range(1, 4):
            if n == 2:
                kill_daemon()
            vm.reset()
            wait_for(lambda: times_on(vm, b"TINY-UP") == up + n, poll=0.02)
            assert words(vm) == ("Running", "")
            wait_for(lambda: all(virtiofsds(vm, tag) for tag in before), poll=0.02)
            now = {tag: virtiofsds(vm, tag) for tag in before}
            assert (now == before) == (BACKEND == "qemu"), (before, now)
            before = now
        os.kill(before["two"][0], signal.SIGKILL)
        crashed(vm, "two")


@test("a virtiofsd that its VMM has left, and whose parent is late to say so, has not crashed", timeout=60,
      not_on={"qemu": "it keeps its virtiofsds"})
def _():
    with vm_of(shared("one")) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        (before,) = virtiofsds(vm, "one")
        parent = next(pid for pid in unit_pids(scope(vm, "one")) if program_of(pid) == "vmunit-exec")
        with never_its_turn(scope(vm, "one"), parent):
            reset = vm.reset_async()
            wait_for(lambda: not alive(before), what="the end of its virtiofsd", poll=0.01)
            late = time.monotonic() + 0.6           # longer than the daemon waits for the end of a VMM
            wait_for(lambda: time.monotonic() > late, poll=0.05)
        assert gather([reset]) == [None], reset.error
        wait_for(lambda: times_on(vm, b"TINY-UP") == 2, 20, poll=0.02)
        assert words(vm) == ("Running", "") and virtiofsds(vm, "one") != [before]


@test("a guest's own reset keeps the shares, also while no daemon is there")
def _():
    with vm_of(shared("one")) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        type_in(vm, b"r")
        wait_for(lambda: times_on(vm, b"TINY-UP") == 2, poll=0.02)
        wait_for(lambda: virtiofsds(vm, "one"), poll=0.02)
        console, before = vm.open_console(), virtiofsds(vm, "one")[0]
        stop_daemon()
        console.sendall(b"r")
        if BACKEND == "qemu":
            read_until(console.fileno(), b"TINY-UP")
        else:                                   # it waits for a virtiofsd, and the next daemon brings that
            wait_exit(before)
        start_daemon()
        console.close()
        wait_for(lambda: times_on(vm, b"TINY-UP") == 3, 20, poll=0.02)
        assert words(vm) == ("Running", "") and virtiofsds(vm, "one")


@test("a daemon that comes back finds its virtiofsds, and the bond holds", timeout=60)
def _():
    with vm_of(shared("one", "two")) as vm:
        vm.start()
        before = {tag: virtiofsds(vm, tag) for tag in ("one", "two")}
        kill_daemon()
        assert words(vm) == ("Running", "")
        assert {tag: virtiofsds(vm, tag) for tag in ("one", "two")} == before
        os.kill(before["one"][0], signal.SIGKILL)
        crashed(vm, "one")
        all_gone(vm, "one", "two")

        vm.start()
        stop_daemon()
        os.kill(virtiofsds(vm, "two")[0], signal.SIGKILL)   # while none looks
        start_daemon()
        crashed(vm, "two")
        all_gone(vm, "one", "two")

        vm.start()
        stop_daemon()
        os.kill(vm_pid(vm), signal.SIGKILL)
        start_daemon()
        vm.wait_state("Error")
        assert words(vm) == ("Error", "vmm-crashed"), words(vm)
        all_gone(vm, "one", "two")


def vm_pid(vm):
    return next(pid for pid in unit_pids("vmunit-%s.scope" % escape(vm.path.rsplit("/", 1)[1])) if program_of(pid).startswith(COMM))


@test("a share that can't be: the start is undone, no VMM was there, and the error names it", timeout=60)
def _():
    file, missing = f"{ROOT}/file", f"{ROOT}/missing"
    os.makedirs(ROOT, exist_ok=True)
    with open(file, "w", encoding="utf-8"):
        pass
    good = share_dir("good")
    for source, text in ((missing, "No such file"), (file, "Not a directory"), ("/etc", "idmapped")):
        definition = tiny_definition(filesystems=[{"tag": "a", "source": good}, {"tag": "b", "source": source},
                                                  {"tag": "c", "source": good}])
        with vm_of(definition) as vm:
            with expect_error("BackendFailed", text=text), expect_text("filesystems[1] (b)"):
                vm.start()
            assert words(vm) == ("Stopped", "start-failed"), words(vm)
            assert not usage_of(vm), "no VMM was there"
            assert not os.path.exists(f"/run/vmunit/vms/{vm.Id}")


FAKE = "/opt/vmunit-test/virtiofsd"             # a program that is not in /usr; Python is
_FAKE = """#!/usr/bin/python3 -I
import os, signal, socket, sys, time
if "--version" in sys.argv:
    print("virtiofsd version %(version)s")
    sys.exit()
def real():
    os.execv("/usr/lib/qemu/virtiofsd", ["virtiofsd"] + sys.argv[1:])
def accept():
    return socket.socket(fileno=os.dup(3)).accept()[0]
%(code)s
while True:
    signal.pause()
"""
_MODES = """
mode = open("/share/mode").read() if os.path.exists("/share/mode") else "real"
if mode == "real":
    real()
elif mode == "dies":
    sys.exit("the last words")
elif mode == "garbage":
    accept().sendall(b"x" * 4096)
elif mode == "mute":
    peer = accept()
    open("/share/accepted", "w").close()
elif mode == "leaves":
    with open("/share/times", "a") as f:
        f.write("x")
    sys.exit()
"""
# The first process is the real one, whose child waits for a file that never comes: it does not end before that does.
_LOOKS = """
if not os.fork():
    while not os.path.exists("/share/file"):
        time.sleep(0.02)
real()
"""


@contextlib.contextmanager
def fake_virtiofsd(version="7.2.22", code=_MODES, **settings):
    os.makedirs(os.path.dirname(FAKE), exist_ok=True)
    with open(FAKE, "w", encoding="utf-8") as f:
        f.write(_FAKE % {"version": version, "code": code})
    os.chmod(FAKE, 0o755)
    with configured(VirtioFSD=FAKE, **settings):
        yield


@test("a virtiofsd that dies, hangs or talks nonsense: the start is undone, starts no VMM, and names the share", timeout=90)
def _():
    ready = BACKEND == "qemu"                   # another one connects by itself, so there is none to ask before it does
    with fake_virtiofsd(StartTimeoutSec="4s"):
        for mode, error, text in (("dies", "BackendFailed", "the last words"), ("garbage", "BackendFailed", "vhost-user"),
                                  ("hangs", "Timeout", "no answer from the virtiofsd of b")):
            if mode != "dies" and not ready:
                continue
            with vm_of(shared("a", "b", "c")) as vm:
                with open(f"{ROOT}/b/mode", "w", encoding="utf-8") as f:
                    f.write(mode)
                with expect_error(error, text=text), expect_text("b"):
                    vm.start()
                assert words(vm) == ("Stopped", "start-failed"), (mode, words(vm))
                assert not usage_of(vm) or not ready, "no VMM was there"
                os.unlink(f"{ROOT}/b/mode")
                vm.start()
                assert words(vm) == ("Running", "")


@contextlib.contextmanager
def hung_share(name):
    with hanging(share_dir(name)) as server:
        yield server


def no_idmap(error):
    return error and "idmapped" in error.message


def start_hung(vm):
    try:
        vm.start()
    except BusError as error:
        if no_idmap(error):
            raise Skip("this kernel knows no idmapped mounts of FUSE") from None
        raise


@test("a virtiofsd that hangs in the kernel: Stop and Kill end with an error that names its scope, a removal says so", timeout=240, sanitized=False,
      not_on=ONCE)
def _():
    with fake_virtiofsd(code=_LOOKS), hung_share("hung") as server, vm_of(shared("one")) as vm:
        vm.update({"filesystems": [{"tag": "hung-2", "source": server.path}]})
        start_hung(vm)
        slice_name = vm.Slice
        server.hang()
        vm.wait_log(b"TINY-UP")
        for call in (vm.stop, vm.kill):
            with expect_error("Timeout", text=scope(vm, "hung-2")):
                call()
            assert words(vm) == ("Error", "stop-failed") and scope(vm, "hung-2") in vm.StateMessage, vm.StateMessage
            assert not vm.LeaderPID and unit_pids(scope(vm, "hung-2"))
        kill_daemon()
        assert words(vm) == ("Error", "stop-failed"), words(vm)
        call = vm.kill_async()
        wait_for(lambda: vm.State == "Stopping")
        kill_daemon()
        wait_for(lambda: words(vm) == ("Error", "stop-failed"), 40)
        assert call.error
        vm.remove_async()
        wait_for(lambda: scope(vm, "hung-2") in vm.StateMessage, 40)
        assert words(vm) == ("Removing", "blocked"), words(vm)
        server.close()
        vm.wait_gone(90)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{SLICE_CGROUP}/{slice_name}")  # PID 1 has given it up, too


def cid_of(vm):
    """Also where its VMM can have none; else it is what is told."""
    cid = 0xffff + ids_of(vm.Id)[1]
    assert vm.VSockCID in (cid, 0), (cid, vm.VSockCID)
    return cid


@test("a VM whose removal waits for a process keeps its ids and CID, whatever dies meanwhile; then they are free, the CID for good", timeout=240,
      sanitized=False)
def _():
    vsock = {"vsock": True} if BACKEND != "qemu" or os.path.exists("/dev/vhost-vsock") else {}
    with fake_virtiofsd(code=_LOOKS), hung_share("hung") as server, vm_of(shared("one")) as vm:
        vm.update({"filesystems": [{"tag": "hung-2", "source": server.path}]})
        start_hung(vm)
        identity, name, uid = vm.Id, vm.Slice, int(status(vm.LeaderPID, "Uid")[0])
        slot, seq = ids_of(identity)
        assert uid == VM_IDS + 2 * slot
        server.hang()
        vm.wait_log(b"TINY-UP")
        hung = unit_pids(scope(vm, "hung-2"))
        vm.remove_async(force=True)
        for _ in range(2):
            wait_for(lambda: scope(vm, "hung-2") in vm.StateMessage, 60)
            come_round_to(slot)
            with vm_of() as other, vm_of(tiny_definition(**vsock)) as third:
                other.start()
                assert ids_of(other.Id)[0] == slot % SLOTS + 1 and int(status(other.LeaderPID, "Uid")[0]) != uid
                assert ids_of(third.Id)[0] == slot % SLOTS + 2 and cid_of(third) != 0xffff + seq
            assert ids_of(identity) == (slot, seq) and any(alive(pid) for pid in hung)
            kill_daemon()
        server.close()
        vm.wait_gone(90)
        assert ids_of(identity) is None and not any(alive(pid) for pid in hung)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{SLICE_CGROUP}/{name}")
        come_round_to(slot)
        with vm_of(tiny_definition(**vsock)) as third:
            assert ids_of(third.Id)[0] == slot and cid_of(third) != 0xffff + seq


@test("a start whose virtiofsd hangs in the kernel is rolled back as far as can be, and says what is left", timeout=150)
def _():
    with fake_virtiofsd(StartTimeoutSec="4s"), hung_share("hung") as server, vm_of(shared("one")) as vm:
        vm.update({"filesystems": [{"tag": "one", "source": server.path}]})
        server.hangs = True
        call = vm.start_async()
        wait_for(lambda: call.done or server.event.is_set(), poll=0.05)
        if call.done and no_idmap(call.error):
            raise Skip("this kernel knows no idmapped mounts of FUSE")
        with expect_error("Timeout", text="virtiofsd of one"):
            call.result()
        assert words(vm) == ("Error", "stop-failed") and scope(vm, "one") in vm.StateMessage, (words(vm), vm.StateMessage)
        with expect_error("Timeout", text=scope(vm, "one")):
            vm.start()                          # what is left of the last run is in its way
        assert words(vm) == ("Error", "stop-failed"), words(vm)
        server.close()
        wait_unit_gone(scope(vm, "one"), 30)
        vm.update({"filesystems": [{"tag": "one", "source": share_dir("sound")}]})
        vm.start()
        assert words(vm) == ("Running", "")


@test("limits of the VM hold whichever scope PID 1 refuses", timeout=60)
def _():
    for tag in (None, "one", "two", "three"):
        with vm_of(shared("one", "two", "three", resources={"TasksMax": 321})) as vm:
            unit = scope(vm, tag) if tag else vm.Unit
            subprocess.run(["systemd-run", "--quiet", "--scope", f"--unit={unit}", "sh", "-c", "sleep infinity >/dev/null 2>&1 & true"], check=True,
                           capture_output=True)
            vm.start()
            assert words(vm) == ("Running", "")
            assert (unit_property(vm.Slice, "TasksMax"), unit_property(vm.Slice, "StopWhenUnneeded")) == ("321", "yes")


@test("a virtiofsd that leaves again and again without a reset of the guest has crashed", timeout=60,
      not_on={"qemu": "its virtiofsds are not replaced"})
def _():
    with fake_virtiofsd(), vm_of(shared("one", "two")) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        for _ in range(5):                      # as long as there are resets
            vm.reset()
        assert words(vm) == ("Running", "")
        wait_for(lambda: virtiofsds(vm, "two"), poll=0.02)
        with open(f"{ROOT}/two/mode", "w", encoding="utf-8") as f:
            f.write("leaves")
        os.kill(virtiofsds(vm, "two")[-1], signal.SIGTERM)  # the one that works; it ends in good order
        crashed(vm, "two")
        with open(f"{ROOT}/two/times", encoding="utf-8") as f:
            assert f.read() == "xxx", "others have taken its place"
        all_gone(vm, "one", "two")


def helpers_of(launcher):
    with open(f"/proc/{launcher}/task/{launcher}/children", encoding="ascii") as f:
        return {int(pid) for pid in f.read().split() if program_of(int(pid)) == "vmunit-exec"}


@test("one that is to take a virtiofsd's place, and dies while systemd makes its scope, has crashed", timeout=60, sanitized=False,
      not_on={"qemu": "its virtiofsds are not replaced"})
def _():
    with vm_of(shared("one")) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        where, leader = f"/run/vmunit/vms/{vm.Id}/fs-one", vm.LeaderPID
        systemctl("start", "vmunit-launch.service")
        launcher = launcher_pid()
        before = helpers_of(launcher)
        with contextlib.ExitStack() as systemd:
            with stopped_process(launcher):
                reset = vm.reset_async()
                wait_for(lambda: os.path.exists(where + "/exec") and not os.path.exists(where + "/run"), what="the next one's files", poll=0.01)
                systemd.enter_context(frozen(unit_cgroup("init.scope")))
            parent = wait_for(lambda: next(iter(helpers_of(launcher) - before), None), what="its parent", poll=0.01)
            os.kill(parent, signal.SIGKILL)
            wait_for(lambda: not alive(parent), poll=0.01)
        crashed(vm, "one")
        assert not alive(leader)
        gather([reset])


def reset_by(vm, whom):
    """Begins a reset of the guest: by a call, which ends with the VMM, or by itself."""
    if whom == "itself":
        type_in(vm, b"r")
        return None
    return vm.reset_async()


@test("a virtiofsd that dies in the middle of a reset, for which its VMM gives up: it is told of the first cause", timeout=120,
      not_on={"qemu": "its virtiofsds are not replaced"})
def _():
    for whom, silent in (("caller", False), ("itself", False), ("caller", True), ("itself", True)):
        with fake_virtiofsd(), vm_of(shared("one", "two")) as vm:
            vm.start()
            vm.wait_log(b"TINY-UP")
            with open(f"{ROOT}/two/mode", "w", encoding="utf-8") as f:
                f.write("mute")
            call = reset_by(vm, whom)
            wait_for(lambda: os.path.exists(f"{ROOT}/two/accepted"), poll=0.02)
            victims, leader = unit_pids(scope(vm, "two")), vm.LeaderPID
            helper = next(pid for pid in victims if program_of(pid) == "vmunit-exec")
            with stopped_process(helper) if silent else contextlib.nullcontext():   # then nobody tells how it has ended
                os.kill(max(victims), signal.SIGKILL)
                crashed(vm, "two")
            assert not call or call.error, "the reset was not done"
            wait_exit(leader)
            all_gone(vm, "one", "two")


@test("a VMM that gives up in the middle of a reset for another reason is not its virtiofsds' fault", timeout=60,
      not_on={"qemu": "its virtiofsds are not replaced"})
def _():
    disk = f"{ROOT}/reset.raw"
    for whom, reason in (("caller", "vmm-failed"), ("itself", "vmm-crashed")):
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        with vm_of(shared("one", "two", disks=[{"name": "data0", "path": disk}])) as vm:
            vm.start()
            vm.wait_log(b"TINY-UP")
            os.truncate(disk, 0)                # it is opened anew
            reset_by(vm, whom)
            vm.wait_state("Error")
            assert words(vm) == ("Error", reason), (words(vm), vm.last_output())
            all_gone(vm, "one", "two")


@test("a start that hangs for a virtiofsd to which its VMM connects names the share", timeout=60, not_on={"qemu": "it is given the connection"})
def _():
    with fake_virtiofsd(StartTimeoutSec="4s"):
        for mode in ("hangs", "mute"):
            with vm_of(shared("a", "b", "c")) as vm:
                with open(f"{ROOT}/b/mode", "w", encoding="utf-8") as f:
                    f.write(mode)
                with expect_error("Timeout", text="no answer from the virtiofsd of b"):
                    vm.start()
                assert words(vm) == ("Stopped", "start-failed"), (mode, words(vm))


@test("what can't be is refused at create: a tag that makes too long a name for a unit, what the program can't do", timeout=60)
def _():
    name, tag = "a-" * 31 + "a", "-" * 36
    with expect_error("InvalidDefinition", begins="filesystems[0].tag: "):
        manager.create(name, tiny_definition(filesystems=[{"tag": tag, "source": ROOT}]))
    with fake_virtiofsd("5.2.0"), vm_of(tiny_definition()) as vm:
        old = {"filesystems": [{"tag": "a", "source": ROOT, "xattr": True, "posixAcl": True}]}
        wait_for(lambda: refused(lambda: vm.update(old)), 10, "the version to be known", poll=0.05)
        with expect_error("NotSupported", begins="filesystems[0].posixAcl: "):
            manager.create("old", tiny_definition(**old))


def refused(call):
    try:
        call()
    except BusError as error:
        assert error.short == "NotSupported", error
        return True
    return False


@test("without a virtiofsd a VM with shares is refused, until there is one", timeout=60)
def _():
    program = os.path.dirname(FAKE) + "/virtiofsd-later"
    os.makedirs(os.path.dirname(FAKE), exist_ok=True)
    with configured(VirtioFSD=program):
        with vm_of(tiny_definition()) as vm:
            shares = {"filesystems": [{"tag": "one", "source": share_dir("one")}]}
            wait_for(lambda: refused(lambda: vm.update(shares)), 10, "the daemon to have looked", poll=0.05)
            with expect_error("NotSupported", begins="filesystems[0]: ", text="install the package virtiofsd"):
                manager.create("none", tiny_definition(**shares))
            assert [name for name, _, _, _ in manager.list()] == [vm.Name]
        with open(program, "w", encoding="utf-8") as f:
            f.write(_FAKE % {"version": "7.2.22", "code": "real()"})
        os.chmod(program, 0o755)
        wait_for(lambda: not refused(lambda: manager.create("later", tiny_definition(**shares))), 10, "the program to be seen", poll=0.05)
        vm = manager.vm("later")
        vm.start()
        os.unlink(program)
        names = (f"more{n}" for n in itertools.count())
        wait_for(lambda: refused(lambda: manager.create(next(names), tiny_definition(**shares))), 10, "the program to be missed", poll=0.05)
        vm.update({"labels": {"still": "there"}})
        manager.remove_all()


@test("a Stop without a limit ends for a guest that loses its share meanwhile", timeout=60)
def _():
    with vm_of(shared("one")) as vm:
        vm.start()
        deaf(vm)
        stop = vm.stop_async(timeout_usec=FOR_EVER)
        wait_for(lambda: vm.State == "Stopping")
        os.kill(virtiofsds(vm, "one")[0], signal.SIGKILL)
        wait_for(lambda: stop.done, 40)
        assert not stop.error and words(vm) == ("Stopped", "stop-forced"), (stop.error, words(vm))


@test("the ids of VMs, shares and networks are claimed by users that nobody is")
def _():
    subprocess.run(["systemd-sysusers"], check=True, capture_output=True)
    for name, first in (("vmunit-vm", USER_IDS[0] - 1), ("vmunit-share", ROOT_IDS), ("vmunit-net", ROOT_IDS + 65536)):
        entry = subprocess.run(["getent", "passwd", name], check=True, capture_output=True, text=True).stdout
        assert entry.split(":")[2:4] == [str(first)] * 2, entry


@test("a user's share: its owner is root to virtiofsd, whose ids are the VM's alone")
def _():
    path = share_dir("user", owner=OWNER, mode=0o700)
    subprocess.run(["useradd", "-u", str(OWNER), "-M", "vmunit-owner"], check=True, capture_output=True)
    with vm_of(tiny_definition(filesystems=[{"tag": "one", "source": path}]), owner=OWNER) as vm:
        assert vm.OwnerUID == OWNER
        vm.start()
        ids = {int(status(pid, "Uid")[0]) for pid in virtiofsds(vm, "one")}
        assert len(ids) == 1 and ids.pop() in USER_IDS
        os.chown(path, 0, 0)
        vm.stop()
        with expect_error("BackendFailed", text="Permission denied"):
            vm.start()


warm_up()
run()
