"""`vftrace record` beside real QEMUs: VMs that ran before it, a start in the middle of a migration."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
        """End it as Ctrl-C does; the report of what it wrote."""
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
        # Said when both QEMUs run and before the migration is asked for; the driver waits for us.
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
    """The beginning is missing and said so; what was seen is right."""
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
    # sizes of slots were told before vftrace came: pages are not guessed
    assert all(r["new_pages"] is None for r in migration["rounds"])
    assert migration["downtime"]["vcpu_ns"] > 0
