"""`vftrace record` beside real QEMUs: VMs that ran before it, a start in the middle of a migration."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vftrace.demo.scenarios import Truth, run_scenario


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


def play_and_record_when(
    line: str, tmp_path: Path, scenario: str = "completed-slow"
) -> tuple[Truth, dict[str, Any]]:
    """Play a scenario; start to record once its progress says `line`."""
    reached = threading.Event()
    result: list[Truth] = []

    def progress(text: str) -> None:
        if line in text:
            reached.set()

    def play() -> None:
        try:
            result.append(run_scenario(scenario, tmp_path, progress))
        finally:
            reached.set()

    thread = threading.Thread(target=play)
    thread.start()
    reached.wait(60)
    recorder = Recorder(tmp_path / "trace.vft")
    thread.join()
    return result[0], recorder.stop()


def test_a_vm_that_ran_before(tmp_path: Path) -> None:
    """Started when QEMU was already there: it is known by name, and nothing is missing."""
    truth, report = play_and_record_when("", tmp_path, "pause-before-switchover")
    source = truth.attempts[0].source_pid
    migration = of(report, source)
    assert migration["vm"]["name"] == "demo-pause-before-switchover"
    assert migration["outcome"] == "completed"


def test_started_in_the_middle(tmp_path: Path) -> None:
    """The beginning is missing and said so; what was seen is right."""
    truth, report = play_and_record_when("migrates over", tmp_path)
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
