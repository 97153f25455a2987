#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized
"""The vmunit command: every verb, its output and exit status, many VMs at once, terminals, refusals."""

import fcntl
import itertools
import os
import pty
import select
import sys
import tempfile
import termios

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

NOBODY = 65534
MISSING = "/nonexistent/kernel"
manager = Manager()
names = (f"cli{n}" for n in itertools.count())
COLUMNS = ["NAME", "STATE", "BACKEND", "CPUS", "MEMORY", "SINCE"]


# Running it

def vmunit(*args, stdin="", uid=None, cwd="/", env=None):
    """Runs the command to its end; gives status, standard output and standard error."""
    who = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
    done = subprocess.run(["vmunit", *args], input=stdin.encode(), capture_output=True, cwd=cwd, check=False,
                          timeout=60, env=os.environ | (env or {}), **who)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def good(*args, **keys):
    """It must succeed and say nothing on standard error; gives standard output."""
    status, out, err = vmunit(*args, **keys)
    assert status == 0 and not err, f"vmunit {' '.join(args)}: {status}, {err}"
    return out


def bad(status, *args, says=(), **keys):
    """It must fail with STATUS, say all of SAYS on standard error, and nothing on standard output."""
    got, out, err = vmunit(*args, **keys)
    assert got == status, f"vmunit {' '.join(args)}: {got} instead of {status}: {err}"
    assert not out, out
    for text in [says] if isinstance(says, str) else says:
        assert text in err, f"vmunit {' '.join(args)}: no {text!r} in {err!r}"
    return err


@contextlib.contextmanager
def vm_of(definition=None, **keys):
    vm = manager.create(next(names), definition or tiny_definition(), **keys)
    vm.name = vm.Name
    try:
        if keys.get("start"):
            vm.wait_log(b"TINY-UP")
        yield vm
    finally:
        with contextlib.suppress(BusError):
            vm.remove(force=True)
        vm.wait_gone()


@contextlib.contextmanager
def many(n, **keys):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(vm_of(**keys)) for _ in range(n)]


@contextlib.contextmanager
def launcher_stopped():
    """A start that begins here hangs until the end of the block."""
    systemctl("start", "vmunit-launch.service")
    pid = launcher_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):   # the daemon's end has ended it
            os.kill(pid, signal.SIGCONT)


def deafen(vm):
    """The guest no longer hears the power button."""
    with vm.open_console() as console:
        console.send(b"s")
        read_until(console.fileno(), b"s")


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, *args, wait=None):
        self.fd, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(["vmunit", *args], stdin=self.slave, stdout=self.slave, stderr=self.slave,
                                        start_new_session=True, env=os.environ | {"TERM": "xterm"},
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        self.seen = read_until(self.fd, wait) if wait else b""

    def is_restored(self):
        return termios.tcgetattr(self.slave) == self.before

    def end(self):
        """Waits for its end; gives status and all output."""
        status = self.process.wait(20)
        while select.select([self.fd], [], [], 0)[0]:
            self.seen += os.read(self.fd, 65536)
        return status, self.seen

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self.slave)


# Usage

@test("wrong usage: status 2, a sentence on standard error, nothing on standard output")
def _():
    for args, says in (
            ([], "--help"), (["strat", "x"], "did you mean 'start'?"), (["xyzzy"], "--help"),
            (["list", "--jsno"], "did you mean --json?"), (["list", "--json=1"], "takes no value"),
            (["list", "-x"], "-x"), (["start"], "NAME"), (["list", "x"], "list takes no name"),
            (["show", "a", "b"], "one NAME"), (["create"], "NAME [FILE|-]"), (["create", "a", "b", "c"], "FILE"),
            (["start", "a", "--force"], "it goes with remove"), (["log", "a", "-n"], "needs a value"),
            (["stop", "a", "--timeout", "soon"], "not a time"), (["log", "a", "-n", "x"], "not a size"),
            (["events", "-n", "x"], "not a number"), (["create", "a", "--no-block"], "--start")):
        assert bad(2, *args, says=says).startswith("vmunit: "), args
    for option, value in (("cpus", "two"), ("disk", ""), ("disk", "x,size=1"), ("forward", "22"), ("forward", "0:22"),
                          ("forward", "1:2/sctp"), ("firmware", "ufei"), ("label", "x")):
        assert bad(2, "create", "nobody", f"--{option}={value}").startswith("nobody: "), (option, value)
    bad(1, "status", "nobody")


