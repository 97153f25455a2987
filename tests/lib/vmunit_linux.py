# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Linux guest: it boots, its shell is on its serial port."""

import re

from vmunit_test import *

__all__ = "manager BOOT Shell boot remove".split()

manager = Manager()
BOOT = 180                      # seconds; 2 when nothing else runs


class Shell:
    """The guest's shell on its serial port."""

    def __init__(self, vm):
        self.console = vm.open_console()
        self.number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.console.close()

    def run(self, command, timeout=20):
        """Its exit status and what it prints. The marks do not look the same where the shell echoes the command."""
        self.number += 1
        n = self.number
        self.console.send(f"echo '@'{n}@; {command}; echo =$?'='{n}=\n".encode())
        text, end = b"", re.compile(rb"@%d@\r\n(.*?)=(\d+)=%d=" % (n, n), re.DOTALL)
        while not (match := end.search(text)):
            text += read_until(self.console.fileno(), b"=%d=" % n, timeout)
        return int(match[2]), match[1].replace(b"\r", b"").decode(errors="replace").strip()


def boot(name, owner=None, **over):
    manager.remove_all()                                    # what a test that failed has left
    vm = manager.create(name, linux_definition(**over), **({} if owner is None else {"owner": owner}))
    vm.start()
    vm.wait_log(b"READY", BOOT)
    return vm


def remove(vm):
    vm.remove(force=True)
    vm.wait_gone()
