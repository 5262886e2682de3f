# SPDX-License-Identifier: MIT
"""A disk that returns EIO, beside real KVM migrations: failed writes are counted, and tracing continues."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.fusedisk import DISK, FuseDisk, Op, fuse_disk
from tests.host.test_flight_recorder import metric, quiet, vftrace
from tests.unit.recorded import migrations_of
from vftrace.archive.finish import finish_all
from vftrace.collect.evidence import Evidence
from vftrace.collect.recording import Recording
from vftrace.collect.replay import ReplaySource
from vftrace.demo.scenarios import run_scenario
from vftrace.faults import Faults, Where
from vftrace.model.migration import Outcome

GOLDEN = Path(__file__).parents[1] / "golden" / "recordings" / "completed-fast.vft.gz"
KEPT = "20261129T225506.123Z-web-1-{}-1f0c9a3e.vft.gz"

pytestmark = [pytest.mark.alone, pytest.mark.needs("root")]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[FuseDisk]:
    with fuse_disk(tmp_path) as disk:
        yield disk


def until_metric(tracer: "subprocess.Popen[str]", name: str, least: int) -> None:
    deadline = time.monotonic() + 60
    while metric(tracer, name) < least:
        assert time.monotonic() < deadline, name
        time.sleep(0.1)


@pytest.mark.parametrize("ops", [DISK, (Op.RENAME, Op.RENAME2)])
def test_serve_continues_and_records_again_when_the_disk_is_back(
    ops: tuple[Op, ...], failing: FuseDisk, tmp_path: Path
) -> None:
    kept = failing.path / "kept"
    arguments = ("serve", "--web.listen-address=127.0.0.1:0")
    with vftrace(*arguments, f"--record={failing.path}/all.vft", f"--record-dir={kept}") as tracer:
        failing.fail(*ops)
        run_scenario("completed-fast", tmp_path, quiet)
        until_metric(tracer, "flight_recorder_lost_files_total", 1)
        until_metric(tracer, "flight_recorder_write_errors_total", 1)
        moved = 'migrations_total\\{.*outcome="completed".*role="stitched".*\\}'
        until_metric(tracer, moved, 1)
        failing.fail()
        run_scenario("completed-fast", tmp_path, quiet)
        until_metric(tracer, moved, 2)
    assert tracer.returncode == 0
    said = "".join(tracer.said)  # type: ignore[attr-defined]
    assert f"cannot write to {kept}: Input/output error" in said
    assert (f"cannot write {failing.path}/all.vft: Input/output error" in said) == (Op.WRITE in ops)
    assert "Traceback" not in said
    found = [m for path in kept.glob("*-completed-*.vft.gz") for m in migrations_of(path)]
    whole = [m for m in found if m.outcome == Outcome.COMPLETED and not m.incomplete]
    assert whole
    for path in kept.glob("*.vft.gz"):
        recording = Recording(path)
        list(recording)
        assert recording.damage is None


def test_record_ends_with_the_files_name(failing: FuseDisk, tmp_path: Path) -> None:
    path = failing.path / "all.vft"
    with vftrace("record", "-o", str(path)) as tracer:
        # On a quiet host there is nothing to write for a while.
        run_scenario("completed-fast", tmp_path, quiet)
        failing.fail(Op.WRITE)
        run_scenario("completed-fast", tmp_path, quiet)
        assert tracer.wait(30) == 1
    said = "".join(tracer.said)  # type: ignore[attr-defined]
    assert f"cannot write {path}: Input/output error" in said
    assert "Traceback" not in said
    failing.fail()
    recording = Recording(path)
    assert list(recording)
    assert recording.damage is None


def test_an_error_whose_events_cannot_be_kept_is_still_reported(failing: FuseDisk) -> None:
    source = ReplaySource(GOLDEN, speed=0)
    evidence = Evidence(failing.path, lambda: source.host)
    while not source.ended:
        evidence.take(source.read())
    said: list[str] = []
    faults = Faults(said.append)
    faults.keep = evidence.keep
    failing.fail(*DISK)
    faults.contained(Where.VM, ValueError("x"), "a VM is not shown")
    assert faults.counts[Where.VM] == 1
    (line,) = said
    assert "its events are not kept" in line
    assert "Input/output error" in line
    failing.fail()
    faults.contained(Where.TOP, ValueError("x"), "a VM is not shown")
    assert ".vft" in said[1]
    (kept,) = failing.path.glob("internal-error-top-*.vft")
    assert list(Recording(kept))


@pytest.mark.parametrize("command", ["report", "list", "dump"])
def test_a_recording_that_cannot_be_read_is_one_line(command: str, failing: FuseDisk) -> None:
    path = failing.path / "r.vft.gz"
    path.write_bytes(GOLDEN.read_bytes())
    failing.fail(Op.READ)
    done = subprocess.run(
        [sys.executable, "-m", "vftrace", command, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{path}: Input/output error" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_what_cannot_be_read_is_not_deleted(failing: FuseDisk) -> None:
    """A recording without an end, of a recorder that was killed, on a disk that fails for a while."""
    path = failing.path / KEPT.format("running")
    content = GOLDEN.read_bytes()
    path.write_bytes(content)
    failing.fail(Op.READ)
    assert not finish_all(failing.path, (), lambda _: None)
    failing.fail()
    assert path.read_bytes() == content
    finished: list[Path] = []
    assert finish_all(failing.path, (), finished.append)
    assert finished == [failing.path / KEPT.format("completed")]
