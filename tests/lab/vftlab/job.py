# SPDX-License-Identifier: MIT
"""The common parts of jobs: a directory for results, a truth to write, and the preparation of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRACER = Path("/src/vftrace/commands/record.py")
# Generous: the machine is emulated, and BCC compiles.
TRACER_READY_S = 240.0


class JobError(Exception):
    """The job did not show what it is there to show."""


class CannotHereError(JobError):
    """This kernel lacks what the job is about."""


EXIT_CANNOT_HERE = 77


def boottime_ns() -> int:
    """The clock of every time stamp in the lab: CLOCK_BOOTTIME in ns, as vftrace's own."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def say(text: str) -> None:
    """A line of the job's output, with the seconds since the machine booted."""
    print(f"{boottime_ns() / 1e9:8.3f}  {text}", flush=True)


@dataclass(frozen=True)
class Job:
    """The job that runs: its name, and its own directory of results."""

    name: str
    results: Path
    started_at_ns: int = field(default_factory=boottime_ns)

    def write_truth(self, truth: dict[str, object]) -> None:
        """Write truth.json: what happened, from sources that are not vftrace."""
        whole = {
            "schema": 1,
            "job": self.name,
            "kernel": os.uname().release,
            "started_at_ns": self.started_at_ns,
            "ended_at_ns": boottime_ns(),
            **truth,
        }
        (self.results / "truth.json").write_text(json.dumps(whole, indent=1) + "\n")


def modprobe(*modules: str) -> None:
    """Load modules; JobError if one cannot be."""
    for module in modules:
        result = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
        if result.returncode:
            raise JobError(f"modprobe {module}: {result.stderr.strip()}")


def wait_for(what: str, seconds: float, condition: object) -> None:
    """Wait until `condition()` is true; JobError after `seconds`."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise JobError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


@contextlib.contextmanager
def traced(results: Path, wanted: str) -> Iterator[None]:
    """If $VFTRACE is `wanted`: vftrace records what runs meanwhile into results/recording.vft.

    VFTRACE_OPTIONS is put after `record`. The modules to trace are loaded first, unless
    LAB_LATE_MODULES=1 leaves that to the jobs. Without the subcommand in the tree nothing is
    traced, and a line says so. JobError if vftrace does not become ready or does not end well.
    """
    if os.environ.get("VFTRACE") != wanted:
        yield
        return
    if not TRACER.exists():
        say("VFTRACE is set, but the tree has no vftrace/commands/record.py: not traced")
        yield
        return
    if os.environ.get("LAB_LATE_MODULES") != "1":
        modprobe("kvm-amd", "vfio-pci", "mdev", "igb", "ixgbe")
    options = os.environ.get("VFTRACE_OPTIONS", "").split()
    recording = str(results / "recording.vft")
    command = [sys.executable, "-m", "vftrace", "record", *options, "-o", recording]
    begun = time.monotonic()
    log = results / "vftrace.err"
    with log.open("w") as errors:
        tracer = subprocess.Popen(command, stderr=errors, stdout=errors)

    def ready() -> bool:
        if tracer.poll() is not None:
            raise JobError(f"vftrace ended with {tracer.returncode}: {log.read_text().strip()}")
        return "ready" in log.read_text().splitlines()

    try:
        wait_for("vftrace ready", TRACER_READY_S, ready)
        say(f"vftrace ready after {time.monotonic() - begun:.1f} s")
        yield
        tracer.send_signal(signal.SIGINT)
        if tracer.wait(60) != 0:
            raise JobError(f"vftrace ended with {tracer.returncode}: {log.read_text().strip()}")
    finally:
        tracer.kill()
        tracer.wait()
