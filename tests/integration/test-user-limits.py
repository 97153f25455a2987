#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized backends=qemu,firecracker,cloud-hypervisor
"""What the VMs of one user may have in all (UserVMsMax= and the like): refused beyond it, exact whatever goes on at once."""

import collections
import itertools
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import launcher_stopped, stopped_process
from vmunit_users import User, polkit_rules, polkit_test
from walk import Client

ALICE, BOB, NOBODY = 54321, 54322, 65534
LIMITS = {"UserVMsMax": 4, "UserCPUsMax": 6, "UserMemoryMax": "256M", "UserDisksMax": 3}
DROPIN = "/etc/vmunit/vmunit.conf.d/50-limits.conf"
SEED = os.environ.get("VMUNIT_SEED") or "1"

names = (f"l{n}" for n in itertools.count())


def write_limits(**over):
    os.makedirs(os.path.dirname(DROPIN), exist_ok=True)
    with open(DROPIN, "w", encoding="ascii") as f:
        f.write("[VMUnit]\n" + "".join(f"{k}={v}\n" for k, v in {**LIMITS, **over}.items()))


def configure(**over):
    write_limits(**over)
    systemctl("restart", "vmunitd.service")


configure()
manager = Manager()


def disks(n):
    return [{"name": f"d{i}", "path": f"/nonexistent/{i}"} for i in range(n)]


def create(owner=ALICE, **over):
    return manager.create(next(names), tiny_definition(**over), owner=owner)


@contextlib.contextmanager
def clean():
    """However it ends, no VM is left for the next test."""
    try:
        yield
    finally:
        manager.remove_all()


@contextlib.contextmanager
def refused(begins, *texts):
    with expect_error("LimitsExceeded", begins=begins + ": "):
        try:
            yield
        except BusError as error:
            for text in texts:
                assert text in error.message, f"no {text!r} in {error.message!r}"
            raise


# One at a time

@test("each limit refuses a VM too many, and says which, what there is and what there may be")
def _():
    with clean():
        before, list_before = snapshot_leftovers(), manager.list()
        for _ in range(4):
            create()
        name = next(names)
        with refused(name, "user 54321", "4 virtual machines", "UserVMsMax= in vmunit.conf allows 4"):
            manager.create(name, tiny_definition(), owner=ALICE)
        assert len(manager.list()) == 4 and not manager.events(vm=name)
        create(BOB)                             # whom this does not concern
        manager.remove_all()

        create(cpus=4)
        with refused("cpus", "4 CPUs", "3 more", "UserCPUsMax= in vmunit.conf allows 6"):
            create(cpus=3)
        create(cpus=2)
        create(BOB, memory="200M")
        with refused("memory", "200M memory", "57M more", "UserMemoryMax= in vmunit.conf allows 256M"):
            create(BOB, memory="57M")
        create(BOB, memory="56M")
        create(NOBODY, disks=disks(2))
        with refused("disks", "2 disks", "UserDisksMax= in vmunit.conf allows 3"):
            create(NOBODY, disks=disks(2))
        create(NOBODY, disks=disks(1))
        manager.remove_all()
        assert manager.list() == list_before
        assert_no_leftovers(before)


RULES = """polkit.addRule(function(action, subject) {
    if (action.id == "org.vmunit1.create" && subject.user == "nobody")
        return polkit.Result.YES;
});
"""


@test("a user who creates and updates is refused the same, before anybody is asked", timeout=60)
def _():
    def create_as_user(**over):
        return call_as(NOBODY, ROOT, MANAGER, "CreateVM", "ssa{sv}", next(names), json.dumps(tiny_definition(**over)), {})

    with clean():
        with polkit_rules(RULES):
            path = create_as_user(cpus=4)
        with refused("cpus", "4 CPUs", "user 65534", "UserCPUsMax= in vmunit.conf allows 6"):
            create_as_user(cpus=3)
        with expect_error("InteractiveAuthorizationRequired"):
            create_as_user(cpus=2)
        vm = VM(path)
        assert vm.OwnerUID == NOBODY
        with refused("cpus", "4 CPUs", "3 more"):
            call_as(NOBODY, path, VM_INTERFACE, "Update", "sa{sv}", json.dumps({"cpus": 7}), {})
        call_as(NOBODY, path, VM_INTERFACE, "Update", "sa{sv}", json.dumps({"cpus": 6}), {})
        assert vm.CPUs == 6


