# SPDX-License-Identifier: MIT
"""Errors in vftrace itself: an error on one VM, migration or output affects no figure of the others."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from vftrace import events
from vftrace.analysis import outgoing as outgoing_module
from vftrace.analysis import process as process_module
from vftrace.analysis import tracker as tracker_module
from vftrace.analysis.assemble import Sides, build_migration
from vftrace.analysis.hosts.join import join_hosts
from vftrace.analysis.pairing import Pairing
from vftrace.collect import evidence
from vftrace.collect.merge import load
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording
from vftrace.collect.replay import ReplaySource, track
from vftrace.events import Event
from vftrace.faults import FAULTS, Faults, Where
from vftrace.model import figures
from vftrace.model.migration import Migration, Snapshot
from vftrace.model.report import Report
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.metrics import Exporter
from vftrace.outputs.report import html as html_module
from vftrace.outputs.report import json as json_module
from vftrace.outputs.report import perfetto as perfetto_module
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.json import report_json, state_json
from vftrace.outputs.report.perfetto import perfetto_trace
from vftrace.outputs.report.text import render_report
from vftrace.outputs.traces import otlp

GOLDEN = Path(__file__).parents[1] / "golden" / "recordings"
FOUR = GOLDEN / "four-at-once.vft.gz"
SCHEMA = json.loads((Path(__file__).parents[2] / "vftrace" / "report.schema.json").read_text())


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reports of internal errors, in a process that had none before."""
    lines: list[str] = []
    fresh = Faults(lines.append)
    monkeypatch.setattr(FAULTS, "__dict__", fresh.__dict__)
    return lines


@pytest.fixture
def whole() -> Snapshot:
    return track(Recording(FOUR)).snapshot()


def counted() -> dict[str, int]:
    return {str(where): count for where, count in FAULTS.counts.items() if count}


def others(snapshot: Snapshot, victim: Migration) -> list[Migration]:
    return [m for m in snapshot.migrations if m.key != victim.key]


Break = Callable[[pytest.MonkeyPatch, Migration], None]


def events_raise(monkeypatch: pytest.MonkeyPatch, victim: Migration) -> None:
    """Every dirty log that the victim reads."""
    take = process_module._TAKES[events.GetDirtyLog]

    def fails(process: process_module.Process, event: events.GetDirtyLog) -> None:
        if process.pid == victim.pid:
            raise ZeroDivisionError("injected")
        take(process, event)

    takes: dict[type[Event], Callable[..., None]] = dict(process_module._TAKES)
    takes[events.GetDirtyLog] = fails
    monkeypatch.setattr(process_module, "_TAKES", takes)


def build_raises(monkeypatch: pytest.MonkeyPatch, victim: Migration) -> None:

    def fails(sides: Sides) -> Migration:
        if sides.key == victim.key:
            raise IndexError("injected")
        return build_migration(sides)

    monkeypatch.setattr(tracker_module, "build_migration", fails)


def pairing_raises(monkeypatch: pytest.MonkeyPatch, victim: Migration) -> None:
    feed = Pairing.feed

    def fails(
        self: object, process: process_module.Process, event: Event, everyone: object
    ) -> None:
        if process.uuid == victim.uuid:
            raise KeyError("injected")
        feed(self, process, event, everyone)  # type: ignore[arg-type]

    monkeypatch.setattr(Pairing, "feed", fails)


def rounds_raise(monkeypatch: pytest.MonkeyPatch, victim: Migration) -> None:
    rounds = outgoing_module.OutgoingMigration.rounds

    def fails(self: outgoing_module.OutgoingMigration, fds: set[int]) -> object:
        if self.pid == victim.pid:
            raise OverflowError("injected")
        return rounds(self, fds)

    monkeypatch.setattr(outgoing_module.OutgoingMigration, "rounds", fails)


BREAKS: dict[Break, str] = {
    events_raise: "event",
    build_raises: "migration",
    pairing_raises: "event",
    rounds_raise: "migration",
}


