# SPDX-License-Identifier: MIT
"""Prints a ping: the live line, a line for each gap, the summary, JSON."""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from vftrace.ping.gaps import HELD, LOST, OWN, Gap
from vftrace.ping.ledger import GAP_INTERVALS, Ledger
from vftrace.ping.session import Session
from vftrace.units import format_ns

SCHEMA = 1

_GAP_EDGES_NS = (*(n * 10**power for power in (6, 7, 8, 9) for n in (1, 2, 5)), 10**10)
_TRIP_EDGES_NS = (*(n * 10**power for power in (4, 5, 6, 7, 8) for n in (1, 2, 5)), 10**9)
_BAR_WIDTH = 40


def ping_json(session: Session, gaps: list[Gap]) -> dict[str, Any]:
    """Return the result for programs: times in ns, `start_at_ns` on CLOCK_BOOTTIME.

    `gaps` holds losses longer than GAP_INTERVALS; `longest_gap_ns` is the longest time without
    replies, shorter losses and held replies among them.
    """
    ledger = session.ledger
    trips = ledger.round_trips
    return {
        "schema": SCHEMA,
        "address": session.target.address,
        "protocol": session.protocol,
        "interval_ns": ledger.interval_ns,
        "sent": ledger.sent_count,
        "received": ledger.received,
        "missed_slots": ledger.missed_slots,
        "longest_gap_ns": ledger.longest.ns if ledger.longest else 0,
        "gaps": [
            {"start_at_ns": gap.start_ns, "ns": gap.ns, "lost": gap.lost}
            for gap in gaps
            if gap.kind == LOST and ledger.is_long(gap)
        ],
        "round_trips": {
            "answered": trips.count,
            "lost": ledger.lost,
            "least_ns": trips.least_ns if trips.count else None,
            "half_ns": trips.quantile_ns(0.5) if trips.count else None,
            "p90_ns": trips.quantile_ns(0.9) if trips.count else None,
            "p99_ns": trips.quantile_ns(0.99) if trips.count else None,
            "longest_ns": trips.most_ns if trips.count else None,
        },
    }


def live_line(session: Session, now_ns: int) -> str:
    """Return the present state in one line."""
    ledger = session.ledger
    parts = [
        f"{session.target.address}: {ledger.sent_count} sent",
        f"{ledger.lost} lost",
        f"longest gap {_longest(ledger)}",
        f"99 % of trips {format_ns(ledger.round_trips.quantile_ns(0.99))}",
        f"{ledger.missed_slots} own slots missed",
    ]
    silence_ns = ledger.silence_ns(now_ns)
    if silence_ns > GAP_INTERVALS * ledger.interval_ns:
        parts.append(f"NO REPLY FOR {format_ns(silence_ns)}")
    return ", ".join(parts)


def gap_line(gap: Gap, realtime_offset_ns: int) -> str:
    """Return the line of a gap with its wall-clock time; it is printed when the gap is settled."""
    at = _wall_time(gap.start_ns, realtime_offset_ns)
    if gap.kind == OWN:
        return f"{at}  {format_ns(gap.ns)} without probes: this machine was late, not the guest"
    return f"{at}  {describe(gap)}"


def describe(gap: Gap) -> str:
    """Return a gap in words, with its bounds."""
    parts = [f"{gap.lost} lost"]
    if gap.kind == HELD:
        parts.append(f"{gap.late} answered late")
    if gap.missed:
        parts.append(f"{gap.missed} within it not sent")
    name = "without a reply" if gap.kind == LOST else "until held replies came"
    least = format_ns(gap.least_ns)
    bounds = f"at least {least}" if gap.most_ns is None else f"{least} to {format_ns(gap.most_ns)}"
    return f"{format_ns(gap.ns)} {name} ({bounds}; {', '.join(parts)})"


def summary(session: Session, realtime_offset_ns: int) -> list[str]:
    """Return the result as text."""
    ledger = session.ledger
    interval = format_ns(ledger.interval_ns)
    where = session.target.address + (f" port {session.port}" if session.port else "")
    lines = [
        f"{where}, {session.protocol}, every {interval}",
        f"  probes      {ledger.sent_count} sent, {ledger.received} answered, {_lost(ledger)}",
    ]
    odd = (
        (ledger.duplicates, "duplicate"),
        (ledger.reordered, "out of order"),
        (ledger.after_timeout, f"after {format_ns(ledger.timeout_ns)}, counted as lost"),
    )
    if any(count for count, _ in odd):
        lines.append("  replies     " + ", ".join(f"{n} {name}" for n, name in odd if n))
    if ledger.received:
        trips = ledger.round_trips
        lines.append(
            f"  round trip  min {format_ns(trips.least_ns)}, median {_quantile(trips, 0.5)}, "
            f"90 % {_quantile(trips, 0.9)}, 99 % {_quantile(trips, 0.99)}, "
            f"max {format_ns(trips.most_ns)}"
        )
    if session.errors:
        said = ", ".join(f"{os.strerror(number)} ({n})" for number, n in session.errors.items())
        lines.append(f"  network     {said}")
    late = ledger.late
    lines.append(
        f"  own sending late by median {_quantile(late, 0.5)}, 99 % {_quantile(late, 0.99)}, "
        f"99.9 % {_quantile(late, 0.999)}, max {format_ns(late.most_ns)}; "
        f"{ledger.missed_slots} slots missed{'' if session.fifo else '; no real-time priority'}"
    )
    if ledger.longest is None:
        lines.append("  longest gap none")
    else:
        at = _wall_time(ledger.longest.start_ns, realtime_offset_ns)
        lines.append(f"  longest gap {describe(ledger.longest)}")
        lines.append(f"              from {at}")
    lines += histogram("round trips by length", ledger.round_trips.counts_ns(), _TRIP_EDGES_NS)
    return lines + histogram("gaps by length", ledger.losses_ns, _GAP_EDGES_NS)


def histogram(title: str, by_ns: Counter[int], edges_ns: Sequence[int]) -> list[str]:
    """Return rows of durations by length, between the edges; `by_ns` counts each length."""
    counts = [0] * (len(edges_ns) + 1)
    for ns, count in by_ns.items():
        counts[bisect_right(edges_ns, ns)] += count
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return []
    lines = [f"  {title}"]
    for place in range(filled[0], filled[-1] + 1):
        bar = "#" * -(-counts[place] * _BAR_WIDTH // max(counts))
        lines.append(f"    {_bucket(place, edges_ns):>16}  {counts[place]:>6}  {bar}".rstrip())
    return lines


def _bucket(place: int, edges_ns: Sequence[int]) -> str:
    edges = [format_ns(ns) for ns in edges_ns]
    if place == 0:
        return f"under {edges[0]}"
    if place == len(edges):
        return f"{edges[-1]} and more"
    return f"{edges[place - 1]}-{edges[place]}"


def _lost(ledger: Ledger) -> str:
    share = ledger.lost / ledger.sent_count if ledger.sent_count else 0.0
    return f"{ledger.lost} lost ({share:.2%})"


def _longest(ledger: Ledger) -> str:
    return format_ns(ledger.longest.ns) if ledger.longest else "none"


def _quantile(distribution: Any, share: float) -> str:
    return format_ns(distribution.quantile_ns(share))


def _wall_time(at_ns: int, realtime_offset_ns: int) -> str:
    wall = datetime.fromtimestamp((at_ns + realtime_offset_ns) / 1e9, tz=UTC).astimezone()
    return wall.strftime("%H:%M:%S.%f")[:-3]
