#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized=qemu,firecracker,cloud-hypervisor-model backends=qemu,firecracker,cloud-hypervisor
"""A VM's life: its states, each call in each state, guests that end by themselves, updates, removals, consoles."""

import errno
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *


def now():
    return int(time.time() * 1e6)


# The whole of it

@test("created, started, paused, resumed, rebooted, reset, stopped, removed", timeout=60)
def _():
    began, mark = now(), len(signals)
    with vm_of(name="life") as vm:
        identity = vm.Id
        assert words(vm) == ("Stopped", "") and vm.LeaderPID == 0

        vm.start()
        pid, started = vm.LeaderPID, vm.StartedUSec
        assert words(vm) == ("Running", "") and began < started <= now()
        with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
            assert f.read().startswith(COMM)
        assert (vm.Unit, vm.Slice) == ("vmunit-life.scope", "machine-vmunit-life.slice")
        assert {p for p in unit_pids(vm.Unit) if status(p, "PPid")[0] != str(pid)} == {pid, int(status(pid, "PPid")[0])}
        assert unit_cgroup(vm.Unit) == SLICE_CGROUP + "/machine-vmunit-life.slice/vmunit-life.scope"
        vm.wait_log(b"TINY-UP")
        assert [end for _, end in usage_of(vm)] == [0]

        vm.pause()
        assert words(vm) == ("Paused", "") and vm.LeaderPID == pid
        vm.pause()
        vm.resume()
        assert words(vm) == ("Running", "")
        vm.resume()

        vm.reboot()
        if IN_PLACE:
            wait_for(lambda: times_on(vm, b"TINY-UP") == 2, poll=0.02)
            assert vm.LeaderPID == pid and times_on(vm, b"POWERBTN") == 1
        else:                                   # another process, with a log of its own
            assert vm.LeaderPID != pid and not alive(pid)
            vm.wait_log(b"TINY-UP")
        assert words(vm) == ("Running", "")
        pid, started = vm.LeaderPID, vm.StartedUSec
        runs = times_on(vm, b"TINY-UP")
        vm.reset()
        if RESETS:
            wait_for(lambda: times_on(vm, b"TINY-UP") == runs + 1, poll=0.02)
            assert vm.LeaderPID == pid and vm.StartedUSec == started and times_on(vm, b"POWERBTN") == (1 if IN_PLACE else 0)
        else:
            assert vm.LeaderPID != pid and not alive(pid) and vm.StartedUSec > started
            vm.wait_log(b"TINY-UP")
            assert times_on(vm, b"POWERBTN") == 0
        assert words(vm) == ("Running", "")
        more = (not IN_PLACE) + (not RESETS)     # VMMs than one
        assert [end == 0 for _, end in usage_of(vm)] == [False] * more + [True], usage_of(vm)

        pid = vm.LeaderPID
        vm.stop()
        assert words(vm) == ("Stopped", "stopped") and vm.LeaderPID == 0 and not alive(pid)
        assert (vm.ExitKnown, vm.ExitCode, vm.ExitSignal) == (True, 0, 0)
        runs = usage_of(vm)
        assert began < runs[0][0] < runs[-1][1] <= now() and abs(runs[0][0] - began) < 10**7, runs
        assert not unit_pids(vm.Unit)
        wait_unit_gone(vm.Slice)
        events = types_of(vm)

    wait_for(lambda: not manager.list())
    reboot, reset = ([] if there else [("Stopping", ""), ("Starting", ""), ("Running", "")] for there in (IN_PLACE, RESETS))
    expected = [("Starting", ""), ("Running", ""), ("Paused", ""), ("Running", ""), *reboot, *reset, ("Stopping", ""),
                ("Stopped", "stopped"), ("Removing", "")]
    assert [s[:2] for s in vm.states(mark)] == expected, vm.states(mark)
    chain = [t for t in events if t in ("created", "starting", "running", "paused", "stopping", "stopped")]
    again = [state.lower() for state, _ in reboot + reset]
    assert chain == ["created", "starting", "running", "paused", "running", *again, "stopping", "stopped"], events
    assert events.count("power-button") == 2 and events.count("rebooted") == (1 if RESETS else 2), events
    assert events.count("vmm-exited") == 1 + more, events
    whole = [e[4] for e in manager.events(vm=identity)]         # the history outlives the VM
    assert whole[-2:] == ["removing", "removed"], whole


@test("the same on q35, with a firmware", not_on={"firecracker cloud-hypervisor": "it has one machine and no such firmware"})
def _():
    with vm_of(bios_definition()) as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        pid = vm.LeaderPID
        vm.pause()
        vm.resume()
        vm.reboot()
        wait_for(lambda: times_on(vm, b"TINY-UP") == 2, poll=0.02)
        assert vm.LeaderPID == pid
        vm.stop()
        assert words(vm) == ("Stopped", "stopped") and times_on(vm, b"POWERBTN") == 2


