# SPDX-License-Identifier: MIT
"""Draws the tables of one migration, the same in the report and in the live view."""

from collections.abc import Iterable, Sequence
from dataclasses import replace  # noqa: TID251 - rich's columns are dataclasses

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import StyleType
from rich.table import Column, Table
from rich.text import Text

from vftrace.model import figures
from vftrace.model.migration import Migration, Outcome, Phase
from vftrace.outputs.text.brownout import percent
from vftrace.outputs.text.glyphs import Glyphs, span
from vftrace.outputs.text.words import AWAITED, happens
from vftrace.units import format_bytes, format_rate

UNKNOWN = "-"
WIDE = 100
"""From this many columns on, tables have optional columns."""

FIRST_ROUNDS = 10
LAST_ROUNDS = 30

STYLES = {
    Phase.SETUP: "cyan",
    Phase.PRECOPY: "blue",
    Phase.POSTCOPY: "magenta",
    Phase.INCOMING: "blue",
    Phase.RUNNING: "green",
    Phase.CLEANUP: "cyan",
}
OUTCOME_STYLES: dict[Outcome | None, str] = {
    Outcome.COMPLETED: "green",
    Outcome.FAILED: "bold red",
    Outcome.CANCELLED: "yellow",
}
BLACKOUT_STYLE = "red"
"""The phases in which the guest is stopped."""


def milliseconds(ns: int | None) -> str:
    """Return a time in one unit and to the microsecond, so that a column can be compared."""
    return UNKNOWN if ns is None else f"{ns / 1e6:.3f} ms"


def seconds(ns: int | None) -> str:
    """Return the time since the migration began."""
    return UNKNOWN if ns is None else f"{ns / 1e9:.3f} s"


def offset(ns: int) -> str:
    """Return the time from the migration's begin, with its sign: a device may begin before the source logs."""
    return f"{ns / 1e9:+.3f} s"


def count(number: int | None) -> str:
    """Return a number of pages as text."""
    return UNKNOWN if number is None else str(number)


def size(number: int | None) -> str:
    """Return a size in bytes as text."""
    return UNKNOWN if number is None else format_bytes(number)


def rate(bytes_per_second: float | None) -> str:
    """Return a rate in bytes per second as text."""
    return UNKNOWN if bytes_per_second is None else format_rate(bytes_per_second)


def compact(number: float | None) -> str:
    """Return bytes in at most six characters: `3.92M` is MiB."""
    if number is None:
        return UNKNOWN
    figure, unit = format_bytes(number).split(" ")
    return figure if unit == "B" else figure + unit[0]


GAP = 2
"""Blanks between two columns."""

LEAST_TEXT = 8
"""A column of texts is not cropped to fewer columns of the terminal than this."""


