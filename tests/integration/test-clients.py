#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=400 sanitized
"""Clients that do not behave: they flood, read nothing, leave in the middle. Others go on being answered, and memory stays bounded."""

import itertools
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_clients import *

NOBODY, STRANGER, OTHER = 65534, 1, 2       # the bus takes nobody whom it does not know
MIB = 1 << 20
OBJECTS = (ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
EMPTY = GLib.Variant("(a{sv})", ({},))
FOREVER = 2**64 - 1
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"
DBUS_CONF = "/etc/dbus-1/system.d/test-limits.conf"

manager = Manager()
names = (f"c{n}" for n in itertools.count())


@contextlib.contextmanager
def vms(n, owner=0, **over):
    made = [manager.create(next(names), tiny_definition(**over), owner=owner) for _ in range(n)]
    try:
        yield made
    finally:
        manager.remove_all()


@contextlib.contextmanager
def raw(uid=NOBODY, fds=False):
    client = RawClient(uid, fds=fds)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def others_unhurt(mib=24):
    """Somebody else is answered all the while: answered() says so now. The same daemon lives at the end, and has not grown by more."""
    pid, before = daemon_pid(), memory_of(daemon_pid())[0]

    def answered():
        began = time.monotonic()
        manager.list()
        assert time.monotonic() - began < 20, "another client waited too long"
    yield answered
    answered()
    assert daemon_pid() == pid
    if not SANITIZED:                           # which keeps what was freed
        grown = memory_of(pid)[1] - before
        assert grown < mib * MIB, f"{grown / MIB:.1f} MiB more"


def deaf(vm):
    """Starts it, with a guest that does not hear the power button."""
    vm.start()
    vm.wait_log(b"TINY-UP")
    with vm.open_console() as console:
        console.send(b"s")
        read_until(console.fileno(), b"s")


# Floods

@test("10,000 calls that nobody reads the answers of hurt nobody", timeout=120)
def _():
    with vms(20, labels={"k": "v" * 3000}):
        for path, interface, method, parameters in (
                (*OBJECTS, None), (ROOT, MANAGER, "ListVMs", None), (ROOT, MANAGER, "GetUsage", GLib.Variant("(tt)", (0, 2**63)))):
            with others_unhurt() as answered, raw() as client:
                for number in range(10000):
                    client.send(path, interface, method, parameters)
                    if number % 1000 == 999:
                        answered()


@test("who does not read is not sent more than the bus can keep, and gets it all once it reads", timeout=180)
def _():
    with vms(20, labels={"k": "v" * 3900}), others_unhurt() as answered, raw() as client:
        whole = len(bytes(client.answer(client.send(*OBJECTS)).to_blob(Gio.DBusCapabilityFlags.NONE)))
        serials, held = [], False
        while not held and len(serials) * whole < 160 * MIB:
            before = unread(client)
            serials += [client.send(*OBJECTS) for _ in range(100)]      # the bus lets it wait for 128
            for _ in range(3):
                answered()
            with contextlib.suppress(Timeout):
                wait_for(lambda: unread(client) >= before + 95 * whole, 3, poll=0.05)
            held = unread(client) < before + 95 * whole
        assert held and unread(client) < 32 * MIB, unread(client)
        found = client.answers(serials)
        errors = {m.get_error_name() for m in found.values()}
        assert errors == {None}, errors
        client.answer(client.send(ROOT, MANAGER, "ListVMs"))


def unread(client, of="OutgoingBytes"):
    stats = call("/org/freedesktop/DBus", "org.freedesktop.DBus.Debug.Stats", "GetConnectionStats", "s", client.name,
                 destination="org.freedesktop.DBus")
    return stats[of]


@test("a user with many connections that do not read is bounded as well, and others are answered", timeout=120)
def _():
    with vms(20, labels={"k": "v" * 3900}), others_unhurt() as answered, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw()) for _ in range(30)]
        for _ in range(3):
            for client in clients:
                for _ in range(30):
                    client.send(*OBJECTS)
            answered()
        with raw(STRANGER) as stranger:
            stranger.answer(stranger.send(ROOT, MANAGER, "ListVMs"))
        answered()
        total = sum(unread(client) for client in clients)
        assert total < 64 * MIB, total


@test("consoles that nobody takes: of 64 descriptors the bus would read no more", timeout=90)
def _():
    with vms(20, owner=NOBODY, labels={"k": "v" * 3900}) as (vm, *_), others_unhurt() as answered, contextlib.ExitStack() as stack:
        vm.start()
        vm.wait_log(b"TINY-UP")
        clients = [stack.enter_context(raw(fds=True)) for _ in range(3)]
        for client in clients:                  # its socket is full, so that the bus has to keep the rest
            for _ in range(12):
                client.send(*OBJECTS)
            wait_for(lambda c=client: unread(c) > 100000, poll=0.05)
        serials = []
        for _ in range(40):
            serials.append([client.send(vm.path, VM_INTERFACE, "OpenConsole", EMPTY) for client in clients])
            answered()
        held = sum(unread(client, "OutgoingFDs") for client in clients)
        assert 1 <= held <= 8, held
        # They are one user's, so all have to read before all are answered.
        missing = {(c, serial) for row in serials for c, serial in zip(clients, row)}

        def read():
            for c in clients:
                missing.difference_update((c, m.get_reply_serial()) for m in c.pending())
            return not missing
        wait_for(read, 30, "all answers", poll=0.02)
        vm.kill()


