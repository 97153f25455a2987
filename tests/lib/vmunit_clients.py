# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that behave badly: raw connections to the bus that send what they like and read when they like, as any user."""

import pwd
import select
import socket
import tempfile

from vmunit_test import *

__all__ = "RawClient Lender fork_as end_process as_user memory_of".split()

DBUS, BUS_SOCKET = "org.freedesktop.DBus", "/run/dbus/system_bus_socket"


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

    def __init__(self, uid, timeout=60, fds=False, connected=None):
        """connected: a socket that somebody else has connected, who is the caller for the bus"""
        self._takes_fds, self.kept_fds = fds, None      # a list keeps what comes
        self.socket, self._serial, self._rest = connected or socket.socket(socket.AF_UNIX), 0, b""
        self.socket.settimeout(timeout * int(os.environ.get("VMUNIT_SLOWER", 1)))
        if not connected:
            with as_user(uid):
                self.socket.connect(BUS_SOCKET)
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

    def message(self, path, interface, method, parameters=None, destination=BUS, no_reply=False, interactive=False, n_fds=0):
        """A call, as it goes over the wire, and its number. n_fds: how many descriptors go with it, whatever is in it."""
        self._serial += 1
        m = Gio.DBusMessage.new_method_call(destination, path, interface, method)
        if parameters is not None:
            m.set_body(parameters)
        m.set_flags((Gio.DBusMessageFlags.NO_REPLY_EXPECTED if no_reply else Gio.DBusMessageFlags.NONE) |
                    (Gio.DBusMessageFlags.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else Gio.DBusMessageFlags.NONE))
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
            if self.kept_fds is None:
                os.close(fd)
            else:
                self.kept_fds.append(fd)
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


def fork_as(uid, gid, run, pid=None):
    """A process of this user that does this and then waits for its end. pid: the number that it gets, which must be free"""
    with writable_proc() if pid else contextlib.nullcontext() as proc:
        for _ in range(1000):
            if pid:
                with open(proc + "/sys/kernel/ns_last_pid", "w", encoding="ascii") as f:
                    f.write(str(pid - 1))
            child = os.fork()
            if not child:
                try:
                    os.setgroups([])
                    os.setgid(gid)
                    os.setuid(uid)
                    run()
                    while True:
                        signal.pause()
                finally:
                    os._exit(1)
            if pid in (None, child):
                return child
            end_process(child)                  # somebody else was faster
    raise AssertionError(f"no process gets the number {pid}")


@contextlib.contextmanager
def writable_proc():
    """The box's own is not."""
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(["mount", "-t", "proc", "proc", d], check=True)
        try:
            yield d
        finally:
            subprocess.run(["umount", d], check=True)


def end_process(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Lender:
    """A user's process that connects to the bus, leaves the connection to us, and ends when it is told."""

    def __init__(self, user):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            def lend():
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(BUS_SOCKET)
                    socket.send_fds(theirs, [b"x"], [s.fileno()])
            self.uid, self.gid = user.uid, pwd.getpwuid(user.uid).pw_gid
            self.pid = fork_as(self.uid, self.gid, lend)
            wait_readable(ours.fileno(), 60)
            _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        self.client = RawClient(user.uid, connected=socket.socket(fileno=fd), fds=True)

    def end(self):
        """It ends; its connection, which is ours, does not."""
        end_process(self.pid)

    def call(self, *args, **keys):
        """The name of the error, or None"""
        return self.client.answer(self.client.send(*args, **keys)).get_error_name()

    def call_fd(self, *args):
        """The descriptor that is answered"""
        self.client.kept_fds = []
        error = self.call(*args)
        fds, self.client.kept_fds = self.client.kept_fds, None
        assert error is None and len(fds) == 1, (error, fds)
        return fds[0]

    def close(self):
        self.client.close()


def memory_of(pid):
    """Its resident memory in bytes, now and at most so far"""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        values = dict(line.split(":", 1) for line in f)
    return tuple(int(values[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
