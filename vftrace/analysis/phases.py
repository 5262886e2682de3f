"""Times of the checkpoints that a migration passed, and the phases between them."""

from vftrace.analysis.devices.downtime import Passthrough
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.verdict import Verdict
from vftrace.model.migration import CHECKPOINTS, Checkpoint, Downtime, Phase


def checkpoint_times(
    outgoing: OutgoingMigration | None, incoming: IncomingMigration | None, devices: Passthrough
) -> dict[str, int]:
    """The checkpoints that were passed. A time before that of an earlier one is not believed."""
    times: dict[str, int] = {}
    if outgoing is not None and outgoing.stop is not None:
        times["vcpus-stopped"] = outgoing.stop.last_exit_ns
        times["clock-read"] = outgoing.stop.enter_ns
        sweep = outgoing.final_sync()
        if sweep is not None:
            times["final-sync-done"] = sweep.end_ns
        if outgoing.saved is not None:
            times["state-saved"] = outgoing.saved.enter_ns
    resumed = outgoing.resumed_at_ns if outgoing else None
    if resumed is not None:
        times["vcpus-running"] = resumed
    elif incoming is not None:
        loaded_after = times.get("state-saved", times.get("final-sync-done", 0))
        if incoming.loaded_at_ns is not None and incoming.loaded_at_ns >= loaded_after:
            times["devices-loaded"] = incoming.loaded_at_ns
        if incoming.clock_set_at_ns is not None:
            if incoming.started_paused and "devices-loaded" in times:
                times["held"] = incoming.clock_asked_at_ns or incoming.clock_set_at_ns
            times["clock-set"] = incoming.clock_set_at_ns
        if incoming.running_at_ns is not None:
            times["vcpus-running"] = incoming.running_at_ns
    times |= devices.checkpoints(times, incoming)
    believed: dict[str, int] = {}
    latest = 0
    for name in CHECKPOINTS:
        if name in times and times[name] >= latest:
            latest = believed[name] = times[name]
    return believed


def phases_of(
    outgoing: OutgoingMigration | None,
    incoming: IncomingMigration | None,
    times: dict[str, int],
    verdict: Verdict,
) -> tuple[Phase, ...]:
    """The phases of both sides, each in the order in which QEMU passes them."""
    phases: list[Phase] = []
    if outgoing is not None:
        phases += _source_phases(outgoing, incoming, times, verdict)
    if incoming is not None:
        phases += _destination_phases(outgoing, incoming, times)
    return tuple(phases)


def _chain(role: str, marks: list[tuple[str, int | None]], end: int | None) -> list[Phase]:
    """Phases that follow each other: each begins at its mark and ends at the next one that is known.

    A mark before an earlier one is not believed.
    """
    known: list[tuple[str, int]] = []
    for name, at in marks:
        if at is not None and (not known or at >= known[-1][1]):
            known.append((name, at))
    phases = []
    for index, (name, at) in enumerate(known):
        until = known[index + 1][1] if index + 1 < len(known) else end
        if until is None or until >= at:
            phases.append(Phase(name, role, at, until))
    return phases


def _source_phases(
    outgoing: OutgoingMigration,
    incoming: IncomingMigration | None,
    times: dict[str, int],
    verdict: Verdict,
) -> list[Phase]:
    first = outgoing.dirty_syncs[0].end_ns if outgoing.dirty_syncs else None
    resumed = outgoing.resumed_at_ns
    ran = incoming.running_at_ns if incoming and resumed is None else None
    end = outgoing.process_ended_at_ns or outgoing.logging_off_at_ns
    cleanup = resumed or ran or (outgoing.logging_off_at_ns if not outgoing.stop else None)
    marks: list[tuple[str, int | None]] = [
        ("setup", outgoing.started_at_ns),
        ("precopy", first),
        ("stop", times.get("vcpus-stopped")),
        ("final-sync", times.get("clock-read")),
        ("device-save", times.get("final-sync-done")),
        ("handover", times.get("state-saved")),
    ]
    postcopy_end = None
    if incoming is not None and incoming.postcopy_first_ns is not None and ran is not None:
        marks.append(("postcopy", ran))
        postcopy_end = incoming.postcopy_done_ns
        marks.append(("cleanup", postcopy_end))
    else:
        marks.append(("cleanup", cleanup))
    if end is None and verdict.outcome in ("failed", "cancelled"):
        end = verdict.ended_at_ns
    return _chain("source", marks, end)


def _destination_phases(
    outgoing: OutgoingMigration | None, incoming: IncomingMigration, times: dict[str, int]
) -> list[Phase]:
    resumed = outgoing.resumed_at_ns if outgoing else None
    running = incoming.running_at_ns if resumed is None else None
    postcopy = incoming.postcopy_first_ns is not None and running is not None
    began = outgoing.started_at_ns if outgoing else incoming.first_act_ns
    marks: list[tuple[str, int | None]] = [
        ("incoming", began),
        ("device-load", times.get("state-saved") if outgoing else incoming.loaded_at_ns),
        ("resume", times.get("devices-loaded") or incoming.clock_set_at_ns),
    ]
    if postcopy:
        marks += [("postcopy", running), ("running", incoming.postcopy_done_ns)]
    else:
        marks.append(("running", running))
    return _chain("destination", marks, incoming.ended_at_ns)


def downtime_of(times: dict[str, int]) -> Downtime:
    """The blackout of these checkpoints, by name: CLOCK_BOOTTIME nanoseconds, in CHECKPOINTS' order."""
    checkpoints = []
    before = times.get("vcpus-stopped")
    for name in CHECKPOINTS:
        at = times.get(name)
        ns = None
        if at is not None and before is not None:
            ns, before = at - before, at
        checkpoints.append(Checkpoint(name, at, ns))
    started, ended = times.get("vcpus-stopped"), times.get("vcpus-running")
    vcpu_ns = ended - started if started is not None and ended is not None else None
    longest = max((c for c in checkpoints if c.ns), key=lambda c: c.ns or 0, default=None)
    return Downtime(
        vcpu_ns=vcpu_ns,
        set_by=longest.name if longest and vcpu_ns is not None else None,
        checkpoints=tuple(checkpoints),
    )
