# SPDX-License-Identifier: MIT
"""Renders the report as one HTML file without scripts, fonts or network access."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import msgspec

from vftrace import __version__
from vftrace.analysis.advice.advise import advise
from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.brownout import STATES, VcpuState
from vftrace.model.calls import CallTotal
from vftrace.model.migration import Checkpoint, Migration, Outcome, Phase, Role
from vftrace.model.report import HostReport, MigrationReport, Report
from vftrace.outputs.report.timeline import Counter, Lane, Slice, Timeline, timeline_of
from vftrace.outputs.text.advice import TITLE, advice_rows
from vftrace.outputs.text.brownout import lost_words, percent, speed_line, waits_words
from vftrace.outputs.text.calls import LEAST_PART, cause_words, caveats, shown_steps
from vftrace.outputs.text.facts import facts_of
from vftrace.outputs.text.glyphs import UNICODE, shorten_middle
from vftrace.outputs.text.markup import escape
from vftrace.outputs.text.round_trips import HEADS, round_trip_rows
from vftrace.outputs.text.round_trips import TITLE as ROUND_TRIPS
from vftrace.outputs.text.words import (
    downtime_line,
    downtime_range,
    happens,
    losses,
    warnings,
)
from vftrace.units import format_bytes, format_ns, format_rate


def render_html(report: Report) -> str:
    """Return the whole page."""
    names = ", ".join(dict.fromkeys(host.name for host in report.hosts))
    body = [
        f"<header><h1>Live migration on {escape(names)}</h1>",
        *(_warning(line) for line in report.damage),
        *(_warning(f"{h.name}: {line}") for h in report.hosts for line in losses(h.snapshot)),
        "</header>",
    ]
    if not report.migrations:
        body.append("<p>No migration in these recordings.</p>")
    if len(report.migrations) > 1:
        body.append(_overview(report.migrations))
    for number, found in enumerate(report.migrations):
        body += _section(number, found, len(report.hosts))
    body.append(f"<footer>vftrace {__version__}. {_hosts(report.hosts)}</footer>")
    return _PAGE.format(title=escape(f"vftrace: {names}"), style=_STYLE, body="\n".join(body))


def _warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def _hosts(hosts: Sequence[HostReport]) -> str:
    said = (
        f"{host.name}, kernel {host.info.kernel}, boot {host.boot_id[:8]}, "
        f"{host.snapshot.events} events"
        for host in hosts
    )
    return escape("; ".join(said) + ".")


def _title(m: Migration) -> str:
    return figures.title(m.name, m.uuid, m.pid)


def _overview(migrations: Sequence[MigrationReport]) -> str:
    rows = []
    for number, m in enumerate(found.migration for found in migrations):
        link = f'<a href="#m{number}">{escape(_title(m))}</a>'
        rows.append(_row([link, *map(escape, _overview_cells(m))]))
    return _table(("VM", "outcome", "total", "downtime", "set by", "sent"), rows)


def _overview_cells(m: Migration) -> list[str]:
    try:
        cells = [_outcome(m), _duration(figures.total_ns(m)), _duration(m.downtime.vcpu_ns)]
        return [*cells, m.downtime.set_by or "–", _size(m.channel.bytes)]
    except Exception as error:
        FAULTS.contained(Where.REPORT, error, f"{_title(m)} has no figures in the overview")
        return [_outcome(m), "–", "–", "–", "–"]


def _outcome(m: Migration) -> str:
    return m.outcome or Outcome.UNKNOWN


def _section(number: int, found: MigrationReport, hosts: int) -> Sequence[str]:
    """Return a migration's section, or why it could not be drawn: the others are still drawn."""
    try:
        return tuple(_migration(number, found, hosts))
    except Exception as error:
        what = f"migration {_title(found.migration)} is not in the page"
        FAULTS.contained(Where.REPORT, error, what, (found.migration.pid,))
        said = f"not shown, because of an error in vftrace ({type(error).__name__}: {error})"
        title = escape(_title(found.migration))
        return (f'<section id="m{number}"><h2>{title}</h2>{_warning(said)}</section>',)


