# SPDX-License-Identifier: MIT
"""Recordings of blackouts with an injected cause, compared with an independent measurement of it.

The truth is the disk's own clock, the driver's times of signals and commands, the hog's clock, or QEMU's own trace of
its requests (tests/host/blackouts.py).
"""

import json

import pytest

from tests.host.blackouts import BLACKOUTS, KEPT, Truth, judge, migration_of
from vftrace.collect.merge import load
from vftrace.model.migration import Migration
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.json import report_json
from vftrace.outputs.report.perfetto import perfetto_trace
from vftrace.outputs.report.timeline import timeline_of
from vftrace.outputs.text.calls import top_calls

TIMED = tuple(name for name in BLACKOUTS if not name.startswith("many"))


def _kept(name: str) -> tuple[Migration, Truth]:
    truth = Truth(**json.loads((KEPT / f"{name}.truth.json").read_text()))
    return migration_of(KEPT / f"{name}.vft.gz", name), truth


@pytest.mark.parametrize("name", BLACKOUTS)
def test_nearly_all_of_the_blackout_has_a_name(name: str) -> None:
    migration, _ = _kept(name)
    assert migration.calls is not None
    assert migration.calls.missed == 0
    assert migration.calls.named_ns >= 0.95 * migration.calls.ns
    assert migration.calls.ns == migration.downtime.vcpu_ns


@pytest.mark.parametrize("name", TIMED)
def test_the_injected_cause_is_first_and_as_long(name: str) -> None:
    migration, truth = _kept(name)
    judged = judge(migration, truth)
    assert truth.fits(judged.first)
    assert judged.error == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", sorted(set(BLACKOUTS) - set(TIMED)))
def test_all_injected_calls_are_counted(name: str) -> None:
    migration, truth = _kept(name)
    judged = judge(migration, truth)
    assert judged.error == 0
    assert judged.as_clocked(truth)


@pytest.mark.parametrize("name", BLACKOUTS)
def test_causes_add_up_to_their_step(name: str) -> None:
    migration, _ = _kept(name)
    assert migration.calls is not None
    checkpoints = {c.name: c.ns for c in migration.downtime.checkpoints}
    for step in migration.calls.steps:
        assert sum(cause.ns for cause in step.causes) == step.ns == checkpoints[step.checkpoint]


def test_a_flush_is_named_with_its_file() -> None:
    migration, _ = _kept("slow-flush")
    said = top_calls(migration)
    assert said.startswith("fdatasync(")
    assert "/slow/disk.img) 90" in said.split(";")[0]


def test_libvirt_that_comes_late_with_cont() -> None:
    """The destination's libvirtd was frozen between load and `cont`. By QEMU's events the guest stood for 1713 ms; its
    own downtime ends with the load."""
    place = KEPT.parent / "libvirt"
    name = "destination-daemon-frozen"
    (qemu,) = json.loads((place / "truth.json").read_text())[name]["qemu"]
    (found,) = load([place / f"{name}.vft.gz"]).migrations
    calls = found.migration.calls
    assert calls is not None
    assert calls.named_ns >= 0.95 * calls.ns
    first = calls.causes[0]
    assert (first.kind, first.side, first.call) == ("wait", "destination", "ppoll")
    held_ms = qemu["stop_to_resume_ms"] - qemu["downtime"]
    assert first.ns / 1e6 == pytest.approx(held_ms, rel=0.05)


def test_who_did_nothing_did_nothing() -> None:
    migration, _ = _kept("pre-switchover")
    assert top_calls(migration).startswith("nothing: waited 1.0")


def test_every_output_names_the_flush() -> None:
    """The page as a table and a track, Perfetto as a slice of the worker's track, JSON as the first cause."""
    migration, _ = _kept("slow-flush")
    report = load([KEPT / "slow-flush.vft.gz"])
    page = render_html(report)
    assert "fdatasync(/tmp/" in page
    assert "All calls of the blackout" in page
    lanes = timeline_of(report.migrations[0]).lanes
    slices = [part for lane in lanes if lane.kind == "calls" for part in lane.slices]
    (flush,) = (part for part in slices if "fdatasync" in part.name)
    assert migration.calls is not None
    assert flush.end_ns - flush.start_ns == migration.calls.causes[0].longest_ns
    (found,) = report_json(report)["migrations"]
    causes = [c for s in found["downtime"]["calls"]["steps"] for c in s["causes"]]
    assert max(causes, key=lambda c: c["ns"])["call"] == "fdatasync"
    packets = perfetto_trace(report).data
    assert b"fdatasync(/tmp/" in packets
