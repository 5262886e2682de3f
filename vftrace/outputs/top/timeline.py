# SPDX-License-Identifier: MIT
"""Draws one migration in full."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vftrace.model import figures
from vftrace.model.migration import Migration
from vftrace.outputs.text import brownout
from vftrace.outputs.text.calls import top_line
from vftrace.outputs.text.devices import devices_part
from vftrace.outputs.text.forecast import forecast_of
from vftrace.outputs.text.glyphs import Glyphs, shorten, sparkline
from vftrace.outputs.text.slots import slots_part
from vftrace.outputs.text.tables import (
    OUTCOME_STYLES,
    blackout_table,
    compact,
    count,
    phases_table,
    rounds_table,
    size,
)
from vftrace.outputs.text.words import headline, roles, title, verdict, warnings
from vftrace.units import format_ns

SIDE_BY_SIDE = 150
"""From this many columns on, the blackout and the phases are side by side."""

TITLE = "bold"
WARNING = "bold yellow"


def timeline(migration: Migration, now_ns: int, width: int, g: Glyphs) -> list[RenderableType]:
    """Return one migration in full: verdict, blackout, phases, rounds."""
    m = migration
    page: list[RenderableType] = [
        one_line(
            f"{title(m, g)}  {verdict(m, g)}, {format_ns(figures.elapsed_ns(m, now_ns))}",
            width,
            g,
            TITLE,
        ),
        Text(headline(m, now_ns), OUTCOME_STYLES.get(m.outcome, "")),
        *(Text(f"! {warning}", WARNING) for warning in warnings(m)),
        one_line(
            f"{roles(m, g)}; {m.channel.kind} channel, sent {size(m.channel.bytes)}"
            + (f", ERROR {m.channel.error}" if m.channel.error else ""),
            width,
            g,
        ),
    ]
    took = top_line(m, width, g)
    if took:
        page.append(Text(took))
    speed = brownout.top_line(m, width, g)
    if speed:
        page.append(one_line(speed, width, g))
    forecast = forecast_of(m)
    if forecast is not None:
        page.append(Text(f"forecast {forecast}"))
    if m.stopped_at_ns is None:
        page += [Text(), phases_table(m, now_ns, width, g)]
    elif width >= SIDE_BY_SIDE:
        both = Table.grid(padding=(0, 4, 0, 0))
        left = width // 2
        both.add_row(
            blackout_table(m, now_ns, left, g), phases_table(m, now_ns, width - left - 6, g)
        )
        page += [Text(), both]
    else:
        page += [Text(), blackout_table(m, now_ns, width, g)]
        page += [Text(), phases_table(m, now_ns, width, g)]
    page += devices_part(m, now_ns, width, g)
    if m.rounds:
        page += [Text(), *_sparklines(m, width, g), rounds_table(m, width)]
        page += slots_part(m, width, g)
    return page


def _sparklines(m: Migration, width: int, g: Glyphs) -> list[RenderableType]:
    """Draw new pages and dirty rate of each round, newest on the right."""
    pages = [r.new_pages for r in m.rounds]
    rates = figures.round_dirty_rates(m)
    room = max(1, min(60, width - 44))
    known_pages = [p for p in pages if p is not None]
    known_rates = [r for r in rates if r is not None]
    return [
        Text(
            f"new pages  {sparkline(pages, room, g)}  at most "
            f"{count(max(known_pages, default=None))} a round, ? not known"
        ),
        Text(
            f"dirty rate {sparkline(rates, room, g)}  at most "
            f"{compact(max(known_rates, default=None))} a second"
        ),
    ]


def one_line(text: str, width: int, g: Glyphs, style: str = "") -> Text:
    """Return a text that is cut instead of wrapped."""
    return Text(shorten(text, width, g), style, no_wrap=True)
