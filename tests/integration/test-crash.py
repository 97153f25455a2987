#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=200 sanitized backends=qemu,firecracker,cloud-hypervisor
"""VMMs and their parents that die or hang, in each state of their VM."""

import fcntl
import glob
import os
import sqlite3
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *

CRASHED = ("Error", "vmm-crashed")


@contextlib.contextmanager
def running(**over):
    with vm_of(tiny_definition(**over)) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        yield vm


def assert_crashed(vm, *how):
    """Error, with its end known as HOW, (code, signal); it starts again."""
    vm.wait_state("Error")
    assert words(vm) == CRASHED and vm.StateMessage and vm.LeaderPID == 0, words(vm)
    if how:
        wait_for(lambda: vm.ExitKnown, 5, "the VMM's exit status")
        assert (vm.ExitCode, vm.ExitSignal) == how
    assert all(end for _, end in usage_of(vm))
    vm.start()
    assert words(vm) == ("Running", "") and vmm_count() == 1


@test("a VMM killed while it runs, and while it is paused")
def _():
    # hypeman #197: no "unknown for ever" after a VMM's death; cocoon #57: the interval is closed once
    for prepare in (lambda vm: None, VM.pause):
        with running() as vm:
            prepare(vm)
            mark, runs = len(signals), len(usage_of(vm))
            os.kill(vm.LeaderPID, signal.SIGKILL)
            assert_crashed(vm, 0, 9)
            assert [s[:2] for s in vm.states(mark)] == [CRASHED, ("Starting", ""), ("Running", "")], vm.states(mark)
            assert len(usage_of(vm)) == runs + 1
            died = [e for e in manager.events(vm=vm.Id) if e[4] == "vmm-exited"]
            assert len(died) == 1 and died[0][6] == {"exit-code": 0, "exit-signal": 9}, died


@test("a VMM that was killed is told of before the kernel is done with it; all else waits until then", timeout=60)
def _():
    for call, meanwhile, state in (("start", "Starting", "Running"), ("stop", "Stopping", "Stopped"), ("kill", "Stopping", "Stopped"),
                                   ("remove", "Removing", None)):   # whose call does not wait for its end
        with running() as vm:
            pid = vm.LeaderPID
            with outlived(pid) as is_gone:
                os.kill(pid, signal.SIGKILL)
                vm.wait_state("Error")
                assert words(vm) == CRASHED and vm.LeaderPID == 0 and not vm.ExitKnown and not is_gone(), vm.properties()
                assert all(end for _, end in usage_of(vm)) and "exit-signal" not in str(manager.events(vm=vm.Id)[-1])
                under_way = getattr(vm, call + "_async")()
                vm.wait_state(meanwhile)
                assert (not under_way.done or not state) and not is_gone() and vm.LeaderPID == 0
            assert gather([under_way], 30) == [None], under_way.error
            if not state:
                vm.wait_gone()
            else:
                assert words(vm) == (state, "stopped" if state == "Stopped" else "") and len(usage_of(vm)) == 1 + (call == "start")
                died = [e[6] for e in manager.events(vm=vm.Id) if e[4] == "vmm-exited"]
                assert died == [{"exit-code": 0, "exit-signal": 9}], died


@test("a VMM that closes what says that it dies is not taken for dead; once it is, that is told when it has gone", timeout=60)
def _():
    with fake_vmm("lifeless"), running() as vm:
        pid = vm.LeaderPID
        with outlived(pid) as is_gone:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not glob.glob(f"/proc/{pid}/task/*/fd/*"), what="that it has closed all", poll=0.01)
            assert words(vm) == ("Running", "") and vm.LeaderPID == pid and not is_gone()
        assert_crashed(vm, 0, 9)


@test("a VMM killed while it starts, at once and when it has begun", timeout=60)
def _():
    with fake_vmm("gate"), vm_of() as vm:
        for kill_parent in (False, True):
            start = vm.start_async()
            wait_for(lambda: vm.LeaderPID, poll=0.02)
            os.kill(parent_of(vm) if kill_parent else vm.LeaderPID, signal.SIGKILL)
            gather([start], 5)
            assert start.error and start.error.short == "BackendFailed", start.error
            assert words(vm) == ("Stopped", "start-failed") and not os.path.exists("/run/vmunit/vms/" + vm.Id)
            assert all(end for _, end in usage_of(vm))


