"""Joins a migration's source with the VM that waited for it on another host and never ran.

The destination of a failed migration may never have acted, and a destination that is held has not run yet: its
host knows only a VM that waited. The source knows that its channel broke, or that it stopped the migration itself.
Whose end came first says why the migration failed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vftrace.analysis.hosts.clocks import (
    Bound,
    Bounds,
    ContradictionError,
    Order,
    add_orders,
    add_wall_clock,
    slew,
    tighten,
    tightest,
)
from vftrace.model.migration import Cause, Migration, Outcome, Role
from vftrace.model.report import HostReport, MigrationReport, WaitingVm
from vftrace.units import format_ns

SEVERAL_WAITING = "not joined: several waiting VMs on other hosts could be the destination"
UNCLEAR = "the clocks do not tell whether the destination ended before the channel broke"


@dataclass(frozen=True, slots=True)
class _Couple:
    """A source and a VM that waited on another host; `tight` bounds the difference of their clocks."""

    source: MigrationReport
    host: HostReport
    waiting: WaitingVm
    tight: Bounds

    def ended_before(self, at_ns: int) -> int | None:
        """How long before this time of the source the waiting VM surely ended, ns; None if that is not known."""
        bound = self.tight.get((self.source.host.boot_id, self.host.boot_id))
        if bound is None or self.waiting.ended_at_ns is None:
            return None
        ahead = at_ns - (self.waiting.ended_at_ns + bound.ns)
        return ahead if ahead >= 0 else None

    def ended_after(self, at_ns: int) -> bool:
        """Whether the waiting VM surely ended after this time of the source."""
        bound = self.tight.get((self.host.boot_id, self.source.host.boot_id))
        if bound is None or self.waiting.ended_at_ns is None:
            return False
        return self.waiting.ended_at_ns - bound.ns > at_ns


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a migration ended by both hosts; `warning` where their clocks do not tell."""

    outcome: Outcome | None
    cause: Cause | None
    detail: str | None
    warning: str | None = None


def join_failed(
    joined: Sequence[MigrationReport], hosts: Sequence[HostReport]
) -> tuple[MigrationReport, ...]:
    """The same migrations, those that failed or were cancelled with what the other host saw of them.

    They belong together by UUID, and because the waiting VM was ready before the source began and not gone by
    then, as far as the clocks tell; attempts of one VM keep their order. Where several fit, none is taken.
    """
    couples = list(_couples(joined, hosts))
    by_source = {id(c.source): c for c in couples if _only(c, couples)}
    doubted = {id(c.source) for c in couples} - by_source.keys()
    taken = {(c.host.boot_id, c.waiting.pid) for c in by_source.values()}
    merged = []
    for found in joined:
        m = found.migration
        if id(found) in by_source:
            merged.append(_of_both(by_source[id(found)], joined))
        elif id(found) in doubted:
            merged.append(replace(found, warnings=(*found.warnings, SEVERAL_WAITING)))
        elif m.role != Role.DESTINATION or (found.host.boot_id, m.pid) not in taken:
            merged.append(found)
    return tuple(merged)


def _couples(joined: Sequence[MigrationReport], hosts: Sequence[HostReport]) -> Iterator[_Couple]:
    """Every source that failed or was cancelled with every VM that may have waited for it."""
    for found in joined:
        if not _failed(found.migration):
            continue
        for host in hosts:
            if host.boot_id == found.host.boot_id:
                continue
            for waiting in host.waiting:
                if waiting.uuid == found.migration.uuid:
                    tight = _clocks(found, host, waiting, joined)
                    if tight is not None:
                        yield _Couple(found, host, waiting, tight)


def _failed(m: Migration) -> bool:
    over = m.outcome in (Outcome.FAILED, Outcome.CANCELLED) and m.ended_at_ns is not None
    return over and m.role == Role.SOURCE and m.uuid is not None and m.channel.kind != "file"


def _clocks(
    found: MigrationReport,
    host: HostReport,
    waiting: WaitingVm,
    joined: Iterable[MigrationReport],
) -> Bounds | None:
    """What bounds the two hosts' clocks if this VM waited for that source; None if it cannot have."""
    here, there = found.host.boot_id, host.boot_id
    began, gone = found.migration.started_at_ns, waiting.ended_at_ns
    moments = {here: began, there: gone or waiting.ready_at_ns}
    bounds: Bounds = {}
    add_wall_clock(bounds, here, found.host.snapshot.clock, moments[here])
    add_wall_clock(bounds, there, host.snapshot.clock, moments[there])
    for other in joined:
        _add_offset(bounds, other, moments)
    orders = [Order(there, waiting.ready_at_ns, here, began, "it was ready when the source began")]
    if gone is not None:
        orders.append(Order(here, began, there, gone, "it was there when the source began"))
    add_orders(bounds, orders, moments)
    try:
        return tightest(bounds)
    except ContradictionError:
        return None


def _add_offset(bounds: Bounds, other: MigrationReport, moments: dict[str, int]) -> None:
    """Add what another migration between the two hosts says."""
    if other.offset is None or other.peer is None:
        return
    here, there = other.host.boot_id, other.peer.boot_id
    if {here, there} == moments.keys():
        apart = 2 * slew(moments[here] - other.migration.started_at_ns)
        why = "another migration between the two hosts"
        tighten(bounds, here, there, Bound(other.offset.high + apart, why))
        tighten(bounds, there, here, Bound(-other.offset.low + apart, why))


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
    theirs = _destination_of(couple, joined)
    ending = _ending(m, theirs, couple)
    return replace(
        couple.source,
        migration=replace(
            m,
            role=Role.STITCHED,
            peer_pid=couple.waiting.pid,
            outcome=ending.outcome,
            cause=ending.cause,
            cause_detail=ending.detail,
            incomplete=m.incomplete or (theirs is not None and theirs.incomplete),
        ),
        peer=couple.host,
        uncertainty_ns=0,
        warnings=(*couple.source.warnings, *((ending.warning,) if ending.warning else ())),
    )


def _destination_of(couple: _Couple, joined: Iterable[MigrationReport]) -> Migration | None:
    """The waiting VM's own migration, if it acted."""
    for other in joined:
        m = other.migration
        here = other.host.boot_id == couple.host.boot_id
        if here and m.role == Role.DESTINATION and m.pid == couple.waiting.pid:
            return m
    return None


def _ending(m: Migration, theirs: Migration | None, couple: _Couple) -> _Ending:
    """How it ended, by the rules that verdict.py has for both sides on one host."""
    if theirs is not None and theirs.cause in (Cause.DEVICE_REFUSED, Cause.DEVICE_FAILED):
        return _Ending(Outcome.FAILED, theirs.cause, theirs.cause_detail)
    said = _Ending(m.outcome, m.cause, m.cause_detail)
    broke = m.channel.error_at_ns
    if m.cause != Cause.CHANNEL_ERROR or broke is None or couple.waiting.ended_at_ns is None:
        return said
    ahead = couple.ended_before(broke)
    if ahead is not None:
        detail = f"its process ended at least {format_ns(ahead)} before the error"
        return _Ending(Outcome.FAILED, Cause.DESTINATION_ENDED, detail)
    if not couple.ended_after(broke):
        return replace(said, warning=UNCLEAR)
    if m.channel.error != "EPIPE":
        return said
    # The source itself shut the channel down (QEMU migrate_fd_cancel), and the destination ended for it.
    if m.stopped_at_ns is not None:
        return _Ending(Outcome.FAILED, Cause.RESUMED_AFTER_STOP, None)
    return _Ending(Outcome.CANCELLED, Cause.CANCELLED, None)
