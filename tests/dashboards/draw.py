# SPDX-License-Identifier: MIT
"""The board viewer from Python: Grafana's UI libraries draw a board's JSON in a headless browser.

`viewer/` has the page and the program that drives the browser, `build` makes them.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BOARDS = HERE.parents[1] / "dashboards" / "grafana"

Board = dict[str, Any]
Report = dict[str, Any]
"""What src/main.jsx reports of a board, with `script_errors`."""


@dataclass(frozen=True)
class Drawing:
    """A board to draw: its variables, the range in Unix seconds, and where a picture goes."""

    board: Board
    start: float
    end: float
    variables: Mapping[str, str] = field(default_factory=dict)
    png: Path | None = None


def board_named(uid: str) -> Board:
    """The committed board."""
    found: Board = json.loads((BOARDS / f"{uid}.json").read_text())
    return found


def build() -> Path:
    """Build the missing parts of the viewer; returns its directory."""
    done = subprocess.run([HERE / "build"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def draw(
    viewer: Path, prometheus: str, drawings: Sequence[Drawing], scrape_ms: int = 500
) -> list[Report]:
    """Draw all boards in one browser. Raises CalledProcessError without a browser."""
    job = {
        "prometheus": prometheus,
        "scrape": scrape_ms,
        "chromium": shutil.which("chromium"),
        "boards": [
            {
                "board": drawing.board,
                "variables": drawing.variables,
                "from": round(drawing.start * 1000),
                "to": round(drawing.end * 1000),
                "png": None if drawing.png is None else str(drawing.png),
            }
            for drawing in drawings
        ],
    }
    done = subprocess.run(
        ["node", viewer / "drive.mjs"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    reports: list[Report] = json.loads(done.stdout)
    return reports


def faults_of(report: Report, may_be_empty: Mapping[str, str]) -> list[str]:
    """Return the faults of a drawn board. `may_be_empty`: panels that may have no data, with the reason."""
    faults = [f"script: {error}" for error in report["script_errors"]]
    faults += [f"query: {error}" for error in report["errors"]]
    if not report["panels"]:
        faults.append("no panels")
    for panel in report["panels"]:
        name = panel["title"]
        if panel["error"] is not None:
            faults.append(f"{name}: {panel['error']}")
        elif panel["values"] == 0 and name not in may_be_empty:
            faults.append(f"{name}: no data")
        elif panel["values"] > 0 and name in may_be_empty:
            faults.append(f"{name}: has data, and need not be excused")
        elif panel["values"] > 0 and panel["ink"] == 0 and len(panel["text"]) <= len(name):
            faults.append(f"{name}: has data and draws nothing")
        if "" in panel["series"]:
            faults.append(f"{name}: a series without a name")
        faults += [f"{name}: its title is clipped" for _ in panel["clipped"]]
    for variable in report["variables"]:
        if variable["error"] is not None or not variable["value"]:
            faults.append(
                f"variable {variable['name']}: {variable['error'] or 'nothing to choose'}"
            )
    for annotation in report["annotations"]:
        if annotation["error"] is not None or not annotation["times"]:
            faults.append(f"annotation {annotation['name']}: {annotation['error'] or 'none'}")
    return faults


def unknown_units(board: Board, report: Report) -> set[str]:
    """Units that Grafana does not know; `suffix:` and its like make their own."""
    own = re.compile(r"(suffix|prefix|time|si|count|currency|bool):.")
    used = {
        unit
        for panel in board["panels"]
        if panel["type"] != "row"
        for unit in (
            panel["fieldConfig"]["defaults"].get("unit"),
            *(
                found["value"]
                for override in panel["fieldConfig"]["overrides"]
                for found in override["properties"]
                if found["id"] == "unit"
            ),
        )
    }
    return {unit for unit in used if unit not in report["units"] and not own.match(unit or "")}
