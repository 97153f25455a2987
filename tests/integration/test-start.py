#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=200 sanitized backends=qemu,firecracker,cloud-hypervisor
"""Starts that fail or hang: the caller hears why, nothing is left, and the next start works."""

import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from hanging_fuse import HangingFuse
from vmunit_test import *
from vmunit_beds import *

TINY = os.environ["VMUNIT_GUESTS"] + "/tiny.elf"
FAILED = ("Stopped", "start-failed")


def scratch():
    """A directory that the launcher sees as well, and that /tmp's clean-ups do not."""
    return tempfile.TemporaryDirectory(dir="/var/tmp")


def sparse(path):
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    return path


@test("what is missing fails the start with its name; nothing is left, and the next start works")
def _():
    # my_hypervisor (d), (e): a failed start leaves nothing; a restart does not fail on leftovers
    with scratch() as d, vm_of(tiny_definition(boot={"kernel": d + "/kernel"})) as vm:
        before = snapshot_leftovers()
        mark = len(signals)
        for _ in range(2):
            with expect_error("BackendFailed", d + "/kernel"):
                vm.start()
            assert words(vm) == FAILED and vm.StateMessage and d not in vm.StateMessage
        assert [s[:2] for s in vm.states(mark)] == [("Starting", ""), FAILED] * 2
        assert usage_of(vm) == [] and vm.LeaderPID == 0
        after = snapshot_leftovers()
        kept = "/var/lib/vmunit/vms/" + vm.Id
        assert {f for f in after["files"] - before["files"] if not f.startswith(kept)} == set()
        assert (after["units"], after["processes"], after["cgroups"]) == (before["units"], before["processes"], before["cgroups"])
        shutil.copy(TINY, d + "/kernel")
        vm.start()
        assert words(vm) == ("Running", "")


@test("files that are none: a directory, a FIFO, a device, a loop of links, nothing in it", timeout=60)
def _():
    with scratch() as d:
        os.mkfifo(d + "/fifo")
        os.symlink("loop", d + "/loop")
        open(d + "/empty", "wb").close()
        for path in (d, d + "/fifo", "/dev/null", d + "/loop", d + "/empty"):
            with vm_of(tiny_definition(boot={"kernel": path})) as vm:
                with expect_error("BackendFailed"):
                    vm.start()
                assert words(vm) == FAILED, path
            if path != d + "/empty":
                with vm_of(tiny_definition(disks=[{"path": path}])) as vm:
                    with expect_error("BackendFailed", "disks[0].path"):
                        vm.start()
                    assert words(vm) == FAILED, path


@test("a disk in use by another VM")
def _():
    with scratch() as d:
        definition = tiny_definition(disks=[{"path": sparse(d + "/disk.raw")}])
        with vm_of(definition) as one, vm_of(definition) as two:
            one.start()
            with expect_error("BackendFailed", "lock"):
                two.start()
            assert words(two) == FAILED and words(one) == ("Running", "")
            one.stop()
            two.start()
            assert words(two) == ("Running", "")
            if BACKEND != "qemu":               # whatever else uses it
                with vm_of({**definition, "backend": "qemu"}) as other:
                    with expect_error("BackendFailed", "lock"):
                        other.start()
        definition["disks"][0]["readonly"] = True
        with vm_of(definition) as one, vm_of(definition) as two:
            one.start()
            two.start()


@test("a port of the host that another VM has: QEMU's words; one that merely wants it holds nothing", timeout=60,
      not_on={"firecracker cloud-hypervisor": "it has no user mode network"})
def _():
    # ports of VMs that were stopped counted as taken, and those of VMs that ran were found out too late
    definition = tiny_definition(networks=[{"type": "user", "forward": [{"host": 2282, "guest": 80}]}])
    with vm_of(definition) as one, vm_of(definition) as two:
        for runs, wants in ((one, two), (two, one)):
            runs.start()
            with expect_error("BackendFailed", "2282"):
                wants.start()
            assert words(wants) == FAILED and words(runs) == ("Running", "")
            runs.kill()


@test("a qcow2 runs; one that is none, or with a backing file where that can't be, is refused before the VMM sees it",
      not_on={"firecracker": "it reads raw images alone, and no others are created"})
def _():
    with scratch() as d:
        for arguments in (["good.qcow2", "1M"], ["-b", "good.qcow2", "-F", "qcow2", "child.qcow2"]):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments], check=True, cwd=d)
        sparse(d + "/raw")
        for name in ("good.qcow2", "child.qcow2", "raw"):
            with vm_of(tiny_definition(disks=[{"path": f"{d}/{name}", "format": "qcow2"}])) as vm:
                if name == "good.qcow2" or name == "child.qcow2" and BACKEND == "qemu":
                    vm.start()
                    continue
                try:
                    vm.start()
                except BusError as error:
                    assert "disks[0]" in error.message, error
                    assert error.short == ("InvalidDefinition" if name == "raw" else "NotSupported"), error
                else:
                    raise AssertionError(name + " was started")
                assert words(vm) == FAILED and usage_of(vm) == [], name


