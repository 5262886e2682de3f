# SPDX-License-Identifier: MIT
"""Provides the data of the host's page of `vftrace serve`, from the tracker and from the kept recordings."""

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec

from vftrace.errors import VftraceError
from vftrace.model import figures
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration, Outcome, Role, Snapshot
from vftrace.model.report import HostReport, MigrationReport, Report
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.site import PAST_SHOWN, Download, HostView, Past, id_of

if TYPE_CHECKING:
    from vftrace.archive.index import Row

REPORT_SECONDS = 60
"""How long the report of a recording may take."""
REPORT_BYTES = 64 << 20
REPORT_MEMORY = 2 << 30
"""The limit of a report's address space, against recordings that are made to fill the memory."""
CACHED_BYTES = 32 << 20
CACHED_REPORTS = 32

_ERROR_BYTES = 64 << 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Kept(msgspec.Struct, frozen=True):
    """A migration in a recording: `file` is the recording's path."""

    past: Past
    file: Path


class Archive(Protocol):
    """The recordings that a flight recorder keeps. Several threads may call its methods."""

    @property
    def directory(self) -> Path:
        """The directory of the recordings."""

    def kept(self) -> Sequence[Kept]:
        """Return every migration that is kept, newest first. Raises VftraceError where the directory cannot be read."""


class HostSite:
    """A `Site`: the migrations in memory and in the archive, each once."""

    def __init__(self, read: Callable[[], Reading | None], archive: Archive | None = None) -> None:
        """`read` returns None until there is data."""
        self._read = read
        self._archive = archive
        self._reports = Reports()

    def close(self) -> None:
        """End the reports that are being made."""
        self._reports.close()

    def view(self) -> HostView | None:
        """Return the present host."""
        reading = self._read()
        if reading is None:
            return None
        snapshot, host = reading.snapshot, reading.host
        now = figures.wall_time(snapshot.clock, reading.now_ns) or datetime.now(UTC)
        notes: tuple[str, ...] = ()
        try:
            kept = self._kept()
        except VftraceError as error:
            kept, notes = (), (str(error),)
        past = {p.id: p for p in _in_memory(host, snapshot)}
        # The kept migration has the same data, and a recording.
        past |= {k.past.id: k.past for k in kept}
        newest = sorted(past.values(), key=lambda p: p.started or _EPOCH, reverse=True)
        return HostView(
            host=host.name,
            now=now,
            now_ns=reading.now_ns,
            snapshot=snapshot,
            boot_id=host.boot_id,
            past=tuple(newest[:PAST_SHOWN]),
            past_count=len(newest),
            recordings=None if self._archive is None else str(self._archive.directory),
            notes=notes,
        )

    def report(self, migration: str) -> bytes | None:
        """Return the report, of the recording if there is one, else of the migration in memory."""
        path = self._file(migration)
        if path is not None:
            found = self._reports.of(path)
            if found is not None:
                return found
        return self._from_memory(migration)

    def recording(self, migration: str) -> Download | None:
        """Return the recording of a migration."""
        path = self._file(migration)
        if path is None:
            return None
        try:
            # Only files of the directory itself, under their present names.
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
            return Download(path.name, file, os.fstat(file.fileno()).st_size)
        except OSError:
            return None

    def _kept(self) -> Sequence[Kept]:
        return () if self._archive is None else self._archive.kept()

    def _file(self, migration: str) -> Path | None:
        try:
            return next((k.file for k in self._kept() if k.past.id == migration), None)
        except VftraceError:
            return None

    def _from_memory(self, migration: str) -> bytes | None:
        from vftrace.outputs.report.html import render_html

        reading = self._read()
        if reading is None:
            return None
        host = HostReport(reading.host, reading.snapshot)
        found = [
            MigrationReport.of_one_host(host, m)
            for m in reading.snapshot.migrations
            if id_of(reading.host.boot_id, m.pid, m.started_at_ns) == migration
        ]
        return render_html(Report((host,), tuple(found))).encode() if found else None


def _in_memory(host: HostInfo, snapshot: Snapshot) -> Iterable[Past]:
    return (_past_of(host, snapshot, m) for m in snapshot.migrations if m.outcome is not None)


def _past_of(host: HostInfo, snapshot: Snapshot, m: Migration) -> Past:
    other = host.name if m.peer_pid is not None else m.channel.peer
    ends = (None, host.name) if m.role == Role.DESTINATION else (host.name, other)
    return Past(
        id=id_of(host.boot_id, m.pid, m.started_at_ns),
        started=figures.wall_time(snapshot.clock, m.started_at_ns),
        vm=figures.label(m.name, m.uuid, m.pid),
        uuid=m.uuid,
        source=ends[0],
        destination=ends[1],
        strategy=m.strategy,
        outcome=m.outcome or Outcome.UNKNOWN,
        cause=m.cause,
        total_ns=figures.total_ns(m),
        downtime_ns=m.downtime.vcpu_ns,
        set_by=m.downtime.set_by,
    )


