# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of life cycle, units and crashes share: VMs that go away, deaf guests, VMMs that misbehave."""

import ctypes
import glob
import itertools
import select
import socket
import sqlite3

from vmunit_test import *

__all__ = """manager vm_of deaf type_in echoed launcher_stopped fake_vmm configured parent_of vmm_count alive start_time program_of status
    stopped_process frozen never_its_turn outlived database DATABASE usage_of types_of qmp outside wait_idle times_on words FOR_EVER PATIENCE
    TITLE KEY IN_PLACE RESETS COMM ENDS QUIT TERM SOCKET definitions api_socket api_request cpus_and_memory make_file""".split()

# What differs between the back ends: what messages call them; the name of the process; whether a reboot is done in the same
# process, and a reset; what the tiny guest is told so that it ends by itself, and the reason that is shown then; how the VMM
# ends when its time is over, (code, signal); the VMM's key in vmunit.conf.
TITLE, COMM, IN_PLACE, RESETS, ENDS, QUIT, KEY = {
    "qemu": ("QEMU", "qemu-system", True, True, (b"q", "guest-shutdown"), (0, 0), "QEMU"),
    "cloud-hypervisor": ("Cloud Hypervisor", "cloud-hyperviso", False, True, (b"q", "vmm-exited"), (0, 0), "CloudHypervisor"),
    "firecracker": ("Firecracker", "firecracker", False, False, (b"r", "guest-reboot"), (0, signal.SIGKILL), "Firecracker"),
}[BACKEND]
TERM = signal.SIGHUP if BACKEND == "firecracker" else signal.SIGTERM   # what it ends by, and handles: others do nothing to it
SOCKET = "qmp" if BACKEND == "qemu" else "api"  # of its API, in the VM's directory

# What Cloud Hypervisor 53 says when it was stopped, and a thread of it goes on in the middle of a sleep.
SECCOMP = "Possible seccomp violation ====\nSyscall number: 219 "

manager = Manager()
DATABASE = "/var/lib/vmunit/vmunit.db"
FAKE = "/usr/local/lib/fake-vmm"                # a VMM sees /usr of the host, and what is there now
CONF = "/run/vmunit.conf.d"
FOR_EVER = 2**64 - 1
PATIENCE = 4 if SANITIZED else 1                # what upper limits of times are multiplied by
_names = (f"vm{n}" for n in itertools.count())
_nesting = 0


@contextlib.contextmanager
def vm_of(definition=None, name=None, **keys):
    """A VM that is removed by force at the end; with the outermost one all has to be as it was before."""
    global _nesting
    if not _nesting:
        manager.list()
        wait_idle()
        before = snapshot_leftovers()
    vm = manager.create(name or next(_names), definition or tiny_definition(), **keys)
    _nesting += 1
    try:
        yield vm
    except BaseException:
        excused = False
        with contextlib.suppress(Exception):
            print(f"# {vm.path}: {vm.properties()}")
            output = vm.last_output()
            print(f"# last output: {output!r}")
            if SECCOMP in output:               # and it has died of that: the first of a PID namespace by abort()
                wait_for(lambda: vm.ExitKnown, 5, poll=0.05)
                excused = vm.ExitSignal in (signal.SIGSYS, signal.SIGSEGV)
        with contextlib.suppress(Exception):
            vm.remove(force=True)
            vm.wait_gone(5)
        if excused:
            raise Skip("Cloud Hypervisor has ended itself: its filter does not know restart_syscall, which follows a SIGCONT") from None
        raise
    finally:
        _nesting -= 1
    with contextlib.suppress(BusError):
        vm.remove(force=True)
    vm.wait_gone()
    if not _nesting:
        assert_no_leftovers(before, 10)


def wait_idle():
    """The daemon has heard of its back ends, so that no probe is under way."""
    wait_for(lambda: all(info.get("Version") for name, info in manager.Backends if info["Usable"] or name == BACKEND), 15,
             "the versions of the back ends", poll=0.05)


def words(vm):
    """(State, StateReason) of the same moment"""
    properties = vm.properties()
    return properties["State"], properties["StateReason"]


# Files

def make_file(path, owner=0, mode=0o600, text=b"", size=0):
    """With its directory: at least so large, the rest of it a hole"""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(text)
        f.truncate(max(size, len(text)))
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    return path


# VMMs

def definitions(**over):
    """The tiny guest on each machine of the back end."""
    return [tiny_definition(**over), bios_definition(**over)] if BACKEND == "qemu" else [tiny_definition(**over)]


