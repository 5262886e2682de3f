# SPDX-License-Identifier: MIT
"""Jobs about clocks that jump while a migration is traced."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vftlab.job import Job, JobError, boottime_ns, modprobe, say
from vftlab.vm import Migration, Vm, migrate, migration_truth, vm, wait_resumed

from jobs.tracer import report_of, tracers

HOUR_S = 3600
AROUND_S = 1.5
"""vftrace notices within a tick that the wall clock was set (vftrace/collect/live.py); here ticks may be late."""
NOISE_NS = 2_000_000_000
"""Threads share two emulated processors, so that times differ by up to a second. The jumps are longer."""
DOWNTIME_NOISE_NS = 500_000_000
NEAR_BYTES = 2000
"""QEMU counts some bytes that it does not send, and the other way round."""
SLEEP_S = 5


def clock_set(job: Job) -> None:
    """The wall clock is set an hour ahead in one migration and an hour back in the next: both are right."""
    with tracers(job.results, {"clock-set": []}) as recordings:
        ahead = _traced(job.results, "ahead", lambda: _set_wall_clock(HOUR_S))
        back = _traced(job.results, "back", lambda: _set_wall_clock(-HOUR_S))
    _check(job, recordings["clock-set"], [ahead, back])


def suspended(job: Job, mode: str) -> None:
    """The machine sleeps during a migration, and CLOCK_BOOTTIME jumps; the next migration is traced, too."""
    with tracers(job.results, {"suspended": []}) as recordings:
        slept = _traced(job.results, "slept", lambda: _sleep(mode))
        after = _traced(job.results, "after", lambda: None)
    _check(job, recordings["suspended"], [slept, after])
    if slept["asleep_ns"] < (SLEEP_S - 2) * 10**9:
        raise JobError(f"CLOCK_BOOTTIME did not jump: {slept['asleep_ns'] / 1e9:.3f} s")


def _set_wall_clock(seconds: int) -> None:
    time.sleep(AROUND_S)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    time.sleep(AROUND_S)


def _sleep(mode: str) -> None:
    done = subprocess.run(
        ["rtcwake", "-m", mode, "-s", str(SLEEP_S)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise JobError(f"rtcwake -m {mode}: {done.stderr.strip()}")


def _asleep_ns() -> int:
    """How long the machine slept since it booted: the difference of the two clocks."""
    return boottime_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _event_ns(machine: Vm, name: str) -> int:
    return machine.monitor.wait_event(name, 20).at_ns


def _traced(results: Path, name: str, jump: Callable[[], None]) -> dict[str, Any]:
    """Migrate while a clock jumps; returns what QEMU and the clocks say of it."""
    modprobe("kvm-amd")
    (results / name).mkdir()
    with (
        vm("source", results / name) as source,
        vm("destination", results / name, incoming=True) as destination,
    ):
        asleep_ns, wall_ns = _asleep_ns(), time.time_ns()
        migration: Migration = migrate(source, during=jump)
        wait_resumed(destination)
        found: dict[str, Any] = {
            "name": name,
            "pid": source.pid,
            "asleep_ns": _asleep_ns() - asleep_ns,
            "wall_from_ns": wall_ns,
            "wall_to_ns": time.time_ns(),
            "ended_ns": boottime_ns(),
            "stop_ns": _event_ns(source, "STOP"),
            "resume_ns": _event_ns(destination, "RESUME"),
            **migration_truth(migration),
        }
    say(f"{name}: asleep {found['asleep_ns'] / 1e9:.3f} s")
    return found


def _check(job: Job, recording: Path, truths: list[dict[str, Any]]) -> None:
    """JobError unless the report has the figures of the truths."""
    job.write_truth({"migrations": truths})
    report = report_of(recording)
    (host,) = report["hosts"]
    by_pid = {m["vm"]["pid"]: m for m in report["migrations"]}
    wrong = [
        f"{truth['name']}: {what}"
        for truth in truths
        for what in _differences(by_pid.get(truth["pid"]), host["clock"], truth)
    ]
    if host["lost"]:
        wrong.append(f"{host['lost']} records lost")
    if wrong:
        raise JobError("; ".join(wrong))


def _differences(
    found: dict[str, Any] | None, clock: list[dict[str, int]], truth: dict[str, Any]
) -> list[str]:
    if found is None:
        return ["not seen"]
    told = truth["query_migrate"]
    took_ns = found["ended_at_ns"] - found["started_at_ns"]
    sent, ram = found["channel"]["bytes"], told["ram"]["transferred"]
    downtime_ns, most_ns = found["downtime"]["vcpu_ns"], truth["resume_ns"] - truth["stop_ns"]
    rounds = sum(r["syncs"] for r in found["rounds"])
    wall_ns = [
        at + next((c["realtime_offset_ns"] for c in reversed(clock) if c["at_ns"] <= at), 0)
        for at in (found["started_at_ns"], found["ended_at_ns"])
    ]
    wall_late_ns = wall_ns[0] - truth["wall_from_ns"], wall_ns[1] - truth["wall_to_ns"]
    say(
        f"{truth['name']}: {found['outcome']}, {took_ns / 1e9:.3f} s, QEMU {told['total-time']} ms and asleep"
        f" {truth['asleep_ns'] / 1e9:.3f} s; downtime {downtime_ns}, STOP to RESUME {most_ns}, QEMU"
        f" {told['downtime']} ms; rounds {rounds}, QEMU {told['ram']['dirty-sync-count']}; sent {sent}, QEMU {ram};"
        f" wall clock {wall_late_ns} ns after the job's"
    )
    late_ns = (
        found["started_at_ns"] - truth["asked_at_ns"],
        found["ended_at_ns"] - truth["ended_ns"],
    )
    right = {
        "outcome": found["outcome"] == "completed",
        "incomplete": not found["incomplete"],
        "rounds": rounds == told["ram"]["dirty-sync-count"],
        "bytes": abs(sent - ram) < NEAR_BYTES,
        "begin": 0 <= late_ns[0] < NOISE_NS,
        "end": -NOISE_NS < late_ns[1] <= 0,
        "time": abs(took_ns - truth["asleep_ns"] - told["total-time"] * 10**6) < NOISE_NS,
        "downtime": downtime_ns is not None and abs(downtime_ns - most_ns) < DOWNTIME_NOISE_NS,
        "wall clock": all(abs(ns) < NOISE_NS for ns in wall_late_ns),
    }
    return [f"wrong {what}" for what, is_right in right.items() if not is_right]


JOBS: dict[str, Callable[[Job], None]] = {"clock-set": clock_set}
