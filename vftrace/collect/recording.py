# SPDX-License-Identifier: MIT
"""Writes and reads recordings: raw records as they arrived, and the host that they are from.

Layout: `MAGIC`, a u32 length and that many bytes of JSON (the host), then frames of a u32
CRC-32 and one record (its header has its size). A cut or damaged frame ends the file.
gzip-compressed recordings are read directly. The last record of a complete recording is `events.End`.

The writer holds a lock (flock(2)) on a recording while it writes. The kernel releases the lock however the writer
ends, so a reader can distinguish a recording that is being written from one whose writer was killed.

The compatibility promise (docs/reference/recordings.md): a version ignores keys of the first line and kinds of records
that it does not know, and `VERSION` changes only if ignoring them would give wrong results.
"""

import contextlib
import fcntl
import gzip
import json
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import crc32

from msgspec.structs import asdict

from vftrace.errors import UsageError, VftraceError
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo, ProbeStatus
from vftrace.probes.registry import WAITS

MAGIC = b"VFTRACE1"
VERSION = 1
STANDARD = Path("-")
"""The path that stands for standard output for a writer, and standard input for a reader."""
_EARLIER_WAITS = frozenset({"no module ixgbe or igb is loaded"})
"""A reason of a waiting probe in recordings of 0.1, which do not list waiting probes. vftrace no longer gives it."""
_U32 = struct.Struct("<I")
_FRAME = struct.Struct("<I16xI12x")
"""A frame's checksum and, behind two fields of the header, its record's size."""
_BLOCK = 1 << 16
_MAX_META = 1 << 20
BEING_WRITTEN = "not closed: it is still being written"
NOT_CLOSED = "not closed: its writer was killed, or the file is cut"


def check_output(path: Path, *, force: bool = False) -> None:
    """Check before tracing that `RecordingWriter` can write there.

    Raises UsageError: the file exists (unless `force`), or standard output is a terminal.
    """
    if path == STANDARD:
        if sys.stdout.isatty():
            raise UsageError("a recording is binary: give -o FILE, or send it to a file or a pipe")
    elif not force and path.is_file():
        raise UsageError(
            f"{path} exists and may be the only recording of what it holds: name another file,"
            " or give --force to overwrite it"
        )


class RecordingWriter:
    """Writes a recording; every `write` of a batch reaches the file at once."""

    def __init__(self, path: Path, host: HostInfo, *, force: bool = False) -> None:
        """Raises VftraceError if `path` cannot be written, exists (unless `force`), or is being written."""
        check_output(path, force=force)
        self.path = path
        # No buffer, because a buffer would keep the bytes that a full disk refused.
        self._file: BinaryIO = (
            sys.stdout.buffer if path == STANDARD else create(path, force=force, buffering=0)
        )
        self._whole = 0
        """The offset up to which the file has whole records."""
        self._write(head_of(host))

    def write(self, records: list[bytes]) -> None:
        """Append records; raises VftraceError if the disk refuses them, BrokenPipeError if a pipe's reader left.

        Refused records are missing in the file; later ones are written when there is room again.
        """
        self._write(frames_of(records))

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
            self._whole += len(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.path != STANDARD:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._whole)
                    self._file.seek(self._whole)
            raise VftraceError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; raises VftraceError if the disk refuses its last bytes. Standard output stays open."""
        try:
            if self.path == STANDARD:
                self._file.flush()
            else:
                self._file.close()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise VftraceError(f"cannot write {self.path}: {error.strerror}") from error


def create(path: Path, *, force: bool = False, mode: int = 0o666, buffering: int = -1) -> BinaryIO:
    """Make a file and lock it; it is empty. Raises VftraceError if it exists (unless `force`) or is locked.
    `buffering` is as in open()."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    if not force and not path.exists():
        flags |= os.O_EXCL
    try:
        file = open(os.open(path, flags, mode), "wb", buffering)  # noqa: PTH123, SIM115
    except FileExistsError:
        raise UsageError(f"{path} was just made by another program: name another file") from None
    except OSError as error:
        raise VftraceError(f"cannot write {path}: {error.strerror}") from error
    if not lock(file):
        file.close()
        raise VftraceError(f"{path} is being written by another vftrace")
    # Only now it is certain that no other process writes it.
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.truncate(0)
    return file


def head_of(host: HostInfo) -> bytes:
    """Return the first bytes of a recording of this host."""
    meta = json.dumps({"version": VERSION, **meta_of(host)}).encode()
    return MAGIC + _U32.pack(len(meta)) + meta


def frames_of(records: Iterable[bytes]) -> bytes:
    """Return records as frames of a recording. A record longer than readers accept is left out: it would end the
    file."""
    parts: list[bytes] = []
    for record in records:
        if len(record) <= wire.MAX_RECORD:
            parts += (_U32.pack(crc32(record)), record)
    return b"".join(parts)


