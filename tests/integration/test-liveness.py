#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized backends=qemu,firecracker,cloud-hypervisor
"""Does it live? One answer, whatever was done to processes, scopes and pids, before and after a restart of the daemon."""

import os
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

manager = Manager()


def started(name, **over):
    return manager.create(name, tiny_definition(**over), start=True)


def away(*vms):
    """Stops the daemon; gives the VMs' run files. Until it is started no property may be read: that would activate it."""
    files = [f"/run/vmunit/vms/{vm.Id}/run" for vm in vms]
    stop_daemon()
    return files[0] if len(files) == 1 else files


def edit_run_file(run_file, **values):
    with open(run_file) as f:
        lines = f.read().splitlines()
    keys = {line.partition("=")[0]: line for line in lines}
    for key, value in values.items():
        assert key in keys, key
        keys[key] = f"{key}={value}"
    with open(run_file, "w") as f:
        f.write("\n".join(keys.values()) + "\n")


def gone_and_again(vm):
    """It is not alive, nothing of it is left, and it starts again."""
    wait_unit_gone(vm.Unit)
    with expect_error("NotRunning"):
        vm.stats()
    vm.start()
    assert vm.State == "Running"
    vm.remove(force=True)
    vm.wait_gone()


@test("a pid that was used again is not the VMM")                   # cocoon #152, hypeman PR#363
def _():
    vm = started("reused")
    helper, pid = unit_pids(vm.Unit)
    run_file = away(vm)
    os.kill(pid, signal.SIGKILL)
    wait_exit(helper)
    stranger = subprocess.Popen(["sleep", "infinity"])
    edit_run_file(run_file, PID=stranger.pid, HELPER_PID=stranger.pid)
    start_daemon()
    assert vm.State == "Error", vm.State
    assert vm.pid == 0
    gone_and_again(vm)
    assert stranger.poll() is None, "a process that is not ours was killed"
    stranger.kill()
    stranger.wait()


@test("a live process of another start time is not the VMM, even in the scope")
def _():
    vm = started("other")
    edit_run_file(away(vm), START=1, INODE=0)
    start_daemon()
    assert vm.State == "Error", vm.State
    gone_and_again(vm)


@test("a run file of another boot is not believed")
def _():
    vm = started("boot")
    edit_run_file(away(vm), BOOT_ID="00000000-0000-0000-0000-000000000000")
    start_daemon()
    assert vm.State == "Error", vm.State
    gone_and_again(vm)


@test("a run file that is gone, empty or garbage ends what it was of, and nothing else")
def _():
    # elsewhere one VM that could not be read kept the daemon from all of them
    for content in (None, b"", b"\xff\0\n=\nPID=\nPID=99999999999999999999\n", b"PID=1\nSTART=0\nBOOT_ID=\n", "a directory",
                    "a link to itself"):
        vm, other = started("bad"), started("good")
        pid = other.pid
        run_file = away(vm)
        if not isinstance(content, bytes):
            os.unlink(run_file)
        if content == "a directory":
            os.mkdir(run_file)
        elif content == "a link to itself":
            os.symlink("run", run_file)
        elif content is not None:
            with open(run_file, "wb") as f:
                f.write(content)
        start_daemon()
        assert vm.State == "Error", vm.State
        assert (other.State, other.pid) == ("Running", pid)
        gone_and_again(vm)
        other.remove(force=True)
        other.wait_gone()


@test("a scope emptied by hand: killed, one by one and by cgroup.kill")
def _():
    for by_cgroup in (False, True):
        vm = started("emptied")
        if by_cgroup:
            with open(unit_cgroup(vm.Unit) + "/cgroup.kill", "w") as f:
                f.write("1")
        else:
            for pid in unit_pids(vm.Unit):
                os.kill(pid, signal.SIGKILL)
        vm.wait_state("Error")
        assert vm.StateReason == "vmm-crashed", vm.StateReason
        gone_and_again(vm)


@test("a leader moved out of its cgroup lives on while it is watched, and Kill ends it")
def _():
    vm = started("moved")
    pid = vm.pid
    with open("/sys/fs/cgroup/init.scope/cgroup.procs" if os.path.isdir("/sys/fs/cgroup/init.scope")
              else "/sys/fs/cgroup/cgroup.procs", "w") as f:
        f.write(str(pid))
    assert vm.State == "Running"
    vm.pause()
    vm.kill()
    assert vm.State == "Stopped"
    assert not os.path.exists(f"/proc/{pid}")
    gone_and_again(vm)


