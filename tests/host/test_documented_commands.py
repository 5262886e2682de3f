# SPDX-License-Identifier: MIT
"""The commands of the README that trace this host run as they stand there, until it is ready, or to its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_documented_commands import BLOCKS, commands

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/host/test_documented_commands.py"
LINES = [
    line
    for block in BLOCKS
    if block.why_not and HERE in block.why_not
    for line in commands(block.text)
]
CANNOT = 3
"""This machine cannot: some kernels take no kprobes, which mailboxes need."""


ENDLESS = {"top", "record", "serve", "mailbox", "ping"}
"""Commands that run until Ctrl-C; each prints `ready` when it works."""

STANDS_FOR = {"ADDRESS": "127.0.0.1", "serve": "serve --web.listen-address=127.0.0.1:0"}
"""What a line needs to run here: an address that answers, and a port that no other test has."""


@pytest.mark.needs("root", "bpf")
def test_each_line_runs(tmp_path: Path) -> None:
    assert len(LINES) >= 8
    program = tmp_path / ".venv/bin/vftrace"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vftrace "$@"\n')
    program.chmod(0o755)
    # In their order: `report` reads what `record` wrote.
    for line in LINES:
        words = " ".join(STANDS_FOR.get(word, word) for word in line.split()).split()
        code, said = run(words[words[0] == "sudo" :], tmp_path)
        allowed = {0, CANNOT} if "mailbox" in words else {0}
        assert code in allowed, f"{line}: {code} {said}"
        assert "Traceback" not in said


def run(words: list[str], directory: Path) -> tuple[int, str]:
    """Exit code and standard error of a command; one that does not end gets SIGINT when it is ready."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STATE_DIRECTORY": str(directory)}
    with subprocess.Popen(
        words,
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if words[1] in ENDLESS and "ready" in line:
                    process.send_signal(signal.SIGINT)
            return process.wait(30), "".join(said)
        finally:
            process.kill()
