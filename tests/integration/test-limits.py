#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=240
"""The daemon's own limits: rights, threads, descriptors, watchdog, what it says, when it refuses to start."""

import os
import re
import shutil
import sqlite3
import socket
import stat
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

SOURCE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..", "src")
DATABASE = "/var/lib/vmunit/vmunit.db"
CAPS = {"dac_override": 1, "dac_read_search": 2, "kill": 5, "setgid": 6, "setuid": 7, "setpcap": 8,
        "net_bind_service": 10, "sys_admin": 21, "mknod": 27}
manager = Manager()


def status(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def mask(*names):
    return sum(1 << CAPS[name] for name in names)


def caps(pid, kind):
    return int(status(pid)["Cap" + kind], 16)


def parent(pid):
    return int(status(pid)["PPid"])


def fresh(name="limits", **over):
    """A VM that runs, for tests of their own."""
    manager.remove_all()
    vm = manager.create(name, tiny_definition(**over))
    vm.start()
    vm.wait_log(b"TINY-UP")
    return vm


def drop_in(unit, text):
    directory = f"/run/systemd/system/{unit}.d"
    os.makedirs(directory, exist_ok=True)
    with open(directory + "/limits.conf", "w") as f:
        f.write(text)
    systemctl("daemon-reload")


def exposure(unit):
    done = subprocess.run(["systemd-analyze", "security", "--no-pager", unit], capture_output=True, text=True, check=True)
    return float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)[1])


def opens(path):
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True


# Rights

@test("systemd-analyze security: the daemon 1.7 at most, the launcher 5.8")
def _():
    fresh()
    for unit, most in (("vmunitd.service", 1.7), ("vmunit-guests.service", 1.7), ("vmunit-launch.service", 5.8)):
        assert exposure(unit) <= most, (unit, exposure(unit))


@test("the daemon: one thread, root, CAP_KILL alone, a filter, no new privileges")
def _():
    fresh()
    s = status(daemon_pid())
    assert s["Threads"] == "1"
    assert s["Uid"].split() == ["0"] * 4
    for kind in ("Prm", "Eff", "Bnd"):
        assert caps(daemon_pid(), kind) == mask("kill"), (kind, s["Cap" + kind])
    assert caps(daemon_pid(), "Amb") == 0 and caps(daemon_pid(), "Inh") == 0
    assert (s["NoNewPrivs"], s["Seccomp"]) == ("1", "2")


@test("the launcher: one thread and the rights that its unit names")
def _():
    fresh()
    s = status(launcher_pid())
    assert s["Threads"] == "1"
    assert caps(launcher_pid(), "Bnd") == mask(*CAPS), s["CapBnd"]
    assert (s["NoNewPrivs"], s["Seccomp"]) == ("1", "2")


