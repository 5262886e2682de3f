# SPDX-License-Identifier: MIT
"""What a flight recorder costs beside the same work without one: `python -m tests.recording_cost`.

In this process, so that others on the machine change little: CPU time for each migration of the golden recordings, and
CPU time a second beside idle VMs.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests import soak
from tests.unit.recorded import LIMITS, Slices
from vftrace import events
from vftrace.archive.flight import FlightRecorder
from vftrace.collect.batch import Batch
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording
from vftrace.events import wire
from vftrace.model.host import HostInfo

GOLDEN = Path(__file__).parent / "golden" / "recordings"
SECONDS, STEP_NS = 60, 20_000_000
TIMES = 3


class Batches:
    """A source that gives batches which were made before."""

    def __init__(self, host: HostInfo, batches: Sequence[Batch]) -> None:
        self.host = host
        self.ended = False
        self._rest = iter(batches)

    def now_ns(self) -> int:
        """It has no clock."""
        return 0

    def read(self) -> Batch:
        """The next batch."""
        batch = next(self._rest, None)
        self.ended = batch is None
        return batch or Batch()

    def close(self) -> Batch:
        """Nothing more."""
        self.ended = True
        return Batch()


def cpu_s(source: "Batches | Slices", directory: Path | None) -> float:
    """CPU time of a pump, with a recorder if there is a directory for one."""
    recorder = None
    if directory is not None:
        recorder = FlightRecorder(directory, LIMITS, lambda line: None)
    pump = Pump(source, recorder=recorder)
    before = time.process_time()
    while not pump.ended:
        pump.step()
    return time.process_time() - before


def migrations() -> tuple[float, int]:
    """By how much longer the golden recordings take with a recorder, in s, and how many files it kept."""
    more, files = 0.0, 0
    for path in sorted(GOLDEN.glob("*.vft.gz")):
        recording = Recording(path)
        records = list(recording)
        with tempfile.TemporaryDirectory() as name:
            kept = Path(name) / "kept"
            plain = cpu_s(Slices(recording.host, records), None)
            more += cpu_s(Slices(recording.host, records), kept) - plain
            files += len(list(kept.glob("*.vft.gz")))
    return more, files


def idle(vms: int, records: int) -> list[Batch]:
    """A minute of VMs that do not migrate, `records` records of them each 20 ms."""
    life = soak.Life()
    begun = [
        e for n in range(vms) for e in [*soak.begun(life, 10_000 + 2 * n, 10_001 + 2 * n)][:-1]
    ]
    found = [begun]
    for _ in range(SECONDS * 1_000_000_000 // STEP_NS):
        life.at += STEP_NS
        pids = [10_000 + 2 * (n % vms) for n in range(records)]
        found.append([*life.ticks(), *(events.Run(*life.head(pid, pid + 1), 0) for pid in pids)])
    return [Batch([wire.encode(event) for event in each], each) for each in found]


def main() -> None:
    """Print each case some times."""
    for _ in range(TIMES):
        more, files = migrations()
        print(f"{files} migrations: {1000 * more / files:.1f} ms of CPU more for each", flush=True)
    host = Recording(GOLDEN / "boot.vft.gz").host
    for vms, records in ((20, 0), (1000, 0), (1000, 20)):
        for _ in range(TIMES):
            batches = idle(vms, records)
            plain = cpu_s(Batches(host, batches), None)
            with tempfile.TemporaryDirectory() as name:
                kept = cpu_s(Batches(host, batches), Path(name) / "kept")
            print(
                f"{vms} idle VMs, {records * 50} records a second:"
                f" {1000 * plain / SECONDS:.2f} ms a second, with a recorder {1000 * kept / SECONDS:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
