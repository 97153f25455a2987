# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that behave badly: raw connections to the bus that send what they like and read when they like, as any user."""

import select
import socket

from vmunit_test import *

__all__ = "RawClient as_user memory_of".split()

DBUS = "org.freedesktop.DBus"


@contextlib.contextmanager
def as_user(uid):
    """What connects in this block is that user's for the bus."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class RawClient:
    """Reads nothing until it is told to."""

    def __init__(self, uid, timeout=60, fds=False):
        self._takes_fds = fds
        self.socket, self._serial, self._rest = socket.socket(socket.AF_UNIX), 0, b""
        self.socket.settimeout(timeout * int(os.environ.get("VMUNIT_SLOWER", 1)))
        with as_user(uid):
            self.socket.connect("/run/dbus/system_bus_socket")
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
        line = b""
        while not line.endswith(b"\r\n"):
            line += self.socket.recv(1)
        assert line.startswith(b"OK"), line
        if fds:
            self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            assert self.socket.recv(100) == b"AGREE_UNIX_FD\r\n"
        self.socket.sendall(b"BEGIN\r\n")
        hello = self.send("/org/freedesktop/DBus", DBUS, "Hello", destination=DBUS)
        self.name = self.answer(hello).get_body().unpack()[0]

    def message(self, path, interface, method, parameters=None, destination=BUS, no_reply=False, n_fds=0):
        """A call, as it goes over the wire, and its number. n_fds: how many descriptors go with it, whatever is in it."""
        self._serial += 1
        m = Gio.DBusMessage.new_method_call(destination, path, interface, method)
        if parameters is not None:
            m.set_body(parameters)
        m.set_flags(Gio.DBusMessageFlags.NO_REPLY_EXPECTED if no_reply else Gio.DBusMessageFlags.NONE)
        m.set_serial(self._serial)
        if n_fds:
            fds = Gio.UnixFDList.new()
            for _ in range(n_fds):
                fds.append(0)
            m.set_unix_fd_list(fds)
        flags = Gio.DBusCapabilityFlags.UNIX_FD_PASSING if n_fds else Gio.DBusCapabilityFlags.NONE
        return bytes(m.to_blob(flags)), self._serial

    def send(self, *args, fds=(), **keys):
        blob, serial = self.message(*args, n_fds=len(fds), **keys)
        if fds:
            blob = blob[socket.send_fds(self.socket, [blob], fds):]
        self.socket.sendall(blob)
        return serial

    def subscribe(self, match):
        self.answer(self.send("/org/freedesktop/DBus", DBUS, "AddMatch", GLib.Variant("(s)", (match,)), destination=DBUS))

    def read(self):
        """The next message"""
        while len(self._rest) < 16 or len(self._rest) < (size := Gio.DBusMessage.bytes_needed(self._rest[:16])):
            piece = self._receive()
            if not piece:
                raise ConnectionResetError("the bus has hung up")
            self._rest += piece
        blob, self._rest = self._rest[:size], self._rest[size:]
        return Gio.DBusMessage.new_from_blob(blob, Gio.DBusCapabilityFlags.NONE)

    def _receive(self):
        if not self._takes_fds:
            return self.socket.recv(1 << 20)
        piece, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, 16)
        for fd in fds:
            os.close(fd)
        return piece

    def pending(self):
        """What has come meanwhile; waits for nothing. Descriptors are closed."""
        messages = []
        while select.select([self.socket], [], [], 0)[0] and (piece := self._receive()):
            self._rest += piece
        while len(self._rest) >= 16 and len(self._rest) >= Gio.DBusMessage.bytes_needed(self._rest[:16]):
            messages.append(self.read())
        return messages

    def answer(self, serial):
        """Reads up to the answer to this call."""
        while True:
            m = self.read()
            if m.get_reply_serial() == serial:
                return m

    def answers(self, serials):
        """{number: message} of these calls"""
        found, wanted = {}, set(serials)
        while wanted - found.keys():
            m = self.read()
            if m.get_reply_serial() in wanted:
                found[m.get_reply_serial()] = m
        return found

    def close(self):
        self.socket.close()


def memory_of(pid):
    """Its resident memory in bytes, now and at most so far"""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        values = dict(line.split(":", 1) for line in f)
    return tuple(int(values[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
