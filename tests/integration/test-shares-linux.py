#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=1200 linux
"""Shared folders as a real guest sees them: Debian's kernel with busybox, without KVM, on QEMU."""

import hashlib
import os
import shutil
import stat
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from vmunit_beds import *
from vmunit_linux import *

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = "/tmp/shares"                            # the box's root is an overlay, which knows no idmapped mounts
OWNER, STRANGER = 12345, 23456
MIB = 1024 * 1024
PATIENT = 240                                   # seconds, for what takes a guest without KVM a few
SHARES = {"tools": {"readonly": True}, "rw": {}, "fresh": {"cache": "never"}, "ro": {"readonly": True}, "full": {}, "gone": {}}


def share_dir(name, owner=0, mode=0o755):
    path = f"{ROOT}/{name}"
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    return path


def put(path, content=b"", owner=0, mode=0o644):
    with open(path, "wb") as f:
        f.write(content)
        os.fchmod(f.fileno(), mode)
        os.fchown(f.fileno(), owner, owner)


def content(path):
    with open(path, "rb") as f:
        return f.read()


def owner_of(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def fill_ro():
    """What the guest may only read, and what it is to be the same as afterwards."""
    path = f"{ROOT}/ro"
    put(f"{path}/file", b"to be read")
    os.mkdir(f"{path}/directory")
    os.symlink("file", f"{path}/link")
    return path


def look(top):
    """All of a tree that anybody could change"""
    found = {}
    for directory, names, files in os.walk(top):
        for path in [directory, *(os.path.join(directory, name) for name in names + files)]:
            st = os.lstat(path)
            found[path] = (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_mtime_ns,
                           content(path) if stat.S_ISREG(st.st_mode) else None)
    return found


class Guest:
    """The one that most tests share: it boots when the first of them needs it, and again after one that broke it."""

    def __init__(self):
        self.vm = self.shell = None

    def get(self):
        if self.vm and self.vm.exists() and self.vm.State == "Running" and self.shell:
            return self
        for name in SHARES:
            share_dir(name)
        fill_ro()
        subprocess.run(["umount", "-q", f"{ROOT}/full"], check=False)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "full", f"{ROOT}/full"], check=True)
        subprocess.run(["gcc", "-static", "-O1", "-o", f"{ROOT}/tools/locks", os.path.join(HERE, "..", "guests", "locks.c")], check=True)
        self.vm = boot("linux", memory="320M", filesystems=[{"tag": name, "source": f"{ROOT}/{name}", **more}
                                                            for name, more in SHARES.items()])
        self.shell = Shell(self.vm)
        self.mount()
        return self

    def mount(self):
        for name in SHARES:
            self.run(f"mkdir -p /mnt/{name} && mount -t virtiofs {name} /mnt/{name}")

    def try_run(self, command, timeout=60):
        return self.shell.run(command, timeout)

    def run(self, command, timeout=60):
        """What it prints; it has to succeed."""
        code, text = self.try_run(command, timeout)
        assert code == 0, f"{command}: {code}, {text}"
        return text

    def script(self, lines, timeout=PATIENT):
        put(f"{ROOT}/tools/script", b"set -e\n" + lines.encode())
        return self.run("sh /mnt/tools/script", timeout)

    def away(self):
        if self.shell:
            self.shell.console.close()
        if self.vm:
            remove(self.vm)
        self.vm = self.shell = None


the_guest = Guest()


@test("the guest mounts its shares, and each side sees what the other has done", timeout=240)
def _():
    guest = the_guest.get()
    mounts = [line.split()[:3] for line in guest.run("grep virtiofs /proc/mounts").splitlines()]
    assert mounts == [[name, f"/mnt/{name}", "virtiofs"] for name in SHARES], mounts
    put(f"{ROOT}/rw/from-host", b"from the host\n")
    assert guest.run("cat /mnt/rw/from-host") == "from the host"
    guest.run("echo from the guest >/mnt/rw/from-guest")
    assert content(f"{ROOT}/rw/from-guest") == b"from the guest\n" and owner_of(f"{ROOT}/rw/from-guest") == (0, 0)

    put(f"{ROOT}/fresh/counter", b"1\n")                    # `cache: never`: at once, whatever was seen before
    for n in range(2, 6):
        assert guest.run("cat /mnt/fresh/counter") == str(n - 1)
        put(f"{ROOT}/fresh/counter", b"%d\n" % n)
    os.unlink(f"{ROOT}/fresh/counter")
    assert guest.try_run("cat /mnt/fresh/counter")[0] == 1
    code, text = guest.try_run("mkdir -p /mnt/none && mount -t virtiofs none /mnt/none")
    assert code != 0, text


