#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized
"""The bus: what clients see and may do, as docs/dbus-api.md tells it."""

import itertools
import os
import re
import select
import sys
import uuid
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_test import bus, PROPERTIES

TOP = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..")
NOBODY = 65534
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
MISSING = "/nonexistent/kernel"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")

VM_METHODS = ("Start", "Stop", "Kill", "Reboot", "Reset", "Pause", "Resume", "Remove", "Update", "GetDefinition",
              "GetStats", "OpenConsole", "GetConsoleLog", "GetLastOutput", "OpenVSock")
FIRST = {"Update": ("s", "{}"), "GetConsoleLog": ("t", 10), "OpenVSock": ("u", 22)}    # arguments before the options
KEYS = {"Start": {"no-block"}, "Stop": {"timeout-usec", "keep-intent", "no-block"}, "Reboot": {"no-block"},
        "Remove": {"force"}, "Update": {"next-start"}, "OpenConsole": {"read-only"}}
STATES = ("Stopped", "Starting", "Running", "Paused", "Stopping", "Removing", "Error")

manager = Manager()
names = (f"vm{n}" for n in itertools.count())


@contextlib.contextmanager
def vm_of(definition=None, name=None, **keys):
    vm = manager.create(name or next(names), definition or tiny_definition(), **keys)
    try:
        yield vm
    finally:
        with contextlib.suppress(BusError):
            vm.remove(force=True)
        vm.wait_gone()


@contextlib.contextmanager
def launcher_stopped():
    """A start that begins here hangs until the end of the block."""
    systemctl("start", "vmunit-launch.service")
    pid = launcher_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def deaf_vm(**over):
    """A running VM whose guest does not hear the power button."""
    with vm_of(tiny_definition(**over), start=True) as vm:
        vm.wait_log(b"TINY-UP")
        with vm.open_console() as console:
            console.send(b"s")
            read_until(console.fileno(), b"s")
        yield vm


def vm_call(vm, method, keys, uid=None):
    signature, *first = FIRST.get(method, ("",))
    arguments = (vm.path, VM_INTERFACE, method, signature + "a{sv}", *first, keys)
    return call_as(uid, *arguments) if uid else call(*arguments)


def job_results(since):
    return [s.args for s in signals[since:] if s.member == "JobRemoved"]


def controllers_of(unit):
    """Those that the unit's cgroup has; the host may keep them for itself."""
    with contextlib.suppress(FileNotFoundError), open(unit_cgroup(unit) + "/cgroup.controllers", encoding="ascii") as f:
        return f.read().split()
    return []


def told(vm, since):
    """The properties as one knows them who has only listened."""
    known = None
    for s in signals[since:]:
        if s.member == "InterfacesAdded" and s.args[0] == vm.path:
            known = dict(s.args[1][VM_INTERFACE])
        elif s.member == "PropertiesChanged" and s.path == vm.path and s.args[0] == VM_INTERFACE:
            known.update(s.args[1])
            assert not s.args[2], s
    return known


def assert_told_all(vm, since):
    now = vm.properties()
    try:
        wait_for(lambda: told(vm, since) == now, 2)
    except AssertionError:
        known = told(vm, since)
        raise AssertionError("not told by signals: " +
                             str({k: (known[k], v) for k, v in now.items() if known[k] != v})) from None


def interface(text, name):
    """Introspection data as plain values, to be compared."""
    node = next(i for i in ElementTree.fromstring(text) if i.get("name") == name)
    found = {}
    for member in node:
        arguments = [(a.get("name"), a.get("type"), a.get("direction") or "out") for a in member.iter("arg")]
        emits = next((a.get("value") for a in member.iter("annotation") if a.get("name") == EMITS), "true")
        key = (member.tag, member.get("name"))
        assert key not in found, key
        found[key] = (arguments, member.get("type"), member.get("access"), emits)
    return found


def introspect(path):
    return call(path, "org.freedesktop.DBus.Introspectable", "Introspect")


def typed(path, name):
    """Properties with their types: {name: (signature, value)}"""
    answer = bus().call_sync(BUS, path, PROPERTIES, "GetAll", variant("(s)", (name,)), None, Gio.DBusCallFlags.NONE, -1)
    result = answer.get_child_value(0)
    return {key: (result.lookup_value(key, None).get_type_string(), value) for key, value in answer.unpack()[0].items()}


# What there is

@test("the introspection data in dbus/ are what the daemon answers")
def _():
    with vm_of() as vm, launcher_stopped():
        vm.start_async(no_block=True).result()
        for name, path in (("Manager", ROOT), ("VM", vm.path), ("Job", vm.Job)):
            with open(f"{TOP}/dbus/{BUS}.{name}.xml", encoding="utf-8") as f:
                written = interface(f.read(), f"{BUS}.{name}")
            answered = interface(introspect(path), f"{BUS}.{name}")
            differing = {k for k in written.keys() | answered.keys() if written.get(k) != answered.get(k)}
            assert not differing, {k: (written.get(k), answered.get(k)) for k in differing}


