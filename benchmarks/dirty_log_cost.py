# SPDX-License-Identifier: MIT
"""Measures the cost of counting dirty pages: KVM_GET_DIRTY_LOG bare, under vftrace, and under a bpftrace script.

    .venv/bin/python benchmarks/dirty_log_cost.py [--rounds N] [--gib 1 8 64 256] [--json FILE] [--other TREE]

Real ioctls on memory slots of benchmarks/kvmslots.py, each size in a process of its own, bare and traced in
turn; medians of all calls of a round, and of the rounds. `idle`: no page dirty, the bitmap in the CPU's
caches; `cold`: idle, after 32 MiB of other memory were written; `half`: every second page dirty. The
bpftrace script counts calls and their time: it cannot count pages, because bpftrace has no way to walk
megabytes of a user-space bitmap. With --other, also under the vftrace of another checkout, which has its own
.venv. Needs root and /dev/kvm; bpftrace is left out where it is missing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tracers import TREE, record, tracer

HERE = Path(__file__).resolve().parent
STATES = ("idle", "cold", "half")
CALLS = {1: 200, 8: 100, 64: 40}
FEW_CALLS = 16

BPFTRACE = """
tracepoint:syscalls:sys_enter_ioctl /args->cmd == 0x4010ae42/ { @enter[tid] = nsecs; }
tracepoint:syscalls:sys_exit_ioctl /@enter[tid]/ {
  @calls = count(); @ns = hist(nsecs - @enter[tid]); delete(@enter[tid]);
}
END { clear(@enter); }
"""

Times = dict[str, list[float]]


def measure(gib: int) -> dict[str, float]:
    """Median ns of a call in each state, in a new process."""
    calls = CALLS.get(gib, FEW_CALLS)
    command = [sys.executable, str(HERE / "kvmslots.py"), "time", "--gib", str(gib)]
    answer = subprocess.run(
        [*command, "--calls", str(calls)], check=True, capture_output=True, text=True
    )
    times = json.loads(answer.stdout)
    return {state: statistics.median(times[state]) for state in STATES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--other", type=Path, help="another checkout of vftrace, measured as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tracers: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "bare": lambda: nullcontext(),
            "vftrace": lambda: record(TREE, directory),
        }
        if args.other:
            tracers["other"] = lambda: record(args.other, directory)
        if shutil.which("bpftrace"):
            tracers["bpftrace"] = lambda: tracer(["bpftrace", "-e", BPFTRACE], "Attaching")
        found: dict[str, dict[int, Times]] = {
            name: {gib: {state: [] for state in STATES} for gib in args.gib} for name in tracers
        }
        for number in range(args.rounds):
            for name, start in tracers.items():
                print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
                with start():
                    if name == "bpftrace":
                        time.sleep(1)  # it says "Attaching" before it has
                    for gib in args.gib:
                        for state, ns in measure(gib).items():
                            found[name][gib][state].append(ns)
    show(found, args.gib)
    if args.json:
        args.json.write_text(json.dumps({"load": os.getloadavg(), "median_ns": found}, indent=1))


def show(found: dict[str, dict[int, Times]], sizes: list[int]) -> None:
    """A table in Markdown: microseconds, spread of the rounds, and the added time as a ratio to bare."""
    others = [name for name in found if name not in ("bare", "vftrace")]
    print(
        "| slot | state | bare, µs (min to max) | vftrace, µs | added | added, µs/GiB |"
        + "".join(f" {name}, µs |" for name in others)
    )
    print("|---|---|---|---|---|---|" + "---|" * len(others))
    for gib in sizes:
        for state in STATES:
            bare, traced = found["bare"][gib][state], found["vftrace"][gib][state]
            middle = statistics.median(bare)
            # Rounds are pairs: what else runs on the machine then weighs on both.
            added = statistics.median(t - b for b, t in zip(bare, traced, strict=True))
            beside = [statistics.median(found[name][gib][state]) / 1e3 for name in others]
            print(
                f"| {gib} GiB | {state} | {middle / 1e3:.0f} ({min(bare) / 1e3:.0f} to {max(bare) / 1e3:.0f}) "
                f"| {statistics.median(traced) / 1e3:.0f} | ×{added / middle:.2f} "
                f"| {added / 1e3 / gib:.2f} |" + "".join(f" {ns:.0f} |" for ns in beside)
            )


if __name__ == "__main__":
    main()
