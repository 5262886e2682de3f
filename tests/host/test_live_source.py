# SPDX-License-Identifier: MIT
"""The live source while records come faster than it reads them."""

import subprocess
import sys
import time

from vftrace.collect.live import POLL_MS, READ_S, LiveSource
from vftrace.events import Clock, Event, Tick

CALLS = 20_000
SLOW_S = 0.0001

# A VM fd and KVM_GET_CLOCK, a record each, as fast as it goes.
PRODUCER = f"""
import fcntl, os
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
for _ in range({CALLS}):
    fcntl.ioctl(vm, 0x8030AE7C, bytes(48))
"""


def test_a_flood_neither_holds_the_reader_nor_loses_records() -> None:
    """A reader that needs ten times as long as the producer comes back in time, and gets all in the end."""
    source = LiveSource()
    take = source._on_kernel_record

    def slowly(record: bytes) -> None:
        until = time.perf_counter() + SLOW_S
        while time.perf_counter() < until:
            pass
        take(record)

    source.probes._on_record = slowly
    took: list[float] = []
    worked: list[float] = []
    found: list[Event] = []
    try:
        with subprocess.Popen([sys.executable, "-c", PRODUCER]) as child:
            while sum(isinstance(event, Clock) for event in found) < CALLS:
                begun, before = time.monotonic(), time.thread_time()
                found += source.read().events
                took.append(time.monotonic() - begun)
                worked.append(time.thread_time() - before)
                assert len(took) < 1000
        assert child.returncode == 0
        found += source.read().events
    finally:
        source.close()
    # Of its own time, as on a busy machine it waits for a CPU besides; but for a few in which it may have had to attach
    # probes, because another VM of this machine began to migrate.
    assert sorted(worked)[-4] < READ_S + POLL_MS / 1000 + 0.3
    assert sum(seconds > READ_S for seconds in took) >= 3, (
        "the producer was not faster than the reader"
    )
    # A tick means that all records before it are known.
    known = 0
    for event in found:
        if isinstance(event, Tick):
            known = event.at_ns
        elif isinstance(event, Clock):
            assert event.at_ns > known - 1_000_000
