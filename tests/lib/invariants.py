#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds whenever vmunit is at rest, whatever died before: a module for tests, and a program for a box.

    known = Known()                 # what the test knows: definitions as stored, the daemon's descriptors
    known.add(vm)
    known.check()                   # waits until all is quiet and everything below holds, or raises
    check_fresh()                   # a VM can be created, started, stopped and removed

States are the truth about processes; nothing is left of what does not run; no VM is lost, none is there twice; each has its
definition byte for byte; the ledger of usage has one interval a run, closed when that is dead, never two at a time.
"""

import sqlite3
import sys

import vmunit_test as vt
from leftovers import FIRST_ID, left_on_host
from vmunit_test import *

DATABASE = "/var/lib/vmunit/vmunit.db"
SLOTS = 32767                                   # of VMs' ids; the one after the last is the first
AT_REST = ("Stopped", "Running", "Paused", "Error")
PLAN_LATE = 20                                  # seconds that a planned start may be late on a busy host


def _rows(query):
    with contextlib.closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=5)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(query)]


def ids_of(vm_id):
    """Its slot, from which its uids come, and its number, from which its CID does; None: it is not in the database"""
    return next(((row["slot"], row["seq"]) for row in _rows(f"SELECT slot, seq FROM vm WHERE id = '{vm_id}'")), None)


def uids_of(slot):
    """Of its VMM, its virtiofsds, its passts"""
    return {FIRST_ID + 2 * slot, FIRST_ID + 2 * slot + 1, FIRST_ID + 2 * 65536 + slot}


def come_round_to(slot):
    """As if so many VMs had been created meanwhile that this slot is next. Quickly, as the daemon does not wait for others' locks."""
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=10)) as db:
        db.execute("PRAGMA synchronous = OFF")
        seq, = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'vm'").fetchone()
        db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'vm'", (seq + (slot - 1 - seq) % SLOTS,))
        db.commit()


def _listing(path):
    try:
        return set(os.listdir(path))
    except FileNotFoundError:
        return set()


