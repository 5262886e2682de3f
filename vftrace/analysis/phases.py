# SPDX-License-Identifier: MIT
"""Computes the times of the checkpoints that a migration passed, and the phases between them."""

from vftrace.analysis.devices.downtime import MigrationDevices
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.verdict import Verdict
from vftrace.model.migration import (
    Checkpoint,
    CheckpointTime,
    Downtime,
    Outcome,
    Phase,
    PhaseSpan,
    Role,
)


def checkpoint_times(
    outgoing: OutgoingMigration | None,
    incoming: IncomingMigration | None,
    devices: MigrationDevices,
) -> dict[Checkpoint, int]:
    """Return the checkpoints that were passed. A time before that of an earlier checkpoint is ignored."""
    times: dict[Checkpoint, int] = {}
    if outgoing is not None and outgoing.stop is not None:
        times[Checkpoint.VCPUS_STOPPED] = outgoing.stop.last_exit_ns
        times[Checkpoint.CLOCK_READ] = outgoing.stop.enter_ns
        sweep = outgoing.final_sync()
        if sweep is not None:
            times[Checkpoint.FINAL_SYNC_DONE] = sweep.end_ns
        if outgoing.saved is not None:
            times[Checkpoint.STATE_SAVED] = outgoing.saved.enter_ns
    resumed = outgoing.resumed_at_ns if outgoing else None
    if resumed is not None:
        times[Checkpoint.VCPUS_RUNNING] = resumed
    elif incoming is not None:
        loaded_after = times.get(Checkpoint.STATE_SAVED, times.get(Checkpoint.FINAL_SYNC_DONE, 0))
        if incoming.loaded_at_ns is not None and incoming.loaded_at_ns >= loaded_after:
            times[Checkpoint.DEVICES_LOADED] = incoming.loaded_at_ns
        if incoming.clock_set_at_ns is not None:
            if incoming.started_paused and Checkpoint.DEVICES_LOADED in times:
                times[Checkpoint.HELD] = incoming.clock_asked_at_ns or incoming.clock_set_at_ns
            times[Checkpoint.CLOCK_SET] = incoming.clock_set_at_ns
        if incoming.running_at_ns is not None:
            times[Checkpoint.VCPUS_RUNNING] = incoming.running_at_ns
    times |= devices.checkpoints(times, incoming)
    believed: dict[Checkpoint, int] = {}
    latest = 0
    for name in Checkpoint:
        if name in times and times[name] >= latest:
            latest = believed[name] = times[name]
    return believed


def phases_of(
    outgoing: OutgoingMigration | None,
    incoming: IncomingMigration | None,
    times: dict[Checkpoint, int],
    verdict: Verdict,
) -> tuple[PhaseSpan, ...]:
    """Return the phases of both sides, each in the order in which QEMU passes them."""
    phases: list[PhaseSpan] = []
    if outgoing is not None:
        phases += _source_phases(outgoing, incoming, times, verdict)
    if incoming is not None:
        phases += _destination_phases(outgoing, incoming, times)
    return tuple(phases)


def _chain(role: Role, marks: list[tuple[Phase, int | None]], end: int | None) -> list[PhaseSpan]:
    """Return consecutive phases: each begins at its mark and ends at the next known mark.

    A mark before an earlier one is ignored.
    """
    known: list[tuple[Phase, int]] = []
    for name, at in marks:
        if at is not None and (not known or at >= known[-1][1]):
            known.append((name, at))
    phases = []
    for index, (name, at) in enumerate(known):
        until = known[index + 1][1] if index + 1 < len(known) else end
        if until is None or until >= at:
            phases.append(PhaseSpan(name, role, at, until))
    return phases


