# SPDX-License-Identifier: MIT
"""Compares advice with its effect: a real migration, the advice that vftrace's report gives on it, the same guest
migrated again with that change, and QEMU's own figures beside what was promised.

.venv/bin/python -m tests.host.advised [--runs N] [NAME...]     plays them traced, prints a table
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from tests.golden.record import traced
from tests.host.blackouts import HOG, threads_first
from tests.host.fusedisk import fuse_disk
from vftrace.analysis.hosts.join import join_hosts
from vftrace.collect.merge import load
from vftrace.demo import guest, qemu
from vftrace.demo.qemu import boottime_ns
from vftrace.demo.scenarios import FIRST_PAGE, MIB, SLOW, Migration, Run, Vm
from vftrace.model.advice import Figure
from vftrace.outputs.report.json import report_json

FAST = 64 * MIB
HOT = guest.fixed(FIRST_PAGE, 6000, 12000)
"""23 MiB, each page twice a second: at 24 MiB/s more becomes dirty in a round than 300 ms can send."""

HOT_BANDWIDTH = 24 * MIB
HOLD_S = 0.6
DISK_MIB, S_PER_MIB = 4, 0.2

Change = Mapping[str, Any] | None
"""The advice's `parameters`; None in the first run, which has the fault."""

Seen = Mapping[Figure, int]
"""QEMU's figures of a run, in ns."""


async def _end(run: Run, *vms: Vm) -> None:
    for vm in vms:
        if vm.qemu.alive:
            await run.send_signal(signal.SIGKILL, vm)


def _event(vm: Vm, name: str, status: str | None = None) -> int:
    """When an event of this name came, the last one."""
    return [
        e.at_ns
        for e in vm.qemu.events
        if e.name == name and (status is None or e.data["status"] == status)
    ][-1]


def _seen(migration: Migration) -> dict[Figure, int]:
    """QEMU's own total, and its downtime from the source's STOP to the destination's RESUME."""
    assert migration.destination is not None
    assert migration.last is not None
    found: dict[Figure, int] = {
        "downtime": _event(migration.destination, "RESUME") - _event(migration.source, "STOP"),
        "total": (migration.last.total_time_ms or 0) * 1_000_000,
    }
    if "postcopy-ram" in migration.capabilities:
        completed = _event(migration.source, "MIGRATION", "completed")
        found["postcopy"] = completed - _event(migration.source, "MIGRATION", "postcopy-active")
    return found


async def _moved(run: Run, migration: Migration) -> Seen:
    """Wait for its end."""
    assert migration.destination is not None
    await run.arrived(migration)
    found = _seen(migration)
    await _end(run, migration.source, migration.destination)
    return found


async def _hot(run: Run, change: Change) -> Seen:
    """Precopy that does not converge and is cancelled after eight sweeps; then as the advice says."""
    given = dict(change or {})
    source = await run.source(run.firmware(HOT))
    destination = await run.destination(source)
    migration = await run.migrate(
        source,
        destination,
        bandwidth=given.get("max-bandwidth", HOT_BANDWIDTH),
        downtime_ms=given.get("downtime-limit", 300),
        capabilities=("postcopy-ram",) if given.get("postcopy-ram") else (),
        parameters={key: given[key] for key in ("max-postcopy-bandwidth",) if key in given},
    )
    if change is None:
        await migration.dirty_sync(8)
        await run.act("migrate_cancel", source)
        await migration.status("cancelled")
        await _end(run, source, destination)
        return {}
    if given.get("postcopy-ram"):
        await migration.dirty_sync(2)
        await run.act("migrate-start-postcopy", source)
    return await _moved(run, migration)


async def _slow_flush(run: Run, change: Change) -> Seen:
    """A slow disk, and an image with much to write in the host's page cache."""
    direct = bool((change or {}).get("cache.direct"))
    with fuse_disk(run.directory, s_per_mib=S_PER_MIB) as slow:
        disk = slow.file(DISK_MIB * MIB)
        cache = f"cache.direct={'on' if direct else 'off'}"
        drive = ("-drive", f"if=none,id=slow,format=raw,{cache},file={disk}")
        spec = structs.replace(
            run.firmware(SLOW), extra=(*drive, "-device", "virtio-blk-pci,drive=slow")
        )
        source = await run.source(spec)
        destination = await run.destination(source)
        command = f'qemu-io slow "write 0 {DISK_MIB}M"'
        await run.act("human-monitor-command", source, command_line=command)
        migration = await run.migrate(source, destination, bandwidth=FAST, downtime_ms=20)
        return await _moved(run, migration)


