"""What a report holds in memory does not follow how much a recording unpacks to, where its records say nothing new."""

import gzip
import subprocess
import sys
from pathlib import Path

from tests.fuzz.mutator import file_of
from tests.unit.golden_text import recording
from vftrace import events
from vftrace.collect.recording import Recording
from vftrace.events import COLLECTOR, wire

MIB = 1 << 20

RSS = """
import sys
from vftrace.cli import main
code = main(["report", sys.argv[1]])
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("KiB", peak, code)
"""


def bomb(path: Path, count: int) -> int:
    """A packed recording of ticks whose time stands still; returns how much it unpacks to."""
    host = Recording(recording("boot")).host
    ticks = [wire.encode(events.Tick(10**9, seq, COLLECTOR, 1)) for seq in range(count)]
    content = file_of(host, ticks)
    path.write_bytes(gzip.compress(content, 1))
    return len(content)


def resident(path: Path) -> int:
    """The most memory that a report of it takes, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", RSS, str(path)], capture_output=True, text=True, timeout=120
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
