#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=900 linux
"""User networks as a real guest sees them: Debian's kernel with busybox, without KVM, on QEMU; the outside is another network namespace."""

import os
import socket
import struct
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *
from vmunit_linux import *

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = "/tmp/networks"                          # the box's root is an overlay, which knows no idmapped mounts
HOST, OUTSIDE = "198.51.100.1", "198.51.100.2"
NAME, ADDRESS = "somewhere.example", "203.0.113.7"
ANSWERS, SECRET, OPEN = 4000, 4001, 4002
FORWARDS = [{"host": 2201, "guest": 7000}, {"host": 2202, "guest": 7001, "protocol": "udp"},
            {"host": 81, "guest": 7000, "address": "127.0.0.2"}, {"host": 2204, "guest": 7000, "address": "0.0.0.0"},
            {"host": 2205, "guest": 7003, "address": HOST, "protocol": "udp"}]
PATIENT = 60                                   # seconds, for what takes a guest without KVM a few


def sh(*command):
    subprocess.run(command, check=True)


def serve(address, port, answer, kind=socket.SOCK_STREAM):
    """Answers whoever connects, or sends, in a thread of this namespace; gives the list of those who did."""
    listener, seen = socket.socket(socket.AF_INET, kind), []
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))

    def datagrams():
        while True:
            data, peer = listener.recvfrom(2048)
            seen.append(peer)
            listener.sendto(answer(data) if callable(answer) else answer, peer)

    def streams():
        listener.listen(8)
        while True:
            connection, peer = listener.accept()
            seen.append(peer)
            with connection:
                connection.sendall(answer)
    threading.Thread(target=streams if kind == socket.SOCK_STREAM else datagrams, daemon=True).start()
    return seen


def answer_dns(query):
    """All names have one address."""
    end = query.index(b"\0", 12) + 5
    if query[end - 4:end - 2] != b"\0\1":      # not an A
        return query[:2] + struct.pack("!HHHHH", 0x8180, 1, 0, 0, 0) + query[12:end]
    return (query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + query[12:end] +
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(ADDRESS))


def outside():
    """The main program of the process outside: says when its namespace is there, waits until that has an address, and answers."""
    print("in", flush=True)
    sys.stdin.readline()
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        serve(OUTSIDE, ANSWERS, b"outside", kind)
    print("up", flush=True)
    sys.stdin.readline()


