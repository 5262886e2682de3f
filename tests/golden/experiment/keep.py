"""Keep the recordings of a boot of the experiment, compressed, with their truth.

    tests/lab/experiment/run plain bond --runs 1
    .venv/bin/python tests/golden/experiment/keep.py tests/lab/results/experiment/plain-bond NAME [TO]

Writes NAME/: a-host.vft.gz and b-host.vft.gz (both hosts, all runs), RUN.vft.gz (the pinger), truth.json.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def keep(results: Path, name: str, directory: Path = HERE) -> None:
    """Pack what `experiment.table.results_of` reads."""
    into = directory / name
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    truth = json.loads((results / "truth.json").read_text())
    truth["runs"] = [run for run in truth["runs"] if "failed" not in run]
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
    keep(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
