#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=1800 sanitized
"""Who may call what: real users in sessions of logind, a real polkitd, and an agent that answers its questions."""

import os
import pty
import pwd
import re
import shutil
import socket
import sys
import termios
from xml.etree import ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import fake_vmm
from vmunit_users import *
from vmunit_clients import *

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
    var vm = action.lookup("vm"), verb = action.lookup("verb");
    if (subject.user == "mallory")
        return polkit.Result.NO;
    if (subject.user != "bob")
        return;
    if (action.id == "org.vmunit1.manage" && vm == "of-alice" && verb == "stop")
        return polkit.Result.YES;
    if (action.id == "org.vmunit1.console" && vm == "of-alice")
        return polkit.Result.YES;
    if (action.id == "org.vmunit1.host-resources" && vm == "of-root" && verb == "update")
        return polkit.Result.YES;
    if (action.id == "org.vmunit1.inspect" || action.id == "org.vmunit1.configure")
        return polkit.Result.YES;
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
OWNERS = {"root": root, "alice": alice, "bob": bob, "carol": carol, "dave": dave}


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

# What callers may do without a password, to VMs of root, alice, bob, carol and dave: an owner needs none, from any session or none.
Y, P, N = "yes", "password", "no"
ALL, ASKED, NONE = (Y,) * 5, (P,) * 5, (N,) * 5
OTHERS = {"carol": (P, P, P, Y, P), "dave": (P, P, P, P, Y), "mallory": NONE}
STRANGERS = {"carol": ASKED, "dave": ASKED, "mallory": NONE}
WHO = {
    "everybody":       {name: ALL for name in CALLERS},
    "manage":          {"root": ALL, "alice": (P, Y, P, P, P), "bob": (P, P, Y, P, P), **OTHERS},
    "manage: stop":    {"root": ALL, "alice": (P, Y, P, P, P), "bob": (P, Y, Y, P, P), **OTHERS},
    "manage: update":  {"root": ALL, "alice": (P, Y, P, P, P), "bob": (Y, P, Y, P, P), **OTHERS},    # of root's VMs it takes host-resources
    "console":         {"root": ALL, "alice": (P, Y, P, P, P), "bob": (P, Y, Y, P, P), **OTHERS},
    "inspect":         {"root": ALL, "alice": (P, Y, P, P, P), "bob": ALL, **OTHERS},
    "host-resources":  {"root": ALL, "alice": ASKED, "bob": (Y, P, P, P, P), **STRANGERS},
    "create":          {"root": ALL, "alice": (P, Y, P, P, P), "bob": ASKED, **STRANGERS},           # for others it takes host-resources
    "create: more":    {"root": ALL, "alice": ASKED, "bob": ASKED, **STRANGERS},
    "configure":       {"root": ALL, "alice": ASKED, "bob": ALL, **STRANGERS},
}
# What a user has no right to, whoever's the VM is
MORE = {
    "a low port": {"networks": [{"name": "net0", "forward": [{"host": 80, "guest": 80}]}]},
    "CPUWeight": {"resources": {"CPUWeight": 101}},
    "IOWeight": {"resources": {"IOWeight": 101}},
}
VM_CALLS = {            # what it is, its arguments, and its options
    "Start": ("manage",), "Stop": ("manage: stop",), "Kill": ("manage",), "Reboot": ("manage",), "Reset": ("manage",),
    "Pause": ("manage",), "Resume": ("manage",), "Update": ("manage: update", "s", '{"labels": {"a": "b"}}'),
    "GetDefinition": ("inspect",), "GetStats": ("everybody",),
    "OpenConsole": ("inspect",), "OpenConsole to read": ("inspect", "", options(read_only=True)),
    "OpenConsole to write": ("console", "", options(read_only=False)),
    "GetConsoleLog": ("inspect", "t", 100), "GetLastOutput": ("inspect",), "OpenVSock": ("console", "u", 1),
    **{f"Update of {name}": ("host-resources", "s", json.dumps(patch)) for name, patch in MORE.items()},
    **{f"Update of {name} for the next start": ("host-resources", "s", json.dumps(patch), options(next_start=True))
       for name, patch in MORE.items()},
    "Remove": ("manage",), "Remove of what may run": ("manage", "", options(force=True)),
}
MANAGER_CALLS = {"CreateVM": "create", **{f"CreateVM with {name}": "create: more" for name in MORE}, "GetVM": "everybody",
                 "GetVMByPID": "everybody", "ListVMs": "everybody", "ListEvents": "everybody", "GetUsage": "everybody", "Reload": "configure"}
