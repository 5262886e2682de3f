"""Memory slots of a migration: how fast each became dirty, round by round, and where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from vftrace.model.migration import Migration
from vftrace.outputs.text.glyphs import Glyphs, sparkline
from vftrace.outputs.text.heatmap import Strip, strip_line, strips
from vftrace.outputs.text.tables import UNKNOWN, count, plain_table, rate, size

SHOWN = 4
"""Slots that are shown, the largest; the others are counted."""

_FIXED = 52
"""Columns beside the history and the heat strip."""


@dataclass(frozen=True, slots=True)
class SlotHistory:
    """A slot over the rounds after the first; None where a round is not known, or the slot was not there."""

    slot: int
    pages: int
    new_pages: tuple[int | None, ...]
    rates: tuple[float | None, ...]
    """Bytes a second, by round."""


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
            count(_sum(history.new_pages)),
            rate(_mean(m, history)),
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
    """The slots that are known by size, largest first."""
    later = m.rounds[1:]
    spans = [r.at_ns - before.at_ns for before, r in zip(m.rounds, later, strict=False)]
    found = []
    sizes = {s.slot: s.pages for r in later for s in r.slots if s.pages is not None}
    for slot, pages in sizes.items():
        new = [next((s.new_pages for s in r.slots if s.slot == slot), None) for r in later]
        rates = [
            None if n is None or ns <= 0 else n * m.dirty.page_size * 1e9 / ns
            for n, ns in zip(new, spans, strict=True)
        ]
        found.append(SlotHistory(slot, pages, tuple(new), tuple(rates)))
    return tuple(sorted(found, key=lambda h: (-h.pages, h.slot)))


def _sum(values: Sequence[int | None]) -> int | None:
    """None where any is not known: a sum of the others would be too small."""
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(m: Migration, history: SlotHistory) -> float | None:
    pages = _sum(history.new_pages)
    ns = m.rounds[-1].at_ns - m.rounds[0].at_ns
    return None if pages is None or ns <= 0 else pages * m.dirty.page_size * 1e9 / ns


def _where(strip: Strip, room: int, g: Glyphs) -> str:
    """The mean of the rounds that are known."""
    known = [cells for _, cells in strip.rows if cells is not None]
    if not known or len({len(cells) for cells in known}) > 1:
        return UNKNOWN
    means = [sum(column) / len(known) for column in zip(*known, strict=True)]
    return strip_line(means, room, g)
