# SPDX-License-Identifier: MIT
"""Boards, recording rules and alerts against a real Prometheus that scrapes replays of real migrations.

The rules' clock runs faster here (`prom.quick`), and they are otherwise those an operator has. Where a fault has
no recording of its own, one is made of a real recording; what was changed stands at each of `FAULTS`.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.dashboards.expressions import BOARDS, Expression, ask, expressions
from tests.dashboards.prom import GOLDEN, STAGE, STAGE_SECONDS, Play, Stage, quick
from tests.unit.two_hosts import golden, lab, only, write
from vftrace import events
from vftrace.events import NO_PROCESS, wire
from vftrace.model.host import HostInfo, ProbeStatus
from vftrace.outputs.exporter.metrics import METRICS, PREFIX, Metric

pytestmark = pytest.mark.needs("prometheus")

Fault = tuple[HostInfo, Iterable[bytes]]

EMPTY: Mapping[tuple[str, str], str] = {
    ("vftrace-self", title): "a replay has no reader process"
    for title in ("CPU", "Memory", "Lateness")
}
"""Why an expression may have nothing to show, by board and place."""

TRACED = ("--otlp-endpoint", "http://127.0.0.1:1")
"""An address without a listener: only exemplars show it."""

RULES_TIMES = 15
"""A minute of a rule is four seconds here."""


def lossy() -> Fault:
    """A guest that was held for a second; 200 records of its migration are gone, and the kernel counted them. A
    kernel that takes no kprobes, one of whose tables is full, and that skipped three runs of a probe."""
    host, records = golden("pause-before-switchover")
    others = (probe for probe in host.probes if probe.name != "mailbox")
    refused = ProbeStatus("mailbox", None, "kprobe: not permitted")
    host = replace(host, probes=(*others, refused))
    kernels = [r for r in records if wire.decode(r).tgid not in (events.COLLECTOR, NO_PROCESS)]
    gone = set(kernels[400:600:3] + kernels[401:601:3] + kernels[402:602:3])
    kept = [record for record in records if record not in gone]
    ticks = [n for n, record in enumerate(kept) if isinstance(wire.decode(record), events.Tick)]
    middle, after, then, later, last = ticks[len(ticks) // 2 :][:5]
    tick = wire.decode(kept[middle])
    kept[middle] = wire.encode(
        events.Lost(tick.at_ns, tick.seq, tick.tgid, tick.tid, count=len(gone))
    )
    tick = wire.decode(kept[after])
    kept[after] = wire.encode(
        events.TableFull(tick.at_ns, tick.seq, tick.tgid, tick.tid, table="threads", count=1)
    )
    tick = wire.decode(kept[then])
    vmm = wire.decode(kernels[400]).tgid
    kept[then] = wire.encode(
        events.VmLost(tick.at_ns, tick.seq, tick.tgid, tick.tid, vmm, len(gone), 0)
    )
    tick = wire.decode(kept[later])
    kept[later] = wire.encode(
        events.Untraced(tick.at_ns, tick.seq, tick.tgid, tick.tid, uid=1000, count=1)
    )
    tick = wire.decode(kept[last])
    head = (tick.at_ns, tick.seq, tick.tgid, tick.tid)
    kept[last] = wire.encode(
        events.MissedRuns(*head, "channel", "kprobe", 3, tick.at_ns - 10**9, tick.at_ns)
    )
    return host, kept


def vf_without_driver() -> Fault:
    """One job of a recording of many: a guest that has no driver for the VF it gets back."""
    host, records = lab("7.x")
    job = json.loads((GOLDEN / "lab" / "7.x.truth.json").read_text())["unplug"]
    began = job["started_at_ns"]
    mine = [r for r in records if wire.HEADER.unpack_from(r)[0] >= began]
    return host, only(mine, {NO_PROCESS} | {vm["pid"] for vm in job["vms"]})


FAULTS: Mapping[str, tuple[float, Callable[[], Fault]]] = {
    "broken": (5, lambda: lab("6.1-error")),
    "flooded": (1.25, lambda: lab("../mailbox/6.12-flood")),
    # A guest that auto-converge held, for too short a time to fire an alert.
    "held": (1, lambda: lab("../brownouts/throttle-99")),
    "lossy": (1, lossy),
    "vf-gone": (1, vf_without_driver),
}
"""Hosts with a fault: how fast each is replayed, and its recording."""

FIRES = {
    "VftraceDowntimeOverTarget": {"lossy"},
    "VftraceMigrationFailed": {"broken", "delta", "echo"},
    "VftraceDeviceError": {"broken"},
    "VftraceVfNotBack": {"vf-gone"},
    "VftraceMailboxNacks": {"flooded"},
    "VftraceMailboxFlood": {"flooded"},
    "VftraceEventsLost": {"lossy"},
    "VftraceKernelTableFull": {"lossy"},
    "VftraceProbeMissing": {"lossy"},
    "VftraceDown": {"charlie"},
    "VftraceReaderStuck": {"bravo", "delta"},
}
"""Which alert must fire on which hosts; on others it must not, but for those of `MAY`."""

MAY = {
    # In the lab everything is emulated, and slow; its next migration comes within a second here.
    "VftraceDowntimeOverTarget": {"echo"},
    # Records of other VMs were lost while it was recorded.
    "VftraceEventsLost": {"held"},
    # A script that makes a dozen refused requests in a row: a storm for such a fast clock.
    "VftraceMailboxNacks": {"foxtrot"},
    # Recorded where the program for VFIO did not compile.
    "VftraceProbeMissing": {"foxtrot"},
    # Every replay is over some day.
    "VftraceReaderStuck": {*STAGE, *FAULTS},
}

ELSEWHERE = {
    "VftracePrecopyNotConverging": "tests/host/test_prometheus.py, where a guest is too fast",
    "VftraceGuestHeld": "the rules' own test; tests/host/brownouts.py holds guests for seconds",
    "VftraceRecordingLost": "the rules' own test; tests/host/test_flight_recorder.py has disks that fail",
    "VftraceInternalError": "the rules' own test; no known event makes vftrace fail",
}

_RECORDER = "needs a host that is traced: tests/host/test_flight_recorder.py"
NO_EVENT = {
    "internal_errors_total": "tests/unit/test_contained.py injects the errors",
    "recording_lost_records_total": _RECORDER,
    "flight_recorder_files": _RECORDER,
    "flight_recorder_bytes": _RECORDER,
    "flight_recorder_lost_files_total": _RECORDER,
    "flight_recorder_write_errors_total": _RECORDER,
    **dict.fromkeys(
        ("reader_lateness_seconds", "reader_cpu_seconds_total", "reader_resident_memory_bytes"),
        "a replay has no reader process; tests/host/test_reader_process.py has one",
    ),
}


@dataclass(frozen=True)
class Played:
    """The stage when all is over, and how many seconds it took."""

    stage: Stage
    seconds: int


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    directory = tmp_path_factory.mktemp("stage")
    figures = {"vftrace:vf_back_within_seconds": 1.0}
    rules = quick(directory / "quick.rules.yml", RULES_TIMES, figures)
    with Stage(directory, (*STAGE, *FAULTS), (rules,), "1s") as stage:
        for name, (speed, fault) in FAULTS.items():
            host, records = fault()
            path = write(directory / f"{name}.fault.vft", host, records)
            stage.play(name, Play(path, speed))
        for name, play in STAGE.items():
            stage.play(name, play, more=TRACED if name == "bravo" else ())
        for name in (*STAGE, *FAULTS):
            stage.wait_ready(name)
        stage.wait(f"sum(up) == {len((*STAGE, *FAULTS))}", 20)
        time.sleep(STAGE_SECONDS)
        stage.kill("charlie")
        # The alert waits for a minute of its own, and for a scrape.
        stage.wait("ALERTS{alertname='VftraceDown', instance='charlie', alertstate='firing'}", 20)
        yield Played(stage, round(time.time() - stage.began) + 1)


ALL = [expression for board in BOARDS for expression in expressions(board)]


def test_there_are_boards() -> None:
    assert len(BOARDS) == 4
    assert {e.board for e in ALL} == {path.stem for path in BOARDS}
    assert set(EMPTY) <= {(e.board, e.where) for e in ALL}


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_every_expression_of_a_board_returns_data(board: Path, played: Played) -> None:
    silent: list[Expression] = []
    for expression in expressions(board):
        values = ask(played.stage, expression, played.seconds, {})
        if not values and (expression.board, expression.where) not in EMPTY:
            silent.append(expression)
    assert [str(expression) for expression in silent] == []


def test_every_rule_is_evaluated_and_every_record_is_there(played: Played) -> None:
    rules = played.stage.rules()
    assert len(rules) > 10
    assert [(r["name"], r["lastError"]) for r in rules if r["health"] != "ok"] == []
    for rule in rules:
        if rule["type"] == "recording":
            assert played.stage.query(f"last_over_time({{__name__='{rule['name']}'}}[5m])")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_comes_from_real_events(metric: Metric, played: Played) -> None:
    name = PREFIX + metric.name + ("_bucket" if metric.kind == "histogram" else "")
    values = [
        value for series in played.stage.query_range(name) for _, value in series.points if value
    ]
    assert bool(values) is (metric.name not in NO_EVENT)


def test_alerts_fire_on_their_faults_and_nowhere_else(played: Played) -> None:
    firing = 'ALERTS{alertstate="firing"}'
    fired: dict[str, set[str]] = {}
    for series in played.stage.query_range(firing, step=0.5):
        name = series.labels["alertname"]
        fired.setdefault(name, set()).add(series.labels.get("instance", ""))
    # What had not been started yet, or was too slow when all started, was down too.
    now = played.stage.query(firing)
    down = [series.labels for series in now if series.labels["alertname"] == "VftraceDown"]
    fired["VftraceDown"] = {labels["instance"] for labels in down}
    assert set(fired) == set(FIRES)
    missing = {name: hosts - fired[name] for name, hosts in FIRES.items() if hosts - fired[name]}
    wrong = {name: fired[name] - hosts - MAY.get(name, set()) for name, hosts in FIRES.items()}
    assert (missing, {name: hosts for name, hosts in wrong.items() if hosts}) == ({}, {})
    known = {rule["name"] for rule in played.stage.rules() if rule["type"] == "alerting"}
    assert known == {*FIRES, *ELSEWHERE}


def test_an_alert_names_the_vm_and_leads_to_its_page(played: Played) -> None:
    (rule,) = (r for r in played.stage.rules() if r["name"] == "VftraceMigrationFailed")
    (alert,) = (a for a in rule["alerts"] if a["labels"]["instance"] == "delta")
    truth = json.loads((GOLDEN / "recordings" / "dest-killed-precopy.truth.json").read_text())
    source = truth["processes"][0]
    assert alert["labels"]["vm"] == source["uuid"]
    assert alert["annotations"]["summary"] == (
        f"The migration of VM {source['name']} ({source['uuid']}) failed on delta: destination-ended"
    )
    assert alert["annotations"]["runbook_url"].endswith("/runbooks/VftraceMigrationFailed.md")


def test_what_prometheus_has_is_what_was_recorded(played: Played) -> None:
    """The downtimes of QEMU's own events, by way of serve, scrape and query."""
    truth = json.loads((GOLDEN / "recordings" / "completed-slow.truth.json").read_text())
    stop, resume = (
        next(e["at_ns"] for e in truth["events"] if e["name"] == name)
        for name in ("STOP", "RESUME")
    )
    (found,) = played.stage.query(
        'last_over_time(vftrace_migration_last_downtime_seconds{instance="bravo", kind="vcpu"}[5m])'
    )
    assert -0.0005 <= found.value - (resume - stop) / 1e9 <= 0.004
    (joined,) = played.stage.query(
        f'last_over_time(vm:vftrace_migration_downtime_seconds:joined{{vm="{found.labels["vm"]}"}}[5m])'
    )
    assert joined.value == pytest.approx(found.value, abs=1e-6)
    ((value, labels),) = played.stage.exemplars(
        'vftrace_migration_downtime_seconds_bucket{instance="bravo"}'
    )
    assert value == found.value
    assert re.fullmatch("[0-9a-f]{32}", labels["trace_id"])