JOB_CALLS = {"Cancel": "manage"}
VM_PROPERTIES = """Id Name OwnerUID State StateReason StateMessage StateSinceUSec RestartAtUSec DefinitionHash CPUs MemoryBytes Labels
    Backend Unit Slice LeaderPID VSockCID CreatedUSec StartedUSec ExitCode ExitSignal ExitKnown RestartCount Job""".split()
MANAGER_PROPERTIES = "Version Backends".split()
JOB_PROPERTIES = "Id VM Operation Stage Progress StartedUSec CallerUID Cancelable".split()


def introspected(path):
    """All interfaces of all objects from there on: {object: {interface: (methods, {property: access})}}"""
    node, found = ElementTree.fromstring(call(path, "org.freedesktop.DBus.Introspectable", "Introspect")), {}
    found[path] = {i.get("name"): ({m.get("name") for m in i.iter("method")}, {p.get("name"): p.get("access") for p in i.iter("property")})
                   for i in node.findall("interface") if not i.get("name").startswith("org.freedesktop.DBus.")}
    for child in node.findall("node"):
        found |= introspected(f"{path.rstrip('/')}/{child.get('name')}")
    return {path: interfaces for path, interfaces in found.items() if interfaces}


def methods_in(calls):
    return {what.partition(" ")[0] for what in calls}


def hanging():
    return fake_vmm("hang", StartTimeoutSec="1h")


@contextlib.contextmanager
def job_of(vm):
    """The job of a start that hangs for as long as the block takes, within hanging()"""
    try:
        vm.start(no_block=True)
        yield wait_for(lambda: vm.job)
    finally:
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


@test("the table has every method and property that there is, and no property can be written", timeout=90)
def _():
    with hanging(), vm_of(root, "whole") as vm, job_of(vm) as job:
        wanted = {path: {interface: (methods_in(calls), {p: "read" for p in properties})}
                  for path, interface, calls, properties in ((ROOT, MANAGER, MANAGER_CALLS, MANAGER_PROPERTIES),
                                                             (vm.path, VM_INTERFACE, VM_CALLS, VM_PROPERTIES),
                                                             (job.path, JOB, JOB_CALLS, JOB_PROPERTIES))}
        assert introspected("/") == wanted, introspected("/")
    for rows in WHO.values():
        assert list(rows) == list(CALLERS) and all(len(row) == len(OWNERS) for row in rows.values())
    kinds = {kind for kind, *_ in VM_CALLS.values()} | set(MANAGER_CALLS.values()) | set(JOB_CALLS.values())
    assert kinds == set(WHO), kinds ^ set(WHO)


@test("everybody reads every property", timeout=90)
def _():
    with hanging(), vm_of(alice, "read") as vm, job_of(vm) as job:
        for name, caller in CALLERS.items():
            for path, interface, properties in ((ROOT, MANAGER, MANAGER_PROPERTIES), (vm.path, VM_INTERFACE, VM_PROPERTIES),
                                                (job.path, JOB, JOB_PROPERTIES)):
                for p in properties:
                    assert outcome(lambda: caller.call(path, PROPERTIES, "Get", "ss", interface, p)) == Y, (name, p)
                assert set(caller.call(path, PROPERTIES, "GetAll", "s", interface)) == set(properties), (name, interface)
            assert vm.path in caller.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"), name


def call_of(what):
    """Method, signature and arguments"""
    _, signature, *arguments = VM_CALLS[what] if len(VM_CALLS[what]) > 1 else (None, "")
    if len(arguments) == len(signature):
        arguments.append({})                    # the options
    return what.partition(" ")[0], signature + "a{sv}", *arguments


def vm_outcomes(owner, number, what):
    """Of all callers, to a VM of this owner"""
    for name, caller in CALLERS.items():
        vm = VM(f"of-{owner}")
        if not vm.exists():
            vm = manager.create(f"of-{owner}", definition(), owner=OWNERS[owner].uid)
        before, events = vm.properties(), manager.events()
        seen = outcome(lambda: caller.call(vm.path, VM_INTERFACE, *call_of(what)))
        if seen != Y:
            assert vm.properties() == before and manager.events() == events, (what, name, owner)
        yield (what, name, owner), seen, WHO[VM_CALLS[what][0]][name][number]
        if what == "Start" and seen == Y:
            assert vm.State == "Running", (what, name, owner, vm.properties())
            vm.kill()
        if what.startswith("Update of") and seen == Y:          # what a VM has, its owner may keep
            vm.remove()
        if what.startswith(("Update of", "Remove")) and seen == Y:
            vm.wait_gone()