def _migration(number: int, found: MigrationReport, hosts: int) -> Iterator[str]:
    m = found.migration
    line = timeline_of(found)
    yield f'<section id="m{number}"><h2>{escape(line.title)}'
    yield f' <span class="outcome {escape(_outcome(m))}">{escape(_outcome(m))}</span></h2>'
    yield f'<p class="headline">{escape(downtime_line(found))}</p>'
    for warning in (*found.warnings, *warnings(m)):
        yield _warning(warning)
    yield _cards(found)
    lane = next((lane for lane in line.lanes if lane.kind == "blackout"), None)
    if lane is not None:
        yield "<h3>The blackout</h3>"
        yield _blackout_drawing(lane)
        yield _blackout_table(m, found.host.snapshot.at_ns)
        yield from _calls(m)
    yield from _brownout(m)
    yield from _round_trips(found)
    yield from _advice(found)
    yield "<h3>The whole migration</h3>"
    yield _drawing(line)
    if m.rounds:
        yield f"<details><summary>{len(m.rounds)} rounds</summary>{_rounds_table(m)}</details>"
    yield f"<dl>{_facts(found, hosts)}</dl></section>"


def _cards(found: MigrationReport) -> str:
    m = found.migration
    cards = [("downtime", downtime_range(found) or "–"), ("set by", m.downtime.set_by or "–")]
    if found.service_ns is not None:
        cards.append(("service downtime", _duration(found.service_ns)))
    cards += [("total", _duration(figures.total_ns(m))), ("sent", _size(m.channel.bytes))]
    if m.brownout is not None and m.brownout.speed is not None:
        cards.append(("guest speed", percent(m.brownout.speed)))
    if m.role != Role.DESTINATION:
        cards.append(("rounds", str(len(m.rounds))))
        cards.append(("dirtied", _size(figures.dirtied_bytes(m))))
        mean = figures.mean_dirty_rate(m)
        cards.append(("mean dirty rate", "–" if mean is None else format_rate(mean)))
    inner = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in cards)
    return f'<div class="cards">{inner}</div>'


def _facts(found: MigrationReport, hosts: int) -> str:
    """Return the facts as the text report has them, the time without each device, and the cause as lists name it."""
    m = found.migration
    facts = list(facts_of(found, UNICODE, hosts=hosts))
    facts += [
        ("device", f"{d.id or d.address}: {_duration(d.ns)} without it") for d in m.downtime.devices
    ]
    if m.cause:
        facts.append(("cause", ": ".join(filter(None, (m.cause, m.cause_detail)))))
    return "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)


# -- drawings -----------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT = 1000, 150, 14
_LANE, _GAP, _COUNTER = 24, 10, 64
_CHARACTER = 7.0
_LABEL_CHARACTER = 7.4
"""The mean width of a character of a label in DejaVu Sans, which is wider than most fonts."""
_LABEL_GAP = 10
_LABEL = 36
"""The most characters of a label: the longest title of a thread, with its side, its name and its number."""


class _Scale(msgspec.Struct, frozen=True):
    """Maps times to the drawing's coordinates."""

    start_ns: int
    end_ns: int
    left: float = _LEFT

    @classmethod
    def of(cls, start_ns: int, end_ns: int, titles: Iterable[str]) -> Self:
        """Return a scale that leaves as much room at the left as the longest of the titles needs."""
        longest = max((len(_label(title)) for title in titles), default=0)
        return cls(start_ns, end_ns, max(_LEFT, _LABEL_GAP + _LABEL_CHARACTER * longest))

    def x(self, at_ns: int) -> float:
        """Return the x coordinate of a time: the left edge is the start, the right edge the end."""
        length = max(1, self.end_ns - self.start_ns)
        return self.left + (_WIDTH - self.left - _RIGHT) * (at_ns - self.start_ns) / length

    def axis(self, y: float) -> Iterator[str]:
        """Yield ticks at round times, measured from the start, with lines upward to the lanes."""
        step = _step(max(1, self.end_ns - self.start_ns) / 8)
        at = 0
        while self.start_ns + at <= self.end_ns:
            x = self.x(self.start_ns + at)
            anchor = "end" if x > _WIDTH - 40 else "middle"
            yield f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{y:.1f}"/>'
            label = "0" if at == 0 else format_ns(at)
            yield f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{label}</text>'
            at += step


