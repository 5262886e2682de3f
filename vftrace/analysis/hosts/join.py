"""Two halves of a migration, seen on two hosts, to one: whose clocks say what, and how surely.

A clock here is CLOCK_BOOTTIME of one boot. Its difference from another's is bounded, never guessed, from
what cannot have happened in another order, and from wall clocks with the kernel's own error bounds. All
bounds together are difference constraints, so the tightest ones are shortest paths (`_closure`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

from vftrace.analysis.hosts.outage import HostSide, account
from vftrace.analysis.hosts.service import OWN, service_gap
from vftrace.analysis.phases import downtime_of
from vftrace.events import PingGap, PingSettings
from vftrace.model.figures import clock_change
from vftrace.model.migration import (
    CHECKPOINTS,
    DeviceDowntime,
    DeviceUse,
    Downtime,
    Evidence,
    Migration,
    Outcome,
    Phase,
    VfPhase,
    VfUse,
)
from vftrace.model.report import ClockOffset, HostReport, MigrationReport, Outage, PingRecording

UNSYNCHRONISED_NS = 16_000_000_000
"""NTP_PHASE_LIMIT (include/linux/timex.h): an error bound that has grown to it bounds nothing any more."""

SLEW_PPM = 500
"""MAXFREQ (include/linux/timex.h): the most that one clock is made faster or slower, parts in a million."""

_UTC = "utc"
_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class _Before:
    """What happened at `first_ns` on one boot's clock came before `then_ns` on another's."""

    first: str
    first_ns: int
    then: str
    then_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class _Half:
    host: HostReport
    migration: Migration


@dataclass(frozen=True, slots=True)
class _Pair:
    source: _Half
    destination: _Half

    @property
    def reference_ns(self) -> int:
        """The moment the offset is wanted for, on the destination's clock: when it ran, else its last act."""
        times = _times(self.destination.migration)
        return times.get("vcpus-running", max(times.values(), default=0))


@dataclass(frozen=True, slots=True)
class _Edge:
    ns: int
    why: str


_Closure = dict[tuple[str, str], _Edge]


class _ContradictionError(Exception):
    """No difference of the clocks fits everything that was seen."""


def stitch(
    boots: Sequence[HostReport],
    pings: Sequence[PingRecording] = (),
    clock_error_ns: int | None = None,
) -> tuple[MigrationReport, ...]:
    """All migrations of these boots, halves of one migration joined where their clocks allow it.

    `clock_error_ns`: how wrong a wall clock may be whose kernel does not know; None: such a clock says nothing.
    Halves belong together by UUID; without one, only if no other half comes into question. Where clocks
    contradict each other, or nothing bounds their difference, both halves stay, each with a warning.
    """
    if clock_error_ns is not None:
        boots = [with_error(boot, clock_error_ns) for boot in boots]
        pings = [replace(p, clock=_bounded(p.clock, clock_error_ns)) for p in pings]
    pairs, warnings = _pairs(boots)
    facts = [fact for pair in pairs for fact in _facts(pair)]
    joined: list[MigrationReport] = []
    used: set[int] = set()
    for pair in pairs:
        found = _offset(pair, boots, facts, pings)
        if isinstance(found, str):
            warnings.setdefault(id(pair.source.migration), found)
            warnings.setdefault(id(pair.destination.migration), found)
            continue
        used |= {id(pair.source.migration), id(pair.destination.migration)}
        joined.append(_join(pair, found))
    for boot in boots:
        for migration in boot.snapshot.migrations:
            if id(migration) not in used:
                warning = warnings.get(id(migration))
                joined.append(_alone(boot, migration, warning))
    joined.sort(key=lambda j: (boots.index(j.host), j.migration.started_at_ns, j.migration.pid))
    return _with_service(joined, boots, pings)


_Samples = tuple[tuple[int, int, int], ...]


def with_error(boot: HostReport, error_ns: int) -> HostReport:
    """The boot, where its wall clock has no bound of its own with this one, ns."""
    clock = _bounded(boot.snapshot.clock, error_ns)
    return replace(boot, snapshot=replace(boot.snapshot, clock=clock))


