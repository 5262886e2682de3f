# SPDX-License-Identifier: MIT
"""Measures the cost of being traced: the same loops bare, under vftrace, under bpftrace and under strace.

    .venv/bin/python benchmarks/overhead.py [--rounds N] [--other TREE]

With --other, also under the vftrace of another checkout, which has its own .venv. Interleaved, medians of N rounds,
as nanoseconds a turn and as ratio to bare. Needs root, gcc, /dev/kvm; bpftrace and strace are left out where they
are missing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from tracers import TREE, record, tracer

HERE = Path(__file__).resolve().parent
LOOPS = {"getppid": 1_000_000, "ioctl": 500_000, "clock": 100_000, "exits": 20_000}
STRACE_LOOPS = {"getppid": 20_000, "ioctl": 5_000, "clock": 5_000, "exits": 5_000}

# Counts the ioctls that vftrace sends records for, and keeps the time of each thread's last KVM_RUN.
BPFTRACE = """
tracepoint:syscalls:sys_enter_ioctl { @cmd[tid] = args->cmd; }
tracepoint:syscalls:sys_exit_ioctl /@cmd[tid] == 0xae80/ { @exit[tid] = nsecs; }
tracepoint:syscalls:sys_exit_ioctl /@cmd[tid] == 0x8030ae7c/ { @clock = count(); }
"""


def loop(binary: Path, name: str, count: int, prefix: list[str]) -> float:
    """Nanoseconds a turn."""
    return float(subprocess.check_output([*prefix, str(binary), name, str(count)], text=True))


def main() -> None:
    """Measure and print a table, then the raw figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--other", type=Path, help="another checkout of vftrace, measured as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "loops"
        subprocess.run(["gcc", "-O2", "-o", str(binary), str(HERE / "loops.c")], check=True)
        ways = {
            "bare": (nullcontext, [], LOOPS),
            "vftrace": (lambda: record(TREE, directory), [], LOOPS),
        }
        if args.other:
            ways["other"] = (lambda: record(args.other, directory), [], LOOPS)
        if shutil.which("bpftrace"):
            ways["bpftrace"] = (
                lambda: tracer(["bpftrace", "-e", BPFTRACE], "Attaching"), [], LOOPS
            )  # fmt: skip
        if shutil.which("strace"):
            strace = ["strace", "-f", "-e", "trace=ioctl", "-o", "/dev/null"]
            ways["strace"] = (nullcontext, strace, STRACE_LOOPS)
        figures: dict[str, dict[str, list[float]]] = {w: {n: [] for n in LOOPS} for w in ways}
        for _ in range(args.rounds):
            for way, (around, prefix, counts) in ways.items():
                with around():
                    time.sleep(0.3)
                    for name, count in counts.items():
                        figures[way][name].append(loop(binary, name, count, prefix))
    print(f"{'ns a turn':10}" + "".join(f"{way:>20}" for way in ways))
    for name in LOOPS:
        bare = statistics.median(figures["bare"][name])
        cells = [statistics.median(figures[way][name]) for way in ways]
        print(f"{name:10}" + "".join(f"{c:12.0f} ({c / bare:4.1f}x)" for c in cells))
    print(json.dumps({"kernel": os.uname().release, "rounds": args.rounds, "ns": figures}))


if __name__ == "__main__":
    main()
