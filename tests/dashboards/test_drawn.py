# SPDX-License-Identifier: MIT
"""The boards as Grafana's UI libraries draw them, from a real Prometheus that scrapes replays of real runs.

What this does not show: that a Grafana server imports them (docs/how-to/prometheus-and-grafana.md).
"""

import copy
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.draw import (
    BOARDS,
    Board,
    Drawing,
    Report,
    board_named,
    build,
    draw,
    faults_of,
    unknown_units,
)
from tests.dashboards.prom import GOLDEN, Play, Stage

pytestmark = pytest.mark.needs("prometheus", "node", "npm", "chromium")

UIDS = tuple(sorted(path.stem for path in BOARDS.glob("*.json")))

PLAYS = {
    "alpha": Play(GOLDEN / "recordings" / "four-at-once.vft.gz", 0.25),
    "delta": Play(GOLDEN / "recordings" / "dest-killed-precopy.vft.gz", 0.25),
    "echo": Play(GOLDEN / "lab" / "6.1.vft.gz"),
    "foxtrot": Play(GOLDEN / "mailbox" / "6.12.vft.gz", 1),
}
LAB_VM = "6c616200-0000-4000-8000-000000000001"
CHOSEN = {"vftrace-migration": {"vm": LAB_VM, "instance": "echo"}}
"""The lab has one VM only; foxtrot has it too."""
LAB_MIGRATIONS = 4
PLAY_SECONDS = 120

MAY_BE_EMPTY: Mapping[str, Mapping[str, str]] = {
    **{uid: {} for uid in UIDS},
    "vftrace-migration": dict.fromkeys(
        ("Guest speed", "vCPU time by state"),
        "the lab's recording is older than the probes of vCPUs; tests/dashboards/test_expressions.py plays a newer one",
    ),
    "vftrace-self": {
        "Lateness": "a replay has no reader process that could be late",
        "Lost by VM": "nothing is lost in these recordings",
    },
}
"""Panels that may have no data, with the reason."""

SHOWS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vftrace-fleet": {
        "Ended, by outcome": ("completed", "failed"),
        "Migrations under way": ("precopy",),
        "What sets the downtime": ("devices-loaded", "ms"),
        "Last migrations": ("demo-dest-killed-precopy", "failed", "destination-ended", "delta"),
        "Worst VMs": ("demo-four-at-once-3", "source", LAB_VM, "Latest set by", "Device downtime"),
    },
    "vftrace-migration": {
        "Passed-through devices": ("RUNNING", "RESUMING", "STOP"),
        "Blackouts, stacked by checkpoint": ("state-saved", "devices-loaded", "vcpus-running"),
        "Dirtied and sent": ("sent", "iB/s"),
        "Rounds over time": ("rounds",),
    },
    "vftrace-self": {
        "Probes": ("ioctl", "fentry", "tracepoint"),
        "Events by probe": ("ioctl", "mailbox", "/s"),
        "Answers": ("up",),
        "Kernel tables full": ("alpha",),
        "Versions": ("6.12",),
    },
    "vftrace-vf": {
        "Answers of PFs, by result": ("ACK", "NACK"),
        "Device states": ("RUNNING", "RESUMING"),
        "Each VF": ("0000:01:00.0", "foxtrot"),
        "Requests by kind": ("SET_MAC_ADDR",),
    },
}
"""Texts that have to stand on panels."""


