#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=400 sanitized=qemu,firecracker backends=qemu,firecracker,cloud-hypervisor
"""A VMM that misbehaves costs its own VM at most: the caller is told at once, nothing is left, others go on."""

import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import KEY, status

SLOWER = 4 if SANITIZED else 1
DEADLINE = 8 if SANITIZED else 4    # StartTimeoutSec=, for those that hang
AT_ONCE = 2.5                       # seconds within which a known death is told; the program is in Python
MEMORY = 4096                       # kB by which the daemon may have grown for good, and
PEAK = 12288                        # for a while
PROGRAM = "hostile-vmm" if BACKEND == "qemu" else "hostile-http-vmm"
KERNELS = "/tmp/kernels"            # whose ends tell what is to be done

NOT_ON_HTTP = {"firecracker cloud-hypervisor": "its API has no such thing"}
NOT_ON_FIRECRACKER = {"firecracker": "its guest begins by itself, and nothing tells of what it does"}

manager = Manager()
good = None                         # a real VM, which must not notice anything
resident = None


def configure():
    global good, resident
    here = os.path.dirname(os.path.realpath(__file__))
    subprocess.run(["install", "-D", "-m", "755", f"{here}/{PROGRAM}", f"/opt/vmunit-test/{PROGRAM}"], check=True)
    os.makedirs(KERNELS)
    os.makedirs("/etc/vmunit/vmunit.conf.d", exist_ok=True)
    with open("/etc/vmunit/vmunit.conf.d/hostile.conf", "w") as f:
        f.write(f"[VMUnit]\n{KEY}=/opt/vmunit-test/{PROGRAM}\nStartTimeoutSec={DEADLINE}s\n"
                "ConsoleLogMaxBytes=64K\nEventsMax=200\n")
    good = manager.create("good", tiny_definition())
    good.start()
    good.wait_log(b"TINY-UP")
    with_another("good-first")                              # what is made once is made now
    resident = int(status(daemon_pid(), "VmRSS")[0])


def with_another(name):
    vm = manager.create(name, tiny_definition())
    vm.start()
    vm.wait_log(b"TINY-UP")
    vm.remove(force=True)
    vm.wait_gone()


