#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=600 linux
"""A real guest: Debian's kernel with busybox, without KVM; and firmware that boots a disk."""

import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_linux import *

MIB = 1024 * 1024


@test("it boots, answers on the console and powers off on the button", timeout=120)
def _():
    wait_for(lambda: dict(manager.Backends)["qemu"].get("Version"), 10, "QEMU's version", poll=0.05)
    before = snapshot_leftovers()
    vm = boot("linux")
    with Shell(vm) as shell:
        assert shell.run("echo $((6*7))") == (0, "42")
        assert shell.run("false")[0] == 1
        assert int(shell.run("nproc")[1]) == vm.CPUs
        kib = int(shell.run("grep MemTotal /proc/meminfo | tr -dc 0-9")[1])
        assert 0.7 * vm.MemoryBytes < kib * 1024 <= vm.MemoryBytes, kib
    begin = time.monotonic()
    vm.stop()
    assert time.monotonic() - begin < 15, "the guest obeys the button long before the time-out of 30 s"
    assert (vm.State, vm.StateReason, vm.ExitKnown, vm.ExitCode) == ("Stopped", "stopped", True, 0)
    assert b"POWERBTN" in vm.console_log()
    types = [e[4] for e in manager.events(vm="linux")]
    assert types.count("power-button") == 1, types
    remove(vm)
    assert_no_leftovers(before)


@test("a guest that powers itself off", timeout=120)
def _():
    vm = boot("linux")
    with Shell(vm) as shell:
        shell.console.send(b"poweroff -f\n")
        vm.wait_state("Stopped", timeout=20)
    assert vm.StateReason == "guest-shutdown"
    vm.start()
    vm.wait_log(b"READY", BOOT)
    remove(vm)


@test("Reboot goes through the same process, and a guest's own reboot too", timeout=180)
def _():
    vm = boot("linux")
    pid, mark = vm.pid, len(signals)
    with Shell(vm) as shell:
        shell.run("touch /tmp/before")
        vm.reboot()
        assert (vm.State, vm.pid) == ("Running", pid)
        read_until(shell.console.fileno(), b"READY", BOOT)
        assert shell.run("ls /tmp/before")[0] == 1, "it has booted afresh"
        assert "Stopped" not in [s for s, _, _ in vm.states(mark)]
        shell.console.send(b"reboot -f\n")
        read_until(shell.console.fileno(), b"READY", BOOT)
    assert (vm.State, vm.pid) == ("Running", pid)
    assert "guest-reset" in [e[4] for e in manager.events(vm="linux")]
    vm.stop()
    assert vm.StateReason == "stopped"
    remove(vm)


@test("systemctl stop of its scope powers the guest off in good order", timeout=120)
def _():
    vm = boot("linux")
    systemctl("stop", vm.Unit)
    vm.wait_state("Stopped", timeout=20)
    assert vm.StateReason == "stopped"
    assert b"POWERBTN" in vm.console_log()
    remove(vm)


@test("paused it stands still, resumed it goes on", timeout=120)
def _():
    vm = boot("linux")
    with Shell(vm) as shell:
        shell.run("(while :; do echo tick; sleep 0.05; done) & true")
        read_until(shell.console.fileno(), b"tick")
        vm.pause()
        assert vm.State == "Paused"
        used, quiet = None, []

        def stands():                                       # its processor and its output, for three looks
            nonlocal used
            now = vm.console_log().count(b"tick")
            quiet.append(now == used)
            used = now
            return quiet[-3:] == [True] * 3
        wait_for(stands, 10, "a guest that stands still", poll=0.2)
        vm.resume()
        wait_for(lambda: vm.console_log().count(b"tick") > used + 2, 10, "more ticks", poll=0.05)
        vm.pause()
    vm.stop()                                               # a paused guest hears the button too
    assert (vm.State, vm.StateReason) == ("Stopped", "stopped")
    remove(vm)


def fetch(port, path, timeout=20):
    """One HTTP request to the guest."""
    end = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                data = b""
                while piece := connection.recv(65536):
                    data += piece
                if data:
                    return data
        except OSError:
            pass
        assert time.monotonic() < end, f"no answer on port {port}"


