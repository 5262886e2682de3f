# SPDX-License-Identifier: MIT
"""Recordings of brownouts beside the guest's own count of its turns (tests/host/brownouts.py)."""

import json
from dataclasses import replace

import pytest

from tests.golden import rendered
from tests.host.blackouts import migration_of
from tests.host.brownouts import KEPT, POINTS, Counts, Truth, judge, turns
from vftrace.analysis.tracker import Tracker
from vftrace.collect.merge import load
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.model import brownout
from vftrace.model.brownout import COULD_RUN, STATES, VcpuState, VcpuUse
from vftrace.model.migration import Checkpoint, Migration
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.log import entries
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.json import report_json
from vftrace.outputs.report.perfetto import perfetto_trace
from vftrace.outputs.report.timeline import timeline_of
from vftrace.outputs.text.brownout import top_line
from vftrace.outputs.text.glyphs import UNICODE

SECOND = 1_000_000_000
NAMES = sorted(path.name.removesuffix(".vft.gz") for path in KEPT.glob("*.vft.gz"))


def _kept(name: str) -> tuple[Migration, Truth]:
    said = json.loads((KEPT / f"{name}.truth.json").read_text())
    for side in ("source", "destination"):
        said[side] = [tuple(row) for row in said[side]]
    said["reference"] = tuple([tuple(row) for row in each] for each in said.get("reference", ()))
    return migration_of(KEPT / f"{name}.vft.gz", name), Truth(**said)


@pytest.mark.parametrize("name", NAMES)
def test_the_guests_speed_is_what_it_counted(name: str) -> None:
    judged = judge(*_kept(name))
    assert judged.error == pytest.approx(0, abs=POINTS)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("throttle-99", VcpuState.THROTTLE),
        ("ring-full", VcpuState.RING_FULL),
        ("dirty-limit", VcpuState.LIMIT),
        ("one-hogged", VcpuState.QUEUE),
        ("postcopy-slow", VcpuState.FAULT),
    ],
)
def test_a_state_that_counts_as_running_does_not_fit_the_count(
    name: str, state: VcpuState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does the guest beside it, by which the count is corrected, hide that."""
    running = tuple(at for at, each in enumerate(STATES) if each in {*COULD_RUN, state})
    monkeypatch.setattr(brownout, "_COULD_RUN_AT", running)
    assert judge(*_kept(name)).error > POINTS


@pytest.mark.parametrize("pace", [0.8, 1.25])
def test_a_faster_or_slower_machine_does_not_change_the_speed(pace: float) -> None:
    """The kept count and that of the guest beside it, as if the CPU's speed had changed when the migration began."""
    migration, truth = _kept("dirty-limit")
    began = migration.started_at_ns

    def changed(counts: Counts) -> Counts:
        (at_ns, base) = next((row[0], row[1]) for row in counts if row[0] >= began)
        return [
            row if row[0] < at_ns else (row[0], base + round((row[1] - base) * pace), *row[2:])
            for row in counts
        ]

    other = replace(
        truth,
        source=changed(truth.source),
        reference=tuple(changed(each) for each in truth.reference),
    )
    assert judge(migration, other).error == pytest.approx(judge(migration, truth).error, abs=1.0)
    alone = judge(migration, replace(other, reference=()))
    assert alone.counted == pytest.approx(pace * judge(migration, truth).counted, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_each_vcpu_is_as_fast_as_it_counted(name: str) -> None:
    errors = judge(*_kept(name)).vcpu_errors
    assert errors == pytest.approx([0.0] * len(errors), abs=POINTS)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("throttle-99", [VcpuState.THROTTLE]),
        ("ring-full", [VcpuState.RING_FULL]),
        ("dirty-limit", [VcpuState.LIMIT]),
        ("one-hogged", []),
        ("postcopy-slow", []),
    ],
)
def test_what_held_the_vcpus_is_distinguished(name: str, holds: list[VcpuState]) -> None:
    found = _kept(name)[0].brownout
    assert found is not None
    assert [hold.by for hold in found.holds] == holds


