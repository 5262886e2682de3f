# SPDX-License-Identifier: MIT
"""Computes the working-set curve: how many distinct pages a guest dirties within a time.

Every round measures one point of it: the pages that became dirty between two sweeps. Between points and
above them the curve is drawn in logarithms, which is right for both extremes: a guest that always writes new
pages (slope 1) and a guest whose set is full (slope 0). Below the shortest point it is a line through zero. Two
constants that were fitted on real migrations set its slope (docs/explanation/forecast.md).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

SHORTEST_NS = 2_000_000
"""The shortest interval that is used: in a shorter one, one tick of the guest's timer more or less decides."""

RECENT = 4
"""How many of the latest intervals count: a guest may not repeat what it did long ago."""


class Shape(msgspec.Struct, frozen=True):
    """How many times faster pages become dirty at the beginning of the shortest interval than on its average.

    `alone`: if it is the only point. `full`: if several points all have the same pages, so that the set was full early;
    the more the points differ, the nearer to 1.
    """

    alone: float = 1.0
    full: float = 1.0


class Interval(msgspec.Struct, frozen=True):
    """Pages that became dirty within `ns`, each counted once."""

    ns: int
    pages: int


class WorkingSet(msgspec.Struct, frozen=True):
    """The curve through the last intervals, longest last; `points` is never empty."""

    points: tuple[Interval, ...]
    shape: Shape

    @classmethod
    def of(cls, measured: Sequence[Interval], shape: Shape) -> "WorkingSet | None":
        """Return the curve; None if nothing was measured."""
        recent = measured[-RECENT:]
        if not recent:
            return None
        by_length: list[Interval] = []
        for interval in sorted(recent, key=lambda i: i.ns):
            # Two points at nearly the same time are two measurements of one.
            if by_length and interval.ns < by_length[-1].ns * 1.15:
                last = by_length.pop()
                interval = Interval(
                    (last.ns + interval.ns) // 2, (last.pages + interval.pages) // 2
                )
            by_length.append(interval)
        return cls(tuple(by_length), shape)

    @property
    def largest(self) -> int:
        """The most pages that an interval dirtied; at least 1."""
        return max(1, *(point.pages for point in self.points))

    def pages(self, ns: float) -> float:
        """Return the distinct pages dirtied within `ns`."""
        if ns <= 0:
            return 0.0
        first, last = self.points[0], self.points[-1]
        if ns <= first.ns:
            return min(1.0, self._haste() * ns / first.ns) * first.pages
        if ns >= last.ns:
            return _along(last, self._slope_above(), ns)
        for before, after in pairwise(self.points):
            if before.ns <= ns <= after.ns:
                return _along(before, _slope(before, after), ns)
        raise AssertionError("the points are sorted")

    def _haste(self) -> float:
        if len(self.points) == 1:
            return self.shape.alone
        slope = _slope(self.points[0], self.points[1])
        return slope + self.shape.full * (1 - slope)

    def _slope_above(self) -> float:
        return 1.0 if len(self.points) == 1 else _slope(*self.points[-2:])


def _slope(shorter: Interval, longer: Interval) -> float:
    """Return the slope: 0 if the pages are the same in any time, 1 if they grow in proportion to the time."""
    if shorter.pages <= 0 or longer.pages <= shorter.pages:
        return 0.0 if longer.pages > 0 else 1.0
    slope = math.log(longer.pages / shorter.pages) / math.log(longer.ns / shorter.ns)
    return min(1.0, slope)


def _along(point: Interval, slope: float, ns: float) -> float:
    return float(point.pages * (ns / point.ns) ** slope)
