# SPDX-License-Identifier: MIT
"""`vftrace dump`: every event of a recording, as text and as JSON."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.golden_text import GOLDEN, recording
from vftrace import cli, events
from vftrace.archive.dump import line
from vftrace.collect.recording import Recording
from vftrace.events import COLLECTOR, NO_PROCESS, Event, wire

FAST = recording("completed-fast")


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, list[str], str]:
    code = cli.main(["dump", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def again(document: dict[str, Any]) -> Event:
    """Return the event of a line of JSON."""
    said = dict(document)
    kind = getattr(events, said.pop("event"))
    said.pop("probe")
    if kind is events.Piece:
        said["bits"] = int(said["bits"], 16)
    made: Event = msgspec.convert(said, kind, str_keys=True)
    return made


@pytest.mark.parametrize(
    "path", [FAST, GOLDEN / "mailbox" / "6.12.vft.gz", GOLDEN / "lab" / "7.x.vft.gz"]
)
def test_json_has_every_event_with_every_field(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "--json", path)
    assert (code, err) == (0, "")
    found = [again(json.loads(each)) for each in out]
    recorded = [wire.decode(record) for record in Recording(path)]
    assert sorted(found, key=_order) == sorted(recorded, key=_order)


def _order(event: Event) -> tuple[int, int, int]:
    # a record that came late may have got its neighbour's number (collect/order.py)
    return event.at_ns, event.tgid, event.tid


def test_text_has_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, FAST)
    assert (code, err) == (0, "")
    assert len(out) == sum(1 for _ in Recording(FAST))
    assert out[3] == "9868.989756272     30639/30639 VmCreated fd=9"
    assert out[1] == "9868.819398516       collector Tick"
    assert all(each == each.rstrip() for each in out)
    assert [float(each.split()[0]) for each in out] == sorted(
        float(each.split()[0]) for each in out
    )


def test_text_with_the_time_of_day(capsys: pytest.CaptureFixture[str]) -> None:
    """In the report the migration began at 00:29:09.386 UTC (its dirty logging was switched on)."""
    _, boot, _ = run(capsys, FAST)
    _, utc, _ = run(capsys, "--clock", "utc", FAST)
    at = next(i for i, each in enumerate(boot) if "Region slot=5 flags=1" in each)
    assert utc[at].startswith("2026-11-23 00:29:09.38")
    assert utc[at].split()[1].endswith("Z")
    assert utc[at].split()[2:] == boot[at].split()[1:]


def test_texts_of_a_recording_cannot_steer_the_terminal() -> None:
    """Nor can a name look like another field."""
    name = "\x1b[2J\n name=other"
    event = events.Process(
        1_000_000_005, 0, COLLECTOR, 9, 5, 1, None, name, "q", False, False, False, False
    )
    said = line(event)
    assert said.isprintable()
    assert said.startswith(
        '1.000000005       collector Process pid=5 start_time=1 uuid=- name="?[2J?'
    )
    assert 'name=""' in line(
        events.Process(1, 0, COLLECTOR, 9, 5, 1, None, "", "q", False, False, False, False)
    )
    message = events.Mailbox(1, 0, NO_PROCESS, 0, "0000:01:00.0", 1, 0, 0, 1, 1, 0, (258, 0))
    assert line(message) == (
        "0.000000001               - Mailbox pf=0000:01:00.0 driver=1 vf=0 direction=0 size=1"
        " words=1 ret=0 word=102,0"
    )
    assert line(events.End(1, 0, COLLECTOR, 1, {42: 7, 0: 1})).endswith("End streams=42:7,0:1")


def test_damage_is_reported_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code that a report of the same file has."""
    whole = gzip.decompress(FAST.read_bytes())
    path = tmp_path / "cut.vft"
    path.write_bytes(whole[: len(whole) // 2])
    code, out, err = run(capsys, path)
    assert code == cli.main(["report", str(path)]) == 0
    assert len(out) > 10
    assert err == f"vftrace: {path}: not closed: its writer was killed, or the file is cut\n"
    path.write_text("hello")
    assert run(capsys, path)[0] == 1


def test_a_pipe() -> None:
    """Standard input, compressed as it is."""
    said = subprocess.run(
        [sys.executable, "-m", "vftrace", "dump", "-"],
        input=FAST.read_bytes(),
        capture_output=True,
        check=True,
    )
    assert len(said.stdout.splitlines()) == sum(1 for _ in Recording(FAST))
