# SPDX-License-Identifier: MIT
"""A recording that is cut or damaged anywhere gives everything before that place, and reports it."""

import gzip
import json
import os
import struct
import threading
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from tests.unit.golden_text import recording
from vftrace import events
from vftrace.collect.recording import (
    BEING_WRITTEN,
    MAGIC,
    NOT_CLOSED,
    Recording,
    RecordingWriter,
)
from vftrace.collect.replay import track
from vftrace.errors import UsageError, VftraceError
from vftrace.events import wire
from vftrace.model.host import HostInfo, ProbeStatus
from vftrace.probes.registry import NO_VFIO

GOLDEN = Path(__file__).parents[1] / "golden" / "recordings" / "completed-fast.vft.gz"
HOST = HostInfo("host", "boot", "6.1", "0.1", 1, (ProbeStatus("kvm", "fentry"),))
META = {"version": 1, **asdict(HOST), "probes": {"kvm": "fentry"}}


@cache
def _packed() -> bytes:
    return GOLDEN.read_bytes()


@cache
def _raw() -> bytes:
    return gzip.decompress(_packed())


@cache
def _frames() -> tuple[int, ...]:
    """Where each frame of the golden recording begins, and its end: found by the layout, not by the reader."""
    raw = _raw()
    at = len(MAGIC) + 4 + struct.unpack_from("<I", raw, len(MAGIC))[0]
    starts = [at]
    while at < len(raw):
        at += 4 + struct.unpack_from("<QQI", raw, at + 4)[2]
        starts.append(at)
    assert at == len(raw)
    return tuple(starts)


def _records(data: bytes, path: Path) -> tuple[list[bytes], str | None]:
    path.write_bytes(data)
    recording = Recording(path)
    return list(recording), recording.not_whole


def _before(offset: int) -> list[bytes]:
    """The records that lie wholly before an offset."""
    raw, starts = _raw(), _frames()
    return [raw[a + 4 : b] for a, b in pairwise(starts) if b <= offset]


def test_whole(tmp_path: Path) -> None:
    for data in (_raw(), _packed()):
        records, damage = _records(data, tmp_path / "whole")
        assert damage is None
        assert records == _before(len(_raw()))
        assert isinstance(wire.decode(records[-1]), events.End)


