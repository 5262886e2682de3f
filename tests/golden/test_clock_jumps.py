# SPDX-License-Identifier: MIT
"""Wall clocks that jump in the middle of a migration: figures are on the boot's clock and do not change."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from vftrace import events
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import Event
from vftrace.model.migration import Migration

RECORDINGS = Path(__file__).parent / "recordings"
HOUR_NS = 3_600_000_000_000

Change = Callable[[Event, int], Event]


def suspended(event: Event, cut_ns: int) -> Event:
    """The host slept for an hour at `cut_ns`: CLOCK_BOOTTIME counts that, and every later time is later."""
    if event.at_ns < cut_ns:
        return event
    kept = ("realtime_offset_ns",) if isinstance(event, events.ClockSample) else ()
    times = {
        name: value + HOUR_NS
        for name in event.__struct_fields__
        if name.endswith("_ns") and name not in kept
        if isinstance(value := getattr(event, name), int) and value >= cut_ns
    }
    return structs.replace(event, **times)


def wall_clock_set(event: Event, cut_ns: int) -> Event:
    """Somebody set the wall clock back by an hour at `cut_ns`."""
    if not isinstance(event, events.ClockSample) or event.at_ns < cut_ns:
        return event
    return structs.replace(event, realtime_offset_ns=event.realtime_offset_ns - HOUR_NS)


def migrations(found: list[Event]) -> tuple[Migration, ...]:
    tracker = Tracker()
    for event in found:
        tracker.feed(event)
    tracker.finish()
    return tracker.snapshot().migrations


@pytest.mark.parametrize("name", ["completed-slow", "multifd", "postcopy"])
@pytest.mark.parametrize("change", [suspended, wall_clock_set])
def test_a_clock_that_jumps_during_precopy(name: str, change: Change) -> None:
    recorded = list(events_of(Recording(RECORDINGS / f"{name}.vft.gz")))
    (whole,) = migrations(recorded)
    assert whole.stopped_at_ns is not None
    cut_ns = (whole.started_at_ns + whole.stopped_at_ns) // 2
    (found,) = migrations([change(event, cut_ns) for event in recorded])
    assert (found.outcome, found.cause, found.incomplete) == (whole.outcome, None, False)
    assert found.downtime.vcpu_ns == whole.downtime.vcpu_ns
    assert found.channel.bytes == whole.channel.bytes
    assert [r.new_pages for r in found.rounds] == [r.new_pages for r in whole.rounds]
    slept = HOUR_NS if change is suspended else 0
    assert found.ended_at_ns is not None
    assert whole.ended_at_ns is not None
    assert found.ended_at_ns - whole.ended_at_ns == slept
