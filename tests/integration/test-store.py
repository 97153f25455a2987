#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=290
"""The database under stress: full disks, foreign programs that hold it, kills of the daemon, copies, files that are none.

What vmunit said was stored is stored; what it could not store is refused, or true at once and stored when that can be done."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import status
from invariants import ids_of

import glob
import random
import shutil
import sqlite3

STATE = "/var/lib/vmunit"
DATABASE = STATE + "/vmunit.db"
BALLAST = STATE + "/ballast"
BACKUP = STATE + "/backup"
PAGE = 4096
KILLS = 100 if os.environ.get("VMUNIT_ALL") else 40
SEED = 20260611

manager = Manager()


def query(sql, *args):
    """What a program beside the daemon reads."""
    with contextlib.closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=5)) as db:
        return db.execute(sql, args).fetchall()


def row(vm):
    """State and reason as they are stored."""
    return query("SELECT state, reason FROM vm WHERE name = ?", vm)[0]


def shown(name):
    vm = VM(name)
    return vm.State, vm.StateReason


def open_usage(name):
    return query("SELECT count(*) FROM usage WHERE vm_name = ? AND end_usec IS NULL", name)[0][0]


def check_ledger():
    """No intervals of a VM overlap, one for each scope, open where one runs and nowhere else."""
    intervals = query("SELECT vm_id, start_usec, end_usec, invocation_id FROM usage ORDER BY vm_id, id")
    for (vm, _, end, _), (next_vm, start, _, _) in zip(intervals, intervals[1:]):
        assert vm != next_vm or (end is not None and end <= start), f"two intervals of {vm} overlap: {end}, {start}"
    ids = [i for *_, i in intervals]
    assert all(ids) and len(set(ids)) == len(ids), f"two intervals of one launch: {intervals}"
    for name, _, state, path in manager.list():
        running = state in ("Running", "Paused", "Stopping")
        assert open_usage(name) == running, f"{name} is {state} and has {open_usage(name)} open intervals"
        if running:
            stored = query("SELECT invocation_id FROM usage WHERE vm_name = ? AND end_usec IS NULL", name)[0][0]
            assert stored == unit_property(VM(path).Unit, "InvocationID"), (name, stored)


# Disks that are full

def mount_small():
    """A small disk of its own for what the daemon stores."""
    manager.remove_all()
    stop_daemon()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", STATE], check=True)
    start_daemon()
    no_copies()


def no_copies():
    """A fresh copy, as it seems, so that none is made meanwhile: the first look is some seconds after the start."""
    os.makedirs(BACKUP, 0o700, exist_ok=True)
    with open(BACKUP + "/vmunit-2000-01-01.db", "w"):
        pass


def unmount_small():
    with contextlib.suppress(BusError):
        manager.remove_all()
    stop_daemon()
    subprocess.run(["umount", STATE], check=True)
    start_daemon()


def fill(leave=0):
    """Fills the disk to the last byte, and gives some pages back."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(BALLAST)
    fd = os.open(BALLAST, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):
            while os.write(fd, b"x" * PAGE):
                pass
        os.ftruncate(fd, max(0, os.fstat(fd).st_size // PAGE - leave) * PAGE)
    finally:
        os.close(fd)


def refill(leave=0):
    """The same, after all room that the database holds in reserve is used up."""
    fill()
    with contextlib.suppress(BusError):
        while True:                                     # what succeeds takes room
            VM("drain").update({"labels": {"x": os.urandom(1500).hex()}})
    fill(leave)


def make_room():
    os.unlink(BALLAST)


def wait_stored(*names):
    """What is stored is what is shown, without a restart."""
    for name in names:
        wait_for(lambda: row(name) == shown(name), 10, f"{name} to be stored as it is", poll=0.1)


@contextlib.contextmanager
def small_disk(*running):
    mount_small()
    try:
        manager.create("drain", tiny_definition())
        for name in running:
            manager.create(name, tiny_definition()).start()
            VM(name).wait_log(b"TINY-UP")
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            make_room()
        unmount_small()


@test("full: what begins is refused, and nothing is left of it", timeout=60)
def _():
    with small_disk("web"):
        stopped = manager.create("idle", tiny_definition())
        refill()
        before = snapshot_leftovers()
        names = [name for name, *_ in manager.list()]
        with expect_error("NoSpace", "make room"):
            manager.create("new", tiny_definition())
        with expect_error("NoSpace", "make room"):
            manager.create("new", tiny_definition(), start=True)
        assert [name for name, *_ in manager.list()] == names
        with expect_error("NoSpace", "make room"):
            stopped.start()
        assert shown("idle")[0] == "Stopped" and stopped.Job == "/"
        with expect_error("NoSpace", "make room"):
            stopped.remove()
        assert shown("idle")[0] == "Stopped"
        definition = VM("web").definition()
        with expect_error("NoSpace", "make room"):
            VM("web").update({"labels": {"a": "b" * 4000}})
        assert VM("web").definition() == definition
        assert_no_leftovers(before)
        assert shown("web")[0] == "Running"
        make_room()
        stopped.start()
        VM("web").update({"labels": {"a": "b" * 4000}})
        manager.create("new", tiny_definition())
        wait_stored("web", "idle", "new")
        check_ledger()


@test("full at each commit of a start: rolled back, and it works when there is room", timeout=120)
def _():
    with small_disk():
        vm = manager.create("web", tiny_definition())
        results = []
        for pages in range(0, 24):
            refill(pages)
            before = snapshot_leftovers()
            try:
                vm.start()
            except BusError as error:
                assert error.short == "NoSpace", error
                results.append("refused")
                assert shown("web")[0] == "Stopped", shown("web")
                state = f"{STATE}/vms/{vm.Id}"
                for kind in before:                     # the last run's output is kept, and gone with the VM
                    before[kind] |= {state, state + "/console.log", state + "/last-output"} if kind == "files" else set()
                now = snapshot_leftovers()
                before["files"] |= {p for p in now["files"] if p.startswith("/run/vmunit/unsaved-")}    # till there is room
                if state not in now["files"]:
                    before["files"] -= {p for p in before["files"] if p.startswith(state)}
                else:
                    before["files"] |= {p for p in now["files"] if p.startswith(state)}
                assert_no_leftovers(before)
            else:
                results.append("started")
                assert vm.State == "Running"
                vm.kill()
                assert shown("web") == ("Stopped", "killed")
            make_room()
            wait_stored("web")
            wait_for(lambda: not glob.glob("/run/vmunit/unsaved-*"), 10, poll=0.05)
            check_ledger()
            vm.start()
            vm.kill()
        assert results[0] == "refused" and results[-1] == "started", results


@test("full: what ends has ended at once, and is stored when there is room", timeout=90)
def _():
    names = ("stopped", "killed", "off", "crashed", "paused", "policy")
    with small_disk(*names):
        refill()
        VM("stopped").stop()
        assert shown("stopped") == ("Stopped", "stopped")
        VM("killed").kill()
        assert shown("killed") == ("Stopped", "killed")
        with VM("off").open_console() as console:
            console.send(b"q")
            VM("off").wait_state("Stopped")
        assert shown("off") == ("Stopped", "guest-shutdown")
        os.kill(VM("crashed").pid, signal.SIGKILL)
        VM("crashed").wait_state("Error")
        assert shown("crashed") == ("Error", "vmm-crashed")
        VM("paused").pause()
        assert shown("paused")[0] == "Paused"
        assert row("stopped")[0] == row("crashed")[0] == row("paused")[0] == "Running", "the disk was not full"
        make_room()
        wait_stored(*names)
        check_ledger()
        VM("paused").resume()
        VM("stopped").start()
        VM("crashed").start()
        wait_stored(*names)
        check_ledger()


@test("full: no event is missed, and each has its number once", timeout=60)
def _():
    with small_disk("web", "other"):
        last = manager.events()[-1][0]
        mark = len(signals)
        refill()
        drained = manager.events()[-1][0]
        VM("web").stop()
        VM("other").pause()
        VM("other").resume()
        VM("other").kill()
        assert manager.events()[-1][0] == drained, "the disk was not full"
        make_room()
        wait_for(lambda: row("other") == shown("other") and row("web") == shown("web"), 10, poll=0.1)
        events = [e for e in manager.events(after=last) if e[3] != "drain"]
        web, other = ([e[4] for e in events if e[3] == name] for name in ("web", "other"))
        assert [t for t in web if t in ("stopping", "stopped", "vmm-exited")] == ["stopping", "vmm-exited", "stopped"], web
        wanted = ["paused", "running", "stopping", "vmm-exited", "stopped"]
        assert [t for t in other if t in wanted] == wanted, other
        assert [e[0] for e in events] == sorted({e[0] for e in events})
        assert [e[1] for e in events] == sorted(e[1] for e in events), "not in the order of time"
        wait_for(lambda: len([s for s in signalled("Event", since=mark) if s.args[3] != "drain"]) == len(events), 5)
        told = [s.args for s in signalled("Event", since=mark) if s.args[3] != "drain"]
        assert [t[0] for t in told] == [e[0] for e in events], (told, events)


@test("full, and the daemon starts again: what is true is found", timeout=90)
def _():
    names = ("stopped", "off", "crashed", "alive")
    with small_disk(*names):
        refill()
        alive = VM("alive").pid
        VM("stopped").stop()
        with VM("off").open_console() as console:
            console.send(b"q")
            VM("off").wait_state("Stopped")
        os.kill(VM("crashed").pid, signal.SIGKILL)
        VM("crashed").wait_state("Error")
        for restart in (kill_daemon, lambda: systemctl("restart", "vmunitd.service")):
            restart()
            assert VM("alive").wait_state("Running") and VM("alive").pid == alive
            for name in names[:3]:
                VM(name).wait_state("Stopped", "Error")
                assert VM(name).pid == 0
            fill()
            with expect_error("NoSpace"):
                refill()
                manager.create("new", tiny_definition())
        VM("alive").kill()
        make_room()
        wait_stored(*names)
        check_ledger()
        for name in names:
            VM(name).start()
        check_ledger()


@test("full, and the daemon dies in a Stop or after it: the stop goes on, and is no crash", timeout=90)
def _():
    with small_disk():
        vms = {name: manager.create(name, tiny_definition(restart={"policy": "always"}, stopTimeout="3s"), start=True)
               for name in ("stopped", "killed", "deaf", "crashed")}
        for vm in vms.values():
            vm.wait_log(b"TINY-UP")
        with vms["deaf"].open_console() as console:     # it obeys no button
            console.sendall(b"s")
            read_until(console.fileno(), b"s")
        refill()
        vms["stopped"].stop()
        vms["killed"].kill()
        stop = vms["deaf"].stop_async()
        vms["deaf"].wait_state("Stopping")
        kill_daemon()
        assert [row(name)[0] for name in ("stopped", "killed", "deaf")] == ["Running"] * 3, "the disk was not full"
        assert shown("deaf")[0] == "Stopping" and stop.done
        for _ in range(2):
            vms["deaf"].wait_state("Stopped")
            assert [shown(name) for name in ("stopped", "killed", "deaf")] == \
                [("Stopped", "stopped"), ("Stopped", "killed"), ("Stopped", "stop-forced")]
            assert all(vms[name].RestartAtUSec == 0 for name in ("stopped", "killed", "deaf"))
            kill_daemon()
        make_room()
        wait_stored(*vms)
        wait_for(lambda: not glob.glob("/run/vmunit/unsaved-*"), 10, poll=0.05)
        check_ledger()
        kill_daemon()
        assert [shown(name)[0] for name in ("stopped", "killed", "deaf")] == ["Stopped"] * 3
        assert vms["crashed"].State == "Running"
        for name in ("stopped", "killed", "deaf"):
            vms[name].start()
        check_ledger()


# Others that hold the file

@contextlib.contextmanager
def foreign(sql):
    with contextlib.closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=5)) as db:
        db.execute(sql)
        try:
            yield db
        finally:
            db.rollback()


