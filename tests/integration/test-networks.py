#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized
"""User networks: a passt each, in a scope of its own, that goes with its VM and is replaced when it dies. The tiny guest has no driver for
them; what a guest sees is test-networks-linux.py."""

import os
import shutil
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *

IDS = range(1000013825, 1000079360)
SILENT = "/usr/local/bin/silent-passt"
NOBODY = 65534


def networked(*networks, **over):
    return tiny_definition(networks=list(networks) or [{}], **over)


def forward(host, **more):
    return {"forward": [{"host": host, "guest": 80, **more}]}


def scope(vm, name="net0"):
    return f"vmunit-{escape(vm.Name)}-net-{name}.scope"


def program_of(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/comm", encoding="utf-8") as f:
            return f.read().strip()
    return ""


def passts(vm, name="net0"):
    return [pid for pid in unit_pids(scope(vm, name)) if program_of(pid).startswith("passt")]


def status(pid, key):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return next(line.split(":", 1)[1].split() for line in f if line.startswith(key + ":"))


def listens(port, address="127.0.0.1"):
    with socket.socket() as s:
        return s.connect_ex((address, port)) == 0


def refused(definition):
    """Why, or "" """
    try:
        vm = manager.create("refused", definition)
    except BusError as error:
        assert error.short == "NotSupported", error
        return error.message
    vm.remove()
    vm.wait_gone()
    return ""


def all_gone(vm, *names):
    for unit in [scope(vm, name) for name in names] + [vm.Unit, vm.Slice]:
        wait_unit_gone(unit)


def another(vm, before, name="net0"):
    """The passt that has taken the place of that one"""
    return wait_for(lambda: (now := passts(vm, name)) and before not in now and now[0], 60, "another passt", poll=0.05)


def losses(vm):
    return types_of(vm).count("network-lost")


@test("two networks: a scope each, beside the VMM's in the VM's slice, gone with the VM")
def _():
    with vm_of(networked(forward(2301), {"name": "two"}), name="a-b") as vm:
        vm.start()
        assert words(vm) == ("Running", "")
        vm.wait_log(b"TINY-UP")
        for name in ("net0", "two"):
            unit = scope(vm, name)
            assert unit_property(unit, "Slice") == vm.Slice
            assert vm.Unit in unit_property(unit, "Before").replace(r"\\", "\\"), unit_property(unit, "Before")
            assert unit_property(unit, "Description") == f"Network {name} of virtual machine a-b"
            assert len(passts(vm, name)) == 1, unit_pids(unit)
        assert listens(2301) and not listens(2301, "127.0.0.2")
        vm.stop()
        assert words(vm) == ("Stopped", "stopped")
        assert not listens(2301)
        all_gone(vm, "net0", "two")
        vm.start()
        vm.kill()
        all_gone(vm, "net0", "two")


@test("a passt has an id of its own, no right, no file, and nothing of the host but its network")
def _():
    with vm_of(networked(forward(2302))) as low, vm_of(networked(forward(82))) as vm:
        low.start()
        vm.start()
        assert listens(82) and listens(2302)
        (pid,), (other,) = passts(vm), passts(low)
        (uid,) = set(status(pid, "Uid"))
        assert int(uid) in IDS and set(status(pid, "Gid")) == {uid} and status(pid, "Groups") == []
        assert status(other, "Uid")[0] != uid
        for one in (pid, other):
            assert status(one, "NoNewPrivs") == ["1"] and status(one, "Seccomp") == ["2"]
            assert not any(int(status(one, "Cap" + kind)[0], 16) for kind in ("Eff", "Prm", "Inh", "Amb")), "also the one below 1024"
            assert os.readlink(f"/proc/{one}/ns/net") == os.readlink("/proc/1/ns/net")
            for kind in ("user", "mnt", "pid", "ipc", "uts", "cgroup"):
                assert os.readlink(f"/proc/{one}/ns/{kind}") != os.readlink(f"/proc/1/ns/{kind}"), kind
            assert os.listdir(f"/proc/{one}/root") == []
        helper = next(pid for pid in unit_pids(scope(vm)) if program_of(pid) == "vmunit-exec")
        assert int(status(helper, "CapEff")[0], 16) == 0


@test("a passt that dies is replaced, again and again; the VM goes on", timeout=90)
def _():
    with vm_of(networked(forward(2303), {"name": "two"})) as vm:
        vm.start()
        leader, two = vm.LeaderPID, passts(vm, "two")
        for n, victim in enumerate((passts, lambda vm: [pid for pid in unit_pids(scope(vm)) if program_of(pid) == "vmunit-exec"]), 1):
            (pid,), (before,) = victim(vm), passts(vm)
            os.kill(pid, signal.SIGKILL)
            another(vm, before)
            wait_for(lambda: listens(2303), 10, "its port", poll=0.05)
            wait_for(lambda n=n: losses(vm) == n, 10, "the event")
        assert (words(vm), vm.LeaderPID, passts(vm, "two")) == (("Running", ""), leader, two)
        vm.stop()
        assert words(vm) == ("Stopped", "stopped") and losses(vm) == 2
        all_gone(vm, "net0", "two")


@test("the daemon comes back: it finds passts that live, and replaces those that have died meanwhile", timeout=90)
def _():
    with vm_of(networked(forward(2304), {"name": "two", **forward(2309)})) as vm:
        vm.start()
        (one,), (two,) = passts(vm), passts(vm, "two")
        kill_daemon()
        assert words(vm) == ("Running", "") and passts(vm) == [one] and passts(vm, "two") == [two]
        os.kill(two, signal.SIGKILL)                    # the daemon that came back watches it
        another(vm, two, "two")
        wait_for(lambda: listens(2309), 10, "its port", poll=0.05)
        kill_daemon(restart=False)
        os.kill(one, signal.SIGKILL)
        wait_exit(one)
        start_daemon()
        another(vm, one)
        wait_for(lambda: listens(2304) and listens(2309), 20, "their ports", poll=0.05)  # it may have died of that it found nobody to tell
        assert words(vm) == ("Running", "")
        kill_daemon(restart=False)
        os.kill(vm.LeaderPID, signal.SIGKILL)
        start_daemon()
        vm.wait_state("Error")
        all_gone(vm, "net0", "two")


@test("a VMM that dies takes its passts along, and the restart policy follows")
def _():
    with vm_of(networked(forward(2305), restart={"policy": "on-failure"})) as vm:
        vm.start()
        before = passts(vm)[0]
        os.kill(vm.LeaderPID, signal.SIGKILL)
        vm.wait_state("Error")
        vm.wait_state("Running")
        assert another(vm, before) and listens(2305) and losses(vm) == 0


@test("systemctl stop of a network's scope, or of the slice, is a Stop of the VM")
def _():
    for unit in (scope, lambda vm: vm.Slice):
        with vm_of(networked()) as vm:
            vm.start()
            vm.wait_log(b"TINY-UP")
            systemctl("stop", unit(vm))
            vm.wait_state("Stopped")
            assert words(vm) == ("Stopped", "stopped")
            all_gone(vm, "net0")


@test("a start that fails for a network says so, leaves nothing, and the next one works")
def _():
    with configured(StartTimeoutSec="5s"):              # makes directories that stay
        pass
    wait_for(lambda: dict(manager.Backends)["qemu"].get("Version"), 10, "QEMU's version", poll=0.05)
    before = snapshot_leftovers()
    with socket.socket() as taken, vm_of(networked({"name": "free"}, {"name": "full", **forward(2306)})) as vm:
        taken.bind(("127.0.0.1", 2306))
        taken.listen()
        with expect_error("BackendFailed", "127.0.0.1/2306:80", begins=f"{vm.Name}: networks[1] (full): its passt has ended while it started: "):
            vm.start()
        assert words(vm) == ("Stopped", "start-failed")
        all_gone(vm, "free", "full")
        taken.close()
        vm.start()
    with open(SILENT, "w", encoding="ascii") as f:
        f.write("#!/bin/sh\n[ \"$1\" = --version ] && echo passt 2025_05_03.587980c || exec sleep 1000\n")
    os.chmod(SILENT, 0o755)
    for program, text in (("/nowhere/passt", "it was not found"), ("/bin/true", "it says that it is"), (SILENT, "no answer from the passt of net0")):
        with vm_of(networked()) as vm, configured(Passt=program, StartTimeoutSec="5s"):
            try:
                vm.start()
            except BusError as error:
                assert text in error.message and "net0" in error.message, error
            else:
                raise AssertionError(program)
            assert words(vm) == ("Stopped", "start-failed")
    assert_no_leftovers(before, 20)


@test("without passt such a definition is refused, and the message names the package")
def _():
    with configured(Passt="/nowhere/passt"):
        wait_for(lambda: refused(networked()).startswith("networks[0].type: "), 20, "a refusal", poll=0.1)
        assert "install the package passt" in refused(networked())
    wait_for(lambda: refused(networked()) == "", 20, "that it is found again", poll=0.1)


@test("what a passt can't forward is refused")
def _():
    both = [{"host": 2307, "guest": 80}, {"host": 2307, "guest": 81, "address": "127.0.0.2"}]
    with expect_error("NotSupported", "of one address alone", begins="networks[0].forward[1].host: "):
        manager.create("no", networked({"forward": both}))
    with vm_of(networked({"forward": both[:1]}, {"forward": both[1:]})) as vm:
        vm.start()
        assert listens(2307) and listens(2307, "127.0.0.2")


@test("a network of a user's VM")
def _():
    kernel = "/tmp/tiny.elf"
    shutil.copyfile(os.environ["VMUNIT_GUESTS"] + "/tiny.elf", kernel)
    with vm_of(networked(forward(2308), boot={"kernel": kernel}), owner=NOBODY) as vm:
        vm.start()
        assert listens(2308) and int(status(passts(vm)[0], "Uid")[0]) in IDS


run()