@test("the table: who may call what of whose VM", timeout=400)
def _():
    wrong, n = [], 0
    with polkit_rules(BOBS_RULES):
        for number, owner in enumerate(OWNERS):
            for what in VM_CALLS:
                for where, seen, wanted in vm_outcomes(owner, number, what):
                    n += 1
                    if seen != wanted:
                        wrong.append((*where, seen, "instead of", wanted))
    assert not wrong, "\n".join(map(str, wrong))
    assert n == len(VM_CALLS) * len(CALLERS) * len(OWNERS)
    manager.remove_all()


@test("the table: who may cancel whose job", timeout=300)
def _():
    with hanging(), polkit_rules(BOBS_RULES):
        for number, owner in enumerate(OWNERS):
            with vm_of(OWNERS[owner], f"of-{owner}") as vm:
                for name, caller in CALLERS.items():
                    with job_of(vm) as job:
                        seen = outcome(lambda: caller.call(job.path, JOB, "Cancel", "a{sv}", {}))
                        assert seen == WHO[JOB_CALLS["Cancel"]][name][number], (name, owner, seen)
                        assert seen == Y or vm.State == "Starting", (name, owner)


@test("the table: who may create a VM for whom, and with what", timeout=400)
def _():
    wrong = []
    with polkit_rules(BOBS_RULES):
        for number, (owner, user) in enumerate(OWNERS.items()):
            for what in (w for w in MANAGER_CALLS if w.startswith("CreateVM")):
                for name, caller in CALLERS.items():
                    keys = {} if owner == name else {"owner": user.uid}
                    seen = outcome(lambda: caller.create("new", definition(**MORE.get(what.removeprefix("CreateVM with "), {})), **keys))
                    if seen != WHO[MANAGER_CALLS[what]][name][number]:
                        wrong.append((what, name, owner, seen))
                    assert [v[0] for v in manager.list()] == (["new"] if seen == Y else []), (what, name, owner)
                    if seen == Y:
                        assert VM("new").OwnerUID == user.uid
                    manager.remove_all()
    assert not wrong, "\n".join(map(str, wrong))


@test("the table: who may have vmunit.conf read again, which acts on the next call", timeout=180)
def _():
    drop_in = "/etc/vmunit/vmunit.conf.d/50-reload.conf"
    os.makedirs(os.path.dirname(drop_in), exist_ok=True)

    def works(maximum, caller):
        """Whether a call of this caller's makes it the setting"""
        with open(drop_in, "w", encoding="utf-8") as f:
            f.write(f"[VMUnit]\nUserVMsMax={maximum}\n")
        seen = outcome(lambda: caller.call(ROOT, MANAGER, "Reload", "a{sv}", {}))
        try:
            alice.create("new", definition())
        except BusError as error:
            assert error.name.endswith("LimitsExceeded"), error
        assert bool(manager.list()) == ((maximum == 0) == (seen != Y)), (caller.name, maximum, seen)
        manager.remove_all()
        return seen
    try:
        with polkit_rules(BOBS_RULES):
            for name, caller in CALLERS.items():
                assert works(0, caller) == WHO["configure"][name][0], name
                assert works(10, root) == Y
    finally:
        os.unlink(drop_in)
        root.call(ROOT, MANAGER, "Reload", "a{sv}", {})


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


