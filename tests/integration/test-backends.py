#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 firecracker sanitized
"""Which VMMs there are, which one a VM gets, and what each of them refuses at create."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *

PROGRAM = "/usr/local/bin/firecracker"
CH = "/usr/local/bin/cloud-hypervisor"
TINY = os.environ["VMUNIT_GUESTS"] + "/tiny.elf"


def info(name="firecracker"):
    return dict(manager.Backends)[name]


def told():
    """How often signals have told that the back ends have changed."""
    return sum(s.member == "PropertiesChanged" and s.args[0] == MANAGER and "Backends" in s.args[2] + list(s.args[1])
               for s in signals)


def put(path, says, mode=0o755):
    """A program that says so when it is asked for its version, put there at once, as packages do."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.write(f"#!/bin/sh\n{says}\n")
    os.chmod(path + ".new", mode)
    os.rename(path + ".new", path)


@contextlib.contextmanager
def away():
    """Firecracker is not there, in the block."""
    os.rename(PROGRAM, PROGRAM + ".away")
    try:
        wait_for(lambda: not info()["Usable"], what="no Firecracker")
        yield
    finally:
        os.rename(PROGRAM + ".away", PROGRAM)
        wait_for(lambda: info()["Usable"], what="Firecracker")


def fc(**over):
    return tiny_definition(**{"backend": "firecracker", **over})


def chosen(**over):
    """The back end that "auto" takes for it."""
    with vm_of(tiny_definition(**{"backend": "auto", **over})) as vm:
        return vm.Backend


@test("Backends tells the version, the path, and what a back end can do")
def _():
    wait_idle()
    wait_for(lambda: info()["Version"])
    assert info()["Version"] == "1.12.1" and info()["Path"] == PROGRAM and info()["Reason"] == "", info()
    assert info()["Usable"] == os.path.exists("/dev/kvm") and info()["Features"] == ["disks", "vsock"], info()
    assert ("vsock" in info("qemu")["Features"]) == os.path.exists("/dev/vhost-vsock"), info("qemu")
    assert all(c in "0123456789." for c in info("qemu")["Version"]), info("qemu")


@test("vmunit backends shows them")
def _():
    def vmunit(*words_):
        return subprocess.run(["vmunit", "backends", *words_], check=True, capture_output=True, text=True).stdout
    wait_idle()
    objects = json.loads(vmunit("--json"))
    assert [(o["Name"], o["Version"], o["Features"]) for o in objects] == \
           [(name, i["Version"], i["Features"]) for name, i in manager.Backends], objects
    lines = vmunit().splitlines()
    assert lines[0].split() == ["BACKEND", "USABLE", "VERSION", "PROGRAM", "REASON"], lines
    assert [line.split() for line in vmunit("--no-legend").splitlines()] == [line.split() for line in lines[1:]]
    assert any(line.split() == ["firecracker", "yes", "1.12.1", PROGRAM, "-"] for line in lines), lines
    assert any(line.split(maxsplit=4) == ["cloud-hypervisor", "no", "-", "-", "its program was not found"] for line in lines), lines


@test("a program that is removed, comes back or is another one is noticed without a restart, and told")
def _():
    pid, before = daemon_pid(), told()
    with away():
        assert info()["Reason"] == "its program was not found" and info()["Version"] == info()["Path"] == "", info()
        assert told() > before
        with vm_of(fc()) as vm, expect_error("BackendUnavailable", "was not found"):
            vm.start()
        put(PROGRAM, "echo Firecracker v1.4.1")
        wait_for(lambda: info()["Version"] == "1.4.1", what="the old version")
        assert not info()["Usable"] and "1.4.1" in info()["Reason"] and "1.7" in info()["Reason"], info()
        with vm_of(fc()) as vm, expect_error("BackendUnavailable", "too old"):
            vm.start()
        seen = told()
        put(PROGRAM, "echo Firecracker v1.10.0-dev")            # an upgrade
        wait_for(lambda: info()["Version"] == "1.10.0-dev", what="the new version")
        assert info()["Usable"] and told() > seen, info()
        put(PROGRAM, "echo Firecracker v1.12.0", 0o775)         # whose group is root's, but who knows for how long
        wait_for(lambda: "can be written by others than root" in info()["Reason"], what="its mode")
        with vm_of(fc()) as vm, expect_error("BackendUnavailable", "can be written by others than root"):
            vm.start()
    wait_for(lambda: info()["Version"] == "1.12.1", what="the real one")
    assert daemon_pid() == pid
    with vm_of(fc()) as vm:
        vm.start()


