# SPDX-License-Identifier: MIT
"""The kernel side's walk over a bitmap (bpf/bitmap.h), bit for bit, with bitmaps of our own making.

KVM_CLEAR_DIRTY_LOG takes any bitmap and only reads it, so what was shipped can be held against what was handed over.
"""

import os
import random
import time
from collections.abc import Iterator

import pytest

from benchmarks.kvmslots import GIB, MANUAL_PROTECT, PAGE, Bitmap, Vm
from vftrace.collect.live import LiveSource
from vftrace.events import BitmapPart, ClearDirtyLog

PIECE = 1 << 15
"""Pages of a piece."""
PAGES = 14 * PIECE + 77 * 64 + 5
"""Three whole copies of four pieces, two pieces, a part of one that ends inside a word."""

ONES = (1 << PIECE) - 1
CHESS = ONES // 3


def joined(pieces: list[int]) -> int:
    """One bitmap from those of pieces."""
    return sum(bits << number * PIECE for number, bits in enumerate(pieces)) & (1 << PAGES) - 1


def cases() -> Iterator[tuple[str, int]]:
    """Bitmaps in which a walk could go wrong."""
    everything = (1 << PAGES) - 1
    yield "empty", 0
    yield "full", everything
    yield "first page", 1
    yield "last page", 1 << PAGES - 1
    yield "all but the first", everything ^ 1
    yield "all but the last", everything >> 1
    yield "first words", joined([1] * 15)
    yield "last bits of pieces", joined([1 << PIECE - 1] * 15)
    yield "ones with a hole at the end", joined([ONES >> 1] * 15)
    yield "first words full, then nothing", joined([(1 << 64) - 1] * 15)
    yield "every second page", joined([CHESS] * 15)
    yield "whole and empty in turn", joined([ONES, 0] * 7)
    for number in range(4):
        yield (
            f"only piece {number} of each copy",
            joined([CHESS if n % 4 == number else 0 for n in range(15)]),
        )
        yield (
            f"only piece {number} not full",
            joined([ONES ^ 1 << 500 if n % 4 == number else ONES for n in range(15)]),
        )
    chosen = random.Random(1)
    for _ in range(20):
        yield "mixed", joined([any_piece(chosen) for _ in range(15)])


def any_piece(chosen: random.Random) -> int:
    """A piece's bits: empty, full, regular, nearly empty, nearly full or random."""
    one, hole = 1 << chosen.randrange(PIECE), 1 << chosen.randrange(PIECE)
    kinds = (0, 0, ONES, CHESS, ONES ^ CHESS, one, ONES ^ hole, chosen.getrandbits(PIECE))
    return chosen.choice(kinds)


def shipped(source: LiveSource, calls: int) -> list[tuple[ClearDirtyLog, list[BitmapPart]]]:
    """Each of so many calls with its pieces."""
    done: list[ClearDirtyLog] = []
    pieces: list[BitmapPart] = []
    deadline = time.monotonic() + 60
    while len(done) < calls:
        assert time.monotonic() < deadline
        for event in source.read().events:
            if event.tgid != os.getpid():
                continue  # other VMs of this host
            if isinstance(event, ClearDirtyLog):
                done.append(event)
            elif isinstance(event, BitmapPart):
                pieces.append(event)
    return [(call, [p for p in pieces if p.call_ns == call.enter_ns]) for call in done]


@pytest.mark.parametrize("first", [0, 64 * 5])
def test_every_bit_arrives(first: int) -> None:
    """Whatever the bitmap holds, wherever in the slot it begins."""
    bitmap = Bitmap(PAGES)
    source = LiveSource()
    wanted = list(cases())
    try:
        with Vm(MANUAL_PROTECT) as vm:
            vm.add_slot(0, 4 * GIB, (first + PAGES) * PAGE)
            vm.log(0, on=True)
            for _, bits in wanted:
                bitmap.load(bits)
                vm.clear(0, first, PAGES, bitmap)
            found = shipped(source, len(wanted))
    finally:
        source.close()
    for (name, bits), (call, pieces) in zip(wanted, found, strict=True):
        seen = sum(piece.bits << piece.first_page for piece in pieces)
        assert seen == bits << first, name
        assert (call.pieces, call.read_errors) == (len(pieces), 0)
        assert not any(piece.bits == 0 for piece in pieces), name
