#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 sanitized
"""User networks: a passt each, in a scope of its own, that goes with its VM and is replaced when it dies. The tiny guest has no driver for
them; what a guest sees is test-networks-linux.py."""

import os
import shutil
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *

IDS = range(1000144897, 1000210432)
SILENT = "/usr/local/bin/silent-passt"
NOBODY = 65534


def networked(*networks, **over):
    return tiny_definition(networks=list(networks) or [{}], **over)


def forward(host, **more):
    return {"forward": [{"host": host, "guest": 80, **more}]}


def scope(vm, name="net0"):
    return f"vmunit-{escape(vm.Name)}-net-{name}.scope"


def passts(vm, name="net0"):
    return [pid for pid in unit_pids(scope(vm, name)) if program_of(pid).startswith("passt")]


def listens(port, address="127.0.0.1"):
    with socket.socket() as s:
        return s.connect_ex((address, port)) == 0


def refused(definition):
    """Why, or "" """
    try:
        vm = manager.create("refused", definition)
    except BusError as error:
        assert error.short == "NotSupported", error
        return error.message
    vm.remove()
    vm.wait_gone()
    return ""


def all_gone(vm, *names):
    for unit in [scope(vm, name) for name in names] + [vm.Unit, vm.Slice]:
        wait_unit_gone(unit)


def another(vm, before, name="net0"):
    """The passt that has taken the place of that one"""
    return wait_for(lambda: (now := passts(vm, name)) and before not in now and now[0], 60, "another passt", poll=0.05)


def losses(vm):
    return types_of(vm).count("network-lost")


@test("two networks: a scope each, beside the VMM's in the VM's slice, gone with the VM")
def _():
    with vm_of(networked(forward(2301), {"name": "two"}), name="a-b") as vm:
        vm.start()
        assert words(vm) == ("Running", "")
        vm.wait_log(b"TINY-UP")
        for name in ("net0", "two"):
            unit = scope(vm, name)
            assert unit_property(unit, "Slice") == vm.Slice
            assert vm.Unit in unit_property(unit, "Before").replace(r"\\", "\\"), unit_property(unit, "Before")
            assert unit_property(unit, "Description") == f"Network {name} of virtual machine a-b"
            assert len(passts(vm, name)) == 1, unit_pids(unit)
        assert listens(2301) and not listens(2301, "127.0.0.2")
        vm.stop()
        assert words(vm) == ("Stopped", "stopped")
        assert not listens(2301)
        all_gone(vm, "net0", "two")
        vm.start()
        vm.kill()
        all_gone(vm, "net0", "two")


@test("a passt has an id of its own, no right, no file, and nothing of the host but its network")
def _():
    with vm_of(networked(forward(2302))) as low, vm_of(networked(forward(82))) as vm:
        low.start()
        vm.start()
        assert listens(82) and listens(2302)
        (pid,), (other,) = passts(vm), passts(low)
        (uid,) = set(status(pid, "Uid"))
        assert int(uid) in IDS and set(status(pid, "Gid")) == {uid} and status(pid, "Groups") == []
        assert status(other, "Uid")[0] != uid
        for one in (pid, other):
            assert status(one, "NoNewPrivs") == ["1"] and status(one, "Seccomp") == ["2"]
            assert not any(int(status(one, "Cap" + kind)[0], 16) for kind in ("Eff", "Prm", "Inh", "Amb")), "also the one below 1024"
            assert os.readlink(f"/proc/{one}/ns/net") == os.readlink("/proc/1/ns/net")
            for kind in ("user", "mnt", "pid", "ipc", "uts", "cgroup"):
                assert os.readlink(f"/proc/{one}/ns/{kind}") != os.readlink(f"/proc/1/ns/{kind}"), kind
            assert os.listdir(f"/proc/{one}/root") == []
        helper = next(pid for pid in unit_pids(scope(vm)) if program_of(pid) == "vmunit-exec")
        assert int(status(helper, "CapEff")[0], 16) == 0


