# SPDX-License-Identifier: LGPL-2.1-or-later
"""What integration tests are written with: D-Bus calls, waiting for signals, units, leftovers, TAP.

    from vmunit_test import *

    @test("a VM starts and stops")
    def _():
        manager = Manager()
        vm = manager.create("web", tiny_definition())
        vm.start()
        assert vm.State == "Running"
        vm.stop()
        vm.remove()

    run()

Nothing here sleeps: what is waited for is a signal on the bus, the end of a process or bytes on a
descriptor, always with a deadline, which is the test's own at the latest.
"""

import collections
import contextlib
import copy
import faulthandler
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback

from gi.repository import Gio, GLib
from leftovers import left_on_host

BUS = "org.vmunit1"
ROOT = "/org/vmunit1"
MANAGER, VM_INTERFACE, JOB = "org.vmunit1.Manager", "org.vmunit1.VM", "org.vmunit1.Job"
PROPERTIES = "org.freedesktop.DBus.Properties"
ERROR = "org.vmunit1.Error."
SYSTEMD = "org.freedesktop.systemd1"
SLICE_CGROUP = "/sys/fs/cgroup/machine.slice/machine-vmunit.slice"
SANITIZED = bool(os.environ.get("VMUNIT_SANITIZED"))
SLOWER = int(os.environ.get("VMUNIT_SLOWER", 4 if SANITIZED else 1))   # what deadlines are multiplied by
BACKEND = os.environ.get("VMUNIT_TEST_BACKEND", "qemu")                # whose turn it is (`# suite: backends=`)
VMM_COMMS = ("qemu-system", "firecracker", "cloud-hyperviso")           # what their processes are called, in 15 bytes
BOOT = int(os.environ.get("BOOT", 1))           # of the VM bed: 2 after its first reboot

__all__ = """BUS ROOT MANAGER VM_INTERFACE JOB ERROR SANITIZED SLICE_CGROUP BACKEND VMM_COMMS BOOT
    test run Skip BusError Timeout Call call call_async gather call_fd call_as get get_all set_property expect_error
    options variant signals wait_for wait_readable wait_exit read_until say_until_heard signalled
    Manager VM Job tiny_definition bios_definition linux_definition merge
    systemctl journal unit_property unit_pids unit_cgroup wait_unit_gone escape encode
    daemon_pid start_daemon stop_daemon kill_daemon launcher_pid fds
    snapshot_leftovers assert_no_leftovers program_name
    os sys json time signal subprocess contextlib GLib Gio""".split()


class Skip(Exception):
    """Raised by a test that cannot run here; the reason is told."""


class Timeout(AssertionError):
    """What was waited for has not come."""


class BusError(Exception):
    """A D-Bus error. name: as on the bus; short: without org.vmunit1.Error.; message."""

    def __init__(self, name, message):
        super().__init__(f"{name}: {message}")
        self.name, self.message = name, message
        self.short = name.removeprefix(ERROR)

    @classmethod
    def of(cls, error):
        name = Gio.DBusError.get_remote_error(error)
        # strip_remote_error() works on a copy of Python's exception
        return cls(name or f"GLib.{error.domain}.{error.code}", error.message.removeprefix(f"GDBus.Error:{name}: "))


# The test runner

_tests = []
_deadline = None                                # of the test that runs, CLOCK_MONOTONIC


def test(name, timeout=30, sanitized=True, boot=1, not_on=None):
    """Decorator of a test function. It passes by returning, skips by raising Skip. One with
    sanitized=False is left out of the ring with sanitizers (for times, memory, the shut unit).
    In the VM bed it runs at that boot. not_on={"NAME NAME…": "why"} skips it on these back ends."""
    def add(function):
        reasons = [why for names, why in (not_on or {}).items() if BACKEND in names.split()]
        if sanitized or not SANITIZED:
            _tests.append((name, timeout * SLOWER, _skipping(reasons[0]) if reasons else function, boot))
        return function
    return add


def _skipping(why):
    def skip():
        raise Skip(why)
    return skip


