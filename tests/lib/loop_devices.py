# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loop devices, which all boxes of a host share: those of our own files alone are looked at, and none stays when a test is killed."""

import contextlib
import ctypes
import fcntl
import glob
import os
import struct

CONTROL = "/dev/loop-control"
SET_FD, CLR_FD, SET_STATUS64, CHANGE_FD, SET_BLOCK_SIZE, CONFIGURE = 0x4c00, 0x4c01, 0x4c04, 0x4c06, 0x4c09, 0x4c0a
GET_FREE = 0x4c82
READ_ONLY, AUTOCLEAR = 1, 4


def own(path):
    """A path that no other box has, for all see each other's loop devices."""
    with open("/etc/machine-id", encoding="utf-8") as f:
        return f"{path}-{f.read().strip()}"


def missing():
    """Why there are none here, None if there are."""
    try:
        os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{CONTROL} can't be opened: {error.strerror}"
    return None


def _word(device, name):
    with contextlib.suppress(OSError), open(f"{device}/loop/{name}", encoding="utf-8") as f:
        return f.read().rstrip("\n")
    return None


def loops_of(top):
    """{device: (image, whether it is read-only, whether it goes with its last user)} of the images at TOP and below"""
    found = {}
    for device in glob.glob("/sys/block/loop*"):
        image = _word(device, "backing_file")
        if image and (image.removesuffix(" (deleted)") + "/").startswith(top + "/"):
            with open(device + "/ro", encoding="utf-8") as f:
                found[os.path.basename(device)] = (image, f.read().strip() == "1", _word(device, "autoclear") == "1")
    return found


def number_of(device):
    with open(f"/sys/block/{device}/dev", encoding="utf-8") as f:
        return tuple(map(int, f.read().split(":")))


@contextlib.contextmanager
def loop_device(image):
    """A loop device of the image in the block. Gives its name, loop0 or so."""
    with open(image, "r+b") as f, open(CONTROL, "r+b", buffering=0) as control:
        config = struct.pack("=II", f.fileno(), 512) + bytes(52) + struct.pack("=I", AUTOCLEAR) + bytes(304 - 64)
        for _ in range(64):                     # others may be faster with the one that is free
            name = f"loop{fcntl.ioctl(control, GET_FREE)}"
            device = os.open("/dev/" + name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, CONFIGURE, config)
                break
            except OSError:
                os.close(device)
        else:
            raise AssertionError("no loop device can be had")
    try:
        yield name
    finally:
        os.close(device)
