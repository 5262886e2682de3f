# SPDX-License-Identifier: MIT
"""Where a VMM writes to and loads from, beside real processes, pipes and files."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vftrace.host.descriptors import Descriptor, Load, describe, load_of

QEMU = "/usr/bin/qemu-system-x86_64"


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A `cat` that reads from a pipe of this process, as `migrate exec:cat` starts it."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_the_program_at_a_pipes_other_end(cat: subprocess.Popen[bytes]) -> None:
    assert cat.stdin is not None
    assert cat.stdout is not None
    for fd in (cat.stdin.fileno(), cat.stdout.fileno()):
        found = _wait_for_program(fd)
        assert (found.kind, found.program) == ("pipe", "cat")


def _wait_for_program(fd: int) -> Descriptor:
    """Between fork and exec the child has this process's name."""
    until = time.monotonic() + 10
    while (found := describe(os.getpid(), fd)).program != "cat" and time.monotonic() < until:
        time.sleep(0.01)
    return found


def test_a_pipe_whose_other_end_is_closed_names_nobody() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        found = describe(os.getpid(), writes)
    finally:
        os.close(writes)
    assert (found.kind, found.program) == ("pipe", None)


def test_a_files_path(tmp_path: Path) -> None:
    with (tmp_path / "guest.save").open("wb") as file:
        found = describe(os.getpid(), file.fileno())
    assert (found.kind, found.path) == ("file", str(tmp_path / "guest.save"))


@pytest.mark.parametrize(
    ("options", "load"),
    [
        ([], None),
        (["-incoming", "tcp:0:4444"], None),
        (["-incoming", "unix:/run/x"], None),
        (["-incoming", "exec:cat /var/lib/a.save"], Load("pipe", None, "cat")),
        (["-incoming", "file:/var/lib/a.save"], Load("file", "/var/lib/a.save")),
        (["-incoming", "file:/var/lib/a.save,offset=0x1000"], Load("file", "/var/lib/a.save")),
        (["-loadvm", "before-upgrade"], Load("snapshot", "before-upgrade")),
        (
            [
                "-incoming",
                '{"channel-type":"main","addr":{"transport":"file","filename":"/a","offset":0}}',
            ],
            Load("file", "/a"),
        ),
        (["-incoming", '{"channel-type":'], None),
        (["-incoming", "exec:"], Load("pipe", None, None)),
    ],
)
def test_what_the_command_line_loads(options: list[str], load: Load | None) -> None:
    assert load_of(os.getpid(), [QEMU, *options]) == load


def test_an_inherited_file_is_loaded(tmp_path: Path) -> None:
    """As libvirt restores: `-incoming defer`, and an fd of the file that QEMU inherits."""
    path = tmp_path / "guest.save"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        vmm = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, pass_fds=(file.fileno(),))
        try:
            found = load_of(vmm.pid, [QEMU, "-incoming", "defer"])
            by_number = load_of(vmm.pid, [QEMU, "-incoming", f"fd:{file.fileno()}"])
        finally:
            vmm.kill()
            vmm.wait()
    assert found == by_number == Load("file", str(path))


def test_nothing_inherited_is_no_load() -> None:
    vmm = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        assert load_of(vmm.pid, [QEMU, "-incoming", "defer"]) is None
    finally:
        vmm.kill()
        vmm.wait()