def run(reboot=()):
    """Runs all tests in their order, or those whose names have an argument in them; exits. In the VM
    bed, functions that reboot it: the first is called after the tests of boot 1, and so on."""
    wanted = [t for t in _tests if not sys.argv[1:] or any(a in t[0] for a in sys.argv[1:])]
    if BOOT == 1:
        print(f"1..{len(wanted)}", flush=True)
    failed = 0
    for number, (name, timeout, function, boot) in enumerate(wanted, 1):
        if boot != BOOT:
            continue
        began = time.monotonic()
        result = _run_one(name, timeout, function)
        if (took := time.monotonic() - began) >= 2:
            print(f"# {took:.1f} s:")
        failed += result.startswith("not")
        word, _, directive = result.partition(" # ")
        print(f"{word} {number} - {name}{' # ' + directive if directive else ''}", flush=True)
    sys.stdout.flush()
    if BOOT <= len(reboot):
        reboot[BOOT - 1]()
        signal.pause()                          # for the end by it
    os._exit(1 if failed else 0)                # threads of GLib or of a hanging test must not keep us


def _expired(*_):
    raise Timeout("the test's time is over")


def _run_one(name, timeout, function):
    global _deadline
    _deadline = time.monotonic() + timeout
    faulthandler.dump_traceback_later(timeout + 20, exit=True)  # for what no exception gets out of
    signal.signal(signal.SIGALRM, _expired)
    signal.setitimer(signal.ITIMER_REAL, timeout + 2, 1)        # waits end before, by _deadline
    try:
        function()
        return "ok"
    except Skip as skip:
        return f"ok # SKIP {skip}"
    except BaseException:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for line in traceback.format_exc().splitlines():
            print("# " + line)
        return "not ok"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        _deadline = None


# Waiting

_context = GLib.MainContext.default()
_events = 0                                     # grows with all that may be waited for


def _happened():
    global _events
    _events += 1


def _until(timeout):
    end = time.monotonic() + (timeout * SLOWER if timeout is not None else 3600)
    return min(end, _deadline) if _deadline is not None else end


def _iterate(end):
    """One turn of the event loop, at most until END; False when that is over."""
    left = end - time.monotonic()
    if left <= 0:
        return False
    source = GLib.timeout_source_new(max(1, int(left * 1000)))
    source.set_callback(lambda *_: GLib.SOURCE_REMOVE)
    source.attach(_context)
    _context.iteration(True)
    source.destroy()
    return True


def wait_for(predicate, timeout=10, what=None, poll=None):
    """Waits until predicate() is true, and returns what it returned. It is asked again after each
    signal from vmunitd or systemd; `poll` (seconds) is for what no signal tells, such as a file."""
    end = _until(timeout)
    while True:
        seen = _events
        value = predicate()
        if value:
            return value
        next_look = time.monotonic() + poll if poll else end
        while _events == seen and _iterate(min(end, next_look)):
            pass
        if time.monotonic() >= end:
            value = predicate()
            if value:
                return value
            raise Timeout(f"waited in vain for {what or getattr(predicate, '__name__', predicate)}")


def wait_readable(fd, timeout=10):
    """Waits until FD can be read (or is at its end)."""
    ready = []
    source = GLib.unix_fd_add_full(GLib.PRIORITY_DEFAULT, fd, GLib.IOCondition.IN | GLib.IOCondition.HUP,
                                   lambda *_: ready.append(1) or _happened() or GLib.SOURCE_REMOVE)
    try:
        wait_for(lambda: ready, timeout, f"something to read on descriptor {fd}")
    finally:
        if not ready:
            GLib.source_remove(source)