@test("Cloud Hypervisor: which versions can be used, and with what", timeout=60)
def _():
    if not os.path.exists("/dev/kvm"):
        raise Skip("there is no /dev/kvm")
    disk, name = {"disks": [{"name": "a", "path": TINY, "readonly": True}]}, "cloud-hypervisor"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(CH)
    wait_for(lambda: not info(name)["Path"], what="no Cloud Hypervisor")
    try:
        put(CH, "echo cloud-hypervisor v39.2.0; echo Migration Protocol Versions: 0")
        wait_for(lambda: info(name)["Version"] == "39.2.0", what="a version that is too old")
        assert not info(name)["Usable"] and "39.2.0 is too old, 40 " in info(name)["Reason"], info(name)
        assert chosen() == "qemu"
        with vm_of(tiny_definition(backend=name)) as vm, expect_error("BackendUnavailable", "39.2.0 is too old"):
            vm.start()
        put(CH, "echo cloud-hypervisor v40.0.0")
        wait_for(lambda: info(name)["Usable"], what="one that is not")
        assert chosen() == name and chosen(**disk) == "qemu"
        assert "vsock" in info(name)["Features"] and "disks" not in info(name)["Features"], info(name)
        with expect_error("NotSupported", "Cloud Hypervisor 40.0.0 ", begins="disks: "):
            manager.create("no", tiny_definition(backend=name, **disk))
        with vm_of(tiny_definition(backend=name)) as vm, expect_error("NotSupported", begins="disks: "):
            vm.update(disk)
        put(CH, "echo cloud-hypervisor v53.0")
        wait_for(lambda: info(name)["Version"] == "53.0", what="today's")
        assert {"disks", "qcow2"} <= set(info(name)["Features"]), info(name)
        assert chosen(**disk) == name
        with vm_of(tiny_definition(backend=name, **disk)) as vm:    # made for one that can, and then it can't
            put(CH, "echo cloud-hypervisor v45.0")
            with expect_error("NotSupported", "45.0", begins="disks: "):
                vm.start()
    finally:
        os.unlink(CH)
    wait_for(lambda: not info(name)["Path"], what="no Cloud Hypervisor again")
    assert chosen() == "qemu"


@test("what is too old is known before the first call is answered")
def _():
    with away():
        put(PROGRAM, "echo Firecracker v1.4.1")
        stop_daemon()
        with configured(Backends="firecracker qemu"):           # which starts it
            assert "1.4.1" in info()["Reason"] and info()["Version"] == "1.4.1", info()
        stop_daemon()
        manager.list()                                          # the bus does
        assert "1.4.1" in info()["Reason"] and info()["Version"] == "1.4.1", info()


@test("a program that does not say its version can't be used", timeout=60)
def _():
    with away():
        for says in ("exit 1", "sleep 60"):
            put(PROGRAM, says)
            wait_for(lambda: "--version" in info()["Reason"], what="that it says nothing", timeout=30)
            assert not info()["Usable"] and info()["Path"] == PROGRAM and info()["Version"] == "", info()
        with vm_of(fc()) as vm, expect_error("BackendUnavailable", "--version"):
            vm.start()
    with vm_of(fc()) as vm:
        vm.start()


