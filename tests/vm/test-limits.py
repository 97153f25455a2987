#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=1800 disk all
"""Limits that the kernel enforces: `resources`, out of memory, the counters, the slice of all VMs."""

import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

HERE = os.path.dirname(os.path.realpath(__file__))
FIFOS = "/usr/local/lib/vmunit-test"     # of the host a VMM sees /usr
MIB = 1 << 20
SLICE_DROPIN = "/etc/systemd/system/machine-vmunit.slice.d/limits.conf"

manager = Manager()


def configure():
    for directory in ("/opt/vmunit-test", "/etc/vmunit/vmunit.conf.d", FIFOS):
        os.makedirs(directory, exist_ok=True)
    subprocess.run(["install", "-m", "755", HERE + "/handy-vmm", "/opt/vmunit-test/vmm"], check=True)
    with open("/etc/vmunit/vmunit.conf.d/limits.conf", "w") as f:
        f.write("[VMUnit]\nQEMU=/opt/vmunit-test/vmm\nStartTimeoutSec=3min\n")


def definition(resources=None, **over):
    return tiny_definition(memory="16M", stopTimeout="60s", accel="tcg", **({"resources": resources} if resources else {}),
                           **over)


def control(vm, file, unit=None):
    """A file of the VM's slice in the cgroup file system; "" if it has none."""
    try:
        with open(f"{unit_cgroup(unit or vm.Slice)}/{file}") as f:
            return f.read().strip()
    except FileNotFoundError:
        return ""


def events(vm, file, unit=None):
    return {key: int(value) for key, value in map(str.split, control(vm, file, unit).splitlines())}


def tell(vm, *words):
    """Has the VM's hand do something, as soon as it listens."""
    def listened():
        with contextlib.suppress(OSError):                  # nobody reads as yet
            fd = os.open(f"{FIFOS}/{vm.path.rpartition('/')[2]}", os.O_WRONLY | os.O_NONBLOCK)
            os.write(fd, (" ".join(map(str, words)) + "\n").encode())
            os.close(fd)
            return True
    wait_for(listened, 20, f"the hand of {vm.path}", poll=0.1)


@contextlib.contextmanager
def a_vm(name, resources=None, start=True, **over):
    """A VM, which leaves nothing when it is removed."""
    daemon_pid() or start_daemon()
    before = snapshot_leftovers()
    if name.startswith(("hand", "early")):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(f"{FIFOS}/{encode(name)}", 0o666)
    vm = manager.create(name, definition(resources, **over))
    try:
        if start:
            vm.start()
        yield vm
    finally:
        with contextlib.suppress(BusError):
            vm.remove(force=True)
        vm.wait_gone()
    assert_no_leftovers(before)
    left = [os.path.join(top, file) for where in ("transient", "system.control") for top, directories, files
            in os.walk("/run/systemd/" + where) for file in directories + files if f"vmunit-{escape(name)}." in file]
    assert not left and not os.path.exists("/etc/systemd/system.control"), left


ALL = {"CPUWeight": 50, "CPUQuota": "150%", "MemoryMax": "256M", "MemoryHigh": "200M", "TasksMax": 77, "IOWeight": 42,
       "AllowedCPUs": "1"}
FILES = {"cpu.weight": "50", "cpu.max": "150000 100000", "memory.max": str(256 * MIB), "memory.high": str(200 * MIB),
         "pids.max": "77", "cpuset.cpus": "1"}
NONE = {"cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max", "memory.high": "max"}


def check_files(vm, want):
    got = {file: control(vm, file) for file in want}
    wrong = {f: v for f, v in got.items() if v != want[f] and (v or want is not NONE)}  # no controller, no limit
    assert not wrong, f"{wrong} instead of {want}"


@test("this is a systemd with all controllers")
def _():
    with open("/sys/fs/cgroup/cgroup.controllers") as f:
        missing = {"cpu", "cpuset", "io", "memory", "pids"} - set(f.read().split())
    assert not missing, missing


@test("resources arrive in the slice's cgroup, and another VM of the name has none of them")
def _():
    with a_vm("same", ALL) as vm:
        check_files(vm, FILES)
        weight = control(vm, "io.weight")
        assert weight in ("", "default 42"), weight     # no file where nothing spreads I/O by weights
        assert set(unit_pids(vm.Slice)) == set(unit_pids(vm.Unit)) and vm.pid in unit_pids(vm.Unit)
    with a_vm("same") as vm:
        check_files(vm, NONE)