@test("a foreign writer holds the file: what begins is refused as busy, what ends has ended, quickly", timeout=60)
def _():
    manager.remove_all()
    for name in ("web", "db", "idle"):
        manager.create(name, tiny_definition())
    VM("web").start()
    VM("db").start()
    with foreign("BEGIN IMMEDIATE"):
        begin = time.monotonic()
        with expect_error("Busy", "nother program"):
            manager.create("new", tiny_definition())
        with expect_error("Busy", "nother program"):
            VM("idle").start()
        assert time.monotonic() - begin < 1
        VM("web").stop()
        VM("db").kill()
        assert shown("web") == ("Stopped", "stopped") and shown("db") == ("Stopped", "killed")
        assert row("web")[0] == "Running"
    wait_stored("web", "db", "idle")
    check_ledger()
    with foreign("BEGIN") as db:                        # a reader, for a long time
        db.execute("SELECT count(*) FROM vm").fetchall()
        for n in range(50):
            VM("idle").update({"labels": {"n": str(n)}})
        VM("idle").start()
        VM("idle").kill()
    manager.remove_all()


# Copies

def newest_copy():
    found = glob.glob(BACKUP + "/vmunit-*.db")
    return max(found, key=os.path.getmtime) if found else None


@test("a copy is made soon after the start, once a day, and one can go back to it", timeout=90)
def _():
    manager.remove_all()
    for name in ("web", "db"):
        manager.create(name, tiny_definition(labels={"of": name}))
    VM("web").start()
    stop_daemon()
    for path in glob.glob(BACKUP + "/*"):
        os.unlink(path)
    start_daemon()
    copy = wait_for(newest_copy, 20, "the first copy", poll=0.1)
    wait_for(lambda: os.listdir(BACKUP) == [os.path.basename(copy)], 5, "nothing temporary there", poll=0.1)
    assert os.stat(copy).st_mode & 0o777 == 0o600 and os.stat(BACKUP).st_mode & 0o777 == 0o700
    made = os.stat(copy)

    manager.create("later", tiny_definition())
    kill_daemon()
    stop_daemon()
    os.unlink(DATABASE)
    refused(f"copy the newest of {BACKUP}")
    subprocess.run(["cp", "-a", copy, DATABASE], check=True)            # as docs/operations.md says
    start_daemon()
    assert [name for name, *_ in manager.list()] == ["web", "db"]
    assert VM("web").State == "Running" and VM("web").pid, "the VM went on"
    assert VM("db").definition()["labels"] == {"of": "db"}
    assert os.stat(copy).st_ino == made.st_ino, "not another one on the same day"
    check_ledger()

    stop_daemon()
    old = time.time() - 25 * 3600
    os.utime(copy, (old, old))
    start_daemon()
    wait_for(lambda: os.path.getmtime(newest_copy()) > old + 3600, 20, "a copy on the next day", poll=0.1)
    manager.remove_all()


