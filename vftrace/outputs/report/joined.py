"""The report of several recordings as text: what was seen where, and how surely the clocks fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from vftrace.model.figures import clock_change
from vftrace.model.report import MigrationReport, Report
from vftrace.outputs.report.text import SET_BY, WARNING, render_migration, render_vfs
from vftrace.outputs.text.glyphs import Glyphs, clean, glyphs
from vftrace.outputs.text.outage import render_gap
from vftrace.outputs.text.words import headline, losses, title
from vftrace.units import format_ns


def render_joined(report: Report, *, ascii: bool) -> RenderableType:  # noqa: A002
    """All migrations of several recordings, for rich's console; the first line is as in `render_report`."""
    return _Report(report, ascii)


def downtime_line(found: MigrationReport) -> str:
    """What set the downtime, in one line; a range where two clocks are less than certain."""
    said = headline(found.migration, found.host.snapshot.at_ns)
    total = found.migration.downtime.vcpu_ns
    if not found.uncertainty_ns or total is None:
        return said
    rest = said.removeprefix(f"downtime {format_ns(total)}")
    return f"downtime {downtime_range(found)}{rest}"


def downtime_range(found: MigrationReport) -> str:
    """`4.20 ms to 6.10 ms`, never below zero; one figure where the digits that are shown say no more."""
    total, uncertainty = found.migration.downtime.vcpu_ns or 0, found.uncertainty_ns or 0
    least, most = format_ns(max(0, total - uncertainty)), format_ns(total + uncertainty)
    return least if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class _Report:
    report: Report
    ascii: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        g = glyphs(ascii=self.ascii or options.ascii_only)
        yield Text(self._first_line(g), SET_BY)
        for damage in self.report.damage:
            yield Text(f"! RECORDING DAMAGED: {clean(damage, g)}", WARNING)
        for host in self.report.hosts:
            for warning in losses(host.snapshot):
                yield Text(f"! {clean(host.name, g)}: {warning}", WARNING)
            lost = f"{host.snapshot.lost} lost" if host.snapshot.lost else "none lost"
            said = f"host {clean(host.name, g)}, boot {clean(host.boot_id, g)[:8]}, "
            yield Text(f"{said}{host.snapshot.events} events, {lost}", "dim")
        for found in self.report.migrations:
            yield Text()
            for warning in found.warnings:
                yield Text(f"! {warning}", WARNING)
            about = dict(_about(found, g))
            snapshot = found.host.snapshot
            yield from render_migration(found.migration, snapshot, options.max_width, g, about)
            if found.outage is not None:
                started = found.migration.started_at_ns
                yield from render_gap(found.outage, started, options.max_width, g)
        for host in self.report.hosts:
            part = list(render_vfs(host.snapshot, options.max_width, g))
            if part:
                yield Text(f"\nhost {clean(host.name, g)}", SET_BY)
                yield from part

    def _first_line(self, g: Glyphs) -> str:
        if not self.report.migrations:
            return "no migration in these recordings"
        longest = max(self.report.migrations, key=lambda j: j.migration.downtime.vcpu_ns or -1)
        if len(self.report.migrations) == 1:
            return downtime_line(longest)
        m = longest.migration
        who = title(m.name, m.uuid, m.pid, g)
        return (
            f"longest of {len(self.report.migrations)} migrations, {who}: {downtime_line(longest)}"
        )


def _about(found: MigrationReport, g: Glyphs) -> Iterator[tuple[str, str]]:
    m = found.migration
    here = clean(found.host.name, g)
    if found.peer is None:
        yield "seen", f"{m.role} pid {m.pid} on {here}, the other side in none of these recordings"
    else:
        there = clean(found.peer.name, g)
        yield "seen", f"pid {m.pid} on {here} {g.arrow} pid {m.peer_pid} on {there}"
    if found.offset is not None and m.downtime.vcpu_ns is not None:
        yield "downtime", downtime_line(found).removeprefix("downtime ")
        yield "blackout", downtime_range(found)
    clocks = clocks_line(found)
    if clocks is not None:
        yield "clocks", clocks
    if found.service_ns is not None:
        yield "service", f"{format_ns(found.service_ns)} without answers to a ping"


def clocks_line(found: MigrationReport) -> str | None:
    """What is known of two hosts' clocks; None where there is one."""
    offset = found.offset
    if offset is None:
        return None
    low, high = _signed(offset.low), _signed(offset.high)
    said = f"source's minus destination's: at least {low} ({offset.low_why})"
    said += f", at most {high} ({offset.high_why})"
    crossing = clock_change(found.migration.downtime)
    if crossing is not None and crossing.ns is not None:
        least = max(0, crossing.ns - offset.uncertainty_ns)
        span = f"{format_ns(least)} to {format_ns(crossing.ns + offset.uncertainty_ns)}"
        said += f"; so {crossing.name} took {span}"
    return said


def _signed(ns: int) -> str:
    """Every digit: an offset of days may be known to the microsecond."""
    return f"{'-' if ns < 0 else ''}{abs(ns) // 10**9}.{abs(ns) % 10**9:09} s"
