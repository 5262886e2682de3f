# SPDX-License-Identifier: MIT
"""Runs the tests of golden recordings on new recordings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from vftlab.common import TREE

GOLDEN = TREE / "tests/golden"
NOISE_MS = "30"
"""How long the emulated processors may be stopped between a driver's reading of the clock and the tracer's."""


def keep(program: str, *arguments: str) -> None:
    """Pack results with one of tests/golden's keep.py. CalledProcessError if it fails."""
    subprocess.run([sys.executable, str(GOLDEN / program), *arguments], check=True)


def check(
    module: str,
    variable: str,
    recordings: Path,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a test module of tests/golden on the recordings in a directory, which it is told by `variable`; `more`
    of its variables. AssertionError with its output unless it passes, and if there is no recording to pass."""
    # Without a recording a module skips all but what needs none, and passes.
    assert any(recordings.rglob("*truth.json")), f"{module}: nothing was recorded in {recordings}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(GOLDEN / module)],
        env=os.environ | {variable: str(recordings)} | dict(more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def check_lab(results: Path, name: str, directory: Path) -> None:
    """Pack a boot's recording into a directory, and ask of it what the golden recordings of the lab pass."""
    keep("lab/keep.py", str(results), name, str(directory))
    check(
        "test_lab_recordings.py",
        "VFTRACE_LAB_RECORDINGS",
        directory,
        {"VFTRACE_LAB_NOISE_MS": NOISE_MS},
    )
