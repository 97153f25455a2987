#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized
"""Where two things meet: an update and a death, a slice and a stranger, a stop and a VMM that does not answer."""

import os
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import deaf

os.makedirs("/etc/vmunit", exist_ok=True)
with open("/etc/vmunit/vmunit.conf", "w") as f:
    f.write("[VMUnit]\nRestartSec=1s\nRestartMaxDelaySec=1s\n")
start_daemon()
manager = Manager()


def started(name, **over):
    return manager.create(name, tiny_definition(**over), start=True)


def removed(vm):
    vm.remove(force=True)
    vm.wait_gone()


def kill_vmm(vm):
    pid = vm.pid
    os.kill(pid, signal.SIGKILL)
    wait_exit(pid)


def set_in_database(sql, *values):
    """While no daemon runs."""
    with contextlib.closing(sqlite3.connect("/var/lib/vmunit/vmunit.db")) as db, db:
        db.execute(sql, values)


@test("a daemon that loses the bus has failed, so that it is started again", timeout=60)
def _():
    stop_daemon()
    bus_daemon = subprocess.Popen(["dbus-daemon", "--session", "--nofork", "--address=unix:path=/run/other-bus", "--print-address"],
                                  stdout=subprocess.PIPE, text=True)
    bus_daemon.stdout.readline()
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/run/other-bus"}
    environment.pop("NOTIFY_SOCKET", None)
    with open("/run/other-log", "w+") as log:
        daemon = subprocess.Popen([unit_property("vmunitd.service", "ExecStart").split("path=")[1].split()[0]],
                                  env=environment, stderr=log)

        def owned():
            return subprocess.run(["busctl", "--quiet", "--address=unix:path=/run/other-bus", "status", BUS],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        try:
            wait_for(owned, 20 * 2, "the name on the other bus", poll=0.1)
            bus_daemon.kill()
            bus_daemon.wait()
            assert daemon.wait(20) == 1, daemon.returncode
        finally:
            daemon.kill()
            bus_daemon.kill()
            start_daemon()


@test("an update of a VM that has stopped keeps what was stored for its next start")
def _():
    vm = started("kept")
    vm.update({"cpus": 2}, next_start=True)
    vm.stop()
    vm.update({"labels": {"a": "b"}})
    assert (vm.CPUs, vm.Labels) == (2, {"a": "b"}), vm.properties()
    vm.start()
    assert (vm.CPUs, vm.Labels) == (2, {"a": "b"}), vm.properties()
    removed(vm)


@test("a directory in /run that will not go is told, and hinders nothing else", timeout=60)
def _():
    vm = started("mounted")
    where = f"/run/vmunit/vms/{vm.Id}/theirs"
    os.mkdir(where)
    subprocess.run(["mount", "-t", "tmpfs", "somebody", where], check=True)
    try:
        kill_vmm(vm)
        vm.wait_state("Error")
        wait_unit_gone(vm.Unit)
        wait_unit_gone(vm.Slice)
        with expect_error("BackendFailed"):
            vm.start()
    finally:
        subprocess.run(["umount", where], check=True)
    vm.start()
    removed(vm)


@test("a slice that a stranger kept gets its resources again when the stranger has gone", timeout=60)
def _():
    vm = started("shared", resources={"TasksMax": 256})
    stranger = "stranger.service"
    subprocess.run(["systemd-run", "--quiet", f"--unit={stranger}", f"--slice={vm.Slice}", "sleep", "infinity"], check=True)
    vm.stop()
    assert unit_property(vm.Slice, "ActiveState") == "active"
    systemctl("stop", stranger)
    wait_unit_gone(vm.Slice)
    vm.start()
    assert unit_property(vm.Slice, "TasksMax") == "256", unit_property(vm.Slice, "TasksMax")
    vm.stop()
    wait_unit_gone(vm.Slice)
    removed(vm)


@test("an update under way when the VMM dies is answered, and the next start is another operation", timeout=90)
def _():
    for i in range(10):
        vm = started(f"dies-{i}")
        pid = vm.pid
        reload = subprocess.Popen(["systemctl", "daemon-reload"])   # keeps PID 1 from answering
        update = vm.update_async({"resources": {"TasksMax": 300 + i}})
        os.kill(pid, signal.SIGKILL)
        vm.wait_state("Error")
        start = vm.call_async("Start", "a{sv}", {})
        for operation in (update, start):
            try:
                operation.result()
            except BusError as error:
                assert error.name.endswith((".NotRunning", ".Canceled")) and operation is update, error
        reload.wait()
        assert vm.State == "Running" and vm.Job == "/", vm.properties()
        removed(vm)


@test("an Error whose VMM ends while the daemon is away has no open interval")
def _():
    vm = started("ledger")
    ident, pid = vm.Id, vm.pid
    stop_daemon()
    set_in_database("UPDATE vm SET state = 'Error', reason = 'stop-failed' WHERE id = ?", ident)
    os.kill(pid, signal.SIGKILL)
    wait_exit(pid)
    start_daemon()
    assert (vm.State, vm.StateReason) == ("Error", "stop-failed")
    assert [bool(u[4]) for u in manager.usage() if u[0] == ident] == [True], manager.usage()
    removed(vm)


@test("Stop of an Error whose VMM lives but does not answer ends it", timeout=60)
def _():
    vm = started("mute")
    ident, pid = vm.Id, vm.pid
    stop_daemon()
    set_in_database("UPDATE vm SET state = 'Error', reason = 'stop-failed' WHERE id = ?", ident)
    os.kill(pid, signal.SIGSTOP)
    start_daemon()
    assert vm.State == "Error" and vm.pid == pid
    with expect_error("Timeout"):
        vm.start()
    vm.stop(timeout_usec=0)
    assert (vm.State, vm.StateReason) == ("Stopped", "stop-forced")
    wait_exit(pid)
    removed(vm)


@test("a Reboot that is refused leaves no time limit to what comes next", timeout=60)
def _():
    vm = started("twice", stopTimeout="1500ms")
    deaf(vm)
    daemon, pid = daemon_pid(), vm.pid
    reboot = vm.call_async("Reboot", "a{sv}", {})
    wait_for(lambda: any(e[4] == "power-button" for e in manager.events(vm=vm.Id)))
    os.kill(pid, signal.SIGSTOP)                    # it can't be told that the reboot is given up
    with expect_error("Timeout"):
        reboot.result()
    with expect_error("Busy", "Reboot"):
        vm.reboot()
    os.kill(pid, signal.SIGCONT)
    vm.stop(timeout_usec=3000000)
    assert (vm.State, vm.StateReason) == ("Stopped", "stop-forced") and daemon_pid() == daemon
    removed(vm)


@test("--stop-all starts nothing, whatever is planned", timeout=60)
def _():
    vmunitd = unit_property("vmunitd.service", "ExecStart").split("path=")[1].split()[0]
    planned = started("planned", restart={"policy": "on-failure"})
    slow = started("slow", stopTimeout="3s")
    os.kill(slow.pid, signal.SIGSTOP)               # so that it takes its time
    pid = planned.pid
    os.kill(pid, signal.SIGKILL)
    wait_exit(pid)
    planned.wait_state("Error")
    assert planned.RestartAtUSec > 0
    stop_daemon()
    subprocess.run([vmunitd, "--stop-all"], check=True, timeout=40)
    with contextlib.closing(sqlite3.connect("/var/lib/vmunit/vmunit.db")) as db:
        states = dict(db.execute("SELECT name, state FROM vm"))
    assert states == {"planned": "Error", "slow": "Stopped"}, states
    start_daemon()
    for vm in (planned, slow):
        removed(vm)


run()
