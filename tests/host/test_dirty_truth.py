# SPDX-License-Identifier: MIT
"""Dirty pages against truths of their own: a guest whose schedule is known, slots whose pages we made dirty, and
QEMU's sums beside.

The firmware's own page (guest.STACK_PAGE: interrupt frame and counter) is dirty in every round; it is the only one
beside the schedule.
"""

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.live import recorded
from tests.host.pumping import until
from vftrace import events
from vftrace.analysis import dirty
from vftrace.analysis.dirty import Bitmap
from vftrace.analysis.outgoing import DirtySync, OutgoingMigration
from vftrace.analysis.tracker import Tracker
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump
from vftrace.collect.replay import events_of
from vftrace.demo import guest
from vftrace.demo.guest import DirtySet
from vftrace.demo.scenarios import FIRST_PAGE, MIB, Run, Scenario, Truth, play_scenario
from vftrace.model.migration import Migration

SLOTS = Path(__file__).parents[2] / "benchmarks" / "kvmslots.py"
PAGE_SHIFT = 12
FIRMWARE_PAGES = frozenset({guest.STACK_PAGE})
BANDWIDTH = 8 * MIB

SCHEDULES = {
    "fixed": guest.fixed(FIRST_PAGE, 3072, 1000),
    "growing": guest.growing(FIRST_PAGE, 256, 256, 3072, 1000),
    "sliding": guest.sliding(FIRST_PAGE, 512, 256, 3072, 1000),
    "bursts": guest.bursts(FIRST_PAGE, 3072, 1, 0.2, 1200),
}


def migrate(name: str, schedule: DirtySet, workdir: Path) -> Truth:
    async def steps(run: Run) -> None:
        source = await run.source(run.firmware(schedule))
        destination = await run.destination(source)
        migration = await run.migrate(source, destination, bandwidth=BANDWIDTH, downtime_ms=20)
        await run.arrived(migration)

    return asyncio.run(play_scenario(Scenario(name, name, steps), workdir, lambda line: None))


def fresh_pages(
    records: list[bytes], pid: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Migration, list[frozenset[int]]]:
    """The migration of process `pid`, and for each of its sweeps the guest pages that vftrace calls new."""
    by_sweep: dict[int, list[tuple[int, Bitmap | None]]] = {}
    order: list[DirtySync] = []
    count_again = OutgoingMigration._count_again

    def note(self: OutgoingMigration, sweep: DirtySync, slot: int, fresh: Bitmap | None) -> None:
        if self.pid == pid and id(sweep) not in by_sweep:
            order.append(sweep)
        by_sweep.setdefault(id(sweep), []).append((slot, fresh))
        count_again(self, sweep, slot, fresh)

    monkeypatch.setattr(OutgoingMigration, "_count_again", note)
    tracker = Tracker()
    first_page: dict[int, int] = {}
    for event in events_of(records):
        if isinstance(event, events.Region) and event.tgid == pid and event.size:
            first_page[event.slot] = event.gpa >> PAGE_SHIFT
        tracker.feed(event)
    tracker.finish()
    migration = next(m for m in tracker.snapshot().migrations if m.pid == pid)
    sets = []
    for sweep in order:
        pages: set[int] = set()
        for slot, fresh in by_sweep[id(sweep)]:
            pages |= {first_page[slot] + page for page in bits_of(fresh or {})}
        sets.append(frozenset(pages))
    return migration, sets


def bits_of(bitmap: Bitmap) -> Iterator[int]:
    for number, bits in bitmap.items():
        text = bin(bits)[:1:-1]
        at = text.find("1")
        while at >= 0:
            yield number * dirty.PIECE_PAGES + at
            at = text.find("1", at + 1)


def ends_of_run(writes: list[int], start: int, seen: frozenset[int]) -> Iterator[int]:
    """Where a run of page writes from `start` may end whose pages are exactly `seen`."""
    built: set[int] = set()
    for at in range(start, len(writes)):
        if len(built) == len(seen):
            yield at
        if writes[at] not in seen:
            return
        built.add(writes[at])


