# SPDX-License-Identifier: MIT
"""A wall clock that is set while vftrace traces has a sample of its own."""

import pytest

from vftrace import events
from vftrace.collect import live
from vftrace.collect.batch import Intake
from vftrace.collect.live import LiveSource
from vftrace.events import wire
from vftrace.model import figures

HOUR_NS = 3_600_000_000_000
STEP_NS = 500_000
"""The most that a clock is slewed in a second (MAXFREQ in include/linux/timex.h)."""


def test_a_clock_that_was_set_is_sampled_at_the_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    source = LiveSource.__new__(LiveSource)
    source._intake, source._offset_ns = Intake(), 0
    offset = 1_800_000_000 * 10**9
    monkeypatch.setattr(live, "realtime_offset_ns", lambda: offset)
    monkeypatch.setattr(live, "clock_sample", lambda: (offset, 1000))

    def samples() -> list[int]:
        source._notice_set_clock()
        found = map(wire.decode, source._intake.drain().records)
        return [e.realtime_offset_ns for e in found if isinstance(e, events.ClockSample)]

    assert samples() == [offset]
    offset += STEP_NS
    assert samples() == []
    for set_by in (HOUR_NS, -HOUR_NS, 1_000_000_000):
        offset += set_by
        assert samples() == [offset]
        assert samples() == []


def test_times_of_day_before_and_after_are_of_the_clock_that_showed_them() -> None:
    clock = ((1_000, 10**18, 0), (2_000, 10**18 + HOUR_NS, 0))
    assert figures.realtime_ns(clock, 1_999) == 10**18 + 1_999
    assert figures.realtime_ns(clock, 2_000) == 10**18 + HOUR_NS + 2_000
