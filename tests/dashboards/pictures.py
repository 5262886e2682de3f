# SPDX-License-Identifier: MIT
"""The pictures of docs/boards: the four boards, drawn from a real Prometheus with real recordings.

    python -m tests.dashboards.pictures [DIRECTORY]      three minutes; docs/boards if no other is named

Each recording plays as it was (`--speed 1`), on hosts of their own, so that times on the boards are those of
the runs.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tests.dashboards.draw import Drawing, board_named, build, draw, faults_of
from tests.dashboards.prom import GOLDEN, ROOT, RULES, Play, Series, Stage
from vftrace.units import parse_duration

SCRAPE = "1s"
LAB_VM = "6c616200-0000-4000-8000-000000000001"

LAB = {"lab-1": GOLDEN / "lab" / "6.12-fentry.vft.gz"}
# The lab has one VM only, which is on both of its hosts here.
CHOSEN = {"vftrace-migration": {"vm": LAB_VM, "instance": "lab-1"}}
MAILBOX = {"lab-2": GOLDEN / "mailbox" / "6.12.vft.gz"}
RECORDINGS = GOLDEN / "recordings"
# What the demo's hosts play one after the other: (second, recording).
DEMO: Mapping[str, tuple[tuple[float, str], ...]] = {
    "hv-1": ((6, "libvirt"), (46, "completed-slow"), (100, "dirty-ring")),
    "hv-2": ((20, "four-at-once"), (70, "pause-before-switchover"), (118, "postcopy")),
    "hv-3": ((34, "cancel-precopy"), (60, "graphics"), (110, "there-and-back")),
    "hv-4": ((14, "multifd"), (52, "dest-killed-blackout"), (86, "xbzrle")),
}
MAILBOX_AT = 24.0
LAB_SECONDS = 142.0


def start_seconds(stage: Stage) -> float:
    """How long a host takes from its start to its first event here."""
    began = time.monotonic()
    stage.play(next(iter(DEMO)), Play(RECORDINGS / "boot.vft.gz"))
    stage.wait_ready(next(iter(DEMO)))
    passed = time.monotonic() - began
    stage.end(next(iter(DEMO)))
    return passed


def play(stage: Stage) -> float:
    """Play everything; returns the mailbox's beginning, Unix time."""
    plays = [(0.0, name, path) for name, path in LAB.items()]
    plays += [(MAILBOX_AT, name, path) for name, path in MAILBOX.items()]
    plays += [
        (second, host, RECORDINGS / f"{name}.vft.gz")
        for host, parts in DEMO.items()
        for second, name in parts
    ]
    start = start_seconds(stage)
    running: set[str] = set()
    mailbox = 0.0
    began = time.monotonic()
    for second, host, path in sorted(plays):
        time.sleep(max(0.0, began + second - time.monotonic()))
        if host in running:
            stage.end(host)
        stage.play(host, Play(path), start)
        running.add(host)
        if host in MAILBOX:
            mailbox = time.time()
    time.sleep(max(0.0, began + LAB_SECONDS - time.monotonic()))
    return mailbox


def best(active: list[Series], forecasts: list[Series]) -> tuple[float, float]:
    """Return the time with most forecasts among times without a gap."""
    times = sorted(at for one in active for at, _ in one.points)
    edges = [i for i, (a, b) in enumerate(pairwise(times), 1) if b - a > 1.5]
    runs = [times[a:b] for a, b in pairwise([0, *edges, len(times)])]
    known = [at for one in forecasts for at, _ in one.points]
    run = max(runs, key=lambda run: sum(run[0] <= at <= run[-1] for at in known))
    return run[0], run[-1]


def main(arguments: list[str]) -> int:
    """Make them."""
    directory = Path(arguments[0]) if arguments else ROOT / "docs" / "boards"
    directory.mkdir(parents=True, exist_ok=True)
    viewer = build()
    with tempfile.TemporaryDirectory() as scratch:
        instances = (*LAB, *MAILBOX, *DEMO)
        with Stage(Path(scratch), instances, (RULES,), SCRAPE) as stage:
            began = time.time()
            mailbox = play(stage)
            end = time.time()
            vm = f'vm="{LAB_VM}", instance="lab-1"'
            first, last = best(
                stage.query_range(f"max(vftrace_migration_active{{{vm}}}) == 1", began, end),
                stage.query_range(f"vftrace_forecast_downtime_seconds{{{vm}}}", began, end),
            )
            ranges = {
                "vftrace-fleet": (began, end),
                "vftrace-migration": (first - 3.7, last + 5.3),
                "vftrace-vf": (mailbox - 2, mailbox + 48),
                "vftrace-self": (began, end),
            }
            drawings = [
                Drawing(
                    board_named(uid),
                    *span,
                    CHOSEN.get(uid, {}),
                    directory / f"{uid.removeprefix('vftrace-')}.png",
                )
                for uid, span in ranges.items()
            ]
            reports = draw(viewer, stage.url, drawings, round(parse_duration(SCRAPE) / 1e6))
    faults = [f"{report['uid']}: {fault}" for report in reports for fault in faults_of(report, {})]
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
