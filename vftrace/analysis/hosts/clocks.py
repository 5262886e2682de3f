# SPDX-License-Identifier: MIT
"""Bounds the difference of two hosts' clocks.

A clock here is the CLOCK_BOOTTIME of one boot. The difference of two clocks is bounded, never guessed, by events whose
order is certain and by wall clocks with the kernel's own error bounds. All bounds together
are difference constraints; the tightest ones are shortest paths (`tightest`).
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from vftrace.model.report import ClockOffset, HostReport

UNSYNCHRONISED_NS = 16_000_000_000
"""NTP_PHASE_LIMIT (include/linux/timex.h): an error bound that has grown to this limit is no longer a bound."""

SLEW_PPM = 500
"""MAXFREQ (include/linux/timex.h): the most that a clock is made faster or slower, parts in a million."""

ClockSamples = tuple[tuple[int, int, int], ...]
"""(at_ns, realtime_offset_ns, error_ns) of each sample, in order of time."""

MOST_ORDERS = 64

_UTC = "utc"
_MILLION = 10**6


class Order(msgspec.Struct, frozen=True):
    """`first_ns` on the clock of one boot came before `then_ns` on that of another."""

    first: str
    first_ns: int
    then: str
    then_ns: int
    why: str


class Bound(msgspec.Struct, frozen=True):
    """The most by which one clock is ahead of another, ns."""

    ns: int
    why: str


Bounds = dict[tuple[str, str], Bound]
"""`bounds[x, y]` is the most by which x's clock is ahead of y's."""


class ContradictionError(Exception):
    """No difference of the clocks fits all bounds."""


def with_clock_error(host: HostReport, error_ns: int) -> HostReport:
    """Give the host's wall clock this error bound, ns, if its kernel reports none."""
    clock = with_error(host.snapshot.clock, error_ns)
    return replace(host, snapshot=replace(host.snapshot, clock=clock))


def with_error(clock: ClockSamples, error_ns: int) -> ClockSamples:
    """Give clock samples without an error bound this one, ns."""
    return tuple(
        (at, offset, error if error < UNSYNCHRONISED_NS else error_ns)
        for at, offset, error in clock
    )


def slew(ns: int) -> int:
    """Return how much a clock may gain or lose in this time, ns."""
    return -(-abs(ns) * SLEW_PPM // _MILLION)


def tighten(bounds: Bounds, x: str, y: str, bound: Bound) -> None:
    """Add a bound, unless a tighter one exists."""
    before = bounds.get((x, y))
    if before is None or bound.ns < before.ns:
        bounds[x, y] = bound


def tightest_orders(orders: Iterable[Order]) -> list[Order]:
    """Return the orders that bound each pair of clocks most, MOST_ORDERS in each direction: hosts may share
    thousands."""
    by_clocks: dict[tuple[str, str], list[Order]] = defaultdict(list)
    for order in orders:
        by_clocks[order.first, order.then].append(order)
    return [
        order
        for group in by_clocks.values()
        for order in heapq.nsmallest(MOST_ORDERS, group, key=lambda o: o.then_ns - o.first_ns)
    ]


def add_orders(bounds: Bounds, orders: Iterable[Order], moments: Mapping[str, int]) -> None:
    """Add the bound of an order of events, at the moment given for each clock.

    Each bound is relaxed by what the clocks may gain or lose between the events and that moment.
    """
    for order in orders:
        places = ((order.first, order.first_ns), (order.then, order.then_ns))
        apart = [abs(at - moments[boot]) for boot, at in places if boot in moments]
        if apart:
            most = order.then_ns - order.first_ns + 2 * slew(max(apart))
            tighten(bounds, order.then, order.first, Bound(most, order.why))


def add_wall_clock(
    bounds: Bounds, boot_id: str, clock: ClockSamples, moment_ns: int | None
) -> None:
    """Add the bound of the sample nearest to the moment (the last sample if no moment is known)."""
    known = [sample for sample in clock if 0 <= sample[2] < UNSYNCHRONISED_NS]
    if not known:
        return
    moment = known[-1][0] if moment_ns is None else moment_ns
    at, offset, error = min(known, key=lambda sample: abs(sample[0] - moment))
    error += slew(at - moment)
    why = "the wall clocks' error bounds"
    tighten(bounds, boot_id, _UTC, Bound(-offset + error, why))
    tighten(bounds, _UTC, boot_id, Bound(offset + error, why))


def tightest(bounds: Bounds) -> Bounds:
    """Return the tightest bound of every pair of clocks (Floyd and Warshall).

    Raises ContradictionError if no difference satisfies all bounds.
    """
    tight = dict(bounds)
    nodes = sorted({node for bound in bounds for node in bound})
    for via in nodes:
        for x in nodes:
            for y in nodes:
                first, then = tight.get((x, via)), tight.get((via, y))
                if first is not None and then is not None:
                    why = first.why if first.why == then.why else f"{first.why}; {then.why}"
                    tighten(tight, x, y, Bound(first.ns + then.ns, why))
    if any(tight[node, node].ns < 0 for node in nodes if (node, node) in tight):
        raise ContradictionError
    return tight


def offset_between(tight: Bounds, here: str, there: str) -> ClockOffset | None:
    """Return `here`'s clock minus `there`'s; None if one side has no bound."""
    if here == there:
        return ClockOffset(0, 0, "one clock", "one clock")
    high, low = tight.get((here, there)), tight.get((there, here))
    if high is None or low is None:
        return None
    return ClockOffset(low=-low.ns, high=high.ns, low_why=low.why, high_why=high.why)


def earliest(tight: Bounds, clock: str, at_ns: int | None, target: str) -> int | None:
    """Return the earliest time that `target`'s clock may have shown when `clock` showed `at_ns`."""
    if at_ns is None or clock == target:
        return at_ns
    bound = tight.get((clock, target))
    return None if bound is None else at_ns - bound.ns


def latest(tight: Bounds, clock: str, at_ns: int | None, target: str) -> int | None:
    """Return the latest time that `target`'s clock may have shown when `clock` showed `at_ns`."""
    if at_ns is None or clock == target:
        return at_ns
    bound = tight.get((target, clock))
    return None if bound is None else at_ns + bound.ns