def _bounded(clock: _Samples, error_ns: int) -> _Samples:
    """Clock samples, those with no bound of their own with this one."""
    return tuple(
        (at, offset, error if error < UNSYNCHRONISED_NS else error_ns)
        for at, offset, error in clock
    )


def _alone(boot: HostReport, migration: Migration, warning: str | None) -> MigrationReport:
    return MigrationReport.of_one_host(boot, migration, (warning,) if warning else ())


# -- which halves belong together ---------------------------------------------------------------


def _pairs(boots: Sequence[HostReport]) -> tuple[list[_Pair], dict[int, str]]:
    """The pairs, and by id of a migration why it has none."""
    halves = [_Half(boot, m) for boot in boots for m in boot.snapshot.migrations]
    sources = [half for half in halves if _is_source(half.migration)]
    destinations = [half for half in halves if half.migration.role == "destination"]
    warnings: dict[int, str] = {}
    possible: list[_Pair] = []
    for source in sources:
        for destination in destinations:
            pair = _Pair(source, destination)
            if source.host is destination.host or not _same_vm(pair):
                continue
            found = _offset(pair, boots, _facts(pair), ())
            if isinstance(found, str):
                warnings[id(source.migration)] = warnings[id(destination.migration)] = found
            else:
                possible.append(pair)
    chosen = [pair for pair in possible if _only_one(pair, possible)]
    for pair in possible:
        if pair in chosen:
            warnings.pop(id(pair.source.migration), None)
            warnings.pop(id(pair.destination.migration), None)
        else:
            said = "more than one half on other hosts may belong to this one: not stitched"
            warnings.setdefault(id(pair.source.migration), said)
            warnings.setdefault(id(pair.destination.migration), said)
    return chosen, warnings


def _is_source(m: Migration) -> bool:
    """Whether this is a source that handed over: stopped, and never ran again."""
    handed_over = m.stopped_at_ns is not None and "vcpus-running" not in _times(m)
    return m.role == "source" and handed_over and m.channel.kind != "file"


def _same_vm(pair: _Pair) -> bool:
    return pair.source.migration.uuid == pair.destination.migration.uuid


def _only_one(pair: _Pair, possible: list[_Pair]) -> bool:
    """Whether no other pair competes; with a UUID, attempts between the same hosts keep their order."""
    rivals = [
        p
        for p in possible
        if p.source.migration is pair.source.migration
        or p.destination.migration is pair.destination.migration
    ]
    if len(rivals) == 1:
        return True
    if pair.source.migration.uuid is None:
        return False
    group = [
        p
        for p in possible
        if p.source.host is pair.source.host
        and p.destination.host is pair.destination.host
        and p.source.migration.uuid == pair.source.migration.uuid
    ]
    if any(rival not in group for rival in rivals):
        return False
    sources = _in_order(p.source.migration for p in group)
    destinations = _in_order(p.destination.migration for p in group)
    return len(sources) == len(destinations) and sources.index(
        id(pair.source.migration)
    ) == destinations.index(id(pair.destination.migration))


def _in_order(migrations: Iterable[Migration]) -> list[int]:
    times = {id(m): m.started_at_ns for m in migrations}
    return sorted(times, key=lambda key: times[key])


# -- what is known of the clocks ----------------------------------------------------------------


def _facts(pair: _Pair) -> list[_Before]:
    """What cannot have happened in another order, whatever the clocks say."""
    source, destination = pair.source.migration, pair.destination.migration
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    before, after = _times(source), _times(destination)
    facts = []
    ran = after.get("vcpus-running", after.get("clock-set"))
    if ran is not None:
        stopped = before["vcpus-stopped"]
        facts.append(_Before(here, stopped, there, ran, "it ran only after the source stopped"))
    loaded = after.get("devices-loaded", ran)
    saved = before.get("state-saved")
    if loaded is not None and saved is not None:
        # In postcopy too: the state goes in one package (migration/migration.c, postcopy_start).
        facts.append(_Before(here, saved, there, loaded, "state is read before it is loaded"))
    ready = pair.destination.host.ready_at_ns.get(destination.pid)
    if ready is not None and source.channel.kind in ("tcp", "unix"):
        # QEMU listens once the machine is made, and logs only once it is connected
        # (softmmu/vl.c qmp_x_exit_preconfig; migration/migration.c migrate_fd_connect).
        began = source.started_at_ns
        facts.append(_Before(there, ready, here, began, "the source connects to who listens"))
    done = next((p.end_at_ns for p in destination.phases if p.name == "postcopy"), None)
    ended = source.ended_at_ns
    if done is not None and ended is not None and source.outcome == "completed":
        # Postcopy has a return path; the source waits for its end (await_return_path_close_on_source).
        facts.append(_Before(there, done, here, ended, "the source waits for the last page"))
    return facts