@test("one that was too slow to say its version, as on a host that boots, is asked again by itself", timeout=120)
def _():
    quick = "/opt/vmunit-test/quick"
    os.makedirs(os.path.dirname(quick), exist_ok=True)
    try:
        with away():
            put(PROGRAM, f"[ -e {quick} ] || exec tail -f /dev/null; echo Firecracker v1.12.1")
            wait_for(lambda: "--version" in info()["Reason"], what="that it says nothing", timeout=30)
            with open(quick, "w", encoding="ascii"):
                pass
            wait_for(lambda: info()["Usable"] and info()["Version"] == "1.12.1", what="another look", timeout=60)
    finally:
        shutil.rmtree(os.path.dirname(quick))


@test("a QEMU that takes too long to say its version, as on a host that boots, runs all the same", timeout=90)
def _():
    slow = "/opt/vmunit-test/slow-qemu"
    os.makedirs(os.path.dirname(slow), exist_ok=True)
    put(slow, 'case $1 in --version) sleep 60; esac; exec /usr/bin/qemu-system-x86_64 "$@"')
    with configured(QEMU=slow):
        asked = lambda: subprocess.run(["pgrep", "-f", "slow-qemu --version"], capture_output=True, check=False).returncode == 0
        wait_for(asked, 20, "that it is asked", poll=0.01)
        wait_for(lambda: not asked(), 30, "that it is not waited for any longer", poll=0.05)
        vm = manager.create("slow", tiny_definition(), start=True)
        assert vm.State == "Running" and info("qemu")["Usable"] and not info("qemu")["Version"]
        vm.remove(force=True)
        vm.wait_gone()


@test("a program whose directory does not exist yet is noticed when it comes")
def _():
    top = "/opt/vmunit-test"
    try:
        with configured(Firecracker=top + "/some/bin/firecracker"):
            wait_for(lambda: info()["Reason"] == "its program was not found")
            pid = daemon_pid()
            os.makedirs(top + "/some/bin")
            shutil.copy(PROGRAM, top + "/some/bin/firecracker")
            wait_for(lambda: info()["Version"] == "1.12.1", what="the program")
            assert info()["Path"] == top + "/some/bin/firecracker" and info()["Usable"], info()
            with vm_of(fc()) as vm:
                vm.start()
            shutil.rmtree(top)
            wait_for(lambda: info()["Reason"] == "its program was not found", what="its end")
            os.makedirs(top + "/some/bin")
            shutil.copy(PROGRAM, top + "/some/bin/firecracker")
            wait_for(lambda: info()["Version"] == "1.12.1", what="the program again")
            assert daemon_pid() == pid
    finally:
        shutil.rmtree(top, ignore_errors=True)


@test("a directory of a program's path that is renamed, removed or linked to another is noticed")
def _():
    top = "/opt/vmunit-test"

    def install(version):
        os.makedirs(f"{top}/{version}/bin")
        put(f"{top}/{version}/bin/firecracker", f"echo Firecracker v{version}")

    def wait_version(version):
        wait_for(lambda: info()["Version"] == version, what=version or "that it is gone")

    try:
        install("1.8.0")
        install("1.9.0")
        os.rename(top + "/1.8.0", top + "/cur")
        with configured(Firecracker=top + "/cur/bin/firecracker"):
            wait_version("1.8.0")
            pid = daemon_pid()
            os.rename(top + "/cur", top + "/old")
            wait_version("")
            os.rename(top + "/1.9.0", top + "/cur")
            wait_version("1.9.0")
            put(top + "/cur/bin/firecracker", "echo Firecracker v1.9.1")
            wait_version("1.9.1")
            os.rename(top + "/cur/bin", top + "/cur/away")      # the one that it is in
            wait_version("")
            os.rename(top + "/cur/away", top + "/cur/bin")
            wait_version("1.9.1")
            os.rename(top, top + ".old")                        # and one further up
            wait_version("")
            os.rename(top + ".old", top)
            wait_version("1.9.1")
            shutil.rmtree(top + "/cur")
            os.symlink("old", top + "/cur")
            wait_version("1.8.0")
            install("1.10.0")
            os.symlink("1.10.0", top + "/new")
            os.rename(top + "/new", top + "/cur")
            wait_version("1.10.0")
            os.chmod(top, 0o777)
            wait_for(lambda: "can be written by others than root" in info()["Reason"], what="a directory that is everybody's")
            os.chmod(top, 0o755)
            wait_version("1.10.0")
            assert daemon_pid() == pid
    finally:
        shutil.rmtree(top, ignore_errors=True)
        shutil.rmtree(top + ".old", ignore_errors=True)


