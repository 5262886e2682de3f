# SPDX-License-Identifier: MIT
"""A flight recorder beside real KVM migrations: killed at any moment, on a disk that is small and at times full."""

import errno
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.host.programs import compiled
from tests.unit.recorded import migrations_of
from vftrace.archive.names import FileName
from vftrace.collect.recording import NOT_CLOSED, Recording
from vftrace.collect.replay import track
from vftrace.demo.scenarios import run_scenario
from vftrace.model.migration import Migration

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KILLS, AT_ONCE = 10, 5
FULL = range(4, 6)
"""The lives of the recorder in which the disk is full."""
SAME_NS = 20_000_000
"""Two tracers see the same call some microseconds apart, on a machine that may be busy."""

pytestmark = [pytest.mark.alone, pytest.mark.needs("root", "cc", "mount")]


def quiet(_: str) -> None:
    """A progress function that drops its lines."""


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@contextmanager
def vftrace(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A vftrace that is ready; its standard error is read on."""
    command = [sys.executable, "-m", "vftrace", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        said: list[str] = []
        while (line := child.stderr.readline()) != "ready\n":
            assert line, said
            said.append(line)
        child.url = next((s.split()[-1] for s in said if "serving" in s), "")  # type: ignore[attr-defined]
        child.said = said  # type: ignore[attr-defined]
        reader = threading.Thread(target=lambda: said.extend(child.stderr or ()))
        reader.start()
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
            child.wait(30)
            reader.join()


def metric(child: subprocess.Popen[str], name: str) -> int:
    with urllib.request.urlopen(child.url, timeout=10) as answer:  # type: ignore[attr-defined]
        found = re.search(rf"^vftrace_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


class Migrations:
    """Short migrations of minimal VMs, some at a time, until it is ended."""

    def __init__(self, directory: Path) -> None:
        self._program = compiled(BENCHMARKS / "fleet.c", directory)
        self._over = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        while not self._over:
            command = [str(self._program), str(AT_ONCE), "0", "1", "200", "1"]
            subprocess.run(command, input=b"\n", capture_output=True, check=True, timeout=60)


@dataclass
class Life:
    """One life of the recorder: from when to when, and how many files it has lost."""

    from_ns: int
    to_ns: int = 0
    lost: int = 0
    missing: list[Migration] = field(default_factory=list)

    def saw(self, m: Migration) -> bool:
        """Whether it saw a migration from before its beginning until after its end."""
        return self.from_ns < m.started_at_ns and (m.ended_at_ns or self.to_ns) + 10**9 < self.to_ns


def fill(disk: Path) -> Path:
    """Leave no room on the disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
    return filler


def same(kept: Migration, beside: Migration) -> bool:
    return kept.pid == beside.pid and abs(kept.started_at_ns - beside.started_at_ns) < SAME_NS


def test_killed_ten_times_on_a_full_disk(tmp_path: Path, disk: Path) -> None:
    chance = random.Random(5)
    directory = disk / "kept"
    serve = ("serve", "--web.listen-address=127.0.0.1:0", f"--record-dir={directory}")
    lives: list[Life] = []
    with vftrace("record", "-o", str(tmp_path / "beside.vft")), Migrations(tmp_path):
        filler: Path | None = None
        for number in range(KILLS):
            with vftrace(*serve) as recorder:
                life = Life(boottime_ns())
                if number == FULL.start:
                    filler = fill(disk)
                time.sleep(chance.uniform(0.2, 2.5))
                life.lost = metric(recorder, "flight_recorder_lost_files_total")
                life.to_ns = boottime_ns()
                recorder.kill()
            lives.append(life)
            for path in directory.glob("*.vft.gz"):
                recording = Recording(path)
                list(recording)
                assert recording.damage is None
                assert recording.not_whole in (None, NOT_CLOSED)
            if filler is not None and number + 1 == FULL.stop:
                filler.unlink()
                filler = None
        with vftrace(*serve) as recorder:
            last = Life(boottime_ns())
            time.sleep(11)
            last.lost = metric(recorder, "flight_recorder_lost_files_total")
            last.to_ns = boottime_ns()
            assert metric(recorder, "flight_recorder_files") > 0
            assert 0 < metric(recorder, "flight_recorder_bytes") < 32 << 20
        lives.append(last)
    beside = [m for m in migrations_of(tmp_path / "beside.vft") if m.outcome == "completed"]
    assert len(beside) >= 25
    kept: list[Migration] = []
    for path in sorted(directory.glob("*.vft.gz")):
        name = FileName.parse(path.name)
        assert name is not None
        assert not name.running
        kept += migrations_of(path)
    for m in beside:
        for life in lives:
            if life.saw(m):
                found = [k for k in kept if same(k, m)]
                if not found:
                    life.missing.append(m)
                for k in found:
                    check(k, m)
    assert sum(len(life.missing) for life in lives if life.lost == 0) == 0
    assert all(len(life.missing) <= life.lost for life in lives)
    assert sum(life.lost for life in lives) > 0
    assert sum(life.saw(m) for m in beside for life in lives) > 10


def check(kept: Migration, beside: Migration) -> None:
    """What is counted is equal; times are those of another tracer."""
    if kept.incomplete or beside.incomplete:
        return
    assert kept.outcome == beside.outcome
    assert kept.channel.bytes == beside.channel.bytes
    assert kept.dirty == beside.dirty
    assert [r.new_pages for r in kept.rounds] == [r.new_pages for r in beside.rounds]
    assert kept.downtime.vcpu_ns is not None or beside.downtime.vcpu_ns is None
    assert abs((kept.downtime.vcpu_ns or 0) - (beside.downtime.vcpu_ns or 0)) < SAME_NS


def test_figures_are_those_of_the_recording_of_the_same_tracer(tmp_path: Path) -> None:
    whole, directory = tmp_path / "whole.vft", tmp_path / "kept"
    arguments = ("serve", "--web.listen-address=127.0.0.1:0")
    with vftrace(*arguments, f"--record={whole}", f"--record-dir={directory}"):
        truths = [run_scenario(name, tmp_path, quiet) for name in ("completed-fast", "retry")]
        time.sleep(1)
    sources = {attempt.source_pid for truth in truths for attempt in truth.attempts}
    ours = {
        (m.pid, m.started_at_ns): m
        for m in track(Recording(whole)).snapshot().migrations
        if m.pid in sources
    }
    found = {
        (m.pid, m.started_at_ns): m
        for path in directory.glob("*.vft.gz")
        for m in migrations_of(path)
        if m.pid in sources
    }
    assert len(ours) == 3
    assert found == ours


def test_a_full_disk_does_not_end_serve(tmp_path: Path, disk: Path) -> None:
    """Nor the metrics of migrations; that of `--record` is counted too."""
    arguments = ("serve", "--web.listen-address=127.0.0.1:0")
    with (
        vftrace(*arguments, f"--record={disk}/all.vft", f"--record-dir={disk}/kept") as tracer,
    ):
        filler = fill(disk)
        run_scenario("completed-fast", tmp_path, quiet)
        time.sleep(2)
        assert metric(tracer, "flight_recorder_lost_files_total") > 0
        assert metric(tracer, "recording_lost_records_total") > 0
        assert metric(tracer, 'migrations_total\\{.*outcome="completed".*role="stitched".*\\}') > 0
        filler.unlink()
    assert tracer.returncode == 0
    said = "".join(tracer.said)  # type: ignore[attr-defined]
    assert said.count("No space left on device") == 2
    assert f"{disk}/all.vft" in said
    whole = Recording(disk / "all.vft")
    list(whole)
    assert whole.not_whole is None


def test_a_full_disk_ends_record_with_the_files_name(disk: Path) -> None:
    path = disk / "all.vft"
    with vftrace("record", "-o", str(path)) as tracer:
        fill(disk)
        assert tracer.wait(30) == 1
    said = "".join(tracer.said)  # type: ignore[attr-defined]
    assert f"cannot write {path}: No space left on device" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("options", ["ro", "size=4k"])
def test_a_disk_that_takes_nothing(options: str, tmp_path: Path) -> None:
    path = tmp_path / "poor"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        with vftrace(
            "serve", "--web.listen-address=127.0.0.1:0", f"--record-dir={path}/kept"
        ) as tracer:
            run_scenario("completed-fast", tmp_path, quiet)
            time.sleep(2)
            assert metric(tracer, "flight_recorder_lost_files_total") > 0
            assert metric(tracer, "flight_recorder_write_errors_total") > 0
        assert tracer.returncode == 0
    finally:
        subprocess.run(["umount", path], check=True)