def ask_launcher(kind, body):
    """One request to the launcher, as the daemon makes them: the answer's error, the rest of it, and how many fds came along."""
    with open(os.path.join(SOURCE, "basic", "launch-protocol.h"), encoding="utf-8") as f:
        magic = int(re.search(r"LAUNCH_MAGIC UINT32_C\((\w+)\)", f.read())[1], 16)
    head = struct.pack("=IIII", magic, kind, 16 + len(body), 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(20)
        sock.connect("/run/vmunit-launch.sock")
        sock.send(head + body)
        answer, fds, _, _ = socket.recv_fds(sock, 4096, 4)
    for fd in fds:
        os.close(fd)
    return struct.unpack_from("=i", answer, 16)[0], answer[20:], len(fds)


@test("of devices the launcher opens disks and those of VMMs, and no other")
def _():
    fresh()
    disk, probe = "/dev/vmunit-test-disk", struct.pack("=II", 0, 0)
    os.mknod(disk, 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    try:
        with open(disk, "rb"):                              # root may
            pass
        assert ask_launcher(1, struct.pack("=II", 0, 0) + disk.encode() + b"\0")[::2] == (0, 1)
    finally:
        os.unlink(disk)
    kvm, = struct.unpack_from("=i", ask_launcher(3, probe)[1])
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
        assert kvm == 0, os.strerror(-kvm)
    except OSError as error:
        assert kvm == -error.errno, (kvm, error)
    assert unit_property("vmunit-launch.service", "DevicePolicy") == "closed"
    other = "/dev/vmunit-test-log"
    os.mknod(other, 0o600 | stat.S_IFCHR, os.makedev(1, 11))
    try:
        paths = ("/dev/null", other)
        assert all(map(opens, paths))
        group, result = unit_cgroup("vmunit-launch.service") + "/cgroup.procs", 255
        child = os.fork()
        if child == 0:                                      # one of root's that is where the launcher is
            try:
                with open(group, "w", encoding="utf-8") as f:
                    f.write("0")
                result = sum(1 << i for i, path in enumerate(paths) if opens(path))
            finally:
                os._exit(result)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0b01
    finally:
        os.unlink(other)


@test("signals, limits and environment of the VMM are nobody's leftovers")
def _():
    vm = fresh()
    s = status(vm.pid)
    assert int(s["SigIgn"], 16) & ~(1 << (signal.SIGPIPE - 1)) == 0, s["SigIgn"]    # QEMU itself ignores SIGPIPE
    with open(f"/proc/{vm.pid}/environ", "rb") as f:
        words = {w.split(b"=")[0] for w in f.read().split(b"\0") if w}
    assert words <= {b"PATH"}, words
    assert os.readlink(f"/proc/{vm.pid}/cwd") == "/"
    assert s["Umask"] in ("0000", "0022", "0077"), s["Umask"]
    assert os.getsid(vm.pid) == vm.pid


@test("descriptors of the VMM and its parent: those given, and what they made themselves")
def _():
    disk = "/tmp/limits.raw"
    with open(disk, "wb") as f:
        f.truncate(1 << 20)
    vm = fresh(disks=[{"path": disk}])
    kernel = os.path.realpath(tiny_definition()["boot"]["kernel"])
    state = f"/var/lib/vmunit/vms/{vm.Id}"
    files = {what for what in fds(vm.pid) if what.startswith("/") and not what.startswith(("/dev/", "/memfd:"))}
    assert files <= {kernel, disk}, files
    assert set(fds(vm.pid)) - files - {"/dev/kvm", "/dev/stderr"} <= {w for w in fds(vm.pid) if w.startswith(("anon_inode:", "/memfd:"))
                                                     or w in ("socket", "pipe")}, fds(vm.pid)
    files = {what for what in fds(parent(vm.pid)) if what.startswith("/")}
    assert files == {"/dev/null", "/dev/stderr", f"{state}/console.log", f"{state}/last-output", f"/run/vmunit/vms/{vm.Id}/exit"}, files


@test("files and directories are root's alone")
def _():
    vm = fresh()
    for top in ("/run/vmunit", "/var/lib/vmunit"):
        for directory, _, files in os.walk(top):
            assert os.stat(directory).st_mode & 0o7777 == 0o700, directory
            for file in files:
                mode = os.lstat(os.path.join(directory, file)).st_mode
                # of a socket the directory above is the guard
                assert mode & 0o077 == 0 or (mode & 0o170000) == 0o140000, (file, oct(mode))
    assert os.path.isdir(f"/run/vmunit/vms/{vm.Id}")


@test("nobody but root comes to the sockets")
def _():
    # sockets that everybody could write to until their modes were set
    vm = fresh()
    assert os.stat("/run/vmunit-launch.sock").st_mode & 0o7777 == 0o600
    for path in ("/run/vmunit-launch.sock", f"/run/vmunit/vms/{vm.Id}/qmp", f"/run/vmunit/vms/{vm.Id}/exec"):
        code = f"""import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    try:
        socket.socket(socket.AF_UNIX, kind).connect({path!r})
        raise SystemExit("connected")
    except PermissionError:
        pass"""
        done = subprocess.run(["/usr/bin/python3", "-c", code], user=65534, group=65534, extra_groups=[], capture_output=True,
                              text=True, check=False, cwd="/")
        assert done.returncode == 0, (path, done.stderr)


@test("no process of a VM is in a service's own cgroup")
def _():
    # what stayed in there kept the service from being started again, or died with it
    fresh()
    for unit in ("vmunitd.service", "vmunit-launch.service"):
        assert unit_pids(unit) == [int(unit_property(unit, "MainPID"))], (unit, unit_pids(unit))


# Leaks

def children(pid):
    """Also those that are dead and were not waited for."""
    found = []
    for child in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if parent(child) == pid:
                found.append(child)
    return found


@test("50 starts and stops leave no descriptor, no child and no memory", timeout=90)
def _():
    vm = fresh()
    vm.kill()
    daemon, launcher = daemon_pid(), launcher_pid()
    for _ in range(5):
        vm.start()
        vm.kill()

    def now():
        return fds(daemon), fds(launcher)
    before, memory = now(), int(status(daemon)["VmRSS"].split()[0])
    for i in range(50):
        vm.start()
        vm.kill() if i % 2 else vm.stop(timeout_usec=0)
    wait_for(lambda: now() == before, 5, f"the descriptors {before}", poll=0.05)
    # elsewhere children that nobody waited for looked alive
    wait_for(lambda: not children(daemon) + children(launcher), 5, "the end of all children", poll=0.05)
    grown = int(status(daemon)["VmRSS"].split()[0]) - memory
    assert grown < 1024, f"the daemon has grown by {grown} kB"
    assert (daemon_pid(), launcher_pid()) == (daemon, launcher)


@test("a VM that runs keeps nothing open in the launcher, which takes a bounded number of connections")
def _():
    vm = fresh()
    vm.kill()
    before = fds(launcher_pid())
    vm.start()
    helper = parent(vm.pid)
    wait_for(lambda: fds(launcher_pid()) == before, 5, f"the descriptors {before}", poll=0.05)
    vm.kill()
    wait_for(lambda: not os.path.exists(f"/proc/{helper}"), 5, "the helper to be reaped", poll=0.05)


@test("a console that is opened and closed 100 times leaves nothing", timeout=60)
def _():
    vm = fresh()
    vm.open_console().close()
    helper = parent(vm.pid)
    before = fds(daemon_pid()), fds(helper)                 # the first may still be on its way out
    for _ in range(100):
        vm.open_console().close()
    wait_for(lambda: fds(daemon_pid()) <= before[0] and fds(helper) <= before[1], 5, "the descriptors as before", poll=0.05)


# The service

@test("the bus starts the daemon")
def _():
    vm = fresh()
    pid = vm.pid
    stop_daemon()
    assert daemon_pid() == 0 and unit_property("vmunitd.service", "ActiveState") == "inactive"
    assert [name for name, *_ in manager.list()] == ["limits"]
    assert daemon_pid() > 0 and (vm.State, vm.pid) == ("Running", pid)


@test("SIGTERM ends the daemon in good order and leaves the VMs")
def _():
    vm = fresh()
    pid, daemon = vm.pid, daemon_pid()
    os.kill(daemon, signal.SIGTERM)
    wait_exit(daemon)
    wait_for(lambda: unit_property("vmunitd.service", "SubState") == "dead", 5, poll=0.05)
    assert unit_property("vmunitd.service", "Result") == "success"
    os.kill(pid, 0)
    start_daemon()
    assert (vm.State, vm.pid) == ("Running", pid)
    with vm.open_console() as console:
        console.send(b"x")
        read_until(console.fileno(), b"x")


@test("STATUS= tells how many run")
def _():
    vm = fresh()
    manager.create("other", tiny_definition())

    def text():
        return unit_property("vmunitd.service", "StatusText")
    wait_for(lambda: re.search(r"\b2 .*\b1 ", text()), 5, "2 VMs, 1 running", poll=0.05)
    vm.kill()
    wait_for(lambda: re.search(r"\b2 .*\b0 ", text()), 5, "2 VMs, 0 running", poll=0.05)


@test("a daemon that hangs is started again by the watchdog, and the VMs live on", timeout=60)
def _():
    vm = fresh()
    drop_in("vmunitd.service", "[Service]\nWatchdogSec=1\nTimeoutAbortSec=2\nLimitCORE=0\n")
    systemctl("restart", "vmunitd.service")
    pid, daemon = vm.pid, daemon_pid()
    os.kill(daemon, signal.SIGSTOP)
    wait_exit(daemon, 20)
    wait_for(lambda: daemon_pid() not in (0, daemon), 20, "another daemon", poll=0.1)
    assert (vm.State, vm.pid) == ("Running", pid)
    assert any("watchdog" in str(e.get("MESSAGE", "")).lower() for e in journal("UNIT=vmunitd.service"))
    drop_in("vmunitd.service", "")
    systemctl("restart", "vmunitd.service")
    assert vm.State == "Running"


# The journal

@test("mistakes in the configuration are warnings with file and line, and good values stay")
def _():
    fresh()
    path = "/etc/vmunit/vmunit.conf.d/50-mistakes.conf"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write("[VMUnit]\n# a comment\nLogLevl=debug\nStartTimeoutSec=soon\nEventsMax=77\nno assignment\n\n[Nonsense]\nX=1\n")
    pid = VM("limits").pid
    systemctl("restart", "vmunitd.service")
    said = [str(e["MESSAGE"]) for e in journal("_SYSTEMD_UNIT=vmunitd.service", "PRIORITY=4")]
    for line, word in ((3, "LogLevl"), (4, "StartTimeoutSec=soon"), (6, "assignment"), (8, "Nonsense")):
        assert any(f"{path}:{line}: " in text and word in text for text in said), (line, word, said)
    assert not any(f"{path}:5: " in text for text in said), said
    assert (VM("limits").State, VM("limits").pid) == ("Running", pid)
    os.unlink(path)
    systemctl("restart", "vmunitd.service")


@test("a VM's story is in the journal, each step with its id")
def _():
    vm = fresh("story")
    vm.pause()
    vm.resume()
    os.kill(vm.pid, signal.SIGKILL)
    vm.wait_state("Error")
    wait_for(lambda: vm.ExitSignal == signal.SIGKILL, 5)
    ident = vm.Id
    vm.remove()
    vm.wait_gone()
    entries = journal("VMUNIT_VM=story")
    told = [(e.get("VMUNIT_STATE"), e.get("MESSAGE_ID")) for e in entries if e.get("MESSAGE_ID")]
    for state in ("Stopped", "Starting", "Running", "Paused", "Error", "Removing"):
        assert any(s == state for s, _ in told), (state, told)
    assert all(len(m) == 32 and int(m, 16) for _, m in told)
    assert all(e["VMUNIT_VM_ID"] == ident for e in entries), entries
    assert {e["OBJECT_SYSTEMD_UNIT"] for e in entries if "OBJECT_SYSTEMD_UNIT" in e} == {"vmunit-story.scope"}
    error = next(e for e in entries if e.get("VMUNIT_STATE") == "Error" and e["PRIORITY"] == "3")
    assert error["VMUNIT_REASON"] == "vmm-crashed" and error["MESSAGE"].startswith("story: "), error


# The database

def damage_garbage(path):
    with open(path, "wb") as f:
        f.write(os.urandom(20000))


def damage_empty(path):
    open(path, "wb").close()


def damage_truncated(path):
    os.truncate(path, os.path.getsize(path) // 2)


def damage_middle(path):
    with open(path, "r+b") as f:
        f.seek(4096 + 8)
        f.write(b"\xff" * 3000)


def damage_newer(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def damage_foreign(path):
    os.unlink(path)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipe (name TEXT)")
    db.close()


def damage_directory(path):
    os.unlink(path)
    os.mkdir(path)


@contextlib.contextmanager
def stopped_daemon():
    """With a whole database at hand, which is put back."""
    stop_daemon()
    shutil.rmtree("/tmp/saved", ignore_errors=True)
    shutil.copytree("/var/lib/vmunit", "/tmp/saved")
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", DATABASE, DATABASE + "-wal", DATABASE + "-shm"], check=True)
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists("/tmp/saved/vmunit.db" + suffix):
                shutil.copy2("/tmp/saved/vmunit.db" + suffix, DATABASE + suffix)
        systemctl("stop", "vmunitd.service")
        systemctl("reset-failed", "vmunitd.service", check=False)


for kind in ("garbage", "empty", "truncated", "middle", "newer", "foreign", "directory"):
    @test(f"no start with a database that is {kind}: a sentence instead, and no empty list", timeout=60)
    def _(kind=kind):
        vm = fresh()
        pid = vm.pid
        drop_in("vmunitd.service", "[Service]\nRestart=no\n")
        with stopped_daemon():
            globals()["damage_" + kind](DATABASE)
            before = open(DATABASE, "rb").read() if kind != "directory" else None
            mark = time.time()
            systemctl("start", "vmunitd.service", check=False)
            assert unit_property("vmunitd.service", "ActiveState") == "failed"
            # of whose unit it was the journal knows nothing, if the daemon is gone when it looks
            said = [str(e["MESSAGE"]) for e in journal("PRIORITY=3", f"--since=@{mark:.6f}") if DATABASE in str(e["MESSAGE"])]
            assert len(said) == 1 and len(said[0]) > len(DATABASE) + 40, said
            systemctl("reset-failed", "vmunitd.service")
            try:
                # the bus itself would wait for 25 s for one that does not come up
                raise AssertionError(f"it answers: {manager.call('ListVMs', timeout=2)}")
            except BusError:
                pass
            if before is not None:
                assert open(DATABASE, "rb").read() == before, "what was refused is not left as it was"
            os.kill(pid, 0)
        start_daemon()                                      # the bus waits still for the one that it has asked for
        assert [(name, state) for name, _, state, _ in manager.list()] == [("limits", "Running")]
        assert vm.pid == pid
        drop_in("vmunitd.service", "")


@test("a second daemon beside the first does no harm", timeout=40)
def _():
    vm = fresh()
    pid, daemon = vm.pid, daemon_pid()
    done = subprocess.run(["/usr/sbin/vmunitd"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode not in (0, None), done
    assert daemon_pid() == daemon and (vm.State, vm.pid) == ("Running", pid)
    vm.stop()
    assert vm.StateReason == "stopped"


run()
