# SPDX-License-Identifier: MIT
"""Runs jobs inside the emulated machine; started by guest/labinit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

from vftlab.job import EXIT_CANNOT_HERE, CannotHereError, Job, JobError, say, traced
from vftlab.service import traced_by_service

TREE = Path("/src")
RESULTS = Path("/results")
# $VFTRACE: one recording of all jobs, or one of each.
ALL, EACH = "1", "each"


def _run(name: str) -> int:
    """Run one job with its own directory of results; its exit code."""
    from jobs import JOBS

    from vftlab.devices import remove_all

    results = RESULTS / name
    results.mkdir(exist_ok=True)
    say(f"== {name}")
    try:
        try:
            with traced(results, EACH):
                JOBS[name](Job(name, results))
        finally:
            remove_all()
    except CannotHereError as reason:
        say(f"{name}: not on this kernel: {reason}")
        return EXIT_CANNOT_HERE
    except JobError as failure:
        say(f"{name} FAILED: {failure}")
        return 1
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


def main() -> int:
    """Run $LAB_JOBS, one after the other. The exit code is the worst of theirs, 0 if none failed."""
    if script := os.environ.get("LAB_SCRIPT"):
        arguments = shlex.split(os.environ.get("LAB_ARGUMENTS", ""))
        return subprocess.run([str(TREE / script), *arguments], check=False).returncode
    names = os.environ["LAB_JOBS"].split()
    try:
        with traced_by_service(RESULTS), traced(RESULTS, ALL):
            codes = {name: _run(name) for name in names}
    except JobError as failure:
        say(f"FAILED: {failure}")
        return 1
    (RESULTS / ".lab/codes").write_text(json.dumps(codes))
    failed = [code for code in codes.values() if code not in (0, EXIT_CANNOT_HERE)]
    if failed:
        return max(failed)
    return EXIT_CANNOT_HERE if set(codes.values()) == {EXIT_CANNOT_HERE} else 0


if __name__ == "__main__":
    sys.exit(main())
