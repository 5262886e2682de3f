# SPDX-License-Identifier: MIT
"""`vftrace top` as a program, on a terminal of its own and without one, fed by recordings."""

import argparse
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.golden_text import recording
from vftrace.collect.pump import Pump
from vftrace.collect.replay import ReplaySource
from vftrace.commands import top as top_command

ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
PATIENCE_SECONDS = 20


class OnTerminal:
    """`vftrace top` with arguments on a pseudo-terminal of 80x24; `before`: Python that is run first."""

    def __init__(self, *arguments: str, before: str = "", **environment: str) -> None:
        # The terminal reports its size (pytest-xdist sets COLUMNS).
        inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        code = f"{before}\nimport sys; from vftrace.cli import main; sys.exit(main(sys.argv[1:]))"
        self.main, self.terminal = pty.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.terminal)
        self.output = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "top", *arguments],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            env={**inherited, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
            start_new_session=True,
        )

    def resize(self, columns: int, lines: int) -> None:
        ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: bytes, *, after: int = 0) -> None:
        """Read until `text` was drawn behind `after` bytes of output."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.output[after:]:
            assert self.process.poll() is None, self.output[-3000:]
            assert time.monotonic() < deadline, self.output[after:][-3000:]
            self._read(0.1)

    def press(self, keys: bytes) -> int:
        """Type; returns where the output is now."""
        os.write(self.main, keys)
        return len(self.output)

    def ended(self) -> int:
        """Wait for the end; returns the exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output[-3000:]
            self._read(0.1)
        self._read(0.1)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.main)
        os.close(self.terminal)

    def _read(self, seconds: float) -> None:
        if select.select([self.main], [], [], seconds)[0]:
            self.output += os.read(self.main, 65536)

    def assert_left_as_found(self) -> None:
        assert self.output.count(ENTER_SCREEN) == self.output.count(LEAVE_SCREEN) == 1
        assert self.output.rindex(LEAVE_SCREEN) > self.output.rindex(ENTER_SCREEN)
        assert self.output.rindex(SHOW_CURSOR) > self.output.rindex(HIDE_CURSOR)
        assert termios.tcgetattr(self.terminal) == self.before


@pytest.fixture
def top() -> Iterator[OnTerminal]:
    running = OnTerminal("--replay", str(recording("libvirt")), "--speed", "0")
    yield running
    running.close()


def test_q_ends_it(top: OnTerminal) -> None:
    top.wait_for(b"set by held")
    top.press(b"q")
    assert top.ended() == 0
    top.assert_left_as_found()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it(top: OnTerminal, number: signal.Signals) -> None:
    top.wait_for(b"set by held")
    top.process.send_signal(number)
    assert top.ended() == 0
    top.assert_left_as_found()


def test_keys_and_size(top: OnTerminal) -> None:
    top.wait_for(b"Finished: 1")
    mark = top.press(b"\r")
    top.wait_for(b"what happens until it", after=mark)
    mark = len(top.output)
    top.resize(160, 50)
    top.wait_for(b"re-dirtied", after=mark)
    mark = top.press(b"\x1b")
    top.wait_for(b"Finished: 1", after=mark)
    mark = top.press(b"?")
    top.wait_for(b"this list", after=mark)
    mark = top.press(b"\x1b")
    top.wait_for(b"Finished: 1", after=mark)
    mark = top.press(b"/zz\r")
    top.wait_for(b"Nothing matches", after=mark)
    mark = top.press(b"\x1bp")
    top.wait_for(b"PAUSED", after=mark)
    top.press(b"q")
    assert top.ended() == 0


