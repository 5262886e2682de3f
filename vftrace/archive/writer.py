# SPDX-License-Identifier: MIT
"""Writes recordings in a thread of its own, so that a slow, full, read-only or missing disk costs files and never
tracing.

Each `append` becomes a part of a gzip stream that ends on a whole byte (Z_SYNC_FLUSH), so the written part is readable
however vftrace ends. An empty gzip member ends a closed recording, as in BGZF files: the last bytes of a file show
whether its writer closed it or was killed.
"""

import errno
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path

import msgspec

from vftrace.archive.finish import CLOSED, PART, finish_all
from vftrace.archive.index import Row
from vftrace.archive.names import FileName
from vftrace.archive.retention import Limits, enforce
from vftrace.collect.recording import lock
from vftrace.model.recorder import RecorderState

LEVEL = 3
"""gzip's level: at 9 a recording is 9 % smaller and costs 16 times the CPU (docs/results/flight.md)."""
MAX_WAITING_BYTES = 32 << 20
"""How many bytes wait for a slow disk; records beyond that are missing in their file."""
MAX_WAITING = 4096
LOOK_S = 10.0
"""How often the limits are enforced while no recording is closed."""
RETRY_S = 60.0
"""How often finishing recordings after a full disk is tried again."""


class Handle:
    """One recording that is being written. Only its writer uses the members with an underscore."""

    def __init__(self, name: FileName) -> None:
        self.name = name
        self.row: Row | None = None
        """The row of its migration, if that is known without reading the file."""
        self.lost = False
        """Whether the recording is missing or incomplete."""
        self._file: FileIO | None = None
        self._path: Path | None = None
        self._compressor = zlib.compressobj(LEVEL, wbits=31)
        self._good = 0
        """The offset up to which the file can be read."""


class _Task(msgspec.Struct, frozen=True):
    run: Callable[[], None]
    handle: Handle
    size: int


