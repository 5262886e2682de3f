# SPDX-License-Identifier: MIT
"""Every golden recording through the rules of advice: what was injected is advised on, healthy migrations get none.

The scenarios and their truth files say what was done to each (`held`: no `cont` for a while; `postcopy`:
max-postcopy-bandwidth of 8 MiB/s; ...).
"""

import html
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vftrace.analysis.advice.advise import advise
from vftrace.analysis.hosts.join import join_hosts
from vftrace.collect.merge import load
from vftrace.model.advice import Rule
from vftrace.model.report import Report
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.json import report_json
from vftrace.outputs.report.text import render_report

GOLDEN = Path(__file__).parent

MADE = {
    "recordings/cancel-not-converging": {Rule.BANDWIDTH, Rule.DOWNTIME_LIMIT, Rule.POSTCOPY},
    "recordings/libvirt": {Rule.HELD},
    "recordings/postcopy": {Rule.POSTCOPY_BANDWIDTH},
    "recordings/postcopy-recover": {Rule.POSTCOPY_BANDWIDTH},
    "answered/host": {Rule.AUTO_CONVERGE},
    "brownouts/postcopy-slow": {Rule.POSTCOPY_BANDWIDTH},
    "blackouts/slow-flush": {Rule.SLOW_FLUSH},
    "blackouts/pre-switchover": {Rule.PRE_SWITCHOVER},
    "blackouts/held": {Rule.HELD},
    "blackouts/cpu-hog": {Rule.CPU_WAIT},
    # Its machine was busy: 107 ms of 172 ms the source waited for a CPU, and only 22 ms went into 128 doorbells.
    "blackouts/many-queues": {Rule.CPU_WAIT},
    # Emulated, the destination takes 1.2 s to pin the memory of the guest for its VF.
    "lab/6.1-calls": {Rule.MAP_DMA},
    "libvirt/postcopy-recover": {Rule.POSTCOPY_BANDWIDTH},
    "libvirt/destination-daemon-frozen": {Rule.HELD},
    # virsh suspend in the middle of it, virsh resume later.
    "libvirt/suspend": {Rule.HELD},
    # The emulated hosts of the lab: QEMU maps its guest's memory for a second, their driver takes 0.1 s to say cont.
    "mailbox/6.1": {Rule.HELD},
    "mailbox/7.x": {Rule.HELD},
    "mailbox/6.1-held": {Rule.MAP_DMA},
    "mailbox/6.12-held": {Rule.MAP_DMA},
    "mailbox/7.x-held": {Rule.MAP_DMA},
    "lab/6.12-functions-again": {Rule.MAP_DMA},
    "lab/6.12-outage-i40e": {Rule.MAP_DMA},
    "lab/6.12-outage-ice": {Rule.MAP_DMA},
    # An emulated host with two CPUs for both QEMUs: half of a blackout is waiting for them.
    "lab/iommufd-6.12": {Rule.CPU_WAIT},
}
RECORDINGS = sorted(path for path in GOLDEN.glob("*/*.vft.gz"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name.removesuffix('.vft.gz')}"


def rules(report: Report) -> Iterator[Rule]:
    for found in report.migrations:
        yield from (advice.rule for advice in advise(found))


@pytest.mark.parametrize("path", RECORDINGS, ids=name_of)
def test_only_what_was_done_is_advised_on(path: Path) -> None:
    report = join_hosts(load([path]))
    assert set(rules(report)) == MADE.get(name_of(path), set())


@pytest.mark.parametrize("path", RECORDINGS, ids=name_of)
def test_what_is_expected_is_within_its_bounds(path: Path) -> None:
    for found in join_hosts(load([path])).migrations:
        for advice in advise(found):
            for effect in advice.effects:
                assert 0 <= effect.least_ns <= effect.most_ns
                if effect.expected_ns is not None:
                    assert effect.least_ns <= effect.expected_ns <= effect.most_ns


def test_three_outputs_give_the_same_advice() -> None:
    report = load([GOLDEN / "blackouts" / "slow-flush.vft.gz"])
    (found,) = report_json(report)["migrations"]
    (advice,) = found["advice"]
    flush = max(
        (c for s in found["downtime"]["calls"]["steps"] for c in s["causes"]), key=lambda c: c["ns"]
    )
    effect = advice["effects"][0]
    assert advice["rule"] == "slow-flush"
    assert advice["parameters"] == {"cache.direct": True}
    assert effect["was_ns"] == found["downtime"]["vcpu_ns"]
    assert effect["expected_ns"] == found["downtime"]["vcpu_ns"] - flush["ns"]
    text = StringIO()
    Console(file=text, width=400).print(render_report(report, ascii=True))
    page = html.unescape(render_html(report))
    for shown in (text.getvalue(), page):
        assert advice["cause"] in shown
        assert advice["evidence"][0] in shown
        assert advice["setting"] in shown


EXPERIMENT = {
    "plain": set(),
    "vfio": set(),
    "unplug": set(),
    "bond": {Rule.MAP_DMA},
    "failover-talking": {Rule.VF_LINK},
}
"""docs/results/experiment.md, and the spans of each run there: with a bond the destination's QEMU maps memory for a
second, with failover the guest changes to a VF that has no link yet. An unplugged VF is missed for far longer than
either takes."""


@pytest.mark.parametrize("way", EXPERIMENT)
def test_the_ways_of_the_experiment(way: str) -> None:
    boot = GOLDEN / "experiment" / "all"
    for run in (1, 2):
        files = [boot / "a-host.vft.gz", boot / "b-host.vft.gz", boot / f"{way}-{run}.vft.gz"]
        report = join_hosts(load(files), clock_error_ns=1000)
        pinged = [found for found in report.migrations if found.outage is not None]
        assert pinged
        assert {advice.rule for found in pinged for advice in advise(found)} == EXPERIMENT[way]
