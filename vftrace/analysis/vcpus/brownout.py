# SPDX-License-Identifier: MIT
"""Computes how slow a guest was while it migrated, from the samples of its vCPUs on both sides."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from vftrace.analysis.vcpus.log import VcpuLog
from vftrace.events import VcpuBaseline
from vftrace.model.brownout import (
    HOLDS,
    RECENT_NS,
    SLOW,
    Baseline,
    Brownout,
    HeldStop,
    Hold,
    VcpuSpan,
    VcpuUse,
    VmSpan,
    added,
)
from vftrace.model.calls import CallSide

SPAN_NS = 100_000_000
MAX_SPANS = 120
"""Pieces of a time line are as long as the time between two samples, or as long as makes so many."""
MAX_DRAWN = 64
"""How many vCPUs of one side have pieces of their own."""
WINDOW_NS = 1_000_000_000
"""The shortest time that has a speed: auto-converge at 99 % lets a vCPU run for 10 ms in a second."""
LEAST_ROUND_NS = 2 * SPAN_NS
"""The shortest round that has a speed: samples are 100 ms apart."""
LEAST_HELD = 0.05
"""The least part of a round that counts as a throttle."""
STOP_SLACK_NS = 5_000_000
"""A vCPU leaves KVM_RUN, then it is held: what of that is seen lies so much later."""


class Running(msgspec.Struct, frozen=True):
    """One side, while the guest ran on it: its log, from when to when."""

    side: CallSide
    log: VcpuLog
    start_ns: int
    end_ns: int


def brownout_of(
    sides: Sequence[Running],
    rounds: Sequence[int],
    stop: tuple[int, int] | None,
    *,
    brief: bool = False,
) -> Brownout | None:
    """Return the brownout. `rounds`: when each round began. `stop`: from the last vCPU's exit to the clock's read.

    None if no vCPU was followed. `brief`: with the totals and the present speed only, which takes a tenth of the time.
    """
    known = [each for each in sides if each.log.vcpus and each.end_ns > each.start_ns]
    if not known:
        return None
    key = (
        tuple((r.side, r.log.version, r.start_ns, r.end_ns) for r in known),
        tuple(rounds),
        stop,
        brief,
    )
    cache = known[0].log
    if cache.made is None or cache.made[0] != key:
        cache.made = key, _made(known, () if brief else rounds, stop, brief=brief)
    made: Brownout | None = cache.made[1]
    return made


def _made(
    sides: Sequence[Running],
    rounds: Sequence[int],
    stop: tuple[int, int] | None,
    *,
    brief: bool,
) -> Brownout | None:
    baseline = next((found for r in sides if (found := _baseline(r.log))), None)
    before = baseline.could_run if baseline is not None else 1.0
    timeline: list[VmSpan] = []
    vcpus: list[VcpuUse] = []
    for running in sides:
        edges = _brief_edges(running) if brief else _edges(running)
        pieces = {thread: vcpu.pieces(edges) for thread, vcpu in running.log.vcpus.items()}
        timeline += _timeline(running, pieces, before)
        vcpus += _vcpus(running, pieces)
    if not timeline or not vcpus:
        return None
    source = next((r for r in sides if r.side == "source"), None)
    by_round = _by_round(source, rounds)
    stopped = None if source is None or stop is None else _held_stop(source.log, *stop)
    return finished(
        Brownout(
            baseline=baseline,
            timeline=tuple(timeline),
            vcpus=tuple(vcpus),
            rounds=tuple(None if span is None else _speed(span, before) for span in by_round),
            speed=None,
            slow_ns=0,
            slow_least=None,
            slow_most=None,
            holds=tuple(_holds(timeline, by_round)),
            stop=stopped,
        )
    )


def finished(brownout: Brownout) -> Brownout:
    """Return the brownout with the figures that follow from its time line."""
    before = brownout.baseline.could_run if brownout.baseline is not None else 1.0
    windows = [w for w in _windows(brownout.timeline) if w.total_ns]
    speeds = [(w.end_ns - w.start_ns, _speed(w, before)) for w in windows]
    slow = [(ns, speed) for ns, speed in speeds if speed is not None and speed < SLOW]
    return replace(
        brownout,
        speed=_speed(added(span.vcpus for span in brownout.timeline), before),
        slow_ns=sum(ns for ns, _ in slow),
        slow_least=min((speed for _, speed in slow), default=None),
        slow_most=max((speed for _, speed in slow), default=None),
    )


def joined(source: Brownout | None, destination: Brownout | None) -> Brownout | None:
    """Join the brownouts of two hosts' halves, on one clock."""
    if source is None or destination is None:
        return source or destination
    before = source.baseline.could_run if source.baseline is not None else 1.0
    moved = (replace(s, speed=_speed(s.vcpus, before)) for s in destination.timeline)
    return finished(
        replace(
            source,
            timeline=(*source.timeline, *moved),
            vcpus=(*source.vcpus, *destination.vcpus),
        )
    )


def _speed(span: VcpuSpan, before: float) -> float | None:
    now = span.could_run
    return None if now is None or before <= 0 else now / before