def reaches(uid, pid):
    """Whether a process of that id, even one that sees it, may signal it or look at its memory."""
    code = f"""import os
found = 0
for n, attempt in enumerate((lambda: os.kill({pid}, 0), lambda: open("/proc/{pid}/environ", "rb").read())):
    try:
        attempt()
        found |= 1 << n
    except PermissionError:
        pass
raise SystemExit(found)"""
    return subprocess.run(["/usr/bin/python3", "-c", code], user=uid, group=uid, extra_groups=[], cwd="/", check=False).returncode


@test("VMM, virtiofsd and passt of one VM are three ids in three PID namespaces, and none reaches another")
def _():
    top = "/tmp/networks-share"
    os.mkdir(top)
    os.chown(top, NOBODY, NOBODY)
    with vm_of(networked(filesystems=[{"tag": "one", "source": top}]), owner=NOBODY) as vm:
        vm.start()
        share = f"vmunit-{escape(vm.Name)}-fs-one.scope"
        groups = [unit_pids(unit) for unit in (vm.Unit, share, scope(vm))]
        ids = [{status(pid, "Uid")[0] for pid in pids} | {status(pid, "Gid")[0] for pid in pids} for pids in groups]
        assert [len(i) for i in ids] == [1, 1, 1] and len(set.union(*ids)) == 3, ids
        programs = [max(pids) for pids in groups]
        assert len({os.readlink(f"/proc/{pid}/ns/pid") for pid in programs}) == 3
        for own, pids in zip(ids, groups):
            uid = int(next(iter(own)))
            assert reaches(uid, pids[0]) & 1, "one's own helper can be signalled, so that is how it is tried"
            for other in groups:
                assert other is pids or not any(reaches(uid, pid) for pid in other), (uid, groups)


@test("a passt that dies is replaced, again and again; the VM goes on", timeout=90)
def _():
    with vm_of(networked(forward(2303), {"name": "two"})) as vm:
        vm.start()
        leader, two = vm.LeaderPID, passts(vm, "two")
        for n, victim in enumerate((passts, lambda vm: [pid for pid in unit_pids(scope(vm)) if program_of(pid) == "vmunit-exec"]), 1):
            (pid,), (before,) = victim(vm), passts(vm)
            os.kill(pid, signal.SIGKILL)
            another(vm, before)
            wait_for(lambda: listens(2303), 10, "its port", poll=0.05)
            wait_for(lambda n=n: losses(vm) == n, 10, "the event")
        assert (words(vm), vm.LeaderPID, passts(vm, "two")) == (("Running", ""), leader, two)
        vm.stop()
        assert words(vm) == ("Stopped", "stopped") and losses(vm) == 2
        all_gone(vm, "net0", "two")


@test("a reset of the guest is no reason to try a passt that dies more often", timeout=60)
def _():
    with vm_of(networked()) as vm:
        vm.start()
        (one,) = passts(vm)
        os.kill(one, signal.SIGKILL)
        two = another(vm, one)
        vm.reset()
        began = time.monotonic()
        os.kill(two, signal.SIGKILL)
        another(vm, two)
        assert time.monotonic() - began >= 2 and words(vm) == ("Running", "")


@test("a passt that takes the place of another and is silent is given up, also where the guest is reset meanwhile", timeout=150)
def _():
    program, silent = "/usr/local/bin/moody-passt", "/usr/local/lib/silent"
    with open(program, "w", encoding="ascii") as f:
        f.write(f'#!/bin/sh\n[ "$1" = --version ] || ! [ -e {silent} ] || exec sleep infinity\nexec /usr/bin/passt "$@"\n')
    os.chmod(program, 0o755)
    with configured(Passt=program, StartTimeoutSec="15s"), vm_of(networked()) as vm:
        vm.start()
        open(silent, "w", encoding="ascii").close()
        os.kill(passts(vm)[0], signal.SIGKILL)
        wait_for(lambda: any(program_of(pid) == "sleep" for pid in unit_pids(scope(vm))), 30, "the silent one", poll=0.02)
        vm.reset()
        os.unlink(silent)
        wait_for(lambda: passts(vm), 80, "another one", poll=0.05)
        assert words(vm) == ("Running", "")
        assert any("no answer from its passt" in e["MESSAGE"] for e in journal(f"VMUNIT_VM={vm.Name}"))


