"""A pid namespace, or a boot clock, that is not the host's is refused with one message and the way out."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vftrace.host.namespaces import boottime_offset_ns


def test_the_offset_is_read_as_the_kernel_writes_it() -> None:
    """proc_timens_show_offsets (fs/proc/base.c) prints the name, seconds and nanoseconds."""
    text = "monotonic           0         0\nboottime       -86400 500000000\n"
    assert boottime_offset_ns(text) == -86_399_500_000_000
    assert boottime_offset_ns("") == 0


COMMANDS = [["record", "-o", "/dev/null"], ["top", "--once"], ["serve"], ["mailbox"], ["doctor"]]


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("words", COMMANDS)
def test_a_foreign_pid_namespace_is_refused(words: list[str]) -> None:
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        sys.executable,
        "-m",
        "vftrace",
        *words,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in ran.stderr:
        pytest.skip(f"no pid namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 3
    assert "pid namespace" in ran.stderr
    assert "--pid=host" in ran.stderr
    assert "ready" not in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("words", COMMANDS[:3])
def test_a_moved_boot_clock_is_refused(words: list[str]) -> None:
    inside = ["unshare", "--time", "--boottime", "1000", "--fork"]
    command = [*inside, sys.executable, "-m", "vftrace", *words, "--duration", "1s"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in ran.stderr:
        pytest.skip(f"no time namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 3
    assert "time namespace" in ran.stderr
    assert "+1000 s" in ran.stderr
    assert "nsenter --time=/proc/1/ns/time" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.needs("root", "unshare")
def test_the_demonstration_names_the_remedy_and_replays() -> None:
    """It traces nothing there either, but has something to show all the same."""
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    command = [*inside, sys.executable, "-m", "vftrace", "demo", "--no-live"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in ran.stderr:
        pytest.skip(f"no pid namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 0
    assert "no live demo here:" in ran.stderr
    assert "replaying a recording" in ran.stderr
    if Path("/dev/kvm").exists() and shutil.which("qemu-system-x86_64"):
        assert "--pid=host" in ran.stderr
