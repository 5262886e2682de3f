# SPDX-License-Identifier: MIT
"""Gives unused memory back to the system, after a start or a flood of records."""

import contextlib
import ctypes
import gc
import time

TRIM_BYTES = 4 << 20
"""After so many bytes of records, free memory is given back once no more wait."""
FEW_BYTES = 64 << 10
"""A batch with less is all that there was to read."""
QUIET_S = 0.5
"""How long batches are that small before memory is given back: the latest large ones are still in use."""


def give_back() -> None:
    """Run the garbage collector, and `trim`. Its later runs, which stop all threads, leave out what exists now: mostly
    modules."""
    gc.enable()  # disabled since the start
    gc.collect()
    gc.freeze()
    trim()


def trim() -> None:
    """Make the C library return free pages (malloc_trim(3), only in glibc), which it would keep."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class AfterFloods:
    """Gives back the memory of each flood of records that is over."""

    def __init__(self) -> None:
        self._untrimmed = 0
        self._flooded_at = 0.0

    def note(self, came: int) -> None:
        """Take how many bytes of records wait or were just read."""
        self._untrimmed += came
        if came >= FEW_BYTES:
            self._flooded_at = time.monotonic()
        elif self._untrimmed > TRIM_BYTES and time.monotonic() - self._flooded_at > QUIET_S:
            self._untrimmed = 0
            trim()
