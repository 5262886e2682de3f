# SPDX-License-Identifier: MIT
"""The index of a directory equals what its recordings hold, even when the index was damaged, lost or outdated."""

import gzip
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.golden_text import GOLDEN, RECORDINGS, recording
from vftrace.archive import index
from vftrace.collect.recording import MAGIC, NOT_CLOSED, RecordingWriter
from vftrace.errors import VftraceError
from vftrace.model.host import HostInfo

NAMES = ("completed-fast", "there-and-back", "source-killed-precopy", "boot")
HOST = HostInfo("host", "boot", "6.1", "0.1", 1, ())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A directory of four recordings: one, two, one and no migration."""
    for name in NAMES:
        shutil.copy(recording(name), tmp_path)
    return tmp_path


def rows(directory: Path) -> list[tuple[str, int, str | None, str | None]]:
    contents = index.read(directory)
    return [(r.file, r.number, r.name, r.outcome) for r in index.rows(contents)]


def test_rows_are_what_qemu_did(kept: Path) -> None:
    """Against the truth that was written beside the recordings."""
    found = index.rows(index.read(kept))
    for name in NAMES[:3]:
        attempts = json.loads((RECORDINGS / f"{name}.truth.json").read_text())["attempts"]
        mine = [r for r in found if r.file == f"{name}.vft.gz"]
        assert [(r.number, r.pid) for r in mine] == [
            (number, attempt["source_pid"]) for number, attempt in enumerate(attempts, 1)
        ]
        assert {r.name for r in mine} == {f"demo-{name}"}
        said = [attempt["source"]["status"] == "completed" for attempt in attempts]
        assert [r.outcome == "completed" for r in mine] == said
    assert {r.source for r in found} == {"vm"}
    assert [r.started_ns for r in found] == sorted(r.started_ns or 0 for r in found)


def test_the_second_time_nothing_is_read(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index.read(kept)
    monkeypatch.setattr("vftrace.collect.merge.load", _never)
    assert index.read(kept) == first
    assert first.notes == ()
    assert (kept / index.NAME).stat().st_mode & 0o777 == 0o600


def _never(*_: object) -> None:
    pytest.fail("a recording was read again")


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _another_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"by":"', b'"by":"9.'))


def _wrong_types(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":"one"'))


def _binary(path: Path) -> None:
    path.write_bytes(path.read_bytes() + os.urandom(4096) + b"\n" + b"[" * 100_000 + b"\n")


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 5000),
        _torn,
        _another_version,
        _wrong_types,
        _binary,
        _a_directory,
    ],
)
def test_an_index_that_is_wrong_is_made_again(harm: Callable[[Path], None], kept: Path) -> None:
    before = rows(kept)
    harm(kept / index.NAME)
    assert rows(kept) == before
    assert rows(kept) == before


def test_a_file_that_changed_is_read_again(kept: Path) -> None:
    rows(kept)
    shutil.copy(recording("retry"), kept / "boot.vft.gz")
    (kept / "completed-fast.vft.gz").unlink()
    found = rows(kept)
    assert ("boot.vft.gz", 1, "demo-retry", "failed") in found
    assert not any(file.startswith("completed-fast") for file, *_ in found)


def test_a_recorder_adds_what_it_closed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.read(kept)
    shutil.copy(recording("retry"), kept)
    assert index.add(kept / "retry.vft.gz") is None
    monkeypatch.setattr("vftrace.collect.merge.load", _never)
    assert [r for r in rows(kept) if r[0] == "retry.vft.gz"]


def test_add_makes_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(recording("retry"), tmp_path)
    assert index.add(tmp_path / "retry.vft.gz") is None
    monkeypatch.setattr("vftrace.collect.merge.load", _never)
    assert len(rows(tmp_path)) == 2


def test_add_forgets_what_is_gone(tmp_path: Path) -> None:
    """A recorder that runs for a year does not let the index grow for a year."""
    for number in range(400):
        name = tmp_path / f"{number}.vft.gz"
        shutil.copy(recording("boot"), name)
        if number == 0:
            index.add(name)
            line = (tmp_path / index.NAME).read_bytes().splitlines()[-1] + b"\n"
            (tmp_path / index.NAME).write_bytes(
                (tmp_path / index.NAME).read_bytes().splitlines(keepends=True)[0] + line * 800
            )
        elif number == 2:
            index.add(name)
            break
        name.unlink()
    assert (tmp_path / index.NAME).stat().st_size < 2000
    assert rows(tmp_path) == []


def test_what_is_no_recording_is_one_line(kept: Path) -> None:
    """A hostile directory: each file that cannot be read is named once, the others are listed."""
    before = rows(kept)
    (kept / "text.vft").write_text("hello")
    (kept / "empty.vft").touch()
    (kept / "bomb.vft.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    (kept / "head.vft").write_bytes(MAGIC + struct.pack("<I", 100_000) + b"[" * 100_000)
    (kept / "link.vft").symlink_to("/etc/passwd")
    (kept / "notes.txt").write_text("not ours")
    (kept / "a-directory.vft").mkdir()
    os.mkfifo(kept / "fifo.vft")
    contents = index.read(kept)
    assert rows(kept) == before
    named = [Path(note.partition(":")[0]).name for note in contents.notes]
    assert named == ["bomb.vft.gz", "empty.vft", "head.vft", "text.vft"]
    assert all("\n" not in note for note in contents.notes)
    assert index.read(kept) == contents


def test_a_recording_that_is_cut_is_listed_as_such(tmp_path: Path) -> None:
    whole = gzip.decompress(recording("completed-fast").read_bytes())
    (tmp_path / "cut.vft").write_bytes(whole[: len(whole) * 2 // 3])
    (entry,) = index.read(tmp_path).entries
    assert entry.damage == NOT_CLOSED
    assert len(entry.rows) == 1


def test_a_file_that_is_being_written(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read each time, and what it holds may still run; it is not kept in the index."""
    records = list(index_records("there-and-back"))
    writer = RecordingWriter(kept / "now.vft", HOST)
    writer.write(records[: len(records) // 4])
    found = [r for r in index.rows(index.read(kept)) if r.file == "now.vft"]
    assert [r.outcome for r in found] == [None]
    assert b'"now.vft"' not in (kept / index.NAME).read_bytes()
    writer.write(records[len(records) // 4 :])
    writer.close()
    found = [r for r in index.rows(index.read(kept)) if r.file == "now.vft"]
    assert [r.outcome for r in found] == ["completed", "completed"]
    assert b'"now.vft"' in (kept / index.NAME).read_bytes()


def index_records(name: str) -> list[bytes]:
    from vftrace.collect.recording import Recording

    return list(Recording(recording(name)))


def test_one_migration_in_two_files_is_listed_once(kept: Path) -> None:
    """The whole recording's row is kept, not that of the one that was cut."""
    whole = gzip.decompress(recording("completed-fast").read_bytes())
    (kept / "also.vft").write_bytes(whole[: len(whole) // 2])
    found = [r for r in rows(kept) if r[2] == "demo-completed-fast"]
    assert found == [("completed-fast.vft.gz", 1, "demo-completed-fast", "completed")]


def test_a_directory_that_cannot_be_written(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(kept)
    (kept / index.NAME).unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vftrace.archive.index.tempfile.mkstemp", refuse)
    contents = index.read(kept)
    assert [(r.file, r.number, r.name, r.outcome) for r in index.rows(contents)] == before
    (note,) = contents.notes
    assert "cannot write" in note
    assert "Permission denied" in note


def test_a_recorder_renames_a_file_meanwhile(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the directory and the look into the file its migration ends; another is removed."""
    before = rows(kept)
    (kept / index.NAME).unlink()
    look = index._look

    def rename_first(path: Path, status: os.stat_result) -> tuple[index.Entry, bool]:
        if path.name == "completed-fast.vft.gz":
            path.rename(kept / "renamed.vft.gz")
        if path.name == "there-and-back.vft.gz":
            path.unlink()
        return look(path, status)

    monkeypatch.setattr(index, "_look", rename_first)
    contents = index.read(kept)
    assert contents.notes == ()
    found = {(r.file, r.number, r.name, r.outcome) for r in index.rows(contents)}
    assert found == {
        ("renamed.vft.gz" if file.startswith("completed") else file, *rest)
        for file, *rest in before
        if not file.startswith("there")
    }
    monkeypatch.undo()
    assert index.read(kept) == contents


@pytest.mark.needs("root")
def test_the_recorders_user_can_continue_with_an_index_that_root_made(kept: Path) -> None:
    """`sudo vftrace list` in the directory of a service that has a user of its own."""
    nobody = 65534
    os.chown(kept, nobody, nobody)
    index.read(kept)
    status = (kept / index.NAME).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (nobody, nobody, 0o600)


def test_an_index_of_another_user_is_replaced(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(kept)
    real = os.open

    def refuse(path: Path, flags: int, *args: int) -> int:
        if Path(path).name == index.NAME and flags & os.O_APPEND:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    assert index.add(kept / "boot.vft.gz") is None
    assert (kept / index.NAME).read_bytes().count(b"\n") == 2
    assert rows(kept) == before


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VftraceError, match="No such file"):
        index.read(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(VftraceError, match="Not a directory"):
        index.read(tmp_path / "file")


def test_a_reader_and_a_writer_at_once(tmp_path: Path) -> None:
    """Whatever a reader finds between two steps of a recorder, each closed file is listed."""
    for number in range(20):
        name = tmp_path / f"{number:02}.vft.gz"
        shutil.copy(recording("retry"), name)
        os.utime(name, ns=(number, number))
        if number % 3:
            index.add(name)
        entries = index.read(tmp_path).entries
        assert [e.file for e in entries] == [f"{n:02}.vft.gz" for n in range(number + 1)]
        assert all(len(e.rows) == 2 for e in entries)


def test_a_thousand_migrations_are_listed_in_a_second(tmp_path: Path) -> None:
    """The goal for a directory that a recorder has filled, in CPU time."""
    source = recording("completed-fast")
    for number in range(1000):
        os.link(source, tmp_path / f"{number:04}.vft.gz")
    one = tmp_path / "0000.vft.gz"
    index.add(one)
    head, line = (tmp_path / index.NAME).read_bytes().splitlines(keepends=True)
    lines = (line.replace(b"0000.vft.gz", f"{n:04}.vft.gz".encode()) for n in range(1000))
    (tmp_path / index.NAME).write_bytes(head + b"".join(lines))
    began = time.process_time()
    entries = index.read(tmp_path).entries
    assert time.process_time() - began < 1.0
    assert len(entries) == 1000


def test_two_hosts_name_each_other(tmp_path: Path) -> None:
    """The source knows the address that it sent to: tests/lab/vftlab/hosts.py numbers the hosts."""
    shutil.copy(GOLDEN / "experiment" / "all" / "a-host.vft.gz", tmp_path)
    found = index.rows(index.read(tmp_path))
    assert {r.source for r in found if r.role == "source"} == {"host-a"}
    assert {r.destination for r in found if r.role == "source"} == {"10.8.0.2"}