def _processes():
    """{pid: (name, cgroup)} of what a VM is made of; a zombie is no process any more."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat") as f:
                name, _, rest = f.read().partition("(")[2].rpartition(")")
            if not name.startswith((*VMM_COMMS, "vmunit-exec", "virtiofsd", "passt")) or rest.split()[0] in "ZX":
                continue
            with open(f"/proc/{pid}/cgroup") as f:
                cgroup = next((line.strip()[3:] for line in f if line.startswith("0::")), "")
            found[int(pid)] = (name, cgroup)
    return found


class Machine:
    """A VM as the bus shows it."""

    def __init__(self, path, properties, companions=()):
        self.path, self.p = path, properties
        self.name, self.id, self.state, self.pid = (properties[k] for k in ("Name", "Id", "State", "LeaderPID"))
        self.units = {f"vmunit-{escape(self.name)}.scope", f"machine-vmunit-{escape(self.name)}.slice"}
        above = f"/machine-vmunit-{escape(self.name)}.slice/"
        self.cgroup = f"{above}vmunit-{escape(self.name)}.scope"
        scopes = {f"vmunit-{escape(self.name)}-{kind}-{escape(name)}.scope": program for kind, name, program in companions}
        self.units |= set(scopes)
        self.companions = {above + scope: program for scope, program in scopes.items()}

    def __str__(self):
        return f"{self.name} ({self.state}, {self.p['StateReason']!r}, PID {self.pid})"


def _companions(definition):
    """Kind, name and program of what runs beside the VMM"""
    return ([("fs", fs["tag"], "virtiofsd") for fs in definition.get("filesystems", [])] +
            [("net", n["name"], "passt") for n in definition.get("networks", []) if n.get("type", "user") == "user"])


def machines():
    objects = Manager().objects()
    jobs = [path for path, interfaces in objects.items() if JOB in interfaces]
    companions = {row["vm_id"]: _companions(json.loads(row["text"])) for row in _rows("SELECT vm_id, text FROM definition")}
    return [Machine(path, i[VM_INTERFACE], companions.get(i[VM_INTERFACE]["Id"], ())) for path, i in objects.items()
            if VM_INTERFACE in i], jobs


def unrest():
    """What is still going on, as sentences."""
    vms, jobs = machines()
    now = time.time()
    return ([f"{vm} is not at rest" for vm in vms if vm.state not in AT_REST] + [f"{job} goes on" for job in jobs] +
            [f"{vm} is to start again" for vm in vms if 0 < vm.p["RestartAtUSec"] / 1e6 < now + 3600])


def _check_live(vm, processes):
    if vm.pid not in processes:
        yield f"{vm} has no living process"
    elif not processes[vm.pid][1].endswith(vm.cgroup):
        yield f"{vm} is in the cgroup {processes[vm.pid][1]}"
    inside = sorted(name for name, cgroup in processes.values() if cgroup.endswith(vm.cgroup))
    if len([n for n in inside if n.startswith(VMM_COMMS)]) != 1 or len([n for n in inside if n == "vmunit-exec"]) != 1:
        yield f"{vm} consists of {inside}"
    for companion, program in vm.companions.items():
        inside = sorted({name.removesuffix(".avx2") for name, cgroup in processes.values() if cgroup.endswith(companion)})
        if inside != sorted([program, "vmunit-exec"]):
            yield f"{vm}: {companion} consists of {inside}"


def _check_os(vms):
    live = [vm for vm in vms if vm.pid]
    processes = _processes()
    for vm in vms:
        if vm.state in ("Running", "Paused") and not vm.pid:
            yield f"{vm} has no process"
        if vm.state == "Stopped" and vm.pid:
            yield f"{vm} has a process"
    for vm in live:
        yield from _check_live(vm, processes)
    for pid, (name, cgroup) in processes.items():
        if not any(cgroup.endswith((vm.cgroup, *vm.companions)) for vm in live):
            yield f"process {pid} ({name}) in {cgroup} is nobody's"

    ours = set().union(*(vm.units for vm in live)) if live else set()
    units = vt._units()
    yield from (f"unit {unit} is left over" for unit in units - ours)
    yield from (f"unit {unit} is missing" for unit in ours - units)
    groups = {os.path.basename(d) for d in vt._tree(vt.SLICE_CGROUP) if os.path.isdir(d)}
    yield from (f"cgroup {group} is left over" for group in groups - ours)
    yield from (f"/run/vmunit/vms/{name} is left over" for name in _listing("/run/vmunit/vms") - {vm.id for vm in live})
    yield from (f"/var/lib/vmunit/vms/{name} is left over" for name in _listing("/var/lib/vmunit/vms") - {vm.id for vm in vms})
    yield from (f"/run/systemd/system.control/{name} is left over" for name in _listing("/run/systemd/system.control"))
    yield from (f"/run/vmunit/{name} is left over" for name in _listing("/run/vmunit") - {"vms", "lock"})


def _check_host(vms, before):
    slots = {row["id"]: row["slot"] for row in _rows("SELECT id, slot FROM vm")}
    live = {n for vm in vms if vm.pid for n in uids_of(slots[vm.id])}
    if any(vm.pid and vm.companions and vm.p["OwnerUID"] == 0 for vm in vms):
        live |= set(range(FIRST_ID + 65536, FIRST_ID + 2 * 65536))
    for vm in vms:
        uid, want = vm.pid and os.stat(f"/proc/{vm.pid}").st_uid, FIRST_ID + 2 * slots[vm.id]
        if vm.pid and uid != want:
            yield f"{vm} runs with the id {uid} instead of {want}"
    for kind, now in left_on_host(daemon_pid(), launcher_pid(), live).items():
        if before or "mounts" not in kind:
            yield from (f"{kind}: {what} is left over" for what in sorted(now - before.get(kind, set())))


def _check_store(vms):
    stored = {row["name"]: row for row in _rows("SELECT * FROM vm")}
    shown = {vm.name: vm for vm in vms}
    if len(shown) != len(vms) or len({vm.id for vm in vms}) != len(vms):
        yield "a VM is there twice: " + " ".join(sorted(vm.name for vm in vms))
    yield from (f"{name} is stored, but not on the bus" for name in stored.keys() - shown.keys())
    yield from (f"{name} is on the bus, but not stored" for name in shown.keys() - stored.keys())
    for name in stored.keys() & shown.keys():
        row, vm = stored[name], shown[name]
        if (row["id"], row["state"].lower()) != (vm.id, vm.state.lower()):
            yield f"{vm} is stored as {row['state']}, {row['id']}"


def _check_plans(vms, policies):
    for vm in vms:
        at = vm.p["RestartAtUSec"] / 1e6
        if at and (vm.state not in ("Error", "Stopped") or vm.pid):
            yield f"{vm} has a planned start"
        if at and at < time.time() - PLAN_LATE:
            yield f"{vm} should have started {time.time() - at:.0f} s ago"
        if at and policies.get(vm.id) == "no":
            yield f"{vm} has a planned start, but its policy says no"


def _check_ledger(vms, since):
    """Intervals in their order; how many there may be is bounded by the history: each run that was shown has one, and a start that
    was rolled back may have had one."""
    live = {vm.id: vm for vm in vms if vm.pid}
    usage = _rows("SELECT * FROM usage ORDER BY vm_id, start_usec, id")
    last = {}
    for u in usage:
        what = f"usage {u['id']} of {u['vm_name']}"
        before = last.get(u["vm_id"])
        if before and (before["end_usec"] is None or before["end_usec"] > u["start_usec"]):
            yield f"{what} overlaps with {before['id']}"
        if not u["invocation_id"]:
            yield f"{what} tells no invocation of its scope"
        if u["end_usec"] is None and u["vm_id"] not in live:
            yield f"{what} is open, but nothing runs"
        last[u["vm_id"]] = u
    invocations = [u["invocation_id"] for u in usage]
    if len(set(invocations)) != len(invocations):
        yield "two intervals of usage are of one run"
    for vm_id, vm in live.items():
        if vm_id not in last or last[vm_id]["end_usec"] is not None:
            yield f"{vm} has no open interval of usage"
        elif unit_property(f"vmunit-{escape(vm.name)}.scope", "InvocationID") != last[vm_id]["invocation_id"]:
            yield f"the open interval of {vm} is of another run"

    counts, ends, untold = {}, {}, {}
    for e in _rows(f"SELECT vm_id, vm_name, type, details FROM event WHERE id > {since}"):
        transition = json.loads(e["details"] or "{}").get("transition")
        low, high, name = counts.get(e["vm_id"], (0, 0, e["vm_name"]))
        counts[e["vm_id"]] = (low + (transition == "started"), high + (transition in ("start", "reboot")), name)
        ends[e["vm_id"]] = ends.get(e["vm_id"], 0) + (e["type"] == "vmm-exited")
        untold[e["vm_id"]] = untold.get(e["vm_id"], 0) + (transition == "host-reboot" or e["type"] == "removing")
    for vm_id, (low, high, name) in counts.items():
        n = sum(u["vm_id"] == vm_id for u in usage)
        if not low <= n <= high:
            yield f"{name} has {n} intervals of usage, of {low} runs in {high} starts"
        runs = low - (vm_id in live)
        if not runs - untold[vm_id] <= ends[vm_id] <= n - (vm_id in live):
            yield f"the history has {ends[vm_id]} ends of {runs} runs in {n} intervals of {name}"


class Known:
    """What a test knows of its VMs."""

    def __init__(self):
        self.definitions, self.policies, self.descriptors, self.usage_since = {}, {}, None, 0
        self.host = {}

    def add(self, vm, *definitions):
        """The definition as it is stored now, or one of these."""
        p = vm.properties()
        texts = definitions or (vm.call("GetDefinition", "a{sv}", {}),)
        self.definitions[p["Id"]] = set(texts)
        self.policies[p["Id"]] = {json.loads(t).get("restart", {}).get("policy", "no") for t in texts}.pop()

    def forget(self, vm_id):
        self.definitions.pop(vm_id, None)
        self.policies.pop(vm_id, None)

    def base(self):
        """Call it while nothing runs: what the daemon has open then."""
        self.descriptors = self._open()
        self.host = left_on_host(daemon_pid(), launcher_pid())

    @staticmethod
    def _open():
        pid = daemon_pid()
        return {what: n for what, n in fds(pid).items() if "timerfd" not in what} if pid else {}

    def problems(self, lost=True):
        """All that does not hold, as sentences."""
        vms, _ = machines()
        found = [*unrest(), *_check_os(vms), *_check_store(vms), *_check_plans(vms, self.policies),
                 *_check_ledger(vms, self.usage_since)]
        shown = {vm.id: vm for vm in vms}
        stored = {row["vm_id"]: row["text"] for row in _rows("SELECT * FROM definition")}
        for vm_id, texts in self.definitions.items():
            if vm_id not in shown:
                found += [f"the VM {vm_id} is lost"] if lost else []
            elif stored.get(vm_id) not in texts:
                found.append(f"{shown[vm_id]} has another definition: {stored.get(vm_id)}")
            elif VM(shown[vm_id].path).call("GetDefinition", "a{sv}", {}) != stored[vm_id]:
                found.append(f"{shown[vm_id]} tells another definition than the stored one")
        now = self._open() if self.descriptors and not any(vm.pid for vm in vms) else {}
        if any(n > self.descriptors.get(what, 0) for what, n in now.items()):
            found.append(f"the daemon has open {now} instead of {self.descriptors}")
        return found or list(_check_host(vms, self.host))   # which takes longer, so not while others have to go first

    def check(self, timeout=20, ignore=()):
        """Waits until all is quiet and right."""
        found = ["vmunitd does not answer"]

        def right():
            try:
                found[:] = [p for p in self.problems() if not any(i in p for i in ignore)]
            except BusError as error:
                if error.name.startswith(ERROR):
                    raise
                found[:] = [str(error)]
            except sqlite3.OperationalError as error:
                found[:] = [f"the database: {error}"]
            return not found
        try:
            wait_for(right, timeout, "rest", poll=0.05)
        except Timeout:
            raise AssertionError("; ".join(found)) from None


def check_fresh(name="fresh"):
    vm = Manager().create(name, tiny_definition(), start=True)
    assert vm.State == "Running" and vm.pid, (vm.State, vm.pid)
    vm.stop(timeout_usec=0)
    assert vm.State == "Stopped", vm.State
    vm.remove()
    vm.wait_gone()


if __name__ == "__main__":
    problems = Known().problems()
    print("\n".join(problems) or "all is well")
    sys.exit(1 if problems else 0)