def api_socket(identity):
    """Where a VMM listens: where it was made for it, or in its own directory, which nobody else has."""
    with open(f"/run/vmunit/vms/{identity}/run", encoding="utf-8") as f:
        pid = next(line.split("=")[1].strip() for line in f if line.startswith("PID="))
    return f"/proc/{pid}/root/vm/{SOCKET}" if BACKEND == "firecracker" else f"/run/vmunit/vms/{identity}/{SOCKET}"


def api_request(identity, method, path, body=None):
    """What a VMM with an HTTP API answers, None if it is empty. One that is about to end has none, or says so."""
    text = json.dumps(body).encode() if body else b""
    more = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n" if body else ""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(api_socket(identity))
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode() + text)
        head, data = read_until(connection.fileno(), b"\r\n\r\n").split(b"\r\n\r\n", 1)
        status = int(head.split()[1])
        size = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")), 0)
        while len(data) < size:
            rest = connection.recv(65536)
            if not rest:
                raise ConnectionResetError(head)
            data += rest
        if status == 500 and b"on a closed channel" in data:
            raise ConnectionResetError(data)
        assert 200 <= status < 300, (head, data)
        return json.loads(data) if data else None


def cpus_and_memory(vm):
    """What the VMM was started with: CPUs, MiB"""
    if BACKEND == "firecracker":
        config = api_request(vm.Id, "GET", "/machine-config")
        return config["vcpu_count"], config["mem_size_mib"]
    if BACKEND == "cloud-hypervisor":
        config = api_request(vm.Id, "GET", "/api/v1/vm.info")["config"]
        return config["cpus"]["boot_vcpus"], config["memory"]["size"] >> 20
    with open(f"/proc/{vm.LeaderPID}/cmdline", "rb") as f:
        arguments = f.read().split(b"\0")
    return int(arguments[arguments.index(b"-smp") + 1]), int(arguments[arguments.index(b"-m") + 1].rstrip(b"M"))


# Guests

def echoed(console, text):
    console.sendall(text)
    return read_until(console.fileno(), text)


def type_in(vm, text):
    """Writes to the guest's serial port."""
    with vm.open_console() as console:
        console.sendall(text)
        read_until(console.fileno(), text[:1])


def deaf(vm):
    """The guest hears neither the power button nor us any more."""
    vm.wait_log(b"TINY-UP")
    type_in(vm, b"s")


def times_on(vm, text):
    return vm.console_log().count(text)


# Processes

def _threads_run(pid):
    for stat in glob.glob(f"/proc/{pid}/task/*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(stat, encoding="utf-8") as f:
            if f.read().rpartition(")")[2].split()[0] not in "TtZX":
                return True
    return False


@contextlib.contextmanager
def stopped_process(pid):
    """SIGSTOP for a while; the process may end meanwhile."""
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGSTOP)
    try:
        wait_for(lambda: not _threads_run(pid), what=f"all threads of {pid} to stop", poll=0.002)
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGCONT)
        os.close(fd)