@test("--help and --version go to standard output")
def _():
    text = good("--help")
    for word in ("create", "start", "stop", "kill", "reboot", "reset", "pause", "resume", "remove", "list", "show",
                 "status", "console", "log", "events", "JSON", "Exit status"):
        assert word in text, word
    assert good("start", "x", "-h") == text == good("help")
    assert good("--version").startswith("vmunit ")


# Making

@test("create from options: relative paths become absolute, the rest is as written")
def _():
    name = next(names)
    with tempfile.TemporaryDirectory() as directory:
        for file in ("vmlinuz", "a,b.raw"):
            open(os.path.join(directory, file), "w").close()
        os.mkdir(os.path.join(directory, "shared"))
        assert not good("create", "--cpus=2", name, "--memory", "64M", "--kernel", "vmlinuz", "--cmdline", "a b=c",
                        "--share=all=shared", "--share", "a-b=/usr/share:ro",
                        "--disk=a,,b.raw,readonly,name=data", "--forward", "12222:22", "--accel=tcg", "--label=team=web=1",
                        "--backend=qemu", "--forward=127.0.0.2:1053:53/udp", "--stop-timeout=5s", cwd=directory)
    vm = manager.vm(name)
    d = vm.definition()
    assert (d["cpus"], d["memory"], d["accel"], d["stopTimeout"]) == (2, "64M", "tcg", "5s"), d
    assert d["boot"]["kernel"] == directory + "/vmlinuz" and d["boot"]["cmdline"] == "a b=c", d
    assert [(x["name"], x["path"], x["readonly"]) for x in d["disks"]] == [("data", directory + "/a,b.raw", True)], d
    assert [(f["address"], f["protocol"], f["host"], f["guest"]) for f in d["networks"][0]["forward"]] == [
        ("127.0.0.1", "tcp", 12222, 22), ("127.0.0.2", "udp", 1053, 53)], d
    assert [(f["tag"], f["source"], f["readonly"], f["cache"]) for f in d["filesystems"]] == [
        ("all", directory + "/shared", False, "auto"), ("a-b", "/usr/share", True, "auto")], d
    assert d["labels"] == {"team": "web=1"} and vm.State == "Stopped", d
    assert json.loads(good("show", name, "--definition")) == d
    lines = [line.strip() for line in good("status", name).splitlines()]
    escaped = name.replace("-", "\\x2d")
    assert f"Share: all, {directory}/shared, vmunit-{escaped}-fs-all.scope" in lines, lines
    assert f"Share: a-b, /usr/share read-only, vmunit-{escaped}-fs-a\\x2db.scope" in lines, lines
    assert json.loads(good("status", name, "--json"))["Filesystems"] == d["filesystems"]
    good("remove", name)


@test("create from a file, from standard input, and from a file changed by options")
def _():
    a, b, c = next(names), next(names), next(names)
    text = json.dumps(tiny_definition())
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        good("create", a, file.name)
        good("create", b, "-", stdin=text)
        good("create", c, file.name, "--cpus=3", "--label", "x=y")
    assert manager.vm(a).definition() == manager.vm(b).definition()
    assert manager.vm(c).definition() == merge(manager.vm(a).definition(), {"cpus": 3, "labels": {"x": "y"}})
    good("create", d := next(names), "-", stdin=good("show", "--definition", c))
    assert manager.vm(d).DefinitionHash == manager.vm(c).DefinitionHash
    good("remove", a, b, c, d)


@test("create refused: status 1, the VM's name first, what to do; nothing is made")
def _():
    name = next(names)
    for text, says in (('{"version":1,"cpus":0}', "cpus"), ('{"version":1,"cups":2}', "cpus"), ("{", ""),
                       ("[]", ""), ("", ""), ('{"version":1}\0', "NUL")):
        assert bad(1, "create", name, "-", stdin=text, says=says).startswith(name + ": "), text
    bad(1, "create", name, "-", "--cpus=1", stdin="{", says="not JSON")
    bad(1, "create", name, "/nonexistent", says="No such file")
    bad(1, "create", name, "/dev/zero", says="too large")
    bad(1, "create", name, "--cpus=100000", says=["cpus", "nothing was created"])
    bad(1, "create", "NoName", "--cpus=1", says="NoName: ")
    bad(1, "show", name, says="vmunit list")
    with vm_of() as vm:
        bad(1, "create", vm.name, "--cpus=1", says=[f"{vm.name}: ", f"`vmunit remove {vm.name}`"])


