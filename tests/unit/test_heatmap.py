# SPDX-License-Identifier: MIT
"""The heat strip against the pages that the guest was set to write, and its image against the PNG format."""

import struct
import zlib
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from vftrace.analysis import dirty
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.demo import scenarios
from vftrace.model.migration import Migration, SlotRound
from vftrace.outputs.text.heatmap import heatmap_png, render_heatmap, squeeze, strips

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"
LOW_MEMORY_PAGES = 0x100
"""QEMU's pc machine: the large slot begins at 1 MiB."""


def migration_of(name: str) -> Migration:
    snapshot = track(Recording(RECORDINGS / f"{name}.vft.gz")).snapshot()
    return next(m for m in snapshot.migrations if m.role != "destination")


@settings(deadline=None)
@given(st.integers(1, 200_000), st.data())
def test_heat_counts_each_page_in_its_part(pages: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, pages - 1), max_size=50))
    bitmap: dirty.Bitmap = {}
    for page in chosen:
        number, bit = divmod(page, dirty.PIECE_PAGES)
        bitmap[number] = bitmap.get(number, 0) | 1 << bit
    heat = dirty.heat(bitmap, pages)
    width = -(-pages // dirty.HEAT_BUCKETS)
    assert len(heat) <= dirty.HEAT_BUCKETS
    assert list(heat) == [
        sum(page // width == bucket for page in chosen) for bucket in range(len(heat))
    ]


@pytest.mark.parametrize("name", ["completed-slow", "completed-fast"])
def test_only_what_the_guest_writes_is_hot(name: str) -> None:
    written = {"completed-slow": scenarios.SLOW, "completed-fast": scenarios.FAST}[name].pages
    largest = strips(migration_of(name))[0]
    width = -(-largest.pages // dirty.HEAT_BUCKETS)
    first = (min(written) - LOW_MEMORY_PAGES) // width
    last = (max(written) - LOW_MEMORY_PAGES) // width
    hot = {
        bucket
        for _, cells in largest.rows
        if cells is not None
        for bucket, cell in enumerate(cells)
        if cell > 0
    }
    assert hot
    assert hot <= set(range(first, last + 1))


def test_text_fits_any_width_and_is_ascii_where_asked() -> None:
    for width in (20, 80, 200):
        sink = StringIO()
        console = Console(file=sink, width=width, color_system=None)
        console.print(render_heatmap([migration_of("completed-slow")], ascii=True))
        text = sink.getvalue()
        assert text.isascii()
        assert all(len(line) <= width for line in text.splitlines())
        assert any(set("-=+*#@") & set(line[8:]) for line in text.splitlines() if "round" in line)


def test_what_was_not_counted_is_reported() -> None:
    migration = migration_of("graphics")
    sink = StringIO()
    Console(file=sink, width=100).print(render_heatmap([migration], ascii=True))
    unknown = [s for s in strips(migration) if any(cells is None for _, cells in s.rows)]
    assert ("not counted" in sink.getvalue()) == bool(unknown)


def test_squeeze_keeps_the_mean() -> None:
    cells = [float(n % 7) / 7 for n in range(128)]
    assert sum(squeeze(cells, 64)) / 64 == pytest.approx(sum(cells) / 128)
    assert squeeze(cells[:5], 64) == tuple(cells[:5])


@pytest.mark.parametrize("name", ["completed-slow", None])
def test_the_image_is_a_png(name: str | None) -> None:
    image = heatmap_png([migration_of(name)] if name else [])
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    chunks = {}
    at = 8
    while at < len(image):
        (length,) = struct.unpack_from(">I", image, at)
        kind, data = image[at + 4 : at + 8], image[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", image, at + 8 + length)[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (bits, colour) == (8, 2)
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)


def test_a_slot_without_pages_is_left_out() -> None:
    """A damaged record may say so; nothing is divided by it."""
    m = migration_of("completed-slow")
    rounds = tuple(
        replace(r, slots=(*r.slots, SlotRound(99, 0, 0, pages=0, heat=()))) for r in m.rounds
    )
    m = replace(m, rounds=rounds)
    assert 99 not in [strip.slot for strip in strips(m)]
    assert heatmap_png([m]).startswith(b"\x89PNG")