@test("every property can be read and has the type that it is said to have")
def _():
    with vm_of() as vm, launcher_stopped():
        vm.start(no_block=True)
        for name, path in ((MANAGER, ROOT), (VM_INTERFACE, vm.path), (JOB, vm.Job)):
            declared = {k[1]: v[1] for k, v in interface(introspect(path), name).items() if k[0] == "property"}
            values = typed(path, name)
            assert declared == {k: v[0] for k, v in values.items()}, values
            for key, (_, value) in values.items():
                assert get(path, name, key) == value or key in ("Stage", "Progress"), key


@test("a fresh VM shows what it was made of")
def _():
    before = int(time.time() * 1e6)
    definition = tiny_definition(cpus=2, memory="48M", labels={"team": "web", "a": ""})
    with vm_of(definition, "fresh-1") as vm:
        p = vm.properties()
        assert vm.path == ROOT + "/vm/fresh_2d1"
        assert UUID.match(p["Id"]), p["Id"]
        assert (p["Name"], p["OwnerUID"], p["State"], p["StateReason"]) == ("fresh-1", 0, "Stopped", ""), p
        assert (p["CPUs"], p["MemoryBytes"], p["Labels"]) == (2, 48 << 20, {"team": "web", "a": ""}), p
        assert (p["Unit"], p["Slice"]) == (r"vmunit-fresh\x2d1.scope", r"machine-vmunit-fresh\x2d1.slice"), p
        assert (p["LeaderPID"], p["VSockCID"], p["StartedUSec"], p["RestartAtUSec"], p["RestartCount"]) == (0,) * 5, p
        assert p["Backend"] == "qemu" and p["Job"] == "/" and p["ExitKnown"] is False, p
        assert before <= p["CreatedUSec"] <= p["StateSinceUSec"] <= int(time.time() * 1e6), p
        assert re.match(r"[0-9a-f]{64}$", p["DefinitionHash"]), p
        assert manager.list() == [("fresh-1", p["Id"], "Stopped", vm.path)]
        for key in ("fresh-1", p["Id"], p["Id"].upper(), p["Id"].replace("-", "")):
            try:
                assert manager.vm(key).path == vm.path
            except BusError as error:
                assert key != p["Id"] and key != "fresh-1" and error.short == "NoSuchVM", (key, error)


@test("the manager tells its version and its back ends")
def _():
    p = manager.properties()
    assert re.match(r"\d+\.\d+", p["Version"]), p
    wait_for(lambda: dict(manager.Backends)["qemu"]["Usable"], 10, "a usable QEMU")
    qemu = dict(manager.Backends)["qemu"]
    assert os.path.isabs(qemu["Path"]) and qemu["Version"] and qemu["Reason"] == "", qemu
    assert isinstance(qemu["Features"], list) and all(isinstance(f, str) for f in qemu["Features"]), qemu
    for name, backend in manager.Backends:
        assert backend["Usable"] is (name == "qemu") and bool(backend["Reason"]) is not backend["Usable"], (name, backend)


# Objects and changes

@test("objects come and go by signals, and all of a VM's properties are known from them alone", timeout=60)
def _():
    mark = len(signals)
    with vm_of(name="seen") as vm:
        wait_for(lambda: told(vm, mark) is not None)
        assert_told_all(vm, mark)
        for step in ("start", "pause", "resume", "reset", "stop", "start", "kill"):
            getattr(vm, step)()
            assert_told_all(vm, mark)
            if step == "start":
                vm.wait_log(b"TINY-UP")
            if step == "reset":
                wait_for(lambda: vm.console_log().count(b"TINY-UP") > 1, poll=0.03)
        vm.start()
        pid = vm.LeaderPID
        os.kill(pid, signal.SIGKILL)
        vm.wait_state("Error")
        wait_for(lambda: vm.ExitKnown, 5, "the VMM's exit status")
        assert_told_all(vm, mark)
        assert (vm.StateReason, vm.ExitSignal, vm.LeaderPID) == ("vmm-crashed", 9, 0), vm.properties()
        vm.update({"cpus": 3, "labels": {"x": "y"}})
        assert_told_all(vm, mark)
        assert (vm.CPUs, vm.Labels) == (3, {"x": "y"})
        changed = set().union(*(s.args[1] for s in signals[mark:] if s.member == "PropertiesChanged" and s.path == vm.path))
        assert changed >= {"State", "StateReason", "StateMessage", "StateSinceUSec", "LeaderPID", "StartedUSec", "Job",
                           "ExitKnown", "ExitSignal", "DefinitionHash", "CPUs", "Labels"}, changed
    wait_for(lambda: any(s.member == "InterfacesRemoved" and s.args[0] == vm.path for s in signals[mark:]))
    gone = [s.args for s in signals[mark:] if s.member == "InterfacesRemoved" and s.args[0] == vm.path]
    assert len(gone) == 1 and VM_INTERFACE in gone[0][1], gone