def _offset(
    pair: _Pair, boots: Sequence[HostReport], facts: list[_Before], pings: Sequence[PingRecording]
) -> ClockOffset | str:
    """The difference of a pair's clocks, or in one line why there is none."""
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    try:
        closure = _closure(_edges(pair, boots, facts, pings))
        seen = _seen_by_pings(pair, closure, pings)
        if seen:
            closure = _closure(_edges(pair, boots, facts + seen, pings))
    except _ContradictionError:
        return (
            "clocks contradict each other: no offset fits the order of what was seen"
            " and the wall clocks' error bounds; both halves are kept apart"
        )
    high, low = closure.get((here, there)), closure.get((there, here))
    if high is None or low is None:
        return "nothing bounds the difference of the two hosts' clocks; both halves are kept apart"
    return ClockOffset(low=-low.ns, high=high.ns, low_why=low.why, high_why=high.why)


def _edges(
    pair: _Pair, boots: Sequence[HostReport], facts: list[_Before], pings: Sequence[PingRecording]
) -> _Closure:
    """`edges[x, y]` is the most that x's clock shows beyond y's, at the pair's reference moment."""
    edges: _Closure = {}
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    moments = {here: _times(pair.source.migration)["vcpus-stopped"], there: pair.reference_ns}
    for fact in facts:
        away = [abs(at - moments[boot]) for boot, at in _places(fact) if boot in moments]
        if away:
            most = fact.then_ns - fact.first_ns + 2 * _slew(max(away))
            _tighten(edges, fact.then, fact.first, _Edge(most, fact.why))
    # Of several pings and nothing else of a boot only the pings know its clock.
    samples = {boot.boot_id: boot.snapshot.clock for boot in boots if boot.snapshot.clock}
    for ping in pings:
        samples.setdefault(ping.boot_id, ping.clock)
    for boot_id, clock in samples.items():
        _wall_clock(edges, boot_id, clock, moments.get(boot_id))
    return edges


def _places(fact: _Before) -> tuple[tuple[str, int], tuple[str, int]]:
    return (fact.first, fact.first_ns), (fact.then, fact.then_ns)


def _wall_clock(
    edges: _Closure, boot_id: str, clock: tuple[tuple[int, int, int], ...], moment_ns: int | None
) -> None:
    """Bounds from the sample nearest to the moment (the last one where no moment is known)."""
    known = [sample for sample in clock if sample[2] < UNSYNCHRONISED_NS]
    if not known:
        return
    moment = known[-1][0] if moment_ns is None else moment_ns
    at, offset, error = min(known, key=lambda sample: abs(sample[0] - moment))
    error += _slew(abs(at - moment))
    why = "the wall clocks' error bounds"
    _tighten(edges, boot_id, _UTC, _Edge(-offset + error, why))
    _tighten(edges, _UTC, boot_id, _Edge(offset + error, why))


