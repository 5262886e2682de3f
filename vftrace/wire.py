"""Bytes to events and, for the collector's own records, events to bytes.

The layouts are those of bpf/wire.h (a test compares them). Records of the collector itself use
the same header; what names things is JSON behind it.
"""

import json
import re
import struct
from collections.abc import Callable
from typing import Any, get_origin, get_type_hints

from vftrace import events
from vftrace.events import Event

HEADER = struct.Struct("<QQIHHII")
"""at_ns, seq, size, kind, reserved, tgid, tid."""

MAX_RECORD = 1 << 20
"""Bytes; nothing that is written is longer, so a larger size means a damaged file."""

PIECE_KIND = 7
END_KIND = 112
_PIECE = struct.Struct("<QQIHH")
_FILL_ONES = 1
_PIECE_WORDS = 512
_ONES = b"\xff" * (_PIECE_WORDS * 8)

# kind: (struct in bpf/wire.h, layout behind the header, event). Pads are the C struct's.
FIXED: dict[int, tuple[str, struct.Struct, type[Event]]] = {
    1: ("vft_vm_created", struct.Struct("<iI"), events.VmCreated),
    2: ("vft_vcpu_created", struct.Struct("<iI"), events.VcpuCreated),
    3: ("vft_region", struct.Struct("<IIQQQiI"), events.Region),
    4: ("vft_cap", struct.Struct("<IiQ"), events.Capability),
    5: ("vft_get_dirty_log", struct.Struct("<QQQQIiII"), events.GetDirtyLog),
    6: ("vft_clear_dirty_log", struct.Struct("<QQQQIIiIII"), events.ClearDirtyLog),
    8: ("vft_reset_dirty_rings", struct.Struct("<QQQQiIII"), events.ResetDirtyRings),
    9: ("vft_clock", struct.Struct("<QQIiQ"), events.Clock),
    10: ("vft_run", struct.Struct("<Q"), events.Run),
    11: ("vft_vcpu_state", struct.Struct("<iI"), events.VcpuState),
    12: ("vft_channel", struct.Struct("<QQQQQiiII"), events.Channel),
    13: ("vft_uffd", struct.Struct("<QQIi"), events.Userfault),
    14: ("vft_exit", struct.Struct("<Q"), events.Exit),
    15: ("vft_burst", struct.Struct("<QQiI"), events.Burst),
    20: ("vft_vfio_open", struct.Struct("<iI48sQ"), events.VfioOpen),
    21: ("vft_vfio_close", struct.Struct("<iI"), events.VfioClose),
    22: ("vft_vfio_state", struct.Struct("<QiIIiiI"), events.VfioState),
    23: ("vft_vfio_migration", struct.Struct("<Qii"), events.VfioMigration),
    24: ("vft_vfio_data_size", struct.Struct("<Qii"), events.VfioDataSize),
    25: ("vft_vfio_precopy_info", struct.Struct("<QQii"), events.VfioPrecopyInfo),
    26: ("vft_vfio_reset", struct.Struct("<QiI48siI"), events.VfioReset),
    27: ("vft_vfio_dirty_tracking", struct.Struct("<QQQQiIIi"), events.VfioDirtyTracking),
    28: ("vft_vfio_dirty", struct.Struct("<QQQQQQiIIiII"), events.VfioDirty),
    29: ("vft_vfio_data", struct.Struct("<QQQQQiiIiII"), events.VfioData),
    40: ("vft_mailbox", struct.Struct("<16sIIIIIi16I"), events.Mailbox),
    41: ("vft_vf_reset", struct.Struct("<16sII"), events.VfReset),
    100: ("", struct.Struct("<"), events.Tick),
    101: ("", struct.Struct("<qq"), events.ClockSample),
    102: ("", struct.Struct("<Q"), events.Lost),
    103: ("", struct.Struct("<Q"), events.Gone),
}

