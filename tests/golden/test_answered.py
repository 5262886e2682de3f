# SPDX-License-Identifier: MIT
"""A ping of a guest that migrated, held by auto-converge (tests/host/answered.py)."""

import json
from pathlib import Path

import pytest

from tests.host.answered import INTERVAL_MS
from vftrace.analysis.hosts.join import join_hosts
from vftrace.collect.merge import load
from vftrace.model.report import MigrationReport, RoundTrips

KEPT = Path(__file__).parent / "answered"
MS, SECOND = 10**6, 10**9
SLICE_NS = 10 * MS
"""QEMU lets a throttled vCPU run for so long, then it sleeps (CPU_THROTTLE_TIMESLICE_NS in softmmu/cpu-throttle.c)."""


@pytest.fixture(scope="module")
def found() -> MigrationReport:
    (only,) = join_hosts(load([KEPT / "host.vft.gz", KEPT / "ping.vft"])).migrations
    return only


def parts(found: MigrationReport) -> tuple[RoundTrips, RoundTrips, RoundTrips]:
    trips = found.round_trips
    assert trips is not None
    assert trips.before is not None
    assert trips.during is not None
    assert trips.after is not None
    return trips.before, trips.during, trips.after


def test_every_probe_is_in_one_part(found: MigrationReport) -> None:
    """Of those that were sent nearer than an interval of the histograms to a boundary, none counts."""
    truth = json.loads((KEPT / "truth.json").read_text())
    _, during, _ = parts(found)
    lasted = truth["ended_ns"] - truth["begun_ns"]
    sent = lasted / (INTERVAL_MS * MS)
    assert sent - 2 * 200 / INTERVAL_MS <= during.answered + during.lost <= sent + 1
    whole = sum(part.answered + part.lost for part in parts(found))
    assert truth["ping"]["sent"] - 4 * 200 / INTERVAL_MS <= whole <= truth["ping"]["sent"]


def test_a_held_guest_answers_as_late_as_it_sleeps(found: MigrationReport) -> None:
    truth = json.loads((KEPT / "truth.json").read_text())
    share = truth["throttle_percent"] / 100
    sleep_ns = SLICE_NS * share / (1 - share)
    before, during, after = parts(found)
    assert during.half_ns is not None
    assert during.p90_ns is not None
    assert before.half_ns is not None
    assert after.half_ns is not None
    assert max(before.half_ns, after.half_ns) < 5 * MS < during.half_ns < sleep_ns
    assert 0.5 * sleep_ns < during.p90_ns < 1.5 * sleep_ns


def test_the_service_was_gone_for_longer_than_the_vcpus(found: MigrationReport) -> None:
    truth = json.loads((KEPT / "truth.json").read_text())
    assert found.service_ns is not None
    assert found.service_ns >= truth["resumed_ns"] - truth["stopped_ns"] - INTERVAL_MS * MS
