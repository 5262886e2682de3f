# SPDX-License-Identifier: MIT
"""What a tracker that runs for days keeps: finished migrations as they came out, no bitmaps, few clock samples."""

from itertools import islice
from pathlib import Path

import pytest
from msgspec.structs import replace

from vftrace import events
from vftrace.analysis.clock_samples import MAX_CLOCK_SAMPLES
from vftrace.analysis.tracker import (
    MAX_ENDED_MIGRATING,
    MAX_ENDED_PROCESSES,
    MAX_PROCESSES,
    MAX_SETTLED,
    MAX_UNSETTLED,
    SETTLE_AFTER_NS,
    Tracker,
)
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, Event

RECORDING = Path(__file__).parent.parent / "golden" / "recordings" / "there-and-back.vft.gz"


def fed() -> tuple[Tracker, Event]:
    """A tracker that has seen the recording all but its End, and the last event."""
    tracker = Tracker()
    seen = [e for e in events_of(Recording(RECORDING)) if not isinstance(e, events.End)]
    for event in seen:
        tracker.feed(event)
    return tracker, seen[-1]


def test_a_finished_migration_stays_as_it_was() -> None:
    tracker, last = fed()
    before = tracker.snapshot().migrations
    assert [m.outcome for m in before] == ["completed", "completed"]
    ticks = range(10_000, 10_000 + 600)
    for i, seq in enumerate(ticks):
        at = last.at_ns + i * SETTLE_AFTER_NS // 100
        tracker.feed(events.Tick(at, seq, COLLECTOR, 0))
    after = tracker.snapshot().migrations
    # the gap this test makes in the collector's own numbering is not what it is about
    assert [replace(m, incomplete=False) for m in after] == [
        replace(m, incomplete=False) for m in before
    ]
    assert not any(p.outgoing for p in (*tracker._ended, *tracker._processes.values()))
    assert not tracker._pairing.pairs


@pytest.mark.parametrize("ends", [300, 2000])
def test_vms_that_end_later_do_not_erase_a_migration(ends: int) -> None:
    """A host that starts and ends VMs in a loop, within the half minute in which a migration settles."""
    tracker, last = fed()
    before = tracker.snapshot().migrations
    for n in range(ends):
        at, pid = last.at_ns + n * 1_000_000, 100_000 + n
        tracker.feed(events.VmCreated(at, 0, pid, pid, 3))
        tracker.feed(events.Exit(at, 1, pid, pid, 0))
    assert tracker.snapshot().migrations == before
    assert len(tracker._ended) <= MAX_ENDED_PROCESSES


def test_processes_that_migrated_and_ended_are_bounded() -> None:
    """Each is a source that ends in the middle: its migration is kept as it came out."""
    tracker = Tracker()
    for n in range(MAX_ENDED_MIGRATING + 200):
        at, pid, tid = 1_000_000 * (n + 1), 10 + 2 * n, 11 + 2 * n
        tracker.feed(events.Region(at, 0, pid, tid, 0, 1, 0, 1 << 30, 0, 0))
        tracker.feed(events.Channel(at + 9, 1, pid, tid, 100, 1, at + 5, at + 9, 0, 4, 0, tid, 0))
        tracker.feed(events.Exit(at + 10, 2, pid, tid, 0))
    assert len(tracker._ended) <= MAX_ENDED_MIGRATING
    found = tracker.snapshot().migrations
    assert len(found) == MAX_ENDED_MIGRATING + 200
    assert {(m.outcome, m.cause) for m in found} == {("failed", "source-ended")}


def test_processes_that_never_end_are_bounded() -> None:
    """200,000 of them are 2 MB of a recording, and were 690 MB of memory."""
    tracker = Tracker()
    for n in range(MAX_PROCESSES + 10):
        tracker.feed(events.VmCreated(1_000_000 + n, 0, n + 1, n + 1, 3))
    vms = tracker.snapshot().vms
    assert [vm.pid for vm in vms] == list(range(11, MAX_PROCESSES + 11))


def test_a_process_that_migrates_in_a_loop_is_bounded_and_erases_no_other() -> None:
    """Anyone who may open /dev/kvm can make a thousand a second, while a VM's migration waits to settle."""
    tracker = Tracker()
    victim = 7
    tracker.feed(events.Region(1000, 0, victim, 8, 0, 1, 0, 1 << 30, 0, 0))
    tracker.feed(events.Channel(1010, 1, victim, 8, 100, 1, 1005, 1009, 0, 4, 0, 8, 0))
    tracker.feed(events.Exit(1020, 2, victim, 8, 0))
    count = 3 * MAX_SETTLED
    for n in range(count):
        at, seq, pid, tid = 1_000_000 * (n + 1), 3 * n, 10, 11
        tracker.feed(events.Region(at, seq, pid, tid, 0, 1, 0, 1 << 30, 0, 0))
        sent = events.Channel(
            at + 9, seq + 1, pid, tid, 100 * (n + 1), n + 1, 5, at + 9, 0, 4, 0, tid, 0
        )
        tracker.feed(sent)
        tracker.feed(events.Region(at + 10, seq + 2, pid, tid, 0, 0, 0, 1 << 30, 0, 0))
        if n % 100 == 0:
            tick = events.Tick(at + 11, n // 100, COLLECTOR, 0)
            tracker.feed(tick)
        assert len(tracker._processes[pid].outgoing) <= 2 * MAX_UNSETTLED
    # Half a minute later: the victim's settles among them.
    tracker.feed(events.Tick(SETTLE_AFTER_NS * 2, count // 100 + 1, COLLECTOR, 0))
    found = tracker.snapshot().migrations
    assert len(found) == MAX_SETTLED
    assert [m.outcome for m in found if m.pid == victim] == ["failed"]
    assert {m.outcome for m in found if m.pid != victim} == {"cancelled"}


def test_clock_samples_are_bounded_and_keep_a_step() -> None:
    tracker = Tracker()
    day = 86_400
    for second in range(day):
        offset = 10**18 + (second % 7) * 1000 + (5_000_000_000 if second >= 50_000 else 0)
        tracker.feed(events.ClockSample(second * 10**9, second, COLLECTOR, 0, offset, 1000))
    clock = tracker.snapshot().clock
    assert len(clock) <= MAX_CLOCK_SAMPLES + 10
    assert clock[0][1] < 10**18 + 1_000_000 < clock[-1][1]
    before = [at for at, offset, _ in clock if offset < 10**18 + 4_000_000_000]
    # the step of five seconds is placed to the second
    assert before[-1] == 49_999 * 10**9


@pytest.mark.parametrize(
    "name", ["recordings/cancel-not-converging", "recordings/dirty-ring", "brownouts/throttle-99"]
)
def test_looking_often_changes_nothing(name: str) -> None:
    """What is kept from one snapshot to the next, of rounds, forecasts and vCPUs, is what the next one would make."""
    recording = Recording(RECORDING.parents[1] / f"{name}.vft.gz")
    seen = list(islice(events_of(recording), 2_000))
    often, moments = Tracker(), {}
    for number, event in enumerate(seen):
        often.feed(event)
        if number % (len(seen) // 50) == 0:
            moments[number] = often.snapshot().migrations
    chosen = sorted(moments)[10::20]
    assert all(moments[number] for number in chosen)
    for stop in chosen:
        once = Tracker()
        for event in seen[: stop + 1]:
            once.feed(event)
        assert once.snapshot().migrations == moments[stop]
