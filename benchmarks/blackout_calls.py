# SPDX-License-Identifier: MIT
"""Measures the cost of tracing a migrating VMM's calls, for migrations and for each system call of the host.

    .venv/bin/python benchmarks/blackout_calls.py [--pairs N]

Migrations are traced with and without the calls in turn, in one run; both have all other probes. The QEMUs run with a
real-time priority, so that what else this machine does comes after them. Their CPU time depends less on the machine
than the times of migrations do. Before that, the kernel counts how long the calls' programs run in blackouts. `--log
FILE` keeps the figures of migrations, and those that are in it already count too: a long measurement may be made in
pieces.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from itertools import starmap
from pathlib import Path
from typing import Any

from vftrace.collect.live import LiveSource
from vftrace.demo import guest, qemu
from vftrace.demo.qemu import boottime_ns
from vftrace.demo.scenarios import MIB, Run
from vftrace.probes.bpf import events, syscall
from vftrace.probes.loader import Probes

CALLS = 300_000
_EXIT = "typed__sys_exit"
"""bpf/calls.bpf.c"""


def trace(*, calls: bool, log: Path | None = None) -> None:
    """Trace until SIGTERM, with or without the calls of migrating VMMs. `log`: where the run times of the calls'
    programs are written."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    source = LiveSource()
    if not calls:
        source.probes.calls.trace = lambda *_, **__: None  # type: ignore[method-assign]
    found: list[RunTimes] = []
    if log is not None:
        programs = source.probes.calls._probes.bpf._programs
        threading.Thread(target=sample, args=(programs, found, ended), daemon=True).start()
    print("ready", flush=True)
    while not ended:
        source.read()
    source.close()
    if log is not None:
        log.write_text(json.dumps(found))


RunTimes = tuple[int, dict[str, tuple[int, int]]]
"""CLOCK_BOOTTIME, and by program how often it ran and for how many ns."""


def sample(programs: Mapping[str, int], found: list[RunTimes], ended: list[int]) -> None:
    """Read every millisecond what the kernel counts of BPF programs (bpf_prog_show_fdinfo in kernel/bpf/syscall.c)."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    files = {name: os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY) for name, fd in programs.items()}
    while not ended:
        times = {}
        for name, file in files.items():
            text = os.pread(file, 4096, 0).decode()
            said = dict(line.split(":\t") for line in text.splitlines())
            times[name] = int(said["run_cnt"]), int(said["run_time_ns"])
        found.append((boottime_ns(), times))
        time.sleep(0.001)


class EnableStats(ctypes.Structure):
    """enable_stats of union bpf_attr (include/uapi/linux/bpf.h)."""

    _fields_ = (("type", ctypes.c_uint32),)


@contextlib.contextmanager
def run_times() -> Iterator[None]:
    """Let the kernel measure how long BPF programs run, as long as this lasts."""
    enable_stats, run_time = 32, 0
    fd = syscall.bpf(enable_stats, EnableStats(run_time))
    try:
        yield
    finally:
        os.close(fd)


_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")
"""BPF: r0 = 0; exit."""


def counting_ns() -> tuple[float, float]:
    """What the kernel counts for an empty program, and how much longer a call takes with one at its entry and one at
    its return while nothing is counted."""
    fds = [
        syscall.load_program(syscall.RAW_TRACEPOINT, _RETURN_ZERO, "GPL", name)
        for name in ("empty_enter", "empty_exit")
    ]

    def call_ns() -> float:
        begun = time.process_time_ns()
        for _ in range(CALLS):
            os.getppid()
        return (time.process_time_ns() - begun) / CALLS

    plain = min(call_ns() for _ in range(5))
    attached = [
        events.raw_tracepoint(fd, name)
        for fd, name in zip(fds, ("sys_enter", "sys_exit"), strict=True)
    ]
    path = min(call_ns() for _ in range(5)) - plain
    with run_times():
        call_ns()
        text = Path(f"/proc/self/fdinfo/{fds[0]}").read_text()
    said = dict(line.split(":\t") for line in text.splitlines())
    for each in attached:
        each.close()
    for fd in fds:
        os.close(fd)
    return int(said["run_time_ns"]) / int(said["run_cnt"]), path


def programs(runs: int) -> None:
    """How long the calls' programs ran in each blackout, of all processes and on all CPUs together, beside its length.

    As the kernel counts it; without what it counts for an empty program; and with the kernel's own way to a program.
    """
    with Probes(lambda _: None):
        empty_ns, path_ns = counting_ns()
    print(
        f"Counted for an empty program: {empty_ns:.0f} ns; the way to two: {path_ns:.0f} ns a call"
    )
    print("| blackout, ms | calls | runs | counted | without counting | with the way |")
    print("|---|---|---|---|---|---|")
    parts = []
    for _ in range(runs):
        with tempfile.NamedTemporaryFile() as log, run_times():
            with tracer(calls=True, log=Path(log.name)):
                _, stop, resume, _ = asyncio.run(migrate())
            found: list[RunTimes] = json.loads(Path(log.name).read_text())
        before = [times for at_ns, times in found if at_ns <= stop][-1]
        after = next(times for at_ns, times in found if at_ns >= resume)
        count, ns = (sum(after[name][i] - before[name][i] for name in after) for i in range(2))
        calls = after[_EXIT][0] - before[_EXIT][0]
        lasted = resume - stop
        own = ns - count * empty_ns
        parts.append([100 * each / lasted for each in (ns, own, own + calls * path_ns)])
        cells = " | ".join(f"{part:.2f} %" for part in parts[-1])
        print(f"| {lasted / 1e6:.1f} | {calls} | {count} | {cells} |", flush=True)
    for what, of in zip(
        ("counted", "without counting", "with the way"), zip(*parts, strict=True), strict=True
    ):
        print(f"{what}: median {statistics.median(of):.2f} %, largest {max(of):.2f} %")


@contextlib.contextmanager
def tracer(*, calls: bool, log: Path | None = None) -> Iterator[None]:
    command = [sys.executable, __file__, "--trace", "calls" if calls else "plain"]
    if log is not None:
        command += ["--log", str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def first(*pids: int) -> None:
    """Let these processes run before everything else; threads that they make later as well."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(1))