@test("a new VMM whose reboot can't be stored at once has its interval of usage all the same", timeout=90,
      not_on={"qemu": "it reboots in the same process"})
def _():
    with fake_vmm() as fake, running() as vm:
        fake("gate")
        db = sqlite3.connect(DATABASE, isolation_level=None)
        with contextlib.closing(db), launcher_stopped():
            with stopped_process(vm.LeaderPID):
                reboot = vm.reboot_async()
                wait_for(lambda: vm.Job != "/", poll=0.01)
                db.execute("BEGIN IMMEDIATE")
            wait_for(lambda: vm.State == "Starting", poll=0.01)
            db.execute("ROLLBACK")
        with contextlib.closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as db:
            stored = lambda: db.execute("SELECT state FROM vm WHERE id = ?", (vm.Id,)).fetchone()[0]
            wait_for(lambda: vm.LeaderPID and stored() == "Starting", 20, "that it is stored", poll=0.05)
        fake("go")
        assert gather([reboot], 30) == [None], reboot.error
        assert [bool(end) for _, end in usage_of(vm)] == [True, False], usage_of(vm)


@test("a VMM killed while it stops: stopped, and the caller's Stop has succeeded")
def _():
    with running() as vm:
        deaf(vm)
        stop = vm.stop_async(timeout_usec=FOR_EVER)
        vm.wait_state("Stopping")
        os.kill(vm.LeaderPID, signal.SIGKILL)
        assert gather([stop]) == [None], stop.error
        # elsewhere the stop hid how it had ended
        assert vm.State == "Stopped" and vm.ExitSignal == 9 and "has shut down" not in vm.StateMessage, vm.StateMessage


@test("a VMM killed during a reboot, a pause, a reset: who waits is told")
def _():
    with running() as vm:
        deaf(vm)
        reboot = vm.reboot_async()
        wait_for(lambda: vm.Job != "/")
        os.kill(vm.LeaderPID, signal.SIGKILL)
        gather([reboot])
        assert reboot.error and reboot.error.short == "NotRunning", reboot.error
        assert_crashed(vm, 0, 9)
        for what in ("pause", "reset") if IN_PLACE else ("pause",):     # else a reset kills it anyhow
            pid = vm.LeaderPID
            with stopped_process(pid):          # so that it is still under way
                call = getattr(vm, what + "_async")()
                wait_for(lambda: vm.Job != "/")
                os.kill(pid, signal.SIGKILL)
                gather([call])
            assert call.error and call.error.short == "NotRunning", (what, call.error)
            assert_crashed(vm, 0, 9)


def kvm_works():
    try:
        with open("/dev/kvm", "r+b", buffering=0) as kvm:
            os.close(fcntl.ioctl(kvm, 0xae01, 0))       # KVM_CREATE_VM
        return True
    except OSError:
        return False


@test("KVM gives up on the guest: Error, vmm-failed, for each daemon", timeout=60)
def _():
    # Firecracker ends with status 0 then at times, as after a guest's reboot
    if not kvm_works():
        raise Skip("/dev/kvm can't be used")
    for round_ in range(6):
        with running(restart={"policy": "no"}, **({"accel": "kvm"} if BACKEND == "qemu" else {})) as vm:
            pid = vm.LeaderPID
            if round_ == 5:
                with vm.open_console() as console:
                    stop_daemon()
                    console.sendall(b"E")
                    if BACKEND != "qemu":               # which stays, with a guest that does not run
                        wait_for(lambda: not alive(pid), what="the VMM's end", poll=0.02)
                start_daemon()
            else:
                type_in(vm, b"E")
            vm.wait_state("Error", "Stopped")
            assert words(vm) == ("Error", "vmm-failed") and "could not go on" in vm.StateMessage, vm.properties()
            wait_for(lambda: not alive(pid) and vm.LeaderPID == 0, what="the VMM's end", poll=0.02)
            assert all(end for _, end in usage_of(vm))
            vm.start()
            assert words(vm) == ("Running", "")