def wait_exit(pid, timeout=10):
    """Waits for the end of a process that need not be our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(fd, timeout)
    finally:
        os.close(fd)


def read_until(fd, text, timeout=10):
    """Reads from a descriptor until TEXT (bytes) has come; returns all that was read."""
    end, data = _until(timeout), b""
    while text not in data:
        left = end - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise Timeout(f"waited in vain for {text!r}, got {data!r}")
        piece = os.read(fd, 65536)
        if not piece:
            raise Timeout(f"end of file before {text!r}, got {data!r}")
        data += piece
    return data


def say_until_heard(console, fd, text, timeout=60):
    """Says it on a console until it has come out of FD, where nobody may have listened yet; gives all that has."""
    end, data = _until(timeout), b""
    while text not in data:
        if time.monotonic() > end:
            raise Timeout(f"said {text!r} in vain, heard {data!r}")
        console.sendall(text)
        if select.select([fd], [], [], 0.2)[0]:
            piece = os.read(fd, 65536)
            assert piece, f"it has ended; heard {data!r}"
            data += piece
    return data


# The bus

Signal = collections.namedtuple("Signal", "time path interface member args")
signals = []                                    # all from vmunitd since this process began
_bus = None


def _on_signal(_connection, _sender, path, interface, member, parameters):
    signals.append(Signal(time.monotonic(), path, interface, member, parameters.unpack()))
    _happened()


def bus():
    """Our connection to the system bus; signals of vmunitd and systemd are subscribed to."""
    global _bus
    if _bus is None:
        _bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
        _bus.set_exit_on_close(False)
        none = Gio.DBusSignalFlags.NONE
        _bus.signal_subscribe(BUS, None, None, None, None, none, _on_signal)
        for member in ("JobRemoved", "UnitRemoved", "PropertiesChanged"):   # UnitNew: each look at a unit makes one
            _bus.signal_subscribe(SYSTEMD, None, member, None, None, none, lambda *_: _happened())
        _bus.signal_subscribe("org.freedesktop.DBus", "org.freedesktop.DBus", "NameOwnerChanged", None, BUS, none,
                              lambda *_: _happened())
        _bus.call_sync(SYSTEMD, "/org/freedesktop/systemd1", SYSTEMD + ".Manager", "Subscribe", None, None,
                       Gio.DBusCallFlags.NONE, -1)
    return _bus


def variant(signature, value):
    return GLib.Variant(signature, value)


_KEYS = {"start": "b", "no-block": "b", "owner": "u", "timeout-usec": "t", "keep-intent": "b", "force": "b",
         "next-start": "b", "read-only": "b", "after": "t", "vm": "s", "limit": "u"}


def options(**keys):
    """a{sv} of keyword arguments: options(timeout_usec=0, force=True). A Variant is taken as it is."""
    result = {}
    for key, value in keys.items():
        key = key.replace("_", "-")
        result[key] = value if isinstance(value, GLib.Variant) else GLib.Variant(_KEYS[key], value)
    return result


class Call:
    """A call under way. result() waits for it; done tells whether it has ended, and finished when."""

    def __init__(self, path, interface, method, signature="", *args, timeout=30, fds=False, destination=BUS):
        self.done, self.finished, self._value, self._error, self._watched = False, None, None, None, False
        self.what, self.started = f"{method} of {path}", time.monotonic()
        parameters = GLib.Variant(f"({signature})", args) if signature else None
        limit = int(timeout * SLOWER * 1000)
        flags, connection = Gio.DBusCallFlags.NONE, bus()
        if fds:
            connection.call_with_unix_fd_list(destination, path, interface, method, parameters, None, flags, limit,
                                              None, None, self._ended_fds)
        else:
            connection.call(destination, path, interface, method, parameters, None, flags, limit, None, self._ended)

    def _ended_fds(self, connection, result):
        def finish():
            value, fds = connection.call_with_unix_fd_list_finish(result)
            return (fds.get(value.unpack()[0]),)
        self._end(finish)

    def _ended(self, connection, result):
        self._end(lambda: connection.call_finish(result).unpack())

    def _end(self, finish):
        try:
            self._value = finish()
        except GLib.Error as error:
            self._error = BusError.of(error)
        self.done, self.finished = True, time.monotonic()
        if not self._watched:                   # or a predicate that makes calls would wake itself for ever
            _happened()

    @property
    def error(self):
        """The BusError of a call that has ended, or None."""
        return self._error

    def result(self):
        """The values that came back: None, the only one, or a tuple. Raises BusError."""
        end, self._watched = _until(None), True
        while not self.done:
            if not _iterate(end):
                raise Timeout(f"no answer to {self.what}")
        if self._error:
            raise self._error
        if not self._value:
            return None
        return self._value[0] if len(self._value) == 1 else self._value


def call(path, interface, method, signature="", *args, timeout=30, destination=BUS):
    return Call(path, interface, method, signature, *args, timeout=timeout, destination=destination).result()


call_async = Call


def call_fd(path, interface, method, signature="", *args, timeout=30):
    """For methods that answer one descriptor (h); the caller closes it."""
    return Call(path, interface, method, signature, *args, timeout=timeout, fds=True).result()


def gather(calls, timeout=None):
    """Waits for many calls; returns their results, a BusError in the place of one that failed."""
    wait_for(lambda: all(c.done for c in calls), timeout, f"{len(calls)} calls")
    return [c.error or (c._value[0] if c._value and len(c._value) == 1 else c._value or None) for c in calls]


def get(path, interface, name, timeout=10, destination=BUS):
    return call(path, PROPERTIES, "Get", "ss", interface, name, timeout=timeout, destination=destination)


def get_all(path, interface, timeout=10, destination=BUS):
    return call(path, PROPERTIES, "GetAll", "s", interface, timeout=timeout, destination=destination)


def set_property(path, interface, name, value):
    return call(path, PROPERTIES, "Set", "ssv", interface, name, value)


@contextlib.contextmanager
def expect_error(name, text=None, begins=None):
    """The block must raise BusError NAME (short, or whole with dots), with TEXT in its message."""
    try:
        yield
    except BusError as error:
        whole = name if "." in name else ERROR + name
        if name in ("AccessDenied", "InvalidArgs", "LimitsExceeded", "UnknownMethod", "UnknownObject",
                    "PropertyReadOnly", "InteractiveAuthorizationRequired"):
            whole = "org.freedesktop.DBus.Error." + name
        assert error.name == whole, f"{error.name} instead of {whole}: {error.message}"
        assert text is None or text in error.message, f"no {text!r} in {error.message!r}"
        assert begins is None or error.message.startswith(begins), f"{error.message!r} does not begin with {begins!r}"
    else:
        raise AssertionError(f"no error instead of {name}")


def call_as(uid, path, interface, method, signature="", *args, timeout=30):
    """The same as call(), by a client of another uid (a process and connection of its own)."""
    parameters = GLib.Variant(f"({signature})", args).print_(True)
    done = subprocess.run(["/usr/bin/python3", "-c", _CLIENT, path, interface, method, parameters, str(timeout)],
                          user=uid, group=uid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise AssertionError(f"the client of uid {uid} failed: {done.stderr}")
    answer = json.loads(done.stdout)
    if done.returncode == 3:
        raise BusError(*answer)
    values = GLib.Variant.parse(None, answer).unpack()
    return values[0] if len(values) == 1 else values or None


_CLIENT = """
import json, sys
from gi.repository import Gio, GLib
path, interface, method, parameters, timeout = sys.argv[1:]
try:
    bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
    answer = bus.call_sync("org.vmunit1", path, interface, method, GLib.Variant.parse(None, parameters), None,
                           Gio.DBusCallFlags.NONE, int(float(timeout) * 1000))
    print(json.dumps(answer.print_(True)))
