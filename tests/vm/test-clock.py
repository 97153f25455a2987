#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=900 all
"""The host's clock is set while restarts are planned and while VMs run: none is late by a day, and no budget is given back."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

DAY = 86400
PAUSE = 20                                      # RestartSec=, before which nothing may start

os.makedirs("/etc/vmunit/vmunit.conf.d", exist_ok=True)
with open("/etc/vmunit/vmunit.conf.d/clock.conf", "w") as f:
    f.write(f"[VMUnit]\nStartTimeoutSec=3min\nRestartSec={PAUSE}s\nRestartMaxDelaySec={PAUSE}s\nRestartResetSec=1h\n")
start_daemon()
manager = Manager()


def step(seconds):
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


def create(maximum=5):
    vm = manager.create("clock", tiny_definition(memory="16M", accel="tcg", restart={"policy": "on-failure", "max": maximum}))
    vm.start()
    return vm


def crash(vm):
    pid = vm.pid
    os.kill(pid, signal.SIGKILL)
    vm.wait_state("Error")
    return pid


def wait_again(vm, pid):
    wait_for(lambda: vm.State == "Running" and vm.pid not in (0, pid), 4 * PAUSE, "its restart")


@test("a clock that is set back or forth while a restart is planned", timeout=200)
def _():
    for days in (-1, 1):
        vm = create()
        pid = crash(vm)
        planned = time.monotonic()
        assert vm.RestartAtUSec
        step(days * DAY)
        wait_again(vm, pid)
        assert time.monotonic() - planned > 0.7 * PAUSE, "too early"
        vm.remove(force=True)
        vm.wait_gone()


@test("a clock that is set back while no daemon is there", timeout=120)
def _():
    vm = create()
    pid = crash(vm)
    stop_daemon()
    step(-DAY)
    start_daemon()
    wait_again(vm, pid)
    vm.remove(force=True)
    vm.wait_gone()


@test("a clock that is set while the VM runs gives no tries back", timeout=200)
def _():
    vm = create(2)
    for count, days in enumerate((1, -1), 1):
        step(days * DAY)
        pid = crash(vm)
        wait_again(vm, pid)
        assert vm.RestartCount == count, (count, vm.RestartCount)
    step(DAY)
    crash(vm)
    assert vm.RestartAtUSec == 0 and "limit" in vm.StateMessage, vm.StateMessage
    vm.remove(force=True)
    vm.wait_gone()


run()
