# SPDX-License-Identifier: MIT
"""Real libvirt migrations, each host's half on a clock of its own: together they are what QEMU says of them.

`libvirt/*.vft.gz` are recordings of tests/libvirt's operations, `libvirt/truth.json` is QEMU's account of them (its
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

RECORDINGS = Path(__file__).parent / "libvirt"
TRUTH: dict[str, Any] = {
    name: truth
    for name, truth in json.loads((RECORDINGS / "truth.json").read_text()).items()
    # One move from A to B; there and back is in tests/unit/test_join.py.
    if [e["kind"] for e in truth["expect"]] == ["move"] and truth["pids"]["B"]
}
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


def as_expected(found: MigrationReport, expected: dict[str, Any]) -> bool:
    """Whether outcome and cause are those of the truth, which leaves some failures' cause open."""
    m, cause = found.migration, expected["cause"]
    told = cause is not None or expected["outcome"] == "completed"
    return m.outcome == expected["outcome"] and (m.cause == cause or not told)


@pytest.mark.parametrize("error_ns", [1000, MS])
@pytest.mark.parametrize("name", TRUTH)
def test_outcome_and_cause_are_the_truth(name: str, error_ns: int) -> None:
    found = joined(name, error_ns)
    assert len(found) == 1
    assert as_expected(found[0], TRUTH[name]["expect"][0])
    assert {j.migration.role for j in found} == {"stitched"}
    assert [j.migration.peer_pid for j in found] == TRUTH[name]["pids"]["B"]
    assert not any(j.warnings for j in found)


@pytest.mark.parametrize("name", TRUTH)
def test_one_host_that_saw_both_sides_shows_the_same(name: str) -> None:
    recording = Recording(RECORDINGS / f"{name}.vft.gz")
    whole = boot_of(recording.host, recording).snapshot.migrations
    for found, alone in zip(joined(name, 1000), whole, strict=True):
        assert found.uncertainty_ns is not None
        m, unsure = found.migration, found.uncertainty_ns
        assert (m.outcome, m.was_paused) == (alone.outcome, alone.was_paused)
        assert m.cause == alone.cause
        assert m.rounds == alone.rounds
        assert (m.downtime.vcpu_ns is None) == (alone.downtime.vcpu_ns is None)
        if m.downtime.vcpu_ns is not None and alone.downtime.vcpu_ns is not None:
            assert abs(m.downtime.vcpu_ns - alone.downtime.vcpu_ns) <= unsure


@pytest.mark.parametrize("name", TRUTH)
def test_clocks_that_nobody_sets_make_no_wrong_answer(name: str) -> None:
    """What is not known is not joined, or has a warning; what is said without one is right."""
    (expected,) = TRUTH[name]["expect"]
    found = joined(name, UNSYNCHRONISED_NS)
    assert all(as_expected(each, expected) or each.warnings for each in found)
    assert len(found) == 1 or all(each.warnings for each in found)


@pytest.mark.parametrize("name", TRUTH)
def test_the_downtime_is_qemus(name: str) -> None:
    truth = TRUTH[name]
    for found, qemu, expect in zip(joined(name, 1000), truth["qemu"], truth["expect"], strict=True):
        if "downtime" not in expect.get("compare", ["downtime"]):
            # the truth says why (`why`)
            continue
        told_ms, ours = qemu.get("stop_to_resume_ms"), found.migration.downtime.vcpu_ns
        if told_ms is None or found.migration.was_paused:
            continue
        assert ours is not None
        assert found.uncertainty_ns is not None
        allowed = AS_QEMU_NS + found.uncertainty_ns
        steps = {c.name: c.ns or 0 for c in found.migration.downtime.checkpoints}
        if (found.migration.vcpu_pause_ns or 0) > AS_QEMU_NS:
            # A throttled vCPU sleeps outside the guest already when QEMU stops it: QEMU counts from there.
            ours -= steps[Checkpoint.CLOCK_READ]
        # QEMU says RESUME before it lets the vCPUs go (softmmu/cpus.c, vm_start): on a busy host they enter later.
        assert ours - steps[Checkpoint.VCPUS_RUNNING] - allowed <= told_ms * MS <= ours + allowed


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


# -- Cloud Hypervisor's order of requests, made by tinyvmm (tests/golden/record_another_vmm.py) ----

HOSTS = Path(__file__).parent / "hosts"
TINY: dict[str, Any] = json.loads((HOSTS / "cloud-hypervisor.json").read_text())


def tiny_halves(name: str, error_ns: int) -> tuple[HostReport, list[HostReport]]:
    """What one host saw of a migration, and what two would have seen of it."""
    recording = Recording(HOSTS / f"{name}.vft.gz")
    records = list(recording)
    (source,), (destination,) = TINY[name]["pids"]["A"], TINY[name]["pids"]["B"]
    here = [shifted(r, 0, error_ns) for r in only(records, {source})]
    there = [shifted(r, SHIFT_NS, error_ns) for r in only(records, {destination})]
    return boot_of(recording.host, records), [
        boot_of(host_of("alpha", "boot-a", recording.host), here),
        boot_of(host_of("beta", "boot-b", recording.host, SHIFT_NS), there),
    ]


def did(name: str, side: str, what: str) -> list[dict[str, Any]]:
    return [answer for answer in TINY[name][side] if answer["what"] == what]


def tiny_downtime_ns(name: str) -> int:
    (stop,), (run,) = did(name, "source", "stop"), did(name, "destination", "run")
    first, last = run["first_entry_ns"], stop["last_exit_ns"]
    assert isinstance(first, int)
    assert isinstance(last, int)
    return first - last


@pytest.mark.parametrize("name", TINY)
def test_cloud_hypervisors_order_on_one_host(name: str) -> None:
    """The clock is read once, logging goes off after the destination runs, or memory is not copied at all."""
    one, _ = tiny_halves(name, 1000)
    (m,) = one.snapshot.migrations
    assert (m.role, m.outcome, m.cause) == ("stitched", "completed", None)
    assert ([m.pid], [m.peer_pid]) == (TINY[name]["pids"]["A"], TINY[name]["pids"]["B"])
    assert not m.incomplete
    assert m.downtime.vcpu_ns == pytest.approx(tiny_downtime_ns(name), abs=MS)
    assert len(m.rounds) == len(did(name, "source", "round"))
    assert m.guest_clock_ns == did(name, "source", "stop")[0]["clock"]


def test_cloud_hypervisors_order_on_two_hosts() -> None:
    name = "cloud-hypervisor"
    _, hosts = tiny_halves(name, 1000)
    (found,) = join(hosts)
    m = found.migration
    assert (m.role, m.outcome, m.cause) == ("stitched", "completed", None)
    assert found.uncertainty_ns is not None
    assert m.downtime.vcpu_ns == pytest.approx(
        tiny_downtime_ns(name), abs=MS + found.uncertainty_ns
    )
    sent = sum(answer.get("sent_bytes", 0) for answer in TINY[name]["source"])
    assert m.channel.bytes == sent


def test_cloud_hypervisors_source_alone() -> None:
    _, (source, _) = tiny_halves("cloud-hypervisor", 1000)
    (m,) = source.snapshot.migrations
    assert (m.role, m.outcome, m.cause) == ("source", "completed", None)
