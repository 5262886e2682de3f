"""Migrations that came to nothing, from both hosts: whose end came first says why.

The destination of such a migration may never have acted: then its host knows only a VM that waited and never
ran. The source knows that its channel broke, or that it gave up itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vftrace.analysis.hosts.join import SLEW_PPM, UNSYNCHRONISED_NS
from vftrace.model.migration import Cause, Migration, Outcome
from vftrace.model.report import HostReport, MigrationReport, WaitingVm
from vftrace.units import format_ns

_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Span:
    """Between `low` and `high`, None where nothing bounds it, ns."""

    low: int | None = None
    high: int | None = None

    def within(self, low: int | None, high: int | None) -> "Span":
        """Also between these."""
        lows = [n for n in (self.low, low) if n is not None]
        highs = [n for n in (self.high, high) if n is not None]
        return Span(max(lows, default=None), min(highs, default=None))

    @property
    def empty(self) -> bool:
        """Whether nothing can lie in it."""
        return self.low is not None and self.high is not None and self.low > self.high


@dataclass(frozen=True, slots=True)
class _Couple:
    """A source that gave up, who waited for it, and how much more the source's clock shows."""

    source: MigrationReport
    host: HostReport
    waiting: WaitingVm
    offset: Span


def join_given_up(
    joined: Sequence[MigrationReport], boots: Sequence[HostReport]
) -> tuple[MigrationReport, ...]:
    """The same migrations, those that failed or were cancelled with what the other host saw of them.

    They belong together by UUID, and because the waiting VM was ready before the source began and not gone by
    then, as far as the clocks tell; attempts of one VM keep their order. Where several fit, none is taken.
    """
    couples = [
        couple
        for found in joined
        if _gave_up(found)
        for boot in boots
        if boot is not found.host and boot.boot_id != found.host.boot_id
        for waiting in boot.waiting
        if (couple := _couple(found, boot, waiting, joined)) is not None
    ]
    by_source = {id(c.source): c for c in couples if _only(c, couples)}
    doubted = {id(c.source) for c in couples} - by_source.keys()
    taken = {(c.host.boot_id, c.waiting.pid) for c in by_source.values()}
    merged = []
    for found in joined:
        m = found.migration
        if id(found) in by_source:
            merged.append(_of_both(by_source[id(found)], joined))
        elif id(found) in doubted:
            said = (
                "more than one VM that waited elsewhere may have been its destination: not stitched"
            )
            merged.append(replace(found, warnings=(*found.warnings, said)))
        elif m.role != "destination" or (found.host.boot_id, m.pid) not in taken:
            merged.append(found)
    return tuple(merged)


def _gave_up(found: MigrationReport) -> bool:
    m = found.migration
    over = m.outcome in ("failed", "cancelled") and m.ended_at_ns is not None
    return over and m.role == "source" and m.uuid is not None and m.channel.kind != "file"


def _couple(
    found: MigrationReport, boot: HostReport, waiting: WaitingVm, joined: Sequence[MigrationReport]
) -> _Couple | None:
    m = found.migration
    if waiting.uuid != m.uuid:
        return None
    began, gone = m.started_at_ns, waiting.ended_at_ns
    span = _wall(found.host, began, boot, gone or waiting.ready_at_ns)
    for other in joined:
        span = _known(span, other, found.host, boot, began)
    # It was ready when the source connected, and still there.
    span = span.within(began - gone if gone is not None else None, began - waiting.ready_at_ns)
    return None if span.empty else _Couple(found, boot, waiting, span)


def _wall(here: HostReport, at_ns: int, there: HostReport, then_ns: int) -> Span:
    """What wall clocks and their error bounds say; nothing where one is set by nobody."""
    nearest = []
    for boot, moment in ((here, at_ns), (there, then_ns)):
        known = [s for s in boot.snapshot.clock if s[2] < UNSYNCHRONISED_NS]
        if not known:
            return Span()
        at, offset, error = min(known, key=lambda sample: abs(sample[0] - moment))
        nearest.append((offset, error + _slew(at - moment)))
    (mine, error), (theirs, other) = nearest
    return Span(theirs - mine - error - other, theirs - mine + error + other)


