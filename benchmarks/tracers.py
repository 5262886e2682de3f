# SPDX-License-Identifier: MIT
"""Runs a tracer beside what a benchmark measures."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent


@contextmanager
def tracer(command: list[str], ready: str) -> Iterator[None]:
    """Run a tracer, from its ready line on. Exits with its last words if it does not start."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=TREE)
        try:
            deadline = time.monotonic() + 60
            said = ""
            while ready not in said:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{command[0]} did not start: {said.strip()[-500:]}")
                time.sleep(0.05)
                out.seek(0)
                said = out.read()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def record(tree: Path, directory: str) -> AbstractContextManager[None]:
    """Run the `vftrace record` of a checkout, into a new file: earlier versions do not write over one."""
    file = f"{directory}/{time.monotonic_ns()}.vft"
    return tracer([f"{tree}/.venv/bin/vftrace", "record", "-o", file], "ready")
