# SPDX-License-Identifier: MIT
"""CPU priority: of a process, and of its session, within which alone a niceness has an effect on some hosts.

With CONFIG_SCHED_AUTOGROUP the kernel shares CPUs between sessions, and a session has a niceness of its own (sched(7),
"The autogroup feature"). VMs are in other sessions. With control groups neither has an effect between two groups.
"""

import contextlib
import os
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def improve(niceness: int) -> None:
    """Give this process this niceness if that is better than its own and allowed, and its session too."""
    if os.getpriority(os.PRIO_PROCESS, 0) > niceness:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
    _improve_session(niceness)


def extend_to_session() -> None:
    """Give the session the niceness of this process if that is better than 0 and allowed."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness < 0:
        _improve_session(niceness)


def _improve_session(niceness: int) -> None:
    """Only a session that this process leads: in another one are other people's programs."""
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            _AUTOGROUP.write_text(f"{niceness}\n")
