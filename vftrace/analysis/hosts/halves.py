# SPDX-License-Identifier: MIT
"""Makes one migration of the halves that two hosts saw."""

from collections import Counter

from msgspec.structs import replace

from vftrace.analysis.calls.blackout import joined
from vftrace.analysis.hosts.causality import Pair
from vftrace.analysis.hosts.devices import (
    join_device_downtimes,
    join_devices,
    join_vfs,
    plug_evidence,
)
from vftrace.analysis.hosts.shift import shifted
from vftrace.analysis.outgoing import STOPPED_FOR_IT_NS
from vftrace.analysis.phases import downtime_of
from vftrace.analysis.vcpus import brownout
from vftrace.model.figures import clock_change
from vftrace.model.migration import (
    Cause,
    Checkpoint,
    Downtime,
    Migration,
    Outcome,
    Phase,
    PhaseSpan,
    Role,
    Strategy,
)
from vftrace.model.report import ClockOffset, MigrationReport


def join_pair(pair: Pair, offset: ClockOffset) -> MigrationReport:
    """Make one migration of two halves, on the source's clock.

    Times of the destination are moved by the middle of the offset.
    """
    destination = shifted(pair.destination.migration, offset.middle)
    source = _stopped_for_it(pair.source.migration, destination)
    times = _join_times(source.downtime.times, destination.downtime.times)
    outcome, ended = _ending(source, destination, times)
    failed, unclear = outcome == Outcome.FAILED, outcome == Outcome.UNKNOWN
    state_bytes = None if destination.postcopy else source.channel.state_bytes
    migration = replace(
        source,
        role=Role.STITCHED,
        peer_pid=destination.pid,
        name=source.name or destination.name,
        outcome=outcome,
        cause=destination.cause if failed else Cause.TRACE_ENDED if unclear else None,
        cause_detail=destination.cause_detail if failed else None,
        strategy=destination.strategy if source.strategy == Strategy.PLAIN else source.strategy,
        strategy_evidence=source.strategy_evidence
        + destination.strategy_evidence
        + plug_evidence(source, destination),
        postcopy=destination.postcopy,
        incomplete=source.incomplete or destination.incomplete,
        missed_runs=_both(source.missed_runs, destination.missed_runs),
        ended_at_ns=None if ended is None else max(ended, source.started_at_ns),
        channel=replace(source.channel, state_bytes=state_bytes),
        phases=_source_phases(source, destination, times)
        + _destination_phases(source, destination, times),
        downtime=replace(
            _downtime(times, offset.uncertainty_ns),
            devices=join_device_downtimes(source, destination),
        ),
        devices=join_devices(source, destination),
        vfs=join_vfs(source, destination),
        calls=joined(source.calls, destination.calls, times, on_source=failed),
        brownout=brownout.joined(source.brownout, destination.brownout),
    )
    return MigrationReport(
        migration, pair.source.host, pair.destination.host, offset.uncertainty_ns, offset
    )


def _both(
    source: tuple[tuple[str, int], ...], destination: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, int], ...]:
    """Return the sums by name."""
    total = Counter(dict(source))
    total.update(dict(destination))
    return tuple(sorted(total.items()))


def _stopped_for_it(source: Migration, destination: Migration) -> Migration:
    """Return the source with a stop shortly before the migration, if the destination ran as soon as it had loaded.

    A management that stops a guest for its migration resumes it at once (libvirt's migration without --live).
    """
    times = destination.downtime.times
    loaded, ran = times.get(Checkpoint.DEVICES_LOADED), times.get(Checkpoint.VCPUS_RUNNING)
    if source.stopped_before is None or loaded is None or ran is None:
        return source
    if ran - loaded > STOPPED_FOR_IT_NS:
        return source
    stopped, read = source.stopped_before
    own = {Checkpoint.VCPUS_STOPPED: stopped, Checkpoint.CLOCK_READ: read}
    if source.rounds:
        last = source.rounds[-1]
        own[Checkpoint.FINAL_SYNC_DONE] = last.at_ns + last.duration_ns
    checkpoints = downtime_of(own | source.downtime.times).checkpoints
    downtime = replace(source.downtime, checkpoints=checkpoints)
    return replace(source, was_paused=False, stopped_at_ns=stopped, downtime=downtime)