@test("files, directories, links, modes, owners, times and holes: what the guest does is what is on disk", timeout=240)
def _():
    guest, top = the_guest.get(), f"{ROOT}/rw/work"
    os.mkdir(top)
    guest.script("""
        cd /mnt/rw/work
        echo one >a; echo two >>a; mv a b; test ! -e a
        mkdir -p d/e/f; echo deep >d/e/f/g; mv d/e moved; rmdir d
        ln -s b soft; ln b hard; test "$(cat soft)" = "$(cat hard)"; test "$(readlink soft)" = b
        ln -s /etc/hostname away
        mkfifo pipe
        echo other >c; mv c b2; echo instead >c; mv c b2; test "$(cat b2)" = instead
        echo 0123456789 >cut; truncate -s 4 cut; test "$(cat cut)" = 0123
        truncate -s 1M hole; printf x | dd of=hole bs=1 seek=1048575 conv=notrunc 2>/dev/null
        chmod 640 b; echo own >own; chown 1000:2000 own; chmod 4755 own
        touch -d '2001-02-03 04:05:06' old
        (exec 3>open; rm open; echo still >&3)
        mkdir sticky; chmod 1777 sticky
        : >bye; rm bye; test ! -e bye
        touch "name with blank" "-" "$(printf 'umlaut\\303\\244')"
        echo x >long-$(printf '%0240d' 0)
        """)
    assert content(f"{top}/b") == b"one\ntwo\n" and stat.S_IMODE(os.stat(f"{top}/b").st_mode) == 0o640
    assert os.stat(f"{top}/b").st_nlink == 2 and os.path.samefile(f"{top}/b", f"{top}/hard")
    assert content(f"{top}/moved/f/g") == b"deep\n" and not os.path.exists(f"{top}/d")
    assert os.readlink(f"{top}/soft") == "b" and os.readlink(f"{top}/away") == "/etc/hostname"
    assert stat.S_ISFIFO(os.lstat(f"{top}/pipe").st_mode)
    assert content(f"{top}/b2") == b"instead\n" and content(f"{top}/cut") == b"0123"
    assert content(f"{top}/hole") == bytes(MIB - 1) + b"x"
    assert owner_of(f"{top}/own") == (1000, 2000), "root's VM has the owners that are on disk"
    assert stat.S_IMODE(os.stat(f"{top}/own").st_mode) == 0o4755
    assert int(os.stat(f"{top}/old").st_mtime) == 981173106
    assert stat.S_IMODE(os.stat(f"{top}/sticky").st_mode) == 0o1777
    names = set(os.listdir(top))
    assert {"name with blank", "-", "umlautä"} <= names and not names & {"a", "c", "open", "bye"}, names
    for command in ("mknod /mnt/rw/work/disk b 254 0", "mknod /mnt/rw/work/null c 1 3"):
        code, text = guest.try_run(command)
        assert code != 0, f"a guest can make a device on the host: {command}"

    os.chown(f"{top}/b2", 1234, 1234)
    os.chmod(f"{top}/b2", 0o600)
    wait_for(lambda: guest.run("stat -c %u:%g:%a /mnt/rw/work/b2") == "1234:1234:600", 20, "the host's change in the guest", poll=0.2)
    guest.run("rm -r /mnt/rw/work")
    assert not os.path.exists(top)


@test("a program on a share runs; locks keep other processes of the guest out", timeout=120)
def _():
    guest = the_guest.get()
    assert guest.run("/mnt/tools/locks /mnt/rw/lock") == "flock 0, fcntl 0"


@test("64 MB, with checksums, both ways", timeout=400)
def _():
    guest = the_guest.get()
    data = os.urandom(64 * MIB)
    put(f"{ROOT}/rw/big", data)
    assert guest.run("md5sum </mnt/rw/big", PATIENT).split()[0] == md5(data)
    guest.run("cat /mnt/rw/big /dev/null >/mnt/rw/copy && sync", PATIENT)
    assert content(f"{ROOT}/rw/copy") == data
    del data
    told = guest.run("dd if=/dev/urandom of=/mnt/rw/random bs=64k count=1024 2>/dev/null && md5sum </mnt/rw/random", PATIENT).split()[0]
    made = content(f"{ROOT}/rw/random")
    assert len(made) == 64 * MIB and md5(made) == told
    guest.run("rm /mnt/rw/big /mnt/rw/copy /mnt/rw/random")