except GLib.Error as e:
    name = Gio.DBusError.get_remote_error(e)
    print(json.dumps([name or str(e.code), e.message.removeprefix(f"GDBus.Error:{name}: ")]))
    sys.exit(3)
"""


def encode(name):
    """A name as the last part of an object path, as sd_bus_path_encode does it."""
    if not name:
        return "_"
    return "".join(c if c.isascii() and c.isalpha() or c.isascii() and c.isdigit() and i else f"_{ord(c):02x}"
                   for i, c in enumerate(name))


def escape(name):
    """A name as a part of a unit's name."""
    return "".join("\\x%02x" % ord(c) if c == "-" or c == "." and not i else c for i, c in enumerate(name))


# The objects

class Object:
    interface = None

    def __init__(self, path):
        self.path = path

    def __getattr__(self, name):                # capitalised: a D-Bus property, asked for each time
        if not name[0].isupper():
            raise AttributeError(name)
        return get(self.path, self.interface, name)

    def call(self, method, signature="", *args, timeout=30):
        return call(self.path, self.interface, method, signature, *args, timeout=timeout)

    def call_async(self, method, signature="", *args, timeout=30):
        return Call(self.path, self.interface, method, signature, *args, timeout=timeout)

    def properties(self):
        return get_all(self.path, self.interface)

    def exists(self):
        try:
            self.properties()
        except BusError as error:
            if error.name in ("org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.DBus.Error.UnknownMethod",
                              "org.freedesktop.DBus.Error.UnknownInterface"):
                return False
            raise
        return True


