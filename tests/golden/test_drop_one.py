# SPDX-License-Identifier: MIT
"""A model test of loss: without any one of its events a golden run gives the same figures, or fewer, or is
marked as incomplete; it never gives other figures without a mark."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from vftrace.analysis.process import BURST_NS
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, Event, Uncounted
from vftrace.model.host import HostInfo
from vftrace.model.report import live_report
from vftrace.outputs.report.json import report_json

RECORDINGS = Path(__file__).parent / "recordings"
HOST = HostInfo("host", "boot", "kernel", "0", 0, ())

# One of each kind: bitmap, cancel, failure, held by libvirt's cont, paused, ring, two attempts in a row,
# and a display whose logging must not turn into a migration.
RUNS = (
    "boot",
    "cancel-pre-switchover",
    "cancel-precopy",
    "completed-fast",
    "dest-killed-blackout",
    "dest-killed-precopy",
    "dirty-ring",
    "display-only",
    "retry",
    "file-resumed",
    "libvirt",
    "no-uuid",
    "paused-before",
    "postcopy",
    "savevm",
    "source-killed-precopy",
    "there-and-back",
)


@cache
def _events(name: str) -> tuple[Event, ...]:
    return tuple(events_of(Recording(RECORDINGS / f"{name}.vft.gz")))


def _result(tracker: Tracker, rest: tuple[Event, ...]) -> list[dict[str, Any]]:
    for event in rest:
        tracker.feed(event)
    tracker.finish()
    migrations: list[dict[str, Any]] = report_json(live_report(HOST, tracker.snapshot()))[
        "migrations"
    ]
    return migrations


def _positions(events: tuple[Event, ...], of_a_kind: int) -> set[int]:
    """Of each kind of event about so many, evenly spread, and the last: all of the rare ones."""
    by_kind: dict[type[Event], list[int]] = {}
    for i, event in enumerate(events):
        by_kind.setdefault(type(event), []).append(i)
    places: set[int] = set()
    for found in by_kind.values():
        places.update(found[:: max(1, len(found) // of_a_kind)], found[-1:])
    return places


def _trackers(name: str, of_a_kind: int) -> Iterator[tuple[int, Tracker]]:
    """Places in a run, each with a tracker that has seen what comes before it (fed once and copied)."""
    events = _events(name)
    positions = _positions(events, of_a_kind)
    before = Tracker()
    for i, event in enumerate(events):
        if i in positions:
            yield i, copy.deepcopy(before)
        before.feed(event)


def _without_one(name: str) -> Iterator[tuple[Event, list[dict[str, Any]]]]:
    events = _events(name)
    for i, tracker in _trackers(name, 12):
        yield events[i], _result(tracker, events[i + 1 :])


def _with_one_twice(name: str) -> Iterator[tuple[Event, list[dict[str, Any]]]]:
    events = _events(name)
    for i, tracker in _trackers(name, 5):
        yield events[i], _result(tracker, (events[i], *events[i:]))


def _whole(name: str) -> list[dict[str, Any]]:
    return _result(Tracker(), _events(name))


def _differences(whole: Any, got: Any, path: str = "") -> Iterator[str]:
    """Leaves of `got` that say something else than the same leaf of `whole`: null and absent do not."""
    if isinstance(got, dict) and isinstance(whole, dict):
        for name, value in got.items():
            yield from _differences(whole.get(name), value, f"{path}.{name}")
    elif isinstance(got, list) and isinstance(whole, list):
        for i, value in enumerate(got):
            yield from _differences(whole[i] if i < len(whole) else None, value, f"{path}[{i}]")
    elif got is not None and got != whole:
        yield f"{path}: {got!r}, not {whole!r}"


def _unsaid(whole: list[dict[str, Any]], got: list[dict[str, Any]]) -> list[str]:
    """What is different without being marked."""
    by_source = {(m["vm"]["pid"], m["attempt"]): m for m in whole}
    found: list[str] = []
    for migration in got:
        if not migration["incomplete"]:
            expected = by_source.get((migration["vm"]["pid"], migration["attempt"]))
            found += ["one too many"] if expected is None else _differences(expected, migration)
    if len(got) < len(whole):
        found.append("one too few")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_without_any_one_event(name: str) -> None:
    whole = _whole(name)
    checked = ((event, _unsaid(whole, got)) for event, got in _without_one(name))
    assert [(event, found) for event, found in checked if found] == []


@pytest.mark.parametrize("name", ["boot", "display-only", "savevm"])
def test_a_loss_makes_no_migration_of_display_code(name: str) -> None:
    """One lost record must not make a graphics guest look as if it migrated for ever."""
    assert [event for event, got in _without_one(name) if got] == []


@pytest.mark.parametrize("name", RUNS)
def test_with_any_one_event_twice(name: str) -> None:
    whole = _whole(name)
    assert [event for event, got in _with_one_twice(name) if got != whole] == []


def test_what_began_later_is_whole_again() -> None:
    """There and back: what is lost of the guest's first migration, or before it, does not mark its second one,
    which has a process of its own that has long been there."""
    whole = _whole("there-and-back")
    began = whole[1]["started_at_ns"]
    pid = whole[1]["vm"]["pid"]
    early = {
        e.seq for e in _events("there-and-back") if e.tgid == pid and e.at_ns < began - BURST_NS
    }
    found = [
        (event, [m for m in got if m["vm"]["pid"] == pid])
        for event, got in _without_one("there-and-back")
        # what shows that one is missing is the next
        if event.tgid == pid and event.seq + 1 in early
    ]
    assert len(found) > 10
    for event, later in found:
        assert later == whole[1:], event


def test_fds_that_are_not_counted_are_reported() -> None:
    """A VMM with more fds than are counted: a migration meanwhile is marked, one that begins later is not."""
    whole = _whole("retry")
    first, second = whole
    tracker = Tracker()
    told = 0
    for event in _events("retry"):
        if event.tgid == COLLECTOR:
            if not told and event.at_ns > first["started_at_ns"]:
                head = (event.at_ns, event.seq, COLLECTOR, event.tid)
                tracker.feed(Uncounted(*head, pid=first["vm"]["pid"], count=9))
                told = 1
            event = structs.replace(event, seq=event.seq + told)
        tracker.feed(event)
    got = _result(tracker, ())
    assert [m["incomplete"] for m in got] == [True, False]
    assert got[1] == second


def test_a_loss_that_matters_is_found_at_all() -> None:
    """The comparison is not blind: without marks, the loss of a sweep would be a difference."""
    whole = _whole("completed-fast")
    got = [result for _, result in _without_one("completed-fast")]
    marked = sum(any(m["incomplete"] for m in result) for result in got)
    changed = sum(any(_differences(whole, [{**m, "incomplete": False} for m in r])) for r in got)
    assert marked > changed > 10
