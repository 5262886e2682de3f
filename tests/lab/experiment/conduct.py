"""Moves the guest: one boot of both hosts, each case as many times as wanted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vftlab.build import Built
from vftlab.common import TREE, LabError, Progress
from vftlab.hosts import Host, Pair, both, two_hosts
from vftlab.machine import die_with_parent

from experiment.cases import CASES, GUEST, Case

SCRIPT = "tests/lab/experiment/agent"
INTERVAL_MS = 50
BEFORE_S = 3.0
AFTER_S = 3.0
ANSWERS_S = 90.0
ONE_SECOND = ("-q", "-c", "5", "-i", "0.2", "-W", "1")
CLOCK_ERROR = "1us"
"""Of the third point's wall clock: the hosts' follow it, so to them it is the right one."""


@dataclass(frozen=True)
class Run:
    """Where a run's recordings are, and how the report is made of them."""

    case: Case
    number: int
    results: Path

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.number}"

    @property
    def uuid(self) -> str:
        return (
            f"6c616200-0000-4000-8000-{list(CASES).index(self.case.name) + 1:04x}{self.number:08x}"
        )

    @property
    def ping(self) -> Path:
        return self.results / f"{self.name}.vft"

    @property
    def recordings(self) -> tuple[Path, Path, Path]:
        return self.results / "a/host.vft", self.results / "b/host.vft", self.ping


def conduct(
    cases: Sequence[Case], runs: int, results: Path, built: Built, progress: Progress
) -> list[Run]:
    """Boot, and move the guest `runs` times in each way. What is known without vftrace is in truth.json.

    `results` is emptied first; recordings are there (see Run). Raises LabError if a host fails.
    """
    shutil.rmtree(results, ignore_errors=True)
    done: list[Run] = []
    truths = []
    with two_hosts(built, results, SCRIPT) as pair:
        hosts = [pair.a, pair.b]
        facts = dict(zip("ab", both(lambda host: host.call("prepare"), hosts), strict=True))
        progress.say("both hosts are up")
        took = both(lambda host: host.call("record"), hosts)
        progress.say(f"vftrace is ready on both, after {max(took):.0f} s")
        for case in cases:
            for number in range(1, runs + 1):
                run = Run(case, number, results)
                truth = _run(run, pair, built, progress)
                truths.append({"run": run.name, "case": case.name, "uuid": run.uuid, **truth})
                done.append(run)
        both(lambda host: host.call("stop_recording"), hosts)
    whole = {"schema": 1, "interval_ms": INTERVAL_MS, "hosts": facts, "runs": truths}
    (results / "truth.json").write_text(json.dumps(whole, indent=1) + "\n")
    return done


def _run(run: Run, pair: Pair, built: Built, progress: Progress) -> dict[str, Any]:
    source, destination = pair.a, pair.b
    start: dict[str, Any] = {"case": run.case.name, "run": run.name, "uuid": run.uuid}
    source.call("start", incoming=False, **start)
    source.call("booted", lines=2 if "bond" in run.case.options else 1)
    destination.call("start", incoming=True, **start)
    try:
        with pinger(pair, run.ping):
            _until_it_answers(pair, built)
            time.sleep(BEFORE_S)
            said = _move(run.case, source, destination)
            # Only then is the gap over, however long.
            _until_it_answers(pair, built)
            time.sleep(AFTER_S)
    finally:
        ends = both(lambda host: host.call("end"), [source, destination])
    figures = said["migration"]["query_migrate"]
    progress.say(
        f"{run.name}: {figures['status']}, QEMU's downtime {figures.get('downtime', '-')} ms"
    )
    return {**said, "source": ends[0], "destination": ends[1]}


def _move(case: Case, source: Host, destination: Host) -> dict[str, Any]:
    """The migration, and what somebody does around it."""
    if not case.unplug:
        return {"migration": source.call("migrate", to=destination.name)}
    plugged: dict[str, Any] = {}
    waiting = threading.Thread(
        target=lambda: plugged.update(destination.call("plug_when_running")), daemon=True
    )
    waiting.start()
    unplug = source.call("unplug")
    migration = source.call("migrate", to=destination.name)
    waiting.join()
    if not plugged:
        raise LabError(f"host {destination.name} did not get its VF")
    return {"unplug": unplug, "migration": migration, "plug": plugged}


@contextlib.contextmanager
def pinger(pair: Pair, recording: Path) -> Iterator[None]:
    """`vftrace ping` at the third point, recorded."""
    command = pair.third.command(
        *(sys.executable, "-m", "vftrace", "ping", GUEST, "--interval", f"{INTERVAL_MS}ms"),
        *("--format", "json", "--record", recording),
    )
    log = recording.with_suffix(".json")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(TREE)},
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
    try:
        yield
        process.send_signal(signal.SIGINT)
        if process.wait(30) != 0:
            raise LabError(f"the pinger failed: {log.read_text().strip()}")
    finally:
        process.kill()
        process.wait()


def _until_it_answers(pair: Pair, built: Built) -> None:
    """Until the guest answers five pings in a row."""
    busybox = built.root.tree / "usr/bin/busybox"
    command = pair.third.command(busybox, "ping", *ONE_SECOND, GUEST)
    end = time.monotonic() + ANSWERS_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if " 5 packets received" in done.stdout:
            return
        if time.monotonic() > end:
            raise LabError(f"the guest does not answer: {done.stdout.strip()[-200:]}")
        time.sleep(0.2)
