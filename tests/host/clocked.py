# SPDX-License-Identifier: MIT
"""Measures requests with the kernel's own tracer: ftrace's events of system calls, in an instance of its own.

Nothing of it comes from vftrace: neither the events, nor the clock, which is the CPU's cycle counter.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

INSTANCES = Path("/sys/kernel/tracing/instances")
BUFFER_KIB = 8192
EVENTS = (
    "syscalls/sys_enter_ioctl",
    "syscalls/sys_exit_ioctl",
    "sched/sched_switch",
    "sched/sched_wakeup",
)
_LINE = re.compile(r"-(?P<thread>\d+) +\[\d+\] \S+ +(?P<at>\d+): (?P<event>.*)$")
_SWITCH = re.compile(r"sched_switch: .* prev_pid=(\d+) .*prev_state=(\S+) ==> .* next_pid=(\d+)")
_WAKEUP = re.compile(r"sched_wakeup: .* pid=(\d+)")


@dataclass
class Requests:
    """Requests of one number, known when they are over: how long each took, in ns, in the order in which they ended.

    Without the time in which the thread waited for a CPU."""

    ns: list[float] = field(default_factory=list)


@contextmanager
def requests(pids: Iterable[int], number: int) -> Iterator[Requests]:
    """Measure the ioctls with this number that some processes make, with the threads that they start."""
    instance = INSTANCES / f"vftrace-test-{os.getpid()}"
    instance.mkdir()
    found = Requests()
    events = instance / "events"
    try:
        (instance / "trace_clock").write_text("x86-tsc")
        (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
        (instance / "options/event-fork").write_text("1")
        tasks = [task.name for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
        (instance / "set_event_pid").write_text(" ".join(tasks))
        (events / EVENTS[0] / "filter").write_text(f"cmd == {number:#x}")
        _mark(instance)
        for name in EVENTS:
            (events / name / "enable").write_text("1")
        yield found
        for name in EVENTS:
            (events / name / "enable").write_text("0")
        _mark(instance)
        lost = [
            line
            for stats in instance.glob("per_cpu/cpu*/stats")
            for line in stats.read_text().splitlines()
            if line.startswith(("overrun", "dropped")) and not line.endswith(": 0")
        ]
        assert not lost, lost
        found.ns += lengths((instance / "trace").read_text().splitlines())
    finally:
        instance.rmdir()


def _mark(instance: Path) -> None:
    """Write the time in ns beside the cycles."""
    (instance / "trace_marker").write_text(str(time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)))


def lengths(lines: Iterable[str]) -> Iterator[float]:
    """Return how long each request took, in ns, from the text of the trace and its two marks."""
    marks: list[tuple[int, int]] = []
    entered: dict[str, int] = {}
    waits: dict[str, int] = {}
    cycles: list[int] = []
    for line in lines:
        found = _LINE.search(line)
        if found is None:
            continue
        thread, at, event = found["thread"], int(found["at"]), found["event"]
        if event.startswith("tracing_mark_write: "):
            marks.append((at, int(event.split()[1])))
        elif event.startswith("sys_ioctl("):
            entered[thread] = at
            waits.pop(thread, None)
        elif event.startswith("sys_ioctl ->") and thread in entered:
            cycles.append(at - entered.pop(thread))
        elif switch := _SWITCH.match(event):
            before, state, after = switch.groups()
            if state.startswith("R"):
                waits[before] = at
            if after in waits:
                waited = at - waits.pop(after)
                # As if the call had begun so much later.
                if after in entered:
                    entered[after] += waited
        elif wakeup := _WAKEUP.match(event):
            waits[wakeup[1]] = at
    first, last = marks
    per_cycle = (last[1] - first[1]) / (last[0] - first[0])
    return (each * per_cycle for each in cycles)
