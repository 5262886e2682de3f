# SPDX-License-Identifier: MIT
"""Moves, saves and failures under two real libvirt daemons: vftrace's reports agree with the truth.

A quick set runs by default; VFTRACE_LIBVIRT_ALL=1 runs every operation of the table.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.hosts import Pair, two_hosts
from tests.libvirt.keeper import inhabitants
from tests.libvirt.operations import OPERATIONS
from tests.libvirt.running import Session

QUICK = (
    "direct",
    "parallel",
    "postcopy",
    "timeout-suspend",
    "two-at-once",
    "there-and-back",
    "own-pids",
    "abort",
    "destination-killed",
    "source-killed",
    "source-daemon-frozen",
    "save-restore",
    "dump-live",
    "snapshot-then-migrate",
    "dirtyrate-bitmap-meanwhile",
    "blockcommit",
)
NAMES = tuple(OPERATIONS) if os.environ.get("VFTRACE_LIBVIRT_ALL") == "1" else QUICK


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(tmp_path_factory.mktemp("libvirt")) as session:
        yield session


@pytest.mark.parametrize("name", NAMES)
def test_operation(name: str, session: Session) -> None:
    result = session.run(OPERATIONS[name])
    statuses = [attempt.get("status") for attempt in result.truth["qemu"]]
    wanted = [each.qemu for each in OPERATIONS[name].expect if each.kind != "load"]
    # The operation did what it is for.
    assert len(statuses) == len(wanted)
    assert all(want in (None, status) for status, want in zip(statuses, wanted, strict=True))
    assert not result.problems


def test_nothing_is_left_of_hosts_whose_test_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from tests.libvirt.hosts import two_hosts\n"
        "with two_hosts() as pair:\n"
        "    print(pair.a.pid, pair.b.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    mounts = Path("/proc/self/mounts").read_text()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as test:
        assert test.stdout is not None
        keepers = [int(pid) for pid in test.stdout.readline().split()]
        assert len(keepers) == 2
        inside = set.union(*(inhabitants(pid) for pid in keepers)) | set(keepers)
        assert len(inside) >= 4
        test.kill()
    deadline = time.monotonic() + 20
    while alive := {pid for pid in inside if is_ours(pid, tmp_path)}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    assert Path("/proc/self/mounts").read_text() == mounts
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    assert " between" not in links.stdout


def is_ours(pid: int, directory: Path) -> bool:
    """Whether the process lives and is one of the hosts of this directory: a pid may be used again."""
    try:
        return str(directory) in Path(f"/proc/{pid}/mounts").read_text()
    except OSError:
        return False


def test_two_hosts_are_apart() -> None:
    with two_hosts() as pair:
        assert {host.run("hostname").stdout.strip() for host in pair.hosts} == {"host-a", "host-b"}
        assert [uuid_of(pair, name) for name in "ab"] == [pair.a.uuid, pair.b.uuid]
        pair.a.run(
            "touch", "/etc/libvirt/only-here", "/var/lib/libvirt/only-here", "/run/only-here"
        )
        for place in ("/etc/libvirt", "/var/lib/libvirt", "/run"):
            assert "only-here" in pair.a.run("ls", place).stdout
            assert "only-here" not in pair.b.run("ls", place).stdout
            assert not Path(place, "only-here").exists()


def uuid_of(pair: Pair, name: str) -> str:
    text = pair.at(name).virsh("capabilities")
    return text[text.index("<uuid>") + 6 : text.index("</uuid>")]