class Manager(Object):
    """The root object; the first call starts the daemon through the bus."""
    interface = MANAGER

    def __init__(self):
        super().__init__(ROOT)

    def create_async(self, name, definition, **keys):
        text = definition if isinstance(definition, str) else json.dumps(definition)
        return self.call_async("CreateVM", "ssa{sv}", name, text, options(**keys))

    def create(self, name, definition, **keys):
        return VM(self.create_async(name, definition, **keys).result())

    def vm(self, name_or_id):
        return VM(self.call("GetVM", "s", name_or_id))

    def vm_by_pid(self, pid):
        return VM(self.call("GetVMByPID", "u", pid))

    def list(self):
        """[(name, id, state, path)]"""
        return self.call("ListVMs")

    def events(self, **keys):
        """[(id, usec, VM id, VM name, type, message, details)]; keys after, vm, limit"""
        return self.call("ListEvents", "a{sv}", options(**keys))

    def usage(self, start=0, end=2**63):
        return self.call("GetUsage", "tt", start, end)

    def objects(self):
        return call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")

    def remove_all(self):
        """Removes all VMs, by force, and waits until they have gone."""
        paths = [path for _, _, _, path in self.list()]
        gather([VM(path).remove_async(force=True) for path in paths])
        wait_for(lambda: not self.list(), 20, "the removal of all VMs")


class VM(Object):
    """A VM. Its methods are those of the D-Bus interface in lower case, each also as NAME_async."""
    interface = VM_INTERFACE

    def __init__(self, path):
        super().__init__(path if path.startswith("/") else f"{ROOT}/vm/{encode(path)}")

    def _do(self, method, keys, timeout=60):
        return self.call_async(method, "a{sv}", options(**keys), timeout=timeout)

    def update_async(self, patch, **keys):
        text = patch if isinstance(patch, str) else json.dumps(patch)
        return self.call_async("Update", "sa{sv}", text, options(**keys))

    def update(self, patch, **keys):
        return self.update_async(patch, **keys).result()

    def definition(self):
        return json.loads(self.call("GetDefinition", "a{sv}", {}))

    def stats(self):
        return self.call("GetStats", "a{sv}", {})

    def last_output(self):
        return self.call("GetLastOutput", "a{sv}", {})

    def console_log(self, size=2**20):
        """The kept output of the serial port, as bytes."""
        return bytes(self.call("GetConsoleLog", "ta{sv}", size, {}))

    def open_console(self, **keys):
        """A socket that reads and writes the serial port."""
        return socket.socket(fileno=call_fd(self.path, self.interface, "OpenConsole", "a{sv}", options(**keys)))

    def wait_log(self, text, timeout=15):
        """Waits until the console log has TEXT (bytes)."""
        return wait_for(lambda: text in self.console_log(), timeout, f"{text!r} on the console", poll=0.03)

    def wait_state(self, state, *more, timeout=15):
        """Waits for one of the states; returns it."""
        states = (state, *more)
        return wait_for(lambda: (now := self.State) in states and now, timeout, f"{self.path} in {'/'.join(states)}")

    def wait_gone(self, timeout=15):
        wait_for(lambda: not self.exists(), timeout, f"the end of {self.path}")

    def states(self, since=0):
        """The states that signals have told, in their order, with (state, reason, time)."""
        return [(s.args[1]["State"], s.args[1].get("StateReason"), s.time) for s in signals[since:]
                if s.path == self.path and s.member == "PropertiesChanged" and s.args[0] == VM_INTERFACE
                and "State" in s.args[1]]

    @property
    def pid(self):
        return self.LeaderPID

    @property
    def job(self):
        path = self.Job
        return None if path == "/" else Job(path)


