"""Forecasts as text: one line that says it, and what each way of doing it would cost."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from vftrace.analysis.forecast.precopy import Assumptions
from vftrace.errors import UsageError
from vftrace.model.migration import Forecast, Migration, Role
from vftrace.outputs.text.forecast import forecast_line
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.text.tables import UNKNOWN, plain_table, size
from vftrace.outputs.text.words import label
from vftrace.units import format_ns, parse_bits_per_second, parse_duration


def parse_what_if(text: str) -> Assumptions:
    """`bandwidth=25Gbit,downtime-limit=300ms`, either of them or both. Raises UsageError for anything else."""
    bandwidth: float | None = None
    limit_ns: int | None = None
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name == "bandwidth" and equals:
            bandwidth = parse_bits_per_second(value) / 8
        elif name == "downtime-limit" and equals:
            limit_ns = parse_duration(value)
            if limit_ns == 0:
                raise UsageError("downtime-limit must be more than zero")
        else:
            raise UsageError(
                f"not an assumption: {part!r} (such as bandwidth=25Gbit,downtime-limit=300ms)"
            )
    return Assumptions(bandwidth_bytes_per_second=bandwidth, downtime_limit_ns=limit_ns)


def render_forecasts(
    migrations: Sequence[Migration],
    *,
    ascii: bool,  # noqa: A002
) -> RenderableType:
    """For each migration that has rounds: its forecast. Unknown figures are shown as `-`."""
    g = glyphs(ascii=ascii)
    parts: list[RenderableType] = []
    for migration in migrations:
        if migration.role == Role.DESTINATION:
            continue
        parts.append(
            Text(f"Forecast for {label(migration.name, migration.uuid, migration.pid, g)}", "bold")
        )
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
