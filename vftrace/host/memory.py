# SPDX-License-Identifier: MIT
"""Gives unused memory back to the system, after a start or a flood of records."""

import contextlib
import ctypes
import gc


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