@pytest.mark.parametrize("name", ["fixed", "bursts"])
def test_each_round_is_a_run_of_the_guests_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write lost, none counted twice: each round's pages are those the guest wrote from where the round before
    ended. In these schedules a page is not written again soon after, so that none is written between a sweep and
    the moment QEMU clears it in the log (which belongs to no round).
    """
    schedule = SCHEDULES[name]
    with recorded(LiveSource(), settle_s=0.3) as records:
        truth = migrate(f"truth-{name}", schedule, tmp_path)
    migration, sets = fresh_pages(records, truth.attempts[0].source_pid, monkeypatch)
    assert not migration.incomplete
    reported = [r.new_pages for r in migration.rounds]
    assert reported[1:] == [len(pages) for pages in sets[1:]]
    begun, ended = (truth.progress[index].writes for index in (1, -1))
    writes = list(islice_writes(schedule, ended + schedule.pages_per_second))
    starts = set(range(begun, ended + 1))
    rounds = 0
    for pages in sets[1:]:
        own = pages - FIRMWARE_PAGES
        assert own <= schedule.pages
        if not own:
            continue
        starts = {end for start in starts for end in ends_of_run(writes, start, own)}
        assert starts, f"round {rounds + 2} is no run of the schedule"
        rounds += 1
    assert rounds >= 3
    assert min(starts) <= ended


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_totals_against_the_schedule_and_qemu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = SCHEDULES[name]
    with recorded(LiveSource(), settle_s=0.3) as records:
        truth = migrate(f"sums-{name}", schedule, tmp_path)
    migration, sets = fresh_pages(records, truth.attempts[0].source_pid, monkeypatch)
    every = frozenset().union(*sets[1:])
    begun, ended = (truth.progress[index].writes for index in (1, -1))
    may = guest.written_pages(schedule, begun, ended - begun)
    # Everything new was written during the migration, apart from the firmware's own page.
    assert every - FIRMWARE_PAGES <= may
    assert migration.dirty.distinct_pages == len(every)
    assert migration.dirty.new_pages == sum(len(pages) for pages in sets[1:])
    # QEMU: its rate is of the last second or more (migration/ram.c, migration_update_rates), in pages a second.
    attempt = truth.attempts[0]
    rates = [s.dirty_pages_rate for s in attempt.samples if s.dirty_pages_rate]
    first = migration.rounds[1]
    own = (first.new_pages or 0) * 1e9 / (first.at_ns - migration.rounds[0].at_ns)
    assert rates
    assert own == pytest.approx(rates[0], rel=0.1)
    # What QEMU has left just after a sweep is at most what is new, and what it had not sent before (less than what
    # 20 ms carry).
    for sample in attempt.samples:
        number = sample.dirty_sync_count or 0
        if sample.remaining_bytes and 2 <= number <= len(migration.rounds):
            new = migration.rounds[number - 1].new_pages
            assert new is not None
            assert sample.remaining_bytes / 4096 <= new + BANDWIDTH * 0.02 / 4096 + 1


def islice_writes(schedule: DirtySet, count: int) -> Iterator[int]:
    """The guest's page writes in order."""
    at = written = 0
    while True:
        step = schedule.steps[at]
        for page in range(step.first_page, step.first_page + step.pages):
            if written == count:
                return
            yield page
            written += 1
        at = at + 1 if at + 1 < len(schedule.steps) else schedule.loop_from


@dataclasses.dataclass(frozen=True)
class Slots:
    """What benchmarks/kvmslots.py did, and what was seen of it."""

    truth: dict[str, list[int | None]]
    distinct: int
    migration: Migration


def slots(*arguments: str, guest_memory: int | None = None) -> Slots:
    pump = Pump(LiveSource(guest_memory=guest_memory))
    try:
        with subprocess.Popen(
            [sys.executable, str(SLOTS), "exact", *arguments], stdout=subprocess.PIPE
        ) as child:
            until(pump, lambda: child.poll() is not None)
            assert child.stdout is not None
            truth = json.load(child.stdout)
        until(pump, lambda: any(m.pid == child.pid and m.ended_at_ns for m in found(pump)))
        migration = next(m for m in found(pump) if m.pid == child.pid)
    finally:
        pump.close()
    return Slots(truth, truth["distinct"], migration)


def found(pump: Pump) -> tuple[Migration, ...]:
    return pump.snapshot().migrations


@pytest.mark.parametrize("protect", ["manual", "off"])
@pytest.mark.parametrize("gib", [1, 8, 64])
def test_slots_of_any_size_are_counted_exactly(gib: int, protect: str) -> None:
    """Pages that KVM was made to dirty, in slots without a guest, with and without manual protect."""
    done = slots("--gib", str(gib), *(["--no-manual"] if protect == "off" else []))
    rounds = done.migration.rounds
    assert [r.new_pages for r in rounds] == done.truth["new"]
    assert [r.logged_pages for r in rounds] == done.truth["log"]
    assert done.migration.dirty.distinct_pages == done.distinct


def test_a_dense_log_of_all_memory_is_counted_exactly() -> None:
    """The ring buffer for bitmaps has a size by the host's memory: every second page of it is dirty here."""
    done = slots("--gib", "256", guest_memory=256 << 30)
    rounds = done.migration.rounds
    assert [r.new_pages for r in rounds] == done.truth["new"]
    assert [r.logged_pages for r in rounds] == done.truth["log"]
    assert done.migration.dirty.distinct_pages == done.distinct


def test_a_slot_of_512_gib_is_counted_exactly() -> None:
    """A bitmap of any length is walked in one call (bpf/bitmap.h)."""
    done = slots("--gib", "512", "--pages", "200", guest_memory=512 << 30)
    rounds = done.migration.rounds
    assert [r.new_pages for r in rounds] == done.truth["new"]
    assert [r.logged_pages for r in rounds] == done.truth["log"]
    assert done.migration.dirty.distinct_pages == done.distinct
