"""`tests/lab/experiment/run`: the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vftlab.build import ensure
from vftlab.common import LAB, LabError, Progress

from experiment.cases import CASES
from experiment.conduct import conduct

KERNEL = "6.12"
RESULTS = LAB / "results/experiment"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/lab/experiment/run",
        description="Move a guest with a virtual function between two emulated hosts, while it is pinged.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="of each case (default: 3)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    progress = Progress()
    try:
        built = ensure([KERNEL], progress)[KERNEL]
        names = options.cases or list(CASES)
        where = options.results.resolve() / ("-".join(names) if options.cases else "all")
        conduct([CASES[name] for name in names], options.runs, where, built, progress)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("lab: stopped", file=sys.stderr)
        return 130
    return 0