@test("a daemon that comes back kills a leader that was moved out of its scope")
def _():
    vm = started("strayed")
    pid = vm.pid
    stop_daemon()
    with open("/sys/fs/cgroup/init.scope/cgroup.procs", "w") as f:
        f.write(str(pid))
    start_daemon()
    wait_exit(pid)
    assert vm.State == "Error", vm.State
    gone_and_again(vm)


@test("the VMM's parent killed while the daemon is away: the VMM went with it")
def _():
    vm = started("orphan")
    helper, pid = unit_pids(vm.Unit)
    stop_daemon()
    os.kill(helper, signal.SIGKILL)
    wait_exit(pid)
    start_daemon()
    assert vm.State == "Error", vm.State
    gone_and_again(vm)


@test("a leftover process in the scope of a dead leader is ended")      # systemd keeps the scope for it
def _():
    vm = started("left")
    pid, child = vm.pid, subprocess.Popen(["sleep", "infinity"])
    with open(unit_cgroup(vm.Unit) + "/cgroup.procs", "w") as f:
        f.write(str(child.pid))
    os.kill(pid, signal.SIGKILL)
    vm.wait_state("Error")
    assert child.wait(timeout=10) == -signal.SIGKILL
    gone_and_again(vm)


@test("the same, when the daemon was away")
def _():
    vm = started("left-away")
    helper, pid = unit_pids(vm.Unit)
    child = subprocess.Popen(["sleep", "infinity"])
    with open(unit_cgroup(vm.Unit) + "/cgroup.procs", "w") as f:
        f.write(str(child.pid))
    stop_daemon()
    os.kill(pid, signal.SIGKILL)
    wait_exit(helper)
    start_daemon()
    assert vm.State == "Error", vm.State
    assert child.wait(timeout=10) == -signal.SIGKILL
    gone_and_again(vm)


@test("a paused VM is found paused, a running one running, with the same process and one interval")
def _():
    a, b = started("run"), started("pause")
    b.pause()
    pids = a.pid, b.pid
    kill_daemon()
    assert (a.State, b.State) == ("Running", "Paused")
    assert (a.pid, b.pid) == pids
    stop_daemon()
    start_daemon()
    assert (a.State, b.State) == ("Running", "Paused")
    for vm in (a, b):
        intervals = [u for u in manager.usage() if u[0] == vm.Id]
        assert len(intervals) == 1 and intervals[0][4] == 0, intervals
    b.resume()
    for vm in (a, b):
        vm.stop()
        vm.remove()
        vm.wait_gone()


@test("a VM that an older database knows as stopped, and as one without a back end, is found running")
def _():
    vm = manager.create("older", tiny_definition())
    stop_daemon()
    subprocess.run(["cp", "/var/lib/vmunit/vmunit.db", "/tmp/older.db"], check=True)
    start_daemon()
    vm.start()
    pid = vm.pid
    stop_daemon()
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/var/lib/vmunit/vmunit.db" + suffix)
    subprocess.run(["cp", "/tmp/older.db", "/var/lib/vmunit/vmunit.db"], check=True)
    with contextlib.closing(sqlite3.connect("/var/lib/vmunit/vmunit.db")) as db, db:
        db.execute("UPDATE vm SET backend = NULL")
    start_daemon()
    vm.wait_state("Running")
    assert vm.pid == pid and vm.Backend == BACKEND
    assert [u[4] for u in manager.usage() if u[0] == vm.Id] == [0]
    vm.start()
    assert vm.pid == pid
    vm.stop()
    assert all(u[4] for u in manager.usage() if u[0] == vm.Id)
    vm.remove()
    vm.wait_gone()


@test("a VM that runs in a VMM which this daemon does not know is ended, and nothing else is")
def _():
    vm, other = (manager.create(name, tiny_definition(), start=True) for name in ("unknown", "known"))
    pid, path = vm.pid, f"/run/vmunit/vms/{vm.Id}/run"
    stop_daemon()
    with contextlib.closing(sqlite3.connect("/var/lib/vmunit/vmunit.db")) as db, db:
        db.execute("UPDATE vm SET backend = NULL WHERE name = 'unknown'")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    with open(path, "w", encoding="utf-8") as f:
        f.write(text.replace(f"BACKEND={BACKEND}\n", "BACKEND=bochs\n"))
    start_daemon()
    daemon = daemon_pid()
    vm.wait_state("Error")
    wait_exit(pid)
    assert other.State == "Running" and daemon_pid() == daemon
    for v in (vm, other):
        v.remove(force=True)
        v.wait_gone()


run()
