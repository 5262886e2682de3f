# SPDX-License-Identifier: MIT
"""Divides the time of each blackout step among its causes: what the threads of both VMMs did.

At each instant one cause is charged, so the causes of a step add up to its time:

0. the VMM already holds the vCPUs before it stops them: auto-converge, the dirty limit;
1. what the threads that drive the migration do, on the active side (the source until its state is saved, then the
   destination);
2. while these wait: what that side's other threads do, then what the other side does;
3. while no thread works: the wait, a wait for the channel first.

While a driving thread waits for at least a millisecond and a hundredth of the step, work of other threads counts only
if all work of its kind fills a tenth of that wait, because a monitor's questions are not a cause. Work outside of
system calls has to fill a half of the wait, and belong to a thread that drives the other side or come while the wait is
for a lock, because queues of a busy host are not a cause. Among causes of the same rank the longest is charged.
"""

import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from msgspec.structs import replace

from vftrace.model.calls import (
    CallSide,
    CallSpan,
    CallTotal,
    Cause,
    CauseKind,
    StepCauses,
    merged,
)
from vftrace.model.checkpoint import Checkpoint

Traced = Mapping[CallSide, Sequence[tuple[int, int | None]]]
"""The times between which each side was traced."""

_SOURCES_TURN = frozenset(
    {
        Checkpoint.DEVICES_STOPPED,
        Checkpoint.CLOCK_READ,
        Checkpoint.FINAL_SYNC_DONE,
        Checkpoint.STATE_SAVED,
    }
)

_DOES = {
    CauseKind.THROTTLED: -1,
    CauseKind.STOPPED: 0,
    CauseKind.RUN_QUEUE: 1,
    CauseKind.CALL: 2,
    CauseKind.ON_CPU: 3,
    CauseKind.PAGE_FAULT: 4,
}
_OTHERS_DO = {
    CauseKind.THROTTLED: -1,
    CauseKind.CALL: 5,
    CauseKind.STOPPED: 6,
    CauseKind.RUN_QUEUE: 7,
    CauseKind.ON_CPU: 8,
    CauseKind.PAGE_FAULT: 9,
}
_WAITS = {CauseKind.CHANNEL: 20, CauseKind.WAIT: 21}
_OTHER_SIDE = 10

LONG_WAIT_NS = 1_000_000
LEAST_PART = {CauseKind.CALL: 0.1, CauseKind.STOPPED: 0.1, CauseKind.THROTTLED: 0.0}
LEAST_PART_OF_REST, _NEVER = 0.5, 2.0
"""The part of a driving thread's wait that work of other threads has to fill, for waits of at least this length."""

MAX_CAUSES = 40
"""The most causes of a step; further ones are added up."""
MAX_TOTALS = 64
"""How many kinds of calls are listed: those that took longest."""

_Rank = tuple[int, int, int]

Who = tuple[CallSide, int]
"""A thread, by its side and its id: two hosts may use the same id."""


def steps_of(
    times: Mapping[Checkpoint, int],
    spans: Iterable[CallSpan],
    traced: Traced,
    critical: frozenset[Who],
    *,
    on_source: bool,
) -> tuple[StepCauses, ...]:
    """Return the causes of each step. `times`: the checkpoints that were passed; `critical`: the driving threads.

    `on_source`: the source's vCPUs ran again, so the last step is the source's too.
    """
    ordered = [(name, times[name]) for name in Checkpoint if name in times]
    spans = list(spans)
    placed = [*_placed(spans, critical, ordered[0][1])] if ordered else []
    placed.sort(key=lambda span: span.start_ns)
    found = []
    for (_, start), (name, end) in pairwise(ordered):
        side: CallSide = "source" if name in _SOURCES_TURN or on_source else "destination"
        inside = _relevant(_between(placed, start, end), start, end, side, critical)
        causes = _charged(inside, start, end, side, traced.get(side, ()), critical)
        if end > start:
            counted = _counted(merged(causes), spans, start, end)
            found.append(StepCauses(name, end - start, _limited(counted)))
    return tuple(found)


