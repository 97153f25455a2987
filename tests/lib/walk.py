#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A random walk, in a box: three clients, twenty VMs, random calls with random options, some of them not waited for; now and then the
daemon or a VMM is killed. After each hundred calls all comes to rest, and the invariants must hold.

What is done depends on the seed alone, never on what came before, so a walk can be gone again; only its timing differs.
"""

import argparse
import collections
import random

import vmunit_test as vt
from invariants import Known, check_fresh
from vmunit_test import *

VMS, CLIENTS, OUTSTANDING, LEG = 20, 3, 4, 100
OPERATIONS = {"create": 14, "start": 20, "stop": 9, "kill": 6, "pause": 7, "resume": 8, "reboot": 4, "reset": 5, "update": 9,
              "remove": 3, "force": 2, "cancel": 6, "stats": 4}
DAEMON_DIES, VMM_DIES = 1 / 80, 1 / 10         # a call
SHARES = BACKEND != "firecracker"               # a third of the VMs have one or two
SHARED = "/tmp/walk"                            # the box's root is an overlay, which knows no idmapped mounts
ANSWER_SEC = 120
# What a call may be answered. The last ones only where somebody was killed, or the guest could not hear.
OURS = {ERROR + e for e in ("Busy", "InvalidState", "NotRunning", "Canceled", "Removing", "NoSuchVM", "VMExists", "Timeout", "BackendFailed")}
BUS_ERRORS = {"org.freedesktop.DBus.Error." + e for e in ("UnknownObject", "UnknownMethod", "UnknownInterface", "NoReply",
                                                          "Disconnected", "ServiceUnknown", "NameHasNoOwner")}


def configure():
    os.makedirs(SHARED, exist_ok=True)
    os.makedirs("/etc/vmunit", exist_ok=True)
    with open("/etc/vmunit/vmunit.conf", "w") as f:
        f.write("[VMUnit]\nRestartSec=100ms\nRestartMaxDelaySec=400ms\nRestartResetSec=1h\nEventsMax=0\n")
    os.makedirs("/run/systemd/system/vmunitd.service.d", exist_ok=True)
    with open("/run/systemd/system/vmunitd.service.d/walk.conf", "w") as f:
        f.write("[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=10ms\n")
    systemctl("daemon-reload")
    systemctl("restart", "vmunitd.service")


class Client:
    """A connection of its own."""

    def __init__(self):
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        address = Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM)
        self.bus = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
        self.outstanding = []

    def call(self, path, interface, method, parameters, then):
        entry = [method, path, time.monotonic()]
        self.outstanding.append(entry)

        def ended(connection, result):
            error = None
            try:
                connection.call_finish(result)
            except GLib.Error as e:
                error = BusError.of(e)
            self.outstanding.remove(entry)
            then(error)
            vt._happened()
        self.bus.call(BUS, path, interface, method, parameters, None, Gio.DBusCallFlags.NONE, ANSWER_SEC * 1000, None, ended)
        return entry


class Walk:
    def __init__(self, seed, calls, say=print):
        self.seed, self.calls, self.say = seed, calls, say
        self.random = random.Random(seed)
        self.clients = [Client() for _ in range(CLIENTS)]
        self.known, self.manager = Known(), Manager()
        self.counts, self.errors, self.kills = collections.Counter(), collections.Counter(), collections.Counter()
        self.labels = collections.defaultdict(set)      # of a VM: what its label may be
        self.created, self.removing, self.there = set(), set(), set()
        self.bad = []
        self.trace = collections.deque(maxlen=2 * LEG)

    # One step

    def definition(self, number, r):
        policy, n = r.choice(("no", "on-failure", "always")), max(0, r.randrange(7) - 4)
        shares = {"filesystems": [{"tag": f"s{i}", "source": SHARED} for i in range(n)]} if SHARES and n else {}
        return tiny_definition(**shares, restart={"policy": policy, "max": r.randrange(4)}, labels={"n": str(number)},
                               stopTimeout=r.choice(("0s", "200ms", "1s")))

    def parameters(self, operation, number, name, r):
        """(interface, method, parameters); takes the same from R whatever goes on."""
        keys = {}
        if operation == "create":
            if r.random() < 0.6:
                keys["start"] = True
                keys["no_block"] = r.random() < 0.5
            text = json.dumps(self.definition(number, r))
            return MANAGER, "CreateVM", GLib.Variant("(ssa{sv})", (name, text, options(**keys)))
        if operation == "update":
            if r.random() < 0.2:
                keys["next_start"] = True
            patch = r.choice(({"labels": {"n": str(number)}}, {"labels": {"n": str(number)}, "resources": {"TasksMax": 100 + number % 100}}))
            return VM_INTERFACE, "Update", GLib.Variant("(sa{sv})", (json.dumps(patch), options(**keys)))
        if operation == "stats":
            return VM_INTERFACE, "GetStats", GLib.Variant("(a{sv})", ({},))
        if operation in ("start", "stop", "reboot"):
            keys["no_block"] = r.random() < 0.3
        if operation == "stop" and r.random() < 0.5:
            keys["timeout_usec"] = r.choice((0, 1, 50000, 500000))
        if operation == "force":
            keys["force"] = True
        method = {"force": "Remove"}.get(operation, operation.capitalize())
        return VM_INTERFACE, method, GLib.Variant("(a{sv})", (options(**keys),))

    def answered(self, operation, number, name, error):
        if error is None:
            self.errors["ok"] += 1
            if operation == "create":
                self.created.add(name)
            return
        self.errors[error.name.rpartition(".")[2]] += 1
        if error.name not in OURS | BUS_ERRORS:
            self.bad.append(f"call {number}, {operation} of {name}: {error}")

    def step(self, number):
        r = self.random
        client = self.clients[r.randrange(CLIENTS)]
        name = f"w{r.randrange(VMS)}"
        operation = r.choices(list(OPERATIONS), OPERATIONS.values())[0]
        if number <= VMS:                       # there is something to begin with
            name, operation = f"w{number - 1}", "create"
        waits, kills_daemon, kills_vmm = r.random() < 0.4, r.random() < DAEMON_DIES, r.random() < VMM_DIES
        kind = r.choice(("VMM", "virtiofsd", "parent"))
        victim, inside = f"w{r.randrange(VMS)}", r.random() < 0.5
        seed = r.getrandbits(32)

        self.trace.append(f"{number}: client {self.clients.index(client)}: {operation} {name}{' waits' if waits else ''}")
        self.counts[operation] += 1
        if not inside:
            self.kill(kills_daemon, kills_vmm and kind, victim)
        entry = self.cancel(client, name) if operation == "cancel" else self.send(client, operation, number, name, random.Random(seed))
        if inside:
            self.kill(kills_daemon, kills_vmm and kind, victim)
        for c in self.clients:
            wait_for(lambda c=c: len(c.outstanding) < OUTSTANDING, ANSWER_SEC, "an answer")
        if waits and entry:
            wait_for(lambda: entry not in client.outstanding, ANSWER_SEC, f"an answer to {entry[0]} of {entry[1]}")

    def send(self, client, operation, number, name, r):
        if operation in ("create", "update"):
            self.labels[name].add(str(number))
        if operation in ("remove", "force"):
            self.removing.add(name)
        interface, method, parameters = self.parameters(operation, number, name, r)
        path = ROOT if operation == "create" else f"{ROOT}/vm/{encode(name)}"
        return client.call(path, interface, method, parameters, lambda error: self.answered(operation, number, name, error))

    def cancel(self, client, name):
        """Job.Cancel of whatever that VM does just now."""
        try:
            job = VM(name).Job
        except BusError:
            return None
        if job == "/":
            return None
        return client.call(job, JOB, "Cancel", GLib.Variant("(a{sv})", ({},)), lambda error: self.answered("cancel", 0, name, error))

    def kill(self, daemon, kind, victim):
        """kind: of the victim's processes. Of a VM that has no share it is the VMM."""
        if kind:
            pids = (pids_of_share(victim, "vmunit-exec" if kind == "parent" else kind) if kind != "VMM" else []) or vmms_of_cgroup(victim)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills["VMM"] += 1
                    self.trace.append(f"a process of {victim} was killed ({kind})")
        pid = daemon_pid() if daemon else 0
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills["daemon"] += 1
                self.trace.append("the daemon was killed")

    # Rest

    def rest(self):
        wait_for(lambda: not any(c.outstanding for c in self.clients), ANSWER_SEC, "all answers")
        self.known.check(90)
        names = {n: (vm_id, path) for n, vm_id, _, path in self.manager.list()}
        lost = (self.there | self.created) - self.removing - names.keys()
        if lost:
            self.bad.append("lost: " + " ".join(sorted(lost)))
        for name, (vm_id, path) in names.items():
            vm = VM(path)
            text = vm.call("GetDefinition", "a{sv}", {})
            label = json.loads(text)["labels"]["n"]
            if label not in self.labels[name]:
                self.bad.append(f"{name} has the label {label}")
            if not self.known.definitions.get(vm_id):
                self.known.add(vm)
        self.there, self.created, self.removing = set(names), set(), set()
        # what may come by the next rest is anything that is asked for until then
        self.known.definitions = {}
        if self.bad:
            raise AssertionError("; ".join(self.bad))

    def go(self):
        configure()
        self.manager.remove_all()
        check_fresh()
        self.known.check()
        self.known.base()
        self.known.usage_since = max([e[0] for e in self.manager.events(limit=10000)], default=0)
        start = time.monotonic()
        try:
            for number in range(1, self.calls + 1):
                self.step(number)
                if number % LEG == 0 or number == self.calls:
                    self.rest()
                    if number % (10 * LEG) == 0:
                        self.say(f"# {number} calls, {number / (time.monotonic() - start):.1f}/s")
        except BaseException:
            for line in self.trace:
                self.say("# " + line)
            self.say(f"# seed {self.seed}")
            raise
        seconds = time.monotonic() - start
        self.manager.remove_all()
        self.known.check()
        check_fresh()
        self.known.check()
        words = [f"{n} {what}" for what, n in sorted(self.errors.items(), key=lambda i: -i[1])]
        self.say(f"# seed {self.seed}: {self.calls} calls in {seconds:.0f} s ({self.calls / seconds:.1f}/s); killed: "
                 f"{self.kills['daemon']} × the daemon, {self.kills['VMM']} × processes of VMs; answers: {', '.join(words)}")


def pids_of_cgroup(name, scope, comms):
    """Of one of a VM's scopes, without asking anybody"""
    path = f"{vt.SLICE_CGROUP}/machine-vmunit-{escape(name)}.slice/{scope}.scope/cgroup.procs"
    found = []
    with contextlib.suppress(OSError), open(path) as f:
        for pid in map(int, f):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as comm:
                if comm.read().startswith(comms):
                    found.append(pid)
    return found


def vmms_of_cgroup(name):
    return pids_of_cgroup(name, f"vmunit-{escape(name)}", VMM_COMMS)


def pids_of_share(name, comm):
    """Of its first share"""
    return pids_of_cgroup(name, f"vmunit-{escape(name)}-fs-s0", comm)[:1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default=str(random.SystemRandom().getrandbits(32)))
    parser.add_argument("--calls", type=int, default=10000)
    args = parser.parse_args()
    print(f"# seed {args.seed}", flush=True)
    Walk(args.seed, args.calls, lambda line: print(line, flush=True)).go()


if __name__ == "__main__":
    main()
