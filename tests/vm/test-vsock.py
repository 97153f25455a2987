#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=3600 all linux
"""A vsock with a guest at its end that answers: Linux in a QEMU, on a host of its own, whose kernel has what QEMU needs for it."""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from vmunit_test import *

import socket

PORT = 5000
IMAGE = "/var/tmp/vsock-echo"                   # the program, as a disk

if not os.path.exists("/dev/vhost-vsock"):
    print("1..0 # SKIP the bed's kernel has no vhost_vsock")
    sys.exit()

os.makedirs("/etc/vmunit/vmunit.conf.d", exist_ok=True)
with open("/etc/vmunit/vmunit.conf.d/vsock.conf", "w") as f:
    f.write("[VMUnit]\nStartTimeoutSec=5min\n")
start_daemon()
manager = Manager()


def open_vsock(vm, port):
    """The guest is slow, and its time for an answer is not."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.socket(fileno=call_fd(vm.path, vm.interface, "OpenVSock", "ua{sv}", port, {}))
        except BusError as error:
            if error.short != "Timeout" or time.monotonic() > deadline:
                raise


def type_in(vm, text):
    with vm.open_console() as console:
        console.sendall(text.encode() + b"\n")


def make_guest():
    subprocess.run(["gcc", "-static", "-O1", "-o", IMAGE, os.path.join(HERE, "..", "guests", "vsock-echo.c")], check=True)
    os.truncate(IMAGE, -(-os.path.getsize(IMAGE) // 4096) * 4096)
    vm = manager.create("vsock", linux_definition(vsock=True, disks=[{"path": IMAGE, "readonly": True}]))
    vm.start()
    vm.wait_log(b"READY", 600)
    return vm


@test("a guest answers on its port, what it says comes whole, and both ends see the other's end", timeout=900)
def _():
    vm = make_guest()
    assert vm.VSockCID >= 3
    with expect_error("BackendFailed", text="no such port"):
        open_vsock(vm, PORT)
    type_in(vm, f"cat /dev/vda >/tmp/echo; chmod 755 /tmp/echo; /tmp/echo {PORT} &")
    vm.wait_log(b"LISTENS", 120)
    with open_vsock(vm, PORT) as one, open_vsock(vm, PORT) as two:
        for stream in (one, two):
            assert read_until(stream.fileno(), b"\n", 60) == b"hello from port %d\n" % PORT
        one.sendall(b"x" * 100000 + b"\n")
        assert len(read_until(one.fileno(), b"\n", 60)) == 100001
        kill_daemon()
        two.sendall(b"after\n")
        assert read_until(two.fileno(), b"\n", 60) == b"after\n", "a stream outlives the daemon"
        one.shutdown(socket.SHUT_WR)
        assert read_until(one.fileno(), b"bye", 60) == b"bye"
        assert one.recv(1) == b""


@test("the command, and a port where nobody listens", timeout=300)
def _():
    vm = VM("vsock")
    done = subprocess.run(["vmunit", "vsock", "vsock", str(PORT)], input=b"y" * 50000, capture_output=True, check=True, timeout=200)
    assert done.stdout == b"hello from port %d\n" % PORT + b"y" * 50000 + b"bye", done
    for _ in range(2):
        with expect_error("BackendFailed", text="no such port"):
            open_vsock(vm, PORT + 1)
        vm.pause()                              # as the kernel has it, whatever the guest does
        vm.resume()


@test("with the VM its number goes, and it answers no more", timeout=300)
def _():
    vm = VM("vsock")
    number = vm.VSockCID
    with open_vsock(vm, PORT) as stream:
        read_until(stream.fileno(), b"\n", 60)
        vm.kill()
        with contextlib.suppress(ConnectionResetError):
            assert stream.recv(1) == b""
    with expect_error("NotRunning"):
        open_vsock(vm, PORT)
    assert vm.VSockCID == number
    vm.remove()
    vm.wait_gone()


run()
