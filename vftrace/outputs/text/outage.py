# SPDX-License-Identifier: MIT
"""Shows a ping's longest gap around a migration, and what the hosts saw of the guest meanwhile."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from vftrace.model import figures
from vftrace.model.report import Outage
from vftrace.outputs.text.glyphs import Glyphs, span
from vftrace.outputs.text.tables import milliseconds, plain_table, seconds
from vftrace.units import format_ns

_COLUMNS = 72
"""The width of the other columns."""


def render_outage(
    outage: Outage, started_ns: int, width: int, g: Glyphs
) -> Iterator[RenderableType]:
    """Yield the outage's length and its spans; times count from the migration's start."""
    most = "open" if outage.most_ns is None else format_ns(outage.most_ns)
    yield Text()
    yield Text(
        f"Without answers: {format_ns(outage.ns)} ({format_ns(outage.least_ns)} to {most}),"
        f" {100 * figures.explained_part(outage):.0f} % of it seen on the hosts{_by_pinger(outage)}",
        "bold",
    )
    table = plain_table(
        ("what", "left"),
        ("from", "right"),
        ("lasted", "right"),
        ("seen on", "left"),
        ("", "left"),
    )
    bar = max(6, min(50, width - _COLUMNS))
    for each in outage.spans:
        first, last = each.start_at_ns - outage.start_at_ns, each.end_at_ns - outage.start_at_ns
        table.add_row(
            each.name,
            seconds(each.start_at_ns - started_ns),
            milliseconds(each.ns),
            each.side or "-",
            Text(span(first / outage.ns, last / outage.ns, bar, g) if outage.ns else ""),
        )
    yield table
    if outage.uncertainty_ns:
        yield Text(f"on clocks that may be {format_ns(outage.uncertainty_ns)} apart", "dim")


def _by_pinger(outage: Outage) -> str:
    return f", {100 * figures.pinger_part(outage):.0f} % by the pinger" if outage.pinger_ns else ""