@test("calls that nobody waits for are not kept", timeout=60)
def _():
    with vms(1) as (vm,):
        vm.start()
        os.kill(vm.pid, signal.SIGSTOP)         # so that each would have to wait
        try:
            with others_unhurt(8) as answered, raw() as client:
                for method, parameters in (("GetStats", EMPTY), ("OpenConsole", EMPTY), ("OpenVSock", GLib.Variant("(ua{sv})", (1, {})))):
                    for _ in range(3000):
                        client.send(vm.path, VM_INTERFACE, method, parameters, no_reply=True)
                    answered()
        finally:
            os.kill(vm.pid, signal.SIGCONT)


@test("64 calls of a client may be under way, 128 of a user; Kill may in any case", timeout=90)
def _():
    with vms(1, owner=NOBODY) as (vm,), contextlib.ExitStack() as stack:
        deaf(vm)
        clients = [stack.enter_context(raw()) for _ in range(3)]
        forever = GLib.Variant("(a{sv})", (options(timeout_usec=FOREVER),))
        waiting = []
        for client, more in zip(clients, (6, 6, 70)):
            serials = [client.send(vm.path, VM_INTERFACE, "Stop", forever) for _ in range(70)]
            found = client.answers(serials[-more:])     # at once; the others wait
            assert {m.get_error_name() for m in found.values()} == {LIMITS_EXCEEDED}, found
            waiting.append(serials[:-more])
        assert "64 of your calls are under way" in first_message(clients[0], vm)
        assert "128 calls of user 65534 are under way" in first_message(clients[2], vm)
        with raw(STRANGER) as stranger:
            assert stranger.answer(stranger.send(vm.path, VM_INTERFACE, "GetStats", EMPTY)).get_error_name() is None
        m = clients[0].answer(clients[0].send(vm.path, "org.freedesktop.DBus.Properties", "Get", GLib.Variant("(ss)", (VM_INTERFACE, "State"))))
        assert m.get_body().unpack() == ("Stopping",)
        serial = clients[2].send(vm.path, VM_INTERFACE, "Kill", EMPTY)
        assert clients[2].answer(serial).get_error_name() is None
        for client, serials in zip(clients, waiting):
            found = client.answers(serials)
            assert {m.get_error_name() for m in found.values()} <= {ERROR + "Canceled"}, found
        assert first_message(clients[2], vm) is None


def first_message(client, vm):
    """What GetStats is answered, None: no error of the bus's limits"""
    m = client.answer(client.send(vm.path, VM_INTERFACE, "GetStats", EMPTY))
    return m.get_body().unpack()[0] if m.get_error_name() == LIMITS_EXCEEDED else None


@test("counters of many VMs at once take nothing from a start", timeout=90)
def _():
    with vms(1) as (vm,), others_unhurt() as answered, contextlib.ExitStack() as stack:
        vm.start()
        clients = [stack.enter_context(raw((NOBODY, STRANGER, OTHER)[n % 3])) for n in range(6)]
        for _ in range(5):
            serials = [[c.send(vm.path, VM_INTERFACE, "GetStats", EMPTY) for _ in range(60)] for c in clients]
            (one,) = [manager.create(next(names), tiny_definition())]
            one.start()
            answered()
            for client, wanted in zip(clients, serials):
                for m in client.answers(wanted).values():
                    assert m.get_error_name() in (None, LIMITS_EXCEEDED), m.get_error_name()


@test("messages that are larger than anything needs are refused, whatever is in them")
def _():
    big = ["y" * 600000]
    octets = GLib.Variant.new_from_bytes(GLib.VariantType("ay"), GLib.Bytes.new(b"y" * 600000), True)
    with vms(1) as (vm,), others_unhurt(16) as answered, raw() as client:
        for path, interface, method, parameters in (
                (ROOT, MANAGER, "CreateVM", GLib.Variant("(ssa{sv})", ("x", big[0], {}))),
                (ROOT, MANAGER, "ListVMs", GLib.Variant("(as)", (["y" * 1000] * 600,))),
                (ROOT, MANAGER, "ListVMs", GLib.Variant.new_tuple(octets)),
                (ROOT, MANAGER, "ListVMs", GLib.Variant("(at)", ([1] * 75000,))),
                (ROOT, MANAGER, "ListEvents", GLib.Variant("(a{sv})", ({"vm": GLib.Variant("s", big[0])},))),
                (vm.path, VM_INTERFACE, "Start", GLib.Variant("(a{sv})", ({"no-block": octets},))),
                (vm.path, VM_INTERFACE, "Start", GLib.Variant("(a{sv})", ({"k" * 200 + str(n): GLib.Variant("(ii)", (n, n)) for n in range(3000)},))),
                (vm.path, "org.freedesktop.DBus.Properties", "Get", GLib.Variant("(ss)", (VM_INTERFACE, big[0])))):
            m = client.answer(client.send(path, interface, method, parameters))
            assert m.get_error_name() == LIMITS_EXCEEDED and "512 KiB" in m.get_body().unpack()[0], (method, m.get_error_name())
        answered()
        definition = json.dumps(tiny_definition()).ljust(256 * 1024)
        manager.create(next(names), definition)     # the largest that may be


