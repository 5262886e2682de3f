# SPDX-License-Identifier: MIT
"""Keep the mailbox jobs of a lab run as a golden recording with their truths.

    VFTRACE=1 VFTRACE_OPTIONS='--profile /src/docs/profiles/assisted-ixgbe.toml' \
        tests/lab/run 6.12 mailbox-igb mailbox-ixgbe mailbox-i40e mailbox-ice mailbox-assisted \
        mailbox-held --results DIR
    .venv/bin/python tests/golden/mailbox/keep.py DIR NAME [TO]

Writes NAME.vft.gz (one recording of all jobs) and NAME-JOB.truth.json.
"""

import gzip
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
JOBS = ("igb", "ixgbe", "i40e", "ice", "assisted", "held")


def keep(results: Path, name: str, directory: Path = HERE) -> None:
    """Pack the recording, and the truths of jobs that reached their goal."""
    codes = json.loads((results / ".lab/codes").read_text())
    for job in JOBS:
        if codes.get(f"mailbox-{job}") == 0:
            truth = json.loads((results / f"mailbox-{job}/truth.json").read_text())
            text = json.dumps(truth, separators=(",", ":"))
            (directory / f"{name}-{job}.truth.json").write_text(text + "\n")
    with (
        (directory / f"{name}.vft.gz").open("wb") as out,
        gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
    ):
        packed.write((results / "recording.vft").read_bytes())


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