def lock(file: BinaryIO) -> bool:
    """Mark a file as being written until it is closed; False if another writer has marked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


class Recording:
    """An open recording: `host` is the host that it was made on; iteration gives its records.

    After iteration `damage` is None, or one line with where and why the file cannot be read further. `has_end`: its
    writer closed it; a recording without an end is not damaged. `not_whole` is one line about either. The path `-` is
    standard input; pipes are read like files.
    """

    def __init__(self, path: Path) -> None:
        """Raises VftraceError if `path` cannot be read or is not a recording of a version that this one reads."""
        self.path = path
        self.damage: str | None = None
        self.has_end = False
        self._file, self._fd = _open(path)
        self.host = self._read_meta()

    def __iter__(self) -> Iterator[bytes]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[bytes]]:
        """Yield the records in lists, one list for each read of the file."""
        rest, last = b"", b""
        while more := self._read_some():
            records, used = self._records_of(rest + more)
            rest = (rest + more)[used:]
            if records:
                last = records[-1]
                yield records
            if self.damage is not None:
                return
        self.has_end = not rest and bool(last) and wire.kind_of(last) == Kind.END

    @property
    def not_whole(self) -> str | None:
        """One line about why the recording is incomplete; None if it is complete."""
        if self.damage is not None or self.has_end:
            return self.damage
        return BEING_WRITTEN if self._is_being_written() else NOT_CLOSED

    def _is_being_written(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        except OSError:
            pass  # nothing that can be locked
        return False

    def _records_of(self, data: bytes) -> tuple[list[bytes], int]:
        """Return the whole records at the beginning of `data`, and their length in bytes."""
        records = []
        at, last = 0, len(data) - _FRAME.size
        while at <= last:
            checksum, size = _FRAME.unpack_from(data, at)
            if not wire.HEADER.size <= size <= wire.MAX_RECORD:
                self.damage = "damaged: a record with an impossible size"
                break
            end = at + _U32.size + size
            record = data[at + _U32.size : end]
            if len(record) < size:
                break
            if crc32(record) != checksum:
                self.damage = "damaged: a record's checksum is wrong"
                break
            records.append(record)
            at = end
        return records, at

    def _read_some(self) -> bytes:
        """Return the bytes of one read; empty at the end, and where a gzip stream is cut or damaged."""
        try:
            return self._file.read1(_BLOCK)
        except EOFError:
            return b""  # the writer compresses it, and it has no end yet
        except (OSError, zlib.error) as error:
            self.damage = _damage(error)
            return b""

    def _read(self, count: int) -> bytes:
        """Return up to `count` bytes; fewer at the end, also where a gzip stream is cut."""
        data = b""
        try:
            while len(data) < count:
                more = self._file.read(count - len(data))
                if not more:
                    break
                data += more
        except EOFError:
            pass
        except (OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise VftraceError(f"cannot read {self.path}: {error.strerror}") from error
            self.damage = _damage(error)
        return data

    def _read_meta(self) -> HostInfo:
        if self._read(len(MAGIC)) != MAGIC:
            raise VftraceError(f"{self.path} is not a vftrace recording")
        length = self._read(_U32.size)
        if len(length) < _U32.size or _U32.unpack(length)[0] > _MAX_META:
            raise VftraceError(f"{self.path} is cut inside its first line, nothing can be read")
        try:
            meta = json.loads(self._read(_U32.unpack(length)[0]))
            version = meta.pop("version")
            if version != VERSION:
                raise VftraceError(
                    f"{self.path} has version {version}, this vftrace reads version {VERSION}"
                )
            return _host_of(meta)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise VftraceError(f"{self.path} is damaged or cut at its beginning") from error


def _damage(error: Exception) -> str:
    """Return why a file cannot be read further: the disk fails (an error with a number), or its content is wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read further: {error.strerror}"
    return "damaged inside its compression"


_NOT_ATTACHED = "not attached: "


def meta_of(host: HostInfo) -> dict[str, Any]:
    """Return the JSON of a recording's first line. A probe's status is a string: its method, or why it is not attached.

    `waits` names the probes that are not attached only because their module or tracepoint does not exist yet.
    """
    probes = {p.name: p.method or f"{_NOT_ATTACHED}{p.reason}" for p in host.probes}
    return {**asdict(host), "probes": probes, "waits": [p.name for p in host.probes if p.waits]}


def _host_of(meta: dict[str, Any]) -> HostInfo:
    """Read the host in a first line. Keys that this version does not know are ignored: a later version wrote them."""
    probes: dict[str, str] = meta["probes"]
    profiles = tuple(meta.get("profiles", ()))
    waits: list[str] | None = meta.get("waits")
    words = [meta[name] for name in ("name", "boot_id", "kernel", "vftrace")]
    words += [*probes, *probes.values(), *profiles, *(waits or ())]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("a field of another type")
    if not isinstance(meta["started_at_ns"], int):
        raise ValueError("a time of another type")
    drivers_of(profiles)
    return HostInfo(
        name=meta["name"],
        boot_id=meta["boot_id"],
        kernel=meta["kernel"],
        vftrace=meta["vftrace"],
        started_at_ns=meta["started_at_ns"],
        probes=tuple(_status_of(name, text, waits) for name, text in probes.items()),
        profiles=profiles,
    )


def _status_of(name: str, text: str, waits: list[str] | None) -> ProbeStatus:
    if not text.startswith(_NOT_ATTACHED):
        return ProbeStatus(name, text)
    reason = text.removeprefix(_NOT_ATTACHED)
    waiting = reason in WAITS | _EARLIER_WAITS if waits is None else name in waits
    return ProbeStatus(name, None, reason, waits=waiting)


def _open(path: Path) -> tuple[BufferedReader, int]:
    """Open a recording; returns a stream of its uncompressed bytes, and the fd of the file."""
    if path == STANDARD:
        if sys.stdin.isatty():
            raise UsageError("standard input is a terminal: name a file, or send a recording")
        file = cast(BufferedReader, sys.stdin.buffer)
    try:
        if path != STANDARD:
            file = path.open("rb")
        # One byte decides: MAGIC does not begin with it. A pipe cannot be rewound.
        compressed = file.peek(1)[:1] == b"\x1f"
    except OSError as error:
        raise VftraceError(f"cannot read {path}: {error.strerror}") from error
    # it has read1 too, which returns all bytes before a damaged place
    stream = cast(BufferedReader, gzip.GzipFile(fileobj=file)) if compressed else file
    return stream, file.fileno()
