# SPDX-License-Identifier: MIT
"""The scenarios on real KVM: each ends as QEMU says it should, and the guest writes what it is told
to.
"""

import asyncio
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vftrace.demo import guest, qemu
from vftrace.demo.guest import DirtySet
from vftrace.demo.scenarios import SCENARIOS, Truth, run_scenario

MEMORY_MIB = 64


def run(name: str, workdir: Path) -> Truth:
    truth = run_scenario(name, workdir, lambda line: None)
    assert list(workdir.iterdir()) == []
    assert not [process for process in truth.processes if Path(f"/proc/{process.pid}").exists()]
    return truth


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    truth = run(name, tmp_path)
    assert (
        tuple(attempt.source.status for attempt in truth.attempts if attempt.source)
        == scenario.expect
    )
    assert all(process.ended_at_ns is not None for process in truth.processes)
    for attempt in truth.attempts:
        assert attempt.counted is not None
        assert attempt.counted.dirty_sync_count is not None
        syncs = [
            event
            for event in truth.events
            if event.pid == attempt.source_pid
            and attempt.issued_at_ns <= event.at_ns <= attempt.ended_at_ns
        ]
        passes = [event.data["pass"] for event in syncs if event.name == "MIGRATION_PASS"]
        assert passes == list(range(1, len(passes) + 1))
        if attempt.source and attempt.source.status == "completed":
            assert attempt.source.dirty_sync_count == passes[-1]
            # Precopy had rounds to tell apart, except where the guest slept or postcopy cut it
            # short.
            assert len(passes) >= {"paused-before": 3, "postcopy": 4, "postcopy-recover": 4}.get(
                name, 5
            )


@pytest.mark.parametrize(
    "dirty",
    [
        guest.fixed(0x1000, 1000, 20000),
        guest.growing(0x1000, 100, 50, 1000, 20000),
        guest.sliding(0x1000, 200, 30, 1000, 20000),
        guest.bursts(0x1000, 500, 2, 0.05, 20000),
    ],
    ids=["fixed", "growing", "sliding", "bursts"],
)
def test_guest_writes_exactly_its_schedule(dirty: DirtySet, tmp_path: Path) -> None:
    """All memory of a stopped guest against the schedule: which pages, and in which pass each was
    last.
    """
    memory, ticks = asyncio.run(memory_after(dirty, 3000, tmp_path))
    pages = [memory[at : at + 4096] for at in range(0, len(memory), 4096)]
    zero = bytes(4096)
    # The interrupt vector, written once, and the stack with the counter.
    assert [page for page in range(0xA0) if pages[page] != zero] == [0, guest.STACK_PAGE]
    written = {
        page: struct.unpack_from("<I", pages[page])[0]
        for page in range(0x100, len(pages))
        if pages[page] != zero
    }
    assert written.keys() == dirty.pages
    expected = last_passes(dirty, dirty.writes_after(ticks))
    # The guest may have been stopped in the middle of a tick's writes.
    assert sum(written[page] != expected[page] for page in written) <= dirty.pages_per_tick


async def memory_after(dirty: DirtySet, writes: int, directory: Path) -> tuple[bytes, int]:
    """All guest memory, and the guest's counter, after at least `writes` page writes."""
    rom = directory / "firmware.rom"
    rom.write_bytes(guest.dirtying_rom(dirty))
    machine = ("-machine", "pc", "-accel", "kvm", "-m", str(MEMORY_MIB))
    arguments = (*machine, "-nodefaults", "-display", "none", "-bios", str(rom))
    async with qemu.start(qemu.find_qemu(), arguments, directory / "log") as vm:
        await vm.wait_u32(
            guest.TICKS_ADDRESS, lambda ticks: dirty.writes_after(ticks) >= writes, "progress"
        )
        await vm.command_qmp("stop")
        ticks = await vm.read_u32(guest.TICKS_ADDRESS)
        saved = directory / "memory"
        await vm.command_qmp("pmemsave", val=0, size=MEMORY_MIB << 20, filename=str(saved))
    return saved.read_bytes(), ticks


def last_passes(dirty: DirtySet, writes: int) -> dict[int, int]:
    """For each page the pass that wrote it last, after `writes` page writes."""
    last: dict[int, int] = {}
    number = at = 0
    while True:
        number += 1
        step = dirty.steps[at]
        for page in range(step.first_page, step.first_page + step.pages):
            if writes == 0:
                return last
            last[page] = number
            writes -= 1
        at = at + 1 if at + 1 < len(dirty.steps) else dirty.loop_from


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    workdir.mkdir()
    command = [sys.executable, "-m", "vftrace.demo", "completed-slow", "--workdir", str(workdir)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as driver:
        assert driver.stderr is not None
        while b"migrates over" not in driver.stderr.readline():
            assert driver.poll() is None
        vms = qemus_in(workdir)
        driver.send_signal(number)
        said = driver.stderr.read()
    assert len(vms) == 2
    deadline = time.monotonic() + 5
    while qemus_in(workdir) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert qemus_in(workdir) == []
    if number is not signal.SIGKILL:
        assert driver.returncode == 130
        assert b"Traceback" not in said
        assert list(workdir.iterdir()) == []


def qemus_in(directory: Path) -> list[int]:
    """Processes with this directory on their command line, the driver itself left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if f"{directory}/" in command and "qemu" in command.split("\0")[0]:
            found.append(int(process.name))
    return found


def test_a_qemu_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    async def start() -> None:
        async with qemu.start(qemu.find_qemu(), ("-no-such-option",), tmp_path / "log"):
            pass

    with pytest.raises(qemu.QemuError, match=r"did not start.*no-such-option") as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)
