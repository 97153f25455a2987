#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=900
"""What tests know of leftovers: each kind is planted, is told, and is gone when it is; and a run of a VM with all that it can have leaves none."""

import ctypes
import errno
import fcntl
import os
import sqlite3
import stat
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from invariants import DATABASE, Known, check_fresh
from leftovers import FIRST_ID, IDS, files_of_ids, namespaces_held
from vmunit_test import *

STRAY = FIRST_ID + 2 * 30000                    # of no VM that there is
manager = Manager()
known = Known()


def told(known_, before, *words):
    """What a plant is told by: by one way with the invariants, by the other with a comparison."""
    problems = known_.problems()
    assert any(all(w in p for w in words) for p in problems), (words, problems)
    with_words = [(kind, what) for kind, now in snapshot_leftovers().items() for what in now - before[kind]
                  if all(w in f"{kind}: {what}" for w in words)]
    assert with_words, words
    try:
        assert_no_leftovers(before, 0)
    except AssertionError as error:
        assert all(w in str(error) for w in words), error
    else:
        raise AssertionError(f"{words} is not told of")


@contextlib.contextmanager
def planted(*words):
    """The block plants by what it is given, which runs when the block is over."""
    known.check()
    before = snapshot_leftovers()
    with contextlib.ExitStack() as stack:
        yield stack
        told(known, before, *words)
    known.check()
    assert_no_leftovers(before, 10)


def sleeper(**how):
    return subprocess.Popen(["/usr/bin/sleep", "infinity"], **how)


def process(stack, **how):
    child = stack.enter_context(sleeper(**how))
    stack.callback(child.kill)
    return child.pid


@test("at first all is well")
def _():
    check_fresh()
    known.base()
    known.check()
    assert_no_leftovers(snapshot_leftovers())


@test("a mount on the host is told of")
def _():
    os.makedirs("/run/test-leftovers", exist_ok=True)
    with planted("mounts: ", "/run/test-leftovers") as stack:
        subprocess.run(["mount", "--bind", "/tmp", "/run/test-leftovers"], check=True)
        stack.callback(subprocess.run, ["umount", "/run/test-leftovers"], check=True)


@test("a mount that only the daemon sees, too")
def _():
    enter = ["nsenter", "--mount", "--target", str(daemon_pid())]
    with planted("daemon's mounts: ", "/mnt") as stack:
        subprocess.run([*enter, "mount", "-t", "tmpfs", "planted", "/mnt"], check=True)
        stack.callback(subprocess.run, [*enter, "umount", "/mnt"], check=True)


@test("a launcher with a mount namespace of its own")
def _():
    dropin = "/run/systemd/system/vmunit-launch.service.d/own.conf"
    with planted("launcher's mounts: ") as stack:
        def restart():
            systemctl("daemon-reload")
            systemctl("restart", "vmunit-launch.service")
        os.makedirs(os.path.dirname(dropin), exist_ok=True)
        with open(dropin, "w", encoding="ascii") as f:
            f.write("[Service]\nPrivateTmp=yes\n")
        stack.callback(restart)
        stack.callback(os.unlink, dropin)
        restart()


@test("a process with an id of a VM's, whatever it is called and wherever it is; one that only has it as a group")
def _():
    for how in ({"user": STRAY}, {"group": STRAY + 1}, {"extra_groups": [FIRST_ID + 65536 + 7]}):
        with planted("processes of VMs' ids: ", "sleep") as stack:
            process(stack, **how)


@test("a process that the launcher or the daemon has left in its cgroup")
def _():
    for unit in ("vmunitd.service", "vmunit-launch.service"):
        with planted("processes of the services: ", "sleep") as stack:
            pid = process(stack)
            with open(unit_cgroup(unit) + "/cgroup.procs", "w", encoding="ascii") as f:
                f.write(str(pid))


