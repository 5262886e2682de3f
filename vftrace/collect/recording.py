"""The recording: raw records as they came, plus what is needed to name them.

Layout: `MAGIC`, a u32 length and that many bytes of JSON (who recorded), then frames of a u32
CRC-32 and one record (its header holds its size). A frame that is cut or damaged ends the file.
gzip-compressed recordings are read as they are. The last record of a whole recording is `events.End`.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, cast

from vftrace.errors import VftraceError
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo

MAGIC = b"VFTRACE1"
VERSION = 1
_U32 = struct.Struct("<I")
_MAX_META = 1 << 20


class RecordingWriter:
    """Writes a recording; every `write` of a batch reaches the file at once."""

    def __init__(self, path: Path, host: HostInfo) -> None:
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise VftraceError(f"cannot write {path}: {error.strerror}") from error
        meta = json.dumps({"version": VERSION, **asdict(host)}).encode()
        self._file.write(MAGIC + _U32.pack(len(meta)) + meta)

    def write(self, records: list[bytes]) -> None:
        """Append records; raises VftraceError if the disk refuses them."""
        try:
            for record in records:
                self._file.write(_U32.pack(zlib.crc32(record)) + record)
            self._file.flush()
        except OSError as error:
            raise VftraceError(f"cannot write the recording: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Recording:
    """An open recording: `host` says where it was made, iterating gives its records.

    `damage` is None, or after iteration one line on where and why the file ended early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self._file = _open(path)
        self.host = self._read_meta()

    def __iter__(self) -> Iterator[bytes]:
        last_kind = None
        while True:
            start = self._read(_U32.size)
            if not start:
                if last_kind != Kind.END and self.damage is None:
                    self.damage = "cut between two records, or its writer was killed: it has no end"
                return
            head = self._read(wire.HEADER.size)
            if len(start) < _U32.size or len(head) < wire.HEADER.size:
                self.damage = "cut in the middle of a record"
                return
            _, _, size, last_kind, *_ = wire.HEADER.unpack(head)
            if not wire.HEADER.size <= size <= wire.MAX_RECORD:
                self.damage = "damaged: a record with an impossible size"
                return
            record = head + self._read(size - len(head))
            if len(record) < size:
                self.damage = "cut in the middle of a record"
                return
            if zlib.crc32(record) != _U32.unpack(start)[0]:
                self.damage = "damaged: a record's checksum is wrong"
                return
            yield record

    def _read(self, count: int) -> bytes:
        """Up to `count` bytes; fewer at the end, also where a gzip stream is cut."""
        data = b""
        try:
            while len(data) < count:
                more = self._file.read(count - len(data))
                if not more:
                    break
                data += more
        except (EOFError, OSError, zlib.error):
            self.damage = "cut or damaged inside its compression"
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
            host = HostInfo(**{**meta, "profiles": tuple(meta.get("profiles", ()))})
            words = [host.name, host.boot_id, host.kernel, host.vftrace]
            words += [*host.probes, *host.probes.values(), *host.profiles]
            if not all(isinstance(word, str) for word in words) or not isinstance(
                host.started_at_ns, int
            ):
                raise ValueError("a field of another type")
            drivers_of(host.profiles)
            return host
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise VftraceError(f"{self.path} is damaged or cut at its beginning") from error


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
    except OSError as error:
        raise VftraceError(f"cannot read {path}: {error.strerror}") from error
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
