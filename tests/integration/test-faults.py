#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: fault timeout=900 backends=qemu,firecracker,cloud-hypervisor
"""The matrix of faults: at each point that the binary names, whatever applies there: the daemon dies, the VMM dies, the step fails with
EIO or ENOSPC, it hangs. Afterwards all is quiet, the invariants hold, and the VM can be used.

With VMUNIT_ALL all cases run; else the daemon's death at each point, a fixed part of the rest, and one that VMUNIT_SEED (1) chooses for each VMM.
"""

import errno
import fnmatch
import os
import random
import shutil
import socket
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
import loop_devices
import vmunit_test as vt
from invariants import DATABASE, Known, come_round_to, ids_of, uids_of
from leftovers import processes_of_ids
from vmunit_beds import ENDS, IN_PLACE, KEY, RESETS, qmp
from vmunit_test import *

FAULT_FILE = "/run/vmunit/fault"
LAST_BOOT = "/var/lib/vmunit/last-boot"
DISK = "/tmp/fault-disk.raw"                      # of a file system that can be idmapped
PLAIN_DISK = "/var/lib/fault-disk.raw"          # of one that can't, so it becomes a loop device, but with QEMU
WHERE = "/usr/local/lib/vmunit-test"            # a VMM sees /usr of the host
LAUNCHES = WHERE + "/launches"                  # a FIFO, for it can't write there
HOSTILE = WHERE + "/qemu-system-hostile"
PROGRAM = "/usr/bin/qemu-system-x86_64" if BACKEND == "qemu" else "/usr/local/bin/" + BACKEND
PARTS = 10 if BACKEND == "qemu" else 20         # of the cases that do not always run, one runs

# Transitions that nothing leads to here: real limits of memory, what other VMMs and their guests do. And calls that are
# over when there is another process have no answer.
OTHERS = {"qemu": ("guest-reboot", "vmm-exited"), "cloud-hypervisor": ("guest-shutdown", "guest-reboot", "io-error", "vmm-failed"),
          "firecracker": ("guest-shutdown", "guest-panicked", "vmm-exited", "io-error", "vmm-failed", "virtiofsd-crashed")}[BACKEND]
UNREACHED = {f"commit.{t}.{when}" for t in ("oom-kill", *OTHERS) for when in ("before", "after")}
UNREACHED |= {f"call.{method}.after" for method, there in (("Reset", RESETS), ("Reboot", IN_PLACE)) if not there}
SHARES = BACKEND != "firecracker"
UNREACHED |= set() if SHARES else {f"share.{step}" for step in ("files", "launch", "scope", "fork", "run-file", "go", "ready")}
UNREACHED |= {"start.loop"} if BACKEND == "qemu" or loop_devices.missing() else set()
# Each way out of a hang, in turn
WAYS = ("deadline", "stop", "kill", "cancel", "remove")

# What the VMM's place is taken by: it counts the launches, and is the hostile QEMU for some VMs
VMM = f"""#!/bin/sh
[ "$1" = --version ] || echo "$$" >>{LAUNCHES}
case "$*" in *guest=h-*) exec {HOSTILE} "$@" ;; esac
exec {PROGRAM} "$@"
"""

os.makedirs(os.path.dirname(HOSTILE))
shutil.copy2(os.path.join(os.path.dirname(os.path.realpath(__file__)), "hostile-vmm"), HOSTILE)
with open(WHERE + "/vmm", "w") as f:
    f.write(VMM)
