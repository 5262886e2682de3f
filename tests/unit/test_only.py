# SPDX-License-Identifier: MIT
"""`record --vm`: in a recording of four VMs that migrate at once, each VM's part gives the figures of the whole."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.golden_text import recording
from vftrace import events
from vftrace.collect.batch import Batch
from vftrace.collect.only import OnlyVms
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.events import COLLECTOR, wire
from vftrace.events.layout import Kind
from vftrace.model.migration import Snapshot

FOUR = recording("four-at-once")


def filtered(path: Path, *wanted: str) -> tuple[list[bytes], OnlyVms]:
    only = OnlyVms(wanted)
    kept: list[bytes] = []
    for records in Recording(path).batches():
        batch = only.keep(Batch.of(records))
        assert [wire.decode(r) for r in batch.records] == batch.events
        kept += batch.records
    return kept, only


def whole(path: Path) -> Snapshot:
    return track(Recording(path)).snapshot()


def test_each_vms_part_has_the_figures_of_the_whole() -> None:
    everything = whole(FOUR)
    assert len(everything.migrations) == 4
    for wanted in everything.migrations:
        assert wanted.uuid is not None
        for word in (wanted.uuid, wanted.uuid[:8].upper(), wanted.name or ""):
            records, only = filtered(FOUR, word)
            snapshot = track(records).snapshot()
            assert snapshot.migrations == (wanted,)
            assert only.missing == ()


def test_two_vms() -> None:
    everything = whole(FOUR)
    two = everything.migrations[:2]
    records, _ = filtered(FOUR, *(str(m.uuid) for m in two))
    assert track(records).snapshot().migrations == two


def test_no_record_of_another_process_is_kept() -> None:
    """Nor of the collector about it; what belongs to the host is, and is numbered without holes."""
    source = whole(FOUR).migrations[0].pid
    records, _ = filtered(FOUR, str(source))
    found = [wire.decode(record) for record in records]
    assert {e.tgid for e in found} == {source, COLLECTOR}
    assert {e.pid for e in found if isinstance(e, (events.Process, events.FileDescriptor))} == {
        source
    }
    own = [e.seq for e in found if e.tgid == COLLECTOR]
    assert own == list(range(len(own)))
    ticks = sum(wire.kind_of(r) == Kind.TICK for r in Recording(FOUR))
    assert sum(isinstance(e, events.Tick) for e in found) == ticks > 0


def test_what_the_kernel_sent_before_anyone_was_named_is_kept() -> None:
    """The collector names a process after its first record has come, which may be in another batch."""
    records = list(Recording(recording("completed-fast")))
    only = OnlyVms(["demo-completed-fast"])
    kept = [k for record in records for k in only.keep(Batch.of([record])).records]
    assert sorted(kept) == sorted(records)


def test_a_pid_that_is_used_again_is_another_process() -> None:
    def process(pid: int, name: str) -> events.Process:
        return events.Process(
            1,
            0,
            COLLECTOR,
            9,
            pid,
            1,
            None,
            name,
            "qemu",
            incoming=False,
            started_paused=False,
            late=False,
            running=False,
        )

    came = [
        events.VmCreated(1, 0, 5, 5, 3),
        process(5, "wanted"),
        events.Exit(2, 1, 5, 5, 0),
        events.VmCreated(3, 0, 5, 5, 3),
        process(5, "another"),
        events.Exit(4, 1, 5, 5, 0),
        events.VmCreated(5, 0, 5, 5, 3),
        process(5, "wanted"),
    ]
    only = OnlyVms(["wanted"])
    kept = only.keep(Batch([wire.encode(e) for e in came], came))
    assert [(type(e).__name__, e.at_ns) for e in kept.events] == [
        ("VmCreated", 1),
        ("Process", 1),
        ("Exit", 2),
        ("VmCreated", 5),
        ("Process", 1),
    ]


def test_processes_that_nobody_names_do_not_fill_the_memory() -> None:
    only = OnlyVms(["wanted"])
    for pid in range(1, 70_000):
        event = events.VmCreated(1, 0, pid, pid, 3)
        only.keep(Batch([wire.encode(event)], [event]))
    assert sum(len(each) for each in only._waiting.values()) == only._number_waiting <= 65_536
    assert only.missing == ("wanted",)


@pytest.mark.parametrize("name", ["\U0001f600" * 200_000, "\ufffd" * 131_072, "x" * 2_000_000])
def test_a_name_without_end_does_not_end_the_recording(name: str, tmp_path: Path) -> None:
    """128 KiB of invalid UTF-8 made a record that no reader took, and nothing behind it was read."""
    from vftrace.collect.batch import Intake
    from vftrace.collect.recording import RecordingWriter

    intake = Intake()
    process = events.Process(
        1,
        0,
        COLLECTOR,
        9,
        5,
        1,
        name,
        name,
        name,
        incoming=False,
        started_paused=False,
        late=False,
        running=False,
    )
    fields = {f: getattr(process, f) for f in process.__struct_fields__[4:]}
    intake.write(events.Process, **{**fields, "load_path": name, "load_program": name})
    intake.write(events.Tick)
    intake.write(events.End, streams={})
    batch = intake.drain()
    host = replace(Recording(recording("completed-fast")).host, name="h")
    writer = RecordingWriter(tmp_path / "r.vft", host)
    writer.write(batch.records)
    writer.close()
    read = Recording(tmp_path / "r.vft")
    assert [wire.decode(r) for r in read] == batch.events
    assert read.not_whole is None
    (first, *_) = batch.events
    assert isinstance(first, events.Process)
    assert first.name is not None
    assert len(first.name) == 4096
    assert first.name.startswith(name[:1000])
    assert first.name.endswith(" [cut]")
