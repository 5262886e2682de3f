# SPDX-License-Identifier: MIT
"""Jobs traced by `vftrace.service`, which systemd started from the installed package."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from vftlab.job import JobError, say, wait_for

UNIT = "vftrace.service"
METRICS = "http://127.0.0.1:9843/metrics"
RECORDINGS = Path("/var/lib/vftrace")
# The emulated machine compiles for minutes when it has nothing kept.
READY_S = 600.0
# What the main process keeps of the unit's capabilities: nothing.
NONE = "0" * 16


def _systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _journal() -> str:
    command = ["journalctl", "--no-pager", "--output=cat", "--unit", UNIT]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def metrics() -> str:
    """What a scrape of the service answers."""
    with urllib.request.urlopen(METRICS, timeout=30) as answer:
        return str(answer.read(), "utf-8")


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _processes() -> list[int]:
    group = _systemctl("show", "--property=ControlGroup", "--value", UNIT)
    return [int(word) for word in Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()]


def _check_confinement() -> None:
    """JobError unless systemd put the unit's settings to work, and only the reader keeps capabilities."""
    main = int(_systemctl("show", "--property=MainPID", "--value", UNIT))
    uid = str(pwd.getpwnam("vftrace").pw_uid)
    found = {pid: _status(pid) for pid in _processes()}
    for pid, status in found.items():
        say(f"{'main' if pid == main else 'reader'}: capabilities {status['CapEff']}")
        if set(status["Uid"].split()) != {uid} or status["NoNewPrivs"] != "1":
            raise JobError(f"process {pid} has other rights than the unit gives: {status}")
        if status["Seccomp"] != "2":
            raise JobError(f"process {pid} has no filter of system calls")
    if len(found) != 2 or found[main]["CapEff"] != NONE:
        raise JobError(f"expected a reader and a main process without capabilities, saw {found}")


def _lines(name: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]


def _check_probes(text: str) -> None:
    """JobError if a probe was refused."""
    attached = _lines("vftrace_probe_attached", text)
    for line in attached:
        say(line.removeprefix("vftrace_"))
    refused = [line for line in attached if 'method="none"' in line]
    if refused or not any(line.endswith((" 1", " 1.0")) for line in attached):
        raise JobError(f"not attached: {refused or attached}")


def _check_loss(results: Path) -> None:
    """Keep the metrics. JobError if records were lost."""
    text = metrics()
    (results / "metrics").write_text(text)
    lost = _lines("vftrace_events_lost_total", text)
    if not lost or float(lost[0].split()[-1]) != 0:
        raise JobError(f"records were lost: {lost}")


def _stop() -> None:
    _systemctl("stop", UNIT)
    ended = _systemctl("show", "--property=Result,ExecMainStatus", UNIT).splitlines()
    say(f"stopped: {' '.join(ended)}")
    if set(ended) != {"Result=success", "ExecMainStatus=0"}:
        raise JobError(f"{UNIT} did not end well: {ended}\n{_journal()}")


def _keep_recordings(results: Path) -> None:
    files = sorted(RECORDINGS.glob("*.vft*"))
    say(f"kept by the flight recorder: {', '.join(file.name for file in files) or 'nothing'}")
    for file in files:
        shutil.copy(file, results)


@contextlib.contextmanager
def traced_by_service(results: Path) -> Iterator[None]:
    """With $LAB_SERVICE: the service traces what runs meanwhile; afterwards results/ has what its flight recorder kept.

    JobError if the service does not start, is not confined, lacks a probe, loses records or does not end well.
    """
    if not os.environ.get("LAB_SERVICE"):
        yield
        return
    init = Path("/proc/1/comm").read_text().strip()
    version = _systemctl("--version").splitlines()[0]
    say(f"process 1 is {init}: {version}")
    if init != "systemd":
        raise JobError(f"process 1 is {init}")

    def started() -> bool:
        state = _systemctl("is-active", UNIT)
        if state == "failed":
            raise JobError(f"{UNIT} failed:\n{_journal()}")
        return state == "active"

    try:
        wait_for(f"{UNIT} active", READY_S, started)
        say(f"{UNIT} is active")
        _check_confinement()
        _check_probes(metrics())
        yield
        # A migration has its outcome a second after its end.
        wait_for(
            "a recording with an outcome",
            60,
            lambda: any("-running-" not in f.name for f in RECORDINGS.glob("*.vft.gz")),
        )
        _check_loss(results)
        _stop()
        _keep_recordings(results)
    finally:
        (results / "journal").write_text(_journal())
