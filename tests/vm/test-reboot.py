#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=1800 disk all
"""The host reboots, in good order and by a reset, while VMs run: nothing is lost, and who should run runs again, with its shares."""

import os
import sqlite3
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

FACTS = "/var/lib/vmunit-test.json"             # what a boot tells the next one
CONF = "/etc/vmunit/vmunit.conf.d/reboot.conf"
DISK = "/srv/vmunit-disk"                       # the bed's, as it is: its root is an overlay, which can't be idmapped
SHARE = DISK + "/share"
# For the daemon there have to be shares when it starts what a boot starts. No udev knows of the disk, so no mount unit can wait for it.
MOUNT = f"""[Unit]
Before=vmunitd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount -t ext4 /dev/vda {DISK}
[Install]
WantedBy=multi-user.target
"""

manager = Manager()


def keep(facts):
    """The next boot finds the facts even after a reset."""
    with open(FACTS + ".new", "w") as f:
        json.dump(facts, f)
        f.flush()
        os.fsync(f.fileno())
    os.rename(FACTS + ".new", FACTS)
    os.sync()


def kept():
    with open(FACTS) as f:
        return json.load(f)


def boot_id():
    with open("/proc/sys/kernel/random/boot_id") as f:
        return f.read().strip()


def configure(text):
    os.makedirs(os.path.dirname(CONF), exist_ok=True)
    with open(CONF, "w") as f:
        f.write("[VMUnit]\nStartTimeoutSec=3min\n" + text)


def definition(**over):
    return tiny_definition(memory="16M", accel="tcg", **{"stopTimeout": "60s", **over})


def start(*names):
    for vm in [VM(name) for name in names]:
        if vm.State != "Running":
            vm.start()
        vm.wait_log(b"TINY-UP", timeout=30)


def deafen(name):
    vm = VM(name)
    with vm.open_console() as console:
        console.send(b"s")
        read_until(console.fileno(), b"s")


def mount_disk():
    os.makedirs(DISK)
    with open("/etc/systemd/system/vmunit-disk.service", "w") as f:
        f.write(MOUNT)
    systemctl("daemon-reload")
    systemctl("enable", "--now", "vmunit-disk.service")
    os.mkdir(SHARE)


