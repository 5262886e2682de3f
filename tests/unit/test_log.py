# SPDX-License-Identifier: MIT
"""Log lines of migrations: of real migrations, of hostile names, in floods, and their destinations."""

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
import unicodedata
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vftrace.analysis.tracker import Tracker
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording
from vftrace.collect.replay import ReplaySource, events_of
from vftrace.events import Tick
from vftrace.faults import FAULTS, Where
from vftrace.model.migration import Migration, Outcome, Role, Snapshot
from vftrace.outputs.log import handler
from vftrace.outputs.log.entries import BEGAN, ENDED, NOT_LOGGED, Entry
from vftrace.outputs.log.formats import journal_datagram, json_line, text_line
from vftrace.outputs.log.handler import Handler, is_journal
from vftrace.outputs.log.limit import ALWAYS, IN_ALL, MAX_PROCESSES, PER_PROCESS, WINDOW_NS
from vftrace.outputs.log.migrations import MigrationLog

RECORDINGS = Path(__file__).resolve().parents[2] / "tests/golden/recordings"
TRUTHS = {
    path.name.removesuffix(".truth.json"): json.loads(path.read_text())
    for path in sorted(RECORDINGS.glob("*.truth.json"))
}
SECOND = 1_000_000_000
NOW = datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)


def entries_of(name: str) -> list[Entry]:
    """The log of a recording that is watched at each tick, as `serve` watches a host."""
    tracker, log, entries = Tracker(), MigrationLog(), list[Entry]()
    for event in events_of(Recording(RECORDINGS / f"{name}.vft.gz")):
        tracker.feed(event)
        if isinstance(event, Tick):
            snapshot = tracker.snapshot()
            entries += log.update(snapshot, snapshot.at_ns)
    tracker.finish()
    snapshot = tracker.snapshot()
    return entries + list(log.update(snapshot, snapshot.at_ns, trace_ended=True))


def a_migration(**changes: Any) -> Migration:
    pump = Pump(ReplaySource(RECORDINGS / "completed-slow.vft.gz", speed=0))
    while not pump.ended:
        pump.step()
    (migration,) = pump.snapshot().migrations
    return replace(migration, **changes)


def snapshot_of(*migrations: Migration) -> Snapshot:
    return Snapshot(SECOND, (), migrations, 0, 0, 0, ((0, 5 * SECOND, 1000),))


# -- what they say ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, truth in TRUTHS.items() if truth["is_migration"]])
def test_each_migration_of_qemus_has_one_beginning_and_one_end(name: str) -> None:
    entries = entries_of(name)
    attempts = TRUTHS[name]["attempts"]
    for message in (BEGAN, ENDED):
        said = sorted(e.fields["pid"] for e in entries if e.message == message)  # type: ignore[type-var]
        assert said == sorted(attempt["source_pid"] for attempt in attempts)
    names = {e.fields["name"] for e in entries}
    assert names <= {process["name"] for process in TRUTHS[name]["processes"]}


def test_what_is_no_migration_is_not_logged() -> None:
    for name in (n for n, truth in TRUTHS.items() if not truth["is_migration"]):
        assert [e for e in entries_of(name) if e.fields.get("kind") == "move"] == []


def test_a_failed_one_is_a_warning_with_its_cause() -> None:
    began, ended = entries_of("dest-killed-precopy")
    assert (began.level, ended.level) == (logging.INFO, logging.WARNING)
    assert ended.fields["outcome"] == "failed"
    assert ended.fields["cause"] == "destination-ended"
    assert ended.fields["downtime_ns"] is None
    assert str(ended.fields["peer"]).startswith("127.0.0.1:")


def test_a_completed_one_has_qemus_downtime() -> None:
    _, ended = entries_of("completed-slow")
    events = TRUTHS["completed-slow"]["events"]
    stop, resume = (next(e["at_ns"] for e in events if e["name"] == n) for n in ("STOP", "RESUME"))
    downtime = ended.fields["downtime_ns"]
    assert isinstance(downtime, int)
    assert -500_000 <= downtime - (resume - stop) <= 4_000_000
    assert ended.fields["role"] == "stitched"
    assert ended.fields["set_by"] is not None


def test_the_recording_is_named() -> None:
    m = a_migration()
    log = MigrationLog(lambda found: Path("/var/lib/vftrace/one.vft.zst") if found == m else None)
    began, ended = log.update(snapshot_of(m), 0, trace_ended=True)
    # Its name changes at the end.
    assert "file" not in began.fields
    assert ended.fields["file"] == "/var/lib/vftrace/one.vft.zst"
    assert " file=/var/lib/vftrace/one.vft.zst" in text_line(ended)


