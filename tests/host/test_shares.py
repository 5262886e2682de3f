# SPDX-License-Identifier: MIT
"""The VMs of one user get half of a kernel table at most, and one VM leaves room in a ring buffer for the others.

Tables and ring buffers are small here, so that few VMs fill them.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.programs import compiled
from tests.host.pumping import until
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump
from vftrace.probes import loader

HERE = Path(__file__).parent
SLOTS = HERE.parents[1] / "benchmarks" / "kvmslots.py"
OTHER_USER = "65534"
TABLES = {"VMS": 128, "THREADS": 512, "SLOTS": 256, "CHANNELS": 512, "CHUNKS": 64}
RING_BYTES = 1 << 20
VMS = 100
SLOTS_OF_ONE = 300


@pytest.fixture(scope="module")
def source() -> Iterator[LiveSource]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "table_sizes", lambda _: TABLES)
        patch.setattr(loader, "ring_bytes", lambda _: RING_BYTES)
        patch.setattr(loader, "EVENT_BYTES", RING_BYTES)
        yield LiveSource()


@pytest.fixture(scope="module")
def pump(source: LiveSource) -> Iterator[Pump]:
    made = Pump(source)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(HERE / "neighbour.c", tmp_path_factory.mktemp("neighbour"))


@contextmanager
def neighbour(program: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another user's VMs, in full swing. Only the real user is another, so that /dev/kvm may be opened."""
    command = ["setpriv", "--ruid", OTHER_USER, str(program), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            yield child
        finally:
            child.send_signal(signal.SIGCONT)
            child.stdin.close()
            # All of its processes have its standard output.
            child.stdout.read()


def migrate() -> tuple[int, list[int | None]]:
    """A VM of this user migrates while nobody reads the ring buffers; its pid, and the new pages of each round."""
    command = [sys.executable, str(SLOTS), "exact", "--gib", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        truth = json.load(child.stdout)
    return child.pid, truth["new"]


def rounds_of(pump: Pump, pid: int, count: int) -> list[int | None]:
    """The new pages of each round of a process's migration, once there are so many; None where a record was lost. The
    migration may be marked incomplete for losses of the other VM, which may be its destination, since neither has a
    UUID."""

    def seen() -> list[int | None]:
        found = [m for m in pump.snapshot().migrations if m.pid == pid]
        return [r.new_pages for m in found for r in m.rounds]

    until(pump, lambda: len(seen()) >= count)
    return seen()


def wait_for(done: Callable[[], bool]) -> None:
    """Wait without reading the ring buffers."""
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_user_gets_half_of_the_table_of_vms(
    program: Path, source: LiveSource, pump: Pump
) -> None:
    before = source.probes.full()["vms"]
    with neighbour(program, "vms", str(VMS)):
        assert source.probes.full()["vms"] - before == VMS - TABLES["VMS"] // 2
        assert source.probes.untraced() == {int(OTHER_USER): VMS - TABLES["VMS"] // 2}
        pid, new_pages = migrate()
        assert rounds_of(pump, pid, len(new_pages)) == new_pages
        until(pump, lambda: bool(pump.snapshot().untraced))
        assert pump.snapshot().untraced == ((int(OTHER_USER), VMS - TABLES["VMS"] // 2),)


def test_a_user_gets_half_of_the_table_of_slots(
    program: Path, source: LiveSource, pump: Pump
) -> None:
    with neighbour(program, "slots", str(SLOTS_OF_ONE)) as loud:
        loud.send_signal(signal.SIGSTOP)
        assert source.probes.uncounted()[loud.pid] >= SLOTS_OF_ONE - TABLES["SLOTS"] // 2
        pid, new_pages = migrate()
        assert list(source.probes.uncounted()) == [loud.pid]
        assert rounds_of(pump, pid, len(new_pages)) == new_pages


@pytest.mark.parametrize("attack", [("clocks",), ("logs", "2")])
def test_a_quiet_vm_has_room_in_a_ring_buffer_that_another_fills(
    attack: tuple[str, ...], program: Path, source: LiveSource, pump: Pump
) -> None:
    with neighbour(program, *attack) as loud:
        wait_for(lambda: loud.pid in source.probes.lost_by_vm())
        loud.send_signal(signal.SIGSTOP)
        pid, new_pages = migrate()
        assert list(source.probes.lost_by_vm()) == [loud.pid]
        assert rounds_of(pump, pid, len(new_pages)) == new_pages