def write_share(text):
    with open(SHARE + "/file", "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def check_share(text):
    """Its virtiofsd has the directory with what was written before as its root; the guest has no driver for it."""
    scope = f"vmunit-{escape('shared')}-fs-data.scope"
    assert unit_property(scope, "Slice") == VM("shared").Slice
    seen = []
    for pid in unit_pids(scope):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/root/file") as f:
            seen.append(f.read())
    assert seen and set(seen) == {text}, (seen, unit_pids(scope))


def facts_now():
    """All that a reboot must not change."""
    vms = {name: {"id": vm_id, "definition": VM(path).definition(), "hash": VM(path).DefinitionHash,
                  "created": VM(path).CreatedUSec} for name, vm_id, _, path in manager.list()}
    events = manager.events(limit=100000)
    return {"boot": boot_id(), "vms": vms, "event": events[-1][0], "events": len(events),
            "usage": [list(u[:4]) for u in manager.usage()]}


def check_kept():
    """After a reboot: another boot, the same VMs, all events and intervals that there were, an intact database."""
    before, now = kept(), facts_now()
    assert before["boot"] != now["boot"]
    assert before["vms"] == now["vms"], (before["vms"], now["vms"])
    assert now["event"] > before["event"] and now["events"] > before["events"], (before, now)
    missing = [u for u in before["usage"] if u not in now["usage"]]
    assert not missing, missing
    copy = "/tmp/copy.db"
    for end in ("", "-wal"):
        if os.path.exists("/var/lib/vmunit/vmunit.db" + end):
            subprocess.run(["cp", "/var/lib/vmunit/vmunit.db" + end, copy + end], check=True)
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    for entry in journal("_SYSTEMD_UNIT=vmunitd.service"):
        assert int(entry["PRIORITY"]) > 3, entry["MESSAGE"]


def check_usage(*running):
    """Each run has one interval: open for who runs, else closed, in the right order; none overlap."""
    now = time.time() * 1e6
    of = {}
    for vm_id, name, _, begin, end, details in manager.usage():
        of.setdefault(name, []).append((begin, end, details))
    for name, intervals in of.items():
        intervals.sort(key=lambda i: i[0])
        last = 0
        for begin, end, details in intervals:
            assert last <= begin <= (end or now) <= now, (name, intervals)
            last = end or now
            assert end or details["BootID"].replace("-", "") == boot_id().replace("-", ""), (name, intervals)
        still = [i for i in intervals if not i[1]]
        assert len(still) == (name in running), (name, intervals)
        if still:
            assert still == intervals[-1:], (name, intervals)
    return {name: len(intervals) for name, intervals in of.items()}


def check_states(**wanted):
    """NAME="Stopped host-reboot": state and reason; those that are to run get their time for it."""
    for name, state in wanted.items():
        if state == "Running":
            VM(name).wait_state("Running", timeout=30)
            VM(name).wait_log(b"TINY-UP", timeout=30)
    now = {name: f"{VM(name).State} {VM(name).StateReason}".strip() for name in wanted}
    assert now == wanted, f"{now} instead of {wanted}"
    for name, state in wanted.items():
        alive = state.startswith("Running")
        assert bool(VM(name).pid) == alive, (name, VM(name).pid)
        assert bool(unit_pids(VM(name).Unit)) == alive, name
    running = [name for name, state in wanted.items() if state == "Running"]
    directories = {vm_id for name, vm_id, _, _ in manager.list() if name in running}
    left = {d for d in os.listdir("/run/vmunit/vms") if d not in directories}
    assert not left, left
    return check_usage(*running)


# Boot 1

@test("boot 1: VMs run, two with autostart, one of them with a share, one deaf to the button")
def _():
    configure("")
    mount_disk()
    systemctl("enable", "vmunitd.service")
    start_daemon()
    for name, over in {"plain": {"labels": {"a": "ö"}}, "auto": {"autostart": True}, "never": {},
                       "deaf": {"stopTimeout": "3s"}, "dead": {}, "held": {},
                       "shared": {"autostart": True, "filesystems": [{"tag": "data", "source": SHARE}]}}.items():
        manager.create(name, definition(**over))
    write_share("one")
    start("plain", "auto", "deaf", "shared")
    deafen("deaf")
    check_states(plain="Running", auto="Running", deaf="Running", shared="Running", never="Stopped", dead="Stopped", held="Stopped")
    check_share("one")
    keep(facts_now())


def reboot_in_good_order():
    systemctl("--no-block", "reboot")


# Boot 2

@test("after a reboot in good order nothing is lost", boot=2)
def _():
    assert unit_property("vmunitd.service", "ActiveState") == "active", "the daemon was not started by the boot"
    check_kept()


@test("each VM was stopped in good order, the deaf one by force; those with autostart run again, the share with its VM", boot=2)
def _():
    runs = check_states(plain="Stopped stopped", deaf="Stopped stop-forced", auto="Running", shared="Running", never="Stopped",
                        dead="Stopped", held="Stopped")
    assert runs == {"plain": 1, "deaf": 1, "auto": 2, "shared": 2}, runs
    assert b"POWERBTN" in VM("plain").console_log(), VM("plain").console_log()
    stops = [e[4] for e in manager.events(vm=VM("shared").Id, limit=1000) if e[4] in ("stopping", "stopped", "error")]
    assert stops == ["stopping", "stopped"], stops
    check_share("one")


@test("they can be started; one is paused, one crashes", boot=2)
def _():
    start("plain", "dead", "held")
    VM("held").pause()
    os.kill(VM("dead").pid, signal.SIGKILL)
    VM("dead").wait_state("Error")
    wait_unit_gone(VM("dead").Unit)
    write_share("two")
    keep(facts_now())


def reset():
    with open("/proc/sysrq-trigger", "w") as f:
        f.write("b")


# Boot 3

@test("after a reset nothing is lost", boot=3)
def _():
    assert unit_property("vmunitd.service", "ActiveState") == "active", "the daemon was not started by the boot"
    check_kept()


@test("what ran is Stopped because of the reboot, what was in Error still is; those with autostart run again, the share with its VM", boot=3)
def _():
    runs = check_states(plain="Stopped host-reboot", held="Stopped host-reboot", dead="Error vmm-crashed", auto="Running", shared="Running",
                        deaf="Stopped stop-forced", never="Stopped")
    assert runs == {"plain": 2, "held": 1, "dead": 1, "auto": 3, "shared": 3, "deaf": 1}, runs
    check_share("two")


@test("they can be started again; OnBoot=resume", boot=3)
def _():
    start("plain", "dead", "held", "deaf")
    deafen("deaf")
    VM("held").stop()
    configure("OnBoot=resume\n")
    systemctl("restart", "vmunitd.service")
    systemctl("enable", "--now", "vmunit-guests.service")
    keep(facts_now())


def reboot_without_daemon():
    """vmunit-guests.service has to do it alone, or with the daemon that comes back."""
    subprocess.run("kill -KILL $(systemctl show -P MainPID vmunitd.service); systemctl --no-block reboot", shell=True, check=True)


# Boot 4

@test("vmunit-guests.service has stopped them, those that began last first, though the daemon had just died", boot=4)
def _():
    events = [(e[3], e[4], e[6].get("reason")) for e in manager.events(after=kept()["event"], limit=1000)]
    stopping = [name for name, kind, _ in events if kind == "stopping"]
    assert stopping[:3] == ["deaf", "dead", "plain"] and sorted(stopping[3:]) == ["auto", "shared"], events
    assert ("deaf", "stopped", "stop-forced") in events, events
    assert {name for name, kind, reason in events if (kind, reason) == ("stopped", "stopped")} == {"dead", "plain", "auto", "shared"}, events


@test("with OnBoot=resume those run again that a shutdown of the host has stopped, and no others", boot=4)
def _():
    check_kept()
    check_states(plain="Running", auto="Running", shared="Running", dead="Running", deaf="Running", held="Stopped stopped", never="Stopped")
    check_share("two")


@test("all stop and go, and nothing is left of them", boot=4)
def _():
    gather([vm.stop_async() for vm in map(VM, ("plain", "auto", "shared", "dead"))])
    VM("deaf").kill()
    check_usage()
    manager.remove_all()
    wait_for(lambda: not os.listdir("/var/lib/vmunit/vms") and not os.listdir("/run/vmunit/vms"), poll=0.1)
    assert not unit_pids("machine-vmunit.slice")


run(reboot=(reboot_in_good_order, reset, reboot_without_daemon))
