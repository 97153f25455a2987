# SPDX-License-Identifier: LGPL-2.1-or-later
"""Users of the box, as real ones: sessions of logind, clients that run in them, and a polkit agent that answers as it is told.

    alice = User("alice", session="active")
    alice.call(vm.path, VM_INTERFACE, "Start", "a{sv}", {})
    with Agent(alice, "yes") as agent:
        alice.call(…, interactive=True)
        agent.questions                     # what a person would have read
"""

import pwd
import re

import vmunit_test
from vmunit_test import *

__all__ = "User Agent POLKIT AUTHORITY polkit_rules restart_polkit polkit_test".split()

POLKIT, AUTHORITY = "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority"
RULES = "/etc/polkit-1/rules.d"

# Calls as it is told on its standard input, several at a time; a line for each answer.
_CLIENT = """
import json, os
from gi.repository import Gio, GLib
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
loop = GLib.MainLoop()
def ended(connection, result, number):
    try:
        value, fds = connection.call_with_unix_fd_list_finish(result)
        answer = [number, True, value.print_(True)]
    except GLib.Error as e:
        name = Gio.DBusError.get_remote_error(e)
        answer = [number, False, [name or str(e.code), e.message.removeprefix(f"GDBus.Error:{name}: ")]]
    print(json.dumps(answer), flush=True)
rest = b""
def on_input(*_):
    global rest
    piece = os.read(0, 1 << 16)
    if not piece:
        loop.quit()
    *lines, rest = (rest + piece).split(b"\\n")
    for line in lines:
        make_call(line)
    return bool(piece)
def make_call(line):
    number, path, interface, method, parameters, interactive, timeout = json.loads(line)
    flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else Gio.DBusCallFlags.NONE
    bus.call_with_unix_fd_list("org.vmunit1", path, interface, method, GLib.Variant.parse(None, parameters), None, flags,
                               timeout, None, None, ended, number)
print(json.dumps([bus.get_unique_name(), os.getpid()]), flush=True)
GLib.io_add_watch(0, GLib.PRIORITY_DEFAULT, GLib.IOCondition.IN | GLib.IOCondition.HUP, on_input)
loop.run()
"""


class UserCall:
    def __init__(self, user, number):
        self.user, self.number = user, number

    @property
    def done(self):
        return self.number in self.user.answers

    def result(self):
        while not self.done:
            self.user.read_answer()
        good, value = self.user.answers.pop(self.number)
        if not good:
            raise BusError(*value)
        values = GLib.Variant.parse(None, value).unpack()
        return values[0] if len(values) == 1 else values or None