@test("an Update is in the cgroup's files when it answers, and what it takes away is gone")
def _():
    with a_vm("live", {"MemoryMax": "300M"}) as vm:
        pid = vm.pid
        vm.update({"resources": ALL})
        check_files(vm, FILES)
        vm.update({"resources": {"CPUQuota": "20%", "MemoryHigh": None, "AllowedCPUs": None, "TasksMax": "infinity"}})
        check_files(vm, {**FILES, "cpu.max": "20000 100000", "memory.high": "max", "pids.max": "max", "cpuset.cpus": ""})
        vm.update({"resources": None})
        check_files(vm, NONE)
        assert (vm.State, vm.pid) == ("Running", pid)
        vm.update({"resources": {"CPUWeight": 33}})
        vm.stop()
        vm.start()
        check_files(vm, {**NONE, "cpu.weight": "33"})


@test("GetStats: memory and its peak, tasks, bytes read and written, time of the CPU")
def _():
    with open("/var/tmp/disk", "wb") as f:
        f.truncate(16 * MIB)
    with a_vm("hand-stats", {"MemoryMax": "600M"}, disks=[{"path": "/var/tmp/disk"}]) as vm:
        first = vm.stats()
        missing = {"CPUUsageNSec", "MemoryCurrent", "MemoryPeak", "TasksCurrent", "IOReadBytes", "IOWriteBytes"} - set(first)
        assert not missing, f"{missing} not in {first}"
        assert first["TasksCurrent"] == int(control(vm, "pids.current")) >= 4, first
        assert 5 * MIB < first["MemoryCurrent"] <= first["MemoryPeak"], first
        assert first["CPUUsageNSec"] > 0
        tell(vm, "eat", 100)
        wait_for(lambda: vm.stats()["MemoryCurrent"] >= 100 * MIB, what="the memory in MemoryCurrent", poll=0.1)
        assert vm.stats()["MemoryPeak"] >= 100 * MIB
        tell(vm, "write")
        wait_for(lambda: vm.stats()["IOWriteBytes"] >= first["IOWriteBytes"] + 8 * MIB, what="the bytes in IOWriteBytes", poll=0.1)
        tell(vm, "read")
        wait_for(lambda: vm.stats()["IOReadBytes"] >= first["IOReadBytes"] + 8 * MIB, what="the bytes in IOReadBytes", poll=0.1)
        for key, value in vm.stats().items():
            assert value < 2**63, (key, value)
        vm.stop()
        with expect_error("NotRunning"):
            vm.stats()


@test("MemoryMax: a VM that exceeds it is oom-killed as a whole; others live on; it can be started again")
def _():
    with a_vm("other") as other, a_vm("hand-eater", {"MemoryMax": "150M"}) as vm:
        leader, mark = other.pid, len(signals)
        tell(vm, "eat", 600)
        wait_for(lambda: vm.StateReason == "oom-kill", 20, "oom-kill")
        assert vm.State == "Error" and vm.StateMessage, (vm.State, vm.StateMessage)
        assert {state for state, _, _ in vm.states(mark)} == {"Error"}, vm.states(mark)
        assert (vm.ExitKnown, vm.ExitSignal) in ((True, signal.SIGKILL), (False, 0)), (vm.ExitKnown, vm.ExitSignal)
        wait_unit_gone(vm.Unit)
        assert not unit_pids(vm.Slice)
        assert (other.State, other.pid) == ("Running", leader)
        events_ = [e for e in manager.events(vm=vm.Id) if "oom" in str(e[4:])]
        assert events_, manager.events(vm=vm.Id)
        vm.start()
        assert (vm.State, vm.StateReason) == ("Running", "")
        usage = [u for u in manager.usage() if u[0] == vm.Id]
        assert len(usage) == 2 and sorted(bool(u[4]) for u in usage) == [False, True], usage
        vm.stop()


@test("out of memory while it starts: the start fails, and says why; with more of it, it starts")
def _():
    with a_vm("early-eater", {"MemoryMax": "100M"}, start=False) as vm:
        call_ = vm.start_async()
        tell(vm, "eat", 400)
        with expect_error("BackendFailed"):
            call_.result()
        assert (vm.State, vm.StateReason) == ("Stopped", "start-failed"), (vm.State, vm.StateReason)
        print("# " + str(call_.error), flush=True)
        vm.update({"resources": {"MemoryMax": "900M"}})
        call_ = vm.start_async()
        tell(vm, "eat", 100)
        tell(vm, "end")
        call_.result()
        assert vm.State == "Running"


@test("a program in the VMM's place that fills memory is killed at its VM's limit; the daemon, the launcher and others go on", timeout=480)
def _():
    program = f"{FIFOS}/intruder"
    shutil.copy(os.path.join(os.environ["VMUNIT_BUILD"], "tests", "intruder", "intruder"), program)
    with open(program, "ab") as f:
        f.write(b"\nFACTS OF THE HOST\nfill-mib=200\n")
    with a_vm("other") as other:
        before = other.pid, daemon_pid(), launcher_pid()
        for limit, filled in (("900M", True), ("100M", False)):
            with a_vm("intruder-" + limit.lower(), {"MemoryMax": limit, "TasksMax": 40}, start=False) as vm:
                with expect_error("BackendFailed"):
                    vm.start()
                said = vm.last_output()
                assert "FILLS anonymous" in said and ("FILLED" in said) == filled, said
                assert (vm.State, vm.StateReason) == ("Stopped", "start-failed"), (vm.State, vm.StateReason)
            assert (other.pid, daemon_pid(), launcher_pid()) == before and other.State == "Running"


