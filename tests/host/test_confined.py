# SPDX-License-Identifier: MIT
"""The service as its unit confines it traces a real migration completely."""

import subprocess
import sys
from pathlib import Path

import pytest

from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.demo.scenarios import Truth, run_scenario
from vftrace.model.migration import Migration

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging" / "systemd" / "vftrace.service"
CONFINED = ROOT / "tests" / "packaging" / "confined.py"


def confined(unit: Path, place: Path, *arguments: str) -> list[str]:
    command = ["unshare", "--mount", sys.executable, str(CONFINED), str(unit), str(place)]
    return [*command, sys.executable, "-m", "vftrace", *arguments]


def start(command: list[str]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    said = ""
    while (line := process.stderr.readline()) != "ready\n":
        assert line, said
        said += line
    return process


@pytest.mark.needs("root", "systemd-analyze", "unshare")
@pytest.mark.parametrize("with_sys_admin", [True, False])
def test_a_migration_is_traced_completely_as_the_unit_confines_it(
    with_sys_admin: bool, tmp_path: Path
) -> None:
    unit = tmp_path / "vftrace.service"
    text = UNIT.read_text()
    unit.write_text(text if with_sys_admin else text.replace(" CAP_SYS_ADMIN", ""))
    place = tmp_path / "place"
    place.mkdir()
    # Others may pass through, as to a unit's directories.
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    recording = place / "trace.vft"
    words = ["serve", "--web.listen-address", "127.0.0.1:0", "--record", str(recording)]
    process = start(confined(unit, place, *words))
    try:
        truth = run_scenario("completed-slow", tmp_path, lambda line: None)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    found = Recording(recording)
    snapshot = track(found).snapshot()
    assert found.not_whole is None
    assert snapshot.lost == 0
    vm = truth.processes[0].uuid
    (migration,) = [m for m in snapshot.migrations if m.uuid == vm]
    check(migration, truth)


def check(migration: Migration, truth: Truth) -> None:
    figures = truth.attempts[0].source
    assert figures is not None
    assert migration.outcome == "completed"
    assert not migration.incomplete
    assert len(migration.rounds) == figures.dirty_sync_count
    stop = next(event.at_ns for event in truth.events if event.name == "STOP")
    resume = next(event.at_ns for event in truth.events if event.name == "RESUME")
    downtime = migration.downtime.vcpu_ns
    assert downtime is not None
    assert resume - stop - 500_000 <= downtime <= resume - stop + 10_000_000
    # From /proc of processes of another user.
    assert (migration.uuid, migration.pid) == (truth.processes[0].uuid, truth.processes[0].pid)
    assert migration.peer_pid == truth.processes[1].pid
    assert migration.channel.kind != "unknown"
