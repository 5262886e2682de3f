# SPDX-License-Identifier: MIT
"""A user of /dev/kvm who means harm, beside a VM that migrates: its migration is right or marked in every case, and
when the attack ends the tracer is back within two seconds, with empty tables and bounded memory.

All attacks are made on one tracer, one after the other. VFTRACE_ATTACKS=full makes them as large as the ones that once
hid a victim; in CI they are smaller.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.programs import compiled
from tests.host.pumping import until
from tests.kernel_tables import entries, vms_of
from vftrace.collect.clock import boottime_ns
from vftrace.collect.pump import Pump
from vftrace.collect.remote import ReaderProcess, RemoteSource
from vftrace.model.migration import Migration

HERE = Path(__file__).parent
SLOTS = HERE.parents[1] / "benchmarks" / "kvmslots.py"
BACK_S = 2
LATE_NS = 400_000_000
"""The reader writes ten ticks a second, which say up to when all is known."""
READER_KIB, MAIN_KIB = 16 << 10, 8 << 10
"""How much more memory the processes may have after an attack. The main process keeps an attacker's figures
for half a minute, as those of any migration that ended, and they are bounded."""

FULL = os.environ.get("VFTRACE_ATTACKS") == "full"
ATTACKS = {
    "VMs of one user": ("vms", "4097" if FULL else "600"),
    "threads in one KVM call": ("threads", "9000" if FULL else "8500"),
    "processes with 32 fds each": ("fds", "512" if FULL else "100", "32"),
    "threads that read an 8 GiB dirty log": ("logs", "64" if FULL else "8"),
    "memory slots": ("slots", "32764" if FULL else "8000"),
    "words on a command line": ("argv", "600000"),
    "region arguments that change during the call": ("regions",),
}


@dataclass
class Tracer:
    """A tracer as `serve` has it: a reader process, and a pump here."""

    pump: Pump
    reader: int

    def resident_kib(self) -> tuple[int, int]:
        """Resident memory of the reader, and of this process."""
        return _resident_kib(self.reader), _resident_kib(os.getpid())

    def entries_of_ended(self, before: set[int]) -> int:
        """Entries of the kernel tables that are not of a VM that runs, or was there `before`: other tests may start VMs
        at any time."""
        others = {pid for pid in vms_of(self.reader) if Path(f"/proc/{pid}").exists()}
        return entries(self.reader, before | others).total()

    def grown(self, before: tuple[int, int]) -> tuple[int, int]:
        """By how many KiB the two have more resident memory than before."""
        reader, main = self.resident_kib()
        return reader - before[0], main - before[1]

    def is_late(self) -> bool:
        """Whether what happened lately is not known yet."""
        return boottime_ns() - self.pump.snapshot().at_ns > LATE_NS


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    process = ReaderProcess()
    source: RemoteSource = process.wait()
    pump = Pump(source)
    try:
        yield Tracer(pump, process.pid)
    finally:
        pump.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(HERE / "neighbour.c", tmp_path_factory.mktemp("neighbour"))


@contextmanager
def attack(program: Path, arguments: tuple[str, ...], pump: Pump) -> Iterator[None]:
    """An attacker in full swing; all of its processes have ended afterwards."""
    # Not about the CPU, of which an attacker may have as much as its cgroup allows.
    command = ["nice", "-n", "10", str(program), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        said = b""

        def read() -> bytes | None:
            nonlocal said
            with_more = child.stdout.read() if child.stdout is not None else b""
            said += with_more or b""
            return with_more

        until(pump, lambda: read() == b"" or said == b"ready\n")
        assert said == b"ready\n"
        try:
            yield
        finally:
            child.stdin.close()
            # They all have its standard output.
            until(pump, lambda: read() == b"")


def migrated(pump: Pump) -> tuple[dict[str, list[int | None]], Migration]:
    """A victim's migration, and what it did: pages of slots without a guest that KVM was made to dirty."""
    with subprocess.Popen(
        [sys.executable, str(SLOTS), "exact", "--gib", "1"], stdout=subprocess.PIPE
    ) as child:
        until(pump, lambda: child.poll() is not None)
        assert child.stdout is not None
        truth = json.load(child.stdout)

    def seen() -> list[Migration]:
        return [m for m in pump.snapshot().migrations if m.pid == child.pid and m.ended_at_ns]

    until(pump, lambda: bool(seen()))
    return truth, seen()[0]


def is_right(truth: dict[str, list[int | None]], migration: Migration) -> bool:
    return [r.new_pages for r in migration.rounds] == truth["new"] and not migration.incomplete


def is_right_or_marked(truth: dict[str, list[int | None]], migration: Migration) -> bool:
    """Whether every number of pages is the true one, or none and the slot says why, or the whole is marked."""
    if migration.incomplete:
        return True
    rounds = migration.rounds
    return len(rounds) == len(truth["new"]) and all(
        round_.new_pages == wanted
        or (
            round_.new_pages is None
            and all(s.not_counted for s in round_.slots if s.new_pages is None)
        )
        for round_, wanted in zip(rounds, truth["new"], strict=True)
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_a_victims_migration_is_right_or_marked(name: str, program: Path, tracer: Tracer) -> None:
    pump = tracer.pump
    others = vms_of(tracer.reader)
    before = tracer.resident_kib()
    with attack(program, ATTACKS[name], pump):
        truth, migration = migrated(pump)
        assert is_right_or_marked(truth, migration)
    _within(BACK_S, pump, lambda: not tracer.is_late())
    _within(BACK_S, pump, lambda: tracer.grown(before)[1] < MAIN_KIB)
    truth, migration = migrated(pump)
    assert is_right(truth, migration)
    until(pump, lambda: not tracer.entries_of_ended(others))
    assert tracer.grown(before)[0] < READER_KIB


def _within(seconds: float, pump: Pump, done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        pump.step()


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
