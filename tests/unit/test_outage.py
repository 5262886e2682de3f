# SPDX-License-Identifier: MIT
"""A time without answers is divided into spans by conditions, without holes and without overlaps."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vftrace.analysis.hosts.outage import (
    BLACKOUT,
    GONE,
    LATE,
    MAPPING,
    PROBING,
    RESUME,
    SPANS,
    UNSEEN,
    HostSide,
    destination_spans,
    spans_of,
)
from vftrace.model.migration import Role, VfPhase, VfUse
from vftrace.model.report import Outage, OutageSpan, Side


def span(name: str, start: int, end: int, side: Side = Side.SOURCE) -> OutageSpan:
    return OutageSpan(name, side, start, end)


def named(spans: tuple[OutageSpan, ...]) -> list[tuple[str, int, int]]:
    return [(s.name, s.start_at_ns, s.end_at_ns) for s in spans]


def test_what_nobody_saw_stays_unseen() -> None:
    held = [span(BLACKOUT, 20, 50), span(RESUME, 50, 60, Side.DESTINATION)]
    assert named(spans_of(10, 80, held)) == [
        (UNSEEN, 10, 20),
        (BLACKOUT, 20, 50),
        (RESUME, 50, 60),
        (UNSEEN, 60, 80),
    ]


def test_no_vcpu_goes_before_no_device() -> None:
    held = [span(GONE, 0, 100), span(BLACKOUT, 30, 40), span(PROBING, 90, 120, Side.DESTINATION)]
    assert named(spans_of(0, 110, held)) == [
        (GONE, 0, 30),
        (BLACKOUT, 30, 40),
        (GONE, 40, 100),
        (PROBING, 100, 110),
    ]


def test_a_span_outside_shows_nothing() -> None:
    assert named(spans_of(10, 20, [span(BLACKOUT, 0, 10), span(GONE, 20, 30)])) == [
        (UNSEEN, 10, 20)
    ]


SPAN = st.builds(
    lambda name, start, ns: span(name, start, start + ns),
    st.sampled_from([name for name in SPANS if name != UNSEEN]),
    st.integers(-50, 150),
    st.integers(0, 80),
)


@given(st.integers(0, 50), st.integers(1, 100), st.lists(SPAN, max_size=8))
def test_every_moment_is_in_one_span(start: int, ns: int, held: list[OutageSpan]) -> None:
    found = spans_of(start, start + ns, held)
    assert found[0].start_at_ns == start
    assert found[-1].end_at_ns == start + ns
    for before, after in pairwise(found):
        assert before.end_at_ns == after.start_at_ns
        assert (before.name, before.side) != (after.name, after.side)
    order = list(SPANS)
    for each in found:
        assert each.ns > 0
        middle = (each.start_at_ns + each.end_at_ns) / 2
        there = [s.name for s in held if s.start_at_ns < middle < s.end_at_ns]
        assert each.name == min(there, key=order.index, default=UNSEEN)


def test_what_the_pinger_saw_is_not_the_hosts() -> None:
    held = [span(BLACKOUT, 0, 60), span(LATE, 60, 90, Side.PINGER)]
    found = Outage(0, 100, 100, 100, 0, spans_of(0, 100, held))
    assert (found.explained_ns, found.pinger_ns) == (60, 30)


def test_memory_is_mapped_before_a_containers_device_and_after_a_bound_one() -> None:
    """QEMU holds its main loop meanwhile, so the guest has not got the VF that it opened."""
    phases = (VfPhase("probing", 100, 150), VfPhase("configuring", 150, 160))
    host = HostSide(None, {}, (), (), 0)

    def spans(mapping: int, mapped: int | None) -> list[tuple[str, int, int]]:
        vf = VfUse("0000:01:00.0", 1, None, Role.DESTINATION, phases, mapping, mapped)
        return named(tuple(destination_spans(vf, host, host)))[:2]

    assert spans(70, None) == [(MAPPING, 70, 100), (PROBING, 100, 150)]
    assert spans(105, 130) == [(MAPPING, 100, 130), (PROBING, 130, 150)]
