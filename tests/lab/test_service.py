# SPDX-License-Identifier: MIT
"""`vftrace.service` as systemd starts it from the Debian package, on a stock kernel.

What it traced passes the checks of the golden recordings: under the unit's confinement nothing is missing.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from vftlab import golden
from vftlab.common import LAB
from vftlab.installed import built
from vftlab.run import run_jobs

pytestmark = pytest.mark.lab

KERNEL = "6.12"
JOB = "steer-downtime"


@pytest.mark.flaky(reruns=1)
def test_the_unit_traces_a_migration_with_devices(tmp_path: Path) -> None:
    results = LAB / "results/service-test"
    done = run_jobs(KERNEL, [JOB], results, timeout_s=600, package=built())
    output = (results / "output").read_text(errors="replace")
    assert done.codes == {JOB: 0}, output
    assert done.code == 0, output
    (kept,) = results.glob("*.vft.gz")
    assert "-completed-" in kept.name
    with gzip.open(kept) as packed, (results / "recording.vft").open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    golden.check_lab(results, KERNEL, tmp_path)