@pytest.mark.parametrize("broken", BREAKS)
def test_an_error_in_one_migration_leaves_the_others_equal(
    broken: Break, whole: Snapshot, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    victim = whole.migrations[0]
    broken(monkeypatch, victim)
    snapshot = track(Recording(FOUR)).snapshot()
    assert others(snapshot, victim) == others(whole, victim)
    assert len(others(whole, victim)) == 3
    mine = [m for m in snapshot.migrations if m.key == victim.key]
    assert mine
    assert all(m.incomplete for m in mine)
    assert any("Error at " in (m.internal_error or "") for m in mine)
    assert counted().keys() == {BREAKS[broken]}
    # Reported once for the line that raised, with the traceback, however often it did.
    assert len(said) == 1
    assert "injected" in said[0]
    assert f"(pid {victim.pid})" in said[0]


@pytest.mark.parametrize("broken", BREAKS)
def test_every_output_shows_it_and_the_others_figures(
    broken: Break, whole: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = join_hosts(load([FOUR]))
    victim = whole.migrations[0]
    broken(monkeypatch, victim)
    report = join_hosts(load([FOUR]))
    file = StringIO()
    Console(file=file, width=200).print(render_report(report, ascii=False))
    text = file.getvalue()
    assert text.count("INCOMPLETE, INTERNAL ERROR") == sum(
        m.internal_error is not None for m in report.hosts[0].snapshot.migrations
    )
    assert "INCOMPLETE, INTERNAL ERROR" in render_html(report)
    document = report_json(report)
    jsonschema.validate(json.loads(json.dumps(document, allow_nan=False)), SCHEMA)

    def unhurt(found: Report) -> list[object]:
        return [m for m in report_json(found)["migrations"] if m["vm"]["uuid"] != victim.uuid]

    assert unhurt(report) == unhurt(before)
    assert len(unhurt(report)) == 3
    assert perfetto_trace(report).left_out == ()
    assert otlp.traces_of(report.migrations)[1] == []


def exposition(path: Path) -> list[str]:
    pump = Pump(ReplaySource(path, speed=0))
    exporter = Exporter(keep_ns=10**18, warn=lambda line: None)
    exporter.read = lambda: Reading(
        pump.snapshot(), pump.now_ns(), pump.host, (), pump.event_counts(), pump.ended
    )
    registry = CollectorRegistry()
    registry.register(exporter)
    while not pump.ended:
        pump.step()
    return generate_latest(registry).decode().splitlines()


def test_metrics_of_the_other_vms_are_equal(
    whole: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, victim = exposition(FOUR), whole.migrations[0]
    build_raises(monkeypatch, victim)
    after = exposition(FOUR)
    named = [m.key for m in others(whole, victim)]
    assert [s for s in after if any(key in s for key in named)] == [
        s for s in before if any(key in s for key in named)
    ]
    (errors,) = [s for s in after if 'vftrace_internal_errors_total{where="migration"}' in s]
    assert float(errors.split()[-1]) > 0
    assert 'vftrace_internal_errors_total{where="http"} 0.0' in after


@pytest.mark.parametrize(
    ("module", "name", "render"),
    [
        (json_module, "migration_json", report_json),
        (html_module, "_migration", render_html),
        (perfetto_module, "_write_migration", perfetto_trace),
        (otlp, "trace_of", lambda report: otlp.traces_of(report.migrations)),
    ],
)
def test_an_output_that_fails_on_one_migration_shows_the_others(
    module: object,
    name: str,
    render: Callable[[Report], object],
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    report = join_hosts(load([FOUR]))
    victim = report.migrations[0].migration
    function = getattr(module, name)

    def fails(*given: object) -> object:
        found = next(each for each in given if hasattr(each, "migration"))
        # What has no figures any more is let through, as another error would.
        if found.migration.uuid == victim.uuid and found.migration.internal_error is None:
            raise RuntimeError("injected")
        return function(*given)

    monkeypatch.setattr(module, name, fails)
    rendered = render(report)
    assert sum(counted().values()) == 1
    assert len(said) == 1
    if module is json_module:
        jsonschema.validate(json.loads(json.dumps(rendered)), SCHEMA)
    for m in (found.migration for found in report.migrations[1:]):
        assert str(m.name) in _text_of(rendered)


def _text_of(rendered: object) -> str:
    data = getattr(rendered, "data", None)
    return data.decode(errors="replace") if data is not None else str(rendered)


def test_top_s_json_has_a_migration_whose_phase_fails(
    whole: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Recording(FOUR).host
    before = state_json(host, whole)

    def fails(migration: Migration, at_ns: int) -> object:
        raise RuntimeError("injected")

    monkeypatch.setattr(figures, "blackout", fails)
    assert [m["vm"] for m in state_json(host, whole)["migrations"]] == [
        m["vm"] for m in before["migrations"]
    ]
    assert counted() == {"report": 4}


def test_the_events_that_reproduce_it_are_kept(
    whole: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    victim = whole.migrations[0]
    build_raises(monkeypatch, victim)
    pump = Pump(ReplaySource(FOUR, speed=0))
    pump.keep_evidence(tmp_path)
    while not pump.ended:
        pump.step()
    pump.snapshot()
    (kept,) = tmp_path.glob("*.vft")
    assert str(kept) in said[0]
    assert "injected" in kept.with_suffix(".txt").read_text()
    again = track(Recording(kept)).snapshot()
    mine = [m for m in again.migrations if m.key == victim.key]
    assert mine
    assert all(m.internal_error for m in mine)
    # Nothing of other VMs is in it.
    assert {m.key for m in again.migrations} == {victim.key}


def test_what_is_kept_of_a_host_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evidence, "TOTAL_BYTES", 300_000)
    monkeypatch.setattr(evidence, "TAIL_BYTES", 100_000)
    source = ReplaySource(FOUR, speed=0)
    kept = evidence.Evidence(tmp_path, lambda: source.host)
    while not source.ended:
        kept.take(source.read())
        assert sum(records.held for records in kept._of.values()) == kept._held <= 300_000
    assert kept.keep(Where.VM, (), "trace") is not None
    for number in range(evidence.MAX_FILES):
        (tmp_path / f"internal-error-{number}.vft").touch()
    assert kept.keep(Where.TOP, (), "trace") is None


def test_a_directory_that_cannot_be_written_is_reported(said: list[str], tmp_path: Path) -> None:
    pump = Pump(ReplaySource(FOUR, speed=0))
    pump.keep_evidence(tmp_path / "missing")
    FAULTS.contained(Where.VM, ValueError("x"), "a VM is not shown")
    assert "its events are not kept" in said[0]
    assert counted() == {"vm": 1}


def test_errors_of_many_places_are_counted_and_few_reported(said: list[str]) -> None:
    for number in range(200):
        scope: dict[str, object] = {}
        code = compile("\n" * number + "raise ValueError('x')", "/x/vftrace/made.py", "exec")
        try:
            exec(code, scope)
        except ValueError as error:
            FAULTS.contained(Where.TOP, error, "nothing")
    assert FAULTS.counts[Where.TOP] == 200
    assert len(said) == 64


INJECT = """
import sys
from vftrace.analysis import tracker
build = tracker.build_migration
def fails(sides):
    if sides.key == sys.argv[1]:
        raise IndexError("injected")
    return build(sides)
tracker.build_migration = fails
from vftrace.cli import main
sys.exit(main(sys.argv[2:]))
"""


def injected(victim: Migration, *arguments: str) -> list[str]:
    return [sys.executable, "-c", INJECT, victim.key, *arguments]


def test_report_and_top_continue(whole: Snapshot) -> None:
    victim = whole.migrations[0]
    for arguments in (
        ("report", "--format", "json", str(FOUR)),
        ("top", "--json", "--once", "--replay", str(FOUR), "--speed", "0"),
    ):
        done = subprocess.run(injected(victim, *arguments), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("internal error, contained (migration)") == 1
        assert "IndexError: injected" in done.stderr
        found = json.loads(done.stdout)["migrations"]
        assert [m["vm"]["uuid"] for m in found if m["internal_error"]] == [victim.uuid]
        vcpu = {m["vm"]["uuid"]: m["downtime"]["vcpu_ns"] for m in found if not m["internal_error"]}
        assert vcpu == {m.uuid: m.downtime.vcpu_ns for m in others(whole, victim)}


@pytest.fixture
def served(whole: Snapshot) -> Iterator[str]:
    victim = whole.migrations[0]
    arguments = (
        "serve",
        "--replay",
        str(FOUR),
        "--speed",
        "0",
        "--web.listen-address",
        "127.0.0.1:0",
    )
    process = subprocess.Popen(
        injected(victim, *arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stderr is not None
        url = next(line.split()[-1] for line in process.stderr if "serving" in line)
        next(line for line in process.stderr if "the replay has ended" in line)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_serve_continues(served: str, whole: Snapshot) -> None:
    with urllib.request.urlopen(served, timeout=20) as answer:
        text = answer.read().decode()
    for m in others(whole, whole.migrations[0]):
        (line,) = [
            s
            for s in text.splitlines()
            if s.startswith("vftrace_migration_last_downtime_seconds{")
            and m.key in s
            and 'kind="vcpu"' in s
        ]
        assert m.downtime.vcpu_ns is not None
        assert float(line.split()[-1]) == pytest.approx(m.downtime.vcpu_ns / 1e9)
    (errors,) = [s for s in text.splitlines() if 'errors_total{where="migration"}' in s]
    assert float(errors.split()[-1]) > 0


def test_a_process_that_cannot_be_looked_up_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from vftrace.collect import identify
    from vftrace.collect.batch import Intake
    from vftrace.host import processes

    command_line = processes.command_line

    def fails(pid: int) -> list[str]:
        if pid == 1:
            raise RecursionError("injected")
        return command_line(pid)

    monkeypatch.setattr("vftrace.host.processes.command_line", fails)
    intake = Intake()
    found = identify.Identifier(intake)
    for pid in (1, os.getpid()):
        found.meet(pid, late=True)
    written = [e.pid for e in intake.drain().events if isinstance(e, events.Process)]
    assert written == [os.getpid()]
    assert counted() == {"identify": 1}
    found.close()


def test_a_record_and_a_tick_that_fail_leave_the_reader_running(said: list[str]) -> None:
    from unittest import mock

    from vftrace.collect.batch import Intake
    from vftrace.collect.live import LiveSource
    from vftrace.events import wire

    source = LiveSource.__new__(LiveSource)
    source._intake = Intake()
    source._calls = mock.Mock()
    source._identifier = mock.Mock()
    source._calls.see.side_effect = KeyError("injected")
    source._calls.tick.side_effect = KeyError("injected")
    source.probes = mock.Mock(poll=mock.Mock(return_value=True))
    created = wire.encode(events.VmCreated(1, 0, 77, 77, 3))
    source._on_kernel_record(created)
    assert counted() == {"reader": 1}
    assert "pid 77" in said[0]
    # Its record is kept all the same.
    assert source.read(0).records == [created]
    assert counted() == {"reader": 2}