@test("the daemon comes back: it finds passts that live, and replaces those that have died meanwhile", timeout=90)
def _():
    with vm_of(networked(forward(2304), {"name": "two", **forward(2309)})) as vm:
        vm.start()
        (one,), (two,) = passts(vm), passts(vm, "two")
        kill_daemon()
        assert words(vm) == ("Running", "") and passts(vm) == [one] and passts(vm, "two") == [two]
        os.kill(two, signal.SIGKILL)                    # the daemon that came back watches it
        another(vm, two, "two")
        wait_for(lambda: listens(2309), 10, "its port", poll=0.05)
        kill_daemon(restart=False)
        os.kill(one, signal.SIGKILL)
        wait_exit(one)
        start_daemon()
        another(vm, one)
        wait_for(lambda: listens(2304) and listens(2309), 20, "their ports", poll=0.05)  # it may have died of that it found nobody to tell
        assert words(vm) == ("Running", "")
        kill_daemon(restart=False)
        os.kill(vm.LeaderPID, signal.SIGKILL)
        start_daemon()
        vm.wait_state("Error")
        all_gone(vm, "net0", "two")


@test("a VMM that dies takes its passts along, and the restart policy follows")
def _():
    with vm_of(networked(forward(2305), restart={"policy": "on-failure"})) as vm:
        vm.start()
        before = passts(vm)[0]
        os.kill(vm.LeaderPID, signal.SIGKILL)
        vm.wait_state("Error")
        vm.wait_state("Running")
        assert another(vm, before) and listens(2305) and losses(vm) == 0


@test("systemctl stop of a network's scope, or of the slice, is a Stop of the VM")
def _():
    for unit in (scope, lambda vm: vm.Slice):
        with vm_of(networked()) as vm:
            vm.start()
            vm.wait_log(b"TINY-UP")
            systemctl("stop", unit(vm))
            vm.wait_state("Stopped")
            assert words(vm) == ("Stopped", "stopped")
            all_gone(vm, "net0")


@test("a start that fails for a network says so, leaves nothing, and the next one works")
def _():
    with configured(StartTimeoutSec="5s"):              # makes directories that stay
        pass
    wait_for(lambda: dict(manager.Backends)["qemu"].get("Version"), 10, "QEMU's version", poll=0.05)
    before = snapshot_leftovers()
    with socket.socket() as taken, vm_of(networked({"name": "free"}, {"name": "full", **forward(2306)})) as vm:
        taken.bind(("127.0.0.1", 2306))
        taken.listen()
        with expect_error("BackendFailed", "127.0.0.1/2306:80", begins=f"{vm.Name}: networks[1] (full): its passt has ended while it started: "):
            vm.start()
        assert words(vm) == ("Stopped", "start-failed")
        all_gone(vm, "free", "full")
        taken.close()
        vm.start()
    with open(SILENT, "w", encoding="ascii") as f:
        f.write("#!/bin/sh\n[ \"$1\" = --version ] && echo passt 2025_05_03.587980c || exec sleep infinity\n")
    os.chmod(SILENT, 0o755)
    for program, text in (("/nowhere/passt", "it was not found"), ("/bin/true", "it says that it is"), (SILENT, "no answer from the passt of net0")):
        with vm_of(networked()) as vm, configured(Passt=program, StartTimeoutSec="5s"):
            try:
                vm.start()
            except BusError as error:
                assert text in error.message and "net0" in error.message, error
            else:
                raise AssertionError(program)
            assert words(vm) == ("Stopped", "start-failed")
    assert_no_leftovers(before, 20)


