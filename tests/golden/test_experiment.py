# SPDX-License-Identifier: MIT
"""Guests that moved between two emulated hosts, compared with QEMU, the switch and the pinger.

`experiment/NAME` holds the recordings of one boot, kept by experiment/keep.py; VFTRACE_EXPERIMENT is another
directory of such: tests/lab holds what it has just recorded to the same.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from experiment.cases import CASES
from experiment.conduct import INTERVAL_MS
from experiment.picture import COLOURS
from experiment.table import MS, Result, length_ns, results_of

from vftrace.analysis.hosts.outage import SPANS

PLACE = Path(os.environ.get("VFTRACE_EXPERIMENT", Path(__file__).parent / "experiment"))
BOOTS = sorted(path.parent for path in PLACE.glob("*/truth.json"))
EXPLAINED = 0.9
NOISE_NS = 0 if "VFTRACE_EXPERIMENT" not in os.environ else 500_000_000
"""What an emulated guest that runs again may take to answer, of which the hosts see nothing. It is little beside the
gaps of the runs that are kept, and much where a short gap is all there was."""
QEMU_SAYS_NS = 2_000_000_000
"""QEMU reports an event when its main loop runs, which takes long under emulation."""


@functools.cache
def results(boot: Path) -> dict[str, Result]:
    return {result.truth["run"]: result for result in results_of(boot)}


def runs() -> list[tuple[Path, str]]:
    return [(boot, run) for boot in BOOTS for run in results(boot)]


RUNS = [pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}") for pair in runs()]


def event_ns(result: Result, side: str, name: str) -> int:
    """When the monitor reported an event, on that host's own clock."""
    found = [e["at_ns"] for e in result.truth[side]["events"] if e["event"] == name]
    assert found, f"{side} told no {name}"
    return int(found[0])


def checkpoint(result: Result, name: str) -> int:
    times = {c["name"]: c["at_ns"] for c in result.migration["downtime"]["checkpoints"]}
    assert times[name] is not None
    return int(times[name])


@pytest.mark.parametrize(("boot", "run"), RUNS)
def test_two_halves_are_one_migration(boot: Path, run: str) -> None:
    result = results(boot)[run]
    assert result.migration["role"] == "stitched"
    assert result.migration["outcome"] == "completed"
    assert result.migration["vm"]["uuid"] == result.truth["uuid"]
    assert result.migration["incomplete"] is False


@pytest.mark.parametrize(("boot", "run"), RUNS)
def test_the_strategy_is_what_was_done(boot: Path, run: str) -> None:
    result = results(boot)[run]
    assert result.migration["strategy"] == CASES[result.truth["case"]].expect
    assert result.migration["strategy_evidence"]


@pytest.mark.parametrize(("boot", "run"), RUNS)
def test_qemu_reports_its_stop_after_it(boot: Path, run: str) -> None:
    result = results(boot)[run]
    late = event_ns(result, "source", "STOP") - checkpoint(result, "vcpus-stopped")
    assert 0 <= late <= QEMU_SAYS_NS


@pytest.mark.parametrize(("boot", "run"), RUNS)
def test_qemus_downtime_is_a_part_of_the_blackout_and_of_what_comes_before(
    boot: Path, run: str
) -> None:
    """QEMU's ends with the source's last byte, or the return path's word; it begins before the vCPUs stop."""
    result = results(boot)[run]
    qemu_ns = result.truth["migration"]["query_migrate"]["downtime"] * MS
    sent_ns = checkpoint(result, "state-saved") - checkpoint(result, "vcpus-stopped")
    assert sent_ns <= qemu_ns + MS
    assert qemu_ns <= result.migration["downtime"]["vcpu_ns"] + QEMU_SAYS_NS


@pytest.mark.parametrize(("boot", "run"), RUNS)
def test_the_hosts_saw_where_the_longest_gap_went(boot: Path, run: str) -> None:
    gap = results(boot)[run].gap
    spans = gap["spans"]
    assert spans[0]["start_at_ns"] == gap["start_at_ns"]
    assert spans[-1]["end_at_ns"] == gap["start_at_ns"] + gap["ns"]
    seen = [span for span in spans if span["seen_on"] is not None]
    assert sum(map(length_ns, seen)) >= EXPLAINED * gap["ns"] - NOISE_NS, spans
    by_hosts = [span for span in seen if span["seen_on"] != "pinger"]
    assert sum(map(length_ns, by_hosts)) == gap["explained_ns"]
    # What the pinger saw is that answers came late, and it counts only once the destination runs.
    late = [span for span in seen if span["seen_on"] == "pinger"]
    ran = checkpoint(results(boot)[run], "vcpus-running")
    assert all(
        (span["name"], span["start_at_ns"] >= ran) == ("answers late", True) for span in late
    )


def test_every_span_has_a_colour() -> None:
    assert set(COLOURS) == set(SPANS)


def of_case(*names: str) -> list[Any]:
    return [p for p in RUNS if str(p.values[1]).rpartition("-")[0] in names]


@pytest.mark.parametrize(("boot", "run"), of_case("plain"))
def test_a_plain_blackout_is_what_the_pinger_lost(boot: Path, run: str) -> None:
    """No probe is answered while no vCPU runs: a gap covers the blackout but for an interval at each end."""
    result = results(boot)[run]
    gap, downtime = result.gap, result.migration["downtime"]
    slack = INTERVAL_MS * MS + gap["uncertainty_ns"]
    assert downtime["vcpu_ns"] <= downtime["service_ns"] + slack
    assert downtime["uncertainty_ns"] < INTERVAL_MS * MS
    start, end = gap["start_at_ns"], gap["start_at_ns"] + gap["ns"]
    stopped, ran = checkpoint(result, "vcpus-stopped"), checkpoint(result, "vcpus-running")
    # On a busy host another gap may be the longest.
    if start < ran and end > stopped:
        assert start <= stopped + slack
        assert end >= ran - slack


@pytest.mark.parametrize(("boot", "run"), of_case("unplug", "bond"))
def test_the_vf_is_absent_from_unplug_to_plug(boot: Path, run: str) -> None:
    """The source's VMM closes the VF before its event, and the destination's opens the new VF after the command."""
    result = results(boot)[run]
    (device,) = result.migration["downtime"]["devices"]
    unplug, plug = result.truth["unplug"], result.truth["plug"]
    assert unplug["asked_at_ns"] <= device["from_at_ns"] <= unplug["done_at_ns"]
    (vf,) = (vf for vf in result.migration["vfs"] if vf["role"] == "destination")
    opened = vf["phases"][0]
    assert opened["name"] == "probing"
    # Two clocks: what lies between them is the same on both.
    resumed = checkpoint(result, "vcpus-running")
    asked_ns = plug["asked_at_ns"] - plug["resumed_at_ns"]
    assert opened["start_at_ns"] - resumed >= asked_ns
    assert device["ns"] >= opened["start_at_ns"] - device["from_at_ns"]