def _counted(
    causes: Iterable[Cause], spans: Iterable[CallSpan], start: int, end: int
) -> list[Cause]:
    """Return the causes with the number of all their calls in the step, charged or not. A call counts if its middle is
    in the step, because a checkpoint is often the end of a call, seen a little earlier. An unfinished call counts as
    one."""
    made: dict[object, int] = defaultdict(int)
    for span in spans:
        if span.call is not None and start < (span.start_ns + span.end_ns) // 2 <= end:
            made[_key(span)] += span.count
    return [
        replace(cause, count=max(1, made[_key(cause)])) if cause.call is not None else cause
        for cause in causes
    ]


def _key(of: CallSpan | Cause) -> object:
    thread = of.thread if of.kind == CauseKind.WAIT else None
    return of.side, of.kind, of.call, of.target, thread


def totals_of(spans: Iterable[CallSpan], start_ns: int, end_ns: int) -> tuple[CallTotal, ...]:
    """Return all calls that ended in a time, by side, call and target; the longest first."""
    found: dict[tuple[CallSide, str, str | None], CallTotal] = {}
    for span in spans:
        if span.call is None or not start_ns < span.end_ns <= end_ns:
            continue
        key = (span.side, span.call, span.target)
        before = found.get(key) or CallTotal(*key, 0, 0, 0, 0, 0)
        found[key] = replace(
            before,
            count=before.count + span.count,
            ns=before.ns + span.ns,
            longest_ns=max(before.longest_ns, span.longest_ns),
            sleep_ns=before.sleep_ns + span.sleep_ns,
            queue_ns=before.queue_ns + span.queue_ns,
        )
    totals = sorted(found.values(), key=lambda total: -total.ns)
    return tuple(totals[:MAX_TOTALS])


def _between(ordered: Sequence[CallSpan], start: int, end: int) -> list[CallSpan]:
    until = bisect_left(ordered, end, key=lambda span: span.start_ns)
    return [span for span in ordered[:until] if span.end_ns > start]


def _charged(
    spans: Sequence[CallSpan],
    start: int,
    end: int,
    side: CallSide,
    traced: Sequence[tuple[int, int | None]],
    critical: frozenset[Who],
) -> Iterator[Cause]:
    """Sweep over a step: between two changes of the spans, the span of the best rank is charged."""
    changes = sorted(
        {start, end}
        | {max(start, span.start_ns) for span in spans}
        | {min(end, span.end_ns) for span in spans}
        | {at for edges in traced for at in edges if at is not None and start < at < end}
    )
    waiting = sorted(range(len(spans)), key=lambda i: spans[i].start_ns)
    ranks = [_rank(span, side, critical) for span in spans]
    active: list[tuple[_Rank, int]] = []
    following = 0
    for at, until in pairwise(changes):
        while following < len(waiting) and spans[waiting[following]].start_ns <= at:
            index = waiting[following]
            heapq.heappush(active, (ranks[index], index))
            following += 1
        while active and spans[active[0][1]].end_ns <= at:
            heapq.heappop(active)
        if not active:
            yield _nothing(side, at, until, traced)
            continue
        index = active[0][1]
        span = spans[index]
        shows_thread = span.call is None or span.kind == CauseKind.WAIT
        yield Cause(
            span.kind,
            span.side,
            span.call,
            span.target,
            span.thread if shows_thread else None,
            until - at,
            span.count if span.call is None else 0,
            span.longest_ns,
        )


def _rank(span: CallSpan, side: CallSide, critical: frozenset[Who]) -> _Rank:
    drives = (span.side, span.tid) in critical
    other = 0 if span.side == side else _OTHER_SIDE
    wait = _WAITS.get(span.kind)
    if wait is not None:
        return (wait + other, 0 if drives else 1, -span.longest_ns)
    rank = (_DOES if drives else _OTHERS_DO)[span.kind]
    return rank + other, 0, -span.longest_ns