class Writer:
    """The recordings of one directory. Every method returns at once; one thread may call them."""

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        say: Callable[[str], None],
        closed: Callable[[Path, Row | None], None],
    ) -> None:
        """`say` gets one line about each kind of trouble. `closed` gets the path of each closed recording and the row
        that was passed to `close`. The writer's thread calls both.
        """
        self.directory = directory
        self._limits = limits
        self._say = say
        self._closed = closed
        self._tasks: deque[_Task] = deque()
        self._waiting = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._writing: set[str] = set()
        self._said: set[str] = set()
        self._files = self._bytes = self._lost = self._errors = 0
        self._unfinished = True
        self._next_look = self._next_finish = 0.0
        self._thread = threading.Thread(target=self._run, name="flight-recorder", daemon=True)

    def start(self) -> None:
        """Start the thread; it first finishes the recordings of a killed recorder."""
        self._thread.start()

    @property
    def state(self) -> RecorderState:
        """The state of the recorder: kept and lost recordings."""
        return RecorderState(self._files, self._bytes, self._lost, self._errors)

    # -- called by the recorder -----------------------------------------------------------------

    def create(self, name: FileName, head: bytes) -> Handle:
        """Begin a recording with these bytes."""
        handle = Handle(name)
        self._put(handle, partial(self._create, handle, name, head), len(head))
        return handle

    def append(self, handle: Handle, data: bytes) -> None:
        """Write more records; they are left out, and counted, if too much waits for the disk."""
        self._put(handle, partial(self._append, handle, data), len(data))

    def rename(self, handle: Handle, name: FileName) -> None:
        """Give the recording the name of its outcome; more may be written to it."""
        if str(name) != str(handle.name):
            handle.name = name
            self._put(handle, partial(self._rename, handle, name))

    def close(self, handle: Handle, name: FileName, tail: bytes, row: Row | None = None) -> None:
        """Write the last records, and close the recording under its final name; `row` is its migration's row."""
        handle.name, handle.row = name, row
        self._put(handle, partial(self._close, handle, name, tail), len(tail))

    def discard(self, handle: Handle) -> None:
        """Delete the recording: another one has its contents."""
        self._put(handle, partial(self._discard, handle))

    def lose(self, why: str) -> None:
        """Count a recording that was not begun."""
        with self._wake:
            self._lost += 1
        self.say_once(why)

    def stop(self, timeout_s: float) -> None:
        """Write the waiting records for at most this time, and end. The remaining records are lost."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._wake:
                for task in self._tasks:
                    self._count_lost(task.handle)
            self.say_once(f"{self.directory} is too slow: the records that still waited are lost")

    def _put(self, handle: Handle, run: Callable[[], None], size: int = 0) -> None:
        with self._wake:
            fits = size == 0 or self._waiting + size <= MAX_WAITING_BYTES
            if fits and len(self._tasks) < MAX_WAITING:
                self._tasks.append(_Task(run, handle, size))
                self._waiting += size
                self._wake.notify()
                return
            self._count_lost(handle)
        self.say_once(f"{self.directory} is too slow: records are left out of recordings")

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        self._guard(self._make_directory)
        while True:
            with self._wake:
                if not self._tasks and not self._stopping:
                    self._wake.wait(max(0.0, self._next_look - time.monotonic()))
                task = self._tasks.popleft() if self._tasks else None
                stopped = task is None and self._stopping
            if stopped:
                self._guard(self._look)
                return
            if task is not None:
                if not self._guard(task.run):
                    self._give_up(task.handle)
                with self._wake:
                    self._waiting -= task.size
            if time.monotonic() >= self._next_look and not self._stopping:
                self._guard(self._look)

    def _guard(self, run: Callable[[], object]) -> bool:
        """Run a disk operation; returns False, counts and reports if the disk fails."""
        try:
            run()
        except OSError as error:
            with self._wake:
                self._errors += 1
            self.say_once(f"cannot write to {self.directory}: {error.strerror}")
            return False
        return True

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _create(self, handle: Handle, name: FileName, head: bytes) -> None:
        # The file gets its name once it has something to read.
        path = self.directory / f"{name}{PART}"
        try:
            handle._file = _open_new(path)
        except FileNotFoundError:
            self._make_directory()
            handle._file = _open_new(path)
        handle._path = path
        self._append(handle, head)
        self._rename(handle, name)

    def _append(self, handle: Handle, data: bytes) -> None:
        if handle._file is None:
            return
        packed = handle._compressor.compress(data)
        packed += handle._compressor.flush(zlib.Z_SYNC_FLUSH)
        if handle._good + len(packed) > self._limits.max_bytes:
            raise OSError(errno.EFBIG, "one recording is larger than the limit for all recordings")
        self._write(handle._file, packed)
        handle._good += len(packed)

    def _write(self, file: FileIO, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def _rename(self, handle: Handle, name: FileName) -> None:
        if handle._path is None:
            return
        path = self.directory / str(name)
        handle._path.rename(path)
        self._writing.discard(handle._path.name)
        self._writing.add(path.name)
        handle._path = path

    def _close(self, handle: Handle, name: FileName, tail: bytes) -> None:
        file = handle._file
        if file is not None:
            packed = handle._compressor.compress(tail) + handle._compressor.flush()
            self._write(file, packed + CLOSED)
            if os.fstat(file.fileno()).st_nlink == 0:
                raise OSError(errno.ENOENT, "a recording was deleted while it was written")
        self._rename(handle, name)
        if file is not None:
            file.close()
            handle._file = None
        if handle._path is not None:
            self._writing.discard(handle._path.name)
            if not handle.lost:
                self._closed(handle._path, handle.row)
        self._next_look = 0.0

    def _discard(self, handle: Handle) -> None:
        if handle._file is not None:
            handle._file.close()
            handle._file = None
        if handle._path is not None:
            self._writing.discard(handle._path.name)
            handle._path.unlink(missing_ok=True)

    def _give_up(self, handle: Handle) -> None:
        """Leave a recording with its readable part; it gets its end when there is room again."""
        with self._wake:
            self._count_lost(handle)
        file, handle._file = handle._file, None
        if file is None:
            return
        self._unfinished = True
        self._guard(partial(file.truncate, handle._good))
        self._guard(file.close)
        if handle._path is not None:
            self._writing.discard(handle._path.name)
            if handle._good == 0 or handle._path.name.endswith(PART):
                # The file has nothing of its migration.
                self._guard(partial(handle._path.unlink, missing_ok=True))
                handle._path = None

    def _look(self) -> None:
        """Finish recordings without an end, and delete recordings beyond the limits."""
        now = time.monotonic()
        self._next_look = now + LOOK_S
        if self._unfinished and now >= self._next_finish:
            self._next_finish = now + RETRY_S
            self._unfinished = not finish_all(
                self.directory, self._writing, lambda path: self._closed(path, None)
            )
        kept = enforce(self.directory, self._limits, self._writing)
        self._files, self._bytes = kept.files, kept.bytes

    def _count_lost(self, handle: Handle) -> None:
        if not handle.lost:
            handle.lost = True
            self._lost += 1

    def say_once(self, line: str) -> None:
        """Report a kind of trouble once."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def _open_new(path: Path) -> FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = FileIO(os.open(path, flags, 0o600), "wb")
    lock(file)
    return file
