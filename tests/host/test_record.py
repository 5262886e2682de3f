# SPDX-License-Identifier: MIT
"""`vftrace record` beside real QEMUs: VMs that ran before it, a start in the middle of a migration."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vftrace.collect.recording import Recording
from vftrace.demo import guest
from vftrace.demo.scenarios import FIRST_PAGE, MIB, Run, Scenario, play_scenario, run_scenario


class Recorder:
    """`vftrace record` in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vftrace", "record", "-o", str(path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        if self._process.stderr.readline() != "ready\n":
            pytest.fail(f"vftrace record did not start: {self._process.stderr.read()}")

    def stop(self) -> dict[str, Any]:
        """End the recorder as Ctrl-C does; returns the report of its recording."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(20) == 0
        report = subprocess.check_output(
            [sys.executable, "-m", "vftrace", "report", "--format", "json", str(self.path)]
        )
        parsed: dict[str, Any] = json.loads(report)
        return parsed


def of(report: dict[str, Any], pid: int) -> dict[str, Any]:
    """The one migration of this source."""
    found: list[dict[str, Any]] = [m for m in report["migrations"] if m["vm"]["pid"] == pid]
    assert len(found) == 1, report["migrations"]
    return found[0]


def test_a_vm_that_ran_before(tmp_path: Path) -> None:
    """Started when QEMU was already there: it is known by name, and nothing is missing."""
    recorders: list[Recorder] = []

    def progress(text: str) -> None:
        # Printed when both QEMUs run, before the migration is requested; the driver waits for this thread.
        if "migrates over" in text:
            recorders.append(Recorder(tmp_path / "trace.vft"))

    truth = run_scenario("completed-fast", tmp_path, progress)
    report = recorders[0].stop()
    attempt = truth.attempts[0]
    migration = of(report, attempt.source_pid)
    assert migration["vm"]["name"] == "demo-completed-fast"
    assert migration["outcome"] == "completed"
    assert migration["role"] == "stitched"
    assert not migration["missed_beginning"]
    assert not migration["incomplete"]
    passes = [e for e in truth.events if e.name == "MIGRATION_PASS" and e.pid == attempt.source_pid]
    assert len(migration["rounds"]) == len(passes)


def test_started_in_the_middle(tmp_path: Path) -> None:
    """The report marks the missing beginning; all its figures are right."""
    recorders: list[Recorder] = []

    async def migrate(run: Run) -> None:
        """Too fast a guest for the channel, until vftrace is ready."""
        source = await run.source(run.firmware(guest.fixed(FIRST_PAGE, 3072, 4000)))
        destination = await run.destination(source)
        migration = await run.migrate(source, destination, bandwidth=8 * MIB, downtime_ms=20)
        await migration.dirty_sync(2)
        recorders.append(Recorder(tmp_path / "trace.vft"))
        await source.qemu.command_qmp(
            "migrate-set-parameters", **{"max-bandwidth": 256 * MIB, "downtime-limit": 300}
        )
        await run.arrived(migration)
        await run.send_signal(signal.SIGTERM, source)
        await run.send_signal(signal.SIGTERM, destination)

    scenario = Scenario("late-start", "vftrace starts in the middle", migrate)
    truth = asyncio.run(play_scenario(scenario, tmp_path, lambda _: None))
    report = recorders[0].stop()
    attempt = truth.attempts[0]
    migration = of(report, attempt.source_pid)
    assert migration["missed_beginning"]
    assert migration["outcome"] == "completed"
    assert migration["role"] == "stitched"
    assert attempt.source is not None
    assert 0 < len(migration["rounds"]) < (attempt.source.dirty_sync_count or 0)
    # slots were set before vftrace started: their sizes are not known, and pages are not guessed
    assert all(r["new_pages"] is None for r in migration["rounds"])
    assert migration["downtime"]["vcpu_ns"] > 0


def test_only_one_vm_of_two(tmp_path: Path) -> None:
    """Both migrate while `record --vm` runs; the one that was named starts after it, and its figures are QEMU's."""
    path = tmp_path / "one.vft"
    process = subprocess.Popen(
        [sys.executable, "-m", "vftrace", "record", "-o", str(path), "--vm", "demo-mine"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"

    async def migrate(run: Run) -> None:
        source = await run.source(run.firmware(guest.fixed(FIRST_PAGE, 512, 400)))
        destination = await run.destination(source)
        migration = await run.migrate(source, destination, bandwidth=64 * MIB, downtime_ms=300)
        await run.arrived(migration)
        await run.send_signal(signal.SIGTERM, source)
        await run.send_signal(signal.SIGTERM, destination)

    async def both() -> list[Any]:
        return await asyncio.gather(
            *(
                play_scenario(
                    Scenario(name, "one of two", migrate), tmp_path / name, lambda _: None
                )
                for name in ("mine", "another")
            )
        )

    for name in ("mine", "another"):
        (tmp_path / name).mkdir()
    mine, another = asyncio.run(both())
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    said = process.stderr.read()
    assert "no VM matches 'demo-mine' yet" in said or "no VM" not in said
    report = json.loads(
        subprocess.check_output(
            [sys.executable, "-m", "vftrace", "report", "--format", "json", str(path)]
        )
    )
    (migration,) = report["migrations"]
    assert migration["vm"]["pid"] == mine.attempts[0].source_pid
    assert migration["peer_pid"] == mine.attempts[0].destination_pid
    assert migration["outcome"] == "completed"
    assert not migration["incomplete"]
    assert len(migration["rounds"]) == mine.attempts[0].source.dirty_sync_count
    others = {another.attempts[0].source_pid, another.attempts[0].destination_pid}
    dumped = subprocess.check_output(
        [sys.executable, "-m", "vftrace", "dump", "--json", str(path)], text=True
    )
    for line in map(json.loads, dumped.splitlines()):
        assert line["tgid"] not in others
        assert line.get("pid") not in others
    assert "demo-another" not in dumped


def test_to_a_pipe_and_ended_by_a_hangup(tmp_path: Path) -> None:
    """The reader of the pipe gets a complete recording; the hangup of the terminal ends it in order."""
    path = tmp_path / "piped.vft"
    with path.open("wb") as pipe:
        process = subprocess.Popen(
            [sys.executable, "-m", "vftrace", "record", "-o", "-"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            # nohup(1) around the tests would have it ignored
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    recording = Recording(path)
    assert list(recording)
    assert recording.not_whole is None