def _baseline(log: VcpuLog) -> Baseline | None:
    """Return how the vCPUs ran before: the time that they did not spend in the VMM or waiting for a CPU."""
    found = [each for each in log.baselines.values() if _makes_sense(each)]
    total = sum(each.until_ns - each.from_ns for each in found)
    if not total:
        return None
    queue = sum(each.queue_ns for each in found) / total
    user = sum(each.user_ns for each in found) / total
    could_run = 1.0 - queue - user
    if could_run <= 0:
        return None
    start, end = min(e.from_ns for e in found), max(e.until_ns for e in found)
    return Baseline(start, end, could_run, queue, user)


def _makes_sense(event: VcpuBaseline) -> bool:
    return event.until_ns > event.from_ns and min(event.queue_ns, event.user_ns) >= 0


def _edges(running: Running) -> list[int]:
    """Return the edges of the pieces of a time line."""
    lasted = running.end_ns - running.start_ns
    count = max(1, min(MAX_SPANS, lasted // SPAN_NS))
    return [running.start_ns + lasted * i // count for i in range(count + 1)]


def _brief_edges(running: Running) -> list[int]:
    """Return the edges of the last two seconds, and of what was before."""
    recent = running.end_ns - RECENT_NS
    between = [recent] if recent > running.start_ns else []
    return [running.start_ns, *between, running.end_ns]


def _timeline(
    running: Running, pieces: Mapping[int, list[VcpuSpan]], before: float
) -> Iterator[VmSpan]:
    """`pieces`: by thread, those between the edges."""
    for of_vcpus in zip(*pieces.values(), strict=True):
        span = added(of_vcpus)
        if any(span.ns):
            yield VmSpan(running.side, span, _speed(span, before))


def _vcpus(running: Running, pieces: Mapping[int, list[VcpuSpan]]) -> Iterator[VcpuUse]:
    draw = len(pieces) <= MAX_DRAWN
    for thread, samples in running.log.vcpus.items():
        last = samples.last
        if last is None:
            continue
        yield VcpuUse(
            side=running.side,
            thread=thread,
            number=samples.number,
            total=samples.between(running.start_ns, running.end_ns),
            spans=tuple([span for span in pieces[thread] if any(span.ns)]) if draw else (),
            exits=last.exits,
            faults=last.faults,
            ring_full=last.ring_full,
            waits=samples.waits,
        )


def _by_round(source: Running | None, rounds: Sequence[int]) -> list[VcpuSpan | None]:
    """Return the vCPUs' time by state in each round, until the guest stopped."""
    if source is None:
        return [None] * len(rounds)
    vcpus = list(source.log.vcpus.values())
    found: list[VcpuSpan | None] = []
    for start, following in pairwise((*rounds, source.end_ns)):
        end = min(following, source.end_ns)
        span = None
        if end - start >= LEAST_ROUND_NS:
            span = added(samples.between(start, end) for samples in vcpus)
        found.append(span if span is not None and span.total_ns else None)
    return found


def _windows(timeline: Sequence[VmSpan]) -> Iterator[VcpuSpan]:
    """Pieces of at least a second, each of one side; what is left over goes to the last."""
    for side in dict.fromkeys(span.side for span in timeline):
        own = [span.vcpus for span in timeline if span.side == side]
        windows: list[list[VcpuSpan]] = [[]]
        for span in own:
            windows[-1].append(span)
            if span.end_ns - windows[-1][0].start_ns >= WINDOW_NS:
                windows.append([])
        rest = windows.pop()
        if rest and windows:
            windows[-1] += rest
        elif rest:
            windows.append(rest)
        for window in windows:
            yield added(window)


def _holds(timeline: Sequence[VmSpan], by_round: Sequence[VcpuSpan | None]) -> Iterator[Hold]:
    """Yield by what the VMM held the vCPUs, and from when on."""
    own = [span.vcpus for span in timeline if span.side == "source"]
    everything = added(own) if own else None
    for state in HOLDS:
        if everything is None or not everything.of(state):
            continue
        first = next((at for at, w in enumerate(own) if w.share(state) >= LEAST_HELD), None)
        if first is None:
            continue
        held = added(own[first:])
        if held.share(state) < LEAST_HELD:
            continue
        number = next(
            (
                at
                for at, s in enumerate(by_round, 1)
                if s is not None and s.share(state) >= LEAST_HELD
            ),
            None,
        )
        if number is not None and (span := by_round[number - 1]) is not None:
            later = [s for s in by_round[number - 1 :] if s is not None]
            held = added(later)
            yield Hold(state, span.start_ns, number, held.share(state))
        else:
            yield Hold(state, held.start_ns, None, held.share(state))


def _held_stop(log: VcpuLog, stopped_ns: int, read_ns: int) -> HeldStop | None:
    """What held the vCPUs when the guest was stopped: it lasted from the last exit until the VMM woke them for the
    stop."""
    found = [
        hold
        for samples in log.vcpus.values()
        for hold in samples.holds
        if hold.from_ns <= stopped_ns + STOP_SLACK_NS and hold.until_ns > stopped_ns
    ]
    if not found:
        return None
    first = min(found, key=lambda hold: hold.until_ns)
    until = min(first.until_ns, read_ns)
    return replace(first, from_ns=stopped_ns, until_ns=until) if until > stopped_ns else None
