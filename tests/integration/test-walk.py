#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# suite: timeout=300 backends=qemu,firecracker,cloud-hypervisor
"""A short random walk; tests/soak goes a long one. VMUNIT_SEED is for another one."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "lib"))
from vmunit_test import *
from walk import Walk


@test("300 random calls, with deaths of daemon and VMMs", timeout=240)
def _():
    Walk(os.environ.get("VMUNIT_SEED") or "1", 300).go()


run()
