#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized backends=qemu,firecracker,cloud-hypervisor
"""A VM's units: their names and properties, what systemctl does to them, reloads, and units of other people."""

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *


def spawn(*command):
    """A systemctl that takes its time."""
    return subprocess.Popen(["systemctl", "--no-pager", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, timeout=20):
    """Waits for such a one as for all else."""
    wait_exit(process.pid, timeout)
    assert process.wait() == 0, process.stdout.read()


def finish_any(process):
    """It may fail as well: systemctl does, when PID 1 executes itself under it."""
    wait_exit(process.pid, 20)
    process.communicate()


def run_in_slice(unit, slice_, *more):
    """Somebody else's scope, with one process that sleeps; gives that."""
    process = subprocess.Popen(["systemd-run", "-q", "--scope", "--unit", unit, "--slice", slice_, *more, "sleep", "1000"])
    wait_for(lambda: unit_property(unit, "ActiveState") == "active" and unit_pids(unit), poll=0.02)
    return process


def end(process):
    process.kill()
    process.wait()


@contextlib.contextmanager
def running(name=None, **over):
    with vm_of(tiny_definition(**over), name) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        yield vm


# Names

@test("a, a-b and a.b: their units are escaped, and one that is stopped takes no other with it", timeout=60)
def _():
    names = ("a", "a-b", "a.b", "b")
    with contextlib.ExitStack() as stack:
        vms = {name: stack.enter_context(running(name)) for name in names}
        for name, vm in vms.items():
            escaped = subprocess.run(["systemd-escape", name], capture_output=True, text=True, check=True).stdout.strip()
            assert vm.Unit == f"vmunit-{escaped}.scope" and vm.Slice == f"machine-vmunit-{escaped}.slice"
            assert unit_property(vm.Unit, "Slice") == vm.Slice and unit_property(vm.Slice, "Slice") == "machine-vmunit.slice"
            assert unit_property("machine-vmunit.slice", "Slice") == "machine.slice"
            assert unit_cgroup(vm.Unit) == f"{SLICE_CGROUP}/{vm.Slice}/{vm.Unit}"
        pids = {name: vm.LeaderPID for name, vm in vms.items()}

        vms["a"].stop()
        assert {n: words(v)[0] for n, v in vms.items()} == {"a": "Stopped", "a-b": "Running", "a.b": "Running", "b": "Running"}
        vms["a"].start()
        vms["a"].wait_log(b"TINY-UP")
        systemctl("stop", vms["a"].Slice)
        vms["a"].wait_state("Stopped")
        assert [vms[n].LeaderPID for n in names[1:]] == [pids[n] for n in names[1:]]
        vms["a-b"].kill()
        assert [words(vms[n])[0] for n in names] == ["Stopped", "Stopped", "Running", "Running"]


# Properties

@test("the properties of scope and slice", timeout=60)
def _():
    with running("props", stopTimeout="7s") as vm:
        scope = {p: unit_property(vm.Unit, p) for p in
                 ("ActiveState", "SubState", "Transient", "CollectMode", "OOMPolicy", "KillSignal", "KillMode", "SendSIGKILL",
                  "TimeoutStopUSec", "Slice", "Description", "Delegate", "Result")}
        assert (scope["ActiveState"], scope["SubState"], scope["Transient"]) == ("active", "running", "yes"), scope
        assert (scope["CollectMode"], scope["OOMPolicy"], scope["Result"]) == ("inactive", "kill", "success"), scope
        assert int(scope["KillSignal"]) == signal.SIGCONT and scope["TimeoutStopUSec"] == "17s", scope
        assert "props" in scope["Description"] and scope["SendSIGKILL"] == "yes", scope
        assert unit_property(vm.Unit, "TasksMax").isdigit()
        # at shutdown they end before the daemon does: by the slice that all are in
        assert vm.Slice in unit_property(vm.Unit, "After").split()
        assert "machine-vmunit.slice" in unit_property(vm.Slice, "After").split()
        assert {"vmunitd.service", "dbus.service"} <= set(unit_property("machine-vmunit.slice", "After").split())
        assert "vmunit-guests.service" in unit_property(vm.Unit, "Before").split()
        assert unit_property(vm.Slice, "StopWhenUnneeded") == "yes" and unit_property(vm.Slice, "IOAccounting") == "yes"
        assert "props" in unit_property(vm.Slice, "Description")
        invocation = unit_property(vm.Unit, "InvocationID")
        details, = [u[5] for u in manager.usage() if u[0] == vm.Id]
        assert details["InvocationID"] == invocation
        # nothing holds the unit: it can go when its processes do
        assert not unit_property(vm.Unit, "RefUID")
        vm.stop()
        vm.update({"stopTimeout": "infinity"})
        vm.start()
        assert unit_property(vm.Unit, "TimeoutStopUSec") == "infinity"
        assert unit_property(vm.Unit, "InvocationID") != invocation


@test("units go with their VM, and machine-vmunit.slice may stay", timeout=60)
def _():
    with running() as vm:
        scope, slice_ = vm.Unit, vm.Slice
        vm.stop()
        assert unit_property(scope, "ActiveState") == "inactive" and unit_property(slice_, "ActiveState") == "inactive"
        assert not os.path.exists(f"{SLICE_CGROUP}/{slice_}")
        assert unit_property(scope, "LoadState") == "not-found" and unit_property(slice_, "StopWhenUnneeded") == "no"


# systemctl stop

@test("systemctl stop of scope, slice, machine-vmunit.slice and machine.slice: in good order", timeout=120)
def _():
    for unit in ("scope", "slice", "machine-vmunit.slice", "machine.slice"):
        for again in (False, True):
            with running("x-1") as vm, running("other") as other:
                if again:
                    kill_daemon()
                mark = len(signals)
                systemctl("stop", {"scope": vm.Unit, "slice": vm.Slice}.get(unit, unit))
                vm.wait_state("Stopped")
                assert words(vm) == ("Stopped", "stopped"), (unit, again, words(vm))
                assert times_on(vm, b"POWERBTN") == 1, (unit, again, vm.console_log())
                assert [s[:2] for s in vm.states(mark)] == [("Stopping", ""), ("Stopped", "stopped")], vm.states(mark)
                assert all(e for _, e in usage_of(vm))
                if unit.startswith("machine"):
                    other.wait_state("Stopped")
                    assert words(other) == ("Stopped", "stopped") and times_on(other, b"POWERBTN") == 1
                else:
                    assert words(other) == ("Running", "")
                vm.start()
                assert words(vm) == ("Running", "")


@test("systemctl stop while no daemon is there: systemd's time-out ends it, and then the daemon comes back", timeout=90)
def _():
    with running(stopTimeout="0") as vm:
        unit, pid = vm.Unit, vm.LeaderPID
        stop_daemon()
        finish(spawn("stop", unit))
        start_daemon()
        assert not alive(pid) and words(vm) == ("Error", "vmm-crashed"), words(vm)
        vm.start()
        assert words(vm) == ("Running", "")


@test("systemctl stop while no daemon is there: one that comes back meanwhile stops it in good order", timeout=90)
def _():
    with running() as vm:
        unit = vm.Unit
        stop_daemon()
        stop = spawn("stop", unit)
        wait_for(lambda: unit_property(unit, "SubState") == "stop-sigterm")
        start_daemon()
        finish(stop)
        vm.wait_state("Stopped")
        assert words(vm) == ("Stopped", "stopped") and times_on(vm, b"POWERBTN") == 1


@test("systemctl stop of a paused VM, and of one that is deaf", timeout=60)
def _():
    with running() as vm:
        vm.pause()
        systemctl("stop", vm.Unit)
        vm.wait_state("Stopped")
        assert words(vm) == ("Stopped", "stopped") and times_on(vm, b"POWERBTN") == 1
    with running(stopTimeout="500ms") as vm:
        deaf(vm)
        began = time.monotonic()
        finish(spawn("stop", vm.Slice))
        assert time.monotonic() - began < 5 * PATIENCE
        vm.wait_state("Stopped")
        assert words(vm) == ("Stopped", "stop-forced") and (vm.ExitKnown, vm.ExitCode) == (True, 0)


@test("systemctl stop of a VM that starts cancels the start")
def _():
    with fake_vmm("hang"), vm_of() as vm:
        start = vm.start_async()
        wait_for(lambda: vm.LeaderPID)
        finish(spawn("stop", vm.Unit))
        gather([start])
        assert start.error and start.error.short == "Canceled", start.error
        assert words(vm) == ("Stopped", "stopped")


@test("systemctl stop and Stop at once are one stop")
def _():
    with running() as vm:
        stop = spawn("stop", vm.Unit)
        vm.stop()
        finish_any(stop)                        # it may have come when there was no such unit any more
        assert words(vm) == ("Stopped", "stopped") and times_on(vm, b"POWERBTN") == 1
        assert types_of(vm).count("power-button") == 1


@test("systemctl kill: Error, vmm-crashed", timeout=60)
def _():
    with running() as vm:
        systemctl("kill", "-s", "KILL", vm.Unit)
        vm.wait_state("Error")
        assert words(vm) == ("Error", "vmm-crashed") and vm.LeaderPID == 0
        assert all(e for _, e in usage_of(vm))
        vm.start()
        vm.wait_log(b"TINY-UP")
        systemctl("kill", "-s", "KILL", vm.Slice)
        vm.wait_state("Error")
        assert words(vm) == ("Error", "vmm-crashed")
        vm.start()
        systemctl("kill", "-s", TERM.name, vm.Unit)   # the VMM obeys that, though nobody of ours asked
        vm.wait_state("Error", "Stopped")
        # Cloud Hypervisor says no word of why then, and its guest may have powered off
        assert words(vm) == (("Stopped", "vmm-exited") if BACKEND == "cloud-hypervisor" else ("Error", "vmm-crashed"))


# Reloads: systemd tells of units as if they had gone

@test("daemon-reload and daemon-reexec change nothing", timeout=90)
def _():
    for what in ("daemon-reload", "daemon-reexec"):
        with running() as one, running() as two:
            two.pause()
            mark = len(signals)
            before = [vm.properties() for vm in (one, two)]
            for _ in range(3):
                systemctl(what)
            assert [vm.properties() for vm in (one, two)] == before
            assert not one.states(mark) and not two.states(mark)
            type_in(one, b"abc")
            assert unit_property(one.Unit, "ActiveState") == "active"
            assert one.LeaderPID in unit_pids(one.Unit)
            one.stop()
            assert words(one) == ("Stopped", "stopped")
            systemctl(what)
            systemctl("stop", two.Unit)
            two.wait_state("Stopped")
            assert words(two) == ("Stopped", "stopped") and times_on(two, b"POWERBTN") == 1
            one.start()
            one.kill()


@test("deaths during a reload are seen, and who starts in one starts", timeout=150)
def _():
    for what in ("daemon-reload", "daemon-reexec") * 4:
        with vm_of() as one, running() as two:
            reloads = [spawn(what) for _ in range(4)]
            start = one.start_async()
            os.kill(two.LeaderPID, signal.SIGKILL)
            two.wait_state("Error")
            assert gather([start]) == [None], start.error
            for reload in reloads:
                finish_any(reload)
            assert words(one) == ("Running", "") and one.LeaderPID in unit_pids(one.Unit)
            assert len(usage_of(one)) == 1
            reloads = [spawn(what) for _ in range(4)]
            stop, again = one.stop_async(), two.start_async()
            assert gather([stop, again]) == [None, None], (stop.error, again.error)
            for reload in reloads:
                finish_any(reload)
            assert words(one) == ("Stopped", "stopped") and words(two) == ("Running", "")


@test("a reload and the daemon's death at once", timeout=60)
def _():
    with running() as vm:
        pid = vm.LeaderPID
        killed = daemon_pid()
        reload = spawn("daemon-reexec")
        os.kill(killed, signal.SIGKILL)
        finish(reload)
        wait_for(lambda: daemon_pid() not in (0, killed), poll=0.05)
        wait_for(lambda: words(vm) == ("Running", ""))
        assert vm.LeaderPID == pid
        systemctl("stop", vm.Unit)
        vm.wait_state("Stopped")
        assert words(vm) == ("Stopped", "stopped")


# Other people's units

@test("somebody's unit in the VM's slice keeps the slice, and nothing else", timeout=90)
def _():
    with vm_of(tiny_definition(resources={"CPUWeight": 50}), "guest-1") as vm:
        vm.start()
        theirs = run_in_slice("theirs.scope", vm.Slice)
        try:
            pid = unit_pids("theirs.scope")[0]
            for restart in (False, True):
                began = time.monotonic()
                vm.stop()
                assert words(vm) == ("Stopped", "stopped") and time.monotonic() - began < 4 * PATIENCE
                assert alive(pid) and unit_property(vm.Slice, "ActiveState") == "active"
                if restart:
                    kill_daemon()
                began = time.monotonic()
                vm.start()
                assert words(vm) == ("Running", "") and time.monotonic() - began < 4 * PATIENCE
                assert unit_property(vm.Unit, "Slice") == vm.Slice
            vm.kill()
            assert alive(pid)
        finally:
            end(theirs)
        wait_unit_gone(vm.Slice)
        vm.start()                              # with a slice of its own again
        assert unit_property(vm.Slice, "CPUWeight") == "50"


@test("somebody's unit that was in the slice before", timeout=60)
def _():
    manager.list()
    theirs = run_in_slice("theirs.scope", "machine-vmunit-late.slice")
    try:
        with vm_of(name="late") as vm:
            vm.start()
            assert words(vm) == ("Running", "") and unit_property(vm.Unit, "Slice") == vm.Slice
            vm.update({"resources": {"TasksMax": 200}})
            assert unit_property(vm.Slice, "TasksMax") == "200"
            assert not os.path.exists("/run/systemd/system.control/machine-vmunit-late.slice.d"), "the next of the name would have it"
            vm.stop()
            assert words(vm) == ("Stopped", "stopped")
            vm.start()
    finally:
        end(theirs)
    wait_unit_gone("machine-vmunit-late.slice")


@contextlib.contextmanager
def scopes_wait(*names):
    """The jobs of these VMs' scopes wait for as long as this lasts."""
    made = ["/run/systemd/system/hang.service", *(f"/run/systemd/system/vmunit-{name}.scope.d/hang.conf" for name in names)]
    for path in made:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as f:
            f.write("[Unit]\nAfter=hang.service\n" if path.endswith(".conf") else
                    "[Service]\nType=oneshot\nExecStart=/bin/sleep infinity\n")
    systemctl("daemon-reload")
    systemctl("start", "--no-block", "hang.service")
    try:
        yield
    finally:
        systemctl("stop", "hang.service")
        for path in made:
            os.unlink(path)
        systemctl("daemon-reload")


@test("a scope that PID 1 was not to start after all leaves no slice", timeout=120)
def _():
    def loaded(vm):
        return systemctl("list-units", "--all", "--plain", "--no-legend", vm.Slice, vm.Unit).strip()

    with vm_of(name="barely") as vm:
        with scopes_wait("barely"):
            call, cancelled = vm.start_async(), 0
            while not call.done:
                for job in [line.split()[0] for line in systemctl("list-jobs").splitlines() if vm.Unit in line]:
                    systemctl("cancel", job, check=False)
                    cancelled += 1
                with contextlib.suppress(Timeout):
                    wait_for(lambda: call.done, 0.1)
            assert cancelled and "systemd could not start the scope" in str(call.error), (cancelled, call.error)
            assert words(vm) == ("Stopped", "start-failed")
            assert not loaded(vm), loaded(vm)
        vm.start()
        assert words(vm) == ("Running", "")


@test("scopes whose jobs wait keep no other VM from its start, however many", timeout=120)
def _():
    names = [f"wait{i}" for i in range(6)]
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(vm_of(name=name)) for name in names]
        other = stack.enter_context(vm_of(name="other"))
        with scopes_wait(*names):
            calls = [vm.start_async() for vm in waiting]
            wait_for(lambda: all(vm.Unit in systemctl("list-jobs") for vm in waiting), 30, poll=0.05)
            other.start()
            assert words(other) == ("Running", "")
            assert not any(call.done for call in calls) and {vm.State for vm in waiting} == {"Starting"}
        for call in calls:
            call.result()
        assert {words(vm) for vm in waiting} == {("Running", "")}


