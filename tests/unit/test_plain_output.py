# SPDX-License-Identifier: MIT
"""Output in a pipe has no blanks at the ends of lines, and times in the zone that the user chose."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.golden_text import recording
from tests.unit.screens import at
from vftrace.cli import main
from vftrace.commands.demo import OwnVms
from vftrace.model.migration import Snapshot
from vftrace.outputs.text.printing import without_trailing_blanks

GOLDEN = Path(__file__).parents[1] / "golden"


@given(st.text(alphabet=" \tab\n", max_size=60))
def test_only_blanks_before_the_end_of_a_line_go(text: str) -> None:
    stripped = without_trailing_blanks(text)
    ended = text.split("\n")[:-1]
    assert stripped.split("\n")[:-1] == [line.rstrip() for line in ended]
    assert stripped.endswith(text.rpartition("\n")[2])


@pytest.mark.parametrize(
    "words",
    [
        ("report", recording("multifd")),
        ("report", recording("multifd"), "--what-if", "bandwidth=25Gbit"),
        ("report", recording("multifd"), "--heatmap"),
        ("report", recording("multifd"), "--compare", recording("postcopy")),
        ("report", GOLDEN / "lab" / "6.12-early.vft.gz"),
        ("demo", "--replay"),
        ("top", "--once", "--speed", "0", "--replay", recording("four-at-once")),
        ("mailbox", GOLDEN / "mailbox" / "6.1-held.vft.gz"),
    ],
    ids=lambda words: " ".join(str(word).rpartition("/")[2] for word in words),
)
def test_no_line_ends_with_a_blank(
    words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert [line for line in lines if line != line.rstrip()] == []


def test_nor_in_a_file(tmp_path: Path) -> None:
    assert main(["report", str(recording("multifd")), "-o", str(tmp_path / "report.txt")]) == 0
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert lines == [line.rstrip() for line in lines]


@pytest.fixture
def india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half an hour past the full hours, which no other mistake gives."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("india")
@pytest.mark.parametrize(
    ("words", "local", "utc"),
    [
        # The recording began at 00:12:01 UTC.
        (("report", recording("multifd")), "05:42:01.683 IST", "00:12:01.683 UTC"),
        (("list", recording("multifd")), " 05:42:01 ", " 00:12:01Z "),
        (("mailbox", GOLDEN / "mailbox" / "6.1-held.vft.gz"), "16:52:12.77", "11:22:12.77"),
        (
            ("top", "--once", "--speed", "0", "--replay", recording("multifd")),
            "05:42:0",
            "00:12:0",
        ),
    ],
)
def test_times_are_local_or_utc(
    words: tuple[object, ...], local: str, utc: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(word) for word in words]) == 0
    assert local in capsys.readouterr().out
    assert main([*map(str, words), "--utc"]) == 0
    assert utc in capsys.readouterr().out
    assert os.environ["TZ"] == "Asia/Kolkata"
    assert time.localtime(0).tm_hour == 5


def test_the_demonstration_shows_its_own_vms_only() -> None:
    """Others' migrations on this machine are nobody's business here; what it started stays after its end."""
    snapshot = at("four-at-once", 2.0).snapshot
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert len({m.pid for m in snapshot.migrations}) > 1
        theirs, ours = snapshot.migrations[0], replace(snapshot.migrations[1], pid=child.pid)
        theirs = replace(theirs, pid=os.getpid())  # not a child of this process
        mixed: Snapshot = replace(snapshot, vms=(), migrations=(theirs, ours))
        own = OwnVms()
        assert own.of(mixed).migrations == (ours,)
        child.communicate(b"\n")
    assert own.of(mixed).migrations == (ours,)