def test_s_saves_the_migration_under_the_cursor(tmp_path: Path) -> None:
    """Twice is two files: what is there is not overwritten."""
    there = f"import os; os.chdir({str(tmp_path)!r})"
    top = OnTerminal("--replay", str(recording("libvirt")), "--speed", "0", before=there)
    try:
        top.wait_for(b"Finished: 1")
        mark = top.press(b"s")
        top.wait_for(b"saved vftrace-demo-libvirt", after=mark)
        mark = top.press(b"\rs")
        top.wait_for(b"-2.html", after=mark)
        top.press(b"q")
        assert top.ended() == 0
    finally:
        top.close()
    first, second = sorted(path.name for path in tmp_path.iterdir())
    assert first == "vftrace-demo-libvirt-20261123T001255Z-2.html"
    assert second == "vftrace-demo-libvirt-20261123T001255Z.html"
    page = (tmp_path / second).read_text()
    assert "<h1>Live migration" in page
    assert "demo-libvirt" in page


def test_what_cannot_be_saved_is_reported(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})"
    top = OnTerminal("--replay", str(recording("libvirt")), "--speed", "0", before=before)
    try:
        top.wait_for(b"Finished: 1")
        mark = top.press(b"s")
        top.wait_for(b"cannot save", after=mark)
        mark = top.press(b"?s")
        top.wait_for(b"no migration to save here", after=mark)
        top.press(b"q")
        assert top.ended() == 0
    finally:
        top.close()


def test_a_window_that_is_resized_while_it_is_drawn() -> None:
    """It is drawn again at once, not when the next picture is due."""
    resizes = (
        "import fcntl, struct, termios\n"
        "from vftrace.commands import top\n"
        "from vftrace.outputs.top import view\n"
        "top.REDRAW_SECONDS = 3600\n"
        "draw = view.Frame.__rich_console__\n"
        "def resized(*a):\n"
        "    yield from draw(*a)\n"
        "    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 31, 100, 0, 0))\n"
        "view.Frame.__rich_console__ = resized\n"
    )
    running = OnTerminal("--replay", str(recording("libvirt")), "--speed", "0", before=resizes)
    try:
        # The last line of the larger window.
        running.wait_for(b"\x1b[31;1H")
    finally:
        running.close()


def test_an_error_leaves_the_terminal_as_it_was() -> None:
    broken = (
        "from vftrace.outputs.top import keys\n"
        "def fails(*a): raise ValueError('broken on purpose')\n"
        "keys.KeyReader.read = fails\n"
    )
    running = OnTerminal("--replay", str(recording("libvirt")), before=broken)
    try:
        assert running.ended() == 1
        running.assert_left_as_found()
        said = running.output[running.output.rindex(LEAVE_SCREEN) :]
        assert b"broken on purpose" in said
    finally:
        running.close()


def test_a_picture_that_fails_leaves_top_running() -> None:
    # A failure in the middle of drawing: the view's own module is replaced by one that fails later.
    broken = (
        "from vftrace.outputs.top import view\n"
        "draw, drawn = view.Frame.__rich_console__, []\n"
        "def fails(*a):\n"
        "    drawn.append(1)\n"
        "    if len(drawn) > 3: raise ValueError('broken on purpose')\n"
        "    return draw(*a)\n"
        "view.Frame.__rich_console__ = fails\n"
    )
    running = OnTerminal("--replay", str(recording("libvirt")), before=broken)
    try:
        running.wait_for(b"because of an error in vftrace: ValueError")
        running.press(b"q")
        assert running.ended() == 0
        running.assert_left_as_found()
        said = running.output[running.output.rindex(LEAVE_SCREEN) :]
        assert said.count(b"broken on purpose") == 1
    finally:
        running.close()


def test_no_color_draws_without_colour() -> None:
    running = OnTerminal(
        "--replay", str(recording("dest-killed-blackout")), "--speed", "0", NO_COLOR="1"
    )
    try:
        running.wait_for(b"destination-ended")
        running.press(b"q")
        assert running.ended() == 0
        assert b"\x1b[31m" not in running.output
        assert b"\x1b[1;31m" not in running.output
    finally:
        running.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vftrace", "top", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def test_without_a_terminal_there_are_lines() -> None:
    done = run("--replay", str(recording("libvirt")), "--speed", "0")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert sum("round" in line for line in lines) == 8
    assert "set by held" in lines[-1]


