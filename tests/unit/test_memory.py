# SPDX-License-Identifier: MIT
"""What a report holds in memory does not follow how much a recording unpacks to, where its records say nothing new."""

import gzip
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests import soak
from tests.fuzz.mutator import file_of
from tests.unit.golden_text import recording
from tests.unit.packed_bitmaps import nearly_whole
from tests.unit.test_metrics import encode_any
from vftrace import events
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.events import COLLECTOR, wire

MIB = 1 << 20

FACTOR, CONSTANT = 8, 64 * MIB
"""What a report may take: so many times the bytes that its recordings unpack to, and so much besides (SECURITY.md)."""

RSS = """
import sys
from vftrace.cli import main
code = main(["report", *sys.argv[1:]])
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("KiB", peak, code)
"""


def bomb(path: Path, count: int) -> int:
    """Write a packed recording of ticks whose time does not advance; returns its unpacked size."""
    host = Recording(recording("boot")).host
    ticks = [wire.encode(events.Tick(10**9, seq, COLLECTOR, 1)) for seq in range(count)]
    content = file_of(host, ticks)
    path.write_bytes(gzip.compress(content, 1))
    return len(content)


def resident(*paths: Path) -> int:
    """The most memory that a report of them takes, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", RSS, *map(str, paths)], capture_output=True, text=True, timeout=120
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("KiB ")]
    _, kib, code = line.split()
    assert code == "0", done.stderr
    return int(kib) * 1024


def test_a_file_that_unpacks_to_twice_as_much_takes_no_more_memory(tmp_path: Path) -> None:
    sizes = [bomb(tmp_path / f"{n}.vft.gz", n) for n in (150_000, 300_000)]
    once, twice = (resident(tmp_path / f"{n}.vft.gz") for n in (150_000, 300_000))
    assert sizes[1] - sizes[0] > 5 * MIB
    # 0.58 MB of gzip with equal times took 1.4 GiB once.
    assert twice - once < 2 * MIB
    assert twice < 96 * MIB


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize(
    "records",
    [
        lambda: nearly_whole(40_000),
        lambda: map(encode_any, soak.vms(400)),
        lambda: map(encode_any, soak.slots_and_threads(400)),
        lambda: map(encode_any, soak.non_converging(1500)),
    ],
    ids=["packed-bitmaps", "vms", "slots", "rounds"],
)
def test_memory_follows_the_size_of_the_recordings(
    records: Callable[[], Iterable[bytes]], files: int, tmp_path: Path
) -> None:
    """Small records that hold much took 1.2 GiB for 2.6 MB of them, and two files twice that."""
    content = file_of(Recording(recording("boot")).host, list(records()))
    paths = [tmp_path / f"{number}.vft" for number in range(files)]
    for path in paths:
        path.write_bytes(content)
    assert resident(*paths) < CONSTANT + FACTOR * files * len(content)


def test_bitmaps_that_wait_for_their_call_are_held_packed() -> None:
    """Of many processes at once, as far as a file is long."""
    tracker = Tracker()
    tracemalloc.start()
    try:
        size = 0
        for record in nearly_whole(20_000):
            size += len(record)
            tracker.feed(wire.decode(record))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < FACTOR * size