class Scene:
    """A Prometheus that has scraped everything, and the viewer."""

    def __init__(self, stage: Stage, viewer: Path) -> None:
        self._stage = stage
        self._viewer = viewer
        self._span = stage.began, time.time()

    def draw(self, *boards: Board) -> list[Report]:
        """All boards in one browser."""
        return draw(
            self._viewer,
            self._stage.url,
            [Drawing(board, *self._span, CHOSEN.get(board["uid"], {})) for board in boards],
            scrape_ms=1000,
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    viewer = build()
    with Stage(tmp_path_factory.mktemp("stage"), tuple(PLAYS), scrape="1s") as stage:
        for name, play in PLAYS.items():
            stage.play(name, play)
        counted = 'sum(vftrace_migrations_total{instance="echo"})'
        stage.wait(f"{counted} >= {LAB_MIGRATIONS}", PLAY_SECONDS)
        yield Scene(stage, viewer)


@pytest.fixture(scope="module")
def reports(scene: Scene) -> dict[str, Report]:
    return {report["uid"]: report for report in scene.draw(*map(board_named, UIDS))}


@pytest.mark.parametrize("uid", UIDS)
def test_a_board_is_drawn_without_a_fault(uid: str, reports: dict[str, Report]) -> None:
    assert faults_of(reports[uid], MAY_BE_EMPTY[uid]) == []
    drawn = {panel["id"] for panel in reports[uid]["panels"]}
    assert drawn == {p["id"] for p in board_named(uid)["panels"] if p["type"] != "row"}


@pytest.mark.parametrize("uid", UIDS)
def test_grafana_knows_the_units(uid: str, reports: dict[str, Report]) -> None:
    assert unknown_units(board_named(uid), reports[uid]) == set()


@pytest.mark.parametrize("uid", UIDS)
def test_a_board_shows_what_was_played(uid: str, reports: dict[str, Report]) -> None:
    texts = {panel["title"]: panel["text"] for panel in reports[uid]["panels"]}
    missing = [
        f"{title}: {word}"
        for title, words in SHOWS[uid].items()
        for word in words
        if word not in texts[title]
    ]
    assert missing == [], texts


def test_the_vm_is_chosen_by_its_name(reports: dict[str, Report]) -> None:
    variables = {v["name"]: v for v in reports["vftrace-migration"]["variables"]}
    assert variables["vm"]["value"] == LAB_VM
    named = {f"{name}  {LAB_VM[:8]}" for name in ("source", "destination")}
    assert variables["vm"]["text"] in named
    assert set(variables["vm"]["options"]) <= named


def test_stops_and_resumes_lie_in_the_range(reports: dict[str, Report], scene: Scene) -> None:
    """Between two resumes of the lab's guest it has stopped, or it could not resume."""
    stops, resumes = (sorted(a["times"]) for a in reports["vftrace-migration"]["annotations"])
    assert len(resumes) >= LAB_MIGRATIONS - 1
    for before, resume in pairwise([0, *resumes]):
        assert any(before < stop < resume for stop in stops), (stops, resumes)
    phases = next(p for p in reports["vftrace-migration"]["panels"] if p["title"] == "Phases")
    assert phases["annotations"] == len(stops) + len(resumes)


# -- the viewer itself: it has to find faults ------------------------------------------------------


def faulty() -> tuple[Board, dict[str, str]]:
    """The fleet's board with a fault in some panels, and the expected report."""
    board = copy.deepcopy(board_named("vftrace-fleet"))
    panels: dict[str, Any] = {panel["title"]: panel for panel in board["panels"]}

    def target(title: str) -> Any:
        return panels[title]["targets"][0]

    target("Ended")["expr"] = "sum("
    target("Failed")["expr"] = "vftrace_migrations_totl"
    target("Completed")["expr"] = 'up{job=~"$nobody"}'
    panels["Median downtime"]["type"] = "piechart"
    panels["Distribution of downtime"]["options"]["color"]["scheme"] = "Nope"
    panels["Ended, by strategy"]["fieldConfig"]["defaults"]["unit"] = "furlongs"
    target("Ended, by outcome")["legendFormat"] = "{{nothing}}"
    board["annotations"]["list"][0]["expr"] = "1000 * ("
    board["templating"]["list"][2]["query"]["query"] = "label_values(vftrace_bild_info, instance)"
    return board, {
        "Ended: ": "parse error",
        "Failed: ": "no data",
        "query: $nobody": "is not a variable",
        "Median downtime: ": "piechart is not supported",
        "script: ": "is not a function",
        "Ended, by outcome: ": "without a name",
        "annotation Guest stops": "none",
        "query: 1000": "parse error",
    }


def test_the_viewer_sees_faults(scene: Scene) -> None:
    board, says = faulty()
    (report,) = scene.draw(board)
    faults = faults_of(report, {})
    for begin, inside in says.items():
        assert any(f.startswith(begin) and inside in f for f in faults), (begin, faults)
    assert unknown_units(board, report) == {"furlongs"}
    assert not [fault for fault in faults if fault.startswith("Worst VMs")]


def test_the_viewer_sees_a_panel_that_was_excused_for_nothing(reports: dict[str, Report]) -> None:
    excused = {**MAY_BE_EMPTY["vftrace-self"], "Probes": "no reason"}
    assert faults_of(reports["vftrace-self"], excused) == [
        "Probes: has data, and need not be excused"
    ]
