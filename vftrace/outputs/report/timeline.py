# SPDX-License-Identifier: MIT
"""Makes a timeline of a migration, lanes of intervals and counters, for the drawn and the exported timelines."""

from collections.abc import Iterator

import msgspec

from vftrace.model import figures
from vftrace.model.brownout import STATES, VcpuSpan
from vftrace.model.calls import CallSpan
from vftrace.model.migration import Checkpoint, DeviceUse, Migration, Phase, Role, VfUse
from vftrace.model.report import MigrationReport


class Slice(msgspec.Struct, frozen=True):
    """An interval; times in ns on the clock of the report."""

    name: str
    start_ns: int
    end_ns: int


class Lane(msgspec.Struct, frozen=True):
    """Intervals of one kind in order: `source`, `destination`, `vcpus`, `blackout`, `gap`, `rounds`, `device`, `vf`,
    `vcpu`: what one vCPU did most, `calls` of one thread in the blackout"""

    kind: str
    title: str
    slices: tuple[Slice, ...]


class Counter(msgspec.Struct, frozen=True):
    """Values by time. `unit` is `bytes` for totals so far, or `bytes/s` and `%` for values that hold until the next."""

    title: str
    unit: str
    values: tuple[tuple[int, float], ...]


class Timeline(msgspec.Struct, frozen=True):
    """One migration; `start_ns` to `end_ns` covers all lanes and counters."""

    title: str
    start_ns: int
    end_ns: int
    lanes: tuple[Lane, ...]
    counters: tuple[Counter, ...]


def timeline_of(found: MigrationReport) -> Timeline:
    """Return the timeline of a migration, on the clock of its host.

    The destination's `running` and intervals without an end are drawn to the end of everything else.
    """
    m = found.migration
    start, end = m.started_at_ns, _end(found)
    spans = found.outage.spans if found.outage is not None else ()
    lanes = [
        Lane("vcpus", "vCPUs", tuple(_vcpus(m, start, end))),
        *(
            Lane(role, f"{role} phases", tuple(_phases(m, role, end)))
            for role in (Role.SOURCE, Role.DESTINATION)
        ),
        Lane("blackout", "blackout", tuple(_blackout(m))),
        Lane("gap", "no answers", tuple(Slice(s.name, s.start_at_ns, s.end_at_ns) for s in spans)),
        Lane("rounds", "rounds", tuple(_rounds(m))),
        *(Lane("device", _device(d), tuple(_states(d, start, end))) for d in m.devices),
        *(Lane("vf", _vf_title(v), tuple(_vf(v, end))) for v in m.vfs),
        *_each_vcpu(m),
        *_threads(m),
    ]
    drawn = tuple(lane for lane in lanes if lane.slices)
    starts = [start, *(s.start_ns for lane in drawn for s in lane.slices)]
    name = figures.title(m.name, m.uuid, m.pid)
    return Timeline(name, min(starts), end, drawn, tuple(_counters(m, end)))


def _end(found: MigrationReport) -> int:
    m = found.migration
    ends = [m.started_at_ns, m.ended_at_ns, *m.downtime.times.values()]
    ends += [p.end_at_ns for p in m.phases if p.name != Phase.RUNNING]
    ends += [p.start_at_ns for p in m.phases]
    ends += [r.at_ns + r.duration_ns for r in m.rounds]
    ends += [s.at_ns for d in m.devices for s in d.states]
    ends += [at for v in m.vfs for p in v.phases for at in (p.start_at_ns, p.end_at_ns)]
    ends += [span.end_at_ns for span in (found.outage.spans if found.outage is not None else ())]
    return max(end for end in ends if end is not None)


def _vcpus(m: Migration, start: int, end: int) -> Iterator[Slice]:
    times = m.downtime.times
    stopped, running = times.get(Checkpoint.VCPUS_STOPPED), times.get(Checkpoint.VCPUS_RUNNING)
    if m.role == Role.DESTINATION:
        # The time before is on the other host.
        if running is not None:
            yield Slice("running", running, end)
        return
    if m.was_paused:
        yield Slice("stopped", start, end)
        return
    yield Slice("running", start, end if stopped is None else stopped)
    if stopped is not None:
        yield Slice("stopped", stopped, end if running is None else running)
    if running is not None:
        yield Slice("running", running, end)


def _phases(m: Migration, role: Role, end: int) -> Iterator[Slice]:
    for phase in m.phases:
        if phase.role == role:
            until = end if phase.end_at_ns is None else min(end, phase.end_at_ns)
            yield Slice(phase.name, phase.start_at_ns, max(phase.start_at_ns, until))


def _blackout(m: Migration) -> Iterator[Slice]:
    for checkpoint in m.downtime.checkpoints:
        if checkpoint.at_ns is not None and checkpoint.ns:
            yield Slice(checkpoint.name, checkpoint.at_ns - checkpoint.ns, checkpoint.at_ns)