def test_an_end_is_logged_once_it_cannot_change() -> None:
    m = a_migration()
    assert m.ended_at_ns is not None
    log, snapshot = MigrationLog(), snapshot_of(m)
    assert [e.message for e in log.update(snapshot, m.ended_at_ns)] == [BEGAN]
    assert [e.message for e in log.update(snapshot, m.ended_at_ns + SECOND)] == [ENDED]
    assert list(log.update(snapshot, m.ended_at_ns + 2 * SECOND)) == []


def test_a_destination_whose_source_is_found_later_began_once() -> None:
    whole = a_migration()
    assert whole.peer_pid is not None
    half = replace(
        whole,
        role=Role.DESTINATION,
        pid=whole.peer_pid,
        peer_pid=None,
        started_at_ns=whole.started_at_ns + 7,
        outcome=None,
        ended_at_ns=None,
    )
    log = MigrationLog()
    first = list(log.update(snapshot_of(half), half.started_at_ns))
    then = list(log.update(snapshot_of(whole), 0, trace_ended=True))
    assert [e.message for e in first + then] == [BEGAN, ENDED]


def test_one_line_that_cannot_be_made_leaves_the_others() -> None:
    good, bad = a_migration(pid=1), a_migration(pid=2)

    def file_of(m: Migration) -> Path | None:
        if m.pid == 2:
            raise OSError(5, "Input/output error")
        return None

    before = FAULTS.counts[Where.LOG]
    found = list(MigrationLog(file_of).update(snapshot_of(good, bad), 0, trace_ended=True))
    assert [(e.message, e.fields["pid"]) for e in found] == [(BEGAN, 1), (ENDED, 1), (BEGAN, 2)]
    assert FAULTS.counts[Where.LOG] == before + 1


# -- floods -------------------------------------------------------------------------------------


def many(count: int, *, pid: int = 7, outcome: Outcome = Outcome.CANCELLED) -> list[Migration]:
    m = a_migration(pid=pid, peer_pid=None, outcome=outcome)
    return [replace(m, started_at_ns=number, ended_at_ns=number + 1) for number in range(count)]


def test_a_flood_by_one_vm_is_counted_and_others_are_logged() -> None:
    log = MigrationLog()
    victim = a_migration(pid=8, name="victim", started_at_ns=10**15, ended_at_ns=10**15 + 1)
    flood = many(25_000) + many(3, outcome=Outcome.FAILED)
    flood[-3:] = [replace(m, started_at_ns=10**12 + m.started_at_ns) for m in flood[-3:]]
    found = list(log.update(snapshot_of(*flood, victim), 10**16))
    assert [e.message for e in found if e.fields["name"] == "victim"] == [BEGAN, ENDED]
    assert len(found) == PER_PROCESS + 2
    assert list(log.update(snapshot_of(*flood, victim), 10**16 + WINDOW_NS - 1)) == []
    (more,) = log.update(snapshot_of(*flood, victim), 10**16 + WINDOW_NS)
    assert (more.message, more.level) == (NOT_LOGGED, logging.WARNING)
    began, ended = more.fields["began"], more.fields["ended"]
    assert isinstance(began, int)
    assert isinstance(ended, int)
    assert began + ended + PER_PROCESS == 2 * 25_003
    assert more.fields["failed"] == 3
    assert more.fields["cancelled"] == ended - 3
    # A new minute, a new account.
    assert list(log.update(snapshot_of(*flood, victim), 10**16 + 3 * WINDOW_NS)) == []
    late = a_migration(pid=7, started_at_ns=10**15 + 5, ended_at_ns=10**15 + 6)
    assert len(list(log.update(snapshot_of(late), 10**16 + 3 * WINDOW_NS))) == 2


def test_many_processes_are_bounded_and_each_has_its_two_lines() -> None:
    log = MigrationLog()
    m = a_migration(peer_pid=None)
    flood = [replace(m, pid=number) for number in range(MAX_PROCESSES + 10)]
    busy = many(100, pid=MAX_PROCESSES - 1)
    found = list(log.update(snapshot_of(*flood, *busy), 10**16))
    pids = [e.fields["pid"] for e in found]
    assert len(set(pids)) == MAX_PROCESSES
    assert all(pids.count(pid) == ALWAYS for pid in range(100, 110))
    assert len(found) <= ALWAYS * MAX_PROCESSES + IN_ALL
    over = list(log.update(snapshot_of(*flood, *busy), 10**16 + WINDOW_NS))
    assert 1 <= len(over) <= PER_PROCESS + 1
    counted = sum(int(e.fields["began"] or 0) + int(e.fields["ended"] or 0) for e in over)
    assert counted + len(found) == 2 * (len(flood) + len(busy))


# -- hostile names ------------------------------------------------------------------------------

