# SPDX-License-Identifier: MIT
"""Computes every figure that is derived from the model; no other module computes one of them.

Times are CLOCK_BOOTTIME nanoseconds, rates bytes per second; None means not known.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec

from vftrace.errors import printable as printable
from vftrace.model.brownout import RECENT_NS, added
from vftrace.model.migration import (
    Checkpoint,
    CheckpointTime,
    Downtime,
    Migration,
    Outcome,
    PhaseSpan,
    Role,
    Round,
)
from vftrace.model.report import MigrationReport, Outage

ClockSamples = Sequence[tuple[int, int, int]]
"""(at_ns, realtime_offset_ns, error_ns) in order of time, as `Snapshot.clock`."""

_ON_DESTINATION = tuple(Checkpoint)[tuple(Checkpoint).index(Checkpoint.DEVICES_LOADED) :]

_SETTLED_NS = 300_000_000
"""The age in ns from which a round's bandwidth is used: bytes are reported at intervals, so that of a younger round
varies too much."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# -- names --------------------------------------------------------------------------------------


def uuid_short(uuid: str | None) -> str | None:
    """Return the first eight digits of a UUID."""
    return None if uuid is None else uuid[:8]


def title(name: str | None, uuid: str | None, pid: int) -> str:
    """Return a VM's title: its name with the short UUID, else the UUID, else the pid. Always printable."""
    if name:
        short = uuid_short(uuid)
        return printable(f"{name} ({short})" if short else name)
    return printable(uuid) if uuid else f"pid {pid}"


def label(name: str | None, uuid: str | None, pid: int) -> str:
    """Return a VM's title in one word: the name, else the short UUID, else the pid."""
    return printable(name or uuid_short(uuid) or f"pid {pid}")


# -- times --------------------------------------------------------------------------------------


def realtime_offset_ns(clock: ClockSamples, at_ns: int) -> int | None:
    """Return the wall clock minus CLOCK_BOOTTIME at a time, from the latest sample up to it, else from the first."""
    if not clock:
        return None
    return next((offset for at, offset, _ in reversed(clock) if at <= at_ns), clock[0][1])


def realtime_ns(clock: ClockSamples, at_ns: int) -> int | None:
    """Return a time as nanoseconds since the Unix epoch."""
    offset = realtime_offset_ns(clock, at_ns)
    return None if offset is None else at_ns + offset


def wall_time(clock: ClockSamples, at_ns: int) -> datetime | None:
    """Return a time as date and time in UTC, cut to milliseconds; None also if a damaged time is not a date."""
    return utc_time(realtime_ns(clock, at_ns))


def utc_time(unix_ns: int | None) -> datetime | None:
    """Return nanoseconds since the Unix epoch as date and time in UTC, cut to milliseconds; None also if a damaged time
    is not a date."""
    if unix_ns is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=unix_ns // 1_000_000)
    except OverflowError:
        return None


Identity = tuple[str, int, int]


def identity(m: Migration) -> Identity:
    """Return the key of a migration that stays the same while vftrace learns more of it: a source's side is `source`
    also after its destination was found."""
    side = Role.DESTINATION if m.role == Role.DESTINATION else Role.SOURCE
    return side, m.pid, m.started_at_ns


def total_ns(m: Migration) -> int | None:
    """Return how long a migration took, from its beginning to its end."""
    return None if m.ended_at_ns is None else m.ended_at_ns - m.started_at_ns


def elapsed_ns(m: Migration, now_ns: int) -> int:
    """Return how long a migration took, or has taken so far."""
    ended = now_ns if m.ended_at_ns is None else m.ended_at_ns
    return max(0, ended - m.started_at_ns)


def current_phase(m: Migration) -> PhaseSpan | None:
    """Return the latest phase that has not ended; the destination's if two phases began at the same time."""
    lasting = [p for p in m.phases if p.end_at_ns is None]
    return max(lasting, key=lambda p: (p.start_at_ns, p.role == Role.DESTINATION), default=None)


# -- the brownout -------------------------------------------------------------------------------


def speed_now(m: Migration) -> float | None:
    """Return the guest's speed in the last two seconds relative to before the migration; None without a migration or if
    not known."""
    b = m.brownout
    if b is None or not b.timeline or m.outcome is not None:
        return None
    last = b.timeline[-1]
    since = last.vcpus.end_ns - RECENT_NS
    recent = [s.vcpus for s in b.timeline if s.side == last.side and s.vcpus.end_ns > since]
    could_run = added(recent).could_run
    before = b.baseline.could_run if b.baseline is not None else 1.0
    return None if could_run is None else could_run / before