@contextlib.contextmanager
def outlived(pid):
    """If PID, the first of a PID namespace, is killed, it closes all that it has, but the kernel is not done with it before the end of the
    block: another process of the namespace stays a zombie. Gives whether it is done."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace, fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY), os.pidfd_open(pid)
    ready, says = os.pipe()
    parent = os.fork()
    if parent == 0:
        if libc.setns(namespace, 0x20000000) == 0 and (os.fork() or os.write(says, b"x")):  # CLONE_NEWPID
            while True:
                signal.pause()
        os._exit(1)
    os.close(says)
    os.close(namespace)
    try:
        assert os.read(ready, 1) == b"x", "no process in the namespace"
        yield lambda: bool(select.select([fd], [], [], 0)[0])
    finally:
        os.kill(parent, signal.SIGKILL)         # its child becomes PID 1's, which waits for it
        os.waitpid(parent, 0)
        os.close(ready)
        os.close(fd)


@contextlib.contextmanager
def launcher_stopped():
    """A start that begins here hangs until the end of the block."""
    systemctl("start", "vmunit-launch.service")
    with stopped_process(launcher_pid()):
        yield


@contextlib.contextmanager
def frozen(cgroup):
    """Its processes never have their turn, as on a machine that is too busy; they are not stopped."""
    def events():
        with open(cgroup + "/cgroup.events", encoding="ascii") as f:
            return f.read()

    with open(cgroup + "/cgroup.freeze", "w", encoding="ascii") as f:
        f.write("1")
    try:
        wait_for(lambda: "frozen 1" in events(), poll=0.01)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError), open(cgroup + "/cgroup.freeze", "w", encoding="ascii") as f:
            f.write("0")


@contextlib.contextmanager
def never_its_turn(unit, pid):
    """The same of one process of a unit"""
    cgroup = unit_cgroup(unit) + "/busy"
    os.mkdir(cgroup)
    with open(cgroup + "/cgroup.procs", "w", encoding="ascii") as f:
        f.write(str(pid))
    with frozen(cgroup):
        yield


def start_time(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        return int(f.read().rpartition(")")[2].split()[19])


def program_of(pid):
    """The name of the process, "" when it has gone"""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as f:
        return f.read().strip()
    return ""


def status(pid, key):
    """The words of that line of /proc/PID/status"""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return next(line.split()[1:] for line in f if line.startswith(key + ":"))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def vmm_count():
    """How many VMMs there are, but for those that are asked for their version, and for what one has forked."""
    parents = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as f:
            cmdline = f.read()
            if program_name(cmdline).startswith(("qemu-system", "firecracker", "cloud-hypervisor")) and b"\0--version\0" not in cmdline \
                    and alive(pid):
                parents[pid] = int(status(pid, "PPid")[0])
    return sum(parent not in parents for parent in parents.values())


def qmp(vm_id, *commands, fd=None):
    """Commands to a QEMU in the daemon's place; getfd is given FD."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"/run/vmunit/vms/{vm_id}/qmp")
        read_until(s.fileno(), b"}\r\n")
        for command in ({"execute": "qmp_capabilities"}, *commands):
            line = json.dumps(command).encode() + b"\n"
            if command["execute"] == "getfd":
                socket.send_fds(s, [line], [fd])
            else:
                s.sendall(line)
            read_until(s.fileno(), b"return")