HOSTILE = (
    "a\nvftrace: migration ended name=other outcome=completed",
    "\x1b[2J\x1b]0;title\x07",
    'x" outcome=completed "',
    "back\\slash",
    "\u202egnp.exe\u2069",
    "line\u2028separator\u0085next",
    "\udcff\udc80",
    "名前 ünïcode",
    "",
    "x" * 131_072,
)


def line_of(name: str) -> Entry:
    return next(MigrationLog().update(snapshot_of(a_migration(name=name)), 0))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_in_its_field(name: str) -> None:
    entry = line_of(name)
    text = text_line(entry)
    assert len(text) < 3000
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)
    # A logfmt reader finds exactly the fields that there are.
    fields = dict(logfmt(text.removeprefix("migration began ")))
    assert set(fields) == {k for k, v in entry.fields.items() if v is not None}
    document = json_line(entry, NOW)
    assert document.isascii()
    assert document.isprintable()
    assert json.loads(document)["name"] == entry.fields["name"]
    assert parsed(journal_datagram(entry))["VFTRACE_NAME"] == entry.fields["name"]


@given(st.text(st.characters(codec=None, categories=None), max_size=40))
def test_any_name_is_one_printable_line(name: str) -> None:
    entry = Entry(logging.INFO, BEGAN, {"name": name.encode(errors="replace").decode(), "pid": 7})
    text = text_line(entry)
    assert text.isprintable()
    assert dict(logfmt(text.removeprefix("migration began ")))["pid"] == "7"
    assert parsed(journal_datagram(entry))["VFTRACE_PID"] == "7"


def logfmt(text: str) -> Iterator[tuple[str, str]]:
    """Fields of a logfmt line, by its rules: a bare word, or a string in quotes with backslashes."""
    at = 0
    while at < len(text):
        equals = text.index("=", at)
        key, at = text[at:equals], equals + 1
        assert key.isidentifier()
        value = ""
        if text[at : at + 1] == '"':
            at += 1
            while text[at] != '"':
                at += text[at] == "\\"
                value += text[at]
                at += 1
            at += 1
        else:
            end = text.find(" ", at)
            end = len(text) if end < 0 else end
            value, at = text[at:end], end
            assert '"' not in value
        yield key, value
        assert text[at : at + 1] in ("", " ")
        at += 1


def parsed(datagram: bytes) -> dict[str, str]:
    """Fields of a datagram, as journald reads it (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    fields = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert key.decode().isupper()
        fields[key.decode()] = value.decode()
        datagram = rest
    return fields


# -- formats and where they go ------------------------------------------------------------------


def test_json_has_every_field_and_text_only_what_is_known() -> None:
    _, ended = entries_of("dest-killed-precopy")
    document = json.loads(json_line(ended, NOW))
    assert {"level": "warning", "msg": ENDED, "downtime_ns": None, "incomplete": False}.items() <= (
        document.items()
    )
    assert document["time"] == ended.fields["time"]
    assert "downtime" not in text_line(ended)
    assert "incomplete" not in text_line(ended)
    assert "total=2.30s" in text_line(replace(ended, fields={"total_ns": 2_300_000_000}))


def test_the_journal_gets_a_field_for_each_value(tmp_path: Path) -> None:
    _, ended = entries_of("dest-killed-precopy")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        stream = io.StringIO()
        logger = a_logger(Handler("text", stream, str(tmp_path / "socket")))
        logger.log(ended.level, "%s", ended.message, extra={"fields": ended.fields})
        fields = parsed(journal.recv(65536))
        logger.error("plain %s", "words")
        plain = parsed(journal.recv(65536))
    assert fields["MESSAGE"] == text_line(ended)
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("4", "vftrace")
    assert fields["VFTRACE_OUTCOME"] == "failed"
    assert fields["VFTRACE_CAUSE"] == "destination-ended"
    assert len(fields["MESSAGE_ID"]) == 32
    assert "VFTRACE_DOWNTIME_NS" not in fields
    assert plain == {"MESSAGE": "plain words", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "vftrace"}
    assert stream.getvalue() == ""
    # The journal has gone: standard error takes the lines.
    logger.info("still here")
    assert stream.getvalue() == "vftrace: still here\n"


def test_the_journal_is_used_if_standard_error_is_connected_to_it(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        for other in ("", "1", "1:2", f"{found.st_dev}:{found.st_ino + 1}", "x:y"):
            assert not is_journal(stream, {"JOURNAL_STREAM": other})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def test_nobody_waits_for_a_reader_of_standard_error() -> None:
    reader, writer = os.pipe()
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as stream:
        logger = a_logger(Handler("text", stream))
        for number in range(5000):
            logger.info("line %d", number)
        read = os.read(reader, 1 << 20).decode()
        written = len(read.splitlines())
        assert 0 < written < 5000
        logger.info("later")
        assert os.read(reader, 1 << 20).decode() == (
            f"vftrace: lines not written lost={5000 - written}\nvftrace: later\n"
        )
        os.close(reader)
        logger.info("nobody is there any more")


def test_a_traceback_longer_than_the_pipe_takes_does_not_wait_either() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 3 * select.PIPE_BUF)
    with os.fdopen(reader, "rb", buffering=0) as read, os.fdopen(writer, "w") as stream:
        to = Handler("text", stream)
        to.say("a" * 4 * select.PIPE_BUF)
        cut = read.read(1 << 20)
        assert cut == b"vftrace: ".ljust(len(cut), b"a")
        to.say("b" * 4 * select.PIPE_BUF)
        # A new line after the cut one; this one is cut, too.
        assert read.read(1 << 20).startswith(b"\nvftrace: lines not written lost=1\nvftrace: bbb")
        a_logger(to).info("later")
        assert read.read(1 << 20) == b"\nvftrace: lines not written lost=1\nvftrace: later\n"


def test_serve_answers_while_nobody_reads_its_log() -> None:
    """Standard error is a pipe with room for `ready` and nothing more."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    os.write(writer, bytes(select.PIPE_BUF - len("ready\n")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "vftrace", "serve", *REPLAY]
    command += ["--web.listen-address", address]
    with (
        os.fdopen(reader, "rb"),
        os.fdopen(writer, "wb") as stream,
        subprocess.Popen(command, stderr=stream) as process,
    ):
        deadline = time.monotonic() + 20
        counted = 0
        while counted < 2 and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                url = f"http://{address}/metrics"
                text = urllib.request.urlopen(url, timeout=5).read().decode()
                counted = len(re.findall(r"^vftrace_migrations_total{.*} 1.0$", text, re.M))
            time.sleep(0.05)
        process.terminate()
        assert process.wait(10) == 0
        assert counted == 2


