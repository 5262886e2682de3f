# SPDX-License-Identifier: MIT
"""Joins a migration's source with the VM that waited for it on another host and never ran.

The destination of a failed migration may never have acted, and a held destination has not run yet: its host knows only
a VM that waited. The source's host knows that the channel broke, or that the source stopped the migration itself. The
order of their ends shows why the migration failed.
"""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from vftrace.analysis.hosts.couples import Couple, couples, failed, sure_of
from vftrace.analysis.hosts.held import join_held
from vftrace.model.migration import Cause, Checkpoint, Migration, Outcome, Role
from vftrace.model.report import HostReport, MigrationReport
from vftrace.units import format_ns

SEVERAL_WAITING = "not joined: several waiting VMs on other hosts could be the destination"
UNCLEAR_ERROR = "the clocks do not show whether the destination ended before the channel broke"
UNCLEAR_RESUME = "the clocks do not show whether the destination ended before the source ran on"


class _Ending(msgspec.Struct, frozen=True):
    """The end of a migration according to both hosts; `warning` if their clocks do not show it."""

    outcome: Outcome | None
    cause: Cause | None
    detail: str | None
    warning: str | None = None


def join_failed(
    joined: Sequence[MigrationReport], hosts: Sequence[HostReport]
) -> tuple[MigrationReport, ...]:
    """Return the same migrations, with each source without a destination joined with the VM that waited for it.

    They belong together if they have the same UUID, and as far as the clocks show, the waiting VM was ready before the
    source began and had not ended then. Attempts of one VM keep their order. If several VMs fit, none is taken. A
    source that handed its guest over is joined only with a VM that loaded a state since it began.
    """
    by_source: dict[int, Couple] = {}
    doubted: set[int] = set()
    for group in couples(joined, hosts):
        sure = sure_of(group)
        by_source |= {id(couple.source): couple for couple in sure}
        doubted |= {id(couple.source) for couple in group}
    doubted -= by_source.keys()
    taken = {(c.host.boot_id, c.waiting.pid) for c in by_source.values()}
    merged = []
    for found in joined:
        m = found.migration
        couple = by_source.get(id(found))
        if couple is not None:
            merged.append(_of_both(couple, joined))
        elif id(found) in doubted:
            merged.append(replace(found, warnings=(*found.warnings, SEVERAL_WAITING)))
        elif m.role != Role.DESTINATION or (found.host.boot_id, m.pid) not in taken:
            merged.append(found)
    return tuple(merged)


def _of_both(couple: Couple, joined: Sequence[MigrationReport]) -> MigrationReport:
    """Return the source's migration with the destination's part in it."""
    m = couple.source.migration
    if not failed(m):
        return join_held(couple)
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


def _destination_of(couple: Couple, joined: Iterable[MigrationReport]) -> Migration | None:
    """Return the waiting VM's own migration, if it acted."""
    for other in joined:
        m = other.migration
        here = other.host.boot_id == couple.host.boot_id
        if here and m.role == Role.DESTINATION and m.pid == couple.waiting.pid:
            return m
    return None


def _ending(m: Migration, theirs: Migration | None, couple: Couple) -> _Ending:
    """Return how it ended, by the rules of verdict.py for both sides on one host."""
    if theirs is not None and theirs.cause in (Cause.DEVICE_REFUSED, Cause.DEVICE_FAILED):
        return _Ending(Outcome.FAILED, theirs.cause, theirs.cause_detail)
    said = _Ending(m.outcome, m.cause, m.cause_detail)
    if m.cause == Cause.RESUMED_AFTER_STOP and Checkpoint.STATE_SAVED in m.downtime.times:
        return _ending_after_load(said, m.downtime.times.get(Checkpoint.VCPUS_RUNNING), couple)
    broke = m.channel.error_at_ns
    if m.cause != Cause.CHANNEL_ERROR or broke is None or couple.waiting.ended_at_ns is None:
        return said
    ahead = couple.ended_before(broke)
    if ahead is not None:
        detail = f"its process ended at least {format_ns(ahead)} before the error"
        return _Ending(Outcome.FAILED, Cause.DESTINATION_ENDED, detail)
    if not couple.ended_after(broke):
        return replace(said, warning=UNCLEAR_ERROR)
    if m.channel.error != "EPIPE":
        return said
    # The source itself shut the channel down (QEMU migrate_fd_cancel), and the destination ended for it.
    if m.stopped_at_ns is not None:
        return _Ending(Outcome.FAILED, Cause.RESUMED_AFTER_STOP, None)
    return _Ending(Outcome.CANCELLED, Cause.CANCELLED, None)


def _ending_after_load(said: _Ending, ran_ns: int | None, couple: Couple) -> _Ending:
    """Return how it ended if the source had sent its whole state and ran again later.

    QEMU had completed the migration; the management resumed the source, because the destination had ended or for
    another reason.
    """
    if couple.loaded is False or ran_ns is None or couple.waiting.ended_at_ns is None:
        return said
    ahead = couple.ended_before(ran_ns)
    if couple.loaded and ahead is not None:
        detail = f"it had loaded the state and ended at least {format_ns(ahead)} before the source ran on"
        return _Ending(Outcome.FAILED, Cause.DESTINATION_ENDED, detail)
    return said if couple.ended_after(ran_ns) else replace(said, warning=UNCLEAR_RESUME)