@test("5,000 small files, both ways", timeout=600)
def _():
    guest, n = the_guest.get(), 5000
    os.mkdir(f"{ROOT}/rw/theirs")
    for i in range(n):
        put(f"{ROOT}/rw/theirs/f{i:04}", b"host %d\n" % i)
    want = md5(b"".join(b"host %d\n" % i for i in range(n)))
    assert guest.run("ls /mnt/rw/theirs | wc -l", PATIENT) == str(n)
    assert guest.run("cd /mnt/rw/theirs && cat * | md5sum; cd /", PATIENT).split()[0] == want
    guest.script(f"mkdir /mnt/rw/ours; cd /mnt/rw/ours; i=0; while [ $i -lt {n} ]; do echo guest $i >g$i; i=$((i+1)); done", 500)
    assert sorted(os.listdir(f"{ROOT}/rw/ours")) == sorted(f"g{i}" for i in range(n))
    for i in range(n):
        assert content(f"{ROOT}/rw/ours/g{i}") == b"guest %d\n" % i
    guest.run("rm -r /mnt/rw/ours /mnt/rw/theirs", PATIENT)
    assert not os.path.exists(f"{ROOT}/rw/ours") and not os.path.exists(f"{ROOT}/rw/theirs")


@test("a share that may only be read: whatever the guest tries, also mounted anew as one to write", timeout=240)
def _():
    guest, before = the_guest.get(), look(f"{ROOT}/ro")
    assert guest.run("cat /mnt/ro/file /mnt/ro/link; ls /mnt/ro") == "to be readto be readdirectory  file       link"
    attempts = ("echo x >/mnt/ro/new", "echo x >/mnt/ro/file", "echo x >>/mnt/ro/file", "mkdir /mnt/ro/d", "ln -s file /mnt/ro/l2",
                "ln /mnt/ro/file /mnt/ro/hard", "mkfifo /mnt/ro/pipe", "mknod /mnt/ro/null c 1 3", "rm -f /mnt/ro/file",
                "rm -f /mnt/ro/link", "rmdir /mnt/ro/directory", "mv /mnt/ro/file /mnt/ro/directory/", "chmod 777 /mnt/ro/file",
                "chown 1:1 /mnt/ro/file", "touch /mnt/ro/file", "touch -d '2001-01-01 00:00:00' /mnt/ro/directory",
                "truncate -s 0 /mnt/ro/file", "dd if=/dev/zero of=/mnt/ro/file bs=1 count=1 conv=notrunc", "/mnt/tools/locks /mnt/ro/lock")
    for remount in ("mount -o remount,rw /mnt/ro", "umount /mnt/ro && mount -t virtiofs -o rw ro /mnt/ro"):
        for attempt in attempts:
            code, text = guest.try_run(f"({attempt})")
            assert code != 0 and "Read-only file system" in text, (attempt, code, text)
        guest.run(remount)
    assert look(f"{ROOT}/ro") == before
    # behind the guest's back it changes all the same
    put(f"{ROOT}/ro/added", b"later")
    assert guest.run("cat /mnt/ro/added") == "later"


@test("a full disk: the guest is told, runs on, and can write when there is room", timeout=240)
def _():
    guest = the_guest.get()
    code, text = guest.try_run("dd if=/dev/zero of=/mnt/full/a bs=64k count=128 conv=fsync")
    assert code != 0 and "No space left" in text, text
    assert os.statvfs(f"{ROOT}/full").f_bavail == 0
    code, text = guest.try_run("echo y >/mnt/full/b")
    assert code != 0, text
    assert guest.run("df -k /mnt/full | tail -n 1").split()[1] == "4096", "the guest knows how large it is"
    assert words(guest.vm) == ("Running", "")
    guest.run("echo here >/mnt/rw/b && cat /mnt/rw/b")
    os.truncate(f"{ROOT}/full/a", MIB)                      # to remove it there frees nothing while the guest knows it
    guest.run("echo z >/mnt/full/c")
    assert content(f"{ROOT}/full/c") == b"z\n"
    guest.run("rm /mnt/full/*; cp /bin/busybox /mnt/full/d")
    assert os.listdir(f"{ROOT}/full") == ["d"]