def _slew(ns: int) -> int:
    return -(-ns * SLEW_PPM // _MILLION)


def _tighten(edges: _Closure, x: str, y: str, edge: _Edge) -> None:
    before = edges.get((x, y))
    if before is None or edge.ns < before.ns:
        edges[x, y] = edge


def _closure(edges: _Closure) -> _Closure:
    """The tightest bound of every two clocks (Floyd and Warshall). Raises _ContradictionError if there is none."""
    tight = dict(edges)
    nodes = sorted({node for edge in edges for node in edge})
    for via in nodes:
        for x in nodes:
            for y in nodes:
                first, then = tight.get((x, via)), tight.get((via, y))
                if first is not None and then is not None:
                    why = first.why if first.why == then.why else f"{first.why}; {then.why}"
                    _tighten(tight, x, y, _Edge(first.ns + then.ns, why))
    if any(tight[node, node].ns < 0 for node in nodes if (node, node) in tight):
        raise _ContradictionError
    return tight


def _seen_by_pings(pair: _Pair, closure: _Closure, pings: Sequence[PingRecording]) -> list[_Before]:
    """What the guest's answers say: sent after the stop, only the destination can have answered; answered
    before the destination ran, only the source can have."""
    here, there = pair.source.host.boot_id, pair.destination.host.boot_id
    stopped = _times(pair.source.migration)["vcpus-stopped"]
    ran = _times(pair.destination.migration).get("vcpus-running")
    facts = []
    for ping in pings:
        for gap in ping.events:
            if not isinstance(gap, PingGap) or gap.kind == OWN or ran is None:
                continue
            sent, reply = gap.after_sent_ns, gap.after_reply_ns
            shown = _earliest(closure, ping.boot_id, sent, here)
            if reply is not None and shown is not None and shown > stopped:
                why = "the guest answered a ping"
                facts.append(_Before(there, ran, ping.boot_id, reply, why))
            sent, reply = gap.before_sent_ns, gap.before_reply_ns
            shown = _latest(closure, ping.boot_id, reply, there)
            if sent is not None and shown is not None and shown < ran:
                why = "the guest still answered a ping"
                facts.append(_Before(ping.boot_id, sent, here, stopped, why))
    # A ping on the source's own clock says nothing of the source, and so for the destination's.
    return [fact for fact in facts if fact.first != fact.then]


def _earliest(closure: _Closure, clock: str, at_ns: int | None, target: str) -> int | None:
    """The earliest that `target`'s clock may have shown when `clock` showed `at_ns`."""
    if at_ns is None or clock == target:
        return at_ns
    edge = closure.get((clock, target))
    return None if edge is None else at_ns - edge.ns


def _latest(closure: _Closure, clock: str, at_ns: int | None, target: str) -> int | None:
    if at_ns is None or clock == target:
        return at_ns
    edge = closure.get((target, clock))
    return None if edge is None else at_ns + edge.ns


# -- one migration of two halves ----------------------------------------------------------------


def _times(m: Migration) -> dict[str, int]:
    return {c.name: c.at_ns for c in m.downtime.checkpoints if c.at_ns is not None}


def _join(pair: _Pair, offset: ClockOffset) -> MigrationReport:
    source, destination = pair.source.migration, pair.destination.migration
    shift = offset.middle
    times = _times(source)
    for name, at in _times(destination).items():
        times.setdefault(name, at + shift)
    # The offset is that of the moment the destination ran; a little earlier it may be a little different.
    latest = 0
    for name in CHECKPOINTS:
        if name in times:
            latest = times[name] = max(times[name], latest)
    outcome, ended = _ending(source, destination, times, shift)
    failed = outcome == "failed"
    unclear = outcome == "unknown"
    migration = replace(
        source,
        role="stitched",
        peer_pid=destination.pid,
        name=source.name or destination.name,
        outcome=outcome,
        cause=destination.cause if failed else "trace-ended" if unclear else None,
        cause_detail=destination.cause_detail if failed else None,
        strategy=destination.strategy if source.strategy == "plain" else source.strategy,
        postcopy=destination.postcopy,
        incomplete=source.incomplete or destination.incomplete,
        strategy_evidence=source.strategy_evidence
        + tuple(Evidence(e.event, e.at_ns + shift) for e in destination.strategy_evidence)
        + _plugged(source, destination, shift),
        ended_at_ns=ended,
        channel=replace(
            source.channel,
            state_bytes=None if destination.postcopy else source.channel.state_bytes,
        ),
        phases=_source_phases(source, destination, times, shift)
        + _destination_phases(source, destination, times, shift),
        downtime=replace(
            _downtime(times, offset.uncertainty_ns),
            devices=tuple(
                _until_ready(
                    _device_downtime(device, _successor(device, source, destination), shift), vf
                )
                for device, vf in zip_longest(
                    source.downtime.devices, _came(source, destination, shift)
                )
                if device is not None
            ),
        ),
        devices=_devices(source, destination, shift),
        vfs=_vfs(source, destination, shift),
    )
    return MigrationReport(
        migration, pair.source.host, pair.destination.host, offset.uncertainty_ns, offset
    )


def _ending(
    source: Migration, destination: Migration, times: dict[str, int], shift: int
) -> tuple[Outcome, int | None]:
    """As build.py has it where both sides are on one host."""
    if destination.outcome == "completed":
        ended = destination.ended_at_ns
        ran = times.get("vcpus-running", 0)
        return "completed", max(ran, ended + shift) if destination.postcopy and ended else ran
    if destination.outcome == "failed":
        gone = destination.ended_at_ns
        return "failed", None if gone is None else gone + shift
    if source.outcome == "completed" and not destination.postcopy:
        return "completed", source.ended_at_ns
    return "unknown", None


def _downtime(times: dict[str, int], uncertainty_ns: int) -> Downtime:
    """The step that goes from clock to clock is only as sure as the offset: where it could have been
    smaller or larger than the largest other, nothing is said to have set the downtime."""
    downtime = downtime_of(times)
    crossing = clock_change(downtime)
    if crossing is None or crossing.ns is None:
        return downtime
    others = max((c.ns or 0 for c in downtime.checkpoints if c is not crossing), default=0)
    if abs(crossing.ns - others) <= uncertainty_ns:
        return replace(downtime, set_by=None)
    return downtime


def _source_phases(
    source: Migration, destination: Migration, times: dict[str, int], shift: int
) -> tuple[Phase, ...]:
    ran = times.get("vcpus-running")
    phases = []
    last_end = None
    for phase in source.phases:
        last_end = phase.end_at_ns
        if phase.name == "handover" and ran is not None:
            phases.append(replace(phase, end_at_ns=ran))
        elif phase.name != "cleanup":
            phases.append(phase)
    cleanup = ran
    if destination.postcopy and ran is not None:
        done = next((p.end_at_ns for p in destination.phases if p.name == "postcopy"), None)
        cleanup = None if done is None else max(ran, done + shift)
        phases.append(Phase("postcopy", "source", ran, cleanup))
    # A source that ended before the destination ran has nothing to clean up any more.
    if cleanup is not None and (last_end is None or last_end >= cleanup):
        phases.append(Phase("cleanup", "source", cleanup, last_end))
    return tuple(phases)


def _destination_phases(
    source: Migration, destination: Migration, times: dict[str, int], shift: int
) -> tuple[Phase, ...]:
    marks = [
        ("incoming", source.started_at_ns),
        ("device-load", times.get("state-saved")),
        ("resume", times.get("devices-loaded", times.get("clock-set"))),
    ]
    ran = times.get("vcpus-running")
    known = [(name, at) for name, at in marks if at is not None]
    ends = [at for _, at in known[1:]] + [ran]
    phases = [
        Phase(name, "destination", at, end) for (name, at), end in zip(known, ends, strict=True)
    ]
    for phase in destination.phases:
        if phase.name in ("postcopy", "running"):
            end = None if phase.end_at_ns is None else phase.end_at_ns + shift
            start = max(phase.start_at_ns + shift, ran or 0)
            phases.append(replace(phase, start_at_ns=start, end_at_ns=end))
    return tuple(phases)


def _plugged(source: Migration, destination: Migration, shift: int) -> tuple[Evidence, ...]:
    """Where the source's VF was closed: when the destination opened its own, which its half alone could not tell."""
    if source.strategy not in ("unplug", "late-unplug", "failover"):
        return ()
    return tuple(
        Evidence(f"destination opens {vf.address}", vf.phases[0].start_at_ns)
        for vf in _came(source, destination, shift)
    )


def _came(source: Migration, destination: Migration, shift: int) -> list[VfUse]:
    """The functions that the destination opened since the migration began."""
    return [
        vf
        for vf in _vfs(source, destination, shift)
        if vf.role == "destination" and _begins(vf, "probing")
    ]


def _vfs(source: Migration, destination: Migration, shift: int) -> tuple[VfUse, ...]:
    """Those of both sides; one that is absent on the source is so until the destination's was opened."""
    there = tuple(
        replace(
            vf,
            phases=tuple(_shifted(phase, shift) for phase in vf.phases),
            mapping_at_ns=None if vf.mapping_at_ns is None else vf.mapping_at_ns + shift,
        )
        for vf in destination.vfs
    )
    there = tuple(_since(vf, source.started_at_ns) for vf in there)
    opened = [vf.phases[0].start_at_ns for vf in there if _begins(vf, "probing")]
    here = []
    for vf in source.vfs:
        last = vf.phases[-1] if vf.phases else None
        if last is not None and last.name == "absent" and last.end_at_ns is None and opened:
            back = max(last.start_at_ns, opened.pop(0))
            vf = replace(vf, phases=(*vf.phases[:-1], replace(last, end_at_ns=back)))
        here.append(vf)
    return (*here, *there)


def _since(vf: VfUse, started_ns: int) -> VfUse:
    """Without the wait of a function that the destination had before the migration began."""
    early = _begins(vf, "probing") and vf.phases[0].start_at_ns < started_ns
    return replace(vf, phases=vf.phases[1:], mapping_at_ns=None) if early else vf


def _begins(vf: VfUse, phase: str) -> bool:
    return bool(vf.phases) and vf.phases[0].name == phase


def _shifted(phase: VfPhase, shift: int) -> VfPhase:
    end = None if phase.end_at_ns is None else phase.end_at_ns + shift
    return replace(phase, start_at_ns=phase.start_at_ns + shift, end_at_ns=end)


# -- devices ------------------------------------------------------------------------------------


def _devices(source: Migration, destination: Migration, shift: int) -> tuple[DeviceUse, ...]:
    """Those of both sides; each knows its counterpart's address."""
    here = [
        replace(use, peer_address=other.address if other else use.peer_address)
        for use in source.devices
        for other in [_successor(use, source, destination)]
    ]
    there = [
        replace(
            use,
            peer_address=next((h.address for h in here if h.peer_address == use.address), None),
            states=tuple(replace(state, at_ns=state.at_ns + shift) for state in use.states),
        )
        for use in destination.devices
    ]
    return (*here, *there)


def _successor(
    device: DeviceUse | DeviceDowntime, source: Migration, destination: Migration
) -> DeviceUse | None:
    """The destination's device of the same id, else the only one of each side."""
    same = [use for use in destination.devices if use.id is not None and use.id == device.id]
    if same:
        return same[0]
    alone = len(source.devices) == len(destination.devices) == 1
    return destination.devices[0] if alone else None


def _device_downtime(
    device: DeviceDowntime, successor: DeviceUse | None, shift: int
) -> DeviceDowntime:
    """Until the successor runs with the state it was given: RUNNING after RESUMING."""
    if device.ns is not None or device.from_ns is None or successor is None:
        return device
    resuming = [state.at_ns for state in successor.states if state.state == "RESUMING"]
    ran = [
        state.at_ns
        for state in successor.states
        if resuming and state.state == "RUNNING" and state.at_ns >= resuming[-1]
    ]
    return replace(device, ns=max(0, ran[0] + shift - device.from_ns)) if ran else device


def _until_ready(device: DeviceDowntime, vf: VfUse | None) -> DeviceDowntime:
    """Of a function that was unplugged: until that in its place was ready, or where no mailbox tells, opened."""
    if device.ns is not None or device.from_ns is None or vf is None:
        return device
    ready = next((p.start_at_ns for p in vf.phases if p.name == "ready"), vf.phases[0].start_at_ns)
    return replace(device, ns=max(0, ready - device.from_ns))


# -- what the service lost ----------------------------------------------------------------------


def _with_service(
    joined: list[MigrationReport], boots: Sequence[HostReport], pings: Sequence[PingRecording]
) -> tuple[MigrationReport, ...]:
    """Each migration with the gap of a ping that its blackout touches. A ping names no VM: where it would
    fit several, the one its target is named after has it, or none."""
    touched: dict[int, list[tuple[int, int]]] = {}
    for number, ping in enumerate(pings):
        for index, found in enumerate(joined):
            span = _span_for(found, ping, boots)
            gap = None if span is None else service_gap(ping.events, *span)
            if gap is not None:
                touched.setdefault(number, []).append((index, gap.ns))
    service: dict[int, int] = {}
    heard: dict[int, list[PingRecording]] = {}
    warned: set[int] = set()
    for number, hits in touched.items():
        targets = {e.target for e in pings[number].events if isinstance(e, PingSettings)}
        named = [hit for hit in hits if joined[hit[0]].migration.name in targets]
        chosen = named or hits
        if len(chosen) == 1 or not _overlap([joined[index].migration for index, _ in chosen]):
            for index, ns in chosen:
                service[index] = max(ns, service.get(index, 0))
                heard.setdefault(index, []).append(pings[number])
        else:
            warned |= {index for index, _ in chosen}
    said = "a ping was running, and nothing says which of the VMs that moved then it was for"
    return tuple(
        replace(
            found,
            service_ns=service.get(index),
            warnings=found.warnings + ((said,) if index in warned else ()),
            outage=_longest_gap(found, heard.get(index, ()), boots),
        )
        for index, found in enumerate(joined)
    )


def _longest_gap(
    found: MigrationReport, pings: Sequence[PingRecording], boots: Sequence[HostReport]
) -> Outage | None:
    """The longest time without answers around a migration, put where it belongs."""
    m, shift = found.migration, found.offset.middle if found.offset is not None else 0
    if found.peer is None:
        return None
    here, there = found.host.snapshot, found.peer.snapshot
    source = HostSide(m.pid, {(v.pf, v.vf): v for v in here.vfs}, here.network, here.stalls, 0)
    destination = HostSide(
        m.peer_pid, {(v.pf, v.vf): v for v in there.vfs}, there.network, there.stalls, shift
    )
    accounts = []
    for ping in pings:
        offset = _ping_offset(found, ping, boots)
        if offset is not None:
            unsure = max(offset.uncertainty_ns, found.uncertainty_ns or 0)
            accounts.append(account(m, source, destination, ping.events, offset.middle, unsure))
    known = [each for each in accounts if each is not None]
    return max(known, key=lambda each: each.ns, default=None)


def _overlap(migrations: list[Migration]) -> bool:
    spans = sorted(span for m in migrations if (span := _blackout(m)) is not None)
    return any(then[0] < first[1] for first, then in pairwise(spans))


def _blackout(m: Migration) -> tuple[int, int] | None:
    times = _times(m)
    if m.stopped_at_ns is None or "vcpus-running" not in times:
        return None
    return m.stopped_at_ns, max(times["vcpus-running"], m.stopped_at_ns + 1)


def _span_for(
    found: MigrationReport, ping: PingRecording, boots: Sequence[HostReport]
) -> tuple[int, int] | None:
    """The blackout on the ping's clock, widened by what is not known of the clocks."""
    span = _blackout(found.migration)
    offset = _ping_offset(found, ping, boots)
    if span is None or offset is None:
        return None
    return span[0] - offset.high, span[1] - offset.low


def _ping_offset(
    found: MigrationReport, ping: PingRecording, boots: Sequence[HostReport]
) -> ClockOffset | None:
    """How much more the clock of the migration's times shows than the ping's. None where nothing bounds it."""
    if ping.boot_id == found.host.boot_id:
        return ClockOffset(0, 0, "one clock", "one clock")
    if found.peer is not None and found.offset and ping.boot_id == found.peer.boot_id:
        return found.offset
    traced = [b.snapshot.clock for b in boots if b.boot_id == ping.boot_id]
    clock = next((samples for samples in traced if samples), ping.clock)
    edges: _Closure = {}
    moment = found.migration.stopped_at_ns
    _wall_clock(edges, found.host.boot_id, found.host.snapshot.clock, moment)
    _wall_clock(edges, ping.boot_id, clock, None)
    closure = _closure(edges)
    high = closure.get((found.host.boot_id, ping.boot_id))
    low = closure.get((ping.boot_id, found.host.boot_id))
    if high is None or low is None:
        return None
    return ClockOffset(-low.ns, high.ns, low.why, high.why)
