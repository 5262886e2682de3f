# SPDX-License-Identifier: MIT
"""Finds the round trips to a service before, during and after migrations: the brownout that a client sees.

The round trips of a ping are recorded in short intervals, by the time at which the probes were sent. An interval
counts for a part of the time only if all of its probes were certainly sent in it: an interval across a boundary, or
nearer to it than the uncertainty of the hosts' clocks, does not count.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from vftrace.analysis.hosts.clocks import slew
from vftrace.analysis.hosts.service import SEVERAL_FIT, ping_offset
from vftrace.events import PingRoundTrips, PingSettings
from vftrace.model.report import (
    HostReport,
    MigrationReport,
    PingRecording,
    RoundTrips,
    ServiceRoundTrips,
)
from vftrace.ping.histogram import Histogram, sum_of

AROUND_NS = 60_000_000_000
"""The length of the times before and after a migration with which it is compared."""


class Moment(msgspec.Struct, frozen=True):
    """A time on a ping's clock, between two bounds."""

    least_ns: int
    most_ns: int

    @property
    def middle(self) -> int:
        """The likeliest time."""
        return (self.least_ns + self.most_ns) // 2


class Span(msgspec.Struct, frozen=True):
    """A migration on a ping's clock; `running`: its end is not known, `end` is the end of the recording."""

    start: Moment
    end: Moment
    running: bool = False


def with_round_trips(
    joined: Sequence[MigrationReport], hosts: Sequence[HostReport], pings: Sequence[PingRecording]
) -> tuple[MigrationReport, ...]:
    """Give each migration the round trips of the ping that ran then; of several pings, the one with most probes.

    A ping names no VM: if several migrations fit at one time, the one whose VM has the name of the ping's target
    gets the round trips, or none does.
    """
    found_by: dict[int, list[tuple[int, ServiceRoundTrips]]] = defaultdict(list)
    unclear: set[int] = set()
    for ping in pings:
        intervals = intervals_of(ping)
        targets = {e.target for e in ping.events if isinstance(e, PingSettings)}
        spans = {
            index: span
            for index, found in enumerate(joined)
            if intervals
            and (span := _span(found, ping, hosts)) is not None
            and any(_touches(interval, span) for interval in intervals)
        }
        named = {i: span for i, span in spans.items() if joined[i].migration.name in targets}
        chosen = named or spans
        if _overlap(chosen.values()):
            unclear |= chosen.keys()
            continue
        for index, parts in _divided(intervals, chosen).items():
            probes = sum(part.answered + part.lost for _, part in parts.parts() if part is not None)
            found_by[index].append((probes, parts))
    return tuple(
        replace(
            found,
            round_trips=max(found_by[index], key=lambda each: each[0])[1]
            if index in found_by
            else None,
            warnings=found.warnings
            + ((SEVERAL_FIT,) if index in unclear and SEVERAL_FIT not in found.warnings else ()),
        )
        for index, found in enumerate(joined)
    )


def intervals_of(ping: PingRecording) -> list[PingRoundTrips]:
    """Return the intervals of a ping's recording, without impossible ones."""
    return [e for e in ping.events if isinstance(e, PingRoundTrips) and _is_sound(e)]


def _is_sound(interval: PingRoundTrips) -> bool:
    try:
        trips = trips_of(interval)
    except ValueError:
        return False
    probes = trips.count + interval.lost
    return interval.lost >= 0 and probes > 0 and interval.from_ns <= interval.until_ns


def trips_of(interval: PingRoundTrips) -> Histogram:
    """Return the round trips of an interval. Raises ValueError if no ping writes such an interval."""
    return Histogram.of(interval.trips, interval.least_ns, interval.most_ns, interval.sum_ns)


def divide(
    intervals: Iterable[PingRoundTrips], span: Span, others: Iterable[Span] = ()
) -> ServiceRoundTrips:
    """Return the round trips before, during and after a migration.

    The times before and after are `AROUND_NS` long, and are cut at other migrations of the VM (`others`).
    """
    start, end = span.start, span.end
    others = list(others)
    first_ns = max(
        [start.most_ns - AROUND_NS]
        + [each.end.most_ns for each in others if each.start.middle < start.middle]
    )
    last_ns = min(
        [end.least_ns + AROUND_NS]
        + [each.start.least_ns for each in others if each.start.middle > start.middle]
    )
    before, during, after = [], [], []
    for each in intervals:
        if first_ns <= each.from_ns and each.until_ns < start.least_ns:
            before.append(each)
        elif start.most_ns <= each.from_ns and each.until_ns < end.least_ns:
            during.append(each)
        elif end.most_ns <= each.from_ns and each.until_ns < last_ns and not span.running:
            after.append(each)
    return ServiceRoundTrips(_part(before), _part(during), _part(after))


def _divided(
    intervals: Sequence[PingRoundTrips], spans: Mapping[int, Span]
) -> dict[int, ServiceRoundTrips]:
    found = {}
    for index, span in spans.items():
        parts = divide(intervals, span, (s for i, s in spans.items() if i != index))
        if any(part is not None for _, part in parts.parts()):
            found[index] = parts
    return found


def _part(intervals: Sequence[PingRoundTrips]) -> RoundTrips | None:
    if not intervals:
        return None
    trips = sum_of(map(trips_of, intervals))
    return RoundTrips(
        answered=trips.count,
        lost=sum(interval.lost for interval in intervals),
        least_ns=trips.least_ns if trips.count else None,
        half_ns=trips.quantile_ns(0.5),
        p90_ns=trips.quantile_ns(0.9),
        p99_ns=trips.quantile_ns(0.99),
        longest_ns=trips.most_ns if trips.count else None,
    )


def _span(found: MigrationReport, ping: PingRecording, hosts: Sequence[HostReport]) -> Span | None:
    """Return a migration on the ping's clock, as far as that is known."""
    offset = ping_offset(found, ping, hosts)
    if offset is None:
        return None
    m = found.migration
    known_at = m.started_at_ns if m.stopped_at_ns is None else m.stopped_at_ns

    def moment(at_ns: int) -> Moment:
        # The offset holds at the blackout; each clock may have gained or lost since.
        drift = 0 if found.host.boot_id == ping.boot_id else 2 * slew(at_ns - known_at)
        return Moment(at_ns - offset.high - drift, at_ns - offset.low + drift)

    ended = m.ended_at_ns
    last_ns = max(found.host.snapshot.at_ns, m.started_at_ns) if ended is None else ended
    return Span(moment(m.started_at_ns), moment(last_ns), running=ended is None)


def _touches(interval: PingRoundTrips, span: Span) -> bool:
    return interval.from_ns <= span.end.most_ns and interval.until_ns >= span.start.least_ns


def _overlap(spans: Iterable[Span]) -> bool:
    """Whether two migrations may overlap in time. The clocks may not exclude it: attempts of one VM can be close
    together."""
    ordered = sorted(spans, key=lambda span: span.start.middle)
    return any(then.start.middle < first.end.middle for first, then in pairwise(ordered))
