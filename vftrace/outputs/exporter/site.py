# SPDX-License-Identifier: MIT
"""The host's page of `vftrace serve`: its VMs, running migrations and ended migrations, as plain HTML.

The page needs no script, no font and no other server. Its data comes from a `Site`, which `commands` implements.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO, Protocol

import msgspec

from vftrace import __version__
from vftrace.model import figures
from vftrace.model.migration import Migration, Outcome, Snapshot, Vm
from vftrace.outputs.text.glyphs import UNICODE
from vftrace.outputs.text.markup import escape
from vftrace.outputs.text.words import AWAITED, losses, roles
from vftrace.units import format_bytes, format_ns, format_rate

VMS_SHOWN = 500
MIGRATING_SHOWN = 200
PAST_SHOWN = 200
"""How many rows each table has; of further rows the page shows their number."""
_MIGRATING_SECONDS = 3
_IDLE_SECONDS = 30
"""The interval at which the browser reloads the page."""

_LONGEST_UUID = 40

ID = re.compile(r"[0-9a-f]{8}-[0-9]{1,10}-[0-9]{1,20}")
"""The form of a migration's id in an address: never a path."""


class Past(msgspec.Struct, frozen=True):
    """A migration that ended. Durations are nanoseconds, None is not known; `kept` if it has a recording."""

    id: str
    started: datetime | None
    vm: str
    uuid: str | None
    source: str | None
    destination: str | None
    strategy: str
    outcome: str
    cause: str | None
    total_ns: int | None
    downtime_ns: int | None
    set_by: str | None
    kept: bool = False


class HostView(msgspec.Struct, frozen=True):
    """The present data of this host: `past` is newest first, `past_count` the number of all ended migrations.

    `recordings` names the directory of the recordings, None if migrations are not kept. `notes` are lines for the
    reader.
    """

    host: str
    now: datetime
    now_ns: int
    snapshot: Snapshot
    boot_id: str
    past: tuple[Past, ...]
    past_count: int
    recordings: str | None = None
    notes: tuple[str, ...] = ()


class Download(msgspec.Struct, frozen=True):
    """A recording to send: `size` bytes of `file`, which the sender closes."""

    name: str
    file: BinaryIO
    size: int


class Site(Protocol):
    """The source of the pages about migrations. Several threads may call its methods, which may take long."""

    def view(self) -> HostView | None:
        """Return the host now; None before there is data."""

    def report(self, migration: str) -> bytes | None:
        """Return the HTML report of a migration by its id; None if the migration is not known. Raises VftraceError."""

    def recording(self, migration: str) -> Download | None:
        """Return the recording of a migration; None if it has none."""


