#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=120 backends=qemu,firecracker
"""The benchmarks of tests/bench still run and print their figures; what these are is not looked at here."""

import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *

TOP = os.environ["VMUNIT_TOP"]
BENCH = os.environ["VMUNIT_BUILD"] + "/tests/bench/bench"


def bench(name):
    done = subprocess.run([BENCH, name, "2", BACKEND], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    for kind, what, *figures in lines:
        assert kind in ("row", "note", "bar"), lines
        assert all(float(f) >= 0 or "beyond" in what for f in figures[:1 if kind == "note" else 2]), lines
    assert sum(line[0] == "bar" for line in lines) >= 1, lines
    Manager().remove_all()


for name in "start", "many", "death", "memory", "takeover", "scale":
    test(name)(lambda name=name: bench(name))


@test("walls")
def _():
    shutil.copy(os.path.dirname(BENCH) + "/no-walls-exec", "/usr/libexec/vmunit-exec.none")
    bench("walls")
    assert not os.path.exists("/usr/libexec/vmunit-exec.walls")
    os.unlink("/usr/libexec/vmunit-exec.none")


@test("read", not_on={"firecracker": "what it reads is the same, and the mute VMM is in QEMU's place"})
def _():
    subprocess.run(["install", "-D", TOP + "/tests/bench/mute-vmm", "/opt/vmunit-bench/mute-vmm"], check=True)
    os.makedirs("/etc/vmunit/vmunit.conf.d", exist_ok=True)
    with open("/etc/vmunit/vmunit.conf.d/bench.conf", "w") as f:
        f.write("[VMUnit]\nQEMU=/opt/vmunit-bench/mute-vmm\n")
    systemctl("restart", "vmunitd.service")
    bench("read")


run()
