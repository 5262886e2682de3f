# SPDX-License-Identifier: MIT
"""Shows the round trips of a ping before, during and after a migration."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from vftrace.model.report import RoundTrips, ServiceRoundTrips
from vftrace.outputs.text.tables import UNKNOWN, plain_table
from vftrace.units import format_ns

TITLE = "Brownout of the service: round trips of the ping"
HEADS = ("probes sent", "answered", "median", "90 %", "99 %", "worst", "lost")


def round_trip_rows(trips: ServiceRoundTrips, unknown: str = UNKNOWN) -> Iterator[list[str]]:
    """Yield one row for each part of the time; `HEADS` names its cells."""
    for name, part in trips.parts():
        yield [name, *(_cells(part, unknown) if part else [unknown] * (len(HEADS) - 1))]


def round_trips_part(trips: ServiceRoundTrips | None) -> Iterator[RenderableType]:
    """The part of the report; nothing without a ping that recorded them."""
    if trips is None:
        return
    yield Text()
    yield Text(TITLE, "bold")
    table = plain_table((HEADS[0], "left"), *((head, "right") for head in HEADS[1:]))
    for row in round_trip_rows(trips):
        table.add_row(*row)
    yield table


def _cells(part: RoundTrips, unknown: str) -> list[str]:
    durations = (part.half_ns, part.p90_ns, part.p99_ns, part.longest_ns)
    said = [unknown if ns is None else format_ns(ns) for ns in durations]
    return [str(part.answered), *said, str(part.lost)]
