# SPDX-License-Identifier: MIT
"""Divides a time without answers to a ping into spans, by what both hosts saw of the guest meanwhile.

A span names a condition at that time, which did not necessarily cause the outage. If several conditions held, the span
has the name that comes first in SPANS. For the rest of the time the hosts saw no reason.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from vftrace.events import Event, NetAddress, NetLink, PingGap
from vftrace.model.migration import Checkpoint, Migration, Role, VfUse
from vftrace.model.report import Outage, OutageSpan, Side
from vftrace.model.vf import VfHistory
from vftrace.ping.gaps import HELD, LOST, OWN

MAPPING = "VF attached"
BLACKOUT = "blackout"
RESUME = "destination's resume"
UNPLUG = "wait for unplug"
GONE = "VF gone"
PROBING = "VF probing"
CONFIGURING = "VF configuring"
LINK = "VF's link"
UNHEARD = "guest not heard yet"
BUSY = "host busy"
LATE = "answers late"
UNSEEN = "network, not seen from the hosts"

SPANS = {
    MAPPING: "the destination's VMM maps and pins the guest's memory for its VF, and serves no other device meanwhile",
    BLACKOUT: "no vCPU runs, on the source or while the destination loads",
    RESUME: "the destination has loaded the state, and its vCPUs do not run yet",
    UNPLUG: "the guest releases the VF: its driver has stopped, and the VMM still holds the device",
    GONE: "the guest has no VF, the destination has not opened one, and no bridge has a packet from the guest's tap",
    PROBING: "the destination has opened its VF, whose driver has sent nothing",
    CONFIGURING: "the VF's driver sets it up",
    LINK: "the VF is up, and no bridge has received its address from the network",
    UNHEARD: "the guest runs, and the destination's bridge has received no packet of it",
    BUSY: "vftrace itself waited for a CPU: the host is overloaded",
    LATE: "the destination's vCPUs run, and answered the probes that were sent since then, but late",
    UNSEEN: "none of the above",
}
"""The meaning of each span, in order of precedence."""

LINK_NS = 4_000_000_000
"""A driver that is up looks for its link every two seconds (igbvf/netdev.c, igbvf_watchdog_task), and may look twice
before it reports the link. A longer time that ends without a packet on the network has another reason."""

ANNOUNCED_NS = 5_000_000_000
"""QEMU announces a guest in the first two seconds (migration/options.c, announce-initial to announce-step)."""

AROUND_NS = 60_000_000_000
"""A gap that is further than this from the migration has another reason."""


class HostSide(msgspec.Struct, frozen=True):
    """The other records of one host; `shift_ns` brings its times to the migration's clock."""

    pid: int | None
    lives: Mapping[tuple[str, int], VfHistory]
    network: Sequence[NetAddress | NetLink]
    stalls: Sequence[tuple[int, int]]
    shift_ns: int


def account(
    m: Migration,
    source: HostSide,
    destination: HostSide,
    ping: Iterable[Event],
    offset_ns: int,
    uncertainty_ns: int,
) -> Outage | None:
    """Return the longest gap of a ping that begins or ends around the migration; None without one.

    `offset_ns`: the clock of the migration's times minus the ping's.
    """
    begin, end = _around(m, source, destination)
    gaps = [
        e
        for e in ping
        if isinstance(e, PingGap)
        and e.kind != OWN
        and e.start_at_ns + offset_ns < end
        and e.start_at_ns + e.ns + offset_ns > begin
    ]
    if not gaps:
        return None
    gap = max(gaps, key=lambda e: e.ns)
    start = gap.start_at_ns + offset_ns
    held = [*conditions(m, source, destination), *_late(m, gap, gaps, offset_ns)]
    return Outage(
        start_at_ns=start,
        ns=gap.ns,
        least_ns=gap.least_ns,
        most_ns=gap.most_ns,
        uncertainty_ns=uncertainty_ns,
        spans=spans_of(start, start + gap.ns, held),
    )


def _around(m: Migration, source: HostSide, destination: HostSide) -> tuple[int, int]:
    """Return the time from the first to the last effect of the migration on the guest."""
    known = [span for span in conditions(m, source, destination) if span.name != BUSY]
    last = m.ended_at_ns if m.ended_at_ns is not None else m.started_at_ns
    begin = min([m.started_at_ns, *(s.start_at_ns for s in known)])
    end = max([last, *(s.end_at_ns for s in known)])
    return max(begin, m.started_at_ns - AROUND_NS), min(end, last + AROUND_NS)