@test("a directory that is deleted meanwhile, and a link in its place: the guest sees neither", timeout=240)
def _():
    guest, path = the_guest.get(), f"{ROOT}/gone"
    put(f"{path}/before", b"there")
    assert guest.run("cat /mnt/gone/before") == "there"
    shutil.rmtree(path)
    wait_for(lambda: guest.try_run("cat /mnt/gone/before")[0] != 0, 20, "the end of the file", poll=0.2)
    assert guest.try_run("echo x >/mnt/gone/after")[0] != 0
    secret = share_dir("secret")
    put(f"{secret}/before", b"secret")
    os.symlink(secret, path)
    for command in ("cat /mnt/gone/before", "cat /mnt/gone/../secret/before", "echo x >/mnt/gone/after",
                    "umount /mnt/gone; mount -t virtiofs gone /mnt/gone && cat /mnt/gone/before"):
        code, text = guest.try_run(command)
        assert code != 0 and "secret" not in text.replace("../secret", ""), (command, text)
    assert os.listdir(secret) == ["before"]
    assert words(guest.vm) == ("Running", "")
    guest.run("echo still >/mnt/rw/still")
    assert content(f"{ROOT}/rw/still") == b"still\n"


@test("links do not lead out of a share", timeout=120)
def _():
    guest = the_guest.get()
    put(f"{ROOT}/outside", b"outside")
    os.symlink(f"{ROOT}/outside", f"{ROOT}/rw/absolute")
    os.symlink("../outside", f"{ROOT}/rw/relative")
    guest.run("ln -s ../../tmp/shares/outside /mnt/rw/own && ln -s /proc/1/root/etc/shadow /mnt/rw/proc")
    for link in ("absolute", "relative", "own"):
        assert guest.try_run(f"cat /mnt/rw/{link}")[0] != 0, link
        assert guest.try_run(f"test -e /mnt/rw/{link}/..")[0] != 0, link
    assert guest.run("ls -a /mnt/rw/.. | grep -c outside; true") == "0"
    guest.run("rm /mnt/rw/absolute /mnt/rw/relative /mnt/rw/own /mnt/rw/proc")


@test("paused and resumed, with the daemon killed meanwhile, its shares go on", timeout=240)
def _():
    guest = the_guest.get()
    vm, pid = guest.vm, guest.vm.pid
    guest.shell.console.send(b"(i=0; while [ -e /mnt/rw ]; do i=$((i+1)); echo $i >/mnt/rw/tick; sleep 0.1; done) & true\n")
    wait_for(lambda: os.path.exists(f"{ROOT}/rw/tick"), 30, "the first tick", poll=0.1)
    vm.pause()
    kill_daemon()
    assert words(vm)[0] == "Paused"
    vm.resume()
    was = content(f"{ROOT}/rw/tick")
    wait_for(lambda: content(f"{ROOT}/rw/tick") not in (b"", was), 30, "more ticks", poll=0.1)
    guest.run("kill %1; true")
    assert (words(vm), vm.pid) == (("Running", ""), pid)
    put(f"{ROOT}/rw/new", b"new")
    assert guest.run("cat /mnt/rw/new") == "new"


@test("it reboots, by `vmunit reboot`, by its own, by a reset: and mounts again", timeout=400)
def _():
    guest = the_guest.get()
    vm, pid = guest.vm, guest.vm.pid
    ways = (lambda: subprocess.run(["vmunit", "reboot", "linux"], check=True, capture_output=True, timeout=200),
            lambda: guest.shell.console.send(b"reboot -f\n"), vm.reset)
    for number, way in enumerate(ways):
        guest.run(f"dd if=/dev/zero of=/mnt/rw/before bs=64k count=16 && echo {number} >/mnt/rw/number")
        guest.shell.console.send(b"while :; do dd if=/dev/zero of=/mnt/rw/busy bs=64k count=64; done >/dev/null 2>&1 & true\n")
        way()
        read_until(guest.shell.console.fileno(), b"READY", BOOT)
        guest.mount()
        assert guest.run("cat /mnt/rw/number") == str(number)
        guest.run(f"cp /mnt/rw/before /mnt/rw/after{number} && cat /mnt/ro/file")
        assert content(f"{ROOT}/rw/after{number}") == bytes(MIB)
        assert guest.try_run("echo x >/mnt/ro/file")[0] != 0
        assert (words(vm), vm.pid) == (("Running", ""), pid)


