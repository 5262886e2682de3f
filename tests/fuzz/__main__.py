"""Damaged recordings through every output: `python -m tests.fuzz --seconds 60 [--seed N] [--keep DIRECTORY]`.

Prints one line for each new kind of fault and keeps its recording; exits with 1 if there was one.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Campaign


def main() -> int:
    """Run until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-found"), help="where finds are kept"
    )
    args = parser.parse_args()
    campaign = Campaign(args.keep)
    print(f"seed {args.seed}, {len(campaign.inputs)} recordings", flush=True)
    end, seed = time.monotonic() + args.seconds, args.seed
    while time.monotonic() < end:
        for fault in campaign.run(seed):
            print(f"seed {seed}: {fault.output}: {fault.place}\n{fault.what}", flush=True)
        seed += 1
    print(
        f"{seed - args.seed} recordings, {len(campaign.places)} kinds of faults, {campaign.slowest}"
    )
    return 1 if campaign.places else 0


if __name__ == "__main__":
    sys.exit(main())