@test("root has no limits but that of all VMs")
def _():
    with clean():
        for _ in range(6):
            create(0, cpus=4, memory="512M", disks=disks(4))


@test("VMsMax= bounds the VMs of all, root's too; at once as one by one, and through the daemon's death")
def _():
    sentence = "VMsMax= in vmunit.conf allows 5"
    with clean():
        kept = [create(0), create(ALICE), create(BOB)]
        configure(VMsMax=5)
        made = gather([manager.create_async(next(names), tiny_definition(), owner=owner) for owner in (0, ALICE, BOB, 0, NOBODY)], 30)
        errors = [r for r in made if isinstance(r, BusError)]
        assert len(errors) == 3 and all(e.name.endswith(".LimitsExceeded") and sentence in e.message for e in errors), made
        kill_daemon()
        name = next(names)
        with refused(name, "there are 5 virtual machines in all", sentence):
            manager.create(name, tiny_definition())
        configure(VMsMax=3)                     # those that are there stay, and are used
        kept[0].start()
        kept[0].update({"labels": {"a": "b"}})
        kept[0].kill()
        for path in [r for r in made if isinstance(r, str)]:
            VM(path).remove()
            VM(path).wait_gone()
        with refused("l", "there are 3 virtual machines in all"):
            manager.create("l", tiny_definition())
        kept.pop().remove()
        wait_for(lambda: len(manager.list()) == 2, what="the removal")
        create(0)
        with refused("l"):
            manager.create("l", tiny_definition())
        configure(VMsMax="infinity")
        create(0)
    configure()


@test("an update is refused for what it adds, and never for what was there")
def _():
    with clean():
        one, two = create(cpus=3, memory="128M", disks=disks(1)), create(cpus=2, memory="64M", disks=disks(1))
        definition = one.definition()
        with refused("cpus", "5 CPUs", "2 more", "allows 6"):
            one.update({"cpus": 5})
        with refused("memory", "192M memory", "72M more", "allows 256M"):
            one.update({"memory": "200M"})
        with refused("disks", "2 disks", "2 more", "allows 3"):
            one.update({"disks": disks(3)})
        assert one.definition() == definition
        one.update({"cpus": 4})
        with refused("cpus"):
            two.update({"cpus": 3})
        one.update({"cpus": 1})
        two.update({"cpus": 5})

        configure(UserVMsMax=1, UserCPUsMax=2, UserMemoryMax=0, UserDisksMax=0)
        assert two.CPUs == 5
        two.update({"labels": {"a": "b"}})
        two.update({"cpus": 4})
        two.update({"memory": "48M", "disks": [{"name": "d0", "delete": True}]})
        for change, key in (({"cpus": 5}, "cpus"), ({"memory": "49M"}, "memory"), ({"disks": disks(1)}, "disks")):
            with refused(key):
                two.update(change)
        with refused("l", "UserVMsMax= in vmunit.conf allows 1"):
            manager.create("l", tiny_definition(cpus=1), owner=ALICE)
        configure()


@test("a reload of the configuration acts on the next call, and what is wrong in it changes nothing")
def _():
    def reload(**over):
        def told():
            return len(journal("SYSLOG_IDENTIFIER=vmunitd", "MESSAGE=The configuration was read again"))
        before, pid = told(), daemon_pid()
        write_limits(**over)
        systemctl("reload", "vmunitd.service")
        wait_for(lambda: told() > before, what="the reload", poll=0.05)
        assert daemon_pid() == pid

    with clean():
        create(cpus=5)
        reload(UserCPUsMax=4)
        with refused("cpus", "allows 4"):
            create()
        reload(UserCPUsMax="several")
        for cpus in (29, 30):                   # 64 is the default
            create(cpus=cpus)
        with refused("cpus", "allows 64"):
            create()
        reload()
        with refused("cpus", "allows 6"):
            create()