@test("jobs come and go by signals, with a result")
def _():
    mark = len(signals)
    with vm_of() as vm:
        with launcher_stopped():                # what takes no time is not told in between
            vm.start(no_block=True)
            wait_for(lambda: any(s.member == "PropertiesChanged" and s.args[0] == JOB for s in signals[mark:]))
        wait_for(lambda: len(job_results(mark)) == 1)
        (number, path, of, result), = job_results(mark)
        assert (path, of, result) == (f"{ROOT}/job/{number}", vm.path, "done")
        added = [s.args[1][JOB] for s in signals[mark:] if s.member == "InterfacesAdded" and s.args[0] == path]
        assert len(added) == 1, added
        job = added[0]
        assert (job["Id"], job["VM"], job["Operation"], job["CallerUID"], job["Cancelable"]) == \
            (number, vm.path, "Start", 0, True), job
        stages = [s.args[1]["Stage"] for s in signals[mark:] if s.member == "PropertiesChanged" and s.path == path]
        assert stages and all(stages), stages
        progress = [s.args[1]["Progress"] for s in signals[mark:] if s.member == "PropertiesChanged" and s.path == path]
        assert progress == sorted(progress) and 0 < progress[-1] < 1, progress
        removed = [s for s in signals[mark:] if s.member == "InterfacesRemoved" and s.args[0] == path]
        assert len(removed) == 1 and JOB in removed[0].args[1], removed
        assert vm.Job == "/" and not Job(path).exists()

        vm.stop()
        wait_for(lambda: len(job_results(mark)) == 2)
        assert job_results(mark)[1][0] > number and job_results(mark)[1][3] == "done", job_results(mark)
    with vm_of(tiny_definition(boot={"kernel": MISSING})) as vm:
        mark = len(signals)
        try:
            vm.start()
        except BusError:
            pass
        wait_for(lambda: [r[3] for r in job_results(mark)] == ["failed"])


@test("numbers of jobs are not used again after the daemon's death")
def _():
    with vm_of() as vm:
        mark = len(signals)
        vm.start()
        vm.stop()
        wait_for(lambda: len(job_results(mark)) == 2)
        kill_daemon()
        again = len(signals)
        vm.start()
        wait_for(lambda: job_results(again))
        assert job_results(again)[0][0] > job_results(mark)[1][0], (job_results(mark), job_results(again))


@test("a start can be cancelled by its job")
def _():
    with vm_of() as vm:
        vm.start()
        vm.stop()
        before = snapshot_leftovers()
        mark = len(signals)
        with launcher_stopped():
            start = vm.start_async()
            job = wait_for(lambda: vm.job)
            assert vm.State == "Starting" and job.Cancelable and job.Operation == "Start"
            job.cancel()
            with expect_error("Canceled"):
                start.result()
        vm.wait_state("Stopped")
        assert vm.StateReason == "stopped"
        wait_for(lambda: [r[3] for r in job_results(mark) if r[1] == job.path] == ["canceled"])
        assert_no_leftovers(before)
        vm.start()


@test("other jobs can't be cancelled")
def _():
    with deaf_vm() as vm:
        vm.stop(timeout_usec=2**64 - 1, no_block=True)
        job = wait_for(lambda: vm.job)
        assert job.Operation == "Stop" and not job.Cancelable
        with expect_error("InvalidState"):
            job.cancel()
        vm.kill()


# Who may do what

