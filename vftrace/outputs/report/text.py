"""The report as text: what set the downtime first, then each migration with its figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration, Role, Snapshot
from vftrace.outputs.text.clock import wall_time
from vftrace.outputs.text.devices import devices_part
from vftrace.outputs.text.figures import mean_dirty_rate
from vftrace.outputs.text.forecast import forecast_of
from vftrace.outputs.text.glyphs import Glyphs, clean, glyphs, shorten
from vftrace.outputs.text.slots import slots_part
from vftrace.outputs.text.tables import (
    UNKNOWN,
    blackout_table,
    count,
    offset,
    phases_table,
    plain_table,
    rate,
    rounds_table,
    size,
)
from vftrace.outputs.text.vfs import vfs_part
from vftrace.outputs.text.words import headline, label, losses, roles, title, verdict, warnings
from vftrace.units import format_ns

WARNING = "bold yellow"
SET_BY = "bold"
NAME_WIDTH = 22


def render_report(
    host: HostInfo,
    snapshot: Snapshot,
    damage: str | None,
    *,
    ascii: bool,  # noqa: A002
) -> RenderableType:
    """Everything `snapshot` knows, for rich's console; its first line says what set the downtime.

    `damage` is `Recording.damage`. `ascii` forces what is also done where the console's encoding
    cannot do better. Unknown figures are shown as `-`.
    """
    return _Report(host, snapshot, damage, ascii)


@dataclass(frozen=True)
class _Report:
    host: HostInfo
    snapshot: Snapshot
    damage: str | None
    ascii: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        g = glyphs(ascii=self.ascii or options.ascii_only)
        yield Text(first_line(self.host, self.snapshot, g), SET_BY)
        for warning in (*self._damage(g), *losses(self.snapshot)):
            yield Text(f"! {warning}", WARNING)
        yield Text(self._host_line(g), "dim")
        if len(self.snapshot.migrations) > 1:
            yield Text()
            yield _overview(self.snapshot, g)
        for migration in self.snapshot.migrations:
            yield Text()
            yield from render_migration(migration, self.snapshot, options.max_width, g)
        yield from render_vfs(self.snapshot, options.max_width, g)

    def _damage(self, g: Glyphs) -> Iterator[str]:
        if self.damage is not None:
            yield f"RECORDING DAMAGED: {clean(self.damage, g)}; what comes before is reported"

    def _host_line(self, g: Glyphs) -> str:
        host = self.host
        lost = f"{self.snapshot.lost} lost" if self.snapshot.lost else "none lost"
        attached = sum(1 for way in host.probes.values() if not way.startswith("not attached"))
        return (
            f"host {clean(host.name, g)}, kernel {clean(host.kernel, g)}, "
            f"probes {attached} of {len(host.probes)}, {self.snapshot.events} events, {lost}"
        )


def first_line(host: HostInfo, snapshot: Snapshot, g: Glyphs) -> str:
    """What set the downtime, of the longest one where there are several."""
    found = snapshot.migrations
    if not found:
        lasted = format_ns(max(0, snapshot.at_ns - host.started_at_ns))
        return f"no migration in this recording: {snapshot.events} events in {lasted}"
    if len(found) == 1:
        return headline(found[0], snapshot.at_ns)
    longest = max(found, key=lambda m: m.downtime.vcpu_ns or -1)
    who = title(longest.name, longest.uuid, longest.pid, g)
    return f"longest of {len(found)} migrations, {who}: {headline(longest, snapshot.at_ns)}"


def _overview(snapshot: Snapshot, g: Glyphs) -> RenderableType:
    table = plain_table(
        ("VM", "left"),
        ("outcome", "left"),
        ("total", "right"),
        ("downtime", "right"),
        ("set by", "left"),
        ("sent", "right"),
    )
    for m in snapshot.migrations:
        total = None if m.ended_at_ns is None else m.ended_at_ns - m.started_at_ns
        table.add_row(
            shorten(label(m.name, m.uuid, m.pid, g), NAME_WIDTH, g),
            m.outcome or "running",
            UNKNOWN if total is None else format_ns(total),
            UNKNOWN if m.downtime.vcpu_ns is None else format_ns(m.downtime.vcpu_ns),
            m.downtime.set_by or UNKNOWN,
            size(m.channel.bytes),
        )
    return table


def render_vfs(snapshot: Snapshot, width: int, g: Glyphs) -> Iterator[RenderableType]:
    """The virtual functions of a host, where any was heard."""
    part = list(vfs_part(snapshot.vfs, snapshot, width, g))
    if part:
        yield Text()
        if snapshot.vfs_incomplete:
            yield Text("! EVENTS OF MAILBOXES WERE LOST: what follows may lack some", WARNING)
        yield from part


def render_migration(
    migration: Migration,
    snapshot: Snapshot,
    width: int,
    g: Glyphs,
    about: Mapping[str, str] | None = None,
) -> Iterator[RenderableType]:
    """One migration: verdict, blackout, phases, rounds, totals.

    `about` has rows that are added to the facts, or stand for those of the same name; its `blackout`
    stands for the blackout's length.
    """
    m = migration
    rows = dict(_facts(m, snapshot, g)) | dict(about or {})
    blackout = rows.pop("blackout", None)
    name = title(m.name, m.uuid, m.pid, g)
    yield Text(_rule(f"{name}: {m.outcome or 'running'}", width, g), "bold", no_wrap=True)
    for warning in warnings(m):
        yield Text(f"! {warning}", WARNING)
    facts = Table.grid(padding=(0, 2, 0, 0))
    for what, value in rows.items():
        facts.add_row(Text(what, "dim"), Text(value))
    yield facts
    if m.stopped_at_ns is not None:
        total = UNKNOWN if m.downtime.vcpu_ns is None else format_ns(m.downtime.vcpu_ns)
        yield Text()
        yield Text(f"Blackout: {blackout or total} (last vCPU exit to first vCPU entry)", "bold")
        yield blackout_table(m, snapshot.at_ns, width, g)
    yield Text()
    yield Text("Phases", "bold")
    yield phases_table(m, snapshot.at_ns, width, g)
    yield from devices_part(m, snapshot.at_ns, width, g)
    if m.rounds:
        yield Text()
        yield Text(f"Rounds: {len(m.rounds)} (pages of {m.dirty.page_size} bytes)", "bold")
        yield rounds_table(m, width)
        yield from slots_part(m, width, g)


def _rule(text: str, width: int, g: Glyphs) -> str:
    start = f"{g.rule}{g.rule} {text} "
    return start + g.rule * max(0, width - len(start))


def _facts(m: Migration, snapshot: Snapshot, g: Glyphs) -> Iterator[tuple[str, str]]:
    yield "outcome", verdict(m, g)
    yield "seen", roles(m, g) + (f", attempt {m.attempt + 1}" if m.attempt else "")
    if m.uuid is not None:
        yield "uuid", clean(m.uuid, g)
    started = wall_time(snapshot, m.started_at_ns)
    total = UNKNOWN if m.ended_at_ns is None else format_ns(m.ended_at_ns - m.started_at_ns)
    yield "time", f"{total} in total, started {started}"
    yield "downtime", headline(m, snapshot.at_ns).removeprefix("downtime ")
    evidence = ", ".join(
        f"{clean(e.event, g)} at {offset(e.at_ns - m.started_at_ns)}" for e in m.strategy_evidence
    )
    yield "strategy", m.strategy + (f": {evidence}" if evidence else "")
    yield "channel", _channel(m)
    if m.role != Role.DESTINATION:
        yield "dirtied", _dirtied(m)
    foretold = forecast_of(m)
    if foretold is not None:
        yield "forecast", foretold
    if m.dirty.dma not in (None, "none"):
        yield "DMA", _DMA[m.dirty.dma]


def _channel(m: Migration) -> str:
    said = f"{m.channel.kind}, sent {size(m.channel.bytes)}"
    if m.channel.state_bytes is not None:
        said += f", {size(m.channel.state_bytes)} of it after the state was read"
    return said + (f", ERROR {m.channel.error}" if m.channel.error else "")


_DMA: dict[str | None, str] = {
    "device": "written pages are told by the devices' own logging (VFIO DMA_LOGGING)",
    "iommu": "written pages are told by the IOMMU's side (type1 container or iommufd)",
    "guest": "no log of written pages was asked for: the guest's driver has to dirty them itself",
}


def _dirtied(m: Migration) -> str:
    pages = None if m.dirty.new_pages is None else m.dirty.new_pages * m.dirty.page_size
    devices = [
        f"{number} reported by {whom}"
        for number, whom in ((m.dirty.vfio_pages, "devices"), (m.dirty.iommu_pages, "the IOMMU"))
        if number is not None
    ]
    return ", ".join([_by_the_guest(m, pages), *devices])


def _by_the_guest(m: Migration, pages: int | None) -> str:
    return (
        f"{count(m.dirty.new_pages)} new pages after round 1 ({size(pages)}), "
        f"{count(m.dirty.distinct_pages)} distinct, {rate(mean_dirty_rate(m))} on average"
    )
