# SPDX-License-Identifier: MIT
"""A thread that makes many short calls of a kind: only some are timed, but all are counted, and a long one is found."""

import json
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vftrace.events import layout
from vftrace.events.layout import Kind
from vftrace.probes.calls import BUCKETS, CallProbes
from vftrace.probes.loader import Probes
from vftrace.syscalls import name_of

_RECORD = struct.Struct("=" + layout.HEADER[0] + layout.BODIES[Kind.CALL][0])
_NS, _LONGEST, _NR, _FD, _COUNT = 9, 10, 16, 18, 19
BURST = 1000

# In each line's order, all calls are readv of one fd: a burst, then one call that the child itself times.
CHILD = f"""
import json, os, sys, time
zero, (pipe, end) = os.open("/dev/zero", os.O_RDONLY), os.pipe()
print(json.dumps([zero, pipe]), flush=True)
one, space = bytearray(1), bytearray(256 << 20)
for line in sys.stdin:
    fd, size = (zero, len(space)) if line == "computes\\n" else (pipe, 1)
    if fd == pipe:
        os.write(end, bytes({BURST}))
        if not os.fork():
            time.sleep(0.05)
            os.write(end, b"x")
            os._exit(0)
    for _ in range({BURST}):
        os.readv(fd, [one])
    last = [memoryview(space)[:size]] * 3
    began = time.monotonic_ns()
    os.readv(fd, last)
    lasted = time.monotonic_ns() - began
    time.sleep(0.01)
    print(json.dumps(lasted), flush=True)
"""


class Traced:
    """A child whose calls are traced, as those of a destination."""

    def __init__(self, probes: Probes, records: list[bytes]) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.zero, self.pipe = self._answer()
        self._probes, self._records = probes, records

    def _answer(self) -> list[int]:
        assert self.child.stdout is not None
        found = json.loads(self.child.stdout.readline())
        return found if isinstance(found, list) else [found]

    def order(self, what: str) -> int:
        """Have the child make its calls; how long the last of them took, by its own clock."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{what}\n")
        self.child.stdin.flush()
        return self._answer()[0]

    def calls(self, fd: int) -> tuple[int, int, int]:
        """How many calls of readv were recorded on an fd, how long they took together, and the longest one."""
        self._probes.poll(0)
        self._records += self._probes.calls.settled(self.child.pid)
        found = [_RECORD.unpack(r) for r in self._records if len(r) == _RECORD.size]
        own = [f for f in found if f[_FD] == fd and _name(f[_NR]) == "readv"]
        return sum(f[_COUNT] for f in own), sum(f[_NS] for f in own), max(f[_LONGEST] for f in own)


def _name(nr: int) -> str:
    return name_of(platform.machine(), nr)


@pytest.fixture
def traced() -> Iterator[Traced]:
    records: list[bytes] = []
    with Probes(records.append) as probes:
        one = Traced(probes, records)
        assert probes.calls.trace(one.child.pid, always=True) is not None
        yield one
        assert probes.calls.missed() == {one.child.pid: 0}
    one.child.kill()
    one.child.wait()


def test_a_call_that_sleeps_after_a_burst_is_as_long_as_it_was(traced: Traced) -> None:
    lasted = traced.order("sleeps")
    count, ns, longest = traced.calls(traced.pipe)
    assert count == BURST + 1
    assert longest == pytest.approx(lasted, rel=0.05)
    # The others take a microsecond each, not a share of the long one.
    assert ns - longest < lasted


def test_a_call_that_computes_after_a_burst_is_found(traced: Traced) -> None:
    """It does not leave its CPU, so its beginning is known only to the jiffy, or to the latest timed call."""
    lasted = traced.order("computes")
    count, _, longest = traced.calls(traced.zero)
    assert count == BURST + 1
    assert lasted > 12_000_000
    assert longest == pytest.approx(lasted, abs=10_000_000)


def test_processes_with_the_same_bits_are_told_apart(traced: Traced) -> None:
    calls: CallProbes = traced._probes.calls
    pid = traced.child.pid
    others = [pid + n * BUCKETS for n in (1, 2, 3)]
    calls.untrace(pid)
    for each in (*others[:2], pid, others[2]):
        assert calls.trace(each, always=True) is not None
    for each in (others[0], others[2]):
        calls.untrace(each)
    traced.order("sleeps")
    assert traced.calls(traced.pipe)[0] == BURST + 1
    calls.untrace(others[1])
    traced.order("sleeps")
    assert traced.calls(traced.pipe)[0] == 2 * (BURST + 1)
