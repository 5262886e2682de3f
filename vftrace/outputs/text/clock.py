# SPDX-License-Identifier: MIT
"""Formats event times as times of day in the local time zone; `-` without a wall clock."""

from datetime import datetime

from vftrace.model import figures
from vftrace.model.figures import ClockSamples
from vftrace.model.migration import Snapshot

UNKNOWN_TIME = "-"


def wall_time(snapshot: Snapshot, at_ns: int) -> str:
    """Date, time to the millisecond and zone: `2026-05-01 22:27:01.817 UTC`."""
    return at_clock(snapshot.clock, at_ns)


def at_clock(clock: ClockSamples, at_ns: int) -> str:
    """Format a time as `wall_time` does, with the clock samples of any object."""
    when = _local(clock, at_ns)
    if when is None:
        return UNKNOWN_TIME
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03} {when:%Z}"


def precise_time(snapshot: Snapshot, at_ns: int) -> str:
    """The time of day to the millisecond, in UTC with a Z: `22:27:01.817Z`."""
    when = _local(snapshot.clock, at_ns)
    if when is None:
        return UNKNOWN_TIME
    return f"{when:%H:%M:%S}.{when.microsecond // 1000:03}{_zulu(when)}"


def clock_time(snapshot: Snapshot, at_ns: int) -> str:
    """The time of day to the second, in UTC with a Z: `22:27:01Z`."""
    when = _local(snapshot.clock, at_ns)
    return UNKNOWN_TIME if when is None else f"{when:%H:%M:%S}{_zulu(when)}"


def _local(clock: ClockSamples, at_ns: int) -> datetime | None:
    when = figures.wall_time(clock, at_ns)
    try:
        return None if when is None else when.astimezone()
    except (OverflowError, ValueError, OSError):
        # A damaged time at the end of the calendar, or one that the C library does not know.
        return when


def _zulu(when: datetime) -> str:
    return "" if when.utcoffset() else "Z"
