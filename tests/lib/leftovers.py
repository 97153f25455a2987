# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a VM could leave on the host beside its units and files: mounts, loop devices, namespaces, processes and files of its ids,
System V's and POSIX' objects. It asks the kernel alone, and needs no vmunit.

    before = left_on_host(daemon, launcher)         # {kind: {what it is, as words}}
"""

import collections
import contextlib
import fcntl
import os
import re
import stat
import struct
import tempfile

FIRST_ID = 1000013824
IDS = range(FIRST_ID + 1, FIRST_ID + 3 * 65536)         # of VMs and their virtiofsds; of root's shares; of passts
NAMESPACES = re.compile(r"(mnt|net|pid|user|ipc|uts|cgroup|time):\[")
# Where anybody but the packages' manager may write; the rest of a host takes many seconds to walk
PLACES = ("/dev", "/run", "/tmp", "/var/lib/vmunit", "/var/tmp")
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO_SIZE = 232


def _numbers():
    return filter(str.isdigit, os.listdir("/proc"))


def _read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def mounts(pid):
    """What is mounted where, as that process sees it. What systemd makes for a service that starts is not told."""
    found = collections.Counter()
    for line in _read(f"/proc/{pid}/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        _, _, device, root, at, options, *_ = fields.split(" ")
        if not at.startswith(("/run/credentials", "/run/user/")):
            root = re.sub(r"systemd-private-[0-9a-f]+-(.*?)-\w+/", r"systemd-private-\1/", root)
            found[f"{root} at {at} ({kind.split(' ')[0]} {device if kind.startswith('ext') else ''}, {options.split(',')[0]})"] += 1
    return {f"{i + 1}. {what}" for what, n in found.items() for i in range(n)}


def _loop_device_of_ours(name, path, devices):
    """Whether its file is one that we see, for the kernel has one list for all boxes: by what the device says, not by the path."""
    number = tuple(map(int, _read(f"/sys/block/{name}/dev").split(":")))
    with tempfile.TemporaryDirectory(dir="/dev") as directory:
        node = directory + "/loop"
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(*number))
        with open(node, "rb") as f:
            device, inode = struct.unpack_from("QQ", fcntl.ioctl(f, LOOP_GET_STATUS64, bytes(LOOP_INFO_SIZE)))
    with contextlib.suppress(OSError):
        st = os.stat(path)
        return (st.st_dev, st.st_ino) == (device, inode)
    return device in devices


def loop_devices():
    found, devices = set(), None
    for name in os.listdir("/sys/block"):
        with contextlib.suppress(OSError):                  # most have no file, others lose it just now
            path = _read(f"/sys/block/{name}/loop/backing_file").strip()
            if devices is None:
                devices = {os.makedev(*map(int, line.split()[2].split(":"))) for line in _read("/proc/self/mountinfo").splitlines()}
            if path and _loop_device_of_ours(name, path, devices):
                found.add(f"{name} ({path})")
    return found


def processes_of_ids(ids=IDS):
    """{pid: (name, ids out of these)}, zombies too"""
    found = {}
    for pid in _numbers():
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in _read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
            its = {int(n) for key in ("Uid", "Gid", "Groups") for n in status[key].split()}
            if its := {n for n in its if n in ids}:
                found[int(pid)] = (status["Name"] + (", a zombie" if status["State"][0] in "ZX" else ""), its)
    return found


def service_processes(main_pids):
    """Those in the services' own cgroups that are not the services themselves."""
    found = set()
    for pid in _numbers():
        with contextlib.suppress(OSError):
            cgroup = _read(f"/proc/{pid}/cgroup").strip()
            if cgroup.endswith(("/vmunitd.service", "/vmunit-launch.service")) and int(pid) not in main_pids:
                found.add(f"{_read(f'/proc/{pid}/comm').strip()} (pid {pid})")
    return found


def namespaces_held(pid):
    """By descriptors: else nothing keeps a namespace but its processes and mounts."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if NAMESPACES.match(target):
                    found.add(target)
    return found


def ipc_objects(ids=IDS):
    """System V's; those of POSIX are files below /dev."""
    found = set()
    for kind in ("shm", "sem", "msg"):
        head, *lines = _read(f"/proc/sysvipc/{kind}").splitlines()
        for line in lines:
            o = dict(zip(head.split(), line.split()))
            if {int(o[k]) for k in ("uid", "gid", "cuid", "cgid")} & set(ids):
                found.add(f"{kind} {o['key']} of {o['uid']}")
    return found


def files_of_ids(places=PLACES, ids=IDS, except_for=()):
    found = set()
    for place in places:
        for directory, names, files in os.walk(place):
            names[:] = [name for name in names if os.path.join(directory, name) not in except_for]
            for name in names + files:
                with contextlib.suppress(OSError):
                    st = os.lstat(os.path.join(directory, name))
                    if st.st_uid in ids or st.st_gid in ids:
                        found.add(f"{directory}/{name} of {st.st_uid}:{st.st_gid}")
    return found


def left_on_host(daemon, launcher, live=frozenset()):
    """All of it. Daemon and launcher are processes, 0 for none; live: ids of VMs that run, whose processes are not told of."""
    processes = processes_of_ids()
    ids = live.union(*(its for _, its in processes.values()))
    return {
        "mounts": mounts(1),
        "daemon's mounts": mounts(daemon) if daemon else set(),
        "launcher's mounts": mounts(launcher) if launcher and not os.path.samefile(f"/proc/{launcher}/ns/mnt", "/proc/1/ns/mnt") else set(),
        "loop devices": loop_devices(),
        "namespaces": {ns for pid in (daemon, launcher) if pid for ns in namespaces_held(pid)},
        "IPC objects": ipc_objects(),
        "processes of VMs' ids": {f"{name} (pid {pid})" for pid, (name, its) in processes.items() if its - live},
        "processes of the services": service_processes({daemon, launcher}) if daemon and launcher else set(),
        "files of VMs' ids": {f for f in files_of_ids() if not ids & set(map(int, re.findall(r"(\d+):(\d+)$", f)[0]))},
    }