@test("create --start; where the start fails the VM is there, stopped")
def _():
    name = next(names)
    good("create", name, "-", "--start", stdin=json.dumps(tiny_definition()))
    assert manager.vm(name).State == "Running"
    good("remove", "--force", name)
    bad(1, "create", name, "-", "--start", f"--kernel={MISSING}", stdin=json.dumps(tiny_definition()), says=f"{name}: ")
    assert manager.vm(name).State == "Stopped"
    good("remove", name)


# Changing

@test("start, pause, resume, reset, reboot, stop, kill; each is done when the command returns")
def _():
    with vm_of() as vm:
        for verb, state in (("start", "Running"), ("start", "Running"), ("pause", "Paused"), ("pause", "Paused"),
                            ("resume", "Running"), ("reset", "Running")):
            assert good(verb, vm.name) == ""
            assert vm.State == state, (verb, vm.State)
        vm.wait_log(b"TINY-UP")
        good("reboot", vm.name)
        assert vm.State == "Running"
        vm.wait_log(b"TINY-UP")
        good("stop", vm.name)
        assert (vm.State, vm.StateReason) == ("Stopped", "stopped")
        good("start", vm.name)
        good("kill", vm.Id)                      # an id is as good as a name
        assert (vm.State, vm.StateReason) == ("Stopped", "killed")
        for verb in ("pause", "resume", "reboot", "reset"):
            bad(1, verb, vm.name, says=[f"{vm.name}: ", f"`vmunit start {vm.name}`"])


@test("stop --timeout: how long a deaf guest has")
def _():
    with vm_of(start=True) as vm:
        deafen(vm)
        begin = time.monotonic()
        good("stop", "--timeout", "500ms", vm.name)
        assert 0.4 < time.monotonic() - begin < 8
        assert (vm.State, vm.StateReason) == ("Stopped", "stop-forced")


@test("what takes longer than the bus would wait is waited for")
def _():
    # a client's own time-out of 30 s cut off what was still going on, and called it failed
    with vm_of(start=True) as vm:
        deafen(vm)
        good("stop", "--timeout", "400ms", vm.name, env={"SYSTEMD_BUS_TIMEOUT": "100ms"})
        assert (vm.State, vm.StateReason) == ("Stopped", "stop-forced")


@test("many VMs at once: all are tried, at the same time, and any failure is the status")
def _():
    with many(4) as vms:
        good("start", *(vm.name for vm in vms))
        assert {vm.State for vm in vms} == {"Running"}
        for vm in vms:
            vm.wait_log(b"TINY-UP")
            deafen(vm)
        begin = time.monotonic()
        err = bad(1, "stop", vms[0].name, "nobody", *(vm.name for vm in vms[1:]), "no-one", "--timeout=2")
        assert time.monotonic() - begin < 7, "one after the other"
        assert {vm.State for vm in vms} == {"Stopped"}
        assert {line.split(":")[0] for line in err.splitlines()} == {"nobody", "no-one"}, err


@test("remove: waits until the VM has gone; only a stopped one unless forced")
def _():
    with vm_of(start=True) as vm:
        bad(1, "remove", vm.name, says=[f"{vm.name}: ", f"`vmunit remove --force {vm.name}`"])
        assert vm.State == "Running"
        good("remove", vm.name, "--force")
        assert not vm.exists()
        bad(1, "remove", vm.name, says="no VM of this name; `vmunit list`")
    with many(5) as vms:
        good("remove", *(vm.name for vm in vms))
        assert not any(vm.exists() for vm in vms)


@test("--no-block returns while the work goes on")
def _():
    with vm_of() as vm, launcher_stopped():
        good("start", "--no-block", vm.name)
        assert vm.State == "Starting"
        assert "Job: " in good("status", vm.name)
        assert json.loads(good("status", "--json", vm.name))["JobProperties"]["Operation"]
        good("kill", vm.name)
        assert vm.State == "Stopped"
    with vm_of() as vm:
        good("remove", "--no-block", vm.name)
        vm.wait_gone()