@test("a VMM ended by a signal from outside has crashed, whatever its exit status says; what it does not handle does nothing")
def _():
    # each is the first of a PID namespace
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGKILL):
        with running() as vm:
            orderly = {"qemu": "TERM INT HUP", "cloud-hypervisor": "TERM INT"}.get(BACKEND, "")
            orderly = number.name.removeprefix("SIG") in orderly.split()
            os.kill(vm.LeaderPID, number)
            handled = orderly or number in (signal.SIGKILL, TERM)
            if not handled:
                vm.pause()
                vm.resume()
                assert words(vm) == ("Running", "")
                continue
            vm.wait_state("Error", "Stopped")
            # Cloud Hypervisor says no word of why then, and its guest may have powered off
            expected = ("Stopped", "vmm-exited") if orderly and BACKEND == "cloud-hypervisor" else CRASHED
            assert words(vm) == expected, (number, words(vm))
            wait_for(lambda: vm.ExitKnown, 5)
            if orderly:
                assert (vm.ExitCode, vm.ExitSignal) == (0, 0)
            else:
                assert vm.ExitSignal == number or vm.ExitCode, (number, vm.ExitCode, vm.ExitSignal)


@test("the VMM's parent killed: the VMM goes with it, in each state", timeout=60)
def _():
    with running() as vm:
        for prepare in (lambda: None, vm.pause):
            prepare()
            parent, pid = parent_of(vm), vm.LeaderPID
            os.kill(parent, signal.SIGKILL)
            wait_exit(pid)
            vm.wait_state("Error")
            assert words(vm) == CRASHED and not alive(pid)
            vm.start()
            vm.wait_log(b"TINY-UP")
        deaf(vm)
        stop, pid = vm.stop_async(timeout_usec=FOR_EVER), vm.LeaderPID
        vm.wait_state("Stopping")
        os.kill(parent_of(vm), signal.SIGKILL)
        assert gather([stop]) == [None] and vm.State == "Stopped" and not alive(pid)


@test("the VMM's parent hangs: a death is shown at once, and a console has a deadline", timeout=60)
def _():
    with running() as vm, stopped_process(parent_of(vm)):
        began = time.monotonic()
        try:
            vm.open_console()
        except BusError as error:
            assert error.short in ("Timeout", "BackendFailed"), error
        else:
            raise AssertionError("a console of a process that is stopped")
        assert time.monotonic() - began < 10 * PATIENCE
        assert words(vm) == ("Running", "")
        began = time.monotonic()
        os.kill(vm.LeaderPID, signal.SIGKILL)
        vm.wait_state("Error")
        assert time.monotonic() - began < 1 * PATIENCE and words(vm) == CRASHED
        vm.start()
        assert words(vm) == ("Running", "")


@test("the VMM's parent is late: what the guest said last and the exit status are not lost", timeout=60)
def _():
    with running() as vm:
        pid = vm.LeaderPID
        with never_its_turn(vm.Unit, parent_of(vm)):
            stop = vm.stop_async()
            wait_for(lambda: not alive(pid), what="the VMM's end", poll=0.01)
            late = time.monotonic() + 0.7       # which is longer than one that is stopped is waited for
            wait_for(lambda: time.monotonic() > late, poll=0.05)
        assert gather([stop]) == [None], stop.error
        assert words(vm) == ("Stopped", "stopped") and times_on(vm, b"POWERBTN") == 1, vm.console_log()
        assert (vm.ExitKnown, vm.ExitCode, vm.ExitSignal) == (True, 0, 0)


@test("a VMM that hangs: what is asked is answered, Stop goes the hard way, Kill works", timeout=90)
def _():
    # hypeman: a query that fails is no proof of a death; cocoon #139: every call to a VMM is bounded
    with running() as vm, running() as other:
        for end in ("stop", "kill"):
            with stopped_process(vm.LeaderPID):
                began = time.monotonic()
                for _ in range(20):
                    assert words(vm) == ("Running", "")
                vm.properties(), vm.definition(), vm.console_log(), vm.last_output(), manager.list(), manager.objects()
                assert time.monotonic() - began < 2 * PATIENCE
                began = time.monotonic()
                assert "CPUUsageNSec" in vm.stats()
                assert time.monotonic() - began < 3.5 * PATIENCE
                other.pause()
                other.resume()
                began = time.monotonic()
                if end == "stop":
                    vm.stop(timeout_usec=500000)
                    assert words(vm) == ("Stopped", "stop-forced")
                    assert 0.5 <= time.monotonic() - began < 9 * PATIENCE
                else:
                    pause = vm.pause_async()
                    wait_for(lambda: vm.Job != "/")
                    vm.kill()
                    assert words(vm) == ("Stopped", "killed") and time.monotonic() - began < 2 * PATIENCE
                    gather([pause])
                    assert pause.error.short == "Canceled", pause.error
            vm.start()


