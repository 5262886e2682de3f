# SPDX-License-Identifier: MIT
"""Recordings of version 0.1 stay as they are, and every later version reads them (docs/reference/recordings.md).

Never make these recordings again, and never leave one out. The promise is that no later version refuses them, or shows
other figures than those that QEMU gave when they were made. Most are of the first day on which there were recordings:
records of some kinds are shorter than today's (`wire._LENGTHENED`), and no first line has `waits`.
"""

import hashlib
import json
from pathlib import Path

import pytest

from vftrace import cli
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.model.figures import dirty_sync_count
from vftrace.model.migration import Outcome

GOLDEN = Path(__file__).parent
LINES = (GOLDEN / "frozen" / "0.1.sha256").read_text().splitlines()
SUMS = {name: digest for digest, name in (line.split("  ") for line in LINES)}
OF_QEMU = sorted(
    path.name.removesuffix(".truth.json") for path in GOLDEN.glob("frozen/0.1/*.truth.json")
)
TOO_MUCH_MS = 1
"""QEMU cuts its times to whole milliseconds. vftrace's blackout begins and ends at the vCPUs, QEMU's is inside it."""


def test_none_is_missing() -> None:
    assert len(SUMS) == 12
    assert {GOLDEN / name for name in SUMS} >= set(GOLDEN.glob("frozen/0.1/*.vft.gz"))


@pytest.mark.parametrize("name", SUMS)
def test_it_is_the_recording_that_was_made_then(name: str) -> None:
    assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == SUMS[name]


@pytest.mark.parametrize("name", SUMS)
def test_it_is_read_wholly(name: str) -> None:
    recording = Recording(GOLDEN / name)
    assert recording.host.vftrace == "0.1.0"
    assert recording.host.probes
    assert all(p.method is None for p in recording.host.probes if p.waits)
    snapshot = track(recording).snapshot()
    assert recording.not_whole is None
    assert snapshot.unknown_records == 0
    assert snapshot.lost == 0
    assert not any(migration.incomplete for migration in snapshot.migrations)


@pytest.mark.parametrize("name", OF_QEMU)
def test_its_figures_are_qemus(name: str) -> None:
    """Outcome, dirty syncs and time as QEMU gave them when it was made."""
    (attempt,) = json.loads((GOLDEN / f"frozen/0.1/{name}.truth.json").read_text())["attempts"]
    recording = Recording(GOLDEN / f"frozen/0.1/{name}.vft.gz")
    (migration,) = track(recording).snapshot().migrations
    qemu = attempt["source"]
    assert migration.pid == attempt["source_pid"]
    assert migration.outcome == Outcome(qemu["status"])
    if migration.outcome != Outcome.COMPLETED:
        return
    assert migration.peer_pid == attempt["destination_pid"]
    if migration.dirty.ring:
        # a sync that finds nothing resets no ring, and leaves no record
        assert 0 < dirty_sync_count(migration) <= qemu["dirty_sync_count"]
    else:
        assert dirty_sync_count(migration) == qemu["dirty_sync_count"]
    assert migration.downtime.vcpu_ns is not None
    assert qemu["downtime_ms"] - TOO_MUCH_MS <= migration.downtime.vcpu_ns / 1e6


def test_there_are_records_of_the_first_form() -> None:
    """Shorter than today's: what was appended to them since reads 0."""
    records = [
        r for name in SUMS for r in Recording(GOLDEN / name) if wire.kind_of(r) == Kind.CLOCK
    ]
    assert {len(record) - wire.HEADER.size for record in records} == {24, 32}


@pytest.mark.parametrize("name", [n for n in SUMS if n.startswith("frozen/")])
def test_every_command_reads_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = GOLDEN / name
    for command in (
        ["list", str(path)],
        ["dump", str(path)],
        ["report", str(path)],
        ["report", "--format", "html", "-o", str(tmp_path / "r.html"), str(path)],
        ["anonymize", str(path), "-o", str(tmp_path / "a.vft.gz")],
        ["top", "--replay", str(path), "--speed", "0", "--once"],
    ):
        assert cli.main(command) == 0, command
    assert "not closed" not in capsys.readouterr().err
