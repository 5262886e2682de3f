# SPDX-License-Identifier: MIT
"""The codec: makes events of bytes and, for the collector's own records, bytes of events.

The layouts are generated from bpf/wire.h (`vftrace.events.layout`). Records of kinds without a layout
there carry the event's fields as JSON behind the header.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from vftrace import events
from vftrace.events import bitmap, layout
from vftrace.events.base import Event
from vftrace.events.layout import Kind

HEADER = struct.Struct("<" + layout.HEADER[0])
_SEQ = slice(8, 16)
"""The offset of a record's number (bpf/wire.h, struct vft_header)."""
"""at_ns, seq, size, kind, reserved, tgid, tid."""

_HEADER_SIZE = HEADER.size

MAX_RECORD = 4 << 20
"""The longest record in bytes. vftrace writes none that is longer, so a larger size means a damaged file. Command lines
once made records of 2.4 MB."""

MAX_TEXT = 4096
"""The longest name or path that is written, in characters: six such texts fit into a record even where each
character takes twelve bytes of JSON. Anyone who may start a VM chooses its name."""
CUT = " [cut]"
"""The end of a text that was cut."""

_HEAD = "<QQ8xII"
"""The header without the fields that only the codec needs: an event's first four fields."""
_OWN = len(Event.__struct_fields__)

_SIZE_AND_KIND_AT = 16
_size_and_kind = struct.Struct("<IH").unpack_from
_tgid = struct.Struct("<24xI").unpack_from

BITMAPS = frozenset({Kind.PIECE, Kind.BITMAP})
"""The kinds of the most frequent records. Their loss does the least harm: a dirty log with a missing part is marked as
not counted."""

_PIECE_HEAD = struct.Struct(_HEAD + "QQIHH")

_BITMAP_HEAD = struct.Struct(_HEAD + "QQII")


def _classes(base: type[Event]) -> Iterator[tuple[Kind, type[Event]]]:
    for event in base.__subclasses__():
        if event.KIND is not None:
            yield event.KIND, event
        yield from _classes(event)


CLASSES: dict[Kind, type[Event]] = dict(sorted(_classes(Event)))
"""The class of each kind; a test checks that every kind has one."""

# Kinds that got more fields at their end, with the size of the body before that; missing fields read 0.
_LENGTHENED = {Kind.CLOCK: 24, Kind.VFIO_OPEN: 56, Kind.EXIT: 8, Kind.LOST: 8, Kind.VFIO_DIRTY: 72}


def _codes(kind: Kind) -> list[str]:
    """The struct module's code of each field of a kind, without the padding."""
    codes: list[str] = re.findall(r"\d*[a-zA-Z]", layout.BODIES[kind][0])
    return [code for code in codes if not code.endswith("x")]


def _maker(kind: Kind, event: type[Event]) -> Callable[..., Event]:
    """Return the function that makes an event of its struct's fields: the class itself if all fields are numbers."""
    codes = _codes(kind)
    texts = [_OWN + at for at, code in enumerate(codes) if code.endswith("s")]
    arrays = [_OWN + at for at, code in enumerate(codes) if code[:-1] and code[-1] != "s"]
    if not texts and not arrays:
        return event

    def make(*fields: Any) -> Event:
        own = list(fields)
        for at in texts:
            own[at] = _text(own[at])
        for at in arrays:
            # only the last member may be an array
            own[at:] = [tuple(own[at:])]
        return event(*own)

    return make


_LAYOUTS = {
    kind: struct.Struct(_HEAD + codes)
    for kind, (codes, _) in layout.BODIES.items()
    if kind not in BITMAPS
}

_DECODERS: dict[int, tuple[int, Callable[[bytes], tuple[Any, ...]], Callable[..., Event]]] = {
    int(kind): (found.size, found.unpack, _maker(kind, CLASSES[kind]))
    for kind, found in _LAYOUTS.items()
}
"""For each kind: the size of its records, the unpacking function, and the function that makes the event."""


def decode(record: bytes) -> Event:
    """Make an event of one record; an unknown kind or layout gives `events.Unknown`.

    Raises ValueError if the record is shorter than a header or its size field is wrong.
    """
    length = len(record)
    if length < _HEADER_SIZE:
        raise ValueError(f"record of {length} bytes is shorter than its header")
    size, kind = _size_and_kind(record, _SIZE_AND_KIND_AT)
    if size != length:
        raise ValueError(f"record of {length} bytes claims to have {size}")
    if kind in _DECODERS:
        expected, unpack, make = _DECODERS[kind]
        if expected == size:
            return make(*unpack(record))
    return _decode_other(record, kind)


def decode_all(records: Iterable[bytes]) -> list[Event]:
    """Make the event of each record, as `decode` does; a call for each would be a quarter of the work."""
    decoders, size_and_kind, at, least = _DECODERS, _size_and_kind, _SIZE_AND_KIND_AT, _HEADER_SIZE
    found = []
    for record in records:
        length = len(record)
        if length >= least:
            size, kind = size_and_kind(record, at)
            if kind in decoders:
                expected, unpack, make = decoders[kind]
                if expected == size == length:
                    found.append(make(*unpack(record)))
                    continue
        found.append(decode(record))
    return found