@test("stopped in good order, it leaves nothing; started again, it has its files", timeout=240)
def _():
    guest = the_guest.get()
    guest.run("echo kept >/mnt/rw/kept")
    shutil.rmtree(f"{ROOT}/secret", ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{ROOT}/gone")                            # a link by now
    guest.shell.console.close()
    guest.vm.stop()
    assert words(guest.vm) == ("Stopped", "stopped")
    for tag in SHARES:
        wait_unit_gone(f"vmunit-linux-fs-{tag}.scope")
    wait_unit_gone(guest.vm.Slice)

    with expect_error("BackendFailed", text=f"filesystems[{list(SHARES).index('gone')}] (gone)"):
        guest.vm.start()
    share_dir("gone")
    put(f"{ROOT}/full/all", b"")
    with contextlib.suppress(OSError), open(f"{ROOT}/full/all", "wb", buffering=0) as f:
        while True:
            f.write(bytes(65536))                           # a start does not write there
    guest.vm.start()
    guest.shell = Shell(guest.vm)
    read_until(guest.shell.console.fileno(), b"READY", BOOT)
    guest.mount()
    assert guest.run("cat /mnt/rw/kept") == "kept"
    guest.away()
    subprocess.run(["umount", f"{ROOT}/full"], check=True)


@test("a user's VM: what its guest makes is its owner's, whoever makes it; what is another's stays out of reach", timeout=300)
def _():
    subprocess.run(["useradd", "-u", str(OWNER), "-M", "vmunit-owner"], check=False, capture_output=True)
    path = share_dir("user", owner=OWNER, mode=0o700)
    put(f"{path}/mine", b"mine", OWNER, 0o600)
    put(f"{path}/roots", b"root's secret", 0, 0o600)
    put(f"{path}/strangers", b"stranger's secret", STRANGER, 0o600)
    put(f"{path}/open", b"for all", STRANGER, 0o666)
    put(f"{path}/group", b"of another group", OWNER, 0o660)
    os.chown(f"{path}/group", OWNER, STRANGER)
    vm = boot("user", owner=OWNER, filesystems=[{"tag": "user", "source": path}])
    with Shell(vm) as shell:
        assert shell.run("mkdir -p /mnt && mount -t virtiofs user /mnt")[0] == 0
        assert shell.run("stat -c %u:%g /mnt /mnt/mine")[1].split() == ["0:0", "0:0"], "to the guest it is root's"
        assert shell.run("cat /mnt/mine && echo more >>/mnt/mine") == (0, "mine")
        assert content(f"{path}/mine") == b"minemore\n"

        code, text = shell.run("cd /mnt && echo x >file && mkdir -p d/e && echo x >d/e/file && ln -s file soft && ln file hard"
                               " && mkfifo pipe && cp /bin/busybox suid && chmod 6755 suid && cd /", 60)
        assert code == 0, text
        for name in ("file", "d", "d/e", "d/e/file", "soft", "hard", "pipe", "suid"):
            assert owner_of(f"{path}/{name}") == (OWNER, OWNER), (name, owner_of(f"{path}/{name}"))

        for command in ("chown 1000 /mnt/file", "chown 12345:12345 /mnt/file", "chown 0:1 /mnt/file", "cat /mnt/roots",
                        "cat /mnt/strangers", "echo x >/mnt/roots", "echo x >>/mnt/open", "echo x >>/mnt/group", "rm -f /mnt/strangers", "chmod 777 /mnt/roots",
                        "chown 0:0 /mnt/roots", "mknod /mnt/null c 1 3",
                        "setpriv --reuid 1000 --regid 1000 --clear-groups touch /mnt/others"):
            code, text = shell.run(command)
            assert code != 0 and "secret" not in text, (command, text)
        assert shell.run("cat /mnt/open /mnt/group") == (0, "for allof another group")
        assert (content(f"{path}/roots"), owner_of(f"{path}/roots")) == (b"root's secret", (0, 0))
        assert content(f"{path}/open") == b"for all" and owner_of(f"{path}/file") == (OWNER, OWNER)
        for directory, names, files in os.walk(path):
            for name in set(names + files) - {"roots", "strangers", "open", "group"}:
                assert owner_of(os.path.join(directory, name)) == (OWNER, OWNER), name
    remove(vm)


@test("xattr, posixAcl, cache and threads are what they say", timeout=300)
def _():
    manager.remove_all()
    options = {"tools": {"readonly": True}, "plain": {}, "more": {"xattr": True, "posixAcl": True}, "always": {"cache": "always"},
               "never": {"cache": "never"}, "many": {"threads": 4}}
    for name in options:
        share_dir(name)
    subprocess.run(["gcc", "-static", "-O1", "-o", f"{ROOT}/tools/xattr", os.path.join(HERE, "..", "guests", "xattr.c")], check=True)
    try:
        os.setxattr(f"{ROOT}/more", "user.host", b"host")
    except OSError:
        raise Skip("this kernel's tmpfs has no extended attributes of users") from None
    for name in ("always", "never"):
        put(f"{ROOT}/{name}/file", b"first")
    vm = boot("options", memory="320M", filesystems=[{"tag": name, "source": f"{ROOT}/{name}", **more} for name, more in options.items()])
    with Shell(vm) as shell:
        def run(command, timeout=PATIENT):
            code, text = shell.run(command, timeout)
            assert code == 0, (command, code, text)
            return text

        for name in options:
            run(f"mkdir -p /mnt/{name} && mount -t virtiofs {name} /mnt/{name}")
        assert run("/mnt/tools/xattr get /mnt/more user.host") == "host"
        run("echo x >/mnt/more/file && /mnt/tools/xattr set /mnt/more/file user.guest guest")
        assert os.getxattr(f"{ROOT}/more/file", "user.guest") == b"guest"
        run("/mnt/tools/xattr acl /mnt/more/file 1234")
        assert b"\xd2\x04\x00\x00" in os.getxattr(f"{ROOT}/more/file", "system.posix_acl_access"), "uid 1234 in it"
        run("echo x >/mnt/plain/file")
        for command in ("set /mnt/plain/file user.guest guest", "acl /mnt/plain/file 1234"):
            code, text = shell.run("/mnt/tools/xattr " + command)
            assert code != 0 and "not supported" in text, (command, code, text)

        assert run("cat /mnt/always/file /mnt/never/file") == "firstfirst"
        for name in ("always", "never"):
            with open(f"{ROOT}/{name}/file", "r+b") as f:
                f.write(b"other")
        assert run("cat /mnt/always/file /mnt/never/file") == "firstother", "what is kept for always, and what never"

        run("for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/mnt/many/$i bs=64k count=32 2>/dev/null & done; wait; cat /mnt/many/* | md5sum")
        assert sorted(os.listdir(f"{ROOT}/many")) == [str(i) for i in range(1, 9)]
        assert all(os.path.getsize(f"{ROOT}/many/{i}") == 2 * MIB for i in range(1, 9))
    remove(vm)


@test("another user's directory: the start is refused and names the share", timeout=60)
def _():
    subprocess.run(["useradd", "-u", str(OWNER), "-M", "vmunit-owner"], check=False, capture_output=True)
    mine, other = share_dir("mine", owner=OWNER, mode=0o700), share_dir("other", owner=STRANGER, mode=0o700)
    below = share_dir("other/below", owner=OWNER)
    os.symlink(other, f"{ROOT}/to-other")
    for source in (other, below, f"{ROOT}/to-other"):
        with vm_of(tiny_definition(filesystems=[{"tag": "mine", "source": mine}, {"tag": "theirs", "source": source}]), owner=OWNER) as vm:
            with expect_error("BackendFailed", text="filesystems[1] (theirs)"):
                vm.start()
            assert words(vm) == ("Stopped", "start-failed"), words(vm)
    os.unlink(f"{ROOT}/to-other")


@test("10 VMs with 2 shares each, at once", timeout=300)
def _():
    manager.remove_all()
    wait_idle()
    before, n = snapshot_leftovers(), 10
    made = []
    for i in range(n):
        shares = [{"tag": tag, "source": share_dir(f"{tag}-{i}")} for tag in ("one", "two")]
        made.append(manager.create(f"many{i}", tiny_definition(filesystems=shares)))
    for _ in range(2):
        failed = [error for error in gather([vm.start_async() for vm in made]) if isinstance(error, BusError)]
        assert not failed, failed
        for vm in made:
            assert words(vm) == ("Running", "")
            vm.wait_log(b"TINY-UP", BOOT)
            for tag in ("one", "two"):
                assert unit_pids(f"vmunit-{vm.Name}-fs-{tag}.scope"), (vm.Name, tag)
        failed = [error for error in gather([vm.stop_async() for vm in made]) if isinstance(error, BusError)]
        assert not failed, failed
        assert {words(vm) for vm in made} == {("Stopped", "stopped")}
    manager.remove_all()
    assert_no_leftovers(before, 20)


run()
