# SPDX-License-Identifier: MIT
"""Keep the results of a lab run as a golden recording with its truth.

    VFTRACE=1 tests/lab/run 6.12 JOB... --results DIR
    .venv/bin/python tests/golden/lab/keep.py DIR NAME [TO]

Writes NAME.vft.gz (one recording of all jobs) and NAME.truth.json (the truth of each job). With a recording of its own
for each job (VFTRACE=each), NAME-JOB of each.
"""

import gzip
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
KEPT = (
    *("iommufd-", "late-unplug", "outage-", "plain", "plug-after", "requests", "steer-"),
    *("unplug", "vfio-"),
)
"""The prefixes of the jobs that test_lab_recordings.py checks."""


def keep(results: Path, name: str, directory: Path = HERE) -> None:
    """Pack the recording; only jobs that reached their goal are kept."""
    codes = json.loads((results / ".lab/codes").read_text())
    truths = {
        job: json.loads((results / job / "truth.json").read_text())
        for job, code in codes.items()
        if code == 0 and job.startswith(KEPT)
    }
    if (results / "recording.vft").exists():
        _pack(results / "recording.vft", truths, directory / name)
        return
    for job, truth in truths.items():
        _pack(results / job / "recording.vft", {job: truth}, directory / f"{name}-{job}")


def _pack(recording: Path, truths: dict[str, object], to: Path) -> None:
    with (
        to.with_name(f"{to.name}.vft.gz").open("wb") as out,
        gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
    ):
        packed.write(recording.read_bytes())
    text = json.dumps(truths, separators=(",", ":"), sort_keys=True)
    to.with_name(f"{to.name}.truth.json").write_text(text + "\n")


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
