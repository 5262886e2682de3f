"""How long `vftrace record` takes until it is ready: time by the clock, and CPU time of the process.

    sudo .venv/bin/python benchmarks/startup.py [--runs 10] [TREE...]

Each tree (this one, if none is given) is started in turn, so that a busy machine is busy for all alike: without the
cache of compiled programs, and with what the start before left there. Prints the median and the least of both,
in seconds.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def start(tree: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds by the clock and of CPU until the ready line. RuntimeError if none comes."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "vftrace", "record", "-o", f"{directory}/x.vft", "--force"]
        begun = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=tree,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child:
            assert child.stdout is not None
            said = ""
            while (line := child.stdout.readline()) and line.strip() != "ready":
                said += line
            taken = time.monotonic() - begun, cpu_seconds(child.pid)
            child.send_signal(signal.SIGINT)
            child.stdout.read()
        if not line:
            raise RuntimeError(f"{tree}: {said}")
    return taken


def main() -> None:
    """Print one line for each tree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("trees", nargs="*", type=Path, default=[HERE])
    args = parser.parse_args()
    taken: dict[tuple[Path, str], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as programs:
        ways = {"compiled": {"VFTRACE_NO_CACHE": "1"}, "kept": {"CACHE_DIRECTORY": programs}}
        for tree in args.trees:
            start(tree, ways["kept"])
        for _ in range(args.runs):
            for tree in args.trees:
                for way, environment in ways.items():
                    taken[tree, way].append(start(tree, environment))
    print(f"{'tree':40} {'programs':8} {'clock':>14} {'CPU':>14}   (median, least of {args.runs})")
    for (tree, way), runs in taken.items():
        clock, cpu = zip(*runs, strict=True)
        columns = (f"{statistics.median(x):6.2f} {min(x):6.2f}" for x in (clock, cpu))
        print(f"{tree!s:40} {way:8} {'  '.join(columns)}")


if __name__ == "__main__":
    main()