@test("what is stored for the next start counts with what there is, the larger of both")
def _():
    with clean():
        vm = create(NOBODY, cpus=2)
        vm.start()
        vm.wait_log(b"TINY-UP")
        with refused("cpus", "2 CPUs", "5 more"):
            vm.update({"cpus": 7}, next_start=True)
        vm.update({"cpus": 5}, next_start=True)
        with refused("cpus", "5 CPUs", "allows 6"):
            create(NOBODY, cpus=2)
        kill_daemon()                           # the next one counts the same
        with refused("cpus", "5 CPUs", "allows 6"):
            create(NOBODY, cpus=2)
        vm.update({"cpus": 1}, next_start=True)
        with refused("cpus", "2 CPUs", "5 more"):   # it still runs with two
            create(NOBODY, cpus=5)
        vm.kill()
        vm.start()
        assert vm.CPUs == 1
        create(NOBODY, cpus=5)
        with refused("cpus", "6 CPUs"):
            vm.update({"cpus": 2}, next_start=True)
        vm.kill()


@test("a live update that only fits with what is stored for the next start takes nothing more")
def _():
    with clean():
        vm = create(NOBODY, disks=[])
        vm.start()
        vm.wait_log(b"TINY-UP")
        vm.update({"disks": disks(3)}, next_start=True)
        with refused("disks", "3 disks"):
            vm.update({"disks": [{"name": "other", "path": "/nonexistent/x"}]}, next_start=True)
        vm.update({"resources": {"TasksMax": 1000}, "labels": {"a": "b"}})
        with refused("disks", "3 disks"):
            create(NOBODY, disks=disks(1))
        vm.update({"disks": [{"name": "d0", "delete": True}]}, next_start=True)
        create(NOBODY, disks=disks(1))
        vm.kill()


@test("a VM counts until its removal has ended")
def _():
    with clean():
        vms = [create() for _ in range(4)]
        vms[0].remove()
        vms[0].wait_gone()
        create()
        with refused("l", "UserVMsMax"):
            manager.create("l", tiny_definition(), owner=ALICE)


# At once

def totals():
    sums = collections.defaultdict(collections.Counter)
    for path, properties in ((path, interfaces[VM_INTERFACE]) for path, interfaces in manager.objects().items() if VM_INTERFACE in interfaces):
        sums[properties["OwnerUID"]].update(UserVMsMax=1, UserCPUsMax=properties["CPUs"], UserMemoryMax=properties["MemoryBytes"])
        with contextlib.suppress(BusError):     # it has gone meanwhile
            sums[properties["OwnerUID"]]["UserDisksMax"] += len(VM(path).definition().get("disks", []))
    return sums


def assert_within():
    for owner, sums in totals().items():
        assert owner == 0 or sums["UserVMsMax"] <= 4 and sums["UserCPUsMax"] <= 6 and sums["UserMemoryMax"] <= 256 << 20 and \
            sums["UserDisksMax"] <= 3, (owner, sums)


def at_once(calls):
    """[(path, interface, method, parameters)] from four connections at once; the errors, None for a success"""
    clients, answers = [Client() for _ in range(4)], []
    # a back end that looks at kernels waits here with each create, so none has been made when the last is checked
    with launcher_stopped():
        for number, c in enumerate(calls):
            clients[number % 4].call(*c, answers.append)
        for client in clients:                  # all have come
            client.bus.call_sync(BUS, ROOT, "org.freedesktop.DBus.Peer", "Ping", None, None, Gio.DBusCallFlags.NONE, -1)
    wait_for(lambda: len(answers) == len(calls), 60, f"{len(calls)} answers")
    for client in clients:
        client.bus.close_sync()
    for error in filter(None, answers):
        assert error.name == "org.freedesktop.DBus.Error.LimitsExceeded", error
    return answers


def create_call(owner, **over):
    return (ROOT, MANAGER, "CreateVM",
            GLib.Variant("(ssa{sv})", (next(names), json.dumps(tiny_definition(**over)), options(owner=owner))))


@test("creates at once: as many as fit, not one more", timeout=60)
def _():
    with clean():
        answers = at_once([create_call((ALICE, BOB)[n % 2]) for n in range(80)])
        assert answers.count(None) == 8, answers.count(None)
        assert {o: s["UserVMsMax"] for o, s in totals().items()} == {ALICE: 4, BOB: 4}
    with clean():
        answers = at_once([create_call(ALICE, cpus=4) for _ in range(20)] + [create_call(BOB, memory="100M") for _ in range(20)])
        assert {o: s["UserVMsMax"] for o, s in totals().items()} == {ALICE: 1, BOB: 2}
    with clean():
        at_once([create_call((ALICE, BOB)[n % 2], disks=disks(1 + n % 2)) for n in range(40)])
        assert {o: (s["UserVMsMax"], s["UserDisksMax"]) for o, s in totals().items()} == {ALICE: (3, 3), BOB: (1, 2)}


