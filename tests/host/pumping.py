# SPDX-License-Identifier: MIT
"""Reading a live source until something is there."""

import time
from collections.abc import Callable

from vftrace.collect.pump import Pump


def until(pump: Pump, done: Callable[[], bool]) -> None:
    """Pump until `done`; AssertionError after a minute."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        pump.step()
