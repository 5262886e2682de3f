# SPDX-License-Identifier: MIT
"""A guest that fills its mailbox as no emulated card lets it: the kernel side of the mailbox is called from a system
call here, hundreds of thousands of times a second, since this machine has neither kprobes nor a card."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host.pumping import until
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump
from vftrace.events import layout
from vftrace.mailbox.drivers import DRIVERS
from vftrace.probes.bcc.process import compile_text
from vftrace.probes.bpf.object import Object
from vftrace.probes.mailbox import export
from vftrace.probes.text import program_text

SECONDS = 5
VFS = (0, 1, 63)
RATE = 20_000
"""Requests a second at least, also where others take the processors: far more than are recorded."""
GET_QUEUES, CONFIRMED = 0x09, 0xA000_0009
# By call of getpgid; the probe comes before the kernel looks whether there is such a process.
PRODUCER = f"""
import json, os, sys, time
sys.stdin.readline()
def ask(vf):
    try:
        os.getpgid(vf)
    except ProcessLookupError:
        pass
begun = time.monotonic()
while time.monotonic() - begun < {SECONDS}:
    for number in range(3000):
        ask({VFS}[number % {len(VFS)}])
print(json.dumps(time.monotonic() - begun))
"""
MIB = 1 << 20


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _attach_flood(source: LiveSource, pid: int, program: str, driver: int) -> Any:
    """The mailbox's programs with flood.bpf.c behind them, as if a card's driver had come."""
    text = program_text("mailbox.bpf.c") + (Path(__file__).parent / "flood.bpf.c").read_text()
    image = compile_text(text, ["-Wno-everything"])
    bpf = Object(image, source.probes._bpf)
    export(bpf, DRIVERS[driver])
    for index, word in enumerate((GET_QUEUES, CONFIRMED)):
        said = bpf["said"].Leaf()
        said.word[0] = word
        bpf["said"][index] = said
    bpf["flooder"][0] = ctypes.c_uint64(pid)
    bpf.attach_tracepoint("syscalls:sys_enter_getpgid", program)
    source.probes.mailbox._bpf = bpf
    return bpf


@pytest.mark.parametrize(
    ("program", "driver"), [("flood_words", layout.IXGBE), ("flood_virtchnl", layout.I40E)]
)
def test_a_flood_is_recorded_or_counted_in_bounded_memory(program: str, driver: int) -> None:
    source = LiveSource()
    pump = Pump(source)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", PRODUCER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            bpf = _attach_flood(source, child.pid, program, driver)
            child.stdin.write(b"\n")
            child.stdin.close()
            used: list[int] = []

            def ended() -> bool:
                used.append(_rss())
                return child.poll() is not None

            until(pump, ended)
            seconds = json.load(child.stdout)
        assert child.returncode == 0
        asked = int(bpf["requests"][0].value)
    finally:
        pump.close()
    assert asked / seconds > RATE
    found = {life.vf: life for life in pump.snapshot().vfs}
    assert set(found) == set(VFS)
    recorded = sum(count for life in found.values() for _, count in life.counts)
    memory = f"{min(used) / MIB:.0f} to {max(used) / MIB:.0f} MiB"
    print(f"{asked / seconds:.0f} requests/s, {recorded} messages counted, memory {memory}")
    assert recorded == 2 * asked
    for life in found.values():
        # a thousand at once and a thousand a second, and the answer to the last
        assert 2 * asked / len(VFS) - life.not_recorded <= 1000 + 1000 * (seconds + 1) + 1
        assert len(life.recent) <= 32
    half = len(used) // 2
    assert max(used[half:]) < max(used[:half]) + 4 * MIB
    assert pump.snapshot().lost == 0
