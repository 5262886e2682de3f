# SPDX-License-Identifier: MIT
"""Feeds damaged input to every reader: `python -m tests.fuzz --seconds 60 [--target T] [--seed N]`.

Runs every target, or the named ones, in turn for `--seconds` each. Prints one line for each new kind of fault and
keeps its input; exits with 1 if there was one. `--tally FILE` adds the numbers of inputs to those in a file.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.inputs import Inputs
from tests.fuzz.targets import TARGETS

RECORDINGS = "recordings"


def main() -> int:
    """Run until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**6)
    parser.add_argument("--target", action="append", choices=(RECORDINGS, *TARGETS))
    parser.add_argument("--tally", type=Path, metavar="FILE")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-found"), help="where finds are kept"
    )
    args = parser.parse_args()
    tally: dict[str, int] = {}
    kinds = 0
    for name in args.target or (RECORDINGS, *TARGETS):
        if name == RECORDINGS:
            tally[name], found = _recordings(args.seconds, args.seed, args.keep)
        else:
            tally[name], found = _inputs(name, args.seconds, args.seed, args.keep)
        kinds += found
    if args.tally is not None:
        _add(args.tally, tally)
    return 1 if kinds else 0


def _recordings(seconds: float, seed: int, keep: Path) -> tuple[int, int]:
    """Whole recordings through every output; returns how many, and how many kinds of faults."""
    campaign = Campaign(keep)
    end, first = time.monotonic() + seconds, seed
    while time.monotonic() < end:
        for fault in campaign.run(seed):
            print(f"seed {seed}: {fault.output}: {fault.place}\n{fault.what}", flush=True)
        seed += 1
    print(
        f"{RECORDINGS}: {seed - first} from seed {first}, {len(campaign.places)} kinds of faults,"
        f" {campaign.slowest}",
        flush=True,
    )
    return seed - first, len(campaign.places)


def _inputs(name: str, seconds: float, seed: int, keep: Path) -> tuple[int, int]:
    """One target's inputs; returns how many, and how many kinds of faults."""
    inputs = Inputs(TARGETS[name])
    end, first = time.monotonic() + seconds, seed
    while time.monotonic() < end:
        for fault in inputs.run(seed):
            print(f"{name}, seed {seed}: {fault.place}\n{fault.what}", flush=True)
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{seed}.txt").write_text(fault.what, errors="replace")
        seed += 1
    print(
        f"{name}: {inputs.count} from seed {first}, {len(inputs.places)} kinds of faults",
        flush=True,
    )
    return inputs.count, len(inputs.places)


def _add(path: Path, tally: dict[str, int]) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    names = sorted({*before, *tally})
    path.write_text(json.dumps({name: before.get(name, 0) + tally.get(name, 0) for name in names}))


if __name__ == "__main__":
    sys.exit(main())
