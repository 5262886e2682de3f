# SPDX-License-Identifier: MIT
"""Shows forecasts as text: one line for each migration, and the cost of each strategy."""

from collections.abc import Sequence

from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.text import Text

from vftrace.analysis.forecast.answer import Assumptions
from vftrace.errors import UsageError
from vftrace.model.migration import Forecast, Migration, Role
from vftrace.outputs.text.forecast import forecast_line
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.text.tables import UNKNOWN, plain_table, size
from vftrace.outputs.text.words import label
from vftrace.units import format_ns, parse_bits_per_second, parse_duration


def parse_what_if(text: str) -> Assumptions:
    """Read `bandwidth=25Gbit,link=40Gbit,downtime-limit=300ms`, or some of these. Raises UsageError for anything
    else."""
    assumed = Assumptions()
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name == "bandwidth" and equals:
            assumed = replace(assumed, bandwidth_bytes_per_second=parse_bits_per_second(value) / 8)
        elif name == "link" and equals:
            assumed = replace(assumed, link_bytes_per_second=parse_bits_per_second(value) / 8)
        elif name == "downtime-limit" and equals:
            assumed = replace(assumed, downtime_limit_ns=_limit(value))
        else:
            raise UsageError(
                f"--what-if does not know {part!r}: give bandwidth, link or downtime-limit,"
                " such as bandwidth=25Gbit,downtime-limit=300ms"
            )
    return assumed


def _limit(text: str) -> int:
    limit_ns = parse_duration(text)
    if limit_ns == 0:
        raise UsageError("downtime-limit must be more than zero")
    return limit_ns


def render_forecasts(
    migrations: Sequence[Migration],
    *,
    ascii: bool,  # noqa: A002
) -> RenderableType:
    """Return the forecast of each migration that has rounds. Unknown figures are shown as `-`."""
    g = glyphs(ascii=ascii)
    parts: list[RenderableType] = []
    for migration in migrations:
        if migration.role == Role.DESTINATION:
            continue
        parts.append(Text(f"Forecast for {label(migration, g)}", "bold"))
        parts += _parts(migration.forecast)
        parts.append(Text(""))
    return Group(*parts)


def _parts(forecast: Forecast | None) -> list[RenderableType]:
    line = Text(forecast_line(forecast))
    if forecast is None or not forecast.strategies:
        return [line]
    table = plain_table(
        ("strategy", "left"), ("total", "right"), ("downtime", "right"), ("without its VF", "right")
    )
    for cost in forecast.strategies:
        table.add_row(
            cost.strategy, _time(cost.total_ns), _time(cost.downtime_ns), _time(cost.device_ns)
        )
    left = Text(f"to send after sweep {forecast.after_sweeps}: {size(forecast.remaining_bytes)}")
    return [line, left, table]


def _time(ns: int | None) -> str:
    return UNKNOWN if ns is None else format_ns(ns)
