# SPDX-License-Identifier: MIT
"""Plays a guest that auto-converge holds: its reported speed is the one that it counts itself."""

from pathlib import Path

import pytest

from tests.host.blackouts import migration_of
from tests.host.brownouts import judge, play
from vftrace.model.brownout import VcpuState

POINTS = 15.0
"""How far the guest's own count may be from its reported speed. It makes up to a fifth more turns in one second than in
the next where its CPU is a thread of another's core, or another guest's: no tracer of this host sees that. A hold that
vftrace misses is 25 to 50 points. `python -m tests.host.brownouts` asks for 5 (docs/results/brownout.md)."""


@pytest.mark.alone
def test_the_guests_speed_is_what_it_counts(tmp_path: Path) -> None:
    target = tmp_path / "r.vft.gz"
    truth = play("throttle-50", target)
    found = migration_of(target, "throttle-50")
    judged = judge(found, truth)
    assert judged.error == pytest.approx(0, abs=POINTS)
    assert found.brownout is not None
    assert [hold.by for hold in found.brownout.holds] == [VcpuState.THROTTLE]
