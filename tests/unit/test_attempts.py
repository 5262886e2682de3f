# SPDX-License-Identifier: MIT
"""What a migration is (docs/reference/phases.md): a thread that makes dirty syncs and sends."""

from collections.abc import Callable

import pytest

from vftrace import events
from vftrace.analysis.outgoing import MAX_SYNCS
from vftrace.analysis.tracker import Tracker
from vftrace.events import Event
from vftrace.model import figures
from vftrace.model.migration import Migration

PID, MAIN, VCPU, MIGRATION, OTHER = 100, 100, 101, 110, 111
MULTIFD, STORAGE = 120, 130
RAM, BAR = 1 << 30, 1 << 34
MS = 1_000_000
SENDMSG, SENDTO, WRITE, WRITEV, PWRITE, PWRITEV = range(6)


class Bench:
    """One VMM's events in order; `at` is the time of the next, which each one moves on by a millisecond."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.at = 1000 * MS
        self._seq = 0
        self.feed(VCPU, lambda head: events.Run(*head, 0))

    def feed(self, tid: int, make: Callable[[tuple[int, int, int, int]], Event]) -> None:
        self.at += MS
        self.tracker.feed(make((self.at, self._seq, PID, tid)))
        self._seq += 1

    def slot(self, number: int, size: int, *, tid: int = MAIN, logged: bool = False) -> None:
        flags = 1 if logged else 0
        self.feed(tid, lambda head: events.Region(*head, number, flags, 0, size, 0, 0))

    def piece(self, tid: int, enter: int, page: int) -> None:
        self.feed(tid, lambda head: events.Piece(*head, enter, page, 0, 1))

    def reset_rings(self, tid: int, page: int) -> None:
        """A KVM_RESET_DIRTY_RINGS that collects one page."""
        enter = self.at + MS // 2
        self.piece(tid, enter, page)
        self.feed(tid, lambda head: events.ResetDirtyRings(*head, enter, 1, 3, 0, 1, 1, 0))

    def sync(self, tid: int, *pages: int) -> None:
        """A GET_DIRTY_LOG of slot 0 that returns these pages."""
        enter = self.at + MS // 2
        for page in pages:
            self.piece(tid, enter, page)
        size = RAM // 4096 // 8
        self.feed(
            tid,
            lambda head: events.GetDirtyLog(*head, enter, 1, size, size, 0, 0, len(pages), 0),
        )

    def dma(
        self, *pages: int, by: int = 2, iova: int = 0, table: int = 3, keep: bool = False
    ) -> None:
        """A bitmap of pages that devices wrote: these, counted from `iova` on."""
        enter = self.at + MS // 2
        for page in pages:
            self.piece(MIGRATION, enter, page)
        self.feed(
            MIGRATION,
            lambda head: events.VfioDirty(
                *head, enter, iova, 64 * 4096, 4096, 8, 8, 20, by, 0, 0, len(pages), 0, keep, table
            ),
        )

    def send(
        self, tid: int, fd: int, total: int, op: int = SENDMSG, first: int | None = None
    ) -> None:
        calls = total // 8
        began = first or 1001 * MS
        self.feed(
            tid,
            lambda head: events.Channel(*head, total, calls, began, head[0], 0, fd, 0, tid, op),
        )

    def migrations(self) -> tuple[Migration, ...]:
        return self.tracker.snapshot().migrations


def test_logging_that_is_on_already() -> None:
    """KubeVirt polls calc-dirty-rate: another thread switched logging on, and reads the log in between."""
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=OTHER, logged=True)
    bench.sync(OTHER, 1)
    bench.sync(MIGRATION, 1)
    bench.send(MIGRATION, 9, 4000)
    bench.sync(OTHER, 1, 2)
    bench.sync(MIGRATION, 1, 2, 3)
    bench.feed(MIGRATION, lambda head: events.Exit(*head, 0))
    (found,) = bench.migrations()
    assert (found.outcome, found.cause) == ("failed", "source-ended")
    assert found.channel.bytes == 4000
    # Page 2 is new in its second round, though the measurement has read it before.
    assert [r.new_pages for r in found.rounds][1:] == [2]


def test_a_memslot_larger_than_ram_that_is_not_logged() -> None:
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(7, BAR)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    bench.sync(MIGRATION)
    bench.send(MIGRATION, 9, 4000)
    bench.slot(0, RAM, tid=MAIN)
    (found,) = bench.migrations()
    assert (found.outcome, found.cause) == ("cancelled", "cancelled")


def test_a_measurement_that_wakes_the_main_loop_is_none() -> None:
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=OTHER, logged=True)
    bench.sync(OTHER)
    bench.send(OTHER, 4, 80, op=WRITE)
    assert bench.migrations() == ()


def test_what_uses_its_fd_after_the_end_changes_nothing() -> None:
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    bench.sync(MIGRATION)
    bench.send(MIGRATION, 9, 4000)
    bench.slot(0, RAM, tid=MAIN)
    before = bench.migrations()
    bench.send(MAIN, 9, 9000)
    bench.send(OTHER, 9, 100, first=bench.at)
    bench.sync(OTHER, 5)
    bench.feed(VCPU, lambda head: events.Run(*head, 1))
    assert bench.migrations() == before


def test_a_thread_that_ends_closes_it_where_logging_continues() -> None:
    """A migration under a dirty limit is cancelled; the next one is another attempt."""
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=OTHER, logged=True)
    bench.sync(MIGRATION)
    bench.send(MIGRATION, 9, 4000)
    bench.feed(MIGRATION, lambda head: events.ThreadExit(*head))
    assert [m.outcome for m in bench.migrations()] == [None]
    # The process continues: it was not killed.
    bench.sync(OTHER)
    assert [m.outcome for m in bench.migrations()] == ["cancelled"]
    bench.sync(MIGRATION + 20)
    bench.send(MIGRATION + 20, 12, 5000)
    assert [(m.outcome, m.attempt) for m in bench.migrations()] == [("cancelled", 0), (None, 1)]


def test_with_a_killed_process_all_threads_end() -> None:
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    bench.sync(MIGRATION)
    bench.send(MIGRATION, 9, 4000)
    for tid in (MIGRATION, MAIN, VCPU):
        bench.feed(tid, lambda head: events.ThreadExit(*head))
    bench.feed(OTHER, lambda head: events.Exit(*head, 0))
    assert [(m.outcome, m.cause) for m in bench.migrations()] == [("failed", "source-ended")]


def test_a_dirty_ring_that_others_collect() -> None:
    """The reaper finds all pages, and the migration thread's syncs find the ring empty."""
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    bench.send(MIGRATION, 9, 4000)
    for page in (3, 4, 4):
        bench.reset_rings(OTHER, page)
    (found,) = bench.migrations()
    assert found.rounds == ()
    assert (found.dirty.new_pages, found.dirty.distinct_pages) == (2, 2)
    assert (figures.dirty_rate(found) or 0) > 0


