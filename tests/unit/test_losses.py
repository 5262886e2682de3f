# SPDX-License-Identifier: MIT
"""Losses of one VM: its migration is marked, its metric counts them, and other migrations stay complete."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from msgspec import structs

from tests.unit.test_metrics import Bench
from vftrace import events
from vftrace.analysis.losses import MAX_REPORTS, LossLog
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, Event
from vftrace.model.host import HostInfo
from vftrace.model.migration import Loss, Migration, Snapshot
from vftrace.model.report import live_report
from vftrace.outputs.report.json import report_json
from vftrace.outputs.text.words import losses, warnings

ROOT = Path(__file__).resolve().parents[2]
FOUR = ROOT / "tests/golden/recordings/four-at-once.vft.gz"
SCHEMA = json.loads((ROOT / "vftrace/report.schema.json").read_text())
HOST = HostInfo("host", "boot", "6.1", "0", 0, ())
SECOND = 1_000_000_000


def replayed(told: tuple[Event, ...] = ()) -> Snapshot:
    """Four migrations at once, with more records of the collector, by their times; their `seq` is put right."""
    tracker = Tracker()
    shift = 0
    waiting = sorted(told, key=lambda event: event.at_ns)
    for event in events_of(Recording(FOUR)):
        while waiting and waiting[0].at_ns <= event.at_ns and event.tgid == COLLECTOR:
            tracker.feed(structs.replace(waiting.pop(0), seq=event.seq + shift))
            shift += 1
        tracker.feed(
            structs.replace(event, seq=event.seq + shift) if event.tgid == COLLECTOR else event
        )
    assert not waiting
    tracker.finish()
    return tracker.snapshot()


@pytest.fixture(scope="module")
def whole() -> Snapshot:
    return replayed()


def lost_of(m: Migration, records: int, bulk: int = 0, dropped: int = 0) -> events.VmLost:
    assert m.ended_at_ns is not None
    middle = (m.started_at_ns + m.ended_at_ns) // 2
    return events.VmLost(middle, 0, COLLECTOR, 1, m.pid, records, bulk, dropped)


def others(snapshot: Snapshot, victim: Migration) -> Iterator[Migration]:
    return (m for m in snapshot.migrations if m.key != victim.key)


def test_only_the_vm_that_lost_records_is_incomplete_and_shows_how_many(whole: Snapshot) -> None:
    assert len(whole.migrations) == 4
    assert not any(m.incomplete for m in whole.migrations)
    victim = whole.migrations[1]
    found = replayed((lost_of(victim, 120, 30, 5),))
    (mine,) = (m for m in found.migrations if m.key == victim.key)
    assert mine.incomplete
    assert mine.loss == Loss(records=120, bitmap_parts=35)
    assert warnings(mine)[0].startswith("INCOMPLETE: 120 events of this migration were lost")
    assert list(others(found, victim)) == list(others(whole, victim))
    assert [(vm.key, vm.loss) for vm in found.losses] == [(victim.key, mine.loss)]


def test_parts_of_bitmaps_alone_do_not_make_a_migration_incomplete(whole: Snapshot) -> None:
    victim = whole.migrations[2]
    found = replayed((lost_of(victim, 0, 0, 7),))
    (mine,) = (m for m in found.migrations if m.key == victim.key)
    assert not mine.incomplete
    assert mine.loss == Loss(bitmap_parts=7)


def test_the_report_has_it_for_the_migration_and_for_the_host(whole: Snapshot) -> None:
    victim = whole.migrations[0]
    report = report_json(live_report(HOST, replayed((lost_of(victim, 120, 30),))))
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)
    by_pid = {m["vm"]["pid"]: m["loss"]["records"] for m in report["migrations"]}
    assert by_pid == {m.pid: 120 if m is victim else 0 for m in whole.migrations}
    assert report["hosts"][0]["losses"] == [
        {"vm": victim.key, "pid": victim.pid, "records": 120, "bitmap_parts": 30, "uncounted": 0}
    ]


def test_the_loudest_vms_are_named(whole: Snapshot) -> None:
    first, second = whole.migrations[:2]
    told = (lost_of(first, 5), lost_of(second, 500))
    total = events.Lost(told[1].at_ns, 0, COLLECTOR, 1, 505)
    (line,) = losses(replayed((*told, total)))
    assert line.startswith("505 EVENTS LOST")
    assert line.endswith(f"(500 of VM {second.key}, 5 of VM {first.key})")


def test_the_metric_counts_by_vm_and_only_grows(whole: Snapshot) -> None:
    victim = whole.migrations[1]
    bench = Bench()
    first, more = replayed((lost_of(victim, 120, 30),)), replayed((lost_of(victim, 200, 30),))
    for snapshot, records in ((whole, 0), (first, 120), (first, 120), (more, 200)):
        scraped = bench.scrape(snapshot, snapshot.at_ns)
        wanted = {
            ("records", victim.key): records,
            ("bitmap_parts", victim.key): 30,
        }
        assert scraped.all("vm_events_lost_total") == (wanted if records else {})


def test_totals_of_all_ways_to_lose_and_when_they_were_reported() -> None:
    log = LossLog()
    log.report(events.VmLost(10 * SECOND, 0, COLLECTOR, 1, 7, 100, 5, 1))
    log.report(events.Uncounted(20 * SECOND, 0, COLLECTOR, 1, 7, 3))
    # An older total changes nothing.
    log.report(events.VmLost(21 * SECOND, 0, COLLECTOR, 1, 7, 50, 5, 1))
    # The kernel side does not know what the reader dropped.
    log.report(events.Exit(30 * SECOND, 0, 7, 7, 0, 130, 9))
    assert log.total == Loss(130, 10, 3)
    assert log.between(0, 15 * SECOND) == Loss(100, 6, 0)
    assert log.between(15 * SECOND, None) == Loss(30, 4, 3)
    assert log.between(31 * SECOND, None) == Loss()


def test_reports_of_a_vm_that_always_loses_are_bounded() -> None:
    log = LossLog()
    for n in range(1, 3 * MAX_REPORTS):
        log.report(events.VmLost(n * SECOND, 0, COLLECTOR, 1, 7, n, 0, 0))
    assert log.total.records == 3 * MAX_REPORTS - 1
    assert log.between((3 * MAX_REPORTS - 10) * SECOND, None).records == 10
    assert len(log._reports) == MAX_REPORTS


def test_users_whose_vms_are_not_traced_are_named() -> None:
    tracker = Tracker()
    for seq, (uid, count) in enumerate(((1000, 3), (64055, 1), (1000, 40), (1000, 39))):
        tracker.feed(events.Untraced(seq * SECOND, seq, events.COLLECTOR, 1, uid, count))
    snapshot = tracker.snapshot()
    assert Bench().scrape(snapshot, snapshot.at_ns).all("untraced_vms_total") == {
        ("1000",): 40,
        ("64055",): 1,
    }
    assert losses(snapshot) == (
        "40 VMs OF USER 1000 NOT TRACED: no room for more",
        "1 VM OF USER 64055 NOT TRACED: no room for more",
    )
    report = report_json(live_report(HOST, snapshot))
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)
    assert report["hosts"][0]["untraced_vms"] == [
        {"uid": 1000, "count": 40},
        {"uid": 64055, "count": 1},
    ]