@test("a file of such an id, a queue, a segment")
def _():
    for path, make in (("/tmp/left", "file"), ("/dev/shm/left", "file"), ("/var/lib/vmunit/left", "file"), ("/run/left", "directory")):
        with planted("files of VMs' ids: ", path) as stack:
            if make == "directory":
                os.mkdir(path)
                stack.callback(os.rmdir, path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
                stack.callback(os.unlink, path)
            os.chown(path, STRAY, 0)


@test("objects of System V's and of POSIX' of such an id")
def _():
    def child(code):
        subprocess.run(["/usr/bin/python3", "-c", code], user=STRAY, group=STRAY, extra_groups=[], check=True)
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, make, end in (("shm", "shmget(0x766d, 4096, 0o1600)", lambda: libc.shmctl(libc.shmget(0x766d, 0, 0), 0, None)),
                            ("sem", "semget(0x766d, 1, 0o1600)", lambda: libc.semctl(libc.semget(0x766d, 0, 0), 0, 0)),
                            ("msg", "msgget(0x766d, 0o1600)", lambda: libc.msgctl(libc.msgget(0x766d, 0), 0, None))):
        with planted("IPC objects: ", kind) as stack:
            child(f"import ctypes; assert ctypes.CDLL(None).{make} >= 0")
            stack.callback(end)
    with planted("files of VMs' ids: ", "/dev/mqueue/left") as stack:
        child("import ctypes, os; assert ctypes.CDLL(None).mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o600, None) >= 0")
        stack.callback(os.unlink, "/dev/mqueue/left")


def loop_device(stack, path):
    """Attaches one, which goes with its descriptor, whatever becomes of this test. Others on this kernel do the same at any time."""
    control = stack.enter_context(device(stack, "/dev/test-leftovers-control", stat.S_IFCHR, (10, 237)))
    backing = stack.enter_context(open(path, "r+b"))
    autoclear = struct.pack("=II52xI", backing.fileno(), 0, 4).ljust(304, b"\0")
    while True:
        number = fcntl.ioctl(control, 0x4C82)               # LOOP_CTL_GET_FREE
        opened = device(stack, f"/dev/test-leftovers-{number}", stat.S_IFBLK, (7, number))
        try:
            fcntl.ioctl(opened, 0x4C0A, autoclear)          # LOOP_CONFIGURE
        except OSError as error:
            opened.close()
            if error.errno != errno.EBUSY:
                raise
            continue
        stack.enter_context(opened)
        return number


def device(stack, path, kind, number):
    if not os.path.exists(path):
        os.mknod(path, 0o600 | kind, os.makedev(*number))
        stack.callback(os.unlink, path)
    try:
        return open(path, "r+b", buffering=0)
    except OSError as error:
        raise Skip(f"no loop devices here: {error}") from None


@test("a loop device on a file of this host's; those of other boxes on this kernel are none of ours")
def _():
    path = "/tmp/left-loop"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    with contextlib.ExitStack() as devices:
        known.check()
        before = snapshot_leftovers()
        number = loop_device(devices, path)
        told(known, before, "loop devices: ", f"loop{number}", path)
    known.check()
    assert_no_leftovers(before, 10)


@test("a descriptor that keeps a namespace")
def _():
    with open("/proc/self/ns/net", "rb") as f:
        child = sleeper(pass_fds=[f.fileno()])
        try:
            assert namespaces_held(child.pid) == {os.readlink("/proc/self/ns/net")}
        finally:
            child.kill()
            child.wait()
    assert not namespaces_held(daemon_pid()) and not namespaces_held(launcher_pid())


@test("a VM that runs with another id than its own")
def _():
    vm = manager.create("other", tiny_definition(), start=True)
    known.check()

    def change(by):
        with contextlib.closing(sqlite3.connect(DATABASE, timeout=5)) as db:
            db.execute("UPDATE vm SET slot = slot + ? WHERE name = 'other'", (by,))
            db.commit()
    change(5)
    assert any("runs with the id" in p for p in known.problems()), known.problems()
    change(-5)
    known.check()
    vm.remove(force=True)
    vm.wait_gone()


@test("VMs with shares, networks and disks, of root's and of a user's, leave nothing: not one file of such an id on the whole host", timeout=400)
def _():
    owner, top = 65534, "/tmp/left-shared"
    os.makedirs(top)
    os.chown(top, owner, owner)
    with open(top + "/disk", "wb") as f:
        f.truncate(1 << 20)
    os.chown(top + "/disk", owner, owner)
    known.check()
    before = snapshot_leftovers()
    for uid in (0, owner):
        vm = manager.create(f"full-{uid}", tiny_definition(disks=[{"path": top + "/disk"}], filesystems=[{"tag": "t", "source": top}],
                                                           networks=[{"name": "n"}]), owner=uid)
        for _ in range(2):
            vm.start()
            known.check()
            with vm.open_console() as console:
                console.send(b"x")
            vm.kill()
        vm.remove()
        vm.wait_gone()
    known.check()
    assert_no_leftovers(before, 20)
    assert not (found := files_of_ids(["/"], IDS, except_for=("/proc", "/sys"))), found


run()