def test_rings_that_stay_empty_lower_the_mean_rate() -> None:
    """QEMU empties the rings every second, and makes no request for empty ones."""
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    bench.send(MIGRATION, 9, 4000)
    bench.reset_rings(OTHER, 3)
    reset_at = bench.at
    for passed in (500 * MS, 4000 * MS):
        bench.at = reset_at + passed
        bench.send(MIGRATION, 9, 4000)
        (found,) = bench.migrations()
        lasted = max(reset_at, bench.at - 1000 * MS) - found.started_at_ns
        assert figures.mean_dirty_rate(found) == pytest.approx(4096 * 1e9 / lasted, rel=0.01)


def test_very_many_rounds_keep_their_counts() -> None:
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    total = 5 * MAX_SYNCS
    for n in range(total):
        bench.sync(MIGRATION, *(range(n % 7)))
        bench.send(MIGRATION, 9, 1000 * (n + 1))
    (found,) = bench.migrations()
    assert len(found.rounds) <= 3 + 2 * MAX_SYNCS
    assert figures.dirty_sync_count(found) == total
    assert sum(r.sent_bytes or 0 for r in found.rounds) == found.channel.bytes == 1000 * total
    assert found.dirty.new_pages == sum(r.new_pages or 0 for r in found.rounds[1:])
    again = bench.migrations()[0]
    assert again.rounds == found.rounds


def test_a_destination_that_shares_the_sources_memory() -> None:
    """cloud-hypervisor --local: nothing is logged or sent, and the destination sets the clock that was read."""
    bench = Bench()
    made, clock = bench.at + MS, 3_600_000 * MS
    tracker, new = bench.tracker, 200
    tracker.feed(events.VmCreated(made, 0, new, new, 3))
    stopped = made + 10 * MS
    tracker.feed(events.Clock(stopped, 1, PID, MAIN, stopped, stopped - MS, 0, 0, clock))
    tracker.feed(events.Clock(stopped + 700 * MS, 1, new, new, stopped + 699 * MS, 0, 1, 0, clock))
    tracker.feed(events.Run(stopped + 721 * MS, 2, new, new + 1, 0))
    (found,) = bench.migrations()
    assert (found.role, found.outcome, found.pid, found.peer_pid) == (
        *("stitched", "completed"),
        *(PID, new),
    )
    assert found.downtime.vcpu_ns == 722 * MS


