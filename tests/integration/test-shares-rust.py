#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=1800 linux backends=qemu,cloud-hypervisor
"""All tests of shared folders with the virtiofsd that is written in Rust: VMUNIT_TEST_VIRTIOFSD_RUST= names one, or it is where Debian 13 has it."""

import os
import runpy
import shutil
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import vmunit_test

program = os.environ.get("VMUNIT_TEST_VIRTIOFSD_RUST") or "/usr/libexec/virtiofsd"
if not os.access(program, os.X_OK):
    print("1..0 # SKIP no virtiofsd in Rust is found; VMUNIT_TEST_VIRTIOFSD_RUST= names one")
    sys.exit()
os.makedirs("/usr/local/libexec", exist_ok=True)
shutil.copy2(program, "/usr/local/libexec/virtiofsd")      # where it is looked for first
os.chown("/usr/local/libexec/virtiofsd", 0, 0)

run, vmunit_test.run = vmunit_test.run, lambda: None
for suite in ("shares", "shares-linux") if vmunit_test.BACKEND == "qemu" else ("shares",):
    loaded = runpy.run_path(f"{HERE}/test-{suite}.py", run_name="__main__")


@vmunit_test.test("it is the one in Rust that all of this was about")
def _():
    with loaded["vm_of"](vmunit_test.tiny_definition(filesystems=[{"tag": "one", "source": loaded["share_dir"]("one")}])) as vm:
        vm.start()
        lines = []
        for pid in vmunit_test.unit_pids(f"vmunit-{vmunit_test.escape(vm.Name)}-fs-one.scope"):
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as f:
                lines.append(f.read())
        assert any("\0--shared-dir" in line for line in lines), lines


run()
