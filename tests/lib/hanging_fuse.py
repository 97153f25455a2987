# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system in user space, spoken by hand, that hangs where it is told to:

    with HangingFuse("/mnt/x", uid) as fuse:    # `good`: a file; `hang…`: its look-up is never answered
        fuse.stop()                             # what comes from now on is not even read
        fuse.wait_asked()                       # until something has come

It serves one directory with the file `good` of 1 MiB of zeros. At the end, or by end(), its program is killed, which ends all waits.
"""

import ctypes
import os
import select
import signal
import stat
import struct

SIZE = 1 << 20
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 2, 3, 14, 15, 17, 18, 25
INIT, OPENDIR, RELEASEDIR, ACCESS, INTERRUPT, BATCH_FORGET = 26, 27, 29, 34, 36, 42
ENOSYS, ENOENT = 38, 2
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(fd, path, uid, others):
    options = f"fd={fd},rootmode=40000,user_id={uid},group_id={uid}" + (",allow_other" if others else "")
    if _libc.mount(b"test", os.fsencode(path), b"fuse", 2 | 4, options.encode()):   # MS_NOSUID | MS_NODEV
        raise OSError(ctypes.get_errno(), "mount of a FUSE")


class HangingFuse:
    _devices = set()

    def __init__(self, path, uid, others=False):
        self.path, self.uid, self.others, self.pid, self.fd = path, uid, others, None, -1

    def __enter__(self):
        os.makedirs(self.path, exist_ok=True)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        _mount(fd, self.path, self.uid, self.others)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for other in self._devices:     # which would not end with its own program
                    os.close(other)
                _serve(fd, self.uid)
            finally:
                os._exit(0)
        self.fd = fd
        self._devices.add(fd)
        return self

    def __exit__(self, *_):
        self.end()

    def stop(self):
        os.kill(self.pid, signal.SIGSTOP)

    def wait_asked(self, timeout=20):
        asked = select.poll()
        asked.register(self.fd, select.POLLIN)
        assert asked.poll(timeout * 1000), f"nobody asks for what is in {self.path}"

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def end(self):
        if self.pid is None:
            return
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._devices.remove(self.fd)
        os.close(self.fd)
        self.pid = None
        _libc.umount2(os.fsencode(self.path), MNT_DETACH)


def _attributes(node, uid):
    mode, size = (stat.S_IFDIR | 0o755, 0) if node == 1 else (stat.S_IFREG | 0o644, SIZE)
    return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, uid, uid, 0, 4096, 0)


def _answer(opcode, node, body, uid):
    """What is answered: bytes, a positive errno, or None for nothing."""
    if opcode == INIT:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        if body.startswith(b"hang"):
            return None
        return struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + _attributes(2, uid) if body == b"good\0" else ENOENT
    if opcode == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + _attributes(node, uid)
    if opcode in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 1, 0, 0)
    if opcode == READ:
        offset, size = struct.unpack_from("<QI", body, 8)
        return bytes(max(0, min(size, SIZE - offset)))
    if opcode == STATFS:
        return struct.pack("<5Q4I6I", 1000, 500, 500, 100, 50, 4096, 255, 4096, 0, *[0] * 6)
    return b"" if opcode in (FLUSH, RELEASE, RELEASEDIR, ACCESS) else ENOSYS


def _serve(fd, uid):
    while True:
        try:
            request = os.read(fd, 1 << 20)
        except InterruptedError:
            continue
        except OSError:                         # it is not mounted any more
            return
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        answer = None if opcode in (FORGET, BATCH_FORGET, INTERRUPT) else _answer(opcode, node, request[40:], uid)
        if answer is None:
            continue
        error, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
        try:
            os.write(fd, struct.pack("<IiQ", 16 + len(data), error, unique) + data)
        except OSError:                         # who asked has gone
            pass