@test("a start that hangs is ended by Stop, Kill, Cancel and Remove, at once", timeout=90)
def _():
    with fake_vmm("hang"):
        for what, reason in (("stop", "stopped"), ("kill", "killed"), ("cancel", "stopped"), ("force", None)):
            with vm_of() as vm:
                start = vm.start_async()
                wait_for(lambda: vm.LeaderPID, poll=0.02)
                assert vm.State == "Starting"
                pid, began = vm.LeaderPID, time.monotonic()
                if what == "cancel":
                    vm.job.cancel()
                elif what == "force":
                    vm.remove(force=True)
                else:
                    getattr(vm, what)()
                if reason:
                    vm.wait_state("Stopped")
                else:
                    vm.wait_gone()
                assert time.monotonic() - began < 3 * PATIENCE and not alive(pid)
                gather([start])
                assert start.error and start.error.short == "Canceled", start.error
                if reason:
                    assert words(vm) == ("Stopped", reason)
                    assert all(end for _, end in usage_of(vm)) and not os.path.exists("/run/vmunit/vms/" + vm.Id)


@test("a VMM that dies, talks nonsense or hangs: who starts it hears of it in time, nothing is left, others go on", timeout=120)
def _():
    with vm_of() as other, vm_of() as vm:
        other.start()
        pid = other.LeaderPID
        with fake_vmm("exit", StartTimeoutSec="2s") as fake:
            for what in ("exit out of quinces", "signal out of quinces", "garbage", "endless", "closes", "no-cont", "never-runs"):
                fake(what)
                hangs = what == "no-cont" or what == "never-runs" and BACKEND == "firecracker"      # which boots by itself
                with expect_error("Timeout" if hangs else "BackendFailed", "out of quinces" if "quinces" in what else None):
                    vm.start()
                assert words(vm) == FAILED and not os.path.exists("/run/vmunit/vms/" + vm.Id), (what, words(vm))
                assert "quinces" not in what or "out of quinces" in vm.last_output(), (what, vm.last_output())
                assert words(other) == ("Running", "") and other.LeaderPID == pid and vmm_count() == 1, what
            fake("real")
            vm.start()
            assert words(vm) == ("Running", "")
            other.pause()


@test("a start that takes its time runs when it may, and who asked meanwhile got Busy", timeout=60)
def _():
    with fake_vmm("gate") as fake, vm_of() as vm:
        starts = [vm.start_async(), vm.start_async()]
        wait_for(lambda: vm.LeaderPID, poll=0.02)
        for what in ("pause", "resume", "reboot", "reset"):
            with expect_error("Busy"):
                getattr(vm, what)()
        with expect_error("Busy"):
            vm.update({"labels": {"a": "b"}})
        fake("go")
        assert gather(starts) == [None, None] and words(vm) == ("Running", "")
        assert vm.LeaderPID and len(usage_of(vm)) == 1


@test("a start from Error that fails stays Error, for the caller's start came from there")
def _():
    with scratch() as d:
        shutil.copy(TINY, d + "/kernel")
        with vm_of(tiny_definition(boot={"kernel": d + "/kernel"})) as vm:
            vm.start()
            os.kill(vm.LeaderPID, signal.SIGKILL)
            vm.wait_state("Error")
            os.rename(d + "/kernel", d + "/away")
            with expect_error("BackendFailed"):
                vm.start()
            assert words(vm) == ("Error", "start-failed")
            os.rename(d + "/away", d + "/kernel")
            vm.start()
            assert words(vm) == ("Running", "")


@test("no accelerator is asked for, or no program is there", timeout=60)
def _():
    if BACKEND == "qemu":
        with vm_of(tiny_definition(accel="tcg")) as vm:
            vm.start()
            with open(f"/proc/{vm.LeaderPID}/cmdline", "rb") as f:
                assert b"tcg" in f.read()
    else:
        with expect_error("NotSupported", begins="accel: "):
            manager.create("slow", tiny_definition(accel="tcg"))
    with vm_of() as vm:
        with configured(**{KEY: "/nonexistent/vmm"}):
            with expect_error("BackendUnavailable"):
                vm.start()
            assert vm.State == "Stopped" and usage_of(vm) == []
            info = dict(manager.Backends)[BACKEND]
            assert not info["Usable"] and info["Reason"], info
        vm.start()


@test("KVM that was asked for and is not there: a failure with the key, no guest a hundred times slower")
def _():
    # fast ways that fell back to slow ones without a word
    there = os.path.exists("/dev/kvm")
    if there:
        os.rename("/dev/kvm", "/dev/kvm.away")      # the box's own
    try:
        with vm_of(tiny_definition(accel="kvm")) as vm:
            with expect_error("BackendUnavailable", "accel: " if BACKEND == "qemu" else "/dev/kvm"):
                vm.start()
            assert words(vm) == FAILED and usage_of(vm) == []
            vm.update({"accel": "auto"})
            if BACKEND != "qemu":               # which needs it
                with expect_error("BackendUnavailable", "/dev/kvm"):
                    vm.start()
                return
            vm.start()
            with open(f"/proc/{vm.LeaderPID}/cmdline", "rb") as f:
                assert b"kvm" not in f.read()
    finally:
        if there:
            os.rename("/dev/kvm.away", "/dev/kvm")