def _decode_other(record: bytes, kind: int) -> Event:
    """Decode records without a layout of fixed size: bitmaps, JSON, and records of an older or a newer vftrace."""
    if kind == Kind.BITMAP:
        event = _decode_bitmap(record)
    elif kind == Kind.PIECE:
        event = _decode_piece(record)
    elif kind in _DECODERS:
        event = _decode_older(record, Kind(kind))
    else:
        event = _decode_json(record, kind)
    return event or events.Unknown(*_head(record), kind)


def _head(record: bytes) -> tuple[int, int, int, int]:
    at_ns, seq, _, _, _, tgid, tid = HEADER.unpack_from(record)
    return at_ns, seq, tgid, tid


@lru_cache(maxsize=1024)
def _text(field: bytes) -> str:
    """Decode a C string in a field of fixed length."""
    return field.split(b"\0", 1)[0].decode("ascii", errors="replace")


@lru_cache(maxsize=layout.PIECE_WORDS + 1)
def _ones(words: int) -> int:
    return (1 << words * 64) - 1


def _decode_piece(record: bytes) -> Event | None:
    if len(record) < _PIECE_HEAD.size:
        return None
    at_ns, seq, tgid, tid, call_ns, first_page, slot, words, fill = _PIECE_HEAD.unpack_from(record)
    length = len(record) - _PIECE_HEAD.size
    if words > layout.PIECE_WORDS:
        return None
    if fill == layout.FILL_ONES and length == 0:
        bits = _ones(words)
    elif fill != layout.FILL_ONES and length == words * 8:
        bits = int.from_bytes(record[_PIECE_HEAD.size :], "little")
    else:
        return None
    return events.Piece(at_ns, seq, tgid, tid, call_ns, first_page, slot, bits)


def _decode_bitmap(record: bytes) -> Event | None:
    """Decode a part of a bitmap (struct vft_bitmap in bpf/wire.h)."""
    if len(record) < _BITMAP_HEAD.size:
        return None
    entries = record[_BITMAP_HEAD.size :]
    at_ns, seq, tgid, tid, call_ns, first_page, slot, words = _BITMAP_HEAD.unpack_from(record)
    if not bitmap.makes_sense(entries, words):
        return None
    return events.BitmapPart(at_ns, seq, tgid, tid, call_ns, first_page, slot, words, entries)


def _decode_older(record: bytes, kind: Kind) -> Event | None:
    """Decode a record written before its kind got its last fields, which read 0."""
    if _LENGTHENED.get(kind) != len(record) - HEADER.size:
        return None
    size, unpack, make = _DECODERS[kind]
    return make(*unpack(record + bytes(size - len(record))))


def _decode_json(record: bytes, kind: int) -> Event | None:
    event = CLASSES.get(kind)  # type: ignore[call-overload]
    if event is None:
        return None
    try:
        fields = msgspec.json.decode(record[HEADER.size :])
        named = zip(Event.__struct_fields__, _head(record), strict=True)
        # Check the type of every field: a file can hold anything.
        made: Event = msgspec.convert({**fields, **dict(named)}, event, str_keys=True)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None
    return made


def kind_of(record: bytes) -> int:
    """Return the kind of a record, which has at least a header."""
    kind: int = _size_and_kind(record, _SIZE_AND_KIND_AT)[1]
    return kind


def time_of(record: bytes) -> int:
    """Return the time of a record, which has at least a header."""
    return int.from_bytes(record[:8], "little")


def tgid_of(record: bytes) -> int:
    """Return the process of a record, which has at least a header."""
    tgid: int = _tgid(record)[0]
    return tgid


def with_seq(record: bytes, seq: int) -> bytes:
    """Return the same record with another number."""
    return record[: _SEQ.start] + seq.to_bytes(8, "little") + record[_SEQ.stop :]


def split(records: bytes) -> list[bytes]:
    """Split bytes into records, each of the length in its header.

    Raises ValueError if a length cannot be right.
    """
    found = []
    at, end = 0, len(records)
    while at < end:
        if end - at < _HEADER_SIZE:
            raise ValueError(f"{end - at} bytes are shorter than a record's header")
        size = _size_and_kind(records, at + _SIZE_AND_KIND_AT)[0]
        if not _HEADER_SIZE <= size <= end - at:
            raise ValueError(f"a record of {end - at} bytes claims to have {size}")
        found.append(records[at : at + size])
        at += size
    return found


def cut_text(value: Any) -> Any:
    """Return a field's value; a text longer than `MAX_TEXT` is cut and marked."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return value[: MAX_TEXT - len(CUT)] + CUT
    return value


def encode(event: Event) -> bytes:
    """Make a record of an event; raises KeyError for parts of bitmaps, which only the kernel side writes."""
    kind = event.KIND
    if kind is None or kind in BITMAPS:
        raise KeyError(type(event).__name__)
    body = _struct_of(event, kind) if kind in _LAYOUTS else _json_of(event)
    size = HEADER.size + len(body)
    return HEADER.pack(event.at_ns, event.seq, size, kind, 0, event.tgid, event.tid) + body


def _struct_of(event: Event, kind: Kind) -> bytes:
    values: list[int | bytes] = []
    for field in msgspec.structs.astuple(event)[_OWN:]:
        values += field if isinstance(field, tuple) else [_plain(field)]
    return struct.pack("<" + layout.BODIES[kind][0], *values)


def _json_of(event: Event) -> bytes:
    fields = {name: getattr(event, name) for name in event.__struct_fields__[_OWN:]}
    return json.dumps(fields, separators=(",", ":")).encode()


def _plain(field: int | str) -> int | bytes:
    return field.encode() if isinstance(field, str) else field