@test("who may inspect a VM reads its console, and nothing that is sent gets to the guest", timeout=90)
def _():
    def opens(lender, vm, **keys):
        return socket.socket(fileno=lender.call_fd(vm.path, VM_INTERFACE, "OpenConsole", GLib.Variant("(a{sv})", (options(**keys),))))

    def command(*args):
        return subprocess.Popen(["vmunit", *args], user=bob.uid, group=bob.uid, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, bufsize=0)
    with polkit_rules(BOBS_RULES), vm_of(root, "of-root", start=True) as theirs, vm_of(alice, "of-alice", start=True) as hers, \
            contextlib.closing(Lender(bob)) as lender, theirs.open_console() as console:
        theirs.wait_log(b"TINY-UP")
        hers.wait_log(b"TINY-UP")
        readers = [opens(lender, theirs), opens(lender, theirs, read_only=True)]
        for n, reader in enumerate(readers):
            for send in (reader.send, lambda b: os.write(reader.fileno(), b)):
                try:
                    send(b"mine")
                except BrokenPipeError:
                    continue
                raise AssertionError("sent")
            console.send(b"%dnow" % n)
            read_until(reader.fileno(), b"%dnow" % n)
            reader.close()
        with opens(lender, hers) as both:       # whose console is his to write to
            both.send(b"mine")
            read_until(both.fileno(), b"mine")
        with expect_error("InteractiveAuthorizationRequired", "org.vmunit1.console"):
            bob.call(theirs.path, VM_INTERFACE, "OpenConsole", "a{sv}", options(read_only=False))
        assert b"mine" not in theirs.console_log() and b"mine" in hers.console_log()
        _, said = command("console", "of-root").communicate(b"mine")
        assert b"org.vmunit1.console" in said, said
        follower = command("log", "--follow", "of-root")
        read_until(follower.stdout.fileno(), b"TINY-UP", 60)
        reader = command("console", "--read-only", "of-root")
        for process in (reader, follower):
            say_until_heard(console, process.stdout.fileno(), b"again")
        theirs.kill()
        for process in (reader, follower):
            _, said = process.communicate(b"mine")
            assert process.returncode == 0, said
        assert b"mine" not in theirs.console_log()


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


NO, CREATE = "org.freedesktop.DBus.Error.AccessDenied", "(ssa{sv})"


def create_call(name):
    return ROOT, MANAGER, "CreateVM", GLib.Variant(CREATE, (name, json.dumps(definition()), {}))


@test("who is asked hands the connection on and ends: refused, whatever the answer is", timeout=90)
def _():
    with vm_of(root, "handed") as vm, vm_of(dave, "own") as own:
        lender = Lender(dave)
        with contextlib.closing(lender), Agent(lender, "later") as agent:
            start = lender.client.send(vm.path, VM_INTERFACE, "Start", GLib.Variant("(a{sv})", ({},)), interactive=True)
            wait_for(lambda: agent.questions, 60)
            lender.end()
            agent.answer = "yes"
            agent.go_on()
            answer = lender.client.answer(start)
            assert answer.get_error_name() == NO and "has ended" in answer.get_body().unpack()[0], answer.print_(0)
            assert vm.State == "Stopped" and vm.Job == "/" and [e[4] for e in manager.events(vm=vm.Id)] == ["created"]
            # Nor is polkit asked any more; what takes a uid alone goes on.
            assert lender.call(vm.path, VM_INTERFACE, "Start", GLib.Variant("(a{sv})", ({},)), interactive=True) == NO
            assert len(agent.questions) == 1
            assert lender.call(own.path, VM_INTERFACE, "Start", GLib.Variant("(a{sv})", ({},))) is None
            assert lender.call(ROOT, MANAGER, "ListEvents", GLib.Variant("(a{sv})", ({},))) is None


@test("the number of a process that has ended is given to one in an active session: no right comes with it", timeout=90)
def _():
    session = f"/sys/fs/cgroup/user.slice/user-{alice.uid}.slice/session-{alice.session()}.scope/cgroup.procs"
    # Whose the later process is, and whether the daemon knows the connection by then. What it does not know yet, and one of the same
    # user takes over, that user could call itself from there.
    for user, known in ((alice, True), (alice, False), (dave, True)):
        lender = Lender(dave)
        with contextlib.closing(lender):
            if known:
                assert lender.call(ROOT, MANAGER, "ListVMs") is None
            lender.end()
            other = fork_as(user.uid, pwd.getpwuid(user.uid).pw_gid, lambda: None, lender.pid)
            try:
                with open(session, "w", encoding="ascii") as f:
                    f.write(str(other))
                seen = lender.call(*create_call("stolen"))
                assert manager.list() == [] and seen == NO, (user.name, known, seen, manager.list())
            finally:
                end_process(other)


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


