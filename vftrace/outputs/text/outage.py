"""A ping's longest gap around a migration, and what the hosts saw of the guest meanwhile, as text."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from vftrace.model.report import Outage
from vftrace.outputs.text.glyphs import Glyphs, span
from vftrace.outputs.text.tables import milliseconds, plain_table, seconds
from vftrace.units import format_ns

_COLUMNS = 72
"""What the other columns take."""


def render_gap(gap: Outage, started_ns: int, width: int, g: Glyphs) -> Iterator[RenderableType]:
    """The gap's length and its spans; times count from the migration's start."""
    most = "open" if gap.most_ns is None else format_ns(gap.most_ns)
    share = 100 * gap.explained_ns / gap.ns if gap.ns else 100
    yield Text()
    yield Text(
        f"Without answers: {format_ns(gap.ns)} ({format_ns(gap.least_ns)} to {most}),"
        f" {share:.0f} % of it seen on the hosts{_by_pinger(gap)}",
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
    for each in gap.spans:
        first, last = each.start_at_ns - gap.start_at_ns, each.end_at_ns - gap.start_at_ns
        table.add_row(
            each.name,
            seconds(each.start_at_ns - started_ns),
            milliseconds(each.ns),
            each.side or "-",
            Text(span(first / gap.ns, last / gap.ns, bar, g) if gap.ns else ""),
        )
    yield table
    if gap.uncertainty_ns:
        yield Text(f"on clocks that may be {format_ns(gap.uncertainty_ns)} apart", "dim")


def _by_pinger(gap: Outage) -> str:
    return f", {100 * gap.pinger_ns / gap.ns:.0f} % by the pinger" if gap.pinger_ns else ""
