"""Real QEMU/KVM migrations made on this machine, and QEMU's own account of them.

Nothing here knows about tracing: what the guest does (`guest`), how QEMU is driven (`qemu`) and
what is played (`scenarios`) are the independent truth that the tracer is held against.
"""

import sys
from pathlib import Path

_VENDOR = Path(__file__).with_name("_vendor")
"""Where Debian's package vftrace-demo brings qemu.qmp, which Debian itself does not have."""

if _VENDOR.is_dir():
    sys.path.append(str(_VENDOR))
