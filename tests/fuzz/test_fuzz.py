# SPDX-License-Identifier: MIT
"""Damaged input for each target, for a while: the same ones each time. `python -m tests.fuzz` runs others."""

import os
import time
from pathlib import Path

import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.inputs import Inputs
from tests.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("VFTRACE_FUZZ_SECONDS", "30"))


def test_no_damaged_recording_breaks_an_output(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or seed < 5:
        assert campaign.run(seed) == [], f"seed {seed}"
        seed += 1


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_what_reads_it(name: str) -> None:
    inputs = Inputs(TARGETS[name])
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or seed < 2:
        assert inputs.run(seed) == [], f"seed {seed}"
        seed += 1
