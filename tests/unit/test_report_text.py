# SPDX-License-Identifier: MIT
"""The report's text: the cause of the downtime comes first, and unknown figures are marked."""

import gzip
import io
import json
import os
import re
import threading
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console, RenderableType

from tests.unit.golden_text import RECORDINGS, check, recording
from vftrace.cli import main
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.model.host import HostInfo
from vftrace.model.migration import (
    Cause,
    DeviceDowntime,
    DeviceState,
    DeviceUse,
    Kind,
    Migration,
    Outcome,
    Role,
    Snapshot,
    VfPhase,
    VfUse,
)
from vftrace.model.report import live_report
from vftrace.outputs.report import text as text_module
from vftrace.outputs.report.compare import compare, render_comparisons
from vftrace.outputs.report.text import render_report
from vftrace.outputs.report.what_if import render_forecasts
from vftrace.outputs.text import tables
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.text.heatmap import render_heatmap
from vftrace.outputs.top.listing import list_page
from vftrace.outputs.top.state import ViewState

SCENARIOS = sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz"))
NOT_MIGRATIONS = ("boot", "display-only", "stop-cont")


def load(name: str) -> tuple[HostInfo, Snapshot]:
    opened = Recording(recording(name))
    return opened.host, track(opened).snapshot()


def text_of(
    host: HostInfo,
    snapshot: Snapshot,
    damage: tuple[str, ...] = (),
    *,
    width: int = 80,
    ascii: bool = False,  # noqa: A002
) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    report = structs.replace(live_report(host, snapshot), damage=damage)
    console.print(render_report(report, ascii=ascii))
    return out.getvalue()


@pytest.mark.parametrize(
    "name",
    ["libvirt", "cancel-precopy", "dest-killed-blackout", "paused-before", "four-at-once", "boot"],
)
def test_the_text_of(name: str) -> None:
    check(f"report-{name}", text_of(*load(name)))


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_longer_than_the_terminal(name: str, width: int) -> None:
    text = text_of(*load(name), width=width)
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("name", SCENARIOS)
def test_ascii_is_ascii_and_shows_the_same(name: str) -> None:
    host, snapshot = load(name)
    text = text_of(host, snapshot, ascii=True)
    assert text.isascii()
    words = re.compile(r"[A-Za-z0-9.]{2,}")
    assert set(words.findall(text_of(host, snapshot))) <= set(words.findall(text))


def test_an_ascii_console_gets_ascii() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=out, width=80, color_system=None, highlight=False)
    console.print(render_report(live_report(*load("libvirt")), ascii=False))


def test_the_first_line_names_the_cause_of_the_downtime() -> None:
    # By QMP's events: the destination had loaded, and resumed at cont.
    truth = json.loads((RECORDINGS / "libvirt.truth.json").read_text())
    destination = truth["attempts"][0]["destination_pid"]
    events = [e for e in truth["events"] if e["pid"] == destination]
    resumed_ns = next(e["at_ns"] for e in events if e["name"] == "RESUME")
    loaded_ns = max(e["at_ns"] for e in events if e["data"].get("status") == "completed")
    first = text_of(*load("libvirt"), width=200).splitlines()[0]
    match = re.fullmatch(
        r"downtime (\d+) ms, set by held \((\d+) ms\): "
        r"the destination was loaded and waited for cont",
        first,
    )
    assert match is not None
    assert int(match[2]) == pytest.approx((resumed_ns - loaded_ns) / 1e6, abs=5)
    assert int(match[1]) > int(match[2])


@pytest.mark.parametrize("name", NOT_MIGRATIONS)
def test_no_migration_is_one_clear_line(name: str) -> None:
    lines = text_of(*load(name)).splitlines()
    assert lines[0].startswith("no migration in this recording")
    assert len(lines) == 2


def test_damage_and_losses_are_reported_before_any_figure() -> None:
    host, snapshot = load("libvirt")
    migration = structs.replace(snapshot.migrations[0], incomplete=True, missed_beginning=True)
    poor = structs.replace(snapshot, lost=17, unknown_records=2, migrations=(migration,))
    lines = text_of(host, poor, ("f: not closed",), width=120).splitlines()
    assert lines[1].startswith("! RECORDING NOT WHOLE: f: not closed")
    assert lines[2].startswith("! 17 EVENTS LOST")
    assert lines[3].startswith("! 2 records of kinds")
    assert any(line.startswith("! INCOMPLETE") for line in lines)
    assert any(line.startswith("! BEGINNING MISSED") for line in lines)
    assert "17 lost" in lines[4]