def put_back(copy):
    """In the place of the database, of which a copy is given, while the daemon is away."""
    stop_daemon()
    now = f"{STATE}/copy-{time.monotonic_ns()}"
    shutil.copy(DATABASE, now)
    for path in glob.glob(DATABASE + "*"):
        os.unlink(path)
    if copy:
        shutil.copy(copy, DATABASE)
    else:
        shutil.copy(now, DATABASE)
    start_daemon()
    return now


def identity(vm):
    """Of one that runs: slot and number, and its VMM's uid"""
    return (*ids_of(vm.Id), int(status(vm.LeaderPID, "Uid")[0]))


@test("what runs and is unknown to the copy that was gone back to shares its ids with nobody, then or later", timeout=120)
def _():
    manager.remove_all()
    manager.create("known", tiny_definition())
    copy = put_back(None)
    strangers = []

    def run_new(name):
        vm = manager.create(name, tiny_definition())
        vm.start()
        strangers.append((vm.Id, vm.Unit, vm.Slice))
        return identity(vm)
    try:
        taken = [run_new("first")]
        for _ in range(2):                      # the second time there is one that the next daemon finds again
            put_back(copy)
            assert [name for name, *_ in manager.list()] == ["known"]
            taken.append(run_new(f"other{len(taken)}"))
        kill_daemon()
        manager.create("rests", tiny_definition())
        newer = put_back(copy)                  # to which it is unknown as well, and runs nowhere
        taken.append(run_new("last"))
        assert all(len(set(column)) == len(taken) for column in zip(*taken)), taken

        put_back(newer)                         # in which another has what "last" runs with
        rests = VM("rests")
        rests.start()
        taken.append(identity(rests))
        rests.kill()
        taken.append(run_new("more"))
        assert all(len(set(column)) == len(taken) for column in zip(*taken)), taken
        before = ids_of(rests.Id)
        kill_daemon()
        assert ids_of(rests.Id) == before
    finally:
        manager.remove_all()
        for vm_id, scope, slice_ in strangers:
            systemctl("kill", "-s", "KILL", scope, check=False)
            wait_unit_gone(slice_)
            shutil.rmtree(f"/run/vmunit/vms/{vm_id}", ignore_errors=True)
            shutil.rmtree(f"{STATE}/vms/{vm_id}", ignore_errors=True)
        for path in glob.glob(STATE + "/copy-*"):
            os.unlink(path)


