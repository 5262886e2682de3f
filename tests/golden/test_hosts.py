"""Real libvirt migrations, each host's half on a clock of its own: together they are what QEMU says of them.

`hosts/*.vft.gz` are recordings of tests/libvirt's operations, `hosts/truth.json` is QEMU's account of them (its
QMP events and query-migrate), with what was done to them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.two_hosts import boot_of, host_of, join, only, shifted
from vftrace import events
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.collect.recording import Recording
from vftrace.events import wire
from vftrace.model.migration import Checkpoint
from vftrace.model.report import HostReport, MigrationReport
from vftrace.outputs.text.words import headline

RECORDINGS = Path(__file__).parent / "hosts"
TRUTH: dict[str, Any] = json.loads((RECORDINGS / "truth.json").read_text())
SHIFT_NS = 1000 * 10**9
MS = 1_000_000

AS_QEMU_NS = 3 * MS
"""QEMU stamps STOP after the device models have stopped and RESUME before the vCPUs run (softmmu/cpus.c)."""


def halves(name: str, error_ns: int, extra: "list[bytes] | None" = None) -> list[HostReport]:
    recording = Recording(RECORDINGS / f"{name}.vft.gz")
    records = sorted([*recording, *(extra or [])], key=lambda record: wire.decode(record).at_ns)
    here, there = (set(TRUTH[name]["pids"][side]) for side in "AB")
    source = [shifted(r, 0, error_ns) for r in only(records, here)]
    destination = [shifted(r, SHIFT_NS, error_ns) for r in only(records, there)]
    return [
        boot_of(host_of("alpha", "boot-a", recording.host), source),
        boot_of(host_of("beta", "boot-b", recording.host, SHIFT_NS), destination),
    ]


def joined(name: str, error_ns: int) -> tuple[MigrationReport, ...]:
    found = join(halves(name, error_ns))
    for each in found:
        times = [c.ns for c in each.migration.downtime.checkpoints if c.ns is not None]
        assert all(ns >= 0 for ns in times)
        spans = [p for p in each.migration.phases if p.end_at_ns is not None]
        assert all((p.end_at_ns or 0) >= p.start_at_ns for p in spans)
    return found


@pytest.mark.parametrize("error_ns", [1000, MS])
@pytest.mark.parametrize("name", TRUTH)
def test_outcome_and_cause_are_the_truth(name: str, error_ns: int) -> None:
    found = joined(name, error_ns)
    wanted = [(e["outcome"], e["cause"]) for e in TRUTH[name]["expect"]]
    assert [(j.migration.outcome, j.migration.cause) for j in found] == wanted
    assert {j.migration.role for j in found} == {"stitched"}
    assert [j.migration.peer_pid for j in found] == TRUTH[name]["pids"]["B"]
    assert not any(j.warnings for j in found)


@pytest.mark.parametrize("name", TRUTH)
def test_clocks_that_nobody_sets_make_no_wrong_answer(name: str) -> None:
    """What is not known is not joined, or has a warning; what is said without one is right."""
    for found, expected in zip(joined(name, UNSYNCHRONISED_NS), TRUTH[name]["expect"], strict=True):
        said = (found.migration.outcome, found.migration.cause)
        assert said == (expected["outcome"], expected["cause"]) or found.warnings


@pytest.mark.parametrize("name", TRUTH)
def test_the_downtime_is_qemus(name: str) -> None:
    for found, qemu in zip(joined(name, 1000), TRUTH[name]["qemu"], strict=True):
        told_ms, ours = qemu.get("stop_to_resume_ms"), found.migration.downtime.vcpu_ns
        if told_ms is None or found.migration.was_paused:
            continue
        assert ours is not None
        assert found.uncertainty_ns is not None
        allowed = AS_QEMU_NS + found.uncertainty_ns
        assert abs(ours - told_ms * MS) <= allowed


def test_a_destination_that_is_held_has_loaded_its_state() -> None:
    (found,) = joined("suspend-never", 1000)
    times = found.migration.downtime.times
    assert times[Checkpoint.DEVICES_LOADED] >= times[Checkpoint.STATE_SAVED]
    assert Checkpoint.CLOCK_SET not in times
    assert found.migration.downtime.vcpu_ns is None
    assert "holds the loaded guest" in headline(found.migration, found.host.snapshot.at_ns)


def test_a_source_that_is_killed_before_its_postcopy_destination_contradicts_nothing() -> None:
    """Nobody waits for the last page of a postcopy whose destination dies."""
    name = "destination-killed-postcopy"
    (source,) = TRUTH[name]["pids"]["A"]
    (destination,) = TRUTH[name]["pids"]["B"]
    records = [wire.decode(record) for record in Recording(RECORDINGS / f"{name}.vft.gz")]
    (gone,) = [e for e in records if isinstance(e, events.Exit) and e.tgid == destination]
    seq = max(e.seq for e in records if e.tgid == source and e.at_ns < gone.at_ns - 100 * MS)
    killed = events.Exit(gone.at_ns - 100 * MS, seq + 1, source, source, 0)
    (found,) = join(halves(name, 1000, [wire.encode(killed)]))
    m = found.migration
    assert (m.role, m.outcome) == ("stitched", "failed")
    assert not any("contradict" in warning for warning in found.warnings)
