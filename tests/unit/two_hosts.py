# SPDX-License-Identifier: MIT
"""One recording made into two hosts': each sees one process only, on a clock of its own."""

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from msgspec import structs
from msgspec.structs import replace

from vftrace import events
from vftrace.analysis.hosts.join import join_hosts
from vftrace.collect.merge import Reader
from vftrace.collect.recording import MAGIC, VERSION, Recording, meta_of
from vftrace.collect.replay import events_of
from vftrace.events import wire
from vftrace.events.layout import BODIES, Kind
from vftrace.model.host import HostInfo
from vftrace.model.report import HostReport, MigrationReport, PingRecording, Report

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"


DURATIONS = {"longest_ns", "sleep_ns", "queue_ns"}
"""Fields that are no points in time."""

POINTS = {
    Kind.VCPU_TIME: {"begun_ns", "until_ns", "held_from_ns", "held_until_ns"},
    Kind.VCPU_BASELINE: {"from_ns", "until_ns"},
}
"""Kinds with more durations than points in time: the points."""


def shifted(record: bytes, shift_ns: int, error_ns: int | None = None) -> bytes:
    """The record of a host whose CLOCK_BOOTTIME shows `shift_ns` more, and whose wall clock is as right as
    before; `error_ns` stands for its error bound."""
    if wire.kind_of(record) == Kind.CALLS_TRACED:
        traced = wire.decode(record)
        assert isinstance(traced, events.CallsTraced)
        record = wire.encode(structs.replace(traced, since_ns=traced.since_ns + shift_ns))
    at_ns, seq, size, kind, zero, tgid, tid = wire.HEADER.unpack_from(record)
    body = record[wire.HEADER.size :]
    head = wire.HEADER.pack(at_ns + shift_ns, seq, size, kind, zero, tgid, tid)
    if kind in wire.BITMAPS:
        return head + struct.pack("<Q", struct.unpack_from("<Q", body)[0] + shift_ns) + body[8:]
    if kind not in BODIES:
        return head + body
    codes, names = BODIES[kind]
    layout = struct.Struct("<" + codes)
    # a record from before its kind got another field is shorter
    values = list(layout.unpack(body + bytes(layout.size - len(body))))
    for index, name in enumerate(names):
        if kind == Kind.CLOCK_SAMPLE:
            if name == "realtime_offset_ns":
                values[index] -= shift_ns
            elif error_ns is not None:
                values[index] = error_ns
        elif kind in POINTS:
            if name in POINTS[kind] and values[index]:
                values[index] += shift_ns
        elif name.endswith("_ns") and name not in DURATIONS and values[index]:
            values[index] += shift_ns
    return head + layout.pack(*values)[: len(body)]


def only(records: Iterable[bytes], pids: set[int]) -> list[bytes]:
    """What a host would have recorded that runs only these processes."""
    kept: list[bytes] = []
    own = 0
    for record in records:
        event = wire.decode(record)
        if event.tgid != events.COLLECTOR:
            if event.tgid in pids:
                kept.append(record)
            continue
        about = getattr(event, "pid", None)
        if about is not None and about not in pids:
            continue
        if isinstance(event, events.End):
            streams = {pid: n for pid, n in event.streams.items() if pid in pids}
            record = wire.encode(structs.replace(event, streams=streams))
        at_ns, _, size, kind, zero, tgid, tid = wire.HEADER.unpack_from(record)
        head = wire.HEADER.pack(at_ns, own, size, kind, zero, tgid, tid)
        kept.append(head + record[wire.HEADER.size :])
        own += 1
    return kept


def host_of(name: str, boot_id: str, like: HostInfo, shift_ns: int = 0) -> HostInfo:
    """Another host of the same kind."""
    return replace(like, name=name, boot_id=boot_id, started_at_ns=like.started_at_ns + shift_ns)


def boot_of(host: HostInfo, records: Iterable[bytes]) -> HostReport:
    """What a host knows after these records."""
    reader = Reader()
    reader.read(events_of(records))
    return HostReport(
        host, reader.tracker.snapshot(), reader.waiting.ready_at_ns, reader.waiting.found()
    )


def join(
    hosts: Iterable[HostReport], pings: Iterable[PingRecording] = ()
) -> tuple[MigrationReport, ...]:
    """The migrations of these hosts, joined."""
    return join_hosts(Report.of_hosts(hosts, pings)).migrations


def renamed(host: HostReport, name: str, boot_id: str) -> HostReport:
    """The same under another name, as another boot."""
    return replace(host, info=replace(host.info, name=name, boot_id=boot_id))


def write(path: Path, host: HostInfo, records: Iterable[bytes]) -> Path:
    """A recording with these records."""
    meta = json.dumps({"version": VERSION, **meta_of(host)}).encode()
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<I", len(meta)) + meta)
        for record in records:
            file.write(struct.pack("<I", zlib.crc32(record)) + record)
    return path


def golden(name: str) -> tuple[HostInfo, list[bytes]]:
    """A golden recording's host and records."""
    recording = Recording(RECORDINGS / f"{name}.vft.gz")
    return recording.host, list(recording)


def lab(name: str) -> tuple[HostInfo, list[bytes]]:
    """The same of a recording made in the lab."""
    recording = Recording(RECORDINGS.parent / "lab" / f"{name}.vft.gz")
    return recording.host, list(recording)
