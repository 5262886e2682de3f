# SPDX-License-Identifier: MIT
"""kill -9 of recorders over migrations of small KVM programs; `python -m tests.crash` kills 200 times."""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import COMMANDS, Load, kill_once

AT_MOST_NS = 400_000_000
"""How long before the kill a recording may end, of two. `tests.crash` measures it: at most 200 ms where vftrace gets a
CPU. Other work on the machine makes one of two late, a recorder that writes too seldom makes both late."""


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return Load.built(tmp_path_factory.mktemp("load"))


@pytest.mark.needs("cc")
@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_recorded_before_a_kill_is_whole(command: str, load: Load, tmp_path: Path) -> None:
    chance = random.Random(command)
    with load:
        kills = [kill_once(command, tmp_path / f"{n}.vft", load, chance, 1.0) for n in range(2)]
    assert all(kill.syncs for kill in kills)
    assert min(kill.lost_ns for kill in kills) < AT_MOST_NS


def _limited(limit: int, value: int) -> "subprocess.CompletedProcess[str]":
    """`vftrace record` for a second under a resource limit."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "vftrace",
            "record",
            "-o",
            os.devnull,
            "--force",
            "--duration",
            "1s",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )


@pytest.mark.parametrize("files", [24, 64, 4096])
def test_too_few_files_are_one_line_or_enough(files: int) -> None:
    done = _limited(resource.RLIMIT_NOFILE, files)
    assert "Traceback" not in done.stderr, done.stderr
    assert "internal error" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("vftrace: ")]
    assert done.returncode == 0 or said, done
    assert files < 4096 or done.returncode == 0, done.stderr


@pytest.mark.parametrize("locked", [0, 64 << 10])
def test_little_locked_memory_is_enough_or_one_line(locked: int) -> None:
    done = _limited(resource.RLIMIT_MEMLOCK, locked)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0 or "vftrace: " in done.stderr