def _dma(*steps: Callable[[Bench], None]) -> Migration:
    """A migration in which devices write: one step before each round, one after the last."""
    bench = Bench()
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    for step in steps[:-1]:
        step(bench)
        bench.sync(MIGRATION, 1)
        bench.send(MIGRATION, 9, 4000 * bench.at)
        bench.at += 100 * MS
    steps[-1](bench)
    (found,) = bench.migrations()
    return found


def test_pages_that_devices_wrote_belong_to_the_nearest_sweep() -> None:
    """QEMU asks its IOMMU before KVM (memory_region_sync_dirty_bitmap, lowest priority first); another VMM may not."""

    def first(bench: Bench) -> None:
        bench.dma(1, 2)

    def right_after_the_first_before_the_second(bench: Bench) -> None:
        bench.at -= 99 * MS
        bench.dma(3)
        bench.at += 98 * MS
        bench.dma(4, 5, 6, by=0)

    found = _dma(first, right_after_the_first_before_the_second, lambda b: b.dma(7, 8, 9, 10))
    assert [(r.iommu_pages, r.vfio_pages) for r in found.rounds] == [(3, None), (4, 3)]
    assert (found.dirty.iommu_pages, found.dirty.vfio_pages) == (7, 3)


def test_pages_that_were_left_marked_count_once() -> None:
    """NO_CLEAR: QEMU reads so before it unmaps, when nobody reads them again; else the next bitmap has them too."""

    def read_twice(bench: Bench) -> None:
        bench.dma(1, 2, 3, keep=True)
        bench.dma(1, 2, 3, 4)
        bench.dma(3)

    def of_two_page_tables(bench: Bench) -> None:
        bench.dma(1, 2, keep=True)
        bench.dma(1, 2, table=4)
        bench.dma(1, 2, iova=64 * 4096)
        bench.dma(1, 2, 5)

    found = _dma(read_twice, of_two_page_tables, lambda b: b.dma())
    assert [r.iommu_pages for r in found.rounds] == [5, 7]
    assert found.dirty.iommu_pages == 12


def test_many_reports_without_a_sweep_are_bounded() -> None:
    def many(bench: Bench) -> None:
        for _ in range(3000):
            bench.dma(1)

    found = _dma(lambda b: None, many, lambda b: None)
    assert sum(r.iommu_pages or 0 for r in found.rounds) == found.dirty.iommu_pages == 3000


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        (SENDMSG, "socket"),
        (SENDTO, "socket"),
        (PWRITE, "file"),
        (PWRITEV, "file"),
        # A pipe or a file.
        (WRITEV, "unknown"),
    ],
)
def test_a_channel_that_nobody_looked_at_is_what_its_calls_need(op: int, kind: str) -> None:
    """The collector had no CPU until the fd was closed, so no record describes it."""
    bench = Bench()
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    bench.sync(MIGRATION)
    bench.send(MIGRATION, 9, 4000, op=op)
    bench.slot(0, RAM, tid=MAIN)
    (found,) = bench.migrations()
    assert found.channel.kind == kind


def test_what_another_thread_sends_to_the_destinations_host_is_no_channel() -> None:
    """Storage on the host that a VM migrates to, beside multifd: only the port differs."""
    bench = Bench()
    peers = {9: "192.0.2.7:49152", 10: "192.0.2.7:49152", 11: "192.0.2.7:3260"}
    bench.slot(0, RAM)
    bench.slot(0, RAM, tid=MIGRATION, logged=True)
    for fd, peer in peers.items():
        found = events.FileDescriptor(bench.at, fd, events.COLLECTOR, 1, PID, fd, "tcp", peer)
        bench.tracker.feed(found)
    bench.sync(MIGRATION)
    bench.send(MIGRATION, 9, 4000)
    bench.send(MULTIFD, 10, 700_000)
    bench.send(STORAGE, 11, 20_600_000)
    bench.slot(0, RAM, tid=MAIN)
    (migration,) = bench.migrations()
    assert migration.channel.bytes == 704_000
    assert migration.channel.peer == "192.0.2.7:49152"
