# SPDX-License-Identifier: MIT
"""The writer of kept recordings beside disks that are full, slow, read-only or gone, and after a kill."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import pytest

from tests.unit.golden_text import recording
from tests.unit.recorded import LIMITS, fly, kept, migrations_of
from vftrace import events
from vftrace.archive.finish import finish_all, is_closed
from vftrace.archive.names import RUNNING, FileName
from vftrace.archive.retention import Kept, Limits, enforce
from vftrace.archive.writer import MAX_WAITING_BYTES, Handle, Writer
from vftrace.collect.recording import (
    BEING_WRITTEN,
    NOT_CLOSED,
    Recording,
    frames_of,
    head_of,
)
from vftrace.events import COLLECTOR, wire
from vftrace.model.host import HostInfo

HOST = HostInfo("host", "boot", "6.1", "0.1", 1, ())
AT = datetime(2026, 11, 29, 22, 55, 6, 0, UTC)


def tick(number: int) -> bytes:
    return wire.encode(events.Tick(number, number, COLLECTOR, 1))


def end(number: int) -> bytes:
    return wire.encode(events.End(number, number, COLLECTOR, 1, {}))


def name_of(number: int, outcome: str = RUNNING) -> FileName:
    return FileName(AT.replace(second=number), "vm", outcome, f"{number:08x}")


class Disk:
    """A writer with its messages and closed files; `refuse` is called before each write to a file."""

    def __init__(self, directory: Path, limits: Limits = LIMITS) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.closed: list[Path] = []
        self.refuse: Callable[[], None] = lambda: None
        self.writer = Writer(
            directory, limits, self.said.append, lambda path, _: self.closed.append(path)
        )
        write = self.writer._write

        def asked(file: FileIO, data: bytes) -> None:
            self.refuse()
            write(file, data)

        self.writer._write = asked  # type: ignore[method-assign]
        self.writer.start()

    def create(self, number: int) -> Handle:
        return self.writer.create(name_of(number), head_of(HOST))

    def one(self, number: int) -> Handle:
        """A recording of a migration that completed."""
        handle = self.create(number)
        self.writer.append(handle, frames_of([tick(0)]))
        self.writer.rename(handle, name_of(number, "completed"))
        self.writer.close(handle, name_of(number, "completed"), frames_of([end(1)]))
        return handle

    def settle(self) -> None:
        """Wait until all of this is done."""
        deadline = time.monotonic() + 20
        while self.writer._tasks or self.writer._waiting:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.02)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.glob("*.vft.gz"))


@contextmanager
def disk(directory: Path, limits: Limits = LIMITS) -> Iterator[Disk]:
    made = Disk(directory, limits)
    try:
        yield made
    finally:
        made.refuse = lambda: None
        made.writer.stop(10)


def block(go_on: threading.Event) -> None:
    assert go_on.wait(20)


def raiser(number: int) -> Callable[[], None]:
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_recording_has_the_name_of_its_state(tmp_path: Path) -> None:
    with disk(tmp_path / "new" / "kept") as made:
        handle = made.create(1)
        made.writer.append(handle, frames_of([tick(0)]))
        made.settle()
        assert made.files == [str(name_of(1))]
        path = made.directory / str(name_of(1))
        running = Recording(path)
        assert list(running) == [tick(0)]
        assert running.not_whole == BEING_WRITTEN
        made.writer.rename(handle, name_of(1, "failed"))
        made.settle()
        assert made.files == [str(name_of(1, "failed"))]
        made.writer.close(handle, name_of(1, "failed"), frames_of([end(1)]))
    path = made.directory / str(name_of(1, "failed"))
    closed = Recording(path)
    assert list(closed) == [tick(0), end(1)]
    assert closed.not_whole is None
    assert made.closed == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.directory.stat().st_mode & 0o777 == 0o700
    assert made.writer.state.files == 1


def test_a_full_disk_costs_the_files_that_it_refuses(tmp_path: Path) -> None:
    """What was written until then is read; when there is room again it gets its end."""
    with disk(tmp_path) as made:
        handle = made.create(1)
        made.writer.append(handle, frames_of([tick(0)]))
        made.settle()
        made.refuse = raiser(errno.ENOSPC)
        made.writer.append(handle, frames_of([tick(1)]))
        made.writer.append(handle, frames_of([tick(2)]))
        made.writer.close(handle, name_of(1, "completed"), frames_of([end(3)]))
        made.one(2)
        made.settle()
        assert made.writer.state.lost_files == 2
        assert made.writer.state.write_errors == 2
        assert made.said == [f"cannot write to {tmp_path}: No space left on device"]
        assert made.files == [str(name_of(1, "completed"))]
        left = Recording(tmp_path / made.files[0])
        assert list(left) == [tick(0)]
        assert left.not_whole == NOT_CLOSED
        made.refuse = lambda: None
        made.one(3)
        made.settle()
        assert made.writer.state.lost_files == 2
        assert finish_all(tmp_path, (), made.closed.append)
    assert made.files == [str(name_of(1, "completed")), str(name_of(3, "completed"))]
    finished = Recording(tmp_path / made.files[0])
    assert [wire.decode(record) for record in finished][1:] == [events.End(0, 1, COLLECTOR, 1, {})]
    assert finished.not_whole is None


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """As on a read-only disk."""
    (tmp_path / "file").write_text("")
    with disk(tmp_path / "file" / "kept") as made:
        made.one(1)
        made.one(2)
        made.settle()
        assert made.writer.state.lost_files == 2
        assert all("Not a directory" in line for line in made.said)
        assert len(made.said) <= 2
        (tmp_path / "file").unlink()
        made.one(3)
    assert made.writer.state.lost_files == 2
    assert made.files == [str(name_of(3, "completed"))]


def test_a_directory_that_vanishes(tmp_path: Path) -> None:
    with disk(tmp_path / "kept") as made:
        made.one(1)
        handle = made.create(2)
        made.settle()
        shutil.rmtree(tmp_path / "kept")
        made.writer.append(handle, frames_of([tick(0)]))
        made.writer.close(handle, name_of(2, "completed"), frames_of([end(1)]))
        made.settle()
        assert made.writer.state.lost_files == 1
        made.one(3)
    assert made.files == [str(name_of(3, "completed"))]
    assert made.writer.state.lost_files == 1


def test_a_slow_disk_does_not_hold_whoever_records(tmp_path: Path) -> None:
    with disk(tmp_path) as made:
        first, second = made.create(1), made.create(2)
        made.settle()
        go_on = threading.Event()
        made.refuse = lambda: block(go_on)
        chunk = bytes(1 << 20)
        began = time.monotonic()
        for _ in range(2 * MAX_WAITING_BYTES // len(chunk)):
            made.writer.append(first, chunk)
        assert time.monotonic() - began < 1
        assert made.writer.state.lost_files == 1
        assert made.said == [f"{tmp_path} is too slow: records are left out of recordings"]
        go_on.set()
        made.settle()
        made.writer.append(second, frames_of([tick(0)]))
        made.writer.close(second, name_of(2, "failed"), frames_of([end(1)]))
        made.settle()
        assert made.writer.state.lost_files == 1
        assert migrations_of(tmp_path / str(name_of(2, "failed"))) == ()


def test_a_disk_that_never_answers_does_not_hold_the_end(tmp_path: Path) -> None:
    made = Disk(tmp_path)
    go_on = threading.Event()
    made.refuse = lambda: block(go_on)
    made.one(1)
    began = time.monotonic()
    made.writer.stop(0.2)
    assert time.monotonic() - began < 2
    assert made.writer.state.lost_files == 1
    go_on.set()
    made.writer.stop(10)


def test_one_recording_may_not_be_larger_than_all(tmp_path: Path) -> None:
    chance = random.Random(1)
    with disk(tmp_path, Limits(LIMITS.retain_ns, 20_000)) as made:
        handle = made.create(1)
        for _ in range(10):
            made.writer.append(handle, chance.randbytes(10_000))
        made.settle()
        assert made.writer.state.lost_files == 1
        assert (tmp_path / str(name_of(1))).stat().st_size <= 20_000


def test_a_discarded_recording_is_gone(tmp_path: Path) -> None:
    with disk(tmp_path) as made:
        made.writer.discard(made.create(1))
    assert made.files == []
    assert made.writer.state.lost_files == 0


# -- what is kept how long ---------------------------------------------------------------------


def kept_files(directory: Path, count: int, size: int) -> list[Path]:
    """Recordings, the oldest first, an hour apart by their end."""
    now = time.time()
    paths = [directory / str(name_of(number, "completed")) for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(size))
        ended = now - (count - number) * 3600
        os.utime(path, (ended, ended))
    return paths


def test_the_oldest_go_first_when_they_are_too_much(tmp_path: Path) -> None:
    paths = kept_files(tmp_path, 5, 4096)
    other = tmp_path / "notes.txt"
    other.write_bytes(bytes(100_000))
    assert enforce(tmp_path, Limits(10**18, 3 * 4096), ()) == Kept(3, 3 * 4096)
    assert sorted(tmp_path.glob("*.vft.gz")) == paths[2:]
    assert other.exists()


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    paths = kept_files(tmp_path, 5, 4096)
    hours = 3600 * 10**9
    assert enforce(tmp_path, Limits(2 * hours + hours // 2, 1 << 30), ()).files == 2
    assert sorted(tmp_path.glob("*.vft.gz")) == paths[3:]


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    """Named by this recorder, or locked by another."""
    paths = kept_files(tmp_path, 4, 4096)
    with disk(tmp_path / "other") as other:
        handle = other.create(1)
        other.settle()
        locked = tmp_path / str(handle.name)
        (other.directory / str(handle.name)).rename(locked)
        assert enforce(tmp_path, Limits(0, 0), {paths[1].name}).files == 2
    assert sorted(tmp_path.glob("*.vft.gz")) == sorted([paths[1], locked])


# -- kill -9 -----------------------------------------------------------------------------------

FLY = """
import sys, time
from pathlib import Path
from tests.unit.recorded import fly
from vftrace.collect.recording import Recording
recording = Recording(Path(sys.argv[1]))
print("begin", flush=True)
fly(recording.host, recording, Path(sys.argv[2]), after=lambda _: time.sleep(0.01))
"""


def test_whenever_it_is_killed_a_recording_is_readable_and_is_finished(tmp_path: Path) -> None:
    path = recording("retry")
    fly(Recording(path).host, Recording(path), tmp_path / "whole")
    whole = {
        file.name.rsplit("-", 1)[1]: list(Recording(file)) for file, _ in kept(tmp_path / "whole")
    }
    chance = random.Random(7)
    cut = 0
    for number in range(10):
        directory = tmp_path / f"killed-{number}"
        with subprocess.Popen(
            [sys.executable, "-c", FLY, path, directory], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begin\n"
            time.sleep(chance.uniform(0.1, 1.2))
            child.send_signal(signal.SIGKILL)
        before = {}
        for file in directory.glob("*.vft.gz"):
            left = Recording(file)
            records = list(left)
            unique = file.name.rsplit("-", 1)[1]
            assert left.damage is None
            if not is_closed(file):
                assert left.not_whole == NOT_CLOSED
                cut += 1
                assert records == whole[unique][: len(records)]
            before[unique] = records
        if directory.exists():
            assert finish_all(directory, (), lambda _: None)
        for file in directory.glob("*.vft.gz"):
            name = FileName.parse(file.name)
            assert name is not None
            assert not name.running
            finished = Recording(file)
            records = list(finished)
            assert finished.not_whole is None
            assert (
                records[: len(before[f"{name.unique}.vft.gz"])] == before[f"{name.unique}.vft.gz"]
            )
            assert len(migrations_of(file)) <= 1
        assert not list(directory.glob("*.part"))
    assert cut > 2


def test_what_another_recorder_writes_is_not_finished(tmp_path: Path) -> None:
    with disk(tmp_path) as made:
        handle = made.create(1)
        made.writer.append(handle, frames_of([tick(0)]))
        made.settle()
        assert finish_all(tmp_path, (), made.closed.append)
        assert made.files == [str(name_of(1))]
        assert made.closed == []


def test_a_recorder_finishes_what_was_left_when_it_begins(tmp_path: Path) -> None:
    with disk(tmp_path / "left") as made:
        handle = made.create(1)
        made.writer.append(handle, frames_of([tick(0)]))
        made.settle()
        shutil.copytree(tmp_path / "left", tmp_path / "kept")  # as a kill would leave it
    (tmp_path / "kept" / str(name_of(2))).write_bytes(b"")
    (tmp_path / "kept" / f"{name_of(3, 'failed')}.part").write_bytes(b"")
    with disk(tmp_path / "kept") as made:
        pass
    assert made.files == [str(name_of(1, "unknown"))]
    assert [path.name for path in made.closed] == made.files
    assert not list((tmp_path / "kept").glob("*.part"))


def test_a_damaged_recording_is_left_as_it_is(tmp_path: Path) -> None:
    with disk(tmp_path) as made:
        handle = made.create(1)
        made.writer.append(handle, frames_of([tick(0)])[:-1] + b"\xff")
        made.writer.append(handle, frames_of([tick(1)]))
        made.settle()
        data = (tmp_path / str(name_of(1))).read_bytes()
    path = tmp_path / str(name_of(9))
    path.write_bytes(data)
    finish_all(tmp_path, {str(name_of(1))}, made.closed.append)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "content", [head_of(HOST)[:9], head_of(HOST).replace(b'"version": 1', b'"version": 9'), b"?"]
)
def test_what_it_cannot_read_is_not_deleted(content: bytes, tmp_path: Path) -> None:
    """A recording that a later vftrace wrote, before this one was installed again, among others."""
    path = tmp_path / str(name_of(1))
    path.write_bytes(content)
    assert finish_all(tmp_path, (), lambda _: None)
    assert path.read_bytes() == content


def test_an_empty_recording_is_deleted(tmp_path: Path) -> None:
    """As a machine leaves it that goes down before the disk has written anything."""
    path = tmp_path / str(name_of(1))
    path.touch()
    assert finish_all(tmp_path, (), lambda _: None)
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EDQUOT, errno.ESTALE])
def test_every_refusal_is_reported_once(tmp_path: Path, number: int) -> None:
    with disk(tmp_path) as made:
        made.refuse = raiser(number)
        for each in range(5):
            made.one(each)
        made.settle()
        assert made.said == [f"cannot write to {tmp_path}: {os.strerror(number)}"]
        assert made.writer.state.lost_files == made.writer.state.write_errors == 5
