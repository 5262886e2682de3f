# SPDX-License-Identifier: MIT
"""A pid namespace, or a boot clock, that is not the host's is refused with one message and the way out."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vftrace.host.namespaces import boottime_offset_ns


def test_the_offset_is_read_as_the_kernel_writes_it() -> None:
    """proc_timens_show_offsets (fs/proc/base.c) prints the name, seconds and nanoseconds."""
    text = "monotonic           0         0\nboottime       -86400 500000000\n"
    assert boottime_offset_ns(text) == -86_399_500_000_000
    assert boottime_offset_ns("") == 0


PID = ("--pid", "--fork", "--mount-proc")


def run_inside(namespace: Sequence[str], *words: str) -> "subprocess.CompletedProcess[str]":
    """Run vftrace in a namespace of its own; the test is skipped where none can be made."""
    command = ["unshare", *namespace, sys.executable, "-m", "vftrace", *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in ran.stderr:
        pytest.skip(f"no such namespace here: {ran.stderr.strip()}")
    return ran


COMMANDS = [["record", "-o", "/dev/null"], ["top", "--once"], ["serve"], ["mailbox"], ["doctor"]]


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("words", COMMANDS)
def test_a_foreign_pid_namespace_is_refused(words: list[str]) -> None:
    ran = run_inside(PID, *words)
    assert ran.returncode == 3
    assert "pid namespace" in ran.stderr
    assert "--pid=host" in ran.stderr
    assert "ready" not in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("words", COMMANDS[:3])
def test_a_moved_boot_clock_is_refused(words: list[str]) -> None:
    ran = run_inside(("--time", "--boottime", "1000", "--fork"), *words, "--duration", "1s")
    assert ran.returncode == 3
    assert "time namespace" in ran.stderr
    assert "+1000 s" in ran.stderr
    assert "nsenter --time=/proc/1/ns/time" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.needs("root", "unshare")
def test_the_demonstration_names_the_remedy_and_replays() -> None:
    """It traces nothing there either, but has something to show all the same."""
    ran = run_inside(PID, "demo", "--no-live")
    assert ran.returncode == 0
    assert "no live demo here:" in ran.stderr
    assert "replaying a recording" in ran.stderr
    if Path("/dev/kvm").exists() and shutil.which("qemu-system-x86_64"):
        assert "--pid=host" in ran.stderr