def _step(least: float) -> int:
    """Return the next number that is 1, 2 or 5 times a power of ten, and not smaller."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= least:
                return step * factor
        step *= 10


def _drawing(line: Timeline) -> str:
    parts: list[str] = []
    y = 4.0
    marks = next((lane.slices for lane in line.lanes if lane.kind == "blackout"), ())
    lanes = [lane for lane in line.lanes if lane.kind != "blackout"]
    titles = [*(lane.title for lane in lanes), *(counter.title for counter in line.counters)]
    scale = _Scale.of(line.start_ns, line.end_ns, titles)
    for lane in lanes:
        parts += _lane(lane, scale, y)
        y += _LANE + _GAP
    for counter in line.counters:
        parts += _counter(counter, scale, y)
        y += _COUNTER + _GAP
    shade = []
    if marks:
        first, last = scale.x(marks[0].start_ns), scale.x(marks[-1].end_ns)
        width = max(1.5, last - first)
        shade.append(
            f'<rect class="shade" x="{first:.1f}" y="0" width="{width:.1f}" height="{y:.1f}">'
            f"<title>blackout</title></rect>"
        )
    return _svg(y + 24, [*scale.axis(y), *shade, *parts], f"Timeline of {line.title}")


def _blackout_drawing(lane: Lane) -> str:
    scale = _Scale(lane.slices[0].start_ns, lane.slices[-1].end_ns)
    parts = [*scale.axis(_LANE * 1.6), *_lane(lane, scale, 4.0, height=_LANE * 1.4)]
    return _svg(_LANE * 1.6 + 24, parts, "The blackout, checkpoint by checkpoint")


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<div class="drawing"><svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img"'
        f' aria-label="{escape(label)}">{"".join(parts)}</svg></div>'
    )


def _lane(lane: Lane, scale: _Scale, y: float, height: float = _LANE) -> Iterator[str]:
    middle = y + height / 2 + 4
    yield _text(scale, "label", middle, lane.title)
    for part in lane.slices:
        yield _slice(lane, part, scale, y, height)


def _label(title: str) -> str:
    return shorten_middle(title, _LABEL, UNICODE)


def _text(scale: _Scale, style: str, y: float, title: str) -> str:
    """Return a text at the left of the drawing, which ends where the lanes begin."""
    x = scale.left - _LABEL_GAP
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(_label(title))}</text>'


def _slice(lane: Lane, part: Slice, scale: _Scale, y: float, height: float) -> str:
    x = scale.x(part.start_ns)
    # A slice that is too short to see is drawn a pixel wide.
    width = max(1.5, scale.x(part.end_ns) - x)
    took = format_ns(part.end_ns - part.start_ns)
    shown = next(
        (text for text in (f"{part.name} {took}", part.name) if len(text) * _CHARACTER < width - 6),
        "",
    )
    text = (
        f'<text class="in" x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}">{escape(shown)}</text>'
        if shown
        else ""
    )
    return (
        f"<g><title>{escape(part.name)}: {took}, from +{_seconds(part.start_ns - scale.start_ns)}</title>"
        f'<rect class="{_colour(lane.kind, part.name)}" x="{x:.2f}" y="{y:.1f}"'
        f' width="{width:.2f}" height="{height:.1f}" rx="2"/>{text}</g>'
    )


def _colour(kind: str, name: str) -> str:
    """Return the CSS class of a slice: states of the same meaning look the same in every lane."""
    if kind == "rounds":
        return "c3"
    return _COLOURS.get(name, "c0")


_COLOURS: dict[str, str] = {
    **dict.fromkeys((Phase.RUNNING, "RUNNING", "RUNNING_P2P", "ready"), "good"),
    **dict.fromkeys(
        (
            "stopped",
            "STOP",
            "absent",
            "unplugged",
            Checkpoint.DEVICES_STOPPED,
            "blackout",
            "VF gone",
        ),
        "bad",
    ),
    **dict.fromkeys((VcpuState.GUEST, VcpuState.EXIT, VcpuState.IDLE), "good"),
    **dict.fromkeys((VcpuState.THROTTLE, VcpuState.LIMIT, VcpuState.RING_FULL), "bad"),
    **dict.fromkeys((VcpuState.FAULT,), "c4"),
    **dict.fromkeys((VcpuState.QUEUE,), "c5"),
    **dict.fromkeys((VcpuState.USER,), "c1"),
    **dict.fromkeys(("wait for unplug", "VF configuring"), "c5"),
    **dict.fromkeys(("VF attached",), "c6"),
    **dict.fromkeys(("VF's link", "guest not heard yet", "destination's resume"), "c7"),
    **dict.fromkeys(
        (Phase.PRECOPY, "PRE_COPY", "PRE_COPY_P2P", Phase.INCOMING, Phase.POSTCOPY), "c1"
    ),
    **dict.fromkeys((Phase.SETUP, Phase.CLEANUP, "probing"), "c0"),
    **dict.fromkeys((Phase.STOP, Checkpoint.CLOCK_READ, "reset"), "c2"),
    **dict.fromkeys((Phase.FINAL_SYNC, Checkpoint.FINAL_SYNC_DONE), "c3"),
    **dict.fromkeys((Phase.DEVICE_SAVE, Checkpoint.STATE_SAVED, "STOP_COPY"), "c4"),
    **dict.fromkeys(
        (Phase.HANDOVER, Phase.DEVICE_LOAD, Checkpoint.DEVICES_LOADED, "RESUMING", "configuring"),
        "c5",
    ),
    **dict.fromkeys((Checkpoint.HELD,), "c6"),
    **dict.fromkeys((Phase.RESUME, Checkpoint.CLOCK_SET), "c7"),
    **dict.fromkeys((Checkpoint.VCPUS_RUNNING,), "good"),
}


def _counter(counter: Counter, scale: _Scale, y: float) -> Iterator[str]:
    """Draw a counter as a filled area: rates as steps, totals as lines between known values."""
    largest = max(value for _, value in counter.values)
    base = y + _COUNTER
    shown = _value(largest, counter.unit)
    yield _text(scale, "label", y + 16, counter.title)
    yield _text(scale, "most", y + 32, f"up to {shown}")
    if largest <= 0:
        return
    path = [f"M{scale.x(counter.values[0][0]):.1f} {base:.1f}"]
    for at, value in counter.values:
        x, top = scale.x(at), base - (_COUNTER - 4) * value / largest
        path.append(f"L{x:.1f} {top:.1f}" if counter.unit == "bytes" else f"H{x:.1f}V{top:.1f}")
    last = scale.x(max(scale.end_ns, counter.values[-1][0]))
    path.append(f"H{last:.1f}V{base:.1f}Z")
    yield f'<path class="area" d="{"".join(path)}"><title>{escape(counter.title)}</title></path>'


def _value(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.0f} %"
    return format_rate(value) if unit == "bytes/s" else format_bytes(value)


# -- tables -------------------------------------------------------------------------------------


def _blackout_table(m: Migration, now_ns: int) -> str:
    """Return all checkpoints; while the blackout lasts, those that it has passed."""
    total = m.downtime.vcpu_ns
    lasts = figures.blackout(m, now_ns) is not None
    rows = []
    for c in m.downtime.checkpoints:
        if c.at_ns is None and lasts:
            continue
        share = f"{100 * c.ns / total:.0f}%" if total and c.ns is not None else "–"
        colour = "" if c.at_ns is None else _colour("blackout", c.name)
        swatch = f'<i class="{colour}"></i>'
        name = f"<b>{escape(c.name)}</b>" if c.name == m.downtime.set_by else escape(c.name)
        rows.append(_row([swatch + name, _duration(c.ns), share, escape(happens(m, c.name))]))
    return _table(("checkpoint", "took", "share", "what happens until it"), rows)


def _calls(m: Migration) -> Iterator[str]:
    """Yield the causes of each step, and all calls of the blackout."""
    calls = m.calls
    if calls is None or not calls.steps:
        return
    yield from (_warning(caveat) for caveat in caveats(calls))
    rows = [
        _row(
            [
                escape(step.checkpoint) if number == 0 else "",
                escape(cause_words(cause)),
                _duration(cause.ns),
                f"{100 * cause.ns / step.ns:.0f}%",
                escape(cause.side),
                _duration(cause.longest_ns),
            ]
        )
        for step in shown_steps(calls)
        for number, cause in enumerate(c for c in step.causes if c.ns >= LEAST_PART * step.ns)
    ]
    heads = ("until", "what took it", "took", "share of the step", "side", "longest single")
    yield f"<h3>What took it</h3>{_table(heads, rows)}"
    if calls.totals:
        table = _table(
            ("call", "side", "count", "in all", "longest", "slept", "waited for a CPU"),
            [_row([escape(cell) for cell in _total(total)]) for total in calls.totals],
        )
        yield f"<details><summary>All calls of the blackout</summary>{table}</details>"


def _brownout(m: Migration) -> Iterator[str]:
    """Yield how slow the guest was, and why."""
    b = m.brownout
    if b is None:
        return
    yield f"<h3>The brownout</h3><p>{escape(speed_line(b))}</p>"
    lost = lost_words(b)
    lines = [*(hold.words for hold in b.holds), lost and f"vCPUs could not run: {lost}"]
    lines.append(waits_words(b))
    yield "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    rows = []
    for use in b.vcpus:
        shares = (percent(use.total.share(state)) for state in STATES)
        number = "–" if use.number is None else str(use.number)
        rows.append(_row([use.side, number, *shares]))
    table = _table(("side", "vCPU", *(escape(state) for state in STATES)), rows)
    yield f"<details><summary>Where the time of each vCPU went</summary>{table}</details>"


def _round_trips(found: MigrationReport) -> Iterator[str]:
    """How long a client of the guest waited for answers."""
    if found.round_trips is not None:
        rows = [_row(list(map(escape, row))) for row in round_trip_rows(found.round_trips, "–")]
        yield f"<h3>{ROUND_TRIPS}</h3>{_table(HEADS, rows)}"


def _advice(found: MigrationReport) -> Iterator[str]:
    """Yield each advice with its evidence and its expected effect."""
    given = advise(found)
    if given:
        yield f"<h3>{TITLE}</h3>"
    for advice in given:
        rows = "".join(
            f"<dt>{escape(head)}</dt><dd>{escape(words)}</dd>"
            for head, words in advice_rows(advice)
        )
        yield f"<p><b>{escape(advice.rule)}</b>: {escape(advice.cause)}</p><dl>{rows}</dl>"


def _total(total: CallTotal) -> tuple[str, ...]:
    call = total.call if total.target is None else f"{total.call}({total.target})"
    times = (total.ns, total.longest_ns, total.sleep_ns, total.queue_ns)
    return (call, total.side, str(total.count), *map(_duration, times))


def _rounds_table(m: Migration) -> str:
    rates = figures.round_dirty_rates(m)
    by_dma = any(figures.dma_pages(r) is not None for r in m.rounds)
    rows = [
        _row(
            [
                str(number),
                "+" + _seconds(r.at_ns - m.started_at_ns),
                format_ns(r.duration_ns),
                _count(r.new_pages),
                _count(r.redirtied_pages),
                _count(r.logged_pages),
                "–" if rate is None else format_rate(rate),
                _size(r.sent_bytes),
                *([_count(figures.dma_pages(r))] if by_dma else []),
            ]
        )
        for number, (r, rate) in enumerate(zip(m.rounds, rates, strict=True), start=1)
    ]
    heads = ("round", "at", "sweep", "new pages", "re-dirtied", "logged", "dirtied", "sent")
    return _table((*heads, "by DMA") if by_dma else heads, rows)


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f'<div class="drawing"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    """Return a row of HTML cells."""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _duration(ns: int | None) -> str:
    return "–" if ns is None else format_ns(ns)


def _size(count: int | None) -> str:
    return "–" if count is None else format_bytes(count)


def _count(count: int | None) -> str:
    return "–" if count is None else str(count)


def _offset(ns: int) -> str:
    return f"{ns / 1e9:+.6f} s"


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.6f} s"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""

_STYLE = """
:root{--bg:#fff;--fg:#1c2330;--dim:#5c6675;--line:#e1e5eb;--card:#f5f7fa;--warn:#8a4b00;--warnbg:#fff3df;
--shade:#d6452b26;--good:#2e9e6b;--bad:#d6452b;--c0:#9aa5b4;--c1:#4a8fd9;--c2:#b07ad6;--c3:#2aa3a3;--c4:#d9a12a;
--c5:#e0762b;--c6:#c2559b;--c7:#6f7fe0;--on:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#12161d;--fg:#e4e9f0;--dim:#96a1b1;--line:#2a323e;--card:#1b212b;
--warn:#ffce85;--warnbg:#3b2a10;--shade:#ff6a4d33;--good:#3fbf85;--bad:#f0654a;--c0:#66717f;--c1:#5aa2ee;--c2:#c193e6;
--c3:#3fbdbd;--c4:#e5b548;--c5:#f08c45;--c6:#da74b5;--c7:#8b99f2;--on:#0b0e13}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:22px;margin:0 0 8px}h2{font-size:19px;margin:36px 0 4px}h3{font-size:15px;margin:26px 0 8px}
.headline{font-size:17px;margin:4px 0 14px}
.outcome{font-size:13px;font-weight:600;padding:2px 9px;border-radius:10px;background:var(--c0);color:var(--on);
vertical-align:2px}
.outcome.completed{background:var(--good)}.outcome.failed{background:var(--bad)}.outcome.cancelled{background:var(--c4)}
.warning{background:var(--warnbg);color:var(--warn);padding:7px 12px;border-radius:6px;margin:8px 0}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:9px 15px}
.cards b{display:block;font-size:18px}.cards span{color:var(--dim);font-size:13px}
.drawing{overflow-x:auto}
svg{display:block;width:100%;min-width:720px;height:auto;font:12px system-ui,"DejaVu Sans",sans-serif}
.label{text-anchor:end;fill:var(--fg)}.most{text-anchor:end;fill:var(--dim);font-size:11px}
.tick{fill:var(--dim);font-size:11px}.grid{stroke:var(--line)}.in{text-anchor:middle;fill:var(--on);font-size:11.5px}
.shade{fill:var(--shade)}.area{fill:var(--c1);fill-opacity:.35;stroke:var(--c1);stroke-width:1.2}
rect.good{fill:var(--good)}rect.bad{fill:var(--bad)}rect.c0{fill:var(--c0)}rect.c1{fill:var(--c1)}
rect.c2{fill:var(--c2)}rect.c3{fill:var(--c3)}rect.c4{fill:var(--c4)}rect.c5{fill:var(--c5)}rect.c6{fill:var(--c6)}
rect.c7{fill:var(--c7)}
i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:8px}
i.good{background:var(--good)}i.bad{background:var(--bad)}i.c0{background:var(--c0)}i.c1{background:var(--c1)}
i.c2{background:var(--c2)}i.c3{background:var(--c3)}i.c4{background:var(--c4)}i.c5{background:var(--c5)}
i.c6{background:var(--c6)}i.c7{background:var(--c7)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:8px 0}
th,td{text-align:left;padding:3px 22px 3px 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--dim);font-weight:500}details{margin:14px 0}summary{cursor:pointer;color:var(--dim)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:18px 0}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
a{color:var(--c1)}
footer{margin-top:40px;color:var(--dim);font-size:13px;border-top:1px solid var(--line);padding-top:10px}
@media print{main{max-width:none}details{display:block}}
"""
