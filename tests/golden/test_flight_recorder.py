# SPDX-License-Identifier: MIT
"""A flight recorder that sees what a real recording holds keeps each migration with the same figures."""

from itertools import takewhile
from pathlib import Path

import pytest

from tests.unit.recorded import fly, kept, migrations_of
from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.archive import index
from vftrace.archive.finish import is_closed
from vftrace.archive.names import FileName
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.events import wire
from vftrace.mailbox.profile import drivers_of
from vftrace.model.migration import Migration

GOLDEN = Path(__file__).parent
FOUND = sorted(
    path
    for directory in ("recordings", "lab", "libvirt", "mailbox", "experiment")
    for path in (GOLDEN / directory).rglob("*.vft.gz")
)


def end_of(path: Path) -> int:
    """When a recording was closed."""
    return wire.decode(list(Recording(path))[-1]).at_ns


def until(path: Path, at_ns: int) -> tuple[Migration, ...]:
    """The migrations of a recording as they were known at a time."""
    recording = Recording(path)
    before = takewhile(lambda record: wire.decode(record).at_ns <= at_ns, recording)
    return track(before, Mailboxes(drivers_of(recording.host.profiles))).snapshot().migrations


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_each_migration_is_kept_with_its_figures(path: Path, tmp_path: Path) -> None:
    recording = Recording(path)
    said: list[str] = []
    recorder = fly(recording.host, recording, tmp_path / "kept", said)
    assert said == []
    assert recorder.state.lost_files == recorder.state.write_errors == 0
    whole = {(m.pid, m.started_at_ns): m for m in migrations_of(path)}
    found = {(m.pid, m.started_at_ns): (file, m) for file, m in kept(tmp_path / "kept")}
    assert found.keys() == whole.keys()
    for key, (file, migration) in found.items():
        if migration != whole[key]:
            # How long the VM runs on, and what its devices do for the next migration, is no longer recorded.
            (whole_then,) = (
                m for m in until(path, end_of(file)) if (m.pid, m.started_at_ns) == key
            )
            assert migration == whole_then
            assert migration.outcome == whole[key].outcome
            assert migration.downtime == whole[key].downtime
        name = FileName.parse(file.name)
        assert name is not None
        assert name.outcome == migration.outcome
        assert is_closed(file)
        assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    # What the recorder has noted of each is what reading it gives.
    noted = index.known(tmp_path / "kept")
    (tmp_path / "kept" / index.NAME).unlink(missing_ok=True)
    assert set(noted.entries) == set(index.read(tmp_path / "kept").entries)
    assert recorder.state.files == len(found)
