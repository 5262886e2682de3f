# SPDX-License-Identifier: MIT
"""`vftrace top` on a real migration: its figures beside QEMU's own, and its picture on a terminal."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vftrace.demo.scenarios import run_scenario

END_SECONDS = 30


@contextmanager
def top(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`vftrace top` that is attached; killed in the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vftrace", "top", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_json_agrees_with_qemu_and_with_its_own_recording(tmp_path: Path) -> None:
    recording = tmp_path / "top.vft"
    with top("--json", "--record", str(recording)) as process:
        truth = run_scenario("completed-fast", tmp_path, lambda line: None)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=END_SECONDS)
    assert (process.returncode, err) == (0, "")
    documents = [json.loads(line) for line in out.splitlines()]
    (attempt,) = truth.attempts
    assert attempt.source is not None
    own = [m for m in documents[-1]["migrations"] if m["vm"]["pid"] == attempt.source_pid]
    (migration,) = own
    assert migration["outcome"] == attempt.source.status == "completed"
    assert migration["peer_pid"] == attempt.destination_pid
    assert len(migration["rounds"]) == attempt.source.dirty_sync_count
    # It was seen while it ran, not only in the end.
    running = [m for d in documents for m in d["migrations"] if m["outcome"] is None]
    assert "precopy" in {m["phase"] for m in running}

    report = subprocess.run(
        [sys.executable, "-m", "vftrace", "report", str(recording), "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=END_SECONDS,
    )
    recorded = json.loads(report.stdout)["migrations"]
    live = {k: v for k, v in migration.items() if k not in ("phase", "blackout_ns")}
    assert live in recorded


def test_lines_tell_the_story(tmp_path: Path) -> None:
    with top() as process:
        truth = run_scenario("cancel-precopy", tmp_path, lambda line: None)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 0
    (attempt,) = truth.attempts
    lines = out.splitlines()
    assert any(f"migration begins: source pid {attempt.source_pid}" in line for line in lines)
    assert any(": cancelled" in line for line in lines)


def test_once_finds_what_runs_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vftrace", "top", "--once"],
        capture_output=True,
        text=True,
        check=False,
        timeout=END_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vftrace top")