def spans_of(start_ns: int, end_ns: int, held: Iterable[OutageSpan]) -> tuple[OutageSpan, ...]:
    """Divide the time from `start_ns` to `end_ns`; where several spans of `held` overlap, the first in SPANS counts."""
    order = list(SPANS)
    known = [span for span in held if span.start_at_ns < end_ns and span.end_at_ns > start_ns]
    edges = {at for span in known for at in (span.start_at_ns, span.end_at_ns)}
    marks = sorted({start_ns, end_ns} | {at for at in edges if start_ns < at < end_ns})
    found: list[OutageSpan] = []
    for left, right in pairwise(marks):
        there = [s for s in known if s.start_at_ns <= left and s.end_at_ns >= right]
        first = min(there, key=lambda s: order.index(s.name), default=None)
        name, side = (first.name, first.side) if first is not None else (UNSEEN, None)
        if found and (found[-1].name, found[-1].side) == (name, side):
            found[-1] = OutageSpan(name, side, found[-1].start_at_ns, right)
        else:
            found.append(OutageSpan(name, side, left, right))
    return tuple(found)


def conditions(m: Migration, source: HostSide, destination: HostSide) -> Iterator[OutageSpan]:
    """Yield every condition that may have kept the guest from answering, in any order; spans may overlap."""
    times = m.downtime.times
    yield from _blackout(times)
    yield from _busy(m, source, destination)
    ran = times.get(Checkpoint.VCPUS_RUNNING)
    heard = sorted((*_first_received_ns(source), *_first_received_ns(destination)))
    if ran is not None:
        here = [at for at in _first_received_ns(destination) if ran <= at <= ran + ANNOUNCED_NS]
        # Without any notification the bridge knew the guest already, or the host has no bridge.
        if here:
            yield OutageSpan(UNHEARD, Side.DESTINATION, ran, min(here))
    came = [
        vf.phases[0].start_at_ns
        for vf in m.vfs
        if vf.role == Role.DESTINATION and vf.phases and vf.phases[0].name == "probing"
    ]
    opened = min(came, default=None)
    for vf in m.vfs:
        if vf.role == Role.SOURCE:
            yield from _source_spans(vf, m, source, heard, opened)
        else:
            yield from destination_spans(vf, source, destination)


def _busy(m: Migration, source: HostSide, destination: HostSide) -> Iterator[OutageSpan]:
    """Yield when the host that had the guest was too busy to run vftrace."""
    stopped = m.stopped_at_ns
    for start, end in source.stalls:
        until = end + source.shift_ns
        until = until if stopped is None else min(until, stopped)
        if until > start + source.shift_ns:
            yield OutageSpan(BUSY, Side.SOURCE, start + source.shift_ns, until)
    for start, end in destination.stalls:
        if stopped is not None and end + destination.shift_ns > stopped:
            since = max(start + destination.shift_ns, stopped)
            yield OutageSpan(BUSY, Side.DESTINATION, since, end + destination.shift_ns)


def _late(
    m: Migration, gap: PingGap, gaps: Iterable[PingGap], offset_ns: int
) -> Iterator[OutageSpan]:
    """Yield the time from the first probe with a late answer until that answer arrived, while the destination ran."""
    ran = m.downtime.times.get(Checkpoint.VCPUS_RUNNING)
    if gap.kind != HELD or ran is None:
        return
    end = gap.start_at_ns + gap.ns
    losses = [
        e.start_at_ns + e.ns
        for e in gaps
        if e.kind == LOST and gap.start_at_ns <= e.start_at_ns < end
    ]
    answered = max(losses, default=gap.start_at_ns)
    since = max(answered + offset_ns, ran)
    if since < end + offset_ns:
        yield OutageSpan(LATE, Side.PINGER, since, end + offset_ns)


def _blackout(times: Mapping[Checkpoint, int]) -> Iterator[OutageSpan]:
    stopped, ran = times.get(Checkpoint.VCPUS_STOPPED), times.get(Checkpoint.VCPUS_RUNNING)
    if stopped is None or ran is None:
        return
    loaded = min(times.get(Checkpoint.DEVICES_LOADED, times.get(Checkpoint.CLOCK_SET, ran)), ran)
    yield OutageSpan(BLACKOUT, Side.SOURCE, stopped, loaded)
    yield OutageSpan(RESUME, Side.DESTINATION, loaded, ran)