# kind: (event, what turns its JSON fields into the event's own)
NAMED: dict[int, tuple[type[Event], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    110: (events.Process, dict),
    111: (events.FileDescriptor, dict),
    113: (events.Device, dict),
    114: (events.MailboxFlood, dict),
    115: (events.VfAddress, dict),
    116: (events.NetLink, dict),
    117: (events.NetAddress, dict),
    118: (events.NetMissed, dict),
    123: (events.Uncounted, dict),
    END_KIND: (
        events.End,
        lambda fields: {"streams": {int(k): int(v) for k, v in fields["streams"].items()}},
    ),
    120: (events.PingSettings, dict),
    121: (events.PingGap, dict),
    122: (events.PingSummary, dict),
}

_MAILBOX_KIND = 40
# Kinds that got a field at their end: the size of the body before, whose missing field reads 0.
_LENGTHENED = {9: 24, 20: 56}

_WITH_TEXT = {kind for kind, (_, layout, _) in FIXED.items() if "s" in layout.format}

_FIXED_KIND = {event: (kind, layout) for kind, (_, layout, event) in FIXED.items()}
_FIELDS = re.compile(r"\d*[a-zA-Z]")
_NAMED_KIND = {event: kind for kind, (event, _) in NAMED.items()}
# What a JSON field may be: a file can hold anything. Of a container its own kind is checked.
_TYPES = {
    kind: {
        name: get_origin(hint) if get_origin(hint) in (dict, tuple) else hint
        for name, hint in get_type_hints(event).items()
    }
    for kind, (event, _) in NAMED.items()
}


def decode(record: bytes) -> Event:
    """One record as an event; a kind or a layout that is not known gives `events.Unknown`.

    Raises ValueError if the record is shorter than a header or its size field is wrong.
    """
    if len(record) < HEADER.size:
        raise ValueError(f"record of {len(record)} bytes is shorter than its header")
    at_ns, seq, size, kind, _, tgid, tid = HEADER.unpack_from(record)
    if size != len(record):
        raise ValueError(f"record of {len(record)} bytes says it has {size}")
    body = memoryview(record)[HEADER.size :]
    known = FIXED.get(kind)
    if known is not None and kind in _LENGTHENED and len(body) == _LENGTHENED[kind]:
        body = memoryview(bytes(body) + bytes(known[1].size - len(body)))
    if known is not None and len(body) == known[1].size:
        fields = known[1].unpack(body)
        if kind in _WITH_TEXT:
            fields = tuple(_text(f) if isinstance(f, bytes) else f for f in fields)
        own = len(known[2].__slots__)
        if kind == _MAILBOX_KIND:
            fields = (*fields[: own - 1], fields[own - 1 :])
        return known[2](at_ns, seq, tgid, tid, *fields[:own])
    if kind == PIECE_KIND:
        return _decode_piece(at_ns, seq, tgid, tid, body)
    named = NAMED.get(kind)
    if named is not None:
        try:
            own_fields = named[1](json.loads(bytes(body)))
            if all(isinstance(value, _TYPES[kind][name]) for name, value in own_fields.items()):
                return named[0](at_ns, seq, tgid, tid, **own_fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
    return events.Unknown(at_ns, seq, tgid, tid, kind)


def _text(field: bytes) -> str:
    """A C string in a field of fixed length."""
    return field.split(b"\0", 1)[0].decode("ascii", errors="replace")


def _decode_piece(at_ns: int, seq: int, tgid: int, tid: int, body: memoryview) -> Event:
    if len(body) >= _PIECE.size:
        call_ns, first_page, slot, words, fill = _PIECE.unpack_from(body)
        data = body[_PIECE.size :]
        if words > _PIECE_WORDS:
            return events.Unknown(at_ns, seq, tgid, tid, PIECE_KIND)
        if fill == _FILL_ONES and not data:
            bits = (1 << words * 64) - 1
            return events.Piece(at_ns, seq, tgid, tid, call_ns, first_page, slot, bits)
        if fill != _FILL_ONES and len(data) == words * 8:
            bits = int.from_bytes(data, "little")
            return events.Piece(at_ns, seq, tgid, tid, call_ns, first_page, slot, bits)
    return events.Unknown(at_ns, seq, tgid, tid, PIECE_KIND)


def shortened(record: bytes) -> bytes:
    """The record of a piece without its words, where these are all ones; the kernel side does not look for that."""
    words = record[HEADER.size + _PIECE.size :]
    if not words or words != _ONES[: len(words)]:
        return record
    at_ns, seq, _, kind, reserved, tgid, tid = HEADER.unpack_from(record)
    call_ns, first_page, slot, count, _ = _PIECE.unpack_from(record, HEADER.size)
    size = HEADER.size + _PIECE.size
    return HEADER.pack(at_ns, seq, size, kind, reserved, tgid, tid) + _PIECE.pack(
        call_ns, first_page, slot, count, _FILL_ONES
    )


def encode(event: Event) -> bytes:
    """A record of the collector's own; raises KeyError for events that only the kernel side writes pieces of."""
    own = {name: getattr(event, name) for name in type(event).__slots__}
    if type(event) in _FIXED_KIND:
        kind, layout = _FIXED_KIND[type(event)]
        values = [v.encode() if isinstance(v, str) else v for v in own.values()]
        if kind == _MAILBOX_KIND:
            values = [*values[:-1], *values[-1]]
        pads = 0 if kind == _MAILBOX_KIND else len(_FIELDS.findall(layout.format)) - len(values)
        body = layout.pack(*values, *[0] * pads)
    else:
        kind = _NAMED_KIND[type(event)]
        body = json.dumps(own, separators=(",", ":")).encode()
    size = HEADER.size + len(body)
    return HEADER.pack(event.at_ns, event.seq, size, kind, 0, event.tgid, event.tid) + body