os.chmod(WHERE + "/vmm", 0o755)
os.mkfifo(LAUNCHES)
os.chmod(LAUNCHES, 0o666)
told_of = os.open(LAUNCHES, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
n_launches = 0
os.makedirs("/etc/vmunit", exist_ok=True)
with open("/etc/vmunit/vmunit.conf", "w") as f:
    f.write(f"[VMUnit]\n{KEY}={WHERE}/vmm\nStartTimeoutSec=4s\nRestartSec=50ms\nRestartMaxDelaySec=100ms\nRestartResetSec=1h\n")
os.makedirs("/run/systemd/system/vmunitd.service.d", exist_ok=True)
with open("/run/systemd/system/vmunitd.service.d/fault.conf", "w") as f:
    f.write("[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=10ms\n")
for path in (DISK, PLAIN_DISK):
    with open(path, "wb") as f:
        f.truncate(1 << 20)
systemctl("daemon-reload")
start_daemon()
manager = Manager()
known = Known()
owner = None                                    # the daemon's name on the bus, when a fault was armed


def arm(*lines):
    global owner
    owner = vt._owner()
    with open(FAULT_FILE + ".new", "w") as f:
        f.write("".join(line + "\n" for line in lines))
    os.rename(FAULT_FILE + ".new", FAULT_FILE)


def wait_fired(died=False):
    """died: also until another daemon has come."""
    wait_for(lambda: not os.path.exists(FAULT_FILE), 10, "the fault to fire", poll=0.01)
    if died:
        wait_for(lambda: vt._owner() not in (None, owner), 20, "another daemon", poll=0.05)


class Case:
    def __init__(self, point, action):
        self.point, self.action, self.name = point, action, f"{point} {action}"
        self.call, self.vm, self.gone = None, None, False
        self.way = WAYS[sum(self.name.encode()) % len(WAYS)]
        self.ignore, self.over = (), {}

    # What a case begins with

    def create(self, start=False, name="fault", **over):
        self.vm = manager.create(name, tiny_definition(**self.over, **over))
        known.add(self.vm)
        if start:
            self.vm.start()
        return self.vm

    def up(self, **over):
        """A VM whose guest hears its power button."""
        self.create(start=True, **over).wait_log(b"TINY-UP")

    def paused(self):
        self.create(start=True).pause()

    def arm(self, *before):
        arm(*before, self.name)

    def fire(self, call=None):
        """The fault is armed, CALL (a function) made, and the fault has fired."""
        self.arm()
        self.call = call() if call else None
        self.wait_fired()

    def wait_fired(self):
        wait_fired(self.action == "kill-daemon")

    def dead_vmm(self):
        pid = self.vm.pid
        os.kill(pid, signal.SIGKILL)
        wait_exit(pid)

    # What a case ends with

    def ended(self, timeout=30):
        """The call's error (None: it has succeeded)."""
        if not self.call:
            return None
        wait_for(lambda: self.call.done, timeout, "an answer to the call")
        return self.call.error

    def state(self):
        self.settle()
        return self.vm.State, self.vm.StateReason

    def settle(self):
        known.check(30, self.ignore)

    def expect(self, *states, error=None):
        """error: True, False or None for either"""
        e = self.ended()
        if self.action == "kill-daemon":
            assert e is None or e.name.startswith(("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected")), e
        elif error is not None:
            assert bool(e) == error, f"the call's error is {e}"
        state = self.state()
        assert any(state == s or state[0] == s for s in states), f"{state} instead of {states}"

    def finish(self):
        """The VM can be used, and goes."""
        if not self.vm or self.gone:
            return
        vm = self.vm
        if sum(self.name.encode()) % 2:
            if vm.State in ("Running", "Paused"):
                vm.stop(timeout_usec=0)
                assert vm.State == "Stopped"
            vm.start()
            assert vm.State == "Running" and vm.pid
            vm.kill()
            vm.remove()
        else:
            if vm.State in ("Stopped", "Error"):
                vm.start()
            assert vm.State in ("Running", "Paused") and vm.pid
            vm.remove(force=True)
        vm.wait_gone()


# What leads to a point, and what it may lead to

def op_start(c):
    c.create(**({"disks": [{"path": PLAIN_DISK}]} if c.point == "start.loop" else {}))
    if c.point.startswith("start.clear"):
        kill_daemon()                           # one that knows nothing of the last run
    c.fire(c.vm.start_async)
    before = {"start.clear.before", "start.files.before"}
    if c.action == "hang":
        return out_of_hang(c)
    if c.action in ("EIO", "ENOSPC"):
        if c.point.startswith("commit.started"):
            return c.expect("Running", error=False)
        if c.point in ("commit.start.before", "job.number"):
            return c.expect(("Stopped", ""), error=True)
        c.expect(("Stopped", "start-failed"), error=True)
        if c.action == "ENOSPC":
            assert c.call.error.short == "NoSpace", c.call.error
    elif c.action == "kill-vmm":
        # it was told to run its guest as soon as it could be reached, and may have said that it does
        late = c.point.startswith(("commit.started", "start.boot", "start.connect.after"))
        return c.expect(("Error", "vmm-crashed"), ("Stopped", "start-failed")) if late else \
            c.expect(("Stopped", "start-failed"), error=True)
    elif c.point == "commit.started.after":
        c.expect("Running")
    elif c.point in before | {"commit.start.before", "job.number"}:
        c.expect("Stopped")
    else:
        c.expect(("Stopped", "start-failed"))
    return None


def out_of_hang(c):
    vm, way = c.vm, c.way
    if way == "cancel":
        vm.job.cancel()
    elif way == "remove":
        vm.remove(force=True)
        vm.wait_gone()
        c.gone = True
        known.forget(next(iter(known.definitions)))
    elif way != "deadline":
        getattr(vm, way)()
    error = c.ended()
    assert error.short == ("Timeout" if way == "deadline" else "Canceled"), error
    if way == "remove":
        c.settle()
    else:
        c.expect(("Stopped", {"deadline": "start-failed", "kill": "killed"}.get(way, "stopped")))


def op_create(c):
    c.arm()
    text = tiny_definition()
    c.call = manager.create_async("fault", text)
    c.wait_fired()
    e = c.ended()
    if c.action in ("EIO", "ENOSPC"):
        assert e and (c.action == "EIO" or e.short == "NoSpace"), e
    if c.point == "create.write":
        assert e and not manager.list()
        return c.settle()
    c.vm = manager.vm("fault")
    known.add(c.vm)
    return c.expect("Stopped")


def op_stop(c):
    """Stop with the button, or what the point's name says."""
    hard = c.point in ("stop.quit", "commit.stop-forced.before", "commit.stop-forced.after")
    if c.point == "stop.resume":
        c.paused()
    else:
        c.up()
    keys = {"timeout_usec": 0} if hard else {"timeout_usec": 300000} if c.action == "hang" else {}
    c.fire(lambda: c.vm.stop_async(**keys))
    if c.point == "run.gone" and c.action != "kill-daemon":
        c.ignore = ("/run/vmunit/vms",)         # goes with the next start, or the removal
    if c.point == "commit.stop.before" and c.action == "kill-daemon":
        return c.expect("Running")
    if c.point == "commit.stop.before" and c.action == "kill-vmm":
        return c.expect("Stopped")
    return c.expect("Stopped", error=False)


def op_refused(c):
    """A Stop, or a Kill, that can't begin: nothing has changed, nobody has heard of a job."""
    c.create(start=True)
    before, mark = c.vm.properties(), len(signals)
    c.fire(c.vm.kill_async if sum(c.action.encode()) % 2 else c.vm.stop_async)
    c.expect("Running", error=True)
    if c.action != "kill-daemon":
        assert c.vm.properties() == before and not signals[mark:], signals[mark:]


def op_start_next(c):
    """A start that can't be stored leaves what was stored for the next one where it is."""
    c.create(start=True)
    c.vm.update({"labels": {"next": "yes"}}, next_start=True)
    c.vm.kill()
    before, mark = c.vm.properties(), len(signals)
    c.fire(c.vm.start_async)
    if c.action == "kill-daemon":
        return c.expect("Stopped")
    c.expect("Stopped", error=True)
    assert c.vm.properties() == before and not signals[mark:], (c.vm.properties(), signals[mark:])
    c.vm.start()
    assert c.vm.Labels == {"next": "yes"}
    known.add(c.vm)
    return c.expect("Running")


def op_kill(c):
    c.create(start=True)
    c.fire(c.vm.kill_async)
    if c.action == "hang":
        assert c.ended().short == "Timeout"
        assert (c.vm.State, c.vm.StateReason) == ("Error", "stop-failed") and c.vm.pid
        c.call = c.vm.kill_async()
    c.expect("Stopped", error=False)


def op_stop_failed(c):
    c.create(start=True)
    arm("stop.kill hang", c.name)
    c.call = c.vm.kill_async()
    c.wait_fired()
    if c.action == "kill-daemon":               # which finds a VM that is being stopped, and goes on
        return c.expect("Stopped", "Error", "Running")
    c.ended()
    if c.action == "kill-vmm":
        c.expect("Stopped", "Error")
    else:
        c.expect(("Error", "stop-failed"))
    return None


def op_found(c):
    """An Error whose VMM lives is found running, or paused, by a Start, or by a call that only looks."""
    paused = "found-paused" in c.point
    (c.paused if paused else lambda: c.create(start=True))()
    pid = c.vm.pid
    arm("stop.kill hang")
    with expect_error("Timeout"):
        c.vm.kill()
    assert c.vm.State == "Error"
    began = len(manager.usage())
    looks = sum(c.name.encode()) % 2
    c.fire(lambda: c.vm.call_async("GetStats", "a{sv}", {}) if looks else c.vm.start_async())
    if c.action == "kill-vmm":
        return c.expect(("Error", "vmm-crashed"))
    c.ended()
    wait_for(lambda: c.state()[0] == ("Paused" if paused else "Running"), 10, "it is found", poll=0.05)
    c.expect("Paused" if paused else "Running", error=False)
    assert c.vm.StateReason == "stop-failed", "the reason stays until the next operation"
    assert c.vm.pid == pid and len(manager.usage()) == began, "it was launched once more"
    return None


def op_call(c):
    """Pause, Resume, Reset, Reboot"""
    method = {"commit.paused": "Pause", "commit.resumed": "Resume"}.get(c.point.rpartition(".")[0], c.point.split(".")[1])
    if method == "Resume":
        c.paused()
    else:
        c.up()
    pid = c.vm.pid
    relaunches = method == "Reset" and not RESETS or method == "Reboot" and not IN_PLACE
    c.fire(lambda: getattr(c.vm, method.lower() + "_async")())
    if c.action == "kill-vmm":                  # for a Reset that is what it does itself
        return c.expect("Running" if relaunches and method == "Reset" else ("Error", "vmm-crashed"))
    if c.action == "hang":
        way = ("stop", "kill")[sum(c.name.encode()) % 2]
        getattr(c.vm, way)()
        assert c.ended().short == "Canceled", c.call.error
        return c.expect("Stopped")
    c.expect("Running", "Paused", error=c.action in ("EIO", "ENOSPC") and not c.point.startswith("commit"))
    if c.action in ("EIO", "ENOSPC") and c.point.endswith("before") and c.point.startswith("call."):
        assert c.call.error.short == "BackendFailed" and "database" not in c.call.error.message, c.call.error
    if method == "Reboot" and c.action == "kill-daemon" and not c.point.endswith("before"): # in the same VMM, or a new one
        assert c.vm.State == "Running" and (c.vm.pid != pid or c.vm.console_log().count(b"TINY-UP") == 2)
        return None
    assert c.vm.pid == pid or relaunches and c.action == "kill-daemon"
    return None


def op_update(c):
    """Labels, or resources, of a VM that runs"""
    c.create(start=True)
    old = c.vm.call("GetDefinition", "a{sv}", {})
    patch = {"resources": {"TasksMax": 200}} if "resources" in c.point else {"labels": {"a": "b"}}
    c.fire(lambda: c.vm.update_async(patch))
    known.definitions[c.vm.Id] = {old}
    if c.action == "hang":
        c.vm.kill()
        assert c.ended().short == "Canceled", c.call.error
        return c.expect("Stopped")
    error = c.ended()
    failed = c.action in ("EIO", "ENOSPC")
    if c.point == "update.resources" and c.action == "kill-vmm":
        failed = bool(error)                    # its death may be noticed first
    assert c.action == "kill-daemon" or bool(error) == failed, error
    new = c.vm.call("GetDefinition", "a{sv}", {})
    changed = new != old
    assert changed == (not error or c.point == "update.written"), f"changed: {changed}, error: {error}"
    known.definitions[c.vm.Id] = {new}
    return c.expect(("Error", "vmm-crashed")) if c.action == "kill-vmm" else c.expect("Running")


def op_update_limits(c):
    """Limits that PID 1 has taken over, and which can't be stored then, are taken back."""
    c.create(start=True, resources={"TasksMax": 300, "CPUWeight": 50})
    limits = lambda: [unit_property(c.vm.Slice, name) for name in ("TasksMax", "CPUWeight", "CPUQuotaPerSecUSec")]
    before, definition = limits(), c.vm.definition()
    assert before == ["300", "50", "infinity"], before
    c.fire(lambda: c.vm.update_async({"resources": {"TasksMax": 200, "CPUWeight": None, "CPUQuota": "150%"}}))
    if c.action == "kill-vmm":                  # which is noticed after the update
        c.ended()
        known.add(c.vm)
        return c.expect(("Error", "vmm-crashed"))
    c.expect("Running", error=True)
    if c.action in ("EIO", "ENOSPC"):
        assert limits() == before and c.vm.definition() == definition
        if c.action == "ENOSPC":
            assert c.call.error.short == "NoSpace", c.call.error
    return None


def op_event(c):
    """What the guest does is noted, or what is done to it."""
    c.up()
    if RESETS:
        c.arm()
        with c.vm.open_console() as console:
            console.sendall(b"r")
            c.wait_fired()
        c.expect("Running")
    else:
        c.fire(c.vm.stop_async)
        c.expect("Stopped", error=False)
    if c.action != "kill-daemon":
        event = "guest-reset" if RESETS else "power-button"
        wait_for(lambda: event in [e[4] for e in manager.events(vm=c.vm.Id, limit=1000)], 10, "the event, later")


def op_remove(c):
    running = c.action == "kill-vmm" or "begin" in c.point
    c.create(start=running)
    if not running:                             # there is something to be removed
        c.vm.start()
        c.vm.kill()
    vm_id = c.vm.Id
    slot, _ = ids_of(vm_id)
    come_round_to(slot)
    if "remove-blocked" in c.point:
        arm("remove.files EIO", c.name)
        c.call = c.vm.remove_async()
        c.wait_fired()
    else:
        c.fire(lambda: c.vm.remove_async(force=running))
    error = c.ended()
    if c.point == "commit.remove.before" and c.action != "kill-vmm":
        assert error
        return c.expect("Stopped")
    known.forget(vm_id)
    other = manager.create("other", tiny_definition())
    assert not ids_of(vm_id) or ids_of(other.Id)[0] != slot
    wait_for(lambda: not ids_of(vm_id), 30, "the end of its record", poll=0.002)
    left = {pid: words for pid, words in processes_of_ids(uids_of(slot)).items() if "zombie" not in words[0]}
    assert not left, f"its ids were free while there were {left}"
    c.vm.wait_gone(30)
    other.remove()
    other.wait_gone()
    c.gone = True
    assert c.action == "kill-daemon" or not error, error
    return c.settle()


def op_guest(c):
    """The guest ends by itself, or panics."""
    c.up()
    key, states = (b"p", ("Error", "guest-panicked")) if "panicked" in c.point else (ENDS[0], ("Stopped", ENDS[1]))
    c.arm()
    c.vm.open_console().sendall(key)
    c.wait_fired()
    c.expect(states)


def op_crash(c):
    """The VMM dies, with no policy."""
    c.create(start=True)
    c.arm()
    c.dead_vmm()
    c.wait_fired()
    if c.point == "run.gone" and c.action != "kill-daemon":
        c.ignore = ("/run/vmunit/vms",)
    c.expect(("Error", "vmm-crashed"))
    assert (c.vm.ExitKnown, c.vm.ExitSignal) == (True, signal.SIGKILL), c.vm.properties()


def op_vmm(c):
    """The VMM says that it has stopped its guest for an error of a disk, or that it can't go on."""
    paused = "io-error" in c.point
    c.create(start=True, name="h-stops" if paused else "h-fails")
    c.fire(lambda: c.vm.call_async("GetStats", "a{sv}", {}))
    c.call = None                               # which may see either
    c.expect(("Error", "vmm-crashed") if c.action == "kill-vmm" else ("Paused", "io-error") if paused else ("Error", "vmm-failed"))


def op_relaunch(c):
    """A Reboot, or a Reset, that needs another process: with QEMU if that has ended while no daemon was there."""
    c.up()
    pid, identity = c.vm.pid, c.vm.Id
    if not IN_PLACE:
        reset = not RESETS and sum(c.name.encode()) % 2
        c.fire(c.vm.reset_async if reset else c.vm.reboot_async)
        c.expect("Running")
        # a Reset that was not stored before the daemon died has not begun
        assert c.vm.pid != pid or reset and c.point == "commit.relaunch.before" and c.action == "kill-daemon"
        return
    os.kill(pid, signal.SIGSTOP)                # its button can't be pressed
    c.vm.reboot_async()
    run = f"/run/vmunit/vms/{identity}/run"
    wait_for(lambda: "REBOOT_UNTIL=0" not in open(run, encoding="utf-8").read(), poll=0.01)
    kill_daemon(restart=False)
    stop_daemon()
    os.kill(pid, signal.SIGCONT)
    qmp(identity, {"execute": "set-action", "arguments": {"shutdown": "poweroff"}}, {"execute": "system_powerdown"})
    wait_exit(pid)
    c.arm()
    systemctl("start", "--no-block", "vmunitd.service")
    c.wait_fired()
    wait_for(lambda: c.state()[0] == "Running", 20, "it runs again", poll=0.05)
    assert c.vm.pid not in (0, pid)


def op_restart(c):
    c.create(start=True, restart={"policy": "on-failure", "max": 3})
    pid = c.vm.pid
    c.arm()
    c.dead_vmm()
    c.wait_fired()
    # a store that can't be written makes it wait for some time
    wait_for(lambda: c.vm.State == "Running" and c.vm.pid not in (0, pid), 25, "it runs again", poll=0.05)
    c.expect("Running")
    assert c.vm.RestartCount == 1, c.vm.RestartCount


def op_start_failed(c):
    """A start that fails: of a VM in Error for restart-failed."""
    c.create(disks=[{"name": "data0", "path": DISK}])
    was_error = "restart-failed" in c.point
    if was_error:
        c.vm.start()
        c.dead_vmm()
        c.settle()
    os.rename(DISK, DISK + ".away")
    try:
        c.fire(c.vm.start_async)
        c.expect(("Error" if was_error else "Stopped", "start-failed"), "Stopped", error=True)
    finally:
        os.rename(DISK + ".away", DISK)


def op_start_from_error(c):
    """A start of an Error, asked for by somebody, leaves it an Error."""
    c.create(start=True)
    c.dead_vmm()
    c.settle()
    c.fire(c.vm.start_async)
    c.expect(("Error", "start-failed"), error=True)


def op_start_twice(c):
    """A daemon that dies while it takes over from one that died."""
    c.create()
    arm("start.scope.after kill-daemon", c.name)
    c.call = c.vm.start_async()
    c.wait_fired()
    c.expect(("Stopped", "start-failed"), error=True)


def op_start_canceled(c):
    c.create()
    arm("start.connect.before hang")
    start = c.vm.start_async()
    wait_fired()
    c.fire(c.vm.kill_async if "killed" in c.point else c.vm.stop_async)
    c.expect(("Stopped", "killed" if "killed" in c.point else "stopped"), ("Stopped", "start-failed"), error=False)
    wait_for(lambda: start.done, 10, "the start's answer")
    assert start.error


def op_boot(c):
    """A boot of the host, as the daemon sees it."""
    c.create(autostart=True)
    stop_daemon()
    with contextlib.suppress(FileNotFoundError):    # it could not be written in the case before
        os.unlink(LAST_BOOT)
    c.arm()
    systemctl("start", "--no-block", "vmunitd.service")
    c.wait_fired()
    if c.action != "kill-daemon":
        assert not os.path.exists(LAST_BOOT), "not yet"
    def runs():
        with contextlib.suppress(BusError):     # the daemon that dies has come by
            return c.vm.State == "Running"
    wait_for(runs, 15, "its autostart", poll=0.05)
    c.expect("Running")
    starts = [e for e in manager.events(vm=c.vm.Id, limit=1000) if e[4] == "starting"]
    assert len(starts) == 1, starts


def op_takeover(c):
    c.create(start=True)
    pid = c.vm.pid
    c.arm()
    kill_daemon(restart=False)
    c.wait_fired()
    if c.action == "kill-vmm":
        return c.expect(("Error", "vmm-crashed"))
    c.expect("Running")
    assert c.vm.pid == pid
    return None


def op_host_reboot(c):
    c.create(start=True)
    pid = c.vm.pid
    stop_daemon()
    os.kill(pid, signal.SIGKILL)
    wait_unit_gone("vmunit-fault.scope")
    with contextlib.closing(sqlite3.connect(DATABASE)) as db:
        db.execute("UPDATE vm SET boot_id = '00000000-0000-4000-8000-000000000000'")
        db.commit()
    c.arm()
    systemctl("start", "--no-block", "vmunitd.service")
    c.wait_fired()
    c.ignore = ("/run/vmunit/vms",)             # a boot would have emptied it
    c.expect(("Stopped", "host-reboot"))


def with_shares(function):
    """The same, of a VM that has two."""
    def whole(c):
        for tag in ("one", "two"):
            os.makedirs(f"/tmp/shares/{tag}", exist_ok=True)
        c.over = {"filesystems": [{"tag": tag, "source": f"/tmp/shares/{tag}"} for tag in ("one", "two")]}
        return function(c)
    whole.__name__, whole.plain = function.__name__ + "_with_shares", function
    return whole


def op_share(c):
    """A virtiofsd's start: kill-vmm is the end of that."""
    c.create()
    c.fire(c.vm.start_async)
    if c.action == "hang":
        return out_of_hang(c)
    return c.expect(("Stopped", "start-failed"), error=True)


def with_networks(function):
    """The same, of a VM that has two."""
    def whole(c):
        c.over = {"networks": [{"name": name} for name in ("one", "two")]}
        return function(c)
    whole.__name__, whole.plain = function.__name__ + "_with_networks", function
    return whole


def op_network_renewal(c):
    """Another passt in the place of one that has died, as often as it takes; kill-vmm is the end of it."""
    c.up()
    scope, pid = "vmunit-fault-net-two.scope", c.vm.pid
    c.fire(lambda: os.kill(max(unit_pids(scope)), signal.SIGKILL))
    c.call = None
    wait_for(lambda: network_runs("fault", "two"), 60, "another passt", poll=0.1)
    c.expect("Running")
    assert c.vm.pid == pid and network_runs("fault", "one")


def network_runs(vm, name):
    """Its passt is behind its own walls, so it is ready."""
    for pid in unit_pids(f"vmunit-{vm}-net-{name}.scope"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as f:
            if f.read().startswith("passt") and not os.listdir(f"/proc/{pid}/root"):
                return True
    return False


def op_share_crash(c):
    c.create(start=True)
    scope = "vmunit-fault-fs-two.scope"
    c.arm()
    os.kill(max(unit_pids(scope)), signal.SIGKILL)
    c.wait_fired()
    c.expect(("Error", "virtiofsd-crashed"))
    assert "two" in c.vm.StateMessage, c.vm.StateMessage


def op_share_renewal(c):
    """A fresh virtiofsd for a VMM that connects anew when its guest resets: kill-vmm is the end of that."""
    c.up()
    c.fire(c.vm.reset_async)
    lost = ("Error", "virtiofsd-crashed")
    if c.action in ("EIO", "ENOSPC"):
        c.expect(lost, error=True)
    elif c.action == "kill-daemon" and c.point not in ("share.run-file", "share.go"):
        c.expect("Running")
    else:                                       # it may have been in use by then, or was never executed
        c.expect("Running", lost)
    c.call = None


OPERATIONS = [
    ("share.*", with_shares(op_share)), ("commit.virtiofsd-crashed.*", with_shares(op_share_crash)),
    ("start.*", op_start), ("job.number", op_start), ("commit.start.*", op_start), ("commit.started.*", op_start),
    ("create.*", op_create),
    ("stop.begin", op_refused), ("stop.kill", op_kill), ("commit.killed.*", op_kill),
    ("stop.*", op_stop), ("commit.stop.*", op_stop), ("commit.stopped.*", op_stop), ("commit.stop-forced.*", op_stop),
    ("exit.*", op_stop), ("run.gone", op_stop),
    ("commit.stop-failed.*", op_stop_failed), ("commit.found-*", op_found),
    ("call.*", op_call), ("commit.paused.*", op_call), ("commit.resumed.*", op_call),
    ("update.*", op_update), ("event.write", op_event),
    ("remove.*", op_remove), ("commit.remove.*", op_remove), ("commit.remove-blocked.*", op_remove),
    ("commit.guest-*", op_guest), ("commit.vmm-exited.*", op_guest), ("commit.vmm-crashed.*", op_crash),
    ("commit.io-error.*", op_vmm), ("commit.vmm-failed.*", op_vmm),
    ("commit.relaunch.*", op_relaunch), ("commit.reboot.*", op_relaunch),
    ("restart.*", op_restart),
    ("commit.start-failed.*", op_start_failed), ("commit.restart-failed.*", op_start_failed),
    ("commit.start-stopped.*", op_start_canceled), ("commit.start-killed.*", op_start_canceled),
    ("boot.*", op_boot), ("takeover.*", op_takeover), ("commit.host-reboot.*", op_host_reboot),
]
# Points that a second way leads to
MORE = [("update.write", op_update_limits), ("commit.start.after", op_start_from_error), ("start.scope.waiting", op_start_from_error),
        ("start.exec.waiting", op_start_from_error), ("job.number", op_refused), ("job.number", op_start_next),
        ("commit.start.before", op_start_next), ("commit.start-failed.*", op_start_twice), ("exit.*", op_crash), ("run.gone", op_crash)]
if SHARES:
    MORE += [(points, with_shares(function)) for points, function in (
        ("start.*", op_start), ("stop.[pqru]*", op_stop), ("stop.button", op_stop), ("stop.kill", op_kill), ("run.gone", op_stop),
        ("remove.*", op_remove), ("takeover.*", op_takeover), ("commit.started.*", op_start), ("commit.vmm-crashed.*", op_crash))]
if BACKEND == "qemu":
    MORE += [("share.*", with_networks(op_share)), ("share.*", with_networks(op_network_renewal)),
             ("takeover.*", with_networks(op_takeover)), ("remove.*", with_networks(op_remove))]
if BACKEND == "cloud-hypervisor":
    MORE.append(("share.*", with_shares(op_share_renewal)))
# What always runs, beside the daemon's death at each point
FIXED = ("start.scope.waiting kill-daemon", "start.fork.after kill-vmm", "start.usage ENOSPC", "start.go kill-daemon",
         "start.exec.after kill-daemon", "start.launch.after EIO", "start.connect.before hang", "start.clear.after hang",
         "commit.start.after kill-daemon", "commit.started.before kill-daemon", "commit.started.after kill-daemon",
         "commit.started.before ENOSPC", "stop.button hang", "stop.begin EIO", "stop.kill hang", "commit.stop.after kill-daemon",
         "commit.vmm-crashed.before kill-daemon", "call.Pause.after kill-daemon", "call.Reboot.before hang", "update.write ENOSPC", "update.written kill-daemon",
         "commit.remove.after kill-daemon", "remove.files EIO", "remove.record-gone kill-daemon", "restart.due kill-daemon",
         "boot.planned kill-daemon", "takeover.found kill-vmm", "takeover.after kill-daemon", "commit.found-running.before kill-vmm",
         "share.files kill-daemon", "share.launch hang", "share.scope EIO", "share.go kill-vmm", "share.ready kill-daemon",
         "commit.virtiofsd-crashed.after kill-daemon")


def points():
    listing = subprocess.run(["/usr/sbin/vmunitd", "--fault-points"], check=True, capture_output=True, text=True).stdout
    return sorted((line.split()[0], line.split()[1:]) for line in listing.splitlines())


def operation(point):
    return next((f for pattern, f in OPERATIONS if fnmatch.fnmatch(point, pattern)), None)


def always(point, action, function):
    return f"{point} {action}" in FIXED or action == "kill-daemon" and function is operation(point)


def launches():
    global n_launches
    with contextlib.suppress(BlockingIOError):
        while True:
            n_launches += os.read(told_of, 4096).count(b"\n")
    return n_launches


def check_launches(function, launched, intervals):
    """One interval a launch; a VMM that is killed right after that has not come to say so."""
    said, told = launches() - launched, len(manager.usage()) - intervals
    unsaid = 1 if getattr(function, "plain", function) in (op_start, op_start_canceled, op_start_from_error) else 0
    assert said <= told <= said + unsaid, f"{said} launches, {told} intervals of usage"


def run_case(point, action, function):
    c = Case(point, action)
    try:
        manager.remove_all()
        known.check()
        before = launches(), len(manager.usage())
        function(c)
        c.finish()
        known.definitions.clear()
        known.check(20)
        check_launches(function, *before)
    except BaseException:
        for entry in journal("-u", "vmunitd.service", "-n", "25"):
            print(f"# journal: {entry.get('MESSAGE')}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FAULT_FILE)
        raise
    finally:
        known.definitions.clear()
        known.policies.clear()


all_points = points()
cases = [(point, action, function) for point, actions in all_points if point not in UNREACHED
         for function in [operation(point)] + [f for pattern, f in MORE if fnmatch.fnmatch(point, pattern)] for action in actions]
if not os.environ.get("VMUNIT_ALL") and not sys.argv[1:]:
    seed = os.environ.get("VMUNIT_SEED") or "1"
    rest = [case for case in cases if not always(*case)]
    random.Random(f"{seed} {BACKEND}").shuffle(rest)
    chosen = rest[:len(rest) // PARTS]
    print(f"# seed {seed} (VMUNIT_SEED): {len(chosen)} of {len(rest)} cases beside the {len(cases) - len(rest)} that always run")
    cases = [case for case in cases if always(*case) or case in chosen]


@test("each point of the binary is known here")
def _():
    names = {point for point, _ in all_points}
    assert len(names) == len(all_points) > 100, len(all_points)
    unknown = {name for name in names - UNREACHED if not operation(name)}
    assert not unknown, unknown
    assert UNREACHED < names, UNREACHED - names
    stale = [pattern for pattern, _ in OPERATIONS if not fnmatch.filter(names, pattern)]
    assert not stale, stale
    every = {f"{point} {action}" for point, actions in all_points for action in actions}
    assert set(FIXED) < every, set(FIXED) - every
    manager.remove_all()
    vm = manager.create("first", tiny_definition(), start=True)
    vm.kill()
    vm.remove()
    vm.wait_gone()
    known.base()


@contextlib.contextmanager
def shares_case(point, action, **keys):
    """A VM with two shares, and afterwards all is as it should be."""
    c = Case(point, action)
    manager.remove_all()
    known.check()
    with_shares(lambda c: c.create(**keys))(c)
    yield c
    c.finish()
    known.definitions.clear()
    known.check(20)


def share_pids(*tags):
    """The parent of each one's virtiofsd, the program, its child"""
    return [pid for tag in tags for pid in unit_pids(f"vmunit-fault-fs-{tag}.scope")]


def kill_all(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_virtiofsd(step, tag):
    """At a step of the VMM's start, when they run already"""
    with shares_case(f"start.{step}.before", "hang") as c:
        c.fire(c.vm.start_async)
        before = launches()
        os.kill(max(share_pids(tag)), signal.SIGKILL)
        c.expect(("Stopped", "start-failed"), error=True)
        assert f"({tag})" in c.call.error.message, c.call.error
        assert step not in ("fork", "exec") or launches() == before, "no VMM was there"


def kill_while_running(tags, first):
    with shares_case("share", "", start=True) as c:
        kill_all(sorted(share_pids(*tags), reverse=not first))
        c.expect(("Error", "virtiofsd-crashed"))


def kill_while_stopping(tags):
    with shares_case("stop.button", "hang", start=True) as c:
        c.fire(lambda: c.vm.stop_async(timeout_usec=3000000))
        kill_all(share_pids(*tags))
        c.expect(("Stopped", "stop-forced"), error=False)


def kill_while_removing(tags):
    with shares_case("share", "", start=True) as c:
        pids, identity = share_pids(*tags), c.vm.Id
        call = c.vm.remove_async(force=True)
        kill_all(pids)
        known.forget(identity)
        c.vm.wait_gone(30)
        wait_for(lambda: call.done)
        c.gone = True
        c.settle()


def kill_without_daemon(tags, vmm):
    """The parents"""
    with shares_case("share", "", start=True) as c:
        parents = [share_pids(tag)[0] for tag in tags] + [pid for pid in unit_pids("vmunit-fault.scope") if vmm and pid != c.vm.pid]
        stop_daemon()
        kill_all(parents)
        for pid in parents:
            wait_exit(pid)
        start_daemon()
        c.expect(("Error", "vmm-crashed" if vmm else "virtiofsd-crashed"))


def leave_while_running():
    """It ends as if its VMM had left it, which it has not: another one is of no use, which shows in time."""
    with shares_case("share", "", start=True) as c:
        os.kill(max(share_pids("two")), signal.SIGTERM)
        wait_for(lambda: c.vm.State == "Error", 60)
        c.expect(("Error", "virtiofsd-crashed"))
        assert "two" in c.vm.StateMessage


def wait_for_the_next():
    """A VMM that connects anew finds nobody listening until there is a virtiofsd to wait for, so it outlives a daemon that dies before."""
    with shares_case("share.scope", "hang", start=True) as c:
        c.vm.wait_log(b"TINY-UP")
        c.fire(c.vm.reset_async)
        without = lambda: [tag for tag in ("one", "two") if not share_pids(tag)]
        wait_for(lambda: len(without()) == 1, 20, "the other one", poll=0.02)
        with socket.socket(socket.AF_UNIX) as s:
            assert s.connect_ex(f"/run/vmunit/vms/{c.vm.Id}/shares/{without()[0]}") in (errno.ECONNREFUSED, errno.ENOENT)
        kill_daemon()
        wait_for(lambda: c.vm.console_log().count(b"TINY-UP") == 2, 30, "the reset", poll=0.05)
        c.call = None
        c.expect("Running")


if SHARES:
    for step in ("fork", "exec", "connect") + (("boot",) if BACKEND == "qemu" else ()):
        for tag in ("one", "two"):
            test(f"the virtiofsd of {tag} dies at start.{step}", timeout=60)(lambda step=step, tag=tag: kill_virtiofsd(step, tag))
    for tags in (("one",), ("two",), ("one", "two")):
        who = "those of " + " and ".join(tags) if tags[1:] else f"the virtiofsd of {tags[0]}"
        test(f"{who} die: running", timeout=60)(lambda tags=tags: kill_while_running(tags, False))
        test(f"{who} die, parents first: running", timeout=60)(lambda tags=tags: kill_while_running(tags, True))
        test(f"{who} die: stopping", timeout=60)(lambda tags=tags: kill_while_stopping(tags))
        test(f"{who} die: removing", timeout=60)(lambda tags=tags: kill_while_removing(tags))
        test(f"the parents of {who} die while no daemon is there", timeout=60)(lambda tags=tags: kill_without_daemon(tags, False))
    test("the VMM's parent and those of the virtiofsds die while no daemon is there", timeout=60)(
        lambda: kill_without_daemon(("one", "two"), True))
    if BACKEND == "cloud-hypervisor":
        test("a virtiofsd leaves its VMM for nothing", timeout=90)(leave_while_running)
        test("the daemon dies before a fresh virtiofsd is there", timeout=90)(wait_for_the_next)
for case in cases:
    test(f"{case[0]} {case[1]} ({case[2].__name__.removeprefix('op_')})", timeout=60)(lambda case=case: run_case(*case))

run()