def _source_spans(
    vf: VfUse, m: Migration, source: HostSide, heard: Sequence[int], opened: int | None
) -> Iterator[OutageSpan]:
    """Yield the time from when the guest's driver released the source's VF until the guest had another way to the
    network."""
    absent = next((phase for phase in vf.phases if phase.name == "absent"), None)
    until = m.stopped_at_ns if absent is None else absent.start_at_ns
    life = source.lives.get((vf.pf, vf.vf))
    rested = None if until is None else _last_up_ns(life, until - source.shift_ns)
    # A failover's primary is kept until the migration is over; an earlier release belongs to another time.
    since = m.started_at_ns - (0 if absent is None else AROUND_NS)
    if rested is not None and rested + source.shift_ns < since:
        rested = None
    if rested is not None and absent is not None:
        yield OutageSpan(UNPLUG, Side.SOURCE, rested + source.shift_ns, absent.start_at_ns)
    if absent is not None:
        gone = absent.start_at_ns
    elif rested is not None:
        gone = rested + source.shift_ns
    else:
        return
    otherwise = next((at for at in heard if at > gone), None)
    ends = [at for at in (opened, otherwise) if at is not None and at > gone]
    if ends:
        yield OutageSpan(GONE, Side.SOURCE, gone, min(ends))


def _last_up_ns(life: VfHistory | None, closed_ns: int) -> int | None:
    """Return when the VF was last up, before it was closed."""
    ends = [
        span.end_at_ns
        for span in (life.states if life is not None else ())
        if span.name == "up" and span.end_at_ns is not None and span.end_at_ns <= closed_ns
    ]
    return max(ends, default=None)


def destination_spans(vf: VfUse, source: HostSide, destination: HostSide) -> Iterator[OutageSpan]:
    """Yield the times from the opening of the destination's VF until a bridge received the guest's address through
    it."""
    names = {"probing": PROBING, "configuring": CONFIGURING}
    mapped = vf.mapped_at_ns
    if vf.mapping_at_ns is not None and vf.phases:
        opened = vf.phases[0].start_at_ns
        begun = vf.mapping_at_ns if mapped is None else opened
        yield OutageSpan(MAPPING, Side.DESTINATION, begun, opened if mapped is None else mapped)
    for phase in vf.phases:
        # The guest gets a device of an iommufd only after memory is mapped for it.
        start = phase.start_at_ns if mapped is None else max(phase.start_at_ns, mapped)
        if phase.name in names:
            end = phase.end_at_ns if phase.end_at_ns is not None else start + AROUND_NS
            if end > start:
                yield OutageSpan(names[phase.name], Side.DESTINATION, start, end)
        elif phase.name == "ready":
            mac = _mac(vf, destination)
            heard = [at for host in (source, destination) for at in _moved(host, mac)]
            word = min((at for at in heard if start < at < start + AROUND_NS), default=None)
            known = word or _link_up(vf, destination, phase.start_at_ns)
            end = start + LINK_NS if known is None else known
            if end > start:
                yield OutageSpan(LINK, Side.DESTINATION, start, end)


def _link_up(vf: VfUse, destination: HostSide, ready_ns: int) -> int | None:
    """Return when the card's driver first reported the link to a VF that was up.

    iavf ignores such a report before its queues are enabled (iavf/iavf_virtchnl.c, iavf_virtchnl_completion), and the
    card's driver sends another one behind the reply to ENABLE_QUEUES (i40e_vc_process_vf_msg, ice_vc_process_vf_msg).
    """
    life = destination.lives.get((vf.pf, vf.vf))
    if life is None:
        return None
    times = [link.at_ns + destination.shift_ns for link in life.links if link.up]
    return min((at for at in times if ready_ns <= at < ready_ns + AROUND_NS), default=None)


def _mac(vf: VfUse, destination: HostSide) -> str | None:
    life = destination.lives.get((vf.pf, vf.vf))
    return dict(life.settings).get("mac") if life is not None else None


def _first_received_ns(host: HostSide) -> Iterable[int]:
    """Return when the host's bridge first received the guest's address on the tap of its VMM."""
    return [
        e.at_ns + host.shift_ns
        for e in host.network
        if isinstance(e, NetAddress) and not e.gone and e.pid is not None and e.pid == host.pid
    ]


def _moved(host: HostSide, mac: str | None) -> Iterable[int]:
    """Return when the host's bridge received the address (None: any) on a port that belongs to no VMM."""
    return [
        e.at_ns + host.shift_ns
        for e in host.network
        if isinstance(e, NetAddress) and not e.gone and e.pid is None and mac in (None, e.mac)
    ]