@test("a launcher that does not answer makes nothing unusable for good", timeout=60)
def _():
    wait_for(lambda: info()["Usable"])
    with launcher_stopped():
        os.utime(PROGRAM)
        wait_for(lambda: not info()["Usable"], what="a time-out", timeout=30)
        assert "vmunit-launch did not answer" in info()["Reason"], info()
    wait_for(lambda: info()["Usable"] and info()["Version"] == "1.12.1", what="another look", timeout=30)


@test("no KVM: Firecracker can't be used, and says why")
def _():
    if not os.path.exists("/dev/kvm"):
        raise Skip("there is no /dev/kvm")
    os.rename("/dev/kvm", "/dev/kvm.away")
    try:
        with vm_of(fc()) as vm:
            with expect_error("BackendUnavailable", "/dev/kvm"):
                vm.start()
            assert not info()["Usable"] and "/dev/kvm" in info()["Reason"], info()
            with configured(Backends="firecracker qemu"):
                assert chosen() == "qemu"
    finally:
        os.rename("/dev/kvm.away", "/dev/kvm")
    with vm_of(fc()) as vm:
        vm.start()
    assert info()["Usable"] and info()["Reason"] == "", info()


@test("auto takes the first of Backends= that can be used and can do all of it", timeout=60)
def _():
    with configured(Backends="firecracker qemu"):
        wait_idle()
        wait_for(lambda: info()["Usable"])
        assert chosen() == "firecracker"
        assert chosen(accel="tcg") == "qemu"
        assert chosen(cpus=33) == "qemu"
        assert chosen(boot={"kernel": None, "firmware": "bios"}) == "qemu"
        assert chosen(networks=[{"type": "user"}]) == "qemu"
        assert chosen(disks=[{"path": "/d", "format": "qcow2"}]) == "qemu"
        assert chosen(disks=[{"path": "/d"}]) == "firecracker"
        with away():
            assert chosen() == "qemu"
        assert chosen() == "firecracker"
    with configured(Backends="firecracker"):
        with expect_error("NotSupported", begins="networks[0].type: "):
            manager.create("no", tiny_definition(backend="auto", networks=[{"type": "user"}]))
        with away(), vm_of(tiny_definition(backend="auto")) as vm:      # chosen when it starts
            assert vm.Backend == ""
            with expect_error("BackendUnavailable"):
                vm.start()
    assert chosen() == "qemu"                   # by default


@test("what auto has chosen stays, until an Update names the back end or asks for more than that one can do")
def _():
    with configured(Backends="firecracker qemu"):
        with away():
            vm = manager.create("keeper", tiny_definition(backend="auto"))
            assert vm.Backend == "qemu"
        vm.update({"labels": {"a": "b"}})
        assert vm.Backend == "qemu"
        vm.start()
        vm.update({"cpus": 2}, next_start=True)
        vm.kill()
        vm.start()
        assert (vm.Backend, vm.CPUs) == ("qemu", 2)
        vm.kill()
        vm.update({"backend": "auto"})
        assert vm.Backend == "firecracker"
        vm.update({"networks": [{"name": "a", "type": "user"}]})
        assert vm.Backend == "qemu"
        vm.update({"networks": None})
        assert vm.Backend == "qemu"
        vm.update({"backend": "firecracker"})
        assert vm.Backend == "firecracker"
        vm.start()
        vm.update({"backend": "auto", "networks": [{"name": "a", "type": "user"}]}, next_start=True)
        assert vm.Backend == "firecracker"
        vm.kill()
        vm.start()
        assert vm.Backend == "qemu"
        vm.remove(force=True)
        vm.wait_gone()


