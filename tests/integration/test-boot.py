#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=400 sanitized backends=qemu,firecracker,cloud-hypervisor
"""Boot and shutdown of the host: what OnBoot= starts, stop-all with a daemon, without one and with one that dies."""

import fcntl
import os
import shutil
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import ENDS

DATABASE, LAST_BOOT = "/var/lib/vmunit/vmunit.db", "/var/lib/vmunit/last-boot"
OTHER_BOOT = "01234567-89ab-cdef-0123-456789abcdef"
DROP_IN = "/run/systemd/system/vmunitd.service.d/test.conf"


def configure(**keys):
    os.makedirs("/etc/vmunit", exist_ok=True)
    with open("/etc/vmunit/vmunit.conf", "w") as f:
        f.write("[VMUnit]\n" + "".join(f"{key}={value}\n" for key, value in keys.items()))


def set_restart(restart):
    """Restart= of the daemon's unit; None: as installed."""
    if restart:
        os.makedirs(os.path.dirname(DROP_IN), exist_ok=True)
        with open(DROP_IN, "w") as f:
            f.write(f"[Service]\nRestart={restart}\n")
    elif os.path.exists(DROP_IN):
        os.unlink(DROP_IN)
    systemctl("daemon-reload")


@contextlib.contextmanager
def no_restart():
    set_restart("no")
    try:
        yield
    finally:
        set_restart(None)
        systemctl("reset-failed", "vmunitd.service", check=False)


def create(name, start=True, **over):
    return manager.create(name, tiny_definition(**over), start=start)


def kill_scope(name):
    unit = f"vmunit-{escape(name)}.scope"
    for pid in unit_pids(unit):
        with contextlib.suppress(ProcessLookupError):   # its child takes the parent along
            os.kill(pid, signal.SIGKILL)
    wait_unit_gone(unit)


def reboot_host(*running):
    """What a boot of the host changes: the processes are gone, /run is empty, and the boot id is another."""
    stop_daemon()
    for vm in running:
        kill_scope(vm)
    for directory in os.listdir("/run/vmunit/vms"):
        shutil.rmtree("/run/vmunit/vms/" + directory)
    with contextlib.suppress(FileNotFoundError):
        os.unlink("/run/vmunit/last-boot")
    other_boot()


def other_boot():
    db = sqlite3.connect(DATABASE)
    with db:
        db.execute("UPDATE vm SET boot_id = ? WHERE boot_id != ''", (OTHER_BOOT,))
    db.close()
    if not os.path.isdir(LAST_BOOT):
        with open(LAST_BOOT, "w") as f:
            f.write(OTHER_BOOT)


def boot():
    """The daemon's first start in a boot; the id of the last event before."""
    last = manager_events()[-1][0] if manager_events() else 0
    start_daemon()
    return last


def manager_events(after=0):
    """Also while no daemon runs: from the database."""
    db = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)
    rows = db.execute("SELECT id, vm_name, type, message, usec FROM event WHERE id > ? ORDER BY id", (after,)).fetchall()
    db.close()
    return rows


def told(kind, after=0):
    return [row[1] for row in manager_events(after) if row[2] == kind]


def stop_all():
    return subprocess.run(["vmunit", "stop-all"], capture_output=True, text=True, check=False)


def wait_up(*vms):
    for vm in vms:
        vm.wait_log(b"TINY-UP", 20)


def deafen(*vms):
    """From now on they obey no button."""
    for vm in vms:
        with vm.open_console() as console:
            console.sendall(b"s")
            wait_for(lambda: vm.console_log().rstrip().endswith(b"s"), 10, "the echo", poll=0.03)


def clean():
    systemctl("reset-failed", "vmunitd.service", check=False)
    start_daemon()
    manager.remove_all()


configure()
start_daemon()
manager = Manager()


# Boot

@test("after a boot what ran is Stopped, and autostart runs, the highest priority first", timeout=60)
def _():
    first = ["p1", "p9", "p5", "p7", "p3", "p8", "p2"]
    for name in first:
        create(name, autostart=True, autostartPriority=int(name[1]))
    create("ran")
    create("never", start=False)
    reboot_host(*first, "ran")
    mark = boot()
    for name in first:
        manager.vm(name).wait_state("Running", timeout=30)
    ran = manager.vm("ran")
    assert (ran.State, ran.StateReason) == ("Stopped", "host-reboot"), (ran.State, ran.StateReason)
    assert manager.vm("never").State == "Stopped"
    assert told("starting", mark) == sorted(first, reverse=True), told("starting", mark)
    assert sorted(told("stopped", mark)) == sorted([*first, "ran"])
    clean()


