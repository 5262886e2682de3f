# SPDX-License-Identifier: MIT
"""Real QEMU/KVM migrations made on this machine, and QEMU's own account of them.

Nothing here knows about tracing: the guest (`guest`), the control of QEMU (`qemu`) and the scenarios
(`scenarios`) are the independent truth with which the tracer's results are compared.
"""

import sys
from pathlib import Path

_VENDOR = Path(__file__).with_name("_vendor")
"""The directory in which the Debian package vftrace-demo installs qemu.qmp, which Debian itself lacks."""

if _VENDOR.is_dir():
    sys.path.append(str(_VENDOR))
