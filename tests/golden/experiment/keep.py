# SPDX-License-Identifier: MIT
"""Keep the recordings of a boot of the experiment, compressed, with their truth.

    tests/lab/experiment/run plain bond --runs 1
    .venv/bin/python tests/golden/experiment/keep.py tests/lab/results/experiment/plain-bond NAME

Writes NAME/: a-host.vft.gz and b-host.vft.gz (both hosts, all runs), RUN.vft.gz (the pinger), truth.json.
"""

import argparse
import gzip
import json
import shutil
from collections.abc import Collection
from pathlib import Path

HERE = Path(__file__).parent


def keep(results: Path, into: Path, only: Collection[str] = ()) -> None:
    """Pack what `experiment.table.results_of` reads; with `only`, of those runs."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    truth = json.loads((results / "truth.json").read_text())
    truth["runs"] = [
        run for run in truth["runs"] if "failed" not in run and (not only or run["run"] in only)
    ]
    wanted = {"a-host": results / "a/host.vft", "b-host": results / "b/host.vft"}
    wanted |= {run["run"]: results / f"{run['run']}.vft" for run in truth["runs"]}
    for to, recording in wanted.items():
        with (
            (into / f"{to}.vft.gz").open("wb") as out,
            gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
        ):
            packed.write(recording.read_bytes())
    text = json.dumps(truth, separators=(",", ":"), sort_keys=True)
    (into / "truth.json").write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep a boot of the experiment.")
    parser.add_argument("results", type=Path)
    parser.add_argument("name")
    parser.add_argument("--to", type=Path, default=HERE, metavar="DIR")
    parser.add_argument("--only", nargs="+", default=(), metavar="RUN")
    options = parser.parse_args()
    keep(options.results, options.to / options.name, options.only)