async def migrate(bandwidth: int = 256) -> tuple[float, int, int, float]:
    """One migration, by QEMU: milliseconds in all, and when its events STOP and RESUME came. The last is how many
    milliseconds of CPU both QEMUs took for it without their vCPUs. `bandwidth`: in MiB/s."""
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            run = Run("benchmark", qemu.find_qemu(), Path(directory), stack, lambda _: None)
            dirty = guest.fixed(0x1000, 24000, 16000)
            source = await run.source(run.firmware(dirty))
            destination = await run.destination(source)
            first(source.qemu.pid, destination.qemu.pid)
            vcpus = {
                vm.qemu.pid: (await vm.qemu.command_qmp("query-cpus-fast"))[0]["thread-id"]
                for vm in (source, destination)
            }
            before = sum(starmap(cpu_ns, vcpus.items()))
            migration = await run.migrate(
                source, destination, bandwidth=bandwidth * MIB, downtime_ms=100
            )
            await run.arrived(migration)
            cpu = sum(starmap(cpu_ns, vcpus.items())) - before
            figures = migration.last
            for vm in (source, destination):
                await run.send_signal(signal.SIGKILL, vm)
    assert figures is not None
    stop = next(e.at_ns for e in source.qemu.events if e.name == "STOP")
    resume = next(e.at_ns for e in destination.qemu.events if e.name == "RESUME")
    return float(figures.total_time_ms or 0), stop, resume, cpu / 1e6


def cpu_ns(pid: int, without: int) -> int:
    """CPU time of a process, with its threads that have ended, and without one that lives."""
    process = time.clock_gettime_ns(~pid << 3 | 2)  # clock_getcpuclockid(3)
    return process - int(Path(f"/proc/{pid}/task/{without}/schedstat").read_text().split()[0])


