# SPDX-License-Identifier: MIT
"""Unpacks bitmaps that the kernel side packed: struct vft_bitmap in bpf/wire.h describes the format."""

from functools import lru_cache

from vftrace.events.layout import BITMAP_WORDS, BLOCK_WORDS

_BLOCK_BYTES = BLOCK_WORDS * 8
_WHOLE = (1 << BITMAP_WORDS * 64) - 1


def makes_sense(entries: bytes, words: int) -> bool:
    """Whether these entries are a valid bitmap of `words` words."""
    end = len(entries)
    if words > BITMAP_WORDS or end % 8:
        return False
    blocks = -(-words // BLOCK_WORDS)
    at = next_block = 0
    while at < end:
        head = int.from_bytes(entries[at : at + 8], "little")
        block, mask, filled = head & 0xFFFF, head >> 16 & 0xFFFF, head >> 32
        if block < next_block or block + (filled or 1) > blocks:
            return False
        next_block = block + (filled or 1)
        at += 8 if filled else 8 + 8 * mask.bit_count()
    return at == end


def unpacked(entries: bytes, words: int) -> int:
    """Return the bits of `words` words; `entries` are valid and hold the words that are not zero."""
    out = bytearray(-(-words // BLOCK_WORDS) * _BLOCK_BYTES)
    at, ones, end = 0, 0, len(entries)
    while at < end:
        head = int.from_bytes(entries[at : at + 8], "little")
        at += 8
        filled, place = head >> 32, (head & 0xFFFF) * _BLOCK_BYTES
        if filled:
            out[place : place + filled * _BLOCK_BYTES] = b"\xff" * (filled * _BLOCK_BYTES)
            ones += filled
            continue
        for first, length in _runs(head >> 16 & 0xFFFF):
            out[place + first : place + first + length] = entries[at : at + length]
            at += length
    if ones * BLOCK_WORDS == BITMAP_WORDS:
        return _WHOLE
    return int.from_bytes(out, "little")


@lru_cache(maxsize=2048)
def _runs(mask: int) -> tuple[tuple[int, int], ...]:
    """Return where in a block the words of a head's mask are, as (first byte, bytes).

    Guests repeat few masks. If a hostile one uses all 65,536, it costs 3 us for each and not 30 MiB.
    """
    runs: list[tuple[int, int]] = []
    for at in range(0, _BLOCK_BYTES, 8):
        if mask >> (at // 8) & 1:
            if runs and sum(runs[-1]) == at:
                runs[-1] = runs[-1][0], runs[-1][1] + 8
            else:
                runs.append((at, 8))
    return tuple(runs)
