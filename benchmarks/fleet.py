# SPDX-License-Identifier: MIT
"""Measures the cost of tracing a full host: many VMs that migrate at once, and idle VMs beside them.

    sudo .venv/bin/python benchmarks/fleet.py [--migrating 200] [--idle 1000] [--seconds 30] [COMMAND...]
    sudo .venv/bin/python benchmarks/fleet.py --idle-cost [--idle 1000] [--tree OTHER] [COMMAND...]

The VMs are processes that make KVM's requests (fleet.c), so a small machine can hold them. Each migrating VM has a
destination on this host, another such process, and both keep times of stop and first run. For each COMMAND (`record`,
`serve`, `flight`: serve with a flight recorder) prints the tracer's CPU time in percent of one core while all VMs are
idle, in the three seconds in which all begin, and from then to the end (/proc/PID/stat), and what it has seen:
migrations, those whose figures differ from what the VM says of itself, records lost. `serve` is scraped every
`--scrape` seconds; `--busy N` keeps the CPUs busy with N processes that do nothing else.

`--idle-cost` prints what one idle VM costs the tracer: the CPU time with so many of them beside that without any, in
microseconds a second for each VM, in turn for the other tree (if there is one) and this one.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import tree_of

HERE = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
IDLE_S, BEGIN_S, SCRAPE_S = 10, 3, 15
CONTROL_GROUPS = Path("/sys/fs/cgroup/cpu")
SLOW_SCRAPE_S, OLD_S = 0.25, 2.0
NEAR_NS = 1_000_000
CLOCKS_NS = 1000
"""A metric in seconds has less digits than its time in ns."""
NICE = -5  # that of vftrace.service


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and all that descend from it (proc_pid_stat(5), fields 14 and 15)."""
    total = 0
    for process in tree_of(pid):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def percent(pid: int, seconds: float) -> float:
    """CPU time in the next so many seconds, in percent of one core."""
    before, begun = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(pid) - before) / (time.monotonic() - begun)


def build(directory: Path) -> Path:
    """Compile fleet.c."""
    program = directory / "fleet"
    source = HERE / "benchmarks" / "fleet.c"
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    return program


@contextmanager
def control_groups() -> Iterator[tuple[Path, Path]]:
    """Two control groups of equal weight, as system.slice and machine.slice are: for the tracer and for the VMs."""
    pair = [
        CONTROL_GROUPS / f"vftrace-fleet-{os.getpid()}-{name}" for name in ("system", "machine")
    ]
    for group in pair:
        group.mkdir()
        # Each against the other as by default; against other work on the machine, as if there were none.
        (group / "cpu.shares").write_text("16384")
    try:
        yield pair[0], pair[1]
    finally:
        for group in pair:
            while group.exists():
                with suppress(OSError):  # processes that end leave it a moment later
                    group.rmdir()
                time.sleep(0.1)


def within(group: Path | None, command: list[str]) -> list[str]:
    """The command, in a control group if one is given."""
    if group is None:
        return command
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]