# Files that are none

def refused(text):
    """The daemon does not start, says so and leaves the name alone."""
    systemctl("reset-failed", "vmunitd.service", check=False)
    os.makedirs("/run/systemd/system/vmunitd.service.d", exist_ok=True)
    before = len(journal("SYSLOG_IDENTIFIER=vmunitd"))      # not by its unit: that of one which has exited may be unknown
    with open("/run/systemd/system/vmunitd.service.d/no-restart.conf", "w") as f:
        f.write("[Service]\nRestart=no\n")
    systemctl("daemon-reload")
    try:
        assert subprocess.run(["systemctl", "start", "vmunitd.service"], capture_output=True, check=False).returncode
        assert unit_property("vmunitd.service", "Result") == "exit-code"
        assert unit_property("vmunitd.service", "ExecMainStatus") == "78"       # so that Restart= leaves it
        messages = [str(e.get("MESSAGE")) for e in journal("SYSLOG_IDENTIFIER=vmunitd")[before:]]
        assert any(text in m and m.endswith(".") for m in messages), f"no {text!r} in {messages}"
        owned = call("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", "s", BUS,
                     destination="org.freedesktop.DBus")
        assert owned is False, "the name is owned"
    finally:
        os.unlink("/run/systemd/system/vmunitd.service.d/no-restart.conf")
        systemctl("daemon-reload")
        systemctl("reset-failed", "vmunitd.service", check=False)