class User:
    """A client that runs as this user, who is made if need be. session: None, "active" and "inactive" (both at the seat; only
    one can be active, the last that was made) or "remote"."""

    def __init__(self, name, session=None, groups=()):
        self.name, self.answers, self._n, self._rest = name, {}, 0, b""
        if name != "root":
            try:
                pwd.getpwnam(name)
            except KeyError:
                subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
        for group in groups:
            subprocess.run(["groupadd", "--force", group], check=True)
            subprocess.run(["usermod", "--append", "--groups", group, name], check=True)
        self.uid = pwd.getpwnam(name).pw_uid
        command = ["/usr/bin/python3", "-c", _CLIENT]
        if session:
            seat = ["XDG_SEAT=seat0"] if session in ("active", "inactive") else []
            command = ["systemd-run", "--quiet", "--pipe", "--collect", f"--property=User={name}", "--property=PAMName=login",
                       *(f"--setenv={e}" for e in [*seat, "XDG_SESSION_CLASS=user", "XDG_SESSION_TYPE=tty"]), *command]
            who = {}
        else:
            who = {"user": self.uid, "group": pwd.getpwnam(name).pw_gid, "extra_groups": os.getgrouplist(name, pwd.getpwnam(name).pw_gid)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **who)
        self.bus_name, self.pid = self._line()

    def _line(self):
        fd = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            wait_readable(fd, 60)
            piece = os.read(fd, 1 << 20)
            assert piece, f"the client of {self.name} has ended: {self._process.wait()}"
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def read_answer(self):
        number, good, value = self._line()
        self.answers[number] = good, value

    def call_async(self, path, interface, method, signature="", *args, interactive=False, timeout=60):
        self._n += 1
        parameters = GLib.Variant(f"({signature})", args).print_(True)
        line = json.dumps([self._n, path, interface, method, parameters, interactive, timeout * 1000]) + "\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        return UserCall(self, self._n)

    def call(self, *args, **keys):
        return self.call_async(*args, **keys).result()

    def create(self, name, definition, interactive=False, **keys):
        text = definition if isinstance(definition, str) else json.dumps(definition)
        return VM(self.call(ROOT, MANAGER, "CreateVM", "ssa{sv}", name, text, options(**keys), interactive=interactive))

    def session(self):
        """Its number, as logind knows it"""
        return subprocess.run(["ps", "-o", "lsession=", "-p", str(self.pid)], capture_output=True, text=True, check=True).stdout.strip()

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def leave(self):
        """Its connection goes, whatever it waits for."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


_AGENT = """<node><interface name="org.freedesktop.PolicyKit1.AuthenticationAgent">
<method name="BeginAuthentication"><arg type="s"/><arg type="s"/><arg type="s"/><arg type="a{ss}"/><arg type="s"/><arg type="a(sa{sv})"/></method>
<method name="CancelAuthentication"><arg type="s"/></method></interface></node>"""


class Agent:
    """A polkit agent of a user's client. answer: "yes", "no", or "later" (until `answer` is set and go_on() called)."""

    def __init__(self, user, answer="yes", locale="C"):
        self.user, self.answer, self.locale = user, answer, locale
        self.questions, self.cancelled, self._waiting = [], [], []
        address = Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM)
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        self._bus = Gio.DBusConnection.new_for_address_sync(address, flags)
        self._bus.set_exit_on_close(False)

    def __enter__(self):
        interface = Gio.DBusNodeInfo.new_for_xml(_AGENT).interfaces[0]
        self._bus.register_object("/agent", interface, self._on_call, None, None)
        self._authority("RegisterAuthenticationAgent", "((sa{sv})ss)", self._subject(), self.locale, "/agent")
        return self

    def __exit__(self, *_):
        self._bus.close_sync()

    def _subject(self):
        return ("unix-process", {"pid": GLib.Variant("u", self.user.pid), "start-time": GLib.Variant("t", 0)})

    def _authority(self, method, signature, *args):
        self._bus.call_sync(POLKIT, AUTHORITY, POLKIT + ".Authority", method, GLib.Variant(signature, args), None,
                            Gio.DBusCallFlags.NONE, -1)

    def _on_call(self, _connection, _sender, _path, _interface, method, parameters, invocation):
        if method == "CancelAuthentication":
            self.cancelled.append(parameters.unpack()[0])
            vmunit_test._happened()
            invocation.return_value(None)
            return
        action, message, _icon, _details, cookie, identities = parameters.unpack()
        self.questions.append((action, message))
        vmunit_test._happened()
        self._waiting.append((invocation, cookie, identities[0]))
        if self.answer != "later":
            self.go_on()

    def go_on(self):
        """What polkit's helper says when the password was right, or the agent when the person would not."""
        waiting, self._waiting = self._waiting, []
        for invocation, cookie, (kind, details) in waiting:
            if self.answer == "yes":
                identity = (kind, {k: GLib.Variant("u", v) for k, v in details.items()})
                self._authority("AuthenticationAgentResponse2", "(us(sa{sv}))", os.getuid(), cookie, identity)
                invocation.return_value(None)
            else:
                invocation.return_dbus_error(POLKIT + ".Error.Cancelled", "Dismissed")


def restart_polkit():
    """It forgets passwords that were given; it is ready when this returns."""
    systemctl("reset-failed", "polkit.service", check=False)     # or it would have been started too often
    systemctl("restart", "polkit.service")


def _stalls():
    """How often polkit has not come to the end of its own rules, as it says, or vmunitd, which waits for less long"""
    said = subprocess.run(["journalctl", "--unit=polkit.service", "--unit=vmunitd.service", "--output=cat"], capture_output=True, text=True,
                          check=True).stdout
    return said.count("Terminating runaway script") + len(re.findall("polkit can't be asked.*: Method call timed out", said))


def polkit_test(name, timeout=30, **keys):
    """As test(). polkit 122 now and then, on a busy machine, hangs in its rules, refuses after 15 s and says so: a test that fails while
    it does is made once more."""
    def add(function):
        def run():
            for attempt in range(3):
                before = _stalls()
                try:
                    function()
                    return
                except Exception as error:
                    if isinstance(error, Skip) or attempt == 2:
                        raise
                    with contextlib.suppress(Timeout):
                        wait_for(lambda: _stalls() > before, 10, poll=0.2)
                    if _stalls() == before:
                        raise
                print("# polkit hung in its rules: once more")
                restart_polkit()
                Manager().remove_all()
        return test(name, 3 * timeout, **keys)(run)
    return add


@contextlib.contextmanager
def polkit_rules(text, name="40-test.rules"):
    """polkit with these rules; it is ready when the block begins."""
    path = f"{RULES}/{name}"
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, 0o644)
    restart_polkit()
    try:
        yield
    finally:
        os.unlink(path)
        restart_polkit()