@test("what a back end that is named can't do is refused at create, with the place in the definition")
def _():
    shared = {"filesystems": [{"tag": "a", "source": "/a"}]}
    for begins, over in (("accel: ", {"accel": "tcg"}),
                         ("cpus: ", {"cpus": 33}),
                         ("boot.firmware: ", {"boot": {"kernel": None, "firmware": "uefi"}}),
                         ("disks[1].format: ", {"disks": [{"name": "a", "path": "/a"}, {"name": "b", "path": "/b", "format": "qcow2"}]}),
                         ("disks: ", {"disks": [{"name": f"d{n}", "path": f"/{n}"} for n in range(19)]}),
                         ("networks[0].type: ", {"networks": [{"name": "a", "type": "user"}]}),
                         ("filesystems: firecracker has no shared folders", shared)):
        with expect_error("NotSupported", "firecracker", begins=begins):
            manager.create("no", fc(**over))
        with vm_of(fc()) as vm, expect_error("NotSupported", begins=begins):
            vm.update(over)
    for name, begins, over in (("cloud-hypervisor", "accel: ", {"accel": "tcg"}),
                               ("cloud-hypervisor", "cpus: ", {"cpus": 255}),
                               ("cloud-hypervisor", "boot.firmware: ", {"boot": {"kernel": None, "firmware": "uefi"}}),
                               ("cloud-hypervisor", "boot.cmdline: ", {"boot": {"cmdline": "name=Müller"}}),
                               ("cloud-hypervisor", "networks[0].type: ", {"networks": [{"name": "a", "type": "user"}]}),
                               ("qemu", "networks[0].type: ", {"networks": [{"name": "a", "type": "tap"}]})):
        with expect_error("NotSupported", begins=begins):
            manager.create("no", tiny_definition(backend=name, **over))
        with vm_of(tiny_definition(backend=name)) as vm, expect_error("NotSupported", begins=begins):
            vm.update(over)
    assert not manager.list()


@test("a command line is refused where Firecracker has no room for what it appends, and runs if it has just that", timeout=60)
def _():
    for n, longest in ((0, 2047), (1, 2012), (18, 1404)):
        over = {"disks": [{"name": f"d{i}", "path": TINY, "readonly": True} for i in range(n)]}
        if longest < 2047:
            with expect_error("NotSupported", str(longest), begins="boot.cmdline: "):
                manager.create("no", fc(boot={"cmdline": "a" * (longest + 1)}, **over))
        with vm_of(fc(boot={"cmdline": "a" * longest}, **over), start=True) as vm:
            vm.wait_log(b"TINY-UP")
            if n == 0:
                vm.kill()
                with expect_error("NotSupported", "2012", begins="boot.cmdline: "):
                    vm.update({"disks": [{"name": "a", "path": TINY, "readonly": True}]})


@test("a compressed kernel is refused at create by who can't read it; one that is not there may come later", timeout=60)
def _():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as d:
        with open(d + "/vmlinuz", "wb") as f:   # as much of a header as is looked at
            f.write(b"MZ".ljust(0x202, b"\0") + b"HdrS" + bytes(4096))
        with expect_error("NotSupported", "extract-vmlinux", begins="boot.kernel: "):
            manager.create("no", fc(boot={"kernel": d + "/vmlinuz"}))
        with expect_error("NotSupported", begins="boot.kernel: "):
            manager.create("no", fc(boot={"kernel": d + "/vmlinuz"}), start=True)
        for n, head in enumerate((b"\x1f\x8b\x08" + bytes(600), b"#!/bin/sh\n")):
            with open(f"{d}/{n}", "wb") as f:
                f.write(head)
            with expect_error("NotSupported", "ELF", begins="boot.kernel: "):
                manager.create("no", fc(boot={"kernel": f"{d}/{n}"}))
        assert not manager.list()
        with configured(Backends="firecracker qemu"):
            assert chosen(boot={"kernel": d + "/vmlinuz"}) == "qemu"
            assert chosen(boot={"kernel": d + "/not there"}) == "firecracker"

        os.mkfifo(d + "/fifo")
        for kernel in (d + "/not there", d, d + "/fifo", "/dev/null"):
            with vm_of(fc(boot={"kernel": kernel})) as vm, expect_error("BackendFailed", begins=vm.Name):
                vm.start()
        with vm_of(fc(boot={"kernel": d + "/kernel"})) as vm:
            shutil.copy(d + "/vmlinuz", d + "/kernel")
            with expect_error("NotSupported", begins="boot.kernel: "):
                vm.start()
            assert words(vm) == ("Stopped", "start-failed")
            shutil.copy(TINY, d + "/kernel")
            vm.start()
            vm.wait_log(b"TINY-UP")
        with vm_of(fc(), start=True) as vm:     # all in one call
            assert words(vm) == ("Running", "")