HOSTILE = r"""#!/usr/bin/python3 -I
import os, socket, sys
LAN = "192.0.2.1"
if sys.argv[1:] == ["--version"]:
    print("passt 2025_05_03.587980c")
    sys.exit()
said = []
def attempt(name, function):
    try:
        said.append(f"{name}={function() or 0}")
    except OSError as error:
        said.append(f"{name}={error.errno}")
inet, udp = (lambda: socket.socket(socket.AF_INET)), (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
for address in ("127.0.0.1", "127.0.0.9", "127.255.255.254", "0.0.0.0", "127.0.0.53"):
    attempt(address, lambda: inet().connect((address, 2310)))
    attempt("udp-" + address, lambda: udp().sendto(b"x", (address, 2310)) and None)
    attempt("connected-" + address, lambda: udp().connect((address, 2310)))
attempt("resolver", lambda: udp().sendto(b"x", ("127.0.0.53", 53)) and None)
attempt("other-resolver", lambda: udp().sendto(b"x", ("127.0.0.1", 53)) and None)
asked = udp()
asked.bind(("127.0.0.1", 2311))
peer = asked.recvfrom(10)[1]
attempt("answer", lambda: asked.sendto(b"answer", peer) and None)
attempt("no-answer", lambda: asked.sendto(b"answer", (peer[0], 2310)) and None)
# Who has heard from a port of 127.0.0.1 may answer; these are ways to hear from another's.
def bound(address, port):
    s = udp()
    s.bind((address, port))
    s.settimeout(1)
    return s
def from_another(sender, receiver, forge):
    with bound(sender, 2312) as forger, bound(receiver, 2313) as hearer:
        forge(forger, hearer.getsockname())
        hearer.recvfrom(10)             # without the address there would be no note
here = socket.inet_aton("127.0.0.1")
attempt("forged-cmsg", lambda: from_another("127.0.0.2", LAN, lambda s, to: s.sendmsg([b"x"], [(0, 8, bytes(4) + here + bytes(4))], 0, to)))
attempt("forged-cmsg-to-peer", lambda: from_another(LAN, LAN, lambda s, to: s.sendmsg([b"x"], [(0, 8, bytes(4) + here + bytes(4))], 0, peer)))
attempt("forged-bound", lambda: from_another("127.0.0.2", LAN, lambda s, to: s.sendto(b"x", to)))
attempt("forged-connected", lambda: from_another("127.0.0.2", LAN, lambda s, to: s.connect(to) or s.send(b"x")))
def by_multicast(s, to):
    s.setsockopt(0, socket.IP_MULTICAST_IF, here)
    s.sendto(b"x", to)
attempt("forged-multicast", lambda: from_another("224.0.0.1", "224.0.0.1", by_multicast))
def from_127(s):
    s.bind(("127.0.0.3", 0))
    s.connect((LAN, 2314))
attempt("forged-stream", lambda: from_127(inet()))
attempt("after-forging", lambda: udp().sendto(b"x", ("127.0.0.1", 2312)) and None)
attempt("lan", lambda: inet().connect((LAN, 2314)))
attempt("low", lambda: inet().bind(("127.0.0.1", 83)))
for name, family in (("unix", socket.AF_UNIX), ("inet6", socket.AF_INET6), ("vsock", socket.AF_VSOCK), ("packet", socket.AF_PACKET)):
    attempt(name, lambda: socket.socket(family, socket.SOCK_DGRAM) and None)
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) and None)
for path in ("/etc/shadow", "/run", "/root", "/var"):
    attempt(path, lambda: os.stat(path) and None)
attempt("made", lambda: open("/etc/made", "w") and None)
attempt("root", lambda: ",".join(sorted(os.listdir("/"))))
attempt("etc", lambda: ",".join(os.listdir("/etc")))
attempt("pids", lambda: ",".join(sorted(name for name in os.listdir("/proc") if name.isdigit())))
print(" ".join(said), file=sys.stderr)
sys.exit(1)
"""
EPERM, EACCES, ENOENT, EROFS, EAFNOSUPPORT = 1, 13, 2, 30, 97


