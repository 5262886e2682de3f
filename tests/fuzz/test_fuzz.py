"""Damaged recordings through every output, for a while: the same ones each time. `python -m tests.fuzz` runs others."""

import time
from pathlib import Path

from tests.fuzz.campaign import Campaign

SECONDS = 20


def test_no_damaged_recording_breaks_an_output(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        assert campaign.run(seed) == [], f"seed {seed}"
        seed += 1
    assert seed > 5