@test("its network: a forwarded port answers on the host's side, and on that address alone", timeout=120)
def _():
    vm = boot("linux", networks=[{"type": "user", "forward": [{"host": 2280, "guest": 80},
                                                              {"host": 80, "guest": 80, "address": "127.0.0.2"}]}])
    with Shell(vm) as shell:
        assert shell.run("mkdir /tmp/www && echo from the guest >/tmp/www/index.html && httpd -p 80 -h /tmp/www")[0] == 0
        assert b"from the guest" in fetch(2280, "/index.html")
        with socket.create_connection(("127.0.0.2", 80), 5):
            pass                                            # below 1024, by the one right that it has
        try:
            socket.create_connection(("127.0.0.3", 2280), 5)
            raise AssertionError("it listens on more than it was told")
        except ConnectionRefusedError:
            pass
    vm.stop()
    remove(vm)


@test("a port that is taken: the start fails with QEMU's words", timeout=60)
def _():
    with socket.create_server(("127.0.0.1", 2281)):
        vm = manager.create("linux", linux_definition(networks=[{"type": "user", "forward": [{"host": 2281, "guest": 80}]}]))
        with expect_error("BackendFailed", "2281"):
            vm.start()
    remove(vm)


def make_disks(directory):
    os.makedirs(directory, exist_ok=True)
    for name, size in (("a.raw", 8), ("c.raw", 4)):
        with open(f"{directory}/{name}", "wb") as f:
            f.write(name.encode() * 100)
            f.truncate(size * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{directory}/b.qcow2", "16M"], check=True)


def check_disks(name, more=()):
    """Raw, qcow2 and read-only, as the guest sees them and as they are afterwards; `more` are put behind."""
    d = "/tmp/disks-" + name
    make_disks(d)
    vm = boot(name, disks=[{"name": "first", "path": d + "/a.raw"}, {"path": d + "/b.qcow2", "format": "qcow2"},
                           {"path": d + "/c.raw", "readonly": True}, *more])
    with Shell(vm) as shell:
        sizes = shell.run("cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/size")[1].split()
        assert [int(s) * 512 for s in sizes] == [8 * MIB, 16 * MIB, 4 * MIB], sizes
        serials = shell.run("cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial")[1].split()
        assert serials == ["first", "disk0"], serials
        assert shell.run("cat /sys/block/vda/ro /sys/block/vdc/ro")[1].split() == ["0", "1"]
        assert shell.run("head -c 10 /dev/vda")[1].startswith("a.rawa.raw")
        for disk in ("vda", "vdb"):
            code, text = shell.run(f"yes {disk} | dd of=/dev/{disk} bs=4k count=256 seek=100 iflag=fullblock conv=fsync")
            assert code == 0, text
        code, text = shell.run("yes bad | dd of=/dev/vdc bs=4k count=1 conv=fsync")
        assert code != 0, "a read-only disk was written"
        stats = vm.stats()
        assert stats["first.WriteBytes"] >= MIB and stats["disk0.WriteBytes"] >= MIB, stats
    vm.stop()
    assert vm.StateReason == "stopped"
    with open(d + "/a.raw", "rb") as f:
        f.seek(100 * 4096)
        assert f.read(8) == b"vda\nvda\n"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", d + "/b.qcow2", d + "/b.raw"], check=True)
    with open(d + "/b.raw", "rb") as f:
        f.seek(100 * 4096)
        assert f.read(8) == b"vdb\nvdb\n"
    with open(d + "/c.raw", "rb") as f:
        assert f.read(10) == b"c.rawc.raw"
    remove(vm)
    assert sorted(os.listdir(d)) == ["a.raw", "b.qcow2", "b.raw", "c.raw"], "what a definition names stays"


@test("disks: raw, qcow2 and one that may only be read", timeout=120)
def _():
    check_disks("linux")


@test("the same with so many devices that the machine is a q35", timeout=150)
def _():
    extra = []
    for i in range(3, 26):
        with open(f"/tmp/extra{i}", "wb") as f:
            f.truncate(MIB)
        extra.append({"path": f"/tmp/extra{i}"})
    check_disks("linux-pci", extra)


def content(path):
    with open(path, "rb") as f:
        return f.read()


@test("disks: an image on another on another, and one with its data apart", timeout=120)
def _():
    d = "/tmp/disks-chain"
    make_disks(d)
    for name, *arguments in (("middle.qcow2", "-b", "a.raw", "-F", "raw"), ("top.qcow2", "-b", d + "/middle.qcow2", "-F", "qcow2"),
                             ("apart.qcow2", "-o", f"data_file={d}/apart.data")):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments, name, *(() if "-b" in arguments else ["8M"])], check=True, cwd=d)
    before = content(d + "/a.raw"), content(d + "/middle.qcow2")
    vm = boot("linux", disks=[{"path": d + "/top.qcow2", "format": "qcow2"}, {"path": d + "/apart.qcow2", "format": "qcow2"}])
    with Shell(vm) as shell:
        assert shell.run("head -c 10 /dev/vda")[1].startswith("a.rawa.raw")
        for disk in ("vda", "vdb"):
            code, text = shell.run(f"yes {disk} | dd of=/dev/{disk} bs=4k count=16 seek=100 iflag=fullblock conv=fsync")
            assert code == 0, text
        assert vm.stats()["disk1.WriteBytes"] >= 16 * 4096
    vm.stop()
    assert (content(d + "/a.raw"), content(d + "/middle.qcow2")) == before, "what others may rest on stays as it is"
    assert content(d + "/apart.data")[100 * 4096:].startswith(b"vdb\nvdb\n")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", d + "/top.qcow2", d + "/top.raw"], check=True)
    top = content(d + "/top.raw")
    assert top.startswith(b"a.rawa.raw") and top[100 * 4096:].startswith(b"vda\nvda\n")
    remove(vm)


