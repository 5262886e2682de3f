"""Joins the halves of migrations that were seen on two hosts."""

from collections.abc import Sequence
from dataclasses import replace

from vftrace.analysis.hosts.causality import Pair, offset_of, orders_of
from vftrace.analysis.hosts.clocks import with_clock_error, with_error
from vftrace.analysis.hosts.devices import (
    join_device_downtimes,
    join_devices,
    join_vfs,
    plug_evidence,
)
from vftrace.analysis.hosts.failed import join_failed
from vftrace.analysis.hosts.match import match
from vftrace.analysis.hosts.service import with_service
from vftrace.analysis.hosts.shift import shifted
from vftrace.analysis.phases import downtime_of
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
from vftrace.model.report import ClockOffset, HostReport, MigrationReport, PingRecording, Report


def join_hosts(report: Report, clock_error_ns: int | None = None) -> Report:
    """The same report with its migrations joined across hosts, as far as their clocks allow.

    `clock_error_ns` is the assumed wall-clock error for hosts whose kernel reports none; None: such a clock says
    nothing. Where clocks contradict each other, or nothing bounds their difference, both halves stay, each with
    a warning.
    """
    hosts, pings = report.hosts, report.pings
    if clock_error_ns is not None:
        hosts = tuple(with_clock_error(host, clock_error_ns) for host in hosts)
        pings = tuple(replace(p, clock=with_error(p.clock, clock_error_ns)) for p in pings)
    joined = join_failed(with_service(_join_halves(hosts, pings), hosts, pings), hosts)
    # The assumption serves joining only: what is reported of a host's clock is what was recorded.
    recorded = {host.boot_id: host for host in report.hosts}
    return replace(
        report,
        migrations=tuple(
            replace(
                found,
                host=recorded[found.host.boot_id],
                peer=None if found.peer is None else recorded[found.peer.boot_id],
            )
            for found in joined
        ),
    )


def _join_halves(
    hosts: Sequence[HostReport], pings: Sequence[PingRecording]
) -> list[MigrationReport]:
    """Every pair of halves as one migration, and every other migration as it is, in order."""
    pairs, warnings = match(hosts)
    orders = [order for pair in pairs for order in orders_of(pair)]
    joined: list[MigrationReport] = []
    used: set[int] = set()
    for pair in pairs:
        source, destination = pair.source.migration, pair.destination.migration
        found = offset_of(pair, hosts, orders, pings)
        if isinstance(found, str):
            warnings.setdefault(id(source), (found,))
            warnings.setdefault(id(destination), (found,))
        else:
            used |= {id(source), id(destination)}
            joined.append(join_pair(pair, found))
    joined += [
        MigrationReport.of_one_host(host, migration, warnings.get(id(migration), ()))
        for host in hosts
        for migration in host.snapshot.migrations
        if id(migration) not in used
    ]
    place = {id(host): index for index, host in enumerate(hosts)}
    joined.sort(key=lambda j: (place[id(j.host)], j.migration.started_at_ns, j.migration.pid))
    return joined


def join_pair(pair: Pair, offset: ClockOffset) -> MigrationReport:
    """One migration of two halves, on the source's clock.

    Times of the destination are moved by the middle of the offset.
    """
    source = pair.source.migration
    destination = shifted(pair.destination.migration, offset.middle)
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
        ended_at_ns=ended,
        channel=replace(source.channel, state_bytes=state_bytes),
        phases=_source_phases(source, destination, times)
        + _destination_phases(source, destination, times),
        downtime=replace(
            _downtime(times, offset.uncertainty_ns),
            devices=join_device_downtimes(source, destination),
        ),
        devices=join_devices(source, destination),
        vfs=join_vfs(source, destination),
    )
    return MigrationReport(
        migration, pair.source.host, pair.destination.host, offset.uncertainty_ns, offset
    )


def _join_times(
    source: dict[Checkpoint, int], destination: dict[Checkpoint, int]
) -> dict[Checkpoint, int]:
    """The checkpoints of both sides, none before the one that precedes it.

    The offset is that of the moment the destination ran; a little earlier it may be a little different.
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
    """Outcome and end, by the rules that assemble.py has for both sides on one host."""
    if destination.outcome == Outcome.COMPLETED:
        ran, ended = times.get(Checkpoint.VCPUS_RUNNING, 0), destination.ended_at_ns
        return Outcome.COMPLETED, max(ran, ended) if destination.postcopy and ended else ran
    if destination.outcome == Outcome.FAILED:
        return Outcome.FAILED, destination.ended_at_ns
    if source.outcome == Outcome.COMPLETED and not destination.postcopy:
        return Outcome.COMPLETED, source.ended_at_ns
    return Outcome.UNKNOWN, None


def _downtime(times: dict[Checkpoint, int], uncertainty_ns: int) -> Downtime:
    """The blackout of these checkpoints.

    The step that goes from clock to clock is only as sure as the offset: where it could have been smaller or
    larger than the largest other step, `set_by` is None.
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
    # A source that ended before the destination ran has nothing to clean up any more.
    if cleanup is not None and (last_end is None or last_end >= cleanup):
        phases.append(PhaseSpan(Phase.CLEANUP, Role.SOURCE, cleanup, last_end))
    return tuple(phases)


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
    return (*phases, *(replace(p, start_at_ns=max(p.start_at_ns, ran or 0)) for p in later))