def _rounds(m: Migration) -> Iterator[Slice]:
    for number, sweep in enumerate(m.rounds, start=1):
        yield Slice(f"round {number}", sweep.at_ns, sweep.at_ns + sweep.duration_ns)


def _device(device: DeviceUse) -> str:
    """Return QEMU's id, which is short and the same on both sides, else the address."""
    return figures.printable(f"{device.id or device.address} ({device.role})")


def _states(device: DeviceUse, begin: int, end: int) -> Iterator[Slice]:
    """Yield the states from the migration's beginning on: the state before may be days old."""
    until = end
    slices = []
    for state in reversed(device.states):
        if until >= begin:
            start = max(begin, state.at_ns)
            slices.append(Slice(state.state, start, max(start, until)))
        until = state.at_ns
    yield from reversed(slices)


MAX_VCPUS = 32
"""How many vCPUs are drawn, of both sides."""


def _each_vcpu(m: Migration) -> Iterator[Lane]:
    """Yield a lane for each vCPU: the most frequent state in pieces of at least 100 ms."""
    for use in m.brownout.vcpus[:MAX_VCPUS] if m.brownout is not None else ():
        number = f"thread {use.thread}" if use.number is None else str(use.number)
        yield Lane("vcpu", f"{use.side} vCPU {number}", tuple(_mostly(use.spans)))


def _mostly(spans: tuple[VcpuSpan, ...]) -> Iterator[Slice]:
    last: Slice | None = None
    for span in spans:
        state = STATES[max(range(len(STATES)), key=lambda at: span.ns[at])]
        if last is not None and last.name == state and last.end_ns == span.start_ns:
            last = Slice(state, last.start_ns, span.end_ns)
            continue
        if last is not None:
            yield last
        last = Slice(state, span.start_ns, span.end_ns)
    if last is not None:
        yield last


MAX_THREADS = 32
"""How many threads are drawn: those with most call time."""


def _threads(m: Migration) -> Iterator[Lane]:
    """Yield a lane for each thread with calls in the blackout. Several short calls are drawn from the first to the
    last."""
    threads: dict[tuple[str, int, str], list[CallSpan]] = {}
    for span in m.calls.spans if m.calls is not None else ():
        threads.setdefault((span.side, span.tid, span.thread), []).append(span)
    most = sorted(threads.items(), key=lambda item: -sum(span.ns for span in item[1]))[:MAX_THREADS]
    for (side, tid, thread), spans in sorted(most):
        title = figures.printable(f"{side} {thread} {tid}")
        yield Lane("calls", title, tuple(_calls(spans)))


def _calls(spans: list[CallSpan]) -> Iterator[Slice]:
    """Yield consecutive slices: a wait for a CPU inside a call is cut out of it."""
    at = 0
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns)):
        start = max(at, span.start_ns)
        if start < span.end_ns:
            call = span.call or span.kind
            count = f"{span.count} " if span.count > 1 else ""
            target = f"({span.target})" if span.target else ""
            yield Slice(f"{count}{call}{target}", start, span.end_ns)
            at = span.end_ns


def _vf_title(vf: VfUse) -> str:
    """Return a VF's title with its side: both hosts' cards may have the same address."""
    return figures.printable(f"VF {vf.vf} of {vf.pf} ({vf.role})")


def _vf(vf: VfUse, end: int) -> Iterator[Slice]:
    for phase in vf.phases:
        until = end if phase.end_at_ns is None else phase.end_at_ns
        yield Slice(phase.name, phase.start_at_ns, max(phase.start_at_ns, until))


def _speed(m: Migration) -> Iterator[Counter]:
    spans = m.brownout.timeline if m.brownout is not None else ()
    speeds = [(s.vcpus.start_ns, 100 * s.speed) for s in spans if s.speed is not None]
    if speeds:
        yield Counter("guest speed", "%", (*speeds, (spans[-1].vcpus.end_ns, speeds[-1][1])))


def _counters(m: Migration, end: int) -> Iterator[Counter]:
    yield from _speed(m)
    # A round finds the pages dirtied since the round before: the rate holds from there.
    counted = {id(round_): since for since, round_ in figures.counted_rounds(m)}
    rates = [
        (counted[id(round_)], rate)
        for round_, rate in zip(m.rounds, figures.round_dirty_rates(m), strict=True)
        if rate is not None
    ]
    if rates:
        yield Counter("dirty rate", "bytes/s", (*rates, (m.rounds[-1].at_ns, 0.0)))
    sent = [(at, float(total)) for at, total in figures.sent_so_far(m)]
    if sent:
        everything = (_all_sent(m, end), float(m.channel.bytes or 0))
        yield Counter("sent", "bytes", (*sent, everything))


def _all_sent(m: Migration, end: int) -> int:
    """Return when the last byte had been sent, at the latest."""
    ended = m.ended_at_ns
    return end if ended is None else min(end, max(ended, m.rounds[-1].at_ns))
