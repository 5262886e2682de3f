# SPDX-License-Identifier: MIT
"""Reads the clocks of this host: CLOCK_BOOTTIME, the clock of all events, and the wall clock."""

import ctypes
import time


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME, the clock of all events."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Timex(ctypes.Structure):
    # struct timex of <sys/timex.h>; only maxerror (microseconds) is used
    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 256),
    ]


def realtime_offset_ns() -> int:
    """Return CLOCK_REALTIME - CLOCK_BOOTTIME, wrong by as much as this process waits between the two."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - boottime_ns()


def clock_sample() -> tuple[int, int]:
    """Return CLOCK_REALTIME - CLOCK_BOOTTIME and its error bound, ns: the kernel's maxerror plus the time of both
    reads."""
    before = boottime_ns()
    realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = boottime_ns()
    timex = _Timex()
    ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    return realtime - (before + after) // 2, timex.maxerror * 1000 + (after - before)
