# SPDX-License-Identifier: MIT
"""Moves the times of a migration from one host's clock to another's."""

from typing import TypeVar

from msgspec.structs import replace

from vftrace.model.brownout import Brownout, VcpuSpan
from vftrace.model.calls import BlackoutCalls
from vftrace.model.migration import DeviceUse, Migration, PhaseSpan, VfPhase, VfUse

_Interval = TypeVar("_Interval", PhaseSpan, VfPhase)


def shifted(m: Migration, ns: int) -> Migration:
    """Return a destination's migration with every time `ns` later.

    A destination's half has no rounds, no forecast and no bytes of a channel.
    """
    checkpoints = tuple(replace(c, at_ns=_later(c.at_ns, ns)) for c in m.downtime.checkpoints)
    return replace(
        m,
        started_at_ns=m.started_at_ns + ns,
        ended_at_ns=_later(m.ended_at_ns, ns),
        stopped_at_ns=_later(m.stopped_at_ns, ns),
        phases=tuple(_interval(phase, ns) for phase in m.phases),
        strategy_evidence=tuple(replace(e, at_ns=e.at_ns + ns) for e in m.strategy_evidence),
        downtime=replace(m.downtime, checkpoints=checkpoints),
        devices=tuple(_device(use, ns) for use in m.devices),
        vfs=tuple(_vf(vf, ns) for vf in m.vfs),
        calls=None if m.calls is None else _calls(m.calls, ns),
        brownout=None if m.brownout is None else _brownout(m.brownout, ns),
    )


def _brownout(b: Brownout, ns: int) -> Brownout:
    """Move a destination's brownout, which has no baseline, rounds or holds."""
    return replace(
        b,
        timeline=tuple(replace(span, vcpus=_span(span.vcpus, ns)) for span in b.timeline),
        vcpus=tuple(
            replace(
                use, total=_span(use.total, ns), spans=tuple(_span(span, ns) for span in use.spans)
            )
            for use in b.vcpus
        ),
    )


def _span(span: VcpuSpan, ns: int) -> VcpuSpan:
    return replace(span, start_ns=span.start_ns + ns, end_ns=span.end_ns + ns)


def _device(use: DeviceUse, ns: int) -> DeviceUse:
    states = tuple(replace(s, at_ns=s.at_ns + ns) for s in use.states)
    made = use.mapping
    if made is not None:
        made = replace(made, start_at_ns=made.start_at_ns + ns, end_at_ns=made.end_at_ns + ns)
    return replace(use, states=states, mapping=made)


def _calls(calls: BlackoutCalls, ns: int) -> BlackoutCalls:
    return replace(
        calls,
        spans=tuple(
            replace(span, start_ns=span.start_ns + ns, end_ns=span.end_ns + ns)
            for span in calls.spans
        ),
        traced=tuple((side, since + ns, _later(until, ns)) for side, since, until in calls.traced),
    )


def _vf(vf: VfUse, ns: int) -> VfUse:
    phases = tuple(_interval(phase, ns) for phase in vf.phases)
    return replace(
        vf,
        phases=phases,
        mapping_at_ns=_later(vf.mapping_at_ns, ns),
        mapped_at_ns=_later(vf.mapped_at_ns, ns),
    )


def _interval(span: _Interval, ns: int) -> _Interval:
    return replace(span, start_at_ns=span.start_at_ns + ns, end_at_ns=_later(span.end_at_ns, ns))


def _later(at_ns: int | None, ns: int) -> int | None:
    return None if at_ns is None else at_ns + ns
