# SPDX-License-Identifier: MIT
"""Measures replay: events per second through decode, order and tracker, and peak memory.

    .venv/bin/python benchmarks/replay.py [--beside TREE] [--runs 5] [--million FILE] [RECORDING...]

Replays the three largest golden recordings and one of a million events that is made of these: copies
one after another, each with later times and pids and UUIDs of its own. With `--beside` an older tree
(from 0.1 on) replays the same files in turn, so that a busy machine is busy for both. Time is CPU time of the
replaying process; prints medians. `events/s` leaves out reading the file, `with file` has it in.
"""

import argparse
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vftrace import events
from vftrace.collect.recording import Recording, RecordingWriter
from vftrace.events import wire
from vftrace.events.layout import BODIES, Kind

HERE = Path(__file__).resolve().parent.parent
GOLDEN = HERE / "tests" / "golden"
MILLION = 1_000_000
PIDS_APART = 10_000_000

# Runs in either tree: `track` has the same meaning in all of them, only its module moved.
CHILD = """
import json, resource, sys, time
from itertools import islice
from pathlib import Path
try:
    from vftrace.collect.recording import Recording
    from vftrace.collect.replay import track
except ImportError:
    from vftrace.sources.recording import Recording
    from vftrace.sources.replay import track

reading = count = 0
recording = Recording(Path(sys.argv[1]))
records = iter(recording)

def batches():
    global reading, count
    while True:
        begun = time.process_time()
        batch = list(islice(records, 10_000))
        reading += time.process_time() - begun
        count += len(batch)
        if not batch:
            return
        yield from batch

begun = time.process_time()
tracker = track(batches())
replayed = time.process_time()
snapshot = tracker.snapshot()
print(json.dumps({
    "count": count,
    "rate": count / (replayed - begun - reading),
    "with_file": count / (replayed - begun),
    "snapshot_s": time.process_time() - replayed,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "migrations": len(snapshot.migrations),
}))
"""


def largest(number: int) -> list[Path]:
    """The golden recordings with the most records."""
    found = {path: sum(1 for _ in Recording(path)) for path in GOLDEN.rglob("*.vft.gz")}
    return sorted(found, key=lambda path: -found[path])[:number]


class Part:
    """The records of one recording, to be written again with other times, pids and sequence numbers."""

    def __init__(self, path: Path) -> None:
        recording = Recording(path)
        self.host = recording.host
        self.records = [record for record in recording if wire.decode(record).KIND != Kind.END]
        heads = [wire.HEADER.unpack_from(record) for record in self.records]
        self.first_ns = min(head[0] for head in heads)
        self.last_ns = max(head[0] for head in heads)
        self.lengths = {
            owner: max((head[1] + 1 for head in heads if head[5] == owner), default=0)
            for owner in (events.COLLECTOR, events.NO_PROCESS)
        }
        self._times = {kind: list(_offsets(kind)) for kind in BODIES}

    def copy(self, shift_ns: int, pids: int, seqs: dict[int, int]) -> Iterator[bytes]:
        """The records, `shift_ns` later and with `pids` added to every pid."""
        for record in self.records:
            at_ns, seq, size, kind, zero, tgid, tid = wire.HEADER.unpack_from(record)
            if kind not in BODIES:
                yield wire.encode(_renamed(wire.decode(record), shift_ns, pids, seqs))
                continue
            made = bytearray(record)
            if tgid in seqs:
                seq += seqs[tgid]
            else:
                tgid, tid = tgid + pids, tid + pids
            wire.HEADER.pack_into(made, 0, at_ns + shift_ns, seq, size, kind, zero, tgid, tid)
            for code, offset, add in self._times[Kind(kind)]:
                if offset + struct.calcsize(code) <= len(made):
                    (value,) = struct.unpack_from(code, made, offset)
                    if value:
                        struct.pack_into(code, made, offset, value + (pids if add else shift_ns))
            yield bytes(made)


def _offsets(kind: Kind) -> Iterator[tuple[str, int, bool]]:
    """(code, offset, whether it is a pid) of the fields that hold a time or a pid."""
    codes, names = BODIES[kind]
    split = re.findall(r"\d*[a-zA-Z]", codes)
    left = iter(names)
    offset = wire.HEADER.size
    for code in split:
        if code[-1] != "x":
            name = next(left)
            if name in ("pid", "sender_tid"):
                yield "<" + code, offset, True
            elif name.endswith("_ns") and kind is not Kind.CLOCK_SAMPLE:
                yield "<" + code, offset, False
        offset += struct.calcsize("<" + code)


def _renamed(event: events.Event, shift_ns: int, pids: int, seqs: dict[int, int]) -> events.Event:
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    fields["at_ns"] += shift_ns
    fields["seq"] += seqs.get(event.tgid, 0)
    if fields.get("pid"):
        fields["pid"] += pids
    if fields.get("uuid"):
        fields["uuid"] = f"{pids:08x}{fields['uuid'][8:]}"
    return type(event)(**fields)


def write_million(path: Path, sources: list[Path]) -> int:
    """Write the recording of a million events; returns how many they are."""
    parts = [Part(source) for source in sources]
    writer = RecordingWriter(path, parts[0].host)
    seqs = {events.COLLECTOR: 0, events.NO_PROCESS: 0}
    at_ns = parts[0].first_ns
    count = copies = 0
    while count < MILLION:
        part = parts[copies % len(parts)]
        made = list(part.copy(at_ns - part.first_ns, copies * PIDS_APART, seqs))[: MILLION - count]
        writer.write(made)
        count += len(made)
        copies += 1
        at_ns += part.last_ns - part.first_ns + 1_000_000_000
        seqs = {owner: seq + part.lengths[owner] for owner, seq in seqs.items()}
    head = (at_ns, seqs[events.COLLECTOR], events.COLLECTOR, 0)
    streams = {events.NO_PROCESS: seqs[events.NO_PROCESS]}
    writer.write([wire.encode(events.End(*head, streams=streams))])
    writer.close()
    return count + 1


def replay(tree: Path, path: Path) -> dict[str, float]:
    """What the child says of one replay by that tree."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path],
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print one line for each recording and tree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", type=Path, metavar="TREE")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--million", type=Path, metavar="FILE", help="keep the made recording here")
    parser.add_argument("recordings", nargs="*", type=Path)
    args = parser.parse_args()
    trees = {"this": HERE} | ({"beside": args.beside.resolve()} if args.beside else {})
    with tempfile.TemporaryDirectory() as directory:
        paths = [path.resolve() for path in args.recordings]
        if not paths:
            sources = largest(3)
            made = args.million or Path(directory) / "million.vft"
            write_million(made, sources)
            paths = [*sources, made.resolve()]
        results: dict[tuple[Path, str], list[dict[str, float]]] = defaultdict(list)
        for _ in range(args.runs):
            for path in paths:
                for name, tree in trees.items():
                    results[path, name].append(replay(tree, path))
    print(
        f"{'recording':24} {'events':>8} {'tree':8} {'events/s':>9} {'with file':>9} {'peak MiB':>9}"
    )
    for path in paths:
        rates = {}
        for name in trees:
            found = results[path, name]
            median = {key: statistics.median(run[key] for run in found) for key in found[0]}
            rates[name] = median["rate"]
            print(
                f"{path.name.split('.vft')[0]:24} {median['count']:8.0f} {name:8} {median['rate']:9.0f}"
                f" {median['with_file']:9.0f} {median['peak_mib']:9.0f}"
                + (f"   {rates['this'] / rates[name]:.2f} times" if name != "this" else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