@test("Ctrl-C leaves a start, says so, and the start goes on")
def _():
    with vm_of() as vm:
        with launcher_stopped():
            process = subprocess.Popen(["vmunit", "start", vm.name], stderr=subprocess.PIPE, text=True)
            vm.wait_state("Starting")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
            assert process.returncode == -signal.SIGINT, process.returncode
            assert err.startswith(f"{vm.name}: ") and "its start goes on" in err, err
            assert vm.State == "Starting"
        vm.wait_state("Running")


# Looking

@test("list: an aligned table, and JSON with all properties, numbers as numbers")
def _():
    with vm_of(start=True) as a, vm_of(tiny_definition(memory="1536M", cpus=2)) as b:
        lines = good("list").splitlines()
        assert lines[0].split() == COLUMNS, lines
        rows = {line.split()[0]: line for line in lines[1:]}
        assert rows[a.name].split()[:5] == [a.name, "Running", "qemu", "1", "32M"], lines
        assert rows[b.name].split()[:5] == [b.name, "Stopped", "qemu", "2", "1.5G"], lines
        for column in ("STATE", "MEMORY", "SINCE"):
            assert all(line[lines[0].index(column) - 1] == " " for line in lines), lines
        assert [line.split()[:5] for line in good("list", "--no-legend").splitlines()] == [
            line.split()[:5] for line in lines[1:]]
        vms = json.loads(good("list", "--json"))
        assert [vm["Name"] for vm in vms] == sorted(vm["Name"] for vm in vms)
        assert {vm["Name"]: vm for vm in vms}[a.name] == a.properties(), vms
        assert vms[0]["MemoryBytes"] + 1 > 1
    with Terminal("list") as terminal:
        assert b"\x1b[" in terminal.end()[1]


@test("list without a VM")
def _():
    manager.remove_all()
    assert good("list").split() == COLUMNS and good("list", "--no-legend") == ""
    assert good("list", "--json") == "[]\n"


@test("show: properties, some of them, values alone, JSON")
def _():
    with vm_of(tiny_definition(labels={"a": "x\u0085y", "b": "="})) as vm:
        shown = dict(line.split("=", 1) for line in good("show", vm.name).splitlines())
        properties = vm.properties()
        assert set(shown) == set(properties), set(shown) ^ set(properties)
        assert shown["Name"] == vm.name and shown["CPUs"] == "1" and shown["ExitKnown"] == "false", shown
        assert json.loads(shown["Labels"]) == {"a": "x\u0085y", "b": "="} and "\u0085" not in shown["Labels"]
        assert json.loads(good("show", vm.name, "--json")) == properties
        assert good("show", "-p", "State", "--property=CPUs", vm.name) == "State=Stopped\nCPUs=1\n"
        assert good("show", "-pId", "--value", vm.name) == vm.Id + "\n"
        assert json.loads(good("show", "--json", "-pCPUs", vm.name)) == {"CPUs": 1}
        bad(1, "show", "-p", "Nothing", vm.name, says=[f"{vm.name}: ", "Nothing"])


@test("status: for people, and as JSON")
def _():
    with vm_of(start=True) as vm:
        text = good("status", vm.name)
        for word in (f" {vm.name}\n", vm.Id, "Running", vm.Unit, vm.Slice, f"Leader: {vm.LeaderPID}\n", "Memory: 32M",
                     "Last events:", f"journalctl VMUNIT_VM={vm.name}"):
            assert word in text, (word, text)
        status = json.loads(good("status", vm.name, "--json"))
        assert status["State"] == "Running" and set(status["Stats"]) == set(vm.stats()), status
        assert status["Events"] and {"Id", "TimeUSec", "Type", "Message", "Details"} < set(status["Events"][-1]), status
        os.kill(vm.LeaderPID, signal.SIGKILL)
        vm.wait_state("Error")
        text = good("status", vm.name)
        assert "Error (vmm-crashed)" in text and vm.StateMessage in text, text
        wait_for(lambda: vm.ExitKnown, 5)
        assert "SIGKILL" in good("status", vm.name)
        status = json.loads(good("status", vm.name, "--json"))
        assert status["Stats"] is None and status["JobProperties"] is None and status["Filesystems"] == [], status