def _verb(method):
    def start(self, **keys):
        return self._do(method, keys)

    def whole(self, **keys):
        return self._do(method, keys).result()
    return start, whole


for _method in ("Start", "Stop", "Kill", "Reboot", "Reset", "Pause", "Resume", "Remove"):
    _start, _whole = _verb(_method)
    setattr(VM, _method.lower() + "_async", _start)
    setattr(VM, _method.lower(), _whole)


class Job(Object):
    interface = JOB

    def cancel(self):
        return self.call("Cancel", "a{sv}", {})


def signalled(member, path=None, since=0):
    """The signals of that name so far: signalled("Event", since=mark) after mark = len(signals)."""
    return [s for s in signals[since:] if s.member == member and path in (None, s.path)]


# Definitions

def merge(base, over):
    """Puts OVER into BASE, in depth; None deletes a key."""
    for key, value in over.items():
        if value is None:
            base.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = copy.deepcopy(value)
    return base


def tiny_definition(**over):
    """The tiny guest on the back end whose turn it is: TINY-UP on its console after some 50 ms; obeys q r p t s."""
    base = {"version": 1, "backend": BACKEND, "cpus": 1, "memory": "32M",
            "boot": {"kernel": os.environ["VMUNIT_GUESTS"] + "/tiny.elf"}, "stopTimeout": "10s"}
    return merge(base, over)


def bios_definition(**over):
    """The tiny guest as a firmware, on QEMU's q35."""
    base = {"version": 1, "backend": "qemu", "cpus": 1, "memory": "32M",
            "boot": {"firmware": os.environ["VMUNIT_GUESTS"] + "/tiny.bin"}, "stopTimeout": "10s"}
    return merge(base, over)


def linux_definition(**over):
    """Debian's kernel and busybox, with TCG: READY on its console after some 3 s, then a shell there."""
    if "VMUNIT_LINUX" not in os.environ:
        raise Skip(os.environ.get("VMUNIT_LINUX_MISSING", "the suite is not marked `# suite: linux`"))
    linux = os.environ["VMUNIT_LINUX"]
    with open(linux + "/cmdline") as f:
        cmdline = f.read().strip()
    base = {"version": 1, "backend": "qemu", "accel": "tcg", "cpus": 1, "memory": "256M", "stopTimeout": "30s",
            "boot": {"kernel": linux + "/vmlinuz", "initramfs": linux + "/initrd", "cmdline": cmdline}}
    return merge(base, over)


# Units and processes

