#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized
"""Random calls with random arguments on all that is on the bus, from many connections that come, read or not, and go: the daemon lives,
answers others, and nothing is left of it.

As root and as a user, 15 s each; with VMUNIT_ALL (`tests/run --all --timeout 1800 hostile-client`) 10 min each. What is sent depends on
VMUNIT_SEED (1), but for the numbers of jobs; how far it gets depends on the machine.
"""

import collections
import os
import random
import sys
from xml.etree import ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_clients import *
from vmunit_users import polkit_rules
from invariants import check_fresh

SECONDS = 600 if os.environ.get("VMUNIT_ALL") else 15
SEED = os.environ.get("VMUNIT_SEED") or "1"
NOBODY = 65534
DEADLINE = 20                                   # for the other client, on any machine
FILES = "/srv/hostile"
POOL = [f"h{n}" for n in range(10)] + ["h-1", "a.b"]
DBUS = "org.freedesktop.DBus"
FOREVER = 2**64 - 1

# What may be answered: our own errors, and these of D-Bus. What the daemon did not think of would be another.
FINE = {f"{DBUS}.Error.{e}" for e in (
    "AccessDenied", "InteractiveAuthorizationRequired", "InvalidArgs", "LimitsExceeded", "UnknownObject", "UnknownMethod", "UnknownInterface",
    "UnknownProperty", "PropertyReadOnly", "NotSupported", "NoReply")}
WORDS = ["", "no-such", "localhost", "x" * 63, "x" * 300, "x" * 70000, "\u20ac\U0001f600", "%s%n%x", "a\tb\nc\x1b[2J", "../../etc", "0" * 32]
RULES = """polkit.addRule(function(action, subject) {
    if (action.id == "org.vmunit1.create" && subject.user == "nobody")
        return polkit.Result.YES;
});
"""

manager = Manager()


def make_files():
    os.makedirs(FILES + "/directory", mode=0o755, exist_ok=True)
    os.chmod(FILES, 0o777)
    with open(os.environ["VMUNIT_GUESTS"] + "/tiny.elf", "rb") as f, open(FILES + "/tiny.elf", "wb") as copy:
        copy.write(f.read())
    for name, size in (("disk", 1 << 20), ("empty", 0)):
        with open(f"{FILES}/{name}", "wb") as f:
            f.truncate(size)
        os.chmod(f"{FILES}/{name}", 0o666)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(FILES + "/fifo")
    with contextlib.suppress(FileExistsError):
        os.symlink("loop", FILES + "/loop")


PATHS = [FILES + "/" + name for name in ("tiny.elf", "disk", "empty", "fifo", "loop", "directory", "gone", "disk/x")] + \
    ["/dev/null", "/dev/zero", "/etc/shadow", "/proc/self/mem", "/", "relative", "", "/a" * 3000]


def introspected(path):
    """{interface: ([(method, signature)], [property])}"""
    found = {}
    for node in ElementTree.fromstring(call(path, DBUS + ".Introspectable", "Introspect")):
        if node.tag == "interface":
            methods = [(m.get("name"), "".join(a.get("type") for a in m.iter("arg") if a.get("direction") == "in"))
                       for m in node.iter("method")]
            found[node.get("name")] = (methods, [p.get("name") for p in node.iter("property")])
    return found