@test("a user may look at everything", timeout=60)
def _():
    with vm_of(name="shown", start=True) as vm:
        objects = call_as(NOBODY, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        assert objects[vm.path][VM_INTERFACE]["State"] == "Running", objects
        assert call_as(NOBODY, ROOT, MANAGER, "ListVMs") == manager.list()
        assert call_as(NOBODY, ROOT, MANAGER, "GetVM", "s", "shown") == vm.path
        assert call_as(NOBODY, ROOT, MANAGER, "GetVMByPID", "u", vm.LeaderPID) == vm.path
        assert call_as(NOBODY, vm.path, PROPERTIES, "GetAll", "s", VM_INTERFACE) == vm.properties()
        assert "CPUUsageNSec" in call_as(NOBODY, vm.path, VM_INTERFACE, "GetStats", "a{sv}", {})
        assert any(u[0] == vm.Id for u in call_as(NOBODY, ROOT, MANAGER, "GetUsage", "tt", 0, 2**63))
        theirs, ours = call_as(NOBODY, ROOT, MANAGER, "ListEvents", "a{sv}", options(vm=vm.Id)), manager.events(vm=vm.Id)
        assert [e[:6] for e in theirs] == [e[:6] for e in ours] and len(ours) > 1, (theirs, ours)
        assert all(e[6] == {} for e in theirs) and any(e[6] for e in ours), (theirs, ours)
        assert vm.Name in introspect(ROOT + "/vm") and "org.vmunit1.VM" in \
            call_as(NOBODY, vm.path, "org.freedesktop.DBus.Introspectable", "Introspect")


@test("a user may change nothing, and see nothing private", timeout=90)
def _():
    with vm_of(start=True) as vm:
        before, events = vm.properties(), manager.events()
        for method in VM_METHODS:
            if method != "GetStats":
                with expect_error("InteractiveAuthorizationRequired", vm.Name):
                    vm_call(vm, method, {}, NOBODY)
        with expect_error("InteractiveAuthorizationRequired", "theirs"):
            call_as(NOBODY, ROOT, MANAGER, "CreateVM", "ssa{sv}", "theirs", json.dumps(tiny_definition()), {})
        assert vm.properties() == before and manager.events() == events
        assert [v[0] for v in manager.list()] == [vm.Name]
        vm.stop()
        with launcher_stopped():
            vm.start(no_block=True)
            with expect_error("InteractiveAuthorizationRequired"):
                call_as(NOBODY, vm.Job, JOB, "Cancel", "a{sv}", {})
            assert vm.State == "Starting"
            vm.kill()


@test("properties can't be set")
def _():
    with vm_of() as vm:
        for name, value in (("State", variant("s", "Running")), ("CPUs", variant("u", 7)), ("Id", variant("s", "x"))):
            with expect_error("PropertyReadOnly"):
                set_property(vm.path, VM_INTERFACE, name, value)
        assert vm.State == "Stopped" and vm.CPUs == 1


# Arguments

@test("unknown options and wrong types are refused, and the message names the key", timeout=60)
def _():
    with vm_of() as vm:
        before = vm.properties()
        for method in VM_METHODS:
            known = KEYS.get(method, set())
            with expect_error("InvalidArgs", "'wrong-key'"):
                vm_call(vm, method, {"wrong-key": variant("b", True)})
            for key in known:
                for value in (variant("s", "yes"), variant("i", 1), variant("v", variant("b", True)), variant("as", [])):
                    with expect_error("InvalidArgs", f"'{key}'"):
                        vm_call(vm, method, {key: value})
            try:
                vm_call(vm, method, {"wrong-key": variant("b", True)})
            except BusError as error:
                assert all(k in error.message for k in known), (method, error.message)
            with expect_error("InvalidArgs"):
                call(vm.path, VM_INTERFACE, method)
        for keys in ({"wrong": variant("u", 1)}, {"start": variant("s", "yes")}, {"owner": variant("i", 0)},
                     {"no-block": variant("u", 1)}, {"Start": variant("b", True)}, {"": variant("b", True)}):
            with expect_error("InvalidArgs", f"'{next(iter(keys))}'"):
                call(ROOT, MANAGER, "CreateVM", "ssa{sv}", "other", json.dumps(tiny_definition()), keys)
        for keys in ({"wrong": variant("u", 1)}, {"after": variant("u", 1)}, {"limit": variant("t", 1)},
                     {"vm": variant("o", vm.path)}):
            with expect_error("InvalidArgs", f"'{next(iter(keys))}'"):
                call(ROOT, MANAGER, "ListEvents", "a{sv}", keys)
        with expect_error("InvalidArgs", "'wrong'"):
            call(ROOT, MANAGER, "Reload", "a{sv}", {"wrong": variant("b", True)})
        assert vm.properties() == before and len(manager.list()) == 1


@test("a long or strange key comes back printable")
def _():
    with vm_of() as vm:
        for key in ("x" * 100000, "\x1b[31m\n\t", "ü" * 1000):
            try:
                vm.call("Kill", "a{sv}", {key: variant("b", True)})
            except BusError as error:
                assert error.name.endswith(".InvalidArgs") and len(error.message) < 300, error
                assert "\x1b" not in error.message and "\n" not in error.message, error
            else:
                raise AssertionError("no error")


@test("objects that are not there")
def _():
    with vm_of(name="a-1") as vm:
        for path in (f"{ROOT}/vm/nobody", f"{ROOT}/vm/{encode(vm.Id)}", f"{ROOT}/vm/_61_2d1", f"{ROOT}/vm/a_2D1",
                     f"{ROOT}/vm/_", f"{ROOT}/vm", f"{ROOT}/vm/a_2d1/x", f"{ROOT}/job/0", f"{ROOT}/job/4294967295",
                     f"{ROOT}/job/99999999999", f"{ROOT}/job/x"):
            try:
                call(path, VM_INTERFACE, "Kill", "a{sv}", {})
            except BusError as error:
                assert error.name.startswith("org.freedesktop.DBus.Error.Unknown"), (path, error)
            else:
                raise AssertionError(path)
        for name in ("nobody", "", "a_1", "A-1", str(uuid.uuid4()), "x" * 100000, "\n", "/", vm.Id[:-1]):
            with expect_error("NoSuchVM"):
                manager.vm(name)
        for pid in (0, 1, os.getpid(), daemon_pid(), 2**22 + 1, 2**31, 2**32 - 1):
            with expect_error("NoSuchVM"):
                manager.vm_by_pid(pid)


@test("a VM is found by any of its processes")
def _():
    with vm_of(name="a-b", start=True) as one, vm_of(name="a", start=True) as two:
        for vm in one, two:
            pids = unit_pids(vm.Unit)
            assert vm.LeaderPID in pids and len(pids) >= 2, pids
            for pid in pids:
                assert manager.vm_by_pid(pid).path == vm.path


@test("names at their limits", timeout=60)
def _():
    longest = "a" + "-" * 57 + "aaaaa"          # 255 bytes as a slice
    good = ["a", "0", "z" * 63, "a-b.c-9", "1a", "a.b.c", longest, "localhosts", "deadbeef", "a" * 31, "x" + "0" * 31]
    for name in good:
        with vm_of(name=name) as vm:
            assert vm.Name == name and vm.path == f"{ROOT}/vm/{encode(name)}"
            assert vm.Slice == f"machine-vmunit-{escape(name)}.slice" and len(vm.Slice) <= 255
            assert manager.vm(name).path == vm.path
            with expect_error("VMExists", name):
                manager.create(name, tiny_definition())
    with vm_of(name=longest, start=True) as vm:
        assert unit_property(vm.Unit, "Slice") == vm.Slice
        vm.stop()
    bad = ["", "a" * 64, "localhost", str(uuid.uuid4()), uuid.uuid4().hex, "WEB", "Web", "a_b", "a..b", ".a", "a.", "-a",
           "a-", "a.-b", "a b", "a/b", "..", ".", "ä", "a\n", "a" * 100000, "a@b", "a\\b", "%i",
           "a" + "-" * 61 + "a", "x" + "ä" * 40, "ä" * 40, "\x1b[31m"]
    for name in bad:
        with expect_error("InvalidArgs"):
            manager.create(name, tiny_definition())
    assert manager.list() == []


@test("a VM can be another user's, who must be one when a file is opened")
def _():
    with expect_error("InvalidArgs", begins="owner: "):
        manager.create("theirs", tiny_definition(), owner=2**32 - 1)
    with vm_of(owner=0) as vm:
        assert vm.OwnerUID == 0
    with vm_of(owner=54321) as vm:
        assert vm.OwnerUID == 54321
        with expect_error("BackendFailed", text="its owner, uid 54321, is no user"):
            vm.start()


def bad_definitions():
    """(JSON, what the message begins with, or None)"""
    for text in ("", " ", "nonsense", "[]", '"x"', "1", "null", "true", "{", "{}}", '{"version": 1} x', "{'version': 1}",
                 '{"version": 1,}', '{"version": 1, "version": 1}', '{"version": 1, "cpus": 1, "cpus": 2}', "\ufeff{}",
                 '{"version": 1, "cpus": NaN}', '{"version": 1 /* */}', '{"version": 1, "labels": {"a": "\\ud800"}}',
                 '{"version": 1, "labels": {"a": "\\u0000"}}', "[" * 100, '{"version":' * 40 + "1" + "}" * 40,
                 json.dumps(tiny_definition(labels={"x": "y" * 300000}))):
        yield text, None
    for begins, over in (
            ("version", {"version": 2}), ("version", {"version": "1"}), ("version", {"version": None}),
            ("cpu", {"cpu": 1}), ("Cpus", {"Cpus": 1}), ("nonsense", {"nonsense": 1}),
            ("cpus", {"cpus": 0}), ("cpus", {"cpus": 513}), ("cpus", {"cpus": -1}), ("cpus", {"cpus": "2"}),
            ("cpus", {"cpus": 1.5}), ("cpus", {"cpus": 2**63}), ("cpus", {"cpus": 2**80}), ("cpus", {"cpus": [1]}),
            ("memory", {"memory": "7M"}), ("memory", {"memory": "17T"}), ("memory", {"memory": "lots"}),
            ("memory", {"memory": -1}), ("memory", {"memory": {}}), ("memory", {"memory": ""}),
            ("backend", {"backend": "xen"}), ("backend", {"backend": 1}), ("accel", {"accel": "warp"}),
            ("boot", {"boot": "x"}), ("boot.kernel", {"boot": {"kernel": "relative"}}),
            ("boot.kernel", {"boot": {"kernel": 1}}), ("boot.kernal", {"boot": {"kernal": "/x"}}),
            ("boot", {"boot": {"firmware": "bios"}}), ("boot.initramfs", {"boot": {"initramfs": "x"}}),
            ("boot.cmdline", {"boot": {"cmdline": 1}}),
            ("disks", {"disks": {}}), ("disks[0]", {"disks": [1]}), ("disks[0]", {"disks": [{}]}),
            ("disks[0].path", {"disks": [{"path": "x"}]}), ("disks[0].path", {"disks": [{"path": "/x/../y\n"}]}),
            ("disks[0].format", {"disks": [{"path": "/x", "format": "vmdk"}]}),
            ("disks[0].readonly", {"disks": [{"path": "/x", "readonly": "yes"}]}),
            ("disks[0].name", {"disks": [{"path": "/x", "name": "Data"}]}),
            ("disks[0].name", {"disks": [{"path": "/x", "name": "a" * 17}]}),
            ("disks[1].name", {"disks": [{"path": "/x", "name": "a"}, {"path": "/y", "name": "a"}]}),
            ("disks[0].sise", {"disks": [{"path": "/x", "sise": 1}]}),
            ("networks", {"networks": "user"}), ("networks[0].type", {"networks": [{"type": "wifi"}]}),
            ("networks[0].forward", {"networks": [{"type": "user", "forward": {}}]}),
            ("networks[0].forward[0].host", {"networks": [{"type": "user", "forward": [{"host": 65536, "guest": 1}]}]}),
            ("networks[0].forward[0].guest", {"networks": [{"type": "user", "forward": [{"host": 1, "guest": 0}]}]}),
            ("networks[0].forward[0].protocol",
             {"networks": [{"type": "user", "forward": [{"host": 1, "guest": 1, "protocol": "sctp"}]}]}),
            ("networks[0].forward[0].address",
             {"networks": [{"type": "user", "forward": [{"host": 1, "guest": 1, "address": "localhost"}]}]}),
            ("vsock", {"vsock": 1}), ("restart", {"restart": "always"}),
            ("restart.policy", {"restart": {"policy": "sometimes"}}), ("restart.max", {"restart": {"max": -1}}),
            ("autostart", {"autostart": "yes"}), ("stopTimeout", {"stopTimeout": "soon"}),
            ("stopTimeout", {"stopTimeout": -1}), ("resources", {"resources": []}),
            ("resources.CPUWeight", {"resources": {"CPUWeight": 0}}),
            ("resources.CPUWeight", {"resources": {"CPUWeight": 10001}}),
            ("resources.CPUQuota", {"resources": {"CPUQuota": "150"}}),
            ("resources.MemoryMax", {"resources": {"MemoryMax": "16M"}}),
            ("resources.TasksMax", {"resources": {"TasksMax": "many"}}),
            ("resources.AllowedCPUs", {"resources": {"AllowedCPUs": "a-b"}}),
            ("resources.Nice", {"resources": {"Nice": 1}}),
            ("labels", {"labels": []}), ("labels", {"labels": {"a": 1}}),
            ("labels", {"labels": {f"k{n}": "" for n in range(65)}}), ("labels", {"labels": {"k": "v" * 5000}}),
            ("filesystems", {"filesystems": [{"tag": "a b", "source": "/x"}]})):
        yield json.dumps(tiny_definition(**over)), begins


@test("bad definitions: each has its message, and nothing is left of any", timeout=60)
def _():
    manager.list()
    before, events, wrong, n = snapshot_leftovers(), manager.events(), [], 0
    for text, begins in bad_definitions():
        n += 1
        try:
            manager.create("bad", text)
            wrong.append((text[:100], "accepted"))
            VM("bad").remove()
            VM("bad").wait_gone()
        except BusError as error:
            if error.short != "InvalidDefinition" or begins and not error.message.startswith(begins) or \
                    not error.message or len(error.message) > 1000:
                wrong.append((text[:100], error.short, error.message[:300]))
    assert not wrong, "\n".join(map(str, wrong))
    assert n > 60, n
    assert manager.list() == [] and manager.events() == events
    assert_no_leftovers(before)


@test("what no back end can do yet is refused at create, by its key")
def _():
    for begins, over in (*([] if os.path.exists("/dev/vhost-vsock") else [("vsock", {"vsock": True})]),
                         ("networks[0].type", {"networks": [{"type": "tap"}]})):
        with expect_error("NotSupported", begins=begins):
            manager.create("cannot", tiny_definition(**over))
    assert manager.list() == []


@test("a definition reads back normalised, and makes the same VM again")
def _():
    with vm_of(tiny_definition(memory=64 << 20, stopTimeout="60", labels={"b": "1", "a": "2"})) as one:
        definition = one.definition()
        assert (definition["version"], definition["memory"], definition["stopTimeout"]) == (1, "64M", "1min"), definition
        assert (definition["vsock"], definition["autostart"], definition["restart"]) == \
            (False, False, {"policy": "no", "max": 5}), definition
        with vm_of(definition) as two:
            assert two.definition() == definition and two.DefinitionHash == one.DefinitionHash
        one.update({"cpus": 2, "labels": {"a": None}})
        assert one.definition() == {**definition, "cpus": 2, "labels": {"b": "1"}}, one.definition()


# Calls that take their time

@test("no-block answers when the job is there")
def _():
    with launcher_stopped(), vm_of(start=True, no_block=True) as vm:
        assert vm.State == "Starting" and vm.job.Operation == "Start"
        vm.kill()
        vm.start(no_block=True)
        assert vm.State == "Starting" and vm.job
        vm.start(no_block=True)                 # joins
        assert vm.State == "Starting"
        vm.kill()
        vm.wait_state("Stopped")
    with deaf_vm() as vm:
        vm.reboot(no_block=True)
        assert vm.State == "Running" and vm.job.Operation == "Reboot"
        vm.stop(no_block=True, timeout_usec=200000)
        assert vm.State == "Stopping" and vm.job.Operation == "Stop"
        vm.wait_state("Stopped")
        assert vm.StateReason == "stop-forced"
        vm.stop(no_block=True)
        vm.start(no_block=True)
        vm.wait_state("Running")
        vm.start(no_block=True)


@test("create with start: a failed start leaves the VM, and the error says so")
def _():
    mark = len(signals)
    for keys in ({}, {"no_block": True}):
        name = next(names)
        try:
            manager.create(name, tiny_definition(boot={"kernel": MISSING}), start=True, **keys)
            assert keys
        except BusError as error:
            assert not keys and MISSING in error.message and f"VM {name} was created" in error.message, error
        vm = manager.vm(name)
        vm.wait_state("Stopped")
        wait_for(lambda: vm.StateReason == "start-failed" and vm.Job == "/")
        assert MISSING not in vm.StateMessage or "kernel" in vm.StateMessage
        vm.remove()
        vm.wait_gone()
    assert [r[3] for r in job_results(mark) if r[2].startswith(ROOT + "/vm/")].count("failed") == 2


@test("the caller may leave in the middle of a start")
def _():
    with vm_of() as vm:
        with launcher_stopped():
            client = subprocess.Popen(["busctl", "call", BUS, vm.path, VM_INTERFACE, "Start", "a{sv}", "0"])
            wait_for(lambda: vm.State == "Starting")
            client.kill()
            client.wait()
            manager.list()                      # the bus has told of the client's end by now
            assert vm.State == "Starting" and vm.job
        vm.wait_state("Running")
        assert vm.Job == "/"


@test("two clients start a VM at once: both succeed, and there is one VMM")
def _():
    with vm_of() as vm:
        mark = len(signals)
        clients = [subprocess.Popen(["busctl", "call", BUS, vm.path, VM_INTERFACE, "Start", "a{sv}", "0"])
                   for _ in range(4)]
        ours = [vm.start_async() for _ in range(4)]
        assert gather(ours) == [None] * 4, ours
        assert [c.wait(20) for c in clients] == [0] * 4
        assert vm.State == "Running"
        commands = [open(f"/proc/{pid}/comm").read().strip() for pid in unit_pids(vm.Unit)]
        assert len([c for c in commands if c.startswith("qemu")]) == 1, commands
        wait_for(lambda: job_results(mark))
        assert [r[3] for r in job_results(mark)] == ["done"], job_results(mark)
        assert [s for s, *_ in vm.states(mark)].count("Running") == 1


@test("reading goes on while a start hangs")
def _():
    with launcher_stopped(), vm_of(start=True, no_block=True) as vm:
        began = time.monotonic()
        for _ in range(50):
            assert vm.State == "Starting"
        manager.objects(), manager.list(), manager.events(limit=10), vm.definition(), vm.last_output(), vm.console_log()
        with expect_error("NotRunning"):
            vm.stats()
        assert time.monotonic() - began < 5
        vm.kill()


# History

@test("events: their numbers grow, signals tell the same, filters choose")
def _():
    last = (manager.events(limit=10000) or [(0,)])[-1][0]
    mark = len(signals)
    with vm_of(name="one") as one, vm_of(name="two") as two:
        ids = {"one": one.Id, "two": two.Id}
        one.start()
        one.stop()
    events = manager.events(after=last)
    numbers = [e[0] for e in events]
    assert numbers == sorted(set(numbers)) and numbers[0] > last, numbers
    assert all(e[3] in ids and e[2] == ids[e[3]] and e[4] and e[5] for e in events), events
    types = [e[4] for e in events if e[3] == "one"]
    assert [t for t in types if t in ("starting", "running", "stopping", "stopped", "removing")] == \
        ["starting", "running", "stopping", "stopped", "removing"], types
    wait_for(lambda: [s.args[:6] for s in signals[mark:] if s.member == "Event"] == [e[:6] for e in events])
    assert all(s.args[6] == {} for s in signals[mark:] if s.member == "Event")
    running = next(e for e in events if e[4] == "running")
    assert (running[6]["from"], running[6]["to"]) == ("Starting", "Running"), running

    assert manager.events(after=last, limit=3) == events[:3]
    assert manager.events(after=events[2][0], limit=3) == events[3:6]
    assert manager.events(after=numbers[-1]) == [] == manager.events(after=2**64 - 1) == manager.events(limit=0)
    for key in ("one", ids["one"]):             # also of one that is gone
        assert manager.events(vm=key, after=last) == [e for e in events if e[3] == "one"]
    assert manager.events(vm="nobody") == manager.events(vm="' OR 1=1 --") == []
    assert len(manager.events(limit=2**32 - 1)) >= len(events)
    kill_daemon()
    assert manager.events(after=last) == events


@test("usage: an interval for each run")
def _():
    start = int(time.time() * 1e6)
    with vm_of(name="used") as vm:
        identity = vm.Id
        vm.start()
        (of, name, number, began, ended, details), = manager.usage(start)
        assert (of, name, ended) == (identity, "used", 0) and start <= began <= int(time.time() * 1e6)
        assert details["InvocationID"] == unit_property(vm.Unit, "InvocationID") and len(details["BootID"]) == 36, details
        vm.stop()
        (of, name, same, began, ended, _), = manager.usage(start)
        assert same == number and began < ended <= int(time.time() * 1e6)
        vm.start()
        vm.kill()
        assert len(manager.usage(start)) == 2
    assert [u[0] for u in manager.usage(start)] == [identity] * 2      # it outlives the VM
    assert manager.usage(start, began) == [] and len(manager.usage(start, began + 1)) == 1
    assert manager.usage(ended, ended) == []
    with expect_error("InvalidArgs"):
        manager.usage(2, 1)


@test("counters of a VM that runs, and of one that does not")
def _():
    with vm_of() as vm:
        with expect_error("NotRunning"):
            vm.stats()
        vm.start()
        stats = vm.stats()
        assert all(isinstance(v, int) and 0 <= v < 2**63 for v in stats.values()), stats
        controllers = controllers_of(vm.Slice)
        assert stats["CPUUsageNSec"] > 0, stats
        assert ("MemoryCurrent" in stats, "TasksCurrent" in stats) == ("memory" in controllers, "pids" in controllers), stats
        assert stats.get("MemoryCurrent", 2**30) > 1 << 20 and stats.get("TasksCurrent", 2) >= 2, stats
        pid = vm.LeaderPID
        fd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([fd], [], [])             # the daemon may not have looked yet
        with expect_error("NotRunning"):
            vm.stats()
        os.close(fd)
        assert vm.State == "Error"


@test("what was written last can be read before the first run and after the last, by its size")
def _():
    with vm_of() as vm:
        assert (vm.console_log(), vm.last_output()) == (b"", "")
        vm.start()
        whole = vm.wait_log(b"TINY-UP") and vm.console_log()
        assert vm.console_log(3) == whole[-3:] and vm.console_log(0) == b"" and vm.console_log(2**64 - 1) == whole
        vm.kill()
        assert vm.console_log() == whole


@test("paths of any characters and length leave everything readable")
def _():
    for path in ("/x" + "ä" * 900, "/" + "ä" * 900, "/" + "€" * 1000, "/" + "a/" * 2000 + "b", "/%s%n"):
        with vm_of(tiny_definition(boot={"kernel": path})) as vm:
            try:
                vm.start()
            except BusError as error:
                assert error.short in ("BackendFailed", "InvalidDefinition"), error
                assert "\x1b" not in error.message, error
            else:
                raise AssertionError("started")
            assert vm.definition()["boot"]["kernel"] == path
            assert manager.objects()[vm.path][VM_INTERFACE] == vm.properties()
            assert vm.StateReason == "start-failed" and manager.events(vm=vm.Id)


@test("many VMs with much to tell", timeout=90)
def _():
    labels = {f"{n:02}": "ü" * 29 for n in range(64)}
    paths = []
    for start in (0, 100):                      # the bus allows 128 calls of a client at once
        paths += gather([manager.create_async(f"many{n}", tiny_definition(labels=labels, memory="8M"))
                         for n in range(start, start + 100)])
    assert paths == [f"{ROOT}/vm/many{n}" for n in range(200)], paths
    assert [v[0] for v in manager.list()] == [f"many{n}" for n in range(200)]
    objects = manager.objects()
    assert all(objects[path][VM_INTERFACE]["Labels"] == labels for path in paths)
    for start in (0, 100):
        assert gather([VM(path).remove_async() for path in paths[start:start + 100]]) == [None] * 100
    wait_for(lambda: not manager.list(), 20)
    assert not [p for p in manager.objects() if "/vm/" in p]


@test("a name stays taken until its removal has ended")
def _():
    with vm_of(name="stuck") as vm:
        vm.start()
        vm.stop()
        directory = f"/var/lib/vmunit/vms/{vm.Id}/held"
        os.mkdir(directory)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
        try:
            mark = len(signals)
            vm.remove()
            wait_for(lambda: vm.StateReason == "blocked")
            assert vm.State == "Removing" and vm.StateMessage
            with expect_error("Removing", "stuck"):
                manager.create("stuck", tiny_definition())
            for method in VM_METHODS:
                if method in ("Start", "Stop", "Pause", "Resume", "Reboot", "Reset", "Update"):
                    with expect_error("Removing"):
                        vm_call(vm, method, {})
            assert manager.vm("stuck").path == vm.path
            assert not [s for s in signals[mark:] if s.member == "InterfacesRemoved" and s.args[0] == vm.path]
        finally:
            subprocess.run(["umount", directory], check=True)
        vm.remove()
        vm.wait_gone(5)
        with expect_error("NoSuchVM"):
            manager.vm("stuck")


@test("errors have their names")
def _():
    with vm_of() as vm:
        for method in ("pause", "resume", "reboot", "reset"):
            with expect_error("NotRunning", vm.Name):
                getattr(vm, method)()
        with expect_error("NotSupported", begins="vsock: "):
            vm_call(vm, "OpenVSock", {})
        with expect_error("InvalidDefinition", begins="cpus"):
            vm.update({"cpus": 0})
        with expect_error("InvalidDefinition"):
            vm.update("nonsense")
        vm.start()
        with expect_error("InvalidState", "Stop"):
            vm.remove()
        vm.pause()
        with expect_error("InvalidState", "Resume"):
            vm.reboot()
        vm.resume()
        vm.stop()
        with expect_error("NotRunning"):
            vm.open_console()


@test("a guest that ignores the button: Reboot times out, and it still runs")
def _():
    with deaf_vm(stopTimeout="300ms") as vm:
        with expect_error("Timeout"):
            vm.reboot()
        assert vm.State == "Running" and vm.Job == "/"


run()
