# SPDX-License-Identifier: MIT
"""Which migrations and which records a flight recorder keeps, by real recordings that are changed in one respect."""

import gzip
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import pytest

from tests.unit.golden_text import recording
from tests.unit.packed_bitmaps import as_bitmaps, nearly_whole
from tests.unit.recorded import LIMITS, Slices, fly, kept, migrations_of
from vftrace import events
from vftrace.archive import flight
from vftrace.archive.finish import finish_all
from vftrace.archive.flight import FlightRecorder
from vftrace.archive.names import RUNNING, FileName
from vftrace.collect.merge import load
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording, frames_of, head_of
from vftrace.collect.replay import ReplaySource, track
from vftrace.events import COLLECTOR, NO_PROCESS, wire
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration

HOST = HostInfo("host", "boot", "6.1", "0.1", 1, ())
HOUR_NS = 3600 * 10**9


def records_of(name: str) -> list[bytes]:
    return list(Recording(recording(name)))


def at(record: bytes, at_ns: int) -> bytes:
    """The same record at another time."""
    return at_ns.to_bytes(8, "little") + record[8:]


def renumber(records: Iterable[bytes]) -> Iterator[bytes]:
    """Number the collector's records anew."""
    number = 0
    for record in records:
        if wire.decode(record).tgid == COLLECTOR:
            record = record[:8] + number.to_bytes(8, "little") + record[16:]
            number += 1
        yield record


def only(migrations: tuple[Migration, ...]) -> Migration:
    (migration,) = migrations
    return migration


def long_lived(name: str) -> list[bytes]:
    """A scenario whose VMs had been there for an hour and more when it began."""
    records = records_of(name)
    (first, *_) = track(iter(records)).snapshot().migrations
    cut = first.started_at_ns - 100_000_000
    times = [wire.decode(record).at_ns for record in records]
    before = [at(r, t - HOUR_NS) for r, t in zip(records, times, strict=True) if t < cut]
    after = [r for r, t in zip(records, times, strict=True) if t >= cut]
    quiet = [
        wire.encode(events.Tick(cut - passed, 0, COLLECTOR, 1))
        for passed in range(HOUR_NS - 60 * 10**9, 10**9, -10 * 10**9)
    ]
    return list(renumber(chain(before, quiet, after)))


@pytest.mark.parametrize("name", ["completed-slow", "libvirt", "graphics", "dirty-ring", "no-uuid"])
def test_a_vm_that_has_run_for_long_has_its_name_and_its_figures(name: str, tmp_path: Path) -> None:
    records = long_lived(name)
    whole = only(track(iter(records)).snapshot().migrations)
    fly(Recording(recording(name)).host, records, tmp_path)
    ((path, migration),) = kept(tmp_path)
    assert migration == whole
    assert migration.name == whole.name
    assert not migration.incomplete
    ticks = [r for r in Recording(path) if isinstance(wire.decode(r), events.Tick)]
    assert wire.decode(ticks[0]).at_ns > migration.started_at_ns - 11 * 10**9


def test_a_quiet_day_costs_nothing_on_the_disk(tmp_path: Path) -> None:
    """Ticks, clock samples and VMs that nobody migrates: no file, and memory that does not grow."""
    quiet = records_of("stop-cont")[:-1]
    last = wire.decode(quiet[-1])
    day = (
        wire.encode(
            events.ClockSample(last.at_ns + n * 10**8, 0, COLLECTOR, 1, 10**18, 1000)
            if n % 10 == 0
            else events.Tick(last.at_ns + n * 10**8, 0, COLLECTOR, 1)
        )
        for n in range(1, 36_000)
    )
    remembered: list[int] = []

    def look(recorder: FlightRecorder) -> None:
        streams = [*recorder._streams.values(), recorder._unowned]
        remembered.append(len(recorder._host_records) + sum(len(s.ring) for s in streams))

    fly(HOST, renumber(chain(quiet, day)), tmp_path / "kept", after=look)
    assert not list((tmp_path / "kept").iterdir())
    assert max(remembered[1000:]) < 120


def test_each_of_several_has_its_own_processes(tmp_path: Path) -> None:
    fly(HOST, records_of("four-at-once"), tmp_path)
    found = list(kept(tmp_path))
    assert len(found) == 4
    for path, migration in found:
        pids = {wire.decode(record).tgid for record in Recording(path)}
        assert pids - {COLLECTOR, NO_PROCESS} == {migration.pid, migration.peer_pid}
        ours = [e for r in Recording(path) if isinstance(e := wire.decode(r), events.Process)]
        assert {e.pid for e in ours} == {migration.pid, migration.peer_pid}


def test_only_the_wanted_vm_is_kept(tmp_path: Path) -> None:
    records = records_of("four-at-once")
    wanted = track(iter(records)).snapshot().migrations[2]
    assert wanted.uuid is not None
    recorder = FlightRecorder(tmp_path, LIMITS, lambda _: None, [wanted.uuid[:8]])
    pump = Pump(Slices(HOST, records), recorder=recorder)
    while not pump.ended:
        pump.step()
    assert [migration for _, migration in kept(tmp_path)] == [wanted]


def test_where_a_recording_is_is_known_all_the_time(tmp_path: Path) -> None:
    records = records_of("retry")
    migrations = track(iter(records)).snapshot().migrations
    seen: list[list[str | None]] = [[], []]

    def look(recorder: FlightRecorder) -> None:
        for names, migration in zip(seen, migrations, strict=True):
            path = recorder.file_of(migration)
            name = None if path is None else FileName.parse(path.name)
            state = None if name is None else name.outcome
            if not names or names[-1] != state:
                names.append(state)

    recorder = fly(HOST, records, tmp_path, after=look)
    assert seen == [[None, "running", "failed"], [None, "running", "completed"]]
    for path, migration in kept(tmp_path):
        assert recorder.file_of(migration) == path