@test("what was opened is what runs, whatever has its name by then")
def _():
    # a file was checked, and then read a second time by its name
    with scratch() as d, fake_vmm("gate") as fake:
        shutil.copy(TINY, d + "/kernel")
        kind = "raw" if BACKEND == "firecracker" else "qcow2"
        for image in ("good", "child"):
            more = [] if image == "good" or kind == "raw" else ["-b", TINY, "-F", "raw"]
            subprocess.run(["qemu-img", "create", "-q", "-f", kind, *more, f"{d}/{image}.qcow2", "1M"], check=True)
        with vm_of(tiny_definition(boot={"kernel": d + "/kernel"}, disks=[{"path": d + "/good.qcow2", "format": kind}])) as vm:
            start = vm.start_async()
            wait_for(lambda: vm.LeaderPID, poll=0.02)
            os.rename(d + "/child.qcow2", d + "/good.qcow2")    # of which the VMM would open more
            sparse(d + "/other")
            os.rename(d + "/other", d + "/kernel")
            fake("go")
            assert gather([start]) == [None], start.error
            vm.wait_log(b"TINY-UP")
            assert not any(what == d + "/good.qcow2" for what in fds(vm.LeaderPID))


@test("a start that fails before its VMM runs leaves the words of the run before")
def _():
    # the log of a crash was emptied by the next start, which failed
    with scratch() as d:
        shutil.copy(TINY, d + "/kernel")
        with vm_of(tiny_definition(boot={"kernel": d + "/kernel"}, disks=[{"path": sparse(d + "/disk")}])) as vm:
            vm.start()
            vm.wait_log(b"TINY-UP")
            type_in(vm, b"beech")
            vm.wait_log(b"beech")
            os.kill(vm.LeaderPID, signal.SIGKILL)
            vm.wait_state("Error")
            log = vm.console_log()
            os.rename(d + "/disk", d + "/away")
            for daemon in ("the same", "another"):
                with expect_error("BackendFailed", "disks[0].path"):
                    vm.start()
                assert vm.console_log() == log, vm.console_log()
                assert sorted(os.listdir("/var/lib/vmunit/vms/" + vm.Id)) == ["console.log", "last-output"]
                if daemon == "the same":
                    kill_daemon()
            os.rename(d + "/away", d + "/disk")
            vm.start()
            vm.wait_log(b"TINY-UP")
            assert b"beech" not in vm.console_log()


def wait_stage(vm, stage):
    wait_for(lambda: (job := vm.job) and job.Stage == stage, 20, f"the start's step '{stage}'", poll=0.005)


@test("the launcher killed, idle and in the middle of a start: that start at most", timeout=90)
def _():
    with vm_of() as vm:
        systemctl("start", "vmunit-launch.service")
        os.kill(launcher_pid(), signal.SIGKILL)
        vm.start()                              # another comes by its socket
        assert words(vm) == ("Running", "")
        pid = vm.LeaderPID
        os.kill(launcher_pid(), signal.SIGKILL)
        vm.wait_log(b"TINY-UP")
        assert vm.LeaderPID == pid and words(vm) == ("Running", "")
        vm.stop()
        assert words(vm) == ("Stopped", "stopped")

        with launcher_stopped():
            start = vm.start_async()
            wait_stage(vm, "open")
            os.kill(launcher_pid(), signal.SIGKILL)
        gather([start])                         # what this one had not taken waits for the next
        assert not start.error and words(vm) == ("Running", ""), (start.error, words(vm))

    with HangingFuse("/mnt/hangs", 0) as fuse, vm_of(tiny_definition(disks=[{"name": "d", "path": "/mnt/hangs/good"}])) as vm:
        os.stat(fuse.path)                      # its first question is answered
        fuse.stop()
        start = vm.start_async()
        fuse.wait_asked()                       # by a child of the launcher, which goes with it
        wait_stage(vm, "open")
        os.kill(launcher_pid(), signal.SIGKILL)
        gather([start])
        assert start.error and "the launcher has died" in start.error.message, start.error
        assert words(vm) == FAILED and "'open'" in vm.StateMessage and vmm_count() == 0, vm.properties()
        assert not os.path.exists("/run/vmunit/vms/" + vm.Id)
        vm.update({"disks": [{"name": "d", "delete": True}]})
        vm.start()
        assert words(vm) == ("Running", "")

    with fake_vmm("gate") as fake, vm_of() as vm:
        start = vm.start_async()
        wait_stage(vm, "connect")               # by then it has done its part
        os.kill(launcher_pid(), signal.SIGKILL)
        fake("go")
        gather([start])
        assert not start.error and words(vm) == ("Running", ""), (start.error, words(vm))


@test("a launcher that hangs fails the start in time, and one that comes back goes on", timeout=60)
def _():
    with vm_of() as vm:
        with launcher_stopped():
            start = vm.start_async()
            gather([start], 20)
            assert start.error and start.error.short in ("BackendUnavailable", "BackendFailed", "Timeout"), start.error
            assert words(vm) == FAILED
        vm.start()
        assert words(vm) == ("Running", "")


run()