def test_a_cut_recording_is_reported_up_to_the_cut(tmp_path: Path) -> None:
    whole = gzip.decompress(recording("libvirt").read_bytes())
    path = tmp_path / "cut.vft"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    opened = Recording(path)
    snapshot = track(opened).snapshot()
    lines = text_of(opened.host, snapshot, (opened.not_whole or "",)).splitlines()
    assert lines[0].startswith("downtime none so far")
    assert "RECORDING NOT WHOLE: not closed" in lines[1]
    assert any("unknown: the trace ended first" in line for line in lines)


def test_a_hostile_name_cannot_steer_the_terminal() -> None:
    host, snapshot = load("libvirt")
    name = "\x1b[2J\x07evil[bold]\n\u202e"
    migration = structs.replace(snapshot.migrations[0], name=name)
    text = text_of(host, structs.replace(snapshot, migrations=(migration,)))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "evil[bold]" in text


@pytest.mark.parametrize("name", ["[/x]", "[bold]a[/bold]", ":smile:", "\ud800"])
def test_a_name_is_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In every part that shows it: overview, first line, section, comparison, heat strip, forecast."""
    host, snapshot = load("four-at-once")
    migrations = tuple(structs.replace(m, name=name) for m in snapshot.migrations)
    report = live_report(host, structs.replace(snapshot, migrations=migrations))
    first = report.migrations[0]
    g = glyphs(ascii=False)
    console = Console(highlight=False, width=120)
    console.print(render_report(report, ascii=False))
    console.print(render_comparisons([compare(first, first)], g))
    console.print(render_heatmap(migrations, ascii=False))
    console.print(render_forecasts(migrations, ascii=False))
    text = capsys.readouterr().out
    shown = name.replace("\ud800", "?")
    assert text.count(shown) >= 4 + 1 + 4 + 2 + 4 + 4
    assert "not shown" not in text


def test_a_migration_that_cannot_be_drawn_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, snapshot = load("four-at-once")
    broken = snapshot.migrations[1]

    def fail(m: Migration, *_: object) -> RenderableType:
        if m is broken:
            raise ZeroDivisionError("division by zero")
        return phases_table(m, *_)  # type: ignore[arg-type]

    phases_table = tables.phases_table
    monkeypatch.setattr(text_module, "phases_table", fail)
    text = text_of(host, snapshot, width=160)
    (line,) = [line for line in text.splitlines() if "not shown" in line]
    assert f"{broken.name}: not shown, because of an error in vftrace (ZeroDivisionError" in line
    sections = [line for line in text.splitlines() if line.startswith("── ")]
    assert len(sections) == len(snapshot.migrations) - 1


def test_a_time_that_is_no_date_is_not_known() -> None:
    host, snapshot = load("libvirt")
    damaged = structs.replace(snapshot, clock=((0, 1 << 70, 0),))
    assert "started -" in text_of(host, damaged)


def test_many_rounds_are_shortened_and_counted() -> None:
    host, snapshot = load("libvirt")
    migration = snapshot.migrations[0]
    rounds = tuple(
        structs.replace(migration.rounds[1], at_ns=migration.started_at_ns + i * 10**9)
        for i in range(500)
    )
    many = structs.replace(migration, rounds=rounds)
    text = text_of(host, structs.replace(snapshot, migrations=(many,)))
    assert "Rounds: 500" in text
    assert "460 more" in text
    assert len(text.splitlines()) < 110


def test_devices_and_virtual_functions_are_reported() -> None:
    host, snapshot = load("libvirt")
    m = snapshot.migrations[0]
    at = m.started_at_ns
    use = DeviceUse(
        address="0000:01:10.0",
        id="vf0",
        role=Role.SOURCE,
        driver=None,
        peer_address=None,
        states=(DeviceState("PRE_COPY", at + 10**9), DeviceState("STOP_COPY", at + 2 * 10**9)),
        state_ns=(("PRE_COPY", 10**9),),
        bytes=1 << 20,
    )
    vf = VfUse(
        pf="0000:01:00.0",
        vf=3,
        address="0000:01:10.6",
        role=Role.SOURCE,
        phases=(VfPhase("absent", at, at + 10**9), VfPhase("probing", at + 10**9, None)),
    )
    downtime = structs.replace(
        m.downtime, devices=(DeviceDowntime("0000:01:10.0", "vf0", at + 2 * 10**9, 120_000_000),)
    )
    failed = structs.replace(
        m,
        outcome=Outcome.FAILED,
        cause=Cause.DEVICE_REFUSED,
        cause_detail="vf0: RESUMING refused, -22",
        devices=(use,),
        vfs=(vf,),
        downtime=downtime,
        dirty=structs.replace(m.dirty, vfio_pages=7),
    )
    text = text_of(host, structs.replace(snapshot, migrations=(failed,)))
    assert "failed: vf0: RESUMING refused, -22" in text
    assert "7 reported by devices" in text
    assert "120.000 ms" in text
    assert "PRE_COPY +1.000 s → STOP_COPY +2.000 s" in text
    assert "state 1.00 MiB" in text
    assert "source: VF 3 of 0000:01:00.0, 0000:01:10.6" in text
    assert re.search(r"probing +1\.000 s +still", text)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_first_line_of_several_shows_how_all_of_them_ended() -> None:
    host, snapshot = load("four-at-once")
    first, second, third, fourth = snapshot.migrations
    failed = structs.replace(second, outcome=Outcome.FAILED, cause=Cause.CHANNEL_ERROR)
    saved = structs.replace(third, kind=Kind.SAVE)
    snapshot = structs.replace(snapshot, migrations=(first, failed, saved, fourth))
    line = " ".join(text_of(host, snapshot).split())
    assert line.startswith("4 migrations of 4 VMs: ")
    said = line.removeprefix("4 migrations of 4 VMs: ").split(";")[0].split(", ")
    assert sorted(said) == ["1 failed", "1 saved", "2 completed"]


def test_only_the_vm_that_is_named_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(RECORDINGS / "four-at-once.vft.gz")
    assert main(["report", file, "--vm", "demo-four-at-once-1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("downtime 4.35 ms")
    assert "demo-four-at-once-2" not in said
    assert main(["report", file, "--vm", "demo-four-at-onec-1"]) == 2
    assert "did you mean demo-four-at-once-1" in capsys.readouterr().err


def test_a_recording_is_read_from_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A named one, and standard input: `ssh host zcat migration.vft.gz | vftrace report -`."""
    path = RECORDINGS / "completed-fast.vft.gz"
    assert main(["report", str(path)]) == 0
    expected = capsys.readouterr().out
    assert "completed" in expected
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for target in (str(fifo), "-"):
        writer = threading.Thread(target=fifo.write_bytes, args=(path.read_bytes(),))
        writer.start()
        if target == "-":
            monkeypatch.setattr("sys.stdin", fifo.open())
        assert main(["report", target]) == 0
        writer.join()
        assert capsys.readouterr() == (expected, "")