@test("a second start of the daemon in a boot starts none")
def _():
    vm = create("once", start=False, autostart=True)
    reboot_host()
    boot()
    vm.wait_state("Running")
    vm.stop()
    stop_daemon()
    mark = boot()
    assert vm.State == "Stopped" and vm.RestartAtUSec == 0 and told("starting", mark) == []
    clean()


@test("a boot that is found by mistake starts nothing that runs already")
def _():
    # a daemon that had forgotten what it knew started VMs once more
    ran, other = create("ran", autostart=True), create("other", start=False, autostart=True)
    pid = ran.pid
    stop_daemon()
    os.unlink(LAST_BOOT)
    mark = boot()
    other.wait_state("Running")
    assert (ran.State, ran.pid) == ("Running", pid) and told("starting", mark) == ["other"]
    assert len([u for u in manager.usage() if u[0] == ran.Id]) == 1
    clean()


@test("a VM whose removal is blocked is started by no policy and no boot, and its removal goes on after it", timeout=60)
def _():
    configure(RestartSec="1s")
    stop_daemon()
    start_daemon()
    vm, other = create("going", autostart=True, restart={"policy": "always"}), create("stays", start=False, autostart=True)
    identity, pid = vm.Id, vm.pid
    where = f"/var/lib/vmunit/vms/{identity}/mounted"
    os.mkdir(where)
    subprocess.run(["mount", "-t", "tmpfs", "somebody", where], check=True)
    try:
        os.kill(pid, signal.SIGKILL)
        vm.wait_state("Error")
        assert vm.RestartAtUSec > 0
        mark = manager_events()[-1][0]
        vm.remove()
        wait_for(lambda: (vm.State, vm.StateReason) == ("Removing", "blocked"), 10, "the removal", poll=0.05)
        assert vm.RestartAtUSec == 0
        reboot_host()
        boot()
        other.wait_state("Running")             # as would it
        assert vm.State == "Removing" and vm.RestartAtUSec == 0 and told("starting", mark) == ["stays"], told("starting", mark)
    finally:
        subprocess.run(["umount", where], check=True)
    vm.remove()
    vm.wait_gone()
    assert not os.path.exists(f"/var/lib/vmunit/vms/{identity}")
    configure()
    clean()


@test("where last-boot can't be written a boot is done with all the same, and the next one is one", timeout=60)
def _():
    # autostart at each start of the daemon
    vm, ran = create("auto", start=False, autostart=True), create("ran", autostart=True)
    reboot_host("ran")
    os.unlink(LAST_BOOT)
    os.mkdir(LAST_BOOT)
    try:
        for n in (1, 2):
            boot()
            vm.wait_state("Running")
            ran.wait_state("Running")
            vm.stop()
            created = create("created", start=False, autostart=True)
            for _ in range(2):
                stop_daemon()
                mark = boot()
                assert vm.State == created.State == "Stopped" and vm.RestartAtUSec == created.RestartAtUSec == 0
                assert ran.State == "Running" and told("starting", mark) == []
            warned = [e for e in journal("-u", "vmunitd.service") if "last-boot can't be written, so" in e["MESSAGE"]]
            assert len(warned) == n, warned
            created.remove()
            created.wait_gone()
            reboot_host("ran")
    finally:
        os.rmdir(LAST_BOOT)
    clean()
    assert os.path.isfile(LAST_BOOT) and not os.path.exists("/run/vmunit/last-boot")


