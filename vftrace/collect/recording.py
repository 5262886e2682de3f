"""The recording: raw records as they came, plus what is needed to name them.

Layout: `MAGIC`, a u32 length and that many bytes of JSON (who recorded), then frames of a u32
CRC-32 and one record (its header holds its size). A frame that is cut or damaged ends the file.
gzip-compressed recordings are read as they are. The last record of a whole recording is `events.End`.

Its writer holds a lock (flock(2)) on a recording as long as it writes it, which the kernel releases however the
writer ends: so a reader knows a recording that is being written from one whose writer was killed.
"""

import fcntl
import gzip
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import crc32

from vftrace.errors import VftraceError
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo, ProbeStatus
from vftrace.probes.registry import WAITS

MAGIC = b"VFTRACE1"
VERSION = 1
_EARLIER_WAITS = frozenset({"no module ixgbe or igb is loaded"})
"""Reasons that earlier versions gave for a probe whose module is not loaded yet."""
_U32 = struct.Struct("<I")
_FRAME = struct.Struct("<I16xI12x")
"""A frame's checksum and, behind two fields of the header, its record's size."""
_BLOCK = 1 << 16
_MAX_META = 1 << 20
BEING_WRITTEN = "not closed: it is still being written"
NOT_CLOSED = "not closed: its writer was killed, or the file is cut"


class RecordingWriter:
    """Writes a recording; every `write` of a batch reaches the file at once."""

    def __init__(self, path: Path, host: HostInfo) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise VftraceError(f"cannot write {path}: {error.strerror}") from error
        lock(self._file)
        self._file.write(head_of(host))

    def write(self, records: list[bytes]) -> None:
        """Append records; raises VftraceError if the disk refuses them."""
        try:
            self._file.write(frames_of(records))
            self._file.flush()
        except OSError as error:
            raise VftraceError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; raises VftraceError if the disk refuses what is left of it."""
        try:
            self._file.close()
        except OSError as error:
            raise VftraceError(f"cannot write {self.path}: {error.strerror}") from error


def head_of(host: HostInfo) -> bytes:
    """How a recording of this host begins."""
    meta = json.dumps({"version": VERSION, **meta_of(host)}).encode()
    return MAGIC + _U32.pack(len(meta)) + meta


def frames_of(records: Iterable[bytes]) -> bytes:
    """Records as a recording holds them."""
    parts: list[bytes] = []
    for record in records:
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


def _is_being_written(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


class Recording:
    """An open recording: `host` says where it was made, iterating gives its records.

    After iteration `damage` is None, or one line on where and why the file cannot be read further. `has_end`: it
    was closed in order; a recording without an end is not damaged. `not_whole` is one line on either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self.has_end = False
        self._file = _open(path)
        self.host = self._read_meta()

    def __iter__(self) -> Iterator[bytes]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[bytes]]:
        """The records in lists as long as what one read of the file gives."""
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
        """One line on why what was read is not all that there was; None of a whole recording."""
        if self.damage is not None or self.has_end:
            return self.damage
        return BEING_WRITTEN if _is_being_written(self.path) else NOT_CLOSED

    def _records_of(self, data: bytes) -> tuple[list[bytes], int]:
        """The whole records at the beginning of `data`, and how many bytes they take."""
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
        """What one read gives; nothing at the end, and where a gzip stream is cut or damaged."""
        try:
            return self._file.read1(_BLOCK)
        except EOFError:
            return b""  # it is compressed as it is written, and has no end yet
        except (OSError, zlib.error):
            self.damage = "damaged inside its compression"
            return b""

    def _read(self, count: int) -> bytes:
        """Up to `count` bytes; fewer at the end, also where a gzip stream is cut."""
        data = b""
        try:
            while len(data) < count:
                more = self._file.read(count - len(data))
                if not more:
                    break
                data += more
        except EOFError:
            pass
        except (OSError, zlib.error):
            self.damage = "damaged inside its compression"
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
            probes: dict[str, str] = meta.pop("probes")
            profiles = tuple(meta.pop("profiles", ()))
            words = [*probes, *probes.values(), *profiles]
            words += [meta[name] for name in ("name", "boot_id", "kernel", "vftrace")]
            if not all(isinstance(word, str) for word in words) or not isinstance(
                meta["started_at_ns"], int
            ):
                raise ValueError("a field of another type")
            drivers_of(profiles)
            return HostInfo(
                **meta,
                probes=tuple(_status_of(*item) for item in probes.items()),
                profiles=profiles,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise VftraceError(f"{self.path} is damaged or cut at its beginning") from error


_NOT_ATTACHED = "not attached: "


def meta_of(host: HostInfo) -> dict[str, Any]:
    """The first line of a recording, where a probe's status is a string: its method, or why it has none."""
    probes = {p.name: p.method or f"{_NOT_ATTACHED}{p.reason}" for p in host.probes}
    return {**asdict(host), "probes": probes}


def _status_of(name: str, text: str) -> ProbeStatus:
    if not text.startswith(_NOT_ATTACHED):
        return ProbeStatus(name, text)
    reason = text.removeprefix(_NOT_ATTACHED)
    return ProbeStatus(name, None, reason, waits=reason in WAITS | _EARLIER_WAITS)


def _open(path: Path) -> BufferedReader:
    try:
        file = path.open("rb")
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
    except OSError as error:
        raise VftraceError(f"cannot read {path}: {error.strerror}") from error
    # it has read1 too, which gives all that can be read before the place of a damage
    return cast(BufferedReader, gzip.GzipFile(fileobj=file)) if compressed else file