def _known(
    span: Span, other: MigrationReport, here: HostReport, there: HostReport, at_ns: int
) -> Span:
    """What another migration between the two hosts says."""
    if other.offset is None or other.peer is None:
        return span
    ends = (other.host.boot_id, other.peer.boot_id)
    away = 2 * _slew(at_ns - other.migration.started_at_ns)
    low, high = other.offset.low, other.offset.high
    if ends == (here.boot_id, there.boot_id):
        return span.within(low - away, high + away)
    if ends == (there.boot_id, here.boot_id):
        away = 2 * _slew(at_ns + low - other.migration.started_at_ns)
        return span.within(-high - away, -low + away)
    return span


def _slew(ns: int) -> int:
    return -(-abs(ns) * SLEW_PPM // _MILLION)


def _only(couple: _Couple, couples: Sequence[_Couple]) -> bool:
    """Whether no other couple competes, or all of one VM between two hosts fit in order."""
    group = [c for c in couples if c.source.migration.uuid == couple.source.migration.uuid]
    rivals = [c for c in group if c.source is couple.source or c.waiting is couple.waiting]
    if len(rivals) == 1:
        return True
    if len({(c.source.host.boot_id, c.host.boot_id) for c in group}) > 1:
        return False
    sources = _places((id(c.source), c.source.migration.started_at_ns) for c in group)
    waiting = _places((id(c.waiting), c.waiting.ready_at_ns) for c in group)
    same = len(sources) == len(waiting)
    return same and sources.index(id(couple.source)) == waiting.index(id(couple.waiting))


def _places(times: Iterable[tuple[int, int]]) -> list[int]:
    found = dict(times)
    return sorted(found, key=lambda key: found[key])


def _of_both(couple: _Couple, joined: Sequence[MigrationReport]) -> MigrationReport:
    """The source's account with the destination's part in it."""
    m = couple.source.migration
    theirs = next(
        (
            other.migration
            for other in joined
            if other.host.boot_id == couple.host.boot_id
            and other.migration.role == "destination"
            and other.migration.pid == couple.waiting.pid
        ),
        None,
    )
    outcome, cause, detail = _why(m, theirs, couple)
    unclear = cause is None
    said = "the clocks do not tell whether the destination ended before the channel broke"
    return replace(
        couple.source,
        migration=replace(
            m,
            role="stitched",
            peer_pid=couple.waiting.pid,
            outcome=outcome,
            cause=m.cause if unclear else cause,
            cause_detail=detail,
            incomplete=m.incomplete or (theirs is not None and theirs.incomplete),
        ),
        peer=couple.host,
        uncertainty_ns=0,
        warnings=(*couple.source.warnings, *((said,) if unclear else ())),
    )


def _why(
    m: Migration, theirs: Migration | None, couple: _Couple
) -> tuple[Outcome, Cause | None, str | None]:
    """As build.py has it where both sides are on one host; the cause None: the clocks do not tell."""
    assert m.outcome is not None
    if theirs is not None and theirs.cause in ("device-refused", "device-failed"):
        return "failed", theirs.cause, theirs.cause_detail
    if m.cause != "channel-error" or m.channel.error_at_ns is None:
        return m.outcome, m.cause, m.cause_detail
    ended = couple.waiting.ended_at_ns
    if ended is None:
        return m.outcome, m.cause, m.cause_detail
    offset, broke = couple.offset, m.channel.error_at_ns
    if offset.high is not None and ended + offset.high <= broke:
        ahead = format_ns(broke - ended - offset.high)
        return "failed", "destination-ended", f"its process ended at least {ahead} before the error"
    if offset.low is not None and ended + offset.low > broke:
        if m.channel.error != "EPIPE":
            return m.outcome, m.cause, m.cause_detail
        # The source itself shut the channel down (QEMU migrate_fd_cancel), and the destination ended for it.
        if m.stopped_at_ns is not None:
            return "failed", "resumed-after-stop", None
        return "cancelled", "cancelled", None
    return m.outcome, None, m.cause_detail