def outside(identity, what):
    """Presses the VM's button, pauses its guest, or ends its VMM in good order, in the daemon's place"""
    if BACKEND == "cloud-hypervisor":
        api_request(identity, "PUT", "/api/v1/" + {"press": "vm.power-button", "pause": "vm.pause", "quit": "vmm.shutdown"}[what])
    elif BACKEND == "firecracker" and what == "pause":
        api_request(identity, "PATCH", "/vm", {"state": "Paused"})
    elif BACKEND == "firecracker":
        assert what == "press", "Firecracker can't be told to quit"
        api_request(identity, "PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    elif what == "pause":
        qmp(identity, {"execute": "stop"})
    elif what == "press":
        qmp(identity, {"execute": "set-action", "arguments": {"shutdown": "poweroff"}}, {"execute": "system_powerdown"})
    else:
        qmp(identity, {"execute": "quit"})


def parent_of(vm):
    """The pid of the VMM's parent, vmunit-exec."""
    return int(status(vm.LeaderPID, "PPid")[0])


# The daemon

@contextlib.contextmanager
def configured(**settings):
    """A daemon with other settings, in the block."""
    os.makedirs(CONF, exist_ok=True)
    conf = CONF + "/50-test-" + "-".join(settings) + ".conf"
    with open(conf, "w", encoding="utf-8") as f:
        f.write("[VMUnit]\n" + "".join(f"{key}={value}\n" for key, value in settings.items()))
    systemctl("restart", "vmunitd.service")
    try:
        yield
    finally:
        os.unlink(conf)
        systemctl("restart", "vmunitd.service")
        wait_idle()


# Python, for it speaks. What it does is told by a file, since a VMM gets no environment.
_VMM = r"""#!/usr/bin/python3 -I
import ctypes, json, os, signal, socket, sys, threading, time
BASE = "%(base)s"
%(prelude)s
with open(BASE + "/mode") as f:
    mode, _, text = f.read().partition(" ")

def say_last(text):
    sys.stderr.write(text)
    sys.stderr.flush()

if mode == "real":
    real()
elif mode == "exit":
    say_last(text)
    sys.exit(1)
elif mode == "signal":
    say_last(text)
    ctypes.string_at(0)         # the first of a PID namespace can't kill itself
elif mode == "gate":            # the real one, when it may
    while not os.path.exists(BASE + "/go"):
        time.sleep(0.005)
    real()
elif mode == "lifeless":        # the real one, without the fd that says first that it dies
    os.close(1000)
    real()
elif mode == "garbage":
    accept().sendall(b"\xff\x00{[nonsense\r\n")
elif mode == "endless":
    peer = accept()
    try:
        while True:
            peer.sendall(b"x" * 65536)
    except OSError:
        pass
elif mode == "closes":
    accept().close()
elif mode in ("no-cont", "never-runs"):
    speak(mode == "never-runs")
while True:                     # also for "hang"
    signal.pause()
"""

# --version, real(), accept(), and speak(), which never runs the guest
_PRELUDE = {
    "qemu": """
if "--version" in sys.argv:
    print("QEMU emulator version 7.2.0 (fake)")
    sys.exit()

def real():
    os.execv("/usr/bin/qemu-system-x86_64", ["qemu-system-x86_64"] + sys.argv[1:])

def accept():
    os.set_blocking(3, True)
    return socket.socket(fileno=3).accept()[0]

def speak(answers_cont):
    peer = accept()
    say = lambda o: peer.sendall(json.dumps(o).encode() + b"\\r\\n")
    version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}
    say({"QMP": {"version": version, "capabilities": []}})
    for line in peer.makefile():
        command = json.loads(line)
        answer = {"status": "prelaunch", "running": False} if command["execute"] == "query-status" else {}
        if command["execute"] != "cont" or answers_cont:
            say({"return": answer, "id": command.get("id")})
""",
    "cloud-hypervisor": """
if "--version" in sys.argv:
    print("cloud-hypervisor v53.0")
    sys.exit()

def real():
    os.execv("/usr/local/bin/cloud-hypervisor", ["cloud-hypervisor"] + sys.argv[1:])

def accept():
    listener = socket.socket(fileno=os.dup(3))
    listener.setblocking(True)
    return listener.accept()[0]

def speak(answers):
    held = []
    while True:
        peer = accept()
        path = peer.recv(65536).split()[1]
        if path.endswith(b"vm.boot") and not answers:
            held.append(peer)
            continue
        body = b'{"state": "Created"}' if path.endswith(b"vm.info") else b""
        peer.sendall(b"HTTP/1.1 %%d \\r\\nContent-Length: %%d\\r\\n\\r\\n" %% (200 if body else 204, len(body)) + body)
        peer.close()
""".replace("%%", "%"),
    "firecracker": """
if "--version" in sys.argv:
    print("Firecracker v1.12.1")
    sys.exit()
listener = None

def real():
    os.execv("/usr/local/bin/firecracker", ["firecracker"] + sys.argv[1:])

def accept():
    global listener
    if not listener:
        listener = socket.socket(socket.AF_UNIX)
        for _ in range(2):      # as many threads as it has at least before it is asked anything
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        listener.bind(sys.argv[sys.argv.index("--api-sock") + 1])
        listener.listen()
    return listener.accept()[0]

def speak(answers):
    while True:
        peer = accept()
        peer.recv(65536)
        body = b'{"state": "Not started"}'
        if answers:
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %%d\\r\\n\\r\\n" %% len(body) + body)
            peer.close()
        else:
            signal.pause()
""".replace("%%", "%"),
}


@contextlib.contextmanager
def fake_vmm(mode="real", **settings):
    """In the block the VMM is a program of ours. Gives a function that says what the next ones do: real, exit WORDS,
    signal WORDS, hang, gate (until fake("go")), lifeless, garbage, endless, closes, no-cont, never-runs."""
    os.makedirs(FAKE, exist_ok=True)
    with open(FAKE + "/vmm", "w", encoding="utf-8") as f:
        f.write(_VMM % {"base": FAKE, "prelude": _PRELUDE[BACKEND]})
    os.chmod(FAKE + "/vmm", 0o755)

    def become(what):
        if what == "go":
            open(FAKE + "/go", "w", encoding="utf-8").close()
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FAKE + "/go")
        with open(FAKE + "/mode", "w", encoding="utf-8") as f:
            f.write(what)

    become(mode)
    with configured(**{KEY: FAKE + "/vmm"}, **settings):
        wait_idle()
        yield become


# What is stored

@contextlib.contextmanager
def database():
    """The daemon's database, with the daemon stopped; it starts again at the end."""
    stop_daemon()
    connection = sqlite3.connect(DATABASE)
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()
        start_daemon()


def usage_of(vm):
    """[(start, end)] of the VM's runs, end 0 while open"""
    return [(u[3], u[4]) for u in manager.usage() if u[0] == vm.Id]


def types_of(vm, after=0):
    return [e[4] for e in manager.events(vm=vm.Id, after=after)]