# -- the blackout -------------------------------------------------------------------------------


class Blackout(msgspec.Struct, frozen=True):
    """A blackout that has not ended: how long it lasts so far, and its latest checkpoint.

    `at_least`: this host's part is over, and the rest is on another host.
    """

    ns: int
    since: Checkpoint
    since_ns: int
    at_least: bool


def blackout(m: Migration, now_ns: int) -> Blackout | None:
    """Return the blackout up to `now_ns`; None if the guest runs or the migration has ended."""
    passed = [(c.name, c.at_ns) for c in m.downtime.checkpoints if c.at_ns is not None]
    if m.outcome is not None or m.stopped_at_ns is None or not passed:
        return None
    name, at_ns = passed[-1]
    if name == Checkpoint.VCPUS_RUNNING:
        return None
    gone = m.role == Role.SOURCE and name == Checkpoint.STATE_SAVED
    until = at_ns if gone else max(now_ns, at_ns)
    return Blackout(until - m.stopped_at_ns, name, until - at_ns, gone)


def largest_step(downtime: Downtime) -> CheckpointTime | None:
    """Return the checkpoint that took most of the downtime."""
    return next((c for c in downtime.checkpoints if c.name == downtime.set_by), None)


def other_steps(downtime: Downtime) -> list[CheckpointTime]:
    """Return the other steps that took time, longest first."""
    steps = [c for c in downtime.checkpoints if c.ns and c.name != downtime.set_by]
    return sorted(steps, key=lambda c: -(c.ns or 0))


def clock_change(downtime: Downtime) -> CheckpointTime | None:
    """Return the first checkpoint on the destination: its `ns` spans both hosts' clocks."""
    passed = (c for c in downtime.checkpoints if c.name in _ON_DESTINATION and c.ns is not None)
    return next(passed, None)


def bounds_ns(ns: int, uncertainty_ns: int | None) -> tuple[int, int]:
    """Return the least and the most that a time may have been."""
    return max(0, ns - (uncertainty_ns or 0)), ns + (uncertainty_ns or 0)


def downtime_bounds_ns(found: MigrationReport) -> tuple[int, int] | None:
    """Return the bounds of the vCPUs' downtime, from the bounds of the clocks' difference."""
    ns = found.migration.downtime.vcpu_ns
    return None if ns is None else bounds_ns(ns, found.uncertainty_ns)


def device_downtime_ns(m: Migration) -> int | None:
    """Return the longest downtime of a device."""
    return max((d.ns for d in m.downtime.devices if d.ns is not None), default=None)


def resumed_on_source(m: Migration) -> bool:
    """Whether the source ran again after it had been stopped."""
    failed = m.outcome == Outcome.FAILED and not m.postcopy
    return (m.role == Role.SOURCE or failed) and Checkpoint.VCPUS_RUNNING in m.downtime.times


def explained_part(outage: Outage) -> float:
    """Return the part of an outage, 0 to 1, whose reason the hosts saw."""
    return outage.explained_ns / outage.ns if outage.ns else 1.0


def pinger_part(outage: Outage) -> float:
    """Return the part of an outage, 0 to 1, whose reason the pinger saw."""
    return outage.pinger_ns / outage.ns if outage.ns else 0.0


# -- dirty pages --------------------------------------------------------------------------------


def byte_rate(count: int | None, ns: int) -> float | None:
    """Return bytes per second from a number of bytes and a time in ns."""
    return None if count is None or ns <= 0 else count * 1e9 / ns


def page_rate(pages: int | None, page_size: int, ns: int) -> float | None:
    """Return bytes per second from a number of pages and a time in ns."""
    return byte_rate(None if pages is None else pages * page_size, ns)


def dirty_sync_count(m: Migration) -> int:
    """Return the number of dirty syncs, merged ones included: QEMU's dirty-sync-count."""
    return sum(round_.syncs for round_ in m.rounds)


def counted_since_ns(m: Migration) -> int | None:
    """Return the time from which new pages count: the first round; with dirty rings, which begin empty, the
    beginning."""
    if m.dirty.ring:
        return m.started_at_ns
    return m.rounds[0].at_ns if m.rounds else None


