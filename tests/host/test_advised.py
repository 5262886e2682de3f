# SPDX-License-Identifier: MIT
"""Advice that is followed: the same guest migrated again, with what vftrace's report said to change."""

from pathlib import Path

import pytest

from tests.host.advised import verify

BUSY_NS = 150_000_000
"""What a busy machine adds to a blackout; docs/results/advice.md has how often the promise itself was kept."""


@pytest.mark.alone
@pytest.mark.parametrize("name", ["held", "slow-flush"])
def test_the_downtime_is_what_was_promised(name: str, tmp_path: Path) -> None:
    found = verify(name, tmp_path)
    assert found is not None
    (downtime,) = found
    assert downtime.was_ns is not None
    assert downtime.expected_ns is not None
    assert downtime.seen_ns < downtime.was_ns / 2
    assert downtime.seen_ns <= downtime.most_ns + BUSY_NS
