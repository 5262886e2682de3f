# SPDX-License-Identifier: MIT
"""What `top` prints where there is no terminal."""

import json

import pytest

from tests.unit.golden_text import RECORDINGS, check, recording
from tests.unit.screens import at
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.model.migration import Snapshot
from vftrace.outputs.report.json import state_json
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.top.lines import changes

SCENARIOS = sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz"))
STEP_NS = 150_000_000


def lines_of(name: str) -> list[str]:
    """The lines, with a snapshot every 150 ms of the recording."""
    tracker, before, lines = Tracker(), None, []
    due_ns = 0
    g = glyphs(ascii=False)
    for event in events_of(Recording(recording(name))):
        tracker.feed(event)
        if event.at_ns >= due_ns:
            due_ns = event.at_ns + STEP_NS
            snapshot: Snapshot = tracker.snapshot()
            lines += changes(before, snapshot, g)
            before = snapshot
    tracker.finish()
    return lines + changes(before, tracker.snapshot(), g)


@pytest.mark.parametrize("name", ["libvirt", "cancel-precopy"])
def test_the_lines_of(name: str) -> None:
    check(f"top-lines-{name}", "\n".join(lines_of(name)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_round_and_every_end_has_one_line(name: str) -> None:
    lines = lines_of(name)
    migrations = at(name, 1e5).snapshot.migrations
    assert sum(": round " in line for line in lines) == sum(len(m.rounds) for m in migrations)
    assert sum("migration begins" in line for line in lines) == len(migrations)
    ends = [line for line in lines if ", after " in line]
    assert len(ends) == len(migrations)
    for migration in migrations:
        assert any(f": {migration.outcome}" in line for line in ends)


def test_nothing_happened_is_no_line() -> None:
    snapshot = at("libvirt", 2.5).snapshot
    assert changes(snapshot, snapshot, glyphs(ascii=False)) == []


def test_the_state_as_json_shows_what_runs() -> None:
    moment = at("libvirt", 3.4)
    state = json.loads(json.dumps(state_json(moment.host, moment.snapshot)))
    assert state["at_ns"] == moment.snapshot.at_ns
    (migration,) = state["migrations"]
    assert migration["outcome"] is None
    assert migration["phase"] == "resume"
    stopped = moment.snapshot.migrations[0].stopped_at_ns
    assert stopped is not None
    assert migration["blackout_ns"] == moment.snapshot.at_ns - stopped
    assert {vm["pid"] for vm in state["vms"]} == {vm.pid for vm in moment.snapshot.vms}
