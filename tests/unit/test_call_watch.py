# SPDX-License-Identifier: MIT
"""Whose calls are traced, and which of them are written: events of the kernel side in, records out."""

import struct

import pytest

from vftrace import events
from vftrace.collect import calls
from vftrace.collect.batch import Intake
from vftrace.collect.calls import CallWatch
from vftrace.events import Event, layout
from vftrace.events.layout import Kind
from vftrace.uapi import KVM_MEM_LOG_DIRTY_PAGES

PID, MIGRATION, VCPU = 4_000_001, 4_000_002, 4_000_003
"""No such processes: /proc has nothing of them."""
_RECORD = struct.Struct("=" + layout.HEADER[0] + layout.BODIES[Kind.CALL][0])


class Probes:
    """Stands for `CallProbes`: remembers who is traced."""

    def __init__(self) -> None:
        self.now: dict[int, bool] = {}

    def trace(self, pid: int, *, always: bool) -> int:
        self.now[pid] = always
        return 7

    def untrace(self, pid: int) -> None:
        del self.now[pid]

    def mark_running(self, pid: int, tids: object) -> None:
        pass

    def settled(self, pid: int | None = None) -> list[bytes]:
        return []

    def detach_unused(self) -> None:
        pass

    def missed(self) -> dict[int, int]:
        return dict.fromkeys(self.now, 0)


class Bench:
    def __init__(self) -> None:
        self.probes, self.intake = Probes(), Intake()
        self.watch = CallWatch(self.intake, self.probes)  # type: ignore[arg-type]
        self.seq = 0

    def call(self, end_ns: int, pid: int = PID) -> None:
        head = (end_ns, self.seq, _RECORD.size, Kind.CALL, 0, pid, MIGRATION)
        body = (end_ns - 10, end_ns, 10, 10, 0, 0, 0, pid, MIGRATION, 75, 0, 3, 1)
        self.seq += 1
        self.watch.take(_RECORD.pack(*head, *body))

    def written(self) -> list[int]:
        """When the calls that were written ended."""
        return [e.end_ns for e in self.intake.drain().events if isinstance(e, events.Call)]


def region(tid: int, *, on: bool, at_ns: int = 100) -> Event:
    flags = KVM_MEM_LOG_DIRTY_PAGES if on else 0
    return events.Region(at_ns, 0, PID, tid, 0, flags, 0, 1 << 20, 0, 0)


def clock(op: int, last_exit_ns: int) -> Event:
    return events.Clock(1000, 0, PID, MIGRATION, 990, last_exit_ns, op, 0, 5)


def test_a_migration_thread_that_logs_is_a_source() -> None:
    bench = Bench()
    bench.watch.see(events.VcpuCreated(1, 0, PID, VCPU, 9, 0))
    for display in (PID, VCPU):
        bench.watch.see(region(display, on=True))
        assert bench.probes.now == {}
    bench.watch.see(region(MIGRATION, on=True))
    assert bench.probes.now == {PID: False}


def test_only_what_ended_in_the_blackout_is_written() -> None:
    bench = Bench()
    bench.watch.see(region(MIGRATION, on=True))
    for end_ns in (200, 899, 901, 950):
        bench.call(end_ns)
    assert bench.written() == []
    bench.watch.see(clock(events.Clock.GET, 900))
    bench.call(1010)
    assert bench.written() == [901, 950, 1010]


def test_a_guest_that_runs_again_ends_it() -> None:
    bench = Bench()
    bench.watch.see(region(MIGRATION, on=True))
    bench.watch.see(clock(events.Clock.GET, 900))
    bench.watch.see(events.Run(2000, 0, PID, VCPU, 900))
    bench.watch.tick()
    assert bench.probes.now == {}


def test_who_has_ended_is_not_traced() -> None:
    bench = Bench()
    bench.watch.see(region(MIGRATION, on=True))
    bench.watch.see(events.Exit(2000, 0, PID, PID, 0))
    assert bench.probes.now == {}
    bench.call(2100)
    assert bench.written() == []


def test_what_is_held_back_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes share what all may have. What was forgotten counts as not traced."""
    monkeypatch.setattr(calls, "MAX_HELD_IN_ALL", 40)
    monkeypatch.setattr(calls, "LEAST_HELD", 5)
    bench = Bench()
    bench.watch.see(region(MIGRATION, on=True))
    other = events.Region(100, 0, PID + 9, MIGRATION, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, 4096, 0, 0)
    bench.watch.see(other)
    for end_ns in range(1000, 1100):
        bench.call(end_ns)
    bench.intake.drain()
    bench.watch.see(clock(events.Clock.GET, 900))
    batch = bench.intake.drain().events
    ends = [e.end_ns for e in batch if isinstance(e, events.Call)]
    assert ends == list(range(1080, 1100))
    (traced,) = [e for e in batch if isinstance(e, events.CallsTraced)]
    assert traced.since_ns == 1079
