# SPDX-License-Identifier: MIT
"""Compares two migrations side by side, checkpoint by checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict
from rich.console import Group, RenderableType
from rich.text import Text

from vftrace.model import figures
from vftrace.model.migration import Migration, Outcome, Phase, Role
from vftrace.model.report import MigrationReport, RoundTrips
from vftrace.outputs.report.json import migration_json
from vftrace.outputs.text.glyphs import Glyphs, clean
from vftrace.outputs.text.tables import UNKNOWN, plain_table
from vftrace.units import format_bytes, format_ns, format_rate

SCHEMA = 1


class Row(msgspec.Struct, frozen=True):
    """One figure of both migrations. `unit` is ns, bytes, bytes/s or count; `difference` is b - a, null if one figure
    is null."""

    name: str
    unit: str
    a: float | None
    b: float | None
    difference: float | None


class Comparison(msgspec.Struct, frozen=True):
    """Two migrations, and their figures."""

    a: MigrationReport
    b: MigrationReport
    totals: tuple[Row, ...]
    checkpoints: tuple[Row, ...]
    phases: tuple[Row, ...]


def compare(a: MigrationReport, b: MigrationReport) -> Comparison:
    """Return every figure that one of the migrations has. Durations in ns."""
    return Comparison(
        a=a,
        b=b,
        totals=tuple(_row(name, unit, take(a), take(b)) for name, unit, take in _TOTALS),
        checkpoints=tuple(
            _row(first.name, "ns", first.ns, second.ns)
            for first, second in zip(
                a.migration.downtime.checkpoints, b.migration.downtime.checkpoints, strict=True
            )
        ),
        phases=tuple(_phases(a.migration, b.migration)),
    )


def pairs_of(
    a: Sequence[MigrationReport], b: Sequence[MigrationReport]
) -> list[tuple[MigrationReport, MigrationReport]]:
    """Return the pairs to compare: attempts of one UUID in order, then the remaining migrations in order."""
    left_a, left_b = list(a), list(b)
    pairs = []
    for first in a:
        uuid = first.migration.uuid
        second = next((m for m in left_b if uuid is not None and m.migration.uuid == uuid), None)
        if second is not None:
            pairs.append((first, second))
            left_a.remove(first)
            left_b.remove(second)
    return pairs + list(zip(left_a, left_b, strict=False))


def compare_json(found: Sequence[Comparison]) -> dict[str, Any]:
    """`{"schema", "comparisons": [{"a", "b", "totals", "checkpoints", "phases"}]}`; a and b are migrations."""
    return {
        "schema": SCHEMA,
        "comparisons": [
            {
                "a": migration_json(comparison.a),
                "b": migration_json(comparison.b),
                "totals": [asdict(row) for row in comparison.totals],
                "checkpoints": [asdict(row) for row in comparison.checkpoints],
                "phases": [asdict(row) for row in comparison.phases],
            }
            for comparison in found
        ],
    }


def render_comparisons(found: Sequence[Comparison], g: Glyphs) -> RenderableType:
    """Return all comparisons as text. The first line of each names what changed the downtime most."""
    parts: list[RenderableType] = []
    for comparison in found:
        parts += [*([Text()] if parts else []), *_render(comparison, g)]
    return Group(*parts)


def verdict(found: Comparison) -> str:
    """One line: both downtimes, and the checkpoint that differs most."""
    a, b = found.a.migration.downtime.vcpu_ns, found.b.migration.downtime.vcpu_ns
    if a is None or b is None:
        known = [format_ns(ns) if ns is not None else "not known" for ns in (a, b)]
        return f"downtime {known[0]} and {known[1]}: nothing to compare"
    said = f"downtime {format_ns(a)} and {format_ns(b)}"
    if a == b:
        return f"{said}: no difference"
    said += f", {_difference(b - a, 'ns')}"
    # A step that only one migration has, such as `held`, counts as 0 in the other.
    steps = [(row, (row.b or 0) - (row.a or 0)) for row in found.checkpoints]
    largest, by = max(steps, key=lambda step: abs(step[1]))
    unsure = sum(each.uncertainty_ns or 0 for each in (found.a, found.b))
    if unsure and abs(b - a) <= unsure:
        return f"{said}, which is within the clocks' uncertainty of {format_ns(round(unsure))}"
    return f"{said}, most in {largest.name} ({_difference(by, 'ns')})"


def _render(found: Comparison, g: Glyphs) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(verdict(found), "bold")]
    facts = plain_table(("", "left"), ("a", "right-text"), ("b", "right-text"))
    for name, take in _WORDS:
        facts.add_row(name, clean(take(found.a), g), clean(take(found.b), g))
    parts += [facts]
    sections = (("Blackout", found.checkpoints), ("Totals", found.totals), ("Phases", found.phases))
    for title, rows in sections:
        table = plain_table(
            (title, "left"), ("a", "right"), ("b", "right"), ("b - a", "right"), ("", "right")
        )
        for row in rows:
            if row.a is not None or row.b is not None:
                table.add_row(
                    row.name,
                    _value(row.a, row.unit),
                    _value(row.b, row.unit),
                    UNKNOWN if row.difference is None else _difference(row.difference, row.unit),
                    _percent(row),
                )
        parts += [Text(), table]
    return parts


_WORDS: tuple[tuple[str, Callable[[MigrationReport], str]], ...] = (
    ("VM", lambda f: figures.title(f.migration.name, f.migration.uuid, f.migration.pid)),
    ("host", lambda f: f.host.name + (f" to {f.peer.name}" if f.peer is not None else "")),
    ("outcome", lambda f: _outcome(f.migration)),
    ("strategy", lambda f: f.migration.strategy + (", postcopy" if f.migration.postcopy else "")),
    ("set by", lambda f: f.migration.downtime.set_by or UNKNOWN),
)

_TOTALS: tuple[tuple[str, str, Callable[[MigrationReport], float | None]], ...] = (
    ("downtime", "ns", lambda f: f.migration.downtime.vcpu_ns),
    ("service downtime", "ns", lambda f: f.service_ns),
    ("round trips during it, median", "ns", lambda f: _during(f).half_ns),
    ("round trips during it, 99 %", "ns", lambda f: _during(f).p99_ns),
    ("device downtime", "ns", lambda f: figures.device_downtime_ns(f.migration)),
    ("uncertainty", "ns", lambda f: f.uncertainty_ns),
    ("total time", "ns", lambda f: figures.total_ns(f.migration)),
    ("sent", "bytes", lambda f: f.migration.channel.bytes),
    ("sent as state", "bytes", lambda f: f.migration.channel.state_bytes),
    ("rounds", "count", lambda f: _rounds(f.migration)),
    ("new pages", "count", lambda f: f.migration.dirty.new_pages),
    ("distinct pages", "count", lambda f: f.migration.dirty.distinct_pages),
    ("mean dirty rate", "bytes/s", lambda f: figures.mean_dirty_rate(f.migration)),
    ("dirty rate at the end", "bytes/s", lambda f: figures.dirty_rate(f.migration)),
)


def _during(found: MigrationReport) -> RoundTrips:
    during = None if found.round_trips is None else found.round_trips.during
    return during or RoundTrips(0, 0, None, None, None, None, None)


def _outcome(m: Migration) -> str:
    return (m.outcome or Outcome.UNKNOWN) + (f", {m.cause}" if m.cause else "")


def _rounds(m: Migration) -> int | None:
    return None if m.role == Role.DESTINATION else len(m.rounds)


def _phases(a: Migration, b: Migration) -> list[Row]:
    both = [_durations(a), _durations(b)]
    # In the order of a; rows that only b has are inserted at their place in b.
    names = list(both[0])
    for index, name in enumerate(both[1]):
        if name not in names:
            before = [n for n in list(both[1])[:index] if n in names]
            names.insert(names.index(before[-1]) + 1 if before else 0, name)
    return [_row(name, "ns", both[0].get(name), both[1].get(name)) for name in names]


def _durations(m: Migration) -> dict[str, int | None]:
    """Return the durations of phases without the destination's `running`, which ends with the VM."""
    return {
        f"{p.role} {p.name}": None if p.end_at_ns is None else p.end_at_ns - p.start_at_ns
        for p in m.phases
        if p.name != Phase.RUNNING
    }


def _row(name: str, unit: str, a: float | None, b: float | None) -> Row:
    return Row(name, unit, a, b, None if a is None or b is None else b - a)


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return UNKNOWN
    if unit == "ns":
        return format_ns(round(value))
    if unit == "bytes":
        return format_bytes(value)
    return format_rate(value) if unit == "bytes/s" else f"{value:.0f}"


def _difference(value: float, unit: str) -> str:
    return f"{'+' if value > 0 else ''}{_value(value, unit)}" if value else "0"


def _percent(row: Row) -> str:
    if row.difference is None or not row.a:
        return ""
    percent = 100 * row.difference / row.a
    if abs(percent) < 0.5:
        return "0%" if row.difference == 0 else "<1%"
    # Beyond ten times as much, a percentage is less clear than the figures.
    return f"{percent:+.0f}%" if abs(percent) < 1000 else f"×{(row.b or 0) / row.a:.0f}"