@test("one usage interval a run, whatever is done in it")
def _():
    with vm_of() as vm:
        for _ in range(3):
            vm.start()
            vm.start()
            vm.pause()
            vm.start()
            vm.resume()
            vm.stop()
            vm.stop()
        runs = usage_of(vm)
        assert len(runs) == 3 and all(0 < a < b for a, b in runs), runs
        assert all(runs[i][1] <= runs[i + 1][0] for i in range(2)), runs


# Guests that end by themselves

@test("a guest that ends by itself: Stopped, with the reason")
def _():
    key, reason = ENDS
    for definition in definitions():
        with vm_of(definition) as vm:
            mark = len(signals)
            vm.start()
            vm.wait_log(b"TINY-UP")
            type_in(vm, key)
            vm.wait_state("Stopped")
            assert words(vm) == ("Stopped", reason) and vm.LeaderPID == 0
            wait_for(lambda: vm.ExitKnown)
            assert (vm.ExitCode, vm.ExitSignal) == (0, 0)
            assert [s[:2] for s in vm.states(mark)] == [("Starting", ""), ("Running", ""), ("Stopped", reason)]
            (start, end), = usage_of(vm)
            assert 0 < start < end
            vm.start()                          # at once, though the last run's units may be there still
            assert words(vm) == ("Running", "")


@test("resets of our own are not taken for the guest's")
def _():
    # incus 46dd216572: a reset of its own was seen as the guest's, and killed VMs
    with vm_of() as vm:
        vm.start()
        vm.reset()
        vm.reset()
        vm.wait_log(b"TINY-UP")
        assert "guest-reset" not in types_of(vm)
        vm.pause()
        vm.resume()
        wait_for(lambda: vm.console_log().endswith(b"TINY-UP\r\n"), poll=0.02)
        type_in(vm, ENDS[0])
        vm.wait_state("Stopped")
        assert vm.StateReason == ENDS[1]