@test("events: of one VM, also of one that has gone, or of all")
def _():
    with vm_of(start=True) as vm:
        name = vm.name
    lines = good("events", name).splitlines()
    assert lines[0].split() == ["TIME", "VM", "TYPE", "MESSAGE"] and all(name in line for line in lines[1:]), lines
    events = json.loads(good("events", name, "--json"))
    assert len(events) == len(lines) - 1 and events == sorted(events, key=lambda e: e["Id"])
    assert [e["Id"] for e in json.loads(good("events", name, "--json", "-n", "2"))] == [e["Id"] for e in events[-2:]]
    ids = [e["Id"] for e in json.loads(good("events", "--json"))]
    assert ids == sorted(set(ids)) and set(ids) > {e["Id"] for e in events}
    assert len(good("events", "--no-legend", "-n1").splitlines()) == 1


# Consoles and logs

@test("log: raw to a pipe, harmless on a terminal, its end, the VMM's words")
def _():
    with vm_of(start=True) as vm:
        with vm.open_console() as console:
            console.send(b"a\x1b[31mb\x07c\xff\n")
            vm.wait_log(b"c\xff\n")
        raw = subprocess.run(["vmunit", "log", vm.name], capture_output=True, check=True).stdout
        assert raw == vm.console_log() and b"\x1b[31mb\x07c\xff" in raw, raw
        assert subprocess.run(["vmunit", "log", "-n", "9", vm.name], capture_output=True, check=True).stdout == raw[-9:]
        with Terminal("log", vm.name) as terminal:
            status, seen = terminal.end()
            assert status == 0 and b"abc?" in seen and b"\x1b" not in seen and b"\x07" not in seen, seen
        with Terminal("log", "--raw", vm.name) as terminal:
            assert b"a\x1b[31mb\x07c\xff" in terminal.end()[1]
        assert good("log", "--vmm", vm.name) == vm.last_output()


@test("log --follow: the log, then the console until its end, nothing twice")
def _():
    with vm_of(start=True) as vm:
        process = subprocess.Popen(["vmunit", "log", "-f", vm.name], stdout=subprocess.PIPE, bufsize=0)
        seen = read_until(process.stdout.fileno(), b"TINY-UP")
        with vm.open_console() as console:
            console.send(b"now")
            seen += read_until(process.stdout.fileno(), b"now")
        vm.kill()
        assert process.wait(10) == 0
        seen += process.stdout.read()
        assert seen == vm.console_log(), (seen, vm.console_log())
        bad(1, "console", vm.name, says=f"`vmunit start {vm.name}`")


