# SPDX-License-Identifier: MIT
"""Shows the facts of one migration in words, the same in the text and the HTML report."""

from collections.abc import Iterator

from vftrace.model import figures
from vftrace.model.migration import Migration, Role
from vftrace.model.report import MigrationReport
from vftrace.outputs.text.clock import wall_time
from vftrace.outputs.text.forecast import forecast_of
from vftrace.outputs.text.glyphs import Glyphs, clean
from vftrace.outputs.text.tables import UNKNOWN, count, offset, rate, size
from vftrace.outputs.text.words import clocks_line, downtime_line, roles, verdict
from vftrace.units import format_ns


def facts_of(found: MigrationReport, g: Glyphs, *, hosts: int) -> Iterator[tuple[str, str]]:
    """Yield the facts of a migration as a name and its text. `hosts`: how many hosts the report has."""
    m, snapshot = found.migration, found.host.snapshot
    yield "outcome", verdict(m, g)
    where = roles(m, g) if hosts == 1 else _hosts(found, g)
    yield "seen", where + (f", attempt {m.attempt + 1}" if m.attempt else "")
    if m.uuid is not None:
        yield "uuid", clean(m.uuid, g)
    total = figures.total_ns(m)
    said = UNKNOWN if total is None else format_ns(total)
    yield "time", f"{said} in total, started {wall_time(snapshot, m.started_at_ns)}"
    yield "downtime", downtime_line(found).removeprefix("downtime ")
    clocks = clocks_line(found)
    if clocks is not None:
        yield "clocks", clocks
    if found.service_ns is not None:
        yield "service", f"{format_ns(found.service_ns)} without answers to a ping"
    evidence = ", ".join(
        f"{clean(e.event, g)} at {offset(e.at_ns - m.started_at_ns)}" for e in m.strategy_evidence
    )
    yield "strategy", m.strategy + (f": {evidence}" if evidence else "")
    yield "channel", _channel(m)
    if m.role != Role.DESTINATION:
        yield "dirtied", _dirtied(m)
    forecast = forecast_of(m)
    if forecast is not None:
        yield "forecast", forecast
    if m.dirty.dma not in (None, "none"):
        yield "DMA", _DMA[m.dirty.dma]


def _hosts(found: MigrationReport, g: Glyphs) -> str:
    """Return the process and the host of each side."""
    m, here = found.migration, clean(found.host.name, g)
    if found.peer is None:
        return f"{m.role} pid {m.pid} on {here}, the other side is not in these recordings"
    return f"pid {m.pid} on {here} {g.arrow} pid {m.peer_pid} on {clean(found.peer.name, g)}"


def _channel(m: Migration) -> str:
    said = f"{m.channel.kind}, sent {size(m.channel.bytes)}"
    if m.channel.state_bytes is not None:
        said += f", {size(m.channel.state_bytes)} of it after the state was read"
    return said + (f", ERROR {m.channel.error}" if m.channel.error else "")


_DMA: dict[str | None, str] = {
    "device": "the device logs the pages it writes (VFIO DMA_LOGGING)",
    "iommu": "the IOMMU logs the pages that the device writes (type1 container or iommufd)",
    "untracked": "nobody tracks the pages that the device writes",
    "guest": "QEMU requested no log of written pages: the guest's driver has to dirty them itself",
}


def _dirtied(m: Migration) -> str:
    counted = "since logging began" if m.dirty.ring else "after round 1"
    said = [
        f"{count(m.dirty.new_pages)} new pages {counted} ({size(figures.dirtied_bytes(m))})",
        f"{count(m.dirty.distinct_pages)} distinct",
        f"{rate(figures.mean_dirty_rate(m))} on average",
    ]
    reported = ((m.dirty.vfio_pages, "devices"), (m.dirty.iommu_pages, "the IOMMU"))
    said += [f"{pages} reported by {whom}" for pages, whom in reported if pages is not None]
    return ", ".join(said)
