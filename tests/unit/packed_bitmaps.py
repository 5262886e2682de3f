# SPDX-License-Identifier: MIT
"""Bitmaps as the kernel side packs them: small records that hold a large one, and those of older recordings."""

import struct
from bisect import bisect_left
from collections.abc import Iterator

from msgspec import structs

from vftrace import events
from vftrace.events import layout, wire
from vftrace.events.layout import Kind

BLOCKS = layout.BITMAP_WORDS // layout.BLOCK_WORDS


def nearly_whole(count: int, at_ns: int = 10**9) -> Iterator[bytes]:
    """Parts that are all ones but for a block or some at their ends, no two alike that are near each other."""
    for number in range(count):
        first = number % (BLOCKS // 2)
        ones = BLOCKS - first - 1 - number // BLOCKS % 64
        body = struct.pack("<QQIIQ", at_ns - 1, number, 0, layout.BITMAP_WORDS, ones << 32 | first)
        yield (
            wire.HEADER.pack(
                at_ns, number, wire.HEADER.size + len(body), Kind.BITMAP, 0, 4711, 4711
            )
            + body
        )


def as_bitmaps(records: list[bytes]) -> list[bytes]:
    """A recording with pieces as the kernel side sends its bitmaps now: packed, and with numbers of their own."""
    pieces: dict[int, list[int]] = {}
    for event in map(wire.decode, records):
        if type(event) is events.Piece:
            pieces.setdefault(event.tgid, []).append(event.seq)
    for numbers in pieces.values():
        numbers.sort()
    return [_as_now(record, wire.decode(record), pieces) for record in records]


def _as_now(record: bytes, event: events.Event, pieces: dict[int, list[int]]) -> bytes:
    if isinstance(event, events.End):
        left = {pid: seq - len(pieces.get(pid, ())) for pid, seq in event.streams.items()}
        return wire.encode(structs.replace(event, streams=left))
    seq = bisect_left(pieces.get(event.tgid, []), event.seq)
    if not isinstance(event, events.Piece):
        return wire.with_seq(record, event.seq - seq)
    words = -(-event.bits.bit_length() // 64)
    entries = b"".join(_block(number, event.bits) for number in range(-(-words // 16)))
    body = struct.pack("<QQII", event.call_ns, event.first_page, event.slot, words) + entries
    size = wire.HEADER.size + len(body)
    return wire.HEADER.pack(event.at_ns, seq, size, Kind.BITMAP, 0, event.tgid, event.tid) + body


def _block(number: int, bits: int) -> bytes:
    words = [bits >> (number * 16 + at) * 64 & (1 << 64) - 1 for at in range(16)]
    mask = sum(1 << at for at, word in enumerate(words) if word)
    found = [word for word in words if word]
    return struct.pack(f"<{1 + len(found)}Q", mask << 16 | number, *found) if mask else b""