async def _pre_switchover(run: Run, change: Change) -> Seen:
    pause = (change or {"pause-before-switchover": True})["pause-before-switchover"]
    source = await run.source(run.firmware(SLOW))
    destination = await run.destination(source)
    migration = await run.migrate(
        source,
        destination,
        bandwidth=FAST,
        downtime_ms=20,
        capabilities=("pause-before-switchover",) if pause else (),
    )
    if pause:
        await migration.status("pre-switchover")
        await asyncio.sleep(HOLD_S)
        await run.act("migrate-continue", source, state="pre-switchover")
    return await _moved(run, migration)


async def _held(run: Run, change: Change) -> Seen:
    """A destination with -S, and a management that comes late; then without -S."""
    source = await run.source(run.firmware(SLOW))
    destination = await run.destination(source, held=change is None)
    migration = await run.migrate(source, destination, bandwidth=FAST, downtime_ms=20)
    if change is None:
        await migration.status("completed")
        await asyncio.sleep(HOLD_S)
        await run.act("cont", destination)
    return await _moved(run, migration)


async def _cpu_wait(run: Run, change: Change) -> Seen:
    """The destination has one CPU, which a program of a higher class takes; then it may use the others."""
    every = os.sched_getaffinity(0)
    cpu = max(every)
    hog = subprocess.Popen(
        [sys.executable, "-c", HOG, str(cpu), str(HOLD_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hog.stdin is not None
    assert hog.stdout is not None
    hog.stdout.readline()
    source = await run.source(run.firmware(SLOW))
    destination = await run.destination(source)
    migration = await run.migrate(
        source,
        destination,
        bandwidth=FAST,
        downtime_ms=20,
        capabilities=("pause-before-switchover",),
    )
    await migration.status("pre-switchover")
    for task in Path(f"/proc/{destination.qemu.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cpu} if change is None else every - {cpu})
    with threads_first(os.getpid(), source.qemu.pid, cpus=every - {cpu}):
        hog.stdin.write("now\n")
        hog.stdin.flush()
        await asyncio.to_thread(hog.stdout.readline)
        await run.act("migrate-continue", source, state="pre-switchover")
        await migration.status("completed")
        if change is not None:
            await run.arrived(migration)
    await asyncio.to_thread(hog.stdout.readline)
    hog.wait()
    if change is None:
        await run.arrived(migration)
    found = _seen(migration)
    await _end(run, source, destination)
    return found


async def _postcopy_bandwidth(run: Run, change: Change) -> Seen:
    limit = (change or {"max-postcopy-bandwidth": 8 * MIB})["max-postcopy-bandwidth"]
    source = await run.source(run.firmware(HOT))
    destination = await run.destination(source)
    migration = await run.migrate(
        source,
        destination,
        bandwidth=HOT_BANDWIDTH,
        downtime_ms=20,
        capabilities=("postcopy-ram",),
        parameters={"max-postcopy-bandwidth": limit},
    )
    await migration.dirty_sync(2)
    await run.act("migrate-start-postcopy", source)
    return await _moved(run, migration)


async def _auto_converge(run: Run, change: Change) -> Seen:
    """auto-converge in steps of 50, 75 and 99 %, until it converges; then post-copy.

    `held` is what the guest itself has lost: its counter goes up 200 times a second while it runs.
    """
    converge = (change or {"auto-converge": True})["auto-converge"]
    source = await run.source(run.firmware(HOT))
    destination = await run.destination(source)
    before = await source.qemu.read_u32(guest.TICKS_ADDRESS)
    began = boottime_ns()
    migration = await run.migrate(
        source,
        destination,
        bandwidth=HOT_BANDWIDTH,
        downtime_ms=300,
        capabilities=("auto-converge",) if converge else ("postcopy-ram",),
        parameters={"cpu-throttle-initial": 50, "cpu-throttle-increment": 25} if converge else None,
    )
    if not converge:
        await migration.dirty_sync(2)
        await run.act("migrate-start-postcopy", source)
    await run.arrived(migration)
    ticks = await destination.qemu.read_u32(guest.TICKS_ADDRESS) - before
    passed = boottime_ns() - began
    found = _seen(migration)
    lost = passed - ticks * 1_000_000_000 // HOT.ticks_per_second - found["downtime"]
    found["held"] = max(0, lost)
    await _end(run, source, destination)
    return found


@dataclass(frozen=True)
class Case:
    """A migration with something wrong, and the rule that is to say so."""

    rule: str
    title: str
    play: Callable[[Run, Change], Awaitable[Seen]]


CASES: Mapping[str, Case] = {
    case.rule: case
    for case in (
        Case("bandwidth", "a hot set, 24 MiB/s, limit 300 ms", _hot),
        Case("downtime-limit", "a hot set, 24 MiB/s, limit 300 ms", _hot),
        Case("postcopy", "a hot set, 24 MiB/s, limit 300 ms", _hot),
        Case("auto-converge", "a hot set, 24 MiB/s, limit 300 ms, auto-converge", _auto_converge),
        Case("postcopy-bandwidth", "max-postcopy-bandwidth of 8 MiB/s", _postcopy_bandwidth),
        Case("pre-switchover", f"held {HOLD_S} s before the switchover", _pre_switchover),
        Case("held", f"`cont` comes {HOLD_S} s after the load", _held),
        Case("slow-flush", f"{DISK_MIB} MiB in the page cache, a disk of 5 MiB/s", _slow_flush),
        Case("cpu-wait", f"the destination's CPU taken for {HOLD_S} s", _cpu_wait),
    )
}


def _play(case: Case, change: Change, target: Path) -> Seen:
    """One run, traced."""

    async def played(workdir: Path) -> Seen:
        with tempfile.TemporaryDirectory(prefix="vm-", dir=workdir) as directory:
            async with AsyncExitStack() as stack:
                name = f"advised-{case.rule}"
                run = Run(name, qemu.find_qemu(), Path(directory), stack, lambda _: None)
                return await case.play(run, change)

    return traced(target, lambda directory: asyncio.run(played(directory)))


def _report(recording: Path, case: Case) -> dict[str, Any]:
    """The case's migration in the JSON report; other migrations of this host may be in the recording."""
    migrations = report_json(join_hosts(load([recording])))["migrations"]
    (mine,) = [m for m in migrations if m["vm"]["name"] == f"demo-advised-{case.rule}"]
    return dict(mine)


def _waited_for_cpus_ns(report: dict[str, Any]) -> int:
    """How much of a blackout was waiting for a CPU: what a busy host adds to it."""
    calls = report["downtime"]["calls"] or {"steps": ()}
    causes = [cause for step in calls["steps"] for cause in step["causes"]]
    return sum(cause["ns"] for cause in causes if cause["kind"] == "run-queue")


@dataclass(frozen=True)
class Compared:
    """A figure before and after the change, by QEMU, and what was promised."""

    figure: Figure
    was_ns: int | None
    expected_ns: int | None
    least_ns: int
    most_ns: int
    seen_ns: int
    queue_ns: int
    """How much of the second run's blackout was waiting for a CPU."""

    @property
    def kept(self) -> bool:
        """Whether it came within the bounds."""
        return self.least_ns <= self.seen_ns <= self.most_ns

    @property
    def words(self) -> str:
        """`yes`, or in which way it did not."""
        return "yes" if self.kept else "better" if self.seen_ns < self.least_ns else "NO"


def verify(name: str, directory: Path) -> list[Compared] | None:
    """Both runs. None where there was no advice."""
    case = CASES[name]
    before = _play(case, None, directory / "before.vft.gz")
    report = _report(directory / "before.vft.gz", case)
    advice = next((a for a in report["advice"] if a["rule"] == case.rule), None)
    if advice is None:
        return None
    after = _play(case, advice["parameters"], directory / "after.vft.gz")
    queue_ns = _waited_for_cpus_ns(_report(directory / "after.vft.gz", case))
    return [
        Compared(
            effect["figure"],
            before.get(effect["figure"]),
            effect["expected_ns"],
            effect["least_ns"],
            effect["most_ns"],
            after[effect["figure"]],
            queue_ns,
        )
        for effect in advice["effects"]
    ]


def _row(name: str, each: Compared) -> str:
    def ms(ns: int | None) -> str:
        return "-" if ns is None else f"{ns / 1e6:.0f}"

    error = ""
    if each.expected_ns:
        error = f"{100 * (each.seen_ns / each.expected_ns - 1):+.0f} %"
    return (
        f"| {name} | {each.figure} | {ms(each.was_ns)} | {ms(each.expected_ns)} "
        f"| {ms(each.least_ns)} to {ms(each.most_ns)} | {ms(each.seen_ns)} | {error} "
        f"| {each.words} | {ms(each.queue_ns)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parents[2])
    for name in arguments.names or CASES:
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as directory:
                found = verify(name, Path(directory))
            load_now = os.getloadavg()[0]
            for each in found or ():
                print(f"{_row(name, each)} {load_now:.0f} |", flush=True)
            if found is None:
                print(f"| {name} | no advice | | | | | | NO | | {load_now:.0f} |", flush=True)
            time.sleep(0.2)


if __name__ == "__main__":
    main()
