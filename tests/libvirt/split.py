# SPDX-License-Identifier: MIT
"""Cut one recording into those that two hosts would have made, each with its own QEMU only.

Both hosts of these tests are one machine with one kernel, so one recording has both sides. The layout
read here is that of docs and bpf/wire.h: magic, meta data, then frames of a CRC-32 and a record.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_MAGIC = b"VFTRACE1"
_U32 = struct.Struct("<I")
_HEADER = struct.Struct("<QQIHHII")
COLLECTOR = 0xFFFF_FFFF
_NO_PROCESS = 0
_CLOCK_SAMPLE = 101
_CLOCK = struct.Struct("<qq")
_END = 112
_FIRST_NAMED = 110
"""Records of this kind and above have JSON behind their header."""

SET_CLOCK_ERROR_NS = 50_000
"""What chrony reaches in a machine room."""


@dataclass(frozen=True)
class Record:
    """A record's header, and what is behind it."""

    at_ns: int
    seq: int
    kind: int
    reserved: int
    tgid: int
    tid: int
    body: bytes

    def packed(self) -> bytes:
        """The record as it stands in a file, its checksum before it."""
        size = _HEADER.size + len(self.body)
        head = _HEADER.pack(
            self.at_ns, self.seq, size, self.kind, self.reserved, self.tgid, self.tid
        )
        return _U32.pack(zlib.crc32(head + self.body)) + head + self.body


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """A recording's meta data and its records."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path} is no recording")
    at = len(_MAGIC) + _U32.size
    length = _U32.unpack_from(data, len(_MAGIC))[0]
    return json.loads(data[at : at + length]), list(_records(data, at + length))


def _records(data: bytes, at: int) -> Iterator[Record]:
    while at < len(data):
        at += _U32.size
        at_ns, seq, size, kind, reserved, tgid, tid = _HEADER.unpack_from(data, at)
        yield Record(at_ns, seq, kind, reserved, tgid, tid, data[at + _HEADER.size : at + size])
        at += size


def write(path: Path, meta: dict[str, Any], records: Collection[Record]) -> None:
    """Write a recording, packed if its name ends in .gz."""
    text = json.dumps(meta).encode()
    data = _MAGIC + _U32.pack(len(text)) + text + b"".join(r.packed() for r in records)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def only(records: Collection[Record], pids: Collection[int]) -> list[Record]:
    """The records of these processes, and of the collector those that are not about another one."""
    kept = []
    written = 0
    for record in records:
        body = record.body
        if record.tgid == COLLECTOR:
            if record.kind >= _FIRST_NAMED:
                fields = json.loads(body)
                if fields.get("pid", next(iter(pids), None)) not in pids:
                    continue
                if record.kind == _END:
                    streams = fields["streams"]
                    fields["streams"] = {k: v for k, v in streams.items() if int(k) in (*pids, 0)}
                    body = json.dumps(fields, separators=(",", ":")).encode()
            # What is left out would read as lost.
            record = replace(record, seq=written, body=body)
            written += 1
        elif record.tgid != _NO_PROCESS and record.tgid not in pids:
            continue
        kept.append(record)
    return kept


def with_set_clocks(records: Collection[Record]) -> list[Record]:
    """The same, from a host whose wall clock is known to SET_CLOCK_ERROR_NS: both halves' clock is one."""
    return [
        replace(r, body=_CLOCK.pack(_CLOCK.unpack(r.body)[0], SET_CLOCK_ERROR_NS))
        if r.kind == _CLOCK_SAMPLE
        else r
        for r in records
    ]


def side(meta: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """The meta data of a recording made on another host, called `name`."""
    boot = f"{number:08x}-0000-4000-8000-000000000000"
    return {**meta, "name": name, "boot_id": boot}
