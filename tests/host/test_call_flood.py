# SPDX-License-Identifier: MIT
"""A VMM that makes very many calls while its guest is stopped: its records are bounded, and the rest is counted."""

import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from vftrace.events import layout
from vftrace.events.layout import Kind
from vftrace.probes.loader import Probes

_RECORD = struct.Struct("=" + layout.HEADER[0] + layout.BODIES[Kind.CALL][0])

# Calls on 100,000 different fds, none of which is open: each is a kind of its own.
FLOOD = """
import os
fds = range(1000, 101000)
while True:
    for fd in fds:
        try:
            os.fsync(fd)
        except OSError:
            pass
"""
# One call in 10 ms, and it sleeps.
QUIET = "import time\nwhile True: time.sleep(0.01)"
SECONDS = 2
MAX_IN_100_MS, MAX_SUMS = 2000, 2048
"""bpf/calls.h"""


@pytest.fixture
def children() -> Iterator[tuple[int, int]]:
    started = [subprocess.Popen([sys.executable, "-c", text]) for text in (FLOOD, QUIET)]
    time.sleep(0.3)
    yield started[0].pid, started[1].pid
    for each in started:
        each.kill()
        each.wait()


def test_a_flood_of_calls_is_bounded_and_counted(children: tuple[int, int]) -> None:
    loud, quiet = children
    records: list[bytes] = []
    with Probes(records.append) as probes:
        calls = probes.calls
        for pid in children:
            assert calls.trace(pid, always=True) is not None
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            probes.poll(20)
        lasted = time.monotonic() - began
        missed, left = calls.missed(), calls.settled(loud)
        lost = probes.lost()
    found = Counter(_RECORD.unpack(record)[5] for record in records if len(record) == _RECORD.size)
    assert found[loud] <= MAX_IN_100_MS * (lasted / 0.1 + 1)
    assert len(left) <= MAX_SUMS
    assert missed[loud] > MAX_IN_100_MS
    # The other one has lost nothing, and neither has the ring buffer.
    assert missed[quiet] == 0
    assert found[quiet] > 10
    assert lost == (0, 0)


def test_who_is_not_traced_sends_nothing(
    children: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, quiet = children
    records: list[bytes] = []
    with Probes(records.append) as probes:
        assert probes.calls.trace(quiet, always=True) is not None
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            probes.poll(20)
        found = {_RECORD.unpack(r)[5] for r in records if len(r) == _RECORD.size}
        probes.calls.untrace(quiet)
        probes.poll(20)
        records.clear()
        time.sleep(0.2)
        probes.poll(20)
        assert [r for r in records if len(r) == _RECORD.size] == []
        probes.calls.detach_unused()
        assert probes.calls.status.method is not None  # another migration may begin soon
        monkeypatch.setattr("vftrace.probes.on_demand.LINGER_NS", 0)
        probes.calls.detach_unused()
        assert probes.calls.status.method is None
        assert probes.calls.status.waits
    assert found == {quiet}


def test_doctor_takes_a_quiet_host_for_no_fault() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "vftrace", "doctor"], capture_output=True, text=True, check=False
    )
    (line,) = [line for line in said.stdout.splitlines() if "probe calls" in line]
    # Another VM of this machine may migrate, but this process does not trace it.
    assert line.split()[:3] == ["ok", "probe", "calls"]