def put(data, offset=None):
    if offset is None:
        with open(DATABASE, "wb") as f:
            f.write(data)
    else:
        with open(DATABASE, "r+b") as f:
            f.seek(offset)
            f.write(data)


def sql(statement):
    with contextlib.closing(sqlite3.connect(DATABASE)) as db:
        db.execute(statement)
        db.commit()


@test("a file that is corrupt, newer or none is refused, and a VM that runs goes on", timeout=90)
def _():
    manager.remove_all()
    vm = manager.create("web", tiny_definition())
    vm.start()
    leader = vm.pid
    stop_daemon()
    with open(DATABASE, "rb") as f:
        good = f.read()
    for change, text in ((lambda: put(b"not at all"), "not an SQLite database"),
                         (lambda: put(b""), "is empty"),
                         (lambda: put(b"\xa5" * 64, 3 * PAGE), "is corrupt"),
                         (lambda: put(good[:-PAGE]), "is corrupt"),
                         (lambda: sql("PRAGMA user_version = 77"), "upgrade vmunit"),
                         (lambda: sql("PRAGMA application_id = 7"), "not one of vmunit"),
                         # elsewhere the list was merely shorter when an entry could not be read
                         (lambda: sql("UPDATE definition SET text = '{}'"), "The VM web in"),
                         (lambda: os.unlink(DATABASE), "is missing")):
        change()
        refused(text)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(DATABASE + suffix)
        put(good)
        os.chmod(DATABASE, 0o600)
    start_daemon()
    assert vm.State == "Running" and vm.pid == leader
    manager.remove_all()


@test("a read-only file system is refused, and used when it is writable", timeout=60)
def _():
    with small_disk():
        stop_daemon()
        subprocess.run(["mount", "-o", "remount,ro", STATE], check=True)
        try:
            refused("read-only")
        finally:
            subprocess.run(["mount", "-o", "remount,rw", STATE], check=True)
        start_daemon()
        assert [name for name, *_ in manager.list()] == ["drain"]


# Kills

CLIENT_ERRORS = ("NoReply", "ServiceUnknown", "Disconnected", "NameHasNoOwner", "Timeout", "TimedOut")


def client(number, seed):
    """Creates, changes and removes VMs of its own until its standard input ends; then tells what must be stored."""
    chance = random.Random(seed)
    possible = {f"c{number}-{n}": {None} for n in range(5)}     # name: what may be stored of it
    counts = {"sure": 0, "unsure": 0}

    def attempt(name, outcome, call):
        """outcome: what is stored if it succeeds (a dictionary's text, or None)"""
        try:
            call()
        except BusError as error:
            if error.name.rsplit(".", 1)[-1] in CLIENT_ERRORS or error.short == "Canceled":
                possible[name].add(outcome)
                counts["unsure"] += 1
            else:
                print(f"# {name}: {error}", flush=True)
                raise
            return
        possible[name] = {outcome}
        counts["sure"] += 1

    while not select_stdin():
        name = chance.choice(list(possible))
        text = json.dumps(tiny_definition(labels={"n": "%x" % chance.getrandbits(64 + chance.randrange(9) * 500)}))
        known = next(iter(possible[name])) if len(possible[name]) == 1 else "unsure"
        if known is None:
            attempt(name, text, lambda: Manager().create(name, text))
        elif known == "unsure":
            with contextlib.suppress(BusError):
                look(name, possible)
        elif chance.random() < 0.6:
            attempt(name, text, lambda: VM(name).update({"labels": json.loads(text)["labels"]}))
        else:
            attempt(name, None, lambda: VM(name).remove() or VM(name).wait_gone())
    print(json.dumps([{n: list(p) for n, p in possible.items()}, counts]))


