# SPDX-License-Identifier: MIT
"""Collects round trips in short intervals, by the time at which their probes were sent."""

import msgspec

from vftrace.ping.gaps import Probe
from vftrace.ping.histogram import Histogram

INTERVAL_NS = 200_000_000
"""The length of an interval. It is short compared with a migration: an interval across two parts counts for neither."""


class Interval(msgspec.Struct):
    """The probes sent from `from_ns` to `until_ns`, when the first and the last of them were sent."""

    from_ns: int
    until_ns: int
    lost: int = 0
    trips: Histogram = msgspec.field(default_factory=Histogram)


class IntervalFinder:
    """Divides settled probes, oldest first, into intervals. Call `take` often, because intervals accumulate."""

    def __init__(self) -> None:
        self._open: Interval | None = None
        self._complete: list[Interval] = []

    def add(self, probe: Probe) -> None:
        """Take the next probe."""
        now = self._open
        if now is None or probe.sent_ns // INTERVAL_NS != now.from_ns // INTERVAL_NS:
            self.close()
            now = self._open = Interval(probe.sent_ns, probe.sent_ns)
        now.until_ns = probe.sent_ns
        if probe.reply_ns is None:
            now.lost += 1
        else:
            now.trips.add(probe.reply_ns - probe.sent_ns)

    def close(self) -> None:
        """End the input, or the interval."""
        if self._open is not None:
            self._complete.append(self._open)
        self._open = None

    def take(self) -> list[Interval]:
        """Return the intervals that were completed since the last call."""
        complete, self._complete = self._complete, []
        return complete
