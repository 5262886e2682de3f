# SPDX-License-Identifier: MIT
"""`vftrace list`, and `report` of directories: as a user runs them."""

import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.golden_text import GOLDEN, recording
from vftrace import cli
from vftrace.archive import index
from vftrace.collect.recording import Recording, RecordingWriter

NAMES = ("completed-fast", "libvirt", "retry", "dest-killed-blackout", "file", "there-and-back")
EXPERIMENT = GOLDEN / "experiment" / "all"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kept")
    for name in NAMES:
        shutil.copy(recording(name), directory)
    return directory


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, list[str], list[str]]:
    code = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def documents(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> list[dict[str, object]]:
    code, out, _ = run(capsys, "list", "--json", *argv)
    assert code == 0
    return [json.loads(line) for line in out]


def test_the_list(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Looked at once; the figures are those of the report (below)."""
    code, out, err = run(capsys, "list", kept, "--utc")
    assert (code, err) == (0, [])
    assert all(line == line.rstrip() for line in out)
    assert [re.sub(r"\d+(\.\d+)? (s|ms)\b", "N", line).split() for line in out] == [
        line.split()
        for line in (
            "# start VM from to strategy outcome total downtime set by",
            "1 2026-11-23 00:12:52Z demo-dest-killed-blackout vm 127.0.0.1 plain failed: destination-ended N N state-saved",  # noqa: E501
            "2 2026-11-23 00:12:55Z demo-libvirt vm vm plain completed N N held",
            "3 2026-11-23 00:13:07Z demo-file vm - plain saved N - -",
            "4 2026-11-23 00:13:19Z demo-there-and-back vm vm plain completed N N devices-loaded",
            "5 2026-11-23 00:13:21Z demo-there-and-back vm vm plain completed N N devices-loaded",
            "6 2026-11-23 00:29:09Z demo-completed-fast vm vm plain completed N N devices-loaded",
            "7 2026-11-23 01:18:01Z demo-retry vm 127.0.0.1 plain failed: destination-ended N - -",
            "8 2026-11-23 01:18:03Z demo-retry vm vm plain completed N N devices-loaded",
        )
    ]


def test_times_are_local(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        _, out, _ = run(capsys, "list", kept, "--vm", "demo-libvirt")
        assert "2026-11-23 05:42:55  demo-libvirt" in out[1]
        _, out, _ = run(
            capsys, "list", kept, "--since", "2026-11-23 05:42:56", "--until", "2026-11-23 05:45"
        )
        assert [line.split()[3] for line in out[1:]] == ["demo-file", *["demo-there-and-back"] * 2]
        assert documents(capsys, kept)[0]["started_at"] == "2026-11-23T00:12:52.384203Z"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("selectors", "numbers"),
    [
        (("--failed",), [1, 7]),
        (("--vm", "demo-retry"), [7, 8]),
        (("--vm", "52D843F9"), [2]),
        (("--vm", "demo-retry", "--vm", "demo-file"), [3, 7, 8]),
        (("--vm", "demo-retry", "--failed"), [7]),
        (("--longer-than", "300ms"), [1, 2]),
        (("--since", "2026-11-23T01:00Z"), [7, 8]),
        (("--until", "2026-11-23T00:12:53Z"), [1]),
        (("--last", "3"), [6, 7, 8]),
        (("--failed", "--last", "1"), [7]),
        (("--last", "100"), list(range(1, 9))),
        (("--number", "4"), [4]),
        (("--number", "7", "--failed"), [7]),
        (("--number", "4", "--failed"), []),
        (("--since", "1s"), []),
    ],
)
def test_selectors_are_the_same_for_list_and_report(
    selectors: Sequence[str], numbers: list[int], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = documents(capsys, kept, *selectors)
    assert [each["number"] for each in found] == numbers
    code, out, err = run(capsys, "report", kept, "--format", "json", *selectors)
    if not numbers:
        assert (code, out, err) == (1, [], [f"vftrace: no migration that matches in {kept}"])
        return
    assert (code, err) == (0, [])
    report = json.loads("\n".join(out))
    assert [figures(m) for m in report["migrations"]] == [row_figures(each) for each in found]


def figures(migration: dict[str, object]) -> tuple[object, ...]:
    """The figures of a migration that both a report and a list have."""
    vm, downtime = migration["vm"], migration["downtime"]
    assert isinstance(downtime, dict)
    ended, started = migration["ended_at_ns"], migration["started_at_ns"]
    assert isinstance(ended, int)
    assert isinstance(started, int)
    keys = ("peer_pid", "kind", "role", "strategy", "outcome", "cause")
    return (
        vm,
        *(migration[key] for key in keys),
        ended - started,
        downtime["vcpu_ns"],
        downtime["set_by"],
    )


def row_figures(row: dict[str, object]) -> tuple[object, ...]:
    keys = ("vm", "peer_pid", "kind", "role", "strategy", "outcome", "cause")
    return tuple(row[key] for key in (*keys, "total_ns", "downtime_ns", "set_by"))


def test_recordings_of_two_hosts_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    """A move is one line, whichever host began it: as many as the experiment made (truth.json)."""
    files = [EXPERIMENT / "a-host.vft.gz", EXPERIMENT / "b-host.vft.gz"]
    found = documents(capsys, *files)
    _, out, _ = run(capsys, "report", *files, "--format", "json")
    report = json.loads("\n".join(out))
    assert len(found) == len(report["migrations"]) == 18
    assert {(each["from"], each["to"]) for each in found} == {
        ("host-a", "host-b"),
        ("host-b", "host-a"),
    }
    assert {m["downtime"]["vcpu_ns"] for m in report["migrations"]} == {
        each["downtime_ns"] for each in found
    }


def test_a_number_of_the_list_is_one_migration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With recordings of two hosts and with their directory, whose list has each half.

    Number 3 of the directory left a host in the process in which it had arrived: the report has only its departure.
    """
    number = 3
    files = [EXPERIMENT / "a-host.vft.gz", EXPERIMENT / "b-host.vft.gz"]
    (row,) = documents(capsys, *files, "--number", str(number))
    _, out, _ = run(capsys, "report", *files, "--number", str(number), "--format", "json")
    (found,) = json.loads("\n".join(out))["migrations"]
    assert figures(found) == row_figures(row)
    for file in files:
        shutil.copy(file, tmp_path)
    half = documents(capsys, tmp_path)[number - 1]
    _, out, _ = run(capsys, "report", tmp_path, "--number", str(number), "--format", "json")
    (found,) = json.loads("\n".join(out))["migrations"]
    side = (found["vm"]["pid"], found["peer_pid"])[half["role"] != "source"]
    assert found["role"] == "stitched"
    vm = half["vm"]
    assert isinstance(vm, dict)
    assert (side, found["vm"]["uuid"]) == (vm["pid"], vm["uuid"])


def test_a_number_counts_in_one_list(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = (kept, EXPERIMENT / "a-host.vft.gz")
    code, out, err = run(capsys, "report", *mixed, "--number", "1")
    assert (code, out, len(err)) == (2, [], 1)
    assert "give only one of them" in err[0]


def test_a_directory_of_two_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list has the halves, the report joins those that are selected; on host a, plain-2 arrived and left."""
    for host in ("a", "b"):
        shutil.copy(EXPERIMENT / f"{host}-host.vft.gz", tmp_path)
    assert len(documents(capsys, tmp_path)) == 36
    _, out, _ = run(capsys, "report", tmp_path, "--vm", "plain-2", "--format", "json")
    found = json.loads("\n".join(out))["migrations"]
    assert {m["role"] for m in found} == {"stitched"}
    assert sorted((m["host"], m["peer_host"]) for m in found) == [
        ("host-a", "host-b"),
        ("host-b", "host-a"),
    ]


def test_the_default_is_the_recorders_directory(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(kept))
    assert len(documents(capsys)) == 8
    code, out, _ = run(capsys, "report", "--last", "1")
    assert code == 0
    assert any("demo-retry" in line for line in out)
    monkeypatch.setenv("STATE_DIRECTORY", str(kept / "absent"))
    code, out, err = run(capsys, "list")
    assert (code, out) == (1, [])
    assert len(err) == 1
    assert f"{kept / 'absent'} does not exist" in err[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--since", "soon"], "not a time"),
        (["--since", "1h", "--until", "2h"], "is later than"),
        (["--last", "0"], "not a number from 1 on"),
        (["--last", "-1"], "not a number from 1 on"),
        (["--number", "0"], "not a number from 1 on"),
        (["--number", "9"], "no migration has number 9: the list has 8"),
        (["--longer-than", "long"], "not a duration"),
        (["--vm", "demo-retri"], "did you mean demo-retry"),
    ],
)
def test_a_wrong_selector_is_one_line(
    argv: list[str], said: str, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "list", kept, *argv)
    assert (code, out, len(err)) == (2, [], 1)
    assert said in err[0]


def test_files_that_cannot_be_read(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that were named make the exit code 1, those in a directory do not; all else is listed."""
    bad = tmp_path / "bad.vft"
    bad.write_text("hello")
    absent = tmp_path / "absent.vft"
    code, out, err = run(capsys, "list", bad, recording("libvirt"), absent)
    assert (code, len(out)) == (1, 2)
    assert [line.split(": ", 1)[1] for line in err] == [
        f"{bad}: is not a vftrace recording",
        f"{absent}: No such file or directory",
    ]
    code, out, err = run(capsys, "list", tmp_path)
    assert (code, out) == (0, [])
    assert len(err) == 2


def test_a_file_that_is_written_is_no_news_in_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The migration of a growing file runs; only a named file gets a note."""
    source = Recording(recording("completed-fast"))
    records = list(source)
    writer = RecordingWriter(tmp_path / "now.vft", source.host)
    writer.write(records[: len(records) * 2 // 3])
    code, out, err = run(capsys, "list", tmp_path)
    assert (code, err, len(out)) == (0, [], 2)
    assert "running" in out[1]
    assert documents(capsys, tmp_path)[0]["outcome"] is None
    code, out, err = run(capsys, "list", tmp_path / "now.vft")
    assert (code, len(out)) == (0, 2)
    assert err == [f"vftrace: {tmp_path / 'now.vft'}: not closed: it is still being written"]
    writer.close()


def test_names_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(recording("completed-fast"), tmp_path / "a.vft.gz")
    index.read(tmp_path)
    path = tmp_path / index.NAME
    evil = "\\u001b[2J\\n\\u202e[/x]"
    path.write_text(path.read_text().replace("demo-completed-fast", evil))
    code, out, _ = run(capsys, "list", tmp_path)
    assert (code, len(out)) == (0, 2)
    assert "?[2J???[/x]" in out[1].replace(" ", "") or "?[2J??[/x]" in out[1]
    assert out[1].isprintable()


def on_a_terminal(
    argv: Sequence[str | Path], columns: int = 80, **environment: str
) -> tuple[int, str]:
    """Run it with a terminal of its own as standard output; what it wrote there."""
    parent, child = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "LINES": "24", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "vftrace", *map(str, argv)],
        stdin=child,
        stdout=child,
        stderr=subprocess.PIPE,
        env=env,
    )
    os.close(child)
    said = b""
    while True:
        try:
            more = os.read(parent, 65536)
        except OSError:  # EIO: nobody has it open any more
            break
        if not more:
            break
        said += more
    os.close(parent)
    return process.wait(20), said.decode()


@pytest.fixture
def fake_pager(tmp_path: Path) -> Path:
    """A pager that marks what goes through it."""
    program = tmp_path / "my pager"
    program.write_text("#!/bin/sh\necho PAGED $*\ncat\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("command", ["list", "report"])
def test_a_terminal_gets_a_pager(command: str, kept: Path, fake_pager: Path) -> None:
    quoted = f"'{fake_pager}' -x"
    code, said = on_a_terminal([command, kept], VFTRACE_PAGER=quoted, PAGER="false")
    assert code == 0
    assert said.startswith("PAGED -x")
    assert "demo-retry" in said
    for options, chosen in (
        (["--no-pager"], quoted),
        ([], ""),
        ([], "cat"),
        ([], "/nonexistent/pager"),
    ):
        code, said = on_a_terminal([command, kept, *options], VFTRACE_PAGER=chosen)
        assert code == 0
        assert "PAGED" not in said
        assert "demo-retry" in said


def test_a_reader_who_leaves_the_pager_has_read_enough(kept: Path) -> None:
    code, said = on_a_terminal(["report", kept], VFTRACE_PAGER="head -n 1")
    assert code == 0
    assert "8 migrations" in said


def test_a_pipe_gets_none(kept: Path, fake_pager: Path) -> None:
    said = subprocess.check_output(
        [sys.executable, "-m", "vftrace", "list", str(kept)],
        env={**os.environ, "VFTRACE_PAGER": str(fake_pager)},
        text=True,
    )
    assert "PAGED" not in said
    assert "\x1b" not in said


def test_a_report_of_a_file_says_that_nothing_matches(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recording has a migration: `no migration in this recording` would be wrong."""
    file = kept / "libvirt.vft.gz"
    for selectors in (["--failed"], ["--longer-than", "1h"]):
        code, out, err = run(capsys, "report", file, *selectors)
        assert (code, out) == (1, [])
        assert err == [f"vftrace: no migration that matches in {file}"]
    code, out, _ = run(capsys, "report", recording("boot"), "--failed")
    assert (code, out[0].startswith("no migration in this recording")) == (0, True)


def test_a_recording_that_is_named_twice_is_read_once(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of events is that of the recording, and a migration of its directory is not a second one."""
    file, other = kept / "libvirt.vft.gz", kept / "retry.vft.gz"
    copy, link = tmp_path / "copy.vft.gz", tmp_path / "link.vft.gz"
    shutil.copy(file, copy)
    link.symlink_to(file)
    _, once, _ = run(capsys, "report", file)
    code, out, err = run(capsys, "report", file, file, copy, link)
    assert (code, out) == (0, once)
    assert err == [
        f"vftrace: {file} is given twice: it is read once",
        f"vftrace: {copy} is the same recording as {file}: it is read once",
        f"vftrace: {link} is the same recording as {file}: it is read once",
    ]
    _, once, _ = run(capsys, "report", tmp_path, other)
    code, out, err = run(capsys, "report", tmp_path, other, copy)
    assert (code, out) == (0, once)
    assert len(err) == 1
    assert f"{copy} is given twice" in err[0]
    code, _, err = run(capsys, "report", file, "--compare", file)
    assert (code, err) == (0, [])


def test_a_narrow_terminal_shortens_names_and_not_figures(kept: Path) -> None:
    code, said = on_a_terminal(["list", kept, "--no-pager"], columns=120, NO_COLOR="1")
    assert code == 0
    wide = on_a_terminal(["list", kept, "--no-pager"], columns=200, NO_COLOR="1")[1].splitlines()
    lines = said.splitlines()
    assert max(map(len, lines)) <= 120
    assert "demo-dest-killed-blackout" in wide[1]
    assert "…" in lines[1]
    assert [line.split()[-2:] for line in lines] == [line.split()[-2:] for line in wide]
    small = on_a_terminal(["list", kept, "--no-pager"], columns=80, NO_COLOR="1")[1].splitlines()
    assert max(map(len, small)) <= 80
    assert small[0].split() == ["#", "start", "VM", "outcome", "downtime", "set", "by"]
    assert [line.split()[-2:] for line in small] == [line.split()[-2:] for line in wide]
    colored = on_a_terminal(["list", kept, "--no-pager"], columns=120)[1].splitlines()
    assert "\x1b[1;31m" in colored[1]
    assert "\x1b" not in colored[2]


def test_a_thousand_migrations_are_listed_in_a_second(tmp_path: Path) -> None:
    """The whole command, an index being there: seconds of CPU time, whatever else the machine does."""
    for number in range(1000):
        os.link(recording("completed-fast"), tmp_path / f"{number:04}.vft.gz")
    index.add(tmp_path / "0000.vft.gz")
    head, line = (tmp_path / index.NAME).read_bytes().splitlines(keepends=True)
    start = re.search(rb'"started_at_ns":(\d+)', line)
    assert start is not None
    lines = (
        line.replace(b"0000.vft.gz", f"{n:04}.vft.gz".encode()).replace(
            start[1], str(int(start[1]) + n).encode()
        )
        for n in range(1000)
    )
    (tmp_path / index.NAME).write_bytes(head + b"".join(lines))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.check_output([sys.executable, "-m", "vftrace", "list", str(tmp_path)])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert len(said.splitlines()) == 1001
