#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized backends=qemu,firecracker,cloud-hypervisor
"""Restart policies: back-off, budget, who wins against them, what survives the daemon."""

import os
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *



def configure(reset="1h"):
    os.makedirs("/etc/vmunit", exist_ok=True)
    with open("/etc/vmunit/vmunit.conf", "w") as f:
        f.write(f"[VMUnit]\nRestartSec=200ms\nRestartMaxDelaySec=400ms\nRestartResetSec={reset}\n")


configure()
start_daemon()
manager = Manager()


def create(name, policy, maximum=5, **over):
    return manager.create(name, tiny_definition(restart={"policy": policy, "max": maximum}, **over), start=True)


def kill_vmm(vm=None, pid=None):
    pid = pid or vm.pid
    os.kill(pid, signal.SIGKILL)
    wait_exit(pid)


def wait_again(vm, pid, timeout=15):
    """Running with another process."""
    wait_for(lambda: vm.State == "Running" and vm.pid not in (0, pid), timeout, f"{vm.Name} runs again")


@test("on-failure starts a crashed VM again, and says so before")
def _():
    vm = create("again", "on-failure")
    pid, mark = vm.pid, time.time()
    kill_vmm(vm)
    vm.wait_state("Error")
    assert vm.StateReason == "vmm-crashed"
    at = vm.RestartAtUSec / 1e6
    assert mark < at < mark + 2 * 4, (mark, at)
    wait_again(vm, pid)
    assert vm.RestartCount == 1 and vm.RestartAtUSec == 0
    kill_vmm(vm)
    wait_for(lambda: vm.RestartCount == 2 and vm.State == "Running", 15, "the second restart")
    vm.stop()
    assert (vm.State, vm.StateReason, vm.RestartAtUSec) == ("Stopped", "stopped", 0)
    vm.start()
    assert vm.RestartCount == 0, "a manual start counts anew"
    vm.remove(force=True)
    vm.wait_gone()


@test("no policy starts nothing")
def _():
    vm = create("none", "no")
    kill_vmm(vm)
    vm.wait_state("Error")
    assert vm.RestartAtUSec == 0
    vm.remove(force=True)
    vm.wait_gone()


@test("a guest that ends by itself is no failure, but always restarts it")
def _():
    once, always = create("once", "on-failure"), create("always", "always")
    pid = always.pid
    for vm in (once, always):
        vm.wait_log(b"TINY-UP", 10)
        vm.open_console().sendall(ENDS[0])
    once.wait_state("Stopped")
    assert (once.StateReason, once.RestartAtUSec) == (ENDS[1], 0)
    wait_again(always, pid)
    for vm in (once, always):
        vm.remove(force=True)
        vm.wait_gone()


def delays(vm, deaths):
    """The pauses before so many restarts, in ms, as they are told."""
    mark = len(signals)
    for count in range(1, deaths + 1):
        pid = vm.pid
        kill_vmm(vm)
        wait_again(vm, pid)
        assert vm.RestartCount == count
    told = [s.args[1] for s in signals[mark:] if s.member == "PropertiesChanged" and s.path == vm.path]
    return [(p["RestartAtUSec"] - p["StateSinceUSec"]) / 1000 for p in told if p.get("RestartAtUSec") and p.get("State") == "Error"]


@test("the pauses double up to the bound, give or take a fifth, and VMs that die together do not come back together", timeout=60)
def _():
    vms = [create(f"pause-{n}", "on-failure") for n in range(3)]
    told = [delays(vm, 3) for vm in vms]
    for of_one in told:
        assert len(of_one) == 3, told
        for delay, middle in zip(of_one, (200, 400, 400)):      # RestartSec=, twice that, RestartMaxDelaySec=
            assert 0.8 * middle <= delay <= 1.2 * middle, told
    assert len({round(d, 1) for of_one in told for d in of_one[1:]}) > 2, told
    for vm in vms:
        vm.remove(force=True)
        vm.wait_gone()


@test("the budget ends it, with the cause of the death and a sentence")
def _():
    vm = create("budget", "on-failure", 2)
    for count in (1, 2):
        pid = vm.pid
        kill_vmm(vm)
        wait_again(vm, pid)
        assert vm.RestartCount == count
    kill_vmm(vm)
    vm.wait_state("Error")
    assert (vm.StateReason, vm.RestartAtUSec) == ("vmm-crashed", 0)
    assert "limit" in vm.StateMessage, vm.StateMessage
    vm.remove(force=True)
    vm.wait_gone()


@test("a budget of none restarts nothing, and a run that went well gives it back")
def _():
    # elsewhere a zero was lost on its way to the store, and VMs were restarted without end since nothing ever counted
    none = create("none", "always", 0)
    kill_vmm(none)
    none.wait_state("Error")
    assert none.RestartAtUSec == 0 and "limit" in none.StateMessage, none.StateMessage
    vm = create("well", "on-failure", 1)
    pid = vm.pid
    kill_vmm(vm)
    wait_again(vm, pid)
    pid, since = vm.pid, time.monotonic()
    configure("2s")
    stop_daemon()
    start_daemon()
    assert pid and vm.pid == pid and vm.RestartCount == 1
    wait_for(lambda: time.monotonic() > since + 2.1, 10, "a run of that length", poll=0.1)
    kill_vmm(vm)
    wait_again(vm, pid)
    assert vm.RestartCount == 1, vm.RestartCount
    configure()
    stop_daemon()
    start_daemon()
    for v in (none, vm):
        v.remove(force=True)
        v.wait_gone()


