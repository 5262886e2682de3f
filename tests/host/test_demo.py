# SPDX-License-Identifier: MIT
"""`vftrace demo` and `vftrace doctor` as a person runs them, without a terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

VFTRACE = [sys.executable, "-m", "vftrace"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VFTRACE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_migration_ends_in_the_report_beside_qemus_figures(tmp_path: Path) -> None:
    done = run("demo", "--scenario", "completed-fast", "--keep", str(tmp_path / "kept.vft"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^downtime .* set by ", done.stdout, re.MULTILINE)
    rounds = re.search(r"^ *rounds +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
    assert rounds is not None, done.stdout
    assert rounds[1] == rounds[2]
    assert "\x1b" not in done.stdout
    report = run("report", str(tmp_path / "kept.vft"))
    assert report.returncode == 0
    assert "completed" in report.stdout


def test_what_is_no_migration_is_none() -> None:
    done = run("demo", "--scenario", "stop-cont")
    assert done.returncode == 0, done.stderr
    assert "This scenario starts no migration" in done.stdout


def test_without_qemu_a_real_recording_is_replayed(tmp_path: Path) -> None:
    done = run("demo", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "QEMU is not installed" in done.stderr
    assert "apt-get install qemu-system-x86" in done.stderr
    assert "set by held" in done.stdout


def test_an_unknown_scenario_is_one_line() -> None:
    done = run("demo", "--scenario", "nonsense")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--list" in done.stderr


def test_doctor_shows_how_each_probe_is_attached() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for probe in ("ioctl", "channel", "process", "dirty-ring"):
        assert re.search(
            rf"^ok +probe {probe} +(fentry|kprobe|tracepoint):", done.stdout, re.MULTILINE
        )


def test_doctor_on_a_way_this_kernel_lacks() -> None:
    """Where kprobes are missing, forcing them fails with the reason; where they are there, it works."""
    done = run("doctor", "--way", "kprobe")
    kprobes = Path("/sys/bus/event_source/devices/kprobe/type").exists()
    assert done.returncode == (0 if kprobes else 3)
    if not kprobes:
        assert "without kprobes" in done.stdout
