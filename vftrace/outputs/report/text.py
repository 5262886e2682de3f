# SPDX-License-Identifier: MIT
"""Renders the report as text: first the cause of the downtime, then each migration with its figures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from vftrace.model import figures
from vftrace.model.migration import Kind, Migration, Outcome, Snapshot
from vftrace.model.report import HostReport, MigrationReport, Report
from vftrace.outputs.text.advice import advice_part
from vftrace.outputs.text.brownout import brownout_part
from vftrace.outputs.text.calls import calls_part
from vftrace.outputs.text.devices import devices_part
from vftrace.outputs.text.facts import facts_of
from vftrace.outputs.text.glyphs import Glyphs, clean, glyphs, shorten
from vftrace.outputs.text.guard import guarded
from vftrace.outputs.text.outage import render_outage
from vftrace.outputs.text.pings import first_line_of_pings, render_pings
from vftrace.outputs.text.round_trips import round_trips_part
from vftrace.outputs.text.slots import slots_part
from vftrace.outputs.text.tables import (
    UNKNOWN,
    blackout_table,
    phases_table,
    plain_table,
    rounds_table,
    size,
)
from vftrace.outputs.text.vfs import vfs_part
from vftrace.outputs.text.words import (
    downtime_line,
    downtime_range,
    label,
    losses,
    title,
    warnings,
)
from vftrace.units import format_ns

WARNING = "bold yellow"
HEADLINE_STYLE = "bold"
NAME_WIDTH = 22


def render_report(report: Report, *, ascii: bool) -> RenderableType:  # noqa: A002
    """Return the whole report for rich's console; its first line names the cause of the downtime.

    `ascii` draws with ASCII characters, as on a console whose encoding has no others. Unknown figures are shown
    as `-`.
    """
    return _Text(report, ascii)


class _Text(msgspec.Struct, frozen=True):
    report: Report
    ascii: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        g = glyphs(ascii=self.ascii or options.ascii_only)
        width, report = options.max_width, self.report
        yield from guarded("the first line", lambda: [Text(first_line(report, g), HEADLINE_STYLE)])
        for damage in report.damage:
            yield Text(f"! RECORDING NOT WHOLE: {clean(damage, g)}", WARNING)
        for host in report.hosts:
            yield from self._host(host, g)
        for ping in () if report.migrations else report.pings:
            yield Text()
            yield from guarded("a ping", partial(render_pings, ping, g))
        if len(report.migrations) > 1:
            yield Text()
            yield from guarded("the overview", lambda: [_overview(report, g)])
        for found in report.migrations:
            yield Text()
            yield from guarded(
                label(found.migration, g), partial(render_migration, found, report, width, g)
            )
        for host in report.hosts:
            part = guarded("virtual functions", partial(render_vfs, host.snapshot, width, g))
            if part and len(report.hosts) > 1:
                yield Text(f"\nhost {clean(host.name, g)}", HEADLINE_STYLE)
            yield from part

    def _host(self, host: HostReport, g: Glyphs) -> Iterator[RenderableType]:
        """Yield the losses of a host's trace, then where and how it was traced."""
        name, snapshot = clean(host.name, g), host.snapshot
        several = len(self.report.hosts) > 1
        for warning in losses(snapshot):
            yield Text(f"! {name}: {warning}" if several else f"! {warning}", WARNING)
        boot = f", boot {clean(host.boot_id, g)[:8]}" if several else ""
        attached = sum(probe.method is not None for probe in host.info.probes)
        lost = f"{snapshot.lost} lost" if snapshot.lost else "none lost"
        said = f"host {name}{boot}, kernel {clean(host.info.kernel, g)}"
        if host.info.probes:  # a ping has none
            said += f", probes {attached} of {len(host.info.probes)}"
        yield Text(f"{said}, {snapshot.events} events, {lost}", "dim")


def first_line(report: Report, g: Glyphs) -> str:
    """Return the cause of the downtime; of several migrations, their outcomes, and the one with the longest
    downtime."""
    found = report.migrations
    if not found:
        if report.pings:
            return first_line_of_pings(report, g)
        if len(report.hosts) > 1:
            return "no migration in these recordings"
        host = report.hosts[0]
        lasted = format_ns(max(0, host.snapshot.at_ns - host.info.started_at_ns))
        return f"no migration in this recording: {host.snapshot.events} events in {lasted}"
    if len(found) == 1:
        return downtime_line(found[0])
    longest = max(found, key=lambda each: each.migration.downtime.vcpu_ns or -1)
    if longest.migration.downtime.vcpu_ns is None:
        return f"{_summary(found)}; no downtime is known"
    who = title(longest.migration, g)
    return f"{_summary(found)}; longest, {who}: {downtime_line(longest)}"


