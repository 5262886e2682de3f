# SPDX-License-Identifier: MIT
"""Plays a guest that auto-converge holds: its reported speed is the one that it counts itself."""

from pathlib import Path

import pytest

from tests.host.blackouts import migration_of
from tests.host.brownouts import POINTS, judge, play
from vftrace.model.brownout import VcpuState


@pytest.mark.alone
def test_the_guests_speed_is_what_it_counts(tmp_path: Path) -> None:
    target = tmp_path / "r.vft.gz"
    truth = play("throttle-50", target)
    found = migration_of(target, "throttle-50")
    judged = judge(found, truth)
    assert judged.error == pytest.approx(0, abs=POINTS)
    assert found.brownout is not None
    assert [hold.by for hold in found.brownout.holds] == [VcpuState.THROTTLE]