@test("a polkit that does not know vmunit's actions: refused, and the journal says what is missing", timeout=90)
def _():
    policy = "/usr/share/polkit-1/actions/org.vmunit1.policy"
    os.rename(policy, policy + ".away")
    restart_polkit()
    try:
        with vm_of(root, "roots") as vm:
            for _ in range(2):
                with expect_error("AccessDenied", "polkit can't decide"):
                    alice.call(vm.path, VM_INTERFACE, "Start", "a{sv}", {})
            assert vm.State == "Stopped"
            said = [e["MESSAGE"] for e in journal("_SYSTEMD_UNIT=vmunitd.service") if "does not know vmunit's actions" in e["MESSAGE"]]
            assert len(said) == 1 and "org.vmunit1.policy" in said[0], said
    finally:
        os.rename(policy + ".away", policy)
        restart_polkit()


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
        for caller, what, asked in ((root, "GetDefinition", 0), (alice, "GetDefinition", 0), (bob, "GetDefinition", 1), (dave, "GetDefinition", 1),
                                    (dave, "GetStats", 0), (root, "Kill", 0), (alice, "Kill", 0), (mallory, "Kill", 1),
                                    (bob, "OpenConsole to read", 1), (dave, "OpenConsole to write", 1),
                                    (dave, "OpenConsole", 2)):   # the one call of which there are two kinds
            with contextlib.suppress(BusError):  # who it is the bus is asked once
                caller.call(mine.path, VM_INTERFACE, *call_of(what))
            mark = watch.sync()
            outcome(lambda: caller.call(mine.path, VM_INTERFACE, *call_of(what)))
            assert watch.daemons(mark) == [(POLKIT, "CheckAuthorization")] * asked, (caller.name, what, watch.daemons(mark))
        mark, newcomer = watch.sync(), User("dave")
        with contextlib.closing(newcomer):
            assert outcome(lambda: newcomer.call(mine.path, VM_INTERFACE, "Kill", "a{sv}", {})) == P
            assert [m for _, m in watch.daemons(mark)] == ["GetConnectionCredentials", "CheckAuthorization"], watch.daemons(mark)


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
    def details(run, n=1):
        """What rules saw of its questions, of which there are so many"""
        seen = len(rules_saw())
        with contextlib.suppress(BusError):
            run()
        return wait_for(lambda: len(lines := rules_saw()) >= seen + n and lines[seen:], 60, poll=0.05)

    def of(what):
        """The actions that it takes, one after the other; who does not say what for opens the console as far as there is a right to."""
        kind = VM_CALLS[what][0].partition(":")[0]
        return {"everybody": [], "inspect": ["console", "inspect"] if what == "OpenConsole" else [kind]}.get(kind, [kind])
    with polkit_rules(TELLING_RULES):
        with vm_of(alice, "a-b") as vm:
            for what in VM_CALLS:
                if not of(what):
                    continue
                method, *arguments = call_of(what)
                lines = details(lambda: dave.call(vm.path, VM_INTERFACE, method, *arguments), len(of(what)))
                for line in lines:
                    action, verb, *rest = line.split()
                    assert rest == ["vm=a-b", f"owner={alice.uid}", "unit=vmunit-a\\x2db.scope"], line
                    assert verb.removeprefix("verb=").replace("-", "") == method.lower(), line
                assert [line.split()[0] for line in lines] == ["org.vmunit1." + action for action in of(what)], (what, lines)
            assert details(lambda: dave.call(ROOT, MANAGER, "ListEvents", "a{sv}", options(vm="a-b"))) == \
                [f"org.vmunit1.inspect verb=list-events vm=a-b owner={alice.uid} unit=vmunit-a\\x2db.scope"]
        assert details(lambda: dave.create("new", definition())) == \
            [f"org.vmunit1.create verb=create vm=new owner={dave.uid} unit=vmunit-new.scope"]
        assert details(lambda: dave.create("new", definition(), owner=0)) == \
            ["org.vmunit1.host-resources verb=create vm=new owner=0 unit=vmunit-new.scope"]
        for method in ("ListEvents", "Reload"):
            assert details(lambda: dave.call(ROOT, MANAGER, method, "a{sv}", {})) == \
                [f"org.vmunit1.{'inspect' if method == 'ListEvents' else 'configure'} "
                 f"verb={'list-events' if method == 'ListEvents' else 'reload'} vm=undefined owner=undefined unit=undefined"]


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
            assert allowed(runner, one) == changes | {"GetDefinition", "GetLastOutput", "OpenConsole"}
            assert outcome(lambda: runner.call(one.path, VM_INTERFACE, "OpenConsole", "a{sv}", options(read_only=False))) == P
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