class Hostile:
    def __init__(self, uid, seed):
        self.uid, self.r = uid, random.Random(f"{seed} {uid}")
        self.clients, self.answers, self.calls, self.strange = [], collections.Counter(), collections.Counter(), {}
        with contextlib.ExitStack() as stack:
            vm = manager.create("surface", tiny_definition(), start=True)
            stack.callback(lambda: vm.remove(force=True))
            deaf = vm.stop_async(timeout_usec=FOREVER)
            job = wait_for(lambda: vm.Job != "/" and vm.Job)
            self.interfaces = {kind: introspected(path) for kind, path in (("manager", ROOT), ("vm", vm.path), ("job", job))}
        vm.wait_gone()
        with contextlib.suppress(BusError):
            deaf.result()
        methods = sum(len(m) for kind in self.interfaces.values() for m, _ in kind.values())
        assert methods > 35, methods            # or it has not seen all

    # Values

    def word(self):
        r = self.r
        if r.random() < 0.5:
            return r.choice(POOL)
        if r.random() < 0.3:
            return "".join(chr(r.choice((r.randrange(1, 127), r.randrange(160, 2000)))) for _ in range(r.randrange(20)))
        return r.choice(WORDS)

    def number(self, bits, signed):
        r = self.r
        top = 2 ** (bits - signed)
        return r.choice((0, 1, 2, top - 1, top // 2, r.randrange(top), r.randrange(min(top, 300)), *((-1, -top) if signed else ())))

    def value(self, signature):
        """Of one complete type, as GLib.Variant takes it"""
        r, first = self.r, signature[0]
        if first in "ynqiuxth":
            bits = {"y": 8, "n": 16, "q": 16, "i": 32, "u": 32, "x": 64, "t": 64, "h": 32}[first]
            return r.randrange(3) if first == "h" else self.number(bits, first in "nix")
        if first == "b":
            return r.random() < 0.5
        if first == "d":
            return r.choice((0.0, -1.5, 1e308, float("inf"), float("nan")))
        if first == "s":
            return self.definition() if r.random() < 0.1 else self.word()
        if first == "o":
            return self.path()
        if first == "g":
            return r.choice(("", "s", "a{sv}", "((((i))))", "aaaaai"))
        if first == "v":
            inner = r.choice(("s", "u", "t", "b", "i", "as", "ay", "(su)", "a{sv}", "v", "d", "o"))
            return GLib.Variant(inner, self.value(inner))
        if signature == "a{sv}":
            return self.options()
        if signature.startswith("a{"):
            return {str(n): self.value(signature[3:-1]) for n in range(r.randrange(3))}
        if first == "a":
            return [self.value(signature[1:]) for _ in range(r.choice((0, 1, 2, 100)))]
        return tuple(self.value(s) for s in split(signature[1:-1]))

    def options(self):
        r, known = self.r, {"start": "b", "no-block": "b", "owner": "u", "timeout-usec": "t", "keep-intent": "b", "force": "b", "next-start": "b",
                            "after": "t", "vm": "s", "limit": "u"}
        result = {}
        for _ in range(r.choice((0, 0, 0, 1, 1, 2, 5))):
            key = r.choice((*known, self.word()))
            signature = known.get(key, "v") if r.random() < 0.8 else r.choice("sutbvid")
            value = self.value(signature)
            if key == "timeout-usec" and signature == "t":
                value = r.choice((0, 1, 1000, 200000, FOREVER))
            if key == "owner" and signature == "u":
                value = r.choice((0, NOBODY, self.uid, value))
            result[key] = GLib.Variant(signature, value)
        return result

    def own_options(self, method):
        """Some that this method knows"""
        r, keys = self.r, {"CreateVM": ("start", "no-block"), "Start": ("no-block",), "Stop": ("no-block", "timeout-usec"), "Remove": ("force",),
                           "Update": ("next-start",), "Reboot": ("no-block",), "OpenConsole": ("read-only",)}.get(method, ())
        return options(**{k.replace("-", "_"): r.choice((0, 1000, FOREVER)) if k == "timeout-usec" else r.random() < 0.6
                          for k in keys if r.random() < 0.5})

    def definition(self):
        r = self.r
        d = tiny_definition(boot={"kernel": FILES + "/tiny.elf"}, stopTimeout=r.choice(("0s", "100ms", "10s")))
        changes = {"cpus": (1, 2, 0, 10**9, "x"), "memory": ("32M", "16M", "1T", -1, "y"), "backend": ("qemu", "auto", "firecracker", "none"),
                   "accel": ("tcg", "kvm", "auto", 1), "vsock": (True, False, None), "autostart": (True, []),
                   "boot": ({"kernel": r.choice(PATHS)}, {"firmware": r.choice(PATHS)}, {"firmware": "bios"}, {}, []),
                   "disks": ([{"path": r.choice(PATHS)}], [{"path": FILES + "/disk", "readonly": True}], [{"path": r.choice(PATHS), "format": "qcow2"}],
                             [{}] * 40, [{"name": f"d{n}", "path": FILES + "/disk"} for n in range(5)]),
                   "filesystems": ([{"tag": "t", "source": r.choice(PATHS)}], [{"tag": "t" * 40, "source": FILES}]),
                   "networks": ([{"type": "user"}], [{"type": "user", "forward": [{"host": r.randrange(70000), "guest": 22}]}], [{"type": "tap"}]),
                   "restart": ({"policy": "always", "max": 3}, {"policy": "on-failure"}, {"policy": ""}, 5),
                   "resources": ({"MemoryMax": "1G", "CPUQuota": "50%"}, {"TasksMax": 1}, {"CPUWeight": "no"}, {"AllowedCPUs": "0-9999"}),
                   "labels": ({"a": "b"}, {"k" * 100: "v" * 4000}, {f"k{n}": "v" for n in range(70)}, {"a": 1}),
                   "version": (1, 2, None), self.word(): (1, None, {"a": [1, 2, {}]})}
        for key in r.sample(list(changes), r.choice((0, 0, 1, 2, 4))):
            d[key] = r.choice(changes[key])
        text = json.dumps(d)
        if r.random() < 0.1:
            where = r.randrange(len(text))
            text = text[:where] + r.choice(("", "{", "\x01", "\ufffd", '"', "[" * 50, "0" * 400)) + text[where + r.randrange(4):]
        return text

    def patch(self):
        r = self.r
        return r.choice((self.definition(), json.dumps({"labels": {"n": str(r.random())}}), json.dumps({"cpus": r.randrange(5)}),
                         json.dumps({"resources": {"TasksMax": r.randrange(1, 500)}}), json.dumps({"disks": [{"name": "disk0", "delete": True}]}), "{}"))

    def path(self):
        r = self.r
        return r.choice((ROOT, ROOT + "/vm", ROOT + "/job", VM(r.choice(POOL)).path, VM(r.choice(POOL)).path, VM(r.choice(POOL)).path,
                         self.job(), ROOT + "/vm/_", ROOT + "/job/007", "/", "/org", ROOT + "/vm/x/y", VM("x" * 200).path))

    def job(self):
        """One that may be there just now"""
        last = next((s.args[0] for s in reversed(signals) if s.member == "JobRemoved"), 0)
        return ROOT + f"/job/{last + self.r.randrange(-1, 4)}"

    # Calls

    def aimed(self):
        """A method where it belongs, with what it takes, most often"""
        r = self.r
        kind = r.choice(("vm", "vm", "vm", "manager", "job"))
        path = {"manager": ROOT, "vm": VM(r.choice(POOL)).path, "job": self.job()}[kind]
        interface = r.choice(list(self.interfaces[kind]))
        if r.random() < 0.7:
            interface = {"manager": MANAGER, "vm": VM_INTERFACE, "job": JOB}[kind]
        methods, properties = self.interfaces[kind][interface]
        if r.random() < 0.15:                   # or there would be nothing to call
            path, interface, methods = ROOT, MANAGER, [m for m in self.interfaces["manager"][MANAGER][0] if m[0] == "CreateVM"]
        if not methods:
            return path, DBUS + ".Properties", "GetAll", GLib.Variant("(s)", (interface,))
        method, signature = r.choice(methods)
        if method == "Remove" and r.random() < 0.7:
            method = "Start"
        if interface == DBUS + ".Properties" and r.random() < 0.7:
            own, names = r.choice([(i, p) for i, (_, p) in self.interfaces[kind].items()] or [("", [])])
            name = r.choice(names) if names else self.word()
            values = {"Get": (own, name), "GetAll": (own,), "Set": (own, name, self.value("v"))}[method]
            return path, interface, method, GLib.Variant(f"({signature})", values)
        values = [self.value(s) for s in split(signature)]
        if method == "CreateVM" and r.random() < 0.9:
            values[:2] = r.choice(POOL), self.definition()
        if method == "Update" and r.random() < 0.9:
            values[0] = self.patch()
        if signature.endswith("a{sv}") and r.random() < 0.8:
            values[-1] = self.own_options(method)
        return path, interface, method, GLib.Variant(f"({signature})", tuple(values)) if signature else None

    def wild(self):
        """Anything anywhere"""
        r = self.r
        everything = [(i, m) for kind in self.interfaces.values() for i, (methods, _) in kind.items() for m, _ in methods]
        interface, method = r.choice(everything)
        if r.random() < 0.1:
            interface = r.choice(("a.b", "org.vmunit1", "org.vmunit1.VM.x"))
        signature = "".join(r.choice(("s", "u", "t", "a{sv}", "v", "as", "ay", "(sv)", "h", "d", "o", "g", "aas", "a{s(ub)}")) for _ in range(r.randrange(4)))
        parameters = GLib.Variant(f"({signature})", tuple(self.value(s) for s in split(signature))) if signature else None
        return self.path(), interface, method, parameters

    def client(self):
        """One of some connections; they come and go, and some read nothing."""
        r = self.r
        if len(self.clients) < 6 or r.random() < 0.005:
            if len(self.clients) >= 6:
                self.clients.pop(r.randrange(6))[0].close()
            self.clients.append((RawClient(self.uid, fds=r.random() < 0.7), r.random() < 0.8, {}))
        return r.choice(self.clients)

    def step(self):
        r = self.r
        client, reads, sent = self.client()
        path, interface, method, parameters = self.aimed() if r.random() < 0.8 else self.wild()
        no_reply = r.random() < 0.1
        fds = [0] * r.choice((0, 0, 0, 0, 1, 3)) if client._takes_fds else ()
        serial = client.send(path, interface, method, parameters, no_reply=no_reply, fds=fds)
        self.calls[f"{interface}.{method}"] += 1
        if reads:
            sent[serial] = f"{method} of {path} with {parameters.print_(False)[:300] if parameters else 'nothing'}"
            self.read(client, sent)

    def read(self, client, sent):
        for m in client.pending():
            what = sent.pop(m.get_reply_serial(), None)
            if what is None:
                continue
            name = m.get_error_name() or "ok"
            self.answers[name.rpartition(".")[2]] += 1
            if name not in FINE and name != "ok" and not name.startswith(ERROR):
                self.strange.setdefault(name, f"{name} ({m.get_body().unpack()[0] if m.get_body() else ''}) to {what}")

    def go(self, seconds):
        end, pid, longest, n = time.monotonic() + seconds, daemon_pid(), 0, 0
        try:
            while time.monotonic() < end:
                self.step()
                n += 1
                if n % 20 == 0:
                    began = time.monotonic()
                    call(ROOT, MANAGER, "ListVMs", timeout=DEADLINE)
                    longest = max(longest, time.monotonic() - began)
                    assert daemon_pid() == pid, "the daemon has died"
        finally:
            for client, _, _ in self.clients:
                client.close()
        print(f"# seed {SEED}, uid {self.uid}: {n} calls in {seconds} s; another client waited {longest * 1000:.0f} ms at most; answers: "
              + ", ".join(f"{c} {a}" for a, c in self.answers.most_common()))
        assert not self.strange, "; ".join(self.strange.values())
        for kind in self.interfaces.values():
            for interface, (methods, _) in kind.items():
                missed = [m for m, _ in methods if not self.calls[f"{interface}.{m}"]]
                assert not missed or n < 1500, f"{interface}: never called {missed}"


def split(signature):
    """Its complete types: "sa{sv}" → s, a{sv}"""
    found = []
    while signature:
        size = 1
        while not GLib.VariantType.string_is_valid(signature[:size]):
            size += 1
        found.append(signature[:size])
        signature = signature[size:]
    return found


def attack(uid):
    check_fresh()
    before, pid = snapshot_leftovers(), daemon_pid()
    memory = memory_of(pid)[0]
    for n in range(4):                          # half of them the user's
        manager.create(POOL[n], tiny_definition(boot={"kernel": FILES + "/tiny.elf"}), owner=n % 2 * uid, start=n < 2)
    Hostile(uid, SEED).go(SECONDS)
    manager.remove_all()
    check_fresh()
    assert daemon_pid() == pid
    assert_no_leftovers(before, 30)
    if not SANITIZED:                           # which keeps what was freed
        grown = memory_of(pid)[0] - memory
        assert grown < 32 << 20, f"{grown >> 10} KiB more"


make_files()


@test("random calls of a user: others are answered all the while, and nothing is left", timeout=SECONDS + 90)
def _():
    with polkit_rules(RULES):
        attack(NOBODY)


@test("random calls of root: the same", timeout=SECONDS + 90)
def _():
    attack(0)


run()