def look(name, possible):
    """What is stored of it, which must be one of what may be."""
    listed = [(n, path, state) for n, _, state, path in Manager().list() if n == name]
    if listed and listed[0][2] == "Removing":
        return
    if not listed:
        found = {None}
    else:
        labels = VM(listed[0][1]).definition()["labels"]
        found = {p for p in possible[name] if p and json.loads(p)["labels"] == labels}
    if not found & possible[name]:
        print(f"# {name} is {listed and labels}, not one of {possible[name]}", flush=True)
        os._exit(3)
    possible[name] = found & possible[name]


def select_stdin():
    import select
    return bool(select.select([0], [], [], 0)[0])


def starter(seed):
    """Starts and kills one VM, again and again, and tells how often it knows to have started it."""
    chance = random.Random(seed)
    starts = unsure = 0
    while not select_stdin():
        vm = VM("runner")
        try:
            if chance.random() < 0.5:
                before = vm.State
                vm.start()
                starts += before != "Running"
            else:
                vm.kill()
        except BusError as error:
            if error.short not in ("Canceled", "Busy", "BackendFailed", "Timeout", "BackendUnavailable", "NotRunning") and \
                    error.name.rsplit(".", 1)[-1] not in CLIENT_ERRORS:
                raise
            unsure += 1
    print(json.dumps([starts, unsure]))


def spawn(*args):
    return subprocess.Popen(["/usr/bin/python3", os.path.realpath(__file__), *map(str, args)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def end(process):
    out, _ = process.communicate("x", timeout=60)
    assert process.returncode == 0, f"a client failed: {out}"
    return json.loads(out.splitlines()[-1])


@test(f"{KILLS} kills of the daemon at random moments: nothing is lost, nothing twice, the ledger exact", timeout=200)
def _():
    os.makedirs("/run/systemd/system/vmunitd.service.d", exist_ok=True)
    with open("/run/systemd/system/vmunitd.service.d/kills.conf", "w") as f:
        f.write("[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=0\n")
    systemctl("daemon-reload")
    manager.remove_all()
    manager.create("runner", tiny_definition())
    chance = random.Random(SEED)
    print(f"# seed {SEED}", flush=True)
    clients = [spawn("--client", n, SEED + n) for n in range(3)]
    runner = spawn("--starter", SEED + 9)
    kills = 0
    stop = time.monotonic() + 150
    while kills < KILLS and time.monotonic() < stop:
        time.sleep(chance.random() * 0.3)               # not for anything: the moment is random
        kill_daemon()
        kills += 1
    outcomes, (starts, unsure) = [end(c) for c in clients], end(runner)
    os.unlink("/run/systemd/system/vmunitd.service.d/kills.conf")
    systemctl("daemon-reload")
    wait_for(lambda: not any(state == "Removing" for _, _, state, _ in manager.list()), 15, "removals", poll=0.1)

    listed = [name for name, *_ in manager.list()]
    assert len(set(listed)) == len(listed), "one is listed twice"
    for possible, _ in outcomes:
        for name in possible:
            look(name, {name: set(possible[name])})
    stored = query("SELECT name, text FROM vm JOIN definition ON vm_id = id")
    assert sorted(name for name, _ in stored) == sorted(listed)
    for name, text in stored:
        assert VM(name).call("GetDefinition", "a{sv}", {}) == text, f"{name}: not byte for byte"
    sums = {word: sum(counts[word] for _, counts in outcomes) for word in ("sure", "unsure")}
    intervals = query("SELECT count(*) FROM usage WHERE vm_name = 'runner'")[0][0]
    print(f"# {kills} kills; {sums['sure']} changes that were answered, {sums['unsure']} that were not; {starts} starts that "
          f"were answered, {unsure} calls that were not, {intervals} intervals", flush=True)
    assert kills >= KILLS // 2 and sums["sure"] > 100
    assert starts <= intervals <= starts + unsure, (starts, intervals, unsure)
    ids = [i for i, *_ in manager.events(limit=100000)]
    assert ids == sorted(set(ids))
    wait_for(lambda: shown("runner")[0] in ("Stopped", "Running", "Error"), 10)
    check_ledger()
    manager.remove_all()
    check_ledger()


if sys.argv[1:2] == ["--client"]:
    client(int(sys.argv[2]), int(sys.argv[3]))
elif sys.argv[1:2] == ["--starter"]:
    starter(int(sys.argv[2]))
else:
    run()