def migrations(pairs: int, log: Path | None, bandwidth: int) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {"plain": [], "calls": []}
    if log is not None and log.exists():
        found = json.loads(log.read_text())
    for number in range(pairs):
        # Each way comes first as often as the other.
        for how in sorted(found, reverse=number % 2 == 0):
            with tracer(calls=how == "calls"):
                total_ms, stop, resume, cpu_ms = asyncio.run(migrate(bandwidth))
                found[how].append((total_ms, (resume - stop) / 1e6, cpu_ms))
        if log is not None:
            log.write_text(json.dumps(found))
    print("| tracing | total ms, median (quartiles) | downtime ms | CPU ms |")
    print("|---|---|---|---|")
    for how, times in found.items():
        cells = [_spread([each[i] for each in times]) for i in range(3)]
        print(f"| {how} | {' | '.join(cells)} |", flush=True)
    for i, what in enumerate(("total", "downtime", "CPU time")):
        plain, calls = ([each[i] for each in found[how]] for how in ("plain", "calls"))
        low, middle, high = _more(plain, calls)
        print(
            f"{what} of {len(plain)} pairs: {middle:+.1f} % with calls, 95 % interval {low:+.1f} to {high:+.1f} %"
        )


def _more(plain: list[float], calls: list[float], draws: int = 5000) -> tuple[float, float, float]:
    """How much larger the median of `calls` is than that of `plain`, in percent, and the bounds between which it lies
    in 95 of 100 draws of the same pairs."""
    chance = random.Random(1)
    size = range(len(plain))

    def percent(chosen: Iterable[int]) -> float:
        at = list(chosen)
        before = statistics.median(plain[n] for n in at)
        return 100 * (statistics.median(calls[n] for n in at) / before - 1)

    drawn = sorted(percent(chance.choices(size, k=len(size))) for _ in range(draws))
    return drawn[draws // 40], percent(size), drawn[-draws // 40]


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


_LOOP = f"""
import os, sys, time
call = os.getppid
for line in sys.stdin:
    began = time.process_time_ns()
    for _ in range({CALLS}):
        call()
    print((time.process_time_ns() - began) / {CALLS}, flush=True)
"""


def each_call(rounds: int = 9) -> None:
    """Nanoseconds of CPU that getppid takes, a Python loop around it included."""
    loop = subprocess.Popen(
        [sys.executable, "-c", _LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other = subprocess.Popen(["sleep", "1000"])
    assert loop.stdin is not None
    assert loop.stdout is not None
    found: dict[str, list[float]] = {}
    with Probes(lambda _: None) as probes:
        ways: dict[str, Any] = {
            "no VM migrates": lambda: None,
            "another VMM migrates": lambda: probes.calls.trace(other.pid, always=False),
            "this VMM migrates, its guest runs": lambda: _running(probes, loop.pid),
            "this VMM migrates, its guest stands still": lambda: probes.calls.trace(
                loop.pid, always=True
            ),
        }
        for _ in range(rounds):
            for name, begin in ways.items():
                begin()
                loop.stdin.write("\n")
                loop.stdin.flush()
                found.setdefault(name, []).append(float(loop.stdout.readline()))
                probes.poll(0)
                for pid in list(probes.calls.traced):
                    probes.calls.untrace(pid)
                time.sleep(0.5)
    loop.kill()
    other.kill()
    print("| while | ns a call, least | more than with none |")
    print("|---|---|---|")
    least = {name: min(times) for name, times in found.items()}
    none = least["no VM migrates"]
    for name, ns in least.items():
        print(f"| {name} | {ns:.0f} | {ns - none:+.0f} |", flush=True)


def _running(probes: Probes, pid: int) -> None:
    probes.calls.trace(pid, always=False)
    # As if its main thread's first child were inside KVM_RUN.
    probes.calls.mark_running(pid, [1 << 21])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--log", type=Path, metavar="FILE")
    parser.add_argument("--bandwidth", type=int, default=256, metavar="MIB", help="MiB/s")
    parser.add_argument("--trace", choices=("calls", "plain"))
    parser.add_argument("--only", choices=("calls", "programs", "migrations"))
    arguments = parser.parse_args()
    if arguments.trace:
        trace(calls=arguments.trace == "calls", log=arguments.log)
        return
    print(f"{os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    if arguments.only in (None, "calls"):
        each_call()
    if arguments.only in (None, "programs"):
        programs(arguments.pairs)
    if arguments.only in (None, "migrations"):
        migrations(arguments.pairs, arguments.log, arguments.bandwidth)


if __name__ == "__main__":
    main()
