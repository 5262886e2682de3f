# SPDX-License-Identifier: MIT
"""Finds the destination of a source without one among the VMs that waited on another host and never ran."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from vftrace.analysis.hosts.causality import handover_ns
from vftrace.analysis.hosts.clocks import (
    Bound,
    Bounds,
    ContradictionError,
    Order,
    add_orders,
    add_wall_clock,
    earliest,
    latest,
    slew,
    tighten,
    tightest,
)
from vftrace.analysis.hosts.match import MAX_PAIRS, handed_over
from vftrace.model.migration import Kind, Migration, Outcome, Role
from vftrace.model.report import HostReport, MigrationReport, WaitingVm


class Couple(msgspec.Struct, frozen=True):
    """A source and a VM that waited on another host; `tight` bounds the difference of their clocks.

    `loaded`: the VM set its registers after the source began, so not at its boot; None: not known.
    """

    source: MigrationReport
    host: HostReport
    waiting: WaitingVm
    tight: Bounds
    loaded: bool | None

    def ended_before(self, at_ns: int | None) -> int | None:
        """Return how long before this time of the source the waiting VM surely ended, ns; None if that is not known."""
        bound = self.tight.get((self.source.host.boot_id, self.host.boot_id))
        if bound is None or at_ns is None or self.waiting.ended_at_ns is None:
            return None
        ahead = at_ns - (self.waiting.ended_at_ns + bound.ns)
        return ahead if ahead >= 0 else None

    def ended_after(self, at_ns: int) -> bool:
        """Whether the waiting VM surely ended after this time of the source."""
        bound = self.tight.get((self.host.boot_id, self.source.host.boot_id))
        if bound is None or self.waiting.ended_at_ns is None:
            return False
        return self.waiting.ended_at_ns - bound.ns > at_ns


def couples(
    joined: Sequence[MigrationReport], hosts: Sequence[HostReport]
) -> Iterator[list[Couple]]:
    """Yield for each VM the couples of every source without a destination and every VM that may have waited for it."""
    offsets = [found for found in joined if found.offset is not None]
    sources: dict[str, list[MigrationReport]] = defaultdict(list)
    for found in joined:
        m = found.migration
        if m.uuid is not None and (failed(m) or handed_over(m)):
            sources[m.uuid].append(found)
    waiting: dict[str | None, list[tuple[HostReport, WaitingVm]]] = defaultdict(list)
    for host in hosts:
        for vm in host.waiting:
            waiting[vm.uuid].append((host, vm))
    for uuid, here in sources.items():
        there = waiting.get(uuid, [])
        if len(here) * len(there) <= MAX_PAIRS:
            tried = (
                _couple(found, host, vm, offsets)
                for found in here
                for host, vm in there
                if host.boot_id != found.host.boot_id
            )
            yield [couple for couple in tried if couple is not None]


def failed(m: Migration) -> bool:
    """Whether this is a source whose migration failed or was cancelled."""
    over = m.outcome in (Outcome.FAILED, Outcome.CANCELLED) and m.ended_at_ns is not None
    return over and m.role == Role.SOURCE and m.kind == Kind.MOVE


def _couple(
    found: MigrationReport,
    host: HostReport,
    waiting: WaitingVm,
    joined: Iterable[MigrationReport],
) -> Couple | None:
    """Return the couple, unless the clocks or the acts of the waiting VM contradict it."""
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
        tight = tightest(bounds)
    except ContradictionError:
        return None
    loaded = _loaded(found.migration, waiting, tight, here, there)
    if loaded is False and not failed(found.migration):
        return None
    return Couple(found, host, waiting, tight, loaded)


def _loaded(m: Migration, waiting: WaitingVm, tight: Bounds, here: str, there: str) -> bool | None:
    """Whether the waiting VM loaded a state from this source; None if the clocks do not show it.

    A destination boots before it listens (softmmu/vl.c, qmp_x_exit_preconfig), so registers that it sets after the
    source began are those at the stream's end. A failing destination sets them too, before the source saved its state
    (migration/savevm.c, qemu_loadvm_state).
    """
    at = waiting.registers_set_ns
    soonest, last = earliest(tight, there, at, here), latest(tight, there, at, here)
    if at is None or (last is not None and last < handover_ns(m)):
        return False
    return True if soonest is not None and soonest > m.started_at_ns else None


def _add_offset(bounds: Bounds, other: MigrationReport, moments: dict[str, int]) -> None:
    """Add the bounds of another migration between the two hosts."""
    if other.offset is None or other.peer is None:
        return
    here, there = other.host.boot_id, other.peer.boot_id
    if {here, there} == moments.keys():
        apart = 2 * slew(moments[here] - other.migration.started_at_ns)
        why = "another migration between the two hosts"
        tighten(bounds, here, there, Bound(other.offset.high + apart, why))
        tighten(bounds, there, here, Bound(-other.offset.low + apart, why))


def sure_of(group: Sequence[Couple]) -> list[Couple]:
    """Return the couples of one VM without a competing couple, or all couples in order if they are of two hosts."""
    times = Counter(id(c.source) for c in group) + Counter(id(c.waiting) for c in group)
    between = {(c.source.host.boot_id, c.host.boot_id) for c in group}
    sources = _by_time((id(c.source), c.source.migration.started_at_ns) for c in group)
    waiting = _by_time((id(c.waiting), c.waiting.ready_at_ns) for c in group)
    in_order: set[tuple[int, int]] = set()
    if len(between) == 1 and len(sources) == len(waiting):
        in_order = set(zip(sources, waiting, strict=True))
    return [
        c
        for c in group
        if times[id(c.source)] == times[id(c.waiting)] == 1
        or (id(c.source), id(c.waiting)) in in_order
    ]


def _by_time(times: Iterable[tuple[int, int]]) -> list[int]:
    found = dict(times)
    return sorted(found, key=lambda key: found[key])