def _relevant(
    spans: Sequence[CallSpan], start: int, end: int, side: CallSide, critical: frozenset[Who]
) -> list[CallSpan]:
    """Return the spans of a step without work of other threads that is not a cause of a driving thread's wait."""
    waits = [
        (max(start, span.start_ns), min(end, span.end_ns), span.call == "futex")
        for span in spans
        if span.kind in _WAITS and span.side == side and (span.side, span.tid) in critical
    ]
    # So there are at most a hundred of each thread.
    least = max(LONG_WAIT_NS, (end - start) // 100)
    for begin, until, on_lock in waits:
        if until - begin >= least:
            spans = _without_others(spans, (begin, until), side, critical, on_lock=on_lock)
    return list(spans)


def _without_others(
    spans: Sequence[CallSpan],
    wait: tuple[int, int],
    side: CallSide,
    critical: frozenset[Who],
    *,
    on_lock: bool,
) -> list[CallSpan]:
    begin, until = wait
    filled: dict[object, int] = defaultdict(int)
    for span in spans:
        if span.start_ns < until and span.end_ns > begin:
            filled[_group(span)] += min(until, span.end_ns) - max(begin, span.start_ns)
    kept = []
    for span in spans:
        inside = span.start_ns < until and span.end_ns > begin
        drives = (span.side, span.tid) in critical
        part = LEAST_PART.get(span.kind)
        if part is None:
            part = LEAST_PART_OF_REST if drives or on_lock else _NEVER
        own = drives and span.side == side
        filling = filled[_group(span)] >= part * (until - begin)
        if not inside or own or span.kind in _WAITS or filling:
            kept.append(span)
            continue
        for first, last in ((span.start_ns, begin), (until, span.end_ns)):
            if first < last:
                kept.append(replace(span, start_ns=first, end_ns=last))
    return kept


def _group(span: CallSpan) -> object:
    return span.side, span.kind, span.call, span.target, None if span.call else span.thread


def _limited(causes: Sequence[Cause]) -> tuple[Cause, ...]:
    """Return the longest causes, and the others added up by kind and side."""
    rest = (replace(c, call=None, target=None, thread=None) for c in causes[MAX_CAUSES:])
    return merged([*causes[:MAX_CAUSES], *rest])


def _nothing(
    side: CallSide, at: int, until: int, traced: Sequence[tuple[int, int | None]]
) -> Cause:
    """Return the cause of a time without records: every thread slept in an unfinished call, or the side was not
    traced."""
    seen = any(since <= at and (end is None or until <= end) for since, end in traced)
    kind = CauseKind.WAIT if seen else CauseKind.NOT_TRACED
    return Cause(kind, side, None, None, None, until - at, 0, until - at)


# -- one thread's time --------------------------------------------------------------------------


def _placed(
    spans: Iterable[CallSpan], critical: frozenset[Who], from_ns: int
) -> Iterator[CallSpan]:
    """Yield spans without holes: short calls are placed where their thread has no other span, and the remaining gaps
    between two spans of a thread are its own code."""
    threads: dict[Who, list[CallSpan]] = defaultdict(list)
    for span in spans:
        threads[span.side, span.tid].append(span)
    for who, own in threads.items():
        own.sort(key=lambda span: (span.start_ns, span.end_ns))
        single = [span for span in own if span.ns == span.end_ns - span.start_ns]
        several = [span for span in own if span.ns < span.end_ns - span.start_ns]
        begins = own[0].start_ns
        if who in critical:
            begins = min(begins, from_ns)
        gaps = _gaps(single, begins, max(span.end_ns for span in own))
        yield from single
        for span in several:
            yield from _filled(span, gaps)
        for start, end in gaps:
            if end > start:
                yield replace(
                    own[0],
                    kind=CauseKind.ON_CPU,
                    call=None,
                    target=None,
                    start_ns=start,
                    end_ns=end,
                    ns=end - start,
                    longest_ns=end - start,
                    count=1,
                    sleep_ns=0,
                    queue_ns=0,
                )


def _gaps(spans: Sequence[CallSpan], start: int, end: int) -> list[list[int]]:
    gaps = []
    at = start
    for span in spans:
        if span.start_ns > at:
            gaps.append([at, span.start_ns])
        at = max(at, span.end_ns)
    if at < end:
        gaps.append([at, end])
    return gaps


def _filled(span: CallSpan, gaps: list[list[int]]) -> Iterator[CallSpan]:
    """Yield the pieces of the gaps that short calls took, after removing them from the gaps."""
    left = span.ns
    index = bisect_left(gaps, span.start_ns, key=lambda gap: gap[1])
    while left > 0 and index < len(gaps) and gaps[index][0] < span.end_ns:
        start = max(gaps[index][0], span.start_ns)
        taken = min(left, min(gaps[index][1], span.end_ns) - start)
        if taken > 0:
            yield replace(span, start_ns=start, end_ns=start + taken, ns=taken)
            left -= taken
            before = gaps[index][0]
            gaps[index][0] = start + taken
            if before < start:
                gaps.insert(index, [before, start])
                index += 1
        index += 1