def test_a_vcpu_that_shares_its_cpu_waits_for_it() -> None:
    """Two other programs had the CPU of the second vCPU for five seconds: it got a third."""
    alone, hogged = (_use("one-hogged", vcpu).total.share(VcpuState.QUEUE) for vcpu in (0, 1))
    assert hogged > 0.6
    assert hogged > alone + 0.15


def test_waits_for_pages_are_as_long_as_qemu_reports() -> None:
    judged, blocked_ms = judge(*_kept("postcopy-slow")), _kept("postcopy-slow")[1].blocked_ms
    assert blocked_ms is not None
    assert blocked_ms > 1000
    # QEMU counts from when its own thread has read of a fault.
    assert blocked_ms <= judged.waited_ns / 1e6 <= 1.15 * blocked_ms


def _use(name: str, vcpu: int) -> VcpuUse:
    found = _kept(name)[0].brownout
    assert found is not None
    (use,) = [u for u in found.vcpus if u.side == "source" and u.number == vcpu]
    return use


@pytest.mark.parametrize("name", NAMES)
def test_all_time_of_a_vcpu_is_accounted_for(name: str) -> None:
    migration, _ = _kept(name)
    assert migration.brownout is not None
    for use in migration.brownout.vcpus:
        lasted = use.total.end_ns - use.total.start_ns
        # The probes are attached some milliseconds after it began.
        assert use.total.total_ns == pytest.approx(lasted, rel=0.02, abs=SECOND / 50)
        assert use.total.of(VcpuState.UNKNOWN) == 0


def test_every_output_shows_the_throttle() -> None:
    """The page with its curve, Perfetto with a track for the vCPU, JSON with the share by round."""
    report = load([KEPT / "throttle-99.vft.gz"])
    page = render_html(report)
    assert "auto-converge held the vCPUs" in page
    assert "guest speed" in page
    line = timeline_of(report.migrations[0])
    (lane,) = (lane for lane in line.lanes if lane.kind == "vcpu")
    assert "throttle" in {part.name for part in lane.slices}
    assert line.counters[0].title == "guest speed"
    assert b"source vCPU 0" in perfetto_trace(report).data
    (found,) = report_json(report)["migrations"]
    assert [hold["by"] for hold in found["brownout"]["holds"]] == ["throttle"]
    said = f"{100 * found['brownout']['guest_speed']:.0f}"
    (one,) = report.migrations
    migration, clock = one.migration, one.host.snapshot.clock
    fields = entries.ended(migration, clock, None).fields
    assert fields["guest_speed_percent"] == int(said)
    assert f" {said} % of before" in top_line(migration, 80, UNICODE)


def test_metrics_show_the_speed_of_the_last_two_seconds() -> None:
    """While the guest is held: the value of a scrape just before its stop, beside the guest's own count in that
    time."""
    migration, truth = _kept("throttle-99")
    before = migration.brownout and migration.brownout.baseline
    assert before
    now = migration.downtime.times[Checkpoint.VCPUS_STOPPED] - SECOND // 5
    recording = Recording(KEPT / "throttle-99.vft.gz")
    tracker = Tracker()
    for event in events_of(recording):
        if event.at_ns <= now:
            tracker.feed(event)
    text = rendered.scraped(Reading(tracker.snapshot(), now, recording.host, (), {}))
    ((_, shown),) = [
        each for each in rendered.of_metrics(text).items() if each[0][1] == "guest speed now"
    ]

    def rate(start_ns: int, end_ns: int) -> float:
        counted = turns(truth.source, end_ns) - turns(truth.source, start_ns)
        return counted / (end_ns - start_ns)

    counted = rate(now - 2 * SECOND, now) / rate(before.from_ns, before.until_ns)
    assert isinstance(shown.value, float)
    assert 100 * shown.value == pytest.approx(100 * counted, abs=POINTS)