def _join_times(
    source: dict[Checkpoint, int], destination: dict[Checkpoint, int]
) -> dict[Checkpoint, int]:
    """Return the checkpoints of both sides, none before the one that precedes it.

    The offset is that of the moment at which the destination ran; earlier it may be slightly different.
    """
    times = destination | source
    latest = 0
    for name in Checkpoint:
        if name in times:
            latest = times[name] = max(times[name], latest)
    return times


def _ending(
    source: Migration, destination: Migration, times: dict[Checkpoint, int]
) -> tuple[Outcome, int | None]:
    """Return outcome and end, by the rules of verdict.py for both sides on one host."""
    loaded = times.get(Checkpoint.DEVICES_LOADED)
    if source.was_paused and loaded is not None and not destination.postcopy:
        # A user may resume it at any time.
        return Outcome.COMPLETED, loaded
    if destination.outcome == Outcome.COMPLETED:
        ran, ended = times.get(Checkpoint.VCPUS_RUNNING, 0), destination.ended_at_ns
        return Outcome.COMPLETED, max(ran, ended) if destination.postcopy and ended else ran
    if destination.outcome == Outcome.FAILED:
        return Outcome.FAILED, destination.ended_at_ns
    if source.outcome == Outcome.COMPLETED and not destination.postcopy:
        return Outcome.COMPLETED, source.ended_at_ns
    return Outcome.UNKNOWN, None


def _downtime(times: dict[Checkpoint, int], uncertainty_ns: int) -> Downtime:
    """Return the blackout of these checkpoints.

    The step that spans both clocks is only as certain as the offset: if it may have been smaller or larger than
    the largest other step, `set_by` is None.
    """
    downtime = downtime_of(times)
    crossing = clock_change(downtime)
    if crossing is None or crossing.ns is None:
        return downtime
    others = max((c.ns or 0 for c in downtime.checkpoints if c is not crossing), default=0)
    if abs(crossing.ns - others) <= uncertainty_ns:
        return replace(downtime, set_by=None)
    return downtime


def _source_phases(
    source: Migration, destination: Migration, times: dict[Checkpoint, int]
) -> tuple[PhaseSpan, ...]:
    ran = times.get(Checkpoint.VCPUS_RUNNING)
    phases = []
    last_end = None
    for phase in source.phases:
        last_end = phase.end_at_ns
        if phase.name == Phase.HANDOVER and ran is not None:
            phases.append(replace(phase, end_at_ns=ran))
        elif phase.name != Phase.CLEANUP:
            phases.append(phase)
    cleanup = ran
    if destination.postcopy and ran is not None:
        done = next((p.end_at_ns for p in destination.phases if p.name == Phase.POSTCOPY), None)
        cleanup = None if done is None else max(ran, done)
        phases.append(PhaseSpan(Phase.POSTCOPY, Role.SOURCE, ran, cleanup))
    # A source that ended before the destination ran has no cleanup phase.
    if cleanup is not None and (last_end is None or last_end >= cleanup):
        phases.append(PhaseSpan(Phase.CLEANUP, Role.SOURCE, cleanup, last_end))
    return tuple(_in_order(phase) for phase in phases)


def _destination_phases(
    source: Migration, destination: Migration, times: dict[Checkpoint, int]
) -> tuple[PhaseSpan, ...]:
    marks = [
        (Phase.INCOMING, source.started_at_ns),
        (Phase.DEVICE_LOAD, times.get(Checkpoint.STATE_SAVED)),
        (Phase.RESUME, times.get(Checkpoint.DEVICES_LOADED, times.get(Checkpoint.CLOCK_SET))),
    ]
    ran = times.get(Checkpoint.VCPUS_RUNNING)
    known = [(name, at) for name, at in marks if at is not None]
    ends = [at for _, at in known[1:]] + [ran]
    phases = [
        PhaseSpan(name, Role.DESTINATION, at, end)
        for (name, at), end in zip(known, ends, strict=True)
    ]
    later = [phase for phase in destination.phases if phase.name in (Phase.POSTCOPY, Phase.RUNNING)]
    # A phase that is moved to another clock, or damaged, may seem to end before it began.
    return tuple(
        _in_order(phase)
        for phase in (
            *phases,
            *(replace(p, start_at_ns=max(p.start_at_ns, ran or 0)) for p in later),
        )
    )


def _in_order(phase: PhaseSpan) -> PhaseSpan:
    end = phase.end_at_ns
    return phase if end is None else replace(phase, end_at_ns=max(phase.start_at_ns, end))