@pytest.mark.parametrize("width", range(37, 70, 4))
def test_a_narrow_terminal_cuts_no_figure(width: int) -> None:
    """Half of `1546` would be `15`. Columns are left out instead, and named."""
    host, snapshot = load("completed-fast")

    def rounds(text: str) -> list[list[str]]:
        table = text[text.index("Rounds: ") :].split("\n\n")[0]
        return [re.split(r"  +", line.strip()) for line in table.splitlines()[1:]]

    wide, narrow = (rounds(text_of(host, snapshot, width=each)) for each in (99, width))
    count = len(narrow[0])
    assert 1 < count < len(wide[0])
    lines = len(wide)
    assert narrow[:lines] == [line[:count] for line in wide]
    said = " ".join(word for line in narrow[lines:] for word in line)
    assert said == f"columns without room: {', '.join(wide[0][count:])}"


def test_a_narrow_list_cuts_no_figure() -> None:
    _, snapshot = load("completed-fast")

    def lines(width: int) -> list[str]:
        page, _ = list_page(snapshot, snapshot.at_ns, ViewState(), width, glyphs(ascii=False))
        return [str(line) for line in page]

    wide = {word for line in lines(99) for word in line.split()}
    for width in (50, 60, 70):
        found = [line for line in lines(width) if "completed" in line]
        assert found
        assert {w for line in found for w in line.split() if w[0].isdigit()} <= wide
