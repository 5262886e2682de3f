"""What the golden recordings pass, asked of recordings made just now."""

from __future__ import annotations

import os
import subprocess
import sys

from vftlab.common import TREE

GOLDEN = TREE / "tests/golden"


def keep(program: str, *arguments: str) -> None:
    """Pack results with one of tests/golden's keep.py. CalledProcessError if it fails."""
    subprocess.run([sys.executable, str(GOLDEN / program), *arguments], check=True)


def check(module: str, environment: dict[str, str]) -> None:
    """Run a test module of tests/golden; AssertionError with its output unless it passes."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(GOLDEN / module)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
