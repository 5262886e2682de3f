"""Event times as times of day in UTC; `-` where no wall clock is known."""

from vftrace.model import figures
from vftrace.model.migration import Snapshot

UNKNOWN_TIME = "-"


def wall_time(snapshot: Snapshot, at_ns: int) -> str:
    """Date and time to the millisecond: `2026-05-01 22:27:01.817 UTC`."""
    when = figures.wall_time(snapshot.clock, at_ns)
    if when is None:
        return UNKNOWN_TIME
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03} UTC"


def precise_time(snapshot: Snapshot, at_ns: int) -> str:
    """The time of day to the millisecond: `22:27:01.817Z`."""
    when = figures.wall_time(snapshot.clock, at_ns)
    return UNKNOWN_TIME if when is None else f"{when:%H:%M:%S}.{when.microsecond // 1000:03}Z"


def clock_time(snapshot: Snapshot, at_ns: int) -> str:
    """The time of day to the second: `22:27:01Z`."""
    when = figures.wall_time(snapshot.clock, at_ns)
    return UNKNOWN_TIME if when is None else f"{when:%H:%M:%S}Z"