class _PlainTable(Table):
    """Shows cells as they are: in a string rich would read square brackets as markup.

    In a narrow terminal it crops texts, but no figure: half of a number would be another number. It leaves out columns
    of figures instead, and names them.
    """

    figures: list[bool]
    """For each column, whether it has figures."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [_width(column) for column in self.columns]
        shown = list(range(len(widths)))
        room = options.max_width
        excess = _total(widths, shown) - room
        for index in sorted(shown, key=lambda i: -widths[i]):
            if excess > 0 and not self.figures[index]:
                cropped = max(min(widths[index], LEAST_TEXT), widths[index] - excess)
                excess -= widths[index] - cropped
                widths[index] = cropped
        if excess <= 0 and _total(widths, shown) == _total(map(_width, self.columns), shown):
            yield from super().__rich_console__(console, options)
            return
        left_out: list[str] = []
        for index in reversed(range(1, len(widths))):
            if _total(widths, shown) > room and self.figures[index]:
                shown.remove(index)
                left_out.insert(0, str(self.columns[index].header))
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
        table.columns = [
            replace(self.columns[index], _index=at, width=widths[index])
            for at, index in enumerate(shown)
        ]
        table.rows = self.rows
        yield from table.__rich_console__(console, options)
        if left_out:
            yield Text(f"columns without room: {', '.join(left_out)}", "dim")

    def add_row(
        self,
        *cells: RenderableType | None,
        style: StyleType | None = None,
        end_section: bool = False,
    ) -> None:
        plain = (Text(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*plain, style=style, end_section=end_section)


def plain_table(*columns: tuple[str, str]) -> Table:
    """Return a table without lines, columns two spaces apart.

    `columns` are heading and `left` (texts), `right` (figures) or `right-text` (texts at the right).
    """
    table = _PlainTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    table.figures = [justify == "right" for _, justify in columns]
    for heading, justify in columns:
        table.add_column(
            Text(heading),
            justify="left" if justify == "left" else "right",
            no_wrap=True,
            # Rich's ellipsis is not ASCII.
            overflow="crop",
        )
    return table


def _width(column: Column) -> int:
    cells = (cell_len(str(cell)) for cell in (column.header, *column.cells))
    return max(cells, default=0)


def _total(widths: Iterable[int], shown: Sequence[int]) -> int:
    """Return the width of a table with these of its columns."""
    every = list(widths)
    return sum(every[index] for index in shown) + GAP * (len(shown) - 1)


def blackout_table(migration: Migration, now_ns: int, width: int, g: Glyphs) -> Table:
    """Return the checkpoints, one below the other: each bar begins where the bar before ended.

    While a blackout lasts, the table has the passed checkpoints and the present step.
    """
    table = plain_table(
        ("checkpoint", "left"),
        ("took", "right"),
        ("share", "right"),
        ("", "left"),
        ("what happens until it", "left"),
    )
    lasting = figures.blackout(migration, now_ns)
    checkpoints = migration.downtime.checkpoints
    if lasting is not None:
        checkpoints = tuple(c for c in checkpoints if c.at_ns is not None)
    total = lasting.ns if lasting else sum(c.ns or 0 for c in checkpoints)
    # 15 + 11 + 5 + 33 for the other columns and two spaces between all of them.
    bar = max(6, min(50, width - 72))
    gone = 0
    for checkpoint in checkpoints:
        ns = checkpoint.ns
        largest = checkpoint.name == migration.downtime.set_by
        style = "bold" if largest else "dim" if ns is None else ""
        drawn, share = "", UNKNOWN
        if ns is not None and total:
            drawn = span(gone / total, (gone + ns) / total, bar, g) if ns else ""
            share = f"{100 * ns / total:.0f}%"
            gone += ns
        table.add_row(
            checkpoint.name,
            milliseconds(ns),
            share,
            Text(drawn, BLACKOUT_STYLE),
            happens(migration, checkpoint.name),
            style=style,
        )
    if lasting is not None and not lasting.at_least:
        drawn = span(gone / total, 1, bar, g) if total else ""
        table.add_row(
            f"{g.cursor} so far",
            milliseconds(lasting.since_ns),
            f"{100 * lasting.since_ns / total:.0f}%" if total else UNKNOWN,
            Text(drawn, BLACKOUT_STYLE),
            AWAITED[lasting.since],
            style="bold",
        )
    return table


def phases_table(migration: Migration, now_ns: int, width: int, g: Glyphs) -> Table:
    """Return the phases of both roles on one time line, from the migration's start to its end."""
    table = plain_table(
        ("role", "left"), ("phase", "left"), ("from", "right"), ("lasted", "right"), ("", "left")
    )
    start = migration.started_at_ns
    end = max(migration.ended_at_ns or now_ns, start + 1)
    # A blackout before the end, and the cleanup, are drawn too; the final `running` is not.
    for phase in migration.phases:
        if phase.end_at_ns is not None and phase.name != Phase.RUNNING:
            end = max(end, phase.end_at_ns)
    bar = max(10, width - 50)
    previous = ""
    for phase in migration.phases:
        first = (phase.start_at_ns - start) / (end - start)
        last = min(1.0, ((phase.end_at_ns or now_ns) - start) / (end - start))
        lasts = None if phase.end_at_ns is None else phase.end_at_ns - phase.start_at_ns
        table.add_row(
            phase.role if phase.role != previous else "",
            phase.name,
            seconds(phase.start_at_ns - start),
            "still" if lasts is None else milliseconds(lasts),
            Text(span(first, last, bar, g), STYLES.get(phase.name, BLACKOUT_STYLE)),
        )
        previous = phase.role
    return table


def rounds_table(migration: Migration, width: int, *, last: int | None = None) -> Table:
    """Return the rounds; `last` limits them to the newest, None shows the relevant ones."""
    wide = width >= WIDE
    columns = [
        ("round", "right"),
        ("at", "right"),
        ("sweep", "right"),
        ("new", "right"),
        ("re-dirtied", "right"),
        ("logged", "right"),
        ("dirtied", "right"),
        ("sent", "right"),
    ]
    speeds = migration.brownout.rounds if migration.brownout is not None else ()
    if any(speed is not None for speed in speeds):
        columns.append(("speed", "right"))
    else:
        speeds = ()
    by_dma = any(figures.dma_pages(r) is not None for r in migration.rounds)
    if by_dma:
        columns.insert(4, ("by DMA", "right"))
    table = plain_table(*columns, *([("bandwidth", "right")] if wide else []))
    rates, bandwidths = figures.round_dirty_rates(migration), figures.round_bandwidths(migration)
    rounds = list(enumerate(migration.rounds, start=1))
    if last is not None:
        rounds = rounds[len(rounds) - last :] if last < len(rounds) else rounds
    left_out = len(rounds) - FIRST_ROUNDS - LAST_ROUNDS if last is None else 0
    for index, (number, round_) in enumerate(rounds):
        if left_out > 1 and FIRST_ROUNDS <= index < FIRST_ROUNDS + left_out:
            if index == FIRST_ROUNDS:
                table.add_row("...", f"{left_out} more", *([""] * (len(table.columns) - 2)))
            continue
        cells = [
            str(number),
            seconds(round_.at_ns - migration.started_at_ns),
            milliseconds(round_.duration_ns),
            count(round_.new_pages),
            count(round_.redirtied_pages),
            count(round_.logged_pages),
            rate(rates[number - 1]),
            size(round_.sent_bytes),
        ]
        if speeds:
            speed = speeds[number - 1] if number <= len(speeds) else None
            cells.append(UNKNOWN if speed is None else percent(speed))
        if by_dma:
            cells.insert(4, count(figures.dma_pages(round_)))
        if wide:
            cells.append(rate(bandwidths[number - 1]))
        table.add_row(*cells)
    return table
