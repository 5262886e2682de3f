# SPDX-License-Identifier: MIT
"""Recordings of real libvirt operations: vftrace's reports of them hold against QEMU's account.

Made by `tests/libvirt/run NAME ... --results tests/golden/libvirt`. Each is read whole, each host's half alone, and
both halves together.
"""

import json
from pathlib import Path

import pytest

from tests.libvirt.running import compare
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track

RECORDINGS = Path(__file__).parent / "libvirt"
TRUTHS = json.loads((RECORDINGS / "truth.json").read_text())


@pytest.mark.parametrize("name", TRUTHS)
def test_report_is_true(name: str) -> None:
    _, problems = compare(RECORDINGS / f"{name}.vft.gz", TRUTHS[name])
    assert not problems


def test_every_recording_has_its_truth() -> None:
    assert {path.name for path in RECORDINGS.glob("*.vft.gz")} == {f"{n}.vft.gz" for n in TRUTHS}


def test_the_throttle_is_named_where_it_held_the_guest() -> None:
    """QEMU's auto-converge had reached 99 %: the time before the clock read is the vCPU's sleep, no device model's."""
    throttled = set()
    for name in TRUTHS:
        migrations = track(Recording(RECORDINGS / f"{name}.vft.gz")).snapshot().migrations
        if any(m.throttled for m in migrations):
            throttled.add(name)
    assert throttled == {"auto-converge"}
