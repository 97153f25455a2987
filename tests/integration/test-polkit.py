#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=1800 sanitized
"""Who may call what: real users in sessions of logind, a real polkitd, and an agent that answers its questions."""

import os
import pty
import re
import shutil
import sys
import termios
from xml.etree import ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_users import *

test = polkit_test
manager = Manager()
PROPERTIES = "org.freedesktop.DBus.Properties"
REFUSALS = ("org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
FILES = "/srv/vmunit-test"
os.makedirs(FILES, exist_ok=True)
shutil.copy(os.environ["VMUNIT_GUESTS"] + "/tiny.elf", FILES)
os.chmod(FILES, 0o755)
os.chmod(FILES + "/tiny.elf", 0o644)

BOBS_RULES = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.vmunit1.manage" && action.lookup("vm") == "of-alice" && action.lookup("verb") == "stop" &&
        subject.user == "bob")
        return polkit.Result.YES;
    if (action.id == "org.vmunit1.inspect" && subject.user == "bob")
        return polkit.Result.YES;
    if (subject.user == "mallory")
        return polkit.Result.NO;
});
"""

# A session at the seat is active until another one comes.
carol = User("carol", session="inactive")       # in no group, in the background
alice = User("alice", session="active")         # in no group, at the machine
bob = User("bob", session="remote")             # whom rules allow something
dave = User("dave")                             # without a session
mallory = User("mallory")                       # whom rules forbid all
root = User("root")
CALLERS = {"root": root, "alice": alice, "bob": bob, "carol": carol, "dave": dave, "mallory": mallory}
OWNERS = {"root": root, "alice": alice, "bob": bob}


def definition(**over):
    return tiny_definition(**{"boot": {"kernel": FILES + "/tiny.elf"}, **over})


@contextlib.contextmanager
def vm_of(owner, name, start=False, **keys):
    vm = manager.create(name, definition(**keys), owner=owner.uid, start=start)
    try:
        yield vm
    finally:
        with contextlib.suppress(BusError):
            VM(vm.path).remove(force=True)
        vm.wait_gone()


def outcome(call):
    """What became of a call: "yes", also if it failed for another reason; "no"; "password"."""
    try:
        call()
    except BusError as error:
        if error.name in REFUSALS:
            return {"AccessDenied": "no"}.get(error.name.rpartition(".")[2], "password")
        assert error.name.startswith(ERROR), error
    return "yes"


# The table

# What callers may do to VMs of root, alice and bob, without a password.
Y, P, N = "yes", "password", "no"
WHO = {                 #   root's alice's bob's
    "nobody is asked": {"root": (Y, Y, Y), "alice": (Y, Y, Y), "bob": (Y, Y, Y), "carol": (Y, Y, Y), "dave": (Y, Y, Y), "mallory": (Y, Y, Y)},
    "manage":          {"root": (Y, Y, Y), "alice": (P, Y, P), "bob": (P, P, Y), "carol": (P, P, P), "dave": (P, P, P), "mallory": (N, N, N)},
    "manage: stop":    {"root": (Y, Y, Y), "alice": (P, Y, P), "bob": (P, Y, Y), "carol": (P, P, P), "dave": (P, P, P), "mallory": (N, N, N)},
    "inspect":         {"root": (Y, Y, Y), "alice": (P, Y, P), "bob": (Y, Y, Y), "carol": (P, P, P), "dave": (P, P, P), "mallory": (N, N, N)},
    "create":          {"root": (Y, Y, Y), "alice": (P, Y, P), "bob": (P, P, P), "carol": (P, P, P), "dave": (P, P, P), "mallory": (N, N, N)},
}
VM_METHODS = {          # what it is, and its arguments
    "Start": ("manage",), "Stop": ("manage: stop",), "Kill": ("manage",), "Reboot": ("manage",), "Reset": ("manage",),
    "Pause": ("manage",), "Resume": ("manage",), "Update": ("manage", "s", '{"labels": {"a": "b"}}'),
    "GetDefinition": ("inspect",), "GetStats": ("nobody is asked",), "OpenConsole": ("manage",),
    "GetConsoleLog": ("inspect", "t", 100), "GetLastOutput": ("inspect",), "OpenVSock": ("manage", "u", 1),
    "Remove": ("manage",),
}
MANAGER_METHODS = {
    "CreateVM": ("create",), "GetVM": ("nobody is asked",), "GetVMByPID": ("nobody is asked",), "ListVMs": ("nobody is asked",),
    "ListEvents": ("nobody is asked",), "GetUsage": ("nobody is asked",),
}
JOB_METHODS = {"Cancel": ("manage",)}
VM_PROPERTIES = """Id Name OwnerUID State StateReason StateMessage StateSinceUSec RestartAtUSec DefinitionHash CPUs MemoryBytes Labels
    Backend Unit Slice LeaderPID VSockCID CreatedUSec StartedUSec ExitCode ExitSignal ExitKnown RestartCount Job""".split()
MANAGER_PROPERTIES = "Version Backends".split()
JOB_PROPERTIES = "Id VM Operation Stage Progress StartedUSec CallerUID Cancelable".split()


def introspected(path, interface):
    node = ElementTree.fromstring(call(path, "org.freedesktop.DBus.Introspectable", "Introspect"))
    found = next(i for i in node if i.get("name") == interface)
    return [{e.get("name") for e in found if e.tag == tag} for tag in ("method", "property")]


@contextlib.contextmanager
def job_of(vm):
    """The job of a start that hangs"""
    systemctl("start", "vmunit-launch.service")
    pid = launcher_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        vm.start(no_block=True)
        yield wait_for(lambda: vm.job)
    finally:
        os.kill(pid, signal.SIGCONT)
        vm.kill()


@test("the sessions are what they are called", timeout=90)
def _():
    for user, wanted in ((alice, ("seat0", True)), (carol, ("seat0", False)), (bob, ("", True)), (dave, None), (mallory, None)):
        try:
            path = call("/org/freedesktop/login1", "org.freedesktop.login1.Manager", "GetSessionByPID", "u", user.pid,
                        destination="org.freedesktop.login1")
        except BusError as error:
            assert wanted is None and "NoSessionForPID" in error.name, (user.name, error)
            continue
        properties = get_all(path, "org.freedesktop.login1.Session", destination="org.freedesktop.login1")
        assert (properties["Seat"][0], properties["Active"]) == wanted, (user.name, properties)
        assert properties["User"][0] == user.uid
    for name in ("alice", "carol", "dave"):
        groups = subprocess.run(["id", "--groups", "--name", name], capture_output=True, text=True, check=True).stdout.split()
        assert groups == [name], groups


@test("the table has every method and property that there is", timeout=90)
def _():
    with vm_of(root, "whole") as vm, job_of(vm) as job:
        for path, interface, methods, properties in ((ROOT, MANAGER, MANAGER_METHODS, MANAGER_PROPERTIES),
                                                     (vm.path, VM_INTERFACE, VM_METHODS, VM_PROPERTIES),
                                                     (job.path, JOB, JOB_METHODS, JOB_PROPERTIES)):
            assert introspected(path, interface) == [set(methods), set(properties)], interface


@test("everybody reads every property", timeout=90)
def _():
    with vm_of(alice, "read") as vm, job_of(vm) as job:
        for name, caller in CALLERS.items():
            for path, interface, properties in ((ROOT, MANAGER, MANAGER_PROPERTIES), (vm.path, VM_INTERFACE, VM_PROPERTIES),
                                                (job.path, JOB, JOB_PROPERTIES)):
                for p in properties:
                    assert outcome(lambda: caller.call(path, PROPERTIES, "Get", "ss", interface, p)) == Y, (name, p)
                assert set(caller.call(path, PROPERTIES, "GetAll", "s", interface)) == set(properties), (name, interface)
            assert vm.path in caller.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"), name


def vm_outcomes(owner, number, method):
    """Of all callers, to a VM of this owner"""
    kind, *arguments = VM_METHODS[method]
    if method == "Update" and owner == "root":
        kind = "manage"                         # host-resources in fact: the outcome is the same
    for name, caller in CALLERS.items():
        vm = VM(f"of-{owner}")
        if not vm.exists():
            vm = manager.create(f"of-{owner}", definition(), owner=OWNERS[owner].uid)
        before, events = vm.properties(), manager.events()
        seen = outcome(lambda: caller.call(vm.path, VM_INTERFACE, method, *((arguments[0] + "a{sv}", *arguments[1:], {})
                                                                           if arguments else ("a{sv}", {}))))
        if seen != Y:
            assert vm.properties() == before and manager.events() == events, (method, name, owner)
        yield (method, name, owner), seen, WHO[kind][name][number]
        if method == "Start" and seen == Y:
            assert vm.State == "Running", (method, name, owner, vm.properties())
            vm.kill()
        if method == "Remove" and seen == Y:
            vm.wait_gone()


@test("the table: who may call what of whose VM", timeout=180)
def _():
    wrong, n = [], 0
    with polkit_rules(BOBS_RULES):
        for number, owner in enumerate(OWNERS):
            for method in VM_METHODS:
                for what, seen, wanted in vm_outcomes(owner, number, method):
                    n += 1
                    if seen != wanted:
                        wrong.append((*what, seen, "instead of", wanted))
    assert not wrong, "\n".join(map(str, wrong))
    assert n == len(VM_METHODS) * len(CALLERS) * len(OWNERS)
    manager.remove_all()


@test("the table: who may cancel whose job", timeout=180)
def _():
    with polkit_rules(BOBS_RULES):
        for number, owner in enumerate(OWNERS):
            with vm_of(OWNERS[owner], f"of-{owner}") as vm:
                for name, caller in CALLERS.items():
                    with job_of(vm) as job:
                        seen = outcome(lambda: caller.call(job.path, JOB, "Cancel", "a{sv}", {}))
                        assert seen == WHO["manage"][name][number], (name, owner, seen)
                        assert seen == Y or vm.State == "Starting", (name, owner)


@test("the table: who may create a VM for whom", timeout=180)
def _():
    with polkit_rules(BOBS_RULES):
        for number, (owner, user) in enumerate(OWNERS.items()):
            for name, caller in CALLERS.items():
                keys = {} if owner == name else {"owner": user.uid}
                seen = outcome(lambda: caller.create("new", definition(), **keys))
                assert seen == WHO["create"][name][number], (name, owner, seen)
                assert [v[0] for v in manager.list()] == (["new"] if seen == Y else []), (name, owner)
                if seen == Y:
                    assert VM("new").OwnerUID == user.uid
                manager.remove_all()


@test("the table: the rest of the manager's methods is everybody's", timeout=90)
def _():
    with vm_of(alice, "web") as vm:
        for name, caller in CALLERS.items():
            assert caller.call(ROOT, MANAGER, "GetVM", "s", "web") == vm.path
            assert [v[0] for v in caller.call(ROOT, MANAGER, "ListVMs")] == ["web"]
            assert outcome(lambda: caller.call(ROOT, MANAGER, "GetVMByPID", "u", 1)) == Y, name
            assert outcome(lambda: caller.call(ROOT, MANAGER, "GetUsage", "tt", 0, 1)) == Y, name
            assert caller.call(ROOT, MANAGER, "ListEvents", "a{sv}", {}), name


@test("details of events: the owner's, root's, and theirs who may inspect", timeout=90)
def _():
    with polkit_rules(BOBS_RULES), vm_of(alice, "of-alice") as one, vm_of(root, "of-root") as two:
        one.start()
        two.start()
        one.kill()
        two.kill()
        ids = {one.Id, two.Id}
        whole = [e for e in manager.events() if e[2] in ids]
        assert {e[2] for e in whole if e[6]} == ids
        for name, shown in (("root", ids), ("alice", {one.Id}), ("bob", ids), ("carol", set()), ("dave", set()), ("mallory", set())):
            for keys in ({}, {"vm": one.Id}, {"vm": "of-root"}):
                events = [e for e in CALLERS[name].call(ROOT, MANAGER, "ListEvents", "a{sv}", options(**keys)) if e[2] in ids]
                mine = [e for e in whole if "vm" not in keys or keys["vm"] in e[2:4]]
                assert [e[:6] for e in events] == [e[:6] for e in mine], (name, keys)
                assert events == [(*e[:6], e[6] if e[2] in shown else {}) for e in mine], (name, keys)
    # Of one that is gone nobody is the owner any more, nor is who takes its name.
    with vm_of(carol, "of-alice"):
        for caller in (alice, carol):
            events = caller.call(ROOT, MANAGER, "ListEvents", "a{sv}", options(vm="of-alice"))
            assert not any(e[6] for e in events if e[2] in ids), events


@test("what others see of a VM, or hear of it, has none of its paths", timeout=90)
def _():
    mark, secret = len(signals), "/home/alice/private-matter.elf"
    with vm_of(alice, "discreet", boot={"kernel": secret}) as vm:
        for caller in (alice, root):
            with expect_error("BackendFailed", secret):
                caller.call(vm.path, VM_INTERFACE, "Start", "a{sv}", {})
        seen = [dave.call(vm.path, PROPERTIES, "GetAll", "s", VM_INTERFACE), dave.call(ROOT, MANAGER, "ListEvents", "a{sv}", {}),
                dave.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
                [s.args for s in signals[mark:] if s.member != "JobRemoved"]]
        assert len(str(seen)) > 1000 and "private-matter" not in str(seen), seen


# The dialogue

@test("who creates a VM owns it: at the machine without a password, else after it", timeout=90)
def _():
    vm = alice.create("mine", definition(), start=True)
    assert (vm.OwnerUID, vm.State) == (alice.uid, "Running")
    alice.call(vm.path, VM_INTERFACE, "Stop", "a{sv}", options(timeout_usec=0))
    alice.call(vm.path, VM_INTERFACE, "Remove", "a{sv}", {})
    vm.wait_gone()
    for caller, name in ((carol, "background"), (bob, "remote"), (dave, "none")):
        with Agent(caller, "no") as agent:
            with expect_error("AccessDenied", "org.vmunit1.create"):
                caller.create(name, definition(), interactive=True)
            assert agent.questions == [("org.vmunit1.create", f"Authentication is required to create the virtual machine {name}.")]
            assert manager.list() == []
            agent.answer = "yes"
            vm = caller.create(name, definition(), interactive=True)
            assert vm.OwnerUID == caller.uid and len(agent.questions) == 2
            # The password is kept for a while, for this process; its owner manages it without.
            caller.create("more", definition(), interactive=True)
            assert len(agent.questions) == 2, agent.questions
            caller.call(vm.path, VM_INTERFACE, "Start", "a{sv}", {})
            manager.remove_all()
    restart_polkit()


@test("nobody is asked unless the call allows it; owners and root never", timeout=90)
def _():
    with Agent(alice, "yes") as agent, vm_of(root, "roots") as theirs, vm_of(alice, "mine") as mine:
        with expect_error("InteractiveAuthorizationRequired", "roots: "):
            alice.call(theirs.path, VM_INTERFACE, "Start", "a{sv}", {})
        alice.call(mine.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        root.call(mine.path, VM_INTERFACE, "Kill", "a{sv}", {}, interactive=True)
        assert alice.call(ROOT, MANAGER, "ListEvents", "a{sv}", {}, interactive=True)
        assert agent.questions == []
    with vm_of(root, "roots") as theirs:        # nobody is there to ask
        with expect_error("InteractiveAuthorizationRequired", "agent"):
            dave.call(theirs.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        assert theirs.State == "Stopped"


@test("the question names the VM, in the language of who is asked", timeout=90)
def _():
    wanted = {"C": "Authentication is required to manage the virtual machine web-1", "zh_CN.UTF-8": "管理属于其他用户的虚拟机“web-1”",
              "de_DE.UTF-8": "Zum Verwalten der virtuellen Maschine „web-1“"}
    with vm_of(root, "web-1") as vm:
        for locale, text in wanted.items():
            with Agent(dave, "no", locale) as agent:
                with expect_error("AccessDenied"):
                    dave.call(vm.path, VM_INTERFACE, "Kill", "a{sv}", {}, interactive=True)
                (action, message), = agent.questions
                assert action == "org.vmunit1.manage" and text in message, message
    policy = ElementTree.parse("/usr/share/polkit-1/actions/org.vmunit1.policy").getroot()
    actions = policy.findall("action")
    assert [a.get("id").rpartition(".")[2] for a in actions] == ["create", "manage", "console", "inspect", "host-resources", "configure"]
    for a in actions:
        for tag in ("description", "message"):
            texts = [e for e in a if e.tag == tag]
            assert [e.get("{http://www.w3.org/XML/1998/namespace}lang") for e in texts] == [None, "de", "zh_CN"], a.get("id")
            assert len({e.text for e in texts}) == 3 and all(e.text.strip() for e in texts), a.get("id")


@test("while somebody thinks about the password nothing else waits, and nothing has begun", timeout=90)
def _():
    with vm_of(root, "slow") as vm, Agent(dave, "later") as agent:
        start = dave.call_async(vm.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        wait_for(lambda: agent.questions, 60)
        assert vm.State == "Stopped" and vm.Job == "/" and not start.done
        assert dave.call(vm.path, PROPERTIES, "Get", "ss", VM_INTERFACE, "State") == "Stopped"
        with vm_of(alice, "quick") as other:
            alice.call(other.path, VM_INTERFACE, "Start", "a{sv}", {})
        assert not start.done
        agent.answer = "yes"
        agent.go_on()
        start.result()
        assert vm.State == "Running" and agent.cancelled == []
        assert [e[4] for e in manager.events(vm=vm.Id)].count("starting") == 1


@test("who leaves while being asked: the dialogue goes, and nothing is done", timeout=90)
def _():
    eve = User("eve")
    with vm_of(root, "left") as vm, Agent(eve, "later") as agent:
        eve.call_async(vm.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        wait_for(lambda: agent.questions, 60)
        eve.leave()
        wait_for(lambda: agent.cancelled, 60)
        assert vm.State == "Stopped" and vm.Job == "/"
    assert outcome(lambda: manager.list()) == Y


@test("a VM that is gone, or another of its name, when the answer comes", timeout=90)
def _():
    with Agent(dave, "later") as agent:
        for again in (False, True):
            vm = manager.create("swapped", definition())
            start = dave.call_async(vm.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
            wait_for(lambda: len(agent.questions) == again + 1, 60)
            vm.remove()
            vm.wait_gone()
            if again:
                manager.create("swapped", definition())
            agent.answer = "yes"
            agent.go_on()
            agent.answer = "later"
            with expect_error("Busy" if again else "UnknownObject"):
                start.result()
    assert manager.vm("swapped").State == "Stopped"
    manager.remove_all()


@test("the daemon ends while somebody is asked: told, and the dialogue goes", timeout=90)
def _():
    with vm_of(root, "ends") as vm, Agent(dave, "later") as agent:
        start = dave.call_async(vm.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        wait_for(lambda: agent.questions, 60)
        systemctl("restart", "vmunitd.service")
        with expect_error("Canceled", "nothing was done"):
            start.result()
        wait_for(lambda: agent.cancelled, 60)
        assert vm.State == "Stopped"


@test("so many calls of a user wait for polkit, and no more", timeout=90)
def _():
    with vm_of(root, "many") as vm:
        with Agent(dave, "later") as agent:
            calls = [dave.call_async(vm.path, VM_INTERFACE, "Kill", "a{sv}", {}, interactive=True) for _ in range(72)]
            while sum(c.done for c in calls) < 8:
                dave.read_answer()
            refused = [c for c in calls if c.done]
            for c in refused:
                with expect_error("LimitsExceeded", "64"):
                    c.result()
            assert alice.call(ROOT, MANAGER, "ListVMs")
            wait_for(lambda: agent.questions, 60)
            assert len(agent.questions) == 1    # one after the other
        assert [outcome(c.result) for c in calls if c not in refused].count(Y) == 0      # their agent has gone


# polkit's own troubles

@contextlib.contextmanager
def masked():
    systemctl("mask", "--runtime", "--now", "polkit.service")
    try:
        yield
    finally:
        systemctl("unmask", "--runtime", "polkit.service")
        restart_polkit()


@test("without polkit all is refused that needs it; root and owners go on", timeout=90)
def _():
    with masked(), vm_of(alice, "mine") as mine, vm_of(root, "roots") as theirs:
        for interactive in (False, True):
            with expect_error("AccessDenied", "can't be asked"):
                alice.call(theirs.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=interactive)
            with expect_error("AccessDenied", "can't be asked"):
                alice.create("new", definition(), interactive=interactive)
        assert theirs.State == "Stopped" and len(manager.list()) == 2
        alice.call(mine.path, VM_INTERFACE, "Start", "a{sv}", {})
        events = alice.call(ROOT, MANAGER, "ListEvents", "a{sv}", {})
        assert any(e[6] for e in events if e[2] == mine.Id) and not any(e[6] for e in events if e[2] == theirs.Id)
        mine.kill()
    alice.create("new", definition())
    manager.remove_all()


@test("a polkit that dies while somebody is asked: refused; the next call asks the new one", timeout=90)
def _():
    with vm_of(root, "dies") as vm, Agent(dave, "later") as agent:
        start = dave.call_async(vm.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        wait_for(lambda: agent.questions, 60)
        systemctl("kill", "--signal=KILL", "polkit.service")
        with expect_error("AccessDenied", "can't be asked"):
            start.result()
        assert vm.State == "Stopped"
    with vm_of(root, "dies") as vm, Agent(dave, "yes") as agent:
        dave.call(vm.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
        assert vm.State == "Running" and len(agent.questions) == 1


@test("a polkit that hangs: others don't, and the call is refused in the end", timeout=180)
def _():
    systemctl("start", "polkit.service")
    pid = int(unit_property("polkit.service", "MainPID"))
    with vm_of(root, "hangs") as vm, vm_of(alice, "mine") as mine:
        os.kill(pid, signal.SIGSTOP)
        try:
            start = dave.call_async(vm.path, VM_INTERFACE, "Start", "a{sv}", {})
            alice.call(mine.path, VM_INTERFACE, "Start", "a{sv}", {})
            vm.start()
            vm.kill()
            assert not start.done
            with expect_error("AccessDenied", "can't be asked"):
                start.result()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert vm.State == "Stopped"


# What it costs

class Watch:
    """All that goes over the system bus, as its monitor sees it."""

    def __enter__(self):
        address = Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM)
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        self.seen, self._bus = [], Gio.DBusConnection.new_for_address_sync(address, flags)
        self._bus.set_exit_on_close(False)
        self._bus.add_filter(self._on_message)
        self._bus.call_sync("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.Monitoring", "BecomeMonitor",
                            GLib.Variant("(asu)", (["type='method_call'"], 0)), None, Gio.DBusCallFlags.NONE, -1)
        return self

    def _on_message(self, _connection, message, incoming):
        if incoming and message.get_message_type() == Gio.DBusMessageType.METHOD_CALL:
            self.seen.append((message.get_sender(), message.get_destination(), message.get_member(), message.get_path()))
            return None
        return message

    def __exit__(self, *_):
        self._bus.close_sync()

    def sync(self):
        """Until it has seen all so far."""
        end = f"/end/{len(self.seen)}"
        with contextlib.suppress(BusError):
            call(end, "org.freedesktop.DBus.Peer", "Nothing", destination=BUS)
        wait_for(lambda: any(path == end for *_, path in self.seen), 60, poll=0.01)
        return len(self.seen)

    def daemons(self, mark):
        """What the daemon has called since."""
        self.sync()
        owner = call("/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner", "s", BUS, destination="org.freedesktop.DBus")
        return [(d, member) for sender, d, member, _ in self.seen[mark:] if sender == owner and "systemd1" not in str(d) and
                member != "GetConnectionStats"]      # now and then, for how much a client has not read


@test("polkit costs a call one round trip; root and owners none", timeout=90)
def _():
    with vm_of(alice, "mine") as mine, polkit_rules(BOBS_RULES), Watch() as watch:
        for caller, method, asked in ((root, "GetDefinition", 0), (alice, "GetDefinition", 0), (bob, "GetDefinition", 1), (dave, "GetDefinition", 1),
                                      (dave, "GetStats", 0), (root, "Kill", 0), (alice, "Kill", 0), (mallory, "Kill", 1)):
            with contextlib.suppress(BusError):  # who it is the bus is asked once
                caller.call(mine.path, VM_INTERFACE, method, "a{sv}", {})
            mark = watch.sync()
            outcome(lambda: caller.call(mine.path, VM_INTERFACE, method, "a{sv}", {}))
            assert watch.daemons(mark) == [(POLKIT, "CheckAuthorization")] * asked, (caller.name, method, watch.daemons(mark))


# Rights of the host

@test("ports of the host, root's VMs and other owners take host-resources, whoever asks", timeout=90)
def _():
    port = {"networks": [{"name": "net0", "forward": [{"host": 80, "guest": 80}]}]}
    free = {"networks": [{"name": "net0", "forward": [{"host": 8080, "guest": 80}]}]}
    with expect_error("InteractiveAuthorizationRequired", "host-resources"):
        alice.create("web", definition(**port))
    with expect_error("InteractiveAuthorizationRequired", "root's VM can open any file"):
        alice.create("web", definition(), owner=0)
    with expect_error("InteractiveAuthorizationRequired", "another user's rights"):
        alice.create("web", definition(), owner=bob.uid)
    assert manager.list() == []
    vm = alice.create("web", definition(**free))
    for keys in ({}, options(next_start=True)):
        with expect_error("InteractiveAuthorizationRequired", "networks[0].forward[0].host"):
            alice.call(vm.path, VM_INTERFACE, "Update", "sa{sv}", json.dumps(port), keys)
    alice.call(vm.path, VM_INTERFACE, "Update", "sa{sv}", '{"cpus": 2}', {})
    vm.update(port)                             # root gives it; the owner may change the rest
    alice.call(vm.path, VM_INTERFACE, "Update", "sa{sv}", '{"cpus": 1}', {})
    assert vm.definition()["networks"][0]["forward"][0]["host"] == 80
    manager.remove_all()
    rule = """polkit.addRule(function(action, subject) {
        if (action.id == "org.vmunit1.manage" && subject.user == "bob") return polkit.Result.YES; });"""
    with polkit_rules(rule), vm_of(root, "roots") as roots, vm_of(alice, "hers") as hers:
        with expect_error("InteractiveAuthorizationRequired", "host-resources"):
            bob.call(roots.path, VM_INTERFACE, "Update", "sa{sv}", '{"disks": [{"path": "/etc/shadow"}]}', {})
        bob.call(roots.path, VM_INTERFACE, "Kill", "a{sv}", {})
        bob.call(hers.path, VM_INTERFACE, "Update", "sa{sv}", '{"cpus": 2}', {})
        with expect_error("InteractiveAuthorizationRequired", "host-resources"):
            bob.call(hers.path, VM_INTERFACE, "Update", "sa{sv}", json.dumps(port), {})
    with Agent(alice, "yes") as agent:          # and with a password it is root's
        vm = alice.create("web", definition(), owner=0, interactive=True)
        assert vm.OwnerUID == 0 and [a for a, _ in agent.questions] == ["org.vmunit1.host-resources"]
    manager.remove_all()


@test("a mistake is told before anybody is asked, but not what another's definition is", timeout=90)
def _():
    with Agent(carol, "yes") as agent, vm_of(root, "roots") as theirs:
        with expect_error("InvalidArgs"):
            carol.create("No Name", definition(), interactive=True)
        with expect_error("InvalidDefinition", begins="cpus"):
            carol.create("new", definition(cpus=0), interactive=True)
        with expect_error("VMExists"):
            carol.create("roots", definition(), interactive=True)
        with expect_error("InvalidArgs"):
            carol.call(ROOT, MANAGER, "CreateVM", "ssa{sv}", "new", "{}", {"owners": variant("u", 0)}, interactive=True)
        assert agent.questions == []
        for patch in ('{"disks": [{"name": "data0", "delete": true}]}', "nonsense", '{"cpus": 0}'):
            with expect_error("InteractiveAuthorizationRequired"):
                carol.call(theirs.path, VM_INTERFACE, "Update", "sa{sv}", patch, {})


@test("keep-intent is root's", timeout=90)
def _():
    with vm_of(alice, "mine") as mine:
        with expect_error("AccessDenied", "keep-intent"):
            alice.call(mine.path, VM_INTERFACE, "Stop", "a{sv}", options(keep_intent=True))
        root.call(mine.path, VM_INTERFACE, "Stop", "a{sv}", options(keep_intent=True))


@test("a VM's files are opened with its owner's rights, with all of the groups", timeout=90)
def _():
    frank = User("frank", groups=("disk-readers",))
    kernel = FILES + "/of-a-group.elf"
    shutil.copy(FILES + "/tiny.elf", kernel)
    shutil.chown(kernel, "root", "disk-readers")
    os.chmod(kernel, 0o640)
    with Agent(frank, "yes"):
        vm = frank.create("in-group", definition(boot={"kernel": kernel}), interactive=True)
        frank.call(vm.path, VM_INTERFACE, "Start", "a{sv}", {})
        assert vm.State == "Running"
    hers = alice.create("not-in-group", definition(boot={"kernel": kernel}))
    for caller in (alice, root):                # root's call makes it no other VM
        with expect_error("BackendFailed", kernel):
            caller.call(hers.path, VM_INTERFACE, "Start", "a{sv}", {})
    for path in ("/etc/shadow", "/etc/gshadow", "/var/lib/vmunit/vmunit.db"):
        alice.call(hers.path, VM_INTERFACE, "Update", "sa{sv}", json.dumps({"boot": {"kernel": path}}), {})
        with expect_error("BackendFailed", path):
            alice.call(hers.path, VM_INTERFACE, "Start", "a{sv}", {})
    manager.remove_all()


# Rules

def documented_rules():
    with open(os.path.join(os.environ["VMUNIT_TOP"], "docs/security.md"), encoding="utf-8") as f:
        return re.findall(r"^```js\n(.*?)^```", f.read(), re.M | re.S)


VERBS = {"Start": "", "Stop": "", "Kill": "", "GetDefinition": "", "GetLastOutput": "", "OpenConsole": ""}


def allowed(user, vm):
    """The methods that polkit lets the user call, of VERBS"""
    return {m for m in VERBS if outcome(lambda: user.call(vm.path, VM_INTERFACE, m, "a{sv}", {})) == Y}


TELLING_RULES = """
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.vmunit1.") != 0)
        return;
    var words = ["verb", "vm", "owner", "unit"].map(function(key) { return key + "=" + action.lookup(key); });
    polkit.spawn(["logger", "--tag", "rule-saw", action.id + " " + words.join(" ")]);
    return polkit.Result.NO;
});
"""


def rules_saw():
    return subprocess.run(["journalctl", "--output=cat", "--identifier=rule-saw"], capture_output=True, text=True, check=True).stdout.splitlines()


@test("rules see verb, vm, owner and unit, as they are", timeout=90)
def _():
    def details(run):
        """What a rule saw of the last question"""
        seen = rules_saw()
        with contextlib.suppress(BusError):
            run()
        return wait_for(lambda: rules_saw()[len(seen):], 60, poll=0.05)[-1]
    with polkit_rules(TELLING_RULES):
        with vm_of(alice, "a-b") as vm:
            for member, (kind, *arguments) in VM_METHODS.items():
                if kind == "nobody is asked":
                    continue
                line = details(lambda: dave.call(vm.path, VM_INTERFACE, member, *((arguments[0] + "a{sv}", *arguments[1:], {})
                                                                                 if arguments else ("a{sv}", {}))))
                action, verb, *rest = line.split()
                assert rest == ["vm=a-b", f"owner={alice.uid}", "unit=vmunit-a\\x2db.scope"], line
                assert verb.removeprefix("verb=").replace("-", "") == member.lower(), line
                assert action.rpartition(".")[2] in ("console" if member.startswith("Open") else kind.partition(":")[0],), line
            assert details(lambda: dave.call(ROOT, MANAGER, "ListEvents", "a{sv}", options(vm="a-b"))) == \
                f"org.vmunit1.inspect verb=list-events vm=a-b owner={alice.uid} unit=vmunit-a\\x2db.scope"
        assert details(lambda: dave.create("new", definition())) == \
            f"org.vmunit1.create verb=create vm=new owner={dave.uid} unit=vmunit-new.scope"
        assert details(lambda: dave.create("new", definition(), owner=0)) == \
            "org.vmunit1.host-resources verb=create vm=new owner=0 unit=vmunit-new.scope"
        assert details(lambda: dave.call(ROOT, MANAGER, "ListEvents", "a{sv}", {})) == \
            "org.vmunit1.inspect verb=list-events vm=undefined owner=undefined unit=undefined"


@test("the rules in the docs do what they say", timeout=180)
def _():
    operator, admin, member, runner = (User(f"in-{g}", groups=(g,)) for g in ("operators", "vm-admins", "vm-users", "ci"))
    stop, admins, users, ci, vault = documented_rules()
    changes = {"Start", "Stop", "Kill"}
    with vm_of(root, "web") as web, vm_of(alice, "ci-1") as one, vm_of(alice, "vault") as safe:
        with polkit_rules(stop):
            assert (allowed(operator, web), allowed(operator, one), allowed(dave, web)) == ({"Stop"}, set(), set())
        with polkit_rules(admins):
            assert allowed(admin, web) == allowed(admin, one) == set(VERBS) and allowed(dave, web) == set()
            assert outcome(lambda: admin.create("new", definition())) == Y
            assert outcome(lambda: admin.create("roots", definition(), owner=0)) == P
            assert outcome(lambda: admin.call(web.path, VM_INTERFACE, "Update", "sa{sv}", "{}", {})) == P
            assert outcome(lambda: admin.call(one.path, VM_INTERFACE, "Update", "sa{sv}", "{}", {})) == Y
            VM("new").remove()
            VM("new").wait_gone()
        with polkit_rules(users):
            assert outcome(lambda: member.create("new", definition())) == Y
            assert outcome(lambda: alice.create("other", definition())) == P        # though at the machine
            assert allowed(member, web) == set() and allowed(member, VM("new")) == set(VERBS)
            VM("new").remove(force=True)
            VM("new").wait_gone()
        with polkit_rules(ci):
            assert allowed(runner, one) == changes | {"GetDefinition", "GetLastOutput"}
            assert allowed(runner, web) == set() == allowed(operator, one)
        with polkit_rules(vault), Agent(dave, "yes") as agent:
            with expect_error("AccessDenied", "vault"):
                dave.call(safe.path, VM_INTERFACE, "Start", "a{sv}", {}, interactive=True)
            assert agent.questions == [] and allowed(alice, safe) == set(VERBS)


# The command

def on_terminal(user, command, answers):
    """What it writes on a terminal of a session, where each answer is typed when its question is there; and its status."""
    pid, terminal = pty.fork()
    if not pid:
        os.execvpe("su", ["su", "--login", user.name, "--session-command", command], {**os.environ, "LC_ALL": "C"})
    seen, answered, answers = b"", 0, list(answers)
    with contextlib.suppress(OSError):          # at its end
        while piece := os.read(terminal, 4096):
            seen += piece
            if answers and answers[0][0] in seen[answered:]:
                answered = len(seen)
                # What is typed before the echo is off gets lost.
                wait_for(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO, 60, poll=0.01)
                os.write(terminal, answers.pop(0)[1])
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


@test("vmunit asks for the password on a terminal, if it may", timeout=180)
def _():
    if not shutil.which("pkttyagent"):
        raise Skip("there is no pkttyagent")
    subprocess.run(["chpasswd"], input="root:a password", text=True, check=True)
    right = [(b"Password:", b"a password\n")]
    with vm_of(root, "asked") as vm:
        status, text = on_terminal(dave, "vmunit start --no-ask-password asked", ())
        assert status == 1 and "takes a password" in text and "AUTHENTICATING" not in text, text
        status, text = on_terminal(dave, "vmunit status asked", ())
        assert status == 0 and "AUTHENTICATING" not in text, text
        status, text = on_terminal(dave, "vmunit start asked", right)
        assert status == 0 and "manage the virtual machine asked" in text, text
        assert vm.State == "Running"
        status, text = on_terminal(alice, "vmunit show --definition asked", right)
        assert status == 0 and '"version"' in text, text
        status, text = on_terminal(dave, "vmunit kill asked", [(b"Password:", b"another\n")])
        assert status == 1 and "does not allow" in text, text
        assert vm.State == "Running"
        with vm_of(root, "second", start=True):  # asked one after the other
            status, text = on_terminal(dave, "vmunit kill asked second", right * 2)
            assert status == 0 and text.count("AUTHENTICATION COMPLETE") == 2, text
        assert vm.State == "Stopped"


run()