@test("what is to run after a boot and can't be stored is not lost", timeout=60)
def _():
    vm = create("late", start=False, autostart=True)
    reboot_host()
    with contextlib.closing(sqlite3.connect(DATABASE, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        mark = boot()
        wait_for(lambda: [e for e in journal("-u", "vmunitd.service") if "tried again every few seconds" in e["MESSAGE"]], 10, poll=0.2)
        assert vm.State == "Stopped" and told("starting", mark) == []
        db.execute("ROLLBACK")
    vm.wait_state("Running", timeout=15)
    with open(LAST_BOOT) as f:
        assert f.read() != OTHER_BOOT
    clean()


@test("OnBoot=resume starts what ran, too, but not what a user has stopped")
def _():
    names = ["ran", "paused", "stopped", "killed", "off", "kept"]
    for name in names:
        wait_up(create(name))
    manager.vm("paused").pause()
    manager.vm("stopped").stop()
    manager.vm("killed").kill()
    manager.vm("off").open_console().sendall(ENDS[0])
    manager.vm("off").wait_state("Stopped")
    manager.vm("kept").stop(keep_intent=True)
    create("auto", start=False, autostart=True)
    configure(OnBoot="resume")
    reboot_host("ran", "paused")
    mark = boot()
    for name in ("ran", "paused", "kept", "auto"):
        manager.vm(name).wait_state("Running")
    assert sorted(told("starting", mark)) == ["auto", "kept", "paused", "ran"], told("starting", mark)
    configure()
    clean()


@test("OnBoot=no starts none")
def _():
    create("ran", autostart=True)
    configure(OnBoot="no")
    reboot_host("ran")
    mark = boot()
    vm = manager.vm("ran")
    assert (vm.State, vm.StateReason, vm.RestartAtUSec) == ("Stopped", "host-reboot", 0)
    configure()
    stop_daemon()
    start_daemon()
    assert vm.State == "Stopped" and told("starting", mark) == [], "the boot is over"
    clean()


@test("OnBootDelaySec= lies between two starts", timeout=60)
def _():
    names = ["d1", "d2", "d3"]
    for name in names:
        create(name, start=False, autostart=True, autostartPriority=int(name[1]))
    configure(OnBootDelaySec="700ms")
    reboot_host()
    mark = boot()
    for name in names:
        manager.vm(name).wait_state("Running")
    starts = [(row[1], row[4]) for row in manager_events(mark) if row[2] == "starting"]
    assert [name for name, _ in starts] == ["d3", "d2", "d1"], starts
    gaps = [b[1] - a[1] for a, b in zip(starts, starts[1:])]
    assert all(gap > 400000 for gap in gaps), gaps
    configure()
    clean()


@test("an Update of a VM that waits for its turn after a boot leaves it its turn")
def _():
    for name in ("first", "waits"):
        create(name, start=False, autostart=True, autostartPriority=int(name == "first"))
    configure(OnBootDelaySec="10min")
    reboot_host()
    boot()
    manager.vm("first").wait_state("Running")
    vm = manager.vm("waits")
    turn = vm.RestartAtUSec
    assert turn > time.time() * 1e6
    vm.update({"labels": {"changed": "yes"}})
    vm.update({"restart": {"policy": "on-failure"}})
    assert vm.RestartAtUSec == turn
    kill_daemon()
    assert vm.RestartAtUSec == turn, "it is stored, too"
    configure()
    clean()


@test("a daemon that is killed in the middle of it starts the rest at its next start", timeout=90)
def _():
    names = ["k1", "k2", "k3", "k4"]
    for name in names:
        create(name, autostart=True, autostartPriority=int(name[1]))
    configure(OnBootDelaySec="1s")
    reboot_host(*names)
    mark = boot()
    manager.vm("k4").wait_state("Running")
    waiting = manager.vm("k1").RestartAtUSec
    assert waiting > time.time() * 1e6
    kill_daemon()
    assert manager.vm("k1").RestartAtUSec == waiting, "its time stays"
    for name in names:
        manager.vm(name).wait_state("Running")
    starts = told("starting", mark)             # one that was under way is made again
    assert list(dict.fromkeys(starts)) == ["k4", "k3", "k2", "k1"], starts
    configure()
    clean()


@test("a start after a boot that a daemon's death interrupts is made again", timeout=60)
def _():
    vm = create("cut", start=False, autostart=True)
    reboot_host()
    mark = boot()
    wait_for(lambda: told("starting", mark), 15, "the start", poll=0.001)
    kill_daemon()
    vm.wait_state("Running", timeout=20)
    clean()


@test("a Stop ends a start that waits for its time after a boot")
def _():
    create("s2", start=False, autostart=True, autostartPriority=2)
    vm = create("s1", start=False, autostart=True, autostartPriority=1)
    configure(OnBootDelaySec="1h")
    reboot_host()
    boot()
    manager.vm("s2").wait_state("Running")
    assert vm.RestartAtUSec > 0
    vm.stop()
    assert vm.RestartAtUSec == 0
    configure()
    clean()


# Shutdown

@test("stop-all presses the buttons, of the VMs that began last first, and keeps the intent", timeout=60)
def _():
    vms = []
    for name in ("a", "b", "c", "d"):
        vms.append(create(name))
        wait_up(vms[-1])
    mark = manager_events()[-1][0]
    done = stop_all()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    assert told("stopping", mark) == ["d", "c", "b", "a"], told("stopping", mark)
    for vm in vms:
        assert (vm.State, vm.StateReason) == ("Stopped", "stopped")
        assert b"POWERBTN" in vm.console_log()
    configure(OnBoot="resume")
    reboot_host()
    boot()
    for vm in vms:
        vm.wait_state("Running")
    configure()
    assert stop_all().returncode == 0
    assert stop_all().returncode == 0, "with none that runs"
    clean()


@test("more VMs than are stopped at a time", timeout=120)
def _():
    vms = [create(f"m{n}") for n in range(20)]
    wait_up(*vms)
    mark = len(signals)
    assert stop_all().returncode == 0
    assert all(vm.State == "Stopped" for vm in vms)
    stopping = most = 0
    for s in signals[mark:]:
        if s.member == "Event":
            stopping += {"stopping": 1, "stopped": -1}.get(s.args[4], 0)
            most = max(most, stopping)
    assert 2 <= most <= 16, most
    clean()


@test("a guest that does not obey is forced, and told of")
def _():
    deaf, good = create("deaf", stopTimeout="1s"), create("good")
    wait_up(deaf, good)
    deafen(deaf)
    done = stop_all()
    assert done.returncode == 0 and done.stderr.startswith("deaf: ") and done.stderr.count("\n") == 1, done
    assert (deaf.StateReason, good.StateReason) == ("stop-forced", "stopped")
    clean()


@test("what waits to be restarted or is starting does not run after stop-all either", timeout=60)
def _():
    configure(RestartSec="1h", RestartMaxDelaySec="1h")
    stop_daemon()
    start_daemon()
    crashed, paused, starting = create("crashed", restart={"policy": "always"}), create("paused"), create("starting", start=False, stopTimeout="2s")
    wait_up(paused)
    os.kill(crashed.pid, signal.SIGKILL)
    crashed.wait_state("Error")
    assert crashed.RestartAtUSec > 0
    paused.pause()
    under_way = starting.start_async()
    assert stop_all().returncode == 0
    gather([under_way])
    assert crashed.RestartAtUSec == 0
    assert {vm.State for vm in (crashed, paused, starting)} == {"Stopped"}
    assert paused.StateReason == "stopped"
    configure(OnBoot="resume")
    reboot_host()
    boot()
    for vm in (crashed, paused):
        vm.wait_state("Running")
    configure()
    clean()


@test("stop-all without a daemon does it by itself", timeout=60)
def _():
    with no_restart():
        vms = []
        for name in ("a", "b", "c", "d"):
            vms.append(create(name))
            wait_up(vms[-1])
        vms[1].pause()
        deaf = create("deaf", stopTimeout="1s")
        wait_up(deaf)
        deafen(deaf)
        mark = manager_events()[-1][0]
        kill_daemon(restart=False)
        done = stop_all()
        assert daemon_pid() == 0, "no activation"
        assert done.returncode == 0, done
        assert "deaf: " in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert told("stopping", mark) == ["deaf", "d", "c", "b", "a"], told("stopping", mark)
        assert stop_all().returncode == 0, "with none that runs"
    start_daemon()
    for vm in vms:
        assert (vm.State, vm.StateReason) == ("Stopped", "stopped")
        assert b"POWERBTN" in vm.console_log(), vm.path
    assert deaf.StateReason == "stop-forced"
    clean()


@test("without a daemon stop-all starts nothing, whatever waits for its time", timeout=60)
def _():
    configure(RestartSec="100ms")
    stop_daemon()
    start_daemon()
    with no_restart():
        crashed, slow = create("crashed", restart={"policy": "always"}), create("slow", stopTimeout="2s")
        wait_up(slow)
        deafen(slow)
        mark = manager_events()[-1][0]
        pid = crashed.pid
        kill_daemon(restart=False)
        os.kill(pid, signal.SIGKILL)
        assert stop_all().returncode == 0
        assert told("starting", mark) == []
    configure()
    clean()


@test("the daemon dies in the middle of stop-all", timeout=90)
def _():
    for restart in ("no", "on-failure"):
        set_restart(restart)
        vms = [create(name, stopTimeout="3s") for name in ("e", "f")]
        wait_up(*vms)
        deafen(vms[0])
        mark = manager_events()[-1][0]
        with subprocess.Popen(["vmunit", "stop-all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            vms[0].wait_state("Stopping")
            kill_daemon(restart=restart != "no")
            out, err = process.communicate(timeout=40)
        assert process.returncode == 0, (restart, out, err)
        assert "e: " in err, err
        if restart == "no":
            assert daemon_pid() == 0
        set_restart(None)
        systemctl("reset-failed", "vmunitd.service", check=False)
        start_daemon()
        assert [vm.State for vm in vms] == ["Stopped"] * 2
        assert sorted(told("stopped", mark)) == ["e", "f"]
        assert vms[0].StateReason == "stop-forced", vms[0].StateReason
        clean()


@test("a daemon that is stopped in the middle of stop-all", timeout=60)
def _():
    vm = create("g", stopTimeout="3s")
    wait_up(vm)
    deafen(vm)
    with subprocess.Popen(["vmunit", "stop-all"], stderr=subprocess.PIPE, text=True) as process:
        vm.wait_state("Stopping")
        stop_daemon()
        _, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    clean()
    assert manager.list() == []


@test("systemctl stop vmunit-guests.service stops all, with a daemon and without", timeout=60)
def _():
    for dead in (False, True):
        with no_restart() if dead else contextlib.nullcontext():
            vm = create("h")
            wait_up(vm)
            systemctl("start", "vmunit-guests.service")
            assert vm.State == "Running"
            if dead:
                kill_daemon(restart=False)
            systemctl("stop", "vmunit-guests.service")
            assert unit_property("vmunit-guests.service", "Result") == "success"
            assert not unit_pids("vmunit-h.scope")
        start_daemon()
        assert (vm.State, vm.StateReason) == ("Stopped", "stopped")
        assert b"POWERBTN" in vm.console_log()
        clean()


@test("a daemon does not come back while systemd stops a scope, but stop-all comes in time", timeout=60)
def _():
    vm = create("s", stopTimeout="10s")
    wait_up(vm)
    mark = manager_events()[-1][0]
    subprocess.run("kill -KILL $(systemctl show -P MainPID vmunitd.service); systemctl stop --no-block vmunit-s.scope",
                   shell=True, check=True)
    wait_for(lambda: unit_property("vmunit-s.scope", "SubState") == "stop-sigterm", 10, "the stop", poll=0.05)
    assert stop_all().returncode == 0
    wait_for(lambda: daemon_pid() and unit_property("vmunitd.service", "ActiveState") == "active", 10, "the daemon", poll=0.1)
    assert (vm.State, vm.StateReason) == ("Stopped", "stopped"), (vm.State, vm.StateReason)
    assert b"POWERBTN" in vm.console_log() and told("stopped", mark) == ["s"]
    clean()


@contextlib.contextmanager
def lock_held():
    """As by a daemon that is on its way out, or by one that stops all in the place of a daemon."""
    with open("/run/vmunit/lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def faults_of_children(pid):
    """They are counted when a child has ended."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return int(f.read().rpartition(")")[2].split()[8])


@test("stop-all waits for the lock of another vmunitd", timeout=60)
def _():
    vmunitd = unit_property("vmunitd.service", "ExecStart").split("path=")[1].split()[0]
    done = subprocess.run([vmunitd, "--stop-all"], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, ""), done         # as vmunitd(8) says
    vm = create("l")
    wait_up(vm)
    stop_daemon()
    with lock_held():
        process = subprocess.Popen(["vmunit", "stop-all"])
        for _ in range(2):                                          # it tries, and again
            before = faults_of_children(process.pid)
            wait_for(lambda: faults_of_children(process.pid) > before, 20, "a try", poll=0.05)
        assert unit_pids("vmunit-l.scope")
    assert process.wait(40) == 0
    clean()


@test("a daemon that finds the lock held is started again", timeout=60)
def _():
    stop_daemon()
    with lock_held():
        assert subprocess.run(["systemctl", "start", "vmunitd.service"], capture_output=True, check=False).returncode
        wait_for(lambda: int(unit_property("vmunitd.service", "NRestarts")) > 1, 20, "another try", poll=0.1)
    wait_for(lambda: unit_property("vmunitd.service", "ActiveState") == "active", 20, "the daemon", poll=0.1)
    clean()


@test("stop-all where no daemon ever ran since the boot")
def _():
    stop_daemon()
    shutil.rmtree("/run/vmunit")
    done = stop_all()
    assert (done.returncode, done.stderr) == (0, ""), done
    assert daemon_pid() == 0
    clean()


@test("only root may stop all")
def _():
    vm = create("i")
    done = subprocess.run(["vmunit", "stop-all"], user=65534, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "root" in done.stderr, done
    assert vm.State == "Running"
    clean()


# Where a start spends its time

def blame(*args, **kwargs):
    subprocess.run(["journalctl", "--sync"], check=True, capture_output=True)
    return subprocess.run(["vmunit", "blame", *args], capture_output=True, text=True, check=False, **kwargs)


@test("blame tells the stages of the last start, with LogLevel= above them")
def _():
    configure(LogLevel="warning")
    stop_daemon()
    start_daemon()
    vm = create("web")
    job = json.loads(blame("web", "--json").stdout)["Job"]
    vm.stop()
    before = time.time()
    vm.start()
    took = (time.time() - before) * 1e6
    told_json = json.loads(blame("web", "--json").stdout)
    stages = told_json["Stages"]
    assert told_json["Name"] == "web" and told_json["Id"] == vm.Id and told_json["Job"] > job
    assert {"open", "launch", "scope", "exec", "connect"} <= {s["Stage"] for s in stages}, stages
    durations = [s["DurationUSec"] for s in stages]
    assert durations == sorted(durations, reverse=True) and len(stages) == len({s["Stage"] for s in stages})
    assert told_json["SumUSec"] == sum(durations) and took / 3 < sum(durations) < took * 1.1, (took, told_json)
    assert before * 1e6 - 1e6 < told_json["StartedUSec"] < time.time() * 1e6

    text = blame("web").stdout.splitlines()
    assert len(text) == len(stages) + 1 and text[0].split() == [text[0].split()[0], stages[0]["Stage"]], text
    assert "in all" in text[-1] and all(line.split()[0].endswith(("ms", "s")) for line in text)
    assert blame(vm.Id).stdout == blame("web").stdout
    entry, = journal(f"VMUNIT_JOB={told_json['Job']}")
    assert set(entry["STAGE"]) == {s["Stage"] for s in stages} and int(entry["DURATION_USEC"]) == sum(durations), entry
    assert {f"{s['Stage']}:{s['DurationUSec']}" for s in stages} == set(entry["STAGE_USEC"])
    configure(LogLevel="info")
    stop_daemon()
    start_daemon()
    vm.stop()
    before = len(journal("_SYSTEMD_UNIT=vmunitd.service", f"VMUNIT_VM_ID={vm.Id}"))
    vm.start()
    assert len(journal("_SYSTEMD_UNIT=vmunitd.service", f"VMUNIT_VM_ID={vm.Id}")) == before + 3, "what a start writes"
    text = blame("web").stdout.splitlines()
    configure()
    clean()
    assert blame("web").stdout.splitlines() == text, "the journal outlives the VM"


@test("blame with nothing to tell, and with what others have written")
def _():
    create("new", start=False)
    done = blame("new")
    assert done.returncode == 1 and done.stderr.startswith("new: ") and not done.stdout, done
    subprocess.run(["logger", "--journald"], check=True, text=True, user=65534,
                   input="MESSAGE=x\nVMUNIT_VM=new\nVMUNIT_VM_ID=1\nVMUNIT_OPERATION=Start\nVMUNIT_JOB=1\nSTAGE=lie\nSTAGE_USEC=lie:1\nDURATION_USEC=1\n")
    assert journal("STAGE=lie") and blame("new").returncode == 1
    clean()


# The last one, for it takes our own connection away

@test("a daemon that has lost the bus is started again", timeout=60)
def _():
    vm, pid = create("j"), daemon_pid()
    systemctl("kill", "--signal=KILL", "dbus.service")
    wait_exit(pid)
    state = subprocess.run("for i in $(seq 100); do systemctl is-active --quiet vmunitd.service && vmunit show j -p State && break; sleep .1; done",
                           shell=True, capture_output=True, text=True, check=False)
    assert "State=Running" in state.stdout, state


run()
