# SPDX-License-Identifier: MIT
"""`tests/lab/experiment/run`: the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vftlab.build import ensure
from vftlab.common import LAB, TREE, LabError, Progress

from experiment.cases import CASES
from experiment.conduct import conduct
from experiment.picture import svg
from experiment.table import in_order, pictures, results_of, table

KERNEL = "6.12"
RESULTS = LAB / "results/experiment"
DOCUMENT = TREE / "docs/results/experiment.md"
PICTURE = DOCUMENT.with_suffix(".svg")
BEGIN, END = "<!-- table: tests/lab/experiment/run --write -->", "<!-- end of table -->"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/lab/experiment/run",
        description="Move a guest with a virtual function between two emulated hosts, while it is pinged.",
        epilog=f"Cases: {', '.join(CASES)}; all of them where none is named. Each boot's results are in a"
        " directory of their own: recordings, truth.json, reports.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="of each case (default: 3)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument(
        "--write", action="store_true", help=f"put all results into {DOCUMENT.relative_to(TREE)}"
    )
    parser.add_argument("--no-run", action="store_true", help="only look at results that are there")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    results = options.results.resolve()
    progress = Progress()
    try:
        if not options.no_run:
            _run(options.cases, options.runs, results, progress)
        found = [
            r for boot in sorted(results.glob("*/truth.json")) for r in results_of(boot.parent)
        ]
        found = in_order(found)
        lines = table(found)
        print("\n".join(lines))
        if options.write:
            _write(lines)
            PICTURE.write_text(svg(found))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("lab: stopped", file=sys.stderr)
        return 130
    return 0


def _run(cases: Sequence[str], runs: int, results: Path, progress: Progress) -> None:
    built = ensure([KERNEL], progress)[KERNEL]
    where = results / ("-".join(cases) or "all")
    wanted = [case for name, case in CASES.items() if not cases or name in cases]
    done = conduct(wanted, runs, where, built, progress)
    if len(done) < runs * len(wanted):
        progress.say(f"{runs * len(wanted) - len(done)} runs failed, see {where}/truth.json")
    pictures(where)


def _write(lines: Sequence[str]) -> None:
    """The table's place in the document, written anew."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise LabError(f"{DOCUMENT} has no place for the table")
    DOCUMENT.write_text("\n".join((before + BEGIN, "", *lines, "", END)) + after)