def make_outside():
    """A network namespace at the other end of a veth, to which the default route leads"""
    process = subprocess.Popen(["unshare", "--net", sys.executable, os.path.realpath(__file__), "outside"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    sh("ip", "link", "add", "outside", "type", "veth", "peer", "name", "inside", "netns", str(process.pid))
    there = ["nsenter", "--target", str(process.pid), "--net"]
    for command in (["ip", "address", "add", f"{HOST}/24", "dev", "outside"], ["ip", "link", "set", "outside", "up"],
                    [*there, "ip", "address", "add", f"{OUTSIDE}/24", "dev", "inside"], [*there, "ip", "link", "set", "lo", "up"],
                    [*there, "ip", "link", "set", "inside", "up"], ["ip", "route", "add", "default", "via", OUTSIDE]):
        sh(*command)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "up\n"
    return process


class Guest:
    """The one that the tests share"""

    def __init__(self):
        self.vm = self.shell = None

    def get(self):
        if self.vm:
            return self
        os.makedirs(ROOT)
        sh("gcc", "-static", "-O1", "-o", f"{ROOT}/net", os.path.join(HERE, "..", "guests", "net.c"))
        with open("/etc/resolv.conf", "w", encoding="ascii") as f:
            f.write("nameserver 127.0.0.53\n")
        self.outside = make_outside()
        self.seen = {}
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            self.seen["loopback", kind] = serve("127.0.0.1", SECRET, b"secret", kind)
            self.seen["other loopback", kind] = serve("127.0.0.9", SECRET, b"secret", kind)
            self.seen["open", kind] = serve("0.0.0.0", OPEN, b"open", kind)
        serve("127.0.0.53", 53, answer_dns, socket.SOCK_DGRAM)
        self.vm = boot("linux", networks=[{"forward": FORWARDS}], filesystems=[{"tag": "demo", "source": ROOT}])
        self.shell = Shell(self.vm)
        for protocol, port in (("tcp", 7000), ("udp", 7001), ("udp", 7003)):
            self.run(f"/mnt/net serve {protocol} {port}")
        return self

    def run(self, command, timeout=PATIENT):
        """What it prints; it has to succeed."""
        code, text = self.shell.run(command, timeout)
        assert code == 0, f"{command}: {code}, {text}"
        return text

    def get_from(self, protocol, address, port, source=0, patience=30):
        code, text = self.shell.run(f"/mnt/net get {protocol} {address} {port} {source} {patience}", PATIENT)
        assert (code == 0) == (not text.startswith("no answer")), (code, text)
        return text


guest = Guest()


def ask(address, port, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(PATIENT)
        s.connect((address, port))
        s.sendall(b"hello")
        return s.recv(100)


def passt(vm, network="net0"):
    return [pid for pid in unit_pids(f"vmunit-{escape(vm.Name)}-net-{network}.scope") if program_of(pid).startswith("passt")]


@test("the guest reaches the outside", timeout=300)
def _():
    guest.get()
    for protocol in ("tcp", "udp"):
        assert guest.get_from(protocol, OUTSIDE, ANSWERS) == "outside"


@test("names are resolved by who does so for the host, also on its 127.0.0.53; DHCP says so", timeout=300)
def _():
    guest.get()
    assert ADDRESS in guest.run(f"nslookup {NAME}")
    guest.run("printf '#!/bin/sh\\n[ $1 = bound ] && echo ip=$ip mask=$mask router=$router dns=$dns\\n' >/tmp/told; chmod 755 /tmp/told")
    told = guest.run("udhcpc -i eth0 -q -n -s /tmp/told")
    assert "ip=10.0.2.15 mask=24 router=10.0.2.2 dns=" in told and "10.0.2.3" in told, told


@test("ports are forwarded from where the definition says, and from nowhere else", timeout=300)
def _():
    guest.get()
    for forward in FORWARDS:
        address, kind = forward.get("address", "127.0.0.1"), socket.SOCK_DGRAM if forward.get("protocol") == "udp" else socket.SOCK_STREAM
        assert ask("127.0.0.1" if address == "0.0.0.0" else address, forward["host"], kind) == b"guest:hello", forward
    assert ask(HOST, 2204) == b"guest:hello"
    for address, port in ((HOST, 2201), ("127.0.0.1", 81), ("127.0.0.1", 7000)):
        try:
            ask(address, port)
        except ConnectionRefusedError:
            continue
        raise AssertionError(f"something answers at {address} port {port}")
    listening = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True, check=True).stdout
    found = {(line.split()[0], line.split()[4]) for line in listening.splitlines() if "passt" in line}
    wanted = {(f.get("protocol", "tcp"), f"{f.get('address', '127.0.0.1')}:{f['host']}") for f in FORWARDS}
    assert wanted <= found, listening
    for protocol, where in found - wanted:      # what the guest sends by UDP is sent from there
        assert protocol == "udp" and int(where.rpartition(":")[2]) >= 32768, listening


@test("a guest that does all it can does not reach what listens on the host's 127.0.0.1", timeout=600)
def _():
    guest.get()
    assert guest.get_from("tcp", HOST, OPEN) == "open", "what listens on all addresses is there for all the network"
    guest.run("ip address del 127.0.0.1/8 dev lo; ip route del table local local 127.0.0.0/8 dev lo 2>/dev/null; ip route del 127.0.0.0/8 "
              "dev lo 2>/dev/null; ip route add 127.0.0.0/8 via 10.0.2.2 src 10.0.2.15; "
              "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
    for address in ("10.0.2.2", "10.0.2.3", "127.0.0.1", "127.0.0.9", HOST):
        for protocol in ("tcp", "udp"):
            assert guest.get_from(protocol, address, SECRET, patience=2).startswith("no answer"), (protocol, address)
    # from the port of a forward, which answers to 127.0.0.1 come from
    for address in ("10.0.2.2", "127.0.0.1"):
        guest.run("killall net")
        assert guest.get_from("udp", address, SECRET, 7001, patience=2).startswith("no answer"), address
        guest.run("/mnt/net serve udp 7001; /mnt/net serve udp 7003; /mnt/net serve tcp 7000")
    assert not any(seen for (what, _), seen in guest.seen.items() if what != "open"), guest.seen
    assert ask("127.0.0.1", 2202, socket.SOCK_DGRAM) == b"guest:hello", "answers do"


@test("a passt that dies is replaced, and the VM goes on", timeout=300)
def _():
    guest.get()
    leader, (first,) = guest.vm.LeaderPID, passt(guest.vm)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: (now := passt(guest.vm)) and now != [first], 60, "another passt", poll=0.05)
    assert (guest.vm.State, guest.vm.LeaderPID) == ("Running", leader)
    wait_for(lambda: guest.get_from("tcp", OUTSIDE, ANSWERS) == "outside", PATIENT, "the outside", poll=0.2)
    assert ask("127.0.0.1", 2201) == b"guest:hello"
    assert "network-lost" in types_of(guest.vm)


if sys.argv[1:] == ["outside"]:
    outside()
    sys.exit(0)
run()
