# SPDX-License-Identifier: MIT
"""Counts dirty pages exactly, bit by bit.

Under manual protect KVM_GET_DIRTY_LOG returns every page that was dirtied and not yet cleared, so the new
pages are `got & ~(got before & ~cleared since)`. Arithmetic on counts would be wrong: QEMU's CLEAR
has more bits than the log. Bitmaps are sparse: a dict of pieces of `PIECE_PAGES` bits.
"""

from collections.abc import Iterable

import msgspec

from vftrace.events import Part

PIECE_PAGES = 32768
"""Bits of one piece: 4 KiB of bitmap, as bpf/bitmap.h sends them."""

_ONES = (1 << PIECE_PAGES) - 1

HEAT_BUCKETS = 128
"""Parts of a slot that a drawing distinguishes."""

Bitmap = dict[int, int]
"""Piece number to its bits; a piece of zeroes is absent."""


def bitmap_of(pieces: Iterable[Part]) -> Bitmap:
    """Return the bitmap of pieces; a piece may begin at any page."""
    bitmap: Bitmap = {}
    for piece in pieces:
        number, shift = divmod(piece.first_page, PIECE_PAGES)
        bits = piece.bits << shift
        while bits:
            low = bits & ((1 << PIECE_PAGES) - 1)
            if low:
                bitmap[number] = bitmap.get(number, 0) | low
            bits >>= PIECE_PAGES
            number += 1
    return bitmap


def count(bitmap: Bitmap) -> int:
    """Return the number of pages in a bitmap."""
    return sum(map(int.bit_count, bitmap.values()))


def union(bitmap: Bitmap, other: Bitmap) -> Bitmap:
    """Return the pages that are in either bitmap."""
    merged = dict(bitmap)
    for number, bits in other.items():
        merged[number] = merged.get(number, 0) | bits
    return merged


def minus(bitmap: Bitmap, other: Bitmap) -> Bitmap:
    """Return the pages that are in the first bitmap and not in the second."""
    rest = {}
    for number, bits in bitmap.items():
        left = bits & ~other.get(number, 0)
        if left:
            rest[number] = left
    return rest


def shifted(bitmap: Bitmap, pages: int) -> Bitmap:
    """Return the same pages, numbered from a first page that is `pages` pages lower."""
    moved: Bitmap = {}
    by, inside = divmod(pages, PIECE_PAGES)
    for number, bits in bitmap.items():
        both = bits << inside
        for at, part in ((number + by, both & _ONES), (number + by + 1, both >> PIECE_PAGES)):
            if part:
                moved[at] = moved.get(at, 0) | part
    return moved


def outside(bitmap: Bitmap, first: int, pages: int) -> Bitmap:
    """Return the pages outside of the `pages` pages from `first` on."""
    rest = {}
    for number, bits in bitmap.items():
        begin = min(max(first - number * PIECE_PAGES, 0), PIECE_PAGES)
        end = min(max(first + pages - number * PIECE_PAGES, 0), PIECE_PAGES)
        left = bits & ~(((1 << max(0, end - begin)) - 1) << begin)
        if left:
            rest[number] = left
    return rest


def common(bitmap: Bitmap, other: Bitmap) -> Bitmap:
    """Return the pages that are in both bitmaps."""
    both = {}
    for number, bits in bitmap.items():
        kept = bits & other.get(number, 0)
        if kept:
            both[number] = kept
    return both


def heat(bitmap: Bitmap, pages: int) -> tuple[int, ...]:
    """Return the number of set pages in each of at most HEAT_BUCKETS equal parts of the first `pages` pages."""
    width = max(1, -(-pages // HEAT_BUCKETS))
    counts = [0] * -(-pages // width)
    for number, bits in bitmap.items():
        at = number * PIECE_PAGES
        bucket = at // width
        while bits and bucket < len(counts):
            take = (bucket + 1) * width - at
            if take >= bits.bit_length():
                # A slot's size comes from its VMM, and may be any number: no mask is longer than a piece.
                counts[bucket] += bits.bit_count()
                break
            counts[bucket] += (bits & ((1 << take) - 1)).bit_count()
            bits >>= take
            at += take
            bucket += 1
    return tuple(counts)


def covers(bitmap: Bitmap, pages: int) -> bool:
    """Whether all of the first `pages` pages are set."""
    return pages > 0 and count(bitmap) >= pages


class Unread(msgspec.Struct):
    """The pages of a slot's log that one reader has not taken yet.

    `fresh` are pages that became dirty since the reader last took; `known` is False from the loss of a part of a bitmap
    until the reader takes again; `initial`: the all-ones of KVM_DIRTY_LOG_INITIALLY_SET is among the pages.
    """

    fresh: Bitmap = msgspec.field(default_factory=dict)
    known: bool = True
    initial: bool = False


class SlotLog(msgspec.Struct):
    """The log of one memslot since logging was switched on for it.

    `manual` is KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (None: not known), `initially_set` its second bit.
    Every attempt of the process is a reader with its own `unread` pages, so a dirty-rate measurement that reads the log
    in the middle of a migration takes no pages from it. A reader has an entry only if it has pages to take, so that a
    process with many slots and threads costs no more than its requests. `shadow_known` is False from the loss of a part
    of a bitmap until the next complete GET.
    """

    pages: int
    manual: bool | None
    initially_set: bool | None
    unread: dict[int, Unread] = msgspec.field(default_factory=dict)
    shadow: Bitmap = msgspec.field(default_factory=dict)
    shadow_known: bool = True
    first: bool = True
    losses: int = 0
    """How many losses of its process were applied to this log (`Process.lost_something`)."""

    def got(self, bitmap: Bitmap, readers: Iterable[int] = (0,)) -> None:
        """Take the bitmap that a GET_DIRTY_LOG returned, for these readers."""
        initial = self.first and self.initially_set is not False and covers(bitmap, self.pages)
        self.first = False
        fresh = minus(bitmap, self.shadow)
        # The returned pages may have been dirty long before: the missing part would have shown that.
        known = self.manual is False or self.shadow_known
        self.unread = {reader: self.unread.get(reader) or Unread() for reader in readers}
        for reader in self.unread.values():
            if fresh:
                reader.fresh = union(reader.fresh, fresh)
            reader.known = reader.known and known
            reader.initial = reader.initial or initial
        self.shadow = {} if self.manual is False else bitmap
        self.shadow_known = True

    def cleared(self, bitmap: Bitmap) -> None:
        """Remove the bits that a CLEAR_DIRTY_LOG cleared; only manual protect has that call."""
        self.manual = True
        if bitmap:
            self.shadow = minus(self.shadow, bitmap)

    def damaged(self, readers: Iterable[int] = (0,)) -> None:
        """Note that a part of a bitmap is missing: no reader knows its pages until the next complete GET."""
        self.shadow_known = False
        for reader in readers:
            self.unread.setdefault(reader, Unread()).known = False

    def take(self, reader: int = 0) -> tuple[Bitmap | None, bool]:
        """Return the pages that became dirty since this reader last took (None: not known), and whether they are the
        initial all-ones."""
        unread = self.unread.pop(reader, None) or Unread()
        return unread.fresh if unread.known else None, unread.initial
