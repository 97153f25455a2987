#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=600
"""What polkit has said, and for what: asked anew for what takes more of the host, and no answer is good for anything but what it was asked about."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import fake_vmm
from vmunit_users import *

test = polkit_test
manager = Manager()
HOST, MANAGE = "org.vmunit1.host-resources", "org.vmunit1.manage"
PASSWORD = "InteractiveAuthorizationRequired"

carol = User("carol", session="inactive")
alice = User("alice", session="active")         # the last one at the seat
bob = User("bob")
dave = User("dave")                             # without a session, who is asked each time
root = User("root")


@contextlib.contextmanager
def vm_of(owner, name, **keys):
    vm = manager.create(name, tiny_definition(**keys), owner=owner.uid)
    try:
        yield vm
    finally:
        manager.remove_all()


def weight(value, key="CPUWeight"):
    return {"resources": {key: value}}


def ports(*hosts):
    return {"networks": [{"name": "net0", "forward": [{"host": host, "guest": 80} for host in hosts]}]}


def update(caller, vm, patch, interactive=True, **keys):
    caller.call(vm.path, VM_INTERFACE, "Update", "sa{sv}", json.dumps(patch), options(**keys), interactive=interactive)


MORE = {"CPUWeight": (weight(101), weight(102)), "IOWeight": (weight(101, "IOWeight"), weight(102, "IOWeight")),
        "a low port": (ports(80), ports(80, 81))}


# host-resources

@test("more of the host takes the password each time anew, though polkit remembers what else it was given for", timeout=120)
def _():
    try:
        for caller in (alice, carol, dave):
            with Agent(caller, "yes") as agent:
                for n, (what, (first, second)) in enumerate(MORE.items()):
                    mark = len(agent.questions)
                    vm = caller.create(f"mine-{n}", tiny_definition(**first), interactive=True)
                    with expect_error(PASSWORD, HOST):
                        update(caller, vm, second, interactive=False)
                    update(caller, vm, second)
                    with expect_error(PASSWORD, HOST):
                        update(caller, vm, second | weight(1000), interactive=False)
                    update(caller, vm, weight(1000), next_start=True)
                    assert [action for action, _ in agent.questions[mark:]] == [HOST] * 3, (caller.name, what, agent.questions)
                    assert all(f"give the virtual machine mine-{n} rights on this host" in text for _, text in agent.questions[mark:])
                    assert vm.OwnerUID == caller.uid
                manager.remove_all()
        with Agent(alice, "yes") as agent, vm_of(bob, "his") as his:
            update(alice, his, {"cpus": 2})
            update(alice, his, {"cpus": 1}, interactive=False)
            assert [action for action, _ in agent.questions] == [MANAGE]
            before = his.definition()
            with expect_error(PASSWORD, HOST):  # nor does that one stand for it
                update(alice, his, weight(101), interactive=False)
            assert his.definition() == before and before["cpus"] == 1
    finally:
        restart_polkit()
        manager.remove_all()


RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.vmunit1.host-resources" && action.lookup("vm") == "given" && subject.user == "dave")
        return polkit.Result.YES;
});"""


@test("a rule gives more of the host without a password: to that user, for that VM", timeout=120)
def _():
    with polkit_rules(RULE):
        for what, (first, second) in MORE.items():
            for caller, name in ((dave, "other"), (bob, "given"), (alice, "given")):
                with expect_error(PASSWORD, HOST):
                    caller.create(name, tiny_definition(**first))
            assert manager.list() == []
            vm = dave.create("given", tiny_definition(**first))
            assert vm.OwnerUID == dave.uid
            update(dave, vm, second, interactive=False)
            key, = second
            wanted = json.dumps(vm.definition()[key])
            assert str(102 if key == "resources" else 81) in wanted, (what, wanted)
            manager.remove_all()
        with vm_of(bob, "given") as his:        # another's, whom it stands for manage as well
            update(dave, his, weight(500), interactive=False)
            with expect_error(PASSWORD, MANAGE):
                update(dave, his, {"cpus": 2}, interactive=False)
        for owner in (0, bob.uid):
            with expect_error(PASSWORD, HOST):
                dave.create("other", tiny_definition(), owner=owner)
            vm = dave.create("given", tiny_definition(), owner=owner)
            assert vm.OwnerUID == owner
            manager.remove_all()
        with vm_of(root, "given") as roots:
            update(dave, roots, {"cpus": 2}, interactive=False)
            with expect_error(PASSWORD, MANAGE):
                dave.call(roots.path, VM_INTERFACE, "Start", "a{sv}", {})
            assert roots.definition()["cpus"] == 2


# What changes while polkit is asked