@test("it goes on while the daemon is away", timeout=120)
def _():
    vm = boot("linux")
    pid = vm.pid
    with Shell(vm) as shell:
        kill_daemon()
        assert shell.run("echo still here") == (0, "still here")
    assert (vm.State, vm.pid) == ("Running", pid)
    vm.stop()
    assert vm.StateReason == "stopped"
    assert b"still here" in vm.console_log()
    remove(vm)


# Firmware

def boot_sector(path):
    """A disk whose boot sector prints on the serial port, and stays."""
    code = bytes.fromhex("fc 31c0 8ed8 baf803 be167c ac 08c0 7403 ee ebf8 f4 ebfd")
    assert len(code) == 22                                  # where the text begins
    sector = (code + b"BOOT SECTOR RUNS\r\n\0").ljust(510, b"\0") + b"\x55\xaa"
    with open(path, "wb") as f:
        f.write(sector.ljust(MIB, b"\0"))


@test("without a kernel the BIOS boots the first disk", timeout=90)
def _():
    boot_sector("/tmp/boot.raw")
    vm = manager.create("bios", {"version": 1, "backend": "qemu", "accel": "tcg", "memory": "64M",
                                 "disks": [{"path": "/tmp/boot.raw", "readonly": True}]})
    assert vm.definition()["boot"] == {"firmware": "bios"}, vm.definition()
    vm.start()
    vm.wait_log(b"BOOT SECTOR RUNS", BOOT)
    vm.kill()
    remove(vm)


@test("a firmware of one's own: the tiny guest on a q35", timeout=90)
def _():
    vm = manager.create("own", bios_definition(accel="tcg"))
    vm.start()
    vm.wait_log(b"TINY-UP", BOOT)
    vm.stop()
    assert (vm.State, vm.StateReason) == ("Stopped", "stopped")
    remove(vm)


@test("UEFI comes up on the serial port, and finds nothing to boot", timeout=150)
def _():
    if not os.path.exists("/usr/share/OVMF/OVMF_CODE_4M.fd"):
        raise Skip("the package ovmf is missing")
    vm = manager.create("uefi", {"version": 1, "backend": "qemu", "accel": "tcg", "memory": "128M",
                                 "boot": {"firmware": "uefi"}})
    vm.start()
    wait_for(lambda: b"BdsDxe" in (log := vm.console_log()) or b"UEFI" in log, 120, "UEFI on the console", poll=0.2)
    vm.kill()
    remove(vm)


run()