class IndexedArchive:
    """The archive according to the index beside the recordings; no recording is read.

    A recording that is still being written is not in the index: its migration is in memory. The index is read again
    when the directory or the index has changed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._state: object = None
        self._kept: tuple[Kept, ...] = ()

    def kept(self) -> tuple[Kept, ...]:
        """Return every migration that is kept, newest first. Raises VftraceError where the directory cannot be read."""
        from vftrace.archive import index

        with self._lock:
            state = self._look()
            if state is None or state != self._state:
                rows = index.rows(index.known(self.directory))
                self._kept = tuple(self._kept_of(row) for row in reversed(rows))
                self._state = state
            return self._kept

    def _look(self) -> object:
        from vftrace.archive import index

        try:
            own, beside = self.directory.stat(), (self.directory / index.NAME).stat()
        except OSError:
            return None
        return own.st_mtime_ns, beside.st_mtime_ns, beside.st_size

    def _kept_of(self, row: "Row") -> Kept:
        past = Past(
            id=id_of(row.boot_id, row.pid, row.started_at_ns),
            started=figures.utc_time(row.started_ns),
            vm=figures.label(row.name, row.uuid, row.pid),
            uuid=row.uuid,
            source=row.source,
            destination=row.destination,
            strategy=row.strategy,
            outcome=row.outcome or Outcome.UNKNOWN,
            cause=row.cause,
            total_ns=row.total_ns,
            downtime_ns=row.downtime_ns,
            set_by=row.set_by,
            kept=True,
        )
        return Kept(past, self.directory / row.file)


class Reports:
    """Makes HTML reports of recordings in a process of their own, so that a large or hostile recording affects neither
    the tracing nor the scrapes; the latest reports are kept."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._building: dict[tuple[str, int, int], threading.Lock] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def close(self) -> None:
        """End the reports that are being made."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()

    def of(self, path: Path) -> bytes | None:
        """Return the report of a recording; None if the file does not exist. Raises VftraceError if it cannot be
        made."""
        try:
            status = path.stat()
        except OSError:
            return None
        key = (str(path), status.st_size, status.st_mtime_ns)
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        # Other requests for the same report wait for it.
        with building:
            found = self._cached(key)
            if found is None:
                try:
                    found = self._build(path)
                finally:
                    with self._lock:
                        self._building.pop(key, None)
                self._keep(key, found)
        return found

    def _cached(self, key: tuple[str, int, int]) -> bytes | None:
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                self._building.pop(key, None)
            return found

    def _keep(self, key: tuple[str, int, int], report: bytes) -> None:
        with self._lock:
            self._cache[key] = report
            while len(self._cache) > CACHED_REPORTS or (
                sum(map(len, self._cache.values())) > CACHED_BYTES and len(self._cache) > 1
            ):
                self._cache.popitem(last=False)

    def _build(self, path: Path) -> bytes:
        """Run `vftrace report` at low priority and with limited memory. Raises VftraceError, one line."""
        module = ["-P", "-m", "vftrace", "report", "--format", "html", "--", str(path)]
        with _memory("report") as output, _memory("errors") as errors:
            with self._lock:
                if self._closed:
                    raise VftraceError("vftrace is ending")
                try:
                    process = subprocess.Popen(
                        [sys.executable, *module],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=errors,
                        cwd="/",
                    )
                except OSError as error:
                    said = f"cannot run vftrace report: {error.strerror}"
                    raise VftraceError(said) from error
                self._processes.add(process)
            try:
                _restrain(process.pid)
                code = process.wait(REPORT_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise VftraceError(f"it takes longer than {REPORT_SECONDS} s") from error
            finally:
                process.kill()
                process.wait()
                with self._lock:
                    self._processes.discard(process)
            # A write that reaches the limit is cut, and the writer may not notice.
            if output.seek(0, os.SEEK_END) >= REPORT_BYTES:
                raise VftraceError(f"it is larger than {REPORT_BYTES >> 20} MiB")
            output.seek(0)
            errors.seek(0)
            if code == 0:
                return output.read()
            lines = errors.read(_ERROR_BYTES).decode(errors="replace").strip().splitlines()
            raise VftraceError(lines[-1] if lines else f"vftrace report ended with {code}")


def _memory(name: str) -> BinaryIO:
    """Return a file in memory, because a container may have a read-only file system."""
    return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b")


def _restrain(pid: int) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, pid, 15)
    for limit, most in ((resource.RLIMIT_AS, REPORT_MEMORY), (resource.RLIMIT_FSIZE, REPORT_BYTES)):
        with contextlib.suppress(OSError):
            resource.prlimit(pid, limit, (most, most))