@contextlib.contextmanager
def asked(agent, action, path, interface, method, signature, *args):
    """What the block does is done while dave is asked, who then gives the password; the call."""
    agent.answer, n = "later", len(agent.questions)
    called = dave.call_async(path, interface, method, signature, *args, interactive=True)
    wait_for(lambda: len(agent.questions) > n, 60)
    assert [a for a, _ in agent.questions[n:]] == [action], agent.questions
    yield called
    assert not called.done
    agent.answer = "yes"
    agent.go_on()


def asked_to_update(agent, action, vm, patch, **keys):
    return asked(agent, action, vm.path, VM_INTERFACE, "Update", "sa{sv}", json.dumps(patch), options(**keys))


@test("an update that would give more by the time of the answer is refused, and so is one that was asked as that", timeout=180)
def _():
    less = {"CPUWeight": weight(100), "IOWeight": weight(100, "IOWeight"), "a low port": ports(8080)}
    cases = [(what, first, less[what], keys) for what, (first, _) in MORE.items() for keys in ({}, {"next_start": True})]
    with Agent(dave, "later") as agent:
        for what, more, fewer, keys in cases:
            for had, then, action, other in ((more, fewer, MANAGE, HOST), (fewer, more, HOST, MANAGE)):
                with vm_of(alice, "hers", **had) as vm:
                    # What its owner has, an update may repeat; what root takes away or gives meanwhile, that counts.
                    if keys:
                        vm.update({"labels": {"next": "start"}}, **keys)
                    with asked_to_update(agent, action, vm, more | {"cpus": 2}, **keys) as called:
                        vm.update(then, **(keys if then is fewer else {}))
                        before, events = vm.definition(), manager.events(vm=vm.Id)
                    with expect_error("Busy", "changed while polkit was asked"):
                        called.result()
                    assert vm.definition() == before and manager.events(vm=vm.Id) == events, (what, keys)
                    with asked_to_update(agent, other, vm, more | {"cpus": 2}, **keys) as called:
                        pass
                    called.result()
                    assert len(manager.events(vm=vm.Id)) == len(events) + 1


@test("what changes nothing about who may is no reason to refuse: both updates count", timeout=90)
def _():
    with Agent(dave, "later") as agent, vm_of(alice, "hers", **weight(200)) as vm:
        with asked_to_update(agent, MANAGE, vm, weight(200) | {"cpus": 2}) as called:
            vm.update({"labels": {"a": "b"}, **weight(300)})
        called.result()
        assert (vm.CPUs, vm.Labels) == (2, {"a": "b"}) and vm.definition()["resources"]["CPUWeight"] == 200


@test("another VM of the name, whoever's it is, is not what was asked about", timeout=180)
def _():
    calls = {"Update": ("sa{sv}", '{"cpus": 2}', {}), "Remove": ("a{sv}", {}), "Start": ("a{sv}", {})}
    with Agent(dave, "later") as agent:
        for owner in (alice, bob, dave):
            for method, arguments in calls.items():
                with vm_of(alice, "swapped") as vm:
                    with asked(agent, MANAGE, vm.path, VM_INTERFACE, method, *arguments) as called:
                        vm.remove()
                        vm.wait_gone()
                        other = manager.create("swapped", tiny_definition(), owner=owner.uid)
                        before, events = other.properties(), manager.events()
                    with expect_error("Busy", "changed while polkit was asked"):
                        called.result()
                    assert other.properties() == before and manager.events() == events, (owner.name, method)


@test("a name that is taken meanwhile is taken; one that was and is free again is free", timeout=90)
def _():
    with Agent(dave, "later") as agent:
        arguments = ROOT, MANAGER, "CreateVM", "ssa{sv}", "new", json.dumps(tiny_definition()), {}
        with asked(agent, "org.vmunit1.create", *arguments) as called:
            theirs = manager.create("new", tiny_definition(), owner=alice.uid)
        with expect_error("VMExists"):
            called.result()
        assert theirs.OwnerUID == alice.uid
        manager.remove_all()
        restart_polkit()                        # which would remember the password
    with Agent(dave, "later") as agent:
        with asked(agent, "org.vmunit1.create", *arguments) as called:
            manager.create("new", tiny_definition(), owner=alice.uid)
            manager.remove_all()
        called.result()
        assert VM("new").OwnerUID == dave.uid
        manager.remove_all()
    restart_polkit()


@test("a job that is over when the answer comes can't be canceled, nor is another of its VM", timeout=90)
def _():
    with fake_vmm("hang", StartTimeoutSec="1h"), Agent(dave, "later") as agent, vm_of(root, "busy") as vm:
        first = vm.start_async()
        job = wait_for(lambda: vm.job)
        with asked(agent, MANAGE, job.path, JOB, "Cancel", "a{sv}", {}) as called:
            job.cancel()
            with expect_error("Canceled"):
                first.result()
            second = vm.start_async()
            other = wait_for(lambda: vm.job)
        with expect_error("UnknownObject"):
            called.result()
        assert vm.job.path == other.path != job.path and not second.done
        vm.kill()
        with expect_error("Canceled"):
            second.result()


run()