def ask_until_answered():
    """Somebody on the host who speaks first to what a passt has bound"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.2)
        while True:
            with contextlib.suppress(OSError):
                s.sendto(b"hello", ("127.0.0.1", 2311))
                if s.recv(10) == b"answer":
                    return


@test("a passt that was taken over reaches nothing on the host's 127.0.0.0/8, no abstract sockets, no file", timeout=60)
def _():
    program, refused = "/usr/local/bin/hostile-passt", []
    with open(program, "w", encoding="ascii") as f:
        f.write(HOSTILE)
    os.chmod(program, 0o755)
    with open("/etc/resolv.conf", "w", encoding="ascii") as f:
        f.write("nameserver 127.0.0.53\n")
    subprocess.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["ip", "address", "delete", "192.0.2.1/32", "dev", "lo"], check=True)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            server = stack.enter_context(socket.socket(socket.AF_INET, kind))
            server.bind(("0.0.0.0", 2310))
            server.setblocking(False)
            refused.append(server)
        refused[0].listen()
        for kind, address in ((socket.SOCK_DGRAM, ("127.0.0.1", 2312)), (socket.SOCK_STREAM, ("192.0.2.1", 2314))):
            server = stack.enter_context(socket.socket(socket.AF_INET, kind))
            server.bind(address)
            server.setblocking(False)
            if kind == socket.SOCK_DGRAM:
                refused.append(server)
            else:
                server.listen()
        thread = threading.Thread(target=ask_until_answered, daemon=True)
        thread.start()
        with vm_of(networked()) as vm, configured(Passt=program):
            try:
                vm.start()
            except BusError as error:
                said = dict(word.split("=", 1) for word in error.message.split() if "=" in word)
            else:
                raise AssertionError("it is no passt")
        for server in refused:
            try:
                server.accept() if server.type == socket.SOCK_STREAM else server.recv(10)
            except BlockingIOError:
                continue
            raise AssertionError(f"{server} was reached")
        thread.join(10)
        assert not thread.is_alive(), f"its answer has come: {said}"
    want = {prefix + address: EPERM for prefix in ("", "udp-", "connected-")
            for address in ("127.0.0.1", "127.0.0.9", "127.255.255.254", "0.0.0.0", "127.0.0.53")}
    want |= {"resolver": 0, "other-resolver": EPERM, "answer": 0, "no-answer": EPERM, "low": EACCES, "netlink": 0, "made": EROFS}
    want |= {"forged-" + way: EPERM for way in ("cmsg", "cmsg-to-peer", "bound", "connected", "multicast", "stream")} | {"after-forging": EPERM, "lan": 0}
    want |= {name: EAFNOSUPPORT for name in ("unix", "inet6", "vsock", "packet")}
    want |= {path: ENOENT for path in ("/etc/shadow", "/run", "/root", "/var")}
    want |= {"etc": "resolv.conf", "pids": "1"}
    found = {name: said.get(name) for name in want}
    assert found == {name: str(value) for name, value in want.items()}, said
    assert set(said["root"].split(",")) <= {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"}, said


@test("without passt such a definition is refused, and the message names the package")
def _():
    with configured(Passt="/nowhere/passt"):
        wait_for(lambda: refused(networked()).startswith("networks[0]: "), 20, "a refusal", poll=0.1)
        assert "install the package passt" in refused(networked())
    wait_for(lambda: refused(networked()) == "", 20, "that it is found again", poll=0.1)


@test("a passt that is installed later is found by the daemon that runs, and one that goes is missed")
def _():
    directory = "/usr/local/lib/late"
    os.makedirs(directory, exist_ok=True)
    with configured(Passt=directory + "/passt"):
        wait_for(lambda: refused(networked()) != "", 20, "a refusal", poll=0.1)
        daemon = daemon_pid()
        shutil.copy("/usr/bin/passt", directory + "/passt.new")
        os.rename(directory + "/passt.new", directory + "/passt")
        wait_for(lambda: refused(networked()) == "", 20, "that it is found", poll=0.1)
        os.unlink(directory + "/passt")
        wait_for(lambda: refused(networked()) != "", 20, "that it is missed", poll=0.1)
        assert daemon_pid() == daemon
    shutil.rmtree(directory)


@test("what a passt can't forward is refused")
def _():
    both = [{"host": 2307, "guest": 80}, {"host": 2307, "guest": 81, "address": "127.0.0.2"}]
    with expect_error("NotSupported", "of one address alone", begins="networks[0].forward[1].host: "):
        manager.create("no", networked({"forward": both}))
    with vm_of(networked({"forward": both[:1]}, {"forward": both[1:]})) as vm:
        vm.start()
        assert listens(2307) and listens(2307, "127.0.0.2")


@test("a network of a user's VM")
def _():
    kernel = "/tmp/tiny.elf"
    shutil.copyfile(os.environ["VMUNIT_GUESTS"] + "/tiny.elf", kernel)
    with vm_of(networked(forward(2308), boot={"kernel": kernel}), owner=NOBODY) as vm:
        vm.start()
        assert listens(2308) and int(status(passts(vm)[0], "Uid")[0]) in IDS


run()