def strays():
    """Processes of the bad program, but for those that have become a real QEMU."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
            if any(w.endswith(PROGRAM.encode()) for w in words[:3]) and b"vmunit-exec" not in words[0]:
                found.append(int(pid))
    return found


def bad_definition(behaviour):
    """QEMU's place is told by the VM's name."""
    tiny = tiny_definition(stopTimeout="1s")
    if BACKEND == "qemu":
        return tiny
    kernel = f"{KERNELS}/h-{behaviour}"
    shutil.copy(tiny["boot"]["kernel"], kernel)
    with open(kernel, "ab") as f:
        f.write(f"\nh-{behaviour}".encode())
    return merge(tiny, {"boot": {"kernel": kernel}})


def check_good(console):
    """The real VM lives, is the same and answers."""
    console.send(b"!")
    read_until(console.fileno(), b"!")
    assert good.State == "Running"


@contextlib.contextmanager
def hostile(behaviour, restarts=False):
    """A VM of that behaviour. Afterwards: no traces, the daemon as before (or another on purpose), the other VM too, the next start
    works."""
    if good is None:
        configure()
    if restarts:                                            # for one that has launched something has a socket more
        systemctl("restart", "vmunitd.service")
        wait_for(lambda: dict(manager.Backends)[BACKEND].get("Version"), 15, "the version of the program", poll=0.05)
    daemon, leader = daemon_pid(), good.pid
    before = snapshot_leftovers()
    with good.open_console() as console:
        check_good(console)
        with open(f"/proc/{daemon}/clear_refs", "w") as f:
            f.write("5")                                    # the peak is counted from here
        vm = manager.create("h-" + behaviour, bad_definition(behaviour))
        try:
            yield vm
        finally:
            if vm.exists():
                vm.remove(force=True)
                vm.wait_gone()
        check_good(console)
    wait_for(lambda: not strays(), 5, "the end of all of the program's processes", poll=0.05)
    assert_no_leftovers(before)
    assert (daemon_pid() == daemon) is not restarts, "the daemon is another"
    daemon = daemon_pid()
    assert good.pid == leader
    if not SANITIZED:
        now, peak = int(status(daemon, "VmRSS")[0]), int(status(daemon, "VmHWM")[0])
        assert now < resident + MEMORY, f"the daemon has grown from {resident} to {now} kB"
        assert peak < resident + PEAK, f"the daemon took {peak} kB, {resident} before"
    with_another("good-next")


def refused(behaviour, error="BackendFailed", text=None, seconds=AT_ONCE, least=0, signal_number=None, code=None):
    """A start that fails: with that error, within that time, rolled back to Stopped."""
    with hostile(behaviour) as vm:
        call = vm.start_async()
        with expect_error(error, text, begins=f"h-{behaviour}: "):
            call.result()
        took = call.finished - call.started
        assert took < seconds * SLOWER, f"the caller was told after {took:.1f} s"
        assert took >= least, f"the caller was told after {took:.1f} s already"
        assert (vm.State, vm.StateReason) == ("Stopped", "start-failed"), (vm.State, vm.StateReason)
        assert vm.pid == 0 and vm.Job == "/"
        assert "\x1b" not in str(call.error) and "teapots" not in vm.StateMessage
        if signal_number is not None:
            assert (vm.ExitKnown, vm.ExitSignal) == (True, signal_number), (vm.ExitKnown, vm.ExitSignal)
        if code is not None:
            assert (vm.ExitKnown, vm.ExitCode, vm.ExitSignal) == (True, code, 0)
        if not least:                                       # and once more, on what the first has left
            with expect_error(error, text):
                vm.start()
        return call.error


HANG = {"error": "Timeout", "seconds": DEADLINE + 2, "least": DEADLINE - 0.2}


@test("it exits at once, with words", timeout=40)
def _():
    error = refused("exit", text="teapots", code=3)
    assert "status 3" in error.message, error.message
    words = [e for e in journal("VMUNIT_VM=h-exit") if e.get("SYSLOG_IDENTIFIER") == "vmunit-vmm"]
    assert any("teapots" in str(e["MESSAGE"]) for e in words), words


@test("it exits at once, without a word and with 0", timeout=40)
def _():
    refused("exit-silent", code=0)


@test("it dies by a signal before QMP", timeout=40)
def _():
    refused("segv", text="SEGV", signal_number=signal.SIGSEGV)


@test("it dies after its greeting", timeout=40)
def _():
    refused("dies-greeted", signal_number=signal.SIGSEGV)


@test("it dies when told to go on", timeout=40)
def _():
    refused("dies-at-cont", text="assertion failed", signal_number=signal.SIGSEGV)


@test("it hangs before QMP: the start's deadline", timeout=60)
def _():
    refused("hang", **HANG)


@test("it says nothing on QMP", timeout=60)
def _():
    refused("mute", **HANG)


@test("it greets by half, and hangs", timeout=60)
def _():
    refused("half-greeting", **HANG)


@test("it never goes on when told to", timeout=60)
def _():
    refused("mute-at-cont", **HANG)


@test("it answers under numbers that are not ours", timeout=60, not_on=NOT_ON_HTTP)
def _():
    refused("wrong-ids", **HANG)


for kind in ("garbage", "endless-line", "endless-quote", "greeting-wrong-type", "greeting-list", "greeting-nul"):
    @test(f"it greets with what is not QMP: {kind}", timeout=40)
    def _(behaviour=kind):
        refused(behaviour)


for kind in ("half-greeting-closed", "closes-at-cont"):
    @test(f"it hangs up and lives: {kind}", timeout=40)
    def _(behaviour=kind):
        refused(behaviour)


@test("it closes the socket on which it should listen", timeout=60, not_on={"firecracker": "it makes its own"})
def _():
    refused("closes-listener")


@test("it refuses to go on, with words that move the cursor", timeout=40, not_on=NOT_ON_FIRECRACKER)
def _():
    refused("refuses-cont", text="teapots")


@test("it obeys, and does not run then", timeout=40)
def _():
    refused("lies")


@test("its state is of a wrong type", timeout=40)
def _():
    if BACKEND == "firecracker":                # whose only word is this answer
        refused("wrong-types", text="Bad message")
        return
    with hostile("wrong-types") as vm:          # others tell in other ways, too, that the guest runs
        vm.start()
        assert (vm.State, vm.StateReason) == ("Running", "")


@test("it says that it runs, and dies", timeout=40)
def _():
    with hostile("dies-after-cont") as vm:
        try:
            vm.start()
        except BusError as error:
            assert error.short == "BackendFailed", error
            assert vm.State == "Stopped"
        else:
            vm.wait_state("Error")
            assert vm.StateReason == "vmm-crashed"
            wait_for(lambda: vm.ExitSignal == signal.SIGSEGV, 5)
        assert vm.pid == 0


@test("events that are none", timeout=40)
def _():
    with hostile("events-wrong") as vm:
        vm.start()
        assert vm.State == "Running"
        vm.stop(timeout_usec=0)
        assert vm.State == "Stopped"


def slowest_answer(vm):
    """Asks until the flood is over; how long an answer of the daemon took at most."""
    slowest, text = 0, b""
    while b"FLOODED" not in text:
        begin = time.monotonic()
        assert good.State == "Running"
        slowest = max(slowest, time.monotonic() - begin)
        text = vm.console_log(100)
    return slowest


@test("a flood of events: others are answered meanwhile", timeout=60)
def _():
    with hostile("floods-events") as vm:
        vm.start()
        slowest = slowest_answer(vm)
        assert slowest < 0.5 * SLOWER, f"an answer took {slowest:.3f} s"
        assert vm.State == "Running"


@test("a flood of resets and pauses is bounded in the history", timeout=100, not_on=NOT_ON_FIRECRACKER)
def _():
    with hostile("floods-resets") as vm:
        vm.start()
        slowest = slowest_answer(vm)
        assert slowest < 1 * SLOWER, f"an answer took {slowest:.3f} s"
        assert len(manager.events(limit=1000)) <= 200 + 64, len(manager.events(limit=1000))


@test("a flood of remarks is not worth a write each", timeout=60, not_on=NOT_ON_HTTP)
def _():
    with hostile("floods-buttons") as vm:
        vm.start()
        slowest = slowest_answer(vm)
        assert slowest < 0.5 * SLOWER, f"an answer took {slowest:.3f} s"
        assert len([e for e in manager.events(limit=1000, vm=vm.Id) if e[4] == "power-button"]) <= 60


@test("one that pauses and resumes itself all the time is shown now and then, and as it is at last", timeout=90, not_on=NOT_ON_FIRECRACKER)
def _():
    with hostile("flips") as vm:
        begin = time.monotonic()
        vm.start()
        vm.wait_log(b"FLIPPED", 40)
        wait_for(lambda: vm.State == "Paused", 15, "the state in which it is")
        took = time.monotonic() - begin
        flips = [e for e in manager.events(limit=5000, vm=vm.Id) if e[4] in ("paused", "running")]
        assert 2 <= len(flips) <= 12 * (took / 5 + 2), (len(flips), took)
        warned = [e for e in journal("VMUNIT_VM_ID=" + vm.Id) if "more often than can be shown" in e["MESSAGE"]]
        assert 1 <= len(warned) <= took / 5 + 2, warned


@test("a flood of words and console output is bounded, its end is kept", timeout=60)
def _():
    with hostile("floods-output") as vm:
        vm.start()
        vm.wait_log(b"THE END OF IT")
        assert 60 * 1024 <= len(vm.console_log()) <= 64 * 1024, len(vm.console_log())
        assert "error 20479 " in vm.last_output() and len(vm.last_output()) <= 4 * 4096
        state = f"/var/lib/vmunit/vms/{vm.Id}"
        assert os.path.getsize(state + "/console.log") <= 68 * 1024
        assert os.path.getsize(state + "/last-output") <= 68 * 1024


@test("Stop of one that is deaf to the button, quit and SIGTERM ends it by SIGKILL", timeout=60)
def _():
    with hostile("deaf") as vm:
        vm.start()
        begin = time.monotonic()
        vm.stop(timeout_usec=500_000)
        assert 0.5 <= time.monotonic() - begin < 9 * SLOWER
        assert (vm.State, vm.StateReason) == ("Stopped", "stop-forced")
        assert vm.ExitSignal == signal.SIGKILL
        vm.start()
        vm.kill()
        assert (vm.State, vm.StateReason) == ("Stopped", "killed")


@test("Stop of one that refuses the button ends it at once, and has succeeded", timeout=60)
def _():
    # a second press of the button was an error elsewhere, and so the stop was none
    with hostile("refuses-button") as vm:
        vm.start()
        begin = time.monotonic()
        vm.stop(timeout_usec=2**64 - 1)
        assert time.monotonic() - begin < AT_ONCE * SLOWER
        assert (vm.State, vm.StateReason, vm.ExitCode) == ("Stopped", "stop-forced", 0)


@test("what it says to a Reboot whose time is over is no answer to a Pause", timeout=60,
      not_on={"qemu": "there a reboot is called off"})
def _():
    with hostile("late-button") as vm:
        vm.start()
        reboot = vm.reboot_async()
        wait_for(lambda: "PRESSED" in str(vm.last_output()), 10, "the button", poll=0.02)
        with expect_error("Timeout", "runs on"):
            reboot.result()
        pause = vm.call_async("Pause", "a{sv}", {})
        wait_for(lambda: vm.Job != "/", 5, "its job", poll=0.01)
        os.kill(vm.LeaderPID, signal.SIGUSR1)
        pause.result()
        assert (vm.State, vm.StateReason) == ("Paused", "")


@test("its main thread ends and another goes on: it lives, for each daemon, until it is killed", timeout=60)
def _():
    # a zombie whose other threads still held devices was taken for dead
    with hostile("leader-exits", restarts=True) as vm:
        vm.start()
        leader = vm.pid
        wait_for(lambda: status(leader, "State")[0] == "Z", 5, "the end of its main thread", poll=0.02)
        assert vm.State == "Running"
        systemctl("restart", "vmunitd.service")
        assert (vm.State, vm.pid) == ("Running", leader), vm.last_output()
        assert "CPUUsageNSec" in vm.stats()
        vm.kill()
        assert (vm.State, vm.ExitSignal) == ("Stopped", signal.SIGKILL)
        assert not os.path.exists(f"/proc/{leader}")


@test("systemctl stop of one that is deaf", timeout=60)
def _():
    with hostile("deaf") as vm:
        vm.start()
        systemctl("stop", vm.Unit)
        vm.wait_state("Stopped", timeout=15)


for kind in ("kill", "stop", "crash", "remove"):
    @test(f"children that outlive it are ended: {kind}", timeout=60)
    def _(end=kind):
        with hostile("forks") as vm:
            vm.start()
            assert len(strays()) == 4, strays()
            if end == "kill":
                vm.kill()
            elif end == "stop":
                vm.stop(timeout_usec=0)
            elif end == "remove":
                vm.remove(force=True)
                vm.wait_gone()
            else:
                os.kill(vm.pid, signal.SIGKILL)
                vm.wait_state("Error")
            wait_for(lambda: not strays(), 5, "the end of the children", poll=0.02)


@test("a start that fails leaves no children", timeout=40)
def _():
    refused("forks-and-exits", text="not alone", code=1)


@test("its parent dies, and it does not care", timeout=40)
def _():
    with hostile("no-death-signal") as vm:
        vm.start()
        leader = vm.pid
        parent = int(status(leader, "PPid")[0])
        os.kill(parent, signal.SIGKILL)
        wait_exit(leader)
        vm.wait_state("Error")


@test("it hangs up while it runs", timeout=60)
def _():
    with hostile("closes-running") as vm:
        vm.start()
        with contextlib.suppress(BusError):
            vm.stats()
        assert vm.State == "Running", "what lives is not called dead for a lost connection"
        vm.kill()
        assert vm.State == "Stopped"


@test("it could not go on running its guest: Error, vmm-failed, and nothing of it lives", timeout=40)
def _():
    with hostile("fails") as vm:
        vm.start()
        pid = vm.pid
        with contextlib.suppress(BusError):
            vm.stats()
        vm.wait_state("Error")
        assert (vm.StateReason, vm.pid) == ("vmm-failed", 0)
        wait_exit(pid)
        assert all(u[4] for u in manager.usage() if u[0] == vm.Id)


@test("a disk error stops its guest: Paused, io-error, for each daemon, until Resume", timeout=60, not_on=NOT_ON_HTTP)
def _():
    with hostile("stops", restarts=True) as vm:
        vm.start()
        pid = vm.pid
        for again in (False, True):
            vm.stats()
            vm.wait_state("Paused")
            assert vm.StateReason == "io-error" and "Resume" in vm.StateMessage, (vm.StateReason, vm.StateMessage)
            if again:
                kill_daemon()
                vm.start()                                  # which runs, as it were
                assert (vm.State, vm.StateReason) == ("Paused", "io-error")
            vm.resume()
            assert (vm.State, vm.StateReason, vm.pid) == ("Running", "", pid)
        assert len([u for u in manager.usage() if u[0] == vm.Id]) == 1


@test("it has its own descriptors and no others", timeout=40)
def _():
    with hostile("fds-told") as vm:
        vm.start()
        vm.wait_log(b"FDS TOLD")
        told = [line.split() for line in vm.console_log().decode().splitlines() if line.startswith("fd ")]
        kinds = {int(n): what for _, n, what in told}
        fifo, file, sock, terminal = "10000", "100000", "140000", "20000"
        own = {"qemu": [fifo, fifo, fifo, sock, file],
               "firecracker": [fifo, fifo, fifo, fifo, file, file],
               "cloud-hypervisor": [terminal, terminal, fifo, sock, fifo, file]}[BACKEND]
        assert [kinds.pop(n) for n in (*range(len(own)), 1000)] == [*own, fifo], told
        if BACKEND == "firecracker":                            # which opens its counters and makes its socket
            assert sorted(kinds.pop(len(own) + n) for n in range(2)) == [fifo, sock], told
        assert list(kinds.values()) == [sock], told             # the connection


@test("20 at once, of all kinds, and a real one in between", timeout=100)
def _():
    with hostile("exit") as first:
        kinds = ["garbage", "segv", "exit", "endless-line", "lies", "deaf", "forks", "dies-at-cont", "mute", "hang"]
        vms = [manager.create(f"h-{k}-{n}", bad_definition(k)) for k in kinds for n in (1, 2)]
        real = manager.create("good-between", tiny_definition())
        calls = [vm.start_async() for vm in (first, *vms)]
        real.start()
        real.wait_log(b"TINY-UP")
        for vm, result in zip((first, *vms), gather(calls, 40)):
            well = "deaf" in vm.path or "forks" in vm.path
            assert isinstance(result, BusError) != well, (vm.path, result)
            assert vm.State == ("Running" if well else "Stopped")
        gather([vm.remove_async(force=True) for vm in (*vms, real)])
        for vm in (*vms, real):
            vm.wait_gone()


run()