# Who leaves

@test("who leaves takes what it waits for along; what it asked for is done", timeout=120)
def _():
    with vms(2) as (vm, other):
        deaf(vm)
        before = fds(daemon_pid())
        vm.stop(timeout_usec=FOREVER, no_block=True)
        job = vm.Job
        with others_unhurt(6) as answered:
            for _ in range(100):
                client = RawClient(0)
                parameters = GLib.Variant("(a{sv})", (options(timeout_usec=FOREVER),))
                for _ in range(100):
                    client.send(vm.path, VM_INTERFACE, "Stop", parameters)
                client.answer(client.send(ROOT, MANAGER, "GetVM", GLib.Variant("(s)", (vm.path.rpartition("/")[2],))))
                client.close()
            answered()
        client = RawClient(0)
        client.send(other.path, VM_INTERFACE, "Start", EMPTY)
        client.answer(client.send(ROOT, MANAGER, "ListVMs"))
        client.close()
        other.wait_state("Running")
        assert vm.Job == job and vm.State == "Stopping"
        stop = vm.stop_async()
        vm.kill()
        with expect_error("Canceled"):
            stop.result()
        other.kill()
        wait_for(lambda: fds(daemon_pid()) <= before, timeout=30, what="its descriptors", poll=0.1)


@test("who comes and goes at once leaves nothing in the daemon", timeout=90)
def _():
    with vms(1) as (vm,):
        vm.start()
        manager.list()
        before = fds(daemon_pid())
        with others_unhurt(4) as answered:
            for number in range(600):
                client = RawClient((NOBODY, STRANGER, 0)[number % 3])
                for _ in range(number % 5):
                    client.send(vm.path, VM_INTERFACE, "GetStats", EMPTY)
                client.close()
            answered()
        wait_for(lambda: fds(daemon_pid()) == before, timeout=30, what="its descriptors", poll=0.1)


@test("calls that come before the bus has said who calls keep their order")
def _():
    with vms(1) as (vm,):
        for _ in range(20):
            with raw(0) as client:
                name = next(names)
                parameters = GLib.Variant("(ssa{sv})", (name, json.dumps(tiny_definition()), {}))
                serials = [client.send(ROOT, MANAGER, "CreateVM", parameters), client.send(ROOT, MANAGER, "GetVM", GLib.Variant("(s)", (name,))),
                           client.send(VM(name).path, VM_INTERFACE, "Remove", EMPTY), client.send(ROOT, MANAGER, "ListVMs")]
                found = client.answers(serials)
                assert [found[s].get_error_name() for s in serials] == [None] * 4, [found[s].get_error_name() for s in serials]
        assert vm.State == "Stopped"


# Signals

@test("a client that reads no signals: the daemon starts again when the bus takes no more, and VMs live on", timeout=180, sanitized=False)
def _():
    with open(DBUS_CONF, "w", encoding="ascii") as f:
        f.write('<busconfig><limit name="max_incoming_bytes">100000</limit></busconfig>\n')
    reload_bus()
    try:
        systemctl("restart", "vmunitd.service")     # limits are a connection's from its beginning
        with vms(1) as (vm,), raw(STRANGER) as client, raw(0) as writer:
            vm.start()
            pid, leader = daemon_pid(), vm.pid
            client.subscribe("type='signal',sender='org.vmunit1'")
            def started_again():
                for n in range(20):
                    patch = json.dumps({"labels": {"n": f"{time.monotonic()} {n}" + "x" * 3000}})
                    writer.send(vm.path, VM_INTERFACE, "Update", GLib.Variant("(sa{sv})", (patch, {})), no_reply=True)
                return daemon_pid() not in (0, pid)
            wait_for(started_again, 120, "the daemon's next start", poll=0.3)
            writer.close()
            client.close()
            wait_for(lambda: vm.State == "Running" and vm.pid == leader, 20, poll=0.2)
            assert any("do not read what we send" in e["MESSAGE"] for e in journal("_SYSTEMD_UNIT=vmunitd.service"))
    finally:
        os.unlink(DBUS_CONF)
        reload_bus()
        systemctl("restart", "vmunitd.service")


def reload_bus():
    call("/org/freedesktop/DBus", "org.freedesktop.DBus", "ReloadConfig", destination="org.freedesktop.DBus")


run()