def _summary(found: Sequence[MigrationReport]) -> str:
    """Return the number of migrations and of VMs, and the outcomes."""
    migrations = [each.migration for each in found]
    vms = len({m.uuid or (m.pid, m.peer_pid) for m in migrations})
    ends = Counter(_ended(m) for m in migrations)
    of = "of one VM" if vms == 1 else f"of {vms} VMs"
    return f"{len(found)} migrations {of}: " + ", ".join(f"{n} {end}" for end, n in ends.items())


def _ended(m: Migration) -> str:
    """Return how a migration ended, with its kind if it is not a move."""
    if m.kind != Kind.MOVE and m.outcome == Outcome.COMPLETED:
        return {Kind.SAVE: "saved", Kind.LOAD: "loaded"}[m.kind]
    kind = "" if m.kind == Kind.MOVE else f"{m.kind} "
    return f"{kind}{m.outcome or 'running'}"


def _overview(report: Report, g: Glyphs) -> RenderableType:
    table = plain_table(
        ("VM", "left"),
        ("outcome", "left"),
        ("total", "right"),
        ("downtime", "right"),
        ("set by", "left"),
        ("sent", "right"),
    )
    for m in (found.migration for found in report.migrations):
        total = figures.total_ns(m)
        table.add_row(
            shorten(label(m, g), NAME_WIDTH, g),
            _ended(m),
            UNKNOWN if total is None else format_ns(total),
            UNKNOWN if m.downtime.vcpu_ns is None else format_ns(m.downtime.vcpu_ns),
            m.downtime.set_by or UNKNOWN,
            size(m.channel.bytes),
        )
    return table


def render_vfs(snapshot: Snapshot, width: int, g: Glyphs) -> Iterator[RenderableType]:
    """Yield the virtual functions of a host, if any sent a mailbox message."""
    part = list(vfs_part(snapshot.vfs, snapshot, width, g))
    if part:
        yield Text()
        if snapshot.vfs_incomplete:
            yield Text("! MAILBOX EVENTS WERE LOST: the list below may lack some", WARNING)
        yield from part


def render_migration(
    found: MigrationReport, report: Report, width: int, g: Glyphs
) -> Iterator[RenderableType]:
    """Yield one migration: verdict, blackout, advice, brownouts, phases, devices, rounds, outage."""
    m, now = found.migration, found.host.snapshot.at_ns
    for warning in found.warnings:
        yield Text(f"! {warning}", WARNING)
    rule = _rule(f"{title(m, g)}: {m.outcome or 'running'}", width, g)
    yield Text(rule, "bold", no_wrap=True)
    for warning in warnings(m):
        yield Text(f"! {warning}", WARNING)
    facts = Table.grid(padding=(0, 2, 0, 0))
    for what, value in facts_of(found, g, hosts=len(report.hosts)):
        facts.add_row(Text(what, "dim"), Text(value))
    yield facts
    if m.stopped_at_ns is not None:
        lasted = downtime_range(found) or UNKNOWN
        yield Text()
        yield Text(f"Blackout: {lasted} (last vCPU exit to first vCPU entry)", "bold")
        yield blackout_table(m, now, width, g)
        yield from calls_part(m, g)
    yield from advice_part(found, g)
    yield from brownout_part(m, width, g)
    yield from round_trips_part(found.round_trips)
    yield Text()
    yield Text("Phases", "bold")
    yield phases_table(m, now, width, g)
    yield from devices_part(m, now, width, g)
    if m.rounds:
        yield Text()
        yield Text(f"Rounds: {len(m.rounds)} (pages of {m.dirty.page_size} bytes)", "bold")
        yield rounds_table(m, width)
        yield from slots_part(m, width, g)
    if found.outage is not None:
        yield from render_outage(found.outage, m.started_at_ns, width, g)


def _rule(text: str, width: int, g: Glyphs) -> str:
    start = f"{g.rule}{g.rule} {text} "
    return start + g.rule * max(0, width - len(start))
