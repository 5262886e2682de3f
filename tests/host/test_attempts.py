# SPDX-License-Identifier: MIT
"""Two attempts of one process whose channels have the same fd: each has the bytes it sent."""

import json
import subprocess
import sys
from pathlib import Path

from tests.host.pumping import until
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KIB = 1024
SENT = (8192 * KIB, 64 * KIB)

# Both attempts last less than the time between two reports of a channel (bpf/channel.h, REPORT_NS).
VMM = f"""
import json, os
from concurrent.futures import ThreadPoolExecutor
from kvmslots import GIB, PAGE, Bitmap, Vm

def attempt(vm, bitmap, size):
    channel = os.open("/dev/null", os.O_WRONLY)
    vm.log(0, on=True)
    os.write(channel, bytes(16))
    for part in (PAGE, size - PAGE - 16):
        vm.get(0, bitmap)
        os.write(channel, bytes(part))
    vm.log(0, on=False)
    os.close(channel)
    return channel

with Vm(0) as vm, ThreadPoolExecutor(1) as thread:
    bitmap = Bitmap(GIB // PAGE)
    vm.add_slot(0, 4 * GIB, GIB)
    print(json.dumps([thread.submit(attempt, vm, bitmap, size).result() for size in {SENT}]))
"""


def test_what_one_attempt_sent_is_not_the_next_ones() -> None:
    pump = Pump(LiveSource())
    try:
        with subprocess.Popen(
            [sys.executable, "-c", VMM], cwd=BENCHMARKS, stdout=subprocess.PIPE
        ) as child:
            until(pump, lambda: child.poll() is not None)
            assert child.stdout is not None
            first, second = json.load(child.stdout)
        assert first == second, "the kernel gave another fd"
        for _ in range(10):
            pump.step()
        found = [m for m in pump.snapshot().migrations if m.pid == child.pid]
    finally:
        pump.close()
    assert [m.channel.bytes for m in found] == list(SENT)
