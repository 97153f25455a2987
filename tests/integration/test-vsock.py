#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=120 sanitized=firecracker backends=qemu,firecracker,cloud-hypervisor
"""The guest's vsock: its number, and streams to its ports, with the VMMs that have their own kind of it, and with QEMU.

The tiny guest has no driver for it, so where a port answers the test stands at the VMM's socket in its place. QEMU's is the
kernel's, in whose place nobody can stand."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *

import socket
import threading

FIRST = 0x10000
OWN = {"qemu": "its vsock is the kernel's"}

if BACKEND == "qemu" and not os.path.exists("/dev/vhost-vsock"):
    print("1..0 # SKIP this host has no /dev/vhost-vsock")
    sys.exit()


def open_vsock(vm, port):
    return socket.socket(fileno=call_fd(vm.path, vm.interface, "OpenVSock", "ua{sv}", port, {}))


@contextlib.contextmanager
def instead_of_guest(vm, answer, then=b""):
    """A listener in place of the VMM's: reads the line of each who comes, gives ANSWER and THEN, and echoes."""
    path = f"/proc/{vm.LeaderPID}/root/vm/vsock"
    wait_for(lambda: os.path.exists(path), poll=0.01)
    os.rename(path, path + ".real")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o777)                       # for the VMM's parent, which has its uid
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
        with instead_of_guest(vm, b""):
            with expect_error("BackendFailed", text="no such port"):
                open_vsock(vm, 78)


@test("vmunit vsock: standard input and output, up to the end of both", not_on=OWN)
def _():
    with vm_of(tiny_definition(vsock=True)) as vm:
        vm.start()
        with instead_of_guest(vm, b"OK 1\n"):
            done = subprocess.run(["vmunit", "vsock", vm.Name, "22"], input=b"x" * 100000, capture_output=True, timeout=20, check=True)
            assert done.stdout == b"x" * 100000 + b"bye", done.stdout[-20:]
        for port in ("-1", "port", "4294967295", ""):
            assert subprocess.run(["vmunit", "vsock", vm.Name, port], capture_output=True, check=False).returncode == 2, port


run()
