# SPDX-License-Identifier: MIT
"""`vftrace serve` while it may open no more files: it goes on, says so, and is right again afterwards."""

import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host.programs import compiled

FLEET = Path(__file__).resolve().parents[2] / "benchmarks" / "fleet.c"
CLIENTS = 50
SLACK_NS = 1000
"""A metric in seconds has fewer digits than a time in ns."""


def _metrics(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def _migrate(program: Path) -> tuple[int, int, int]:
    """A VM that migrates here; returns its pid, and how long it was down at least and at most, in ns."""
    done = subprocess.run(
        [program, "1", "0", "1", "500", "1", "sums"],
        input="\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    said = {
        words[0]: [int(w) for w in words[1:]]
        for line in done.stdout.splitlines()
        if (words := line.split())[0] in ("moved", "resumed")
    }
    pid, from_ns, _, left_ns, *_ = said["moved"]
    _, before_ns, after_ns = said["resumed"]
    return pid, before_ns - left_ns - SLACK_NS, after_ns - from_ns


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _leave_no_files(pid: int) -> tuple[int, int]:
    """Set the limit to the number of open files; returns the limit before."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    return limits


@pytest.mark.needs("root", "cc")
def test_without_files_it_continues_and_is_right_afterwards(tmp_path: Path) -> None:
    kept, program = tmp_path / "kept", compiled(FLEET, tmp_path)
    command = [sys.executable, "-m", "vftrace", "serve", "--web.listen-address", "127.0.0.1:0"]
    command += ["--record-dir", str(kept)]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve,
        ExitStack() as stack,
    ):
        stack.callback(serve.kill)
        assert serve.stderr is not None
        said = ""
        while not said.endswith("ready\n"):
            line = serve.stderr.readline()
            assert line, said
            said += line
        url = re.findall(r"serving (\S+)", said)[0]
        _metrics(url)
        children = Path(f"/proc/{serve.pid}/task/{serve.pid}/children").read_text().split()
        processes = [serve.pid, *map(int, children)]
        before = [_leave_no_files(pid) for pid in processes]
        host, port = url.split("/")[2].split(":")
        clients = [socket.create_connection((host, int(port)), timeout=5) for _ in range(CLIENTS)]
        without = _migrate(program)[0]
        for pid, limits in zip(processes, before, strict=True):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for client in clients:
            client.close()
        pid, least_ns, most_ns = _migrate(program)
        downtime = re.compile(rf'last_downtime_seconds{{kind="vcpu",vm="pid-{pid}"}} (\S+)')
        _until(lambda: bool(downtime.search(_metrics(url))))
        found = downtime.search(_metrics(url))
        _until(lambda: len(list(kept.glob("*.vft.gz"))) > 0)
        serve.send_signal(signal.SIGTERM)
        said += serve.communicate(timeout=20)[1]
    assert found is not None
    assert least_ns <= round(float(found[1]) * 1e9) <= most_ns
    assert serve.returncode == 0
    assert "Too many open files" in said
    # Data that could not be looked up is missing, and reported as missing.
    assert re.search(rf"migration ended .*pid={without} .*incomplete=true", said)
    assert "Traceback" not in said
    assert "internal error" not in said