@test("console --read-only: what the guest says, until its end; nothing goes to it, and the terminal stays as it is")
def _():
    with vm_of(start=True) as vm:
        vm.wait_log(b"TINY-UP")
        with Terminal("console", "--read-only", vm.name, wait=b"Ctrl-C leaves") as terminal:
            assert terminal.is_restored()
            os.write(terminal.fd, b"typed\n")
            with vm.open_console() as console:
                console.send(b"now")
                assert b"now" in read_until(terminal.fd, b"now")
            os.write(terminal.fd, b"\x03")
            assert terminal.end()[0] == -signal.SIGINT
        process = subprocess.Popen(["vmunit", "console", "--read-only", vm.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        process.stdin.write(b"typed\n")
        process.stdin.close()
        with vm.open_console() as console:
            say_until_heard(console, process.stdout.fileno(), b"again")
        vm.kill()
        assert process.wait(60) == 0
        process.stdout.close()
        assert b"typed" not in vm.console_log(), vm.console_log()
        bad(2, "log", "--read-only", vm.name, says="--read-only does not go with log")


@test("console: a raw terminal, which Ctrl-] leaves and every way out restores")
def _():
    with vm_of(start=True) as vm:
        with Terminal("console", vm.name, wait=b"Ctrl-] leaves\r\n") as terminal:
            os.write(terminal.fd, b"hello\x03\x1a")
            terminal.seen += read_until(terminal.fd, b"hello\x03\x1a")
            assert not terminal.is_restored()
            os.write(terminal.fd, b"bye\x1dnever")
            status, _ = terminal.end()
            assert status == 0 and terminal.is_restored()
        vm.wait_log(b"bye")
        assert b"never" not in vm.console_log() and vm.State == "Running"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            with Terminal("console", vm.name, wait=b"Ctrl-] leaves\r\n") as terminal:
                os.write(terminal.fd, b"x")
                read_until(terminal.fd, b"x")
                terminal.process.send_signal(number)
                status, _ = terminal.end()
                assert status == -number and terminal.is_restored(), (number, status)


@test("console: stopped and continued, and the VM's end")
def _():
    with vm_of(start=True) as vm, Terminal("console", vm.name, wait=b"Ctrl-] leaves\r\n") as terminal:
        os.write(terminal.fd, b"x")
        read_until(terminal.fd, b"x")
        terminal.process.send_signal(signal.SIGTSTP)
        wait_for(terminal.is_restored, 5, poll=0.02)
        terminal.process.send_signal(signal.SIGCONT)
        wait_for(lambda: not terminal.is_restored(), 5, poll=0.02)
        vm.kill()
        status, seen = terminal.end()
        assert status == 0 and terminal.is_restored() and b"the console has ended" in seen, (status, seen)


@test("console: a pipe goes through, both ways")
def _():
    with vm_of(start=True) as vm:
        status, out, err = vmunit("console", vm.name, stdin="echo\x1d")
        assert status == 0 and "echo\x1d" in out and not err, (status, out, err)
        assert vm.State == "Running"
        status, out, err = vmunit("console", vm.name, stdin="q")
        assert status == 0
        vm.wait_state("Stopped")


# Refusals

@test("another user may look, and is told what takes a password")
def _():
    with vm_of(start=True) as vm:
        assert vm.name in good("list", uid=NOBODY)
        assert json.loads(good("show", vm.name, "--json", uid=NOBODY)) == vm.properties()
        assert "Running" in good("status", vm.name, uid=NOBODY) and vm.name in good("events", uid=NOBODY)
        for verb in ("start", "stop", "kill", "reboot", "reset", "pause", "resume", "remove"):
            bad(1, verb, vm.name, uid=NOBODY, says=[f"{vm.name}: ", "takes a password", "try sudo"])
        bad(1, "create", "mine", "--cpus=1", uid=NOBODY, says=["takes a password", "org.vmunit1.create", "try sudo"])
        for args in (["log"], ["log", "--vmm"], ["console"], ["show", "--definition"]):
            bad(1, *args, vm.name, uid=NOBODY, says=[f"{vm.name}: ", "takes a password", "try sudo"])
        assert vm.State == "Running"


@test("another call under way: the daemon's sentence, and what to do")
def _():
    with vm_of() as vm, launcher_stopped():
        process = subprocess.Popen(["vmunit", "start", vm.name], stderr=subprocess.PIPE, text=True)
        vm.wait_state("Starting")
        err = bad(1, "pause", vm.name, says=[f"{vm.name}: ", "try again later"])
        assert f"{vm.name}: {vm.name}:" not in err, err
        good("kill", vm.name)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 1 and err.startswith(f"{vm.name}: ") and "overtook" in err, err


@test("no daemon, a daemon that dies, no bus, no room for the output")
def _():
    with vm_of() as vm:
        with launcher_stopped():
            process = subprocess.Popen(["vmunit", "start", vm.name], stderr=subprocess.PIPE, text=True)
            vm.wait_state("Starting")
            kill_daemon()
            _, err = process.communicate(timeout=20)
            assert process.returncode == 1 and err.startswith(f"{vm.name}: "), (process.returncode, err)
            assert "systemctl status vmunitd" in err, err
        systemctl("mask", "--runtime", "--now", "vmunitd.service")
        try:
            bad(1, "list", says=["vmunit: ", "systemctl status vmunitd"])
            bad(1, "start", "a", "b", says=["a: ", "b: ", "systemctl status vmunitd"])
        finally:
            systemctl("unmask", "--runtime", "vmunitd.service")
        assert vm.name in good("list")
        bad(1, "list", env={"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}, says="vmunit: cannot reach the system bus")
        with open("/dev/full", "w") as full:
            done = subprocess.run(["vmunit", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 1 and "cannot write" in done.stderr, done


run()