def test_the_second_attempt_of_a_process_is_its_second(tmp_path: Path) -> None:
    fly(HOST, records_of("retry"), tmp_path)
    found = [migration for _, migration in kept(tmp_path)]
    assert [migration.attempt for migration in found] == [0, 1]
    assert [migration.outcome for migration in found] == ["failed", "completed"]


def test_whoever_migrates_all_the_time_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "MAX_FILES", 1)
    said: list[str] = []
    recorder = fly(HOST, records_of("retry"), tmp_path, said)
    assert [migration.attempt for _, migration in kept(tmp_path)] == [0]
    assert recorder.state.lost_files == 1
    assert said == ["one VM begins more than 1 migrations per minute: not all of them are recorded"]


def without(records: list[bytes], drop: Callable[[events.Event], bool]) -> list[bytes]:
    """Without the last record of its kind that is to be dropped: it was lost."""
    last = max(n for n, record in enumerate(records) if drop(wire.decode(record)))
    return records[:last] + records[last + 1 :]


def test_what_was_lost_in_a_migration_is_lost_in_its_recording(tmp_path: Path) -> None:
    whole = only(track(iter(records_of("completed-slow"))).snapshot().migrations)
    records = without(
        records_of("completed-slow"),
        lambda e: isinstance(e, events.GetDirtyLog) and e.tgid == whole.pid,
    )
    poorer = only(track(iter(records)).snapshot().migrations)
    assert poorer.incomplete
    fly(HOST, records, tmp_path)
    ((_, migration),) = kept(tmp_path)
    assert migration == poorer


def test_what_was_lost_long_before_is_no_hole_in_a_recording(tmp_path: Path) -> None:
    records = long_lived("completed-slow")
    whole = only(track(iter(records)).snapshot().migrations)
    records = without(
        records,
        lambda e: (
            isinstance(e, events.Run)
            and e.tgid == whole.pid
            and e.at_ns < whole.started_at_ns - HOUR_NS
        ),
    )
    poorer = only(track(iter(records)).snapshot().migrations)
    fly(HOST, records, tmp_path)
    ((path, migration),) = kept(tmp_path)
    assert migration == poorer
    assert migrations_of(path) == (migration,)


def test_counts_of_losses_begin_with_the_recording(tmp_path: Path) -> None:
    """37,000 records that were lost before say nothing of a migration."""
    records = long_lived("completed-slow")
    first = wire.decode(records[0]).at_ns
    lost = wire.encode(events.Lost(first + HOUR_NS // 2, 0, COLLECTOR, 1, 37_000))
    late = only(track(iter(records)).snapshot().migrations)
    more = wire.encode(events.Lost(late.started_at_ns + 1_000_000_000, 0, COLLECTOR, 1, 37_005))
    found = sorted([*records, lost, more], key=lambda record: wire.decode(record).at_ns)
    fly(HOST, renumber(found), tmp_path)
    ((path, _),) = kept(tmp_path)
    counts = [e.count for r in Recording(path) if isinstance(e := wire.decode(r), events.Lost)]
    assert counts == [5]


def test_recordings_of_one_boot_are_each_read_by_themselves(tmp_path: Path) -> None:
    """They share processes, and each has parts of the other's migration."""
    records = records_of("retry")
    fly(HOST, records, tmp_path)
    report = load(sorted(tmp_path.glob("*.vft.gz")))
    found = tuple(found.migration for found in report.migrations)
    assert found == track(iter(records)).snapshot().migrations


def test_a_replay_does_not_wait_for_the_hours_before(tmp_path: Path) -> None:
    fly(HOST, long_lived("completed-slow"), tmp_path)
    ((path, whole),) = kept(tmp_path)
    began = time.monotonic()
    pump = Pump(ReplaySource(path, speed=20))
    while not pump.ended:
        pump.step()
    assert time.monotonic() - began < 20
    assert pump.snapshot().migrations == (whole,)


@pytest.mark.parametrize("name", ["completed-slow", "retry"])
@pytest.mark.parametrize("make", [records_of, long_lived])
def test_parts_of_bitmaps_have_numbers_of_their_own(
    make: Callable[[str], list[bytes]], name: str, tmp_path: Path
) -> None:
    """Also of a VM whose other records were many before its migration, and are forgotten by then."""
    records = as_bitmaps(make(name))
    assert any(isinstance(wire.decode(record), events.BitmapPart) for record in records)
    whole = track(iter(records)).snapshot().migrations
    said: list[str] = []
    fly(HOST, records, tmp_path, said)
    assert said == []
    assert {m.started_at_ns: m.rounds for m in whole} == {
        m.started_at_ns: m.rounds for _, m in kept(tmp_path)
    }
    assert not any(m.incomplete for _, m in kept(tmp_path))


def test_the_end_of_a_killed_recorders_file_counts_no_parts_of_bitmaps(tmp_path: Path) -> None:
    created = wire.encode(events.VmCreated(10**9, 0, 4711, 4711, 3))
    name = FileName(datetime(2026, 11, 29, tzinfo=UTC), "vm", RUNNING, "00000000")
    content = head_of(HOST) + frames_of([created, *nearly_whole(50)])
    (tmp_path / str(name)).write_bytes(gzip.compress(content))
    finished: list[Path] = []
    finish_all(tmp_path, (), finished.append)
    (path,) = finished
    (end,) = (e for r in Recording(path) if isinstance(e := wire.decode(r), events.End))
    assert end.streams == {4711: 1}