def id_of(boot_id: str, pid: int, started_at_ns: int) -> str:
    """Return the migration's id in addresses, which is the same in memory and in the recordings."""
    boot = hashlib.sha256(boot_id.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{boot}-{max(0, pid)}-{max(0, started_at_ns)}"


# -- the page -----------------------------------------------------------------------------------


def host_page(view: HostView | None, links: Sequence[tuple[str, str]]) -> str:
    """Return the whole page; `links` are the other pages: (address, title)."""
    if view is None:
        body = ['<p class="quiet">vftrace is starting: the probes are not attached yet.</p>']
        return _page("vftrace", _head("vftrace", None), body, links, _MIGRATING_SECONDS)
    snapshot = view.snapshot
    running = [m for m in snapshot.migrations if m.outcome is None]
    warned = (*losses(snapshot), *view.notes)
    body = [f'<p class="warning">{escape(line)}</p>' for line in warned]
    body += _now(running, view)
    body += _past(view)
    body += _vms(view)
    again = _MIGRATING_SECONDS if running else _IDLE_SECONDS
    return _page(view.host, _head(view.host, view.now), body, links, again)


def _page(
    title: str, head: str, body: Iterable[str], links: Sequence[tuple[str, str]], again: int
) -> str:
    others = " ".join(f'<a href="{escape(to)}">{escape(what)}</a>' for to, what in links)
    return _PAGE.format(
        title=escape(title),
        again=again,
        style=STYLE,
        head=head,
        body="\n".join(body),
        footer=f"<nav>{others}</nav><span>vftrace {escape(__version__)}</span>",
    )


def _head(host: str, now: datetime | None) -> str:
    at = "" if now is None else f"<time>{now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC</time>"
    return f"<h1>{escape(host)}</h1>{at}"


def _now(running: Sequence[Migration], view: HostView) -> Iterator[str]:
    yield f"<h2>Migrating now <span>{len(running)}</span></h2>"
    if not running:
        yield '<p class="quiet">No VM migrates.</p>'
        return
    newest = sorted(running, key=lambda m: m.started_at_ns, reverse=True)[:MIGRATING_SHOWN]
    for m in newest:
        yield _card(m, view)
    yield from _more(len(running), len(newest))


def _card(m: Migration, view: HostView) -> str:
    phase = figures.current_phase(m)
    facts = [("for", format_ns(figures.elapsed_ns(m, view.now_ns)))]
    if m.rounds:
        facts.append(("rounds", str(figures.dirty_sync_count(m))))
    rate = figures.dirty_rate(m)
    if rate is not None:
        facts.append(("dirtied", format_rate(rate)))
    if m.channel.bytes is not None:
        facts.append(("sent", format_bytes(m.channel.bytes)))
    bandwidth = figures.bandwidth_now(m, view.now_ns)
    if bandwidth is not None:
        facts.append(("bandwidth", format_rate(bandwidth)))
    facts += _forecast(m, view)
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    state = "" if phase is None else f'<span class="tag phase">{escape(phase.name)}</span>'
    link = f"/migrations/{id_of(view.boot_id, m.pid, m.started_at_ns)}"
    return (
        f'<section class="card"><h3><a href="{link}">{escape(figures.title(m.name, m.uuid, m.pid))}</a> {state}</h3>'
        f'<p class="roles">{escape(roles(m, UNICODE))}</p><dl>{shown}</dl></section>'
    )


def _forecast(m: Migration, view: HostView) -> Iterator[tuple[str, str]]:
    blackout = figures.blackout(m, view.now_ns)
    if blackout is not None:
        least = "at least " if blackout.at_least else ""
        yield "guest stopped for", f"{least}{format_ns(blackout.ns)}"
        if not blackout.at_least:
            yield "waits for", AWAITED.get(blackout.since, "")
    elif m.forecast is not None and m.stopped_at_ns is None:
        if m.forecast.converges is False:
            yield "forecast", "does not converge"
        elif m.forecast.downtime_ns is not None:
            yield "forecast downtime", format_ns(m.forecast.downtime_ns)


def _past(view: HostView) -> Iterator[str]:
    yield f"<h2>Last migrations <span>{view.past_count}</span></h2>"
    if not view.past:
        yield '<p class="quiet">None that vftrace knows of.</p>'
    else:
        yield _table(PAST_HEADS, (_past_cells(p) for p in view.past[:PAST_SHOWN]))
        yield from _more(view.past_count, min(len(view.past), PAST_SHOWN))
    if view.recordings is None:
        yield (
            '<p class="quiet">Only migrations in the memory of vftrace: they are not recorded'
            " (<code>serve --record-dir</code>).</p>"
        )
    else:
        yield f'<p class="quiet">Kept in <code>{escape(view.recordings)}</code>.</p>'


PAST_HEADS = ("Started (UTC)", "VM", "Outcome", "From → to", "Downtime", "Total", "Strategy", "")


def _past_cells(p: Past) -> list[str]:
    started = "–"
    if p.started is not None:
        started = f'<span class="whole">{p.started.astimezone(UTC):%Y-%m-%d %H:%M:%S}</span>'
    cause = f'<small class="below">{escape(p.cause)}</small>' if p.cause else ""
    known = p.outcome if p.outcome in frozenset(Outcome) else Outcome.UNKNOWN
    outcome = f'<span class="tag {known}">{escape(p.outcome)}</span>{cause}'
    ends = f"{escape(p.source or '?')} → {escape(p.destination or '?')}"
    set_by = f'<small class="below">{escape(p.set_by)}</small>' if p.set_by else ""
    downtime = "–" if p.downtime_ns is None else f"{_duration(p.downtime_ns)}{set_by}"
    total = _duration(p.total_ns)
    report = f"/migrations/{p.id}"
    links = f'<a class="whole" href="{report}">report</a>'
    if p.kept:
        links += f' <a class="whole" href="{report}/recording" download>recording</a>'
    name = f'<a href="{report}">{escape(p.vm)}</a>'
    short = figures.uuid_short(p.uuid)
    below = f'<small class="below">{escape(short)}</small>' if short and short != p.vm else ""
    return [started, name + below, outcome, ends, downtime, total, escape(p.strategy), links]


def _vms(view: HostView) -> Iterator[str]:
    vms = view.snapshot.vms
    yield f"<h2>Virtual machines <span>{len(vms)}</span></h2>"
    if not vms:
        yield '<p class="quiet">No VM with KVM runs on this host.</p>'
        return
    running = {m.pid for m in view.snapshot.migrations if m.outcome is None}
    running |= {m.peer_pid for m in view.snapshot.migrations if m.outcome is None and m.peer_pid}
    shown = sorted(vms, key=lambda vm: (vm.pid not in running, (vm.name or vm.key).casefold()))
    yield _table(VM_HEADS, (_vm_cells(vm, running, view) for vm in shown[:VMS_SHOWN]))
    yield from _more(len(vms), min(len(vms), VMS_SHOWN))


VM_HEADS = ("VM", "UUID", "Process", "vCPUs", "Up", "Passed-through devices")


def _vm_cells(vm: Vm, migrating: set[int], view: HostView) -> list[str]:
    state = {True: "run", False: "stopped", None: "–"}[vm.running]
    if vm.pid in migrating:
        state += ' <span class="tag phase">migrating</span>'
    devices = "; ".join(
        " ".join(filter(None, (d.address, d.id and f"({d.id})", d.state))) for d in vm.devices
    )
    up = _duration(None if vm.started_at_ns is None else max(0, view.now_ns - vm.started_at_ns))
    process = f'{vm.pid}<small class="below">{escape(vm.vmm)}</small>' if vm.vmm else str(vm.pid)
    return [
        escape(figures.label(vm.name, vm.uuid, vm.pid)),
        f"<code>{escape(vm.uuid[:_LONGEST_UUID])}</code>" if vm.uuid else "–",
        process,
        state,
        up,
        escape(devices) or "–",
    ]


def _duration(ns: int | None) -> str:
    return "–" if ns is None else f'<span class="whole">{format_ns(ns)}</span>'


def _more(count: int, shown: int) -> Iterator[str]:
    if count > shown:
        yield f'<p class="quiet">{count - shown} more are not shown.</p>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of HTML cells. On a narrow screen a row becomes a block whose cells have their headings before
    them."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-head="{escape(name)}">{cell}</td>'
            for name, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="{again}">
<title>{title}</title>
<style>{style}</style></head>
<body><header>{head}</header>
<main>
{body}
</main>
<footer>{footer}</footer></body></html>
"""

STYLE = """
:root{--bg:#fff;--fg:#1c2330;--dim:#5c6675;--line:#e1e5eb;--card:#f5f7fa;--link:#1b62b5;--warn:#8a4b00;
--warnbg:#fff3df;--good:#1d7a4f;--bad:#b93319;--calm:#3565a8;--on:#fff}
@media (prefers-color-scheme:dark){:root{--bg:#12161d;--fg:#e4e9f0;--dim:#96a1b1;--line:#2a323e;--card:#1b212b;
--link:#7cb7f5;--warn:#ffce85;--warnbg:#3b2a10;--good:#3fbf85;--bad:#f0654a;--calm:#7aa7e8;--on:#0b0e13}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:20px;display:flex;flex-wrap:wrap;gap:4px 16px;align-items:baseline}
h1{font-size:22px;margin:0;overflow-wrap:anywhere}time{color:var(--dim);font-variant-numeric:tabular-nums}
h2{font-size:17px;margin:30px 0 8px}h2 span{color:var(--dim);font-weight:400}
h3{font-size:15px;margin:0;overflow-wrap:anywhere}
a{color:var(--link);text-underline-offset:2px}
code{font:13px ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.quiet{color:var(--dim);margin:6px 0;overflow-wrap:anywhere}
.warning{background:var(--warnbg);color:var(--warn);padding:7px 12px;border-radius:6px;margin:12px 0;
overflow-wrap:anywhere}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 15px;margin:8px 0}
.roles{margin:2px 0 6px;color:var(--dim);overflow-wrap:anywhere}
dl{display:flex;flex-wrap:wrap;gap:4px 26px;margin:0}dt{color:var(--dim);font-size:13px}
dd{margin:0;font-variant-numeric:tabular-nums}
.tag{display:inline-block;font-size:13px;font-weight:600;line-height:1.45;padding:0 8px;border-radius:9px;
background:var(--dim);color:var(--on);white-space:nowrap}
.completed{background:var(--good)}.failed{background:var(--bad)}.cancelled,.phase{background:var(--calm)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:5px 16px 5px 0;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
th{color:var(--dim);font-weight:500;font-size:13px;white-space:nowrap}
.whole{white-space:nowrap}
.below{display:block;color:var(--dim);font-size:13px}
footer{margin-top:36px;margin-bottom:28px;padding-top:10px;display:flex;flex-wrap:wrap;gap:4px 20px;
justify-content:space-between;color:var(--dim);font-size:13px;border-top:1px solid var(--line)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px}
@media (min-width:821px){td code,td small{white-space:nowrap}}
@media (max-width:820px){
header,main,footer{padding-left:14px;padding-right:14px}footer{padding-left:0;padding-right:0;margin-left:14px;
margin-right:14px}
thead{display:none}
table,tbody,tr,td{display:block}
tr{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 14px;margin:8px 0}
td{border:0;padding:1px 0;display:grid;grid-template-columns:8.5em 1fr}
td::before{content:attr(data-head);color:var(--dim);font-size:13px}
td>*{grid-column:2;justify-self:start}
td:last-child a{padding:6px 0}
}
"""

STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""The hash that allows this style sheet only (Content-Security-Policy)."""
