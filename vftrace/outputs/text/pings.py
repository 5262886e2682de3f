# SPDX-License-Identifier: MIT
"""Shows recordings of `vftrace ping` that have no migration beside them."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from vftrace import events
from vftrace.model.report import PingRecording, Report
from vftrace.outputs.text.clock import at_clock
from vftrace.outputs.text.glyphs import Glyphs, clean
from vftrace.outputs.text.tables import plain_table
from vftrace.units import format_ns

MAX_GAPS = 20
"""How many gaps are shown, the longest ones; further ones are counted."""
_WORDS = {"lost": "without a reply", "held": "until held replies came"}


def first_line_of_pings(report: Report, g: Glyphs) -> str:
    """Return the longest time without replies, and the ping's target."""
    found = [(summary, p) for p in report.pings if (summary := _summary(p)) is not None]
    if not found:
        return "no probe of this ping was settled"
    longest, ping = max(found, key=lambda each: each[0].longest_gap_ns)
    whose = f" of {clean(_target(ping), g)}"
    if not longest.received:
        return f"no reply{whose}"
    if not longest.longest_gap_ns:
        return f"no gap in the replies{whose}"
    return f"longest gap {format_ns(longest.longest_gap_ns)}{whose}"


def render_pings(ping: PingRecording, g: Glyphs) -> Iterator[Text | Table]:
    """Yield each ping's totals, and its gaps in order of time."""
    settings, summary = _settings(ping), _summary(ping)
    what = f"ping of {clean(_target(ping), g)}"
    if settings is not None:
        port = f" port {settings.port}" if settings.port else ""
        what += f": {clean(settings.protocol, g)}{port}, every {format_ns(settings.interval_ns)}"
    yield Text(what, "bold")
    if summary is not None:
        yield Text(
            f"{summary.sent} sent, {summary.received} answered, {summary.lost} lost,"
            f" {summary.missed_slots} own slots missed;"
            f" round trip median {format_ns(summary.rtt_p50_ns)}, 99 % {format_ns(summary.rtt_p99_ns)},"
            f" max {format_ns(summary.rtt_max_ns)}"
            if summary.received
            else f"{summary.sent} sent, none answered"
        )
    gaps = [event for event in ping.events if isinstance(event, events.PingGap)]
    if not gaps:
        return
    table = plain_table(
        ("gap from", "left"), ("lost", "right"), ("late", "right"), ("length", "left")
    )
    longest = sorted(gaps, key=lambda gap: -gap.ns)[:MAX_GAPS]
    for gap in sorted(longest, key=lambda gap: gap.start_at_ns):
        table.add_row(
            at_clock(ping.clock, gap.start_at_ns),
            str(gap.lost),
            str(gap.late),
            f"{format_ns(gap.ns)} {_WORDS.get(gap.kind, clean(gap.kind, g))}",
        )
    yield table
    if len(gaps) > MAX_GAPS:
        yield Text(f"and {len(gaps) - MAX_GAPS} shorter gaps")


def _settings(ping: PingRecording) -> events.PingSettings | None:
    return next((e for e in ping.events if isinstance(e, events.PingSettings)), None)


def _summary(ping: PingRecording) -> events.PingSummary | None:
    return next((e for e in reversed(ping.events) if isinstance(e, events.PingSummary)), None)


def _target(ping: PingRecording) -> str:
    settings = _settings(ping)
    return "an unknown address" if settings is None else settings.address
