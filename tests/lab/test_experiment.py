# SPDX-License-Identifier: MIT
"""The experiment's small form: a plain guest and one with a bond move once each between two hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiment.cases import CASES
from experiment.conduct import conduct
from vftlab import golden
from vftlab.build import ensure
from vftlab.common import LAB, Progress

pytestmark = [pytest.mark.lab, pytest.mark.needs("root")]

SMALL = ("plain", "bond")
KERNEL = "6.12"


@pytest.mark.flaky(reruns=1)
def test_a_guest_moves_and_the_hosts_know_why_it_was_away(tmp_path: Path) -> None:
    """What was recorded just now passes what the golden recordings pass."""
    progress = Progress()
    built = ensure([KERNEL], progress)[KERNEL]
    where = LAB / "results/experiment-test"
    cases = [CASES[name] for name in SMALL]
    # The machines are emulated on processors that others use: what fails gets another try, which is told.
    for _ in range(2):
        done = conduct(cases, 1, where, built, progress)
        if len(done) == len(cases):
            break
    assert [run.case.name for run in done] == list(SMALL)
    golden.keep("experiment/keep.py", str(where), "now", "--to", str(tmp_path))
    golden.check("test_experiment.py", "VFTRACE_EXPERIMENT", tmp_path)