def _classes() -> list[int]:
    """One offset of each class, in the first, a middle and the last frame: in the checksum, in the header,
    before its size, after it, in the body, and the frame's own beginning."""
    starts = _frames()
    found = []
    for frame in (0, len(starts) // 2, len(starts) - 2):
        begin, end = starts[frame], starts[frame + 1]
        found += [begin, begin + 1, begin + 4, begin + 4 + 16, begin + 4 + 20, begin + 36, end - 1]
    return sorted(set(found))


@pytest.mark.parametrize("offset", _classes())
def test_cut_at_each_kind_of_place(offset: int, tmp_path: Path) -> None:
    records, damage = _records(_raw()[:offset], tmp_path / "cut")
    assert records == _before(offset)
    assert damage == NOT_CLOSED


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_cut_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    """Only the whole file has no damage; the remaining records can always be reported."""
    offset = data.draw(st.integers(_frames()[0], len(_raw()) - 1))
    records, damage = _records(_raw()[:offset], tmp_path / "cut")
    assert records == _before(offset)
    assert damage == NOT_CLOSED
    track(records).snapshot()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_gzip_stream_cut_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    """What the compressed part before the cut still gives is read, and never anything else."""
    packed = _packed()
    offset = data.draw(st.integers(2, len(packed) - 1))
    stream = zlib.decompressobj(wbits=31)
    left = stream.decompress(packed[:offset])
    if len(left) < _frames()[0]:
        with pytest.raises(VftraceError, match=r"recording|cut"):
            _records(packed[:offset], tmp_path / "cut.gz")
        return
    records, damage = _records(packed[:offset], tmp_path / "cut.gz")
    assert records == _before(len(left))
    # all that was written is there when only the sum at the end of the stream is cut off
    assert damage == (None if left == _raw() else NOT_CLOSED)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_flipped_bit(tmp_path: Path, data: st.DataObject) -> None:
    """Nothing behind it is believed; everything before it is read."""
    raw = bytearray(_raw())
    at = data.draw(st.integers(_frames()[0], len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    records, damage = _records(bytes(raw), tmp_path / "flipped")
    assert records == _before(at)
    assert damage is not None


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_flipped_bit_in_a_gzip_stream(tmp_path: Path, data: st.DataObject) -> None:
    """A recording is refused with one line, or read up to somewhere and called damaged.

    Each record that is read was written so. A flipped bit may let deflate copy others than were meant, with their
    checksums: gzip's own checksum shows it at the end.
    """
    packed = bytearray(_packed())
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        records, damage = _records(bytes(packed), tmp_path / "flipped.gz")
    except VftraceError:
        return
    whole = _before(len(_raw()))
    assert set(records) <= set(whole)
    # the header's time stamp and flags can change without harm, and deflate's padding bits
    assert damage is not None or records == whole


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a vftrace recording"),
        (b"\x7fELF" + bytes(100), "is not a vftrace recording"),
        (b"\x1f\x8b", "is not a vftrace recording"),
        (gzip.compress(b"hello", mtime=0), "is not a vftrace recording"),
        (MAGIC[:4], "is not a vftrace recording"),
        (MAGIC, "cut inside its first line"),
        (MAGIC + b"\xff\xff\xff\xff", "cut inside its first line"),
        (MAGIC + struct.pack("<I", 50) + b"{", "damaged or cut at its beginning"),
        (MAGIC + struct.pack("<I", 2) + b"[]", "damaged or cut at its beginning"),
        (MAGIC + struct.pack("<I", 14) + b'{"version": 1}', "damaged or cut at its beginning"),
        (MAGIC + struct.pack("<I", 14) + b'{"version": 9}', "has version 9"),
    ],
)
def test_a_file_that_is_none(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(VftraceError, match=said) as refused:
        Recording(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_first_line(tmp_path: Path, meta: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(MAGIC + struct.pack("<I", len(meta)) + meta)
    with pytest.raises(VftraceError):
        Recording(path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"probes": []},
        {"probes": {"kvm": None}},
        {"started_at_ns": "1"},
        {"waits": 5},
        {"waits": [5]},
    ],
)
def test_a_first_line_of_other_types(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "file"
    meta = json.dumps({**META, **change}).encode()
    path.write_bytes(MAGIC + struct.pack("<I", len(meta)) + meta)
    with pytest.raises(VftraceError, match="damaged or cut at its beginning"):
        Recording(path)


def test_a_first_line_without_a_bottom(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(MAGIC + struct.pack("<I", 100_000) + b"[" * 100_000)
    with pytest.raises(VftraceError, match="damaged or cut at its beginning"):
        Recording(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VftraceError, match="No such file"):
        Recording(tmp_path / "absent")
    with pytest.raises(VftraceError, match="Is a directory"):
        Recording(tmp_path)


def test_an_impossible_size_ends_the_file(tmp_path: Path) -> None:
    meta = json.dumps(META).encode()
    start = MAGIC + struct.pack("<I", len(meta)) + meta
    for size in (0, 31, 1 << 31):
        head = wire.HEADER.pack(0, 0, size, 100, 0, 0, 0)
        records, damage = _records(start + bytes(4) + head, tmp_path / "size")
        assert records == []
        assert damage == "damaged: a record with an impossible size"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A file without an End record, as a killed writer leaves it, is reported as such."""
    path = tmp_path / "own"
    tick = wire.encode(events.Tick(5, 0, events.COLLECTOR, 1))
    end = wire.encode(events.End(6, 1, events.COLLECTOR, 1, {42: 7}))
    writer = RecordingWriter(path, HOST)
    writer.write([tick])
    killed = Recording(path)
    assert (killed.host, list(killed)) == (HOST, [tick])
    assert killed.damage is None
    assert killed.not_whole == BEING_WRITTEN
    writer.write([end])
    writer.close()
    closed = Recording(path)
    assert list(closed) == [tick, end]
    assert closed.not_whole is None


def test_a_killed_writer_is_distinguished_from_one_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "own"
    writer = RecordingWriter(path, HOST)
    writer.write([wire.encode(events.Tick(5, 0, events.COLLECTOR, 1))])
    recording = Recording(path)
    assert len(list(recording)) == 1
    assert recording.not_whole == BEING_WRITTEN
    writer.close()  # without an end, as the kernel closes the files of a process that is killed
    assert recording.not_whole == NOT_CLOSED


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VftraceError, match="cannot write"):
        RecordingWriter(tmp_path / "absent" / "file", HOST)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(VftraceError, match="/dev/full: No space left"):
        RecordingWriter(Path("/dev/full"), HOST)


def test_a_key_of_a_later_version_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    meta = json.dumps({**META, "more": {"than": ["this", "version"]}, "waits": []}).encode()
    path.write_bytes(MAGIC + struct.pack("<I", len(meta)) + meta)
    assert Recording(path).host == HOST


def test_an_existing_file_is_overwritten_by_request_only(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"the only recording of last night")
    with pytest.raises(UsageError, match="--force"):
        RecordingWriter(path, HOST)
    assert path.read_bytes() == b"the only recording of last night"
    RecordingWriter(path, HOST, force=True).close()
    assert Recording(path).host == HOST
    assert b"last night" not in path.read_bytes()


def test_a_file_that_another_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    writer = RecordingWriter(path, HOST)
    before = path.read_bytes()
    with pytest.raises(VftraceError, match="is being written by another vftrace"):
        RecordingWriter(path, HOST, force=True)
    assert path.read_bytes() == before
    writer.close()


def test_a_record_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    """Everything behind it would be lost."""
    path = tmp_path / "long"
    writer = RecordingWriter(path, HOST)
    tick = wire.encode(events.Tick(5, 0, events.COLLECTOR, 1))
    end = wire.encode(events.End(6, 1, events.COLLECTOR, 1, {}))
    writer.write([tick, bytes(wire.MAX_RECORD + 1), end])
    writer.close()
    assert _records(path.read_bytes(), path) == ([tick, end], None)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pipe_is_read_as_a_file(compressed: bool, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(_packed() if compressed else _raw(),))
    writer.start()
    recording = Recording(fifo)
    assert list(recording) == _before(len(_raw()))
    assert recording.not_whole is None
    writer.join()


def test_how_probes_were_attached_is_a_string_in_the_file(tmp_path: Path) -> None:
    """Recordings of earlier versions have the same form (tests/golden/recordings)."""
    probes = (
        ProbeStatus("ioctl", "fentry"),
        ProbeStatus("vfio", None, NO_VFIO, waits=True),
        ProbeStatus("mailbox", None, "kprobe: not permitted"),
    )
    path = tmp_path / "r.vft"
    RecordingWriter(path, replace(HOST, probes=probes)).close()
    size = struct.unpack_from("<I", path.read_bytes(), 8)[0]
    meta = json.loads(path.read_bytes()[12 : 12 + size])
    assert meta["waits"] == ["vfio"]
    assert meta["probes"] == {
        "ioctl": "fentry",
        "vfio": f"not attached: {NO_VFIO}",
        "mailbox": "not attached: kprobe: not permitted",
    }
    assert Recording(path).host.probes == probes


def test_a_probe_that_waited_for_its_module_still_waits_in_an_old_recording() -> None:
    """No kernel refused it: nobody is to be alarmed. The reason named the two drivers there were."""
    opened = Recording(recording("completed-slow"))
    assert {p.name for p in opened.host.probes if p.waits} == {"vfio", "vfio-data", "mailbox"}