def _source_phases(
    outgoing: OutgoingMigration,
    incoming: IncomingMigration | None,
    times: dict[Checkpoint, int],
    verdict: Verdict,
) -> list[PhaseSpan]:
    first = outgoing.dirty_syncs[0].end_ns if outgoing.dirty_syncs else None
    resumed = outgoing.resumed_at_ns
    ran = incoming.running_at_ns if incoming and resumed is None else None
    end = outgoing.process_ended_at_ns or outgoing.logging_off_at_ns
    cleanup = resumed or ran or (outgoing.logging_off_at_ns if not outgoing.stop else None)
    marks: list[tuple[Phase, int | None]] = [
        (Phase.SETUP, outgoing.started_at_ns),
        (Phase.PRECOPY, first),
        (Phase.STOP, times.get(Checkpoint.VCPUS_STOPPED)),
        (Phase.FINAL_SYNC, times.get(Checkpoint.CLOCK_READ)),
        (Phase.DEVICE_SAVE, times.get(Checkpoint.FINAL_SYNC_DONE)),
        (Phase.HANDOVER, times.get(Checkpoint.STATE_SAVED)),
    ]
    postcopy_end = None
    if incoming is not None and incoming.postcopy_first_ns is not None and ran is not None:
        marks.append((Phase.POSTCOPY, ran))
        postcopy_end = incoming.postcopy_done_ns
        marks.append((Phase.CLEANUP, postcopy_end))
    else:
        marks.append((Phase.CLEANUP, cleanup))
    if end is None and verdict.outcome in (Outcome.FAILED, Outcome.CANCELLED):
        end = verdict.ended_at_ns
    return _chain(Role.SOURCE, marks, end)


def _destination_phases(
    outgoing: OutgoingMigration | None, incoming: IncomingMigration, times: dict[Checkpoint, int]
) -> list[PhaseSpan]:
    resumed = outgoing.resumed_at_ns if outgoing else None
    running = incoming.running_at_ns if resumed is None else None
    postcopy = incoming.postcopy_first_ns is not None and running is not None
    began = outgoing.started_at_ns if outgoing else incoming.first_act_ns
    if incoming.ran_before and incoming.postcopy_first_ns is not None:
        # vftrace came during post-copy: what was before was not seen.
        late: list[tuple[Phase, int | None]] = [
            (Phase.POSTCOPY, began),
            (Phase.RUNNING, incoming.postcopy_done_ns),
        ]
        return _chain(Role.DESTINATION, late, incoming.ended_at_ns)
    marks: list[tuple[Phase, int | None]] = [
        (Phase.INCOMING, began),
        (
            Phase.DEVICE_LOAD,
            times.get(Checkpoint.STATE_SAVED) if outgoing else incoming.loaded_at_ns,
        ),
        (Phase.RESUME, times.get(Checkpoint.DEVICES_LOADED) or incoming.clock_set_at_ns),
    ]
    if postcopy:
        marks += [(Phase.POSTCOPY, running), (Phase.RUNNING, incoming.postcopy_done_ns)]
    else:
        marks.append((Phase.RUNNING, running))
    return _chain(Role.DESTINATION, marks, incoming.ended_at_ns)


def downtime_of(times: dict[Checkpoint, int]) -> Downtime:
    """Return the blackout of these checkpoints, by name: CLOCK_BOOTTIME nanoseconds, in their order."""
    checkpoints = []
    before = times.get(Checkpoint.VCPUS_STOPPED)
    for name in Checkpoint:
        at = times.get(name)
        ns = None
        if at is not None and before is not None:
            ns, before = at - before, at
        checkpoints.append(CheckpointTime(name, at, ns))
    started, ended = times.get(Checkpoint.VCPUS_STOPPED), times.get(Checkpoint.VCPUS_RUNNING)
    vcpu_ns = ended - started if started is not None and ended is not None else None
    longest = max((c for c in checkpoints if c.ns), key=lambda c: c.ns or 0, default=None)
    return Downtime(
        vcpu_ns=vcpu_ns,
        set_by=longest.name if longest and vcpu_ns is not None else None,
        checkpoints=tuple(checkpoints),
    )
