# SPDX-License-Identifier: MIT
"""`vftrace.open`, and the examples of docs/how-to/python.md as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vftrace
from tests.unit.golden_text import GOLDEN, recording
from vftrace import cli, events
from vftrace.collect.recording import Recording
from vftrace.errors import UsageError, VftraceError
from vftrace.events import wire
from vftrace.model.migration import Outcome

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FAST = recording("completed-fast")


def test_importing_it_imports_nothing_else() -> None:
    program = "import sys, vftrace; print([m for m in sys.modules if m.startswith('vftrace.')])"
    said = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert said == "[]\n"


def downtime_ns(path: Path) -> int:
    """From the last vCPU exit on the source to the first entry on the destination, by the events alone."""
    found = [wire.decode(record) for record in Recording(path)]
    first, second = (e.tgid for e in found if isinstance(e, events.VmCreated))
    read = [e for e in found if isinstance(e, events.Clock) and e.tgid == first and e.op == e.GET]
    runs = [e for e in found if isinstance(e, events.Run) and e.tgid == second and not e.exit_ns]
    return runs[0].at_ns - read[-1].last_exit_ns


def test_the_objects_of_a_report() -> None:
    recordings = vftrace.open(FAST)
    (migration,) = recordings.migrations
    assert (migration.name, migration.outcome) == ("demo-completed-fast", Outcome.COMPLETED)
    assert migration.downtime.vcpu_ns == downtime_ns(FAST)
    (host,) = recordings.hosts
    assert host.name == "vm"
    assert recordings.damage == ()
    assert recordings.report is recordings.report


def test_the_stable_form_is_the_reports(capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(GOLDEN / "experiment" / "all" / f"{host}-host.vft.gz") for host in ("a", "b")]
    assert cli.main(["report", "--format", "json", *both]) == 0
    said = json.loads(capsys.readouterr().out)["migrations"]
    assert json.loads(json.dumps(vftrace.open(*both).as_dicts())) == said


def test_events_are_those_of_the_recording(tmp_path: Path) -> None:
    found = list(vftrace.open(str(FAST)).events())
    assert len(found) == sum(1 for _ in Recording(FAST))
    assert {type(event) for event in found} == {type(wire.decode(r)) for r in Recording(FAST)}
    assert isinstance(found[-1], events.End)
    shutil.copy(FAST, tmp_path)
    shutil.copy(recording("libvirt"), tmp_path)
    assert len(list(vftrace.open(tmp_path).events())) > len(found)
    assert len(vftrace.open(tmp_path).migrations) == 2


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(VftraceError, match="is not a vftrace recording"):
        vftrace.open(tmp_path / "text")
    with pytest.raises(VftraceError, match="No such file"):
        vftrace.open(tmp_path / "absent").as_dicts()
    with pytest.raises(UsageError, match="no recording is named"):
        vftrace.open()
    with pytest.raises(UsageError, match="only once"):
        vftrace.open("-")


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    """The first prints the migration, the second a pandas frame of a directory."""
    first, second = EXAMPLES
    shutil.copy(FAST, tmp_path / "migration.vft")
    said = subprocess.check_output([sys.executable, "-c", first], cwd=tmp_path, text=True)
    assert said == f"demo-completed-fast completed {downtime_ns(FAST)}\n"
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("completed-fast", "there-and-back", "retry"):
        shutil.copy(recording(name), kept)
    assert "/var/lib/vftrace" in second
    program = second.replace("/var/lib/vftrace", str(kept))
    said = subprocess.check_output(
        [sys.executable, "-c", program], text=True, env={**os.environ, "COLUMNS": "200"}
    )
    rows = [line.split() for line in said.splitlines()[2:]]
    assert [row[0] for row in rows] == ["demo-there-and-back", "demo-completed-fast", "demo-retry"]
    assert [row[1] for row in rows] == ["2", "1", "1"]