@test("a VMM that hangs for longer than a call may take, and goes on: the guest hears of its Stop, and has all of its time", timeout=90)
def _():
    with running(stopTimeout="1h") as vm, running(stopTimeout="1h") as paused:
        paused.pause()
        with stopped_process(vm.LeaderPID), stopped_process(paused.LeaderPID):
            stops = [vm.stop_async(), paused.stop_async()]
            late = time.monotonic() + 11
            wait_for(lambda: time.monotonic() > late, 60, poll=0.1)
            assert [words(v) for v in (vm, paused)] == [("Stopping", "")] * 2 and not any(stop.done for stop in stops)
        assert gather(stops, 60) == [None, None], [stop.error for stop in stops]
        for v in (vm, paused):
            assert words(v) == ("Stopped", "stopped") and times_on(v, b"POWERBTN") == 1, (words(v), v.console_log())


@test("a VMM that hangs with calls under way, a start that hangs, and 20 others that notice nothing", timeout=120)
def _():
    mode = "never-runs" if BACKEND == "firecracker" else "no-cont"    # in which it answers, or the start hangs elsewhere
    with running() as hangs, fake_vmm(mode) as fake, vm_of() as starts, stopped_process(hangs.LeaderPID):
        calls = [hangs.stop_async(timeout_usec=FOR_EVER), starts.start_async()]
        wait_for(lambda: starts.job and starts.job.Stage == "boot" and hangs.Job != "/", poll=0.05)
        fake("real")
        others = [manager.create(f"other-{n}", tiny_definition(memory="16M")) for n in range(20)]
        for verb in ("start", "pause", "resume", "stop", "start"):
            assert gather([getattr(vm, verb + "_async")() for vm in others], 40) == [None] * 20, verb
        assert {words(vm) for vm in others} == {("Running", "")}
        gather([vm.remove_async(force=True) for vm in others], 40)
        for vm in others:
            vm.wait_gone()
        for call, vm, state in zip(calls, (hangs, starts), ("Stopping", "Starting")):
            if call.done:                       # on a busy host its own deadline may have come
                assert call.finished - call.started > 9, (call.what, call.error)
                continue
            assert vm.State == state
            vm.kill()
            assert gather([call])[0].short == "Canceled"


@test("a start right after a death, again and again", timeout=60)
def _():
    # cocoon #152/#154: a start that races a dying VMM; incus ea476dec69: the old monitor is not gone before the new start
    with vm_of() as vm:
        for n in range(12):
            vm.start()
            with contextlib.suppress(ProcessLookupError):       # a start of one that has died unseen is fine
                os.kill(vm.LeaderPID or 2**22 + 1, signal.SIGKILL)
            if n % 2:
                vm.wait_state("Error")
        vm.wait_state("Error")
        runs = usage_of(vm)
        assert len(runs) >= 6 and all(0 < a <= b for a, b in runs), runs


@test("ten that die at once", timeout=60)
def _():
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(vm_of(tiny_definition(memory="16M"))) for _ in range(10)]
        assert gather([vm.start_async() for vm in vms], 30) == [None] * 10
        for pid in [vm.LeaderPID for vm in vms]:
            os.kill(pid, signal.SIGKILL)
        for vm in vms:
            vm.wait_state("Error")
        assert {words(vm) for vm in vms} == {CRASHED} and vmm_count() == 0


@test("a death while the removal, the pause or the console of the same VM is asked for", timeout=60)
def _():
    for what in ("remove_async", "pause_async", "update", "console", "stop_async", "kill_async"):
        with running() as vm:
            pid = vm.LeaderPID
            os.kill(pid, signal.SIGKILL)
            try:
                if what == "remove_async":
                    gather([vm.remove_async(force=True)])
                    vm.wait_gone()
                elif what == "update":
                    gather([vm.update_async({"resources": {"CPUWeight": 9}})])
                elif what == "console":
                    vm.open_console().close()
                else:
                    gather([getattr(vm, what)()])
            except BusError as error:
                assert error.short in ("NotRunning", "BackendFailed"), error
            if what != "remove_async":
                vm.wait_state("Error", "Stopped")
                wait_for(lambda: vm.Job == "/")
                vm.start()
                assert words(vm) == ("Running", "") and vmm_count() == 1


run()
