# SPDX-License-Identifier: MIT
"""Measures how long vftrace takes until it is ready, and its memory then.

    sudo .venv/bin/python benchmarks/startup.py [--runs 10] [--command record] [--kept] [TREE...]

Each tree (this one, if none is given) is started in turn, so that a busy machine is busy for all alike: without the
cache of compiled programs, and with what the start before left there. Prints medians: time by the clock and its least,
CPU time of all processes, the compiler's too, and a second later the sums of their resident memory, of their shares of
it (PSS), and of the most that was resident. Python's bytecode is kept, as that of an installed package is.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from processes import tree_of

HERE = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
COMMANDS = {
    "record": ("record", "-o", "{}/x.vft"),
    "serve": ("serve", "--web.listen-address", "127.0.0.1:0"),
}


@dataclass(frozen=True)
class Start:
    """Seconds until ready, and MiB after that."""

    clock: float
    cpu: float
    rss: float
    pss: float
    peak: float


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and of children that it waited for (proc_pid_stat(5), fields 14 to
    17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def mib(pids: list[int], file: str, name: str) -> float:
    """The sum of a line of a file of /proc/PID that has kB."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/{file}").read_text()
        found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
        assert found is not None
        total += int(found[1])
    return total / 1024


def start(tree: Path, command: str, environment: dict[str, str]) -> Start:
    """Start it once. RuntimeError if it does not get ready."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as directory:
        arguments = [word.format(directory) for word in COMMANDS[command]]
        begun = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "vftrace", *arguments],
            cwd=tree,
            env=inherited | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child:
            assert child.stdout is not None
            said = ""
            while (line := child.stdout.readline()) and line.strip() != "ready":
                said += line
            if not line:
                raise RuntimeError(f"{tree}: {said}")
            clock = time.monotonic() - begun
            pids = tree_of(child.pid)
            cpu = sum(cpu_seconds(pid) for pid in pids)
            time.sleep(1)
            found = Start(
                clock,
                cpu,
                mib(pids, "status", "VmRSS"),
                mib(pids, "smaps_rollup", "Pss"),
                mib(pids, "status", "VmHWM"),
            )
            child.send_signal(signal.SIGINT)
            child.stdout.read()
    return found


def main() -> None:
    """Print one line for each tree and kind of start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--command", choices=("record", "serve"), default="record")
    parser.add_argument("--kept", action="store_true", help="only starts from kept programs")
    parser.add_argument("trees", nargs="*", type=Path, default=[HERE])
    args = parser.parse_args()
    taken: dict[tuple[Path, str], list[Start]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as programs:
        ways = {"compiled": {"VFTRACE_NO_CACHE": "1"}, "kept": {"CACHE_DIRECTORY": programs}}
        if args.kept:
            del ways["compiled"]
        for tree in args.trees:
            start(tree, args.command, ways["kept"])
        for _ in range(args.runs):
            for tree in args.trees:
                for way, environment in ways.items():
                    taken[tree, way].append(start(tree, args.command, environment))
    columns = ("clock s", "least", "CPU s", "RSS MiB", "PSS MiB", "peak MiB")
    print(
        f"{f'{args.command}, {args.runs} runs each':36} {'programs':8} {' '.join(f'{c:>8}' for c in columns)}"
    )
    for (tree, way), runs in taken.items():
        clock = [run.clock for run in runs]
        figures = [statistics.median(clock), min(clock)]
        figures += [
            statistics.median(getattr(r, name) for r in runs)
            for name in ("cpu", "rss", "pss", "peak")
        ]
        shown = (
            f"{figure:8.2f}" if i < 3 else f"{figure:8.1f}" for i, figure in enumerate(figures)
        )
        print(f"{tree!s:36} {way:8} {' '.join(shown)}")


if __name__ == "__main__":
    main()
