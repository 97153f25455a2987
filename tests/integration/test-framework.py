#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=60
"""The bed itself: a systemd and a bus of our own, the installed files, the library's ways to wait."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *


@test("this is a box with a running systemd and a bus")
def _():
    assert systemctl("is-system-running").strip() == "running"
    assert open("/run/systemd/container").read().strip() == "systemd-box"
    assert call("/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner", "s", "org.freedesktop.systemd1",
                destination="org.freedesktop.DBus")


@test("errors of the bus have their names")
def _():
    with expect_error("org.freedesktop.systemd1.NoSuchUnit", begins="Unit nothing.service"):
        call("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "GetUnit", "s", "nothing.service",
             destination="org.freedesktop.systemd1")


@test("waiting ends with a unit, a process, a deadline")
def _():
    subprocess.run(["systemd-run", "-q", "--collect", "--unit=short", "sleep", "0.2"], check=True)
    wait_unit_gone("short.service")
    subprocess.run(["systemd-run", "-q", "--collect", "--unit=long", "sleep", "100"], check=True)
    pids = unit_pids("long.service")
    assert len(pids) == 1, pids
    os.kill(pids[0], signal.SIGKILL)
    wait_exit(pids[0])
    wait_unit_gone("long.service")
    start = time.monotonic()
    try:
        wait_for(lambda: False, 0.2)
    except AssertionError:
        assert 0.2 * 0.9 < time.monotonic() - start < 2
    else:
        raise AssertionError("no timeout")


@test("names become object paths and unit names as systemd does it")
def _():
    for name in ("web", "web-1", "a.b", "1a", ".a-b"):
        done = subprocess.run(["systemd-escape", name], capture_output=True, text=True, check=True)
        assert done.stdout.rstrip("\n") == escape(name), (done.stdout, escape(name))
    assert encode("web-1") == "web_2d1" and encode("1a") == "_31a" and encode("") == "_"


@test("the journal can be read")
def _():
    subprocess.run(["logger", "-t", "bed", "hello"], check=True)
    wait_for(lambda: [e["MESSAGE"] for e in journal("SYSLOG_IDENTIFIER=bed")] == ["hello"], poll=0.05)


@test("the guests are here")
def _():
    for definition in (tiny_definition(), bios_definition()):
        for path in definition["boot"].values():
            assert os.path.getsize(path) > 1000, path


run()
