# SPDX-License-Identifier: MIT
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
    """Where a run's recordings are, and how the report is made of them. Odd ones go from a to b, even ones back."""

    case: Case
    number: int
    results: Path

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.number}"

    @property
    def recordings(self) -> tuple[Path, Path, Path]:
        """Of both hosts, which hold all runs of the boot, and of the pinger."""
        return self.results / "a/host.vft", self.results / "b/host.vft", self.ping

    @property
    def ping(self) -> Path:
        return self.results / f"{self.name}.vft"


def uuid_of(case: Case, guest: int) -> str:
    """The UUID of the case's guest of that number."""
    return f"6c616200-0000-4000-8000-{list(CASES).index(case.name) + 1:04x}{guest:08x}"


def conduct(
    cases: Sequence[Case], runs: int, results: Path, built: Built, progress: Progress
) -> list[Run]:
    """Boot, and move a guest `runs` times in each way, there and back. Returns the runs that were completed.

    `results` is emptied first; recordings are there (see Run), and truth.json, which says what is known without
    vftrace. Raises LabError if the hosts fail; a failed run is reported, and another guest takes over.
    """
    shutil.rmtree(results, ignore_errors=True)
    done: list[Run] = []
    with two_hosts(built, results, SCRIPT) as pair:
        hosts = [pair.a, pair.b]
        facts = dict(zip("ab", both(lambda host: host.call("prepare"), hosts), strict=True))
        progress.say("both hosts are up")
        took = both(lambda host: host.call("record"), hosts)
        progress.say(f"vftrace is ready on both, after {max(took):.0f} s")
        whole: dict[str, Any] = {"schema": 1, "interval_ms": INTERVAL_MS, "hosts": facts}
        whole["runs"] = truths = []
        for case in cases:
            traveller = Traveller(case, pair, built, progress)
            for number in range(1, runs + 1):
                run = Run(case, number, results)
                truth: dict[str, Any] = {"run": run.name, "case": case.name}
                try:
                    truth |= one_run(traveller, run)
                    done.append(run)
                except LabError as failure:
                    progress.say(f"{run.name} FAILED: {failure}")
                    truth["failed"] = str(failure)
                    traveller.leave()
                truths.append(truth)
                (results / "truth.json").write_text(json.dumps(whole, indent=1) + "\n")
            traveller.leave()
        both(lambda host: host.call("stop_recording"), hosts)
    return done


class Traveller:
    """A guest that goes to and fro. `at`: the host it is on, None while there is none."""

    def __init__(self, case: Case, pair: Pair, built: Built, progress: Progress) -> None:
        self.case = case
        self.pair = pair
        self.built = built
        self.progress = progress
        self.at: Host | None = None
        self.guests = 0

    @property
    def uuid(self) -> str:
        return uuid_of(self.case, self.guests)

    def arrive(self, run: Run) -> tuple[Host, Host]:
        """Have the guest run on one host and the other one wait for it: the source and the destination."""
        if self.at is None:
            self.at = self.pair.a
            self.guests += 1
            self._start(self.at, run, incoming=False)
            self.at.call("booted", lines=2 if "bond" in self.case.options else 1)
            if self.case.has_vf:
                self.at.call("linked")
        to = self.pair.b if self.at is self.pair.a else self.pair.a
        self._start(to, run, incoming=True)
        return self.at, to

    def _start(self, host: Host, run: Run, *, incoming: bool) -> None:
        host.call("start", case=self.case.name, run=run.name, uuid=self.uuid, incoming=incoming)

    def leave(self) -> None:
        """End the guest wherever it is."""
        both(lambda host: host.call("end"), [self.pair.a, self.pair.b])
        self.at = None


def one_run(traveller: Traveller, run: Run) -> dict[str, Any]:
    """Move the guest once while it is pinged; returns QEMU's figures."""
    pair, built = traveller.pair, traveller.built
    source, destination = traveller.arrive(run)
    with pinger(pair, run.ping):
        _until_it_answers(pair, built)
        time.sleep(BEFORE_S)
        said = _move(run.case, source, destination)
        if run.case.has_vf:
            destination.call("linked")
        # Only then is the gap over, however long.
        _until_it_answers(pair, built)
        time.sleep(AFTER_S)
    told = {"source": source.call("end"), "destination": destination.call("told")}
    traveller.at = destination
    figures = said["migration"]["query_migrate"]
    traveller.progress.say(
        f"{run.name}: {figures['status']}, QEMU's downtime {figures.get('downtime', '-')} ms"
    )
    if figures["status"] != "completed":
        raise LabError(f"the migration {figures['status']}: {figures.get('error-desc', '')}")
    where = {"uuid": traveller.uuid, "from": source.name, "to": destination.name}
    return {**where, **said, **told}


def _move(case: Case, source: Host, destination: Host) -> dict[str, Any]:
    """Run the migration and the steps around it."""
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
