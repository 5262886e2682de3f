# SPDX-License-Identifier: MIT
"""Draws which parts of memory became dirty: a strip for each slot and round, as text or as a PNG image.

Cells come from the tracker's summary of the bitmaps (`SlotRound.heat`): new pages in up to 128 equal parts of a
slot. Slots without new pages are left out.
"""

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from vftrace.model import figures
from vftrace.model.migration import Migration, Role
from vftrace.outputs.text.glyphs import Glyphs, glyphs
from vftrace.outputs.text.words import label
from vftrace.uapi import PAGE_SIZE
from vftrace.units import format_bytes

_MARGIN = len("round 1000 ")
_CELL = 6
_GAP = 4
_COLOURS = ((12, 12, 30), (60, 20, 110), (170, 40, 90), (240, 110, 30), (255, 240, 150))


class Strip(msgspec.Struct, frozen=True):
    """One slot over the rounds. `rows` is (number of the sweep, cells): a cell is the part of its pages that
    became dirty, 0 to 1; None where that round is not known."""

    slot: int
    pages: int
    rows: tuple[tuple[int, tuple[float, ...] | None], ...]


def strips(migration: Migration) -> tuple[Strip, ...]:
    """Return the slots in which pages became dirty, largest first, without rounds before counting began."""
    found: dict[int, list[tuple[int, tuple[float, ...] | None]]] = {}
    sizes: dict[int, int] = {}
    numbers = {id(round_): number for number, round_ in enumerate(migration.rounds, start=1)}
    for _, round_ in figures.counted_rounds(migration):
        for slot in round_.slots:
            if not slot.pages:
                continue
            sizes[slot.slot] = slot.pages
            cells = _cells(slot.heat, slot.pages) if slot.heat else None
            found.setdefault(slot.slot, []).append((numbers[id(round_)], cells))
    every = [Strip(slot, sizes[slot], tuple(rows)) for slot, rows in found.items()]
    hot = [s for s in every if any(cells is None or any(cells) for _, cells in s.rows)]
    return tuple(sorted(hot, key=lambda s: (-s.pages, s.slot)))


def squeeze(cells: Sequence[float], columns: int) -> tuple[float, ...]:
    """Return the strip in at most `width` cells: the mean of those that are merged."""
    if len(cells) <= columns:
        return tuple(cells)
    edges = [at * len(cells) // columns for at in range(columns + 1)]
    return tuple(sum(cells[start:end]) / (end - start) for start, end in pairwise(edges))


class _Heatmap(msgspec.Struct, frozen=True):
    migration: Migration
    ascii: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        g = glyphs(ascii=self.ascii or options.ascii_only)
        m = self.migration
        columns = max(8, options.max_width - _MARGIN)
        yield Text(f"Pages that became dirty, {label(m, g)}", "bold")
        drawn = strips(m)
        if not drawn:
            yield Text("nothing is known of what became dirty after the first round")
        for strip in drawn:
            yield Text(f"slot {strip.slot}, {format_bytes(strip.pages * PAGE_SIZE)}", "dim")
            for number, cells in strip.rows:
                yield Text(
                    f"{f'round {number}':<{_MARGIN}}"
                    + ("not counted" if cells is None else strip_line(cells, columns, g))
                )
        yield Text("")


def strip_line(cells: Sequence[float], columns: int, g: Glyphs) -> str:
    """Draw a strip in at most `width` characters, each as high as the part of its pages that became dirty."""
    top = len(g.levels) - 1
    # A single dirty page of a part must be visible.
    return "".join(
        g.levels[min(top, int(cell * top) + (cell > 0))] for cell in squeeze(cells, columns)
    )


def render_heatmap(
    migrations: Sequence[Migration],
    *,
    ascii: bool,  # noqa: A002
) -> RenderableType:
    """Return the strips of every migration's source, for rich's console."""
    return Group(*(_Heatmap(m, ascii) for m in migrations if m.role != Role.DESTINATION))


def heatmap_png(migrations: Sequence[Migration]) -> bytes:
    """Return the strips as a PNG image: slots from top to bottom, a line of cells for each round, dark is cold.

    Unknown cells are grey. Without strips the image is one dark pixel.
    """
    rows: list[list[tuple[int, int, int]]] = []
    for migration in migrations:
        for strip in strips(migration):
            for _, cells in strip.rows:
                line = [(90, 90, 90)] if cells is None else [_colour(cell) for cell in cells]
                wide = [pixel for pixel in _stretch(line, 128) for _ in range(_CELL)]
                rows += [wide] * _CELL
            rows += [[_COLOURS[0]] * (128 * _CELL)] * _GAP
    return _png(rows or [[_COLOURS[0]]])


def _cells(heat: Sequence[int], pages: int) -> tuple[float, ...]:
    width = -(-pages // len(heat))
    sizes = [min(width, pages - at * width) for at in range(len(heat))]
    return tuple(n / size if size > 0 else 0.0 for n, size in zip(heat, sizes, strict=True))


def _stretch(line: list[tuple[int, int, int]], columns: int) -> list[tuple[int, int, int]]:
    return [line[at * len(line) // columns] for at in range(columns)]


def _colour(cell: float) -> tuple[int, int, int]:
    """Return a colour of the scale; a square root makes nearly cold cells visible."""
    place = min(1.0, cell) ** 0.5 * (len(_COLOURS) - 1)
    low = min(int(place), len(_COLOURS) - 2)
    part = place - low
    first, second = _COLOURS[low], _COLOURS[low + 1]
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _png(rows: Sequence[Sequence[tuple[int, int, int]]]) -> bytes:
    """An image of 8 bits a colour (PNG specification, RFC 2083)."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