def test_json_is_one_document_per_line() -> None:
    done = run("--replay", str(recording("libvirt")), "--speed", "20", "--json")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(documents) > 1
    assert [d["at_ns"] for d in documents] == sorted(d["at_ns"] for d in documents)
    assert documents[-1]["migrations"][0]["outcome"] == "completed"


class _StarvedPump:
    """A pump whose first ticks come only after some steps, as on a host that is too busy to run vftrace."""

    def __init__(self, ticks_after: int) -> None:
        self._pump = Pump(ReplaySource(recording("libvirt"), 0))
        self._ticks_after = ticks_after
        self.steps = 0

    def step(self) -> int:
        self.steps += 1
        return self._pump.step() if self.steps == self._ticks_after else 0

    def __getattr__(self, name: str) -> Any:
        return (
            False
            if name == "ended" and self.steps < self._ticks_after
            else getattr(self._pump, name)
        )


def test_once_waits_until_it_has_looked(capsys: pytest.CaptureFixture[str]) -> None:
    pump = _StarvedPump(ticks_after=5)
    top_command._once(cast(Pump, pump), _once_arguments(), lambda: True, lambda: False)
    said = capsys.readouterr()
    assert pump.steps == 5
    assert "demo-libvirt" in said.out
    assert said.err == ""


def test_once_reports_that_it_could_not_look(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_command, "ONCE_PATIENCE_NS", 0)
    top_command._once(
        cast(Pump, _StarvedPump(ticks_after=5)), _once_arguments(), lambda: True, lambda: False
    )
    assert "got no CPU time to look" in capsys.readouterr().err


def _once_arguments() -> argparse.Namespace:
    return argparse.Namespace(
        vm=[],
        json=False,
        ascii=True,
        replay=Path("r"),
        speed="0",
        record=None,
        record_dir=None,
        serve=False,
    )


def test_once_is_one_state_and_ends() -> None:
    done = run("--replay", str(recording("libvirt")), "--speed", "1", "--once")
    assert done.returncode == 0
    assert "Migrating: 1" in done.stdout
    assert "precopy" in done.stdout


def test_only_the_vm_that_was_asked_for() -> None:
    name = "demo-four-at-once-2"
    done = run("--replay", str(recording("four-at-once")), "--speed", "0", "--json", "--vm", name)
    document = json.loads(done.stdout.splitlines()[-1])
    assert {m["vm"]["name"] for m in document["migrations"]} == {name}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--speed", "2"), 2, "--speed is for --replay"),
        (("--replay", "x", "--record", "y"), 2, "--record of a --replay"),
        (("--replay", "/nonexistent"), 1, "cannot read /nonexistent"),
        (("--replay", __file__), 1, "is not a vftrace recording"),
        (("--web.listen-address", "127.0.0.1:0"), 2, "need --serve"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_metrics_are_served_beside_it() -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vftrace", "top", "--json", "--serve"),
            *("--web.listen-address", "127.0.0.1:0"),
            *("--replay", str(recording("libvirt")), "--speed", "1"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        deadline = time.monotonic() + PATIENCE_SECONDS
        text = ""
        while "vftrace_probe_attached{" not in text:
            # It listens before the recording is open.
            assert time.monotonic() < deadline, text
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
                text = answer.read().decode()
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [("top", "--json"), ("serve", "--web.listen-address", ":0")])
def test_a_replay_that_waits_for_a_pipe_can_be_ended(
    command: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [sys.executable, "-m", "vftrace", *command, "--replay", str(tmp_path / "pipe")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # It opens the pipe, for which somebody would have to write.
        wchan = Path(f"/proc/{process.pid}/wchan")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "wait_for_partner" not in wchan.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in said
