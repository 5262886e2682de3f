# SPDX-License-Identifier: MIT
"""Long and hostile lives, compressed: `python -m tests.soak [CASE]`. Prints what each took of time and memory.

Each case makes the events that the kernel side would send and feeds them as a live tracer does: through the order
window, with a snapshot and a scrape for every second that passes.
"""

import argparse
import gc
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from vftrace import events
from vftrace.analysis.tracker import Tracker
from vftrace.collect.order import Order
from vftrace.events import COLLECTOR, Event, layout
from vftrace.model.host import HostInfo
from vftrace.model.migration import Snapshot
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.metrics import Exporter

MS = 1_000_000
SECOND = 1000 * MS
PID, TID = 4711, 4720
RAM = 8 << 30
BITMAP = RAM // 4096 // 8
UUID = "3c0f8a7e-5d0b-4a3e-9f51-0a4b7c1d2e3f"
HOST = HostInfo("soak", "b" * 8, "6.1", "0", 0, (), ())
BATCH = 1024


class Life:
    """Numbers the events of some processes, and marks time as the collector does."""

    def __init__(self) -> None:
        self.at = SECOND
        self._seqs: dict[int, int] = {}
        self._next_tick = self.at

    def head(self, pid: int, tid: int, later_ns: int = 1000) -> tuple[int, int, int, int]:
        """Time, number, pid and thread of the next event of a process."""
        self.at += later_ns
        seq = self._seqs.get(pid, 0)
        self._seqs[pid] = seq + 1
        return self.at, seq, pid, tid

    def end(self, pid: int) -> None:
        """The pid's next process begins at 0 again."""
        self._seqs.pop(pid, None)

    def ticks(self) -> Iterator[Event]:
        """The ticks that are due."""
        while self.at >= self._next_tick:
            self._next_tick += 100 * MS
            yield events.Tick(*self.head(COLLECTOR, 1, 0))


def begun(life: Life, pid: int = PID, tid: int = TID) -> Iterator[Event]:
    """A VM of 8 GiB whose thread switches logging on."""
    yield events.VmCreated(*life.head(pid, pid), 3)
    yield events.Process(
        *life.head(COLLECTOR, 1),
        pid=pid,
        start_time=1,
        uuid=UUID,
        name="soak",
        vmm="qemu-system-x86_64",
        incoming=False,
        started_paused=False,
        late=False,
        running=False,
    )
    yield events.Region(*life.head(pid, pid), 0, 0, 0, RAM, 0, 0)
    yield events.VcpuCreated(*life.head(pid, pid + 1), 4, 0)
    yield events.Run(*life.head(pid, pid + 1), 0)
    yield events.Region(*life.head(pid, tid), 0, 1, 0, RAM, 0, 0)


def synced(life: Life, pid: int, tid: int, piece: int, bits: int) -> Iterator[Event]:
    """A dirty sync that returns one piece, and clears it."""
    enter = life.at + 1
    yield events.Piece(*life.head(pid, tid), enter, piece * 32768, 0, bits)
    yield events.GetDirtyLog(*life.head(pid, tid), enter, 1, BITMAP, BITMAP, 0, 0, 1, 0)
    enter = life.at + 1
    yield events.Piece(*life.head(pid, tid), enter, piece * 32768, 0, bits)
    yield events.ClearDirtyLog(
        *life.head(pid, tid), enter, 0, BITMAP, BITMAP, RAM // 4096, 0, 0, 1, 0
    )


