# SPDX-License-Identifier: MIT
"""Mutated recordings for each seed, of small golden recordings."""

import random
from pathlib import Path

from msgspec.structs import replace

from tests.fuzz.mutator import file_of, mutated
from tests.fuzz.outputs import Fault, timed
from vftrace.collect.recording import Recording
from vftrace.model.host import HostInfo

GOLDEN = Path(__file__).parents[1] / "golden"
BIGGEST = 60_000
"""Packed bytes of the recordings that are mutated: many small ones find more than a few large ones."""


class Campaign:
    """Runs seeds; each kind of fault is reported once, and its recordings kept in `keep`."""

    def __init__(self, keep: Path) -> None:
        self.inputs = sorted(
            path for path in GOLDEN.rglob("*.vft.gz") if path.stat().st_size < BIGGEST
        )
        self.places: set[str] = set()
        self.slowest = "none was slow"
        self._keep = keep
        self._most = 0.5
        self._read: dict[Path, tuple[HostInfo, list[bytes]]] = {}

    def run(self, seed: int) -> list[Fault]:
        """The faults of this seed's recordings that are of a new kind."""
        self._keep.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, content in enumerate(self.recordings(seed)):
            paths.append(self._keep / f"{seed}-{number}.vft")
            paths[-1].write_bytes(content)
        found, seconds = timed(*paths)
        new = [fault for fault in found if fault.place not in self.places]
        self.places |= {fault.place for fault in new}
        if seconds > self._most:
            self._most, self.slowest = seconds, f"slowest: seed {seed}, {seconds:.1f} s of CPU"
        if not new:
            for path in paths:
                path.unlink()
        return new

    def recordings(self, seed: int) -> list[bytes]:
        """The mutated recording of this seed; sometimes two of one, as of one boot or of two hosts."""
        chance = random.Random(seed)
        path = chance.choice(self.inputs)
        if path not in self._read:
            recording = Recording(path)
            self._read[path] = recording.host, list(recording)
        host, records = self._read[path]
        found = [file_of(host, mutated(records, chance))]
        draw = chance.random()
        if draw < 0.3:
            other = host if draw < 0.1 else replace(host, boot_id="of-another-host")
            found.append(file_of(other, mutated(records, chance)))
        return found