@polkit_test("creates and updates that polkit allows at once: as many as fit", timeout=60)
def _():
    def asked_at_once(*calls):
        """The errors, None for a success, of calls that all have been checked when the first is allowed"""
        with stopped_process(int(unit_property("polkit.service", "MainPID"))):
            pending = [user.call_async(*c) for c in calls]
            user.call(ROOT, "org.freedesktop.DBus.Peer", "Ping")
            assert not any(c.done for c in pending), user.answers
        errors = []
        for c in pending:
            try:
                c.result()
                errors.append(None)
            except BusError as error:
                assert error.name == "org.freedesktop.DBus.Error.LimitsExceeded", error
                errors.append(error)
        return errors

    user = User("manyvms")
    with polkit_rules(RULES.replace("nobody", user.name).replace('action.id == "org.vmunit1.create"', 'action.id.indexOf("org.vmunit1.") == 0')), clean():
        errors = asked_at_once(*[(ROOT, MANAGER, "CreateVM", "ssa{sv}", next(names), json.dumps(tiny_definition()), {}) for _ in range(10)])
        assert errors.count(None) == 4 and totals()[user.uid]["UserVMsMax"] == 4, errors
        vms = [create(BOB) for _ in range(4)]   # whose owner would not be asked
        errors = asked_at_once(*[(vm.path, VM_INTERFACE, "Update", "sa{sv}", json.dumps({"cpus": 2}), {}) for vm in vms])
        assert errors.count(None) == 2 and totals()[BOB]["UserCPUsMax"] == 6, errors
    user.leave()


@test("updates at once: what they add up to fits", timeout=60)
def _():
    with clean():
        vms = [create() for _ in range(3)]
        at_once([(vm.path, VM_INTERFACE, "Update", GLib.Variant("(sa{sv})", (json.dumps({"cpus": cpus}), {})))
                 for cpus in (4, 3, 2, 4, 3, 1, 2) for vm in vms])
        assert_within()
        for vm in vms:
            vm.update({"cpus": 1})
        vms[0].update({"cpus": 4})  # what was refused or is gone takes nothing away
        with refused("cpus", "6 CPUs", "1 more"):
            vms[1].update({"cpus": 2})


@test("300 random creates, updates and removals, with a daemon that dies: never too much", timeout=120)
def _():
    r = random.Random(SEED)
    print(f"# seed {SEED} (VMUNIT_SEED)")
    owners = (ALICE, BOB)
    pool = [f"r{n}" for n in range(12)]
    clients, pending, bad = [Client() for _ in range(3)], [0], []
    fine = {"org.freedesktop.DBus.Error." + e for e in ("LimitsExceeded", "UnknownObject", "NoReply", "Disconnected")} | \
        {ERROR + e for e in ("VMExists", "Removing")}

    def ended(error):
        pending[0] -= 1
        if error and error.name not in fine:
            bad.append(str(error))

    with clean():
        for number in range(300):
            number_of, operation = r.randrange(len(pool)), r.choice(("create", "create", "update", "update", "remove"))
            definition = tiny_definition(cpus=r.choice((1, 1, 2, 4)), memory=r.choice(("32M", "64M", "128M")), disks=disks(r.choice((0, 0, 1, 2))))
            client, path = r.choice(clients), VM(pool[number_of]).path
            if operation == "create":
                arguments = (ROOT, MANAGER, "CreateVM", GLib.Variant(
                    "(ssa{sv})", (pool[number_of], json.dumps(definition), options(owner=owners[number_of % 2]))))
            elif operation == "update":
                patch = {key: definition[key] for key in ("cpus", "memory", "disks")}
                arguments = (path, VM_INTERFACE, "Update", GLib.Variant("(sa{sv})", (json.dumps(patch), {})))
            else:
                arguments = (path, VM_INTERFACE, "Remove", GLib.Variant("(a{sv})", (options(force=True),)))
            pending[0] += 1
            client.call(*arguments, ended)
            if number % 10 == 9:
                wait_for(lambda: not pending[0], 30, "the answers")
                assert_within()
            if number % 100 == 60:
                kill_daemon()
                assert_within()
        wait_for(lambda: not pending[0], 30, "the answers")
        assert_within()
        assert not bad, bad


run()
