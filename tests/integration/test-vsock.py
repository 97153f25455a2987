#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=600 sanitized=firecracker backends=qemu,firecracker,cloud-hypervisor
"""The guest's vsock: its number, and streams to its ports, with the VMMs that have their own kind of it, and with QEMU.

The vsock guest (tests/guests/vsock.c) answers by the VMM's own device. What a VMM says that goes wrong is said by the test, which
stands at its socket in its place. QEMU's is the kernel's, in whose place nobody can stand; vm/vsock has a Linux that answers there."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *

import random
import select
import socket
import threading

FIRST = 0x10000
ECHO, MUTE = 1024, 1025
NOBODY = b"nobody"
HALF_CLOSE = BACKEND != "firecracker"
OWN = {"qemu": "its vsock is the kernel's"}

if BACKEND == "qemu" and not os.path.exists("/dev/vhost-vsock"):
    print("1..0 # SKIP this host has no /dev/vhost-vsock")
    sys.exit()


def open_vsock(vm, port):
    return socket.socket(fileno=call_fd(vm.path, vm.interface, "OpenVSock", "ua{sv}", port, {}))


def connected(vm, port=ECHO):
    """The same, however busy this machine is: the guest's time for an answer may run out."""
    while True:
        try:
            return open_vsock(vm, port)
        except BusError as e:
            if e.short != "Timeout":
                raise


def refused(vm, port):
    """That nobody listens there."""
    with expect_error("BackendFailed", text=f"no such port: nobody listens on vsock port {port} "):
        connected(vm, port).close()


def guest(**over):
    """It echoes on ECHO, is mute on MUTE, and has nothing else."""
    return tiny_definition(**merge({"vsock": True, "boot": {"kernel": os.environ["VMUNIT_GUESTS"] + "/vsock.elf"}}, over))


@contextlib.contextmanager
def guest_up(**over):
    with vm_of(guest(**over)) as vm:
        vm.start()
        vm.wait_log(b"VSOCK-UP", 60)
        yield vm


def send_beside(stream, data):
    """It may be more than the other side takes before somebody reads what comes back."""
    thread = threading.Thread(target=stream.sendall, args=(data,), daemon=True)
    thread.start()
    return thread


def receive(stream, size):
    data = b""
    while len(data) < size:
        assert select.select([stream], [], [], 60)[0], f"{len(data)} bytes of {size}"
        piece = stream.recv(65536)
        assert piece, f"the end after {len(data)} bytes of {size}"
        data += piece
    return data


def placed(vm):
    """A stream, when the guest has heard of the end of one."""
    def try_it():
        with contextlib.suppress(BusError):
            return connected(vm)
    return wait_for(try_it, 60, "a place in the guest", poll=0.05)


def echoes(stream, data=b"ping"):
    sender = send_beside(stream, data)
    same = receive(stream, len(data)) == data
    sender.join()
    return same