@test("Stop, Kill and Remove of a VM that always restarts are the end of it")
def _():
    # the guest powers off because it was asked to, and the policy took that for an end of its own; or it beat the removal
    for verb in ("stop", "kill", "systemctl", "remove"):
        vm, mark = create("end-" + verb, "always"), len(signals)
        vm.wait_log(b"TINY-UP", 10)
        if verb == "remove":
            vm.remove(force=True)
            vm.wait_gone()
        elif verb == "systemctl":
            systemctl("stop", vm.Unit)
            vm.wait_state("Stopped")
        else:
            getattr(vm, verb)()
        if verb != "remove":
            assert (vm.State, vm.StateReason, vm.RestartAtUSec) == ("Stopped", "killed" if verb == "kill" else "stopped", 0)
            kill_daemon()
            assert (vm.State, vm.RestartAtUSec) == ("Stopped", 0)
            vm.remove()
            vm.wait_gone()
        assert not [s for s in signals[mark:] if s.member == "Event" and s.args[4] in ("starting", "error")], signals[mark:]


@test("Stop, Kill and Remove win against a planned restart")       # dstack efc62ed6, 187aab05
def _():
    for verb in ("stop", "kill"):
        vm = create("planned-" + verb, "on-failure")
        kill_vmm(vm)
        vm.wait_state("Error")
        assert vm.RestartAtUSec > 0
        getattr(vm, verb)()
        assert (vm.State, vm.RestartAtUSec) == ("Stopped", 0)
        mark = len(signals)
        other = create("clock-" + verb, "on-failure")           # a restart takes its time: the planned one would be there as well
        pid = other.pid
        kill_vmm(other)
        wait_again(other, pid)
        assert vm.State == "Stopped" and vm.RestartCount == 0
        assert not [s for s in signals[mark:] if s.member == "Event" and s.args[3] == vm.Name and s.args[4] == "starting"]
        for v in (vm, other):
            v.remove(force=True)
            v.wait_gone()
    vm = create("planned-remove", "on-failure")
    kill_vmm(vm)
    vm.wait_state("Error")
    vm.remove()
    vm.wait_gone()


@test("Stop ends what a power-off had planned")
def _():
    vm = create("off", "always")
    vm.wait_log(b"TINY-UP", 10)
    vm.open_console().sendall(ENDS[0])
    vm.wait_state("Stopped")
    assert vm.RestartAtUSec > 0
    vm.stop()
    assert vm.RestartAtUSec == 0
    vm.remove()
    vm.wait_gone()


@test("a plan survives the daemon, also one that comes due while it is away")
def _():
    vm = create("survivor", "on-failure")
    pid = vm.pid
    kill_vmm(vm)
    vm.wait_state("Error")
    kill_daemon()
    wait_again(vm, pid)
    assert vm.RestartCount == 1

    pid = vm.pid
    stop_daemon()
    os.kill(pid, signal.SIGKILL)
    wait_exit(pid)
    start_daemon()
    wait_again(vm, pid)
    assert vm.RestartCount == 2
    vm.remove(force=True)
    vm.wait_gone()


def edit(sql, *args):
    """What somebody who has set the clock would have left in the database, while no daemon is there."""
    with contextlib.closing(sqlite3.connect("/var/lib/vmunit/vmunit.db")) as db, db:
        db.execute(sql, args)


@test("a clock that was set back while no daemon was there: a plan waits no longer than any can")
def _():
    vm = create("clock", "on-failure")
    pid = vm.pid
    stop_daemon()
    kill_vmm(pid=pid)
    day = 86400 * 10**6
    edit("UPDATE vm SET state = 'Error', reason = 'vmm-crashed', restart_at = ? WHERE name = 'clock'", int(time.time() * 1e6) + day)
    start_daemon()
    assert vm.RestartAtUSec == 0 or vm.RestartAtUSec > time.time() * 1e6 + day / 2
    wait_again(vm, pid, 20)
    vm.remove(force=True)
    vm.wait_gone()


@test("the budget is given back for a long run, and not for a clock that was set", timeout=60)
def _():
    for days in (-2, 2):
        vm = create("clock", "on-failure", 3)
        for count in (1, 2):
            pid = vm.pid
            stop_daemon()
            edit("UPDATE vm SET started = started + ? WHERE name = 'clock'", days * 86400 * 10**6)
            start_daemon()
            kill_vmm(vm)
            wait_again(vm, pid)
            assert vm.RestartCount == count, (days, vm.RestartCount)
        vm.remove(force=True)
        vm.wait_gone()


@test("a start by policy that fails is an Error, and the next try")
def _():
    os.makedirs("/tmp/restart", exist_ok=True)
    disk = "/tmp/restart/disk.raw"
    with open(disk, "wb") as f:
        f.truncate(1 << 20)
    vm = create("failing", "on-failure", 3, disks=[{"name": "data0", "path": disk}])
    os.rename(disk, disk + ".away")
    kill_vmm(vm)
    wait_for(lambda: vm.RestartCount == 3 and vm.State == "Error" and vm.RestartAtUSec == 0, 20, "the budget's end")
    assert vm.StateReason == "start-failed", vm.StateReason
    os.rename(disk + ".away", disk)
    vm.start()
    vm.remove(force=True)
    vm.wait_gone()


@test("an Update to no policy ends a plan")
def _():
    vm = create("update", "on-failure")
    kill_vmm(vm)
    vm.wait_state("Error")
    assert vm.RestartAtUSec > 0
    vm.update({"restart": {"policy": "no"}})
    assert vm.RestartAtUSec == 0
    vm.remove()
    vm.wait_gone()


run()
