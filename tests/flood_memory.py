# SPDX-License-Identifier: MIT
"""Prints the memory of the main process and of the reader before, during and after an attack on dirty logs.

python -m tests.flood_memory [THREADS]
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.host import test_neighbours as neighbours
from tests.host.programs import compiled
from vftrace.collect.clock import boottime_ns
from vftrace.collect.pump import Pump
from vftrace.collect.remote import ReaderProcess
from vftrace.host import memory

ATTACK_S = 4
AFTER_S = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5)


def main(threads: str) -> None:
    """Print a line for each time: seconds after the attack, resident MiB of both, and how late the main process is."""
    reader = ReaderProcess()
    pump = Pump(reader.wait())
    tracer = neighbours.Tracer(pump, reader.pid)

    def show(at: str) -> None:
        main_mib, reader_mib = (
            neighbours._resident_kib(pid) / 1024 for pid in (os.getpid(), reader.pid)
        )
        late = (boottime_ns() - pump.snapshot().at_ns) / 1e9
        print(
            f"{at:>8}: main {main_mib:5.1f}, reader {reader_mib:5.1f}, late {late:.1f} s",
            flush=True,
        )

    def steps(seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pump.step()
            yield

    with tempfile.TemporaryDirectory() as directory:
        program = compiled(neighbours.HERE / "neighbour.c", Path(directory))
        neighbours.migrated(pump)  # what is imported for the first migration is not the attack's
        list(steps(1))
        memory.give_back()
        show("before")
        most = [0, 0]
        with neighbours.attack(program, ("logs", threads), pump):
            for _ in steps(ATTACK_S):
                most = [max(pair) for pair in zip(most, tracer.resident_kib(), strict=True)]
        print(f"    most: main {most[1] / 1024:5.1f}, reader {most[0] / 1024:5.1f}")
        ended = time.monotonic()
        for after in AFTER_S:
            list(steps(ended + after - time.monotonic()))
            show(f"{after} s")
    pump.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "8")
