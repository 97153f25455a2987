#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=120 backends=firecracker
"""What Firecracker does in its own way: how it is asked to stop, and how it ends."""

import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *


@contextlib.contextmanager
def running(**over):
    with vm_of(tiny_definition(**over), start=True) as vm:
        vm.wait_log(b"TINY-UP")
        yield vm


@contextlib.contextmanager
def nobody():
    """In the block there is no daemon; after it the new one has had its look."""
    stop_daemon()
    try:
        yield
    finally:
        start_daemon()
        manager.list()


def ends(vm, key):
    """The guest is told to end, while the daemon is there and while it is not."""
    type_in(vm, key)
    vm.wait_state("Stopped", "Error")
    yield
    vm.start()
    wait_for(lambda: vm.console_log().endswith(b"TINY-UP\r\n"), poll=0.02)
    with vm.open_console() as console:
        pid = vm.LeaderPID
        with nobody():
            console.sendall(key)
            wait_for(lambda: not alive(pid), what="the VMM's end")
        vm.wait_state("Stopped", "Error")
    yield


def press(vm):
    """Past vmunitd; gives the status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(api_socket(vm.Id))
        body = b'{"action_type": "SendCtrlAltDel"}'
        connection.sendall(b"PUT /actions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return int(read_until(connection.fileno(), b"\r\n").split()[1])


@test("its id is the VM's; it says its version as Backends does")
def _():
    with running() as vm:
        says = api_request(vm.Id, "GET", "/")
        assert (says["id"], says["state"]) == (vm.Id, "Running"), says
        assert says["vmm_version"] == dict(manager.Backends)["firecracker"]["Version"], says


@test("Stop is Ctrl+Alt+Del: the guest shuts down by a reboot, which is no reboot then")
def _():
    with running(restart={"policy": "always"}) as vm:
        vm.stop()
        assert words(vm) == ("Stopped", "stopped") and vm.StateMessage == "The guest has shut down", vm.properties()
        assert b"POWERBTN" in vm.console_log() and types_of(vm).count("power-button") == 1
        assert (vm.ExitCode, vm.ExitSignal) == (0, 0) and vm.RestartAtUSec == 0


@test("Stop of a guest that does not hear it, or that can't be asked, says what it did")
def _():
    with running(stopTimeout="1s") as vm:
        deaf(vm)
        vm.stop()
        assert words(vm) == ("Stopped", "stop-forced")
        assert vm.StateMessage == "The guest did not shut down, so its VMM was ended" and vm.ExitSignal == signal.SIGKILL

        vm.start()
        deaf(vm)
        for _ in range(20):                     # until its keyboard controller's buffer is full
            if press(vm) == 400:
                break
        else:
            raise AssertionError("its buffer does not get full")
        vm.stop(timeout_usec=FOR_EVER)
        assert words(vm) == ("Stopped", "stop-forced")
        assert vm.StateMessage == "The guest was not asked to shut down; its VMM was ended"
        assert any("can't be pressed" in e["MESSAGE"] and "i8042" in e["MESSAGE"] for e in journal(f"VMUNIT_VM={vm.Name}"))

        vm.start()
        vm.stop(timeout_usec=0)
        assert words(vm) == ("Stopped", "stop-forced") and "not asked" in vm.StateMessage


@test("a guest's reboot ends it, and is told as such")
def _():
    with running() as vm:
        for _ in ends(vm, b"r"):
            assert words(vm) == ("Stopped", "guest-reboot"), vm.properties()
            assert vm.StateMessage == "The guest has rebooted, which ends Firecracker"
            wait_for(lambda: vm.ExitKnown)
            assert (vm.ExitCode, vm.ExitSignal) == (0, 0)


@test("what it can't run it says the reason of itself, which is in the start's error", timeout=60)
def _():
    with open(tiny_definition()["boot"]["kernel"], "rb") as f:
        head = f.read(64)
    make_file("/tmp/bad-kernel", mode=0o644, text=head[:32] + b"\xff" * 32 + bytes(4096))
    with vm_of(tiny_definition(boot={"kernel": "/tmp/bad-kernel"})) as vm:
        for _ in range(10):
            start = vm.start_async()
            gather([start])
            assert start.error.short == "BackendFailed" and "ernel" in start.error.message, start.error
            assert "RecvError" not in vm.last_output() and (vm.ExitCode, vm.ExitSignal) == (1, 0), (vm.ExitCode, vm.last_output())


@contextlib.contextmanager
def asked_all_the_time(vm):
    """By clients of vmunitd, and straight at its API, which makes Firecracker hang when its guest ends."""
    over = threading.Event()

    def flood():
        while not over.is_set():
            with contextlib.suppress(OSError, ValueError, IndexError, AssertionError):
                api_request(vm.Id, "PUT", "/actions", {"action_type": "FlushMetrics"})

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: [vm.call_async("GetStats", "a{sv}", {}) for _ in range(8)]
    finally:
        over.set()


@test("a guest's end beside requests, which makes Firecracker hang, is a guest's end", timeout=90)
def _():
    with running(stopTimeout="1h") as vm:
        for n in range(12):
            if n > 0:
                vm.start()
                wait_for(lambda: vm.console_log().endswith(b"TINY-UP\r\n"), poll=0.02)
            with asked_all_the_time(vm) as ask:
                if n % 2:
                    vm.stop()
                    assert words(vm) == ("Stopped", "stopped") and vm.StateMessage == "The guest has shut down", vm.properties()
                else:
                    type_in(vm, b"r")
                    calls = []
                    wait_for(lambda: vm.State == "Stopped" or calls.extend(ask()), 30, poll=0.05)
                    assert words(vm) == ("Stopped", "guest-reboot"), vm.properties()
                    gather(calls)
                    assert all(call.error is None or call.error.short == "NotRunning" for call in calls)


@test("a guest's reboot starts it again where the policy is always, and not where it is on-failure")
def _():
    # Not with vm_of(): the first plan of a restart opens a timer that the daemon keeps.
    vm = manager.create("again", tiny_definition(restart={"policy": "always"}), start=True)
    vm.wait_log(b"TINY-UP")
    pid = vm.LeaderPID
    type_in(vm, b"r")
    wait_for(lambda: vm.State == "Running" and vm.LeaderPID not in (0, pid), what="a new VMM")
    assert len(usage_of(vm)) == 2 and vm.RestartCount == 1
    vm.remove(force=True)
    vm.wait_gone()
    with running(restart={"policy": "on-failure"}) as vm:
        type_in(vm, b"r")
        vm.wait_state("Stopped")
        assert words(vm) == ("Stopped", "guest-reboot") and vm.RestartAtUSec == 0


@test("a signal from somebody else is no reboot, but a crash")
def _():
    with running() as vm:
        for away in (False, True):
            pid = vm.LeaderPID
            with nobody() if away else contextlib.nullcontext():
                os.kill(pid, TERM)
                wait_for(lambda pid=pid: not alive(pid), what="the VMM's end")
            vm.wait_state("Error")
            assert words(vm) == ("Error", "vmm-crashed")
            wait_for(lambda: vm.ExitKnown)
            assert vm.ExitCode == 156
            vm.start()


run()