@test("a VM with a restart policy comes back after it was oom-killed")
def _():
    warm = manager.create("warm", definition(restart={"policy": "on-failure"}))     # for timers that are made once
    warm.start()
    os.kill(warm.pid, signal.SIGKILL)
    wait_for(lambda: warm.RestartCount == 1 and warm.State == "Running", 30, "its return", poll=0.2)
    warm.remove(force=True)
    warm.wait_gone()
    with a_vm("hand-again", {"MemoryMax": "150M"}, restart={"policy": "on-failure"}) as vm:
        first = vm.pid
        tell(vm, "eat", 600)
        wait_for(lambda: vm.State == "Running" and vm.pid not in (0, first), 30, "its return", poll=0.2)
        assert vm.RestartCount == 1, vm.RestartCount
        assert any(e[6].get("StateReason", e[6].get("reason")) == "oom-kill" for e in manager.events(vm=vm.Id)), \
            manager.events(vm=vm.Id)


@test("TasksMax: no process or thread more than that")
def _():
    with a_vm("hand-forker", {"TasksMax": 40}) as vm:
        tell(vm, "fork")
        wait_for(lambda: "refused after" in vm.last_output(), what="a fork that is refused", poll=0.1)
        assert int(control(vm, "pids.current")) == vm.stats()["TasksCurrent"] == 40
        assert events(vm, "pids.events", vm.Unit)["max"] >= 1     # told where the fork was
        assert (vm.State, vm.StateReason) == ("Running", ""), (vm.State, vm.StateReason, vm.last_output())
        vm.stop()
        assert (vm.State, vm.StateReason) == ("Stopped", "stopped")


def usage_over(vm, seconds):
    """The VM's share of a CPU in that time, by GetStats and by the clock."""
    start, begin = time.monotonic(), vm.stats()["CPUUsageNSec"]
    with contextlib.suppress(Timeout):
        wait_for(lambda: time.monotonic() - start >= seconds, poll=seconds / 8)
    used = vm.stats()["CPUUsageNSec"] - begin
    return used / 1e9 / (time.monotonic() - start)


@test("CPUQuota: a guest that spins gets its quota, and more with a larger one")
def _():
    with a_vm("spinner") as vm:
        with vm.open_console() as console:
            vm.wait_log(b"TINY-UP")
            console.send(b"s")
        free = usage_over(vm, 3)
        vm.update({"resources": {"CPUQuota": "20%"}})
        usage_over(vm, 0.5)
        limited = usage_over(vm, 4)
        vm.update({"resources": {"CPUQuota": "50%"}})
        usage_over(vm, 0.5)
        more = usage_over(vm, 4)
        print(f"# without a quota {free:.0%}, with 20 % {limited:.0%}, with 50 % {more:.0%}", flush=True)
        assert free > 0.6, free
        assert 0.1 < limited < 0.3, limited
        assert 0.35 < more < 0.65, more
        assert events(vm, "cpu.stat")["nr_throttled"] > 10
        vm.kill()


@test("a drop-in of machine-vmunit.slice limits all VMs together")
def _():
    os.makedirs(os.path.dirname(SLICE_DROPIN))
    with open(SLICE_DROPIN, "w") as f:
        f.write("[Slice]\nMemoryMax=400M\n")
    try:
        systemctl("daemon-reload")
        with a_vm("hand-one") as one, a_vm("hand-two") as two:
            with open(SLICE_CGROUP + "/memory.max") as f:
                assert int(f.read()) == 400 * MIB
            tell(one, "eat", 150)
            wait_for(lambda: one.stats()["MemoryCurrent"] >= 150 * MIB, what="the first VM's memory", poll=0.1)
            tell(two, "eat", 350)
            dead = wait_for(lambda: [vm for vm in (one, two) if vm.StateReason == "oom-kill"], 30, "an oom-kill")
            assert len(dead) == 1, "both were killed"
            lives = two if dead[0].path == one.path else one
            assert lives.State == "Running" and lives.pid in unit_pids(lives.Unit)
    finally:
        os.unlink(SLICE_DROPIN)
        systemctl("daemon-reload")


@test("the daemon is the one from the beginning, and has no failed units behind it")
def _():
    assert unit_property("vmunitd.service", "NRestarts") == "0"
    assert not systemctl("list-units", "--failed", "--plain", "--no-legend").strip()
    manager.remove_all()
    stop_daemon()


configure()
start_daemon()
run()