def put_bzimage(path):
    """What QEMU boots: a loop that does nothing."""
    with open(path, "wb") as f:
        f.write(b"MZ".ljust(0x200, b"\0") + b"\xeb\xfeHdrS" + bytes(4096))


@test("a start takes the next back end where auto has chosen one that can't boot what the kernel is by now", timeout=60)
def _():
    with configured(Backends="firecracker qemu"), tempfile.TemporaryDirectory(dir="/var/tmp") as d:
        vm = manager.create("late", tiny_definition(backend="auto", boot={"kernel": d + "/kernel"}))
        assert vm.Backend == "firecracker"
        put_bzimage(d + "/kernel")
        vm.start()
        assert (vm.Backend, vm.State) == ("qemu", "Running"), vm.properties()
        assert any(e[4] == "updated" and "Firecracker can't boot its kernel" in e[5] for e in manager.events(vm=vm.Id))
        assert any(s.member == "PropertiesChanged" and s.args[1].get("Backend") == "qemu" for s in signals)
        vm.kill()
        stop_daemon()
        start_daemon()
        assert vm.Backend == "qemu"
        shutil.copy(TINY, d + "/kernel")
        vm.update({"backend": "auto"})
        assert vm.Backend == "firecracker"
        vm.start()
        vm.wait_log(b"TINY-UP")
        put_bzimage(d + "/kernel.new")
        os.rename(d + "/kernel.new", d + "/kernel")
        vm.reset()                              # which is a new process
        assert (vm.Backend, vm.State) == ("qemu", "Running"), vm.properties()
        vm.remove(force=True)
        vm.wait_gone()
    with configured(Backends="firecracker"), tempfile.TemporaryDirectory(dir="/var/tmp") as d:
        with vm_of(tiny_definition(backend="auto", boot={"kernel": d + "/kernel"})) as vm:
            put_bzimage(d + "/kernel")
            with expect_error("NotSupported", "extract-vmlinux", begins="boot.kernel: "):
                vm.start()
            assert vm.Backend == "firecracker"


@test("creates that wait for a look at the kernel: of two with one name one wins; the daemon's end is told", timeout=60)
def _():
    manager.list()
    wait_idle()
    with launcher_stopped():
        calls = [manager.create_async("twin", fc()) for _ in range(2)]
        other = manager.create("other", tiny_definition(backend="qemu"))    # which need not wait
        assert not any(c.done for c in calls)
    results = gather(calls)
    assert sorted(getattr(r, "short", "made") for r in results) == ["VMExists", "made"], results
    assert sorted(name for name, *_ in manager.list()) == ["other", "twin"]
    with launcher_stopped():
        late = manager.create_async("late", fc())
        assert other.State == "Stopped" and not late.done
        stop_daemon()
        gather([late])
    assert late.error and late.error.short == "Canceled", late.error
    start_daemon()
    assert sorted(name for name, *_ in manager.list()) == ["other", "twin"]
    manager.remove_all()


@test("a launcher that hangs delays a create for some seconds, and does not fail it", timeout=60)
def _():
    with launcher_stopped():
        with vm_of(fc()) as vm:
            assert vm.Backend == "firecracker"


run()