def sent(life: Life, pid: int, tid: int, total: int, first: int) -> Event:
    """A report of what the channel has taken so far."""
    head = life.head(pid, tid)
    return events.Channel(*head, total, total // 1000 + 1, first, head[0], 0, 7, 0, tid, 0)


def called(life: Life) -> Iterator[Event]:
    """A write to the channel that waited for 60 ms, and a wait for a CPU."""
    head, until = life.head(COLLECTOR, 1), life.at
    began = until - 60 * MS
    yield events.Call(*head, began, until, 60 * MS, 60 * MS, 59 * MS, 0, 9, PID, TID, 46, 0, 7, 1)
    head = life.head(COLLECTOR, 1)
    yield events.OffCpu(*head, until - MS, until, PID, TID, events.OffCpu.QUEUED, 0)


def vcpu_time(life: Life, begun_ns: int, hold_ns: int) -> Event:
    """A sample of a vCPU that ran for a quarter of the time since `begun_ns`, while auto-converge held it for the rest;
    the last hold began at `hold_ns`."""
    head, until = life.head(COLLECTOR, 1), life.at
    passed = until - begun_ns
    ran: dict[str, Any] = dict.fromkeys(events.VcpuTime.__struct_fields__[4:], 0)
    known: dict[str, Any] = {
        "begun_ns": begun_ns,
        "until_ns": until,
        "guest_ns": passed // 4,
        "throttle_ns": passed - passed // 4,
        "held_from_ns": hold_ns,
        "held_state": events.VcpuTime.THROTTLE,
        "pid": PID,
        "thread": PID + 1,
        "wait": (0,) * layout.VCPU_WAITS,
    }
    return events.VcpuTime(*head, **ran | known)


def non_converging(rounds: int) -> Iterator[Event]:
    """A migration whose guest dirties memory as fast as it is sent, though auto-converge holds it: a round every 72 ms,
    for two hours at 100,000. Its calls and its vCPU are traced as in a blackout, all the time."""
    life = Life()
    yield from begun(life)
    first = life.at + 1
    yield events.CallsTraced(*life.head(COLLECTOR, 1), PID, True, first, "x86_64", 1000)
    for number in range(rounds):
        yield from synced(life, PID, TID, number % 64, (1 << 128) - 1 << number % 1000)
        yield sent(life, PID, TID, (number + 1) * 600_000, first)
        yield from called(life)
        life.at += 72 * MS
        yield vcpu_time(life, first, life.at - 54 * MS)
        yield from life.ticks()


def sessions(count: int) -> Iterator[Event]:
    """One process that begins and ends a migration every 0.8 ms, each with a thread of its own."""
    life = Life()
    yield from begun(life)
    for number in range(count):
        tid = TID + 1 + number
        yield events.Region(*life.head(PID, tid), 0, 1, 0, RAM, 0, 0)
        yield from synced(life, PID, tid, 0, 1)
        yield sent(life, PID, tid, (number + 1) * 1000, SECOND)
        yield events.Region(*life.head(PID, tid), 0, 0, 0, RAM, 0, 0)
        life.at += MS // 2
        yield from life.ticks()


def slots_and_threads(count: int) -> Iterator[Event]:
    """A process with 30,000 memslots that are all logged, and `count` threads that read a log and end."""
    life = Life()
    yield from begun(life)
    for slot in range(1, 30_000):
        yield events.Region(*life.head(PID, TID), slot, 1, 0, 4096 * 64, 0, 0)
    for number in range(count):
        tid = TID + 1 + number
        yield from synced(life, PID, tid, 0, 1)
        yield events.ThreadExit(*life.head(PID, tid))
        yield from life.ticks()


def vms(count: int) -> Iterator[Event]:
    """VMs that come, migrate and end, one after the other."""
    life = Life()
    for number in range(count):
        pid = 10_000 + 2 * number
        yield from begun(life, pid, pid + 1)
        yield from synced(life, pid, pid + 1, 0, 1)
        yield sent(life, pid, pid + 1, 1000, life.at)
        yield events.Exit(*life.head(pid, pid), 0)
        life.end(pid)
        life.at += 5 * MS
        yield from life.ticks()


@dataclass(frozen=True)
class Result:
    """What a case took. `peak` is the most memory that Python held, in bytes; `scrape` the slowest, in seconds."""

    events: int
    seconds: float
    peak: int
    scrape: float
    snapshot: Snapshot

    def __str__(self) -> str:
        return (
            f"{self.events} events, {self.seconds:.1f} s of CPU, at most {self.peak / 2**20:.1f} MiB,"
            f" slowest scrape {self.scrape * 1000:.0f} ms"
        )


def run(stream: Iterable[Event], *, traced: bool = True) -> Result:
    """Feed the events; `traced` False leaves memory unmeasured, which is several times as fast."""
    tracker, order = Tracker(), Order()
    counted = slowest = 0.0
    count = 0
    exporter = Exporter(300 * SECOND, lambda line: None)
    registry = CollectorRegistry()
    registry.register(exporter)
    exporter.read = lambda: Reading(tracker.snapshot(), tracker._now_ns, HOST, (), {}, ended=False)
    next_scrape = 0
    gc.collect()
    if traced:
        tracemalloc.start()
    before = time.process_time()
    rest = iter(stream)
    while batch := list(islice(rest, BATCH)):
        count += len(batch)
        for event in order.push(batch):
            tracker.feed(event)
        if tracker._now_ns >= next_scrape:
            # A scrape for every second is most of the work where nothing else happens.
            next_scrape = tracker._now_ns + SECOND
            began = time.process_time()
            generate_latest(registry)
            slowest = max(slowest, time.process_time() - began)
    for event in order.flush():
        tracker.feed(event)
    counted = time.process_time() - before
    peak = tracemalloc.get_traced_memory()[1] if traced else 0
    if traced:
        tracemalloc.stop()
    return Result(count, counted, peak, slowest, tracker.snapshot())


CASES: dict[str, tuple[Callable[[int], Iterator[Event]], int]] = {
    "non-converging": (non_converging, 100_000),
    "sessions": (sessions, 25_275),
    "slots-and-threads": (slots_and_threads, 50_000),
    "vms": (vms, 20_000),
}


def main() -> int:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("case", nargs="*", choices=[*CASES, []])
    parser.add_argument("--scale", type=float, default=1.0, help="of how many there are")
    parser.add_argument(
        "--memory", action="store_true", help="measure memory, at a fifth of the speed"
    )
    args = parser.parse_args()
    for name in args.case or CASES:
        make, full = CASES[name]
        count = round(full * args.scale)
        print(f"{name} {count}: {run(make(count), traced=args.memory)}", flush=True)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"largest resident size of all: {kib / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
