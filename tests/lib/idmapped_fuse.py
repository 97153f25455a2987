# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system in user space, an empty directory, that hangs: it can be shared, where the kernel knows idmapped mounts of FUSE.

    with hanging("/tmp/shares/hung") as server:
        server.hang()                           # somebody looks for a file, and waits from now on
"""

import contextlib
import ctypes
import os
import select
import struct
import threading

INIT, GETATTR, LOOKUP, FORGET, BATCH_FORGET, STATFS, OPENDIR, ACCESS = 26, 3, 1, 2, 42, 17, 27, 34
INIT_EXT, ALLOW_IDMAP = 1 << 30, 1 << (40 - 32)
ENOENT, ENOSYS = 2, 38
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(fd, path):
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other".encode()
    if _libc.mount(b"hanging", path.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "can't mount a FUSE file system")


def _attributes(node):
    """fuse_attr of a directory that anybody may use"""
    return struct.pack("=6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, 0o40777, 2, 0, 0, 0, 4096, 0)


class Server:
    def __init__(self, path):
        self.path, self.fd, self.hangs = path, os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC), False
        self.event, self.end = threading.Event(), os.pipe2(os.O_CLOEXEC)
        _mount(self.fd, path)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def answer(self, unique, data=b"", error=0):
        with contextlib.suppress(OSError):      # it was interrupted
            os.write(self.fd, struct.pack("=IiQ", 16 + len(data), -error, unique) + data)

    def serve(self):
        while not select.select([self.end[0]], [], [], 0)[0]:
            if self.fd not in select.select([self.fd, self.end[0]], [], [])[0]:
                continue
            try:
                request = os.read(self.fd, 1 << 17)
            except OSError:
                return
            self.handle(request)

    def handle(self, request):
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        if opcode == INIT:
            _, minor, readahead = struct.unpack_from("=3I", request, 40)
            self.answer(unique, struct.pack("=4I2H2I2H2IH11H", 7, min(minor, 40), readahead, INIT_EXT, 0, 0, 4096, 1, 0, 0, ALLOW_IDMAP,
                                            0, 0, *[0] * 11))
        elif opcode == GETATTR:
            self.answer(unique, struct.pack("=QII", 0, 0, 0) + _attributes(node))
        elif opcode == STATFS:
            self.answer(unique, bytes(80))
        elif opcode == LOOKUP and self.hangs:   # no answer, ever
            self.event.set()
        elif opcode == LOOKUP:
            self.answer(unique, error=ENOENT)
        elif opcode not in (FORGET, BATCH_FORGET):
            self.answer(unique, error=ENOSYS)

    def hang(self, timeout=30):
        self.hangs = True
        assert self.event.wait(timeout), "nobody looks for a file"

    def close(self):
        """Who waits gets an error."""
        if self.fd < 0:
            return
        os.write(self.end[1], b"x")
        self.thread.join()
        os.close(self.fd)
        self.fd = -1
        _libc.umount2(self.path.encode(), 2)


@contextlib.contextmanager
def hanging(path):
    os.makedirs(path, exist_ok=True)
    server = Server(path)
    try:
        yield server
    finally:
        server.close()
