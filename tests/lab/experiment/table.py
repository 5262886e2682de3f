# SPDX-License-Identifier: MIT
"""Prints the results as a table: vftrace's joined report beside QEMU's figures and the pinger's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vftlab.common import TREE, LabError

from experiment.cases import CASES
from experiment.conduct import CLOCK_ERROR

MS = 1_000_000
COLUMNS = (
    *("way", "run", "strategy", "QEMU: total s", "QEMU: downtime ms", "blackout ms", "set by"),
    *("VF absent s", "longest gap s", "× QEMU's", "seen", "where the gap went, ms"),
)


@dataclass(frozen=True)
class Result:
    """One run: what is known without vftrace, and its migration in vftrace's report."""

    truth: dict[str, Any]
    migration: dict[str, Any]

    @property
    def gap(self) -> dict[str, Any]:
        found: dict[str, Any] | None = self.migration["downtime"]["gap"]
        if found is None:
            raise LabError(f"{self.truth['run']}: the report has no gap")
        return found


def report(recordings: Iterable[Path], *more: str) -> bytes:
    """What `vftrace report` makes of the recordings."""
    command = [sys.executable, "-m", "vftrace", "report", "--clock-error", CLOCK_ERROR, *more]
    done = subprocess.run(
        [*command, *map(str, recordings)],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(TREE)},
    )
    if done.returncode:
        raise LabError(f"vftrace report: {done.stderr.decode().strip()}")
    return done.stdout


def results_of(directory: Path) -> list[Result]:
    """Every run of one boot that was completed. Recordings may be compressed.

    Raises LabError where a run's migration is not one stitched migration in the report.
    """
    truths = json.loads((directory / "truth.json").read_text())["runs"]
    truths = [truth for truth in truths if "failed" not in truth]
    hosts = [_recording(directory, name) for name in ("a/host", "b/host")]
    pings = [_recording(directory, truth["run"]) for truth in truths]
    migrations = json.loads(report([*hosts, *pings], "--format", "json"))["migrations"]
    return [Result(truth, _migration_of(truth, migrations)) for truth in truths]


def _recording(directory: Path, name: str) -> Path:
    plain = directory / f"{name}.vft"
    return plain if plain.exists() else directory / f"{name.replace('/', '-')}.vft.gz"


def _migration_of(truth: dict[str, Any], migrations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ends = (truth["source"]["pid"], truth["destination"]["pid"])
    found = [
        m
        for m in migrations
        if (m["vm"]["pid"], m["peer_pid"]) == ends and m["peer_host"] == f"host-{truth['to']}"
    ]
    if len(found) != 1:
        raise LabError(f"{truth['run']}: {len(found)} stitched migrations, not one")
    return found[0]


def length_ns(span: dict[str, Any]) -> int:
    """Of a span of a gap, as the report's JSON has it."""
    return int(span["end_at_ns"] - span["start_at_ns"])


def row(result: Result) -> str:
    """One run as a line of the table."""
    truth, m, gap = result.truth, result.migration, result.gap
    figures = truth["migration"]["query_migrate"]
    downtime = m["downtime"]
    spans: dict[str, int] = {}
    for span in gap["spans"]:
        spans[span["name"]] = spans.get(span["name"], 0) + length_ns(span)
    away = [device["ns"] for device in downtime["devices"] if device["ns"] is not None]
    cells = (
        CASES[truth["case"]].title,
        f"{truth['run'].rpartition('-')[2]}, {truth['from']} → {truth['to']}",
        m["strategy"],
        f"{figures['total-time'] / 1000:.1f}",
        str(figures["downtime"]),
        f"{downtime['vcpu_ns'] / MS:.0f} ± {downtime['uncertainty_ns'] / MS:.0f}",
        downtime["set_by"] or "-",
        f"{max(away) / 1e9:.1f}" if away else "-",
        f"{gap['ns'] / 1e9:.2f}",
        f"{gap['ns'] / MS / figures['downtime']:.1f}",
        _seen(gap),
        ", ".join(f"{name} {ns / MS:.0f}" for name, ns in spans.items()),
    )
    return "| " + " | ".join(cells) + " |"


def _seen(gap: dict[str, Any]) -> str:
    """By the hosts, and what the pinger adds."""
    pinger_ns = sum(length_ns(span) for span in gap["spans"] if span["seen_on"] == "pinger")
    shares = [f"{100 * ns / gap['ns']:.0f}" for ns in (gap["explained_ns"], pinger_ns)]
    return f"{' + '.join(shares if pinger_ns else shares[:1])} %"


def in_order(results: Iterable[Result]) -> list[Result]:
    """As CASES has them."""
    order = list(CASES)
    return sorted(results, key=lambda r: (order.index(r.truth["case"]), r.truth["run"]))


def table(results: Iterable[Result]) -> list[str]:
    """A line for each run."""
    return ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(row, results)]


def pictures(directory: Path) -> None:
    """The report of a boot for people and for ui.perfetto.dev, beside its recordings."""
    recordings = [*(directory / f"{host}/host.vft" for host in "ab"), *directory.glob("*.vft")]
    for name, form in (
        ("report.html", "html"),
        ("report.perfetto", "perfetto"),
        ("report.txt", "text"),
    ):
        report(recordings, "--format", form, "-o", str(directory / name))
