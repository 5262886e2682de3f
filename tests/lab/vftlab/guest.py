"""Runs one job inside the emulated machine; started by guest/labinit."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

TREE = Path("/src")
RESULTS = Path("/results")


def _script(path: Path, arguments: list[str]) -> int:
    return subprocess.run([str(path), *arguments], check=False).returncode


def main() -> int:
    job = os.environ["LAB_JOB"]
    arguments = shlex.split(os.environ.get("LAB_ARGUMENTS", ""))
    if "/" in job:
        return _script(TREE / job, arguments)
    from jobs import JOBS

    from vftlab.job import EXIT_CANNOT_HERE, CannotHere, Failed, Job, traced

    try:
        with traced(RESULTS):
            JOBS[job](Job(job, RESULTS, tuple(arguments)))
    except CannotHere as reason:
        print(f"job {job}: not on this kernel: {reason}", flush=True)
        return EXIT_CANNOT_HERE
    except Failed as failure:
        print(f"job {job}: {failure}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