def dma_pages(round_: Round) -> int | None:
    """Return the pages that devices and IOMMUs reported with a sweep; None if none reported, or if a part is not
    known."""
    reported = [n for n in (round_.vfio_pages, round_.iommu_pages) if n is not None]
    return sum(reported) if reported else None


def counted_rounds(m: Migration) -> Iterator[tuple[int, Round]]:
    """Yield the rounds whose pages are new pages, each with the time from which its pages became dirty.

    With bitmaps the first round is left out: it finds the pages that were dirty before logging began.
    """
    since = counted_since_ns(m)
    if since is None:
        return
    for round_ in m.rounds if m.dirty.ring else m.rounds[1:]:
        yield since, round_
        since = round_.at_ns


def round_dirty_rates(m: Migration) -> tuple[float | None, ...]:
    """Return the dirty rate of each round: its new pages divided by the time since the round before."""
    merged = [before for before in m.rounds if before.syncs > 1]
    after_merged = {id(after) for before, after in pairwise(m.rounds) if before.syncs > 1}
    unknown = {id(round_) for round_ in merged} | after_merged
    rates = {
        id(round_): page_rate(round_.new_pages, m.dirty.page_size, round_.at_ns - since)
        for since, round_ in counted_rounds(m)
        if id(round_) not in unknown
    }
    return tuple(rates.get(id(round_)) for round_ in m.rounds)


def last_dirty_rate(m: Migration) -> float | None:
    """Return the dirty rate of the latest round whose pages are known."""
    return next((rate for rate in reversed(round_dirty_rates(m)) if rate is not None), None)


def mean_dirty_rate(m: Migration) -> float | None:
    """Return the mean dirty rate: all new pages divided by the time from which they count to the last round."""
    since = counted_since_ns(m)
    if since is None:
        return None
    until = m.dirty.counted_until_ns
    if until is None:
        until = m.rounds[-1].at_ns if m.rounds else since
    return page_rate(m.dirty.new_pages, m.dirty.page_size, until - since)


def dirty_rate(m: Migration) -> float | None:
    """Return the dirty rate that outputs show for a migration: with bitmaps that of the latest round.

    With dirty rings it is the mean: a sync that finds no page resets no ring and leaves no record, so the time
    between two resets is not always one round.
    """
    return mean_dirty_rate(m) if m.dirty.ring else last_dirty_rate(m)


def dirtied_bytes(m: Migration) -> int | None:
    """Return the size of all new pages in bytes."""
    return None if m.dirty.new_pages is None else m.dirty.new_pages * m.dirty.page_size


def known_new_pages(m: Migration) -> int:
    """Return the new pages that are known: fewer than all if records are missing."""
    if not m.rounds:  # only vCPUs have reset their rings, because they were full
        return m.dirty.new_pages or 0
    return sum(round_.new_pages or 0 for _, round_ in counted_rounds(m))


# -- what was sent ------------------------------------------------------------------------------


def round_bandwidths(m: Migration) -> tuple[float | None, ...]:
    """Return the bandwidth of each round: the bytes sent divided by the time until the next; None for the last
    round."""
    following = (*(round_.at_ns for round_ in m.rounds[1:]), None)
    return tuple(
        None if until is None else byte_rate(round_.sent_bytes, until - round_.at_ns)
        for round_, until in zip(m.rounds, following, strict=True)
    )


def sent_so_far(m: Migration) -> Iterator[tuple[int, int]]:
    """Yield the bytes sent in total at the beginning and at each round; empty if a round's bytes are not known."""
    known = [round_.sent_bytes for round_ in m.rounds if round_.sent_bytes is not None]
    if m.channel.bytes is None or not m.rounds or len(known) < len(m.rounds):
        return
    # A round's bytes were sent since the round began: bytes of no round were sent before the first.
    total = max(0, m.channel.bytes - sum(known))
    yield min(m.started_at_ns, m.rounds[0].at_ns), 0
    for round_, sent in zip(m.rounds, known, strict=True):
        yield round_.at_ns, total
        total += sent


def bandwidth_now(m: Migration, at_ns: int) -> float | None:
    """Return bytes per second in this round, or in the round before if this round is young."""
    if not m.rounds:
        return None
    last = m.rounds[-1]
    ns = at_ns - last.at_ns
    if last.sent_bytes is not None and (ns >= _SETTLED_NS or len(m.rounds) == 1):
        return byte_rate(last.sent_bytes, ns)
    return round_bandwidths(m)[-2] if len(m.rounds) > 1 else None
