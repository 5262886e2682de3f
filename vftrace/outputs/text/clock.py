"""Event times as times of day, by the samples of the host's own clock."""

from datetime import UTC, datetime

from vftrace.model.migration import Snapshot

UNKNOWN_TIME = "-"


def _utc(snapshot: Snapshot, at_ns: int) -> datetime | None:
    """By the clock sample before `at_ns`, else the first one."""
    if not snapshot.clock:
        return None
    before = [sample for sample in snapshot.clock if sample[0] <= at_ns]
    _, offset, _ = before[-1] if before else snapshot.clock[0]
    return datetime.fromtimestamp((at_ns + offset) // 1_000_000 / 1_000, UTC)


def wall_time(snapshot: Snapshot, at_ns: int) -> str:
    """Date and time in UTC to the millisecond; `-` where no clock sample is known."""
    when = _utc(snapshot, at_ns)
    if when is None:
        return UNKNOWN_TIME
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03} UTC"


def precise_time(snapshot: Snapshot, at_ns: int) -> str:
    """The time of day in UTC to the millisecond: `22:27:01.817Z`."""
    when = _utc(snapshot, at_ns)
    return UNKNOWN_TIME if when is None else f"{when:%H:%M:%S}.{when.microsecond // 1000:03}Z"


def clock_time(snapshot: Snapshot, at_ns: int) -> str:
    """The time of day in UTC, short: `22:27:01Z`."""
    when = _utc(snapshot, at_ns)
    return UNKNOWN_TIME if when is None else f"{when:%H:%M:%S}Z"