@contextlib.contextmanager
def instead_of_guest(vm, answer, then=b""):
    """A listener in place of the VMM's: reads the line of each who comes, gives ANSWER and THEN, and echoes. NOBODY does not listen."""
    path = f"/proc/{vm.LeaderPID}/root/vm/vsock"
    wait_for(lambda: os.path.exists(path), poll=0.01)
    os.rename(path, path + ".real")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o777)                       # for the VMM's parent, which has its uid
    if answer is not NOBODY:
        listener.listen()
    asked, open_ones = [], []

    def serve(connection):
        line = b""
        while not line.endswith(b"\n") and (byte := connection.recv(1)):
            line += byte
        asked.append(line)
        if answer is None:
            return                              # says nothing
        connection.sendall(answer + then)
        if not answer.startswith(b"OK "):
            connection.close()
            return
        while data := connection.recv(4096):
            connection.sendall(data)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"bye")
        connection.close()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                open_ones.append(listener.accept()[0])
                threading.Thread(target=serve, args=(open_ones[-1],), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield asked
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        os.unlink(path)
        os.rename(path + ".real", path)


@test("without a vsock: no number, and OpenVSock says so, whatever the state")
def _():
    with vm_of() as vm:
        assert vm.VSockCID == 0
        for _ in range(2):
            with expect_error("NotSupported", begins="vsock: "):
                open_vsock(vm, 22)
            vm.start()


@test("auto passes over QEMU, where it can't", not_on={"qemu": "it is QEMU"})
def _():
    if os.path.exists("/dev/vhost-vsock"):
        raise Skip("this host has /dev/vhost-vsock")
    with vm_of(tiny_definition(backend="auto", vsock=True)) as vm:
        assert vm.Backend == BACKEND
        vm.start()


@test("each VM has a number of its own, from above those that others take, for its life and never again")
def _():
    seen = []
    for _ in range(3):
        with vm_of(tiny_definition(vsock=True)) as one, vm_of(tiny_definition(vsock=True)) as two:
            seen += [one.VSockCID, two.VSockCID]
            one.start()
            kill_daemon()
            assert [one.VSockCID, two.VSockCID] == seen[-2:]
            one.kill()
            assert one.VSockCID == seen[-2]
    assert len(set(seen)) == 6 and min(seen) >= FIRST, seen


@test("Update gives a vsock and takes it away")
def _():
    with vm_of() as vm:
        vm.update({"vsock": True})
        number = vm.VSockCID
        assert number >= FIRST
        assert any(s.args[1].get("VSockCID") == number for s in signals if s.path == vm.path and s.member == "PropertiesChanged")
        vm.start()
        with expect_error("InvalidState", text="vsock"):
            vm.update({"vsock": False})
        vm.kill()
        vm.update({"vsock": False})
        assert vm.VSockCID == 0
        vm.update({"vsock": True})
        assert vm.VSockCID == number


@test("a stopped VM: NotRunning; a guest that has no driver: a deadline, and nothing waits for it", timeout=60, not_on=OWN)
def _():
    with vm_of(tiny_definition(vsock=True)) as vm:
        with expect_error("NotRunning"):
            open_vsock(vm, 22)
        vm.start()
        before = fds(daemon_pid())
        calls = [Call(vm.path, vm.interface, "OpenVSock", "ua{sv}", 1000 + n, {}) for n in range(5)]
        vm.pause()
        vm.resume()
        for one in calls:
            with expect_error("Timeout"):
                one.result()
        wait_for(lambda: fds(daemon_pid()) == before, 5, "the daemon's descriptors as before", poll=0.05)


@test("a guest that answers: what is sent comes back, and more than the credit, too, on two streams at once", timeout=120, not_on=OWN)
def _():
    dice = random.Random(1)
    with guest_up() as vm, connected(vm) as one, connected(vm) as two:
        for size in (1, 4000, 4097, 200000):
            for stream in (one, two):
                assert echoes(stream, dice.randbytes(size)), size
        data = [dice.randbytes(150000) for _ in range(2)]
        senders = [send_beside(stream, part) for stream, part in zip((one, two), data)]
        assert [receive(stream, len(part)) for stream, part in zip((two, one), reversed(data))] == data[::-1]
        for sender in senders:
            sender.join()


@test("a stream that nobody reads holds up no other", timeout=120, not_on=OWN)
def _():
    data = random.Random(2).randbytes(2000000)
    with guest_up() as vm, connected(vm) as stuck, connected(vm) as other:
        sender = send_beside(stuck, data)
        wait_for(lambda: select.select([], [stuck], [], 0)[1] == [], 60, "that it is stuck", poll=0.01)
        assert echoes(other, data[:30000])
        assert receive(stuck, len(data)) == data
        sender.join()
        assert echoes(stuck)


@test("other ports of it: nobody listens there; a VM that is paused is told as such, at once", timeout=90, not_on=OWN)
def _():
    with guest_up() as vm:
        for port in (0, 77, ECHO - 1, 2**32 - 2):
            refused(vm, port)
        vm.pause()
        with expect_error("InvalidState", text="paused"):
            open_vsock(vm, ECHO)
        kill_daemon()
        with expect_error("InvalidState", text="paused"):
            open_vsock(vm, ECHO)
        vm.resume()
        refused(vm, 77)
        with connected(vm) as stream:
            assert echoes(stream)
        vm.kill()
        with expect_error("NotRunning"):
            open_vsock(vm, ECHO)


@test("a guest that hangs at a port: a deadline, also when its VMM gives up first, as the next stream makes it", timeout=120, not_on=OWN)
def _():
    with guest_up() as vm:
        for beside in (False, True):
            call = Call(vm.path, vm.interface, "OpenVSock", "ua{sv}", MUTE, {})
            while not call.done:
                if beside:
                    with connected(vm) as stream:
                        assert echoes(stream)
                else:
                    wait_for(lambda: call.done, 30)
            with expect_error("Timeout", text=f"port {MUTE}"):
                call.result()


@test("a guest that ends before it has answered has refused nothing, and one that is reset may answer after it", timeout=120, not_on=OWN)
def _():
    with guest_up() as vm:
        for how in (vm.kill, vm.reset):
            call = Call(vm.path, vm.interface, "OpenVSock", "ua{sv}", MUTE, {})
            vm.properties()                     # it is under way
            how()
            wait_for(lambda: call.done, 30)
            assert "no such port" not in call.error.message and call.error.short in ("BackendFailed", "Timeout"), call.error
            if how == vm.kill:
                vm.start()
                wait_for(lambda: times_on(vm, b"VSOCK-UP"), 60, "the guest again", poll=0.02)
        with connected(vm) as stream:
            assert echoes(stream)


@test("the daemon's death: streams go on, new ones come, and nobody's are mixed up", timeout=90, not_on=OWN)
def _():
    with guest_up() as vm, guest_up() as other, connected(vm) as one:
        assert echoes(one, b"before")
        half = send_beside(one, b"a" * 100000)
        kill_daemon()
        assert receive(one, 100000) == b"a" * 100000
        half.join()
        with connected(vm) as two, connected(other) as three:
            senders = [send_beside(stream, text * 20000) for stream, text in ((one, b"1"), (two, b"2"), (three, b"3"))]
            assert [receive(stream, 20000)[-1:] for stream in (three, two, one)] == [b"3", b"2", b"1"]
            for sender in senders:
                sender.join()
        refused(other, 77)


@test("the end of a stream is heard in the guest, which has eight, and the guest's at this end", timeout=120, not_on=OWN)
def _():
    with guest_up() as vm:
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                streams = [stack.enter_context(placed(vm)) for _ in range(8)]
                refused(vm, ECHO)
                assert all(echoes(stream) for stream in streams)
        with placed(vm) as stream:
            assert echoes(stream)
            vm.kill()
            with contextlib.suppress(ConnectionResetError):
                assert stream.recv(1) == b""


def all_back(vm, data, times):
    """`vmunit vsock` with a pipe. Where it can't tell the guest of the end it waits for a while, which such a busy machine may need."""
    for _ in range(times):
        done = subprocess.run(["vmunit", "vsock", vm.Name, str(ECHO)], input=data, capture_output=True, timeout=60, check=False)
        if done.returncode == 0 and done.stdout == data:
            return True
    return False


@test("the end of what is sent: the guest still answers, where the VMM tells it of that alone; with the command anywhere", timeout=120, not_on=OWN)
def _():
    data = b"z" * 100000
    assert HALF_CLOSE == ("vsock-half-close" in dict(manager.Backends)[BACKEND]["Features"])
    with guest_up() as vm:
        if HALF_CLOSE:
            with connected(vm) as stream:
                sender = send_beside(stream, data)
                sender.join()
                stream.shutdown(socket.SHUT_WR)
                assert receive(stream, len(data)) == data
                assert stream.recv(1) == b""
        else:
            with connected(vm) as stream:
                stream.shutdown(socket.SHUT_WR)
                assert select.select([stream], [], [], 60)[0] and stream.recv(1) == b"", "the guest's end with it"
        assert all_back(vm, data, 1 if HALF_CLOSE else 5)
        refused = subprocess.run(["vmunit", "vsock", vm.Name, "77"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert refused.returncode == 1, refused


@test("after a reset, by whatever process, the guest answers as before", timeout=90, not_on=OWN)
def _():
    with guest_up() as vm, connected(vm) as stream:
        assert echoes(stream)
        number = vm.VSockCID
        vm.reset()
        with contextlib.suppress(ConnectionResetError):
            assert stream.recv(1) == b""
        wait_for(lambda: times_on(vm, b"VSOCK-UP") == (2 if RESETS else 1), timeout=60, what="the guest again", poll=0.02)
        assert vm.VSockCID == number
        with connected(vm) as again:
            assert echoes(again, b"x" * 50000)
        refused(vm, 77)


@test("a port that answers: what the guest says right behind its answer is not lost", not_on=OWN)
def _():
    with vm_of(tiny_definition(vsock=True)) as vm:
        vm.start()
        with instead_of_guest(vm, b"OK 1073741824\n", then=b"hello") as asked:
            with open_vsock(vm, 5000) as stream:
                assert read_until(stream.fileno(), b"hello")
                stream.sendall(b"ping")
                assert read_until(stream.fileno(), b"ping")
                kill_daemon()
                stream.sendall(b"more")
                assert read_until(stream.fileno(), b"more"), "the stream outlives the daemon"
            assert asked == [b"CONNECT 5000\n"]


@test("a port where nobody listens, and answers that are none", not_on=OWN)
def _():
    with vm_of(tiny_definition(vsock=True)) as vm:
        vm.start()
        for answer in (b"", b"ERR\n", b"OK", b"x" * 100, b"\n", b"O K 1\n"):
            with instead_of_guest(vm, answer):
                with expect_error("BackendFailed", text="port 77"):
                    open_vsock(vm, 77)
        with instead_of_guest(vm, NOBODY):
            with expect_error("BackendFailed", text="can't connect to vsock port 77: " + TITLE + " takes no connections now"):
                open_vsock(vm, 77)
        for path in (f"/proc/{vm.LeaderPID}/root/vm/vsock", f"/run/vmunit/vms/{vm.Id}/exec"):
            os.rename(path, path + ".away")
            with expect_error("BackendFailed", text="can't connect to vsock port 77: " + TITLE + " takes no connections now"):
                open_vsock(vm, 77)
            if path.endswith("exec"):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as nobody:
                    nobody.bind(path)           # and does not listen, as the one of a helper that has ended
                    with expect_error("BackendFailed", text="can't connect to vsock port 77: " + TITLE + " takes no connections now"):
                        open_vsock(vm, 77)
            os.rename(path + ".away", path)
        with instead_of_guest(vm, b""):
            with expect_error("BackendFailed", text="no such port"):
                open_vsock(vm, 78)


@test("vmunit vsock: standard input and output, up to the end of both", not_on=OWN)
def _():
    with vm_of(tiny_definition(vsock=True)) as vm:
        vm.start()
        with instead_of_guest(vm, b"OK 1\n"):
            done = subprocess.run(["vmunit", "vsock", vm.Name, "22"], input=b"x" * 100000, capture_output=True, timeout=20, check=True)
            assert done.stdout == b"x" * 100000 + (b"bye" if HALF_CLOSE else b""), done.stdout[-20:]
        for port in ("-1", "port", "4294967295", ""):
            assert subprocess.run(["vmunit", "vsock", vm.Name, port], capture_output=True, check=False).returncode == 2, port


run()
