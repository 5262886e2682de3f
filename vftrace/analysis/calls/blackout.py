# SPDX-License-Identifier: MIT
"""The calls of a migration's blackout, from the logs of both sides."""

from collections.abc import Iterable, Mapping

import msgspec

from vftrace.analysis.calls.causes import Traced, Who, steps_of, totals_of
from vftrace.analysis.calls.log import CallLog
from vftrace.model.brownout import HELD_BY, HeldStop
from vftrace.model.calls import BlackoutCalls, CallSide, CallSpan, CauseKind
from vftrace.model.checkpoint import Checkpoint

MAX_SPANS = 1024
"""How many spans a migration keeps for drawings; of more, the longest."""
LOADS_FOR_NS = 5_000_000_000
"""How long before the load ended a destination's calls count, if the time of its source's stop is not known."""


class Side(msgspec.Struct, frozen=True):
    """One side: its log, the names of its threads' parts, and the threads that drive the migration."""

    name: CallSide
    log: CallLog
    parts: dict[int, str]
    critical: frozenset[int]
    channel_fds: frozenset[int] = frozenset()


def calls_of(
    times: Mapping[Checkpoint, int],
    sides: Iterable[Side],
    held: HeldStop | None,
    *,
    on_source: bool,
) -> BlackoutCalls | None:
    """The calls between the first and the last checkpoint that was passed; None where no side was ever traced.

    `held`: what held the vCPUs when they were stopped.
    """
    known = [side for side in sides if side.log.traced]
    if not known or not times:
        return None
    key = (tuple((s.name, s.log.version) for s in known), tuple(times.items()), held, on_source)
    cache = known[0].log
    if cache.made is not None and cache.made[0] == key:
        return cache.made[1]
    start, end = _window(times)
    spans = [
        span
        for side in known
        for span in side.log.spans(side.name, start, end, side.parts, side.channel_fds)
    ]
    if held is not None:
        spans.append(_throttled(held))
    traced: Traced = {side.name: tuple(side.log.traced) for side in known}
    critical = frozenset((side.name, tid) for side in known for tid in side.critical)
    made = made_of(
        times,
        spans,
        traced,
        critical,
        on_source=on_source,
        missed=sum(side.log.missed + side.log.forgotten for side in known),
        attach_ns=max((s.log.attach_ns for s in known if s.log.attach_ns), default=None),
    )
    cache.made = key, made
    return made


def _throttled(held: HeldStop) -> CallSpan:
    return CallSpan(
        side="source",
        tid=held.thread,
        thread=HELD_BY[held.by],
        kind=CauseKind.THROTTLED,
        call=None,
        target=None,
        start_ns=held.from_ns,
        end_ns=held.until_ns,
        ns=held.ns,
        longest_ns=held.ns,
        count=1,
    )


def made_of(
    times: Mapping[Checkpoint, int],
    spans: list[CallSpan],
    traced: Traced,
    critical: frozenset[Who],
    *,
    on_source: bool,
    missed: int,
    attach_ns: int | None,
) -> BlackoutCalls:
    """Return the causes of each step, and all calls, from spans that may begin before or end after the blackout."""
    start, end = _window(times)
    inside = [span for span in spans if span.start_ns < end and span.end_ns > start]
    kept = sorted(inside, key=lambda span: span.start_ns - span.end_ns)[:MAX_SPANS]
    return BlackoutCalls(
        steps=steps_of(times, spans, traced, critical, on_source=on_source),
        totals=totals_of(inside, start, end),
        spans=tuple(sorted(kept, key=lambda span: span.start_ns)),
        whole=len(kept) == len(inside),
        critical=critical,
        traced=tuple((side, *edges) for side, each in traced.items() for edges in each),
        missed=missed,
        attach_ns=attach_ns,
    )


def joined(
    source: BlackoutCalls | None,
    destination: BlackoutCalls | None,
    times: Mapping[Checkpoint, int],
    *,
    on_source: bool,
) -> BlackoutCalls | None:
    """Join the calls of the halves that two hosts saw, on one clock."""
    halves = [half for half in (source, destination) if half is not None]
    if not halves or not times:
        return None
    traced: dict[CallSide, list[tuple[int, int | None]]] = {}
    for half in halves:
        for side, since, until in half.traced:
            traced.setdefault(side, []).append((since, until))
    return made_of(
        times,
        [span for half in halves for span in half.spans],
        traced,
        frozenset(who for half in halves for who in half.critical),
        on_source=on_source,
        missed=sum(half.missed for half in halves),
        attach_ns=max((half.attach_ns for half in halves if half.attach_ns), default=None),
    )


def _window(times: Mapping[Checkpoint, int]) -> tuple[int, int]:
    """Return the times between which calls count."""
    start, end = min(times.values()), max(times.values())
    return (start if Checkpoint.VCPUS_STOPPED in times else start - LOADS_FOR_NS), end