@contextmanager
def tracer(
    tree: Path, arguments: list[str], nice: int = NICE, group: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A vftrace that is ready; ended by SIGINT."""
    # As systemd's unit: the reader cannot raise its priority above that of the main process.
    command = [
        "nice",
        "-n",
        str(nice),
        "setpriv",
        "--inh-caps=-sys_nice",
        "--bounding-set=-sys_nice",
    ]
    command += [sys.executable, "-m", "vftrace", *arguments]
    with subprocess.Popen(
        within(group, command),
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        child.said = ""  # type: ignore[attr-defined]
        while (line := child.stdout.readline()) and line.strip() != "ready":
            child.said += line  # type: ignore[attr-defined]
        if not line:
            raise RuntimeError(child.said)  # type: ignore[attr-defined]
        # A log that nobody reads would hold the tracer up.
        rest: list[str] = []
        reads = threading.Thread(target=lambda: rest.extend(child.stdout or ()), daemon=True)
        reads.start()
        try:
            yield child
        finally:
            child.send_signal(signal.SIGINT)
            reads.join()
            child.said = "".join(rest)  # type: ignore[attr-defined]


@contextmanager
def busy(count: int, group: Path | None) -> Iterator[None]:
    """Processes that compute."""
    loop = within(group, [sys.executable, "-c", "while True: pass"])
    loops = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def scrape(
    url: str,
    took: list[tuple[float, float]],
    stop: threading.Event,
    every_s: float = SCRAPE_S,
    ages: list[tuple[float, float, float]] | None = None,
) -> None:
    """Scrape as Prometheus does, and remember when each began, how long it took, and how old its figures were then:
    in all, and of that the age of the text."""
    # What is measured is the tracer, not how long this thread waits for a CPU.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -19)
    next_at = time.monotonic() + every_s
    while not stop.wait(max(0.0, next_at - time.monotonic())):
        begun = time.monotonic()
        next_at = max(begun, next_at + every_s)
        at = time.time()
        with urllib.request.urlopen(url, timeout=60) as answer:
            text, text_age = answer.read(), float(answer.headers.get("Age", 0))
        took.append((begun, time.monotonic() - begun))
        of = re.search(rb"^vftrace_figures_timestamp_seconds (\S+)", text, re.M)
        if ages is not None and of is not None:
            ages.append((begun, at - float(of[1]), text_age))


def run(
    args: argparse.Namespace,
    command: str,
    directory: Path,
    groups: tuple[Path | None, Path | None] = (None, None),
) -> dict[str, object]:
    """One fleet under one command; `groups`: the tracer's and the VMs' control groups."""
    recording = directory / f"{command}.vft"
    arguments = [command, "--force", "-o", str(recording)]
    kept = directory / "kept"
    if command in ("serve", "flight"):
        arguments = ["serve", "--web.listen-address", "127.0.0.1:0"]
    if command == "flight":
        arguments += ["--record-dir", str(kept)]
    fleet = [str(args.program), str(args.migrating), str(args.idle), str(args.gib)]
    fleet += [str(args.round_ms), str(args.seconds), "sums"]
    took: list[tuple[float, float]] = []
    ages: list[tuple[float, float, float]] = []
    stop = threading.Event()
    with tracer(args.tree, arguments, args.nice, groups[0]) as traced:
        url = "".join(re.findall(r"serving (\S+)", traced.said))  # type: ignore[attr-defined]
        if url:
            threading.Thread(
                target=scrape, args=(url, took, stop, args.scrape, ages), daemon=True
            ).start()
        with subprocess.Popen(
            within(groups[1], fleet), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as vms:
            assert vms.stdin is not None
            assert vms.stdout is not None
            assert vms.stdout.readline().strip() == "ready"
            time.sleep(3)
            idle = percent(traced.pid, IDLE_S)
            vms.stdin.write("\n")
            vms.stdin.flush()
            began = time.monotonic()
            begin = percent(traced.pid, BEGIN_S)
            steady = percent(traced.pid, args.seconds - BEGIN_S - 1)
            moved: dict[int, Moved] = {}
            resumed: dict[int, tuple[int, int]] = {}
            while not (done := vms.stdout.readline().strip()).startswith("done"):
                what, pid, *figures = done.split()
                if what == "moved":
                    moved[int(pid)] = Moved(*map(int, figures))
                else:
                    before, after = map(int, figures)
                    resumed[int(pid)] = before, after
            time.sleep(3)
            if url:
                # A busy tracer gives the text of the scrape before.
                urllib.request.urlopen(url, timeout=60).read()
                time.sleep(3)
            metrics = urllib.request.urlopen(url, timeout=60).read().decode() if url else ""
            stop.set()
            vms.stdin.write("\n")
            vms.stdin.flush()
    result: dict[str, object] = {
        "command": command,
        "said": traced.said[-400:],  # type: ignore[attr-defined]
        "idle %": round(idle, 1),
        "begin %": round(begin, 1),
        "steady %": round(steady, 1),
        "vms": done,
    }
    if url:
        seconds = sorted(seconds for _, seconds in took)
        result["scrapes"] = len(took)
        result["median scrape s"] = round(seconds[len(took) // 2], 3) if took else None
        result["slowest scrapes s"] = [round(each, 3) for each in seconds[-5:]]
        result["slow scrapes, s after the begin"] = [
            (round(at - began, 1), round(each, 3)) for at, each in took if each > SLOW_SCRAPE_S
        ]
        counted = re.findall(
            r"^vftrace_((?:migrations|events_lost|migrations_incomplete)_total\S*) (\S+)",
            metrics,
            re.M,
        )
        downtimes = {
            int(pid): round(float(seconds) * 1e9)
            for pid, seconds in re.findall(
                r'^vftrace_migration_last_downtime_seconds\{kind="vcpu",vm="pid-(\d+)"\} (\S+)',
                metrics,
                re.M,
            )
        }
        result["downtimes"] = compared(downtimes, moved, resumed)
        result["counted"] = {name: float(value) for name, value in counted if float(value)}
        missing: dict[str, float] = {}
        for kind, value in re.findall(
            r'^vftrace_vm_events_lost_total\{kind="(\w+)",.*\} (\S+)', metrics, re.M
        ):
            missing[kind] = missing.get(kind, 0) + float(value)
        result["lost of VMs"] = missing
        result["ages s"] = [round(age, 1) for _, age, _ in sorted(ages, key=lambda a: a[1])[-5:]]
        result["old figures, s after the begin, age, text's age"] = [
            (round(at - began, 1), round(age, 1), text) for at, age, text in ages if age > OLD_S
        ]
    else:
        result |= seen(args.tree, recording, moved, resumed)
    if command == "flight":
        files = list(kept.glob("*.vft.gz"))
        result["files"] = len(files)
        result["bytes"] = sum(file.stat().st_size for file in files)
        result["recorder"] = re.findall(r"^vftrace_(flight_recorder\S+ \S+)", metrics, re.M)
    return result


def idle_cost(args: argparse.Namespace, command: str, tree: Path) -> float:
    """CPU time of one idle VM, microseconds a second."""
    with_none, with_all = (idle_seconds(args, command, tree, count) for count in (0, args.idle))
    return 1e6 * (with_all - with_none) / args.idle


def idle_seconds(args: argparse.Namespace, command: str, tree: Path, count: int) -> float:
    """CPU seconds a second of a tracer beside so many idle VMs, scraped once in the time of two scrapes."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["record", "-o", f"{directory}/idle.vft"]
        if command != "record":
            arguments = ["serve", "--web.listen-address", "127.0.0.1:0"]
        fleet = [str(args.program), "0", str(count), "1", str(args.round_ms), "1"]
        took: list[tuple[float, float]] = []
        stop = threading.Event()
        with (
            subprocess.Popen(
                fleet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as vms,
            tracer(tree, arguments) as traced,
        ):
            assert vms.stdout is not None
            assert vms.stdout.readline().strip() == "ready"
            url = "".join(re.findall(r"serving (\S+)", traced.said))  # type: ignore[attr-defined]
            if url:
                threading.Thread(target=scrape, args=(url, took, stop), daemon=True).start()
            time.sleep(3)
            used = percent(traced.pid, SCRAPE_S) / 100
            stop.set()
            vms.kill()
        return used


@dataclass(frozen=True)
class Moved:
    """What a source said of its migration: CLOCK_BOOTTIME in ns before its vCPU was stopped, after its clock was read,
    and when its vCPU had left KVM_RUN; its dirty syncs, and the bytes it sent."""

    from_ns: int
    until_ns: int
    left_ns: int
    syncs: int
    sent: int


def compared(
    downtimes: dict[int, int], moved: dict[int, Moved], resumed: dict[int, tuple[int, int]]
) -> dict[str, object]:
    """Downtimes (ns, by pid of the source) beside the VMs' own clocks.

    The vCPU left KVM_RUN between `from_ns` and `left_ns`, and ran on the other side between the two times of
    `resumed`: a downtime is right that is not shorter and not longer than these allow. `apart_us` is how far it is
    from the last moment of the one and the first of the other.
    """
    wrong = {}
    apart = []
    for pid, said in moved.items():
        before, after = resumed[pid]
        ns = downtimes.get(pid)
        if ns is None:
            continue
        if not before - said.left_ns - CLOCKS_NS <= ns <= after - said.from_ns:
            wrong[pid] = (ns, before - said.left_ns, after - said.from_ns)
        apart.append(abs(ns - (before - said.left_ns)) / 1000)
    apart.sort()
    return {
        "compared": len(apart),
        "unknown": len(moved) - len(apart),
        "wrong": wrong,
        "apart us, median": round(apart[len(apart) // 2]) if apart else None,
        "apart us, most": round(apart[-1]) if apart else None,
    }


def seen(
    tree: Path,
    recording: Path,
    moved: dict[int, Moved],
    resumed: dict[int, tuple[int, int]],
) -> dict[str, object]:
    """What is in the recording, and where it differs from what the VMs said."""
    out = subprocess.run(
        [sys.executable, "-m", "vftrace", "report", "--format", "json", recording],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    report = json.loads(out)
    migrations = report["migrations"]
    stopped = [m for m in migrations if m["downtime"]["checkpoints"]]
    by_pid = {m["vm"]["pid"]: m for m in migrations}
    known = {pid: m["downtime"]["vcpu_ns"] for pid, m in by_pid.items()}
    downtimes = {pid: ns for pid, ns in known.items() if ns is not None}
    differs: dict[str, int] = {"stop": 0, "syncs": 0, "bytes": 0, "not seen": 0}
    for pid, said in moved.items():
        found = by_pid.get(pid)
        if found is None:
            differs["not seen"] += 1
            continue
        at = {c["name"]: c["at_ns"] for c in found["downtime"]["checkpoints"]}
        stop = at.get("vcpus-stopped")
        differs["stop"] += stop is None or not said.from_ns <= stop <= said.until_ns + NEAR_NS
        differs["syncs"] += sum(r["syncs"] for r in found["rounds"]) != said.syncs
        differs["bytes"] += found["channel"]["bytes"] != said.sent
    return {
        "records": report["hosts"][0]["events"],
        "migrations": len(migrations),
        "completed": sum(m["outcome"] == "completed" for m in migrations),
        "stops seen": len(stopped),
        "moved": len(moved),
        "differs": differs,
        "downtimes": compared(downtimes, moved, resumed),
        "incomplete": sum(m["incomplete"] for m in migrations),
        "why incomplete": Counter(
            f"{'the fleet' if m['vm']['pid'] in moved else 'others'}: {why_incomplete(m)}"
            for m in migrations
            if m["incomplete"]
        ),
        "missed runs": report["hosts"][0]["missed_runs"],
        "lost": report["hosts"][0]["lost"],
    }


def why_incomplete(migration: dict[str, Any]) -> str:
    """What the report says is missing of a migration."""
    found = [f"runs of {runs['probe']}" for runs in migration["missed_runs"]]
    found += [f"{what} lost" for what, count in migration["loss"].items() if count]
    return ", ".join(found) or "not said"


def main() -> None:
    """Print one JSON object for each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--migrating", type=int, default=200)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--gib", type=int, default=4, help="memory of a migrating VM")
    parser.add_argument("--round-ms", type=int, default=3000)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--scrape", type=float, default=SCRAPE_S, help="seconds between scrapes")
    parser.add_argument("--nice", type=int, default=NICE, help="the tracer's niceness")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep the CPUs busy")
    parser.add_argument(
        "--groups",
        action="store_true",
        help="the tracer and the VMs in control groups of equal weight, as with systemd and libvirt",
    )
    parser.add_argument(
        "--keep", type=Path, help="directory for the recordings, which are deleted else"
    )
    parser.add_argument("--tree", type=Path, default=HERE, help="another tree of vftrace")
    parser.add_argument("--idle-cost", action="store_true", help="only what an idle VM costs")
    parser.add_argument("--times", type=int, help="how often each is measured (1; idle cost 3)")
    parser.add_argument("commands", nargs="*", default=["record", "serve"], metavar="COMMAND")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        args.program = build(Path(directory))
        kept = args.keep or Path(directory)
        kept.mkdir(parents=True, exist_ok=True)
        for command in args.commands:
            if not args.idle_cost:
                for _ in range(args.times or 1):
                    with ExitStack() as stack:
                        groups: tuple[Path | None, Path | None] = None, None
                        if args.groups:
                            groups = stack.enter_context(control_groups())
                        stack.enter_context(busy(args.busy, groups[1]))
                        print(json.dumps(run(args, command, kept, groups)), flush=True)
                continue
            for _ in range(args.times or 3):
                for tree in dict.fromkeys((args.tree, HERE)):
                    cost = round(idle_cost(args, command, tree), 1)
                    print(
                        json.dumps({"command": command, "tree": str(tree), "us": cost}), flush=True
                    )


if __name__ == "__main__":
    main()