def a_logger(to: Handler) -> logging.Logger:
    logger = logging.getLogger("test of vftrace's log")
    logger.handlers, logger.propagate = [to], False
    logger.setLevel("INFO")
    return logger


def test_an_ascii_terminal_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    a_logger(Handler("text", stream)).info("名")
    assert raw.getvalue() == b"vftrace: \\u540d\n"


# -- commands -----------------------------------------------------------------------------------


def serve(*arguments: str) -> list[str]:
    """Serve a replay to its end; returns the lines on standard error."""
    command = [sys.executable, "-m", "vftrace", "serve", *REPLAY, *arguments]
    command += ["--web.listen-address", "127.0.0.1:0"]
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.rstrip("\n"))
            # With warnings only it is silent at the end of the replay: this one's second migration succeeds.
            if "the replay has ended" in line or (
                "warning" in arguments[-1:] and "outcome" in line
            ):
                process.terminate()
    assert process.returncode == 0
    return said


REPLAY = ("--replay", str(RECORDINGS / "retry.vft.gz"), "--speed", "0")


def test_serve_logs_by_default() -> None:
    said = [line.split() for line in serve() if "migration" in line]
    assert [words[2] for words in said] == ["began", "ended", "began", "ended"]
    outcomes = [word for words in said for word in words if word.startswith("outcome=")]
    assert outcomes == ["outcome=failed", "outcome=completed"]


def test_serve_logs_json_and_nothing_else() -> None:
    said = [json.loads(line) for line in serve("--log.format=json")]
    assert [d["outcome"] for d in said if d["msg"] == ENDED] == ["failed", "completed"]
    assert {"ready"} < {d["msg"] for d in said}
    assert all({"time", "level", "msg"} <= set(d) for d in said)


def test_serve_logs_only_failures_if_asked() -> None:
    said = serve("--log.level", "warning")
    assert [line.split()[:3] for line in said if line != "ready"] == [
        ["vftrace:", "migration", "ended"]
    ]
    assert "outcome=failed" in said[-1]


def test_top_logs_if_asked() -> None:
    command = [sys.executable, "-m", "vftrace", "top", *REPLAY]
    for more, ended in (((), 0), (("--log.level=info",), 2)):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        assert len([line for line in done.stderr.splitlines() if " ended " in line]) == ended


def test_configured_once_however_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAULTS, "say", FAULTS.say)
    monkeypatch.setattr(handler, "LOGGER", logging.getLogger("a test of configure"))
    monkeypatch.setattr(FAULTS, "say", FAULTS.say)  # is put back, too
    for _ in range(3):
        handler.configure("json", "warning", {})
    assert len(handler.LOGGER.handlers) == 1