@test("an older version, whose answers have another form", not_on=dict.fromkeys(("qemu", "firecracker"), "it has none that differ"))
def _():
    old = "/usr/local/lib/vmunit-test/cloud-hypervisor-"
    os.makedirs(os.path.dirname(old), exist_ok=True)
    for version in ("40", "50"):
        shutil.copy2(os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib", "cloud-hypervisor-model"), old + version)
        with configured(**{KEY: old + version}), vm_of(tiny_definition()) as vm:
            wait_idle()
            vm.start()
            vm.wait_log(b"TINY-UP")
            for _ in range(2):
                vm.pause()
                assert vm.State == "Paused"
            for _ in range(2):
                vm.resume()
                assert vm.State == "Running"
            assert vm.stats()
            vm.reset()
            wait_for(lambda: times_on(vm, b"TINY-UP") == 2, poll=0.02)
            type_in(vm, b"r")
            wait_for(lambda: times_on(vm, b"TINY-UP") == 3, poll=0.02)
            assert words(vm) == ("Running", ""), words(vm)
            kill_daemon()
            assert words(vm) == ("Running", ""), words(vm)
            vm.stop()
            assert words(vm) == ("Stopped", "stopped"), words(vm)


@test("a guest that resets itself, by the board or by a triple fault, runs on, with an event",
      not_on={"firecracker": "it ends when its guest resets"})
def _():
    for definition in definitions(**({"accel": "tcg"} if BACKEND == "qemu" else {})):   # some nested KVMs know no triple fault
        with vm_of(definition) as vm:
            vm.start()
            pid = vm.LeaderPID
            for n, key in enumerate((b"r", b"t"), 1):
                wait_for(lambda: times_on(vm, b"TINY-UP") == n, poll=0.02)
                seen = types_of(vm).count("guest-reset")
                type_in(vm, key)
                wait_for(lambda: times_on(vm, b"TINY-UP") == n + 1, what=f"a second life after {key}", poll=0.02)
                if n == 1:                      # within a second of it a triple fault's may be taken for the same
                    wait_for(lambda: types_of(vm).count("guest-reset") == seen + 1, 10, "the event of the guest's reset")
                assert words(vm) == ("Running", "") and vm.LeaderPID == pid
            assert len(usage_of(vm)) == 1
            vm.stop()
            assert vm.StateReason == "stopped"


@test("a guest that panics: Error, guest-panicked, and it starts again",
      not_on={"firecracker": "it has no device that hears of a panic"})
def _():
    for definition in definitions():
        with vm_of(definition) as vm:
            mark = len(signals)
            vm.start()
            vm.wait_log(b"TINY-UP")
            pid = vm.LeaderPID
            type_in(vm, b"p")
            vm.wait_state("Error")
            assert words(vm) == ("Error", "guest-panicked") and vm.LeaderPID == 0
            wait_for(lambda pid=pid: not alive(pid), 5, "the VMM's end", poll=0.01)
            assert vm.StateMessage
            assert [s[:2] for s in vm.states(mark)][2:] == [("Error", "guest-panicked")], vm.states(mark)
            assert all(end for _, end in usage_of(vm))
            vm.start()
            assert words(vm) == ("Running", "")


# Stop

@test("a guest that does not obey is ended when its time is over: stop-forced")
def _():
    # banger 4930d82cb9: a guest that ignores the button must fall through to the hard way
    with vm_of() as vm:
        vm.start()
        deaf(vm)
        began = time.monotonic()
        vm.stop(timeout_usec=700000)
        took = time.monotonic() - began
        assert words(vm) == ("Stopped", "stop-forced"), words(vm)
        assert 0.7 <= took < 0.7 + 1.5 * PATIENCE, took
        assert (vm.ExitKnown, vm.ExitCode, vm.ExitSignal) == (True, *QUIT)
        assert types_of(vm).count("power-button") == 1

        vm.update({"stopTimeout": "300ms"})
        vm.start()
        deaf(vm)
        began = time.monotonic()
        vm.stop()
        assert 0.3 <= time.monotonic() - began < 2 * PATIENCE
        assert vm.StateReason == "stop-forced"


@test("a stop with no time at all does not ask the guest")
def _():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        vm.stop(timeout_usec=0)
        assert words(vm) == ("Stopped", "stop-forced") and "power-button" not in types_of(vm)
        assert b"POWERBTN" not in vm.console_log()


@test("a paused VM is resumed to hear the button")
def _():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        vm.pause()
        mark = len(signals)
        vm.stop()
        assert words(vm) == ("Stopped", "stopped") and b"POWERBTN" in vm.console_log()
        assert [s[:2] for s in vm.states(mark)] == [("Stopping", ""), ("Stopped", "stopped")], vm.states(mark)


@test("of two stops the shorter time wins, and both succeed")
def _():
    for first, second in ((FOR_EVER, 400000), (400000, FOR_EVER), (FOR_EVER, 0)):
        with vm_of() as vm:
            vm.start()
            deaf(vm)
            began = time.monotonic()
            calls = [vm.stop_async(timeout_usec=first)]
            vm.wait_state("Stopping")
            wait_for(lambda vm=vm: "power-button" in types_of(vm))
            calls.append(vm.stop_async(timeout_usec=second))
            assert gather(calls) == [None, None]
            took = time.monotonic() - began
            assert min(first, second) / 1e6 <= took < 3 * PATIENCE, took
            assert words(vm) == ("Stopped", "stop-forced") and types_of(vm).count("power-button") == 1


@test("Kill ends it at once, whatever it does", timeout=60)
def _():
    def stop(vm):
        deaf(vm)
        vm.stop(no_block=True, timeout_usec=FOR_EVER)

    with vm_of() as vm:
        for prepare in (lambda vm: None, VM.pause, deaf, stop):
            vm.start()
            vm.wait_log(b"TINY-UP")
            prepare(vm)
            pid, began = vm.LeaderPID, time.monotonic()
            vm.kill()
            assert time.monotonic() - began < 2 * PATIENCE
            assert words(vm) == ("Stopped", "killed") and not alive(pid)
            assert (vm.ExitKnown, vm.ExitCode, vm.ExitSignal) == (True, 0, 9)
        assert all(end for _, end in usage_of(vm))


# What each call does in each state. The states first:

@contextlib.contextmanager
def stopped_vm():
    with vm_of() as vm:
        yield vm, None


@contextlib.contextmanager
def starting_vm():
    with vm_of() as vm:
        with launcher_stopped():
            start = vm.start_async()
            vm.wait_state("Starting")
            yield vm, start
        gather([start])


@contextlib.contextmanager
def running_vm():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        yield vm, None


@contextlib.contextmanager
def paused_vm():
    with running_vm() as (vm, _):
        vm.pause()
        yield vm, None


@contextlib.contextmanager
def stopping_vm():
    with vm_of() as vm:
        vm.start()
        deaf(vm)
        stop = vm.stop_async(timeout_usec=FOR_EVER)
        vm.wait_state("Stopping")
        yield vm, stop


@contextlib.contextmanager
def failed_vm():
    with vm_of() as vm:
        vm.start()
        os.kill(vm.LeaderPID, signal.SIGKILL)
        vm.wait_state("Error")
        yield vm, None


@contextlib.contextmanager
def blocked_vm():
    """Its removal can't end before the block does: something is mounted below its directory."""
    with vm_of() as vm:
        vm.start()
        vm.stop()
        where = f"/var/lib/vmunit/vms/{vm.Id}/mounted"
        os.mkdir(where)
        subprocess.run(["mount", "-t", "tmpfs", "somebody", where], check=True)
        try:
            with open(where + "/theirs", "w", encoding="utf-8") as f:
                f.write("x")
            vm.remove()
            wait_for(lambda: vm.StateReason == "blocked")
            yield vm, None
            assert os.path.exists(where + "/theirs"), "a file in somebody else's mount was deleted"
        finally:
            subprocess.run(["umount", where], check=True)
        vm.remove()
        vm.wait_gone()


SITUATIONS = {"Stopped": stopped_vm, "Starting": starting_vm, "Running": running_vm, "Paused": paused_vm,
              "Stopping": stopping_vm, "Error": failed_vm, "Removing": blocked_vm}

ERRORS = ("Busy", "NotRunning", "InvalidState", "Removing")
# Either an error, with nothing changed, or the state that follows, its reason, and what the call under way before gets.
ROWS = {
    "start": ("Running", "joins", "Running", "Paused", "Busy", "Running", "Removing"),
    "stop": ("Stopped", "Stopped stopped Canceled", "Stopped stopped", "Stopped stopped", "joins", "Stopped stopped",
             "Removing"),
    "kill": ("Stopped", "Stopped killed Canceled", "Stopped killed", "Stopped killed", "Stopped killed Canceled",
             "Stopped stopped", "ok"),
    "pause": ("NotRunning", "Busy", "Paused", "Paused", "Busy", "NotRunning", "Removing"),
    "resume": ("NotRunning", "Busy", "Running", "Running", "Busy", "NotRunning", "Removing"),
    "reboot": ("NotRunning", "Busy", "Running", "InvalidState", "Busy", "NotRunning", "Removing"),
    "reset": ("NotRunning", "Busy", "Running", "InvalidState", "Busy", "NotRunning", "Removing"),
    "update": ("Stopped", "Busy", "Running", "Paused", "Busy", "Error", "Removing"),
    "remove": ("gone", "InvalidState", "InvalidState", "InvalidState", "InvalidState", "gone", "ok"),
    "force": ("gone", "gone - Canceled", "gone", "gone", "gone - Canceled", "gone", "ok"),
}


def do(vm, what, **keys):
    if what == "update":
        return vm.update_async({"labels": {"was": "updated"}})
    if what == "force":
        return vm.remove_async(force=True)
    return getattr(vm, what + "_async")(**keys)


def check_cell(vm, before, what, expected):
    was = words(vm)
    call = do(vm, what)
    gather([call])
    if expected in ERRORS:
        assert call.error and call.error.short == expected, f"{call.error} instead of {expected}"
        assert vm.Name in call.error.message, call.error.message
        assert words(vm) == was, (was, words(vm))
        return

    assert not call.error, call.error
    state, reason, of_before = (expected.split() + ["-", "-"])[:3]
    if state == "gone":
        vm.wait_gone()
    elif state != "ok":
        assert vm.State == state and reason in ("-", vm.StateReason), f"{words(vm)} instead of {expected}"
    if of_before != "-":
        gather([before])
        assert before.error and before.error.short == of_before, before.error
    if what == "update":
        assert vm.Labels == {"was": "updated"}


for column, at in enumerate(SITUATIONS):
    @test(f"what each call does when {at}", timeout=120)
    def _(column=column, at=at):
        wrong = []
        for what, row in ROWS.items():
            if row[column] == "joins":
                continue
            try:
                with SITUATIONS[at]() as (vm, before):
                    check_cell(vm, before, what, row[column])
            except Exception as error:
                wrong.append(f"{what} when {at}: {type(error).__name__}: {error}")
                with contextlib.suppress(Exception):
                    manager.remove_all()
        assert not wrong, "\n".join(wrong)


@test("a start that joins another gets the same result")
def _():
    with vm_of() as vm:
        with launcher_stopped():
            calls = [vm.start_async() for _ in range(3)]
            vm.wait_state("Starting")
            assert not any(c.done for c in calls)
        assert gather(calls) == [None] * 3 and words(vm) == ("Running", "")
        assert len(usage_of(vm)) == 1
        vm.stop()
        vm.update({"boot": {"kernel": "/nonexistent"}})
        with launcher_stopped():
            calls = [vm.start_async() for _ in range(3)]
            vm.wait_state("Starting")
        assert [e.short for e in gather(calls)] == ["BackendFailed"] * 3
        assert words(vm) == ("Stopped", "start-failed")


@test("an operation under way: the same call joins, Stop, Kill and Remove overtake, the rest is Busy", timeout=60)
def _():
    for last in ("stop", "kill", "force"):
        with vm_of(tiny_definition(stopTimeout="1min")) as vm:
            vm.start()
            deaf(vm)
            reboots = [vm.reboot_async()]
            wait_for(lambda: vm.Job != "/")
            reboots.append(vm.reboot_async())
            for what in ("start", "pause", "resume", "reset", "update"):
                call = do(vm, what)
                gather([call])
                assert call.error and call.error.short == "Busy", (what, call.error)
            with expect_error("InvalidState"):
                vm.remove()
            assert words(vm) == ("Running", "") and not any(r.done for r in reboots)
            if last == "stop":
                vm.stop(timeout_usec=100000)
                assert words(vm) == ("Stopped", "stop-forced")
            else:
                do(vm, last).result()
            gather(reboots)
            assert [r.error and r.error.short for r in reboots] == ["Canceled"] * 2, [r.error for r in reboots]


@test("whatever many clients call at once, each gets an answer, and the VM ends in one of its states", timeout=90)
def _():
    verbs = ["start"] * 4 + ["stop", "kill", "pause", "resume", "reboot", "reset", "update"]
    with vm_of() as vm:
        for seed in range(40):
            choose = random.Random(seed).choice
            calls = [do(vm, choose(verbs)) for _ in range(10)]
            if seed % 2:
                gather(calls[:2])
                calls += [do(vm, choose(verbs)) for _ in range(5)]
            gather(calls, 20)
            errors = {c.error.short for c in calls if c.error}
            assert errors <= {"Busy", "Canceled", "NotRunning", "InvalidState"}, (seed, [c.error for c in calls])
            state = vm.wait_state("Running", "Stopped", "Paused")
            assert vm.Job == "/" and vmm_count() == (state != "Stopped"), (seed, state, vm.Job, vmm_count())
        assert sum(end == 0 for _, end in usage_of(vm)) == (vm.State != "Stopped")


# Update

@test("an update of a VM that does not run takes effect at once, and survives the daemon")
def _():
    with vm_of() as vm:
        seen = vm.DefinitionHash
        vm.update({"cpus": 2, "memory": "40M", "labels": {"a": "b"}, "resources": {"CPUWeight": 7}})
        assert (vm.CPUs, vm.MemoryBytes, vm.Labels) == (2, 40 << 20, {"a": "b"}) and vm.DefinitionHash != seen
        kill_daemon()
        assert (vm.CPUs, vm.MemoryBytes, vm.Labels) == (2, 40 << 20, {"a": "b"})
        vm.start()
        assert unit_property(vm.Slice, "CPUWeight") == "7"
        assert cpus_and_memory(vm) == (2, 40)


@test("while it runs, what can't change is refused with a list, and nothing of that update is done")
def _():
    with vm_of() as vm:
        vm.start()
        before = vm.definition()
        with expect_error("InvalidState", "cpus, memory"):
            vm.update({"cpus": 2, "memory": "64M", "labels": {"a": "b"}})
        with expect_error("InvalidState", "boot.kernel"):
            vm.update({"boot": {"kernel": "/other"}})
        assert vm.definition() == before
        vm.update({"cpus": 1, "labels": {"a": "b"}, "stopTimeout": "5s", "autostart": True})
        assert vm.Labels == {"a": "b"} and vm.definition()["autostart"] is True
        with expect_error("InvalidDefinition", begins="labels"):
            vm.update({"labels": {"a": 1}})


@test("an update for the next start waits for it")
def _():
    with vm_of() as vm:
        vm.start()
        before = vm.DefinitionHash
        vm.update({"cpus": 2}, next_start=True)
        vm.update({"memory": "48M"}, next_start=True)
        assert vm.CPUs == 1 and vm.DefinitionHash == before
        vm.update({"labels": {"now": "yes"}})
        assert vm.CPUs == 1 and vm.Labels == {"now": "yes"}
        vm.reset()
        kill_daemon()
        assert vm.CPUs == 1
        vm.stop()
        vm.start()
        assert (vm.CPUs, vm.MemoryBytes, vm.Labels) == (2, 48 << 20, {"now": "yes"}), vm.properties()
        vm.stop()
        vm.update({"cpus": 3}, next_start=True)     # of one that does not run
        vm.start()
        assert vm.CPUs == 3


@test("resources go to the slice, change while it runs, and are gone with it", timeout=60)
def _():
    resources = {"CPUWeight": 50, "CPUQuota": "150%", "MemoryMax": "1G", "MemoryHigh": "900M", "TasksMax": 256,
                 "IOWeight": 60, "AllowedCPUs": "0"}
    shown = {"CPUWeight": "50", "CPUQuotaPerSecUSec": "1.500000s", "MemoryMax": str(1 << 30), "MemoryHigh": str(900 << 20),
             "TasksMax": "256", "IOWeight": "60", "AllowedCPUs": "0"}

    def values(vm):
        return {key: unit_property(vm.Slice, key) for key in shown}
    with vm_of(tiny_definition(resources=resources), "res-1") as vm:
        vm.start()
        assert values(vm) == shown, values(vm)
        vm.update({"resources": {"CPUWeight": 77, "TasksMax": "infinity", "MemoryHigh": None, "CPUQuota": None,
                                 "AllowedCPUs": None, "IOWeight": None}})
        after = values(vm)
        assert (after["CPUWeight"], after["TasksMax"], after["MemoryMax"]) == ("77", "infinity", str(1 << 30)), after
        assert (after["CPUQuotaPerSecUSec"], after["MemoryHigh"], after["AllowedCPUs"]) == ("infinity", "infinity", ""), after
        assert after["IOWeight"] == "[not set]", after
        assert "CPUQuota" not in vm.definition()["resources"] and vm.definition()["resources"]["CPUWeight"] == 77
        with expect_error("InvalidDefinition", begins="resources.MemoryMax"):
            vm.update({"resources": {"MemoryMax": "16M"}})
        vm.stop()
        wait_unit_gone(vm.Slice)
        vm.update({"resources": None})
        vm.start()
        plain = values(vm)
        assert (plain["CPUWeight"], plain["TasksMax"], plain["MemoryMax"]) == ("[not set]", "infinity", "infinity"), plain
        vm.stop()
        assert not [f for f in os.listdir("/run/systemd/transient") if "res" in f]
        assert not os.path.isdir("/run/systemd/system.control") or not os.listdir("/run/systemd/system.control")


@test("a shorter stopTimeout holds for a VM that runs")
def _():
    with vm_of(tiny_definition(stopTimeout="1min")) as vm:
        vm.start()
        deaf(vm)
        vm.update({"stopTimeout": "200ms"})
        began = time.monotonic()
        vm.stop()
        assert time.monotonic() - began < 3 * PATIENCE and vm.StateReason == "stop-forced"


# Remove

@test("a removal takes what vmunit made, and nothing that a definition names")
def _():
    # dstack 6cdb79cb, banger b1fbf695ca: clean-ups that deleted their users' files
    with tempfile.TemporaryDirectory(dir="/var/tmp") as d:
        shutil.copy(os.environ["VMUNIT_GUESTS"] + "/tiny.elf", d + "/kernel")
        with open(d + "/disk.raw", "wb") as f:
            f.truncate(1 << 20)
        definition = tiny_definition(boot={"kernel": d + "/kernel"}, disks=[{"path": d + "/disk.raw"}])
        with vm_of(definition, name="gone") as vm:
            vm.start()
            identity = vm.Id
            assert os.path.isdir("/var/lib/vmunit/vms/" + identity)
            with expect_error("InvalidState", "Stop"):
                vm.remove()
            vm.stop()
            vm.remove()
            vm.wait_gone()
            assert not os.path.exists("/var/lib/vmunit/vms/" + identity)
            assert sorted(os.listdir(d)) == ["disk.raw", "kernel"]
            assert [u[0] for u in manager.usage()].count(identity) == 1
            again = manager.create("gone", tiny_definition())       # the name is free, the id is another
            assert again.Id != identity
            again.remove()
            again.wait_gone()


@test("a removal that is blocked says so, keeps the name, and ends by itself when it can", timeout=60)
def _():
    # dstack 67f42ced, hypeman #104: a removal must go on by itself until it is done
    with vm_of(name="stuck") as vm:
        vm.start()
        pid = vm.LeaderPID
        where = f"/var/lib/vmunit/vms/{vm.Id}/mounted"
        os.mkdir(where)
        subprocess.run(["mount", "-t", "tmpfs", "somebody", where], check=True)
        try:
            with open(where + "/theirs", "w", encoding="utf-8") as f:
                f.write("x")
            vm.remove(force=True)
            wait_for(lambda: words(vm) == ("Removing", "blocked"))
            # elsewhere the number of a process that was gone stayed in the record
            assert vm.StateMessage and vm.LeaderPID == 0 and not alive(pid) and all(end for _, end in usage_of(vm))
            with expect_error("Removing"):
                manager.create("stuck", tiny_definition())
            with expect_error("Removing"):
                vm.start()
            vm.remove()
            assert vm.exists()
            kill_daemon()
            wait_for(lambda: words(vm) == ("Removing", "blocked"))
            assert os.path.exists(where + "/theirs"), "a file in somebody else's mount was deleted"
        finally:
            subprocess.run(["umount", where], check=True)
        vm.wait_gone(20)


@test("a blocked removal is tried again with growing pauses, and at once by Remove; others come and go meanwhile", timeout=60)
def _():
    with vm_of() as vm:
        vm.start()
        vm.stop()
        identity, where = vm.Id, f"/var/lib/vmunit/vms/{vm.Id}/mounted"

        def tries():
            return [e[1] / 1e6 for e in manager.events(vm=identity) if e[4] == "removing" and e[6]["reason"] == "blocked"]
        os.mkdir(where)
        subprocess.run(["mount", "-t", "tmpfs", "somebody", where], check=True)
        try:
            vm.remove()
            with vm_of() as other:
                other.start()
                other.stop()
            wait_for(lambda: len(tries()) >= 4, 30, "four tries", poll=0.1)
        finally:
            subprocess.run(["umount", where], check=True)
        began = time.monotonic()
        vm.remove()
        vm.wait_gone()
        assert time.monotonic() - began < 4, "it waited for its time, which is 8 s after the last try"
        at = tries()
        first, second, third = (b - a for a, b in zip(at, at[1:4]))
        assert 0.9 < first and second > 1.5 * first and third > 1.5 * second, at


@test("a removal by force leaves nothing, whatever the VM does", timeout=60)
def _():
    for state in ("Running", "Paused", "Stopping", "Starting", "Error"):
        with SITUATIONS[state]() as (vm, _):
            pid = vm.LeaderPID
            vm.remove(force=True)
            vm.wait_gone()
            assert not pid or not alive(pid)
            assert all(u[4] for u in manager.usage())


@test("what was asked of a VM that was removed does not reach the next of its name")
def _():
    # a removal that had waited for another call deleted the VM that had come in its place
    with vm_of(name="heir") as vm:
        for state in ("Starting", "Running", "Error"):
            old, calls = vm.Id, []
            with launcher_stopped() if state == "Starting" else contextlib.nullcontext():
                calls.append(vm.start_async())
                vm.wait_state("Starting" if state == "Starting" else "Running")
                if state == "Error":
                    os.kill(vm.LeaderPID, signal.SIGKILL)
                    vm.wait_state("Error")
                calls += [vm.remove_async(force=True) for _ in range(3)]
                vm.wait_gone()
                again = manager.create("heir", tiny_definition())
            gather(calls)
            assert again.Id != old and words(again) == ("Stopped", "")
            assert not any(c.error and c.error.short not in ("Canceled", "UnknownObject") and "Unknown" not in c.error.name
                           for c in calls), [c.error for c in calls]
            again.start()
            assert words(again) == ("Running", "") and vmm_count() == 1
            again.stop()
            assert types_of(again).count("starting") == 1


@test("of many that create one name at once one wins, and keeps it")
def _():
    # elsewhere the clean-up after the loser took the winner's name away
    with vm_of(name="other"):
        calls = [manager.create_async("wanted", tiny_definition(cpus=n + 1), start=n % 2 == 0) for n in range(6)]
        gather(calls)
        won, = [c for c in calls if not c.error]
        assert {c.error.short for c in calls if c.error} == {"VMExists"}
        vm = manager.vm("wanted")
        assert vm.path == won.result() and manager.vm(vm.Id).path == vm.path
        assert vm.CPUs == calls.index(won) + 1 and len(manager.list()) == 2
        kill_daemon()
        assert manager.vm("wanted").Id == vm.Id and len(manager.list()) == 2
        vm.remove(force=True)
        vm.wait_gone()


# Many

@test("20 VMs at once", timeout=120)
def _():
    manager.list()
    before = snapshot_leftovers()
    vms = [VM(p) for p in gather([manager.create_async(f"m{n}", tiny_definition(memory="16M")) for n in range(20)])]
    assert gather([vm.start_async() for vm in vms], 60) == [None] * 20
    assert {words(vm) for vm in vms} == {("Running", "")}
    assert len({vm.LeaderPID for vm in vms}) == 20 and vmm_count() == 20
    for vm in vms:
        vm.wait_log(b"TINY-UP", 30)
    for verb in ("pause", "resume", "stop"):
        assert gather([do(vm, verb) for vm in vms], 60) == [None] * 20
    assert {words(vm) for vm in vms} == {("Stopped", "stopped")}
    assert gather([vm.start_async() for vm in vms], 60) == [None] * 20
    assert gather([vm.remove_async(force=True) for vm in vms]) == [None] * 20
    wait_for(lambda: not manager.list(), 30)
    assert_no_leftovers(before, 20)


# The console

@test("a console: two readers, each may write; it ends with the VM")
def _():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        with vm.open_console() as one, vm.open_console() as two:
            assert b"xyz" in echoed(one, b"xyz") and b"xyz" in read_until(two.fileno(), b"xyz")
            assert b"ab" in echoed(two, b"ab") and b"ab" in read_until(one.fileno(), b"ab")
            one.close()
            assert b"alone" in echoed(two, b"alone")
            vm.stop()
            assert b"POWERBTN" in read_until(two.fileno(), b"POWERBTN")
            wait_readable(two.fileno())
            while two.recv(4096):
                pass
        with expect_error("NotRunning"):
            vm.open_console()


@test("a console to read: it shows all, and nothing that is sent by it gets to the guest")
def _():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        with vm.open_console(read_only=True) as reader, vm.open_console() as writer:
            copy = socket.socket(fileno=os.dup(reader.fileno()))
            for send in (lambda: reader.send(b"no"), lambda: reader.send(b"n", socket.MSG_OOB), lambda: copy.send(b"no"),
                         lambda: os.write(reader.fileno(), b"no"), lambda: socket.send_fds(reader, [b"no"], [0]),
                         lambda: reader.connect("/run/dbus/system_bus_socket"), lambda: reader.connect(f"/run/vmunit/vms/{vm.Id}/exec"),
                         lambda: os.open(f"/proc/self/fd/{reader.fileno()}", os.O_RDWR)):
                try:
                    send()
                except OSError as error:
                    assert error.errno in (errno.EPIPE, errno.EISCONN, errno.EINVAL, errno.ENXIO, errno.EPROTOTYPE), error
                else:
                    raise AssertionError("sent")
            copy.close()
            assert b"abc" in echoed(writer, b"abc") and b"abc" in read_until(reader.fileno(), b"abc")
            vm.stop()
            seen = read_until(reader.fileno(), b"POWERBTN")
            wait_readable(reader.fileno())
            while piece := reader.recv(4096):
                seen += piece
        assert b"no" not in vm.console_log() + seen, vm.console_log()


@test("a reader that does not read delays nobody", timeout=60)
def _():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        with vm.open_console() as slow, vm.open_console() as quick:
            slow.setsockopt(1, 8, 2048)         # SO_RCVBUF
            text = b"0123456789abcdef" * 16
            for _ in range(8):
                echoed(quick, text)
            assert times_on(vm, text) == 8
            vm.stop()
        assert words(vm) == ("Stopped", "stopped")


@test("the console's log is kept after the stop, and replaced by the next run's")
def _():
    with vm_of() as vm:
        assert vm.console_log() == b"" and vm.last_output() == ""       # it has never run
        vm.start()
        vm.wait_log(b"TINY-UP")
        type_in(vm, b"one")
        vm.wait_log(b"one")
        vm.stop()
        log = vm.console_log()
        assert log.startswith(b"TINY-UP") and b"one" in log and log.rstrip().endswith(b"POWERBTN"), log
        assert vm.console_log(10) == log[-10:]
        kill_daemon()
        assert vm.console_log() == log
        vm.start()
        vm.wait_log(b"TINY-UP")
        assert b"one" not in vm.console_log()


@test("the console's log is bounded, the oldest goes first", timeout=120)
def _():
    # dstack e6f9f8d3: a guest could fill the host's disk through its serial log
    with configured(ConsoleLogMaxBytes="4K"), vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        with vm.open_console() as console:
            for n in range(21):
                echoed(console, b"%02d" % n + b"-" * 198)
            echoed(console, b"done")
        vm.wait_log(b"done")
        log = vm.console_log()
        assert len(log) <= 4096 and log.endswith(b"done") and b"TINY-UP" not in log, (len(log), log[-20:])
        vm.stop()
        assert os.stat(f"/var/lib/vmunit/vms/{vm.Id}/console.log").st_size <= 8192 + 512


# Counters

@test("GetStats has systemd's names and the disks'; a dead VM is NotRunning, and its state is put right")
def _():
    # my_hypervisor (f), (g): stats on a dead VM returns VmNotRunning, not a socket error
    known = ("CPUUsageNSec", "MemoryCurrent", "MemoryPeak", "TasksCurrent", "IOReadBytes", "IOWriteBytes")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as d:
        with open(d + "/disk.raw", "wb") as f:
            f.truncate(1 << 20)
        with vm_of(tiny_definition(disks=[{"path": d + "/disk.raw"}])) as vm:
            with expect_error("NotRunning"):
                vm.stats()
            vm.start()
            stats = vm.stats()
            disk = {"disk0.ReadBytes", "disk0.WriteBytes", "disk0.ReadOps", "disk0.WriteOps"}
            assert {"CPUUsageNSec", *disk} <= stats.keys() <= {*known, *disk}, stats
            for key in ("CPUUsageNSec", "MemoryCurrent", "TasksCurrent"):
                assert (key in stats) is unit_property(vm.Slice, key).isdigit(), (key, stats)
            assert all(v < 2**63 for v in stats.values()), stats
            vm.pause()
            assert vm.stats()["CPUUsageNSec"] >= stats["CPUUsageNSec"]
            pid = vm.LeaderPID
            os.kill(pid, signal.SIGKILL)
            wait_exit(pid)                      # until then it may still answer
            with expect_error("NotRunning"):
                vm.stats()
            assert words(vm) == ("Error", "vmm-crashed")


@test("the daemon has one thread, whatever it has loaded to speak to its VMMs")
def _():
    with vm_of() as vm:
        vm.start()
        vm.pause()
        vm.resume()
        assert "CPUUsageNSec" in vm.stats()
        with open(f"/proc/{daemon_pid()}/maps", encoding="utf-8") as f:
            assert "libcurl" in f.read() or BACKEND == "qemu"
        assert status(daemon_pid(), "Threads") == ["1"]
        vm.stop()
    assert status(daemon_pid(), "Threads") == ["1"]


@test("a Stop without a limit ends where nobody can tell whether the guest has heard of it", timeout=90,
      not_on={"qemu": "its connection is there already"})
def _():
    with vm_of() as vm:
        vm.start()
        vm.wait_log(b"TINY-UP")
        os.unlink(api_socket(vm.Id))
        vm.stop(timeout_usec=FOR_EVER)
        assert words(vm) == ("Stopped", "stop-forced"), words(vm)
        vm.start()
        assert words(vm) == ("Running", "")


run()
