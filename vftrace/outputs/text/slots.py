# SPDX-License-Identifier: MIT
"""Shows the memory slots of a migration: how fast each became dirty, by round, and where."""

from collections.abc import Iterator

import msgspec
from rich.console import RenderableType
from rich.text import Text

from vftrace.model import figures
from vftrace.model.migration import Migration
from vftrace.outputs.text.glyphs import Glyphs, sparkline
from vftrace.outputs.text.heatmap import Strip, strip_line, strips
from vftrace.outputs.text.tables import UNKNOWN, count, plain_table, rate, size

SHOWN = 4
"""How many slots are shown, the largest; the others are counted."""

_FIXED = 52
"""The width of the columns beside the history and the heat strip."""


class SlotHistory(msgspec.Struct, frozen=True):
    """A slot over the rounds after the first; None if a round is not known, or if the slot did not exist then."""

    slot: int
    pages: int
    new_pages: tuple[int | None, ...]
    rates: tuple[float | None, ...]
    """Bytes a second, by round."""
    total_pages: int | None
    mean_rate: float | None


def slots_part(m: Migration, width: int, g: Glyphs) -> Iterator[RenderableType]:
    """Slots in which pages became dirty after the first round: rates, history, heat. Nothing where none did."""
    drawn = {strip.slot: strip for strip in strips(m)}
    histories = [h for h in slot_histories(m) if h.slot in drawn]
    if not histories:
        return
    room = max(8, min(60, (width - _FIXED) // 2))
    table = plain_table(
        ("slot", "right"),
        ("memory", "right"),
        ("new", "right"),
        ("mean rate", "right"),
        ("last round", "right"),
        ("by round", "left"),
        ("where", "left"),
    )
    for history in histories[:SHOWN]:
        table.add_row(
            str(history.slot),
            size(history.pages * m.dirty.page_size),
            count(history.total_pages),
            rate(history.mean_rate),
            rate(history.rates[-1]),
            sparkline(history.new_pages, room, g),
            _where(drawn[history.slot], room, g),
        )
    yield Text()
    yield Text("Memory slots: new pages after round 1, and where they lie", "bold")
    yield table
    if len(histories) > SHOWN:
        yield Text(f"and {len(histories) - SHOWN} smaller with new pages", "dim")


def slot_histories(m: Migration) -> tuple[SlotHistory, ...]:
    """Return the slots of known size, largest first."""
    counted = list(figures.counted_rounds(m))
    found = []
    sizes = {s.slot: s.pages for _, r in counted for s in r.slots if s.pages is not None}
    for slot, pages in sizes.items():
        new = [next((s.new_pages for s in r.slots if s.slot == slot), None) for _, r in counted]
        rates = tuple(
            figures.page_rate(n, m.dirty.page_size, r.at_ns - since)
            for n, (since, r) in zip(new, counted, strict=True)
        )
        known = [n for n in new if n is not None]
        # Where a round is not known, a sum of the others would be too small.
        total = sum(known) if len(known) == len(new) else None
        mean = figures.page_rate(total, m.dirty.page_size, counted[-1][1].at_ns - counted[0][0])
        found.append(SlotHistory(slot, pages, tuple(new), rates, total, mean))
    return tuple(sorted(found, key=lambda h: (-h.pages, h.slot)))


def _where(strip: Strip, room: int, g: Glyphs) -> str:
    """Return the mean of the known rounds."""
    known = [cells for _, cells in strip.rows if cells is not None]
    if not known or len({len(cells) for cells in known}) > 1:
        return UNKNOWN
    means = [sum(column) / len(known) for column in zip(*known, strict=True)]
    return strip_line(means, room, g)
