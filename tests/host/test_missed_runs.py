# SPDX-License-Identifier: MIT
"""Runs of vftrace's programs that the kernel really skips, in the middle of a migration.

The kernel skips a program on a tracepoint while another one is under way on that CPU (trace_call_bpf). Here the program
of a profiler reads user memory that is not there. The page fault has a tracepoint, and a program of vftrace is attached
to it.
"""

import asyncio
import ctypes
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.host.live import recorded
from vftrace.analysis.tracker import Tracker
from vftrace.collect.live import MISSED_EVERY_NS, LiveSource
from vftrace.collect.replay import events_of
from vftrace.demo import guest
from vftrace.demo.scenarios import FIRST_PAGE, MIB, Run, Scenario, play_scenario
from vftrace.events import MissedRuns
from vftrace.outputs.text.words import losses, warnings
from vftrace.probes.bpf import events, syscall

SOFTWARE, CPU_CLOCK = 1, 0
"""PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK."""
PERF_EVENT = 7
"""BPF_PROG_TYPE_PERF_EVENT."""
SKIPPED = 50
PROGRAM = "tp_send_exit"
"""Of the probe `channel`; a thread that sends nothing it ignores."""


def program_that_faults() -> bytes:
    """bpf_probe_read_user(stack, 8, 8): nothing is ever mapped at the address 8."""
    lines = (
        (0xBF, 0xA1, 0, 0),  # r1 = r10
        (0x07, 0x01, 0, -8),  # r1 -= 8
        (0xB7, 0x02, 0, 8),  # r2 = 8
        (0xB7, 0x03, 0, 8),  # r3 = 8
        (0x85, 0x00, 0, 112),  # call
        (0xB7, 0x00, 0, 0),  # r0 = 0
        (0x95, 0x00, 0, 0),  # exit
    )
    return b"".join(struct.pack("<BBhi", *line) for line in lines)


@contextmanager
def sampled(program: int) -> Iterator[None]:
    """Run a program at each 100 us of this thread's CPU time, in the timer's interrupt (bpf_overflow_handler)."""
    event = syscall.PerfEvent(type=SOFTWARE, config=CPU_CLOCK, sample_period=100_000)
    event.size = ctypes.sizeof(event)
    number = ctypes.c_long(syscall._number(syscall._PERF_EVENT_OPEN))
    this_thread = [ctypes.c_int(x) for x in (0, -1, -1)]
    opened = syscall._libc.syscall(number, ctypes.byref(event), *this_thread, ctypes.c_ulong(0))
    with os.fdopen(syscall._checked(opened)) as fd:
        fcntl.ioctl(fd, syscall.PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(fd, syscall.PERF_EVENT_IOC_ENABLE, 0)
        yield


def skip_runs(program: int, after_s: float) -> None:
    """Have the kernel skip a loaded program at least SKIPPED times, some ticks after a migration's beginning."""
    time.sleep(after_s)
    faults = syscall.load_program(PERF_EVENT, program_that_faults(), "GPL", "faults")

    def skipped() -> int:
        found = syscall.missed_runs(program)
        assert found is not None
        return found[1]

    with sampled(faults), closing(events.tracepoint(program, "exceptions:page_fault_kernel")):
        until = time.monotonic() + 10
        while skipped() < SKIPPED:
            assert time.monotonic() < until
    os.close(faults)


def test_a_migration_whose_runs_the_kernel_skipped_is_incomplete(tmp_path: Path) -> None:
    """The next migration is whole again."""
    source = LiveSource("tracepoint")
    program = source.probes._bpf.load(PROGRAM, syscall.TRACEPOINT)

    def played(name: str, meanwhile: Callable[[], None]) -> int:
        """Migrate; returns the source's pid."""

        async def steps(run: Run) -> None:
            start = await run.source(run.firmware(guest.fixed(FIRST_PAGE, 1024, 1000)))
            there = await run.destination(start)
            migration = await run.migrate(start, there, bandwidth=16 * MIB, downtime_ms=50)
            meanwhile()
            await run.arrived(migration)

        play = Scenario(name, name, steps)
        truth = asyncio.run(play_scenario(play, tmp_path, lambda line: None))
        return truth.attempts[0].source_pid

    with recorded(source) as records:
        pids = [played("skipped", lambda: skip_runs(program, after_s=0.2))]
        # Longer than from one reading of the counters to the next, which is then before the next migration.
        time.sleep(2 * MISSED_EVERY_NS / 1e9)
        pids.append(played("whole", lambda: None))
    tracker = Tracker()
    windows = []
    for event in events_of(records):
        tracker.feed(event)
        if isinstance(event, MissedRuns):
            windows.append(event.until_ns - event.since_ns)
    # The counters are read more often while a VM migrates, so that few other migrations are marked.
    assert min(windows) < MISSED_EVERY_NS / 2
    tracker.finish()
    snapshot = tracker.snapshot()
    found = {m.pid: m for m in snapshot.migrations}
    skipped, whole = (found[pid] for pid in pids)
    assert (skipped.outcome, whole.outcome) == ("completed", "completed")
    ((probe, reason, count),) = snapshot.missed_runs
    assert (probe, reason) == ("channel", "recursion")
    assert count >= SKIPPED
    assert skipped.missed_runs == (("channel", count),)
    assert skipped.incomplete
    assert (whole.incomplete, whole.missed_runs) == (False, ())
    said = f"{count} runs of probe channel were skipped by the kernel"
    assert f"INCOMPLETE: {said}; figures may be too small" in warnings(skipped)
    assert f"RUNS MISSED: {said}" in losses(snapshot)
