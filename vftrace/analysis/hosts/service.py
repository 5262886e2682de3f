# SPDX-License-Identifier: MIT
"""Finds the service downtime of migrations: the gaps of pings' recordings around their blackouts."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from vftrace.analysis.hosts.clocks import Bounds, add_wall_clock, offset_between, tightest
from vftrace.analysis.hosts.outage import HostSide, account
from vftrace.events import Event, PingGap, PingSettings, PingSummary
from vftrace.model.migration import Checkpoint, Migration
from vftrace.model.report import (
    ClockOffset,
    HostReport,
    MigrationReport,
    Outage,
    PingRecording,
)
from vftrace.ping.gaps import OWN

SEVERAL_FIT = (
    "a ping was running, and nothing shows which of the VMs that moved then was its target"
)


class ServiceGap(msgspec.Struct, frozen=True):
    """The longest time without replies that overlaps a span. Times are CLOCK_BOOTTIME, ns.

    `ns` is 0 (and `start_at_ns` None) if every probe was answered in time. With one interruption
    the true length lies between `least_ns` and `most_ns` (None: no end was seen). `blind_ns` is
    the part of the span in which the pinger sent no probe, which may hide a gap of that length.
    `last_reply_at_ns` and `next_reply_at_ns` are the times of the replies around the gap.
    """

    start_at_ns: int | None
    ns: int
    least_ns: int
    most_ns: int | None
    lost: int
    late: int
    blind_ns: int
    last_reply_at_ns: int | None
    next_reply_at_ns: int | None


def service_gap(events: Iterable[Event], start_ns: int, end_ns: int) -> ServiceGap | None:
    """Return the longest gap of a ping's events that overlaps `start_ns` to `end_ns`.

    None if that is not known: the ping did not cover the whole span, and no gap overlaps it.
    """
    longest: PingGap | None = None
    summary: PingSummary | None = None
    blind_ns = 0
    for event in events:
        if isinstance(event, PingSummary):
            summary = event
        elif isinstance(event, PingGap):
            event_end_ns = event.start_at_ns + event.ns
            if event.start_at_ns >= end_ns or event_end_ns <= start_ns:
                continue
            if event.kind == OWN:
                blind_ns += min(event_end_ns, end_ns) - max(event.start_at_ns, start_ns)
            elif longest is None or event.ns > longest.ns:
                longest = event
    if longest is not None:
        return ServiceGap(
            longest.start_at_ns,
            longest.ns,
            longest.least_ns,
            longest.most_ns,
            longest.lost,
            longest.late,
            blind_ns,
            longest.before_reply_ns,
            longest.after_reply_ns,
        )
    if summary is None or summary.since_ns > start_ns or summary.settled_ns < end_ns:
        return None
    return ServiceGap(None, 0, 0, 0, 0, 0, blind_ns, None, None)


def with_service(
    joined: Sequence[MigrationReport], hosts: Sequence[HostReport], pings: Sequence[PingRecording]
) -> tuple[MigrationReport, ...]:
    """Give each migration the gap of the pings that overlaps its blackout.

    A ping names no VM: if several migrations fit at one time, the one whose VM has the name of the ping's target
    gets the gap, or none does.
    """
    service: dict[int, int] = {}
    touching: dict[int, list[PingRecording]] = {}
    unclear: set[int] = set()
    for ping in pings:
        gaps = _gaps(joined, ping, hosts)
        targets = {e.target for e in ping.events if isinstance(e, PingSettings)}
        chosen = {i: ns for i, ns in gaps.items() if joined[i].migration.name in targets} or gaps
        if len(chosen) > 1 and _overlap([joined[index].migration for index in chosen]):
            unclear |= chosen.keys()
            continue
        for index, ns in chosen.items():
            service[index] = max(ns, service.get(index, 0))
            touching.setdefault(index, []).append(ping)
    return tuple(
        replace(
            found,
            service_ns=service.get(index),
            warnings=found.warnings + ((SEVERAL_FIT,) if index in unclear else ()),
            outage=_longest_gap(found, touching.get(index, ()), hosts),
        )
        for index, found in enumerate(joined)
    )


def _gaps(
    joined: Sequence[MigrationReport], ping: PingRecording, hosts: Sequence[HostReport]
) -> dict[int, int]:
    """Return the ping's longest gap in each migration's blackout, ns, by the migration's index."""
    gaps = {}
    for index, found in enumerate(joined):
        span = _blackout_on_ping_clock(found, ping, hosts)
        gap = None if span is None else service_gap(ping.events, *span)
        if gap is not None:
            gaps[index] = gap.ns
    return gaps


def _longest_gap(
    found: MigrationReport, pings: Sequence[PingRecording], hosts: Sequence[HostReport]
) -> Outage | None:
    """Return the longest time without answers around a migration, in spans by reason."""
    if found.peer is None:
        return None
    m = found.migration
    shift = found.offset.middle if found.offset is not None else 0
    source = _side(found.host, m.pid, 0)
    destination = _side(found.peer, m.peer_pid, shift)
    accounts = []
    for ping in pings:
        offset = ping_offset(found, ping, hosts)
        if offset is not None:
            unsure = max(offset.uncertainty_ns, found.uncertainty_ns or 0)
            accounts.append(account(m, source, destination, ping.events, offset.middle, unsure))
    known = [each for each in accounts if each is not None]
    return max(known, key=lambda each: each.ns, default=None)


def _side(host: HostReport, pid: int | None, shift_ns: int) -> HostSide:
    seen = host.snapshot
    vfs = {(vf.pf, vf.vf): vf for vf in seen.vfs}
    return HostSide(pid, vfs, seen.network, seen.stalls, shift_ns)


def _overlap(migrations: Iterable[Migration]) -> bool:
    spans = sorted(span for m in migrations if (span := _blackout(m)) is not None)
    return any(then[0] < first[1] for first, then in pairwise(spans))


def _blackout(m: Migration) -> tuple[int, int] | None:
    ran = m.downtime.times.get(Checkpoint.VCPUS_RUNNING)
    if m.stopped_at_ns is None or ran is None:
        return None
    return m.stopped_at_ns, max(ran, m.stopped_at_ns + 1)


def _blackout_on_ping_clock(
    found: MigrationReport, ping: PingRecording, hosts: Sequence[HostReport]
) -> tuple[int, int] | None:
    """Return the blackout on the ping's clock, widened by the uncertainty of the clocks."""
    span = _blackout(found.migration)
    offset = ping_offset(found, ping, hosts)
    if span is None or offset is None:
        return None
    return span[0] - offset.high, span[1] - offset.low


def ping_offset(
    found: MigrationReport, ping: PingRecording, hosts: Sequence[HostReport]
) -> ClockOffset | None:
    """Return the clock of the migration's times minus the ping's; None if nothing bounds it."""
    here = found.host.boot_id
    if found.peer is not None and found.offset and ping.boot_id == found.peer.boot_id:
        return found.offset
    traced = [b.snapshot.clock for b in hosts if b.boot_id == ping.boot_id]
    clock = next((samples for samples in traced if samples), ping.clock)
    bounds: Bounds = {}
    if here != ping.boot_id:
        add_wall_clock(bounds, here, found.host.snapshot.clock, found.migration.stopped_at_ns)
        add_wall_clock(bounds, ping.boot_id, clock, None)
    return offset_between(tightest(bounds), here, ping.boot_id)