def systemctl(*args, check=True):
    done = subprocess.run(["systemctl", "--no-pager", *args], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"systemctl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def journal(*matches):
    """The journal's entries as dictionaries: journal("VMUNIT_VM=web")."""
    subprocess.run(["journalctl", "--sync"], check=True, capture_output=True)
    done = subprocess.run(["journalctl", "-o", "json", "--all", "--no-pager", *matches], check=True,
                          capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def unit_property(unit, name):
    return systemctl("show", "-P", name, unit).rstrip("\n")


def unit_cgroup(unit):
    """The unit's directory in /sys/fs/cgroup, None if it has none."""
    path = unit_property(unit, "ControlGroup")
    return "/sys/fs/cgroup" + path if path else None


def unit_pids(unit):
    """The processes in the unit's cgroup and those below."""
    pids, top = [], unit_cgroup(unit)
    for directory, _, files in os.walk(top) if top else ():
        if "cgroup.procs" in files:
            with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs")) as f:
                pids += [int(line) for line in f]
    return sorted(pids)


def wait_unit_gone(unit, timeout=10):
    """Waits until systemd has forgotten the unit."""
    wait_for(lambda: not systemctl("list-units", "--all", "--plain", "--no-legend", unit).strip(), timeout,
             f"the end of {unit}")


def _owner():
    try:
        return bus().call_sync("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner",
                               GLib.Variant("(s)", (BUS,)), None, Gio.DBusCallFlags.NONE, -1).unpack()[0]
    except GLib.Error:
        return None


def daemon_pid():
    return int(unit_property("vmunitd.service", "MainPID"))


def launcher_pid():
    return int(unit_property("vmunit-launch.service", "MainPID"))


def start_daemon():
    systemctl("start", "vmunitd.service")
    return daemon_pid()


def stop_daemon():
    systemctl("stop", "vmunitd.service")


def kill_daemon(restart=True):
    """SIGKILL; waits until systemd has started another and that owns the name (restart=False: only
    for the death; the unit's Restart= still acts). Returns the new pid."""
    pid, owner = daemon_pid(), _owner()
    assert pid, "the daemon does not run"
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        wait_readable(fd)
    finally:
        os.close(fd)
    if not restart:
        return None
    wait_for(lambda: _owner() not in (None, owner), 20, "a new owner of the name after the daemon's death")
    return daemon_pid()


def fds(pid):
    """What a process has open, counted by kind: {"socket": 5, "anon_inode:[pidfd]": 1, path: 1…}"""
    counts = collections.Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            counts[target.split(":[")[0] if target.startswith(("socket:", "pipe:")) else target] += 1
    return counts


# Leftovers

def _tree(top):
    found = set()
    for directory, names, files in os.walk(top):
        found.update(os.path.join(directory, name) for name in names + files)
    return found


def program_name(cmdline):
    """Of /proc/PID/cmdline: the script's, if Python runs one."""
    words = [os.path.basename(w.decode(errors="replace")) for w in cmdline.split(b"\0")]
    if words[0].startswith("python3"):
        words = [w for w in words[1:] if not w.startswith("-")] or words
    return words[0]


def _processes():
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as f:
            name = program_name(f.read())
            if name.startswith(("qemu-system", "firecracker", "cloud-hypervisor", "vmunit-exec", "virtiofsd", "passt")):
                found.add(f"{name} (pid {pid})")
    return found


def _units():
    listing = systemctl("list-units", "--all", "--plain", "--no-legend", "vmunit-*", "machine-vmunit*")
    units = {line.split()[0] for line in listing.splitlines()}
    return units - {"vmunit-launch.service", "vmunit-launch.socket", "vmunit-guests.service", "machine-vmunit.slice"}


def snapshot_leftovers():
    """All that a VM could leave behind, for assert_no_leftovers()."""
    pid = daemon_pid()
    return {
        **left_on_host(pid, launcher_pid()),
        "files": _tree("/run/vmunit") | _tree("/var/lib/vmunit/vms"),
        "units": _units(),
        "cgroups": {p for p in _tree(SLICE_CGROUP) if os.path.isdir(p)},
        "processes": _processes(),
        "daemon's descriptors": {f"{i + 1}. {what}" for what, n in fds(pid).items() for i in range(n)} if pid else set(),
    }


STAYS = ("files", "units", "cgroups")


def assert_no_leftovers(before, timeout=5):
    """Everything is again as it was at snapshot_leftovers(), within TIMEOUT. Then the daemon may have just come back, with more
    open, and processes may have been about to end."""
    now = {}

    def equal():
        now.update(snapshot_leftovers())
        return all(now[kind] == before[kind] or kind not in STAYS and now[kind] < before[kind] for kind in before)
    try:
        wait_for(equal, timeout, "leftovers to go", poll=0.05)
    except Timeout:
        raise AssertionError("left behind: " + "; ".join(
            f"{kind}: {' '.join('+' + x for x in sorted(now[kind] - before[kind]))}"
            f" {' '.join('-' + x for x in sorted(before[kind] - now[kind]))}"
            for kind in before if now[kind] != before[kind])) from None


shutil.which("systemctl") or sys.exit("vmunit_test: this needs systemd")