@test("a slice of which PID 1 has forgotten what we had said goes with its VM as well")
def _():
    with vm_of(name="forgotten") as vm:
        vm.start()
        os.unlink(f"/run/systemd/transient/{vm.Slice}")
        systemctl("daemon-reload")
        assert unit_property(vm.Slice, "StopWhenUnneeded") == "no" and not unit_property(vm.Slice, "FragmentPath")
        began = time.monotonic()
        vm.kill()
        assert time.monotonic() - began < 4 * PATIENCE
        wait_unit_gone(vm.Slice, 5)
        vm.start()
        assert unit_property(vm.Slice, "StopWhenUnneeded") == "yes"


@test("a scope of the VM's name that is not the VM's does not hinder a start", timeout=90)
def _():
    # cocoon #183-#187: the scope of a dying predecessor
    for kind in ("failed", "active", "other slice"):
        with vm_of(name="stale") as vm:
            unit = vm.Unit
            if kind == "failed":
                theirs = run_in_slice(unit, vm.Slice, "-p", "KillSignal=SIGCONT", "-p", "TimeoutStopSec=100ms")
                systemctl("stop", unit)
                wait_for(lambda: unit_property(unit, "ActiveState") == "failed")
            else:
                theirs = run_in_slice(unit, vm.Slice if kind == "active" else "system.slice")
            began = time.monotonic()
            try:
                vm.start()
            finally:
                end(theirs)
            assert words(vm) == ("Running", ""), kind
            assert vm.LeaderPID in unit_pids(unit) and len(unit_pids(unit)) == 2 and unit_property(unit, "Slice") == vm.Slice
            assert len(usage_of(vm)) == 1
            vm.stop()
            assert words(vm) == ("Stopped", "stopped")
            assert time.monotonic() - began < 4 * PATIENCE, kind
            systemctl("stop", vm.Slice)         # theirs, which would stay


@test("a start that had something to clear away can be cancelled", timeout=60)
def _():
    with vm_of(name="stale") as vm:
        theirs = run_in_slice(vm.Unit, "system.slice", "-p", "SendSIGKILL=no")
        try:
            start = vm.start_async()
            vm.wait_state("Starting", "Running")
            vm.kill()
            gather([start])
            assert vm.State == "Stopped"
            vm.start()
        finally:
            end(theirs)


run()
